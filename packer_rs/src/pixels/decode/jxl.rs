//! JPEG XL through `jxl`, the decoder of its own project. In: a file. Out: its first picture in 8 bits, as stored, alpha over
//! the background. Colours are those that the file names (sRGB where it was coded in XYB and has a profile that cannot be
//! made), and which ones is told; inks of CMYK would need a profile and are refused.
//!
//! The crate is safe Rust but for its vectors, takes no more samples than it is allowed, and keeps its buffers.

use jxl::api::{
    AlphaMode, Endianness, Event, ExtraChannel, JxlBasicInfo, JxlBitDepth, JxlColorProfile, JxlColorType,
    JxlDataFormat, JxlDecoder, JxlDecoderOptions, JxlOutputBuffer, JxlPixelFormat, ProfileLevel,
};
use jxl::error::Error;

use crate::failure::{Failure, Reason};
use crate::pixels::decode::profile::{Kind, kind};
use crate::pixels::picture::{Colours, Depth, KEEP_BYTES, Pixels, Wanted, check_size, compose, narrow, room};

/// Channels of a pixel at most: colours, ink or alpha, and one more.
const CHANNELS: u64 = 5;
/// Hidden frames may be larger than the image: four times, or so many pixels.
const FRAME: u64 = 1 << 22;

/// What is kept from file to file: the decoder for frames of up to so many samples.
#[derive(Default)]
pub struct Jxl(Option<(u64, JxlDecoder)>);

impl Jxl {
    /// Decodes a file into `out`; the kind of its profile, where it is not sRGB.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        wanted: &Wanted,
        scratch: &mut Vec<u8>,
        out: &mut Pixels,
    ) -> Result<Option<Kind>, Failure> {
        let pixels = u64::from(wanted.size.0) * u64::from(wanted.size.1);
        let most = pixels.saturating_mul(4).max(FRAME).next_power_of_two().saturating_mul(CHANNELS);
        let (_, mut decoder) = match self.0.take() {
            Some(kept) if kept.0 == most => kept,
            _ => (most, JxlDecoder::new(options(most))),
        };
        decoder.reset();
        let profile = decoded(&mut decoder, bytes, wanted, scratch, out)?;
        // After a failure, or a large image, another decoder begins.
        if pixels * 16 < KEEP_BYTES as u64 {
            self.0 = Some((most, decoder));
        }
        Ok(profile)
    }
}

/// Size as stored and orientation of a file that begins with `bytes`; None where they end too early.
pub fn header(bytes: &[u8]) -> Result<Option<(u32, u32, u8)>, String> {
    let mut decoder = JxlDecoder::new(options(u64::MAX));
    match decoder.process(&mut &*bytes, None, None) {
        Ok(Event::BasicInfo) => {}
        Ok(_) => return Ok(None),
        Err(e) => return Err(e.to_string()),
    }
    let info = decoder.basic_info().ok_or("it has no header")?;
    let (width, height) = info.size;
    let side = |side: usize| u32::try_from(side).map_err(|_| format!("claims {width} × {height} pixels"));
    Ok(Some((side(width)?, side(height)?, info.orientation as u8)))
}

fn options(most: u64) -> JxlDecoderOptions {
    let mut options = JxlDecoderOptions::default();
    options.adjust_orientation = false;
    options.alpha_mode = AlphaMode::Unpremultiplied;
    options.max_profile_level = ProfileLevel::Main10;
    options.sample_limit = Some(usize::try_from(most).unwrap_or(usize::MAX));
    options
}

fn decoded(
    decoder: &mut JxlDecoder,
    bytes: &[u8],
    wanted: &Wanted,
    scratch: &mut Vec<u8>,
    out: &mut Pixels,
) -> Result<Option<Kind>, Failure> {
    let mut rest = bytes;
    next(decoder, &mut rest, None)?;
    let (Some(info), Some(profile), Some(usual)) =
        (decoder.basic_info(), decoder.embedded_color_profile(), decoder.current_pixel_format())
    else {
        return Err(Failure::decode(Reason::Corrupt, "it has no header"));
    };
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    check_size((side(info.size.0), side(info.size.1)), wanted)?;
    let has = |kind| info.extra_channels.iter().any(|channel| channel.ec_type == kind);
    if has(ExtraChannel::Black) {
        return Err(Failure::decode(Reason::Unsupported, "CMYK"));
    }
    let (colour, channels) = match (usual.color_type.is_grayscale(), has(ExtraChannel::Alpha)) {
        (true, false) => (JxlColorType::Grayscale, 1),
        (true, true) => (JxlColorType::GrayscaleAlpha, 2),
        (false, false) => (JxlColorType::Rgb, 3),
        (false, true) => (JxlColorType::Rgba, 4),
    };
    let deep = info.bit_depth.bits_per_sample() > 8;
    // Fewer bits and fractions say what is white, and the decoder heeds it.
    let depth = if info.bit_depth == (JxlBitDepth::Int { bits_per_sample: 16 }) { wanted.depth } else { Depth::Full };
    let others = info.extra_channels.len();
    let kind = other_than_srgb(info, profile);
    let samples = match deep {
        true => JxlDataFormat::U16 { endianness: Endianness::native(), bit_depth: 16 },
        false => JxlDataFormat::U8 { bit_depth: 8 },
    };
    let format = JxlPixelFormat {
        color_type: colour,
        color_data_format: Some(samples),
        extra_channel_format: vec![None; others],
    };
    decoder.set_pixel_format(format).map_err(failure)?;
    let (line, height) = (wanted.size.0 as usize * channels * samples.bytes_per_sample(), wanted.size.1 as usize);
    let tight = !deep && channels % 2 == 1;
    let buffer = if tight {
        out.whole(if channels == 1 { Colours::Grey } else { Colours::Rgb }, wanted.size);
        &mut out.data
    } else {
        room(scratch, line * height + 1);
        &mut *scratch
    };
    next(decoder, &mut rest, None)?;
    // Samples of two bytes stand at even addresses.
    let start = if deep { buffer.as_ptr().align_offset(2) } else { 0 };
    next(decoder, &mut rest, Some(JxlOutputBuffer::new(&mut buffer[start..start + line * height], height, line)))?;
    if start > 0 {
        buffer.copy_within(start..start + line * height, 0);
    }
    if deep {
        narrow(scratch, line * height / 2, channels, depth, u16::from_ne_bytes, out);
    }
    if !tight {
        compose(scratch, channels, wanted, out);
    }
    Ok(kind)
}

/// On to the next event: the header, a frame's, the frame.
fn next(decoder: &mut JxlDecoder, rest: &mut &[u8], buffer: Option<JxlOutputBuffer<'_>>) -> Result<(), Failure> {
    let mut buffer = buffer.map(|buffer| [buffer]);
    match decoder.process(rest, buffer.as_mut().map(|one| &mut one[..]), None).map_err(failure)? {
        Event::NeedMoreInput { .. } => Err(Failure::decode(Reason::Truncated, "it ends within its picture")),
        Event::Complete => Err(Failure::decode(Reason::Corrupt, "it holds no picture")),
        _ => Ok(()),
    }
}

/// The kind of the profile that the decoded samples have, where it is not sRGB.
fn other_than_srgb(info: &JxlBasicInfo, profile: &JxlColorProfile) -> Option<Kind> {
    // What was coded in XYB and has a profile of its own comes out as sRGB.
    if !info.uses_original_profile && matches!(profile, JxlColorProfile::Icc(_)) {
        return None;
    }
    kind(&profile.try_as_icc()?)
}

fn failure(e: Error) -> Failure {
    let reason = match &e {
        Error::ImageSizeTooLarge(..) | Error::ImageDimensionTooLarge(_) | Error::LevelLimitExceeded { .. } => {
            Reason::TooLarge
        }
        Error::OutOfMemory(_) | Error::ImageOutOfMemory(..) => Reason::Memory,
        _ => Reason::Corrupt,
    };
    Failure::decode(reason, e.to_string())
}
