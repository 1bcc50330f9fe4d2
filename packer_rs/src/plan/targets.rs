//! Where what is annotated in an image is seen: through its crop, its mirror and its warp. In: an image's planned geometry.
//! Out: the part of a box that is seen, and the pixel of the source that stands at a cell's middle.
//!
//! Apart from the renderer, since this is the plan's own arithmetic, for pixels of any kind: the same numbers that place an
//! image's pixels place its boxes and masks. Integers, + − × ÷ alone, so every processor finds the same.

use crate::slots::{Crop, Warp};

/// A box that the picture cuts is dropped where no more than this share of a side is left of it.
const LEAST: f64 = 1e-3;

/// How one image is seen.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The part of the oriented source image.
    pub crop: Crop,
    /// Whether it is mirrored left to right.
    pub flip: bool,
    /// What becomes of the crop then.
    pub warp: Option<&'a Warp>,
}

/// x0, y0, x1, y1.
type Corners = [f64; 4];

fn sides([x0, y0, x1, y1]: Corners) -> (f64, f64) {
    (x1 - x0, y1 - y0)
}

fn area(corners: Corners) -> f64 {
    let (width, height) = sides(corners);
    width.max(0.0) * height.max(0.0)
}

fn within([x0, y0, x1, y1]: Corners, [left, top, right, bottom]: Corners) -> Corners {
    [x0.max(left), y0.max(top), x1.min(right), y1.min(bottom)]
}

impl Seen<'_> {
    /// The part that is seen of a box of the oriented source image of `size` (width, height) pixels, in fractions of the
    /// picture; of a warped one the upright hull of its corners.
    ///
    /// None where nothing is seen of it, or where the picture cuts it and leaves less than `clip` of what the image has of its
    /// area, or no more than a thousandth of the picture along a side.
    pub fn clipped(&self, corners: [f32; 4], (width, height): (i32, i32), clip: f32) -> Option<[f32; 4]> {
        let c = self.crop;
        let (left, top, across, down) = (f64::from(c.left), f64::from(c.top), f64::from(c.width), f64::from(c.height));
        let there = within(corners.map(f64::from), [0.0, 0.0, f64::from(width), f64::from(height)]);
        let cut = within(there, [left, top, left + across, top + down]);
        let (mut whole, mut share) = (cut == there, area(cut) / area(there));
        let mut seen =
            [(cut[0] - left) / across, (cut[1] - top) / down, (cut[2] - left) / across, (cut[3] - top) / down];
        if self.flip {
            seen = [1.0 - seen[2], seen[1], 1.0 - seen[0], seen[3]];
        }
        if area(seen) <= 0.0 {
            return None;
        }
        if let Some(warp) = self.warp.filter(|warp| warp.map != Warp::NONE.map) {
            let hull = forwards(&warp.map, seen);
            seen = within(hull, [0.0, 0.0, 1.0, 1.0]);
            share *= area(seen) / area(hull);
            whole &= seen == hull;
        }
        let (wide, high) = sides(seen);
        let stays = wide > 0.0 && high > 0.0 && (whole || (share >= f64::from(clip) && wide > LEAST && high > LEAST));
        stays.then(|| seen.map(|side| side as f32))
    }

    /// Whether cells stand in lines along the source's own, so that `line` finds them.
    pub fn straight(&self) -> bool {
        self.warp.is_none_or(|warp| warp.map == Warp::NONE.map)
    }

    /// The source's columns (or, with `down`, its rows) at the middles of `count` cells across the plain picture, one after
    /// another. They rise; a mirror is for whoever reads them to mind.
    pub fn line(&self, down: bool, count: usize) -> impl Iterator<Item = u32> {
        let (first, length) = if down { (self.crop.top, self.crop.height) } else { (self.crop.left, self.crop.width) };
        let (first, length, count) = (first as u64, length as u64, count as u64);
        (0..count).map(move |n| (first + (2 * n + 1) * length / (2 * count)) as u32)
    }

    /// (column, row) of the source at the middle of the cell (`x`, `y`) of `cells` (across, down) of the picture as it is seen;
    /// None where that shows what is outside of the crop.
    pub fn pixel(&self, (x, y): (usize, usize), (across, down): (usize, usize)) -> Option<(u32, u32)> {
        let map = self.warp.map_or(Warp::NONE.map, |warp| warp.map).map(f64::from);
        let (u, v) = ((x as f64 + 0.5) / across as f64, (y as f64 + 0.5) / down as f64);
        let at = |n: usize| map[n] * u + map[n + 1] * v + map[n + 2];
        let (mut u, v) = (at(0) / at(6), at(3) / at(6));
        if self.flip {
            u = 1.0 - u;
        }
        let place = |share: f64, first: i32, length: i32| {
            let inside = (0.0..1.0).contains(&share);
            inside.then(|| (first + ((share * f64::from(length)) as i32).min(length - 1)) as u32)
        };
        Some((place(u, self.crop.left, self.crop.width)?, place(v, self.crop.top, self.crop.height)?))
    }
}

/// The upright hull in the warped picture of a box of the plain one. `map` leads the other way, so its adjugate leads here.
fn forwards(map: &[f32; 9], [x0, y0, x1, y1]: Corners) -> Corners {
    let [a, b, c, d, e, f, g, h, i] = map.map(f64::from);
    let back = [
        [e * i - f * h, c * h - b * i, b * f - c * e],
        [f * g - d * i, a * i - c * g, c * d - a * f],
        [d * h - e * g, b * g - a * h, a * e - b * d],
    ];
    let mut hull = [f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY];
    for (x, y) in [(x0, y0), (x1, y0), (x1, y1), (x0, y1)] {
        let [x, y, z] = back.map(|row| row[0] * x + row[1] * y + row[2]);
        let (x, y) = (x / z, y / z);
        hull = [hull[0].min(x), hull[1].min(y), hull[2].max(x), hull[3].max(y)];
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn crop() -> impl Strategy<Value = Crop> {
        (0..40i32, 0..40i32, 1..50i32, 1..50i32).prop_map(|(top, left, height, width)| Crop {
            top,
            left,
            height,
            width,
        })
    }

    proptest! {
        /// A cell of a box of whole pixels lies in what is seen of the box wherever its source pixel lies in the box.
        #[test]
        fn a_pixel_of_a_box_is_seen_in_the_box(
            crop in crop(),
            flip: bool,
            corner in (0..90i32, 0..90i32),
            side in (1..60i32, 1..60i32),
            cells in (1..40usize, 1..40usize),
            slant in prop::option::of((-0.4f32..0.4, -0.4f32..0.4, -0.3f32..0.3, -0.3f32..0.3)),
        ) {
            let warp = slant.map(|(b, d, c, f)| Warp { map: [1.0, b, c, d, 1.0, f, 0.0, 0.0, 1.0], layers: 0 });
            let seen = Seen { crop, flip, warp: warp.as_ref() };
            let ((x0, y0), (width, height)) = (corner, side);
            let found = seen.clipped([x0, y0, x0 + width, y0 + height].map(|v| v as f32), (200, 200), 0.0);
            for y in 0..cells.1 {
                for x in 0..cells.0 {
                    let Some((left, top)) = seen.pixel((x, y), cells) else { continue };
                    let inside = (x0..x0 + width).contains(&(left as i32)) && (y0..y0 + height).contains(&(top as i32));
                    let (u, v) = ((x as f32 + 0.5) / cells.0 as f32, (y as f32 + 0.5) / cells.1 as f32);
                    if let (true, Some([a, b, c, d])) = (inside, found) {
                        prop_assert!(u >= a - 1e-5 && u <= c + 1e-5 && v >= b - 1e-5 && v <= d + 1e-5);
                    }
                    // A crop's share of a pixel may be less than a thousandth of it only where it is huge.
                    prop_assert!(!inside || found.is_some());
                }
            }
        }

        /// Without a warp both ways to a cell's source pixel agree, and a mirror mirrors.
        #[test]
        fn lines_are_pixels(crop in crop(), flip: bool, cells in (1..40usize, 1..40usize)) {
            let seen = Seen { crop, flip, warp: None };
            let columns: Vec<u32> = seen.line(false, cells.0).collect();
            let rows: Vec<u32> = seen.line(true, cells.1).collect();
            prop_assert!(columns.is_sorted() && rows.is_sorted());
            let last = cells.0 - 1;
            for (y, &expected) in rows.iter().enumerate() {
                for x in 0..cells.0 {
                    let (found, row) = seen.pixel((x, y), cells).expect("inside");
                    let column = columns[if flip { last - x } else { x }];
                    // The middle of a cell may fall between two pixels, where a mirror takes the other one.
                    prop_assert!(row.abs_diff(expected) <= 1);
                    prop_assert!(found.abs_diff(column) <= 1);
                }
            }
        }
    }

    #[test]
    fn what_a_crop_leaves_decides() {
        let crop = Crop { top: 0, left: 0, height: 100, width: 100 };
        let seen = Seen { crop, flip: true, warp: None };
        let clipped = |corners, clip| seen.clipped(corners, (1000, 1000), clip);
        assert_eq!(clipped([50.0, 0.0, 150.0, 50.0], 0.5), Some([0.0, 0.0, 0.5, 0.5]));
        assert_eq!(clipped([50.0, 0.0, 150.1, 50.0], 0.5), None);
        assert_eq!(clipped([99.95, 0.0, 150.0, 50.0], 0.0), None);
        assert_eq!(clipped([100.0, 0.0, 150.0, 50.0], 0.0), None);
        // What the image does not have of a box is no part that a crop could leave.
        assert!(clipped([-300.0, 0.0, 100.0, 50.0], 1.0).is_some());
        // A whole one stays however small it is.
        assert!(clipped([7.0, 7.0, 7.01, 7.01], 1.0).is_some());
    }
}
