//! WebP through libwebp: whatever the file, what buffers held before it is neither seen in its pixels nor in its
//! verdict; what is accepted has every sample written, at the size that was planned.

#[path = "common/webp.rs"]
mod webp;

use std::sync::Arc;

use navit_packer::failure::Reason;
use navit_packer::pixels::decode::Decoder;
use navit_packer::pixels::picture::{Colours, Depth, Pixels, Wanted};
use navit_packer::slots::Crop;
use proptest::prelude::*;

fn wanted((width, height): (u32, u32)) -> Wanted {
    Wanted {
        convert: false,
        keep_damaged: false,
        size: (width, height),
        crop: Crop { top: 0, left: 0, height: height as i32, width: width as i32 },
        target: (16, 16),
        dct_scaling: true,
        background: [10, 200, 30],
        max_pixels: 1 << 20,
        depth: Depth::Full,
    }
}

fn decoder() -> Decoder {
    Decoder::new(Arc::default()).unwrap_or_else(|e| panic!("{}", e.detail))
}

/// The rows of each plane, one after the other.
fn samples(pixels: &Pixels) -> Vec<u8> {
    let (count, channels) = if matches!(pixels.colours, Colours::Yuv(_)) { (3, 1) } else { (1, 3) };
    let rows = |p: &navit_packer::pixels::picture::Plane| {
        let (start, stride, width) = (p.start, p.stride, p.width as usize * channels);
        (0..p.height as usize).map(move |y| start + y * stride..start + y * stride + width)
    };
    pixels.planes[..count].iter().flat_map(rows).flat_map(|at| pixels.data[at].to_vec()).collect()
}

/// The verdict, and the samples where there are any, after buffers were filled with `before`.
fn seen(decoder: &mut Decoder, data: &[u8], size: (u32, u32), before: u8) -> Result<Vec<u8>, (Reason, String)> {
    let mut pixels = Pixels { data: vec![before; 1 << 16], ..Pixels::default() };
    decoder.decode(data, &wanted(size), &mut pixels).map_err(|e| (e.reason, e.detail))?;
    Ok(samples(&pixels))
}

prop_compose! {
    fn file()(width in 1usize..70, height in 1usize..70, quality in 0f32..130.0, alpha: bool, seed: u64)
        -> (Vec<u8>, (u32, u32))
    {
        (webp::encode(width, height, quality, alpha, seed), (width as u32, height as u32))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_decoder_remembers_nothing((other, other_size) in file(), (data, size) in file()) {
        let mut used = decoder();
        prop_assert!(seen(&mut used, &other, other_size, 0x55).is_ok());
        let (fresh, after) = (seen(&mut decoder(), &data, size, 0), seen(&mut used, &data, size, 0xAA));
        prop_assert!(fresh.is_ok());
        prop_assert_eq!(fresh, after);
    }

    #[test]
    fn another_size_than_indexed_is_refused((data, (width, height)) in file(), more in 1u32..9) {
        let refused = seen(&mut decoder(), &data, (width, height + more), 0).map_err(|e| e.0);
        prop_assert_eq!(refused, Err(Reason::Changed));
    }
}

/// So many damaged files of each kind, half of the damage in headers.
fn damage(copies: u64) {
    let mut decoder = decoder();
    let (mut taken, mut refused) = (0, 0);
    for (kind, (quality, alpha)) in [(80.0, false), (80.0, true), (100.0, false), (100.0, true)].into_iter().enumerate()
    {
        for copy in 0..copies {
            let mut random = (copy << 3 | kind as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut next = |below: usize| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random >> 11) as usize % below
            };
            let (width, height) = (1 + next(60), 1 + next(60));
            let mut data = webp::encode(width, height, quality, alpha, copy);
            match next(4) {
                0 => data.truncate(next(data.len())),
                1 => {
                    let at = next(data.len());
                    data[at..].fill(next(256) as u8);
                }
                _ => {
                    for _ in 0..1 + next(6) {
                        // Headers are short.
                        let at = if next(2) == 0 { next(data.len()) } else { next(data.len().min(60)) };
                        data[at] ^= 1 << next(8);
                    }
                }
            }
            let size = (width as u32, height as u32);
            let first = seen(&mut decoder, &data, size, 0);
            assert_eq!(first, seen(&mut decoder, &data, size, 0xFF), "copy {copy} of kind {kind}");
            assert!(!matches!(first, Err((Reason::Memory | Reason::Panic, _))), "{:?}", first.map_err(|e| e.1).err());
            *if first.is_ok() { &mut taken } else { &mut refused } += 1;
        }
    }
    assert!(taken > copies / 2 && refused > copies, "{taken} taken, {refused} refused");
}

#[test]
fn damaged_files_leave_nothing_of_what_was_before() {
    damage(300);
}

#[test]
#[ignore = "the same 2,000 times"]
fn two_thousand_damaged_files_of_each_kind() {
    damage(2_000);
}
