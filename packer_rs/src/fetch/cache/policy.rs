//! Which spans a full cache keeps. In: spans, their bytes and when each is next wanted. Out: what has to go for a new one,
//! or that the new one is not worth it. Apart, since this is arithmetic and knows of no disk.
//!
//! What is wanted last goes first, and what is wanted later than all that is held is not taken in at all (Bélády, *A
//! study of replacement algorithms for a virtual-storage computer*, 1966, with bypass). Times are images of the run.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

struct Entry {
    bytes: u64,
    next: u64,
}

/// See the module.
pub struct Policy<K> {
    entries: HashMap<K, Entry>,
    by_next: BTreeSet<(u64, K)>,
}

impl<K: Copy + Eq + Hash + Ord> Policy<K> {
    /// Nothing is held.
    pub fn new() -> Self {
        Self { entries: HashMap::new(), by_next: BTreeSet::new() }
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether this one is held.
    pub fn holds(&self, key: K) -> bool {
        self.entries.contains_key(&key)
    }

    /// All that are held.
    pub fn keys(&self) -> impl Iterator<Item = K> + '_ {
        self.entries.keys().copied()
    }

    /// Holds a span that is next wanted at `next`, or learns that of one that is held.
    pub fn set(&mut self, key: K, bytes: u64, next: u64) {
        if let Some(old) = self.entries.insert(key, Entry { bytes, next }) {
            self.by_next.remove(&(old.next, key));
        }
        self.by_next.insert((next, key));
    }

    /// Lets go of a span. Its bytes, where it was held.
    pub fn remove(&mut self, key: K) -> Option<u64> {
        let old = self.entries.remove(&key)?;
        self.by_next.remove(&(old.next, key));
        Some(old.bytes)
    }

    /// Asks anew about those whose time was before `now`.
    pub fn refresh(&mut self, now: u64, mut next: impl FnMut(K) -> u64) {
        let past: Vec<_> = self.by_next.iter().take_while(|&&(was, _)| was <= now).copied().collect();
        for (was, key) in past {
            let next = next(key);
            if next != was
                && let Some(entry) = self.entries.get_mut(&key)
            {
                self.by_next.remove(&(was, key));
                entry.next = next;
                self.by_next.insert((next, key));
            }
        }
    }

    /// What has to go so that `bytes` more find room that are wanted at `next`. None where something would go that is
    /// wanted no later.
    pub fn victims(&self, bytes: u64, next: u64) -> Option<Vec<K>> {
        let (mut found, mut freed) = (Vec::new(), 0);
        for &(theirs, key) in self.by_next.iter().rev() {
            if freed >= bytes {
                break;
            }
            if theirs <= next {
                return None;
            }
            freed += self.entries.get(&key).map_or(0, |entry| entry.bytes);
            found.push(key);
        }
        (freed >= bytes).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How many of these uses find nothing, with room for `room` of equal size, by this module.
    fn ours(uses: &[u8], room: u64) -> usize {
        let mut policy = Policy::new();
        let next = |key: u8, after: usize| {
            uses[after + 1..].iter().position(|&use_| use_ == key).map_or(u64::MAX, |at| (after + 1 + at) as u64)
        };
        let mut missed = 0;
        for (now, &key) in uses.iter().enumerate() {
            let later = next(key, now);
            if policy.holds(key) {
                policy.set(key, 1, later);
                continue;
            }
            missed += 1;
            let need = (policy.len() as u64 + 1).saturating_sub(room);
            if let Some(gone) = policy.victims(need, later) {
                for gone in gone {
                    policy.remove(gone);
                }
                policy.set(key, 1, later);
            }
            assert!(policy.len() as u64 <= room);
        }
        missed
    }

    /// The fewest that anyone can miss: all that could be held after each use, with how many were missed until then.
    fn least(uses: &[u8], room: usize) -> usize {
        let mut states: HashMap<u8, usize> = HashMap::from([(0, 0)]);
        for &key in uses {
            let mut after: HashMap<u8, usize> = HashMap::new();
            let mut come = |held: u8, missed: usize| {
                let least = after.entry(held).or_insert(missed);
                *least = (*least).min(missed);
            };
            for (held, missed) in states {
                let bit = 1 << key;
                if held & bit != 0 {
                    come(held, missed);
                    continue;
                }
                come(held, missed + 1);
                let with = held | bit;
                if with.count_ones() as usize <= room {
                    come(with, missed + 1);
                }
                for other in (0..8).filter(|&other| held & (1 << other) != 0) {
                    let with = with & !(1 << other);
                    if with.count_ones() as usize <= room {
                        come(with, missed + 1);
                    }
                }
            }
            states = after;
        }
        states.into_values().min().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn nobody_misses_fewer(uses in prop::collection::vec(0u8..6, 0..40), room in 0u64..5) {
            prop_assert_eq!(ours(&uses, room), least(&uses, room as usize));
        }

        #[test]
        fn room_is_made_of_what_is_wanted_last_and_no_more_than_is_needed(
            held in prop::collection::vec((1u64..9, 0u64..50), 0..20), bytes in 0u64..30, next in 0u64..50,
        ) {
            let mut policy = Policy::new();
            for (key, &(bytes, next)) in held.iter().enumerate() {
                policy.set(key, bytes, next);
            }
            let mut last: Vec<_> = (0..held.len()).collect();
            last.sort_by_key(|&key| std::cmp::Reverse((held[key].1, key)));
            let later: u64 = held.iter().filter(|one| one.1 > next).map(|one| one.0).sum();
            match policy.victims(bytes, next) {
                None => prop_assert!(later < bytes),
                Some(gone) => {
                    prop_assert_eq!(&gone[..], &last[..gone.len()]);
                    let freed = |gone: &[usize]| gone.iter().map(|&key| held[key].0).sum::<u64>();
                    prop_assert!(freed(&gone) >= bytes && gone.iter().all(|&key| held[key].1 > next));
                    prop_assert!(gone.is_empty() || freed(&gone[..gone.len() - 1]) < bytes);
                }
            }
        }

        #[test]
        fn what_is_past_is_asked_about_again(
            held in prop::collection::vec(0u64..50, 1..20), now in 0u64..60,
        ) {
            let mut policy = Policy::new();
            held.iter().enumerate().for_each(|(key, &next)| policy.set(key, 1, next));
            let mut asked = Vec::new();
            policy.refresh(now, |key| { asked.push(key); 100 + key as u64 });
            asked.sort_unstable();
            prop_assert!(asked.into_iter().eq((0..held.len()).filter(|&key| held[key] <= now)));
            prop_assert_eq!(policy.len(), held.len());
        }
    }
}
