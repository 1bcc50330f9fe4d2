//! Bits → the coefficients of one block. In: a reader of clean data, and tables. Out: coefficients in the order in
//! which the inverse transforms load them, not yet multiplied by their divisors. None for whatever libjpeg-turbo might
//! warn of.

use crate::huffman::{AC_BITS, AcTable, DC_BITS, DcTable, SLOW, extend};

/// A block's coefficients.
pub type Square = [i16; 64];

/// A block, and room behind it for what has no place in it.
pub type Block = [i16; 256];

/// Rows of a block lie in this order, so that a vector of two rows holds n and n + 4.
pub const ROWS: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Place in zigzag order → place in a `Block`. Beyond the last coefficient: behind the block.
pub const PLACES: [u8; 256] = {
    let mut slots = [0; 8];
    let mut n = 0;
    while n < 8 {
        slots[ROWS[n]] = n;
        n += 1;
    }
    let mut places = [64; 256];
    let (mut x, mut y, mut n) = (0, 0, 0);
    while n < 64 {
        places[n] = (8 * slots[y] + x) as u8;
        n += 1;
        // Diagonals, every other one upwards.
        if (x + y) % 2 == 0 {
            if x == 7 {
                y += 1;
            } else {
                x += 1;
                y = y.saturating_sub(1);
            }
        } else if y == 7 {
            x += 1;
        } else {
            y += 1;
            x = if x > 0 { x - 1 } else { 0 };
        }
    }
    places
};

/// Most bits of one symbol: a code of 16 and a value of 15.
const LONGEST: u32 = 31;

/// Reads bits, the first at the top of a word.
#[derive(Clone, Copy)]
pub struct Bits<'a> {
    data: &'a [u8],
    /// Next byte that is not in `word`.
    at: usize,
    pub word: u64,
    /// Bits of `word` that count. Those below may be there already: they are the right ones.
    left: u32,
}

impl<'a> Bits<'a> {
    /// From byte `at` on.
    pub fn new(data: &'a [u8], at: usize) -> Self {
        Self { data, at, word: 0, left: 0 }
    }

    /// At least 56 bits; zeros beyond the data.
    #[inline(always)]
    pub fn refill(&mut self) {
        let next = self.data.get(self.at..).and_then(|rest| rest.first_chunk::<8>());
        self.word |= u64::from_be_bytes(next.copied().unwrap_or_default()) >> (self.left & 63);
        self.at += ((63 - self.left) >> 3) as usize;
        self.left |= 56;
    }

    #[inline(always)]
    pub fn drop(&mut self, bits: u32) {
        self.word <<= bits & 63;
        self.left -= bits;
    }

    /// Behind a code of `length` bits: how many blocks follow in which nothing is left, of a number of `size` bits.
    #[inline(always)]
    pub fn run(&mut self, length: u32, size: u32) -> usize {
        let more = (self.word << length >> 1) >> (63 - size);
        self.drop(length + size);
        (1 << size) + more as usize - 1
    }

    /// Bits read since the beginning of the data.
    #[inline(always)]
    pub fn read(&self) -> usize {
        self.at * 8 - self.left as usize
    }
}

/// The next difference of DC values.
#[inline(always)]
pub fn dc(bits: &mut Bits<'_>, table: &DcTable) -> Option<i32> {
    bits.refill();
    let entry = table.entries[(bits.word >> (64 - DC_BITS)) as usize];
    if entry != 0 {
        bits.drop(entry & 63);
        return Some(entry as i32 >> 16);
    }
    let (length, size) = table.codes.find(bits.word)?;
    let value = extend(bits.word << length, u32::from(size));
    bits.drop(length + u32::from(size));
    Some(value)
}

/// The AC coefficients of a block whose places are zero.
#[inline(always)]
pub fn ac(bits: &mut Bits<'_>, table: &AcTable, out: &mut Block) -> Option<()> {
    // The place written last, in zigzag order; and before the look-up, the place of its first symbol, and the bits.
    let (mut k, mut first, mut entry, mut before);
    k = 0usize;
    loop {
        bits.refill();
        macro_rules! look_up {
            () => {
                before = (bits.word, bits.left);
                entry = table.entries[(bits.word >> (64 - AC_BITS)) as usize];
                bits.drop((entry & 63) as u32);
                first = k + (entry >> 16 & 255) as usize;
                k += (entry >> 8 & 255) as usize;
                let value = extend(before.0 << (entry >> 24 & 63), (entry >> 32 & 15) as u32);
                // Where there is no second symbol, the first one overwrites it.
                out[usize::from(PLACES[k & 255])] = (entry >> 48) as i16;
                out[usize::from(PLACES[first & 255])] = value as i16;
                if k >= 63 {
                    break;
                }
            };
        }
        // Two look-ups of 26 bits at most, the first value's included, for each refill.
        loop {
            look_up!();
            look_up!();
            bits.refill();
        }
        // The usual ends: an end of block, or a value at the last place.
        if first < 63 && (k == 63 || (128..192).contains(&k)) || (128..192).contains(&first) {
            return Some(());
        }
        if entry >> 8 & 255 != SLOW {
            // A second symbol behind the last place belongs to the next block.
            if first == 63 && k != first {
                let used = (entry >> 24 & 63) as u32 + (entry >> 32 & 15) as u32;
                (bits.word, bits.left) = (before.0 << used, before.1 - used);
            }
            return (first == 63).then_some(());
        }
        k -= SLOW as usize;
        bits.refill();
        let (length, symbol) = table.codes.find(bits.word)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        debug_assert!(length + size <= LONGEST);
        match (run, size) {
            (0, 0) => {
                bits.drop(length);
                return Some(());
            }
            (1..=14, 0) => return None,
            _ => {}
        }
        k += run + 1;
        out[usize::from(PLACES[k & 255])] = extend(bits.word << length, size) as i16;
        bits.drop(length + size);
        if k >= 63 {
            return (k == 63).then_some(());
        }
    }
}
