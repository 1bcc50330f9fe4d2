//! One epoch of a plan with random access: which block holds a sequence, where batches start, how many steps there are.
//!
//! In: a plan and an epoch, or only the sequence counts of its blocks (a client without the index). Out: planned
//! batches and the arithmetic of steps. Blocks are planned when they are asked for; counts are filled by whoever asks
//! first.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Kind, Result};
use crate::plan::Plan;
use crate::plan::block::BlockPlan;
use crate::slots::PlannedBatch;
use crate::sync::lock;

/// Images that a thread counts before whoever waits may look up: some tens of milliseconds.
const PART_IMAGES: u64 = 4 * 65_536;

/// Sequence counts of the leading blocks, and what follows from them.
#[derive(Clone, Debug)]
pub struct Table {
    /// Sequences per patch-size run inside a block; 0 with one patch size.
    pub run: u64,
    /// Blocks of the epoch.
    pub num_blocks: u64,
    /// The first block whose count is known; 0 but for tables that begin inside an epoch.
    pub first_block: u64,
    /// Sequences before each known block, and before the first unknown one.
    before: Vec<u64>,
}

impl Table {
    /// A table that knows no block yet.
    pub fn new(run: u64, num_blocks: u64) -> Self {
        Self::from_block(run, num_blocks, 0, 0)
    }

    /// A table that begins at a block, which `before` sequences precede.
    pub fn from_block(run: u64, num_blocks: u64, first_block: u64, before: u64) -> Self {
        Self { run, num_blocks, first_block, before: vec![before] }
    }

    /// The first block whose count is not known, behind those that are.
    pub fn known(&self) -> u64 {
        self.first_block + self.before.len() as u64 - 1
    }

    /// Adds the counts of the next blocks.
    pub fn extend(&mut self, counts: &[u32]) -> Result<()> {
        if self.known() + counts.len() as u64 > self.num_blocks {
            let message = format!("{} more counts for {} of {} blocks", counts.len(), self.known(), self.num_blocks);
            return Err(Error::new(Kind::State, message));
        }
        for &count in counts {
            self.before.push(self.known_sequences() + u64::from(count));
        }
        Ok(())
    }

    fn known_sequences(&self) -> u64 {
        self.before[self.before.len() - 1]
    }

    /// Sequences of the epoch; None while blocks are unknown.
    pub fn num_sequences(&self) -> Option<u64> {
        (self.known() == self.num_blocks).then(|| self.known_sequences())
    }

    /// Sequences of a known block.
    pub fn count(&self, block: u64) -> u32 {
        let at = (block - self.first_block) as usize;
        (self.before[at + 1] - self.before[at]) as u32
    }

    /// Refuses a block that has another count than is known of it: batches would repeat or leave out images.
    fn agrees(&self, epoch: u64, block: u64, planned: &BlockPlan) -> Result<()> {
        if !(self.first_block..self.known()).contains(&block) || self.count(block) as usize == planned.len() {
            return Ok(());
        }
        let (known, found) = (self.count(block), planned.len());
        let message = format!(
            "block {block} of epoch {epoch} has {found} sequences, but its count said {known}; counts are kept in \
             ~/.cache/navit (or XDG_CACHE_HOME): empty that folder and start again"
        );
        Err(Error::new(Kind::State, message))
    }

    /// The known block that holds a sequence and the sequence's number in it.
    pub fn locate(&self, sequence: u64) -> Option<(u64, u64)> {
        if sequence < self.before[0] || sequence >= self.known_sequences() {
            return None;
        }
        let at = self.before.partition_point(|&b| b <= sequence) - 1;
        Some((self.first_block + at as u64, sequence - self.before[at]))
    }

    /// The known block that holds a sequence, or the last one beyond the epoch's end, and the sequences before it.
    pub fn place(&self, sequence: u64) -> Option<(u64, u64)> {
        if let Some((block, within)) = self.locate(sequence) {
            return Some((block, sequence - within));
        }
        let last = self.before.len().checked_sub(2)?;
        (sequence >= self.num_sequences()?).then(|| (self.num_blocks - 1, self.before[last]))
    }

    /// Where the batch after the one that starts at `first` starts: a batch never straddles two runs. At the epoch's
    /// end, its number of sequences. None where that needs unknown counts.
    pub fn next(&self, first: u64, batch_size: u64) -> Option<u64> {
        if let Some(n) = self.num_sequences()
            && first >= n
        {
            return Some(n);
        }
        let wish = first + batch_size;
        if self.run == 0 {
            return match self.num_sequences() {
                Some(n) => Some(wish.min(n)),
                None => (wish <= self.known_sequences()).then_some(wish),
            };
        }
        let (block, within) = self.locate(first)?;
        let end = ((within / self.run + 1) * self.run).min(u64::from(self.count(block)));
        Some(wish.min(first - within + end))
    }

    /// Batches from `first` to the end of the epoch; with `whole`, and one patch size, only full ones.
    fn batches(&self, first: u64, batch_size: u64, whole: bool) -> Option<u64> {
        let n = self.num_sequences()?;
        if self.run == 0 {
            let left = n.saturating_sub(first);
            return Some(if whole { left / batch_size } else { left.div_ceil(batch_size) });
        }
        let Some((block, within)) = self.locate(first) else { return Some(0) };
        // The rest of the run at hand, then whole runs, block by block.
        let of_block = |from: u64, count: u64| {
            let end = from.next_multiple_of(self.run).min(count);
            let (full, rest) = ((count - end) / self.run, (count - end) % self.run);
            (end - from).div_ceil(batch_size) + full * self.run.div_ceil(batch_size) + rest.div_ceil(batch_size)
        };
        let later = (block + 1..self.num_blocks).map(|b| of_block(0, u64::from(self.count(b)))).sum::<u64>();
        Some(of_block(within, u64::from(self.count(block))) + later)
    }

    /// Steps of every rank from `first` on: the remainder filled, or dropped. None while blocks are unknown.
    pub fn steps(&self, first: u64, batch_size: u64, world_size: u64, drop: bool) -> Option<u64> {
        let batches = self.batches(first, batch_size, drop)?;
        Some(if drop { batches / world_size } else { batches.div_ceil(world_size) })
    }
}

/// An epoch whose blocks can be planned here.
pub struct Epoch {
    plan: Arc<Plan>,
    epoch: u64,
    table: Mutex<Table>,
}

impl Epoch {
    /// An epoch of a plan; nothing is planned yet.
    pub fn new(plan: Arc<Plan>, epoch: u64) -> Self {
        Self::from_block(plan, epoch, 0, 0)
    }

    /// An epoch from a block on, which `before` sequences precede.
    pub fn from_block(plan: Arc<Plan>, epoch: u64, block: u64, before: u64) -> Self {
        let table = Table::from_block(plan.run(), plan.num_blocks(), block, before);
        Self { plan, epoch, table: Mutex::new(table) }
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Reads the table under its lock.
    pub fn with_table<T>(&self, read: impl FnOnce(&Table) -> T) -> T {
        read(&lock(&self.table))
    }

    /// Takes counts that were computed before (a cache on disk, named by the plan).
    pub fn restore(&self, counts: &[u32]) -> Result<()> {
        let mut fresh = Table::new(self.plan.run(), self.plan.num_blocks());
        fresh.extend(counts)?;
        let mut table = lock(&self.table);
        if fresh.known() > table.known() {
            *table = fresh;
        }
        Ok(())
    }

    /// One planned block, from the recent ones if it is among them.
    ///
    /// # Errors
    /// As `Plan::block`; another count of sequences is known of it.
    pub fn block(&self, block: u64) -> Result<Arc<BlockPlan>> {
        // Another `Epoch` of this plan may have planned it: then this table still has to learn its count.
        let planned = match self.plan.recent.get(self.epoch, block) {
            Some(planned) => planned,
            None => {
                let planned = Arc::new(self.plan.block(self.epoch, block)?);
                self.plan.recent.put(self.epoch, block, planned.clone());
                planned
            }
        };
        let mut table = lock(&self.table);
        if table.known() == block {
            table.extend(&[planned.len() as u32])?;
        }
        table.agrees(self.epoch, block, &planned)?;
        Ok(planned)
    }

    /// Makes the counts of the next blocks known, up to block `stop` and no more than `PART_IMAGES` images for each of
    /// `threads` threads. Whether all up to `stop` are.
    ///
    /// # Errors
    /// As `Plan::block`.
    pub fn count_on(&self, stop: u64, threads: usize) -> Result<bool> {
        let stop = stop.min(self.plan.num_blocks());
        let start = lock(&self.table).known();
        if start >= stop {
            return Ok(true);
        }
        let part = PART_IMAGES.div_ceil(self.plan.config.block_images).max(1);
        let end = stop.min(start + part * threads.max(1) as u64);
        if end - start == 1 {
            self.block(start)?;
            return Ok(end == stop);
        }
        let next = AtomicU64::new(start);
        let count = || {
            let mut counts = Vec::new();
            loop {
                let block = next.fetch_add(1, Ordering::Relaxed);
                if block >= end {
                    return Ok(counts);
                }
                counts.push((block, self.plan.block(self.epoch, block)?.len() as u32));
            }
        };
        let mut counts = vec![0; (end - start) as usize];
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads.min(counts.len())).map(|_| scope.spawn(count)).collect();
            let joined = others.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            for counted in std::iter::once(count()).chain(joined.collect::<Vec<_>>()) {
                for (block, n) in counted? {
                    counts[(block - start) as usize] = n;
                }
            }
            Ok(())
        })?;
        let mut table = lock(&self.table);
        // Another thread may have counted them meanwhile.
        let known = table.known();
        if known < end {
            table.extend(&counts[(known - start) as usize..])?;
        }
        Ok(end == stop)
    }

    /// What `ask` answers of the table; None where the next block's count has to be known for it, which then is.
    ///
    /// # Errors
    /// As `Plan::block`.
    pub fn ask_or_plan<T>(&self, ask: impl Fn(&Table) -> Option<T>) -> Result<Option<T>> {
        let known = {
            let table = lock(&self.table);
            if let Some(answer) = ask(&table) {
                return Ok(Some(answer));
            }
            table.known()
        };
        if known >= self.plan.num_blocks() {
            return Err(Error::new(Kind::State, format!("epoch {} has no such sequence", self.epoch)));
        }
        self.block(known).map(|_| None)
    }

    /// The batch that starts at sequence `first` and ends before `end`, as `Table::next` says; wholly masked beyond the
    /// epoch's end.
    ///
    /// # Errors
    /// As `block`.
    pub fn batch(&self, first: u64, end: u64, batch_size: usize) -> Result<PlannedBatch> {
        let planned = self.assemble(first, end, batch_size, |block| self.block(block).map(Some))?;
        Ok(planned.unwrap_or_default())
    }

    /// The batch that starts at sequence `first`, up to `batch_size` sequences, to the end of the run; None where
    /// something would have to be planned for it.
    ///
    /// # Errors
    /// Another count is known of a block than it has.
    pub fn batch_at_hand(&self, first: u64, batch_size: usize) -> Result<Option<PlannedBatch>> {
        let Some(end) = self.with_table(|t| t.next(first, batch_size as u64)) else { return Ok(None) };
        self.assemble(first, end, batch_size, |block| match self.plan.recent.get(self.epoch, block) {
            Some(planned) => self.with_table(|t| t.agrees(self.epoch, block, &planned)).map(|()| Some(planned)),
            None => Ok(None),
        })
    }

    fn assemble(
        &self,
        first: u64,
        end: u64,
        batch_size: usize,
        block_of: impl Fn(u64) -> Result<Option<Arc<BlockPlan>>>,
    ) -> Result<Option<PlannedBatch>> {
        let mut batch = PlannedBatch {
            epoch: self.epoch,
            first,
            position: 0,
            patch_size: self.plan.config.patch_sizes[0],
            batch_size,
            sequences: Vec::with_capacity(batch_size),
            warps: Vec::new(),
        };
        let mut sequence = first;
        while sequence < end {
            let Some((block, within)) = self.with_table(|t| t.locate(sequence)) else { break };
            let Some(planned) = block_of(block)? else { return Ok(None) };
            let run = if self.plan.run() == 0 { 0 } else { within / self.plan.run() };
            batch.patch_size = planned.patch_sizes[run as usize];
            if sequence == first {
                let before = self.epoch * self.plan.epoch_images() + block * self.plan.config.block_images;
                batch.position = before + u64::from(planned.starts[within as usize]);
            }
            let stop = (planned.len() as u64).min(within + end - sequence);
            for i in within..stop {
                batch.sequences.push(planned.sequence(i as usize).to_vec());
                if self.plan.config.warp.is_some() {
                    batch.warps.push(planned.warps_of(i as usize).to_vec());
                }
            }
            sequence += stop - within;
        }
        Ok(Some(batch))
    }
}
