//! WebP files for tests, through libwebp's own encoder.

use std::ptr;

use libwebp_sys as webp;

/// A smooth pattern with some noise, as R, G, B, A.
fn pattern(width: usize, height: usize, seed: u64) -> Vec<u8> {
    let noise = |n: usize| ((n as u64 + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60) as u8;
    (0..width * height)
        .flat_map(|n| {
            let (x, y) = (n % width, n / width);
            [x * 255 / width, y * 255 / height, (x + y) * 7 % 256, 255 - x * y % 256]
                .map(|v| (v as u8).wrapping_add(noise(n)))
        })
        .collect()
}

/// A file of `width` × `height`; `quality` of 100 or more is lossless.
pub fn encode(width: usize, height: usize, quality: f32, alpha: bool, seed: u64) -> Vec<u8> {
    let rgba = pattern(width, height, seed);
    let rgb: Vec<u8> = rgba.chunks_exact(4).flat_map(|pixel| pixel[..3].to_vec()).collect();
    let (w, h) = (width as i32, height as i32);
    let mut out = ptr::null_mut();
    // SAFETY: the pixels are as many as the size says; the file that comes back is libwebp's until it is freed.
    unsafe {
        let length = match (alpha, quality >= 100.0) {
            (false, false) => webp::WebPEncodeRGB(rgb.as_ptr(), w, h, w * 3, quality, &raw mut out),
            (false, true) => webp::WebPEncodeLosslessRGB(rgb.as_ptr(), w, h, w * 3, &raw mut out),
            (true, false) => webp::WebPEncodeRGBA(rgba.as_ptr(), w, h, w * 4, quality, &raw mut out),
            (true, true) => webp::WebPEncodeLosslessRGBA(rgba.as_ptr(), w, h, w * 4, &raw mut out),
        };
        assert!(length > 0, "libwebp encoded nothing");
        let file = std::slice::from_raw_parts(out, length).to_vec();
        webp::WebPFree(out.cast());
        file
    }
}
