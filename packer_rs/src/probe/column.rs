//! Images in a binary column of a Parquet file: probed where they lie, or in their decoded pages. In: a path and a
//! column. Out: one entry a row, in order.

use std::path::Path;
use std::sync::Arc;

use super::headers::{Header, probe_header};
use super::open::{io_reason, open};
use crate::fetch::check::check;
use crate::fetch::pages::{Buffers, Pages, Trouble};
use crate::fetch::window::Window;
use crate::pixels::decode::foreign::Helpers;

/// Bytes of idle buffers kept while a column is read.
const KEEP: usize = 64 << 20;

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// First byte in the file, where the value lies in it as it is.
    pub place: Option<u64>,
    /// Bytes.
    pub length: u64,
    /// What it is known again by.
    pub check: u32,
    /// The header, or the reason why there is none.
    pub header: Result<Header, String>,
}

/// Reads a column of a file, or of an object at a URL, whole, page by page. Also says how many bytes the file has.
///
/// # Errors
/// Why the file cannot be used at all.
pub fn scan_column(path: &Path, column: &str, helpers: &Helpers) -> Result<(Vec<Value>, u64), String> {
    let (source, length) = open(path).map_err(|e| io_reason(&e))?;
    let reason = |trouble| match trouble {
        Trouble::Io(e) => io_reason(&e),
        Trouble::File(what) => format!("broken Parquet: {what}"),
    };
    let pages = Pages::open(Arc::from(source), length, Buffers::keeping(KEEP)).map_err(reason)?;
    let (mut values, mut scratch) = (Vec::with_capacity(pages.rows() as usize), Vec::new());
    let each = |value: Option<&[u8]>, place| {
        let bytes = value.unwrap_or_default();
        let header = match value {
            None => Err("the row holds no bytes".into()),
            Some(_) => probe_header(&mut Window::new(bytes, 0, bytes.len() as u64, &mut scratch), helpers),
        };
        values.push(Value { place, length: bytes.len() as u64, check: check(bytes), header });
    };
    pages.leaf(column).and_then(|leaf| pages.scan(leaf, each)).map_err(reason)?;
    Ok((values, length))
}
