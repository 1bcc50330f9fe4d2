//! An object as a file. In: reads at offsets, nearly in order. Out: their bytes, from a few large blocks that are kept.

use std::io;
use std::sync::Mutex;

use bytes::Bytes;

use super::{Meta, Object};
use crate::fetch::window::ReadAt;
use crate::sync::lock;

/// Bytes fetched at once by `ReadAt`, and how many such blocks it keeps.
const BLOCK: u64 = 4 << 20;
const BLOCKS: usize = 3;
/// The same for single images, whose header is in the first block but for rare ones.
const HEADER: u64 = 64 << 10;

/// An object read in large blocks, for scans that go through it from start to end.
pub struct Blocks {
    object: Object,
    length: u64,
    size: u64,
    held: Mutex<Vec<(u64, Bytes)>>,
}

impl Blocks {
    /// Opens an object and learns its size and time.
    pub fn open(url: &str) -> io::Result<(Self, Meta)> {
        let object = Object::new(url)?;
        let meta = object.meta()?;
        Ok((Self { object, length: meta.length, size: BLOCK, held: Mutex::default() }, meta))
    }

    /// An object of known length, of which little more than its header is wanted.
    pub fn header(url: &str, length: u64) -> io::Result<Self> {
        Ok(Self { object: Object::new(url)?, length, size: HEADER, held: Mutex::default() })
    }

    fn block(&self, number: u64) -> io::Result<Bytes> {
        let mut held = lock(&self.held);
        if let Some(at) = held.iter().position(|(n, _)| *n == number) {
            let found = held.remove(at);
            held.push(found);
            return Ok(held[held.len() - 1].1.clone());
        }
        let start = number * self.size;
        let range = start..(start + self.size).min(self.length);
        let bytes = self.object.fetch(range)?;
        if held.len() == BLOCKS {
            held.remove(0);
        }
        held.push((number, bytes.clone()));
        Ok(bytes)
    }
}

impl ReadAt for Blocks {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() && offset + (done as u64) < self.length {
            let at = offset + done as u64;
            let block = self.block(at / self.size)?;
            let part = &block[(at % self.size) as usize..];
            let n = part.len().min(into.len() - done);
            into[done..done + n].copy_from_slice(&part[..n]);
            done += n;
        }
        Ok(done)
    }
}
