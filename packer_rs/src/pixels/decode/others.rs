//! GIF, BMP and TIFF through the crate `image`: the first frame, 8 bits a sample (of 16 the high byte counts),
//! alpha over the background. Floating-point and palette TIFF are `unsupported`.

use std::io::{Cursor, ErrorKind};

use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, tiff::TiffDecoder};
use image::error::{ImageError, LimitErrorKind};
use image::{ColorType, ImageDecoder, Limits};

use crate::failure::{Failure, Reason};
use crate::pixels::decode::lzw::Lzw;
use crate::pixels::picture::{Pixels, Wanted, check_size, compose, narrow, room};
use crate::pixels::tags::tag;

/// Tags of TIFF.
const FILL_ORDER: u16 = 266;
const EXTRA_SAMPLES: u16 = 338;
const SAMPLE_FORMAT: u16 = 339;

/// Whether the first bytes are of a format that is read here.
pub fn known(bytes: &[u8]) -> bool {
    matches!(
        bytes,
        [b'G', b'I', b'F', b'8', ..] | [b'B', b'M', ..] | [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..]
    )
}

fn is_tiff(bytes: &[u8]) -> bool {
    matches!(bytes, [b'I', b'I', ..] | [b'M', b'M', ..])
}

/// Whether the crate gives other pixels than the file means, without a word: TIFF whose bits run from the lowest one or
/// whose colours are multiplied by their alpha already, run lengths in BMP that may skip pixels, a GIF frame larger
/// than its screen.
pub fn misread(bytes: &[u8], wanted: &Wanted) -> bool {
    let short = |at: usize| bytes.get(at..at + 2).map_or(0, |b| u32::from(u16::from_le_bytes([b[0], b[1]])));
    match bytes[0] {
        b'G' => (short(6), short(8)) != wanted.size,
        b'B' => short(14) >= 40 && matches!(short(30), 1 | 2),
        _ => tag(bytes, FILL_ORDER) == Some(2) || tag(bytes, EXTRA_SAMPLES) == Some(1),
    }
}

/// Whether Pillow may read what the crate does not: all of TIFF, since libtiff knows more of it, and BMP with another
/// header.
pub fn may_be_read_elsewhere(failure: &Failure, bytes: &[u8]) -> bool {
    match failure.reason {
        Reason::Changed | Reason::TooLarge => false,
        // Of signed samples Pillow takes some for unsigned ones.
        _ if is_tiff(bytes) && tag(bytes, SAMPLE_FORMAT) == Some(2) => false,
        Reason::Unsupported => true,
        _ => is_tiff(bytes),
    }
}

/// `own` decodes the usual TIFF files of LZW; without it the crate decodes all.
pub fn decode(
    own: Option<&mut Lzw>,
    bytes: &[u8],
    wanted: &Wanted,
    scratch: &mut Vec<u8>,
    out: &mut Pixels,
) -> Result<(), Failure> {
    if is_tiff(bytes) && own.is_some_and(|own| own.decode(bytes, wanted, out).is_some()) {
        return Ok(());
    }
    let from = || Cursor::new(bytes);
    match bytes[0] {
        b'G' => read(GifDecoder::new(from()).map_err(failure)?, false, wanted, scratch, out),
        b'B' => read(BmpDecoder::new(from()).map_err(failure)?, true, wanted, scratch, out),
        _ => read(TiffDecoder::new(from()).map_err(failure)?, false, wanted, scratch, out),
    }
}

fn read(
    mut decoder: impl ImageDecoder,
    clear_means_opaque: bool,
    wanted: &Wanted,
    scratch: &mut Vec<u8>,
    out: &mut Pixels,
) -> Result<(), Failure> {
    check_size(decoder.dimensions(), wanted)?;
    let mut limits = Limits::no_limits();
    // Room for the pixels, for a decoder's own frame, and for tables.
    limits.max_alloc = Some(wanted.max_pixels.saturating_mul(16).saturating_add(1 << 20));
    decoder.set_limits(limits).map_err(failure)?;
    let colour = decoder.color_type();
    let (channels, deep) = match colour {
        ColorType::L8 => (1, false),
        ColorType::La8 => (2, false),
        ColorType::Rgb8 => (3, false),
        ColorType::Rgba8 => (4, false),
        ColorType::L16 => (1, true),
        ColorType::La16 => (2, true),
        ColorType::Rgb16 => (3, true),
        ColorType::Rgba16 => (4, true),
        other => return Err(Failure::decode(Reason::Unsupported, format!("samples of type {other:?}"))),
    };
    let size = usize::try_from(decoder.total_bytes())
        .map_err(|_| Failure::decode(Reason::TooLarge, "larger than the address space"))?;
    if size != wanted.size.0 as usize * wanted.size.1 as usize * channels * if deep { 2 } else { 1 } {
        return Err(Failure::decode(Reason::Corrupt, "the number of its bytes does not fit its size"));
    }
    room(scratch, size);
    decoder.read_image(&mut scratch[..size]).map_err(failure)?;
    if deep {
        narrow(scratch, size / 2, channels, wanted.depth, u16::from_ne_bytes, out);
    }
    // Writers of BMP leave alpha at 0 where they mean none.
    if clear_means_opaque && channels == 4 && scratch[..size].chunks_exact(4).all(|pixel| pixel[3] == 0) {
        scratch[..size].chunks_exact_mut(4).for_each(|pixel| pixel[3] = 255);
    }
    compose(scratch, channels, wanted, out);
    Ok(())
}

fn failure(e: ImageError) -> Failure {
    let reason = match &e {
        ImageError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => Reason::Truncated,
        ImageError::Limits(l) if !matches!(l.kind(), LimitErrorKind::Unsupported { .. }) => Reason::TooLarge,
        ImageError::Unsupported(_) => Reason::Unsupported,
        _ => Reason::Corrupt,
    };
    Failure::decode(reason, e.to_string())
}
