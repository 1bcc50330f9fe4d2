//! Ranged reads with one small buffer: what the probe sees of a file, a tar member or an object.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Anything that gives bytes at an offset.
pub trait ReadAt {
    /// Reads at `offset` into `into` and returns how many bytes there were; fewer than asked for only at the end.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match FileExt::read_at(self, &mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let n = into.len().min(self.len() - from);
        into[..n].copy_from_slice(&self[from..from + n]);
        Ok(n)
    }
}

/// Why bytes are not there.
pub(crate) enum Unread {
    /// They lie beyond the end.
    Short,
    /// The system refused.
    Io(io::Error),
}

/// Reading ahead pays where the next bytes are wanted, not after a jump along a chain of chunks.
const AHEAD: usize = 4096;
const AFTER_JUMP: usize = 256;

/// `length` bytes of a source from `base` on, read piece by piece into a buffer that callers reuse.
pub struct Window<'a, R: ReadAt + ?Sized> {
    source: &'a R,
    base: u64,
    length: u64,
    buffer: &'a mut Vec<u8>,
    start: u64,
}

impl<'a, R: ReadAt + ?Sized> Window<'a, R> {
    /// A window over `length` bytes from `base` on; what `buffer` holds is forgotten.
    pub fn new(source: &'a R, base: u64, length: u64, buffer: &'a mut Vec<u8>) -> Self {
        buffer.clear();
        Self { source, base, length, buffer, start: 0 }
    }

    /// Bytes in the window.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The `n` bytes at `at`.
    pub(crate) fn get(&mut self, at: u64, n: usize) -> Result<&[u8], Unread> {
        if at.checked_add(n as u64).is_none_or(|end| end > self.length) {
            return Err(Unread::Short);
        }
        let end = self.start + self.buffer.len() as u64;
        if at < self.start || at + n as u64 > end {
            let ahead = if at >= self.start && at <= end { AHEAD } else { AFTER_JUMP };
            let wanted = (n.max(ahead) as u64).min(self.length - at) as usize;
            self.buffer.resize(wanted, 0);
            self.start = at;
            match self.source.read_at(self.buffer, self.base + at) {
                Ok(got) => self.buffer.truncate(got),
                Err(e) => {
                    self.buffer.clear();
                    return Err(Unread::Io(e));
                }
            }
        }
        let from = (at - self.start) as usize;
        self.buffer.get(from..from + n).ok_or(Unread::Short)
    }

    /// The `N` bytes at `at`.
    pub(crate) fn array<const N: usize>(&mut self, at: u64) -> Result<[u8; N], Unread> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.get(at, N)?);
        Ok(bytes)
    }
}
