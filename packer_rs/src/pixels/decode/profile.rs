//! Which colour profile other than sRGB a file embeds. In: encoded bytes. Out: its kind; who applies it is another
//! matter.
//!
//! Apart from the decoders, since it reads containers alone: the APP2 segments of JPEG, the iCCP chunk of PNG, the ICCP
//! chunk of WebP, a box of AVIF, the tag of TIFF. A profile is sRGB when its description says so. What is cut short is
//! left to the decoders to complain about.

use std::io::Read;

use flate2::bufread::ZlibDecoder;

use crate::pixels::items;
use crate::pixels::tags::bytes_of;

/// TIFF's tag for it.
const ICC_PROFILE: u16 = 34675;

/// Bytes of a compressed profile that are looked at. Descriptions stand near the front.
const LOOKED_AT: usize = 16 << 10;

/// Kinds of profiles that people can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of Apple's screens and phones.
    DisplayP3,
    /// Of cameras.
    AdobeRgb,
    /// Of raw converters.
    ProPhoto,
    /// Any of one channel.
    Grey,
    /// Any of four inks.
    Cmyk,
    /// Whatever else, and what has no legible description.
    Other,
}

impl Kind {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 6] = [Self::DisplayP3, Self::AdobeRgb, Self::ProPhoto, Self::Grey, Self::Cmyk, Self::Other];

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::DisplayP3 => "Display P3",
            Self::AdobeRgb => "Adobe RGB",
            Self::ProPhoto => "ProPhoto",
            Self::Grey => "grey",
            Self::Cmyk => "CMYK",
            Self::Other => "other",
        }
    }
}

/// The kind of the colour profile in `bytes`; None where there is none or its description names sRGB.
pub fn kind_in(bytes: &[u8]) -> Option<Kind> {
    match bytes {
        [0xFF, 0xD8, rest @ ..] => kind(jpeg(rest)?),
        [0x89, b'P', b'N', b'G', ..] => {
            let compressed = png(bytes)?;
            let mut profile = [0; LOOKED_AT];
            let filled = inflate(compressed, &mut profile);
            kind(&profile[..filled])
        }
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', rest @ ..] => kind(webp(rest)?),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => kind(items::profile(bytes)?),
        [b'I', b'I', ..] | [b'M', b'M', ..] => kind(bytes_of(bytes, ICC_PROFILE)?),
        _ => None,
    }
}

/// The first part of a profile in JPEG: up to 64 KiB of it, which holds the description.
fn jpeg(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        let (marker, after) = match rest {
            // Any number of fill bytes may stand before a marker.
            [0xFF, 0xFF, ..] => {
                rest = &rest[1..];
                continue;
            }
            [0xFF, marker, after @ ..] => (*marker, after),
            // Stray bytes before a marker, which the decoder lets pass too.
            [_, after @ ..] => {
                rest = after;
                continue;
            }
            [] => return None,
        };
        match marker {
            0xDA | 0xD9 => return None,
            0x00 | 0x01 | 0xD0..=0xD8 => rest = after,
            _ => {
                let length = usize::from(u16::from_be_bytes(after.first_chunk().copied()?));
                let body = after.get(2..length)?;
                if let (0xE2, [part, _, profile @ ..]) = (marker, body.strip_prefix(b"ICC_PROFILE\0").unwrap_or(&[]))
                    && *part == 1
                {
                    return Some(profile);
                }
                rest = &after[length..];
            }
        }
    }
}

/// The compressed profile of a PNG file: after the profile's name and one byte for the method.
fn png(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(8..)?;
    loop {
        let length = u32::from_be_bytes(rest.first_chunk().copied()?) as usize;
        let kind = rest.get(4..8)?;
        let body = rest.get(8..)?.get(..length)?;
        match kind {
            b"iCCP" => return body.get(body.iter().position(|&b| b == 0)? + 2..),
            // The profile stands before the pixels.
            b"IDAT" => return None,
            _ => rest = rest.get(12..)?.get(length..)?,
        }
    }
}

fn webp(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        let kind = rest.get(..4)?;
        let length = u32::from_le_bytes(rest.get(4..)?.first_chunk().copied()?) as usize;
        let body = rest.get(8..)?;
        match kind {
            b"ICCP" => return body.get(..length),
            b"VP8 " | b"VP8L" | b"ANIM" => return None,
            _ => rest = body.get(length.checked_add(length & 1)?..)?,
        }
    }
}

/// Fills `to` with what `compressed` begins with; says how much there was.
fn inflate(compressed: &[u8], to: &mut [u8]) -> usize {
    let (mut decoder, mut filled) = (ZlibDecoder::new(compressed), 0);
    while filled < to.len() {
        match decoder.read(&mut to[filled..]) {
            Ok(n) if n > 0 => filled += n,
            _ => break,
        }
    }
    filled
}

/// The kind of an ICC profile by its description (`desc`), in ASCII (version 2) or UTF-16 (version 4), and by its colour
/// space; None for sRGB.
pub fn kind(profile: &[u8]) -> Option<Kind> {
    let word = |at: usize| Some(u32::from_be_bytes(profile.get(at..)?.first_chunk().copied()?) as usize);
    let description = || {
        let tags = profile.get(132..)?.chunks_exact(12).take(word(128)?);
        let at = 132 + 12 * tags.into_iter().position(|tag| tag.starts_with(b"desc"))?;
        profile.get(word(at + 4)?..)?.get(..word(at + 8)?)
    };
    // Without its zeros, UTF-16 of such names is ASCII.
    let text: Vec<u8> = description().unwrap_or(&[]).iter().copied().filter(|&b| b != 0).collect();
    let says = |name: &str| text.windows(name.len()).any(|w| w.eq_ignore_ascii_case(name.as_bytes()));
    Some(match profile.get(16..20) {
        _ if text.windows(4).any(|w| w == b"sRGB") => return None,
        Some(b"GRAY") => Kind::Grey,
        Some(b"CMYK") => Kind::Cmyk,
        _ if says("P3") => Kind::DisplayP3,
        _ if says("Adobe RGB") => Kind::AdobeRgb,
        _ if says("ProPhoto") || says("ROMM") => Kind::ProPhoto,
        _ => Kind::Other,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::kind_in;

    proptest! {
        #[test]
        fn any_bytes_are_answered(start in 0..5usize, tail in prop::collection::vec(any::<u8>(), 0..400)) {
            let heads = [&b"\0\0\0\x0cftypavif"[..], b"\xff\xd8\xff\xe2", b"\x89PNG\r\n\x1a\n\0\0\0\x20iCCP", b"RIFF\0\0\0\0WEBPVP8X", b"II*\0\x08\0\0\0\x01\0\x73\x87\x07\0"];
            kind_in(&[heads[start], &tail].concat());
        }
    }
}
