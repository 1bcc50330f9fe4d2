//! Spans as files of one folder, which processes may share. In: spans and their names. Out: their bytes as they were
//! written, or that they are not there. Apart from `policy`, which knows of no disk, and from `mod`, which asks both.
//!
//! A span is written under a name of its own and then renamed, so what has its name is whole; what a machine's crash or a
//! bad disk made of it is seen by its length and a CRC-32. The file `book` says how many bytes all files have, those
//! being written included; it is read and written under an exclusive lock, and so the bound holds for all processes
//! together. Who dies in between leaves a count that is too high, never one too low, until the folder is counted again.
//! A file that is being written is locked by its writer: what is not locked has none any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// What a file of ours begins with: the format and its version.
const MAGIC: [u8; 8] = *b"navitsp1";
const HEADER: usize = 64;
/// Files take whole blocks of a disk.
const BLOCK: u64 = 4096;
/// Characters of a plan's mark and of a span's own in a file's name.
pub const MARK: usize = 16;

/// What a span is known by: two independent hashes of its address and range. The first is in its file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(pub u64, pub u64);

impl Name {
    /// The name of a range of an object.
    pub fn of(url: &str, part: &Range<u64>) -> Self {
        // FNV-1a, whose values stay the same for ever, with two starts.
        let hash = |start: u64| {
            let bytes = url.bytes().chain(part.start.to_le_bytes()).chain(part.end.to_le_bytes());
            let sum = bytes.fold(start, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
            // The last bytes have not come far.
            (sum ^ (sum >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        };
        Self(hash(0xCBF2_9CE4_8422_2325), hash(0x6A09_E667_F3BC_C908))
    }
}

/// What is in the folder under one name.
#[derive(Clone, Debug)]
pub struct Found {
    /// The mark of whose it is.
    pub mark: String,
    /// Of the span.
    pub name: u64,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// What all files take, and how often that has changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Book {
    /// Bytes.
    pub total: u64,
    /// Files that came or went.
    pub changes: u64,
}

/// Why a span is not to be had.
pub enum Unread {
    /// It is not there.
    Absent,
    /// It is not what was written.
    Damaged,
}

/// See the module.
pub struct Folder {
    path: PathBuf,
    book: File,
    /// Bytes that all spans together may take.
    bound: u64,
}

/// A span that is being written; room for it is taken.
pub struct Part {
    file: File,
    path: PathBuf,
    /// Bytes that are counted for it.
    pub bytes: u64,
}

/// Bytes that a span of this length takes.
pub fn size_of(length: usize) -> u64 {
    ((HEADER + length) as u64).next_multiple_of(BLOCK)
}

/// The mark and the number that the file of a span is named by. None for a name that is not ours.
fn named(file: &str) -> Option<(&str, u64)> {
    let (mark, number) = file.split_once('-')?;
    let ours = |text: &str| text.len() == MARK && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if ours(mark) && ours(number) { Some((mark, u64::from_str_radix(number, 16).ok()?)) } else { None }
}

/// Opens a file of the folder, which is never a link to another one, and never waits for a writer of a pipe.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Locks a file; false where another has it, and that is not waited for.
fn flock(file: &File, how: libc::c_int) -> io::Result<bool> {
    loop {
        // SAFETY: the descriptor is open, and no pointers are passed.
        if unsafe { libc::flock(file.as_raw_fd(), how) } == 0 {
            return Ok(true);
        }
        let e = io::Error::last_os_error();
        match e.kind() {
            ErrorKind::Interrupted => {}
            ErrorKind::WouldBlock => return Ok(false),
            _ => return Err(e),
        }
    }
}

/// Gives a lock back whatever happens.
struct Locked<'a>(&'a File);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        drop(flock(self.0, libc::LOCK_UN));
    }
}

impl Folder {
    /// Opens a folder, made where there is none, whose spans may take `bound` bytes.
    pub fn open(path: &Path, bound: u64) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let mut options = File::options();
        let book = open(options.read(true).write(true).create(true).truncate(false), &path.join("book"))?;
        Ok(Self { path: path.to_owned(), book, bound })
    }

    /// What a file takes of the bound. What is larger than that is nothing that was written here: it is found to be damaged when
    /// it is read, and no span has to go for it.
    fn taken(&self, length: u64) -> Option<u64> {
        Some(length.next_multiple_of(BLOCK)).filter(|&bytes| bytes <= self.bound)
    }

    /// Says for as long as the file is held that somebody reads what has this mark.
    pub fn attend(&self, mark: &str) -> io::Result<File> {
        let mut options = File::options();
        let file = open(options.write(true).create(true).truncate(false), &self.path.join(format!("{mark}.live")))?;
        flock(&file, libc::LOCK_SH)?;
        Ok(file)
    }

    /// Whether anybody does.
    pub fn attended(&self, mark: &str) -> bool {
        let path = self.path.join(format!("{mark}.live"));
        File::open(path).is_ok_and(|file| !flock(&file, libc::LOCK_EX | libc::LOCK_NB).unwrap_or(false))
    }

    /// Works with what the folder holds while no other process does.
    pub fn locked<T>(&self, work: impl FnOnce(&mut Book) -> io::Result<T>) -> io::Result<T> {
        flock(&self.book, libc::LOCK_EX)?;
        let _locked = Locked(&self.book);
        let mut said = [0; 16];
        let got = self.book.read_at(&mut said, 0)?;
        let number = |at: usize| u64::from_le_bytes(said[at..at + 8].try_into().unwrap_or_default());
        let before = if got == said.len() { Book { total: number(0), changes: number(8) } } else { Book::default() };
        let mut book = before;
        let done = work(&mut book);
        if (book.total, book.changes) != (before.total, before.changes) || got < said.len() {
            said[..8].copy_from_slice(&book.total.to_le_bytes());
            said[8..].copy_from_slice(&book.changes.to_le_bytes());
            self.book.write_all_at(&said, 0)?;
        }
        done
    }

    /// Counts all files, takes away what nobody finishes writing, and says what there is.
    pub fn count(&self, book: &mut Book) -> io::Result<Vec<Found>> {
        let (mut found, mut total) = (Vec::new(), 0);
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let (span, part) = name.split_once('.').map_or((name, None), |(span, part)| (span, Some(part)));
            // What else lies here is somebody's, even where it ends in `.part`.
            let Some((mark, number)) = named(span) else { continue };
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let Some(part) = part else {
                let Some(bytes) = self.taken(entry.metadata().map_or(0, |found| found.len())) else { continue };
                total += bytes;
                found.push(Found { mark: mark.to_owned(), name: number, bytes });
                continue;
            };
            let Some(rest) = part.strip_suffix(".part") else { continue };
            let alone = open(File::options().read(true), &entry.path())
                .is_ok_and(|file| flock(&file, libc::LOCK_EX | libc::LOCK_NB).unwrap_or(false));
            if !alone || fs::remove_file(entry.path()).is_err() {
                total += rest.rsplit('.').next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
            }
        }
        book.total = total;
        Ok(found)
    }

    fn file(&self, mark: &str, name: u64) -> PathBuf {
        self.path.join(format!("{mark}-{name:016x}"))
    }

    /// Takes room for a span of this length, which is then to be written by `Part::write`.
    pub fn begin(&self, book: &mut Book, mark: &str, name: u64, length: usize) -> io::Result<Part> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let bytes = size_of(length);
        let path = self.path.join(format!("{mark}-{name:016x}.{process}-{number}.{bytes}.part"));
        let file = File::options().write(true).create_new(true).open(&path)?;
        flock(&file, libc::LOCK_EX)?;
        book.total += bytes;
        Ok(Part { file, path, bytes })
    }

    /// Gives a span that was written its name. False where another process has done so meanwhile.
    pub fn finish(&self, book: &mut Book, part: &Part, mark: &str, name: u64) -> io::Result<bool> {
        let path = self.file(mark, name);
        if path.exists() {
            self.give_up(book, part);
            return Ok(false);
        }
        fs::rename(&part.path, path).inspect_err(|_| self.give_up(book, part))?;
        book.changes += 1;
        Ok(true)
    }

    /// Takes a span away that could not be written.
    pub fn give_up(&self, book: &mut Book, part: &Part) {
        drop(fs::remove_file(&part.path));
        book.total = book.total.saturating_sub(part.bytes);
    }

    /// Takes a span away. The bytes that it took; 0 where another process has done so.
    pub fn remove(&self, book: &mut Book, mark: &str, name: u64) -> io::Result<u64> {
        let path = self.file(mark, name);
        // Only files were counted.
        let file = fs::symlink_metadata(&path).ok().filter(|found| found.is_file());
        let bytes = file.and_then(|found| self.taken(found.len())).unwrap_or(0);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            Err(_) => return Ok(0),
            Ok(()) => {}
        }
        book.total = book.total.saturating_sub(bytes);
        book.changes += 1;
        Ok(bytes)
    }

    /// The rows that a span is for, as its file says.
    pub fn rows(&self, mark: &str, name: u64) -> Option<Range<u64>> {
        let mut header = [0; HEADER];
        open(File::options().read(true), &self.file(mark, name)).ok()?.read_exact_at(&mut header, 0).ok()?;
        Some(Header::read(&header)?.rows)
    }

    /// The bytes of a span, and the rows that it is for.
    pub fn read(&self, mark: &str, name: Name) -> Result<(Bytes, Range<u64>), Unread> {
        let file = match open(File::options().read(true), &self.file(mark, name.0)) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(Unread::Absent),
            Err(_) => return Err(Unread::Damaged),
        };
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).map_err(|_| Unread::Damaged)?;
        let header = Header::read(&header).ok_or(Unread::Damaged)?;
        // Looked at before memory is taken: what lies here may be of any length.
        let length = file.metadata().map_err(|_| Unread::Damaged)?.len();
        if header.name != name || length.checked_sub(HEADER as u64) != Some(header.length) {
            return Err(Unread::Damaged);
        }
        let mut data = vec![0; header.length as usize];
        file.read_exact_at(&mut data, HEADER as u64).map_err(|_| Unread::Damaged)?;
        if crc32fast::hash(&data) != header.crc {
            return Err(Unread::Damaged);
        }
        Ok((Bytes::from(data), header.rows))
    }
}

impl Part {
    /// Writes the span.
    pub fn write(&mut self, name: Name, rows: &Range<u64>, data: &[u8]) -> io::Result<()> {
        let header = Header { name, length: data.len() as u64, rows: rows.clone(), crc: crc32fast::hash(data) };
        self.file.write_all(&header.written())?;
        self.file.write_all(data)
    }
}

/// The first bytes of a file.
struct Header {
    name: Name,
    length: u64,
    rows: Range<u64>,
    crc: u32,
}

impl Header {
    fn written(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..8].copy_from_slice(&MAGIC);
        for (at, value) in
            [self.name.0, self.name.1, self.length, self.rows.start, self.rows.end].into_iter().enumerate()
        {
            out[8 + 8 * at..16 + 8 * at].copy_from_slice(&value.to_le_bytes());
        }
        out[48..52].copy_from_slice(&self.crc.to_le_bytes());
        let own = crc32fast::hash(&out[..HEADER - 4]);
        out[HEADER - 4..].copy_from_slice(&own.to_le_bytes());
        out
    }

    /// None where it is not as it was written.
    fn read(from: &[u8; HEADER]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(from[at..at + 8].try_into().unwrap_or_default());
        let half = |at: usize| u32::from_le_bytes(from[at..at + 4].try_into().unwrap_or_default());
        if from[..8] != MAGIC || half(HEADER - 4) != crc32fast::hash(&from[..HEADER - 4]) {
            return None;
        }
        Some(Self { name: Name(word(8), word(16)), length: word(24), rows: word(32)..word(40), crc: half(48) })
    }
}
