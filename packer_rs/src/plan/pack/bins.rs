//! Packers that keep every sequence open: first fit, best fit, and best fit decreasing. In: all loads. Out: a `Packing`.

use super::load::{Limits, Load, Packing, Used};

/// Each item into the first open sequence with room: a tree over the room of the sequences finds it in O(log n).
pub fn first_fit(loads: &[Load], limits: &Limits) -> Packing {
    let leaves = loads.len().next_power_of_two().max(1);
    // tree[1] is the root; a node holds the largest room beneath it. Sequences not yet opened have the whole capacity.
    let mut tree = vec![limits.capacity[0]; 2 * leaves];
    let mut used = vec![Used::default(); loads.len()];
    let mut bin_of = Vec::with_capacity(loads.len());
    let mut opened = 0;
    for load in loads {
        let mut bin = first_with_room(&tree, leaves, 0, load[0]);
        while !limits.fits(&used[bin], load) {
            bin = first_with_room(&tree, leaves, bin + 1, load[0]);
        }
        used[bin].add(load);
        opened = opened.max(bin + 1);
        let full = used[bin].items >= limits.max_items;
        let mut node = leaves + bin;
        tree[node] = if full { 0 } else { limits.capacity[0] - used[bin].load[0] };
        while node > 1 {
            node /= 2;
            tree[node] = tree[2 * node].max(tree[2 * node + 1]);
        }
        bin_of.push(bin as u32);
    }
    Packing::from_bins(&bin_of, opened)
}

/// The first leaf at or after `from` with at least `need` room. One exists: there are as many leaves as items.
fn first_with_room(tree: &[u32], leaves: usize, from: usize, need: u32) -> usize {
    let mut node = leaves + from;
    // Climb until a subtree at or right of `from` has room, then go down its left-most way.
    while tree[node] < need {
        while node % 2 == 1 {
            node /= 2;
        }
        node += 1;
    }
    while node < leaves {
        node = if tree[2 * node] >= need { 2 * node } else { 2 * node + 1 };
    }
    node - leaves
}

/// Each item into the fullest open sequence with room, the latest opened among equals.
pub fn best_fit(loads: &[Load], limits: &Limits) -> Packing {
    best_fit_in(loads, limits, &mut (0..loads.len()))
}

/// Best fit over the items from long to short, older first among equals.
pub fn best_fit_decreasing(loads: &[Load], limits: &Limits) -> Packing {
    let mut order: Vec<u32> = (0..loads.len() as u32).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(loads[i as usize][0]));
    best_fit_in(loads, limits, &mut order.into_iter().map(|i| i as usize))
}

fn best_fit_in(loads: &[Load], limits: &Limits, order: &mut dyn Iterator<Item = usize>) -> Packing {
    let capacity = limits.capacity[0] as usize;
    // Open sequences by their room, and a bit for each room that has any.
    let mut by_room: Vec<Vec<u32>> = vec![Vec::new(); capacity + 1];
    let mut any = vec![0u64; capacity / 64 + 1];
    let mut used: Vec<Used> = Vec::new();
    let mut bin_of = vec![0; loads.len()];
    for i in order {
        let load = &loads[i];
        let found = find(&by_room, &any, load[0] as usize, |bin| limits.fits(&used[bin as usize], load));
        let bin = match found {
            Some((room, place)) => {
                let bin = by_room[room].remove(place);
                if by_room[room].is_empty() {
                    any[room / 64] &= !(1 << (room % 64));
                }
                bin as usize
            }
            None => {
                used.push(Used::default());
                used.len() - 1
            }
        };
        used[bin].add(load);
        bin_of[i] = bin as u32;
        let room = capacity - used[bin].load[0] as usize;
        if room > 0 && used[bin].items < limits.max_items {
            by_room[room].push(bin as u32);
            any[room / 64] |= 1 << (room % 64);
        }
    }
    Packing::from_bins(&bin_of, used.len())
}

/// The smallest room of at least `need` that has a sequence which takes the item, and its place among that room's.
fn find(by_room: &[Vec<u32>], any: &[u64], need: usize, takes: impl Fn(u32) -> bool) -> Option<(usize, usize)> {
    let mut word = need / 64;
    let mut bits = any[word] & (u64::MAX << (need % 64));
    loop {
        while bits != 0 {
            let room = word * 64 + bits.trailing_zeros() as usize;
            if let Some(place) = by_room[room].iter().rposition(|&bin| takes(bin)) {
                return Some((room, place));
            }
            bits &= bits - 1;
        }
        word += 1;
        bits = *any.get(word)?;
    }
}
