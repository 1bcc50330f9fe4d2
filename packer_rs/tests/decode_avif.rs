//! AVIF through dav1d: whatever the file, what buffers held before it is neither seen in its pixels nor in its verdict;
//! what is accepted has every sample written, at the size that was planned.

#[path = "common/buffers.rs"]
mod buffers;

use std::path::Path;

use buffers::{decoder, seen};

use navit_packer::failure::Reason;

/// A larger file is refused.
const MAX_PIXELS: u64 = 1 << 16;

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
            assert!(seen(&mut used, &before, before_size, MAX_PIXELS, 0x55).is_ok(), "{other}");
            let fresh = seen(&mut decoder(), &data, size, MAX_PIXELS, 0);
            assert!(fresh.is_ok(), "{name}: {fresh:?}");
            assert_eq!(fresh, seen(&mut used, &data, size, MAX_PIXELS, 0xAA), "{name} after {other}");
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
            let first = seen(&mut decoder, &data, size, MAX_PIXELS, 0);
            assert_eq!(first, seen(&mut decoder, &data, size, MAX_PIXELS, 0xFF), "copy {copy} of {name}");
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
