//! Bytes → pixels, as few of them as the target needs. In: an encoded image, and the crop and sizes that are wanted of it.
//! Out: planes in a buffer that is used again, in the frame in which the file stores them (`orient` turns the small result).
//!
//! Formats are told by their first bytes, never by a file's name. What no decoder here reads goes to a helper process, if there
//! is one (`foreign`), and is a failure of reason `unsupported` otherwise. Whatever a header claims is checked against the index and the pixel cap before anything is allocated.

pub mod foreign;

mod baseline;
mod jpeg;
mod others;
mod png;
mod profile;
mod whole;

use std::sync::Arc;

pub use self::whole::plain_jpeg;
use crate::pixels::decode::foreign::Helpers;
use crate::probe::Format;
use crate::render::ledger::Failure;
use crate::slots::Crop;

/// Buffers larger than this are given back after the image that needed them.
pub const KEEP_BYTES: usize = 64 << 20;

/// A reason that may pass: such a failure fails the request and masks nothing.
pub const OUT_OF_MEMORY: &str = "memory";

/// The other one: a helper process could not be started.
pub const HELPER: &str = "helper";

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
}

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
}

impl Pixels {
    /// One tight plane of `size`, at the source's scale; `data` has room for it afterwards.
    fn whole(&mut self, colours: Colours, (width, height): (u32, u32)) {
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

    /// Gives back a buffer that only one image in many needs.
    pub fn trim(&mut self) {
        if self.data.len() > KEEP_BYTES {
            self.data = Vec::new();
        }
    }
}

/// Grows a buffer to `len` bytes at least, and the slack that kernels read; never shrinks it and never clears what it has.
pub(crate) fn room(buffer: &mut Vec<u8>, len: usize) {
    let len = len + crate::pixels::kernels::SLACK;
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}

/// The decoders of one thread.
pub struct Decoder {
    jpeg: jpeg::Jpeg,
    helpers: Arc<Helpers>,
    scratch: Vec<u8>,
    /// Whether the image decoded last came through a helper with a profile other than sRGB.
    foreign_profile: bool,
}

impl Decoder {
    /// Decoders with empty buffers; `helpers` read what they cannot.
    pub fn new(helpers: Arc<Helpers>) -> Result<Self, Failure> {
        Ok(Self {
            jpeg: jpeg::Jpeg::new(Some(baseline::Baseline::default()))?,
            helpers,
            scratch: Vec::new(),
            foreign_profile: false,
        })
    }

    /// Decoders to compare with: libjpeg-turbo decodes every JPEG file.
    pub fn reference() -> Result<Self, Failure> {
        Ok(Self { jpeg: jpeg::Jpeg::new(None)?, ..Self::new(Arc::default())? })
    }

    /// Decoders to compare with: our own of JPEG files in its plain form.
    pub fn plain() -> Result<Self, Failure> {
        let own = baseline::Baseline::new(false);
        Ok(Self { jpeg: jpeg::Jpeg::new(Some(own))?, ..Self::new(Arc::default())? })
    }

    /// Decodes `bytes` into `out`.
    pub fn decode(&mut self, bytes: &[u8], wanted: &Wanted, out: &mut Pixels) -> Result<(), Failure> {
        self.foreign_profile = false;
        let decoded = match bytes {
            [0xFF, 0xD8, ..] => self.jpeg.decode(bytes, wanted, out),
            [0x89, b'P', b'N', b'G', ..] => png::decode(bytes, wanted, &mut self.scratch, out),
            _ if others::known(bytes) => match others::decode(bytes, wanted, &mut self.scratch, out) {
                Err(e) if e.reason == "unsupported" && is_tiff(bytes) && !self.helpers.is_empty() => {
                    self.foreign(bytes, wanted, out)
                }
                decoded => decoded,
            },
            _ if Format::foreign(bytes).is_some() => self.foreign(bytes, wanted, out),
            [] => Err(fail("truncated", "the file is empty")),
            _ => Err(fail("unsupported", "its first bytes are of no image format that is read here")),
        };
        if self.scratch.len() > KEEP_BYTES {
            self.scratch = Vec::new();
        }
        decoded
    }

    /// Whether `bytes`, which were decoded last, embed a colour profile that does not name sRGB.
    pub fn other_than_srgb(&self, bytes: &[u8]) -> bool {
        self.foreign_profile || profile::other_than_srgb(bytes)
    }

    fn foreign(&mut self, bytes: &[u8], wanted: &Wanted, out: &mut Pixels) -> Result<(), Failure> {
        let reply = self.helpers.pixels(bytes, wanted.max_pixels, &mut self.scratch)?;
        check_size(reply.size, wanted)?;
        let (samples, behind) = self.scratch.split_at(reply.samples);
        compose(samples, reply.channels, wanted, out);
        self.foreign_profile = reply.profile > 0 && !profile::is_srgb(&behind[..reply.profile]);
        Ok(())
    }
}

fn is_tiff(bytes: &[u8]) -> bool {
    matches!(bytes, [b'I', b'I', ..] | [b'M', b'M', ..])
}

fn fail(reason: &'static str, detail: impl Into<String>) -> Failure {
    Failure::new("decode", reason, detail)
}

/// Refuses what the header claims, before anything is allocated for it.
fn check_size(found: (u32, u32), wanted: &Wanted) -> Result<(), Failure> {
    let (width, height) = found;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > wanted.max_pixels {
        return Err(fail(
            "too_large",
            format!("{width} × {height} pixels, more than render.max_pixels = {}", wanted.max_pixels),
        ));
    }
    if found != wanted.size {
        let (w, h) = wanted.size;
        return Err(fail("changed", format!("{width} × {height} pixels as stored, but {w} × {h} when it was indexed")));
    }
    Ok(())
}

/// Lays samples of `channels` (1 grey, 2 grey and alpha, 3 RGB, 4 RGBA) over the background, tightly, into `out`.
fn compose(samples: &[u8], channels: usize, wanted: &Wanted, out: &mut Pixels) {
    let blend = |under: u8, over: u8, alpha: u8| {
        let t = u32::from(under) * (255 - u32::from(alpha)) + u32::from(over) * u32::from(alpha) + 128;
        (((t >> 8) + t) >> 8) as u8
    };
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
        _ => {
            for (to, from) in out.data.chunks_exact_mut(3).zip(samples[..pixels * 4].chunks_exact(4)) {
                for c in 0..3 {
                    to[c] = blend(back[c], from[c], from[3]);
                }
            }
        }
    }
}
