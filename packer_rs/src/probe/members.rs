//! Members of a container whose places are known already, such as those of a zip: probed where they lie. In: a path, and the
//! place of each. Out: one entry a member, in order. Apart from `tar`, which has to find them.

use std::num::NonZeroUsize;
use std::path::Path;

use super::headers::{Header, probe_header};
use super::open::{io_reason, open};
use super::{RUN, in_order};
use crate::fetch::check::check_window;
use crate::fetch::window::Window;
use crate::pixels::decode::foreign::Helpers;

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it is known again by; 0 where it is broken.
    pub check: u32,
    /// The header, or the reason why there is none.
    pub header: Result<Header, String>,
}

/// Probes the members of a file, or of an object at a URL, at (first byte, bytes), on so many threads. Also says how many bytes
/// the container has.
///
/// # Errors
/// Why the container cannot be read at all.
pub fn probe_members(
    path: &Path,
    places: &[(u64, u64)],
    threads: NonZeroUsize,
    helpers: &Helpers,
) -> Result<(Vec<Member>, u64), String> {
    let (source, length) = open(path).map_err(|e| io_reason(&e))?;
    let members = in_order(places.len(), RUN, threads.get(), |i, [buffer, _]| {
        let (at, bytes) = places[i];
        if at.checked_add(bytes).is_none_or(|end| end > length) {
            let header = Err(format!("{bytes} bytes from byte {at} on are beyond the end, at {length}"));
            return Member { check: 0, header };
        }
        let mut member = Window::new(&*source, at, bytes, buffer);
        let header = probe_header(&mut member, helpers);
        let check = if header.is_ok() { check_window(&mut member).unwrap_or(0) } else { 0 };
        Member { check, header }
    });
    Ok((members, length))
}
