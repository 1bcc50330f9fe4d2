//! The planned blocks that were used last, for all epochs of a plan together. In: planned blocks. Out: the same again,
//! while they are among the last that fit into a bound of bytes. Apart from `epoch`, since whoever asks for many epochs
//! must not make the plan grow.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use crate::plan::block::BlockPlan;
use crate::slots::{PlannedImage, Warp};
use crate::sync::lock;

/// Bytes of planned blocks kept: sixteen blocks of 65,536 images.
const KEEP_BYTES: usize = 64 << 20;
/// Kept whatever their size: a batch may straddle two blocks while another is planned.
const KEEP_BLOCKS: usize = 3;

type Name = (u64, u64);

/// Small blocks are kept by the hundred thousand, so nothing here goes through all of them.
#[derive(Default)]
struct Held {
    blocks: HashMap<Name, (u64, Arc<BlockPlan>)>,
    /// Names by when they were used; `clock` is the next use.
    uses: BTreeMap<u64, Name>,
    clock: u64,
    bytes: usize,
}

impl Held {
    fn remove(&mut self, name: Name) -> Option<Arc<BlockPlan>> {
        let (used, planned) = self.blocks.remove(&name)?;
        self.uses.remove(&used);
        self.bytes -= bytes(&planned);
        Some(planned)
    }

    fn insert(&mut self, name: Name, planned: Arc<BlockPlan>) {
        self.bytes += bytes(&planned);
        self.uses.insert(self.clock, name);
        self.blocks.insert(name, (self.clock, planned));
        self.clock += 1;
    }
}

fn bytes(planned: &BlockPlan) -> usize {
    let warps = planned.warps.len() * size_of::<Warp>();
    planned.images.len() * size_of::<PlannedImage>() + planned.starts.len() * size_of::<u32>() + warps
}

/// Planned blocks by (epoch, block), the latest used last.
#[derive(Default)]
pub struct Recent(Mutex<Held>);

impl Recent {
    /// A block, if it is still here.
    pub fn get(&self, epoch: u64, block: u64) -> Option<Arc<BlockPlan>> {
        let mut held = lock(&self.0);
        let planned = held.remove((epoch, block))?;
        held.insert((epoch, block), planned.clone());
        Some(planned)
    }

    /// Keeps a block, and lets go of those that were not used for longest.
    pub fn put(&self, epoch: u64, block: u64, planned: Arc<BlockPlan>) {
        let mut held = lock(&self.0);
        held.remove((epoch, block));
        held.insert((epoch, block), planned);
        while held.bytes > KEEP_BYTES && held.blocks.len() > KEEP_BLOCKS {
            let Some((_, &name)) = held.uses.first_key_value() else { break };
            held.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(images: usize) -> Arc<BlockPlan> {
        Arc::new(BlockPlan { images: vec![PlannedImage::default(); images], ..BlockPlan::default() })
    }

    #[test]
    fn what_was_used_last_stays_within_the_bound() {
        let recent = Recent::default();
        let images = KEEP_BYTES / 8 / size_of::<PlannedImage>();
        for n in 0..100 {
            recent.put(n, 7, block(images));
            assert!(recent.get(0, 7).is_some(), "used again and again, so it stays");
        }
        assert_eq!((0..100).filter(|&n| recent.get(n, 7).is_some()).count(), 8);
        assert!(recent.get(99, 7).is_some());
        assert!(recent.get(99, 8).is_none());
    }

    #[test]
    fn blocks_larger_than_the_bound_are_kept_by_number() {
        let recent = Recent::default();
        let images = KEEP_BYTES / size_of::<PlannedImage>() + 1;
        for n in 0..5 {
            recent.put(0, n, block(images));
        }
        assert_eq!((0..5).filter(|&n| recent.get(0, n).is_some()).count(), KEEP_BLOCKS);
    }
}
