//! An image between its file and its patches. In: what is wanted of it, samples as decoders give them. Out: planes in a
//! buffer that is used again, checked against what was indexed.
//!
//! Apart from the decoders, since each of them fills it and `resize` reads it.

use crate::failure::{Failure, Reason};
use crate::pixels::kernels::{SLACK, blend, fast, over};
use crate::pixels::matrix::Matrix;
use crate::slots::Crop;

/// Buffers larger than this are given back after the image that needed them.
pub const KEEP_BYTES: usize = 64 << 20;

/// What is wanted of an image.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Width and height as stored, from the index.
    pub size: (u32, u32),
    /// The crop in the stored frame, in pixels.
    pub crop: Crop,
    /// The largest width and height, over all views, to which the crop will be resized.
    pub target: (u32, u32),
    /// Whether JPEG may be decoded at a smaller DCT scale.
    pub dct_scaling: bool,
    /// RGB under transparent pixels.
    pub background: [u8; 3],
    /// Largest number of pixels that is decoded at all.
    pub max_pixels: u64,
    /// What is white where samples have 16 bits.
    pub depth: Depth,
    /// Whether JPEG files that are damaged, but of which nothing is missing, are taken.
    pub keep_damaged: bool,
    /// Whether colour profiles other than sRGB are applied.
    pub convert: bool,
}

/// Which value is white in samples of 16 bits: many files use fewer of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// The largest there is.
    #[default]
    Full,
    /// The image's own largest.
    Largest,
    /// The largest of so many bits.
    Bits(u8),
}

/// An image of 16 bits a sample that stays below this, of 255, is nearly black.
const NEARLY_BLACK: u8 = 16;

/// How samples lie in the planes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colours {
    /// One plane of grey.
    #[default]
    Grey,
    /// One plane of R, G, B triples.
    Rgb,
    /// Three planes Y, Cb, Cr of JFIF, each at its own scale.
    Ycc,
    /// The same by another matrix, from 0 to 255 or from 16 to 235.
    Yuv(Matrix),
}

/// One plane of samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plane {
    /// First byte in the buffer.
    pub start: usize,
    /// Bytes from row to row.
    pub stride: usize,
    /// Pixels per row that belong to the image.
    pub width: u32,
    /// Rows that belong to the image.
    pub height: u32,
    /// Plane pixels per source pixel, across and down.
    pub scale: (f64, f64),
}

/// A decoded image.
#[derive(Clone, Debug, Default)]
pub struct Pixels {
    /// How samples lie.
    pub colours: Colours,
    /// One or three planes.
    pub planes: [Plane; 3],
    /// Their bytes; longer than needed, since it is used again.
    pub data: Vec<u8>,
    /// Whether the file has 16 bits a sample of which it uses so few that it is nearly black.
    pub dark: bool,
}

impl Pixels {
    /// One tight plane of `size`, at the source's scale; `data` has room for it afterwards.
    pub(crate) fn whole(&mut self, colours: Colours, (width, height): (u32, u32)) {
        let stride = width as usize * if colours == Colours::Rgb { 3 } else { 1 };
        self.colours = colours;
        self.planes[0] = Plane { start: 0, stride, width, height, scale: (1.0, 1.0) };
        room(&mut self.data, stride * height as usize);
    }

    /// Takes pixels that are in memory already, as R, G, B triples.
    pub fn take_rgb(&mut self, rgb: &[u8], size: (u32, u32)) {
        self.whole(Colours::Rgb, size);
        self.data[..rgb.len()].copy_from_slice(rgb);
    }

    /// The samples that belong to the image, plane after plane.
    pub(crate) fn samples(&self) -> Vec<u8> {
        let (planes, channels) = match self.colours {
            Colours::Grey => (1, 1),
            Colours::Rgb => (1, 3),
            Colours::Ycc | Colours::Yuv(_) => (3, 1),
        };
        let rows = self.planes[..planes].iter().flat_map(|p| (0..p.height as usize).map(move |y| (p, y)));
        rows.flat_map(|(p, y)| &self.data[p.start + y * p.stride..][..p.width as usize * channels]).copied().collect()
    }

    /// Gives back a buffer that only one image in many needs.
    pub fn trim(&mut self) {
        if self.data.len() > KEEP_BYTES {
            self.data = Vec::new();
        }
    }
}

/// Grows a buffer to `len` bytes at least, and the slack that kernels read; never shrinks it and never clears what it
/// has.
pub(crate) fn room(buffer: &mut Vec<u8>, len: usize) {
    let len = len + SLACK;
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}

/// A longer side is refused: rows between two passes of a resize take 200 bytes for each of its pixels.
const LONGEST_SIDE: u32 = 1 << 20;

/// Refuses what the header claims, before anything is allocated for it.
pub(crate) fn check_size(found: (u32, u32), wanted: &Wanted) -> Result<(), Failure> {
    let (width, height) = found;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > wanted.max_pixels {
        return Err(Failure::decode(
            Reason::TooLarge,
            format!("{width} × {height} pixels, more than render.max_pixels = {}", wanted.max_pixels),
        ));
    }
    if width.max(height) > LONGEST_SIDE {
        let detail = format!("{width} × {height} pixels, at most {LONGEST_SIDE} on a side are read");
        return Err(Failure::decode(Reason::TooLarge, detail));
    }
    if found != wanted.size {
        let (w, h) = wanted.size;
        return Err(Failure::decode(
            Reason::Changed,
            format!("{width} × {height} pixels as stored, but {w} × {h} when it was indexed"),
        ));
    }
    Ok(())
}

/// Makes 8 bits of each of `count` samples of 16 bits, in place. `read` joins the bytes of one. Alpha is scaled in
/// full.
pub(crate) fn narrow(
    samples: &mut [u8],
    count: usize,
    channels: usize,
    depth: Depth,
    read: impl Fn([u8; 2]) -> u16,
    out: &mut Pixels,
) {
    let colour = |n: usize| channels % 2 == 1 || n % channels != channels - 1;
    let value = |samples: &[u8], n: usize| read([samples[2 * n], samples[2 * n + 1]]);
    let white = match depth {
        Depth::Full => u16::MAX,
        Depth::Largest => (0..count).filter(|&n| colour(n)).map(|n| value(samples, n)).max().unwrap_or(0).max(1),
        Depth::Bits(bits) => (1 << bits.min(15)) - 1,
    };
    let mut largest = 0;
    for n in 0..count {
        let wide = value(samples, n);
        samples[n] = match white {
            _ if !colour(n) => (wide >> 8) as u8,
            u16::MAX => (wide >> 8) as u8,
            white => ((u32::from(wide.min(white)) * 255 + u32::from(white) / 2) / u32::from(white)) as u8,
        };
        if colour(n) {
            largest = largest.max(samples[n]);
        }
    }
    out.dark = largest < NEARLY_BLACK;
}

/// Whether samples that were 16 bits wide are nearly black.
pub(crate) fn nearly_black(samples: &[u8]) -> bool {
    samples.iter().all(|&sample| sample < NEARLY_BLACK)
}

/// Lays samples of `channels` (1 grey, 2 grey and alpha, 3 RGB, 4 RGBA) over the background, tightly, into `out`.
pub(crate) fn compose(samples: &[u8], channels: usize, wanted: &Wanted, out: &mut Pixels) {
    let back = wanted.background;
    let pixels = wanted.size.0 as usize * wanted.size.1 as usize;
    out.whole(if channels == 1 { Colours::Grey } else { Colours::Rgb }, wanted.size);
    match channels {
        1 | 3 => out.data[..pixels * channels].copy_from_slice(&samples[..pixels * channels]),
        2 => {
            for (to, from) in out.data.chunks_exact_mut(3).zip(samples[..pixels * 2].chunks_exact(2)) {
                for c in 0..3 {
                    to[c] = blend(back[c], from[0], from[1]);
                }
            }
        }
        _ => over(fast(), back, &samples[..pixels * 4], &mut out.data[..pixels * 3]),
    }
}
