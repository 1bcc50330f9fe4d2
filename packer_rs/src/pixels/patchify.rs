//! Target image → patches in their slots. In: the small image in the stored frame, and for each kept token its place in
//! the oriented grid. Out: P·P·3 bytes a token, row-major, channels last. Orientation and flip happen here, on the few
//! pixels that are kept, and so does the conversion from Y, Cb, Cr.

use crate::pixels::kernels::fast;
use crate::pixels::orient::Frame;
use crate::pixels::picture::room;
use crate::pixels::resize::Small;
use crate::pixels::rgb::rgb;

/// Writes one patch for each of `tokens` (indices in an oriented grid `grid_width` wide) to `out`, in their order.
///
/// `line` is scratch.
pub fn patchify(
    small: &Small,
    frame: Frame,
    grid_width: usize,
    p: usize,
    tokens: &[u32],
    line: &mut Vec<u8>,
    out: &mut [u8],
) {
    let mut lines = Lines::new(small, frame, p, line);
    for (&token, patch) in tokens.iter().zip(out.chunks_exact_mut(p * p * 3)) {
        let (y, x) = (token as usize / grid_width, token as usize % grid_width);
        for (i, to) in patch.chunks_exact_mut(p * 3).enumerate() {
            lines.read(y * p + i, x * p, to);
        }
    }
}

/// The lines of the oriented image, as R, G, B triples.
pub(super) struct Lines<'a> {
    fast: bool,
    small: &'a Small,
    planes: [&'a [u8]; 3],
    /// Where the oriented image's first pixel is in a stored plane.
    corner: isize,
    /// Bytes to go there for one step right and one step down.
    right: isize,
    down: isize,
    turned: [&'a mut [u8]; 3],
}

impl<'a> Lines<'a> {
    /// Those of an image, read `most` pixels at a time at most; `line` is scratch.
    pub fn new(small: &'a Small, frame: Frame, most: usize, line: &'a mut Vec<u8>) -> Self {
        let row = small.stride as isize;
        let across = if frame.mirror_x { -1 } else { 1 };
        let down = if frame.mirror_y { -row } else { row };
        let (right, down) = frame.swapped((across, down));
        let corner_x = if frame.mirror_x { small.width - 1 } else { 0 };
        let corner_y = if frame.mirror_y { small.height - 1 } else { 0 };
        let corner = (corner_y * small.stride + corner_x) as isize;
        let padded = most.next_multiple_of(16);
        room(line, padded * 3);
        let (a, rest) = line[..padded * 3].split_at_mut(padded);
        let (b, c) = rest.split_at_mut(padded);
        let planes = [0, 1, 2].map(|c| small.plane(c));
        Self { fast: fast(), small, planes, corner, right, down, turned: [a, b, c] }
    }

    /// `to.len() / 3` pixels from (y, x) on.
    pub fn read(&mut self, y: usize, x: usize, to: &mut [u8]) {
        let start = (self.corner + self.right * x as isize + self.down * y as isize) as usize;
        if self.right == 1 {
            rgb(self.fast, self.small.colours, self.planes.map(|plane| &plane[start..]), to);
            return;
        }
        for (line, plane) in self.turned.iter_mut().zip(self.planes) {
            turn(plane, start, self.right, &mut line[..to.len() / 3]);
        }
        let [a, b, c] = &self.turned;
        rgb(self.fast, self.small.colours, [&**a, &**b, &**c], to);
    }
}

/// `line.len()` pixels of a plane from `start` on, `step` apart.
fn turn(plane: &[u8], start: usize, step: isize, line: &mut [u8]) {
    if step == -1 {
        let from = &plane[start + 1 - line.len()..=start];
        for (to, &v) in line.iter_mut().zip(from.iter().rev()) {
            *to = v;
        }
        return;
    }
    for (j, to) in line.iter_mut().enumerate() {
        *to = plane[(start as isize + step * j as isize) as usize];
    }
}
