//! Which format a file has. In: its first bytes. Out: the format, with its code and name in the index.
//!
//! Apart, since the header probe and the decoders must agree.

/// Containers that the probe knows. The discriminants are the codes of the index's dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Format {
    /// JPEG, JFIF or EXIF.
    Jpeg = 0,
    /// PNG and APNG.
    Png = 1,
    /// WebP, lossy, lossless or extended.
    Webp = 2,
    /// GIF.
    Gif = 3,
    /// Windows or OS/2 bitmap.
    Bmp = 4,
    /// TIFF and BigTIFF.
    Tiff = 5,
    /// AVIF. Of it helpers (`foreign`) read what is not plain.
    Avif = 6,
    /// HEIF and HEIC. This and the following are read by helpers alone.
    Heif = 7,
    /// JPEG 2000, as a file or as a bare codestream.
    Jpeg2000 = 8,
    /// PBM, PGM and PPM, plain or raw.
    Ppm = 9,
    /// Windows icon.
    Ico = 10,
    /// Apple icon.
    Icns = 11,
    /// DirectDraw surface.
    Dds = 12,
    /// Quite OK Image.
    Qoi = 13,
    /// SGI image.
    Sgi = 14,
}

/// Names of the formats, by code.
pub const FORMAT_NAMES: [&str; 15] = [
    "jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "heif", "jpeg2000", "ppm", "ico", "icns", "dds", "qoi", "sgi",
];

impl Format {
    /// Its name in the index.
    pub fn name(self) -> &'static str {
        FORMAT_NAMES[self as usize]
    }

    /// The format of a file that starts with `bytes` (64 of them, if there are as many), where a helper reads it, or some of it.
    pub fn foreign(bytes: &[u8]) -> Option<Self> {
        Some(match bytes {
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => return isobmff(bytes),
            [0, 0, 0, 12, b'j', b'P', b' ', b' ', b'\r', b'\n', 0x87, b'\n', ..] => Self::Jpeg2000,
            [0xFF, 0x4F, 0xFF, 0x51, ..] => Self::Jpeg2000,
            [b'P', b'1'..=b'6', b' ' | b'\t' | b'\r' | b'\n' | b'#', ..] => Self::Ppm,
            [0, 0, 1, 0, _, 0, ..] => Self::Ico,
            [b'i', b'c', b'n', b's', ..] => Self::Icns,
            [b'D', b'D', b'S', b' ', ..] => Self::Dds,
            [b'q', b'o', b'i', b'f', ..] => Self::Qoi,
            [0x01, 0xDA, 0 | 1, 1 | 2, ..] => Self::Sgi,
            _ => return None,
        })
    }
}

/// AVIF or HEIF by the brands of the first box: the major one, then the compatible ones. A film is neither.
fn isobmff(bytes: &[u8]) -> Option<Format> {
    let length = u32::from_be_bytes(bytes.first_chunk().copied()?) as usize;
    let end = length.min(bytes.len()).min(64);
    let brands = || bytes.get(8..12).into_iter().chain(bytes.get(16..end).unwrap_or(&[]).chunks_exact(4));
    let any = |known: &[&[u8; 4]]| brands().any(|brand| known.iter().any(|k| k[..] == *brand));
    if any(&[b"avif", b"avis"]) {
        Some(Format::Avif)
    } else if any(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]) {
        Some(Format::Heif)
    } else {
        None
    }
}
