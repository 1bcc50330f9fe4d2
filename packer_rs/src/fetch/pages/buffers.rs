//! Memory for pages, used again. In: lengths. Out: buffers of that length, which come back here when nobody holds them.
//! Apart, since a page is megabytes: memory that is new for each one costs as much as reading it.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::sync::lock;

/// Idle buffers, as many as may be kept.
pub struct Buffers {
    idle: Mutex<VecDeque<Vec<u8>>>,
    keep: AtomicUsize,
}

/// A buffer in use; what it holds at first has no meaning.
pub struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    home: Arc<Buffers>,
}

impl Buffers {
    /// Keeps at most so many idle bytes.
    pub fn keeping(bytes: usize) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::default(), keep: AtomicUsize::new(bytes) })
    }

    /// Keeps at most so many idle bytes from now on.
    pub fn keep(&self, bytes: usize) {
        self.keep.store(bytes, Ordering::Relaxed);
    }

    /// A buffer of this length.
    pub fn take(self: &Arc<Self>, length: usize) -> Buffer {
        // Few sizes, so that pages of nearly equal length find each other's buffers; none much longer than its page,
        // since pages are what is counted.
        let size = length.next_multiple_of((length.next_power_of_two() / 8).max(1));
        let mut idle = lock(&self.idle);
        let fits = |held: &Vec<u8>| (length..=size + size / 8).contains(&held.len());
        let found = idle.iter().position(fits).and_then(|at| idle.remove(at));
        drop(idle);
        Buffer { bytes: found.unwrap_or_else(|| vec![0; size]), length, home: self.clone() }
    }
}

impl Buffer {
    /// The same bytes, shared; the buffer goes back when the last of them is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let keep = self.home.keep.load(Ordering::Relaxed);
        if self.bytes.len() > keep {
            return;
        }
        let mut idle = lock(&self.home.idle);
        idle.push_back(std::mem::take(&mut self.bytes));
        let mut held: usize = idle.iter().map(Vec::len).sum();
        while held > keep {
            held -= idle.pop_front().map_or(held, |oldest| oldest.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_for_a_page_of_like_size() {
        let buffers = Buffers::keeping(3000);
        let first = buffers.take(1000);
        let (place, shared) = (first.as_ptr(), first.freeze());
        let part = shared.slice(10..20);
        drop(shared);
        assert_ne!(buffers.take(1000).as_ptr(), place, "a part of it is in use");
        drop(part);
        let again: Vec<_> = (0..2).map(|_| buffers.take(990)).collect();
        assert!(again.iter().any(|buffer| buffer.as_ptr() == place && buffer.len() == 990));
    }

    #[test]
    fn a_small_page_takes_no_large_buffer_and_few_idle_bytes_are_kept() {
        let buffers = Buffers::keeping(3000);
        drop(buffers.take(2000));
        assert!(buffers.take(100).bytes.len() < 200);
        for length in [500, 900, 1400, 2800, 4000] {
            drop((buffers.take(length), buffers.take(length)));
            let held: usize = lock(&buffers.idle).iter().map(Vec::len).sum();
            assert!(held <= 3000, "{held}");
        }
    }
}
