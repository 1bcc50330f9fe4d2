//! Small planes → R, G, B triples, which is what patches hold. In: a line of each plane. Out: the line's triples. A
//! plain form and one for AVX2 with the same bits, as in `kernels`.

use crate::pixels::matrix::Matrix;
use crate::pixels::picture::Colours;

/// One line of pixels from its planes to R, G, B triples. The planes hold at least `out.len() / 3` rounded up to 16
/// bytes.
pub fn rgb(fast: bool, colours: Colours, planes: [&[u8]; 3], out: &mut [u8]) {
    let pixels = out.len() / 3;
    let planes = planes.map(|p| &p[..pixels.next_multiple_of(16)]);
    #[cfg(target_arch = "x86_64")]
    if fast {
        // SAFETY: `fast` is only true where AVX2 was found; the planes were cut to whole vectors above.
        unsafe { avx2::rgb(colours, planes, out) };
        return;
    }
    let _ = fast;
    for (i, to) in out.chunks_exact_mut(3).enumerate() {
        let [a, b, c] = planes.map(|p| p[i]);
        to.copy_from_slice(&match colours {
            Colours::Grey => [a; 3],
            Colours::Rgb => [a, b, c],
            Colours::Ycc => rgb_of(a, b, c),
            Colours::Yuv(matrix) => rgb_of_matrix(matrix, a, b, c),
        });
    }
}

/// Bits after the point of a sum before it is rounded.
const BETWEEN: u32 = 6;

// JFIF's conversion; factors in 14 bits after the point.
const R_CR: i16 = 22_970;
const G_CB: i16 = -5_638;
const G_CR: i16 = -11_700;
const B_CB: i16 = 29_032;

/// `factor` of a sample's distance from `zero`, with `BETWEEN` bits after the point.
fn part(sample: u8, zero: i16, factor: i16) -> i32 {
    ((i32::from(sample) - i32::from(zero)) * 128 * i32::from(factor) + (1 << 14)) >> 15
}

fn bytes(colours: [i32; 3]) -> [u8; 3] {
    colours.map(|v| ((v + 32) >> BETWEEN).clamp(0, 255) as u8)
}

fn rgb_of(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, part) = (i32::from(y) << BETWEEN, |c, factor| part(c, 128, factor));
    bytes([y + part(cr, R_CR), y + part(cb, G_CB) + part(cr, G_CR), y + part(cb, B_CB)])
}

fn rgb_of_matrix(m: Matrix, y: u8, u: u8, v: u8) -> [u8; 3] {
    let (y, whole) = (part(y, m.black, m.y), (i32::from(u) - 128) << BETWEEN);
    let part = |c, factor| part(c, 128, factor);
    bytes([y + part(v, m.r_v), y + part(u, m.g_u) + part(v, m.g_v), y + whole + part(u, m.b_u)])
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{B_CB, Colours, G_CB, G_CR, Matrix, R_CR};

    /// # Safety
    /// AVX2; each plane holds as many pixels as `out`, rounded up to 16.
    #[target_feature(enable = "avx2")]
    pub unsafe fn rgb(colours: Colours, planes: [&[u8]; 3], out: &mut [u8]) {
        for (n, to) in out.chunks_mut(48).enumerate() {
            // SAFETY: the planes hold whole vectors.
            let [a, b, c] = planes.map(|p| unsafe { _mm_loadu_si128(p.as_ptr().add(n * 16).cast()) });
            let (r, g, b) = match colours {
                Colours::Grey => (a, a, a),
                Colours::Rgb => (a, b, c),
                Colours::Ycc => convert(a, b, c),
                Colours::Yuv(matrix) => convert_by(matrix, a, b, c),
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

    /// Sixteen samples' distances from `zero`, with seven bits after the point.
    #[target_feature(enable = "avx2")]
    fn distance(v: __m128i, zero: i16) -> __m256i {
        _mm256_slli_epi16::<7>(_mm256_sub_epi16(_mm256_cvtepu8_epi16(v), _mm256_set1_epi16(zero)))
    }

    #[target_feature(enable = "avx2")]
    fn part(distance: __m256i, factor: i16) -> __m256i {
        _mm256_mulhrs_epi16(distance, _mm256_set1_epi16(factor))
    }

    #[target_feature(enable = "avx2")]
    fn bytes(v: __m256i) -> __m128i {
        let v = _mm256_srai_epi16::<6>(v);
        _mm_packus_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v))
    }

    #[target_feature(enable = "avx2")]
    fn convert(y: __m128i, cb: __m128i, cr: __m128i) -> (__m128i, __m128i, __m128i) {
        let y = _mm256_add_epi16(_mm256_slli_epi16::<6>(_mm256_cvtepu8_epi16(y)), _mm256_set1_epi16(32));
        let (cb, cr) = (distance(cb, 128), distance(cr, 128));
        (
            bytes(_mm256_add_epi16(y, part(cr, R_CR))),
            bytes(_mm256_add_epi16(y, _mm256_add_epi16(part(cb, G_CB), part(cr, G_CR)))),
            bytes(_mm256_add_epi16(y, part(cb, B_CB))),
        )
    }

    /// Sums beyond 16 bits are beyond white.
    #[target_feature(enable = "avx2")]
    fn convert_by(m: Matrix, y: __m128i, u: __m128i, v: __m128i) -> (__m128i, __m128i, __m128i) {
        let y = _mm256_add_epi16(part(distance(y, m.black), m.y), _mm256_set1_epi16(32));
        let (u, v) = (distance(u, 128), distance(v, 128));
        let blue = _mm256_add_epi16(_mm256_srai_epi16::<1>(u), part(u, m.b_u));
        (
            bytes(_mm256_adds_epi16(y, part(v, m.r_v))),
            bytes(_mm256_adds_epi16(y, _mm256_add_epi16(part(u, m.g_u), part(v, m.g_v)))),
            bytes(_mm256_adds_epi16(y, blue)),
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
