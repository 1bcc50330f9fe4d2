//! Containers opened for a scan. In: a path or URL. Out: something to read from, or one phrase that says why there is
//! none.

use std::fs::File;
use std::path::Path;

use crate::fetch::remote::{Blocks, is_remote};
use crate::fetch::window::ReadAt;

/// Opens a file or object for a scan: something to read from, and its length.
pub fn open(path: &Path) -> std::io::Result<(Box<dyn ReadAt + Send + Sync>, u64)> {
    if let Some(url) = path.to_str().filter(|path| is_remote(path)) {
        let (blocks, meta) = Blocks::open(url)?;
        return Ok((Box::new(blocks), meta.length));
    }
    let meta = std::fs::metadata(path)?;
    // A pipe or device would block on opening.
    if !meta.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    Ok((Box::new(File::open(path)?), meta.len()))
}

/// One plain phrase for what the system refused.
pub fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => format!("cannot be read: {error}"),
    }
}
