//! Header probe: bytes of a container → size after orientation, format, or the reason why there is none. Pixels are never
//! read. In: files, or members of tars. Out: plain values, in the order asked for.
//!
//! Apart from decoding, because indexing touches every image of a data set and must cost a few microseconds each.

mod column;
mod headers;
mod tar;

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fetch::remote::{Blocks, is_remote};
pub use crate::fetch::window::{ReadAt, Window};
use crate::pixels::decode::foreign::Helpers;
pub use column::{Value, scan_column};
pub use headers::probe_header;
pub use tar::{Entry, Payload, Scan, scan_tar};

/// Containers that the probe knows. The discriminants are the codes of the index's dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Format {
    /// JPEG, JFIF or EXIF.
    Jpeg = 0,
    /// PNG and APNG.
    Png = 1,
    /// WebP, lossy, lossless or extended.
    Webp = 2,
    /// GIF.
    Gif = 3,
    /// Windows or OS/2 bitmap.
    Bmp = 4,
    /// TIFF and BigTIFF.
    Tiff = 5,
    /// AVIF. This and the following are read by helpers (`foreign`).
    Avif = 6,
    /// HEIF and HEIC.
    Heif = 7,
    /// JPEG 2000, as a file or as a bare codestream.
    Jpeg2000 = 8,
    /// PBM, PGM and PPM, plain or raw.
    Ppm = 9,
    /// Windows icon.
    Ico = 10,
    /// Apple icon.
    Icns = 11,
    /// DirectDraw surface.
    Dds = 12,
    /// Quite OK Image.
    Qoi = 13,
    /// SGI image.
    Sgi = 14,
}

/// Names of the formats, by code.
pub const FORMAT_NAMES: [&str; 15] = [
    "jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "heif", "jpeg2000", "ppm", "ico", "icns", "dds", "qoi", "sgi",
];

impl Format {
    /// Its name in the index.
    pub fn name(self) -> &'static str {
        FORMAT_NAMES[self as usize]
    }

    /// The format of a file that starts with `bytes` (64 of them, if there are as many), where a helper reads it.
    pub fn foreign(bytes: &[u8]) -> Option<Self> {
        Some(match bytes {
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => return isobmff(bytes),
            [0, 0, 0, 12, b'j', b'P', b' ', b' ', b'\r', b'\n', 0x87, b'\n', ..] => Self::Jpeg2000,
            [0xFF, 0x4F, 0xFF, 0x51, ..] => Self::Jpeg2000,
            [b'P', b'1'..=b'6', b' ' | b'\t' | b'\r' | b'\n' | b'#', ..] => Self::Ppm,
            [0, 0, 1, 0, _, 0, ..] => Self::Ico,
            [b'i', b'c', b'n', b's', ..] => Self::Icns,
            [b'D', b'D', b'S', b' ', ..] => Self::Dds,
            [b'q', b'o', b'i', b'f', ..] => Self::Qoi,
            [0x01, 0xDA, 0 | 1, 1 | 2, ..] => Self::Sgi,
            _ => return None,
        })
    }
}

/// AVIF or HEIF by the brands of the first box: the major one, then the compatible ones. A film is neither.
fn isobmff(bytes: &[u8]) -> Option<Format> {
    let length = u32::from_be_bytes(bytes.first_chunk().copied()?) as usize;
    let end = length.min(bytes.len()).min(64);
    let brands = || bytes.get(8..12).into_iter().chain(bytes.get(16..end).unwrap_or(&[]).chunks_exact(4));
    let any = |known: &[&[u8; 4]]| brands().any(|brand| known.iter().any(|k| k[..] == *brand));
    if any(&[b"avif", b"avis"]) {
        Some(Format::Avif)
    } else if any(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]) {
        Some(Format::Heif)
    } else {
        None
    }
}

/// What an image's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Width after orientation, in pixels, at least 1.
    pub width: i32,
    /// Height after orientation, in pixels, at least 1.
    pub height: i32,
    /// EXIF orientation, 1 to 8.
    pub orientation: u8,
    /// Container.
    pub format: Format,
}

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
    const RUN: usize = 64;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        let (mut path, mut buffer) = (Vec::new(), Vec::new());
        loop {
            let from = next.fetch_add(RUN, Ordering::Relaxed);
            if from >= names.len() {
                return done;
            }
            let to = (from + RUN).min(names.len());
            let run = (from..to).map(|i| {
                path.clear();
                path.extend_from_slice(root);
                if !root.is_empty() && !root.ends_with(b"/") {
                    path.push(b'/');
                }
                path.extend_from_slice(names[i]);
                probe_file(Path::new(std::ffi::OsStr::from_bytes(&path)), known.get(i).copied(), &mut buffer, helpers)
            });
            done.push((from, run.collect::<Vec<_>>()));
        }
    };
    let mut runs = in_threads(threads.get().min(names.len().div_ceil(RUN)), work);
    runs.sort_unstable_by_key(|&(from, _)| from);
    runs.into_iter().flat_map(|(_, run)| run).collect()
}

/// Probes the objects `root` + key of known lengths; many requests at once, since each mostly waits.
pub fn probe_objects(root: &str, objects: &[(String, u64)], helpers: &Helpers) -> Vec<Result<Header, String>> {
    const REQUESTS: usize = 32;
    let next = AtomicUsize::new(0);
    let mut found = in_threads(REQUESTS.min(objects.len()), || {
        let (mut done, mut buffer) = (Vec::new(), Vec::new());
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some((key, length)) = objects.get(i) else { return done };
            let blocks = Blocks::header(&format!("{root}{key}"), *length).map_err(|e| io_reason(&e));
            let probe = |blocks| probe_header(&mut Window::new(&blocks, 0, *length, &mut buffer), helpers);
            done.push((i, blocks.and_then(probe)));
        }
    });
    found.sort_unstable_by_key(|&(i, _)| i);
    found.into_iter().map(|(_, header)| header).collect()
}

/// Opens a file or object for a scan: something to read from, and its length.
fn open(path: &Path) -> std::io::Result<(Box<dyn ReadAt + Send + Sync>, u64)> {
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

/// Runs `work` on this many threads (on the caller's alone for one) and joins what they return.
fn in_threads<T: Send>(threads: usize, work: impl Fn() -> Vec<T> + Sync) -> Vec<T> {
    if threads <= 1 {
        return work();
    }
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        let mut all = Vec::new();
        for handle in handles {
            match handle.join() {
                Ok(part) => all.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
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

/// One plain phrase for what the system refused.
fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => format!("cannot be read: {error}"),
    }
}
