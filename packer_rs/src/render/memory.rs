//! The memory of batches: one block each, used again once the last reader has let go. In: sizes. Out: blocks that come
//! back to their pool by themselves: what lies idle and what is in use stay within one bound, and what was not asked
//! for longest goes first. A pool for a daemon takes its blocks from sealed memfds, which other processes of the host
//! can map read-only while nobody but the daemon can write, shrink or grow them; where the system has none, from the
//! heap.

use std::alloc::{Layout as Allocation, alloc_zeroed, dealloc};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::error::{Error, Kind, Result};
use crate::render::field::{ALIGN, Field, Value};
use crate::sync::lock;

/// Blocks that lie idle at most: of small batches very many would fit, and each shared one is a descriptor and a mapping,
/// of which a process may have only so many.
const IDLE: usize = 256;

const PAGE: usize = 4096;
/// Bytes of a block, from which on it may be pinned.
const LARGE: usize = 1 << 20;

/// Blocks of memory, kept for reuse by size.
pub struct Pool {
    state: Mutex<State>,
    /// Bytes of all blocks, beyond which none lies idle.
    bound: usize,
    shared: bool,
    owner: u32,
}

#[derive(Default)]
struct State {
    /// What lies idle, the longest first.
    idle: VecDeque<Memory>,
    /// Bytes of the blocks that somebody holds.
    out: usize,
}

impl State {
    /// Takes out what has lain idle longest, until all blocks are within `bound` and no more than `IDLE` lie idle.
    fn trim(&mut self, bound: usize) -> Vec<Memory> {
        let mut all = self.out + self.idle.iter().map(|m| m.bytes).sum::<usize>();
        let mut gone = Vec::new();
        while (all > bound || self.idle.len() > IDLE)
            && let Some(memory) = self.idle.pop_front()
        {
            all -= memory.bytes;
            gone.push(memory);
        }
        gone
    }
}

impl Pool {
    /// A pool that lets blocks lie idle while all of them, with those in use, have at most `bound` bytes. With
    /// `shared`, other processes can map its blocks.
    pub fn new(bound: usize, shared: bool) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), bound, shared, owner: std::process::id() })
    }

    /// A block of `bytes`, zeroed when it is new, and as its last user left it otherwise.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Result<Block> {
        let mut state = lock(&self.state);
        let at = state.idle.iter().rposition(|m| m.bytes == bytes);
        let idle = at.and_then(|at| state.idle.remove(at));
        state.out += bytes;
        let gone = state.trim(self.bound);
        // The system's work is done without the lock.
        drop(state);
        drop(gone);
        let Some(memory) = idle.or_else(|| Memory::new(bytes, self.shared)) else {
            lock(&self.state).out -= bytes;
            return Err(Error::new(
                Kind::Render,
                format!("no memory for a batch of {bytes} bytes; lower data.batch_size or render.memory_mb"),
            ));
        };
        Ok(Block { memory: Some(memory), pool: self.clone(), abandoned: AtomicBool::new(false) })
    }

    /// Takes a block back; one that is `abandoned` is not used again.
    fn give_back(&self, memory: Memory, abandoned: bool) {
        let mut state = lock(&self.state);
        state.out -= memory.bytes;
        let mut gone = Vec::new();
        if abandoned {
            gone.push(memory)
        } else {
            state.idle.push_back(memory)
        }
        gone.extend(state.trim(self.bound));
        drop(state);
    }
}

/// What is to be done before a piece of memory goes.
pub type Release = Box<dyn FnOnce() + Send + Sync>;

/// A piece of memory of its own, freed when dropped.
struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    shared: Option<Shared>,
    release: OnceLock<Release>,
}

// SAFETY: memory belongs to whoever holds it, and says nothing of threads.
unsafe impl Send for Memory {}

impl Memory {
    fn new(bytes: usize, shared: bool) -> Option<Self> {
        #[cfg(target_os = "linux")]
        if shared && let Some(memory) = Self::mapped(bytes) {
            return Some(memory);
        }
        let _ = shared;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(allocation(bytes)) })?;
        Some(Self { start, bytes, shared: None, release: OnceLock::new() })
    }

    /// A sealed memfd, mapped; None where the system cannot.
    #[cfg(target_os = "linux")]
    fn mapped(bytes: usize) -> Option<Self> {
        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
        use std::sync::atomic::AtomicU64;

        static NEXT: AtomicU64 = AtomicU64::new(0);
        let size = libc::off_t::try_from(bytes).ok()?;
        // SAFETY: the name ends with NUL.
        let fd = unsafe { libc::memfd_create(c"navit".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return None;
        }
        // SAFETY: opened just now, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: no pointers are passed.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } != 0 {
            return None;
        }
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: the system chooses the place, and the file is as long as the mapping.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, fd.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let shared = Shared { number: NEXT.fetch_add(1, Ordering::Relaxed), fd };
        let start = NonNull::new(start.cast())?;
        let memory = Self { start, bytes, shared: Some(shared), release: OnceLock::new() };
        // Writable mappings are only this one, from before the seal.
        let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE;
        let raw = memory.shared.as_ref()?.fd.as_raw_fd();
        // SAFETY: no pointers are passed.
        (unsafe { libc::fcntl(raw, libc::F_ADD_SEALS, seals) } == 0).then_some(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
        if self.shared.is_some() {
            // SAFETY: mapped by `mapped` with this size, and nobody's now.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        } else {
            // SAFETY: allocated with this layout by `new`, and nobody's now.
            unsafe { dealloc(self.start.as_ptr(), allocation(self.bytes)) };
        }
    }
}

/// Large blocks begin with a page: what pins memory for a device takes whole pages, which no two of them may share.
fn allocation(bytes: usize) -> Allocation {
    let align = if bytes < LARGE { ALIGN } else { PAGE };
    Allocation::from_size_align(bytes, align).unwrap_or(Allocation::new::<u64>())
}

/// By what another process can map a block.
pub struct Shared {
    /// No other block of this process ever has this number.
    pub number: u64,
    /// Its memfd.
    pub fd: std::os::fd::OwnedFd,
}

/// The memory of one batch; it goes back to its pool when dropped.
pub struct Block {
    /// Taken out when the block is dropped.
    memory: Option<Memory>,
    pool: Arc<Pool>,
    abandoned: AtomicBool,
}

// SAFETY: a block is plain memory; who writes where is settled by the renderer.
unsafe impl Sync for Block {}

impl Block {
    /// First byte, aligned to 64.
    pub fn start(&self) -> *mut u8 {
        self.memory.as_ref().map_or(std::ptr::null_mut(), |m| m.start.as_ptr())
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.memory.as_ref().map_or(0, |m| m.bytes)
    }

    /// Whether it has no bytes; never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// By what another process can map it; None on the heap.
    pub fn shared(&self) -> Option<&Shared> {
        self.memory.as_ref().and_then(|m| m.shared.as_ref())
    }

    /// Whether somebody has bound this memory to something that must be undone before it goes.
    pub fn bound(&self) -> bool {
        self.memory.as_ref().is_some_and(|m| m.release.get().is_some())
    }

    /// Binds the memory, which stays bound while it goes from batch to batch: `release` is called before it is freed.
    /// False where it was bound before, and then `release` is dropped.
    pub fn bind(&self, release: Release) -> bool {
        self.memory.as_ref().is_some_and(|m| m.release.set(release).is_ok())
    }

    /// Never to be used again: some other process may read it for as long as it likes.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// `len` values from the `at`-th value of a field.
    ///
    /// # Safety
    /// Nobody else uses these values meanwhile.
    #[allow(clippy::mut_from_ref)] // Disjoint parts are written by several threads.
    pub unsafe fn part<T: Value>(&self, field: &Field, at: usize, len: usize) -> &mut [T] {
        assert!(field.dtype == T::DTYPE && at + len <= field.len());
        assert!(field.offset + field.len() * size_of::<T>() <= self.len());
        // SAFETY: inside the block, as checked, and left to the caller; offsets are multiples of 64, so the alignment
        // holds.
        unsafe { std::slice::from_raw_parts_mut(self.start().add(field.offset).cast::<T>().add(at), len) }
    }

    /// `len` values from the `at`-th value of a field, to be read.
    ///
    /// # Safety
    /// Nobody writes these values meanwhile.
    pub unsafe fn read<T: Value>(&self, field: &Field, at: usize, len: usize) -> &[T] {
        assert!(field.dtype == T::DTYPE && at + len <= field.len());
        assert!(field.offset + field.len() * size_of::<T>() <= self.len());
        // SAFETY: inside the block, as checked, and left to the caller; alignment as in `part`.
        unsafe { std::slice::from_raw_parts(self.start().add(field.offset).cast::<T>().add(at), len) }
    }

    /// A whole field.
    ///
    /// # Safety
    /// As for `part`.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn whole<T: Value>(&self, field: &Field) -> &mut [T] {
        // SAFETY: as for the caller.
        unsafe { self.part(field, 0, field.len()) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // In a forked child another thread may have held the lock for ever: its copy is simply given up.
        if let Some(memory) = self.memory.take()
            && self.pool.owner == std::process::id()
        {
            self.pool.give_back(memory, *self.abandoned.get_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pool: &Arc<Pool>, bytes: usize) -> Block {
        pool.take(bytes).unwrap_or_else(|e| panic!("{e:?}"))
    }

    fn idle(pool: &Pool) -> Vec<usize> {
        lock(&pool.state).idle.iter().map(|m| m.bytes).collect()
    }

    #[test]
    fn blocks_are_used_again_until_they_are_abandoned() {
        for shared in [false, true] {
            let pool = Pool::new(1 << 20, shared);
            let name = |b: &Block| (b.start() as usize, b.shared().map(|s| s.number));
            let first = name(&take(&pool, 4096));
            let again = take(&pool, 4096);
            assert_eq!(first, name(&again));
            assert_eq!(again.shared().is_some(), shared && cfg!(target_os = "linux"));
            again.abandon();
            drop(again);
            assert!(idle(&pool).is_empty());
            assert_eq!(lock(&pool.state).out, 0);
        }
    }

    #[test]
    fn idle_blocks_and_those_in_use_stay_within_the_bound() {
        let pool = Pool::new(8192, true);
        let mut blocks: Vec<_> = (0..5).map(|_| take(&pool, 4096)).collect();
        blocks.truncate(2);
        assert!(idle(&pool).is_empty(), "what is in use takes the whole bound");
        blocks.truncate(1);
        assert_eq!(idle(&pool), [4096]);
        blocks.clear();
        assert_eq!(idle(&pool), [4096; 2]);
        let _large = take(&pool, 4096 + 64);
        assert!(idle(&pool).is_empty(), "a new block takes the room of idle ones");
    }

    #[test]
    fn idle_blocks_are_bounded_in_number() {
        let pool = Pool::new(1 << 30, true);
        let blocks: Vec<_> = (0..IDLE + 50).map(|_| take(&pool, 4096)).collect();
        drop(blocks);
        assert_eq!(idle(&pool).len(), IDLE);
    }

    #[test]
    fn what_is_bound_stays_so_from_batch_to_batch_and_is_released_once_before_it_goes() {
        use std::sync::atomic::AtomicUsize;
        for shared in [false, true] {
            let (pool, released) = (Pool::new(8192, shared), Arc::new(AtomicUsize::new(0)));
            let counted = || -> Release {
                let released = released.clone();
                Box::new(move || {
                    released.fetch_add(1, Ordering::Relaxed);
                })
            };
            let block = take(&pool, 4096);
            assert!(!block.bound() && block.bind(counted()) && block.bound() && !block.bind(counted()));
            drop(block);
            assert!(take(&pool, 4096).bound());
            assert_eq!(released.load(Ordering::Relaxed), 0);
            drop(take(&pool, 8192));
            assert_eq!(released.load(Ordering::Relaxed), 1);
            assert!(!take(&pool, 4096).bound());
        }
    }

    #[test]
    fn sizes_asked_for_lately_stay_and_old_ones_go() {
        let pool = Pool::new(1 << 16, false);
        for step in 1..200 {
            drop(take(&pool, 64 * step));
        }
        let held: usize = idle(&pool).iter().sum();
        assert!(held <= 1 << 16 && idle(&pool).contains(&(64 * 199)), "{:?}", idle(&pool));
        let (now, mut seen) = (64 * 150, Vec::new());
        for _ in 0..3 {
            seen.push(take(&pool, now).start() as usize);
        }
        assert!(seen.iter().all(|&start| start == seen[0]), "the size that is asked for now is not used again");
    }
}
