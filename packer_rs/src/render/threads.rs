//! What the renderer's threads do. In: tasks of the queue. Out: images in their slots, failures in the ledger, finished
//! batches.
//!
//! Every task is counted as done, whatever comes of it: a panic fails its batch and leaves the thread for the next one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::encoded;

use super::fill::fill;
use super::job::Job;
use super::queue::Task;
use super::shared::Shared;
use super::worker::{Input, Worker, lap};
use crate::error::{Error, Kind};
use crate::failure::{Failure, Fault, Reason, said};
use crate::fetch::Scratch;
use crate::fetch::retry::{Patience, patiently, until};
use crate::pixels::decode::profile;
use crate::pixels::picture::KEEP_BYTES;
use crate::render::ledger::Entry;
use crate::render::place::Places;
use crate::sync::lock;

impl Shared {
    pub(super) fn decode(&self, mut worker: Worker) {
        let (mut own, mut scratch) = (Vec::new(), Scratch::default());
        loop {
            let from = Instant::now();
            let task = self.queue.next(false);
            lap(&self.clocks.wait, from);
            match task {
                None => return,
                Some(Task::Start(job)) => self.start(job),
                Some(Task::Fetch(..)) => {}
                Some(Task::Image(job, i, None)) => {
                    // Whoever decodes waits for nothing: there may be others to decode.
                    let alone = self.settings.fetch_threads == 0;
                    let patience = Patience::new(if alone { self.settings.retries } else { Some(0) });
                    let fetched = self.fetch(&job, i, patience, &mut scratch, &mut own);
                    if !alone && matches!(fetched, Err(Fault::Passing { .. })) && !job.abandoned() {
                        self.queue.hand_over(job, i);
                        continue;
                    }
                    self.image(&mut worker, &job, i, fetched.map(|()| own.as_slice()));
                    if own.capacity() > KEEP_BYTES {
                        own = Vec::new();
                    }
                }
                Some(Task::Image(job, i, Some(Ok(bytes)))) => {
                    self.image(&mut worker, &job, i, Ok(&bytes));
                    self.queue.spare(bytes);
                }
                Some(Task::Image(job, i, Some(Err(fault)))) => self.image(&mut worker, &job, i, Err(fault)),
            }
        }
    }

    pub(super) fn fetch_ahead(&self) {
        let mut scratch = Scratch::default();
        while let Some(task) = self.queue.next(true) {
            match task {
                Task::Start(job) => self.start(job),
                Task::Fetch(job, i, mut buffer) => {
                    let patience = Patience::new(self.settings.retries);
                    let fetched = self.fetch(&job, i, patience, &mut scratch, &mut buffer);
                    self.queue.fetched(job, i, fetched.map(|()| buffer));
                }
                Task::Image(..) => {}
            }
        }
    }

    /// Does a part of a batch's work. A panic is a fault of ours, so it fails the batch; None then.
    fn guarded<T>(&self, job: &Job, work: impl FnOnce() -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(work))
            .map_err(|panic| {
                let (first, said) = (job.plan.first, said(&*panic));
                job.fail(Error::new(
                    Kind::Render,
                    format!(
                        "batch {first} cannot be rendered ({said}); this is a fault of the engine: please report it"
                    ),
                ));
            })
            .ok()
    }

    fn start(&self, job: Arc<Job>) {
        self.guarded(&job, || match self.pool.take(job.layout.bytes) {
            Ok(mut block) => {
                fill(&job.plan, &job.layout, &self.limits, &self.sources, &mut block);
                if let Some(encoded) = &job.layout.encoded {
                    encoded::fill_encoded(&job.plan, &job.layout, encoded, &self.sources, &mut block);
                }
                *lock(&job.block) = Some(Arc::new(block));
            }
            Err(e) => job.fail(e),
        });
        let empty = job.items.is_empty();
        self.queue.started(job.clone());
        if empty {
            self.complete(&job);
        }
    }

    fn complete(&self, job: &Job) {
        job.complete();
        // After the state is set: a ticket that is cancelled meanwhile either sees it, or is seen here.
        if job.abandoned() {
            self.queue.release(job);
        }
        // The batch is over, whatever becomes of the news.
        drop(catch_unwind(AssertUnwindSafe(&self.notify)));
    }

    /// Reads an image's bytes, and behind them those of its mask where batches have masks, trying again after a fault that may
    /// pass.
    fn fetch(
        &self,
        job: &Job,
        i: usize,
        patience: Patience,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> std::result::Result<(), Fault> {
        let gone = || Err(Fault::passing("cancelled"));
        let patient = || {
            let image = job.image(i);
            let source = &self.sources[usize::from(image.source)];
            let row = image.row as usize;
            let read = || {
                if job.abandoned() {
                    return gone();
                }
                let from = Instant::now();
                let mut fetched = source.fetch(row, job.plan.position, &mut scratch.path, out);
                if fetched.is_ok() && job.layout.masks.is_some() {
                    fetched = source.fetch_mask(row, job.plan.position, scratch, out);
                }
                lap(&self.clocks.fetch, from);
                fetched
            };
            until(&job.cancelled, || patiently(patience, || source.uri(row), read))
        };
        self.guarded(job, patient).unwrap_or_else(gone)
    }

    /// Deals with an image whose bytes were fetched, or were not to be had.
    fn image(&self, worker: &mut Worker, job: &Job, i: usize, fetched: std::result::Result<&[u8], Fault>) {
        self.guarded(job, || self.render(worker, job, i, fetched));
        if job.dealt_with() {
            self.complete(job);
        }
    }

    fn render(&self, worker: &mut Worker, job: &Job, i: usize, fetched: std::result::Result<&[u8], Fault>) {
        let image = job.image(i);
        let source = &self.sources[usize::from(image.source)];
        let block = lock(&job.block).clone();
        let bytes = fetched.as_ref().map_or(&[][..], |bytes| bytes);
        let unread = |why: &str, remedy: &str| {
            let uri = source.uri(image.row as usize);
            let words = format!("'{uri}' cannot be read ({why}); the image is not masked, {remedy}");
            job.fail(Error::new(Kind::Render, words));
        };
        let fetched = match fetched {
            _ if job.abandoned() => None,
            Ok(bytes) => Some(Ok(bytes)),
            Err(Fault::Failed(failure)) => Some(Err(failure)),
            Err(Fault::Passing { why, .. }) => {
                unread(&why, "since this may pass: check the storage and ask again");
                None
            }
            Err(Fault::Refused(why)) => {
                unread(&why, "since it may be there: check permissions and credentials and ask again");
                None
            }
        };
        if let (Some(fetched), Some(block)) = (fetched, block) {
            // SAFETY: `submit` has checked the batch, the block was made for its layout, and the queue hands out each
            // image once.
            let mut places = unsafe { Places::of(&job.plan, job.items[i], &job.layout, &block) };
            let outcome = if let Some(encoded) = &job.layout.encoded {
                worker.keep(fetched, &mut places, source, encoded)
            } else {
                let parts = fetched.map(|bytes| bytes.split_at(source.length(image.row as usize).min(bytes.len())));
                let mask = parts.as_ref().map_or(&[][..], |parts| parts.1);
                let input = parts.as_ref().map(|parts| Input::Encoded(parts.0)).map_err(Failure::clone);
                worker.render(input, mask, &mut places, source, &self.settings, &self.clocks)
            };
            match outcome {
                Ok(()) => {
                    self.images.fetch_add(1, Ordering::Relaxed);
                    self.tokens.fetch_add(u64::from(image.kept), Ordering::Relaxed);
                    let encoded = job.layout.encoded.is_some();
                    if let Some(kind) = if encoded { profile::kind_in(bytes) } else { worker.profile() } {
                        let (count, first) = &mut lock(&self.profiles)[kind as usize];
                        let this = (image.source, image.row);
                        *first = if *count == 0 { this } else { this.min(*first) };
                        *count += 1;
                    }
                    self.dark.fetch_add(u64::from(!encoded && worker.dark()), Ordering::Relaxed);
                    self.ledger.passed();
                }
                Err(failure) if failure.reason == Reason::Memory => job.fail(Error::new(
                    Kind::Render,
                    format!(
                        "no memory to decode '{}' ({}); lower render.threads or render.max_pixels",
                        source.uri(image.row as usize),
                        failure.detail
                    ),
                )),
                Err(failure) if failure.reason == Reason::Helper => job.fail(Error::new(
                    Kind::Render,
                    format!(
                        "'{}' goes through Pillow in a process of its own, but {}; see that this process may start others",
                        source.uri(image.row as usize),
                        failure.detail
                    ),
                )),
                Err(failure) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    let uri = source.uri(image.row as usize);
                    let l = &source.locations;
                    let row = image.row as usize;
                    let offset = if row < l.offset.len() { l.offset.get(row) } else { 0 };
                    let (epoch, source, image) = (job.plan.epoch, image.source, image.row);
                    let entry = Entry { epoch, source, image, uri, offset, failure };
                    if let Err(e) = self.ledger.failed(entry) {
                        job.fail(e);
                    }
                }
            }
        }
    }
}
