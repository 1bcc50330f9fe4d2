//! Head-first exact fill: the default packer.
//!
//! A sequence always starts with the oldest item, which bounds how late an item can be. It goes on in order while more
//! than about two large items fit, then closes with the subset of the next few items that fills it best (a subset-sum
//! over bit sets), preferring the oldest among equals. In: a window of loads, oldest first. Out: which of them make the
//! next sequence.

use super::load::{Limits, Load, PARTS, Packing, Used};

/// Scratch memory of the packer; it allocates only while it grows.
pub struct Exact {
    limits: Limits,
    lookahead: usize,
    /// Capacity that is left for the closing subset: about two large items.
    closing: u32,
    /// `rows[i]`: bit s is set where the candidates from i on can sum to s.
    rows: Vec<u64>,
    costs: Vec<u32>,
    candidates: Vec<u32>,
}

impl Exact {
    /// A packer that closes sequences over `lookahead` candidates; `large` is about the largest length.
    pub fn new(limits: Limits, lookahead: usize, large: u32) -> Self {
        let closing = large.saturating_mul(2).min(limits.capacity[0]);
        Self { limits, lookahead, closing, rows: Vec::new(), costs: Vec::new(), candidates: Vec::new() }
    }

    /// How many of the oldest items `choose` may look at.
    pub fn window(&self) -> usize {
        self.lookahead + self.limits.max_items.min(self.limits.capacity[0]) as usize
    }

    /// Chooses the items of the next sequence from `loads` (oldest first, not empty, each within the limits): their
    /// places, rising, into `chosen`. The first is always 0.
    #[inline]
    pub fn choose(&mut self, loads: &[Load], chosen: &mut Vec<u32>) -> Used {
        chosen.clear();
        let mut used = Used::default();
        let mut next = 0;
        let room = self.limits.capacity[0] - self.closing.min(self.limits.capacity[0] - 1);
        while next < loads.len() && (next == 0 || used.load[0] < room) && self.limits.fits(&used, &loads[next]) {
            used.add(&loads[next]);
            chosen.push(next as u32);
            next += 1;
        }
        if next < loads.len() && used.load[0] < self.limits.capacity[0] && used.items < self.limits.max_items {
            let end = loads.len().min(next + self.lookahead);
            self.close(loads, next, end, &mut used, chosen);
        }
        used
    }

    /// Adds the best subset of `loads[from..end]`.
    fn close(&mut self, loads: &[Load], from: usize, end: usize, used: &mut Used, chosen: &mut Vec<u32>) {
        let left = self.limits.capacity[0] - used.load[0];
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        candidates.extend((from as u32..end as u32).filter(|&i| self.limits.fits(used, &loads[i as usize])));
        let kept = chosen.len();
        self.subset(loads, &candidates, left, chosen);
        let mut total = *used;
        chosen[kept..].iter().for_each(|&i| total.add(&loads[i as usize]));
        if !self.within(&total) {
            // Another limit was in the way: find the fullest sum whose cost in that limit is small enough.
            let broken: Vec<usize> = (1..=PARTS).filter(|&part| !self.part_within(&total, part)).collect();
            chosen.truncate(kept);
            self.subset_at_cost(loads, &candidates, left, used, &broken, chosen);
            total = *used;
            chosen[kept..].iter().for_each(|&i| total.add(&loads[i as usize]));
            if !self.within(&total) {
                // Two limits pull apart: take in order what fits them all.
                chosen.truncate(kept);
                total = *used;
                for &i in &candidates {
                    if self.limits.fits(&total, &loads[i as usize]) {
                        total.add(&loads[i as usize]);
                        chosen.push(i);
                    }
                }
            }
        }
        *used = total;
        self.candidates = candidates;
    }

    fn within(&self, used: &Used) -> bool {
        (1..=PARTS).all(|part| self.part_within(used, part))
    }

    /// Part `PARTS` is the number of items.
    fn part_within(&self, used: &Used, part: usize) -> bool {
        if part == PARTS { used.items <= self.limits.max_items } else { used.load[part] <= self.limits.capacity[part] }
    }

    /// The subset of the candidates with the largest sum of tokens up to `left`; among equals the one that takes the
    /// oldest candidate, then the next oldest, and so on.
    fn subset(&mut self, loads: &[Load], candidates: &[u32], left: u32, chosen: &mut Vec<u32>) {
        let words = left as usize / 64 + 1;
        let n = candidates.len();
        self.rows.clear();
        self.rows.resize(words * (n + 1), 0);
        self.rows[words * n] = 1;
        for (i, &item) in candidates.iter().enumerate().rev() {
            let (row, after) = self.rows[words * i..words * (i + 2)].split_at_mut(words);
            let shift = loads[item as usize][0] as usize;
            let (whole, bits) = (shift / 64, shift % 64);
            row.copy_from_slice(after);
            if whole >= words {
                continue;
            }
            if bits == 0 {
                for (r, a) in row[whole..].iter_mut().zip(after.iter()) {
                    *r |= a;
                }
            } else {
                row[whole] |= after[0] << bits;
                for (r, a) in row[whole + 1..].iter_mut().zip(after.windows(2)) {
                    *r |= a[1] << bits | a[0] >> (64 - bits);
                }
            }
        }
        // The largest reachable sum within `left`.
        let mask = if left % 64 == 63 { u64::MAX } else { (1 << (left % 64 + 1)) - 1 };
        let mut sum = 0usize;
        for w in (0..words).rev() {
            let word = if w == words - 1 { self.rows[w] & mask } else { self.rows[w] };
            if word != 0 {
                sum = w * 64 + 63 - word.leading_zeros() as usize;
                break;
            }
        }
        for (i, &item) in candidates.iter().enumerate() {
            let len = loads[item as usize][0] as usize;
            let after = &self.rows[words * (i + 1)..words * (i + 2)];
            if sum >= len && after[(sum - len) / 64] >> ((sum - len) % 64) & 1 == 1 {
                chosen.push(item);
                sum -= len;
            }
        }
    }

    /// As `subset`, among the subsets whose summed cost in the `broken` limits stays within them. With one broken limit
    /// the cost is that limit's own and the result is the best there is; with several it is a weighted sum.
    fn subset_at_cost(
        &mut self,
        loads: &[Load],
        candidates: &[u32],
        left: u32,
        used: &Used,
        broken: &[usize],
        chosen: &mut Vec<u32>,
    ) {
        const NEVER: u32 = u32::MAX;
        let room = |part: usize| {
            if part == PARTS {
                self.limits.max_items - used.items
            } else {
                self.limits.capacity[part] - used.load[part]
            }
        };
        let amount = |item: u32, part: usize| if part == PARTS { 1 } else { loads[item as usize][part] };
        let (scale, budget) = if broken.len() == 1 { (0, room(broken[0])) } else { (1 << 20, 1 << 20) };
        let cost = |item: u32| -> u32 {
            if scale == 0 {
                return amount(item, broken[0]);
            }
            broken
                .iter()
                .map(|&p| (u64::from(amount(item, p)) * scale).div_ceil(u64::from(room(p).max(1))) as u32)
                .sum()
        };
        let (n, width) = (candidates.len(), left as usize + 1);
        self.costs.clear();
        self.costs.resize(width * (n + 1), NEVER);
        self.costs[width * n] = 0;
        for (i, &item) in candidates.iter().enumerate().rev() {
            let (row, after) = self.costs[width * i..width * (i + 2)].split_at_mut(width);
            row.copy_from_slice(after);
            let (len, price) = (loads[item as usize][0] as usize, cost(item));
            if len < width {
                for (r, &a) in row[len..].iter_mut().zip(after.iter()) {
                    *r = (*r).min(a.saturating_add(price));
                }
            }
        }
        let Some(mut sum) = (0..width).rev().find(|&s| self.costs[s] <= budget) else { return };
        let mut spent = 0u32;
        for (i, &item) in candidates.iter().enumerate() {
            let (len, price) = (loads[item as usize][0] as usize, cost(item));
            let after = &self.costs[width * (i + 1)..width * (i + 2)];
            if sum >= len && after[sum - len].saturating_add(price).saturating_add(spent) <= budget {
                chosen.push(item);
                sum -= len;
                spent += price;
            }
        }
    }
}

/// Takes the chosen places out of the window that starts at `head` of both vectors, keeping the order of what stays:
/// what stays moves up to the items behind the window. Returns the new head.
#[inline]
pub fn take<T: Copy>(items: &mut [T], head: usize, chosen: &[u32]) -> usize {
    let Some(&last) = chosen.last() else { return head };
    let (mut write, mut pick) = (head + last as usize, chosen.len());
    for read in (head..=head + last as usize).rev() {
        if pick > 0 && chosen[pick - 1] as usize == read - head {
            pick -= 1;
        } else {
            items[write] = items[read];
            write = write.wrapping_sub(1);
        }
    }
    head + chosen.len()
}

/// Packs all items; `pack` of the module above has checked them.
pub fn pack(loads: &[Load], limits: &Limits, lookahead: usize) -> Packing {
    let large = loads.iter().map(|l| l[0]).max().unwrap_or(1);
    let mut packer = Exact::new(*limits, lookahead, large);
    let mut waiting: Vec<Load> = loads.to_vec();
    let mut numbers: Vec<u32> = (0..loads.len() as u32).collect();
    let mut packing = Packing::new();
    let (mut head, mut chosen) = (0, Vec::new());
    while head < waiting.len() {
        let end = waiting.len().min(head + packer.window());
        packer.choose(&waiting[head..end], &mut chosen);
        packing.items.extend(chosen.iter().map(|&i| numbers[head + i as usize]));
        packing.close();
        take(&mut numbers, head, &chosen);
        head = take(&mut waiting, head, &chosen);
    }
    packing
}
