//! Progressive files. In: a header and the scans behind it. Out: the coefficients of all blocks, and from them the samples, as
//! for a baseline file. None for a file that lacks a bit of a coefficient, since libjpeg-turbo smooths it, and for all
//! that it might warn of.
//!
//! libjpeg-turbo walks over every coefficient of every block once a scan, and asks of each whether it is zero. Here each
//! block has a word that says which are not: a scan of refinements takes its bits all at once and touches what they change
//! alone, and blocks that a run skips are not looked at. DC values stand by themselves, since half of the scans read
//! nothing else. What the image before left behind is cleared where its samples are made, while it is near.

use crate::block::{self, Bits, PLACES, Square};
use crate::header::{Header, Tables, define, interval, segment};
use crate::huffman::{Cache, DcTable, RunTable, extend};
use crate::idct::Divisors;
use crate::stream::Stream;
use crate::{KEEP_BYTES, Picture};

/// Scans of a file; a real encoder writes some ten, a hostile file thousands.
const MAX_SCANS: usize = 500;
/// Highest bit at which a scan may begin, as in libjpeg-turbo.
const MAX_LOW: u8 = 13;

/// Coefficients of one image; all zero between images but for `dc`.
#[derive(Default)]
pub struct Coefficients {
    dc: Vec<i16>,
    ac: Vec<Square>,
    /// For each block which AC coefficients are not zero: bit k for number k in zigzag order.
    set: Vec<u64>,
}

/// Where the blocks of one component are.
#[derive(Clone, Copy, Default)]
struct Grid {
    first: usize,
    /// Squares from row to row.
    stride: usize,
    /// Squares that belong to the image, across and down.
    blocks: (usize, usize),
    /// Squares of an MCU.
    unit: (usize, usize),
}

/// One scan's header.
struct Scan {
    /// Which components.
    parts: ([usize; 3], usize),
    /// DC and AC table of each.
    tables: [(usize, usize); 3],
    band: (u8, u8),
    /// Bits that were sent before (0: none), and that are still to come.
    high: u8,
    low: u8,
}

/// What decoding needs besides the file.
pub struct Tools<'a> {
    pub fast: bool,
    pub stream: &'a mut Stream,
    pub dc: &'a mut Cache<DcTable>,
    pub runs: &'a mut Cache<RunTable>,
}

/// The blocks of a file, and MCUs across and down.
struct Frame {
    grids: [Grid; 3],
    mcus: (usize, usize),
    /// Blocks of all components.
    total: usize,
}

impl Coefficients {
    /// Reads all scans. Where that fails, everything is cleared again.
    pub fn read(&mut self, header: &Header<'_>, mcus: (usize, usize), tools: &mut Tools<'_>) -> Option<()> {
        let frame = Frame::of(header, mcus);
        let total = frame.total;
        if self.ac.len() < total {
            self.dc.resize(total, 0);
            self.ac.resize(total, [0; 64]);
            self.set.resize(total, 0);
        }
        self.dc[..total].fill(0);
        let read = self.scans(header, &frame, tools);
        if read.is_none() {
            self.ac[..total].fill([0; 64]);
            self.set[..total].fill(0);
        }
        read
    }

    /// Gives large buffers back.
    pub fn trim(&mut self) {
        if self.ac.len() * size_of::<Square>() > KEEP_BYTES {
            *self = Self::default();
        }
    }

    fn scans(&mut self, header: &Header<'_>, frame: &Frame, tools: &mut Tools<'_>) -> Option<()> {
        let (mut tables, mut restart) = (header.tables, header.restart as usize);
        // For each coefficient the bits still to come; before its first scan `NEVER`, as in libjpeg's `coef_bits`.
        const NEVER: u8 = u8::MAX;
        let mut left = [[NEVER; 64]; 3];
        let (mut at, mut scans) = (0, 0);
        loop {
            let &[0xFF, code] = header.scan.get(at..at + 2)? else { return None };
            if code == 0xD9 {
                let whole = left[..header.count].iter().flatten().all(|&bits| bits == 0);
                return whole.then_some(());
            }
            let (code, body, end) = segment(header.scan, at)?;
            at = end;
            match code {
                0xC4 => define(&mut tables, body)?,
                0xDD => restart = interval(body)? as usize,
                0xDA => {
                    scans += 1;
                    let scan = Scan::of(header, body).filter(|_| scans <= MAX_SCANS)?;
                    let (from, to) = (usize::from(scan.band.0), usize::from(scan.band.1));
                    for &part in &scan.parts.0[..scan.parts.1] {
                        // AC values before any DC, or bits out of order: libjpeg-turbo warns of both.
                        if from > 0 && left[part][0] == NEVER {
                            return None;
                        }
                        for bits in &mut left[part][from..=to] {
                            if scan.high != if *bits == NEVER { 0 } else { *bits } || scan.high == 0 && *bits == 0 {
                                return None;
                            }
                            *bits = scan.low;
                        }
                    }
                    at += tools.stream.take(tools.fast, &header.scan[at..])?;
                    self.scan(&scan, &tables, frame, restart, tools)?;
                }
                _ => return None,
            }
        }
    }

    fn scan(
        &mut self,
        scan: &Scan,
        tables: &Tables<'_>,
        frame: &Frame,
        restart: usize,
        tools: &mut Tools<'_>,
    ) -> Option<()> {
        let definition = |kind: usize, n: usize| tables[kind].get(n).copied().filter(|d| !d.is_empty());
        let (parts, count) = scan.parts;
        if scan.band.0 == 0 {
            let mut found = [0; 3];
            if scan.high == 0 {
                tools.dc.next();
                for (to, &(dc, _)) in found[..count].iter_mut().zip(&scan.tables) {
                    *to = tools.dc.find(definition(0, dc)?)?;
                }
            }
            let tables = found.map(|n| (scan.high == 0).then(|| tools.dc.get(n)));
            return self.dc_scan(scan, tables, frame, &mut Pieces::of(tools.stream, restart));
        }
        tools.runs.next();
        let table = tools.runs.find(definition(1, scan.tables[0].1)?)?;
        let (table, grid) = (tools.runs.get(table), &frame.grids[parts[0]]);
        let pieces = &mut Pieces::of(tools.stream, restart);
        #[cfg(target_arch = "x86_64")]
        if tools.fast {
            // SAFETY: `fast` is only true where these features were found.
            return unsafe { self.ac_scan_fast(scan, table, grid, pieces) };
        }
        match scan.high {
            0 => self.first(scan, table, grid, pieces),
            _ => self.refine(scan, table, grid, pieces, deposit),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2,movbe,popcnt")]
    fn ac_scan_fast(&mut self, scan: &Scan, table: &RunTable, grid: &Grid, pieces: &mut Pieces<'_>) -> Option<()> {
        match scan.high {
            0 => self.first(scan, table, grid, pieces),
            _ => self.refine(scan, table, grid, pieces, |bits, to| std::arch::x86_64::_pdep_u64(bits, to)),
        }
    }

    /// DC values: their first bits, or one more of each. Of several components MCU by MCU, of one block by block.
    fn dc_scan(
        &mut self,
        scan: &Scan,
        tables: [Option<&DcTable>; 3],
        frame: &Frame,
        pieces: &mut Pieces<'_>,
    ) -> Option<()> {
        let (parts, count) = scan.parts;
        let alone = count == 1;
        let (across, down) = if alone { frame.grids[parts[0]].blocks } else { frame.mcus };
        pieces.expect(across * down)?;
        let mut last = [0i32; 3];
        for y in 0..down {
            for x in 0..across {
                if pieces.next()? {
                    last = [0; 3];
                }
                for n in 0..count {
                    let grid = &frame.grids[parts[n]];
                    let unit = if alone { (1, 1) } else { grid.unit };
                    for block in 0..unit.0 * unit.1 {
                        let (dy, dx) = (block / unit.0, block % unit.0);
                        let to = &mut self.dc[grid.first + (y * unit.1 + dy) * grid.stride + x * unit.0 + dx];
                        match tables[n] {
                            Some(table) => {
                                last[n] = last[n].checked_add(block::dc(&mut pieces.bits, table)?)?;
                                *to = (last[n] << scan.low) as i16;
                            }
                            None => {
                                pieces.bits.refill();
                                *to |= ((pieces.bits.word >> 63) as i16) << scan.low;
                                pieces.bits.drop(1);
                            }
                        }
                    }
                }
            }
        }
        pieces.end()
    }

    /// The first bits of a band of one component's AC values.
    #[inline(always)]
    fn first(&mut self, scan: &Scan, table: &RunTable, grid: &Grid, pieces: &mut Pieces<'_>) -> Option<()> {
        let (from, to) = (u32::from(scan.band.0), u32::from(scan.band.1));
        let (across, down) = grid.blocks;
        pieces.expect(across * down)?;
        // Squares to come in which nothing is left of the band.
        let mut skip = 0usize;
        for y in 0..down {
            let row = grid.first + y * grid.stride;
            let mut x = 0;
            while x < across {
                if pieces.next()? {
                    skip = 0;
                }
                if skip > 0 {
                    // This one, and more of the row, up to a restart.
                    let more = (skip - 1).min(across - x - 1).min(pieces.left);
                    pieces.left -= more;
                    skip -= more + 1;
                    x += more + 1;
                    continue;
                }
                let (block, set) = (&mut self.ac[row + x], &mut self.set[row + x]);
                // By itself, so that it stays in registers.
                let mut bits = pieces.bits;
                let mut k = from;
                while k <= to {
                    bits.refill();
                    let (length, run, size) = table.look(bits.word)?;
                    if size > 0 {
                        k += run;
                        if k > to {
                            return None;
                        }
                        let value = (extend(bits.word << length, size) << scan.low) as i16;
                        bits.drop(length + size);
                        block[usize::from(PLACES[k as usize])] = value;
                        *set |= u64::from(value != 0) << k;
                        k += 1;
                    } else if run == 15 {
                        bits.drop(length);
                        k += 16;
                    } else {
                        skip = bits.run(length, run);
                        break;
                    }
                }
                pieces.bits = bits;
                x += 1;
            }
        }
        pieces.end()
    }

    /// One more bit of a band of one component's AC values. `deposit(bits, to)` gives the lowest of `bits` to the places that
    /// are set in `to`, from the lowest on.
    #[inline(always)]
    fn refine(
        &mut self,
        scan: &Scan,
        table: &RunTable,
        grid: &Grid,
        pieces: &mut Pieces<'_>,
        deposit: impl Fn(u64, u64) -> u64,
    ) -> Option<()> {
        let (from, to) = (u32::from(scan.band.0), u32::from(scan.band.1));
        let band = (u64::MAX >> (63 - to)) & (u64::MAX << from);
        let one = 1i16 << scan.low;
        let (across, down) = grid.blocks;
        pieces.expect(across * down)?;
        let mut skip = 0usize;
        for y in 0..down {
            for at in grid.first + y * grid.stride..grid.first + y * grid.stride + across {
                if pieces.next()? {
                    skip = 0;
                }
                let (block, set) = (&mut self.ac[at], &mut self.set[at]);
                let mut bits = pieces.bits;
                // What was not zero before this scan, what of the band is still to come, and what is to be larger by a bit.
                let old = *set & band;
                let (mut ahead, mut hit) = (band, 0);
                while skip == 0 && ahead != 0 {
                    bits.refill();
                    let (length, run, size) = table.look(bits.word)?;
                    if size > 1 {
                        return None;
                    }
                    if size == 0 && run < 15 {
                        skip = bits.run(length, run) + 1;
                        break;
                    }
                    let positive = bits.word << length >> 63 == 1;
                    bits.drop(length + size);
                    // The place behind `run` zeros, 0 for none; what is not zero on the way has a bit of its own.
                    let place = deposit(1 << run, ahead & !old);
                    let way = place.wrapping_sub(1);
                    hit |= one_each(&mut bits, ahead & old & way, &deposit);
                    ahead &= !(place | way);
                    if size == 1 {
                        if place == 0 {
                            return None;
                        }
                        let value = if positive { one } else { one.wrapping_neg() };
                        block[usize::from(PLACES[place.trailing_zeros() as usize])] = value;
                        *set |= place;
                    }
                }
                if skip > 0 {
                    bits.refill();
                    hit |= one_each(&mut bits, ahead & old, &deposit);
                    skip -= 1;
                }
                // Once for all of them: where a loop ends cannot be foreseen.
                while hit != 0 {
                    let to = &mut block[usize::from(PLACES[hit.trailing_zeros() as usize])];
                    if *to & one == 0 {
                        *to = to.wrapping_add(if *to >= 0 { one } else { one.wrapping_neg() });
                    }
                    hit &= hit - 1;
                }
                pieces.bits = bits;
            }
        }
        pieces.end()
    }

    /// Makes the samples of all blocks and clears their coefficients.
    #[inline(always)]
    pub fn paint(
        &mut self,
        header: &Header<'_>,
        mcus: (usize, usize),
        (picture, side): (&Picture, usize),
        out: &mut [u8],
        transform: impl Fn(&Square, &Divisors, &mut [u8], usize),
    ) {
        for (n, grid) in Frame::of(header, mcus).grids[..header.count].iter().enumerate() {
            let (plane, divisors) = (&picture.planes[n], header.components[n].divisors());
            for y in 0..grid.blocks.1 {
                for x in 0..grid.blocks.0 {
                    let at = grid.first + y * grid.stride + x;
                    let to = &mut out[plane.start + y * side * plane.stride + x * side..];
                    let mut flat = [0; 64];
                    let block = if self.set[at] == 0 { &mut flat } else { &mut self.ac[at] };
                    block[0] = self.dc[at];
                    transform(block, &divisors, to, plane.stride);
                    if self.set[at] != 0 {
                        *block = [0; 64];
                        self.set[at] = 0;
                    }
                }
            }
        }
    }
}

/// Reads a bit for each place of `which`, the lowest first: those whose bit is set. 32 bits must be there.
#[inline(always)]
fn one_each(bits: &mut Bits<'_>, which: u64, deposit: &impl Fn(u64, u64) -> u64) -> u64 {
    let count = which.count_ones();
    if count > 32 {
        // At most 32 in either half of the places.
        let lower = which & u64::from(u32::MAX);
        let found = deposit(bits.word.reverse_bits(), lower);
        bits.drop(lower.count_ones());
        bits.refill();
        let found = found | deposit(bits.word.reverse_bits(), which ^ lower);
        bits.drop((which ^ lower).count_ones());
        return found;
    }
    let found = deposit(bits.word.reverse_bits(), which);
    bits.drop(count);
    found
}

/// See `Coefficients::refine`.
fn deposit(mut bits: u64, mut to: u64) -> u64 {
    let mut found = 0;
    while to != 0 {
        let lowest = to & to.wrapping_neg();
        found |= if bits & 1 == 1 { lowest } else { 0 };
        bits >>= 1;
        to ^= lowest;
    }
    found
}

impl Frame {
    fn of(header: &Header<'_>, mcus: (usize, usize)) -> Self {
        let (mut grids, mut first) = ([Grid::default(); 3], 0);
        let most = header.components[0].sampling;
        for (component, grid) in header.components[..header.count].iter().zip(&mut grids) {
            let (h, v) = component.sampling;
            let blocks = |side: u32, own: u32, most: u32| (side * own).div_ceil(most).div_ceil(8) as usize;
            *grid = Grid {
                first,
                stride: mcus.0 * h as usize,
                blocks: (blocks(header.size.0, h, most.0), blocks(header.size.1, v, most.1)),
                unit: (h as usize, v as usize),
            };
            first += grid.stride * mcus.1 * v as usize;
        }
        Self { grids, mcus, total: first }
    }
}

impl Scan {
    fn of(header: &Header<'_>, body: &[u8]) -> Option<Self> {
        let (&count, rest) = body.split_first()?;
        let count = usize::from(count);
        if !(1..=header.count).contains(&count) || rest.len() != 2 * count + 3 {
            return None;
        }
        let &[from, to, bits] = &rest[2 * count..] else { return None };
        let (high, low) = (bits >> 4, bits & 15);
        let mut scan = Self { parts: ([0; 3], count), tables: [(0, 0); 3], band: (from, to), high, low };
        let mut next = 0;
        for n in 0..count {
            // In the order of the frame.
            let found = header.names[next..header.count].iter().position(|&name| name == rest[2 * n])?;
            scan.parts.0[n] = next + found;
            next += found + 1;
            let tables = rest[2 * n + 1];
            scan.tables[n] = (usize::from(tables >> 4), usize::from(tables & 15));
        }
        let dc = from == 0 && to == 0;
        let ac = from > 0 && from <= to && to <= 63 && count == 1;
        ((dc || ac) && low <= MAX_LOW && (high == 0 || high == low + 1)).then_some(scan)
    }
}

/// The pieces of a scan's data between its restarts.
struct Pieces<'a> {
    bits: Bits<'a>,
    stream: &'a Stream,
    restart: usize,
    /// Pieces that were begun, and blocks or MCUs that are left of this one.
    begun: usize,
    left: usize,
}

impl<'a> Pieces<'a> {
    fn of(stream: &'a Stream, restart: usize) -> Self {
        Self { bits: Bits::new(&stream.data, 0), stream, restart, begun: 0, left: 0 }
    }

    /// That there are as many pieces as `units` blocks or MCUs take.
    fn expect(&mut self, units: usize) -> Option<()> {
        if self.restart == 0 {
            self.restart = units;
        }
        (self.stream.ends.len() == units.div_ceil(self.restart)).then_some(())
    }

    /// One block or MCU more; whether it begins a piece.
    #[inline(always)]
    fn next(&mut self) -> Option<bool> {
        let first = self.left == 0;
        if first {
            self.end()?;
            let start = self.begun.checked_sub(1).map_or(0, |n| self.stream.ends[n]);
            self.bits = Bits::new(&self.stream.data, start);
            (self.begun, self.left) = (self.begun + 1, self.restart);
        }
        self.left -= 1;
        Some(first)
    }

    /// The piece must end with the last of its bits, but for less than a byte.
    fn end(&self) -> Option<()> {
        let end = self.begun.checked_sub(1).map_or(0, |n| self.stream.ends[n]);
        (self.bits.read().div_ceil(8) == end).then_some(())
    }
}
