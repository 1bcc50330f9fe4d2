//! Packers that keep every sequence open: first fit, best fit, and best fit decreasing. In: all loads. Out: a
//! `Packing`.
//!
//! Where only the first part of a load is used, a tree or a list by room finds a sequence. Where others are too, many
//! sequences have room in one part and none in another: `Tree` passes over them without looking at each.

use super::load::{Limits, Load, Packing, Used};

#[cfg(test)]
thread_local! {
    /// How many rooms were looked at.
    pub(super) static LOOKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Whether any part but the first is used.
fn has_parts(loads: &[Load]) -> bool {
    loads.iter().any(|load| load[1..].iter().any(|&part| part > 0))
}

fn covers(room: &Load, need: &Load) -> bool {
    #[cfg(test)]
    LOOKS.set(LOOKS.get() + 1);
    room.iter().zip(need).all(|(room, need)| room >= need)
}

/// The next room of two lists by falling parts, the last part first.
fn next_of<'a>(left: &mut &'a [Load], right: &mut &'a [Load]) -> Option<Load> {
    let key = |rooms: &[Load]| rooms.first().map(|room| (room[2], room[0], room[1], room[3]));
    let from = if key(left) >= key(right) { left } else { right };
    let (room, rest) = from.split_first()?;
    *from = rest;
    Some(*room)
}

/// A tree over the rooms of leaves. Each node knows the rooms beneath it that no other one there covers, by falling
/// parts, so whether an item finds a place there is told for certain.
struct Tree {
    /// The root is `nodes[1]`.
    nodes: Vec<Vec<Load>>,
    leaves: usize,
    scratch: Vec<Load>,
}

impl Tree {
    fn new(leaves: usize) -> Self {
        let leaves = leaves.next_power_of_two();
        Self { nodes: vec![Vec::new(); 2 * leaves], leaves, scratch: Vec::new() }
    }

    /// The rooms of a leaf; none where it takes nothing more.
    fn set(&mut self, leaf: usize, rooms: &[Load]) {
        let mut node = self.leaves + leaf;
        let before = std::mem::replace(&mut self.nodes[node], rooms.to_vec());
        while node > 1 {
            node /= 2;
            // What was covered here, and is, changes nothing here or above.
            let known = &self.nodes[node];
            let matters = |room| !known.iter().any(|other| covers(other, room));
            if !before.iter().any(|room| known.contains(room)) && !rooms.iter().any(matters) {
                return;
            }
            let best = &mut self.scratch;
            best.clear();
            let (mut left, mut right) = (&self.nodes[2 * node][..], &self.nodes[2 * node + 1][..]);
            while let Some(room) = next_of(&mut left, &mut right) {
                // Only an earlier one can cover it, and where two parts are used, the last of them does if any.
                if !best.iter().rev().any(|other| covers(other, &room)) {
                    best.push(room);
                }
            }
            if *best == self.nodes[node] {
                return;
            }
            std::mem::swap(best, &mut self.nodes[node]);
        }
    }

    fn fits(&self, node: usize, need: &Load) -> bool {
        self.nodes[node].iter().any(|room| covers(room, need))
    }

    /// The first leaf from `from` on that has room.
    fn first(&self, from: usize, need: &Load) -> Option<usize> {
        let mut node = self.leaves + from;
        loop {
            while !self.fits(node, need) {
                // Up from right children, then to the right.
                node >>= node.trailing_ones();
                if node == 0 {
                    return None;
                }
                node += 1;
            }
            if node >= self.leaves {
                return Some(node - self.leaves);
            }
            node *= 2;
        }
    }

    /// The last leaf that has room.
    fn last(&self, need: &Load) -> Option<usize> {
        let mut node = 1;
        loop {
            while !self.fits(node, need) {
                // Up from left children, then to the left.
                node >>= node.trailing_zeros();
                if node == 1 {
                    return None;
                }
                node -= 1;
            }
            if node >= self.leaves {
                return Some(node - self.leaves);
            }
            node = 2 * node + 1;
        }
    }
}

/// Each item into the first open sequence with room.
pub fn first_fit(loads: &[Load], limits: &Limits) -> Packing {
    if has_parts(loads) { first_fit_of_parts(loads, limits) } else { first_fit_of_one(loads, limits) }
}

fn first_fit_of_parts(loads: &[Load], limits: &Limits) -> Packing {
    let mut tree = Tree::new(loads.len());
    let mut used: Vec<Used> = Vec::new();
    let mut bin_of = Vec::with_capacity(loads.len());
    for load in loads {
        let bin = tree.first(0, load).unwrap_or(used.len());
        if bin == used.len() {
            used.push(Used::default());
        }
        let now = &mut used[bin];
        now.add(load);
        let left: Load = std::array::from_fn(|part| limits.capacity[part] - now.load[part]);
        tree.set(bin, if now.items < limits.max_items { std::slice::from_ref(&left) } else { &[] });
        bin_of.push(bin as u32);
    }
    Packing::from_bins(&bin_of, used.len())
}

fn first_fit_of_one(loads: &[Load], limits: &Limits) -> Packing {
    let leaves = loads.len().next_power_of_two().max(1);
    // tree[1] is the root; a node holds the largest room beneath it. Sequences not yet opened have the whole capacity.
    let mut tree = vec![limits.capacity[0]; 2 * leaves];
    let mut items = vec![0; loads.len()];
    let mut bin_of = Vec::with_capacity(loads.len());
    let mut opened = 0;
    for load in loads {
        let bin = first_with_room(&tree, leaves, load[0]);
        items[bin] += 1;
        opened = opened.max(bin + 1);
        let mut node = leaves + bin;
        tree[node] = if items[bin] >= limits.max_items { 0 } else { tree[node] - load[0] };
        while node > 1 {
            node /= 2;
            tree[node] = tree[2 * node].max(tree[2 * node + 1]);
        }
        bin_of.push(bin as u32);
    }
    Packing::from_bins(&bin_of, opened)
}

/// The first leaf with at least `need` room. One exists: there are as many leaves as items.
fn first_with_room(tree: &[u32], leaves: usize, need: u32) -> usize {
    let mut node = leaves;
    // Climb until a subtree has room, then go down its left-most way.
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
    if has_parts(loads) {
        best_fit_among(PartedRooms::new(limits), loads, limits, order)
    } else {
        best_fit_among(PlainRooms::new(limits), loads, limits, order)
    }
}

/// Open sequences by their room in the first part.
trait Rooms {
    /// Takes out the sequence with the least room that takes the item; of those, the one that came last.
    fn take(&mut self, load: &Load) -> Option<u32>;

    /// A sequence with this much left.
    fn put(&mut self, bin: u32, left: Load);
}

fn best_fit_among(
    mut open: impl Rooms,
    loads: &[Load],
    limits: &Limits,
    order: &mut dyn Iterator<Item = usize>,
) -> Packing {
    let mut used: Vec<Used> = Vec::new();
    let mut bin_of = vec![0; loads.len()];
    for i in order {
        let load = &loads[i];
        let bin = open.take(load).unwrap_or(used.len() as u32);
        if bin as usize == used.len() {
            used.push(Used::default());
        }
        let now = &mut used[bin as usize];
        now.add(load);
        bin_of[i] = bin;
        if now.load[0] < limits.capacity[0] && now.items < limits.max_items {
            open.put(bin, std::array::from_fn(|part| limits.capacity[part] - now.load[part]));
        }
    }
    Packing::from_bins(&bin_of, used.len())
}

/// For loads of one part.
struct PlainRooms {
    by_room: Vec<Vec<u32>>,
    /// A bit for each room that has any.
    any: Vec<u64>,
}

impl PlainRooms {
    fn new(limits: &Limits) -> Self {
        let capacity = limits.capacity[0] as usize;
        Self { by_room: vec![Vec::new(); capacity + 1], any: vec![0; capacity / 64 + 1] }
    }
}

impl Rooms for PlainRooms {
    #[inline]
    fn take(&mut self, load: &Load) -> Option<u32> {
        let need = load[0] as usize;
        let mut word = need / 64;
        let mut bits = self.any[word] & (u64::MAX << (need % 64));
        while bits == 0 {
            word += 1;
            bits = *self.any.get(word)?;
        }
        let room = word * 64 + bits.trailing_zeros() as usize;
        let bin = self.by_room[room].pop();
        if self.by_room[room].is_empty() {
            self.any[word] &= !(1 << (room % 64));
        }
        bin
    }

    #[inline]
    fn put(&mut self, bin: u32, left: Load) {
        let room = left[0] as usize;
        self.by_room[room].push(bin);
        self.any[room / 64] |= 1 << (room % 64);
    }
}

/// For loads of several parts: which room has one with enough of the others, and there, which one.
struct PartedRooms {
    by_room: Vec<Peers>,
    rooms: Tree,
}

/// Sequences with the same room in the first part, in the order in which they came, and what they have left of the
/// others.
struct Peers {
    bins: Vec<(u32, Load)>,
    left: Tree,
}

impl Peers {
    fn put(&mut self, bin: u32, left: Load) {
        if self.bins.len() == self.left.leaves {
            // Those that are gone make room first, so that each is moved a bounded number of times.
            let tree = &self.left;
            let mut place = 0..;
            self.bins.retain(|_| place.next().is_some_and(|place| !tree.nodes[tree.leaves + place].is_empty()));
            self.left = Tree::new(2 * self.bins.len() + 1);
            for (place, (_, left)) in self.bins.iter().enumerate() {
                self.left.set(place, std::slice::from_ref(left));
            }
        }
        self.left.set(self.bins.len(), std::slice::from_ref(&left));
        self.bins.push((bin, left));
    }
}

impl PartedRooms {
    fn new(limits: &Limits) -> Self {
        let rooms = limits.capacity[0] as usize + 1;
        let peers = || Peers { bins: Vec::new(), left: Tree::new(1) };
        Self { by_room: std::iter::repeat_with(peers).take(rooms).collect(), rooms: Tree::new(rooms) }
    }
}

impl Rooms for PartedRooms {
    fn take(&mut self, load: &Load) -> Option<u32> {
        let need = [0, load[1], load[2], load[3]];
        let room = self.rooms.first(load[0] as usize, &need)?;
        let peers = &mut self.by_room[room];
        let place = peers.left.last(&need)?;
        peers.left.set(place, &[]);
        self.rooms.set(room, &peers.left.nodes[1]);
        Some(peers.bins[place].0)
    }

    fn put(&mut self, bin: u32, left: Load) {
        let room = left[0] as usize;
        let peers = &mut self.by_room[room];
        peers.put(bin, [0, left[1], left[2], left[3]]);
        self.rooms.set(room, &peers.left.nodes[1]);
    }
}
