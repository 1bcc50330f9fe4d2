//! A JPEG file up to its scan. In: the whole file. Out: what decoding the scan needs, or None for a file that is not of
//! the plain kind or has anything odd about it: another decoder then judges it.

use crate::block::PLACES;
use crate::idct::Divisors;

/// One colour component.
#[derive(Clone, Copy, Debug)]
pub struct Component {
    /// Blocks of the MCU across and down.
    pub sampling: (u32, u32),
    /// Its divisors, in zigzag order.
    pub divisors: [u8; 64],
    /// Which Huffman tables it uses, DC and AC.
    pub tables: (usize, usize),
}

impl Component {
    /// Its divisors in the order of a block.
    pub(crate) fn divisors(&self) -> Divisors {
        let mut divisors = [0; 64];
        for (&place, &divisor) in PLACES.iter().zip(&self.divisors) {
            divisors[usize::from(place)] = i16::from(divisor);
        }
        divisors
    }
}

/// Definitions of Huffman tables, DC and AC: 16 counts, then the symbols. Empty where there is none.
pub(crate) type Tables<'a> = [[&'a [u8]; 4]; 2];

/// What a plain file says before its scan, or before the first of several.
#[derive(Clone, Debug)]
pub struct Header<'a> {
    /// Width and height.
    pub size: (u32, u32),
    /// One component of grey, or Y, Cb and Cr.
    pub(crate) components: [Component; 3],
    /// How many of them there are.
    pub(crate) count: usize,
    pub(crate) tables: Tables<'a>,
    /// MCUs between restart markers, 0 for none.
    pub(crate) restart: u32,
    /// Whether the file is progressive.
    pub(crate) progressive: bool,
    /// The numbers of its components.
    pub(crate) names: [u8; 3],
    /// The file from the scan's data on; of a progressive one from the first scan's marker on.
    pub(crate) scan: &'a [u8],
}

/// As in libjpeg-turbo.
const MAX_SIDE: u32 = 65_500;

/// What lies between the start of the file and the scan.
#[derive(Default)]
struct Segments<'a> {
    divisors: [Option<&'a [u8; 64]>; 4],
    tables: Tables<'a>,
    frame: Option<&'a [u8]>,
    progressive: bool,
    restart: u32,
    jfif: bool,
    adobe: Option<u8>,
}

impl<'a> Header<'a> {
    /// Reads the segments of a plain file up to its scan.
    pub fn of(data: &'a [u8]) -> Option<Self> {
        if !data.starts_with(&[0xFF, 0xD8]) {
            return None;
        }
        let (mut at, mut found) = (2, Segments::default());
        loop {
            let start = at;
            let (code, body);
            (code, body, at) = segment(data, start)?;
            match code {
                // Application data and comments.
                0xE0..=0xEF | 0xFE => found.application(code, body)?,
                0xDB => found.quantisation(body)?,
                0xC4 => define(&mut found.tables, body)?,
                // Baseline, extended with 8 bits, progressive.
                0xC0..=0xC2 if found.frame.is_none() => {
                    (found.frame, found.progressive) = (Some(body), code == 0xC2);
                }
                0xDD => found.restart = interval(body)?,
                0xDA if found.progressive => return found.header(&data[start..]),
                0xDA => return found.scan(body, &data[at..]),
                _ => return None,
            }
        }
    }
}

impl<'a> Segments<'a> {
    fn application(&mut self, code: u8, body: &[u8]) -> Option<()> {
        if code == 0xE0 && body.starts_with(b"JFIF\0") && body.len() >= 14 {
            // Another major version is a matter for a warning.
            (body[5] == 1).then_some(())?;
            self.jfif = true;
        }
        if code == 0xEE && body.starts_with(b"Adobe") && body.len() >= 12 {
            self.adobe = Some(body[11]);
        }
        Some(())
    }

    fn quantisation(&mut self, mut body: &'a [u8]) -> Option<()> {
        while let Some((&which, rest)) = body.split_first() {
            let (divisors, rest) = rest.split_first_chunk::<64>()?;
            // Divisors of 16 bits have a high nibble of 1, and are no table of this array.
            *self.divisors.get_mut(usize::from(which))? = Some(divisors);
            body = rest;
        }
        Some(())
    }

    /// The header of a baseline file: its only scan has all components, in their order.
    fn scan(self, body: &[u8], data: &'a [u8]) -> Option<Header<'a>> {
        let (&count, scan) = body.split_first()?;
        let mut header = self.header(data)?;
        if usize::from(count) != header.count || scan.len() != 2 * header.count + 3 || !scan.ends_with(&[0, 63, 0]) {
            return None;
        }
        for (n, to) in header.components[..header.count].iter_mut().enumerate() {
            let tables = scan[2 * n + 1];
            (scan[2 * n] == header.names[n]).then_some(())?;
            to.tables = (usize::from(tables >> 4), usize::from(tables & 15));
        }
        Some(header)
    }

    /// What all files say; `scan` is the rest of the file.
    fn header(self, scan: &'a [u8]) -> Option<Header<'a>> {
        let &[8, h1, h0, w1, w0, count, ref frame @ ..] = self.frame? else { return None };
        let size = (u32::from(u16::from_be_bytes([w1, w0])), u32::from(u16::from_be_bytes([h1, h0])));
        let count = usize::from(count);
        let sides = 1..=MAX_SIDE;
        if !sides.contains(&size.0) || !sides.contains(&size.1) || !matches!(count, 1 | 3) || frame.len() != 3 * count {
            return None;
        }
        let mut components = [Component { sampling: (0, 0), divisors: [0; 64], tables: (0, 0) }; 3];
        for (n, to) in components[..count].iter_mut().enumerate() {
            let &[id, sampling, divisors] = frame.get(3 * n..3 * n + 3)? else { return None };
            if frame[..3 * n].iter().step_by(3).any(|&other| other == id) {
                return None;
            }
            to.sampling = (u32::from(sampling >> 4), u32::from(sampling & 15));
            to.divisors = *(*self.divisors.get(usize::from(divisors))?)?;
        }
        let names = [0, 3, 6].map(|n| frame.get(n).copied().unwrap_or(0));
        match (count, components.map(|c| c.sampling)) {
            // A single component's blocks stand one after the other, whatever its sampling says.
            (1, [(1..=4, 1..=4), ..]) => components[0].sampling = (1, 1),
            // Y, Cb, Cr as JFIF says, or Adobe, or by the usual names.
            (3, [(1 | 2, 1 | 2) | (4, 1) | (1, 4), (1, 1), (1, 1)])
                if self.jfif || self.adobe == Some(1) || self.adobe.is_none() && names == [1, 2, 3] => {}
            _ => return None,
        }
        let Self { tables, restart, progressive, .. } = self;
        Some(Header { size, components, count, tables, restart, progressive, names, scan })
    }
}

/// The marker segment at `at`: its code, its body, and where it ends.
pub(crate) fn segment(data: &[u8], at: usize) -> Option<(u8, &[u8], usize)> {
    let &[0xFF, code, high, low] = data.get(at..at + 4)? else { return None };
    let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
    Some((code, data.get(at + 4..end)?, end))
}

/// Takes up definitions of Huffman tables.
pub(crate) fn define<'a>(tables: &mut Tables<'a>, mut body: &'a [u8]) -> Option<()> {
    while let Some((&which, rest)) = body.split_first() {
        let counts = rest.get(..16)?;
        let symbols: usize = counts.iter().map(|&n| usize::from(n)).sum();
        if symbols > 256 {
            return None;
        }
        let table = rest.get(..16 + symbols)?;
        *tables.get_mut(usize::from(which >> 4))?.get_mut(usize::from(which & 15))? = table;
        body = &rest[16 + symbols..];
    }
    Some(())
}

/// MCUs between restarts.
pub(crate) fn interval(body: &[u8]) -> Option<u32> {
    let &[high, low] = body else { return None };
    Some(u32::from(u16::from_be_bytes([high, low])))
}
