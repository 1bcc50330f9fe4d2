//! Counter-based random numbers: a draw is a pure function of its key and counter, never of who asks or when.
//!
//! Philox 4×32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, 2011). Only integers, + − × ÷ √ and
//! the pure-Rust `libm` are used, so every machine draws the same bits.

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
}
