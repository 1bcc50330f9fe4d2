//! Who does what next. In: batches in the order of submission, files that were read ahead, bytes that are given back.
//! Out: one task at a time to each thread that asks. One lock, held for a few instructions per image.
//!
//! A batch is started (its block allocated and filled) only within the bound of bytes, but there is always one, and one
//! that somebody waits for is started whatever the bound says: a consumer that asks out of order must not wait for
//! ever.
//!
//! A thread that reads ahead works in spells: it rests when enough is ready and is woken when half of that is used up.
//! Woken for each image, it would take the core from a decoding thread each time, which costs more than the read of a
//! cached file.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::job::Job;
use crate::error::{Error, Kind};
use crate::failure::Fault;
use crate::sync::lock;

/// Idle buffers larger than this are not kept.
const KEEP_BUFFER: usize = 8 << 20;

/// What a thread is to do.
pub enum Task {
    /// Allocate and fill the block of this batch, then call `started`.
    Start(Arc<Job>),
    /// Fetch image `.1` into `.2`, then call `fetched`: this thread reads ahead.
    Fetch(Arc<Job>, usize, Vec<u8>),
    /// Render image `.1`; `.2` holds its bytes where they were read ahead.
    Image(Arc<Job>, usize, Option<Result<Vec<u8>, Fault>>),
}

/// An image and its bytes, read ahead.
type Ready = (Arc<Job>, usize, Result<Vec<u8>, Fault>);

struct State {
    waiting: VecDeque<Arc<Job>>,
    active: VecDeque<Arc<Job>>,
    starting: usize,
    ready: VecDeque<Ready>,
    /// Images that a decoding thread could not have at once: it does not wait for them, threads that read ahead do.
    handed: VecDeque<(Arc<Job>, usize)>,
    ready_bytes: usize,
    fetching: usize,
    in_flight: usize,
    spare: Vec<Vec<u8>>,
    /// Decoding threads that wait for work, threads that read ahead and rest: a wake that nobody needs is a system
    /// call.
    idle: usize,
    resting: usize,
    closed: bool,
}

pub struct Queue {
    state: Mutex<State>,
    work: Condvar,
    ahead: Condvar,
    bound: usize,
    /// Unclaimed images below which the next batch is started, and files that are read ahead at most.
    few: usize,
    /// Bytes of files that are read ahead, and of idle buffers, at most.
    ahead_bytes: usize,
}

impl Queue {
    pub fn new(bound: usize, decoders: usize, fetchers: usize) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                active: VecDeque::new(),
                starting: 0,
                ready: VecDeque::new(),
                handed: VecDeque::new(),
                ready_bytes: 0,
                fetching: 0,
                in_flight: 0,
                spare: Vec::new(),
                idle: 0,
                resting: 0,
                closed: false,
            }),
            work: Condvar::new(),
            ahead: Condvar::new(),
            bound,
            few: 8 * (decoders + fetchers),
            ahead_bytes: (bound / 8).max(1),
        }
    }

    /// Bytes of batches that are started and not yet taken.
    pub fn in_flight(&self) -> usize {
        lock(&self.state).in_flight
    }

    pub fn submit(&self, job: Arc<Job>) {
        lock(&self.state).waiting.push_back(job);
        self.work.notify_one();
        self.ahead.notify_one();
    }

    /// The next task of a decoding thread, or of one that reads ahead; None when the queue is closed.
    pub fn next(&self, fetcher: bool) -> Option<Task> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.startable(self.bound, self.few) {
                return Some(Task::Start(job));
            }
            if fetcher {
                if let Some((job, i)) = state.handed.pop_front() {
                    state.fetching += 1;
                    let buffer = state.spare.pop().unwrap_or_default();
                    return Some(Task::Fetch(job, i, buffer));
                }
                if state.ready.len() + state.fetching < self.few
                    && state.ready_bytes < self.ahead_bytes
                    && let Some((job, i)) = state.claim()
                {
                    state.fetching += 1;
                    let buffer = state.spare.pop().unwrap_or_default();
                    return Some(Task::Fetch(job, i, buffer));
                }
                state.resting += 1;
                state = self.ahead.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.resting -= 1;
                continue;
            }
            if let Some((job, i, bytes)) = state.ready.pop_front() {
                state.ready_bytes -= bytes.as_ref().map_or(0, Vec::len);
                if state.resting > 0 && state.ready.len() + state.fetching <= self.few / 2 {
                    self.ahead.notify_one();
                }
                return Some(Task::Image(job, i, Some(bytes)));
            }
            // Those who read ahead may all be waiting for other batches, and this one is over when its last image is.
            if let Some(at) = state.handed.iter().position(|(job, _)| job.abandoned())
                && let Some((job, i)) = state.handed.remove(at)
            {
                return Some(Task::Image(job, i, None));
            }
            // Nothing was read ahead: a decoding thread reads for itself rather than wait.
            if let Some((job, i)) = state.claim() {
                return Some(Task::Image(job, i, None));
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// A started batch has its block: its images may be claimed.
    pub fn started(&self, job: Arc<Job>) {
        let mut state = lock(&self.state);
        state.starting -= 1;
        if !job.items.is_empty() {
            let at = state.active.partition_point(|other| other.number < job.number);
            state.active.insert(at, job);
        }
        drop(state);
        self.work.notify_all();
        self.ahead.notify_all();
    }

    /// Bytes that were read ahead.
    pub fn fetched(&self, job: Arc<Job>, i: usize, bytes: Result<Vec<u8>, Fault>) {
        let mut state = lock(&self.state);
        state.fetching -= 1;
        state.ready_bytes += bytes.as_ref().map_or(0, Vec::len);
        state.ready.push_back((job, i, bytes));
        let idle = state.idle > 0;
        drop(state);
        if idle {
            self.work.notify_one();
        }
    }

    /// Leaves an image to the threads that read ahead, which may wait for it.
    pub fn hand_over(&self, job: Arc<Job>, i: usize) {
        let mut state = lock(&self.state);
        if state.closed {
            drop(state);
            return job.fail(closed_error());
        }
        state.handed.push_back((job, i));
        drop(state);
        self.ahead.notify_one();
    }

    /// Gives a buffer back for the next file.
    pub fn spare(&self, buffer: Vec<u8>) {
        let mut state = lock(&self.state);
        let held: usize = state.spare.iter().map(Vec::capacity).sum();
        if buffer.capacity() <= KEEP_BUFFER && held + buffer.capacity() <= self.ahead_bytes {
            state.spare.push(buffer);
        }
    }

    /// Gives a batch's bytes back to the bound, once, and its block to the pool.
    pub fn release(&self, job: &Job) {
        *lock(&job.block) = None;
        if job.counted.swap(false, Ordering::AcqRel) {
            lock(&self.state).in_flight -= job.layout.bytes;
            self.work.notify_one();
            self.ahead.notify_one();
        }
    }

    /// Somebody waits for this batch.
    pub fn want(&self, job: &Job) {
        if !job.urgent.swap(true, Ordering::AcqRel) {
            // The lock orders this after a thread's look at the flag and before its sleep.
            drop(lock(&self.state));
            self.work.notify_one();
            self.ahead.notify_one();
        }
    }

    /// Nobody wants this batch any more. True if it had not been started, and so is over.
    pub fn cancel(&self, job: &Job) -> bool {
        job.cancelled.store(true, Ordering::Release);
        let mut state = lock(&self.state);
        let before = state.waiting.len();
        state.waiting.retain(|other| other.number != job.number);
        state.waiting.len() < before
    }

    /// Ends all threads' work and returns the batches that will not be finished.
    pub fn close(&self) -> Vec<Arc<Job>> {
        let mut state = lock(&self.state);
        state.closed = true;
        let mut orphans: Vec<_> = state.waiting.drain(..).collect();
        orphans.extend(state.active.drain(..));
        orphans.extend(state.ready.drain(..).map(|(job, ..)| job));
        orphans.extend(state.handed.drain(..).map(|(job, _)| job));
        drop(state);
        self.work.notify_all();
        self.ahead.notify_all();
        orphans
    }

    pub fn closed(&self) -> bool {
        lock(&self.state).closed
    }
}

impl State {
    fn startable(&mut self, bound: usize, few: usize) -> Option<Arc<Job>> {
        if self.waiting.is_empty() || self.starting > 0 {
            return None;
        }
        let unclaimed: usize = self.active.iter().map(|j| j.items.len() - j.next.load(Ordering::Relaxed)).sum();
        let urgent = self.waiting.iter().position(|j| j.urgent.load(Ordering::Acquire));
        let fits = |job: &Job| self.in_flight == 0 || self.in_flight + job.layout.bytes <= bound;
        let at = match urgent {
            Some(at) => at,
            None if unclaimed < few && fits(&self.waiting[0]) => 0,
            None => return None,
        };
        let job = self.waiting.remove(at)?;
        self.starting += 1;
        self.in_flight += job.layout.bytes;
        job.counted.store(true, Ordering::Release);
        Some(job)
    }

    /// The oldest batch's next image.
    fn claim(&mut self) -> Option<(Arc<Job>, usize)> {
        let job = self.active.front()?.clone();
        let i = job.next.fetch_add(1, Ordering::Relaxed);
        if i + 1 == job.items.len() {
            self.active.pop_front();
        }
        Some((job, i))
    }
}

/// What a closed renderer says.
pub fn closed_error() -> Error {
    Error::new(Kind::Render, "the renderer is closed; make a new one")
}
