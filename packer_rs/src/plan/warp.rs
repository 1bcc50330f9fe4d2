//! How an image is turned, sheared, moved and tilted. In: a key of (seed, source, source epoch), a row and its crop. Out: a
//! `Warp` in fractions of the picture, and so the same at every resolution, patch size and view.
//!
//! Apart from `draw`, since nothing of the packing depends on it. Sources: RandAugment (arXiv 1909.13719) as AugReg has it
//! (arXiv 2106.10270, section 3.3; `autoaugment.py` of big_vision); torchvision's `RandomAffine` and `RandomPerspective`.

use crate::plan::config::{WarpConfig, WarpKind};
use crate::plan::random::{below, philox, unit};
use crate::slots::{Crop, Warp};

/// Purpose of these draws; those of `draw` are below it.
const WARP: u32 = 5;

/// Operations of RandAugment that move pixels, and those that change colours (`navit_model/train/augment.py`).
const MOVING: u32 = 5;
const COLOURS: u32 = 7;

/// No further than this share of a side: beyond it nothing of the picture would be left.
const FURTHEST: f64 = 0.9;

type Matrix = [[f64; 3]; 3];

const UNMOVED: Matrix = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

/// What becomes of one image.
pub fn draw_warp(config: &WarpConfig, key: u64, row: u64, crop: Crop) -> Warp {
    let bits = |n: u32| philox(key, [row as u32, (row >> 32) as u32, WARP, n]);
    // Angles are of the crop as it is in the source; a grid that rounds its aspect ratio squeezes the warp with it.
    let aspect = f64::from(crop.width) / f64::from(crop.height);
    let (map, layers) = match config.kind {
        WarpKind::Random => (random(config, bits, aspect), 0),
        WarpKind::RandAugment => randaugment(config, bits, aspect),
    };
    let middle = 0.5 * (map[2][0] + map[2][1]) + map[2][2];
    let mut flat = [0.0; 9];
    for (to, from) in flat.iter_mut().zip(map.as_flattened()) {
        *to = (from / middle) as f32;
    }
    Warp { map: flat, layers }
}

/// Torchvision's `RandomAffine` at scale 1, then its `RandomPerspective`, backwards: from the warped picture to the plain.
fn random(config: &WarpConfig, bits: impl Fn(u32) -> [u32; 4], aspect: f64) -> Matrix {
    let [chosen, turned, sheared_x, sheared_y] = bits(0);
    if unit(chosen) >= config.probability {
        return UNMOVED;
    }
    let [right, down, ..] = bits(1);
    let signed = |bits: u32, most: f64| most * (2.0 * unit(bits) - 1.0);
    let radians = |bits: u32, most: f64| signed(bits, most) * (std::f64::consts::PI / 180.0);
    let (turn, slant) = (radians(turned, config.rotation), radians(sheared_x, config.shear));
    let rise = radians(sheared_y, config.shear);
    // [[a, b], [c, d]] turns and shears square pixels about the middle; its determinant is 1.
    let (along, across) = (libm::cos(turn - rise) / libm::cos(rise), libm::sin(turn - rise) / libm::cos(rise));
    let (a, b) = (along, -along * libm::tan(slant) - libm::sin(turn));
    let (c, d) = (across, -across * libm::tan(slant) + libm::cos(turn));
    let back = about([[d, -b / aspect, 0.0], [-c * aspect, a, 0.0], [0.0, 0.0, 1.0]]);
    let (x, y) = (signed(right, config.translation), signed(down, config.translation));
    let affine = times(back, [[1.0, 0.0, -x], [0.0, 1.0, -y], [0.0, 0.0, 1.0]]);
    times(affine, tilt(0.5 * config.perspective, bits(2), bits(3)))
}

/// `layers` operations, each out of all twelve; here those that move pixels, one after another, and how many they are.
fn randaugment(config: &WarpConfig, bits: impl Fn(u32) -> [u32; 4], aspect: f64) -> (Matrix, u8) {
    let (mut map, mut moving) = (UNMOVED, 0);
    let strength = config.magnitude / 10.0;
    let (angle, share) = (30.0 * strength * (std::f64::consts::PI / 180.0), 0.3 * strength);
    let way = (100.0 / 224.0 * strength).min(FURTHEST);
    for layer in 0..config.layers {
        let [which, what, sign, _] = bits(layer);
        if unit(which) >= f64::from(MOVING) / f64::from(MOVING + COLOURS) {
            continue;
        }
        let sign = if sign >> 31 == 0 { 1.0 } else { -1.0 };
        let mut step = UNMOVED;
        match below(what, u64::from(MOVING)) {
            0 => {
                let (cos, sin) = (libm::cos(angle), sign * libm::sin(angle));
                step = about([[cos, -sin / aspect, 0.0], [sin * aspect, cos, 0.0], [0.0, 0.0, 1.0]]);
            }
            // About the upper left corner, as TensorFlow's.
            1 => step[0][1] = sign * share / aspect,
            2 => step[1][0] = sign * share * aspect,
            3 => step[0][2] = sign * way,
            _ => step[1][2] = sign * way,
        }
        // A point of the last picture goes back through the last operation first.
        map = times(map, step);
        moving += 1;
    }
    (map, moving)
}

/// From the picture whose corners were moved inwards, each by up to `most` of a side, back to the plain one.
fn tilt(most: f64, first: [u32; 4], second: [u32; 4]) -> Matrix {
    let [x0, y0, x1, y1] = first.map(|bits| most * unit(bits));
    let [x2, y2, x3, y3] = second.map(|bits| most * unit(bits));
    let (x1, x2, y2, y3) = (1.0 - x1, 1.0 - x2, 1.0 - y2, 1.0 - y3);
    // The unit square onto the quadrilateral (Heckbert, *Fundamentals of texture mapping*, 1989, section 2.2.3).
    let (dx1, dx2, sx) = (x1 - x2, x3 - x2, x0 - x1 + x2 - x3);
    let (dy1, dy2, sy) = (y1 - y2, y3 - y2, y0 - y1 + y2 - y3);
    let area = dx1 * dy2 - dx2 * dy1;
    let (g, h) = ((sx * dy2 - dx2 * sy) / area, (dx1 * sy - sx * dy1) / area);
    let [[a, b, c], [d, e, f]] = [[x1 - x0 + g * x1, x3 - x0 + h * x3, x0], [y1 - y0 + g * y1, y3 - y0 + h * y3, y0]];
    // Its adjugate is its inverse, up to a factor.
    [
        [e - f * h, c * h - b, b * f - c * e],
        [f * g - d, a - c * g, c * d - a * f],
        [d * h - e * g, b * g - a * h, a * e - b * d],
    ]
}

/// The same about the picture's middle.
fn about(matrix: Matrix) -> Matrix {
    let shifted = |by: f64| [[1.0, 0.0, by], [0.0, 1.0, by], [0.0, 0.0, 1.0]];
    times(times(shifted(0.5), matrix), shifted(-0.5))
}

fn times(a: Matrix, b: Matrix) -> Matrix {
    let mut out = [[0.0; 3]; 3];
    for (row, to) in a.iter().zip(&mut out) {
        for (j, to) in to.iter_mut().enumerate() {
            *to = row[0] * b[0][j] + row[1] * b[1][j] + row[2] * b[2][j];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(kind: WarpKind) -> WarpConfig {
        let (rotation, shear, translation, perspective) = (0.0, 0.0, 0.0, 0.0);
        WarpConfig { kind, rotation, shear, translation, perspective, probability: 1.0, layers: 2, magnitude: 10.0 }
    }

    fn crop(width: i32, height: i32) -> Crop {
        Crop { top: 0, left: 0, height, width }
    }

    fn to(warp: &Warp, x: f64, y: f64) -> (f64, f64) {
        let m = warp.map.map(f64::from);
        let z = m[6] * x + m[7] * y + m[8];
        ((m[0] * x + m[1] * y + m[2]) / z, (m[3] * x + m[4] * y + m[5]) / z)
    }

    fn near(a: (f64, f64), b: (f64, f64)) -> bool {
        (a.0 - b.0).abs() < 1e-5 && (a.1 - b.1).abs() < 1e-5
    }

    proptest! {
        #[test]
        fn a_turn_keeps_distances_in_pixels_and_the_middle(
            key: u64, row: u64, w in 10i32..500, h in 10i32..500, most in 1.0f64..180.0,
        ) {
            let warp = draw_warp(&WarpConfig { rotation: most, ..config(WarpKind::Random) }, key, row, crop(w, h));
            prop_assert!(near(to(&warp, 0.5, 0.5), (0.5, 0.5)));
            let at = |x: f64, y: f64| {
                let (x, y) = to(&warp, x, y);
                ((x - 0.5) * f64::from(w)).hypot((y - 0.5) * f64::from(h))
            };
            let corner = (0.5 * f64::from(w)).hypot(0.5 * f64::from(h));
            prop_assert!((at(0.0, 0.0) / corner - 1.0).abs() < 1e-4);
            prop_assert!((at(1.0, 0.5) / (0.5 * f64::from(w)) - 1.0).abs() < 1e-4);
        }

        #[test]
        fn a_tilt_has_its_corners_within_the_bound(key: u64, row: u64, most in 0.01f64..=0.6) {
            let warp = draw_warp(&WarpConfig { perspective: most, ..config(WarpKind::Random) }, key, row, crop(64, 48));
            // The denominator keeps its sign wherever the picture is seen, and outside there is nothing but fill.
            let m = warp.map.map(f64::from);
            prop_assert!((0.5 * (m[6] + m[7]) + m[8] - 1.0).abs() < 1e-5);
            let mut inside = 0;
            for (i, j) in (0..=40).flat_map(|i| (0..=40).map(move |j| (i, j))) {
                let (x, y) = (f64::from(i) / 40.0, f64::from(j) / 40.0);
                let (u, v) = to(&warp, x, y);
                if (0.0..=1.0).contains(&u) && (0.0..=1.0).contains(&v) {
                    prop_assert!(m[6] * x + m[7] * y + m[8] > 0.0);
                    inside += 1;
                } else {
                    // The middle of the picture is never lost.
                    let edge = x.min(1.0 - x).min(y).min(1.0 - y);
                    prop_assert!(edge <= 0.5 * most + 1e-4, "{x} {y} lead to {u} {v}");
                }
            }
            prop_assert!(inside > 0);
        }

        #[test]
        fn randaugment_moves_by_its_magnitude(key: u64, row: u64, magnitude in 0.0f64..=30.0) {
            let config = WarpConfig { layers: 1, magnitude, ..config(WarpKind::RandAugment) };
            let Warp { map, layers } = draw_warp(&config, key, row, crop(100, 50));
            if layers == 0 {
                prop_assert_eq!(map, Warp::NONE.map);
                return Ok(());
            }
            let s = magnitude / 10.0;
            let same = |found: f32, wanted: f64| (f64::from(found).abs() - wanted).abs() < 1e-5;
            let kinds = [
                same(map[0], (s * std::f64::consts::PI / 6.0).cos()) && same(map[3] / 2.0, (s * std::f64::consts::PI / 6.0).sin()),
                map[0] == 1.0 && same(map[1], 0.15 * s),
                map[0] == 1.0 && same(map[3], 0.6 * s),
                map[0] == 1.0 && same(map[2], (100.0 / 224.0 * s).min(0.9)),
                map[0] == 1.0 && same(map[5], (100.0 / 224.0 * s).min(0.9)),
            ];
            prop_assert!(kinds.contains(&true), "{map:?}");
        }
    }

    #[test]
    fn five_of_twelve_layers_move_and_as_many_images_as_are_wished_are_warped() {
        let config = WarpConfig { layers: 3, ..config(WarpKind::RandAugment) };
        let n = 20_000;
        let layers: u64 = (0..n).map(|row| u64::from(draw_warp(&config, 7, row, crop(9, 9)).layers)).sum();
        assert!((layers as f64 / (3 * n) as f64 - 5.0 / 12.0).abs() < 0.01);
        let config = WarpConfig { kind: WarpKind::Random, rotation: 30.0, probability: 0.25, ..config };
        let warped = (0..n).filter(|&row| draw_warp(&config, 7, row, crop(9, 9)).map != Warp::NONE.map).count();
        assert!((warped as f64 / n as f64 - 0.25).abs() < 0.02);
    }
}
