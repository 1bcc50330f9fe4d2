//! AVIF through dav1d: whatever the file, what buffers held before it is neither seen in its pixels nor in its verdict;
//! what is accepted has every sample written, at the size that was planned.

use std::path::Path;
use std::sync::Arc;

use navit_packer::failure::Reason;
use navit_packer::pixels::decode::Decoder;
use navit_packer::pixels::picture::{Colours, Depth, Pixels, Plane, Wanted};
use navit_packer::slots::Crop;

fn wanted((width, height): (u32, u32)) -> Wanted {
    Wanted {
        convert: false,
        keep_damaged: false,
        size: (width, height),
        crop: Crop { top: 0, left: 0, height: height as i32, width: width as i32 },
        target: (16, 16),
        dct_scaling: true,
        background: [10, 200, 30],
        max_pixels: 1 << 16,
        depth: Depth::Full,
    }
}

fn decoder() -> Decoder {
    Decoder::new(Arc::default()).unwrap_or_else(|e| panic!("{}", e.detail))
}

/// The rows of each plane, one after the other.
fn samples(pixels: &Pixels) -> Vec<u8> {
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

/// The verdict, and the samples where there are any, after buffers were filled with `before`.
fn seen(decoder: &mut Decoder, data: &[u8], size: (u32, u32), before: u8) -> Result<Vec<u8>, (Reason, String)> {
    let mut pixels = Pixels { data: vec![before; 1 << 16], ..Pixels::default() };
    decoder.decode(data, &wanted(size), &mut pixels).map_err(|e| (e.reason, e.detail))?;
    Ok(samples(&pixels))
}

/// One file of each kind, with its size: Pillow's and imagecodecs' encoders made them.
fn files() -> Vec<(String, Vec<u8>, (u32, u32))> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder of files")
        .map(|entry| {
            let path = entry.expect("a file").path();
            let name = path.file_name().expect("its name").to_string_lossy().into_owned();
            let size = if name == "lossless.avif" { (41, 31) } else { (61, 47) };
            (name, std::fs::read(&path).expect("its bytes"), size)
        })
        .collect();
    found.sort();
    assert_eq!(found.len(), 11);
    found
}

#[test]
fn a_decoder_remembers_nothing() {
    let mut used = decoder();
    for (other, before, before_size) in files() {
        for (name, data, size) in files() {
            assert!(seen(&mut used, &before, before_size, 0x55).is_ok(), "{other}");
            let fresh = seen(&mut decoder(), &data, size, 0);
            assert!(fresh.is_ok(), "{name}: {fresh:?}");
            assert_eq!(fresh, seen(&mut used, &data, size, 0xAA), "{name} after {other}");
        }
    }
}

/// So many damaged files of each kind, half of the damage in boxes.
fn damage(copies: u64) {
    let mut decoder = decoder();
    let (mut taken, mut refused) = (0, 0);
    for (kind, (name, whole, size)) in files().into_iter().enumerate() {
        let boxes = whole.windows(4).position(|w| w == b"mdat").expect("its data");
        for copy in 0..copies {
            let mut random = (copy << 4 | kind as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut next = |below: usize| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random >> 11) as usize % below
            };
            let mut data = whole.clone();
            match next(6) {
                0 => data.truncate(next(data.len())),
                1 => {
                    let at = next(data.len());
                    data[at..].fill(next(256) as u8);
                }
                _ => {
                    for _ in 0..1 + next(4) {
                        let at = if next(2) == 0 { boxes + 4 + next(data.len() - boxes - 4) } else { next(boxes) };
                        data[at] ^= 1 << next(8);
                    }
                }
            }
            let first = seen(&mut decoder, &data, size, 0);
            assert_eq!(first, seen(&mut decoder, &data, size, 0xFF), "copy {copy} of {name}");
            assert!(!matches!(first, Err((Reason::Memory | Reason::Panic, _))), "{:?}", first.map_err(|e| e.1).err());
            *if first.is_ok() { &mut taken } else { &mut refused } += 1;
        }
    }
    assert!(taken > copies / 2 && refused > copies, "{taken} taken, {refused} refused");
}

#[test]
fn damaged_files_leave_nothing_of_what_was_before() {
    damage(200);
}

#[test]
#[ignore = "the same 2,000 times"]
fn two_thousand_damaged_files_of_each_kind() {
    damage(2_000);
}
