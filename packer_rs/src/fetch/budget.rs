//! How many bytes of containers may be at hand: spans of remote objects on their way or here, and decoded pages of
//! Parquet. In: sizes. Out: yes or no. One count for each source, a part of the renderer's memory; apart, since it has
//! two users.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes counted, of as many as are allowed.
#[derive(Default)]
pub struct Budget {
    used: AtomicUsize,
    bound: AtomicUsize,
}

/// Bytes that are counted until this is dropped.
pub struct Counted {
    bytes: usize,
    budget: Arc<Budget>,
}

impl Budget {
    /// Sets how many bytes are allowed.
    pub fn allow(&self, bound: usize) {
        self.bound.store(bound, Ordering::Relaxed);
    }

    /// Bytes counted now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether more is counted than allowed.
    pub fn exceeded(&self) -> bool {
        self.used() > self.bound.load(Ordering::Relaxed)
    }

    /// Counts bytes that fit; None where they do not.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Option<Counted> {
        let fits = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= self.bound.load(Ordering::Relaxed));
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Counted { bytes, budget: self.clone() })
    }

    /// Counts bytes that are needed now, whatever the bound says: those of one thread at a time.
    pub fn need(self: &Arc<Self>, bytes: usize) -> Counted {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Counted { bytes, budget: self.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
