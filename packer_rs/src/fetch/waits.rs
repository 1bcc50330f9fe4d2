//! What this process waits for of its storage. In: waits, as they begin and end on any thread. Out: counts for metrics, and
//! now and again a line for the log. Known by process, since its storage is one, whoever reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// A wait is told of after the first time, and then whenever the second has passed.
const TOLD_AFTER: Duration = Duration::from_secs(1);
const TOLD_EVERY: Duration = Duration::from_secs(10);

static RETRIES: AtomicU64 = AtomicU64::new(0);
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
static WAITS: Mutex<Waits> = Mutex::new(Waits { process: 0, all: Vec::new(), next: 0, told: None, answered: false });

/// What this process waits for.
struct Waits {
    process: u32,
    all: Vec<Wait>,
    next: u64,
    told: Option<Instant>,
    /// Whether the last one to end got what it waited for.
    answered: bool,
}

fn waits() -> MutexGuard<'static, Waits> {
    let (mut waits, process) = (lock(&WAITS), std::process::id());
    if waits.process != process {
        // A forked child has none of its parent's threads.
        *waits = Waits { process, all: Vec::new(), next: 0, told: None, answered: false };
    }
    waits
}

struct Wait {
    number: u64,
    what: String,
    why: String,
    since: Instant,
}

/// One wait, until it is dropped.
pub(super) struct Waiting(u64);

impl Waiting {
    pub(super) fn begin(what: String) -> Self {
        let mut waits = waits();
        waits.next += 1;
        waits.answered = false;
        let number = waits.next;
        waits.all.push(Wait { number, what, why: String::new(), since: Instant::now() });
        Self(number)
    }

    pub(super) fn answered(&self) {
        waits().answered = true;
    }

    pub(super) fn goes_on(&self, why: String) {
        if let Some(wait) = waits().all.iter_mut().find(|wait| wait.number == self.0) {
            wait.why = why;
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        waits().all.retain(|wait| wait.number != self.0);
    }
}

/// An answer that is awaited, which is a wait like another once it takes long.
pub(crate) struct Awaited {
    since: Instant,
    waiting: Option<Waiting>,
}

impl Awaited {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), waiting: None }
    }

    /// Called every `SLICE`: it has not come yet.
    pub(crate) fn late(&mut self, what: impl FnOnce() -> String) {
        if self.waiting.is_none() && self.since.elapsed() >= TOLD_AFTER {
            let waiting = Waiting::begin(what());
            waiting.goes_on("no answer yet".into());
            self.waiting = Some(waiting);
        }
    }

    pub(crate) fn came(&self) {
        self.waiting.iter().for_each(Waiting::answered);
    }
}

/// Counts an attempt after a first one.
pub(super) fn tried_again() {
    RETRIES.fetch_add(1, Ordering::Relaxed);
}

/// Has a line logged, once.
pub(super) fn say(line: String) {
    lock(&SAID).push(line);
}

/// Attempts after a first one so far, and reads that are waited for now.
pub fn counts() -> (u64, usize) {
    (RETRIES.load(Ordering::Relaxed), waits().all.len())
}

/// A line for the log where one is due: what is to be said once; what is waited for, now and again, and that it is over.
pub fn news() -> Option<String> {
    if let Some(line) = lock(&SAID).pop() {
        return Some(line);
    }
    let mut waits = waits();
    // The oldest stands first.
    let Some(wait) = waits.all.first() else {
        let told = waits.told.take().filter(|_| waits.answered);
        return told.map(|_| "storage answers again".into());
    };
    let seconds = wait.since.elapsed();
    if waits.told.map_or(seconds < TOLD_AFTER, |told| told.elapsed() < TOLD_EVERY) {
        return None;
    }
    let more = match waits.all.len() - 1 {
        0 => String::new(),
        n => format!(", and for {n} more"),
    };
    let line = format!("waiting {} s for storage: '{}' ({}){more}", seconds.as_secs(), wait.what, wait.why);
    waits.told = Some(Instant::now());
    Some(line)
}
