//! Target image → patches in their slots. In: the small image in the stored frame, and for each kept token its place in the
//! oriented grid. Out: P·P·3 bytes a token, row-major, channels last. Orientation and flip happen here, on the few pixels that
//! are kept, and so does the conversion from Y, Cb, Cr.

use crate::decode::Colours;
use crate::orient::Frame;
use crate::resize::Small;

/// Writes one patch for each of `tokens` (indices in an oriented grid `grid_width` wide) to `out`, in their order.
///
/// `rgb` is scratch for the conversion.
pub fn patchify(
    small: &Small,
    frame: Frame,
    grid_width: usize,
    p: usize,
    tokens: &[u32],
    rgb: &mut Vec<u8>,
    out: &mut [u8],
) {
    let pixels = small.width * small.height;
    let (data, channels): (&[u8], usize) = match small.colours {
        Colours::Grey => (&small.data[..pixels], 1),
        Colours::Rgb => (&small.data[..pixels * 3], 3),
        Colours::Ycc => {
            crate::decode::room(rgb, pixels * 3);
            let (y, chroma) = small.data[..pixels * 3].split_at(pixels);
            let (cb, cr) = chroma.split_at(pixels);
            to_rgb(y, cb, cr, &mut rgb[..pixels * 3]);
            (&rgb[..pixels * 3], 3)
        }
    };
    let (row, one) = (small.width * channels, channels);
    // Bytes to go, in the stored image, for one step right and one step down in the oriented one.
    let (x_size, y_size) = frame.swapped((small.width, small.height));
    let stored_x = if frame.mirror_x { -(one as isize) } else { one as isize };
    let stored_y = if frame.mirror_y { -(row as isize) } else { row as isize };
    let (right, down) = frame.swapped((stored_x, stored_y));
    let corner_x = if frame.mirror_x { (small.width - 1) * one } else { 0 };
    let corner_y = if frame.mirror_y { (small.height - 1) * row } else { 0 };
    let corner = (corner_x + corner_y) as isize;
    debug_assert!(x_size == grid_width * p && y_size % p == 0);
    for (&token, patch) in tokens.iter().zip(out.chunks_exact_mut(p * p * 3)) {
        let (y, x) = (token as usize / grid_width, token as usize % grid_width);
        let first = corner + right * (x * p) as isize + down * (y * p) as isize;
        for (i, line) in patch.chunks_exact_mut(p * 3).enumerate() {
            let start = first + down * i as isize;
            if channels == 3 && right == 3 {
                let start = start as usize;
                line.copy_from_slice(&data[start..start + p * 3]);
                continue;
            }
            for (j, to) in line.chunks_exact_mut(3).enumerate() {
                let at = (start + right * j as isize) as usize;
                if channels == 3 {
                    to.copy_from_slice(&data[at..at + 3]);
                } else {
                    to.fill(data[at]);
                }
            }
        }
    }
}

/// JFIF's conversion in 16-bit fixed point, rounded as libjpeg does.
fn to_rgb(y: &[u8], cb: &[u8], cr: &[u8], rgb: &mut [u8]) {
    for (((to, &y), &cb), &cr) in rgb.chunks_exact_mut(3).zip(y).zip(cb).zip(cr) {
        let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        to[0] = (y + ((91_881 * cr + 32_768) >> 16)).clamp(0, 255) as u8;
        to[1] = (y + ((-22_554 * cb - 46_802 * cr + 32_768) >> 16)).clamp(0, 255) as u8;
        to[2] = (y + ((116_130 * cb + 32_768) >> 16)).clamp(0, 255) as u8;
    }
}
