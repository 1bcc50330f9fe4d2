//! One batch on its way: what is planned, what is done of it, and who waits. In: a plan. Out: an outcome, once every
//! image has been dealt with. Apart from the queue, which decides who works on it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::error::Error;
use crate::fetch::Read;
use crate::render::layout::BatchLayout;
use crate::render::memory::Block;
use crate::slots::{PlannedBatch, PlannedImage};
use crate::sync::lock;

/// One batch on its way.
pub struct Job {
    pub number: u64,
    pub plan: PlannedBatch,
    pub layout: Arc<BatchLayout>,
    /// (sequence, image) of each image.
    pub items: Vec<(u32, u32)>,
    /// The next image that is not claimed.
    pub(super) next: AtomicUsize,
    left: AtomicUsize,
    pub(super) cancelled: Arc<AtomicBool>,
    /// Whether somebody waits for it.
    pub(super) urgent: AtomicBool,
    /// Whether its bytes count against the bound.
    pub(super) counted: AtomicBool,
    /// Remote bytes that it will want, on their way.
    _ahead: Vec<Arc<Read>>,
    pub block: Mutex<Option<Arc<Block>>>,
    state: Mutex<JobState>,
    done: Condvar,
}

#[derive(Default)]
struct JobState {
    error: Option<Error>,
    done: bool,
}

/// What became of a batch.
pub enum Outcome {
    Running,
    Done,
    Failed(Error),
}

impl Job {
    pub fn new(number: u64, plan: PlannedBatch, layout: Arc<BatchLayout>, ahead: Vec<Arc<Read>>) -> Self {
        let mut items = Vec::with_capacity(plan.sequences.iter().map(Vec::len).sum());
        for (s, sequence) in plan.sequences.iter().enumerate() {
            items.extend((0..sequence.len()).map(|i| (s as u32, i as u32)));
        }
        Self {
            number,
            plan,
            layout,
            _ahead: ahead,
            next: AtomicUsize::new(0),
            left: AtomicUsize::new(items.len()),
            items,
            cancelled: Arc::default(),
            urgent: AtomicBool::new(false),
            counted: AtomicBool::new(false),
            block: Mutex::new(None),
            state: Mutex::default(),
            done: Condvar::new(),
        }
    }

    /// The `i`-th image of all its sequences.
    pub fn image(&self, i: usize) -> &PlannedImage {
        let (s, e) = self.items[i];
        &self.plan.sequences[s as usize][e as usize]
    }

    /// Whether nobody wants its pixels any more.
    pub fn abandoned(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Ends it with an error; the first one counts. Images still to come are skipped.
    pub fn fail(&self, error: Error) {
        lock(&self.state).error.get_or_insert(error);
        self.cancelled.store(true, Ordering::Release);
    }

    /// Counts one image as dealt with; true for the last.
    pub fn dealt_with(&self) -> bool {
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }

    pub fn complete(&self) {
        lock(&self.state).done = true;
        self.done.notify_all();
    }

    pub fn outcome(&self) -> Outcome {
        Self::read(&lock(&self.state))
    }

    fn read(state: &JobState) -> Outcome {
        match (&state.error, state.done) {
            (_, false) => Outcome::Running,
            (Some(e), true) => Outcome::Failed(e.clone()),
            (None, true) => Outcome::Done,
        }
    }

    /// Waits for the end, at most until `deadline`.
    pub fn wait(&self, deadline: Instant) -> Outcome {
        let mut state = lock(&self.state);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.done || left.is_zero() {
                return Self::read(&state);
            }
            state = self.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
