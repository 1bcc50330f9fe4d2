//! The usual PNG file, quickly: 8 bits, RGB with or without alpha, not interlaced, nothing odd about it. In: a whole
//! file. Out: the pixels that the crate `png` gives, or nothing for any other file, which goes to that crate from the start:
//! it alone judges.
//!
//! The whole stream is at hand, so it is inflated at once, with libdeflate, which keeps its tables; and what is opaque has its
//! filters undone into its place.

use libdeflater::Decompressor;

use super::filters::undo;
use crate::pixels::kernels::fast;
use crate::pixels::picture::{Colours, KEEP_BYTES, Pixels, Wanted, check_size, compose, room};

/// What is kept from file to file.
pub struct Plain {
    inflate: Decompressor,
    /// The image's data, put together where they stand in several chunks.
    packed: Vec<u8>,
    /// Rows with alpha, before they are laid over the background.
    rows: Vec<u8>,
}

impl Default for Plain {
    fn default() -> Self {
        Self { inflate: Decompressor::new(), packed: Vec::new(), rows: Vec::new() }
    }
}

/// A file's first chunk, and where its data are.
pub(super) struct Found<'a> {
    pub size: (u32, u32),
    pub channels: usize,
    pub data: &'a [u8],
}

impl Plain {
    /// Decodes a usual file into `out`. None leaves `out` and `scratch` in any state.
    pub fn decode(&mut self, bytes: &[u8], wanted: &Wanted, scratch: &mut Vec<u8>, out: &mut Pixels) -> Option<()> {
        if self.packed.len() > KEEP_BYTES {
            self.packed = Vec::new();
        }
        let found = chunks(bytes, &mut self.packed, usual, &[])?;
        check_size(found.size, wanted).ok()?;
        let (width, height) = (found.size.0 as usize, found.size.1 as usize);
        let (channels, line) = (found.channels, width * found.channels);
        room(scratch, (line + 1) * height);
        let rows = &mut scratch[..(line + 1) * height];
        if self.inflate.zlib_decompress(found.data, rows).ok()? != rows.len() {
            return None;
        }
        if channels == 3 {
            out.whole(Colours::Rgb, found.size);
            return undo(fast(), channels, line, rows, &mut out.data);
        }
        room(&mut self.rows, line * height);
        undo(fast(), channels, line, rows, &mut self.rows)?;
        compose(&self.rows, channels, wanted, out);
        if self.rows.len() > KEEP_BYTES {
            self.rows = Vec::new();
        }
        Some(())
    }
}

/// Width and height, and channels.
pub(super) type Usual = ((u32, u32), usize);

/// Walks the chunks; the data are put together in `packed` where there are several. `usual` says size and channels of the
/// headers that are wanted, `more` which further chunks do not matter.
pub(super) fn chunks<'a>(
    bytes: &'a [u8],
    packed: &'a mut Vec<u8>,
    usual: fn(&[u8]) -> Option<Usual>,
    more: &[&[u8]],
) -> Option<Found<'a>> {
    let mut rest = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    let (mut header, mut seen) = (None, 0u32);
    let (mut data, mut parts): (&[u8], usize) = (&[], 0);
    packed.clear();
    loop {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let chunk = behind.get(..4 + length)?;
        let sum = behind.get(4 + length..8 + length)?;
        if crc32fast::hash(chunk).to_be_bytes() != *sum {
            return None;
        }
        rest = &behind[8 + length..];
        let (kind, body) = chunk.split_at(4);
        match kind {
            // Before sums are taken of all that follows.
            b"IHDR" if header.is_none() => header = Some(usual(body)?),
            _ if header.is_none() => return None,
            b"IDAT" => {
                match parts {
                    0 => data = body,
                    1 => {
                        packed.extend_from_slice(data);
                        packed.extend_from_slice(body);
                    }
                    _ => packed.extend_from_slice(body),
                }
                parts += 1;
            }
            b"IEND" => break,
            _ if parts == 0 && more.contains(&kind) => {}
            // Nothing that touches pixels; of the usual length, once, and before the data.
            _ if parts == 0 => {
                let known: [(&[u8; 4], Option<usize>); 7] = [
                    (b"pHYs", Some(9)),
                    (b"gAMA", Some(4)),
                    (b"sRGB", Some(1)),
                    (b"tIME", Some(7)),
                    (b"tEXt", None),
                    (b"iCCP", None),
                    (b"eXIf", None),
                ];
                let n = known.iter().position(|(name, len)| *name == kind && len.is_none_or(|len| len == length))?;
                if seen & 1 << n != 0 && n != 4 {
                    return None;
                }
                seen |= 1 << n;
            }
            _ => return None,
        }
    }
    let (size, channels) = header?;
    let data = if parts > 1 { packed.as_slice() } else { data };
    (parts > 0).then_some(Found { size, channels, data })
}

/// Size and channels of a picture's header; None where it is not of the usual kind.
fn usual(bytes: &[u8]) -> Option<Usual> {
    let (size, depth, colours) = header(bytes)?;
    match (depth, colours) {
        (8, 2) => Some((size, 3)),
        (8, 6) => Some((size, 4)),
        _ => None,
    }
}

/// Width and height, bits a sample and type of colours of a header that is not interlaced.
pub(super) fn header(bytes: &[u8]) -> Option<((u32, u32), u8, u8)> {
    let &[w3, w2, w1, w0, h3, h2, h1, h0, depth, colours, 0, 0, 0] = bytes else { return None };
    let size = (u32::from_be_bytes([w3, w2, w1, w0]), u32::from_be_bytes([h3, h2, h1, h0]));
    (size.0 > 0 && size.1 > 0).then_some((size, depth, colours))
}
