//! PNG: palette, grey, 16 bits (the high byte counts), alpha over the background, interlaced; an animation's first
//! image. The usual file goes the short way (`plain`), any other through the crate `png`, which alone says what is wrong.

mod filters;
pub(super) mod labels;
mod plain;

use std::io::Cursor;

use png::{BitDepth, ColorType, DecodingError, Transformations};

use crate::failure::{Failure, Reason};
use crate::pixels::picture::{Pixels, Wanted, check_size, compose, narrow, room};

pub use self::plain::Plain;

/// `own` decodes the usual files; without it the crate decodes all.
pub fn decode(
    own: Option<&mut Plain>,
    bytes: &[u8],
    wanted: &Wanted,
    scratch: &mut Vec<u8>,
    out: &mut Pixels,
) -> Result<(), Failure> {
    match own.and_then(|own| own.decode(bytes, wanted, scratch, out)) {
        Some(()) => Ok(()),
        None => judged(bytes, wanted, scratch, out),
    }
}

fn judged(bytes: &[u8], wanted: &Wanted, scratch: &mut Vec<u8>, out: &mut Pixels) -> Result<(), Failure> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND);
    let info = decoder.read_header_info().map_err(failure)?;
    check_size((info.width, info.height), wanted)?;
    let mut reader = decoder.read_info().map_err(failure)?;
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| Failure::decode(Reason::TooLarge, "larger than the address space"))?;
    room(scratch, size);
    let frame = reader.next_frame(&mut scratch[..size]).map_err(failure)?;
    if (frame.width, frame.height) != wanted.size {
        return Err(Failure::decode(Reason::Corrupt, "its first frame does not fill the image"));
    }
    let channels = match frame.color_type {
        ColorType::Grayscale => 1,
        ColorType::GrayscaleAlpha => 2,
        ColorType::Rgb => 3,
        ColorType::Rgba => 4,
        ColorType::Indexed => return Err(Failure::decode(Reason::Corrupt, "a palette image without a palette")),
    };
    if frame.bit_depth == BitDepth::Sixteen {
        narrow(scratch, size / 2, channels, wanted.depth, u16::from_be_bytes, out);
    }
    compose(scratch, channels, wanted, out);
    Ok(())
}

fn failure(e: DecodingError) -> Failure {
    let reason = match &e {
        DecodingError::IoError(_) => Reason::Truncated,
        DecodingError::LimitsExceeded => Reason::TooLarge,
        _ => Reason::Corrupt,
    };
    Failure::decode(reason, e.to_string())
}
