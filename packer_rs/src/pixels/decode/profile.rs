//! Whether a file embeds a colour profile other than sRGB. In: encoded bytes. Out: yes or no; the profile is never
//! applied.
//!
//! Apart from the decoders, since it reads containers alone: the APP2 segments of JPEG, the iCCP chunk of PNG, the ICCP
//! chunk of WebP. A profile is sRGB when its description says so. What is cut short is left to the decoders to complain
//! about.

use std::io::Read;

use flate2::bufread::ZlibDecoder;

/// Bytes of a compressed profile that are looked at. Descriptions stand near the front.
const LOOKED_AT: usize = 16 << 10;

/// Whether `bytes` hold a colour profile whose description does not name sRGB.
pub fn other_than_srgb(bytes: &[u8]) -> bool {
    let verdict = match bytes {
        [0xFF, 0xD8, rest @ ..] => jpeg(rest).map(is_srgb),
        [0x89, b'P', b'N', b'G', ..] => png(bytes).map(|compressed| {
            let mut profile = [0; LOOKED_AT];
            let filled = inflate(compressed, &mut profile);
            is_srgb(&profile[..filled])
        }),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', rest @ ..] => webp(rest).map(is_srgb),
        _ => None,
    };
    verdict == Some(false)
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

/// Whether the description (`desc`) of an ICC profile names sRGB, in ASCII (version 2) or UTF-16 (version 4).
pub fn is_srgb(profile: &[u8]) -> bool {
    let word = |at: usize| Some(u32::from_be_bytes(profile.get(at..)?.first_chunk().copied()?) as usize);
    let description = || {
        let tags = profile.get(132..)?.chunks_exact(12).take(word(128)?);
        let at = 132 + 12 * tags.into_iter().position(|tag| tag.starts_with(b"desc"))?;
        profile.get(word(at + 4)?..)?.get(..word(at + 8)?)
    };
    description()
        .is_some_and(|text| text.windows(4).any(|w| w == b"sRGB") || text.windows(8).any(|w| w == b"\0s\0R\0G\0B"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::other_than_srgb;

    proptest! {
        #[test]
        fn any_bytes_are_answered(start in 0..3usize, tail in prop::collection::vec(any::<u8>(), 0..400)) {
            let heads = [&b"\xff\xd8\xff\xe2"[..], b"\x89PNG\r\n\x1a\n\0\0\0\x20iCCP", b"RIFF\0\0\0\0WEBPVP8X"];
            other_than_srgb(&[heads[start], &tail].concat());
        }
    }
}
