//! Invariants of all packers, and the exact one against brute force.

use super::*;
use proptest::prelude::*;

const ALL: [Algorithm; 6] = [
    Algorithm::Exact,
    Algorithm::FirstFit,
    Algorithm::BestFit,
    Algorithm::BestFitDecreasing,
    Algorithm::Histogram,
    Algorithm::NextFit,
];

fn case(parts: bool) -> impl Strategy<Value = (Vec<Load>, Limits)> {
    (1u32..200, 1u32..12, 1u32..60, 1u32..20).prop_flat_map(move |(capacity, max_items, teacher, text)| {
        let part = |limit: u32| if parts { 0..=limit } else { 0..=0 };
        let load = (1..=capacity, part(teacher), part(text)).prop_map(|(a, b, c)| [a, b, c]);
        let limits = Limits { capacity: [capacity, teacher, text], max_items };
        (prop::collection::vec(load, 0..300), Just(limits))
    })
}

fn check_packing(loads: &[Load], limits: &Limits, packing: &Packing) -> std::result::Result<(), TestCaseError> {
    let mut seen: Vec<u32> = packing.items.clone();
    seen.sort_unstable();
    prop_assert!(seen.iter().copied().eq(0..loads.len() as u32), "each item exactly once");
    for sequence in packing.sequences() {
        prop_assert!(!sequence.is_empty() && sequence.len() as u32 <= limits.max_items);
        for (part, &capacity) in limits.capacity.iter().enumerate() {
            let sum: u32 = sequence.iter().map(|&i| loads[i as usize][part]).sum();
            prop_assert!(sum <= capacity);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_item_once_and_no_limit_passed((loads, limits) in case(false), lookahead in 1usize..40) {
        for algorithm in ALL {
            check_packing(&loads, &limits, &pack(&loads, &limits, algorithm, lookahead)?)?;
        }
    }

    #[test]
    fn second_capacities_are_respected((loads, limits) in case(true), lookahead in 1usize..40) {
        for algorithm in [Algorithm::Exact, Algorithm::FirstFit, Algorithm::BestFit, Algorithm::BestFitDecreasing] {
            check_packing(&loads, &limits, &pack(&loads, &limits, algorithm, lookahead)?)?;
        }
    }

    #[test]
    fn exact_starts_with_the_oldest((loads, limits) in case(true), lookahead in 1usize..40) {
        let packing = pack(&loads, &limits, Algorithm::Exact, lookahead)?;
        let mut left: std::collections::BTreeSet<u32> = (0..loads.len() as u32).collect();
        for sequence in packing.sequences() {
            prop_assert_eq!(left.first(), sequence.first());
            sequence.iter().for_each(|i| { left.remove(i); });
        }
    }

    #[test]
    fn exact_closes_as_full_as_brute_force(
        lengths in prop::collection::vec(1u32..40, 1..12), capacity in 40u32..90, max_items in 1u32..13,
    ) {
        // With everything in the lookahead and nothing but the head fixed, the first sequence is the fullest there is.
        let loads: Vec<Load> = lengths.iter().map(|&l| [l, 0, 0]).collect();
        let limits = Limits { capacity: [capacity, 0, 0], max_items };
        let mut packer = exact::Exact::new(limits, 64, capacity);
        let mut chosen = Vec::new();
        let used = packer.choose(&loads, &mut chosen);
        let best = (0u32..1 << lengths.len())
            .filter(|set| set & 1 == 1 && set.count_ones() <= max_items)
            .map(|set| (0..lengths.len()).filter(|i| set >> i & 1 == 1).map(|i| lengths[i]).sum::<u32>())
            .filter(|&sum| sum <= capacity)
            .max();
        prop_assert_eq!(Some(used.load[0]), best);
        prop_assert_eq!(used.load[0], chosen.iter().map(|&i| lengths[i as usize]).sum::<u32>());
    }

    #[test]
    fn fits_as_the_definitions_say((loads, limits) in case(true)) {
        // Slow, obvious versions of first fit and best fit.
        for best in [false, true] {
            let mut bins: Vec<Used> = Vec::new();
            let mut of = Vec::new();
            for load in &loads {
                let fitting = (0..bins.len()).filter(|&b| limits.fits(&bins[b], load));
                let bin = if best { fitting.max_by_key(|&b| bins[b].load[0]) } else { fitting.into_iter().next() };
                let bin = bin.unwrap_or_else(|| { bins.push(Used::default()); bins.len() - 1 });
                bins[bin].add(load);
                of.push(bin as u32);
            }
            if best {
                // Ties may go elsewhere, so only the number of sequences of unit ties is not fixed; first fit is exact.
                check_packing(&loads, &limits, &bins::best_fit(&loads, &limits))?;
            } else {
                prop_assert_eq!(Packing::from_bins(&of, bins.len()), bins::first_fit(&loads, &limits));
            }
        }
    }
}

#[test]
fn hopeless_input_is_named() {
    let limits = Limits::tokens(10);
    for (loads, limits, word) in [
        (vec![[0, 0, 0]], limits, "lengths[0] = 0"),
        (vec![[3, 0, 0], [11, 0, 0]], limits, "lengths[1] = 11"),
        (vec![[1, 0, 0]], Limits::tokens(0), "capacity = 0"),
        (vec![[1, 0, 0]], Limits { max_items: 0, ..limits }, "max_items = 0"),
    ] {
        let message = pack(&loads, &limits, Algorithm::Exact, 32).map_err(|e| e.message);
        assert!(matches!(&message, Err(m) if m.contains(word)), "{message:?}");
    }
}
