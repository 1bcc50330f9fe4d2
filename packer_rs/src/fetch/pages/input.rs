//! A file as the Parquet crate reads it. In: bytes at offsets. Out: page headers and pages, and where a value lies that
//! was found in one of them.

use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::buffers::Buffers;
use crate::fetch::window::ReadAt;
use crate::sync::lock;

/// The crate's view of a file, which remembers what was read last.
pub(super) struct Input {
    source: Arc<dyn ReadAt + Send + Sync>,
    length: u64,
    pub(super) buffers: Arc<Buffers>,
    /// Where the page header read last starts.
    pub(super) header: AtomicU64,
    /// The pages read last and where they start. They are kept alive, so that no later allocation can be taken for
    /// them.
    pages: Mutex<Vec<(Bytes, u64)>>,
}

impl Input {
    pub(super) fn new(source: Arc<dyn ReadAt + Send + Sync>, length: u64, buffers: Arc<Buffers>) -> Self {
        Self { source, length, buffers, header: AtomicU64::new(0), pages: Mutex::default() }
    }

    /// Where these bytes lie in the file, if they are part of a page as it was read.
    pub(super) fn place_of(&self, value: &[u8]) -> Option<u64> {
        lock(&self.pages).iter().find_map(|(page, start)| {
            let at = (value.as_ptr() as usize).checked_sub(page.as_ptr() as usize)?;
            (at + value.len() <= page.len()).then_some(start + at as u64)
        })
    }
}

impl Length for Input {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Input {
    type T = BufReader<Tail>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        self.header.store(start, Ordering::Relaxed);
        Ok(BufReader::with_capacity(512, Tail { source: self.source.clone(), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        // A damaged header must not ask for more than there is.
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} of a file of {}", self.length)));
        }
        let mut page = self.buffers.take(length);
        let got = self.source.read_at(&mut page, start).map_err(|e| ParquetError::External(Box::new(e)))?;
        if got < length {
            return Err(ParquetError::EOF(format!("the file ends {} bytes early", length - got)));
        }
        let page = page.freeze();
        let mut pages = lock(&self.pages);
        // The dictionary comes first and is referred to by all that follow.
        pages.truncate(1);
        pages.push((page.clone(), start));
        Ok(page)
    }
}

/// The file from an offset on.
pub struct Tail {
    source: Arc<dyn ReadAt + Send + Sync>,
    at: u64,
}

impl Read for Tail {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = self.source.read_at(into, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}
