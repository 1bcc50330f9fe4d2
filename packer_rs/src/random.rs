//! Counter-based random numbers: a draw is a pure function of its key and counter, never of who asks or when.
//!
//! Philox 4×32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, 2011). Only integers, + − × ÷ √ and the
//! pure-Rust `libm` are used, so every machine draws the same bits.

const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Philox 4×32 with ten rounds.
#[inline]
pub fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    for _ in 0..10 {
        let (a, b) = (MULTIPLIERS[0] * u64::from(c0), MULTIPLIERS[1] * u64::from(c2));
        (c0, c1, c2, c3) = ((b >> 32) as u32 ^ c1 ^ k0, b as u32, (a >> 32) as u32 ^ c3 ^ k1, a as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// Derives a key from a key and three numbers.
#[inline]
pub fn derive(key: u64, a: u64, b: u64, purpose: u32) -> u64 {
    let first = philox(key, [a as u32, (a >> 32) as u32, purpose, 0]);
    let mixed = u64::from(first[0]) | u64::from(first[1]) << 32;
    let second = philox(mixed, [b as u32, (b >> 32) as u32, purpose, 1]);
    u64::from(second[0]) | u64::from(second[1]) << 32
}

/// A uniform number in the open interval (0, 1) from 32 random bits.
#[inline]
pub fn unit(bits: u32) -> f64 {
    (f64::from(bits) + 0.5) * (1.0 / 4_294_967_296.0)
}

/// A uniform integer in `0..n` from 32 random bits; `n` at most 2³², bias below n / 2³².
#[inline]
pub fn below(bits: u32, n: u64) -> u64 {
    (u64::from(bits) * n) >> 32
}

/// The distribution function of the standard normal.
fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// A truncated normal, drawn by inverting its distribution function: 4,096 exact knots, straight lines between.
#[derive(Clone, Debug)]
pub struct TruncatedNormal {
    knots: Vec<f64>,
}

impl TruncatedNormal {
    const KNOTS: usize = 4096;

    /// N(mean, std²) cut to [low, high]; all mass at the nearer end where the interval's own mass underflows.
    pub fn new(mean: f64, std: f64, low: f64, high: f64) -> Self {
        // Mirror an interval right of the mean to the left, where the distribution function keeps its precision.
        let mirrored = low > mean;
        let (a, b) = if mirrored { (2.0 * mean - high, 2.0 * mean - low) } else { (low, high) };
        let (pa, pb) = (normal_cdf((a - mean) / std), normal_cdf((b - mean) / std));
        let knot = |i: usize| {
            if pb - pa <= 0.0 {
                return b;
            }
            let p = pa + (pb - pa) * i as f64 / Self::KNOTS as f64;
            let (mut left, mut right) = (a, b);
            for _ in 0..60 {
                let middle = 0.5 * (left + right);
                if normal_cdf((middle - mean) / std) < p {
                    left = middle;
                } else {
                    right = middle;
                }
            }
            0.5 * (left + right)
        };
        let mut knots: Vec<f64> = (0..=Self::KNOTS).map(knot).collect();
        if mirrored {
            knots.iter_mut().for_each(|x| *x = 2.0 * mean - *x);
            knots.reverse();
        }
        Self { knots }
    }

    /// The value at probability `p` in (0, 1).
    #[inline]
    pub fn at(&self, p: f64) -> f64 {
        let x = p * Self::KNOTS as f64;
        let i = (x as usize).min(Self::KNOTS - 1);
        let (left, right) = (self.knots[i], self.knots[i + 1]);
        left + (right - left) * (x - i as f64)
    }
}

/// Beta(alpha, beta) by Jöhnk's rejection, on a counter of its own; both parameters at most about 3.
pub fn beta(key: u64, row: u64, purpose: u32, alpha: f64, beta: f64) -> f64 {
    for attempt in 0..64 {
        let bits = philox(key, [row as u32, (row >> 32) as u32, purpose, attempt]);
        for pair in [[bits[0], bits[1]], [bits[2], bits[3]]] {
            let x = libm::pow(unit(pair[0]), 1.0 / alpha);
            let y = libm::pow(unit(pair[1]), 1.0 / beta);
            if x + y <= 1.0 && x + y > 0.0 {
                return x / (x + y);
            }
        }
    }
    alpha / (alpha + beta)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_answers() {
        // Known-answer tests of Random123, philox4x32 with ten rounds.
        assert_eq!(philox(0, [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(u64::MAX, [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(0x299f_31d0_a409_3822, pi), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn truncated_normal_follows_its_distribution() {
        for (mean, std, low, high) in [(-0.5, 1.0, -1.0, 1.0), (3.0, 0.5, -1.0, 1.0), (0.0, 1.0, -2.0, 2.0)] {
            let t = TruncatedNormal::new(mean, std, low, high);
            let cdf = |x: f64| {
                let at = |x: f64| normal_cdf((x - mean) / std);
                (at(x) - at(low)) / (at(high) - at(low))
            };
            for i in 1..1000 {
                let p = f64::from(i) / 1000.0;
                let x = t.at(p);
                assert!((low..=high).contains(&x));
                // Straight lines between knots: never off by more than half a knot.
                assert!((cdf(x) - p).abs() < 0.5 / 4096.0, "mean {mean}: {p} gives {x}");
            }
        }
        assert!((TruncatedNormal::new(40.0, 0.1, -1.0, 1.0).at(0.5) - 1.0).abs() < 1e-9);
    }
}
