//! Kernels, weights and patches: the fast forms give the same bits as the plain ones; a flat image stays flat;
//! orientation is a permutation of pixels.

use navit_packer::pixels::kernels::{Scale, fast, over, scaled};
use navit_packer::pixels::matrix::Matrix;
use navit_packer::pixels::orient::Frame;
use navit_packer::pixels::patchify::patchify;
use navit_packer::pixels::picture::{Colours, Pixels, Plane};
use navit_packer::pixels::resize::{Resizer, Small};
use navit_packer::pixels::rgb::rgb;
use navit_packer::pixels::taps::{Axis, BITS, Filter, Taps};
use navit_packer::slots::Crop;
use proptest::prelude::*;

const FILTERS: [Filter; 4] = [Filter::Bicubic, Filter::Bilinear, Filter::Area, Filter::Lanczos];

/// An image of noise (or of one value) whose planes are padded at the right, as libjpeg pads them.
fn noise(colours: Colours, width: u32, height: u32, padding: usize, value: impl Fn(usize) -> u8) -> Pixels {
    let mut pixels = Pixels { colours, ..Pixels::default() };
    let (count, channels) = match colours {
        Colours::Grey => (1, 1),
        Colours::Rgb => (1, 3),
        Colours::Ycc | Colours::Yuv(_) => (3, 1),
    };
    let mut start = 0;
    for c in 0..count {
        let sub = if c == 0 { 1 } else { 2 };
        let (w, h) = (width.div_ceil(sub), height.div_ceil(sub));
        let stride = (w as usize + padding) * channels;
        let scale = 1.0 / f64::from(sub);
        pixels.planes[c] = Plane { start, stride, width: w, height: h, scale: (scale, scale) };
        start += stride * h as usize;
    }
    pixels.data = (0..start + 64).map(value).collect();
    pixels
}

fn scrambled(seed: u64) -> impl Fn(usize) -> u8 {
    move |n| ((n as u64 + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

prop_compose! {
    fn image()(
        colours in prop_oneof![Just(Colours::Grey), Just(Colours::Rgb), Just(Colours::Ycc), Just(Colours::Yuv(Matrix::VIDEO))],
        width in 1u32..90, height in 1u32..70, padding in 0usize..9, filter in 0usize..4, seed: u64,
        target in (1u32..80, 1u32..60), corner in (0.0..1.0, 0.0..1.0), far in (0.0..1.0, 0.0..1.0),
    ) -> (Pixels, Crop, (u32, u32), Filter) {
        let at = |all: u32, from: f64, to: f64| {
            let from = (from * f64::from(all - 1)) as i32;
            (from, 1 + (to * f64::from(all as i32 - from - 1)) as i32)
        };
        let ((left, w), (top, h)) = (at(width, corner.0, far.0), at(height, corner.1, far.1));
        let crop = Crop { top, left, height: h, width: w };
        (noise(colours, width, height, padding, scrambled(seed)), crop, target, FILTERS[filter])
    }
}

fn shown(small: &Small) -> Vec<u8> {
    let planes = if small.colours == Colours::Grey { 1 } else { 3 };
    (0..planes)
        .flat_map(|c| (0..small.height).map(move |y| (c, y)))
        .flat_map(|(c, y)| small.plane(c)[y * small.stride..][..small.width].to_vec())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn fast_kernels_give_the_plain_ones_bits((pixels, crop, target, filter) in image()) {
        let (mut a, mut b) = (Small::default(), Small::default());
        for (mut quick, mut plain) in [
            (Resizer::default(), Resizer::plain()),
            (Resizer::default().bytewise(), Resizer::plain().bytewise()),
        ] {
            quick.resize(&pixels, crop, target, filter, &mut a);
            plain.resize(&pixels, crop, target, filter, &mut b);
            prop_assert_eq!(shown(&a), shown(&b));
        }
    }

    #[test]
    fn a_resizer_remembers_nothing(first in image(), second in image()) {
        let (mut reused, mut fresh) = (Small::default(), Small::default());
        let mut resizer = Resizer::default();
        resizer.resize(&first.0, first.1, first.2, first.3, &mut reused);
        resizer.resize(&second.0, second.1, second.2, second.3, &mut reused);
        Resizer::default().resize(&second.0, second.1, second.2, second.3, &mut fresh);
        prop_assert_eq!(shown(&reused), shown(&fresh));
    }

    #[test]
    fn a_flat_image_stays_flat((pixels, crop, target, filter) in image(), value: u8) {
        let flat = Pixels { data: vec![value; pixels.data.len()], ..pixels };
        let mut small = Small::default();
        for mut resizer in [Resizer::default(), Resizer::default().bytewise()] {
            resizer.resize(&flat, crop, target, filter, &mut small);
            prop_assert!(shown(&small).iter().all(|&v| v == value));
        }
    }

    #[test]
    fn a_flat_image_stays_flat_however_small_it_becomes(width in 1u32..3000, height in 1u32..3000, value: u8) {
        let flat = noise(Colours::Grey, width, height, 0, |_| value);
        let mut small = Small::default();
        let crop = Crop { top: 0, left: 0, height: height as i32, width: width as i32 };
        Resizer::default().resize(&flat, crop, (9, 7), Filter::Bicubic, &mut small);
        prop_assert!(shown(&small).iter().all(|&v| v == value));
    }

    #[test]
    fn weights_sum_to_one_and_stay_inside(
        source in 1usize..3000, target in 1usize..300, from in 0.0f64..1.0, to in 0.0f64..1.0, filter in 0usize..4, even: bool
    ) {
        let (from, to) = (from.min(to) * source as f64 * 0.99, (from.max(to) * source as f64).max(0.01));
        let mut taps = Taps::default();
        taps.set(Axis { source, from, to: to.max(from + 0.01).min(source as f64), target, filter: FILTERS[filter], even });
        for i in 0..target {
            let whole: i32 = taps.of(i).iter().map(|&w| i32::from(w)).sum();
            prop_assert_eq!(whole, 1 << BITS);
            let seen = taps.of(i).iter().rposition(|&w| w != 0).map_or(0, |n| n + 1);
            prop_assert!(taps.starts[i] as usize + seen <= source);
        }
    }

    #[test]
    fn patches_are_the_oriented_image_cut_up(
        (h, w) in (1usize..5, 1usize..5), p in 1usize..20, orientation in 1u8..9, flip: bool, seed: u64, grey: bool
    ) {
        let frame = if flip { Frame::new(orientation).flipped() } else { Frame::new(orientation) };
        let (width, height) = frame.swapped((w * p, h * p));
        let colours = if grey { Colours::Grey } else { Colours::Rgb };
        let stride = width.next_multiple_of(4);
        let data: Vec<u8> = (0..stride * height * 3 + 64).map(scrambled(seed)).collect();
        let small = Small { colours, width, height, stride, data };
        let tokens: Vec<u32> = (0..(h * w) as u32).filter(|t| t % 3 != 1).collect();
        let mut out = vec![0; tokens.len() * p * p * 3];
        patchify(&small, frame, w, p, &tokens, &mut Vec::new(), &mut out);
        for (n, &token) in tokens.iter().enumerate() {
            let (top, left) = (token as usize / w * p, token as usize % w * p);
            for i in 0..p * p * 3 {
                let (y, x, c) = (top + i / 3 / p, left + i / 3 % p, i % 3);
                let (mut sx, mut sy) = frame.swapped((x, y));
                if frame.mirror_x {
                    sx = width - 1 - sx;
                }
                if frame.mirror_y {
                    sy = height - 1 - sy;
                }
                prop_assert_eq!(out[n * p * p * 3 + i], small.plane(c)[sy * stride + sx]);
            }
        }
    }
}

/// A matrix by the shares of red and blue in Y, and whether 16 is black.
const MATRICES: [(Colours, f64, f64, bool); 6] = [
    (Colours::Ycc, 0.299, 0.114, false),
    (Colours::Yuv(Matrix::VIDEO), 0.299, 0.114, true),
    (Colours::Yuv(Matrix::BT709), 0.2126, 0.0722, false),
    (Colours::Yuv(Matrix::BT709_VIDEO), 0.2126, 0.0722, true),
    (Colours::Yuv(Matrix::BT2020), 0.2627, 0.0593, false),
    (Colours::Yuv(Matrix::BT2020_VIDEO), 0.2627, 0.0593, true),
];

/// Every Y beside U and V in steps that meet both ends: the fast form has the plain one's bits, and these are of a
/// conversion in floating point, to the last rounding.
#[test]
fn colours_are_converted_alike() {
    let steps: Vec<u8> = (0..=255).step_by(5).collect();
    for (&b, &c) in steps.iter().flat_map(|b| steps.iter().map(move |c| (b, c))) {
        let planes = [(0..=255).collect::<Vec<u8>>(), vec![b; 256], vec![c; 256]];
        let convert = |colours| {
            let [quick, plain] = [fast(), false].map(|fast| {
                let mut out = vec![0; 3 * 256];
                rgb(fast, colours, [&planes[0], &planes[1], &planes[2]], &mut out);
                out
            });
            assert_eq!(quick, plain, "{colours:?} of {b}, {c}");
            plain
        };
        convert(Colours::Grey);
        convert(Colours::Rgb);
        for (colours, kr, kb, video) in MATRICES {
            let (black, luma, chroma) = if video { (16.0, 219.0, 224.0) } else { (0.0, 255.0, 255.0) };
            for (y, got) in convert(colours).chunks_exact(3).enumerate() {
                let (y, u, v) =
                    ((y as f64 - black) / luma, (f64::from(b) - 128.0) / chroma, (f64::from(c) - 128.0) / chroma);
                let (red, blue) = (y + 2.0 * (1.0 - kr) * v, y + 2.0 * (1.0 - kb) * u);
                let want = [red, (y - kr * red - kb * blue) / (1.0 - kr - kb), blue];
                for (want, &got) in want.map(|w| (w * 255.0).clamp(0.0, 255.0)).into_iter().zip(got) {
                    assert!((want - f64::from(got)).abs() < 0.6, "{colours:?}, {y}, {u}, {v}: {want} is not {got}");
                }
            }
        }
    }
}

/// Every colour with every alpha, over three backgrounds, in pictures of every length: the fast form has the plain one's
/// bits, and what is opaque or clear is exact.
#[test]
fn pixels_are_laid_over_the_background_alike() {
    let rgba: Vec<u8> = (0..=65_535u32).flat_map(|n| [n as u8, (n * 7) as u8, !n as u8, (n >> 8) as u8]).collect();
    for back in [[255; 3], [10, 200, 30], [0; 3]] {
        for pixels in (0..40).chain([65_536]) {
            let [quick, plain] = [fast(), false].map(|fast| {
                let mut out = vec![0; 3 * pixels];
                over(fast, back, &rgba[rgba.len() - 4 * pixels..], &mut out);
                out
            });
            assert_eq!(quick, plain);
            for (got, pixel) in plain.chunks_exact(3).zip(rgba[rgba.len() - 4 * pixels..].chunks_exact(4)) {
                match pixel[3] {
                    255 => assert_eq!(got, &pixel[..3]),
                    0 => assert_eq!(got, back),
                    _ => {}
                }
            }
        }
    }
}

/// Rows of every length: the fast form has the plain one's bits, and a float is what the formula says.
#[test]
fn samples_are_scaled_alike() {
    let scale = Scale { less: [122.77, 116.75, 104.09], over: [68.5, 66.63, 70.32], times: 0.5 };
    let triples: Vec<u8> = (0..3 * 256).map(|n| (n / 3 + n % 3 * 31) as u8).collect();
    for pixels in (1..40).chain([256]) {
        let mut rows = [0, 1, 2, 3].map(|_| vec![0.0; 3 * pixels]);
        for (n, row) in rows.iter_mut().enumerate() {
            scaled(n % 2 == 1 && fast(), &triples[..3 * pixels], &scale, n > 1, row);
        }
        let [plain, quick, apart, quick_apart] = rows;
        assert_eq!((&plain, &apart), (&quick, &quick_apart));
        for (n, (&got, &v)) in plain.iter().zip(&triples).enumerate() {
            let (x, c) = (n / 3, n % 3);
            assert_eq!(got, (f32::from(v) - scale.less[c]) / scale.over[c] * scale.times);
            assert_eq!(got, apart[c * pixels + x]);
        }
    }
}
