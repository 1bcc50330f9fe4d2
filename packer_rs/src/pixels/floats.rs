//! Pixels → the floats that a model takes. In: lines of R, G, B triples, and where each patch begins in a tensor. Out: the
//! tensor, normalised. Apart from `patchify`, whose patches stay bytes: foreign models disagree on where a colour, a row and
//! a patch stand and how often, and all of that is in the `Form`.

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
    /// What becomes of each sample: 256 floats a colour.
    pub values: [[f32; 256]; 3],
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

    /// A line of a patch, or what of it there is, at `at`.
    fn line(&self, from: &[u8], at: usize, out: &mut [f32]) {
        let [red, green, blue] = &self.values;
        let (from, _) = from.as_chunks::<3>();
        if self.colour == 1 {
            let (to, _) = out[at..at + from.len() * 3].as_chunks_mut::<3>();
            for (to, &[r, g, b]) in to.iter_mut().zip(from) {
                *to = [red[usize::from(r)], green[usize::from(g)], blue[usize::from(b)]];
            }
        } else {
            for (c, values) in self.values.iter().enumerate() {
                let at = at + c * self.colour;
                for (to, from) in out[at..at + from.len()].iter_mut().zip(from) {
                    *to = values[usize::from(from[c])];
                }
            }
        }
        for n in 1..self.repeats {
            for c in 0..if self.colour == 1 { 1 } else { 3 } {
                let at = at + c * self.colour;
                let length = from.len() * if self.colour == 1 { 3 } else { 1 };
                out.copy_within(at..at + length, at + n * self.repeat);
            }
        }
    }
}

/// Patches that are cut already: number `rows[n]` of them, P·P·3 bytes each, to `places[n]`.
pub fn spread(patches: &[u8], rows: &[usize], places: &[usize], form: &Form, out: &mut [f32]) {
    let bytes = form.patch * form.patch * 3;
    for (&row, &place) in rows.iter().zip(places) {
        for (y, line) in patches[row * bytes..][..bytes].chunks_exact(form.patch * 3).enumerate() {
            form.line(line, place + y * form.down, out);
        }
    }
}

/// A small image as a grid of patches, `columns` wide, which begin at `places`; where it does not fill them, black.
///
/// `line` is scratch, and so is `turned`.
pub fn strew(
    small: &Small,
    frame: Frame,
    columns: usize,
    places: &[usize],
    form: &Form,
    (line, turned): (&mut Vec<u8>, &mut Vec<u8>),
    out: &mut [f32],
) {
    let p = form.patch;
    let (width, height) = frame.swapped((small.width, small.height));
    room(line, columns * p * 3);
    line[width * 3..columns * p * 3].fill(0);
    let mut lines = Lines::new(small, frame, width, turned);
    for (row, places) in places.chunks_exact(columns).enumerate() {
        for i in 0..p {
            let y = row * p + i;
            if y < height {
                lines.read(y, 0, &mut line[..width * 3]);
            } else {
                line[..width * 3].fill(0);
            }
            for (from, &place) in line.chunks_exact(p * 3).zip(places) {
                form.line(from, place + i * form.down, out);
            }
        }
    }
}
