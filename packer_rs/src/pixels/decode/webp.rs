//! WebP through libwebp. In: a file. Out: Y, U and V as they are stored where it is lossy and opaque, so that each is
//! resized by itself and only the small result is converted; R, G, B otherwise, alpha over the background. Of an
//! animation the first frame, in its place on a canvas that is transparent, or black in a file that has no alpha.
//!
//! libwebp judges: what it does not decode to the last row is refused, with its reason. All sizes are checked before
//! anything is allocated for them. For itself it takes a few rows of a lossy image and 4 bytes a pixel of a lossless
//! one.

use std::ptr;

use libwebp_sys as webp;
use webp::{VP8StatusCode as Status, WEBP_CSP_MODE as Mode, WebPDecBuffer__bindgen_ty_1 as Memory};

use crate::failure::{Failure, Reason};
use crate::pixels::matrix::Matrix;
use crate::pixels::picture::{Colours, Pixels, Plane, Wanted, check_size, compose, room};

/// Whether the first bytes are of a WebP file.
pub fn known(bytes: &[u8]) -> bool {
    matches!(bytes, [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..])
}

pub fn decode(bytes: &[u8], wanted: &Wanted, scratch: &mut Vec<u8>, out: &mut Pixels) -> Result<(), Failure> {
    let stated = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    if bytes.len() as u64 - 8 < u64::from(stated) {
        return accept(Status::VP8_STATUS_NOT_ENOUGH_DATA);
    }
    let features = features(bytes)?;
    check_size((features.width as u32, features.height as u32), wanted)?;
    let alpha = features.has_alpha != 0;
    let decoded = if features.has_animation != 0 {
        First::of(bytes).and_then(|first| first.decode(alpha, wanted, scratch, out))
    } else {
        picture(bytes, alpha, features.format == LOSSY, wanted, scratch, out)
    };
    match decoded {
        // libwebp says so of some damaged alpha, too; then there is memory for all that it may take.
        Err(e) if e.reason == Reason::Memory && memory_for(wanted.size) => accept(Status::VP8_STATUS_BITSTREAM_ERROR),
        decoded => decoded,
    }
}

fn memory_for((width, height): (u32, u32)) -> bool {
    Vec::<u8>::new().try_reserve_exact(width as usize * height as usize * 8 + (16 << 20)).is_ok()
}

/// `WebPBitstreamFeatures::format` of lossy files.
const LOSSY: i32 = 1;

/// What the headers say; the size is at least 1 × 1.
fn features(bytes: &[u8]) -> Result<webp::WebPBitstreamFeatures, Failure> {
    // SAFETY: the structure is of plain integers, and is filled in where the call succeeds.
    let mut features = unsafe { std::mem::zeroed() };
    // SAFETY: the slice is valid for its length.
    accept(unsafe { webp::WebPGetFeatures(bytes.as_ptr(), bytes.len(), &raw mut features) })?;
    Ok(features)
}

/// An image that fills `wanted.size`.
fn picture(
    bytes: &[u8],
    alpha: bool,
    lossy: bool,
    wanted: &Wanted,
    scratch: &mut Vec<u8>,
    out: &mut Pixels,
) -> Result<(), Failure> {
    let (width, height) = (wanted.size.0 as usize, wanted.size.1 as usize);
    if alpha {
        room(scratch, width * height * 4);
        interleaved(bytes, Mode::MODE_RGBA, width * 4, &mut scratch[..width * height * 4])?;
        compose(scratch, 4, wanted, out);
        return Ok(());
    }
    if lossy {
        return planes(bytes, wanted.size, out);
    }
    out.whole(Colours::Rgb, wanted.size);
    interleaved(bytes, Mode::MODE_RGB, width * 3, &mut out.data[..width * height * 3])
}

/// Y, U and V, one plane after the other.
fn planes(bytes: &[u8], (width, height): (u32, u32), out: &mut Pixels) -> Result<(), Failure> {
    let mut start = 0;
    for (plane, sub) in out.planes.iter_mut().zip([1, 2, 2]) {
        let (width, height, scale) = (width.div_ceil(sub), height.div_ceil(sub), 1.0 / f64::from(sub));
        *plane = Plane { start, stride: width as usize, width, height, scale: (scale, scale) };
        start += width as usize * height as usize;
    }
    room(&mut out.data, start);
    out.colours = Colours::Yuv(Matrix::VIDEO);
    let base = out.data.as_mut_ptr();
    let of = |c: usize| {
        let plane = &out.planes[c];
        // SAFETY: each plane starts inside the buffer, which has room for all of them.
        (unsafe { base.add(plane.start) }, plane.stride as i32, plane.stride * plane.height as usize)
    };
    let ((y, y_stride, y_size), (u, u_stride, u_size), (v, v_stride, v_size)) = (of(0), of(1), of(2));
    let (a, a_stride, a_size) = (ptr::null_mut(), 0, 0);
    let memory =
        webp::WebPYUVABuffer { y, u, v, a, y_stride, u_stride, v_stride, a_stride, y_size, u_size, v_size, a_size };
    // SAFETY: the planes lie side by side in a buffer that nobody else holds.
    unsafe { run(bytes, Mode::MODE_YUV, Memory { YUVA: memory }) }
}

/// Pixels as triples or quadruples, rows `stride` bytes apart.
fn interleaved(bytes: &[u8], mode: Mode, stride: usize, to: &mut [u8]) -> Result<(), Failure> {
    let memory = webp::WebPRGBABuffer { rgba: to.as_mut_ptr(), stride: stride as i32, size: to.len() };
    // SAFETY: the slice is valid for its length.
    unsafe { run(bytes, mode, Memory { RGBA: memory }) }
}

/// Decodes into memory of ours. libwebp compares its size with the image's before it writes.
///
/// # Safety
/// `memory` is of the kind that `mode` says, its pointers are valid for its sizes, and nobody else holds them.
unsafe fn run(bytes: &[u8], mode: Mode, memory: Memory) -> Result<(), Failure> {
    let mut config = webp::WebPDecoderConfig::new()
        .map_err(|()| Failure::decode(Reason::Panic, "libwebp is of another version than its bindings"))?;
    config.output.colorspace = mode;
    config.output.is_external_memory = 1;
    config.output.u = memory;
    // SAFETY: the slice is valid for its length; the memory is what the caller promises.
    accept(unsafe { webp::WebPDecode(bytes.as_ptr(), bytes.len(), &raw mut config) })
}

fn accept(status: Status) -> Result<(), Failure> {
    let (reason, said) = match status {
        Status::VP8_STATUS_OK => return Ok(()),
        Status::VP8_STATUS_NOT_ENOUGH_DATA | Status::VP8_STATUS_SUSPENDED => (Reason::Truncated, "the data end early"),
        Status::VP8_STATUS_OUT_OF_MEMORY => (Reason::Memory, "no memory"),
        Status::VP8_STATUS_UNSUPPORTED_FEATURE => (Reason::Unsupported, "a feature that is not supported"),
        Status::VP8_STATUS_INVALID_PARAM => (Reason::Corrupt, "frames of another size than the headers say"),
        Status::VP8_STATUS_BITSTREAM_ERROR | Status::VP8_STATUS_USER_ABORT => (Reason::Corrupt, "damaged data"),
    };
    Err(Failure::decode(reason, format!("libwebp: {said}")))
}

/// The first frame of an animation, and where it lies on the canvas.
struct First<'a> {
    bytes: &'a [u8],
    corner: (usize, usize),
    size: (usize, usize),
}

impl<'a> First<'a> {
    /// Of a file whose every frame is there, as far as chunks tell.
    fn of(bytes: &'a [u8]) -> Result<Self, Failure> {
        let file = webp::WebPData { bytes: bytes.as_ptr(), size: bytes.len() };
        // SAFETY: the data outlive the demuxer, which only reads them and is deleted below; an iterator of zeros is
        // what `WebPDemuxGetFrame` asks for.
        unsafe {
            let version = webp::WebPGetDemuxABIVersion();
            let demuxer = webp::WebPDemuxInternal(&raw const file, 0, ptr::null_mut(), version);
            let mut frame: webp::WebPIterator = std::mem::zeroed();
            let found = !demuxer.is_null() && webp::WebPDemuxGetFrame(demuxer, 1, &raw mut frame) != 0;
            let first = found.then(|| Self {
                // The frame's chunks lie in the file.
                bytes: std::slice::from_raw_parts(frame.fragment.bytes, frame.fragment.size),
                corner: (frame.x_offset as usize, frame.y_offset as usize),
                size: (frame.width as usize, frame.height as usize),
            });
            webp::WebPDemuxReleaseIterator(&raw mut frame);
            webp::WebPDemuxDelete(demuxer);
            first.ok_or_else(|| Failure::decode(Reason::Corrupt, "libwebp: an animation whose frames are damaged"))
        }
    }

    /// `alpha`: whether the canvas has any; without, what no frame covers is black, and a frame's own is not looked at.
    fn decode(&self, alpha: bool, wanted: &Wanted, scratch: &mut Vec<u8>, out: &mut Pixels) -> Result<(), Failure> {
        let (width, height) = (wanted.size.0 as usize, wanted.size.1 as usize);
        if self.size == (width, height) {
            return picture(self.bytes, alpha, features(self.bytes)?.format == LOSSY, wanted, scratch, out);
        }
        let (stride, (left, top)) = (width * 4, self.corner);
        room(scratch, stride * height);
        let canvas = &mut scratch[..stride * height];
        canvas.fill(0);
        let last = (top + self.size.1) * stride - (width - self.size.0 - left) * 4;
        interleaved(self.bytes, Mode::MODE_RGBA, stride, &mut canvas[top * stride + left * 4..last])?;
        if !alpha {
            canvas.chunks_exact_mut(4).for_each(|pixel| pixel[3] = 255);
        }
        compose(scratch, 4, wanted, out);
        Ok(())
    }
}
