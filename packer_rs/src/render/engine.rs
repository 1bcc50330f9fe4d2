//! The renderer: threads that turn planned batches into blocks of memory. In: planned batches. Out: tickets, each good
//! for one batch. Threads belong to the process that made them; a forked child is told so rather than left to wait for
//! ever.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::encoded;
use super::fill::check;
use super::job::Job;
use super::queue::{Queue, closed_error};
use super::settings::RenderSettings;
use super::shared::{Ended, Shared};
use super::ticket::Ticket;
use super::worker::{Clocks, Worker};
use crate::error::{Error, Kind, Result};
use crate::fetch::cache::{Cache, NextTurn, Saved};
use crate::fetch::retry::until;
use crate::fetch::{Foreseen, Source};
use crate::pixels::decode::foreign::Helpers;
use crate::pixels::decode::profile::Kind as Profile;
use crate::render::layout::BatchLayout;
use crate::render::ledger::{Counts, Entry, Ledger};
use crate::render::memory::Pool;
use crate::slots::{BatchLimits, PlannedBatch};
use crate::sync::lock;

/// How long `close` waits for a thread that sits in a system call.
const CLOSE: Duration = Duration::from_secs(5);

/// What a renderer has done so far.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Images rendered.
    pub images: u64,
    /// Their tokens in the batch's own view, prefix tokens not counted.
    pub tokens: u64,
    /// Images that failed.
    pub failed: u64,
    /// Rendered images that embed a colour profile other than sRGB which was not applied.
    pub profiles: u64,
    /// Rendered images of 16 bits a sample that are nearly black, since they use few of them.
    pub dark: u64,
    /// Bytes of batches started and not yet taken.
    pub bytes_in_flight: usize,
    /// Bytes of containers at hand or on their way: spans of remote objects, pages of Parquet.
    pub bytes_of_parts: usize,
    /// Bytes that came from servers for images.
    pub bytes_fetched: u64,
    /// What the cache has done, where there is one.
    pub cache: Option<Saved>,
    /// Seconds over all threads: fetch, decode, resize, patches, wait.
    pub seconds: [f64; 5],
}

/// Renders planned batches on threads of its own until it is closed or dropped.
pub struct Renderer {
    shared: Arc<Shared>,
    submitted: AtomicU64,
}

impl Renderer {
    /// Starts the threads. `helpers` read the formats that no decoder here does; with `shared`, other processes can map
    /// the batches; `next` says when rows are wanted again, for a cache; `notify` is called, on any thread, whenever a
    /// batch is over.
    pub fn new(
        settings: RenderSettings,
        limits: BatchLimits,
        sources: Vec<Source>,
        helpers: Arc<Helpers>,
        shared: bool,
        next: Box<NextTurn>,
        notify: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Self> {
        let (decoders, fetchers) = (settings.decoders(), settings.fetch_threads);
        let holding: Vec<_> = sources.iter().map(Source::holds_parts).filter(|&held| held != (false, false)).collect();
        let parts = if holding.is_empty() { 0 } else { settings.memory_for_parts(holding.iter().any(|held| held.0)) };
        for source in &sources {
            source.allow_parts(parts.checked_div(holding.len()).unwrap_or(0));
        }
        let memory = settings.memory() - parts;
        let cache = open_cache(&settings, &sources, next)?;
        let shared = Arc::new(Shared {
            queue: Queue::new(memory, decoders, fetchers),
            ledger: Ledger::new(&settings.ledger, settings.failure_limit)?,
            pool: Pool::new(memory, shared),
            settings,
            limits,
            sources,
            clocks: Clocks::default(),
            images: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            profiles: Mutex::default(),
            dark: AtomicU64::new(0),
            notify,
            alive: Mutex::new(0),
            ended: Condvar::new(),
            owner: std::process::id(),
            cache,
            closing: Arc::default(),
        });
        let renderer = Self { shared: shared.clone(), submitted: AtomicU64::new(0) };
        let start = |name: String, body: Box<dyn FnOnce(&Shared) + Send>| {
            let shared = shared.clone();
            *lock(&shared.alive) += 1;
            let thread = std::thread::Builder::new().name(name).spawn({
                let shared = shared.clone();
                move || {
                    let _ended = Ended(&shared);
                    until(&shared.closing, || body(&shared));
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
    /// The batch does not fit its limits; the renderer is closed, has met its failure limit, or belongs to another
    /// process; the files of an encoded batch do not fit into the memory allowed.
    pub fn submit(&self, plan: PlannedBatch, encoded: bool) -> Result<Ticket> {
        self.shared.same_process()?;
        if self.shared.queue.closed() {
            return Err(closed_error());
        }
        self.shared.ledger.stopped().map_or(Ok(()), Err)?;
        check(&plan, &self.shared.limits, &self.shared.sources)?;
        if encoded && self.shared.limits.targets.masks > 0 {
            let why = "encoded batches have no masks, which are made with the pixels; set plan.targets.masks = 0";
            return Err(Error::new(Kind::Render, why));
        }
        let layout = if encoded {
            encoded::layout(&plan, &self.shared.limits, &self.shared.sources, self.shared.settings.memory())?
        } else {
            Arc::new(BatchLayout::new(&self.shared.limits, plan.patch_size, plan.batch_size)?)
        };
        let ahead = self.shared.foresee(&plan).reads;
        let job = Arc::new(Job::new(self.submitted.fetch_add(1, Ordering::Relaxed), plan, layout, ahead));
        self.shared.queue.submit(job.clone());
        Ok(Ticket::new(job, self.shared.clone()))
    }

    /// Starts to fetch what a batch will need that is to be submitted later, as far as there is room. What comes back
    /// keeps it at hand.
    ///
    /// # Errors
    /// The batch does not fit its limits; the renderer belongs to another process.
    pub fn foresee(&self, plan: &PlannedBatch) -> Result<Foreseen> {
        self.shared.same_process()?;
        check(plan, &self.shared.limits, &self.shared.sources)?;
        Ok(self.shared.foresee(plan))
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

    /// What has been done so far.
    pub fn stats(&self) -> Result<Stats> {
        self.shared.same_process()?;
        let s = &self.shared;
        let c = &s.clocks;
        Ok(Stats {
            images: s.images.load(Ordering::Relaxed),
            tokens: s.tokens.load(Ordering::Relaxed),
            failed: s.failed.load(Ordering::Relaxed),
            profiles: lock(&s.profiles).iter().map(|found| found.0).sum(),
            dark: s.dark.load(Ordering::Relaxed),
            bytes_in_flight: s.queue.in_flight(),
            bytes_of_parts: s.sources.iter().map(Source::parts_held).sum(),
            bytes_fetched: s.sources.iter().map(Source::bytes_fetched).sum(),
            cache: s.cache.as_ref().map(|cache| cache.counts()),
            seconds: [&c.fetch, &c.decode, &c.resize, &c.patches, &c.wait]
                .map(|n| n.load(Ordering::Relaxed) as f64 / 1e9),
        })
    }

    /// The kinds of these colour profiles: name, how many, and one such image.
    pub fn profiles(&self) -> Result<Vec<(&'static str, u64, String)>> {
        self.shared.same_process()?;
        let found = *lock(&self.shared.profiles);
        let there = Profile::ALL.into_iter().zip(found).filter(|(_, (count, _))| *count > 0);
        let uri = |(source, row): (u16, u64)| self.shared.sources[usize::from(source)].uri(row as usize);
        Ok(there.map(|(kind, (count, first))| (kind.name(), count, uri(first))).collect())
    }

    /// The ledger's entries so far.
    pub fn failures(&self) -> Result<Vec<Entry>> {
        self.shared.same_process()?;
        Ok(self.shared.ledger.entries())
    }

    /// Failed images by stage and reason so far.
    pub fn failure_counts(&self) -> Result<Counts> {
        self.shared.same_process()?;
        Ok(self.shared.ledger.counts())
    }

    /// Stops the threads and fails what was not finished. Waits for the images in hand, no longer than a few seconds.
    pub fn close(&self) {
        // A forked child has the object but not the threads, and locks as they happened to be.
        if self.shared.same_process().is_err() {
            return;
        }
        self.shared.closing.store(true, Ordering::Release);
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
        // Whoever holds on to the loader needs no open files.
        self.shared.sources.iter().for_each(Source::close);
        self.shared.cache.iter().for_each(|cache| cache.close());
    }
}

/// The cache of remote data, where one is asked for and any data is remote.
fn open_cache(settings: &RenderSettings, sources: &[Source], next: Box<NextTurn>) -> Result<Option<Arc<Cache>>> {
    let dir = &settings.cache_dir;
    if dir.is_empty() || !sources.iter().any(|source| source.holds_parts().0) {
        return Ok(None);
    }
    let fingerprints: Vec<_> = sources.iter().map(|source| source.fingerprint.clone()).collect();
    let cache = Cache::open(Path::new(dir), (settings.cache_gb * 1e9) as u64, &fingerprints, next).map_err(|e| {
        let words = "name a folder on a disk of this machine that this process may write, or leave the key out";
        Error::new(Kind::Render, format!("render.cache_dir = '{dir}' cannot be used ({e}); {words}"))
    })?;
    sources.iter().enumerate().for_each(|(number, source)| source.keep_in(&cache, number as u16));
    Ok(Some(cache))
}

impl Drop for Renderer {
    fn drop(&mut self) {
        self.close();
    }
}
