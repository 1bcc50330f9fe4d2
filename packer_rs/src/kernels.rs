//! The inner loops of rendering, each in a plain form that says what is meant and, on x86-64 with AVX2, in a form that is
//! some ten times as fast and gives the same bits. In: slices. Out: slices. All `unsafe` of pixel arithmetic is in this file, but for
//! the inverse transforms of JPEG (`decode/baseline/avx2.rs`).

use crate::decode::Colours;
use crate::taps::{BITS, GROUP, LANES, Taps};

/// Bits that the values between the two passes have after the point.
const BETWEEN: u32 = 6;
/// Bytes that may be read beyond the end of a row of pixels, and columns that are written beyond it.
pub const SLACK: usize = 64;

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
        let sum: i32 = weights.iter().enumerate().map(|(k, &w)| i32::from(w) * i32::from(rows[k * stride + x])).sum();
        *to = ((sum + (1 << (BITS - BETWEEN - 1))) >> (BITS - BETWEEN)) as i16;
    }
}

/// Weighted sums along two rows at once: pixel i of each output row = Σ weights of i · row[starts of i − skip + k].
///
/// Each row is long enough for every start plus `taps.width`; the outputs hold a multiple of `GROUP` pixels.
pub fn across(fast: bool, rows: [&[i16]; 2], taps: &Taps, skip: usize, out: [&mut [u8]; 2]) {
    let padded = taps.starts.len();
    let reach = taps.span.1 - skip + taps.width;
    assert!(rows[0].len() >= reach && rows[1].len() >= reach && out[0].len() >= padded && out[1].len() >= padded);
    assert!(
        padded.is_multiple_of(GROUP) && taps.width.is_multiple_of(LANES) && taps.weights.len() >= padded * taps.width
    );
    assert!(skip <= taps.span.0);
    #[cfg(target_arch = "x86_64")]
    if fast {
        // SAFETY: `fast` is only true where AVX2 was found; every start lies in `taps.span`, and the lengths were checked.
        unsafe { avx2::across(rows, taps, skip, out) };
        return;
    }
    let _ = fast;
    for (row, out) in rows.into_iter().zip(out) {
        for (i, to) in out[..padded].iter_mut().enumerate() {
            let seen = &row[taps.starts[i] as usize - skip..];
            let sum: i32 = taps.of(i).iter().zip(seen).map(|(&w, &v)| i32::from(w) * i32::from(v)).sum();
            *to = ((sum + (1 << (BITS + BETWEEN - 1))) >> (BITS + BETWEEN)).clamp(0, 255) as u8;
        }
    }
}

/// Triples of values, taken apart: value 3 i + c of `row` goes to value i of `out[c]`, for `pixels` of them.
///
/// `row` holds `SLACK` values and each of `out` `SLACK` values more than that needs.
pub fn apart(fast: bool, row: &[i16], pixels: usize, out: [&mut [i16]; 3]) {
    assert!(row.len() >= 3 * pixels + SLACK && out.iter().all(|part| part.len() >= pixels + SLACK));
    #[cfg(target_arch = "x86_64")]
    if fast {
        // SAFETY: `fast` is only true where AVX2 was found; the lengths were checked above.
        unsafe { avx2::apart(row, pixels, out) };
        return;
    }
    let _ = fast;
    for (c, part) in out.into_iter().enumerate() {
        for (to, v) in part[..pixels].iter_mut().zip(row.chunks_exact(3)) {
            *to = v[c];
        }
    }
}

/// One line of pixels from its planes to R, G, B triples. The planes hold at least `out.len() / 3` rounded up to 16 bytes.
pub fn triples(fast: bool, colours: Colours, planes: [&[u8]; 3], out: &mut [u8]) {
    let pixels = out.len() / 3;
    let planes = planes.map(|p| &p[..pixels.next_multiple_of(16)]);
    #[cfg(target_arch = "x86_64")]
    if fast {
        // SAFETY: `fast` is only true where AVX2 was found; the planes were cut to whole vectors above.
        unsafe { avx2::triples(colours, planes, out) };
        return;
    }
    let _ = fast;
    for (i, to) in out.chunks_exact_mut(3).enumerate() {
        let [a, b, c] = planes.map(|p| p[i]);
        to.copy_from_slice(&match colours {
            Colours::Grey => [a; 3],
            Colours::Rgb => [a, b, c],
            Colours::Ycc => rgb_of(a, b, c),
        });
    }
}

// JFIF's conversion; factors in 14 bits after the point.
const R_CR: i16 = 22_970;
const G_CB: i16 = -5_638;
const G_CR: i16 = -11_700;
const B_CB: i16 = 29_032;

fn rgb_of(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let part = |c: u8, factor: i16| ((i32::from(c) - 128) * 128 * i32::from(factor) + (1 << 14)) >> 15;
    let y = i32::from(y) << BETWEEN;
    [y + part(cr, R_CR), y + part(cb, G_CB) + part(cr, G_CR), y + part(cb, B_CB)]
        .map(|v| ((v + 32) >> BETWEEN).clamp(0, 255) as u8)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{B_CB, BETWEEN, BITS, Colours, G_CB, G_CR, GROUP, LANES, R_CR, Taps};

    /// # Safety
    /// AVX2; the lengths that `super::down` checks.
    #[target_feature(enable = "avx2")]
    pub unsafe fn down(rows: &[u8], stride: usize, weights: &[i16], len: usize, out: &mut [i16]) {
        let round = _mm256_set1_epi32(1 << (BITS - BETWEEN - 1));
        let mut x = 0;
        while x < len {
            let mut sums = [round; 4];
            // SAFETY: columns up to the next multiple of 32 are inside the slack, for each of the rows.
            unsafe {
                let mut from = rows.as_ptr().add(x);
                // Two rows at a time: their bytes side by side make one multiplication of pairs.
                for pair in weights.chunks(2) {
                    let (first, second) = (pair[0], pair.get(1).copied().unwrap_or(0));
                    let w = _mm256_set1_epi32(i32::from(first) & 0xFFFF | i32::from(second) << 16);
                    // A last row without a partner is its own, with a weight of zero.
                    let below = if pair.len() == 2 { from.add(stride) } else { from };
                    for half in 0..2 {
                        let u = _mm_loadu_si128(from.add(16 * half).cast());
                        let l = _mm_loadu_si128(below.add(16 * half).cast());
                        let near = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(u, l));
                        let far = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(u, l));
                        sums[2 * half] = _mm256_add_epi32(sums[2 * half], _mm256_madd_epi16(near, w));
                        sums[2 * half + 1] = _mm256_add_epi32(sums[2 * half + 1], _mm256_madd_epi16(far, w));
                    }
                    from = from.wrapping_add(2 * stride);
                }
                let to = out.as_mut_ptr().add(x);
                for half in 0..2 {
                    let near = _mm256_srai_epi32::<{ (BITS - BETWEEN) as i32 }>(sums[2 * half]);
                    let far = _mm256_srai_epi32::<{ (BITS - BETWEEN) as i32 }>(sums[2 * half + 1]);
                    let both = _mm256_permute4x64_epi64::<0b1101_1000>(_mm256_packs_epi32(near, far));
                    _mm256_storeu_si256(to.add(16 * half).cast(), both);
                }
            }
            x += 32;
        }
    }

    /// # Safety
    /// AVX2; the lengths that `super::across` checks.
    #[target_feature(enable = "avx2")]
    pub unsafe fn across(rows: [&[i16]; 2], taps: &Taps, skip: usize, out: [&mut [u8]; 2]) {
        let round = _mm256_set1_epi32(1 << (BITS + BETWEEN - 1));
        let [upper, lower] = rows.map(<[i16]>::as_ptr);
        let chunks = taps.used.div_ceil(LANES);
        for (group, starts) in taps.starts.chunks_exact(GROUP).enumerate() {
            let first = group * GROUP;
            let mut sums = [_mm256_setzero_si256(); GROUP];
            for (j, sum) in sums.iter_mut().enumerate() {
                let start = starts[j] as usize - skip;
                // SAFETY: a start plus the padded width lies inside each row, and the weights are padded to it too.
                unsafe {
                    let mut weights = taps.weights.as_ptr().add((first + j) * taps.width);
                    let (mut u, mut l) = (upper.add(start), lower.add(start));
                    for _ in 0..chunks {
                        let w = _mm256_broadcastsi128_si256(_mm_loadu_si128(weights.cast()));
                        let v = _mm256_inserti128_si256::<1>(
                            _mm256_castsi128_si256(_mm_loadu_si128(u.cast())),
                            _mm_loadu_si128(l.cast()),
                        );
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(v, w));
                        (weights, u, l) = (weights.add(LANES), u.add(LANES), l.add(LANES));
                    }
                }
            }
            let ab = _mm256_hadd_epi32(sums[0], sums[1]);
            let cd = _mm256_hadd_epi32(sums[2], sums[3]);
            let all = _mm256_add_epi32(_mm256_hadd_epi32(ab, cd), round);
            let all = _mm256_srai_epi32::<{ (BITS + BETWEEN) as i32 }>(all);
            let bytes = _mm256_packus_epi16(_mm256_packs_epi32(all, all), all);
            let (u, l) = (_mm256_extract_epi32::<0>(bytes), _mm256_extract_epi32::<4>(bytes));
            out[0][first..first + GROUP].copy_from_slice(&u.to_le_bytes());
            out[1][first..first + GROUP].copy_from_slice(&l.to_le_bytes());
        }
    }

    /// # Safety
    /// AVX2; the lengths that `super::apart` checks.
    #[target_feature(enable = "avx2")]
    pub unsafe fn apart(row: &[i16], pixels: usize, mut out: [&mut [i16]; 3]) {
        // Value n of colour c among eight pixels is value 3 n + c of 24, which lie in three vectors; −1 gives zero.
        const fn mask(part: usize, colour: usize) -> [i8; 16] {
            let mut m = [-1; 16];
            let mut n = 0;
            while n < 8 {
                let at = 3 * n + colour;
                if at / 8 == part {
                    m[2 * n] = (at % 8 * 2) as i8;
                    m[2 * n + 1] = (at % 8 * 2 + 1) as i8;
                }
                n += 1;
            }
            m
        }
        const MASKS: [[[i8; 16]; 3]; 3] = [
            [mask(0, 0), mask(1, 0), mask(2, 0)],
            [mask(0, 1), mask(1, 1), mask(2, 1)],
            [mask(0, 2), mask(1, 2), mask(2, 2)],
        ];
        let mut x = 0;
        while x < pixels {
            // SAFETY: eight pixels from here on lie inside the slack of `row` and of each part of `out`.
            unsafe {
                let from = row.as_ptr().add(3 * x).cast::<__m128i>();
                let parts = [_mm_loadu_si128(from), _mm_loadu_si128(from.add(1)), _mm_loadu_si128(from.add(2))];
                for (to, masks) in out.iter_mut().zip(&MASKS) {
                    let [a, b, c] = [0, 1, 2].map(|n| {
                        let mask: __m128i = _mm_loadu_si128(masks[n].as_ptr().cast());
                        _mm_shuffle_epi8(parts[n], mask)
                    });
                    let to = to.as_mut_ptr().add(x);
                    _mm_storeu_si128(to.cast(), _mm_or_si128(_mm_or_si128(a, b), c));
                }
            }
            x += 8;
        }
    }

    /// # Safety
    /// AVX2; each plane holds as many pixels as `out`, rounded up to 16.
    #[target_feature(enable = "avx2")]
    pub unsafe fn triples(colours: Colours, planes: [&[u8]; 3], out: &mut [u8]) {
        for (n, to) in out.chunks_mut(48).enumerate() {
            // SAFETY: the planes hold whole vectors.
            let [a, b, c] = planes.map(|p| unsafe { _mm_loadu_si128(p.as_ptr().add(n * 16).cast()) });
            let (r, g, b) = match colours {
                Colours::Grey => (a, a, a),
                Colours::Rgb => (a, b, c),
                Colours::Ycc => convert(a, b, c),
            };
            let shuffled = interleave(r, g, b);
            if to.len() == 48 {
                for (part, v) in to.chunks_exact_mut(16).zip(shuffled) {
                    // SAFETY: the chunk has 16 bytes.
                    unsafe { _mm_storeu_si128(part.as_mut_ptr().cast(), v) };
                }
            } else {
                let mut whole = [0u8; 48];
                for (part, v) in whole.chunks_exact_mut(16).zip(shuffled) {
                    // SAFETY: the chunk has 16 bytes.
                    unsafe { _mm_storeu_si128(part.as_mut_ptr().cast(), v) };
                }
                to.copy_from_slice(&whole[..to.len()]);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    fn convert(y: __m128i, cb: __m128i, cr: __m128i) -> (__m128i, __m128i, __m128i) {
        let centred = |v| _mm256_slli_epi16::<7>(_mm256_sub_epi16(_mm256_cvtepu8_epi16(v), _mm256_set1_epi16(128)));
        let y = _mm256_add_epi16(_mm256_slli_epi16::<6>(_mm256_cvtepu8_epi16(y)), _mm256_set1_epi16(32));
        let (cb, cr) = (centred(cb), centred(cr));
        let part = |c, factor| _mm256_mulhrs_epi16(c, _mm256_set1_epi16(factor));
        let bytes = |v| {
            let v = _mm256_srai_epi16::<6>(v);
            _mm_packus_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v))
        };
        (
            bytes(_mm256_add_epi16(y, part(cr, R_CR))),
            bytes(_mm256_add_epi16(y, _mm256_add_epi16(part(cb, G_CB), part(cr, G_CR)))),
            bytes(_mm256_add_epi16(y, part(cb, B_CB))),
        )
    }

    /// Sixteen pixels of three planes as 48 bytes of triples.
    #[target_feature(enable = "avx2")]
    fn interleave(r: __m128i, g: __m128i, b: __m128i) -> [__m128i; 3] {
        // Byte n of part p is colour (16 p + n) % 3 of pixel (16 p + n) / 3; −1 leaves it to another colour.
        const fn mask(part: usize, colour: usize) -> [i8; 16] {
            let mut m = [-1; 16];
            let mut n = 0;
            while n < 16 {
                if (16 * part + n) % 3 == colour {
                    m[n] = ((16 * part + n) / 3) as i8;
                }
                n += 1;
            }
            m
        }
        const MASKS: [[[i8; 16]; 3]; 3] = [
            [mask(0, 0), mask(0, 1), mask(0, 2)],
            [mask(1, 0), mask(1, 1), mask(1, 2)],
            [mask(2, 0), mask(2, 1), mask(2, 2)],
        ];
        MASKS.map(|[mr, mg, mb]| {
            // SAFETY: a mask has 16 bytes.
            let load = |m: [i8; 16]| unsafe { _mm_loadu_si128(m.as_ptr().cast()) };
            let (r, g, b) =
                (_mm_shuffle_epi8(r, load(mr)), _mm_shuffle_epi8(g, load(mg)), _mm_shuffle_epi8(b, load(mb)));
            _mm_or_si128(_mm_or_si128(r, g), b)
        })
    }
}
