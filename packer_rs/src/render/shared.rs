//! What the threads, the engine and the tickets of one renderer share: queue, sources, ledger, counts; and a batch as
//! it is handed out. Apart from the engine, which makes tickets, since a ticket holds this too and may outlive the
//! engine.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex};

use super::queue::Queue;
use super::settings::RenderSettings;
use super::worker::Clocks;
use crate::error::{Error, Kind, Result};
use crate::fetch::cache::Cache;
use crate::fetch::{Foreseen, Source};
use crate::pixels::decode::profile::Kind as Profile;
use crate::render::layout::BatchLayout;
use crate::render::ledger::Ledger;
use crate::render::memory::{Block, Pool};
use crate::slots::{BatchLimits, PlannedBatch};
use crate::sync::lock;

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

pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) settings: RenderSettings,
    pub(super) limits: BatchLimits,
    pub(super) sources: Vec<Source>,
    pub(super) ledger: Ledger,
    pub(super) clocks: Clocks,
    pub(super) images: AtomicU64,
    pub(super) tokens: AtomicU64,
    pub(super) failed: AtomicU64,
    /// By kind: how many, and the first of them in the order of sources and rows.
    pub(super) profiles: Mutex<[(u64, (u16, u64)); Profile::ALL.len()]>,
    pub(super) dark: AtomicU64,
    pub(super) pool: Arc<Pool>,
    pub(super) notify: Box<dyn Fn() + Send + Sync>,
    pub(super) alive: Mutex<usize>,
    pub(super) ended: Condvar,
    pub(super) owner: u32,
    /// What is kept of remote objects.
    pub(super) cache: Option<Arc<Cache>>,
    /// Set when it is closed: what its threads wait for ends.
    pub(super) closing: Arc<AtomicBool>,
}

/// Counts a thread out, however it ends.
pub(super) struct Ended<'a>(pub(super) &'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        *lock(&self.0.alive) -= 1;
        self.0.ended.notify_all();
    }
}

impl Shared {
    pub(super) fn foresee(&self, plan: &PlannedBatch) -> Foreseen {
        let mut all = Foreseen::NOTHING;
        for image in plan.sequences.iter().flatten() {
            let one = self.sources[usize::from(image.source)].foresee(image.row as usize, plan.position);
            all.reads.extend(one.reads);
            all.complete &= one.complete;
        }
        all
    }

    pub(super) fn same_process(&self) -> Result<()> {
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
}
