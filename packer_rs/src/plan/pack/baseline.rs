//! Packers that only `pack` offers, to compare with: next fit, and shortest pack first on the histogram of lengths.

use std::collections::BTreeMap;

use super::load::{Limits, Load, Packing, Used};

/// One open sequence; it is closed as soon as an item does not fit.
pub fn next_fit(loads: &[Load], limits: &Limits) -> Packing {
    let mut packing = Packing::new();
    let mut used = Used::default();
    for (i, load) in loads.iter().enumerate() {
        if !limits.fits(&used, load) {
            packing.close();
            used = Used::default();
        }
        used.add(load);
        packing.items.push(i as u32);
    }
    if !loads.is_empty() {
        packing.close();
    }
    packing
}

/// Shortest-pack-first histogram packing (Krell et al., *Efficient sequence packing without cross-contamination*,
/// arXiv 2107.02027): lengths from long to short; all items of one length go at once onto the open packs
/// with the most room, a pack class being a multiset of lengths with a count. Offline: it needs the whole histogram.
///
/// The second capacity is not part of that algorithm: loads other than the first are refused by `navit_loader.pack`.
pub fn histogram(loads: &[Load], limits: &Limits) -> Packing {
    let mut items_of: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (i, load) in loads.iter().enumerate().rev() {
        items_of.entry(load[0]).or_default().push(i as u32);
    }
    // Open classes by room: (lengths of one pack, how many such packs).
    let mut open: BTreeMap<u32, Vec<(Vec<u32>, usize)>> = BTreeMap::new();
    let mut full: Vec<(Vec<u32>, usize)> = Vec::new();
    for (&length, items) in items_of.iter().rev() {
        let mut left = items.len();
        // Packs made for this length are set aside until it is used up, so that one pass takes one item a pack.
        while left > 0 {
            let room = open.range(length..).next_back().map(|(&room, _)| room);
            let class = room.and_then(|room| {
                let classes = open.get_mut(&room)?;
                let class = classes.pop();
                if classes.is_empty() {
                    open.remove(&room);
                }
                class.map(|c| (room, c))
            });
            let (room, mut lengths, count) = match class {
                Some((room, (lengths, count))) => {
                    let taken = count.min(left);
                    if taken < count {
                        open.entry(room).or_default().push((lengths.clone(), count - taken));
                    }
                    (room, lengths, taken)
                }
                None => (limits.capacity[0], Vec::new(), left),
            };
            left -= count;
            lengths.push(length);
            let room = room - length;
            if room == 0 || lengths.len() as u32 >= limits.max_items {
                full.push((lengths, count));
            } else {
                open.entry(room).or_default().push((lengths, count));
            }
        }
    }
    let mut bin_of = vec![0; loads.len()];
    let mut bins = 0u32;
    for (lengths, count) in open.into_values().flatten().chain(full) {
        for _ in 0..count {
            for length in &lengths {
                if let Some(item) = items_of.get_mut(length).and_then(Vec::pop) {
                    bin_of[item as usize] = bins;
                }
            }
            bins += 1;
        }
    }
    Packing::from_bins(&bin_of, bins as usize)
}
