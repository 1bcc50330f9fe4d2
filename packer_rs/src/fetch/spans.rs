//! Ranges of remote objects on their way or at hand. In: what planned batches will want. Out: their bytes. Requests
//! start when a batch is submitted, many at once, so that their latency passes while earlier batches are rendered.
//!
//! In block order neighbours are wanted soon after one another, so whole spans of a container are fetched, each once;
//! in any other order just the image. Spans of a Parquet file start with its row groups, so that none is wanted by two
//! of them. All of it counts against one budget: where a span does not fit, just the image is fetched, and where that
//! does not fit either, it is fetched when it is wanted.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::budget::{Budget, Counted};
use super::cache::Shelf;
use super::retry::{self, fault};
use super::waits::Awaited;
use crate::failure::{Failure, Fault, Reason};
use crate::fetch::remote::{Expect, Object, blocking, spawn, without_secrets};
use crate::fetch::window::ReadAt;
use crate::sync::lock;

/// Requests under way at once.
const REQUESTS: usize = 64;

/// Spans read from a disk or written to it at once.
const ON_DISK: usize = 4;
/// A span that has no turn to be written by then is not kept.
const TURN: Duration = Duration::from_secs(1);

/// The address of an object, and a range of it.
type Key = (String, u64, u64);

fn key(url: &str, part: &Range<u64>) -> Key {
    (url.to_owned(), part.start, part.end)
}

/// One remote object as a file, read by spans.
pub struct Spanned {
    /// Of its source.
    pub spans: Arc<Spans>,
    /// Its address.
    pub url: String,
    /// Bytes.
    pub length: u64,
    /// Stretches that are read each for itself, by rising offsets, once they are known.
    pub stretches: OnceLock<Vec<Range<u64>>>,
}

impl Spanned {
    /// The stretch that holds an offset, or what lies between two of them.
    fn stretch(&self, offset: u64) -> Range<u64> {
        let known = self.stretches.get().map_or(&[][..], Vec::as_slice);
        let next = known.partition_point(|stretch| stretch.start <= offset);
        let end = known.get(next).map_or(self.length, |stretch| stretch.start);
        match next.checked_sub(1).map(|before| known[before].clone()) {
            Some(before) if offset < before.end => before,
            before => before.map_or(0, |before| before.end)..end,
        }
    }
}

impl ReadAt for Spanned {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = offset.saturating_add(into.len() as u64).min(self.length);
        if offset >= end {
            return Ok(0);
        }
        let mut done = 0;
        while offset + (done as u64) < end {
            let at = offset + done as u64;
            let stretch = self.stretch(at);
            let range = at..end.min(stretch.end);
            let cut = Cut::From(stretch, Some(self.length));
            let copy = |bytes: &[u8]| {
                into[done..done + bytes.len()].copy_from_slice(bytes);
                done += bytes.len();
            };
            match self.spans.each(&self.url, &range, &cut, copy) {
                Ok(()) => {}
                Err(fault) => return Err(retry::system(fault)),
            }
        }
        Ok(done)
    }
}

/// How an object is cut into spans.
#[derive(Clone, Debug)]
pub enum Cut {
    /// Not at all: it is one image.
    Whole,
    /// From the start of this stretch on, and not beyond its end; an object of so many bytes, where that is known.
    From(Range<u64>, Option<u64>),
}

/// What was started of what will be wanted.
pub struct Foreseen {
    /// Held, they stay at hand.
    pub reads: Vec<Arc<Read>>,
    /// Whether nothing is left to be started later.
    pub complete: bool,
}

impl Foreseen {
    /// There is nothing to start.
    pub const NOTHING: Self = Self { reads: Vec::new(), complete: true };
    /// It is not known yet what to start.
    pub const LATER: Self = Self { reads: Vec::new(), complete: false };
}

/// One request, and its answer.
pub struct Read {
    answer: Mutex<Option<Result<Bytes, Fault>>>,
    done: Condvar,
    counted: Mutex<Option<Counted>>,
}

/// See the module.
pub struct Spans {
    held: Mutex<Held>,
    requests: Arc<Semaphore>,
    budget: Arc<Budget>,
    /// Bytes of a span; 0 to fetch just what is wanted.
    size: u64,
    /// What is kept on a disk, where anything is.
    shelf: OnceLock<Shelf>,
    disk: Arc<Semaphore>,
    fetched: Arc<AtomicU64>,
}

/// Requests by what they are for, and the order in which they were made.
#[derive(Default)]
struct Held {
    reads: HashMap<Key, Arc<Read>>,
    order: VecDeque<Key>,
}

impl Read {
    fn answer(&self, answer: Result<Bytes, Fault>) {
        *lock(&self.answer) = Some(answer);
        self.done.notify_all();
    }

    /// Whether its answer says nothing of the object.
    fn refused(&self) -> bool {
        matches!(*lock(&self.answer), Some(Err(Fault::Passing { .. } | Fault::Refused(_))))
    }

    /// Nobody will want it any more, whoever still holds it.
    fn let_go(&self) {
        self.answer(Err(Fault::passing("it was let go")));
        *lock(&self.counted) = None;
    }

    fn wait(&self, url: &str) -> Result<Bytes, Fault> {
        let (mut awaited, mut answer) = (Awaited::new(), lock(&self.answer));
        loop {
            if let Some(found) = answer.as_ref() {
                if found.is_ok() {
                    awaited.came();
                }
                return found.clone();
            }
            awaited.late(|| without_secrets(url).into());
            if retry::ended() {
                return Err(fault(&retry::given_up()));
            }
            answer = self.done.wait_timeout(answer, retry::SLICE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Held {
    /// Counts bytes, letting go of the oldest that no submitted batch wants, until they fit. None if they do not even
    /// then.
    fn room(&mut self, bytes: usize, budget: &Arc<Budget>) -> Option<Counted> {
        let mut wanted = VecDeque::new();
        let counted = loop {
            if let Some(counted) = budget.take(bytes) {
                break Some(counted);
            }
            let Some(key) = self.order.pop_front() else { break None };
            match self.reads.get(&key) {
                // Held here alone.
                Some(read) if Arc::strong_count(read) == 1 => drop(self.reads.remove(&key)),
                Some(_) => wanted.push_back(key),
                None => {}
            }
        };
        wanted.append(&mut self.order);
        self.order = wanted;
        counted
    }
}

impl Spans {
    /// Spans of this many bytes; 0 fetches just what is wanted.
    pub fn new(size: u64, budget: Arc<Budget>) -> Self {
        let [requests, disk] = [REQUESTS, ON_DISK].map(|places| Arc::new(Semaphore::new(places)));
        let (held, shelf, fetched) = Default::default();
        Self { held, requests, budget, size, shelf, disk, fetched }
    }

    /// Keeps what is fetched on a disk; the first one counts.
    pub fn keep_on(&self, shelf: Shelf) {
        drop(self.shelf.set(shelf));
    }

    /// Bytes that have come from servers.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Whether containers are read by spans.
    pub fn coalesce(&self) -> bool {
        self.size > 0
    }

    /// Starts what `range` of an object needs, as far as there is room.
    pub fn foresee(&self, url: &str, range: &Range<u64>, cut: &Cut) -> Foreseen {
        let spans: Vec<_> = self.parts(range, cut).collect();
        // What is wrong is said when the bytes are wanted.
        let start = |parts: &[Range<u64>], size| -> Vec<Arc<Read>> {
            let reads = parts.iter().map_while(|part| self.start(url, part, cut, size, false).ok().flatten());
            reads.collect()
        };
        let found = start(&spans, self.size);
        if found.len() == spans.len() {
            return Foreseen { reads: found, complete: true };
        }
        drop(found);
        if self.kept(url, &spans) {
            return Foreseen::LATER;
        }
        let reads = start(std::slice::from_ref(range), 0);
        Foreseen { complete: !reads.is_empty(), reads }
    }

    /// Waits for the bytes and hands them to `take`, piece by piece.
    pub fn each(&self, url: &str, range: &Range<u64>, cut: &Cut, mut take: impl FnMut(&[u8])) -> Result<(), Fault> {
        let mut spans: Vec<_> = self.parts(range, cut).collect();
        let mut size = self.size;
        let at_hand = |part: &Range<u64>| lock(&self.held).reads.contains_key(&key(url, part));
        if size > 0 && !spans.iter().all(at_hand) && self.crowded() && !self.kept(url, &spans) {
            (spans, size) = (vec![range.clone()], 0);
        }
        // All of them first: their latencies pass together.
        let start = |part| self.start(url, part, cut, size, true).map_err(|e| fault(&e));
        let reads = spans.iter().map(start).collect::<Result<Vec<_>, _>>()?;
        for (part, read) in spans.iter().zip(reads) {
            let Some(read) = read else { return Err(Fault::passing("no room for it")) };
            let bytes = read.wait(url).inspect_err(|_| self.forget(&key(url, part), &read))?;
            let (from, to) = (range.start.max(part.start) - part.start, range.end.min(part.end) - part.start);
            match bytes.get(from as usize..to as usize) {
                Some(bytes) => take(bytes),
                None => {
                    let size = part.start + bytes.len() as u64;
                    return Err(Failure::fetch(Reason::Changed, format!("the container has only {size} bytes")).into());
                }
            }
        }
        Ok(())
    }

    /// Lets go of the spans that lie in a range, which is not wanted any more.
    pub fn let_go(&self, url: &str, range: &Range<u64>, cut: &Cut) {
        let mut held = lock(&self.held);
        for part in self.parts(range, cut).filter(|part| range.start <= part.start && part.end <= range.end) {
            let key = key(url, &part);
            if let Some(read) = held.reads.remove(&key) {
                held.order.retain(|other| *other != key);
                read.let_go();
            }
        }
    }

    /// Lets go of what is kept on a disk of a range.
    pub fn disown(&self, url: &str, range: &Range<u64>, cut: &Cut) {
        if let Some(shelf) = self.shelf.get() {
            self.parts(range, cut).filter_map(|part| shelf.place(url, &part)).for_each(|place| place.remove());
        }
    }

    /// Whether spans are kept on a disk, from where they come quicker than a part of them from a server.
    fn kept(&self, url: &str, spans: &[Range<u64>]) -> bool {
        self.size > 0 && self.shelf.get().is_some_and(|shelf| spans.iter().all(|span| shelf.holds(url, span)))
    }

    /// Whether a span finds no room now.
    fn crowded(&self) -> bool {
        lock(&self.held).room(self.size as usize, &self.budget).is_none()
    }

    fn parts(&self, range: &Range<u64>, cut: &Cut) -> impl Iterator<Item = Range<u64>> + use<> {
        let (size, within) = match cut {
            Cut::Whole => (0, 0..0),
            Cut::From(stretch, _) => (self.size, stretch.clone()),
        };
        // Without spans there is one part, the range itself.
        let number = |at: u64| at.saturating_sub(within.start).checked_div(size).unwrap_or(0);
        let (first, last) = (number(range.start), number(range.end.saturating_sub(1)));
        let range = range.clone();
        let span = move |n| within.start + n * size..within.end.min(within.start + (n + 1) * size);
        (first..=last).map(move |n| if size == 0 { range.clone() } else { span(n) })
    }

    /// The request for a part, started here unless it is under way or answered. `size` is that of the spans it is one
    /// of, 0 for just what is wanted; None where there is no room for it and it is not `needed` now.
    fn start(&self, url: &str, part: &Range<u64>, cut: &Cut, size: u64, needed: bool) -> io::Result<Option<Arc<Read>>> {
        let key = key(url, part);
        let read = {
            let mut held = lock(&self.held);
            match held.reads.get(&key) {
                // What was refused ahead of time may be had by now.
                Some(read) if needed && read.refused() => {
                    held.reads.remove(&key);
                    held.order.retain(|other| *other != key);
                }
                Some(read) => return Ok(Some(read.clone())),
                None => {}
            }
            let bytes = (part.end - part.start) as usize;
            let counted = match held.room(bytes, &self.budget) {
                Some(counted) => counted,
                None if needed => self.budget.need(bytes),
                None => return Ok(None),
            };
            let counted = Mutex::new(Some(counted));
            let read = Arc::new(Read { answer: Mutex::new(None), done: Condvar::new(), counted });
            held.reads.insert(key.clone(), read.clone());
            held.order.push_back(key.clone());
            read
        };
        let (expect, length) = match (cut, size) {
            (Cut::Whole, _) => (Expect::Whole, None),
            (Cut::From(_, length), 0) => (Expect::Range, *length),
            (Cut::From(_, length), _) => (Expect::UpTo, *length),
        };
        let started = Object::new(url).and_then(|object| {
            // A part of a span is not kept: the whole will be wanted.
            let shelf = self.shelf.get().filter(|_| size == self.size || matches!(cut, Cut::Whole));
            let place = shelf.and_then(|shelf| shelf.place(url, part)).map(Arc::new);
            let (requests, disk, fetched) = (self.requests.clone(), self.disk.clone(), self.fetched.clone());
            let (answer, part) = (read.clone(), part.clone());
            spawn(async move {
                if let Some(place) = place.clone() {
                    let _turn = disk.acquire().await;
                    if let Some(kept) = blocking(move || place.get()).await.flatten() {
                        return answer.answer(Ok(kept));
                    }
                }
                let found = {
                    let _turn = requests.acquire().await;
                    object.read(part, expect, length).await.map_err(|e| fault(&e))
                };
                let came = found.as_ref().ok().cloned();
                fetched.fetch_add(came.as_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
                answer.answer(found);
                // Until it is written it takes room from what is wanted next: nobody is to wait for a slow disk.
                if let (Some(place), Some(bytes)) = (place, came)
                    && let Ok(_turn) = timeout(TURN, disk.acquire()).await
                {
                    blocking(move || place.put(&bytes)).await;
                }
            })
        });
        started.inspect_err(|e| {
            read.answer(Err(fault(e)));
            self.forget(&key, &read);
        })?;
        Ok(Some(read))
    }

    /// Drops an answer that is no use to anybody else.
    fn forget(&self, key: &Key, read: &Arc<Read>) {
        let mut held = lock(&self.held);
        if held.reads.get(key).is_some_and(|found| Arc::ptr_eq(found, read)) {
            held.reads.remove(key);
            held.order.retain(|other| other != key);
        }
    }
}
