//! Which image stands at which position of a run: mixtures, each source on its own epoch clock. In: the sizes of the
//! indexes and the streams drawn from them. Out: for a position, the stream, its source epoch and the row.
//!
//! A stream is an index or a selection of its rows (a filter, one class of a class-weighted index). Positions are dealt
//! out in cycles with a fixed quota for each stream, permuted within the cycle, so proportions are exact in every cycle
//! and the k-th use of a stream is known without its predecessors: it is row k mod n of that stream's epoch k div n.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::plan::order::{Kind as OrderKind, Order, Permutation};
use crate::plan::random::derive;

const ORDER: u32 = 11;
const DRAW: u32 = 12;
const MIXTURE: u32 = 13;

/// Positions of one cycle at most; weights are exact where whole numbers with a sum up to this express them.
const CYCLE: u64 = 65_536;

/// One stream of images.
#[derive(Clone)]
pub struct Stream {
    /// Which index.
    pub source: u16,
    /// Its selected rows, rising; None for all.
    pub rows: Option<Arc<Vec<u64>>>,
    /// Number of (selected) rows.
    pub len: u64,
    /// Share of the images, relative to the other streams.
    pub weight: f64,
}

/// All streams of a plan.
pub struct Streams {
    streams: Vec<Stream>,
    /// Positions of a cycle up to and including each stream; one entry per stream.
    quotas: Vec<u64>,
    seed: u64,
    kind: OrderKind,
}

/// One place of the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which index.
    pub source: u16,
    /// Row in it.
    pub row: u64,
    /// Key of its draws: seed, source and source epoch.
    pub key: u64,
}

impl Streams {
    /// Streams under one seed.
    pub fn new(streams: Vec<Stream>, seed: u64, kind: OrderKind) -> Result<Self> {
        let bad = |message: String| Err(Error::new(Kind::Plan, message));
        if streams.is_empty() {
            return bad("there is no image to plan: the index is empty, or no row passes the filter".into());
        }
        if let Some(s) = streams.iter().find(|s| s.len == 0) {
            return bad(format!("source {} has no image to plan: it is empty, or no row passes the filter", s.source));
        }
        if let Some(s) = streams.iter().find(|s| !(s.weight > 0.0 && s.weight.is_finite())) {
            return bad(format!("source {} has weight {}; it must be finite and above 0", s.source, s.weight));
        }
        let quotas = quotas(&streams.iter().map(|s| s.weight).collect::<Vec<_>>());
        if let Some(i) = (0..quotas.len()).find(|&i| quotas[i] == if i == 0 { 0 } else { quotas[i - 1] }) {
            return bad(format!(
                "weight {} is below 1/{CYCLE} of the sum; raise it or leave the source out",
                streams[i].weight
            ));
        }
        Ok(Self { streams, quotas, seed, kind })
    }

    /// Images of all streams together.
    pub fn len(&self) -> u64 {
        self.streams.iter().map(|s| s.len).sum()
    }

    /// Whether there is none; `new` refuses that.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// (source, row) of every image, stream by stream.
    pub fn rows(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.streams
            .iter()
            .flat_map(|s| (0..s.len).map(|i| (s.source, s.rows.as_ref().map_or(i, |rows| rows[i as usize]))))
    }

    /// By which position of the run, behind `after`, neighbouring rows of an index have had their next turn; `u64::MAX`
    /// where none of them is in any stream. Exact to a window of the order, and of a mixture to a cycle.
    pub fn next_turn(&self, source: u16, rows: &Range<u64>, after: u64) -> u64 {
        let length = self.quotas[self.quotas.len() - 1];
        let alone = self.streams.len() == 1;
        let mut next = u64::MAX;
        for (which, stream) in self.streams.iter().enumerate().filter(|(_, stream)| stream.source == source) {
            let chosen = stream.rows.as_ref().map_or(rows.start..rows.end.min(stream.len), |chosen| {
                let place = |row: u64| chosen.partition_point(|&other| other < row) as u64;
                place(rows.start)..place(rows.end)
            });
            if chosen.is_empty() {
                continue;
            }
            let quota = self.quotas[which] - if which == 0 { 0 } else { self.quotas[which - 1] };
            let uses = if alone { after } else { after / length * quota };
            let in_run = |uses: u64| if alone { uses } else { uses.div_ceil(quota) * length };
            let first = uses / stream.len;
            // What had its turn in this epoch of the stream has another in the next.
            for epoch in first..=first + 1 {
                let order = Order::new(stream.len, derive(self.seed, which as u64, epoch, ORDER), self.kind);
                order.ends(chosen.clone(), |end| {
                    let end = in_run(epoch * stream.len + end);
                    if end > after {
                        next = next.min(end);
                    }
                });
            }
        }
        next
    }

    /// A reader of places; it caches what neighbours share.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { streams: self, orders: vec![None; self.streams.len()], cycle: None }
    }
}

/// Whole quotas in proportion to the weights, summed up; the largest remainders get what rounding left.
fn quotas(weights: &[f64]) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let whole = weights.iter().all(|w| w.fract() == 0.0) && sum <= CYCLE as f64;
    let cycle = if whole { sum as u64 * (CYCLE / sum as u64) } else { CYCLE };
    let ideal: Vec<f64> = weights.iter().map(|w| w / sum * cycle as f64).collect();
    // A share within rounding error of a whole number is that number.
    let mut share: Vec<u64> = ideal.iter().map(|x| (x + 1e-6).floor() as u64).collect();
    let mut by_rest: Vec<usize> = (0..weights.len()).collect();
    let rest = |i: usize| ideal[i] - share[i] as f64;
    by_rest.sort_by(|&a, &b| rest(b).total_cmp(&rest(a)).then(a.cmp(&b)));
    let left = cycle - share.iter().sum::<u64>().min(cycle);
    for &i in by_rest.iter().cycle().take(left as usize) {
        share[i] += 1;
    }
    share
        .iter()
        .scan(0, |sum, s| {
            *sum += s;
            Some(*sum)
        })
        .collect()
}

/// Reads places; neighbouring positions share the order of a source epoch and the permutation of a cycle.
pub struct Cursor<'a> {
    streams: &'a Streams,
    orders: Vec<Option<(u64, u64, Order)>>,
    cycle: Option<(u64, Permutation)>,
}

impl Cursor<'_> {
    /// The place at `position`, counted from the run's first image over all epochs.
    #[inline]
    pub fn at(&mut self, position: u64) -> Place {
        let all = self.streams;
        let (which, uses) = if all.streams.len() == 1 { (0, position) } else { self.deal(position) };
        let stream = &all.streams[which];
        let (epoch, at) = (uses / stream.len, uses % stream.len);
        let slot = &mut self.orders[which];
        if slot.as_ref().is_none_or(|(cached, ..)| *cached != epoch) {
            // Streams of one index share its draws, but not their order.
            let order = derive(all.seed, which as u64, epoch, ORDER);
            let draw = derive(all.seed, u64::from(stream.source), epoch, DRAW);
            *slot = Some((epoch, draw, Order::new(stream.len, order, all.kind)));
        }
        let Some((_, key, order)) = slot else { unreachable!("just filled") };
        let at = order.at(at);
        let row = stream.rows.as_ref().map_or(at, |rows| rows[at as usize]);
        Place { source: stream.source, row, key: *key }
    }

    /// Which stream stands at a position of the mixture, and how often it was used before.
    fn deal(&mut self, position: u64) -> (usize, u64) {
        let quotas = &self.streams.quotas;
        let length = quotas[quotas.len() - 1];
        let (cycle, at) = (position / length, position % length);
        if self.cycle.as_ref().is_none_or(|(cached, _)| *cached != cycle) {
            self.cycle = Some((cycle, Permutation::new(length, derive(self.streams.seed, cycle, 0, MIXTURE))));
        }
        let slot = self.cycle.as_ref().map_or(at, |(_, p)| p.at(at));
        let which = quotas.partition_point(|&end| end <= slot);
        let start = if which == 0 { 0 } else { quotas[which - 1] };
        (which, cycle * (quotas[which] - start) + slot - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn streams(lens: &[u64], weights: &[f64]) -> Vec<Stream> {
        let stream = |(i, (&len, &weight))| Stream { source: i as u16, rows: None, len, weight };
        lens.iter().zip(weights).enumerate().map(stream).collect()
    }

    proptest! {
        #[test]
        fn one_stream_is_each_row_once_an_epoch(n in 1u64..500, seed: u64, epoch in 0u64..5) {
            let s = Streams::new(streams(&[n], &[1.0]), seed, OrderKind::Permutation)?;
            let mut cursor = s.cursor();
            let mut rows: Vec<u64> = (epoch * n..(epoch + 1) * n).map(|i| cursor.at(i).row).collect();
            rows.sort_unstable();
            prop_assert!(rows.into_iter().eq(0..n));
        }

        #[test]
        fn a_mixture_has_exact_shares_and_whole_epochs(
            parts in prop::collection::vec((1u64..3000, 1u32..50), 2..5), seed: u64,
        ) {
            let (lens, weights): (Vec<u64>, Vec<f64>) = parts.iter().map(|&(n, w)| (n, f64::from(w))).unzip();
            let s = Streams::new(streams(&lens, &weights), seed, OrderKind::Permutation)?;
            let length = s.quotas[s.quotas.len() - 1];
            let sum: f64 = weights.iter().sum();
            let mut cursor = s.cursor();
            let mut uses = vec![vec![]; lens.len()];
            for position in 0..2 * length {
                let place = cursor.at(position);
                uses[usize::from(place.source)].push(place.row);
            }
            for ((rows, &n), w) in uses.iter().zip(&lens).zip(&weights) {
                prop_assert_eq!(rows.len() as f64, (2.0 * length as f64 * w / sum).round());
                // No row is used twice more often than another: each stream keeps its own epoch clock.
                let mut counts = vec![0u64; n as usize];
                rows.iter().for_each(|&r| counts[r as usize] += 1);
                let whole = rows.len() as u64 / n;
                prop_assert!(counts.iter().all(|&c| c == whole || c == whole + 1));
            }
        }
    }

    proptest! {
        #[test]
        fn a_row_has_its_next_turn_when_it_is_said(
            lens in prop::collection::vec(1u64..200, 1..4), picked in 1u64..4, block in 1u64..20, window in 1u64..5, seed: u64,
            after in 0u64..900, kind in 0..3,
        ) {
            let kind = match kind {
                0 => OrderKind::Permutation,
                1 => OrderKind::Sequential,
                _ => OrderKind::Blocks { block, window },
            };
            let mut all = streams(&lens, &vec![1.0; lens.len()]);
            let rows: Vec<u64> = (0..lens[0]).filter(|row| row % picked == 0).collect();
            all[0] = Stream { len: rows.len() as u64, rows: Some(Arc::new(rows)), ..all[0].clone() };
            let s = Streams::new(all, seed, kind)?;
            let mut cursor = s.cursor();
            let cycle = if lens.len() == 1 { 0 } else { s.quotas[s.quotas.len() - 1] };
            for position in after..after + 50 {
                let place = cursor.at(position);
                let next = s.next_turn(place.source, &(place.row..place.row + 1), after);
                prop_assert!(next > after);
                // Whoever stands here has had its turn by then, or by the end of its window.
                let slack = if let OrderKind::Blocks { .. } = kind { block * window } else { 1 };
                prop_assert!(cycle > 0 || next <= position + slack, "{next} of {position}");
            }
        }
    }

    #[test]
    fn weights_that_are_no_whole_numbers_come_within_a_cycle() {
        let q = quotas(&[1.0 / 3.0, 2.0 / 3.0]);
        assert_eq!(q, vec![21_845, 65_536]);
        assert_eq!(quotas(&[3.0, 1.0]), vec![49_152, 65_536]);
    }
}
