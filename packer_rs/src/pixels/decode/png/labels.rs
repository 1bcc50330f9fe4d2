//! A PNG whose samples are numbers and no colours: a mask. In: a whole file. Out: its samples as they are stored, a palette's
//! indices and not what they look like.
//!
//! Apart from the pictures, which make colours of the same samples. The usual file goes the short way here too; any other
//! goes through the crate `png`, which alone says what is wrong.

use std::io::Cursor;

use libdeflater::Decompressor;
use png::{BitDepth, ColorType, Transformations};

use super::failure;
use super::filters::undo;
use super::plain::{Usual, chunks, header};
use crate::failure::{Failure, Reason};
use crate::pixels::kernels::fast;
use crate::pixels::picture::{KEEP_BYTES, room};

/// The samples of a mask, used again: rows of `width` pixels of `step` bytes, high bytes first.
pub struct Samples {
    /// Width and height as stored.
    pub size: (usize, usize),
    /// Bytes of a pixel: 1, 2, or 3 where it has three channels.
    pub step: usize,
    /// All pixels; longer than needed.
    pub data: Vec<u8>,
    inflate: Decompressor,
    packed: Vec<u8>,
    rows: Vec<u8>,
}

impl Default for Samples {
    fn default() -> Self {
        let (data, packed, rows) = Default::default();
        Self { size: (0, 0), step: 1, data, inflate: Decompressor::new(), packed, rows }
    }
}

impl Samples {
    /// Decodes a file whose size must be among `sizes` (width, height), and have no more than `most` pixels.
    ///
    /// # Errors
    /// It is no PNG, of another size, damaged, or has alpha, which no number has.
    pub fn decode(&mut self, bytes: &[u8], sizes: [(u32, u32); 2], most: u64) -> Result<(), Failure> {
        if !bytes.starts_with(b"\x89PNG") {
            return Err(Failure::decode(Reason::Unsupported, "its mask is no PNG; write masks as PNG"));
        }
        let done = self.usual(bytes, sizes, most);
        let done = done.map_or_else(|| self.judged(bytes, sizes, most), Ok);
        for buffer in [&mut self.packed, &mut self.rows] {
            if buffer.len() > KEEP_BYTES {
                *buffer = Vec::new();
            }
        }
        done.map_err(|e| Failure { detail: format!("its mask: {}", e.detail), ..e })
    }

    /// Gives back a buffer that only one image in many needs.
    pub fn trim(&mut self) {
        if self.data.len() > KEEP_BYTES {
            self.data = Vec::new();
        }
    }

    fn usual(&mut self, bytes: &[u8], sizes: [(u32, u32); 2], most: u64) -> Option<()> {
        let found = chunks(bytes, &mut self.packed, usual, &[b"PLTE", b"tRNS"])?;
        let ((width, height), step) = (found.size, found.channels);
        if !sizes.contains(&found.size) || u64::from(width) * u64::from(height) > most {
            return None;
        }
        let (width, height) = (width as usize, height as usize);
        let line = width * step;
        room(&mut self.rows, (line + 1) * height);
        let rows = &mut self.rows[..(line + 1) * height];
        if self.inflate.zlib_decompress(found.data, rows).ok()? != rows.len() {
            return None;
        }
        room(&mut self.data, line * height);
        undo(fast(), step, line, rows, &mut self.data)?;
        (self.size, self.step) = ((width, height), step);
        Some(())
    }

    fn judged(&mut self, bytes: &[u8], sizes: [(u32, u32); 2], most: u64) -> Result<(), Failure> {
        let mut decoder = png::Decoder::new(Cursor::new(bytes));
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        decoder.set_transformations(Transformations::IDENTITY);
        let info = decoder.read_header_info().map_err(failure)?;
        let found = (info.width, info.height);
        if !sizes.contains(&found) {
            let ((w, h), (width, height)) = (found, sizes[0]);
            let detail = format!("{w} × {h} pixels, but its image has {width} × {height}");
            return Err(Failure::decode(Reason::Changed, detail));
        }
        if u64::from(found.0) * u64::from(found.1) > most {
            let detail = format!("{} × {} pixels, more than render.max_pixels = {most}", found.0, found.1);
            return Err(Failure::decode(Reason::TooLarge, detail));
        }
        let mut reader = decoder.read_info().map_err(failure)?;
        let (colours, depth) = reader.output_color_type();
        let channels = match colours {
            ColorType::Grayscale | ColorType::Indexed => 1,
            ColorType::Rgb if depth == BitDepth::Eight => 3,
            _ => {
                let detail = "its samples are no numbers; write it as grey, with a palette, or as RGB of 8 bits";
                return Err(Failure::decode(Reason::Unsupported, detail));
            }
        };
        let bytes = reader
            .output_buffer_size()
            .ok_or_else(|| Failure::decode(Reason::TooLarge, "larger than the address space"))?;
        room(&mut self.rows, bytes);
        let frame = reader.next_frame(&mut self.rows[..bytes]).map_err(failure)?;
        let (width, height) = (found.0 as usize, found.1 as usize);
        self.size = (width, height);
        self.step = if depth == BitDepth::Sixteen { 2 } else { channels };
        let bits = if (depth as usize) < 8 { depth as usize } else { 8 };
        let line = width * self.step;
        room(&mut self.data, line * height);
        for (row, to) in self.rows.chunks(frame.line_size).zip(self.data.chunks_exact_mut(line)).take(height) {
            if bits == 8 {
                to.copy_from_slice(&row[..line]);
                continue;
            }
            // Several to a byte, the first in the high bits.
            let (each, mask) = (8 / bits, (1u8 << bits) - 1);
            for (x, to) in to.iter_mut().enumerate() {
                *to = row[x / each] >> (8 - bits - bits * (x % each)) & mask;
            }
        }
        Ok(())
    }
}

/// Size and bytes of a pixel of the usual mask: 8 or 16 bits of grey, a palette of 8, RGB of 8.
fn usual(bytes: &[u8]) -> Option<Usual> {
    let (size, depth, colours) = header(bytes)?;
    let step = match (depth, colours) {
        (8, 0 | 3) => 1,
        (16, 0) => 2,
        (8, 2) => 3,
        _ => return None,
    };
    Some((size, step))
}
