//! The one orientation rule of the project, shared by the header probe and by every decoder. In: an EXIF block, or what
//! stands in for one. Out: its orientation, and how a rectangle and a pixel of the oriented frame lie in the stored one.
//!
//! Apart, so that what the index says of an image's size and what the renderer makes of its pixels cannot disagree.

use crate::pixels::tags::tag;
use crate::slots::Crop;

const TAG: u16 = 0x0112;

/// The orientation (1 to 8) that a TIFF or EXIF block gives in its first directory: 1 for a value that is none of these,
/// None where it gives none or is damaged.
///
/// The prefix `Exif\0\0` may stand before the block. Where the tag stands twice, the last counts.
pub fn exif_orientation(tiff: &[u8]) -> Option<u8> {
    tag(tiff.strip_prefix(b"Exif\0\0").unwrap_or(tiff), TAG).map(checked)
}

fn checked(value: u64) -> u8 {
    u8::try_from(value).ok().filter(|v| (1..=8).contains(v)).unwrap_or(1)
}

/// The orientation that an XMP packet gives, as an attribute or as an element of its own. It counts where EXIF gives none,
/// as in Pillow, which looks for the same words.
pub fn xmp_orientation(xmp: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    memchr::memmem::find_iter(xmp, NAME).find_map(|at| {
        let rest = &xmp[at + NAME.len()..];
        let value = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?.first()?;
        value.is_ascii_digit().then(|| checked(u64::from(value - b'0')))
    })
}

/// The EXIF block in a "Raw profile type exif", ImageMagick's text for PNG: three lines of words, then digits.
pub fn raw_profile(text: &[u8]) -> Vec<u8> {
    let digits = text.split(|&b| b == b'\n').skip(3).flatten().filter_map(|&b| char::from(b).to_digit(16));
    let digits: Vec<u8> = digits.map(|d| d as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// How the oriented frame lies in the stored one: pixel (x, y) is stored at (x, y), swapped where `swap`, then
/// mirrored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Oriented rows are stored columns.
    pub swap: bool,
    /// Stored columns run backwards.
    pub mirror_x: bool,
    /// Stored rows run backwards.
    pub mirror_y: bool,
}

impl Frame {
    /// The frame of an EXIF orientation; anything but 2 to 8 is upright.
    pub fn new(orientation: u8) -> Self {
        let (swap, mirror_x, mirror_y) = match orientation {
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, false, true),
            7 => (true, true, true),
            8 => (true, true, false),
            _ => (false, false, false),
        };
        Self { swap, mirror_x, mirror_y }
    }

    /// The same frame where the oriented image is mirrored left to right afterwards.
    pub fn flipped(self) -> Self {
        let (x, y) = (self.mirror_x, self.mirror_y);
        if self.swap { Self { mirror_y: !y, ..self } } else { Self { mirror_x: !x, ..self } }
    }

    /// (a, b) of the one frame in the order of the other: (width, height) or (x, y), before any mirroring.
    pub fn swapped<T>(self, (a, b): (T, T)) -> (T, T) {
        if self.swap { (b, a) } else { (a, b) }
    }

    /// A crop of the oriented image of `width` × `height` pixels as a crop of the stored image.
    pub fn stored_crop(self, crop: Crop, (width, height): (i32, i32)) -> Crop {
        let (width, height) = self.swapped((width, height));
        let (mut left, mut top) = self.swapped((crop.left, crop.top));
        let (crop_width, crop_height) = self.swapped((crop.width, crop.height));
        if self.mirror_x {
            left = width - left - crop_width;
        }
        if self.mirror_y {
            top = height - top - crop_height;
        }
        Crop { top, left, height: crop_height, width: crop_width }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(little: bool, kind: u16, value: u32) -> Vec<u8> {
        let b16 = |v: u16| if little { v.to_le_bytes() } else { v.to_be_bytes() };
        let b32 = |v: u32| if little { v.to_le_bytes() } else { v.to_be_bytes() };
        let mut out = if little { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        out.extend(b32(8));
        out.extend(b16(1));
        out.extend(b16(TAG));
        out.extend(b16(kind));
        out.extend(b32(1));
        match kind {
            1 | 6 => out.extend([value as u8, 0, 0, 0]),
            3 | 8 => {
                out.extend(b16(value as u16));
                out.extend([0, 0]);
            }
            _ => out.extend(b32(value)),
        }
        out
    }

    #[test]
    fn reads_every_orientation_and_nothing_else() {
        for little in [true, false] {
            for kind in [1, 3, 4, 6, 8, 9] {
                for value in 0..=9 {
                    let want = Some(if (1..=8).contains(&value) { value as u8 } else { 1 });
                    let mut tiff = block(little, kind, value);
                    assert_eq!(exif_orientation(&tiff), want);
                    tiff.splice(0..0, *b"Exif\0\0");
                    assert_eq!(exif_orientation(&tiff), want);
                    tiff.truncate(tiff.len() - 5);
                    assert_eq!(exif_orientation(&tiff), None);
                }
            }
        }
        assert_eq!(exif_orientation(b"II*\0\xff\xff\xff\xff"), None);
        assert_eq!(exif_orientation(b""), None);
    }

    #[test]
    fn a_crop_moves_with_its_corner_pixel() {
        let (width, height) = (7, 5);
        let crop = Crop { top: 1, left: 2, height: 3, width: 4 };
        for orientation in 1..=8 {
            let frame = Frame::new(orientation);
            let stored = frame.stored_crop(crop, (width, height));
            let (stored_width, stored_height) = frame.swapped((width, height));
            assert!(stored.left >= 0 && stored.left + stored.width <= stored_width);
            assert!(stored.top >= 0 && stored.top + stored.height <= stored_height);
            // The crop's corner, mapped pixel by pixel, is a corner of the stored crop.
            let (mut x, mut y) = frame.swapped((crop.left, crop.top));
            if frame.mirror_x {
                x = stored_width - 1 - x;
            }
            if frame.mirror_y {
                y = stored_height - 1 - y;
            }
            let corner_x = if frame.mirror_x { stored.left + stored.width - 1 } else { stored.left };
            let corner_y = if frame.mirror_y { stored.top + stored.height - 1 } else { stored.top };
            assert_eq!((x, y), (corner_x, corner_y));
        }
    }
}
