//! The usual TIFF file that is packed by LZW, quickly: grey or RGB of 8 bits in strips. In: a whole file. Out: the pixels that
//! the crate `tiff` gives, or nothing for any other file, which goes to that crate from the start: it alone judges.
//!
//! Every string of the table stands in the output already, as the string before it and one sample more. So an entry is a
//! place in the output and a length, decoding is copying, and the 256 samples stand before the image so that they are
//! strings as others are.

use std::io::Cursor;

use tiff::ColorType;
use tiff::decoder::Decoder;
use tiff::tags::Tag;

use crate::pixels::picture::{Colours, Pixels, Wanted, check_size, room};
use crate::pixels::tags::tag;

const COMPRESSION: u16 = 259;
const LZW: u64 = 5;

/// Codes: the table begins anew, the strip ends, and the first string of the table.
const CLEAR: usize = 256;
const END: usize = 257;
const FIRST: usize = 258;
/// Codes have 12 bits at most.
const CODES: usize = 4096;
/// Bytes that are copied at once; `room` leaves as many behind the image.
const STEP: usize = 16;

/// What is kept from file to file.
pub struct Lzw {
    /// Where each string stands, and how long it is.
    table: Box<[(u32, u32); CODES]>,
}

impl Default for Lzw {
    fn default() -> Self {
        Self { table: Box::new(std::array::from_fn(|n| (n as u32, 1))) }
    }
}

impl Lzw {
    /// Decodes a usual file into `out`. None leaves `out` in any state.
    pub fn decode(&mut self, bytes: &[u8], wanted: &Wanted, out: &mut Pixels) -> Option<()> {
        if tag(bytes, COMPRESSION) != Some(LZW) {
            return None;
        }
        let mut header = Decoder::new(Cursor::new(bytes)).ok()?;
        let (size, colours) = (header.dimensions().ok()?, header.colortype().ok()?);
        check_size(size, wanted).ok()?;
        let rows = header.find_tag_unsigned::<u32>(Tag::RowsPerStrip).ok()?.unwrap_or(size.1);
        let offsets = header.get_tag_u64_vec(Tag::StripOffsets).ok()?;
        let lengths = header.get_tag_u64_vec(Tag::StripByteCounts).ok()?;
        let formats = header.find_tag_unsigned_vec::<u64>(Tag::SampleFormat).ok()?;
        let mut number = |tag| header.find_tag_unsigned::<u64>(tag).ok();
        if formats.is_some_and(|formats| formats.iter().any(|&format| format != 1)) {
            return None;
        }
        for tag in [Tag::FillOrder, Tag::PlanarConfiguration] {
            if number(tag)?.is_some_and(|found| found != 1) {
                return None;
            }
        }
        let differences = match number(Tag::Predictor)? {
            None | Some(1) => false,
            Some(2) => true,
            _ => return None,
        };
        // Of a fourth sample that means nothing the crate says RGB too.
        let written = (number(Tag::PhotometricInterpretation)?, number(Tag::SamplesPerPixel)?.unwrap_or(1));
        let (colours, channels) = match (colours, written) {
            (ColorType::Gray(8), (Some(1), 1)) => (Colours::Grey, 1),
            (ColorType::RGB(8), (Some(2), 3)) => (Colours::Rgb, 3),
            _ => return None,
        };
        let (line, height) = (size.0 as usize * channels, size.1 as usize);
        let rows = rows.clamp(1, size.1) as usize;
        let strips = height.div_ceil(rows);
        if offsets.len() != strips || lengths.len() != strips || u32::try_from(CLEAR + line * height).is_err() {
            return None;
        }
        out.whole(colours, size);
        out.planes[0].start = CLEAR;
        room(&mut out.data, CLEAR + line * height);
        (0..=255).zip(&mut out.data).for_each(|(sample, to)| *to = sample);
        for (strip, (offset, length)) in offsets.into_iter().zip(lengths).enumerate() {
            let packed = bytes.get(usize::try_from(offset).ok()?..)?.get(..usize::try_from(length).ok()?)?;
            let from = CLEAR + strip * rows * line;
            let to = CLEAR + height.min((strip + 1) * rows) * line;
            self.unpack(packed, &mut out.data, from, to)?;
        }
        if differences {
            for row in out.data[CLEAR..CLEAR + line * height].chunks_exact_mut(line) {
                for n in channels..line {
                    row[n] = row[n].wrapping_add(row[n - channels]);
                }
            }
        }
        Some(())
    }

    /// Fills `data[from..to]` with one strip's samples; the bytes behind may change.
    fn unpack(&mut self, packed: &[u8], data: &mut [u8], from: usize, to: usize) -> Option<()> {
        let (mut bit, mut width, mut next) = (0, 9, FIRST);
        // A strip begins as a table does.
        let (mut at, mut before) = (from, None);
        while at < to {
            let code = code(packed, bit, width)?;
            bit += width;
            let Some((place, len)) = before else {
                match code {
                    CLEAR => continue,
                    sample @ ..CLEAR if bit > width => {
                        data[at] = sample as u8;
                        before = Some((at, 1));
                        at += 1;
                        continue;
                    }
                    _ => return None,
                }
            };
            if code == CLEAR {
                (width, next, before) = (9, FIRST, None);
                continue;
            }
            if code == END || code > next || next >= CODES {
                return None;
            }
            // The string before and the first sample of this one.
            self.table[next] = (place as u32, len as u32 + 1);
            let (start, len) = self.table[code % CODES];
            let (start, len) = (start as usize, len as usize);
            if len > to - at {
                return None;
            }
            for done in (0..len).step_by(STEP) {
                let some: [u8; STEP] = *data.get(start + done..)?.first_chunk()?;
                *data.get_mut(at + done..)?.first_chunk_mut()? = some;
            }
            if code == next {
                data[at + len - 1] = data[at]; // its own first sample, which was not there yet
            }
            before = Some((at, len));
            at += len;
            next += 1;
            // One code early, as all writers of TIFF do it.
            if next == (1 << width) - 1 && width < 12 {
                width += 1;
            }
        }
        Some(())
    }
}

/// The `width` bits from bit `bit` on; the first byte holds the highest.
#[inline(always)]
fn code(packed: &[u8], bit: usize, width: usize) -> Option<usize> {
    let byte = bit / 8;
    let word = if let Some(four) = packed.get(byte..byte + 4) {
        u32::from_be_bytes([four[0], four[1], four[2], four[3]])
    } else if bit + width <= packed.len() * 8 {
        packed[byte..].iter().enumerate().fold(0, |word, (n, &value)| word | u32::from(value) << (24 - 8 * n))
    } else {
        return None;
    };
    Some((word << (bit % 8) >> (32 - width)) as usize)
}
