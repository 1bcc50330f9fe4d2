//! Pixels → target size, antialiased. In: decoded planes and a crop in source pixels. Out: one plane per colour at the
//! target's size, still in the stored frame.
//!
//! As in Pillow's `resize(box=…)`, a filter at the crop's edge sees the pixels beyond it, down to the image's own edge.
//! Since each plane knows its scale, the same crop serves planes at any DCT scale and sampling, fractions of a pixel
//! included. Sixteen target rows at a time: first down the columns into a strip of as many rows, which stays in a near
//! cache. The strip is then turned, so that the second pass, too, adds up whole vectors, one value of each row in them,
//! with few instructions for few taps. RGB is taken apart in turning, so one form of that pass serves grey, Y, Cb, Cr
//! and RGB. Values between the passes keep six bits after the point and are not clipped. `Resizer::bytewise` does as Pillow
//! and torchvision do: rows first, to whole bytes, then columns.

use crate::pixels::kernels::{ROWS, SLACK, across, down, down_bytes, fast, turn, widen};
use crate::pixels::picture::{Colours, KEEP_BYTES, Pixels, Plane, room};
use crate::pixels::taps::{Axis, Filter, GROUP, Taps};
use crate::slots::Crop;

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
    /// Some rows between the two passes, and the same turned.
    strip: Vec<i16>,
    turned: Vec<i16>,
    /// Whether rows go first, and what stands between the passes then.
    bytewise: bool,
    between: Vec<u8>,
}

impl Default for Resizer {
    fn default() -> Self {
        let (strip, turned, between) = (Vec::new(), Vec::new(), Vec::new());
        Self { fast: fast(), taps: Default::default(), strip, turned, bytewise: false, between }
    }
}

impl Resizer {
    /// A resizer that uses the plain forms of the kernels, to compare with.
    pub fn plain() -> Self {
        Self { fast: false, ..Self::default() }
    }

    /// The same resizer, but one that rounds between the passes, as others do.
    pub fn bytewise(self) -> Self {
        Self { bytewise: true, ..self }
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
        // Kernels read a little beyond the last row.
        room(&mut out.data, stride * height * planes);
        (out.colours, out.width, out.height, out.stride) = (pixels.colours, width, height, stride);
        let stored = if pixels.colours == Colours::Rgb { 1 } else { planes };
        for (c, plane) in pixels.planes[..stored].iter().enumerate() {
            let to = &mut out.data[c * stride * height..];
            self.plane(pixels, plane, usize::from(c > 0), crop, (width, height, stride), filter, to);
        }
        if self.between.len() + 2 * (self.strip.len() + self.turned.len()) > KEEP_BYTES {
            (self.strip, self.turned, self.between) = (Vec::new(), Vec::new(), Vec::new());
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
        vertical.set(Axis { source: plane.height as usize, from, to, target: height, filter, even: false });
        let (from, to) = span(crop.left, crop.width, plane.scale.0, plane.width);
        horizontal.set(Axis { source: plane.width as usize, from, to, target: width, filter, even: true });
        let (vertical, horizontal) = (&*vertical, &*horizontal);
        let (first, last) = horizontal.span;
        let (skip, len) = (first * channels, (last - first) * channels);
        // An odd number of cache lines, so that rows do not crowd into the same places of the cache.
        let pitch = (len + SLACK).next_multiple_of(64) + 32;
        wide(&mut self.strip, ROWS * pitch);
        wide(&mut self.turned, ROWS * (len + horizontal.width * channels + SLACK));
        let data = &pixels.data[plane.start..];
        if self.bytewise {
            let (top, bottom) = vertical.span;
            let rows = bottom - top;
            room(&mut self.between, channels * rows * stride);
            for y in (0..rows).step_by(ROWS) {
                let count = ROWS.min(rows - y);
                for (row, to) in (top + y..).zip(self.strip.chunks_exact_mut(pitch)).take(count) {
                    widen(&data[row * plane.stride + skip..][..len], to);
                }
                turn(self.fast, &self.strip, pitch, last - first, channels, &mut self.turned);
                for c in 0..channels {
                    let to = &mut self.between[(c * rows + y) * stride..];
                    across(self.fast, &self.turned, (channels, c), horizontal, first, (count, stride), to);
                }
            }
            for (n, to) in (0..channels * height).map(|n| (n, n * stride)) {
                let start = vertical.starts[n % height] as usize - top;
                let weights = vertical.of(n % height);
                let weights = &weights[..weights.len().min(rows - start)];
                let from = &self.between[(n / height * rows + start) * stride..];
                down_bytes(self.fast, from, stride, weights, width, &mut out[to..]);
            }
            return;
        }
        for y in (0..height).step_by(ROWS) {
            let rows = ROWS.min(height - y);
            for (target, row) in (y..y + rows).zip(self.strip.chunks_exact_mut(pitch)) {
                let start = vertical.starts[target] as usize;
                let weights = vertical.of(target);
                // A window that would end below the image has zeros there: they are not read.
                let weights = &weights[..weights.len().min(plane.height as usize - start)];
                down(self.fast, &data[start * plane.stride + skip..], plane.stride, weights, len, row);
            }
            turn(self.fast, &self.strip, pitch, last - first, channels, &mut self.turned);
            for c in 0..channels {
                let to = &mut out[(c * height + y) * stride..];
                across(self.fast, &self.turned, (channels, c), horizontal, first, (rows, stride), to);
            }
        }
    }
}

fn wide(values: &mut Vec<i16>, len: usize) {
    if values.len() < len {
        values.resize(len, 0);
    }
}
