//! Target image → warped patches in their slots. In: the small image in the stored frame, a map from the warped picture to the
//! plain one, and the kept tokens. Out: P·P·3 bytes a token, as `patchify` gives them.
//!
//! Apart from `patchify`, which moves pixels one by one and so needs no second image. Here the plain picture is laid out
//! once, in the oriented frame and in a margin of `FILL`, and each pixel of a kept patch is then a mean of four neighbours
//! in it: bilinear, without antialiasing, as in torchvision's `affine` and `perspective`. What lies outside is taken to be
//! `FILL` for ever, so edges are blended with it, and no pixel is asked where it lies.

use crate::pixels::kernels::fast;
use crate::pixels::orient::Frame;
use crate::pixels::patchify::Lines;
use crate::pixels::picture::{KEEP_BYTES, room};
use crate::pixels::resize::Small;

/// Grey level of what lies outside the picture: AugReg's, and next to zero for models that take samples from −1 to 1.
pub const FILL: u8 = 128;

/// Bits of a neighbour's weight.
const BITS: u32 = 11;
const ONE: f32 = (1 << BITS) as f32;
/// Bits after the point of a mean of two neighbours.
const BETWEEN: u32 = 7;

/// Pixels left of and above the picture, and in all: bilinear reads one to the right and one below.
const BEFORE: usize = 1;
const MARGIN: usize = 3;

/// Pixels whose places are found at once.
const CHUNK: usize = 32;

/// The plain picture of one thread, used again: R, G, B triples with the margin.
#[derive(Default)]
pub struct Warper {
    picture: Vec<u8>,
}

/// Where pixels come from: the upper left neighbour of each, and the weights of the left and the right ones and of the upper
/// and the lower ones, the first of a pair in the lower half.
#[derive(Default)]
struct Places {
    x: [i32; CHUNK],
    y: [i32; CHUNK],
    across: [i32; CHUNK],
    down: [i32; CHUNK],
}

impl Warper {
    /// Writes one patch for each of `tokens` (indices in an oriented grid `columns` wide) to `out`, in their order.
    ///
    /// `map` leads from a point (x, y, 1) of the warped picture to that of the plain one, in fractions of its sides; `line` is
    /// scratch.
    #[allow(clippy::too_many_arguments)]
    pub fn patchify(
        &mut self,
        small: &Small,
        frame: Frame,
        columns: usize,
        p: usize,
        tokens: &[u32],
        map: &[f32; 9],
        line: &mut Vec<u8>,
        out: &mut [u8],
    ) {
        let (width, height) = frame.swapped((small.width, small.height));
        let stride = (width + MARGIN) * 3;
        self.lay_out(small, frame, (width, height), stride, line);
        let rows = Rows::new(map, width, height);
        for (&token, patch) in tokens.iter().zip(out.chunks_exact_mut(p * p * 3)) {
            let (y, x) = (token as usize / columns, token as usize % columns);
            for (i, to) in patch.chunks_exact_mut(p * 3).enumerate() {
                rows.read(&self.picture, stride, (y * p + i, x * p), to);
            }
        }
        if self.picture.len() > KEEP_BYTES {
            self.picture = Vec::new();
        }
    }

    /// The whole picture, oriented, in its margin.
    fn lay_out(
        &mut self,
        small: &Small,
        frame: Frame,
        (width, height): (usize, usize),
        stride: usize,
        line: &mut Vec<u8>,
    ) {
        room(&mut self.picture, stride * (height + MARGIN));
        let mut lines = Lines::new(small, frame, width, line);
        let (above, rest) = self.picture.split_at_mut(stride * BEFORE);
        let (picture, below) = rest.split_at_mut(stride * height);
        above.fill(FILL);
        below[..stride * (MARGIN - BEFORE)].fill(FILL);
        for (y, row) in picture.chunks_exact_mut(stride).enumerate() {
            let (left, rest) = row.split_at_mut(3 * BEFORE);
            let (own, right) = rest.split_at_mut(3 * width);
            left.fill(FILL);
            right.fill(FILL);
            lines.read(y, 0, own);
        }
    }
}

/// The map in pixels, margin included.
struct Rows {
    fast: bool,
    /// Numerators of x and y, and the denominator, as functions of a pixel's centre.
    x: [f64; 3],
    y: [f64; 3],
    z: [f64; 3],
    /// The last places from which neighbours may be read.
    most: (f32, f32),
}

impl Rows {
    fn new(map: &[f32; 9], width: usize, height: usize) -> Self {
        let (w, h) = (width as f64, height as f64);
        let m = map.map(f64::from);
        let z = [m[6] / w, m[7] / h, m[8]];
        // A sample stands at its pixel's centre; with the margin in front, the first one's is at 1.
        let to = BEFORE as f64 - 0.5;
        let x = [m[0] + to * z[0], m[1] * w / h + to * z[1], m[2] * w + to * z[2]];
        let y = [m[3] * h / w + to * z[0], m[4] + to * z[1], m[5] * h + to * z[2]];
        Self { fast: fast(), x, y, z, most: ((width + BEFORE) as f32, (height + BEFORE) as f32) }
    }

    /// `to.len() / 3` pixels from (y, x) on.
    fn read(&self, picture: &[u8], stride: usize, (y, x): (usize, usize), to: &mut [u8]) {
        let (x, y) = (x as f64 + 0.5, y as f64 + 0.5);
        let at = |of: [f64; 3]| (of[0] * x + of[1] * y + of[2]) as f32;
        let start = [at(self.x), at(self.y), at(self.z)];
        let step = [self.x[0] as f32, self.y[0] as f32, self.z[0] as f32];
        let line = Line { start, step, flat: step[2] == 0.0 && start[2] == 1.0, most: self.most };
        #[cfg(target_arch = "x86_64")]
        if self.fast {
            // SAFETY: `fast` is only true where AVX2 was found.
            unsafe { avx2::read(&line, picture, stride, to) };
            return;
        }
        let mut places = Places::default();
        for (n, to) in to.chunks_mut(3 * CHUNK).enumerate() {
            line.find(n * CHUNK, to.len() / 3, &mut places);
            for (j, to) in to.chunks_exact_mut(3).enumerate() {
                let at = places.y[j] as usize * stride + 3 * places.x[j] as usize;
                let (above, below) = (&picture[at..at + 6], &picture[at + stride..at + stride + 6]);
                for (c, to) in to.iter_mut().enumerate() {
                    let beside =
                        |row: &[u8]| mean(places.across[j], [row[c], row[c + 3]].map(i32::from), BITS - BETWEEN);
                    *to = mean(places.down[j], [beside(above), beside(below)], BITS + BETWEEN) as u8;
                }
            }
        }
    }
}

/// The mean of two values by a pair of weights, rounded, with `less` bits fewer after the point than the weights give it.
fn mean(weights: i32, [a, b]: [i32; 2], less: u32) -> i32 {
    (a * (weights & 0xffff) + b * (weights >> 16) + (1 << (less - 1))) >> less
}

/// The map along a line of pixels.
struct Line {
    start: [f32; 3],
    step: [f32; 3],
    /// The denominator is 1 everywhere.
    flat: bool,
    most: (f32, f32),
}

impl Line {
    /// Where `count` pixels from the `first` on come from. Inlined, so that it is compiled for whichever vectors there are:
    /// the same operations, and so the same bits.
    #[inline(always)]
    fn find(&self, first: usize, count: usize, places: &mut Places) {
        if self.flat { self.find_by::<true>(first, count, places) } else { self.find_by::<false>(first, count, places) }
    }

    #[inline(always)]
    fn find_by<const FLAT: bool>(&self, first: usize, count: usize, places: &mut Places) {
        let Places { x: xs, y: ys, across, down } = places;
        let (xs, ys, across, down) = (&mut xs[..count], &mut ys[..count], &mut across[..count], &mut down[..count]);
        let (start, step, (right, bottom)) = (self.start, self.step, self.most);
        for n in 0..count {
            let j = (first + n) as i32 as f32;
            let (mut x, mut y) = (start[0] + step[0] * j, start[1] + step[1] * j);
            if !FLAT {
                let z = start[2] + step[2] * j;
                (x, y) = (x / z, y / z);
            }
            // What lies outside has its neighbours in the margin; what lies nowhere (0 / 0), at its corner. No call to `max`,
            // which would see to such numbers once more.
            let x = if x > 0.0 { x } else { 0.0 };
            let y = if y > 0.0 { y } else { 0.0 };
            let (x, y) = (if x < right { x } else { right }, if y < bottom { y } else { bottom });
            // SAFETY: from 0 to a side of the picture, which is below 2²⁴.
            let (whole_x, whole_y) = unsafe { (x.to_int_unchecked::<i32>(), y.to_int_unchecked::<i32>()) };
            (xs[n], ys[n]) = (whole_x, whole_y);
            let (part_x, part_y) = ((x - whole_x as f32) * ONE + 0.5, (y - whole_y as f32) * ONE + 0.5);
            // SAFETY: from 0 to `ONE`.
            let (part_x, part_y) = unsafe { (part_x.to_int_unchecked::<i32>(), part_y.to_int_unchecked::<i32>()) };
            (across[n], down[n]) = (pair(part_x), pair(part_y));
        }
    }
}

/// The weights of the first of two neighbours, and in the upper half of the second, which is given.
#[inline(always)]
fn pair(second: i32) -> i32 {
    (second << 16) + (1 << BITS) - second
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BETWEEN, BITS, CHUNK, Line, Places};

    /// # Safety
    /// AVX2.
    #[target_feature(enable = "avx2")]
    pub unsafe fn read(line: &Line, picture: &[u8], stride: usize, to: &mut [u8]) {
        // Three colours of the left pixel beside those of the right one, 16 bits each; the same of means above and below.
        let beside = _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
        let over = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, -1, -1, -1, -1);
        let first = _mm_setr_epi8(0, 4, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
        let (half, whole) = (_mm_set1_epi32(1 << (BITS - BETWEEN - 1)), _mm_set1_epi32(1 << (BITS + BETWEEN - 1)));
        let mut places = Places::default();
        for (n, to) in to.chunks_mut(3 * CHUNK).enumerate() {
            line.find(n * CHUNK, to.len() / 3, &mut places);
            for (j, to) in to.chunks_exact_mut(3).enumerate() {
                let at = places.y[j] as usize * stride + 3 * places.x[j] as usize;
                let (above, under) = (&picture[at..at + 8], &picture[at + stride..at + stride + 8]);
                // SAFETY: eight bytes each.
                let (above, under) =
                    unsafe { (_mm_loadl_epi64(above.as_ptr().cast()), _mm_loadl_epi64(under.as_ptr().cast())) };
                let weights = _mm_set1_epi32(places.across[j]);
                let above = _mm_madd_epi16(_mm_shuffle_epi8(above, beside), weights);
                let under = _mm_madd_epi16(_mm_shuffle_epi8(under, beside), weights);
                let above = _mm_srai_epi32::<{ (BITS - BETWEEN) as i32 }>(_mm_add_epi32(above, half));
                let under = _mm_srai_epi32::<{ (BITS - BETWEEN) as i32 }>(_mm_add_epi32(under, half));
                let means = _mm_shuffle_epi8(_mm_packs_epi32(above, under), over);
                let sums = _mm_madd_epi16(means, _mm_set1_epi32(places.down[j]));
                let pixel = _mm_srai_epi32::<{ (BITS + BETWEEN) as i32 }>(_mm_add_epi32(sums, whole));
                let [red, green, blue, _] = _mm_cvtsi128_si32(_mm_shuffle_epi8(pixel, first)).to_le_bytes();
                // One by one: a copy of three bytes is a call.
                (to[0], to[1], to[2]) = (red, green, blue);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::picture::Colours;
    use crate::slots::Warp;
    use proptest::prelude::*;

    /// A picture of noise in the stored frame, as the resizer leaves it.
    fn noise(width: usize, height: usize, seed: u64) -> Small {
        let stride = width.next_multiple_of(16);
        let mut state = seed | 1;
        let mut data = Vec::new();
        room(&mut data, 3 * stride * height);
        for byte in &mut data {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        Small { colours: Colours::Rgb, width, height, stride, data }
    }

    fn plain(small: &Small, frame: Frame, (columns, p): (usize, usize), tokens: &[u32]) -> Vec<u8> {
        let mut out = vec![0; tokens.len() * p * p * 3];
        crate::pixels::patchify::patchify(small, frame, columns, p, tokens, &mut Vec::new(), &mut out);
        out
    }

    fn warped(small: &Small, frame: Frame, (columns, p): (usize, usize), tokens: &[u32], map: &[f32; 9]) -> Vec<u8> {
        let mut out = vec![0; tokens.len() * p * p * 3];
        Warper::default().patchify(small, frame, columns, p, tokens, map, &mut Vec::new(), &mut out);
        out
    }

    fn maps() -> impl Strategy<Value = [f32; 9]> {
        let near = |middle: f32, by: f32| middle - by..middle + by;
        let affine = (near(1.0, 0.9), near(0.0, 0.9), near(0.0, 1.0), near(0.0, 0.9), near(1.0, 0.9), near(0.0, 1.0));
        (affine, near(0.0, 1.2), near(0.0, 1.2), any::<bool>()).prop_map(|((a, b, c, d, e, f), g, h, flat)| {
            if flat { [a, b, c, d, e, f, 0.0, 0.0, 1.0] } else { [a, b, c, d, e, f, g, h, 1.0 - 0.5 * (g + h)] }
        })
    }

    proptest! {
        #[test]
        fn no_warp_is_the_plain_picture_bit_for_bit(
            (h, w) in (1usize..5, 1usize..5), p in 1usize..40, orientation in 1u8..9, seed: u64,
        ) {
            let frame = Frame::new(orientation);
            let (width, height) = frame.swapped((w * p, h * p));
            let small = noise(width, height, seed);
            let tokens: Vec<u32> = (0..(h * w) as u32).collect();
            let found = warped(&small, frame, (w, p), &tokens, &Warp::NONE.map);
            prop_assert_eq!(found, plain(&small, frame, (w, p), &tokens));
        }

        #[test]
        fn both_forms_agree_and_a_patch_does_not_depend_on_the_others(
            (h, w) in (1usize..5, 1usize..5), p in 1usize..40, orientation in 1u8..9, seed: u64, map in maps(), one: u32,
        ) {
            let frame = Frame::new(orientation);
            let (width, height) = frame.swapped((w * p, h * p));
            let small = noise(width, height, seed);
            let tokens: Vec<u32> = (0..(h * w) as u32).collect();
            let found = warped(&small, frame, (w, p), &tokens, &map);
            let one = one % (h * w) as u32;
            let bytes = p * p * 3;
            prop_assert_eq!(&warped(&small, frame, (w, p), &[one], &map)[..], &found[one as usize * bytes..][..bytes]);
            let (w, h) = (w * p, h * p);
            let (mut warper, stride) = (Warper::default(), (w + MARGIN) * 3);
            warper.lay_out(&small, frame, (w, h), stride, &mut Vec::new());
            let rows = Rows { fast: false, ..Rows::new(&map, w, h) };
            for (token, patch) in found.chunks_exact(bytes).enumerate() {
                let mut line = vec![0; p * 3];
                for (i, there) in patch.chunks_exact(p * 3).enumerate() {
                    rows.read(&warper.picture, stride, (token / (w / p) * p + i, token % (w / p) * p), &mut line);
                    prop_assert_eq!(&line[..], there);
                }
            }
        }
    }

    #[test]
    fn any_numbers_at_all_give_pixels() {
        let small = noise(32, 32, 3);
        let tokens = [0, 1, 2, 3];
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 0.0] {
            for n in 0..9 {
                let mut map = Warp::NONE.map;
                map[n] = odd;
                warped(&small, Frame::default(), (2, 16), &tokens, &map);
            }
        }
        let gone = warped(&small, Frame::default(), (2, 16), &tokens, &[1.0, 0.0, 1.1, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        assert!(gone.iter().all(|&v| v == FILL));
    }
}
