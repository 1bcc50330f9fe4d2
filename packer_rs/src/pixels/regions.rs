//! Regions as COCO writes them: texts of runs, and how one is painted where cells are. In: a text, and the source's columns and
//! rows at the cells' middles. Out: a number in each cell whose pixel is of the region.
//!
//! The runs go down the image's columns, one after another, turns of "not" and "of" the region; each is five bits to a letter,
//! from the third on less the one before the last (pycocotools, `maskApi.c`). The mask itself is never made: a run that no cell
//! stands in costs no more than its letters.

/// Cells along the source's own lines.
#[derive(Default)]
pub struct Cells {
    /// The source's column of each column of cells, rising.
    columns: Vec<u32>,
    /// For each row of the source, and behind the last, the first row of cells that stands in it or below.
    first: Vec<u32>,
    /// Rows of cells.
    rows: usize,
}

/// What a text that no region has is refused with.
#[derive(Debug, PartialEq, Eq)]
pub struct Damaged;

impl Cells {
    /// Sets where cells stand, in a source of `height` rows; both lines rise.
    pub fn set(&mut self, columns: impl Iterator<Item = u32>, rows: impl Iterator<Item = u32>, height: u32) {
        self.columns.clear();
        self.columns.extend(columns);
        self.first.clear();
        self.rows = 0;
        for row in rows {
            while self.first.len() <= row as usize {
                self.first.push(self.rows as u32);
            }
            self.rows += 1;
        }
        self.first.resize(height as usize + 1, self.rows as u32);
    }

    /// Number of cells.
    pub fn len(&self) -> usize {
        self.columns.len() * self.rows
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes `value` to the cells of a region, column by column of cells in `out`.
    ///
    /// # Errors
    /// The text is none, or has more pixels than the source, some of what it says may be written then.
    pub fn paint(&self, text: &[u8], value: i16, out: &mut [i16]) -> Result<(), Damaged> {
        let height = self.first.len() as u64 - 1;
        let (mut column, mut row) = (0u64, 0u64);
        let mut cell = 0;
        let (mut before, mut last, mut n) = (0i64, 0i64, 0u64);
        let mut letters = text.iter();
        while let Some(length) = run(&mut letters)? {
            let length = if n > 2 { length + before } else { length };
            (before, last) = (last, length);
            let length = u64::try_from(length).map_err(|_| Damaged)?;
            let (from, top) = (column, row);
            row += length;
            if row >= height {
                (column, row) = (column + row / height, row % height);
            }
            n += 1;
            if n % 2 == 0 && length > 0 {
                cell = self.fill((from, top as usize), (column, row as usize), cell, value, out);
            }
        }
        Ok(())
    }

    /// Fills the cells from one pixel up to another, (column, row). Returns the first column of cells that a later run may be in.
    fn fill(
        &self,
        (from, top): (u64, usize),
        (to, bottom): (u64, usize),
        mut cell: usize,
        value: i16,
        out: &mut [i16],
    ) -> usize {
        while self.columns.get(cell).is_some_and(|&column| u64::from(column) < from) {
            cell += 1;
        }
        for (at, &column) in self.columns.iter().enumerate().skip(cell) {
            let column = u64::from(column);
            let first = if column == from { self.first[top] } else { 0 } as usize;
            let end = match column {
                column if column < to => self.rows,
                column if column == to => self.first[bottom] as usize,
                _ => break,
            };
            if first < end {
                out[at * self.rows..][first..end].fill(value);
            }
        }
        cell
    }
}

/// The runs of a text.
///
/// # Errors
/// It is none.
pub fn decode(text: &[u8]) -> Result<Vec<u32>, Damaged> {
    let (mut counts, mut letters) = (Vec::<u32>::new(), text.iter());
    while let Some(length) = run(&mut letters)? {
        let n = counts.len();
        let length = if n > 2 { length + i64::from(counts[n - 2]) } else { length };
        counts.push(u32::try_from(length).map_err(|_| Damaged)?);
    }
    Ok(counts)
}

/// The text of runs.
pub fn encode(counts: &[u32]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, &count) in counts.iter().enumerate() {
        let mut rest = i64::from(count) - if i > 2 { i64::from(counts[i - 2]) } else { 0 };
        loop {
            let part = rest & 31;
            rest >>= 5;
            let more = rest != if part & 16 != 0 { -1 } else { 0 };
            out.push((part | if more { 32 } else { 0 }) as u8 + 48);
            if !more {
                break;
            }
        }
    }
    out
}

/// The next number of a text; None at its end.
fn run<'a>(letters: &mut impl Iterator<Item = &'a u8>) -> Result<Option<i64>, Damaged> {
    let Some(mut letter) = letters.next() else { return Ok(None) };
    let (mut number, mut bits) = (0i64, 0u32);
    loop {
        let part = i64::from(letter.checked_sub(48).filter(|&part| part < 64).ok_or(Damaged)?);
        if bits > 35 {
            return Err(Damaged);
        }
        number |= (part & 31) << bits;
        bits += 5;
        if part & 32 == 0 {
            // The highest bit of the last letter is the sign.
            return Ok(Some(if part & 16 == 0 { number } else { number | -1 << bits }));
        }
        letter = letters.next().ok_or(Damaged)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The text of a mask, `[height][width]`.
    fn text(mask: &[Vec<bool>]) -> Vec<u8> {
        let (mut counts, mut now, mut length) = (Vec::new(), false, 0u32);
        for x in 0..mask[0].len() {
            for row in mask {
                if row[x] != now {
                    counts.push(length);
                    (now, length) = (row[x], 0);
                }
                length += 1;
            }
        }
        counts.push(length);
        let text = encode(&counts);
        assert_eq!(decode(&text), Ok(counts));
        text
    }

    proptest! {
        #[test]
        fn cells_are_the_mask_at_their_pixels(
            (mask, columns, rows) in (1..40usize, 1..40usize).prop_flat_map(|(height, width)| {
                let line = |side: usize| prop::collection::vec(0..side as u32, 0..60);
                (prop::collection::vec(prop::collection::vec(prop::bool::weighted(0.3), width), height), line(width), line(height))
            }),
        ) {
            let (mut columns, mut rows) = (columns, rows);
            columns.sort_unstable();
            rows.sort_unstable();
            let mut cells = Cells::default();
            cells.set(columns.iter().copied(), rows.iter().copied(), mask.len() as u32);
            let mut out = vec![-1; cells.len()];
            prop_assert_eq!(cells.paint(&text(&mask), 7, &mut out), Ok(()));
            for (x, &column) in columns.iter().enumerate() {
                for (y, &row) in rows.iter().enumerate() {
                    let inside = mask[row as usize][column as usize];
                    prop_assert_eq!(out[x * rows.len() + y], if inside { 7 } else { -1 });
                }
            }
        }

        #[test]
        fn any_text_is_taken_or_refused(bytes: Vec<u8>, valid in prop::collection::vec(48u8..112, 0..60)) {
            let mut cells = Cells::default();
            cells.set([0, 3, 3, 9].into_iter(), [0, 0, 5].into_iter(), 6);
            for text in [bytes, valid] {
                let _ = cells.paint(&text, 1, &mut vec![0; cells.len()]);
            }
        }
    }
}
