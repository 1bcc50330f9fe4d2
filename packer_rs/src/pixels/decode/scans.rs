//! What the scans of a JPEG file send, by their headers alone. In: a file. Out: which coefficients of which component
//! were never sent to their last bit, and where the pieces of entropy-coded data end.
//!
//! Apart from the decoder, since libjpeg asks none of this: a file that was cut between two scans and got an end marker
//! is decoded without a warning, and looks coarse, grey or of one colour.

use super::oddities::marker;

/// Coefficients of a block.
const ALL: usize = 64;
/// What stands for a coefficient that no scan has sent, as in libjpeg's `coef_bits`; otherwise the bits still to come.
const NEVER: u8 = u8::MAX;

/// What a file never sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gap {
    /// All of this component, counted from 1: its samples would be invented.
    Component(usize),
    /// Bits of so many coefficients of this component: it is there, but coarser than it was written. The standard allows
    /// an encoder to stop there.
    Bits(usize, usize),
}

impl Gap {
    /// For the ledger.
    pub fn said(&self) -> String {
        match self {
            Self::Component(c) => format!("component {c} is in none of its scans"),
            Self::Bits(c, n) => format!(
                "its scans leave {n} of 64 coefficients of component {c} without their last bits, as where a progressive \
                 JPEG is cut between two scans; render.damaged = 'keep' takes it as it is"
            ),
        }
    }
}

/// One component of the frame.
struct Part {
    id: u8,
    across: u32,
    down: u32,
    left: [u8; ALL],
}

/// A file's scans, from its first marker to its last.
pub struct Scans {
    parts: Vec<Part>,
    /// Where each piece of entropy-coded data ends, before the marker behind it.
    ends: Vec<usize>,
    /// Whether restart markers count up and there are as many as there should be.
    orderly: bool,
}

impl Scans {
    /// None where the file ends before its end marker or makes no sense; a decoder says so too.
    pub fn of(data: &[u8]) -> Option<Self> {
        let mut scans = Self { parts: Vec::new(), ends: Vec::new(), orderly: true };
        let (mut at, mut progressive, mut size, mut interval) = (2, false, (0, 0), 0);
        loop {
            let (start, code) = marker(data, at)?;
            at = start + 2;
            match code {
                0xD9 => return Some(scans),
                0x01 | 0xD0..=0xD8 => continue,
                _ => {}
            }
            let length = usize::from(u16::from_be_bytes(data.get(at..)?.first_chunk().copied()?));
            let body = data.get(at + 2..at + length)?;
            at += length;
            match (code, body) {
                (0xDD, &[high, low]) => interval = u32::from(u16::from_be_bytes([high, low])),
                (0xC4 | 0xC8 | 0xCC, _) => {}
                (0xC0..=0xCF, &[_, h1, h0, w1, w0, _, ref each @ ..]) if scans.parts.is_empty() => {
                    progressive = matches!(code, 0xC2 | 0xCA);
                    size = (u32::from(u16::from_be_bytes([w1, w0])), u32::from(u16::from_be_bytes([h1, h0])));
                    let part = |c: &[u8]| Part {
                        id: c[0],
                        across: u32::from(c[1] >> 4),
                        down: u32::from(c[1] & 15),
                        left: [NEVER; ALL],
                    };
                    scans.parts = each.chunks_exact(3).map(part).collect();
                }
                (0xDA, &[count, ref rest @ ..]) => {
                    let (named, &[from, to, bits]) = rest.split_at_checked(2 * usize::from(count))? else {
                        return None;
                    };
                    let mut sent = Vec::new();
                    for name in named.chunks_exact(2) {
                        let same = |n: &usize| scans.parts[*n].id == name[0] && !sent.contains(n);
                        sent.push((0..scans.parts.len()).find(same)?);
                    }
                    let (band, left) = if progressive { (from..=to.min(63), bits & 15) } else { (0..=63, 0) };
                    for &n in &sent {
                        for k in band.clone() {
                            scans.parts[n].left[usize::from(k)] = left;
                        }
                    }
                    at = scans.pieces(data, at, scans.restarts(&sent, size, interval)?)?;
                }
                _ => {}
            }
        }
    }

    /// How many restart markers a scan of these components has.
    fn restarts(&self, sent: &[usize], (width, height): (u32, u32), interval: u32) -> Option<u32> {
        let most = |of: fn(&Part) -> u32| self.parts.iter().map(of).max().filter(|&n| n > 0);
        let (across, down) = (most(|p| p.across)?, most(|p| p.down)?);
        let units = match sent {
            // A scan of one component has its blocks alone, without what fills an MCU.
            &[one] => {
                let part = &self.parts[one];
                let blocks = |side: u32, own: u32, most: u32| (side * own).div_ceil(most).div_ceil(8);
                blocks(width, part.across, across) * blocks(height, part.down, down)
            }
            _ => width.div_ceil(8 * across) * height.div_ceil(8 * down),
        };
        Some(units.saturating_sub(1).checked_div(interval).unwrap_or(0))
    }

    /// Notes the pieces of the scan that begins at `at`. Where its last one ends.
    fn pieces(&mut self, data: &[u8], mut at: usize, restarts: u32) -> Option<usize> {
        let mut seen = 0;
        loop {
            let (start, code) = marker(data, at)?;
            // Fill bytes belong to the marker.
            let mut end = start;
            while end > at && data[end - 1] == 0xFF {
                end -= 1;
            }
            self.ends.push(end);
            if !matches!(code, 0xD0..=0xD7) {
                self.orderly &= seen == restarts;
                return Some(end);
            }
            self.orderly &= u32::from(code - 0xD0) == seen % 8;
            seen += 1;
            at = start + 2;
        }
    }

    /// What was never sent; a whole component before mere bits.
    pub fn gap(&self) -> Option<Gap> {
        let parts = || (1..).zip(&self.parts);
        let never = parts().find(|(_, part)| part.left[0] == NEVER).map(|(n, _)| Gap::Component(n));
        never.or_else(|| {
            parts().find_map(|(n, part)| {
                let left = part.left.iter().filter(|&&left| left > 0).count();
                (left > 0).then_some(Gap::Bits(n, left))
            })
        })
    }

    /// The file with a filler behind each piece of its data, which nobody reads where no piece ends too early. None
    /// where pieces are missing.
    pub fn filled(&self, data: &[u8], filler: u8) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(data.len() + FILLER * self.ends.len());
        let mut at = 0;
        for &end in &self.ends {
            out.extend_from_slice(&data[at..end]);
            out.resize(out.len() + FILLER, filler);
            at = end;
        }
        out.extend_from_slice(&data[at..]);
        self.orderly.then_some(out)
    }
}

/// Bytes of filler: more than a decoder takes in beyond what it uses.
const FILLER: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of three components, and scans: of which components, from, to, bits.
    fn file(code: u8, scans: &[(&[u8], u8, u8, u8)]) -> Vec<u8> {
        let mut data = vec![0xFF, 0xD8, 0xFF, code, 0, 17, 8, 0, 9, 0, 7, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1];
        for &(parts, from, to, bits) in scans {
            data.extend([0xFF, 0xDA, 0, 6 + 2 * parts.len() as u8, parts.len() as u8]);
            data.extend(parts.iter().flat_map(|&id| [id, 0]));
            data.extend([from, to, bits, 0x12, 0xFF, 0x00]);
        }
        data.extend([0xFF, 0xD9]);
        data
    }

    #[test]
    fn a_scan_that_is_missing_is_seen() {
        let gap = |code, scans: &[(&[u8], u8, u8, u8)]| Scans::of(&file(code, scans)).expect("whole").gap();
        let all: [(&[u8], u8, u8, u8); 6] = [
            (&[1, 2, 3], 0, 0, 1),
            (&[1], 1, 63, 0),
            (&[2], 1, 63, 1),
            (&[3], 1, 63, 0),
            (&[1, 2, 3], 0, 0, 0x10),
            (&[2], 1, 63, 0x10),
        ];
        assert_eq!(gap(0xC2, &all), None);
        assert_eq!(gap(0xC2, &all[..5]), Some(Gap::Bits(2, 63)));
        assert_eq!(gap(0xC2, &all[..4]), Some(Gap::Bits(1, 1)));
        assert_eq!(gap(0xC2, &all[..1]), Some(Gap::Bits(1, 64)));
        assert_eq!(gap(0xC2, &all[1..4]), Some(Gap::Component(1)));
        assert_eq!(gap(0xC0, &[(&[1, 2, 3], 0, 63, 0)]), None);
        assert_eq!(gap(0xC0, &[(&[1, 2, 3], 0, 0, 0)]), None);
        assert_eq!(gap(0xC0, &[(&[1], 0, 63, 0), (&[2], 0, 63, 0)]), Some(Gap::Component(3)));
        assert_eq!(gap(0xC0, &[]), Some(Gap::Component(1)));
    }

    #[test]
    fn every_cut_gives_no_answer() {
        let whole = file(0xC2, &[(&[1, 2, 3], 0, 0, 0), (&[1], 1, 63, 0)]);
        for n in 0..whole.len() {
            assert!(Scans::of(&whole[..n]).is_none(), "{n}");
        }
    }
}
