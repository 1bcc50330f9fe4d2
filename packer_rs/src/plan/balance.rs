//! The order of the sequences within one window, so that runs of them cost alike. In: what each costs in attention, and a
//! random number. Out: which one stands at each place. Apart from `block`, which knows images; here they are costs.
//!
//! Whoever plans knows neither batch size nor ranks, so no run can be favoured: all are to be even, wherever they begin.
//! Three times the cheapest half is paired with the dearest, first with last, which gives groups of eight with nearly equal
//! sums. They stand in a ring, in which what is left uneven in a group rises and falls slowly: so what a run lacks of the group
//! in which it begins, it has of the one in which it ends. Where the ring begins is drawn, so each sequence is equally likely at
//! each place, and no size goes with a step.

use crate::plan::config::PlanConfig;
use crate::plan::random::below;
use crate::slots::Grid;

/// Pairings; a group has 2 to this power sequences. Deeper groups are no more even in runs of 4 to 16 sequences.
const PAIRINGS: usize = 3;

/// What attention takes for an image: the square of its segment, in each view.
#[inline]
pub fn squares(config: &PlanConfig, kept: u32, teacher_grid: Grid) -> u64 {
    let teacher = config.teacher.as_ref().map_or(0, |t| t.prefix_tokens + teacher_grid.tokens());
    u64::from(config.prefix_tokens + kept).pow(2) + u64::from(teacher).pow(2)
}

/// The order of a window of sequences of these costs; `bits` say where its ring begins.
pub fn even(costs: &[u64], bits: u32) -> Vec<u32> {
    let mut members: Vec<u32> = (0..costs.len() as u32).collect();
    let mut sums = costs.to_vec();
    let mut size = 1;
    // What had no partner; its sum was in the middle.
    let mut single = Vec::new();
    for _ in 0..PAIRINGS {
        let n = sums.len();
        if n < 2 {
            break;
        }
        let mut ranked: Vec<usize> = (0..n).collect();
        ranked.sort_unstable_by_key(|&i| (sums[i], i));
        let group = |i: usize| &members[ranked[i] * size..][..size];
        if n % 2 == 1 {
            single.extend_from_slice(group(n / 2));
        }
        let paired = (0..n / 2).flat_map(|i| group(i).iter().chain(group(n - 1 - i))).copied().collect();
        sums = (0..n / 2).map(|i| sums[ranked[i]] + sums[ranked[n - 1 - i]]).collect();
        members = paired;
        size *= 2;
    }
    let groups = || members.chunks_exact(size).enumerate();
    let falling = groups().filter(|(i, _)| i % 2 == 0).flat_map(|(_, g)| g);
    let rising = groups().rev().filter(|(i, _)| i % 2 == 1).flat_map(|(_, g)| g);
    let mut ring: Vec<u32> = falling.chain(&single).chain(rising).copied().collect();
    let turn = below(bits, ring.len() as u64);
    ring.rotate_left(turn as usize);
    ring
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The largest run of `length` costs by the mean of all runs, over all places where one can begin.
    fn worst(costs: impl Iterator<Item = u64>, length: usize) -> f64 {
        let costs: Vec<u64> = costs.collect();
        let runs: Vec<u64> = costs.windows(length).map(|run| run.iter().sum()).collect();
        *runs.iter().max().expect("runs") as f64 * runs.len() as f64 / runs.iter().sum::<u64>() as f64
    }

    proptest! {
        #[test]
        fn every_sequence_has_one_place(costs in prop::collection::vec(0u64..1 << 40, 1..300), bits: u32) {
            let mut order = even(&costs, bits);
            prop_assert_eq!(&order, &even(&costs, bits));
            order.sort_unstable();
            prop_assert!(order.into_iter().eq(0..costs.len() as u32));
        }

        #[test]
        fn runs_are_more_even_than_by_chance(
            costs in prop::collection::vec(1_600_000u64..3_400_000, 256), bits: u32, length in 4usize..48,
        ) {
            // Drawn at random, the costs stand in random order as they are.
            let balanced = worst(even(&costs, bits).into_iter().map(|i| costs[i as usize]), length);
            let chance = worst(costs.iter().copied(), length);
            prop_assert!(balanced < chance, "{balanced} {chance}");
        }

        #[test]
        fn wherever_the_ring_begins_it_is_the_same_ring(costs in prop::collection::vec(0u64..1 << 40, 1..100), bits: u32) {
            let mut turned = even(&costs, bits);
            turned.rotate_right(below(bits, costs.len() as u64) as usize);
            prop_assert_eq!(turned, even(&costs, 0));
        }
    }

    #[test]
    fn each_sequence_is_equally_likely_at_each_place() {
        let costs: Vec<u64> = (0..37).map(|i| i * i).collect();
        let mut seen = vec![vec![0; 37]; 37];
        for turn in 0..37u64 {
            // The middle of the bits that give this turn.
            let bits = ((2 * turn + 1) << 31) / 37;
            for (place, i) in even(&costs, bits as u32).into_iter().enumerate() {
                seen[place][i as usize] += 1;
            }
        }
        assert!(seen.iter().flatten().all(|&n| n == 1));
    }
}
