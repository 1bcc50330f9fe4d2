//! A file decoded over buffers that hold something already: what was there before must not be seen.

use std::sync::Arc;

use navit_packer::failure::Reason;
use navit_packer::pixels::decode::Decoder;
use navit_packer::pixels::picture::{Colours, Depth, Pixels, Plane, Wanted};
use navit_packer::slots::Crop;

fn wanted((width, height): (u32, u32), max_pixels: u64) -> Wanted {
    Wanted {
        convert: false,
        keep_damaged: false,
        size: (width, height),
        crop: Crop { top: 0, left: 0, height: height as i32, width: width as i32 },
        target: (16, 16),
        dct_scaling: true,
        background: [10, 200, 30],
        max_pixels,
        depth: Depth::Full,
    }
}

/// Decoders without a helper.
pub fn decoder() -> Decoder {
    Decoder::new(Arc::default()).unwrap_or_else(|e| panic!("{}", e.detail))
}

/// The rows of each plane, one after the other.
pub fn samples(pixels: &Pixels) -> Vec<u8> {
    let (count, channels) = match pixels.colours {
        Colours::Ycc | Colours::Yuv(_) => (3, 1),
        Colours::Rgb => (1, 3),
        Colours::Grey => (1, 1),
    };
    let rows = |p: &Plane| {
        let (start, stride, width) = (p.start, p.stride, p.width as usize * channels);
        (0..p.height as usize).map(move |y| start + y * stride..start + y * stride + width)
    };
    pixels.planes[..count].iter().flat_map(rows).flat_map(|at| pixels.data[at].to_vec()).collect()
}

/// The verdict on a file of at most `max_pixels`, and the samples where there are any, after buffers were filled with `before`.
pub fn seen(
    decoder: &mut Decoder,
    data: &[u8],
    size: (u32, u32),
    max_pixels: u64,
    before: u8,
) -> Result<Vec<u8>, (Reason, String)> {
    let mut pixels = Pixels { data: vec![before; 1 << 16], ..Pixels::default() };
    decoder.decode(data, &wanted(size, max_pixels), &mut pixels).map_err(|e| (e.reason, e.detail))?;
    Ok(samples(&pixels))
}
