//! Lengths → sequences. Takes integers and limits. Gives integers. May not know of images, nor of the plan that asks.
//!
//! | algorithm | looks at | used by |
//! |---|---|---|
//! | [`exact`] | a window of the oldest items | plan, `pack` |
//! | [`bins`]: first fit, best fit, best fit decreasing | all open sequences | plan, `pack` |
//! | [`baseline`]: next fit, shortest-pack-first on the histogram | one sequence; the histogram | `pack` |

pub mod baseline;
pub mod bins;
pub mod exact;

mod load;

use crate::error::Result;
pub use load::{Limits, Load, Packing, Used, check};

/// The algorithms of `navit_loader.pack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Exact fill, and best fit decreasing in its place where that takes fewer sequences.
    Auto,
    /// Head-first exact fill: see [`exact`].
    Exact,
    /// The first open sequence with room: the NaViT paper's.
    FirstFit,
    /// The fullest open sequence with room.
    BestFit,
    /// Best fit over the items from long to short.
    BestFitDecreasing,
    /// Shortest pack first on the histogram of lengths (Krell et al., 2021).
    Histogram,
    /// One open sequence.
    NextFit,
}

/// Packs all items at once.
pub fn pack(loads: &[Load], limits: &Limits, algorithm: Algorithm, lookahead: usize) -> Result<Packing> {
    check(loads, limits)?;
    Ok(match algorithm {
        Algorithm::Auto => fewest(loads, limits, lookahead),
        Algorithm::Exact => exact::pack(loads, limits, lookahead),
        Algorithm::FirstFit => bins::first_fit(loads, limits),
        Algorithm::BestFit => bins::best_fit(loads, limits),
        Algorithm::BestFitDecreasing => bins::best_fit_decreasing(loads, limits),
        Algorithm::Histogram => baseline::histogram(loads, limits),
        Algorithm::NextFit => baseline::next_fit(loads, limits),
    })
}

/// Exact fill keeps items near their places, so the other is tried only where that left a sequence too many.
fn fewest(loads: &[Load], limits: &Limits, lookahead: usize) -> Packing {
    let exact = exact::pack(loads, limits, lookahead);
    let tokens: u64 = loads.iter().map(|load| u64::from(load[0])).sum();
    if exact.len() as u64 <= tokens.div_ceil(u64::from(limits.capacity[0])) {
        return exact;
    }
    let sorted = bins::best_fit_decreasing(loads, limits);
    if sorted.len() < exact.len() { sorted } else { exact }
}

#[cfg(test)]
mod tests;
