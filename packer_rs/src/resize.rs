//! Pixels → target size, antialiased. In: decoded planes and a crop in source pixels. Out: one plane per colour at the target's
//! size, still in the stored frame.
//!
//! As in Pillow's `resize(box=…)`, a filter at the crop's edge sees the pixels beyond it, down to the image's own edge. Since
//! each plane knows its scale, the same crop serves planes at any DCT scale and sampling, fractions of a pixel included.
//! Two target rows at a time: first down the columns into a pair of rows that stays in the nearest cache, then along them. So
//! one form of the second pass serves grey, Y, Cb, Cr, and RGB, which is taken apart between the two. Values between the passes
//! keep six bits after the point and are not clipped, unlike Pillow's.

use crate::decode::{Colours, Pixels, Plane, room};
use crate::kernels::{SLACK, across, apart, down, fast};
use crate::slots::Crop;
use crate::taps::{Axis, Filter, GROUP, Taps};

/// An image at its target size, in the stored frame: one plane of grey, or three.
#[derive(Default)]
pub struct Small {
    /// What the planes are.
    pub colours: Colours,
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Bytes from row to row.
    pub stride: usize,
    /// The planes, one after the other, each of `stride · height` bytes; longer than needed, since it is used again.
    pub data: Vec<u8>,
}

impl Small {
    /// Plane `c`, with what follows it.
    pub fn plane(&self, c: usize) -> &[u8] {
        &self.data[if self.colours == Colours::Grey { 0 } else { c * self.stride * self.height }..]
    }
}

/// The resizer of one thread.
pub struct Resizer {
    fast: bool,
    /// Weights down and across, for the first plane and for the others: chroma planes share theirs.
    taps: [(Taps, Taps); 2],
    rows: [Vec<i16>; 2],
    apart: [Vec<i16>; 6],
}

impl Default for Resizer {
    fn default() -> Self {
        Self { fast: fast(), taps: Default::default(), rows: Default::default(), apart: Default::default() }
    }
}

impl Resizer {
    /// A resizer that uses the plain forms of the kernels, to compare with.
    pub fn plain() -> Self {
        Self { fast: false, ..Self::default() }
    }

    /// Resizes the crop of `pixels` to `width` × `height`.
    pub fn resize(
        &mut self,
        pixels: &Pixels,
        crop: Crop,
        (width, height): (u32, u32),
        filter: Filter,
        out: &mut Small,
    ) {
        let (width, height) = (width as usize, height as usize);
        let stride = width.next_multiple_of(GROUP);
        let planes = if pixels.colours == Colours::Grey { 1 } else { 3 };
        // Kernels read and write a little beyond the last row.
        room(&mut out.data, stride * (height + 1) * planes + SLACK);
        (out.colours, out.width, out.height, out.stride) = (pixels.colours, width, height, stride);
        let stored = if pixels.colours == Colours::Rgb { 1 } else { planes };
        for (c, plane) in pixels.planes[..stored].iter().enumerate() {
            let to = &mut out.data[c * stride * height..];
            self.plane(pixels, plane, usize::from(c > 0), crop, (width, height, stride), filter, to);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn plane(
        &mut self,
        pixels: &Pixels,
        plane: &Plane,
        which: usize,
        crop: Crop,
        (width, height, stride): (usize, usize, usize),
        filter: Filter,
        out: &mut [u8],
    ) {
        let span = |at: i32, len: i32, scale: f64, limit: u32| {
            // Rounding of the last bit must not push the box over the plane's edge.
            (f64::from(at) * scale, (f64::from(at + len) * scale).min(f64::from(limit)))
        };
        let channels = if pixels.colours == Colours::Rgb { 3 } else { 1 };
        let (from, to) = span(crop.top, crop.height, plane.scale.1, plane.height);
        let (vertical, horizontal) = &mut self.taps[which];
        vertical.set(Axis { source: plane.height as usize, from, to, target: height, filter });
        let (from, to) = span(crop.left, crop.width, plane.scale.0, plane.width);
        horizontal.set(Axis { source: plane.width as usize, from, to, target: width, filter });
        let (vertical, horizontal) = (&*vertical, &*horizontal);
        let (first, last) = horizontal.span;
        let (skip, len) = (first * channels, (last - first) * channels);
        for row in &mut self.rows {
            wide(row, len + horizontal.width + SLACK);
        }
        if channels == 3 {
            for part in &mut self.apart {
                wide(part, last - first + horizontal.width + SLACK);
            }
        }
        let data = &pixels.data[plane.start..];
        for y in (0..height).step_by(2) {
            // An odd last row is done twice, the second time into the row below the image.
            for (n, row) in self.rows.iter_mut().enumerate() {
                let target = (y + n).min(height - 1);
                let start = vertical.starts[target] as usize;
                let weights = vertical.of(target);
                // A window that would end below the image has zeros there: they are not read.
                let weights = &weights[..weights.len().min(plane.height as usize - start)];
                down(self.fast, &data[start * plane.stride + skip..], plane.stride, weights, len, row);
            }
            if channels == 1 {
                let (upper, lower) = out[y * stride..].split_at_mut(stride);
                let rows = [self.rows[0].as_slice(), self.rows[1].as_slice()];
                across(self.fast, rows, horizontal, first, [upper, &mut lower[..stride]]);
                continue;
            }
            for (n, row) in self.rows.iter().enumerate() {
                let [r, g, b] = &mut self.apart[n * 3..n * 3 + 3] else { continue };
                apart(self.fast, row, last - first, [r, g, b]);
            }
            for c in 0..3 {
                // Below the last row of plane c lies plane c + 1, whose first row is done already: the spare row takes it.
                let (upper, lower) = out[(c * height + y) * stride..].split_at_mut(stride);
                let rows = [self.apart[c].as_slice(), self.apart[c + 3].as_slice()];
                if y + 1 < height {
                    across(self.fast, rows, horizontal, first, [upper, &mut lower[..stride]]);
                } else {
                    let spare = (3 - c) * height * stride - y * stride - stride;
                    let last = &mut lower[spare..spare + stride];
                    across(self.fast, rows, horizontal, first, [upper, last]);
                }
            }
        }
    }
}

fn wide(row: &mut Vec<i16>, len: usize) {
    if row.len() < len {
        row.resize(len, 0);
    }
}
