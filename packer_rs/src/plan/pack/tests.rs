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
    (1u32..200, 1u32..12, 1u32..60, 1u32..20, 1u32..30).prop_flat_map(
        move |(capacity, max_items, teacher, text, boxes)| {
            let part = |limit: u32| if parts { 0..=limit } else { 0..=0 };
            let load = (1..=capacity, part(teacher), part(text), part(boxes)).prop_map(|(a, b, c, d)| [a, b, c, d]);
            let limits = Limits { capacity: [capacity, teacher, text, boxes], max_items };
            (prop::collection::vec(load, 0..300), Just(limits))
        },
    )
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

/// First fit, or best fit, by the definition: every open sequence is looked at. Among equally full ones, the one that
/// became so last.
fn by_looking_at_all(loads: &[Load], limits: &Limits, order: impl IntoIterator<Item = usize>, best: bool) -> Packing {
    let mut bins: Vec<(Used, usize)> = Vec::new();
    let mut of = vec![0; loads.len()];
    for (time, i) in order.into_iter().enumerate() {
        let mut fitting = (0..bins.len()).filter(|&b| limits.fits(&bins[b].0, &loads[i]));
        let bin = if best { fitting.max_by_key(|&b| (bins[b].0.load[0], bins[b].1)) } else { fitting.next() };
        let bin = bin.unwrap_or_else(|| {
            bins.push((Used::default(), 0));
            bins.len() - 1
        });
        bins[bin].0.add(&loads[i]);
        bins[bin].1 = time;
        of[i] = bin as u32;
    }
    Packing::from_bins(&of, bins.len())
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
        let loads: Vec<Load> = lengths.iter().map(|&l| [l, 0, 0, 0]).collect();
        let limits = Limits { capacity: [capacity, 0, 0, 0], max_items };
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
        prop_assert_eq!(by_looking_at_all(&loads, &limits, 0..loads.len(), false), bins::first_fit(&loads, &limits));
        prop_assert_eq!(by_looking_at_all(&loads, &limits, 0..loads.len(), true), bins::best_fit(&loads, &limits));
        let mut order: Vec<usize> = (0..loads.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(loads[i][0]));
        prop_assert_eq!(by_looking_at_all(&loads, &limits, order, true), bins::best_fit_decreasing(&loads, &limits));
    }
}

#[test]
fn hopeless_input_is_named() {
    let limits = Limits::tokens(10);
    for (loads, limits, word) in [
        (vec![[0, 0, 0, 0]], limits, "lengths[0] = 0"),
        (vec![[3, 0, 0, 0], [11, 0, 0, 0]], limits, "lengths[1] = 11"),
        (vec![[1, 0, 0, 0]], Limits::tokens(0), "capacity = 0"),
        (vec![[1, 0, 0, 0]], Limits { max_items: 0, ..limits }, "max_items = 0"),
    ] {
        let message = pack(&loads, &limits, Algorithm::Exact, 32).map_err(|e| e.message);
        assert!(matches!(&message, Err(m) if m.contains(word)), "{message:?}");
    }
}

#[test]
fn four_times_the_items_take_four_times_the_looks_where_the_text_binds() {
    let limits = Limits { capacity: [1024, 0, 64, 0], max_items: 64 };
    for captions in [0u32, 30] {
        let load = |i: u32| [40 + i * 7919 % 97, 0, captions + i * 104_729 % 31, 0];
        for algorithm in [Algorithm::FirstFit, Algorithm::BestFit, Algorithm::BestFitDecreasing] {
            let looks = |items: u32| {
                let loads: Vec<Load> = (0..items).map(load).collect();
                bins::LOOKS.set(0);
                let packing = pack(&loads, &limits, algorithm, 1).expect("within the limits");
                check_packing(&loads, &limits, &packing).expect("a good packing");
                bins::LOOKS.get()
            };
            let (few, many) = (looks(10_000), looks(40_000));
            assert!(many < 6 * few, "{algorithm:?}: {few} looks, then {many}");
        }
    }
}
