//! The inner loops of resizing, of laying pixels over a background, and of making floats of them, each in a plain form that
//! says what is meant and, on x86-64 with AVX2, in a form that is some ten times as fast and gives the same bits. In: slices. Out: slices. All `unsafe` of pixel arithmetic is in
//! this file and in `rgb` (colours).

use crate::pixels::taps::{BITS, GROUP, Taps};

/// Bits that the values between the two passes have after the point.
const BETWEEN: u32 = 6;
/// Bytes that may be read beyond the end of a row of pixels, and columns that are written beyond it.
pub const SLACK: usize = 64;
/// Rows that are turned at once.
pub const ROWS: usize = 16;

/// Whether the fast forms can be used on this machine.
pub fn fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Weighted sum of rows: column x of `out` = Σ weights[k] · rows[k · stride + x], for `len` columns.
///
/// `rows` holds `SLACK` bytes and `out` `SLACK` values more than that needs.
pub fn down(fast: bool, rows: &[u8], stride: usize, weights: &[i16], len: usize, out: &mut [i16]) {
    assert!(rows.len() >= (weights.len() - 1) * stride + len + SLACK && out.len() >= len + SLACK);
    #[cfg(target_arch = "x86_64")]
    if fast {
        // SAFETY: `fast` is only true where AVX2 was found; the lengths were checked above.
        unsafe { avx2::down(rows, stride, weights, len, out) };
        return;
    }
    let _ = fast;
    for (x, to) in out[..len].iter_mut().enumerate() {
        *to = ((column(&rows[x..], stride, weights) + (1 << (BITS - BETWEEN - 1))) >> (BITS - BETWEEN)) as i16;
    }
}

/// Bytes as values with bits after the point, as `down` gives them.
pub fn widen(bytes: &[u8], out: &mut [i16]) {
    for (to, &v) in out.iter_mut().zip(bytes) {
        *to = i16::from(v) << BETWEEN;
    }
}

/// As `down`, to whole bytes.
pub fn down_bytes(fast: bool, rows: &[u8], stride: usize, weights: &[i16], len: usize, out: &mut [u8]) {
    assert!(rows.len() >= (weights.len() - 1) * stride + len + SLACK && out.len() >= len + SLACK);
    #[cfg(target_arch = "x86_64")]
    if fast {
        // SAFETY: `fast` is only true where AVX2 was found; the lengths were checked above.
        unsafe { avx2::down_bytes(rows, stride, weights, len, out) };
        return;
    }
    let _ = fast;
    for (x, to) in out[..len].iter_mut().enumerate() {
        *to = ((column(&rows[x..], stride, weights) + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8;
    }
}

/// The weighted sum of one column.
fn column(rows: &[u8], stride: usize, weights: &[i16]) -> i32 {
    weights.iter().enumerate().map(|(k, &w)| i32::from(w) * i32::from(rows[k * stride])).sum()
}

/// Rows of values turned, so that sums along rows become sums of whole vectors: of each row, pixels 2 n and 2 n + 1 of
/// channel c go side by side to `out[((n · channels + c) · ROWS + row) · 2]`, for at least `pixels` of them.
///
/// Each row of `strip` has `pitch` values, channels innermost, `SLACK` more than that needs; so has `out`, for all
/// rows.
pub fn turn(fast: bool, strip: &[i16], pitch: usize, pixels: usize, channels: usize, out: &mut [i16]) {
    assert!(matches!(channels, 1 | 3) && pixels * channels + SLACK <= pitch);
    assert!(strip.len() >= ROWS * pitch && out.len() >= ROWS * (pixels * channels + SLACK));
    #[cfg(target_arch = "x86_64")]
    if fast {
        // SAFETY: `fast` is only true where AVX2 was found; the lengths were checked above.
        unsafe { avx2::turn(strip, pitch, pixels, channels, out) };
        return;
    }
    let _ = fast;
    for (row, values) in strip.chunks_exact(pitch).take(ROWS).enumerate() {
        for (x, pixel) in values.chunks_exact(channels).take(pixels.next_multiple_of(2)).enumerate() {
            for (c, &v) in pixel.iter().enumerate() {
                out[((x / 2 * channels + c) * ROWS + row) * 2 + x % 2] = v;
            }
        }
    }
}

/// Weighted sums along turned rows of `channels`: pixel i of channel c in row y, `out[y · stride + i]`, =
/// Σ weights of i · value starts of i − skip + k of it, for `height` rows, at most `ROWS`.
///
/// `turned` is long enough for every start plus `taps.width`; `stride` is as long as `taps.starts`, a multiple of
/// `GROUP`.
pub fn across(
    fast: bool,
    turned: &[i16],
    (channels, c): (usize, usize),
    taps: &Taps,
    skip: usize,
    (height, stride): (usize, usize),
    out: &mut [u8],
) {
    assert!(c < channels && skip <= taps.span.0 && skip.is_multiple_of(2) && taps.width.is_multiple_of(2));
    assert!(turned.len() >= (taps.span.1 - skip + taps.width) * channels * ROWS && taps.used <= taps.width);
    assert!(stride == taps.starts.len() && stride.is_multiple_of(GROUP) && taps.weights.len() >= stride * taps.width);
    assert!(height <= ROWS && out.len() >= height * stride);
    #[cfg(target_arch = "x86_64")]
    if fast {
        // SAFETY: `fast` is only true where AVX2 was found; every start lies in `taps.span`, and the lengths were
        // checked.
        unsafe { avx2::across(turned, (channels, c), taps, skip, (height, stride), out) };
        return;
    }
    let _ = fast;
    for (y, line) in out.chunks_exact_mut(stride).take(height).enumerate() {
        for (i, to) in line.iter_mut().enumerate() {
            let seen =
                (taps.starts[i] as usize - skip..).map(|x| turned[((x / 2 * channels + c) * ROWS + y) * 2 + x % 2]);
            let sum: i32 = taps.of(i).iter().zip(seen).map(|(&w, v)| i32::from(w) * i32::from(v)).sum();
            *to = ((sum + (1 << (BITS + BETWEEN - 1))) >> (BITS + BETWEEN)).clamp(0, 255) as u8;
        }
    }
}

/// What becomes of a sample v of each colour: (v − `less`) ÷ `over` × `times`.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Subtracted first.
    pub less: [f32; 3],
    /// Divided by then.
    pub over: [f32; 3],
    /// Multiplied by at last.
    pub times: f32,
}

/// R, G, B triples as floats: in the same order, or where `apart` all of R, then of G, then of B.
pub fn scaled(fast: bool, triples: &[u8], scale: &Scale, apart: bool, out: &mut [f32]) {
    assert!(triples.len() == out.len() && out.len().is_multiple_of(3));
    #[cfg(target_arch = "x86_64")]
    if fast {
        // SAFETY: `fast` is only true where AVX2 was found.
        unsafe { avx2::scaled(triples, scale, apart, out) };
        return;
    }
    let _ = fast;
    scale.all(triples, apart, out);
}

impl Scale {
    /// The loops, which compilers make vectors of.
    #[inline(always)]
    fn all(&self, triples: &[u8], apart: bool, out: &mut [f32]) {
        let times = self.times;
        if apart {
            let pixels = out.len() / 3;
            for (c, out) in out.chunks_exact_mut(pixels).enumerate() {
                let (less, over) = (self.less[c], self.over[c]);
                for (to, from) in out.iter_mut().zip(triples.as_chunks::<3>().0) {
                    *to = (f32::from(from[c]) - less) / over * times;
                }
            }
            return;
        }
        // Eight triples are three whole vectors.
        let [less, over] = [self.less, self.over].map(|of| std::array::from_fn::<f32, 24, _>(|n| of[n % 3]));
        let (whole, rest) = out.as_chunks_mut::<24>();
        let (from, last) = triples.as_chunks::<24>();
        for (to, from) in whole.iter_mut().zip(from) {
            for n in 0..24 {
                to[n] = (f32::from(from[n]) - less[n]) / over[n] * times;
            }
        }
        for (n, (to, &from)) in rest.iter_mut().zip(last).enumerate() {
            *to = (f32::from(from) - less[n]) / over[n] * times;
        }
    }
}

/// R, G, B, A over the background, as R, G, B.
pub fn over(fast: bool, back: [u8; 3], rgba: &[u8], out: &mut [u8]) {
    assert!(rgba.len() / 4 == out.len() / 3);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `fast` is only true where AVX2 was found; the lengths were compared above.
    let done = if fast { unsafe { avx2::over(back, rgba, out) } } else { 0 };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    let _ = fast;
    for (to, from) in out[done * 3..].chunks_exact_mut(3).zip(rgba[done * 4..].chunks_exact(4)) {
        for c in 0..3 {
            to[c] = blend(back[c], from[c], from[3]);
        }
    }
}

/// One sample over another one.
pub fn blend(under: u8, over: u8, alpha: u8) -> u8 {
    let t = u32::from(under) * (255 - u32::from(alpha)) + u32::from(over) * u32::from(alpha) + 128;
    (((t >> 8) + t) >> 8) as u8
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BETWEEN, BITS, GROUP, ROWS, Scale, Taps};

    /// Eight pixels at a time, as many as leave room for whole vectors; returns how many that were.
    ///
    /// # Safety
    /// AVX2; `rgba` has as many pixels as `out`.
    #[target_feature(enable = "avx2")]
    pub unsafe fn over(back: [u8; 3], rgba: &[u8], out: &mut [u8]) -> usize {
        const NONE: i8 = -1;
        let alphas = _mm256_broadcastsi128_si256(_mm_setr_epi8(3, 3, 3, 3, 7, 7, 7, 7, 11, 11, 11, 11, 15, 15, 15, 15));
        let triples =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, NONE, NONE, NONE, NONE));
        let [r, g, b] = back.map(i64::from);
        let (back, zero) = (_mm256_set1_epi64x(r | g << 16 | b << 32), _mm256_setzero_si256());
        let mixed = |colours, alpha| {
            let under = _mm256_mullo_epi16(back, _mm256_sub_epi16(_mm256_set1_epi16(255), alpha));
            let sum = _mm256_add_epi16(_mm256_mullo_epi16(colours, alpha), under);
            let sum = _mm256_add_epi16(sum, _mm256_set1_epi16(128));
            _mm256_srli_epi16::<8>(_mm256_add_epi16(sum, _mm256_srli_epi16::<8>(sum)))
        };
        let mut n = 0;
        // The second half of a vector reaches four bytes beyond its pixels.
        while n * 3 + 28 <= out.len() {
            // SAFETY: `out` has room for eight pixels and four bytes from here on, so `rgba` has eight pixels.
            let pixels = unsafe { _mm256_loadu_si256(rgba.as_ptr().add(n * 4).cast()) };
            let alpha = _mm256_shuffle_epi8(pixels, alphas);
            let near = mixed(_mm256_unpacklo_epi8(pixels, zero), _mm256_unpacklo_epi8(alpha, zero));
            let far = mixed(_mm256_unpackhi_epi8(pixels, zero), _mm256_unpackhi_epi8(alpha, zero));
            let colours = _mm256_shuffle_epi8(_mm256_packus_epi16(near, far), triples);
            // SAFETY: as above.
            unsafe {
                let to = out.as_mut_ptr().add(n * 3);
                _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(colours));
                _mm_storeu_si128(to.add(12).cast(), _mm256_extracti128_si256::<1>(colours));
            }
            n += 8;
        }
        n
    }

    /// # Safety
    /// AVX2; the lengths that `super::down` checks.
    #[target_feature(enable = "avx2")]
    pub unsafe fn down(rows: &[u8], stride: usize, weights: &[i16], len: usize, out: &mut [i16]) {
        for x in (0..len).step_by(32) {
            // SAFETY: columns up to the next multiple of 32 are inside the slack, for each of the rows and in `out`.
            unsafe {
                let halves = sums::<{ (BITS - BETWEEN) as i32 }>(rows.as_ptr().add(x), stride, weights);
                let to = out.as_mut_ptr().add(x);
                for (half, v) in halves.into_iter().enumerate() {
                    _mm256_storeu_si256(to.add(16 * half).cast(), v);
                }
            }
        }
    }

    /// # Safety
    /// AVX2; the lengths that `super::down_bytes` checks.
    #[target_feature(enable = "avx2")]
    pub unsafe fn down_bytes(rows: &[u8], stride: usize, weights: &[i16], len: usize, out: &mut [u8]) {
        for x in (0..len).step_by(32) {
            // SAFETY: as in `down`.
            unsafe {
                let [near, far] = sums::<{ BITS as i32 }>(rows.as_ptr().add(x), stride, weights);
                let both = _mm256_permute4x64_epi64::<0b1101_1000>(_mm256_packus_epi16(near, far));
                _mm256_storeu_si256(out.as_mut_ptr().add(x).cast(), both);
            }
        }
    }

    /// Weighted sums of 32 columns, rounded to `SHIFT` bits less.
    ///
    /// # Safety
    /// AVX2; 32 bytes at each row.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn sums<const SHIFT: i32>(mut from: *const u8, stride: usize, weights: &[i16]) -> [__m256i; 2] {
        let mut sums = [_mm256_set1_epi32(1 << (SHIFT - 1)); 4];
        // Two rows at a time: their bytes side by side make one multiplication of pairs.
        for pair in weights.chunks(2) {
            let (first, second) = (pair[0], pair.get(1).copied().unwrap_or(0));
            let w = _mm256_set1_epi32(i32::from(first) & 0xFFFF | i32::from(second) << 16);
            // A last row without a partner is its own, with a weight of zero.
            let below = if pair.len() == 2 { from.wrapping_add(stride) } else { from };
            for half in 0..2 {
                // SAFETY: the rows hold them.
                let (u, l) = unsafe {
                    (_mm_loadu_si128(from.add(16 * half).cast()), _mm_loadu_si128(below.add(16 * half).cast()))
                };
                let near = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(u, l));
                let far = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(u, l));
                sums[2 * half] = _mm256_add_epi32(sums[2 * half], _mm256_madd_epi16(near, w));
                sums[2 * half + 1] = _mm256_add_epi32(sums[2 * half + 1], _mm256_madd_epi16(far, w));
            }
            from = from.wrapping_add(2 * stride);
        }
        let mut halves = [_mm256_setzero_si256(); 2];
        for (half, to) in halves.iter_mut().enumerate() {
            let near = _mm256_srai_epi32::<SHIFT>(sums[2 * half]);
            let far = _mm256_srai_epi32::<SHIFT>(sums[2 * half + 1]);
            *to = _mm256_permute4x64_epi64::<0b1101_1000>(_mm256_packs_epi32(near, far));
        }
        halves
    }

    /// # Safety
    /// AVX2.
    #[target_feature(enable = "avx2")]
    pub unsafe fn scaled(triples: &[u8], scale: &Scale, apart: bool, out: &mut [f32]) {
        scale.all(triples, apart, out);
    }

    /// # Safety
    /// AVX2; the lengths that `super::turn` checks.
    #[target_feature(enable = "avx2")]
    pub unsafe fn turn(strip: &[i16], pitch: usize, pixels: usize, channels: usize, out: &mut [i16]) {
        let values = pixels * channels;
        let mut x = 0;
        while x < values {
            for half in 0..2 {
                // SAFETY: sixteen values from x on lie inside each row, and sixteen turned pairs of sixteen rows inside
                // `out`.
                unsafe {
                    let from = strip.as_ptr().add(8 * half * pitch + x);
                    let rows = [0, 1, 2, 3, 4, 5, 6, 7].map(|row| _mm256_loadu_si256(from.add(row * pitch).cast()));
                    let to = out.as_mut_ptr().add(x * ROWS + 16 * half);
                    for (n, v) in pairs(rows).into_iter().enumerate() {
                        _mm256_storeu_si256(to.add(n * 2 * ROWS).cast(), v);
                    }
                }
            }
            x += 16;
        }
        if channels == 1 {
            return;
        }
        // Pairs (r, g) (b, R) (G, B) of two pixels become (r, R) (g, G) (b, B).
        for six in out[..values.next_multiple_of(6) * ROWS].chunks_exact_mut(6 * ROWS) {
            for eight in 0..2 {
                // SAFETY: a chunk holds six vectors.
                unsafe {
                    let at = six.as_mut_ptr().cast::<__m256i>().add(eight);
                    let [rg, br, gb] = [0, 2, 4].map(|n| _mm256_loadu_si256(at.add(n)));
                    _mm256_storeu_si256(at, _mm256_blend_epi16::<0xAA>(rg, br));
                    let g = _mm256_blend_epi16::<0xAA>(_mm256_srli_epi32::<16>(rg), _mm256_slli_epi32::<16>(gb));
                    _mm256_storeu_si256(at.add(2), g);
                    _mm256_storeu_si256(at.add(4), _mm256_blend_epi16::<0xAA>(br, gb));
                }
            }
        }
    }

    /// Eight rows of eight pairs, turned.
    #[target_feature(enable = "avx2")]
    fn pairs(r: [__m256i; 8]) -> [__m256i; 8] {
        let two = [0, 2, 4, 6].map(|n| (_mm256_unpacklo_epi32(r[n], r[n + 1]), _mm256_unpackhi_epi32(r[n], r[n + 1])));
        let four = [0, 2].map(|n| {
            let ((a, b), (c, d)) = (two[n], two[n + 1]);
            [
                _mm256_unpacklo_epi64(a, c),
                _mm256_unpackhi_epi64(a, c),
                _mm256_unpacklo_epi64(b, d),
                _mm256_unpackhi_epi64(b, d),
            ]
        });
        let near = [0, 1, 2, 3].map(|n| _mm256_permute2x128_si256::<0x20>(four[0][n], four[1][n]));
        let far = [0, 1, 2, 3].map(|n| _mm256_permute2x128_si256::<0x31>(four[0][n], four[1][n]));
        [near[0], near[1], near[2], near[3], far[0], far[1], far[2], far[3]]
    }

    /// # Safety
    /// AVX2; the lengths that `super::across` checks.
    #[target_feature(enable = "avx2")]
    pub unsafe fn across(
        turned: &[i16],
        (channels, c): (usize, usize),
        taps: &Taps,
        skip: usize,
        (height, stride): (usize, usize),
        out: &mut [u8],
    ) {
        let (round, step) = (_mm256_set1_epi32(1 << (BITS + BETWEEN - 1)), channels * 2 * ROWS);
        // Four pixels of four rows in each lane, taken together row by row.
        let by_row = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        for (group, starts) in taps.starts.chunks_exact(GROUP).enumerate() {
            let mut bytes = [[_mm256_setzero_si256(); 4]; 2];
            for quarter in 0..4 {
                let [mut above, mut below] = [[round; 4]; 2];
                for (j, (to_above, to_below)) in above.iter_mut().zip(&mut below).enumerate() {
                    let i = 4 * quarter + j;
                    let (mut upper, mut lower) = (round, round);
                    // SAFETY: a start plus the window's width lies inside, and the weights are padded to it.
                    unsafe {
                        let mut weights = taps.weights.as_ptr().add((group * GROUP + i) * taps.width).cast::<i32>();
                        let mut at = turned.as_ptr().add(((starts[i] as usize - skip) / 2 * channels + c) * 2 * ROWS);
                        for _ in 0..taps.used / 2 {
                            let w = _mm256_set1_epi32(weights.read_unaligned());
                            let (u, l) = (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(ROWS).cast()));
                            upper = _mm256_add_epi32(upper, _mm256_madd_epi16(u, w));
                            lower = _mm256_add_epi32(lower, _mm256_madd_epi16(l, w));
                            (weights, at) = (weights.add(1), at.wrapping_add(step));
                        }
                    }
                    *to_above = _mm256_srai_epi32::<{ (BITS + BETWEEN) as i32 }>(upper);
                    *to_below = _mm256_srai_epi32::<{ (BITS + BETWEEN) as i32 }>(lower);
                }
                for (to, [a, b, c, d]) in bytes.iter_mut().zip([above, below]) {
                    let all = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
                    to[quarter] = _mm256_shuffle_epi8(all, by_row);
                }
            }
            let mut lines = [_mm_setzero_si128(); ROWS];
            for (half, [a, b, c, d]) in bytes.into_iter().enumerate() {
                let (ab, ab2) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                let (cd, cd2) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
                let rows = [
                    _mm256_unpacklo_epi64(ab, cd),
                    _mm256_unpackhi_epi64(ab, cd),
                    _mm256_unpacklo_epi64(ab2, cd2),
                    _mm256_unpackhi_epi64(ab2, cd2),
                ];
                for (n, both) in rows.into_iter().enumerate() {
                    lines[8 * half + n] = _mm256_castsi256_si128(both);
                    lines[8 * half + n + 4] = _mm256_extracti128_si256::<1>(both);
                }
            }
            for (line, to) in lines.into_iter().zip(out.chunks_exact_mut(stride)).take(height) {
                let to = &mut to[group * GROUP..][..GROUP];
                // SAFETY: sixteen bytes.
                unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), line) };
            }
        }
    }
}
