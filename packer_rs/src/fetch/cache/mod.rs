//! Remote data kept on a disk. In: spans as they come from a server, and the rows of an index that they are for. Out:
//! the same bytes the next time, without the server. `policy` says what is worth its room, `folder` is the disk, here
//! both are asked.
//!
//! The plan is a computed order, so when a span is wanted next follows from the rows in it, without a table: whoever
//! opens the cache gives a function for that. May not know what a plan is, nor what the bytes mean.
//!
//! What fails here fails nothing else: a span that cannot be read is fetched, and a disk that takes no more ends the
//! writing. Files are named by the index that they are for, since that says which bytes an object had.

mod folder;
mod policy;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use folder::{Book, Folder, Found, MARK, Name, Unread, size_of};
use policy::Policy;

use super::waits;
use crate::columns::Locations;
use crate::sync::lock;

/// By which image of the run, behind the one given, rows of a source have had their next turn.
pub type NextTurn = dyn Fn(u16, &Range<u64>, u64) -> u64 + Send + Sync;

/// The folder is looked through again where so many files have come or gone, or this share of all.
const STRANGE: u64 = 64;
const SHARE: u64 = 8;
/// And where nothing can go, after such a time, if that is a small part of it.
const AGAIN: Duration = Duration::from_secs(60);
const PATIENCE: u32 = 100;
/// Rows looked at on either side of one for its neighbours in a span.
const NEIGHBOURS: usize = 4096;

/// What a span is read for: a row, and how many images of the run come before its batch.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Of its source.
    pub row: usize,
    /// Images of the run before.
    pub at: u64,
}

thread_local! {
    /// A read is many calls deep, and some of them know nothing of rows (Parquet's reader).
    static USE: Cell<Option<Use>> = const { Cell::new(None) };
}

/// Reads for a row.
pub fn used<T>(by: Option<Use>, work: impl FnOnce() -> T) -> T {
    struct Undo(Option<Use>);
    impl Drop for Undo {
        fn drop(&mut self) {
            USE.set(self.0);
        }
    }
    let _undo = Undo(USE.replace(by));
    work()
}

/// For which row this thread reads.
pub fn user() -> Option<Use> {
    USE.get()
}

/// What a cache has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Saved {
    /// Bytes that came from it.
    pub read: u64,
    /// Bytes that went for others.
    pub evicted: u64,
    /// Spans that were not as they had been written.
    pub damaged: u64,
    /// Spans that the disk did not take.
    pub unwritten: u64,
}

#[derive(Default)]
struct Counters {
    read: AtomicU64,
    evicted: AtomicU64,
    damaged: AtomicU64,
    unwritten: AtomicU64,
}

/// A mark by its number among those known, and the first part of the span's name.
type Key = (u16, u64);

/// See the module.
pub struct Cache {
    folder: Folder,
    bound: u64,
    /// By source; the index whose spans are its.
    sources: Vec<Option<u16>>,
    next: Box<NextTurn>,
    state: Mutex<State>,
    counters: Counters,
    full: AtomicBool,
    shown: String,
    attended: Mutex<Vec<File>>,
}

/// What this process knows of the folder.
struct State {
    policy: Policy<Key>,
    /// Of spans of our sources: whose they are, and for which rows.
    rows: HashMap<Key, (u16, Range<u64>)>,
    /// Ours first, then those of others.
    marks: Vec<String>,
    /// Changes of the folder that are known here.
    seen: u64,
    looked: Instant,
    took: Duration,
    /// Whether what was there at the start is known.
    ready: bool,
}

impl State {
    fn mark(&mut self, mark: &str) -> u16 {
        let known = self.marks.iter().position(|known| known == mark).unwrap_or_else(|| {
            self.marks.push(mark.to_owned());
            self.marks.len() - 1
        });
        known as u16
    }

    fn forget(&mut self, key: Key) {
        self.policy.remove(key);
        self.rows.remove(&key);
    }
}

impl Cache {
    /// Opens a folder that may hold `bound` bytes, for sources with these fingerprints.
    ///
    /// # Errors
    /// The folder cannot be made, read or written.
    pub fn open(path: &Path, bound: u64, fingerprints: &[String], next: Box<NextTurn>) -> io::Result<Arc<Self>> {
        let folder = Folder::open(path, bound)?;
        let mut state = State {
            policy: Policy::new(),
            rows: HashMap::new(),
            marks: Vec::new(),
            seen: 0,
            looked: Instant::now(),
            took: Duration::ZERO,
            ready: false,
        };
        let mark = |fingerprint: &String| fingerprint.get(..MARK).map(|mark| state.mark(mark));
        let sources: Vec<_> = fingerprints.iter().map(mark).collect();
        let attended = Mutex::new(state.marks.iter().map(|mark| folder.attend(mark)).collect::<io::Result<_>>()?);
        let found = folder.locked(|book| {
            let found = folder.count(book)?;
            state.seen = book.changes;
            Ok(found)
        })?;
        let cache = Arc::new(Self {
            folder,
            bound,
            sources,
            next,
            state: Mutex::new(state),
            counters: Counters::default(),
            full: AtomicBool::new(false),
            shown: path.display().to_string(),
            attended,
        });
        let learning = Arc::downgrade(&cache);
        std::thread::Builder::new().name("navit-cache".into()).spawn(move || {
            for found in found.chunks(256) {
                let Some(cache) = learning.upgrade() else { return };
                cache.learn(&mut lock(&cache.state), found);
            }
            if let Some(cache) = learning.upgrade() {
                lock(&cache.state).ready = true;
            }
        })?;
        Ok(cache)
    }

    /// Others may take what it holds from now on.
    pub fn close(&self) {
        lock(&self.attended).clear();
    }

    /// What it has done so far.
    pub fn counts(&self) -> Saved {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        Saved { read: of(&c.read), evicted: of(&c.evicted), damaged: of(&c.damaged), unwritten: of(&c.unwritten) }
    }

    /// Takes up files that were not known.
    fn learn(&self, state: &mut State, found: &[Found]) {
        let mut attended: HashMap<u16, bool> = HashMap::new();
        for Found { mark, name, bytes } in found {
            let number = state.mark(mark);
            let key = (number, *name);
            if state.policy.holds(key) {
                continue;
            }
            if let Some(source) = self.sources.iter().position(|&own| own == Some(number)) {
                let rows = self.folder.rows(mark, *name);
                let next = rows.as_ref().map_or(u64::MAX, |rows| (self.next)(source as u16, rows, 0));
                state.rows.extend(rows.map(|rows| (key, (source as u16, rows))));
                state.policy.set(key, *bytes, next);
            } else if !*attended.entry(number).or_insert_with(|| self.folder.attended(mark)) {
                // Nobody reads what it is for, so it goes first; what somebody reads is not ours to take away.
                state.policy.set(key, *bytes, u64::MAX);
            }
        }
    }

    /// Looks the folder through, for what others have done.
    fn look(&self, state: &mut State, book: &mut Book) -> io::Result<()> {
        let since = Instant::now();
        let found = self.folder.count(book)?;
        let there: HashSet<Key> = found.iter().map(|found| (state.mark(&found.mark), found.name)).collect();
        let gone: Vec<_> = state.policy.keys().filter(|key| !there.contains(key)).collect();
        gone.into_iter().for_each(|key| state.forget(key));
        self.learn(state, &found);
        (state.seen, state.looked, state.took) = (book.changes, Instant::now(), since.elapsed());
        Ok(())
    }

    /// Works with the folder while no other process does.
    fn locked<T>(&self, state: &mut State, work: impl FnOnce(&mut State, &mut Book) -> io::Result<T>) -> io::Result<T> {
        self.folder.locked(|book| {
            let before = book.changes;
            if before - state.seen.min(before) >= STRANGE.max(state.policy.len() as u64 / SHARE) && state.ready {
                self.look(state, book)?;
            }
            let before = book.changes;
            let done = work(state, book);
            state.seen += book.changes - before;
            done
        })
    }

    fn get(&self, place: &Place) -> Option<Bytes> {
        let key = (place.mark, place.name.0);
        let mark = lock(&self.state).marks[usize::from(place.mark)].clone();
        match self.folder.read(&mark, place.name) {
            Ok((bytes, rows)) => {
                self.counters.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                let next = (self.next)(place.source, &rows, place.at);
                let mut state = lock(&self.state);
                state.policy.set(key, size_of(bytes.len()), next);
                state.rows.insert(key, (place.source, rows));
                Some(bytes)
            }
            Err(Unread::Absent) => {
                lock(&self.state).forget(key);
                None
            }
            Err(Unread::Damaged) => {
                self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                self.remove(place);
                None
            }
        }
    }

    fn remove(&self, place: &Place) {
        let mut state = lock(&self.state);
        state.forget((place.mark, place.name.0));
        let mark = state.marks[usize::from(place.mark)].clone();
        let gone = self.locked(&mut state, |_, book| self.folder.remove(book, &mark, place.name.0));
        drop(state);
        if let Err(e) = gone {
            self.refused(&e);
        }
    }

    fn put(&self, place: &Place, bytes: &Bytes) {
        if self.full.load(Ordering::Relaxed) {
            return;
        }
        let size = size_of(bytes.len());
        let (key, next) = ((place.mark, place.name.0), (self.next)(place.source, &place.rows, place.at));
        let mut state = lock(&self.state);
        if size > self.bound || state.policy.holds(key) {
            return;
        }
        let mark = state.marks[usize::from(place.mark)].clone();
        let begun = self.locked(&mut state, |state, book| {
            if !self.make_room(state, book, size, next, place.at)? {
                return Ok(None);
            }
            self.folder.begin(book, &mark, place.name.0, bytes.len()).map(Some)
        });
        drop(state);
        let mut part = match begun {
            Ok(Some(part)) => part,
            Ok(None) => return,
            Err(e) => return self.refused(&e),
        };
        let written = part.write(place.name, &place.rows, bytes);
        let mut state = lock(&self.state);
        let finished = self.locked(&mut state, |_, book| match &written {
            Ok(()) => self.folder.finish(book, &part, &mark, place.name.0),
            Err(_) => {
                self.folder.give_up(book, &part);
                Ok(false)
            }
        });
        if let Ok(true) = finished {
            state.policy.set(key, size, next);
            state.rows.insert(key, (place.source, place.rows.clone()));
        }
        drop(state);
        if let Err(e) = written.and(finished) {
            self.refused(&e);
        }
    }

    /// Lets go of what is wanted later than `next`, until `size` more bytes fit. Whether they do.
    fn make_room(&self, state: &mut State, book: &mut Book, size: u64, next: u64, at: u64) -> io::Result<bool> {
        let need = |book: &Book| (book.total + size).saturating_sub(self.bound);
        if need(book) == 0 {
            return Ok(true);
        }
        if !state.ready {
            return Ok(false);
        }
        let State { policy, rows, .. } = state;
        policy.refresh(at, |key| rows.get(&key).map_or(u64::MAX, |(source, rows)| (self.next)(*source, rows, at)));
        let mut victims = state.policy.victims(need(book), next);
        if victims.is_none() && state.looked.elapsed() > AGAIN.max(state.took * PATIENCE) {
            self.look(state, book)?;
            victims = state.policy.victims(need(book), next);
        }
        for key in victims.into_iter().flatten() {
            let freed = self.folder.remove(book, &state.marks[usize::from(key.0)], key.1)?;
            self.counters.evicted.fetch_add(freed, Ordering::Relaxed);
            state.forget(key);
        }
        Ok(need(book) == 0)
    }

    /// The disk does not take it: nothing more is written, and that is said once.
    fn refused(&self, e: &io::Error) {
        self.counters.unwritten.fetch_add(1, Ordering::Relaxed);
        if !self.full.swap(true, Ordering::Relaxed) {
            waits::say(format!(
                "the disk takes no more spans into render.cache_dir = '{}' ({e}): this process reads what is there, and \
                 fetches the rest; make room, or lower render.cache_gb",
                self.shown
            ));
        }
    }
}

/// The cache as one source has it.
pub struct Shelf {
    cache: Arc<Cache>,
    source: u16,
    mark: u16,
    locations: Arc<Locations>,
}

impl Shelf {
    /// The part of a cache that is for a source. None where its index has no fingerprint.
    pub fn new(cache: &Arc<Cache>, source: u16, locations: Arc<Locations>) -> Option<Self> {
        let mark = (*cache.sources.get(usize::from(source))?)?;
        Some(Self { cache: cache.clone(), source, mark, locations })
    }

    /// Where a part of an object has its place. None where it is not known for which row it is read.
    pub fn place(&self, url: &str, part: &Range<u64>) -> Option<Place> {
        let Use { row, at } = user()?;
        let (name, rows) = (Name::of(url, part), self.rows(row, part));
        Some(Place { cache: self.cache.clone(), source: self.source, mark: self.mark, name, rows, at })
    }

    /// Whether a part of an object is held, as far as is known.
    pub fn holds(&self, url: &str, part: &Range<u64>) -> bool {
        lock(&self.cache.state).policy.holds((self.mark, Name::of(url, part).0))
    }

    /// Neighbours of a row that lie in the same part of its container.
    fn rows(&self, row: usize, part: &Range<u64>) -> Range<u64> {
        let l = &self.locations;
        let shard = l.shard.get(row);
        let within = |row: usize| {
            let (start, length) = (u64::try_from(l.offset.get(row)), u64::try_from(l.length.get(row)));
            let (Ok(start), Ok(length)) = (start, length) else { return false };
            l.shard.get(row) == shard && start < part.end && start.saturating_add(length) > part.start
        };
        let single = usize::try_from(shard).ok().and_then(|s| l.shards.get(s)).is_none_or(|shard| shard.ends_with('/'));
        if single || !within(row) {
            return row as u64..row as u64 + 1;
        }
        let before = (0..row).rev().take(NEIGHBOURS).take_while(|&row| within(row)).count();
        let behind = (row + 1..l.shard.len()).take(NEIGHBOURS).take_while(|&row| within(row)).count();
        (row - before) as u64..(row + behind + 1) as u64
    }
}

/// Where one span has its place.
pub struct Place {
    cache: Arc<Cache>,
    source: u16,
    mark: u16,
    name: Name,
    rows: Range<u64>,
    at: u64,
}

impl Place {
    /// The span, where it is held whole.
    pub fn get(&self) -> Option<Bytes> {
        self.cache.get(self)
    }

    /// Keeps a span that was fetched, where that is worth it.
    pub fn put(&self, bytes: &Bytes) {
        self.cache.put(self, bytes);
    }

    /// Lets go of a span that is not what the index says.
    pub fn remove(&self) {
        self.cache.remove(self);
    }
}
