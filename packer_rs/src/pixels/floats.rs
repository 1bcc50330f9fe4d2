//! Pixels → the floats that a model takes. In: lines of R, G, B triples, and where each patch begins in a tensor. Out: the
//! tensor, normalised. Apart from `patchify`, whose patches stay bytes: foreign models disagree on where a colour, a row and
//! a patch stand and how often, and all of that is in the `Form`.

use crate::pixels::kernels::{Scale, fast, scaled};
use crate::pixels::orient::Frame;
use crate::pixels::patchify::Lines;
use crate::pixels::picture::room;
use crate::pixels::resize::Small;

/// How a tensor holds the pixels of a patch.
#[derive(Clone, Debug)]
pub struct Form {
    /// P.
    pub patch: usize,
    /// Floats from one colour to the next; 1 where a pixel's three stand together.
    pub colour: usize,
    /// Floats from one line of a patch to the next.
    pub down: usize,
    /// How often a patch stands there, as a still image does where frames are expected.
    pub repeats: usize,
    /// Floats from one time to the next.
    pub repeat: usize,
    /// What becomes of each sample.
    pub scale: Scale,
}

impl Form {
    /// Floats from a patch's first to behind its last; None where that is no number.
    pub fn extent(&self) -> Option<usize> {
        let line = if self.colour == 1 { self.patch.checked_mul(3)? } else { self.patch };
        let colours = if self.colour == 1 { 0 } else { self.colour.checked_mul(2)? };
        let lines = self.patch.checked_sub(1)?.checked_mul(self.down)?;
        let times = self.repeats.checked_sub(1)?.checked_mul(self.repeat)?;
        lines.checked_add(times)?.checked_add(colours)?.checked_add(line)
    }

    /// Pieces of P pixels, side by side in `pixels`, each to the place of `at`. `row` is scratch.
    fn put(&self, pixels: &[u8], row: &mut Vec<f32>, at: impl Iterator<Item = usize> + Clone, out: &mut [f32]) {
        row.resize(pixels.len(), 0.0);
        let apart = self.colour != 1;
        scaled(fast(), pixels, &self.scale, apart, row);
        if !apart {
            return self.copy(3 * self.patch, row, at, out);
        }
        for (c, row) in row.chunks_exact(pixels.len() / 3).enumerate() {
            self.copy(self.patch, row, at.clone().map(|at| at + c * self.colour), out);
        }
    }

    /// Pieces of `n` floats, each to its places. The usual lengths stand here, since copies of a known one are few moves.
    fn copy(&self, n: usize, row: &[f32], at: impl Iterator<Item = usize>, out: &mut [f32]) {
        match n {
            14 => self.copy_of(14, row, at, out),
            16 => self.copy_of(16, row, at, out),
            42 => self.copy_of(42, row, at, out),
            48 => self.copy_of(48, row, at, out),
            n => self.copy_of(n, row, at, out),
        }
    }

    #[inline(always)]
    fn copy_of(&self, n: usize, row: &[f32], at: impl Iterator<Item = usize>, out: &mut [f32]) {
        for (from, at) in row.chunks_exact(n).zip(at) {
            for time in 0..self.repeats {
                out[at + time * self.repeat..][..n].copy_from_slice(from);
            }
        }
    }
}

/// Patches that are cut already: number `rows[n]` of them, P·P·3 bytes each, to `places[n]`.
pub fn spread(patches: &[u8], rows: &[usize], places: &[usize], form: &Form, out: &mut [f32]) {
    let bytes = form.patch * form.patch * 3;
    let mut line = Vec::new();
    for (&row, &place) in rows.iter().zip(places) {
        let lines = (0..form.patch).map(|y| place + y * form.down);
        form.put(&patches[row * bytes..][..bytes], &mut line, lines, out);
    }
}

/// What `strew` needs between two images.
#[derive(Default)]
pub struct Scratch {
    line: Vec<u8>,
    row: Vec<f32>,
}

/// A small image as a grid of patches, `columns` wide, which begin at `places`; where it does not fill them, black.
///
/// `turned` is scratch, too.
pub fn strew(
    small: &Small,
    frame: Frame,
    columns: usize,
    places: &[usize],
    form: &Form,
    (scratch, turned): (&mut Scratch, &mut Vec<u8>),
    out: &mut [f32],
) {
    let p = form.patch;
    let (width, height) = frame.swapped((small.width, small.height));
    let Scratch { line, row } = scratch;
    room(line, columns * p * 3);
    let line = &mut line[..columns * p * 3];
    line[width * 3..].fill(0);
    let mut lines = Lines::new(small, frame, width, turned);
    for (y, places) in places.chunks_exact(columns).enumerate() {
        for i in 0..p {
            if y * p + i < height {
                lines.read(y * p + i, 0, &mut line[..width * 3]);
            } else {
                line[..width * 3].fill(0);
            }
            form.put(line, row, places.iter().map(|&place| place + i * form.down), out);
        }
    }
}
