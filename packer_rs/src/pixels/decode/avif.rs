//! AVIF through dav1d. In: a file. Out: Y, U and V as they are stored where it is opaque, so that each is resized by
//! itself and only the small result is converted, by the file's matrix and range; R, G, B where it is lossless or has
//! alpha, laid over the background. Of 10 and 12 bits 8 are left.
//!
//! What is no plain file of one frame (`items`) is for a helper. dav1d judges the rest: what it does not decode is
//! refused. A frame may be no larger than the index says, and there is one, so all that dav1d takes is in proportion to
//! the image: about 3 bytes a pixel of 8 bits and 5 of more, beside its tables. It is C and assembler: a file that crashed it would
//! take the process along. It is held to be safe since browsers show it to the whole web and it is fuzzed without end.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;

use libdav1d_sys as dav1d;

use crate::failure::{Failure, Reason};
use crate::pixels::items::{self, Picture};
use crate::pixels::kernels::{self, fast};
use crate::pixels::matrix::Matrix;
use crate::pixels::picture::{Colours, Pixels, Plane, Wanted, check_size, room};
use crate::pixels::rgb::rgb;

/// Pixels; None where the file is for a helper.
pub fn decode(bytes: &[u8], wanted: &Wanted, scratch: &mut Vec<u8>, out: &mut Pixels) -> Option<Result<(), Failure>> {
    let (_, picture) = items::picture(bytes)?;
    let of = |range: &Range<u64>| &bytes[range.start as usize..range.end as usize];
    let (colour, alpha) = (of(&picture.colour), picture.alpha.as_ref().map(of));
    if !one_frame(colour) || !alpha.is_none_or(one_frame) {
        return None;
    }
    if let Err(e) = check_size(picture.size, wanted) {
        return Some(Err(e));
    }
    let frames = Frame::of(colour, picture.size)
        .and_then(|colour| Ok((colour, alpha.map(|alpha| Frame::of(alpha, picture.size)).transpose()?)));
    let (colour, alpha) = match frames {
        Ok(frames) => frames,
        Err(e) => return Some(Err(e)),
    };
    let fits = |frame: &Frame| frame.size() == picture.size && frame.bits() == picture.bits;
    // A smaller frame would be scaled, and alpha from 16 to 235 widened.
    if !fits(&colour) || colour.grey() != picture.grey || alpha.as_ref().is_some_and(|a| !fits(a) || !a.colours().1) {
        return None;
    }
    planes(&colour, &picture, out)?;
    if let Some(alpha) = alpha {
        over(&alpha, wanted, scratch, out);
    }
    Some(Ok(()))
}

/// Whether AV1 data are whole and hold one frame, by the heads of their units. A few bytes could hold a thousand hidden
/// ones.
fn one_frame(mut data: &[u8]) -> bool {
    let mut frames = 0;
    while let [head, rest @ ..] = data {
        // A size must be said, and an extension would be of layers.
        if head & 0x86 != 2 {
            return false;
        }
        let (mut size, mut at) = (0u64, 0);
        loop {
            let Some(byte) = rest.get(at) else { return false };
            size |= u64::from(byte & 0x7F) << (7 * at);
            at += 1;
            match byte & 0x80 {
                0 => break,
                _ if at == 8 => return false,
                _ => {}
            }
        }
        let Some(next) = usize::try_from(size).ok().and_then(|size| rest[at..].get(size..)) else { return false };
        match head >> 3 & 15 {
            // Frame headers, whole frames.
            3 | 6 => frames += 1,
            // Sequence headers, delimiters, tiles, metadata, padding.
            1 | 2 | 4 | 5 | 15 => {}
            _ => return false,
        }
        data = next;
    }
    frames == 1
}

/// Y, U and V, one after the other, or what is to be had at once. None where a helper is to convert them.
fn planes(frame: &Frame, picture: &Picture, out: &mut Pixels) -> Option<()> {
    let (matrix, full) = picture.colours.unwrap_or_else(|| frame.colours());
    let (across, down) = match frame.layout() {
        dav1d::Dav1dPixelLayout::DAV1D_PIXEL_LAYOUT_I420 => (2, 2),
        dav1d::Dav1dPixelLayout::DAV1D_PIXEL_LAYOUT_I422 => (2, 1),
        _ => (1, 1),
    };
    let colours = match (matrix, full) {
        (1 | 2 | 5 | 6 | 9, _) if frame.grey() => Colours::Grey,
        (0, true) if !frame.grey() && (across, down) == (1, 1) => Colours::Rgb,
        (1, true) => Colours::Yuv(Matrix::BT709),
        (1, false) => Colours::Yuv(Matrix::BT709_VIDEO),
        // What is unspecified counts as BT.601.
        (2 | 5 | 6, true) => Colours::Ycc,
        (2 | 5 | 6, false) => Colours::Yuv(Matrix::VIDEO),
        (9, true) => Colours::Yuv(Matrix::BT2020),
        (9, false) => Colours::Yuv(Matrix::BT2020_VIDEO),
        _ => return None,
    };
    let (width, height) = picture.size;
    match colours {
        Colours::Grey => {
            out.whole(colours, picture.size);
            let table = (!full || frame.bits() > 8).then(|| frame.table(|y| frame.narrow_grey(y, full)));
            frame.copy(0, picture.size, &mut out.data, 1, table.as_deref());
        }
        Colours::Rgb => {
            out.whole(colours, picture.size);
            let table = frame.narrowing(0, true);
            for (plane, place) in [1, 2, 0].into_iter().enumerate() {
                frame.copy(plane, picture.size, &mut out.data[place..], 3, table.as_deref());
            }
        }
        _ => {
            out.colours = colours;
            let mut start = 0;
            for (plane, (across, down)) in out.planes.iter_mut().zip([(1, 1), (across, down), (across, down)]) {
                let (width, height) = (width.div_ceil(across), height.div_ceil(down));
                let scale = (1.0 / f64::from(across), 1.0 / f64::from(down));
                *plane = Plane { start, stride: width as usize, width, height, scale };
                start += width as usize * height as usize;
            }
            room(&mut out.data, start);
            let (luma, chroma) = (frame.narrowing(0, full), frame.narrowing(128, full));
            for (n, plane) in out.planes.iter().enumerate() {
                let table = if n == 0 { &luma } else { &chroma };
                frame.copy(n, (plane.width, plane.height), &mut out.data[plane.start..], 1, table.as_deref());
            }
        }
    }
    Some(())
}

/// Lays what `out` holds over the background, row by row; a pixel has the U and V beneath it.
fn over(alpha: &Frame, wanted: &Wanted, scratch: &mut Vec<u8>, out: &mut Pixels) {
    let (width, height) = (wanted.size.0 as usize, wanted.size.1 as usize);
    let (fast, table) = (fast(), alpha.narrowing(0, true));
    room(scratch, width * height * 3);
    let mut lines = [(); 3].map(|()| vec![0; width.next_multiple_of(16)]);
    let (mut line, mut clear, mut rgba) = (vec![0; width * 3], vec![0; width], vec![[0; 4]; width]);
    for (y, to) in scratch.chunks_exact_mut(width * 3).take(height).enumerate() {
        if out.colours == Colours::Rgb {
            line.copy_from_slice(&out.data[y * width * 3..][..width * 3]);
        } else {
            let planes = if out.colours == Colours::Grey { 1 } else { 3 };
            for (plane, into) in out.planes[..planes].iter().zip(&mut lines) {
                let down = if plane.scale.1 < 1.0 { 2 } else { 1 };
                let from = &out.data[plane.start + y / down * plane.stride..][..plane.width as usize];
                if plane.scale.0 < 1.0 {
                    for (to, &value) in into.as_chunks_mut::<2>().0.iter_mut().zip(from) {
                        *to = [value; 2];
                    }
                } else {
                    into[..width].copy_from_slice(from);
                }
            }
            rgb(fast, out.colours, [&lines[0], &lines[1], &lines[2]], &mut line);
        }
        alpha.row(0, y, &mut clear, 1, table.as_deref());
        let colours = line.as_chunks::<3>().0.iter().zip(&clear);
        for (to, (&[r, g, b], &alpha)) in rgba.iter_mut().zip(colours) {
            *to = [r, g, b, alpha];
        }
        kernels::over(fast, wanted.background, rgba.as_flattened(), to);
    }
    std::mem::swap(scratch, &mut out.data);
    out.whole(Colours::Rgb, wanted.size);
}

/// A decoded frame, with the decoder that made it.
struct Frame<'a> {
    context: *mut dav1d::Dav1dContext,
    picture: dav1d::Dav1dPicture,
    /// dav1d reads the data where they are.
    data: PhantomData<&'a [u8]>,
}

impl Drop for Frame<'_> {
    fn drop(&mut self) {
        // SAFETY: both are dav1d's own, or empty, and nobody uses them afterwards.
        unsafe {
            dav1d::dav1d_picture_unref(&raw mut self.picture);
            dav1d::dav1d_close(&raw mut self.context);
        }
    }
}

impl<'a> Frame<'a> {
    /// The first frame in `data`, of at most `size`.
    fn of(data: &'a [u8], size: (u32, u32)) -> Result<Self, Failure> {
        unsafe extern "C" fn keep(_: *const u8, _: *mut c_void) {}
        let mut settings = MaybeUninit::uninit();
        // SAFETY: all of the settings are filled in; a picture of zeros is what `dav1d_get_picture` asks for, and data
        // of zeros are empty.
        let (mut settings, picture, mut input) = unsafe {
            dav1d::dav1d_default_settings(settings.as_mut_ptr());
            (settings.assume_init(), std::mem::zeroed(), std::mem::zeroed::<dav1d::Dav1dData>())
        };
        // The engine's threads are enough.
        settings.n_threads = 1;
        settings.max_frame_delay = 1;
        settings.all_layers = 0;
        settings.frame_size_limit = size.0 * size.1;
        settings.logger.callback = None;
        let mut frame = Self { context: ptr::null_mut(), picture, data: PhantomData };
        // SAFETY: the context ends with the frame, and the data outlive it.
        let status = unsafe {
            let mut status = dav1d::dav1d_open(&raw mut frame.context, &raw const settings);
            if status == 0 {
                status = dav1d::dav1d_data_wrap(&raw mut input, data.as_ptr(), data.len(), Some(keep), ptr::null_mut());
            }
            if status == 0 {
                status = dav1d::dav1d_send_data(frame.context, &raw mut input);
                // Empty where it was taken.
                dav1d::dav1d_data_unref(&raw mut input);
            }
            if status == 0 {
                status = dav1d::dav1d_get_picture(frame.context, &raw mut frame.picture);
            }
            status
        };
        if status == 0 {
            return Ok(frame);
        }
        let (reason, said) = match -status {
            libc::ENOMEM => (Reason::Memory, "no memory"),
            libc::ENOPROTOOPT => (Reason::Unsupported, "a feature that is not supported"),
            libc::ERANGE => (Reason::Corrupt, "a frame larger than its container says"),
            libc::EAGAIN => (Reason::Corrupt, "no frame that is shown"),
            _ => (Reason::Corrupt, "damaged data"),
        };
        Err(Failure::decode(reason, format!("dav1d: {said}")))
    }

    fn size(&self) -> (u32, u32) {
        (self.picture.p.w as u32, self.picture.p.h as u32)
    }

    fn bits(&self) -> u8 {
        self.picture.p.bpc as u8
    }

    fn layout(&self) -> dav1d::Dav1dPixelLayout {
        self.picture.p.layout
    }

    fn grey(&self) -> bool {
        self.layout() == dav1d::Dav1dPixelLayout::DAV1D_PIXEL_LAYOUT_I400
    }

    /// Matrix coefficients, and whether samples are of the full range, by the sequence header.
    fn colours(&self) -> (u16, bool) {
        let header = self.picture.seq_hdr;
        // SAFETY: every picture has its header. The matrix is read as a number, since it may be one that has no name.
        unsafe { ((&raw const (*header).mtrx).cast::<u32>().read() as u16, (*header).color_range == 1) }
    }

    /// What each sample becomes.
    fn table(&self, narrow: impl Fn(i32) -> i32) -> Vec<u8> {
        (0..1 << self.bits()).map(|value| narrow(value).clamp(0, 255) as u8).collect()
    }

    /// 8 bits of each sample; None where they have 8. `middle` is what has no colour, in 8 bits.
    fn narrowing(&self, middle: i32, full: bool) -> Option<Vec<u8>> {
        let (shift, most) = (self.bits() - 8, (1 << self.bits()) - 1);
        (shift > 0).then(|| {
            self.table(|value| match full {
                true => middle + ((value - (middle << shift)) * 510 + most).div_euclid(2 * most),
                false => (value + (1 << (shift - 1))) >> shift,
            })
        })
    }

    /// Grey from 0 to 255.
    fn narrow_grey(&self, value: i32, full: bool) -> i32 {
        let shift = self.bits() - 8;
        let (black, white) = if full { (0, (1 << self.bits()) - 1) } else { (16 << shift, 235 << shift) };
        ((value - black).max(0) * 510 + white - black) / (2 * (white - black))
    }

    /// The samples of a plane of `size`, `step` bytes apart in `to`, as they are or by a table.
    fn copy(&self, plane: usize, (width, height): (u32, u32), to: &mut [u8], step: usize, table: Option<&[u8]>) {
        for (y, to) in to.chunks_mut(width as usize * step).take(height as usize).enumerate() {
            self.row(plane, y, to, step, table);
        }
    }

    /// One row of them: as many as `to` has places for.
    fn row(&self, plane: usize, y: usize, to: &mut [u8], step: usize, table: Option<&[u8]>) {
        let width = to.len().div_ceil(step);
        // SAFETY: the callers ask for rows and samples that the plane has, which are of two bytes where they have more
        // than 8 bits.
        let row = unsafe { self.picture.data[plane].byte_offset(y as isize * self.picture.stride[plane.min(1)]) };
        let places = to.iter_mut().step_by(step);
        if self.bits() > 8 {
            // SAFETY: as above; dav1d aligns rows to more than that.
            let row = unsafe { std::slice::from_raw_parts(row.cast::<u16>(), width) };
            let table = table.unwrap_or(&[]);
            places.zip(row).for_each(|(to, &value)| *to = table.get(usize::from(value)).copied().unwrap_or(255));
            return;
        }
        // SAFETY: as above.
        let row = unsafe { std::slice::from_raw_parts(row.cast::<u8>(), width) };
        match table {
            None if step == 1 => to.copy_from_slice(row),
            None => places.zip(row).for_each(|(to, &value)| *to = value),
            Some(table) => places.zip(row).for_each(|(to, &value)| *to = table[usize::from(value)]),
        }
    }
}
