//! Look-up tables of Huffman codes. In: a definition as the file has it. Out: for each beginning of the bits, what
//! stands there.
//!
//! An AC entry holds up to two symbols with their extra bits, since the look-up is what a decoder waits for: the next
//! one cannot begin before the length of this one is known. The value of the first symbol is cut out of the bits
//! meanwhile, so it may be longer than the look-up; that of the second stands in the entry.

/// Bits of a look-up in an AC table. More of them fall out of the nearest cache, which costs what they save.
pub const AC_BITS: u32 = 11;
/// Bits of a look-up in a DC table.
pub const DC_BITS: u32 = 10;
/// A step that ends the block.
pub const END: u64 = 128;
/// A step that stands for a code longer than the look-up, or for none at all.
pub const SLOW: u64 = 192;

/// Most bytes of a definition.
const DEFINITION: usize = 16 + 256;

/// The codes of a table.
#[derive(Clone, Debug)]
pub struct Codes {
    /// Codes of a length, left-justified in 16 bits, are below this.
    limits: [u32; 17],
    /// From a code of a length to the place of its symbol.
    offsets: [i32; 17],
    symbols: [u8; 256],
}

impl Codes {
    /// None.
    const EMPTY: Self = Self { limits: [0; 17], offsets: [0; 17], symbols: [0; 256] };

    /// Codes of a definition, given in rising order to `each` as (first 16 bits, length, symbol). None where
    /// libjpeg-turbo would not take them.
    fn new(definition: &[u8], mut each: impl FnMut(u32, u32, u8)) -> Option<Self> {
        let (counts, given) = definition.split_first_chunk::<16>()?;
        let mut codes = Self::EMPTY;
        codes.symbols.get_mut(..given.len())?.copy_from_slice(given);
        let (mut code, mut n) = (0u32, 0);
        for length in 1..=16 {
            codes.offsets[length] = n as i32 - code as i32;
            for _ in 0..counts[length - 1] {
                // A code of ones alone is not allowed.
                if code + 1 >= 1 << length {
                    return None;
                }
                each(code << (16 - length), length as u32, *given.get(n)?);
                code += 1;
                n += 1;
            }
            codes.limits[length] = code << (16 - length);
            code <<= 1;
        }
        Some(codes)
    }

    /// Length and symbol of the code with which `bits` begin.
    pub fn find(&self, bits: u64) -> Option<(u32, u8)> {
        let top = (bits >> 48) as u32;
        let length = (1..=16).find(|&n| top < self.limits[n])?;
        let n = (top >> (16 - length)) as i32 + self.offsets[length];
        Some((length as u32, self.symbols[n as usize & 255]))
    }
}

/// The signed value of `size` extra bits (15 at most) at the beginning of `bits`.
#[inline(always)]
pub fn extend(bits: u64, size: u32) -> i32 {
    // A leading zero means a negative value, one's complement.
    let sign = !((bits as i64) >> 63) as u64;
    // Two shifts, since one by 64 would not be one.
    ((((bits ^ sign) >> 1) >> (63 - (size & 63))) ^ sign).wrapping_sub(sign) as i32
}

/// A table of either kind.
pub trait Table {
    /// A table without codes.
    fn empty() -> Self;
    /// Makes this the table of a definition.
    fn set(&mut self, definition: &[u8]) -> Option<()>;
}

/// Differences of DC values.
pub struct DcTable {
    /// All codes.
    pub codes: Codes,
    /// Value << 16 | bits; 0 where they are more than the look-up.
    pub entries: Box<[u32; 1 << DC_BITS]>,
}

impl Table for DcTable {
    fn empty() -> Self {
        Self { codes: Codes::EMPTY, entries: Box::new([0; 1 << DC_BITS]) }
    }

    fn set(&mut self, definition: &[u8]) -> Option<()> {
        self.entries.fill(0);
        let (entries, mut sound) = (&mut self.entries, true);
        self.codes = Codes::new(definition, |code, length, size| {
            sound &= size <= 15;
            let total = length + u32::from(size);
            if total > DC_BITS {
                return;
            }
            let first = (code >> (16 - DC_BITS)) as usize;
            for n in first..first + (1 << (DC_BITS - length)) {
                let value = extend((n as u64) << (64 - DC_BITS) << length, u32::from(size));
                entries[n] = total | (value as u32) << 16;
            }
        })?;
        sound.then_some(())
    }
}

/// Runs of zeros and the AC values behind them.
pub struct AcTable {
    /// All codes.
    pub codes: Codes,
    /// From the lowest bit: 8 for the bits of all symbols; 8 for the step to the last one's place; 8 for that of the
    /// first one; 8 for the length of the first code; 16 for the size of its value; 16 for the value of the second.
    pub entries: Box<[u64; 1 << AC_BITS]>,
}

/// First symbols only: length, size and step; a length of 0 for none.
type First = (u8, u8, u8);

impl Table for AcTable {
    fn empty() -> Self {
        Self { codes: Codes::EMPTY, entries: Box::new([0; 1 << AC_BITS]) }
    }

    fn set(&mut self, definition: &[u8]) -> Option<()> {
        let mut firsts: [First; 1 << AC_BITS] = [(0, 0, 0); 1 << AC_BITS];
        self.codes = Codes::new(definition, |code, length, symbol| {
            let (run, size) = (symbol >> 4, symbol & 15);
            if length > AC_BITS || size == 0 && !matches!(run, 0 | 15) {
                return;
            }
            let first = (code >> (16 - AC_BITS)) as usize;
            let step = if symbol == 0 { END as u8 } else { run + 1 };
            firsts[first..first + (1 << (AC_BITS - length))].fill((length as u8, size, step));
        })?;
        for (n, (to, &(length, size, step))) in self.entries.iter_mut().zip(&firsts).enumerate() {
            if length == 0 {
                *to = SLOW << 8 | SLOW << 16;
                continue;
            }
            let used = u32::from(length + size);
            let (mut total, mut last, mut value) = (used, u64::from(step), 0);
            if u64::from(step) != END && used < AC_BITS {
                let rest = n << used & ((1 << AC_BITS) - 1);
                let (length, size, more) = firsts[rest];
                let both = used + u32::from(length + size);
                if length != 0 && both <= AC_BITS {
                    total = both;
                    last = if u64::from(more) == END { END } else { u64::from(step + more) };
                    value = extend((rest as u64) << (64 - AC_BITS) << length, u32::from(size));
                }
            }
            *to = u64::from(total)
                | last << 8
                | u64::from(step) << 16
                | u64::from(length) << 24
                | u64::from(size) << 32
                | u64::from(value as u16) << 48;
        }
        Some(())
    }
}

/// Runs and sizes of a progressive file's AC values, one symbol at a time.
pub struct RunTable {
    codes: Codes,
    /// From the lowest byte: length of the code, run, size; 0 where it is longer than the look-up.
    entries: Box<[u32; 1 << AC_BITS]>,
}

impl RunTable {
    /// Length, run and size of the code with which `bits` begin.
    #[inline(always)]
    pub fn look(&self, bits: u64) -> Option<(u32, u32, u32)> {
        let entry = self.entries[(bits >> (64 - AC_BITS)) as usize];
        if entry != 0 {
            return Some((entry & 255, entry >> 8 & 255, entry >> 16));
        }
        let (length, symbol) = self.codes.find(bits)?;
        Some((length, u32::from(symbol >> 4), u32::from(symbol & 15)))
    }
}

impl Table for RunTable {
    fn empty() -> Self {
        Self { codes: Codes::EMPTY, entries: Box::new([0; 1 << AC_BITS]) }
    }

    fn set(&mut self, definition: &[u8]) -> Option<()> {
        self.entries.fill(0);
        let entries = &mut self.entries;
        self.codes = Codes::new(definition, |code, length, symbol| {
            if length <= AC_BITS {
                let first = (code >> (16 - AC_BITS)) as usize;
                let entry = length | u32::from(symbol >> 4) << 8 | u32::from(symbol & 15) << 16;
                entries[first..first + (1 << (AC_BITS - length))].fill(entry);
            }
        })?;
        Some(())
    }
}

/// Tables by their definitions. Most files use the same few, so they are made once.
pub struct Cache<T> {
    kept: Vec<Kept<T>>,
    now: u64,
}

struct Kept<T> {
    definition: [u8; DEFINITION],
    len: usize,
    used: u64,
    table: T,
}

/// More than an image can use of one kind.
const KEPT: usize = 8;

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), now: 0 }
    }
}

impl<T: Table> Cache<T> {
    /// Begins another image: what the one before used may go.
    pub fn next(&mut self) {
        self.now += 1;
    }

    /// Where the table of a definition is; it stays there until the next image.
    pub fn find(&mut self, definition: &[u8]) -> Option<usize> {
        let now = self.now;
        if let Some(n) = self.kept.iter().position(|k| k.definition[..k.len] == *definition) {
            self.kept[n].used = now;
            return Some(n);
        }
        let n = if self.kept.len() < KEPT {
            self.kept.push(Kept { definition: [0; DEFINITION], len: 0, used: 0, table: T::empty() });
            self.kept.len() - 1
        } else {
            (0..KEPT).min_by_key(|&n| self.kept[n].used)?
        };
        let kept = &mut self.kept[n];
        // A table that cannot be made must not be found later; no definition is empty.
        (kept.len, kept.used) = (0, now);
        kept.table.set(definition)?;
        kept.definition.get_mut(..definition.len())?.copy_from_slice(definition);
        kept.len = definition.len();
        Some(n)
    }

    /// The table that was found there.
    pub fn get(&self, n: usize) -> &T {
        &self.kept[n].table
    }
}
