//! Regular files. In: a path, or what the system said. Out: an open file and its length, or a fault.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use super::retry::fault;
use crate::failure::{Failure, Fault, Reason};

/// Opens a regular file and says how long it is. Without blocking: a pipe of an image's name must not hold a thread for
/// ever.
pub fn open_file(path: &str) -> Result<(File, u64), Fault> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|e| fault(&e))?;
    let found = file.metadata().map_err(|e| fault(&e))?;
    if !found.is_file() {
        return Err(Failure::fetch(Reason::Missing, "it is not a regular file").into());
    }
    Ok((file, found.len()))
}

/// It has another length than it had.
pub fn changed(want: u64, found: u64) -> Fault {
    Failure::fetch(Reason::Changed, format!("{found} bytes, but {want} when it was indexed")).into()
}
