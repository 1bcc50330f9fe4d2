//! What packers take and what they give: loads and limits, sequences of items; and what cannot be packed at all.

use crate::error::{Error, Kind, Result};

/// What one item takes of each capacity: tokens, tokens of the teacher's view, text tokens, boxes. Unused ones are 0.
pub type Load = [u32; PARTS];

/// Capacities of a sequence, beside the number of its items.
pub const PARTS: usize = 4;

/// What one sequence holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Capacity for each part of a `Load`.
    pub capacity: Load,
    /// Items.
    pub max_items: u32,
}

impl Limits {
    /// A capacity for the first part alone.
    pub fn tokens(capacity: u32) -> Self {
        Self { capacity: [capacity, u32::MAX, u32::MAX, u32::MAX], max_items: u32::MAX }
    }

    /// Whether an item fits beside what is used already.
    #[inline]
    pub fn fits(&self, used: &Used, load: &Load) -> bool {
        used.items < self.max_items
            && used.load[0] + load[0] <= self.capacity[0]
            && used.load[1] + load[1] <= self.capacity[1]
            && used.load[2] + load[2] <= self.capacity[2]
            && used.load[3] + load[3] <= self.capacity[3]
    }
}

/// What a sequence holds so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Sum of its loads.
    pub load: Load,
    /// Number of its items.
    pub items: u32,
}

impl Used {
    /// Adds an item.
    #[inline]
    pub fn add(&mut self, load: &Load) {
        for (sum, part) in self.load.iter_mut().zip(load) {
            *sum += part;
        }
        self.items += 1;
    }
}

/// Sequences of items: the items of sequence s are `items[starts[s]..starts[s + 1]]`, in the order of their slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packing {
    /// Items by sequence.
    pub items: Vec<u32>,
    /// Where each sequence starts in `items`; one more than there are sequences.
    pub starts: Vec<u32>,
}

impl Packing {
    /// No sequence yet.
    pub fn new() -> Self {
        Self { items: Vec::new(), starts: vec![0] }
    }

    /// Ends the current sequence.
    pub fn close(&mut self) {
        self.starts.push(self.items.len() as u32);
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The items of each sequence.
    pub fn sequences(&self) -> impl Iterator<Item = &[u32]> {
        self.starts.windows(2).map(|w| &self.items[w[0] as usize..w[1] as usize])
    }

    /// From the sequence of each item; items keep their order, and sequences are ordered by their oldest item, so that
    /// an algorithm that sorts by length does not sort the stream by it.
    pub(super) fn from_bins(bin_of: &[u32], bins: usize) -> Self {
        let mut number = vec![u32::MAX; bins];
        let mut sizes = Vec::with_capacity(bins);
        for &bin in bin_of {
            let n = &mut number[bin as usize];
            if *n == u32::MAX {
                *n = sizes.len() as u32;
                sizes.push(0u32);
            }
            sizes[*n as usize] += 1;
        }
        let mut starts = Vec::with_capacity(sizes.len() + 1);
        starts.push(0);
        for size in &sizes {
            starts.push(starts[starts.len() - 1] + size);
        }
        let mut next = starts.clone();
        let mut items = vec![0; bin_of.len()];
        for (item, &bin) in bin_of.iter().enumerate() {
            let place = &mut next[number[bin as usize] as usize];
            items[*place as usize] = item as u32;
            *place += 1;
        }
        Self { items, starts }
    }
}

/// Refuses what cannot be packed, naming item, value and limit.
pub fn check(loads: &[Load], limits: &Limits) -> Result<()> {
    let bad = |message: String| Err(Error::new(Kind::Pack, message));
    if limits.capacity[0] == 0 {
        return bad("capacity = 0 is not allowed; it must be at least 1".into());
    }
    if limits.max_items == 0 {
        return bad("max_items = 0 is not allowed; it must be at least 1".into());
    }
    if loads.len() > u32::MAX as usize {
        return bad(format!("{} items are too many; pack at most {} at once", loads.len(), u32::MAX));
    }
    for (i, load) in loads.iter().enumerate() {
        if load[0] == 0 {
            return bad(format!("lengths[{i}] = 0 is not allowed; every length must be at least 1"));
        }
        for (part, name) in ["lengths", "teacher_lengths", "text_lengths", "box_counts"].into_iter().enumerate() {
            if load[part] > limits.capacity[part] {
                let (value, capacity) = (load[part], limits.capacity[part]);
                return bad(format!("{name}[{i}] = {value} is above the capacity {capacity}; an item is never split"));
            }
        }
    }
    Ok(())
}
