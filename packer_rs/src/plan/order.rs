//! Epoch order: position → row, computed and never stored. In: a number of rows, a key, a kind of order. Out: for each
//! position of the epoch the row that stands there, in O(1) time and memory.

use std::ops::Range;

use crate::plan::random::philox;

/// A keyed permutation of `0..n`: an alternating Feistel network over the smallest power of two that holds n, with
/// cycle walking for values beyond n (Black and Rogaway, *Ciphers with arbitrary finite domains*, 2002). At most two
/// steps of the walk are expected.
#[derive(Clone, Debug)]
pub struct Permutation {
    n: u64,
    low_bits: u32,
    low_mask: u64,
    high_mask: u64,
    keys: [u64; 8],
}

impl Permutation {
    /// The permutation of `0..n` under `key`.
    pub fn new(n: u64, key: u64) -> Self {
        let bits = (64 - n.saturating_sub(1).leading_zeros()).max(2);
        let low_bits = bits / 2;
        let mut keys = [0; 8];
        for (i, pair) in keys.chunks_exact_mut(2).enumerate() {
            let r = philox(key, [i as u32, 0, 0, 0x0F_E1_57_E1]);
            pair[0] = u64::from(r[0]) | u64::from(r[1]) << 32;
            pair[1] = u64::from(r[2]) | u64::from(r[3]) << 32;
        }
        Self { n, low_bits, low_mask: (1 << low_bits) - 1, high_mask: (1 << (bits - low_bits)) - 1, keys }
    }

    #[inline]
    fn mix(x: u64, key: u64) -> u64 {
        let x = (x ^ key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        x ^ (x >> 29)
    }

    /// Where `i` goes; `i` must be below `n`.
    #[inline]
    pub fn at(&self, i: u64) -> u64 {
        debug_assert!(i < self.n);
        let mut x = i;
        loop {
            let (mut high, mut low) = (x >> self.low_bits, x & self.low_mask);
            for pair in self.keys.chunks_exact(2) {
                high ^= Self::mix(low, pair[0]) & self.high_mask;
                low ^= Self::mix(high, pair[1]) & self.low_mask;
            }
            x = high << self.low_bits | low;
            if x < self.n {
                return x;
            }
        }
    }

    /// The `i` that goes to `to`, which must be below `n`.
    pub fn inverse(&self, to: u64) -> u64 {
        debug_assert!(to < self.n);
        let mut x = to;
        loop {
            let (mut high, mut low) = (x >> self.low_bits, x & self.low_mask);
            for pair in self.keys.chunks_exact(2).rev() {
                low ^= Self::mix(high, pair[1]) & self.low_mask;
                high ^= Self::mix(low, pair[0]) & self.high_mask;
            }
            x = high << self.low_bits | low;
            if x < self.n {
                return x;
            }
        }
    }
}

/// How an epoch is ordered; see `Order` in `navit_loader.config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A full permutation.
    Permutation,
    /// Blocks of neighbours in permuted order, shuffled within a window of blocks.
    Blocks {
        /// Rows per block.
        block: u64,
        /// Blocks per window.
        window: u64,
    },
    /// As the index stands.
    Sequential,
}

/// The order of one epoch of one source.
#[derive(Clone, Debug)]
pub struct Order {
    n: u64,
    key: u64,
    kind: Kind,
    whole: Permutation,
    /// For blocks: where the last, short block went, and by how much it is short.
    short: (u64, u64),
    cached: Option<(u64, Permutation)>,
}

impl Order {
    /// The order of `n` rows under `key`, which already holds seed, source and source epoch.
    pub fn new(n: u64, key: u64, kind: Kind) -> Self {
        let (whole, short) = match kind {
            Kind::Blocks { block, .. } => {
                let blocks = n.div_ceil(block).max(1);
                let whole = Permutation::new(blocks, key);
                let place = whole.inverse(blocks - 1);
                (whole, (place, blocks * block - n))
            }
            _ => (Permutation::new(n, key), (0, 0)),
        };
        Self { n, key, kind, whole, short, cached: None }
    }

    /// The row at `position`, which must be below `n`.
    #[inline]
    pub fn at(&mut self, position: u64) -> u64 {
        match self.kind {
            Kind::Permutation => self.whole.at(position),
            Kind::Sequential => position,
            Kind::Blocks { block, window } => self.in_blocks(position, block, window),
        }
    }

    fn in_blocks(&mut self, position: u64, block: u64, window: u64) -> u64 {
        let (place, deficit) = self.short;
        // Positions as if every block were full: those after the short block move up by what it lacks.
        let span = window * block;
        let short_window = place / window;
        let w =
            if position < (short_window + 1) * span - deficit { position / span } else { (position + deficit) / span };
        let start = if w > short_window { w * span - deficit } else { w * span };
        let end = self.window_end(w, span, window);
        if self.cached.as_ref().is_none_or(|(cached, _)| *cached != w) {
            let r = philox(self.key, [w as u32, (w >> 32) as u32, 1, 0xB10C]);
            let key = u64::from(r[0]) | u64::from(r[1]) << 32;
            self.cached = Some((w, Permutation::new(end - start, key)));
        }
        let within = self.cached.as_ref().map_or(0, |(_, p)| p.at(position - start));
        let shuffled = start + within;
        let full = if shuffled < (place + 1) * block - deficit { shuffled } else { shuffled + deficit };
        self.whole.at(full / block) * block + full % block
    }

    /// Where a window of `window` blocks, `span` rows if all are full, ends.
    fn window_end(&self, w: u64, span: u64, window: u64) -> u64 {
        let (place, deficit) = self.short;
        if w >= place / window { (w + 1) * span - deficit } else { (w + 1) * span }.min(self.n)
    }

    /// Positions by which neighbouring rows, which must be below `n`, have had their turn: those behind each of them, or
    /// behind the windows that their blocks stand in.
    pub fn ends(&self, rows: Range<u64>, mut end: impl FnMut(u64)) {
        match self.kind {
            Kind::Permutation => rows.for_each(|row| end(self.whole.inverse(row) + 1)),
            Kind::Sequential => end(rows.end),
            Kind::Blocks { block, window } => (rows.start / block..=(rows.end - 1) / block)
                .for_each(|b| end(self.window_end(self.whole.inverse(b) / window, window * block, window))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::Permutation),
            Just(Kind::Sequential),
            (1u64..40, 1u64..9).prop_map(|(block, window)| Kind::Blocks { block, window }),
        ]
    }

    proptest! {
        #[test]
        fn every_row_once(n in 1u64..3000, key: u64, kind in kinds()) {
            let mut order = Order::new(n, key, kind);
            let mut rows: Vec<u64> = (0..n).map(|i| order.at(i)).collect();
            rows.sort_unstable();
            prop_assert!(rows.iter().copied().eq(0..n));
        }

        #[test]
        fn any_position_without_its_predecessors(n in 1u64..3000, key: u64, kind in kinds(), at: u64) {
            let at = at % n;
            let mut walked = Order::new(n, key, kind);
            let row = (0..=at).map(|i| walked.at(i)).last();
            prop_assert_eq!(Some(Order::new(n, key, kind).at(at)), row);
        }

        #[test]
        fn a_permutation_goes_back(n in 1u64..3000, key: u64) {
            let p = Permutation::new(n, key);
            prop_assert!((0..n).all(|i| p.inverse(p.at(i)) == i));
        }

        #[test]
        fn no_row_comes_behind_its_end(n in 1u64..3000, key: u64, kind in kinds()) {
            let mut order = Order::new(n, key, kind);
            let slack = match kind {
                Kind::Permutation | Kind::Sequential => 0,
                Kind::Blocks { block, window } => block * window - 1,
            };
            for position in 0..n {
                let row = order.at(position);
                let mut ends = Vec::new();
                order.ends(row..row + 1, |end| ends.push(end));
                prop_assert!(matches!(ends[..], [end] if position < end && end <= position + 1 + slack), "{ends:?}");
            }
        }

        #[test]
        fn blocks_stay_together(n in 1u64..3000, key: u64, block in 1u64..40, window in 1u64..9) {
            // A window of positions touches no more blocks than the window holds, and one more where it is cut.
            let mut order = Order::new(n, key, Kind::Blocks { block, window });
            let rows: Vec<u64> = (0..n).map(|i| order.at(i)).collect();
            for chunk in rows.chunks((window * block) as usize) {
                let mut blocks: Vec<u64> = chunk.iter().map(|r| r / block).collect();
                blocks.sort_unstable();
                blocks.dedup();
                prop_assert!(blocks.len() as u64 <= 2 * window);
            }
        }
    }

    #[test]
    fn permutation_is_uniform() {
        // Chi-squared over where 24 values go, for 20,000 keys: 23 degrees of freedom each; the bound is exceeded by
        // chance less than once in 10⁷ runs of the whole test.
        let (n, keys) = (24u64, 20_000u64);
        let mut counts = vec![[0u32; 24]; 24];
        for key in 0..keys {
            let p = Permutation::new(n, key.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            for i in 0..n {
                counts[i as usize][p.at(i) as usize] += 1;
            }
        }
        let expected = keys as f64 / n as f64;
        for row in counts {
            let chi2: f64 = row.iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
            assert!(chi2 < 80.0, "chi² = {chi2}");
        }
    }
}
