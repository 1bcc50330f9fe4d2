//! The list of images that have no pixels. In: failures as they happen, on any thread. Out: counts
//! by reason, the entries, JSON lines, and the moment at which so many fail that it cannot be the images.
//!
//! Apart, since it decides between the two kinds of trouble: a failure that every replica would see masks one slot; a
//! fault that may pass must never do so.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, MutexGuard};

use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::failure::{Failure, Reason, Stage};
use crate::sync::lock;

/// Images over which the share of failures is taken.
pub const WINDOW: usize = 10_000;
/// The share is not judged before this many images, unless every single one failed.
const JUDGED_FROM: usize = 1_000;
const ALL_FAILED_FROM: usize = 64;
/// Entries kept in memory; counts go on after it.
const KEPT: usize = 100_000;
/// Epochs whose failed images are remembered.
const EPOCHS: usize = 8;

/// One image that could not be rendered.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Epoch of the plan.
    pub epoch: u64,
    /// Which index of the mixture.
    pub source: u16,
    /// Row in its index.
    pub image: u64,
    /// File or container, and member.
    pub uri: String,
    /// First byte in the container.
    pub offset: i64,
    /// Where and why it failed.
    #[serde(flatten)]
    pub failure: Failure,
}

/// Failed images by stage and reason.
pub type Counts = BTreeMap<(Stage, Reason), u64>;

/// Failed images of one epoch: index of the mixture, and row.
type Seen = HashSet<(u16, u64)>;

#[derive(Default)]
struct Inner {
    /// By epoch, the one in which an image failed last at the end.
    seen: VecDeque<(u64, Seen)>,
    entries: Vec<Entry>,
    counts: Counts,
    window: VecDeque<bool>,
    failed_in_window: usize,
    file: Option<File>,
    stopped: Option<String>,
}

/// The quarantine ledger: unique by (epoch, image).
pub struct Ledger {
    inner: Mutex<Inner>,
    limit: f64,
    path: String,
}

impl Ledger {
    /// A ledger that also appends to `path`, unless that is empty. `limit` is the share of failures that stops
    /// rendering.
    pub fn new(path: &str, limit: f64) -> Result<Self> {
        let mut inner = Inner { window: VecDeque::with_capacity(WINDOW), ..Inner::default() };
        if !path.is_empty() {
            let file = File::options().create(true).append(true).open(path).map_err(|e| {
                Error::new(
                    Kind::Render,
                    format!("render.ledger = '{path}' cannot be written ({e}); give a path in a folder that exists"),
                )
            })?;
            inner.file = Some(file);
        }
        Ok(Self { inner: Mutex::new(inner), limit, path: path.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Counts an image that was rendered.
    pub fn passed(&self) {
        self.lock().note(false);
    }

    /// Enters a failure. Says why rendering has to stop, where this one was too many.
    pub fn failed(&self, entry: Entry) -> Result<()> {
        let mut inner = self.lock();
        inner.note(true);
        let uri = entry.uri.clone();
        if inner.first_time(&entry) {
            *inner.counts.entry((entry.failure.stage, entry.failure.reason)).or_insert(0) += 1;
            if let Some(file) = inner.file.as_mut() {
                let mut line = serde_json::to_vec(&entry).unwrap_or_default();
                line.push(b'\n');
                // One write, so that lines of several processes do not mix.
                if let Err(e) = file.write_all(&line) {
                    return Err(Error::new(
                        Kind::Render,
                        format!("the ledger '{}' cannot be written: {e}; make room or set render.ledger", self.path),
                    ));
                }
            }
            if inner.entries.len() < KEPT {
                inner.entries.push(entry);
            }
        }
        let (failed, seen) = (inner.failed_in_window, inner.window.len());
        let judged = seen >= JUDGED_FROM || (failed == seen && seen >= ALL_FAILED_FROM);
        if inner.stopped.is_none() && judged && failed as f64 > self.limit * seen as f64 {
            inner.stopped = Some(format!(
                "{failed} of the last {seen} images failed, more than render.failure_limit = {}: this looks like a fault of \
                 the storage, not of the images (the last was '{uri}'); repair it, or raise the limit",
                self.limit
            ));
        }
        inner.stopped.as_ref().map_or(Ok(()), |why| Err(Error::new(Kind::Render, why.clone())))
    }

    /// Why rendering has stopped, if it has.
    pub fn stopped(&self) -> Option<Error> {
        self.lock().stopped.as_ref().map(|why| Error::new(Kind::Render, why.clone()))
    }

    /// The entries so far, the first 100,000 at most.
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().entries.clone()
    }

    /// Failed images, each counted once an epoch, those beyond the entries kept too.
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }
}

impl Inner {
    /// Whether this image has not failed in this epoch yet. A rank may ask for a batch twice, but not for one of an
    /// epoch long gone: only the epochs asked for last are remembered, whatever their numbers.
    fn first_time(&mut self, entry: &Entry) -> bool {
        let at = self.seen.iter().position(|&(epoch, _)| epoch == entry.epoch);
        let (epoch, mut seen) = at.and_then(|at| self.seen.remove(at)).unwrap_or((entry.epoch, Seen::new()));
        let first = seen.insert((entry.source, entry.image));
        self.seen.push_back((epoch, seen));
        if self.seen.len() > EPOCHS {
            self.seen.pop_front();
        }
        first
    }

    fn note(&mut self, failed: bool) {
        if self.window.len() == WINDOW && self.window.pop_front() == Some(true) {
            self.failed_in_window -= 1;
        }
        self.window.push_back(failed);
        self.failed_in_window += usize::from(failed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(epoch: u64, image: u64) -> Entry {
        let uri = format!("file {image}");
        Entry { epoch, source: 0, image, uri, offset: 0, failure: Failure::decode(Reason::Corrupt, "") }
    }

    #[test]
    fn an_image_is_entered_once_an_epoch() {
        let ledger = Ledger::new("", 1.0).expect("a ledger");
        for (epoch, image) in [(0, 1), (0, 1), (0, 2), (1, 1), (0, 2), (1, 1)] {
            ledger.failed(entry(epoch, image)).expect("below the limit");
        }
        assert_eq!(ledger.entries().len(), 3);
        assert_eq!(ledger.counts()[&(Stage::Decode, Reason::Corrupt)], 3);
    }

    #[test]
    fn counts_go_on_where_entries_end() {
        let ledger = Ledger::new("", 1.0).expect("a ledger");
        for image in 0..=KEPT as u64 {
            ledger.failed(entry(0, image)).expect("below the limit");
        }
        let gone = Failure::fetch(Reason::Missing, "");
        ledger.failed(Entry { failure: gone, ..entry(1, 0) }).expect("below the limit");
        assert_eq!(ledger.entries().len(), KEPT);
        let counts = [((Stage::Fetch, Reason::Missing), 1), ((Stage::Decode, Reason::Corrupt), KEPT as u64 + 1)];
        assert_eq!(ledger.counts(), counts.into());
    }

    #[test]
    fn a_huge_epoch_stops_no_forgetting() {
        let ledger = Ledger::new("", 1.0).expect("a ledger");
        for epoch in std::iter::once(u64::MAX).chain(0..1000) {
            for image in 0..10 {
                ledger.failed(entry(epoch, image)).expect("below the limit");
                ledger.failed(entry(epoch, image)).expect("below the limit");
            }
        }
        assert_eq!(ledger.counts()[&(Stage::Decode, Reason::Corrupt)], 10_010);
        let remembered: usize = ledger.lock().seen.iter().map(|(_, seen)| seen.len()).sum();
        assert!(remembered <= 10 * EPOCHS, "{remembered}");
    }

    #[test]
    fn mass_failure_is_an_error_and_a_few_are_not() {
        let ledger = Ledger::new("", 0.2).expect("a ledger");
        for i in 0..2000 {
            if i % 10 == 0 {
                ledger.failed(entry(0, i)).expect("one in ten is below the limit");
            } else {
                ledger.passed();
            }
        }
        let broke = (0..WINDOW as u64).find(|&i| ledger.failed(entry(1, i)).is_err()).expect("the limit is met");
        assert!(broke < 400, "{broke}");
        assert!(ledger.stopped().is_some());
        let dead = Ledger::new("", 0.2).expect("a ledger");
        assert!((0..ALL_FAILED_FROM as u64 - 1).all(|i| dead.failed(entry(0, i)).is_ok()));
        assert!(dead.failed(entry(0, 999)).is_err());
    }
}
