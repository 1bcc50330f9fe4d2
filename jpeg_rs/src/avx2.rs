//! The inverse transforms in AVX2, and the search for 0xFF: the same bits as the plain forms, some ten times as fast.
//! In: what those take. All `unsafe` of this decoder is here and where it is called.

use std::arch::x86_64::*;

use crate::block::Square;
use crate::idct::{BETWEEN, Divisors, FACTOR_BITS, full::*, small};

const fn pair(low: i16, high: i16) -> i32 {
    low as u16 as i32 | (high as i32) << 16
}

#[target_feature(enable = "avx2")]
fn load(from: &[i16], slot: usize) -> __m256i {
    let from: &[i16; 16] = from[16 * slot..16 * slot + 16].try_into().unwrap_or(&[0; 16]);
    // SAFETY: sixteen values.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// Two rows of the block, multiplied.
#[target_feature(enable = "avx2")]
fn two_rows(block: &Square, divisors: &Divisors, slot: usize) -> __m256i {
    _mm256_mullo_epi16(load(block, slot), load(divisors, slot))
}

/// (a, b) in the two lanes → pairs a b in both, places 0 to 3 in the lower.
#[target_feature(enable = "avx2")]
fn pairs(ab: __m256i) -> __m256i {
    let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    _mm256_shuffle_epi8(_mm256_permute4x64_epi64::<0b11_01_10_00>(ab), order)
}

/// One pass over eight columns: rows (0, 4), (1, 5), (2, 6), (3, 7) in, eight sums of columns 0 to 7 out, not yet
/// shifted.
#[target_feature(enable = "avx2")]
fn eight(r04: __m256i, r15: __m256i, r26: __m256i, r37: __m256i, round: i32) -> [__m256i; 8] {
    let by = |v, low, high| _mm256_madd_epi16(v, _mm256_set1_epi32(pair(low, high)));
    let (r0, r4) = (_mm256_castsi256_si128(r04), _mm256_extracti128_si256::<1>(r04));
    let wide = |v| _mm256_slli_epi32::<{ FACTOR_BITS as i32 }>(_mm256_cvtepi16_epi32(v));
    let round = _mm256_set1_epi32(round);
    let sum = _mm256_add_epi32(wide(_mm_add_epi16(r0, r4)), round);
    let difference = _mm256_add_epi32(wide(_mm_sub_epi16(r0, r4)), round);
    let p26 = pairs(r26);
    let two = by(p26, C0_541, C0_541 - C1_847);
    let three = by(p26, C0_541 + C0_765, C0_541);
    let outer = [
        _mm256_add_epi32(sum, three),
        _mm256_add_epi32(difference, two),
        _mm256_sub_epi32(difference, two),
        _mm256_sub_epi32(sum, three),
    ];
    let r17 = _mm256_blend_epi32::<0xF0>(r15, r37);
    let r35 = _mm256_blend_epi32::<0xF0>(r37, r15);
    let r53 = _mm256_permute4x64_epi64::<0b01_00_11_10>(r35);
    let sums = pairs(_mm256_add_epi16(r17, r53));
    let (p17, p35) = (pairs(r17), pairs(r35));
    let b = by(sums, C1_175 - C0_390, C1_175);
    let a = by(sums, C1_175, C1_175 - C1_961);
    let odd = [
        _mm256_add_epi32(by(p17, C1_501 - C0_899, -C0_899), b),
        _mm256_add_epi32(by(p35, C3_072 - C2_562, -C2_562), a),
        _mm256_add_epi32(by(p35, -C2_562, C2_053 - C2_562), b),
        _mm256_add_epi32(by(p17, -C0_899, C0_298 - C0_899), a),
    ];
    [
        _mm256_add_epi32(outer[0], odd[0]),
        _mm256_add_epi32(outer[1], odd[1]),
        _mm256_add_epi32(outer[2], odd[2]),
        _mm256_add_epi32(outer[3], odd[3]),
        _mm256_sub_epi32(outer[3], odd[3]),
        _mm256_sub_epi32(outer[2], odd[2]),
        _mm256_sub_epi32(outer[1], odd[1]),
        _mm256_sub_epi32(outer[0], odd[0]),
    ]
}

/// Eight rows of sums, shifted, as 16 bits, turned: columns (0, 4), (1, 5), (2, 6), (3, 7).
#[target_feature(enable = "avx2")]
fn turn<const BITS: i32>(rows: [__m256i; 8]) -> [__m256i; 4] {
    let [r0, r1, r2, r3, r4, r5, r6, r7] = rows.map(|r| _mm256_srai_epi32::<BITS>(r));
    // Rows n and n + 4 side by side, columns 0 to 3 in the lower lane.
    let (a, b) = (_mm256_packs_epi32(r0, r4), _mm256_packs_epi32(r1, r5));
    let (c, d) = (_mm256_packs_epi32(r2, r6), _mm256_packs_epi32(r3, r7));
    let (ab, ab4) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
    let (cd, cd4) = (_mm256_unpacklo_epi16(c, d), _mm256_unpackhi_epi16(c, d));
    let (near, near4) = (_mm256_unpacklo_epi32(ab, cd), _mm256_unpacklo_epi32(ab4, cd4));
    let (far, far4) = (_mm256_unpackhi_epi32(ab, cd), _mm256_unpackhi_epi32(ab4, cd4));
    [
        _mm256_unpacklo_epi64(near, near4),
        _mm256_unpackhi_epi64(near, near4),
        _mm256_unpacklo_epi64(far, far4),
        _mm256_unpackhi_epi64(far, far4),
    ]
}

/// Square of 8.
#[target_feature(enable = "avx2")]
pub fn full(block: &Square, divisors: &Divisors, out: &mut [u8], stride: usize) {
    const FIRST: i32 = (FACTOR_BITS - BETWEEN) as i32;
    const SECOND: i32 = (FACTOR_BITS + BETWEEN + 3) as i32;
    let raw = [load(block, 0), load(block, 1), load(block, 2), load(block, 3)];
    // All rows but the first.
    let below = _mm256_permute2x128_si256::<0x81>(raw[0], raw[0]);
    let any = _mm256_or_si256(_mm256_or_si256(below, raw[1]), _mm256_or_si256(raw[2], raw[3]));
    let [c04, c15, c26, c37] = if _mm256_testz_si256(any, any) == 1 {
        let row = _mm256_slli_epi16::<{ BETWEEN as i32 }>(two_rows(block, divisors, 0));
        let row = _mm256_permute4x64_epi64::<0b01_01_00_00>(row);
        [
            _mm256_shuffle_epi8(row, _mm256_set1_epi16(0x0100)),
            _mm256_shuffle_epi8(row, _mm256_set1_epi16(0x0302)),
            _mm256_shuffle_epi8(row, _mm256_set1_epi16(0x0504)),
            _mm256_shuffle_epi8(row, _mm256_set1_epi16(0x0706)),
        ]
    } else {
        let r = |slot| two_rows(block, divisors, slot);
        turn::<FIRST>(eight(r(0), r(1), r(2), r(3), 1 << (FIRST - 1)))
    };
    let [r04, r15, r26, r37] = turn::<SECOND>(eight(c04, c15, c26, c37, 1 << (SECOND - 1)));
    let middle = _mm256_set1_epi8(-128);
    let upper = _mm256_xor_si256(_mm256_packs_epi16(r04, r15), middle);
    let lower = _mm256_xor_si256(_mm256_packs_epi16(r26, r37), middle);
    let rows = [
        _mm256_extract_epi64::<0>(upper),
        _mm256_extract_epi64::<1>(upper),
        _mm256_extract_epi64::<0>(lower),
        _mm256_extract_epi64::<1>(lower),
        _mm256_extract_epi64::<2>(upper),
        _mm256_extract_epi64::<3>(upper),
        _mm256_extract_epi64::<2>(lower),
        _mm256_extract_epi64::<3>(lower),
    ];
    let out = &mut out[..7 * stride + 8];
    for (y, row) in rows.into_iter().enumerate() {
        out[y * stride..y * stride + 8].copy_from_slice(&row.to_le_bytes());
    }
}

/// Rows by their number.
#[target_feature(enable = "avx2")]
fn row(rows: [__m256i; 4], n: usize) -> __m128i {
    let both = rows[n % 4];
    if n < 4 { _mm256_castsi256_si128(both) } else { _mm256_extracti128_si256::<1>(both) }
}

/// Square of 4.
#[target_feature(enable = "avx2")]
pub fn half(block: &Square, divisors: &Divisors, out: &mut [u8], stride: usize) {
    const FIRST: i32 = (FACTOR_BITS - BETWEEN + 1) as i32;
    const SECOND: i32 = (FACTOR_BITS + BETWEEN + 4) as i32;
    const WIDE: i32 = (FACTOR_BITS + 1) as i32;
    let raw = [load(block, 0), load(block, 1), load(block, 2), load(block, 3)];
    let any = _mm256_or_si256(_mm256_or_si256(raw[1], raw[2]), raw[3]);
    let [r0, r1, r2, r3] = if _mm256_testz_si256(any, any) == 1 {
        [_mm256_castsi256_si128(_mm256_slli_epi16::<{ BETWEEN as i32 }>(two_rows(block, divisors, 0))); 4]
    } else {
        let by = |v, low, high| _mm256_madd_epi16(v, _mm256_set1_epi32(pair(low, high)));
        let both = [0, 1, 2, 3].map(|slot| two_rows(block, divisors, slot));
        let even = _mm256_cvtepi16_epi32(row(both, 0));
        let even = _mm256_add_epi32(_mm256_slli_epi32::<WIDE>(even), _mm256_set1_epi32(1 << (FIRST - 1)));
        let p26 = pairs(both[2]);
        let p13 = pairs(_mm256_permute2x128_si256::<0x20>(both[1], both[3]));
        let p57 = pairs(_mm256_permute2x128_si256::<0x31>(both[1], both[3]));
        let two = by(p26, small::EVEN[0], small::EVEN[1]);
        let odd = |w: [i16; 4]| _mm256_add_epi32(by(p13, w[0], w[1]), by(p57, w[2], w[3]));
        let (outer, inner) = (odd(small::OUTER), odd(small::INNER));
        let (high, low) = (_mm256_add_epi32(even, two), _mm256_sub_epi32(even, two));
        let shift = |v| _mm256_srai_epi32::<FIRST>(v);
        let near = _mm256_packs_epi32(shift(_mm256_add_epi32(high, outer)), shift(_mm256_add_epi32(low, inner)));
        let far = _mm256_packs_epi32(shift(_mm256_sub_epi32(low, inner)), shift(_mm256_sub_epi32(high, outer)));
        let near = _mm256_permute4x64_epi64::<0b11_01_10_00>(near);
        let far = _mm256_permute4x64_epi64::<0b11_01_10_00>(far);
        [
            _mm256_castsi256_si128(near),
            _mm256_extracti128_si256::<1>(near),
            _mm256_castsi256_si128(far),
            _mm256_extracti128_si256::<1>(far),
        ]
    };
    // Columns of four, two to a vector.
    let (a, b) = (_mm_unpacklo_epi16(r0, r1), _mm_unpacklo_epi16(r2, r3));
    let (c, d) = (_mm_unpackhi_epi16(r0, r1), _mm_unpackhi_epi16(r2, r3));
    let (c01, c23) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
    let (c45, c67) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
    let by = |v, low, high| _mm_madd_epi16(v, _mm_set1_epi32(pair(low, high)));
    let even = _mm_add_epi32(_mm_slli_epi32::<WIDE>(_mm_cvtepi16_epi32(c01)), _mm_set1_epi32(1 << (SECOND - 1)));
    let two = by(_mm_unpacklo_epi16(c23, c67), small::EVEN[0], small::EVEN[1]);
    let (p13, p57) = (_mm_unpackhi_epi16(c01, c23), _mm_unpackhi_epi16(c45, c67));
    let odd = |w: [i16; 4]| _mm_add_epi32(by(p13, w[0], w[1]), by(p57, w[2], w[3]));
    let (outer, inner) = (odd(small::OUTER), odd(small::INNER));
    let (high, low) = (_mm_add_epi32(even, two), _mm_sub_epi32(even, two));
    let shift = |v| _mm_srai_epi32::<SECOND>(v);
    let left = _mm_packs_epi32(shift(_mm_add_epi32(high, outer)), shift(_mm_add_epi32(low, inner)));
    let right = _mm_packs_epi32(shift(_mm_sub_epi32(low, inner)), shift(_mm_sub_epi32(high, outer)));
    let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let samples = _mm_shuffle_epi8(_mm_packs_epi16(left, right), order);
    let samples = _mm_xor_si128(samples, _mm_set1_epi8(-128));
    let rows = [
        _mm_extract_epi32::<0>(samples),
        _mm_extract_epi32::<1>(samples),
        _mm_extract_epi32::<2>(samples),
        _mm_extract_epi32::<3>(samples),
    ];
    let out = &mut out[..3 * stride + 4];
    for (y, row) in rows.into_iter().enumerate() {
        out[y * stride..y * stride + 4].copy_from_slice(&row.to_le_bytes());
    }
}

/// Square of 2.
#[target_feature(enable = "avx2")]
pub fn quarter(block: &Square, divisors: &Divisors, out: &mut [u8], stride: usize) {
    const FIRST: i32 = (FACTOR_BITS - BETWEEN + 2) as i32;
    const SECOND: i32 = (FACTOR_BITS + BETWEEN + 5) as i32;
    const WIDE: i32 = (FACTOR_BITS + 2) as i32;
    let [w1, w3, w5, w7] = small::PAIR;
    let by = |v, low, high| _mm256_madd_epi16(v, _mm256_set1_epi32(pair(low, high)));
    let both = [0, 1, 2, 3].map(|slot| two_rows(block, divisors, slot));
    let even = _mm256_slli_epi32::<WIDE>(_mm256_cvtepi16_epi32(row(both, 0)));
    let even = _mm256_add_epi32(even, _mm256_set1_epi32(1 << (FIRST - 1)));
    let p13 = pairs(_mm256_permute2x128_si256::<0x20>(both[1], both[3]));
    let p57 = pairs(_mm256_permute2x128_si256::<0x31>(both[1], both[3]));
    let odd = _mm256_add_epi32(by(p13, w1, w3), by(p57, w5, w7));
    let upper = _mm256_srai_epi32::<FIRST>(_mm256_add_epi32(even, odd));
    let lower = _mm256_srai_epi32::<FIRST>(_mm256_sub_epi32(even, odd));
    // Columns 0 to 3 of both rows, then 4 to 7; the odd ones weighted and summed.
    let columns = _mm256_packs_epi32(upper, lower);
    let weights = _mm256_setr_epi16(0, w1, 0, w3, 0, w1, 0, w3, 0, w5, 0, w7, 0, w5, 0, w7);
    let sums = _mm256_madd_epi16(columns, weights);
    let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
    let sums = _mm_hadd_epi32(sums, sums);
    let first = [_mm256_castsi256_si128(upper), _mm256_castsi256_si128(lower)].map(|v| _mm_cvtsi128_si32(v));
    let odd = [_mm_extract_epi32::<0>(sums), _mm_extract_epi32::<1>(sums)];
    for y in 0..2 {
        let even = first[y].wrapping_shl(WIDE as u32).wrapping_add(1 << (SECOND - 1));
        let sample = |v: i32| ((v >> SECOND).clamp(-128, 127) + 128) as u8;
        out[y * stride..y * stride + 2]
            .copy_from_slice(&[sample(even.wrapping_add(odd[y])), sample(even.wrapping_sub(odd[y]))]);
    }
}

/// Copies bytes up to the first 0xFF, or to the last whole vector. Returns how many were copied, and whether 0xFF
/// follows.
#[target_feature(enable = "avx2")]
pub fn copy_clean(from: &[u8], to: &mut [u8]) -> (usize, bool) {
    let whole = from.len().min(to.len()) & !31;
    let mut at = 0;
    while at < whole {
        // SAFETY: both slices hold 32 bytes from `at` on, since `whole` is a multiple of 32 that is in both.
        let clean = unsafe {
            let v = _mm256_loadu_si256(from.as_ptr().add(at).cast());
            _mm256_storeu_si256(to.as_mut_ptr().add(at).cast(), v);
            _mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_set1_epi8(-1)))
        };
        if clean != 0 {
            return (at + clean.trailing_zeros() as usize, true);
        }
        at += 32;
    }
    (whole, false)
}
