//! Bytes → pixels, as few of them as the target needs. In: an encoded image, and the crop and sizes that are wanted of
//! it. Out: planes in a buffer that is used again, in the frame in which the file stores them (`orient` turns the small
//! result).
//!
//! Formats are told by their first bytes, never by a file's name. What no decoder here reads goes to a helper process,
//! if there is one (`foreign`), and is a failure of reason `unsupported` otherwise. Whatever a header claims is checked
//! against the index and the pixel cap before anything is allocated.

pub mod foreign;

mod avif;
mod chroma;
mod jpeg;
pub(crate) mod jxl;
mod lzw;
mod oddities;
mod others;
mod png;
pub mod profile;
mod scans;
mod webp;
mod whole;

use std::sync::Arc;

pub use self::png::labels::Samples;
use self::profile::Kind;
pub use self::whole::plain_jpeg;
use crate::failure::{Failure, Reason, caught};
use crate::pixels::decode::foreign::Helpers;
use crate::pixels::format::{Format, is_jxl};
use crate::pixels::picture::{KEEP_BYTES, Pixels, Wanted, check_size, compose, nearly_black};

/// The decoders of one thread.
pub struct Decoder {
    jpeg: jpeg::Jpeg,
    png: Option<png::Plain>,
    lzw: Option<lzw::Lzw>,
    jxl: jxl::Jxl,
    helpers: Arc<Helpers>,
    scratch: Vec<u8>,
    /// The profile of the image decoded last, where it is none of sRGB and was not applied.
    profile: Option<Kind>,
}

impl Decoder {
    /// Decoders with empty buffers; `helpers` read what they cannot.
    pub fn new(helpers: Arc<Helpers>) -> Result<Self, Failure> {
        Ok(Self {
            jpeg: jpeg::Jpeg::new(Some(navit_jpeg::Decoder::default()), false)?,
            png: Some(png::Plain::default()),
            lzw: Some(lzw::Lzw::default()),
            jxl: jxl::Jxl::default(),
            helpers,
            scratch: Vec::new(),
            profile: None,
        })
    }

    /// Decoders that read JPEG as Pillow and torchvision do: all of its pixels as RGB, chroma smoothed, before anything is
    /// resized.
    pub fn exact(helpers: Arc<Helpers>) -> Result<Self, Failure> {
        Ok(Self { jpeg: jpeg::Jpeg::new(Some(navit_jpeg::Decoder::default()), true)?, ..Self::new(helpers)? })
    }

    /// Decoders to compare with: libjpeg-turbo decodes every JPEG file, the crates `png` and `tiff` all of theirs.
    pub fn reference() -> Result<Self, Failure> {
        Ok(Self { jpeg: jpeg::Jpeg::new(None, false)?, png: None, lzw: None, ..Self::new(Arc::default())? })
    }

    /// Decoders to compare with: our own of JPEG files in its plain form.
    pub fn plain() -> Result<Self, Failure> {
        let own = navit_jpeg::Decoder::new(false);
        Ok(Self { jpeg: jpeg::Jpeg::new(Some(own), false)?, ..Self::new(Arc::default())? })
    }

    /// Decodes `bytes` into `out`.
    pub fn decode(&mut self, bytes: &[u8], wanted: &Wanted, out: &mut Pixels) -> Result<(), Failure> {
        self.profile = None;
        out.dark = false;
        let decoded = match bytes {
            [0xFF, 0xD8, ..] => self.jpeg.decode(bytes, wanted, out).and_then(|()| self.converted(bytes, wanted, out)),
            [0x89, b'P', b'N', b'G', ..] => {
                guarded(|| png::decode(self.png.as_mut(), bytes, wanted, &mut self.scratch, out))
                    .and_then(|()| self.converted(bytes, wanted, out))
            }
            _ if webp::known(bytes) => {
                webp::decode(bytes, wanted, &mut self.scratch, out).and_then(|()| self.converted(bytes, wanted, out))
            }
            _ if is_jxl(bytes) => {
                let decoded = guarded(|| self.jxl.decode(bytes, wanted, &mut self.scratch, out));
                decoded.map(|profile| self.profile = profile)
            }
            _ if others::known(bytes) => self.other(bytes, wanted, out),
            _ if Format::foreign(bytes) == Some(Format::Avif) => self.avif(bytes, wanted, out),
            _ if Format::foreign(bytes).is_some() => self.foreign(bytes, wanted, out),
            [] => Err(Failure::decode(Reason::Truncated, "the file is empty")),
            _ => Err(Failure::decode(Reason::Unsupported, "its first bytes are of no image format that is read here")),
        };
        if self.scratch.len() > KEEP_BYTES {
            self.scratch = Vec::new();
        }
        decoded
    }

    /// The colour profile of the image decoded last, where it is none of sRGB and was not applied.
    pub fn profile(&self) -> Option<Kind> {
        self.profile
    }

    /// Applies the profile of an image that a decoder here has read, through a helper. Where that cannot be, the image
    /// stays as it is, and its profile is counted.
    fn converted(&mut self, bytes: &[u8], wanted: &Wanted, out: &mut Pixels) -> Result<(), Failure> {
        self.profile = profile::kind_in(bytes);
        if !wanted.convert || self.profile.is_none() {
            return Ok(());
        }
        let dark = out.dark;
        let done = self.foreign(bytes, wanted, out);
        out.dark = dark;
        match done {
            Err(e) if e.reason.may_pass() => Err(e),
            _ => Ok(()),
        }
    }

    /// What the crate `image` reads, or Pillow in its place.
    fn other(&mut self, bytes: &[u8], wanted: &Wanted, out: &mut Pixels) -> Result<(), Failure> {
        let helped = !self.helpers.is_empty();
        if helped && others::misread(bytes, wanted) {
            return self.foreign(bytes, wanted, out);
        }
        let failure = match guarded(|| others::decode(self.lzw.as_mut(), bytes, wanted, &mut self.scratch, out)) {
            Err(e) if helped && others::may_be_read_elsewhere(&e, bytes) => e,
            decoded => return decoded.and_then(|()| self.converted(bytes, wanted, out)),
        };
        match self.foreign(bytes, wanted, out) {
            Err(e) if !e.reason.may_pass() => Err(failure),
            decoded => decoded,
        }
    }

    /// What is plain, or Pillow in its place.
    fn avif(&mut self, bytes: &[u8], wanted: &Wanted, out: &mut Pixels) -> Result<(), Failure> {
        match guarded(|| avif::decode(bytes, wanted, &mut self.scratch, out).transpose())? {
            Some(()) => self.converted(bytes, wanted, out),
            None => self.foreign(bytes, wanted, out),
        }
    }

    fn foreign(&mut self, bytes: &[u8], wanted: &Wanted, out: &mut Pixels) -> Result<(), Failure> {
        let reply = self.helpers.pixels(bytes, wanted, &mut self.scratch)?;
        check_size(reply.size, wanted)?;
        let (samples, behind) = self.scratch.split_at(reply.samples);
        compose(samples, reply.channels, wanted, out);
        out.dark = reply.deep && nearly_black(samples);
        self.profile = profile::kind(&behind[..reply.profile]).filter(|_| reply.profile > 0);
        Ok(())
    }
}

/// Runs a decoder that may panic over damaged bytes.
fn guarded<T>(decode: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    caught(decode).unwrap_or_else(|said| Err(Failure::decode(Reason::Panic, said)))
}
