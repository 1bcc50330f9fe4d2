//! The renderer: threads that turn planned batches into blocks of memory. In: planned batches. Out: tickets, each good for one
//! batch. Threads belong to the process that made them; a forked child is told so rather than left to wait for ever.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::encoded;
use super::fill::{check, fill};
use super::queue::{Job, Outcome, Queue, Task, closed_error, lock};
use super::settings::RenderSettings;
use super::worker::{Clocks, Input, Worker, lap};
use crate::buffers::BatchLayout;
use crate::decode::{HELPER, OUT_OF_MEMORY};
use crate::error::{Error, Kind, Result};
use crate::fetch::Source;
use crate::foreign::Helpers;
use crate::ledger::{Entry, Failure, Fault, Ledger};
use crate::memory::{Block, Pool};
use crate::slots::{BatchLimits, PlannedBatch, PlannedImage};

/// How long `close` waits for a thread that sits in a system call.
const CLOSE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A batch with its pixels.
pub struct Rendered {
    /// Its memory.
    pub block: Arc<Block>,
    /// Where each field lies in it.
    pub layout: Arc<BatchLayout>,
    /// Epoch of the plan.
    pub epoch: u64,
    /// Number of the first sequence.
    pub first: u64,
}

/// What a renderer has done so far.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Images rendered.
    pub images: u64,
    /// Their tokens in the batch's own view, prefix tokens not counted.
    pub tokens: u64,
    /// Images that failed.
    pub failed: u64,
    /// Rendered images that embed a colour profile other than sRGB, which is not applied.
    pub profiles: u64,
    /// Bytes of batches started and not yet taken.
    pub bytes_in_flight: usize,
    /// Seconds over all threads: fetch, decode, resize, patches, wait.
    pub seconds: [f64; 5],
}

struct Shared {
    queue: Queue,
    settings: RenderSettings,
    limits: BatchLimits,
    sources: Vec<Source>,
    ledger: Ledger,
    clocks: Clocks,
    images: AtomicU64,
    tokens: AtomicU64,
    failed: AtomicU64,
    profiles: AtomicU64,
    pool: Arc<Pool>,
    notify: Box<dyn Fn() + Send + Sync>,
    alive: Mutex<usize>,
    ended: Condvar,
    owner: u32,
}

/// Renders planned batches on threads of its own until it is closed or dropped.
pub struct Renderer {
    shared: Arc<Shared>,
    submitted: AtomicU64,
    layouts: Mutex<Vec<Arc<BatchLayout>>>,
}

/// One submitted batch. Dropping it cancels the batch.
pub struct Ticket {
    job: Arc<Job>,
    shared: Arc<Shared>,
    taken: bool,
}

impl Renderer {
    /// Starts the threads. `helpers` read the formats that no decoder here does; with `shared`, other processes can map the
    /// batches; `notify` is called, on any thread, whenever a batch is over.
    pub fn new(
        settings: RenderSettings,
        limits: BatchLimits,
        sources: Vec<Source>,
        helpers: Arc<Helpers>,
        shared: bool,
        notify: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Self> {
        let (decoders, fetchers) = (settings.decoders(), settings.fetch_threads);
        let shared = Arc::new(Shared {
            queue: Queue::new(settings.memory(), decoders, fetchers),
            ledger: Ledger::new(&settings.ledger, settings.failure_limit)?,
            pool: Pool::new(settings.memory(), shared),
            settings,
            limits,
            sources,
            clocks: Clocks::default(),
            images: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            profiles: AtomicU64::new(0),
            notify,
            alive: Mutex::new(0),
            ended: Condvar::new(),
            owner: std::process::id(),
        });
        let renderer = Self { shared: shared.clone(), submitted: AtomicU64::new(0), layouts: Mutex::default() };
        let start = |name: String, body: Box<dyn FnOnce(&Shared) + Send>| {
            let shared = shared.clone();
            *lock(&shared.alive) += 1;
            let thread = std::thread::Builder::new().name(name).spawn({
                let shared = shared.clone();
                move || {
                    let _ended = Ended(&shared);
                    body(&shared);
                }
            });
            thread.map(drop).map_err(|e| {
                *lock(&shared.alive) -= 1;
                Error::new(Kind::Render, format!("no thread could be started ({e}); lower render.threads"))
            })
        };
        for n in 0..decoders {
            let worker = Worker::new(helpers.clone()).map_err(|f| Error::new(Kind::Render, f.detail))?;
            start(format!("navit-render-{n}"), Box::new(move |shared| shared.decode(worker)))?;
        }
        for n in 0..fetchers {
            start(format!("navit-fetch-{n}"), Box::new(Shared::fetch_ahead))?;
        }
        Ok(renderer)
    }

    /// Queues a batch and returns at once. `encoded`: with the files themselves in place of pixels.
    ///
    /// # Errors
    /// The batch does not fit its limits; the renderer is closed, has met its failure limit, or belongs to another process;
    /// the files of an encoded batch do not fit into the memory allowed.
    pub fn submit(&self, plan: PlannedBatch, encoded: bool) -> Result<Ticket> {
        self.shared.same_process()?;
        if self.shared.queue.closed() {
            return Err(closed_error());
        }
        self.shared.ledger.stopped().map_or(Ok(()), Err)?;
        check(&plan, &self.shared.limits, &self.shared.sources)?;
        let layout = if encoded {
            encoded::layout(&plan, &self.shared.limits, &self.shared.sources, self.shared.settings.memory())?
        } else {
            self.layout(plan.patch_size, plan.batch_size)?
        };
        let images = plan.sequences.iter().flatten();
        let ahead = images.flat_map(|i| self.shared.sources[usize::from(i.source)].foresee(i.row as usize)).collect();
        let job = Arc::new(Job::new(self.submitted.fetch_add(1, Ordering::Relaxed), plan, layout, ahead));
        self.shared.queue.submit(job.clone());
        Ok(Ticket { job, shared: self.shared.clone(), taken: false })
    }

    /// Bytes that an encoded batch takes in memory, before it is made.
    ///
    /// # Errors
    /// As `submit`.
    pub fn encoded_bytes(&self, plan: &PlannedBatch) -> Result<usize> {
        let s = &self.shared;
        check(plan, &s.limits, &s.sources)?;
        Ok(encoded::layout(plan, &s.limits, &s.sources, s.settings.memory())?.bytes)
    }

    fn layout(&self, patch_size: u32, batch_size: usize) -> Result<Arc<BatchLayout>> {
        let mut layouts = lock(&self.layouts);
        let same = |l: &&Arc<BatchLayout>| l.view.patch_size == patch_size && l.batch_size == batch_size;
        if let Some(layout) = layouts.iter().find(same) {
            return Ok(layout.clone());
        }
        let layout = Arc::new(BatchLayout::new(&self.shared.limits, patch_size, batch_size)?);
        layouts.push(layout.clone());
        Ok(layout)
    }

    /// What has been done so far.
    pub fn stats(&self) -> Result<Stats> {
        self.shared.same_process()?;
        let s = &self.shared;
        let c = &s.clocks;
        Ok(Stats {
            images: s.images.load(Ordering::Relaxed),
            tokens: s.tokens.load(Ordering::Relaxed),
            failed: s.failed.load(Ordering::Relaxed),
            profiles: s.profiles.load(Ordering::Relaxed),
            bytes_in_flight: s.queue.in_flight(),
            seconds: [&c.fetch, &c.decode, &c.resize, &c.patches, &c.wait]
                .map(|n| n.load(Ordering::Relaxed) as f64 / 1e9),
        })
    }

    /// The ledger's entries so far.
    pub fn failures(&self) -> Result<Vec<Entry>> {
        self.shared.same_process()?;
        Ok(self.shared.ledger.entries())
    }

    /// Stops the threads and fails what was not finished. Waits for the images in hand, no longer than a few seconds.
    pub fn close(&self) {
        // A forked child has the object but not the threads, and locks as they happened to be.
        if self.shared.same_process().is_err() {
            return;
        }
        for job in self.shared.queue.close() {
            job.fail(closed_error());
        }
        let deadline = Instant::now() + CLOSE;
        let mut alive = lock(&self.shared.alive);
        while *alive > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            alive = self.shared.ended.wait_timeout(alive, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Renderer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Counts a thread out, however it ends.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        *lock(&self.0.alive) -= 1;
        self.0.ended.notify_all();
    }
}

impl Shared {
    fn same_process(&self) -> Result<()> {
        let here = std::process::id();
        if here == self.owner {
            return Ok(());
        }
        Err(Error::new(
            Kind::Render,
            format!(
                "this renderer was made in process {} and its threads did not follow the fork into {here}; make it after \
                 the fork, or start processes with 'spawn'",
                self.owner
            ),
        ))
    }

    fn decode(&self, mut worker: Worker) {
        let (mut own, mut path) = (Vec::new(), String::new());
        loop {
            let from = Instant::now();
            let task = self.queue.next(false);
            lap(&self.clocks.wait, from);
            match task {
                None => return,
                Some(Task::Start(job)) => self.start(job),
                Some(Task::Fetch(..)) => {}
                Some(Task::Image(job, i, None)) => {
                    let image = image_of(&job, i);
                    if let Some(bytes) = self.sources[usize::from(image.source)].resident(image.row as usize) {
                        self.image(&mut worker, &job, i, Ok(bytes));
                        continue;
                    }
                    let fetched = self.fetch(&job, i, &mut path, &mut own);
                    self.image(&mut worker, &job, i, fetched.map(|()| own.as_slice()));
                    if own.capacity() > crate::decode::KEEP_BYTES {
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

    fn fetch_ahead(&self) {
        let mut path = String::new();
        while let Some(task) = self.queue.next(true) {
            match task {
                Task::Start(job) => self.start(job),
                Task::Fetch(job, i, mut buffer) => {
                    let fetched = self.fetch(&job, i, &mut path, &mut buffer);
                    self.queue.fetched(job, i, fetched.map(|()| buffer));
                }
                Task::Image(..) => {}
            }
        }
    }

    fn start(&self, job: Arc<Job>) {
        match self.pool.take(job.layout.bytes) {
            Ok(block) => {
                fill(&job.plan, &job.layout, &self.limits, &self.sources, &block);
                if let Some(encoded) = &job.layout.encoded {
                    encoded::fill_encoded(&job.plan, &job.layout, encoded, &self.sources, &block);
                }
                *lock(&job.block) = Some(Arc::new(block));
            }
            Err(e) => job.fail(e),
        }
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
        (self.notify)();
    }

    /// Reads an image's bytes, trying again after a fault that may pass.
    fn fetch(&self, job: &Job, i: usize, path: &mut String, out: &mut Vec<u8>) -> std::result::Result<(), Fault> {
        let image = image_of(job, i);
        let source = &self.sources[usize::from(image.source)];
        let mut pause = FIRST_PAUSE;
        for attempt in 0.. {
            if job.abandoned() {
                return Err(Fault::Passing("cancelled".into()));
            }
            let from = Instant::now();
            let fetched = source.fetch(image.row as usize, path, out);
            lap(&self.clocks.fetch, from);
            match fetched {
                Err(Fault::Passing(_)) if attempt < self.settings.retries => {
                    if self.queue.sleep(pause) {
                        return fetched;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                other => return other,
            }
        }
        Ok(())
    }

    fn image(&self, worker: &mut Worker, job: &Job, i: usize, fetched: std::result::Result<&[u8], Fault>) {
        let (s, e) = job.items[i];
        let image = image_of(job, i);
        let source = &self.sources[usize::from(image.source)];
        let block = lock(&job.block).clone();
        let bytes = fetched.as_ref().map_or(&[][..], |bytes| bytes);
        let fetched = match fetched {
            _ if job.abandoned() => None,
            Ok(bytes) => Some(Ok(bytes)),
            Err(Fault::Failed(failure)) => Some(Err(failure)),
            Err(Fault::Passing(why)) => {
                job.fail(Error::new(
                    Kind::Render,
                    format!(
                        "'{}' cannot be read ({why}), after {} attempts; the image is not masked, since this may pass: \
                         check the storage and ask again",
                        source.uri(image.row as usize),
                        u64::from(self.settings.retries) + 1
                    ),
                ));
                None
            }
        };
        if let (Some(fetched), Some(block)) = (fetched, block) {
            let (at, layout) = ((s as usize, e as usize), &*job.layout);
            let outcome = if let Some(encoded) = &layout.encoded {
                worker.keep(fetched, image, at, source, layout, encoded, &block)
            } else {
                let input = fetched.map(Input::Encoded);
                worker.render(input, image, at, source, layout, &block, &self.settings, &self.clocks)
            };
            match outcome {
                Ok(()) => {
                    self.images.fetch_add(1, Ordering::Relaxed);
                    self.tokens.fetch_add(u64::from(image.kept), Ordering::Relaxed);
                    self.profiles.fetch_add(u64::from(worker.other_than_srgb(bytes)), Ordering::Relaxed);
                    self.ledger.passed();
                }
                Err(failure) if failure.reason == OUT_OF_MEMORY => job.fail(Error::new(
                    Kind::Render,
                    format!(
                        "no memory to decode '{}' ({}); lower render.threads or render.max_pixels",
                        source.uri(image.row as usize),
                        failure.detail
                    ),
                )),
                Err(failure) if failure.reason == HELPER => job.fail(Error::new(
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
                    let Failure { stage, reason, detail } = failure;
                    let entry = Entry {
                        epoch: job.plan.epoch,
                        source: image.source,
                        image: image.row,
                        uri,
                        offset,
                        stage,
                        reason,
                        detail,
                    };
                    if let Err(e) = self.ledger.failed(entry) {
                        job.fail(e);
                    }
                }
            }
        }
        if job.dealt_with() {
            self.complete(job);
        }
    }
}

fn image_of(job: &Job, i: usize) -> &PlannedImage {
    let (s, e) = job.items[i];
    &job.plan.sequences[s as usize][e as usize]
}

impl Ticket {
    /// Whether `wait` would return at once.
    pub fn ready(&self) -> Result<bool> {
        self.shared.same_process()?;
        Ok(!matches!(self.job.outcome(), Outcome::Running) || self.shared.queue.closed())
    }

    /// Waits until `deadline` at most; None when the batch is not finished by then.
    ///
    /// # Errors
    /// A passing fault outlasted its retries; too many images failed; the renderer was closed; the batch was taken before.
    pub fn wait(&mut self, deadline: Instant) -> Result<Option<Rendered>> {
        self.shared.same_process()?;
        if self.taken {
            return Err(Error::new(Kind::Render, "this batch was taken or cancelled before; submit it again"));
        }
        self.shared.queue.want(&self.job);
        match self.job.wait(deadline) {
            Outcome::Running if self.shared.queue.closed() => Err(closed_error()),
            Outcome::Running => Ok(None),
            Outcome::Failed(e) => Err(e),
            Outcome::Done => {
                let block = lock(&self.job.block).take().ok_or_else(closed_error)?;
                self.taken = true;
                self.shared.queue.release(&self.job);
                let (layout, plan) = (self.job.layout.clone(), &self.job.plan);
                Ok(Some(Rendered { block, layout, epoch: plan.epoch, first: plan.first }))
            }
        }
    }

    /// Gives the batch up; its images not yet begun are skipped.
    pub fn cancel(&mut self) {
        if self.taken || self.shared.same_process().is_err() {
            return;
        }
        self.taken = true;
        let unstarted = self.shared.queue.cancel(&self.job);
        if unstarted || !matches!(self.job.outcome(), Outcome::Running) {
            self.shared.queue.release(&self.job);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Renders one batch from images in memory, on as many threads as the settings say, and returns with it. The images of
/// `plan` name `inputs` by their rows; `source` holds their sizes and orientations. Makes no lasting threads, so it works in
/// any process.
pub fn render_in_place(
    plan: PlannedBatch,
    limits: &BatchLimits,
    source: Source,
    inputs: &[Input<'_>],
    settings: &RenderSettings,
    helpers: &Arc<Helpers>,
) -> Result<(Rendered, Vec<(u64, Failure)>)> {
    let sources = [source];
    check(&plan, limits, &sources)?;
    if inputs.len() < sources[0].len() {
        return Err(Error::new(Kind::Render, "fewer images than sizes"));
    }
    let layout = Arc::new(BatchLayout::new(limits, plan.patch_size, plan.batch_size)?);
    let block = Pool::new(0, false).take(layout.bytes)?;
    fill(&plan, &layout, limits, &sources, &block);
    let job = Job::new(0, plan, layout.clone(), Vec::new());
    let (clocks, next, failures) = (Clocks::default(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let run = || -> std::result::Result<(), Failure> {
        let mut worker = Worker::new(helpers.clone())?;
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(&(s, e)) = job.items.get(i) else { return Ok(()) };
            let image = image_of(&job, i);
            let input = inputs[image.row as usize];
            let at = (s as usize, e as usize);
            if let Err(f) = worker.render(Ok(input), image, at, &sources[0], &layout, &block, settings, &clocks) {
                if f.reason == OUT_OF_MEMORY || f.reason == HELPER {
                    return Err(f);
                }
                lock(&failures).push((image.row, f));
            }
        }
    };
    let memory = |f: Failure| Error::new(Kind::Render, f.detail);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..settings.decoders().min(job.items.len())).map(|_| scope.spawn(run)).collect();
        run().map_err(memory)?;
        for other in others {
            other.join().map_err(|_| Error::new(Kind::Render, "a rendering thread panicked"))?.map_err(memory)?;
        }
        Ok(())
    })?;
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((Rendered { block: Arc::new(block), layout, epoch: job.plan.epoch, first: job.plan.first }, failures))
}
