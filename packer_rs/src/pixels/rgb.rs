//! Small planes → R, G, B triples, which is what patches hold. In: a line of each plane. Out: the line's triples. A
//! plain form and one for AVX2 with the same bits, as in `kernels`.

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

/// How Y, U and V become R, G and B in a file that is not JFIF's: factors in 14 bits after the point. That of U for blue
/// may be beyond 2, so it stands here less 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    black: i16,
    y: i16,
    r_v: i16,
    g_u: i16,
    g_v: i16,
    b_u: i16,
}

impl Matrix {
    /// BT.601's, where 16 is black and 235 white: libwebp's factors.
    pub const VIDEO: Self = Self { black: 16, y: 19_077, r_v: 26_149, g_u: -6_419, g_v: -13_320, b_u: 16_666 };
    /// BT.709's, from 0 to 255.
    pub const BT709: Self = Self::of(0.2126, 0.0722, false);
    /// BT.709's, where 16 is black and 235 white.
    pub const BT709_VIDEO: Self = Self::of(0.2126, 0.0722, true);
    /// BT.2020's, from 0 to 255.
    pub const BT2020: Self = Self::of(0.2627, 0.0593, false);
    /// BT.2020's, where 16 is black and 235 white.
    pub const BT2020_VIDEO: Self = Self::of(0.2627, 0.0593, true);

    /// By the shares of red and blue in Y.
    const fn of(red: f64, blue: f64, video: bool) -> Self {
        const fn fixed(factor: f64) -> i16 {
            (factor * 16384.0 + if factor < 0.0 { -0.5 } else { 0.5 }) as i16
        }
        let (luma, chroma) = if video { (255.0 / 219.0, 255.0 / 112.0) } else { (1.0, 2.0) };
        let (r, b, green) = (chroma * (1.0 - red), chroma * (1.0 - blue), 1.0 - red - blue);
        Self {
            black: if video { 16 } else { 0 },
            y: fixed(luma),
            r_v: fixed(r),
            g_u: fixed(-b * blue / green),
            g_v: fixed(-r * red / green),
            b_u: fixed(b - 1.0),
        }
    }
}

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
