//! Pixels → target size, antialiased. In: decoded planes and a crop in source pixels. Out: the same planes at the target's
//! size, still in the stored frame. The filters are Pillow's (its bicubic is Catmull-Rom, a = −0.5), widened by the scale.
//!
//! As in Pillow's `resize(box=…)`, a filter at the crop's edge sees the pixels beyond it, down to the image's own edge. Since
//! each plane knows its scale, the same crop serves planes at any DCT scale and sampling, fractions of a pixel included.

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeError, ResizeOptions};

use crate::decode::{Colours, Pixels, Plane, room};
use crate::ledger::Failure;
use crate::slots::Crop;

/// `[render] filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Catmull-Rom.
    Bicubic,
    /// Triangle.
    Bilinear,
    /// Mean over the pixel's footprint (Pillow's box).
    Area,
    /// Lanczos with three lobes.
    Lanczos,
}

impl Filter {
    fn algorithm(self) -> ResizeAlg {
        ResizeAlg::Convolution(match self {
            Self::Bicubic => FilterType::CatmullRom,
            Self::Bilinear => FilterType::Bilinear,
            Self::Area => FilterType::Box,
            Self::Lanczos => FilterType::Lanczos3,
        })
    }
}

/// An image at its target size, in the stored frame: one tight plane of grey or RGB, or three of Y, Cb, Cr.
#[derive(Default)]
pub struct Small {
    /// How samples lie.
    pub colours: Colours,
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The planes, one after the other; longer than needed, since it is used again.
    pub data: Vec<u8>,
}

/// The resizer of one thread.
#[derive(Default)]
pub struct Resizer {
    inner: fast_image_resize::Resizer,
}

impl Resizer {
    /// Resizes the crop of `pixels` to `width` × `height`.
    pub fn resize(
        &mut self,
        pixels: &Pixels,
        crop: Crop,
        (width, height): (u32, u32),
        filter: Filter,
        out: &mut Small,
    ) -> Result<(), Failure> {
        let (planes, channels) = match pixels.colours {
            Colours::Grey => (1, 1),
            Colours::Rgb => (1, 3),
            Colours::Ycc => (3, 1),
        };
        let bytes = width as usize * height as usize * channels;
        room(&mut out.data, bytes * planes);
        (out.colours, out.width, out.height) = (pixels.colours, width as usize, height as usize);
        for (plane, to) in pixels.planes[..planes].iter().zip(out.data.chunks_exact_mut(bytes)) {
            let from = &pixels.data[plane.start..];
            let done = if channels == 3 {
                self.plane::<U8x3>(from, plane, crop, (width, height), filter, to)
            } else {
                self.plane::<U8>(from, plane, crop, (width, height), filter, to)
            };
            done.map_err(|e| Failure::new("render", "resize", e))?;
        }
        Ok(())
    }

    fn plane<P: PixelTrait>(
        &mut self,
        from: &[u8],
        plane: &Plane,
        crop: Crop,
        (width, height): (u32, u32),
        filter: Filter,
        to: &mut [u8],
    ) -> Result<(), String> {
        let per_row = plane.stride / P::size();
        // The last row may end at the image's own edge.
        let padded = &from[..plane.stride * plane.height as usize];
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let stored = TypedImageRef::<P>::from_buffer(per_row as u32, plane.height, padded).map_err(|e| text(&e))?;
        let view = TypedCroppedImage::from_ref(&stored, 0, 0, plane.width, plane.height).map_err(|e| text(&e))?;
        let mut target = TypedImage::<P>::from_buffer(width, height, to).map_err(|e| text(&e))?;
        // Rounding of the last bit must not push the box over the plane's edge.
        let span = |at: i32, len: i32, scale: f64, limit: u32| {
            let (from, to) = (f64::from(at) * scale, f64::from(at + len) * scale);
            (from, to.min(f64::from(limit)) - from)
        };
        let (left, box_width) = span(crop.left, crop.width, plane.scale.0, plane.width);
        let (top, box_height) = span(crop.top, crop.height, plane.scale.1, plane.height);
        let options =
            ResizeOptions::new().resize_alg(filter.algorithm()).use_alpha(false).crop(left, top, box_width, box_height);
        self.inner.resize_typed(&view, &mut target, &options).map_err(|e: ResizeError| e.to_string())
    }
}
