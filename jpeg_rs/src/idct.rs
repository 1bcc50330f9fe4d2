//! Coefficients → samples, at full size and at the DCT scales 1/2, 1/4 and 1/8. In: a block and its divisors, both with
//! rows in the order `ROWS`. Out: a square of samples in a plane.
//!
//! The full transform is that of Loeffler, Ligtenberg and Moschytz (ICASSP 1989, figure 1) in fixed point; the others
//! leave out what a smaller square does not show. Widths, roundings, wrapping and saturation are those of
//! libjpeg-turbo's SIMD code, for hostile coefficients too: so either decoder gives the same samples. This is the plain
//! form; `avx2` has the fast one.

use crate::block::{ROWS, Square};

/// Divisors in the order of a block.
pub type Divisors = [i16; 64];

/// Bits after the point of the factors.
pub const FACTOR_BITS: u32 = 13;
/// Bits after the point between the passes.
pub const BETWEEN: u32 = 2;

/// A factor in fixed point.
pub const fn fix(value: f64) -> i16 {
    (value * (1 << FACTOR_BITS) as f64 + if value < 0.0 { -0.5 } else { 0.5 }) as i16
}

/// Factors of the full transform: cosines of the odd multiples of π/16 and their sums, times √2.
pub mod full {
    use super::fix;
    pub const C0_298: i16 = fix(0.298631336);
    pub const C0_390: i16 = fix(0.390180644);
    pub const C0_541: i16 = fix(0.541196100);
    pub const C0_765: i16 = fix(0.765366865);
    pub const C0_899: i16 = fix(0.899976223);
    pub const C1_175: i16 = fix(1.175875602);
    pub const C1_501: i16 = fix(1.501321110);
    pub const C1_847: i16 = fix(1.847759065);
    pub const C1_961: i16 = fix(1.961570560);
    pub const C2_053: i16 = fix(2.053119869);
    pub const C2_562: i16 = fix(2.562915447);
    pub const C3_072: i16 = fix(3.072711026);
}

/// Weights of inputs 1, 3, 5 and 7 (or 2 and 6) in the smaller transforms.
pub mod small {
    use super::fix;
    /// Into the even part of four.
    pub const EVEN: [i16; 2] = [fix(1.847759065), -fix(0.765366865)];
    /// Into the outer two of four.
    pub const OUTER: [i16; 4] = [fix(2.562915447), fix(0.899976223), -fix(0.601344887), -fix(0.509795579)];
    /// Into the inner two of four.
    pub const INNER: [i16; 4] = [fix(1.061594337), -fix(2.172734803), fix(1.451774981), -fix(0.211164243)];
    /// Into two.
    pub const PAIR: [i16; 4] = [fix(3.624509785), -fix(1.272758580), fix(0.850430095), -fix(0.720959822)];
}

fn descale(value: i32, bits: u32) -> i32 {
    value.wrapping_add(1 << (bits - 1)) >> bits
}

fn saturate(value: i32) -> i16 {
    value.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
}

fn sample(value: i32) -> u8 {
    (i32::from(saturate(value)).clamp(-128, 127) + 128) as u8
}

/// The sum of products of 16 bits.
fn dot<const N: usize>(values: [i16; N], weights: [i16; N]) -> i32 {
    values.iter().zip(weights).fold(0, |sum: i32, (&v, w)| sum.wrapping_add(i32::from(v) * i32::from(w)))
}

/// Rows of a block in their order, multiplied.
fn rows(block: &Square, divisors: &Divisors) -> [[i16; 8]; 8] {
    let mut out = [[0; 8]; 8];
    for (slot, &row) in ROWS.iter().enumerate() {
        for (x, to) in out[row].iter_mut().enumerate() {
            *to = block[8 * slot + x].wrapping_mul(divisors[8 * slot + x]);
        }
    }
    out
}

/// Whether all coefficients of these rows are zero.
fn blank(block: &Square, which: &[usize]) -> bool {
    ROWS.iter()
        .enumerate()
        .all(|(slot, row)| !which.contains(row) || block[8 * slot..8 * slot + 8].iter().all(|&v| v == 0))
}

/// One column or row of the full transform.
fn eight(v: [i16; 8], bits: u32) -> [i32; 8] {
    use full::*;
    let even = [v[0].wrapping_add(v[4]), v[0].wrapping_sub(v[4])].map(|s| i32::from(s) << FACTOR_BITS);
    let two = dot([v[2], v[6]], [C0_541, C0_541 - C1_847]);
    let three = dot([v[2], v[6]], [C0_541 + C0_765, C0_541]);
    let outer = [
        even[0].wrapping_add(three),
        even[1].wrapping_add(two),
        even[1].wrapping_sub(two),
        even[0].wrapping_sub(three),
    ];
    let sums = [v[7].wrapping_add(v[3]), v[5].wrapping_add(v[1])];
    let (a, b) = (dot(sums, [C1_175 - C1_961, C1_175]), dot(sums, [C1_175, C1_175 - C0_390]));
    let odd = [
        dot([v[7], v[1]], [-C0_899, C1_501 - C0_899]).wrapping_add(b),
        dot([v[5], v[3]], [-C2_562, C3_072 - C2_562]).wrapping_add(a),
        dot([v[5], v[3]], [C2_053 - C2_562, -C2_562]).wrapping_add(b),
        dot([v[7], v[1]], [C0_298 - C0_899, -C0_899]).wrapping_add(a),
    ];
    let mut out = [0; 8];
    for n in 0..4 {
        out[n] = descale(outer[n].wrapping_add(odd[n]), bits);
        out[7 - n] = descale(outer[n].wrapping_sub(odd[n]), bits);
    }
    out
}

/// One column or row of the transform to four.
fn four(v: [i16; 8], bits: u32) -> [i32; 4] {
    let even = i32::from(v[0]) << (FACTOR_BITS + 1);
    let two = dot([v[2], v[6]], small::EVEN);
    let odd = [v[1], v[3], v[5], v[7]];
    let (outer, inner) = (dot(odd, small::OUTER), dot(odd, small::INNER));
    let (high, low) = (even.wrapping_add(two), even.wrapping_sub(two));
    [high.wrapping_add(outer), low.wrapping_add(inner), low.wrapping_sub(inner), high.wrapping_sub(outer)]
        .map(|s| descale(s, bits))
}

/// One column or row of the transform to two; `first` is not cut to 16 bits.
fn two(first: i32, odd: [i16; 4], bits: u32) -> [i32; 2] {
    let (even, odd) = (first.wrapping_shl(FACTOR_BITS + 2), dot(odd, small::PAIR));
    [even.wrapping_add(odd), even.wrapping_sub(odd)].map(|s| descale(s, bits))
}

/// Square of 8.
pub fn full(block: &Square, divisors: &Divisors, out: &mut [u8], stride: usize) {
    let rows = rows(block, divisors);
    let flat = blank(block, &[1, 2, 3, 4, 5, 6, 7]);
    let mut between = [[0i16; 8]; 8];
    for x in 0..8 {
        let column = if flat {
            [rows[0][x].wrapping_shl(BETWEEN); 8]
        } else {
            eight(rows.map(|row| row[x]), FACTOR_BITS - BETWEEN).map(saturate)
        };
        for (row, v) in between.iter_mut().zip(column) {
            row[x] = v;
        }
    }
    for (to, row) in out.chunks_mut(stride).zip(between) {
        to[..8].copy_from_slice(&eight(row, FACTOR_BITS + BETWEEN + 3).map(sample));
    }
}

/// Square of 4.
pub fn half(block: &Square, divisors: &Divisors, out: &mut [u8], stride: usize) {
    let rows = rows(block, divisors);
    let flat = blank(block, &[1, 2, 3, 5, 6, 7]);
    let mut between = [[0i16; 8]; 4];
    for x in 0..8 {
        let column = if flat {
            [rows[0][x].wrapping_shl(BETWEEN); 4]
        } else {
            four(rows.map(|row| row[x]), FACTOR_BITS - BETWEEN + 1).map(saturate)
        };
        for (row, v) in between.iter_mut().zip(column) {
            row[x] = v;
        }
    }
    for (to, row) in out.chunks_mut(stride).zip(between) {
        to[..4].copy_from_slice(&four(row, FACTOR_BITS + BETWEEN + 4).map(sample));
    }
}

/// Square of 2.
pub fn quarter(block: &Square, divisors: &Divisors, out: &mut [u8], stride: usize) {
    let rows = rows(block, divisors);
    let columns = [0, 1, 3, 5, 7].map(|x: usize| {
        let odd = [rows[1][x], rows[3][x], rows[5][x], rows[7][x]];
        two(i32::from(rows[0][x]), odd, FACTOR_BITS - BETWEEN + 2)
    });
    for (y, to) in out.chunks_mut(stride).take(2).enumerate() {
        let odd = [1, 2, 3, 4].map(|n: usize| saturate(columns[n][y]));
        to[..2].copy_from_slice(&two(columns[0][y], odd, FACTOR_BITS + BETWEEN + 5).map(sample));
    }
}

/// A single sample: the mean.
pub fn eighth(dc: i16, divisor: i16) -> u8 {
    let mean = (i32::from(dc) * i32::from(divisor) + 4) >> 3;
    // Ten bits count, as in libjpeg-turbo's table.
    let mean = mean << 22 >> 22;
    (mean + 128).clamp(0, 255) as u8
}
