//! JPEG through libjpeg-turbo: baseline and progressive, grey, YCbCr of any sampling, RGB, CMYK and YCCK. The decode
//! runs at the largest SIMD DCT scale (1/2, 1/4, 1/8) that stays at or above the target, and where the sampling is a
//! usual one it stops at the Y, Cb and Cr planes: they are resized as they are, and only the small result is converted
//! to RGB.
//!
//! Plain files, baseline and progressive, by far the most, are decoded by the crate `navit-jpeg`, which gives the same
//! samples sooner; libjpeg-turbo gets all that it turns away, and alone says what is wrong with a file.
//!
//! A warning of libjpeg is a failure, since what follows it is guessed: data that end early are `truncated`, any other
//! is `corrupt`. What no pixel depends on is taken out of the file before it is decoded again (`oddities`); stray bytes
//! behind the last scan are let pass. Scans that are missing, of which libjpeg says nothing, are looked for (`scans`).

use std::ffi::CStr;

use navit_jpeg::{Decoder as Plain, Header};
use turbojpeg_sys as tj;

use super::chroma::Chroma;
use super::oddities;
use super::scans::{Gap, Scans};
use crate::failure::{Failure, Reason};
use crate::pixels::picture::{Colours, KEEP_BYTES, Pixels, Plane, Wanted, check_size, room};

/// Scans of a progressive file; a real encoder writes some ten, a hostile file thousands.
const MAX_SCANS: i32 = 500;

/// Which warnings are let pass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    None,
    /// Of stray bytes behind the last scan.
    Behind,
    /// All but that of an early end.
    Damage,
}

/// A decompressor of libjpeg-turbo, and our own decoder for the plain files.
pub struct Jpeg {
    own: Option<Plain>,
    /// What makes RGB of whole images, where that is asked for, as others do it before they resize.
    whole: Option<Chroma>,
    handle: tj::tjhandle,
    /// Whether a file went through the handle.
    used: bool,
    pass: Pass,
    scratch: Vec<u8>,
}

// SAFETY: a handle may be used on any thread, by one at a time; `&mut self` sees to that.
unsafe impl Send for Jpeg {}

impl Drop for Jpeg {
    fn drop(&mut self) {
        // SAFETY: the handle came from `tj3Init` and is dropped once.
        unsafe { tj::tj3Destroy(self.handle) }
    }
}

impl Jpeg {
    /// Without our `own` decoder libjpeg-turbo gets all files.
    pub fn new(own: Option<Plain>, whole: bool) -> Result<Self, Failure> {
        let whole = whole.then(Chroma::default);
        let mut jpeg =
            Self { own, whole, handle: std::ptr::null_mut(), used: false, pass: Pass::None, scratch: Vec::new() };
        jpeg.renew()?;
        Ok(jpeg)
    }

    /// Puts a new handle in place of the one that is there.
    fn renew(&mut self) -> Result<(), Failure> {
        // SAFETY: no requirement beyond a valid constant.
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as i32) };
        if handle.is_null() {
            return Err(Failure::decode(Reason::Memory, "libjpeg-turbo could not be started"));
        }
        // SAFETY: the old handle, if any, came from `tj3Init` and is not used again.
        unsafe { tj::tj3Destroy(std::mem::replace(&mut self.handle, handle)) };
        self.set(tj::TJPARAM_TJPARAM_STOPONWARNING, i32::from(self.pass == Pass::None));
        self.set(tj::TJPARAM_TJPARAM_SCANLIMIT, MAX_SCANS);
        // Colour profiles are not read here, so they cannot be warned of.
        self.set(tj::TJPARAM_TJPARAM_SAVEMARKERS, 0);
        Ok(())
    }

    fn set(&mut self, param: tj::TJPARAM, value: i32) {
        // SAFETY: the handle is alive.
        unsafe { tj::tj3Set(self.handle, param as i32, value) };
    }

    fn get(&self, param: tj::TJPARAM) -> i32 {
        // SAFETY: the handle is alive.
        unsafe { tj::tj3Get(self.handle, param as i32) }
    }

    fn message(&self) -> String {
        // SAFETY: the string belongs to the handle and ends in NUL.
        unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.handle)) }.to_string_lossy().into_owned()
    }

    pub fn decode(&mut self, bytes: &[u8], wanted: &Wanted, out: &mut Pixels) -> Result<(), Failure> {
        if let Some(own) = &mut self.own {
            let shrink = if wanted.dct_scaling && self.whole.is_none() { scale(wanted) } else { 1 };
            if plain(own, bytes, wanted, shrink as u32, self.whole.as_mut(), out).is_some() {
                return Ok(());
            }
        }
        let outcome =
            self.judged(bytes, wanted, out).and_then(|()| match Scans::of(bytes).and_then(|scans| scans.gap()) {
                Some(gap) if !(wanted.keep_damaged && matches!(gap, Gap::Bits(..))) => {
                    Err(Failure::decode(Reason::Truncated, gap.said()))
                }
                _ => Ok(()),
            });
        match outcome {
            Err(e) if wanted.keep_damaged && e.reason == Reason::Corrupt => {
                self.kept(bytes, wanted, out).unwrap_or(Err(e))
            }
            outcome => outcome,
        }
    }

    /// A damaged file as all others show it, if nothing of it is missing: then all of its pieces are there, and what
    /// stands behind each of them changes no sample. libjpeg itself words the first warning alone. None: it is refused.
    fn kept(&mut self, bytes: &[u8], wanted: &Wanted, out: &mut Pixels) -> Option<Result<(), Failure>> {
        let scans = Scans::of(bytes)?;
        if matches!(scans.gap(), Some(Gap::Component(_))) {
            return None;
        }
        self.pass = Pass::Damage;
        let mut tries = [Some(0x55), Some(0xAA), None].into_iter().map(|filler| {
            let filled = filler.map_or_else(|| Some(bytes.to_vec()), |filler| scans.filled(bytes, filler))?;
            self.attempt(&filled, wanted, out).ok()?;
            Some(out.samples())
        });
        let first = tries.next().flatten();
        let same = first.is_some() && tries.all(|samples| samples == first);
        self.pass = Pass::None;
        same.then_some(Ok(()))
    }

    /// What libjpeg says of a file, harmless warnings apart.
    fn judged(&mut self, bytes: &[u8], wanted: &Wanted, out: &mut Pixels) -> Result<(), Failure> {
        match self.attempt(bytes, wanted, out) {
            Err(e) if oddities::is_odd(&e.detail) => {
                let plain = oddities::without(bytes);
                match self.attempt(&plain, wanted, out) {
                    // All data were read by then, so there is no later warning that this one could hide.
                    Err(e) if before_the_end(&e.detail) => {
                        self.pass = Pass::Behind;
                        let outcome = self.attempt(&plain, wanted, out);
                        self.pass = Pass::None;
                        outcome
                    }
                    outcome => outcome,
                }
            }
            outcome => outcome,
        }
    }

    fn attempt(&mut self, bytes: &[u8], wanted: &Wanted, out: &mut Pixels) -> Result<(), Failure> {
        // A handle keeps the tables of the file before, and a file that lacks its own would be decoded with those: to
        // other pixels than elsewhere. After a failed call it would even go on in the middle of that file. A new one
        // costs about a microsecond.
        if self.used {
            self.renew()?;
        }
        self.used = true;
        // SAFETY: the slice is valid for its length.
        let code = unsafe { tj::tj3DecompressHeader(self.handle, bytes.as_ptr(), bytes.len() as _) };
        self.accept(code)?;
        let size = (self.get(tj::TJPARAM_TJPARAM_JPEGWIDTH), self.get(tj::TJPARAM_TJPARAM_JPEGHEIGHT));
        if size.0 < 1 || size.1 < 1 {
            return Err(Failure::decode(Reason::Truncated, "no image in it"));
        }
        check_size((size.0 as u32, size.1 as u32), wanted)?;
        if self.get(tj::TJPARAM_TJPARAM_PRECISION) != 8 {
            return Err(Failure::decode(Reason::Unsupported, "JPEG of more than 8 bits a sample"));
        }
        let lossless = self.get(tj::TJPARAM_TJPARAM_LOSSLESS) == 1;
        let denominator = if wanted.dct_scaling && !lossless && self.whole.is_none() { scale(wanted) } else { 1 };
        // SAFETY: the handle is alive; libjpeg-turbo supports these factors.
        let code = unsafe { tj::tj3SetScalingFactor(self.handle, tj::tjscalingfactor { num: 1, denom: denominator }) };
        self.accept(code)?;
        let scaled = (size.0 as u32).div_ceil(denominator as u32);
        let scaled = (scaled, (size.1 as u32).div_ceil(denominator as u32));
        let samples = self.get(tj::TJPARAM_TJPARAM_SUBSAMP);
        match self.get(tj::TJPARAM_TJPARAM_COLORSPACE) as tj::TJCS {
            tj::TJCS_TJCS_GRAY => self.interleaved(bytes, scaled, denominator, tj::TJPF_TJPF_GRAY, out),
            tj::TJCS_TJCS_YCbCr if self.whole.is_none() && !lossless && samples != tj::TJSAMP_TJSAMP_UNKNOWN => {
                self.planes(bytes, scaled, denominator, samples, out)
            }
            tj::TJCS_TJCS_CMYK | tj::TJCS_TJCS_YCCK => {
                self.interleaved(bytes, scaled, denominator, tj::TJPF_TJPF_CMYK, out)
            }
            _ => self.interleaved(bytes, scaled, denominator, tj::TJPF_TJPF_RGB, out),
        }
    }

    /// The outcome of a call that returned `code`.
    fn accept(&self, code: i32) -> Result<(), Failure> {
        if code == 0 {
            return Ok(());
        }
        let message = self.message();
        // SAFETY: the handle is alive.
        let warning = unsafe { tj::tj3GetErrorCode(self.handle) } == tj::TJERR_TJERR_WARNING as i32;
        let passes = match self.pass {
            Pass::None => false,
            Pass::Behind => before_the_end(&message),
            Pass::Damage => !message.contains("remature end"),
        };
        if warning && passes {
            return Ok(());
        }
        let any = |words: [&str; 2]| words.iter().any(|w| message.contains(w));
        let reason = if any(["Insufficient memory", "allocation failure"]) {
            Reason::Memory
        } else if any(["Premature end", "Empty input"]) {
            Reason::Truncated
        } else if any(["Unsupported JPEG", "not supported"]) {
            Reason::Unsupported
        } else {
            Reason::Corrupt
        };
        Err(Failure::decode(reason, message))
    }

    /// Y, Cb and Cr as they are stored, one plane after the other.
    fn planes(
        &mut self,
        bytes: &[u8],
        scaled: (u32, u32),
        denominator: i32,
        samples: i32,
        out: &mut Pixels,
    ) -> Result<(), Failure> {
        let (across, down) = match samples {
            tj::TJSAMP_TJSAMP_422 => (2, 1),
            tj::TJSAMP_TJSAMP_420 => (2, 2),
            tj::TJSAMP_TJSAMP_440 => (1, 2),
            tj::TJSAMP_TJSAMP_411 => (4, 1),
            tj::TJSAMP_TJSAMP_441 => (1, 4),
            _ => (1, 1),
        };
        let (width, height) = scaled;
        let (mut start, mut strides) = (0, [0i32; 3]);
        for (c, (plane, stride)) in out.planes.iter_mut().zip(&mut strides).enumerate() {
            let (sub_x, sub_y) = if c == 0 { (1, 1) } else { (across, down) };
            // libjpeg-turbo pads the luma plane to whole chroma samples; the padding is no part of the image.
            let padded = (width.next_multiple_of(across) / sub_x, height.next_multiple_of(down) / sub_y);
            *stride = padded.0 as i32;
            let scale = f64::from(denominator);
            *plane = Plane {
                start,
                stride: padded.0 as usize,
                width: width.div_ceil(sub_x),
                height: height.div_ceil(sub_y),
                scale: (1.0 / (scale * f64::from(sub_x)), 1.0 / (scale * f64::from(sub_y))),
            };
            start += padded.0 as usize * padded.1 as usize;
        }
        room(&mut out.data, start);
        out.colours = Colours::Ycc;
        let base = out.data.as_mut_ptr();
        // SAFETY: each plane starts inside the buffer, which has room for all of them.
        let mut planes = unsafe { [0, 1, 2].map(|c: usize| base.add(out.planes[c].start)) };
        // SAFETY: the planes have the sizes that `tj3YUVPlaneWidth` and `tj3YUVPlaneHeight` give for this scale.
        let code = unsafe {
            tj::tj3DecompressToYUVPlanes8(
                self.handle,
                bytes.as_ptr(),
                bytes.len() as _,
                planes.as_mut_ptr(),
                strides.as_mut_ptr(),
            )
        };
        self.accept(code)
    }

    /// Grey, RGB, or CMYK that is converted on the spot.
    fn interleaved(
        &mut self,
        bytes: &[u8],
        scaled: (u32, u32),
        denominator: i32,
        format: tj::TJPF,
        out: &mut Pixels,
    ) -> Result<(), Failure> {
        let cmyk = format == tj::TJPF_TJPF_CMYK;
        out.whole(if format == tj::TJPF_TJPF_GRAY { Colours::Grey } else { Colours::Rgb }, scaled);
        let scale = 1.0 / f64::from(denominator);
        out.planes[0].scale = (scale, scale);
        let pixels = scaled.0 as usize * scaled.1 as usize;
        let to = if cmyk {
            room(&mut self.scratch, pixels * 4);
            self.scratch.as_mut_ptr()
        } else {
            out.data.as_mut_ptr()
        };
        // SAFETY: the destination has room for all rows at the pitch 0, which means tight.
        let code = unsafe { tj::tj3Decompress8(self.handle, bytes.as_ptr(), bytes.len() as _, to, 0, format) };
        self.accept(code)?;
        if cmyk {
            // Adobe's files hold inverted inks, and so, by custom, do all others.
            for (rgb, ink) in out.data.chunks_exact_mut(3).zip(self.scratch[..pixels * 4].chunks_exact(4)) {
                let key = u32::from(ink[3]);
                for c in 0..3 {
                    let t = (255 - u32::from(ink[c])) * key + 128;
                    rgb[c] = (key - (((t >> 8) + t) >> 8)) as u8;
                }
            }
            if self.scratch.len() > KEEP_BYTES {
                self.scratch = Vec::new();
            }
        }
        Ok(())
    }
}

/// A plain file through our own decoder. None leaves `out` in any state, and the file to libjpeg-turbo.
fn plain(
    own: &mut Plain,
    bytes: &[u8],
    wanted: &Wanted,
    shrink: u32,
    whole: Option<&mut Chroma>,
    out: &mut Pixels,
) -> Option<()> {
    let header = Header::of(bytes)?;
    check_size(header.size, wanted).ok()?;
    let picture = own.decode(&header, shrink, &mut out.data)?;
    for (to, p) in out.planes.iter_mut().zip(&picture.planes[..picture.count]) {
        let scale = (1.0 / f64::from(p.step.0), 1.0 / f64::from(p.step.1));
        *to = Plane { start: p.start, stride: p.stride, width: p.width, height: p.height, scale };
    }
    out.colours = if picture.count == 1 { Colours::Grey } else { Colours::Ycc };
    // What kernels read behind the last plane.
    room(&mut out.data, picture.bytes);
    match whole {
        Some(chroma) if picture.count == 3 => chroma.triples(out),
        _ => Some(()),
    }
}

/// The largest denominator among 1, 2, 4, 8 at which the crop keeps at least the target's pixels on both axes.
fn scale(wanted: &Wanted) -> i32 {
    let fits =
        |d: u32| wanted.crop.width as u32 >= wanted.target.0 * d && wanted.crop.height as u32 >= wanted.target.1 * d;
    [8, 4, 2].into_iter().find(|&d| fits(d)).unwrap_or(1) as i32
}

/// Whether a warning is of stray bytes behind the last scan.
fn before_the_end(warning: &str) -> bool {
    warning.contains("extraneous bytes before marker 0xd9")
}
