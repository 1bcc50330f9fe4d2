//! Ranges of remote objects on their way or at hand. In: what planned batches will want. Out: their bytes. Requests start when a
//! batch is submitted, many at once, so that their latency passes while earlier batches are rendered.
//!
//! In block order neighbours are wanted soon after one another, so whole spans of a container are fetched, each once; in any other
//! order just the image. Spans at hand are bounded in bytes; those of submitted batches are kept whatever the bound says.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::fault;
use crate::ledger::{Failure, Fault};
use crate::remote::{Expect, Object, spawn};

/// Requests under way at once.
const REQUESTS: usize = 64;
/// Bytes at hand.
const KEPT: usize = 256 << 20;

type Key = (i32, u64, u64);

/// One request, and its answer.
pub struct Read {
    answer: Mutex<Option<Result<Bytes, Fault>>>,
    done: Condvar,
    length: usize,
}

/// See the module.
pub struct Spans {
    held: Mutex<VecDeque<(Key, Arc<Read>)>>,
    requests: Arc<Semaphore>,
    /// Bytes of a span; 0 to fetch just what is wanted.
    size: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Read {
    fn answer(&self, answer: Result<Bytes, Fault>) {
        *lock(&self.answer) = Some(answer);
        self.done.notify_all();
    }

    fn wait(&self) -> Result<Bytes, Fault> {
        let mut answer = lock(&self.answer);
        loop {
            if let Some(found) = answer.as_ref() {
                return found.clone();
            }
            answer = self.done.wait(answer).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Spans {
    /// Spans of this many bytes; 0 fetches just what is wanted.
    pub fn new(size: u64) -> Self {
        Self { held: Mutex::default(), requests: Arc::new(Semaphore::new(REQUESTS)), size }
    }

    /// Starts what `range` of a container needs, or of an object that is this range and nothing else.
    pub fn foresee(&self, shard: i32, url: &str, range: &Range<u64>, whole: bool) -> Vec<Arc<Read>> {
        // What is wrong is said when the bytes are wanted.
        self.parts(range, whole).map_while(|part| self.start(shard, url, part, whole).ok()).collect()
    }

    /// Waits for the bytes and appends them to `out`.
    pub fn fetch(
        &self,
        shard: i32,
        url: &str,
        range: &Range<u64>,
        whole: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        for part in self.parts(range, whole) {
            let read = self.start(shard, url, part.clone(), whole).map_err(|e| fault(&e))?;
            let bytes = read.wait().inspect_err(|_| self.forget(&read))?;
            let (from, to) = (range.start.max(part.start) - part.start, range.end.min(part.end) - part.start);
            match bytes.get(from as usize..to as usize) {
                Some(bytes) => out.extend_from_slice(bytes),
                None => {
                    let size = part.start + bytes.len() as u64;
                    return Err(Failure::new("fetch", "changed", format!("the container has only {size} bytes")).into());
                }
            }
        }
        Ok(())
    }

    fn parts(&self, range: &Range<u64>, whole: bool) -> impl Iterator<Item = Range<u64>> + use<> {
        let size = if whole { 0 } else { self.size };
        // Without spans there is one part, the range itself.
        let number = |at: u64| at.checked_div(size).unwrap_or(0);
        let (first, last) = (number(range.start), number(range.end.saturating_sub(1)));
        let range = range.clone();
        (first..=last).map(move |n| if size == 0 { range.clone() } else { n * size..(n + 1) * size })
    }

    /// The request for a part, started here unless it is under way or answered.
    fn start(&self, shard: i32, url: &str, part: Range<u64>, whole: bool) -> io::Result<Arc<Read>> {
        let key = (shard, part.start, part.end);
        let read = {
            let mut held = lock(&self.held);
            if let Some(at) = held.iter().rposition(|(k, _)| *k == key) {
                return Ok(held[at].1.clone());
            }
            let length = (part.end - part.start) as usize;
            let mut bytes: usize = held.iter().map(|(_, read)| read.length).sum::<usize>() + length;
            while bytes > KEPT
                && let Some((_, oldest)) = held.pop_front()
            {
                bytes -= oldest.length;
            }
            let read = Arc::new(Read { answer: Mutex::new(None), done: Condvar::new(), length });
            held.push_back((key, read.clone()));
            read
        };
        let expect = match (whole, self.size) {
            (true, _) => Expect::Whole,
            (false, 0) => Expect::Range,
            (false, _) => Expect::UpTo,
        };
        let started = Object::new(url).and_then(|object| {
            let (answer, requests) = (read.clone(), self.requests.clone());
            spawn(async move {
                let _place = requests.acquire().await;
                answer.answer(object.read(part, expect).await.map_err(|e| fault(&e)));
            })
        });
        started.inspect_err(|e| {
            read.answer(Err(fault(e)));
            self.forget(&read);
        })?;
        Ok(read)
    }

    /// Drops an answer that is no use to anybody else.
    fn forget(&self, read: &Arc<Read>) {
        lock(&self.held).retain(|(_, held)| !Arc::ptr_eq(held, read));
    }
}
