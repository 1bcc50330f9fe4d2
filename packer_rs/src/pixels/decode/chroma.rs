//! Y, Cb and Cr of a JPEG file → R, G, B triples, bit for bit as libjpeg makes them for everybody else: chroma between its
//! samples by a triangle, then JFIF's matrix with 16 bits after the point. In: planes at full size. Out: one plane of
//! triples. Apart from `rgb`, which converts what was resized already.

use crate::pixels::kernels::fast;
use crate::pixels::picture::{Colours, KEEP_BYTES, Pixels, Plane, room};
use crate::pixels::rgb::rgb;

/// Samples after which a line may go on, to whole vectors.
const PAD: usize = 32;

/// Buffers of one thread.
#[derive(Default)]
pub struct Chroma {
    /// What was in the image's buffer before.
    planes: Vec<u8>,
    /// A line of chroma, near and far rows weighed, its ends doubled.
    sums: Vec<i16>,
    /// Lines of Cb and Cr, then of R, G and B.
    lines: [Vec<u8>; 5],
}

impl Chroma {
    /// Makes triples of planes. None, and nothing is done, where libjpeg does something else: in samplings but 4:4:4, 4:2:2
    /// and 4:2:0, and in very narrow images.
    pub fn triples(&mut self, pixels: &mut Pixels) -> Option<()> {
        let [luma, blue, red] = pixels.planes;
        let (across, down) = match blue.scale {
            (1.0, 1.0) => (1, 1),
            (0.5, 1.0) if blue.width > 2 => (2, 1),
            (0.5, 0.5) if blue.width > 2 => (2, 2),
            _ => return None,
        };
        if red.scale != blue.scale {
            return None;
        }
        let (width, narrow) = (luma.width as usize, blue.width as usize);
        std::mem::swap(&mut self.planes, &mut pixels.data);
        pixels.whole(Colours::Rgb, (luma.width, luma.height));
        for line in &mut self.lines {
            room(line, width + PAD);
        }
        let [cb, cr, r, g, b] = &mut self.lines;
        self.sums.resize(narrow + 2, 0);
        for (y, to) in pixels.data.chunks_exact_mut(width * 3).take(luma.height as usize).enumerate() {
            let planes = &self.planes;
            let row = |plane: &Plane, y: usize| &planes[plane.start + y * plane.stride..];
            for (plane, line) in [(&blue, &mut *cb), (&red, &mut *cr)] {
                let near = &row(plane, y / down)[..narrow];
                // The nearer row of chroma counts three times, the one on this row's other side once.
                let beside =
                    if y % 2 == 0 { (y / 2).saturating_sub(1) } else { (y / 2 + 1).min(plane.height as usize - 1) };
                match (across, down) {
                    (1, _) => line[..narrow].copy_from_slice(near),
                    (_, 1) => smooth(near, None, &mut self.sums, line),
                    _ => smooth(near, Some(&row(plane, beside)[..narrow]), &mut self.sums, line),
                }
            }
            colours([&row(&luma, y)[..width], &cb[..width], &cr[..width]], [&mut *r, &mut *g, &mut *b]);
            rgb(fast(), Colours::Rgb, [r, g, b], to);
        }
        if self.planes.len() > KEEP_BYTES {
            self.planes = Vec::new();
        }
        Some(())
    }
}

/// A line of chroma at twice its width: three parts of the sample there, one of that beside it.
fn smooth(near: &[u8], far: Option<&[u8]>, sums: &mut [i16], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if fast() {
        // SAFETY: AVX2 was found.
        unsafe { avx2::smooth(near, far, sums, out) };
        return;
    }
    smooth_plain(near, far, sums, out);
}

#[inline(always)]
fn smooth_plain(near: &[u8], far: Option<&[u8]>, sums: &mut [i16], out: &mut [u8]) {
    let n = near.len();
    match far {
        None => {
            for (sum, &v) in sums[1..].iter_mut().zip(near) {
                *sum = i16::from(v);
            }
        }
        Some(far) => {
            for ((sum, &v), &w) in sums[1..].iter_mut().zip(near).zip(far) {
                *sum = 3 * i16::from(v) + i16::from(w);
            }
        }
    }
    (sums[0], sums[n + 1]) = (sums[1], sums[n]);
    let (shift, left, right) = if far.is_some() { (4, 8, 7) } else { (2, 1, 2) };
    let beside = sums[..n].iter().zip(&sums[1..=n]).zip(&sums[2..n + 2]);
    for (to, ((&before, &here), &after)) in out.as_chunks_mut::<2>().0.iter_mut().zip(beside) {
        *to = [((3 * here + before + left) >> shift) as u8, ((3 * here + after + right) >> shift) as u8];
    }
}

/// Y, Cb and Cr as R, G and B.
fn colours(from: [&[u8]; 3], to: [&mut [u8]; 3]) {
    #[cfg(target_arch = "x86_64")]
    if fast() {
        // SAFETY: AVX2 was found.
        unsafe { avx2::colours(from, to) };
        return;
    }
    colours_plain(from, to);
}

#[inline(always)]
fn colours_plain([y, cb, cr]: [&[u8]; 3], [r, g, b]: [&mut [u8]; 3]) {
    let fixed = |part: i32| (part + (1 << 15)) >> 16;
    let (rg, b) = (r.iter_mut().zip(g), b.iter_mut());
    for (((r, g), b), ((&y, &cb), &cr)) in rg.zip(b).zip(y.iter().zip(cb).zip(cr)) {
        let (y, u, v) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        *r = (y + fixed(91_881 * v)).clamp(0, 255) as u8;
        *g = (y + fixed(-22_554 * u - 46_802 * v)).clamp(0, 255) as u8;
        *b = (y + fixed(116_130 * u)).clamp(0, 255) as u8;
    }
}

/// The same loops, of which the compiler makes vectors.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    #[target_feature(enable = "avx2")]
    pub fn smooth(near: &[u8], far: Option<&[u8]>, sums: &mut [i16], out: &mut [u8]) {
        super::smooth_plain(near, far, sums, out);
    }

    #[target_feature(enable = "avx2")]
    pub fn colours(from: [&[u8]; 3], to: [&mut [u8]; 3]) {
        super::colours_plain(from, to);
    }
}
