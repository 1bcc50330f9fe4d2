//! Header probe: bytes of a container → size after orientation, format, or the reason why there is none. Takes files,
//! members of tars, values of Parquet columns. Gives plain values, in the order asked for.
//!
//! May not read pixels, since indexing touches every image of a data set and must cost a few microseconds each; may not
//! know of plans or batches.

mod column;
mod headers;
mod members;
mod open;
pub mod polygons;
mod tar;

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fetch::remote::Blocks;
use crate::fetch::retry::handed_on;
use crate::fetch::window::Window;
use crate::pixels::decode::foreign::Helpers;
pub use column::{Value, scan_column};
pub use headers::{Header, probe_header};
pub use members::{Member, probe_members};
use open::io_reason;
pub use tar::{Entry, Payload, Scan, scan_tar};

/// What became of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its header was read.
    Image(Header),
    /// Length and modification time are the known ones, so the file was not opened.
    Unchanged,
    /// Why it cannot be used.
    Broken(String),
}

/// One file, probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Bytes; −1 where the file is gone or may not be looked at.
    pub length: i64,
    /// Modification time in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// The header, or the reason.
    pub outcome: Outcome,
}

/// Probes files, in parallel.
///
/// - `root`: the folder that `names` are relative to; empty where they are absolute.
/// - `names`: raw file names.
/// - `known`: length and modification time per name (−1 where unknown); a file that still has both is not opened.
/// - `threads`: at least 1.
/// - `helpers`: for the formats that are not read here.
pub fn probe_files(
    root: &[u8],
    names: &[&[u8]],
    known: &[(i64, i64)],
    threads: NonZeroUsize,
    helpers: &Helpers,
) -> Vec<Probed> {
    in_order(names.len(), RUN, threads.get(), |i, [path, buffer]| {
        path.clear();
        path.extend_from_slice(root);
        if !root.is_empty() && !root.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(names[i]);
        probe_file(Path::new(std::ffi::OsStr::from_bytes(path)), known.get(i).copied(), buffer, helpers)
    })
}

/// Probes the objects `root` + key of known lengths; many requests at once, since each mostly waits.
pub fn probe_objects(root: &str, objects: &[(String, u64)], helpers: &Helpers) -> Vec<Result<Header, String>> {
    const REQUESTS: usize = 32;
    in_order(objects.len(), 1, REQUESTS, |i, [buffer, _]| {
        let (key, length) = &objects[i];
        let blocks = Blocks::header(&format!("{root}{key}"), *length).map_err(|e| io_reason(&e))?;
        probe_header(&mut Window::new(&blocks, 0, *length, buffer), helpers)
    })
}

/// Images that one thread takes at a time.
const RUN: usize = 64;

/// `work` for each of `count`, `run` of them at a time, on so many threads (on the caller's alone for one), with memory that a
/// thread uses again. Gives what it returned, in order.
fn in_order<T: Send>(
    count: usize,
    run: usize,
    threads: usize,
    work: impl Fn(usize, &mut [Vec<u8>; 2]) -> T + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let part = || {
        let (mut done, mut scratch) = (Vec::new(), Default::default());
        loop {
            let from = next.fetch_add(run, Ordering::Relaxed);
            if from >= count {
                return done;
            }
            done.push((from, (from..count.min(from + run)).map(|i| work(i, &mut scratch)).collect::<Vec<_>>()));
        }
    };
    let threads = threads.min(count.div_ceil(run));
    let mut runs = if threads <= 1 {
        part()
    } else {
        let part = handed_on(part);
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(&part)).collect();
            let mut all = Vec::new();
            for handle in handles {
                match handle.join() {
                    Ok(part) => all.extend(part),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            all
        })
    };
    runs.sort_unstable_by_key(|&(from, _)| from);
    runs.into_iter().flat_map(|(_, run)| run).collect()
}

fn probe_file(path: &Path, known: Option<(i64, i64)>, buffer: &mut Vec<u8>, helpers: &Helpers) -> Probed {
    let broken = |length, mtime_ns, reason| Probed { length, mtime_ns, outcome: Outcome::Broken(reason) };
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) => return broken(-1, -1, io_reason(&e)),
    };
    let length = i64::try_from(meta.len()).unwrap_or(i64::MAX);
    let mtime_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    // A pipe or device would block on opening.
    if !meta.is_file() {
        return broken(length, mtime_ns, "not a regular file".into());
    }
    if known == Some((length, mtime_ns)) {
        return Probed { length, mtime_ns, outcome: Outcome::Unchanged };
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) => return broken(length, mtime_ns, io_reason(&e)),
    };
    let mut window = Window::new(&file, 0, meta.len(), buffer);
    match probe_header(&mut window, helpers) {
        Ok(header) => Probed { length, mtime_ns, outcome: Outcome::Image(header) },
        Err(reason) => broken(length, mtime_ns, reason),
    }
}
