//! A JPEG decoder for the plain cases alone: baseline in one scan, or progressive; grey or Y, Cb, Cr of a usual sampling.
//! In: a whole file. Out: the same samples, bit for bit, that libjpeg-turbo gives; or nothing, for a file of another kind
//! or with anything odd about it, however small. Such a file goes to another decoder from the start, so faults are judged
//! and named in one place.
//!
//! ```text
//! header ─► stream ─► huffman, block ───────────────► idct, avx2
//! segments   no stuffing   coefficients of a block       samples
//!                     └─► huffman, progressive ───────┘
//!                           of all blocks, scan by scan
//! ```
//!
//! It was written because the entropy decoder bounds a whole loader of images. One look-up for two symbols and their
//! values, bits refilled without a branch, and no marker in the way: that takes about 0.6 of the time.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod block;
mod header;
mod huffman;
mod idct;
mod progressive;
mod stream;

use self::block::{Bits, Block, Square};
pub use self::header::Header;
use self::huffman::{AcTable, Cache, DcTable, RunTable};
use self::progressive::{Coefficients, Tools};
use self::stream::Stream;

/// Buffers larger than this are given back after the file that needed them.
const KEEP_BYTES: usize = 64 << 20;

/// One plane of samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plane {
    /// First byte in the buffer.
    pub start: usize,
    /// Bytes from row to row.
    pub stride: usize,
    /// Samples per row that belong to the image.
    pub width: u32,
    /// Rows that belong to the image.
    pub height: u32,
    /// Pixels of the file for each of its samples, across and down.
    pub step: (u32, u32),
}

/// A decoded file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// Grey, or Y, Cb and Cr.
    pub planes: [Plane; 3],
    /// How many of them there are.
    pub count: usize,
    /// Their bytes in the buffer, padding to whole blocks included.
    pub bytes: usize,
}

/// The decoder of one thread.
pub struct Decoder {
    fast: bool,
    stream: Stream,
    dc: Cache<DcTable>,
    ac: Cache<AcTable>,
    runs: Cache<RunTable>,
    coefficients: Coefficients,
}

/// What decoding the blocks of one component takes.
struct Part<'a> {
    dc: &'a DcTable,
    ac: &'a AcTable,
    divisors: idct::Divisors,
    /// Blocks of an MCU across and down.
    blocks: (usize, usize),
    /// First byte and bytes from row to row of its plane.
    start: usize,
    stride: usize,
}

/// One scan.
struct Scan<'a> {
    stream: &'a Stream,
    parts: [Option<Part<'a>>; 3],
    /// MCUs across and down, and between restarts (0: none).
    mcus: (usize, usize),
    restart: usize,
    /// Samples per side of a block.
    side: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(fast())
    }
}

impl Decoder {
    /// A decoder in its fast form or its plain one.
    pub fn new(fast: bool) -> Self {
        Self {
            fast,
            stream: Stream::default(),
            dc: Cache::default(),
            ac: Cache::default(),
            runs: Cache::default(),
            coefficients: Coefficients::default(),
        }
    }

    /// Decodes a file at the DCT scale 1/`shrink` (1, 2, 4 or 8) into `out`, which grows where it is too small, is
    /// never cleared and may be longer than the planes. None leaves `out` in any state, and the file to another
    /// decoder.
    pub fn decode(&mut self, header: &Header<'_>, shrink: u32, out: &mut Vec<u8>) -> Option<Picture> {
        assert!(matches!(shrink, 1 | 2 | 4 | 8), "a shrink of {shrink}; it must be 1, 2, 4 or 8");
        if header.progressive {
            return self.progressive(header, shrink, out);
        }
        let end = self.stream.take(self.fast, header.scan)?;
        (header.scan[end + 1] == 0xD9).then_some(())?;
        self.dc.next();
        self.ac.next();
        let mut tables = [(0, 0); 3];
        for (component, to) in header.components[..header.count].iter().zip(&mut tables) {
            let definition = |kind: usize, n: usize| header.tables[kind].get(n).copied().filter(|d| !d.is_empty());
            to.0 = self.dc.find(definition(0, component.tables.0)?)?;
            to.1 = self.ac.find(definition(1, component.tables.1)?)?;
        }
        let (picture, mcus) = lay_out(header, shrink, out);
        let mut parts: [Option<Part<'_>>; 3] = [None, None, None];
        for (n, (component, part)) in header.components[..header.count].iter().zip(&mut parts).enumerate() {
            *part = Some(Part {
                dc: self.dc.get(tables[n].0),
                ac: self.ac.get(tables[n].1),
                divisors: component.divisors(),
                blocks: (component.sampling.0 as usize, component.sampling.1 as usize),
                start: picture.planes[n].start,
                stride: picture.planes[n].stride,
            });
        }
        let side = 8 / shrink as usize;
        let scan = Scan { stream: &self.stream, parts, mcus, restart: header.restart as usize, side };
        let done = scan.run(self.fast, out);
        if self.stream.data.len() > KEEP_BYTES {
            self.stream = Stream::default();
        }
        done.map(|()| picture)
    }

    fn progressive(&mut self, header: &Header<'_>, shrink: u32, out: &mut Vec<u8>) -> Option<Picture> {
        let (picture, mcus) = lay_out(header, shrink, out);
        let mut tools = Tools { fast: self.fast, stream: &mut self.stream, dc: &mut self.dc, runs: &mut self.runs };
        self.coefficients.read(header, mcus, &mut tools)?;
        let painted = (&picture, 8 / shrink as usize);
        paint(self.fast, &mut self.coefficients, header, mcus, painted, out);
        self.coefficients.trim();
        Some(picture)
    }
}

/// The samples of a progressive file, and blocks of how many a side.
fn paint(
    fast: bool,
    coefficients: &mut Coefficients,
    header: &Header<'_>,
    mcus: (usize, usize),
    painted: (&Picture, usize),
    out: &mut [u8],
) {
    #[cfg(target_arch = "x86_64")]
    if fast && painted.1 > 1 {
        // SAFETY: `fast` is only true where these features were found.
        return unsafe { paint_fast(coefficients, header, mcus, painted, out) };
    }
    let _ = fast;
    match painted.1 {
        8 => coefficients.paint(header, mcus, painted, out, idct::full),
        4 => coefficients.paint(header, mcus, painted, out, idct::half),
        2 => coefficients.paint(header, mcus, painted, out, idct::quarter),
        _ => coefficients.paint(header, mcus, painted, out, |b, d, o, _| o[0] = idct::eighth(b[0], d[0])),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,movbe,popcnt")]
fn paint_fast(
    coefficients: &mut Coefficients,
    header: &Header<'_>,
    mcus: (usize, usize),
    painted: (&Picture, usize),
    out: &mut [u8],
) {
    match painted.1 {
        8 => coefficients.paint(header, mcus, painted, out, |b, d, o, s| avx2::full(b, d, o, s)),
        4 => coefficients.paint(header, mcus, painted, out, |b, d, o, s| avx2::half(b, d, o, s)),
        _ => coefficients.paint(header, mcus, painted, out, |b, d, o, s| avx2::quarter(b, d, o, s)),
    }
}

/// Whether the fast form can be used on this machine.
fn fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("bmi1")
            && std::arch::is_x86_feature_detected!("bmi2")
            && std::arch::is_x86_feature_detected!("movbe")
            && std::arch::is_x86_feature_detected!("popcnt")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Planes of whole MCUs, one after the other, and room for them. Returns them, and the MCUs across and down.
fn lay_out(header: &Header<'_>, shrink: u32, out: &mut Vec<u8>) -> (Picture, (usize, usize)) {
    let (across, down) = header.components[0].sampling;
    let (width, height) = header.size;
    let mcus = (width.div_ceil(8 * across), height.div_ceil(8 * down));
    let scaled = (width.div_ceil(shrink), height.div_ceil(shrink));
    let (mut start, side) = (0, 8 / shrink);
    let mut picture = Picture { count: header.count, ..Picture::default() };
    for (component, plane) in header.components[..header.count].iter().zip(&mut picture.planes) {
        let (h, v) = component.sampling;
        let (sub_x, sub_y) = (across / h, down / v);
        let stride = (mcus.0 * h * side) as usize;
        *plane = Plane {
            start,
            stride,
            width: scaled.0.div_ceil(sub_x),
            height: scaled.1.div_ceil(sub_y),
            step: (shrink * sub_x, shrink * sub_y),
        };
        start += stride * (mcus.1 * v * side) as usize;
    }
    picture.bytes = start;
    if out.len() < start {
        out.resize(start, 0);
    }
    (picture, (mcus.0 as usize, mcus.1 as usize))
}

impl Scan<'_> {
    fn run(&self, fast: bool, out: &mut [u8]) -> Option<()> {
        #[cfg(target_arch = "x86_64")]
        if fast {
            // SAFETY: `fast` is only true where these features were found.
            return unsafe { self.run_fast(out) };
        }
        let _ = fast;
        self.blocks(out, idct::full, idct::half, idct::quarter)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
    fn run_fast(&self, out: &mut [u8]) -> Option<()> {
        self.blocks(
            out,
            |b, d, o, s| avx2::full(b, d, o, s),
            |b, d, o, s| avx2::half(b, d, o, s),
            |b, d, o, s| avx2::quarter(b, d, o, s),
        )
    }

    #[inline(always)]
    fn blocks(
        &self,
        out: &mut [u8],
        full: impl Fn(&Square, &idct::Divisors, &mut [u8], usize),
        half: impl Fn(&Square, &idct::Divisors, &mut [u8], usize),
        quarter: impl Fn(&Square, &idct::Divisors, &mut [u8], usize),
    ) -> Option<()> {
        let total = self.mcus.0 * self.mcus.1;
        let interval = if self.restart == 0 { total } else { self.restart };
        if self.stream.ends.len() != total.div_ceil(interval) {
            return None;
        }
        let mut bits = Bits::new(&self.stream.data, 0);
        let (mut ends, mut end, mut left) = (self.stream.ends.iter(), 0, 0);
        let mut dc = [0i16; 3];
        let mut block: Block = [0; 256];
        for row in 0..self.mcus.1 {
            for column in 0..self.mcus.0 {
                if left == 0 {
                    // The interval before must end with the last of its bits, but for less than a byte.
                    if bits.read().div_ceil(8) != end {
                        return None;
                    }
                    bits = Bits::new(&self.stream.data, end);
                    (end, left, dc) = (*ends.next()?, interval, [0; 3]);
                }
                left -= 1;
                for (part, dc) in self.parts.iter().zip(&mut dc) {
                    let Some(part) = part else { break };
                    for n in 0..part.blocks.0 * part.blocks.1 {
                        let (y, x) = (n / part.blocks.0, n % part.blocks.0);
                        block[..64].fill(0);
                        *dc = dc.wrapping_add(block::dc(&mut bits, part.dc)? as i16);
                        block[0] = *dc;
                        block::ac(&mut bits, part.ac, &mut block)?;
                        let line = (row * part.blocks.1 + y) * self.side * part.stride;
                        let at = part.start + line + (column * part.blocks.0 + x) * self.side;
                        let to = &mut out[at..];
                        let block = block.first_chunk().unwrap_or(&[0; 64]);
                        match self.side {
                            8 => full(block, &part.divisors, to, part.stride),
                            4 => half(block, &part.divisors, to, part.stride),
                            2 => quarter(block, &part.divisors, to, part.stride),
                            _ => to[0] = idct::eighth(block[0], part.divisors[0]),
                        }
                    }
                }
                if bits.read() > end * 8 {
                    return None;
                }
            }
        }
        (bits.read().div_ceil(8) == end).then_some(())
    }
}
