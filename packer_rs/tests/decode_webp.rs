//! WebP through libwebp: whatever the file, what buffers held before it is neither seen in its pixels nor in its
//! verdict; what is accepted has every sample written, at the size that was planned.

#[path = "common/buffers.rs"]
mod buffers;
#[path = "common/webp.rs"]
mod webp;

use buffers::{decoder, seen};

use navit_packer::failure::Reason;
use proptest::prelude::*;

/// A larger file is refused.
const MAX_PIXELS: u64 = 1 << 20;

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
        prop_assert!(seen(&mut used, &other, other_size, MAX_PIXELS, 0x55).is_ok());
        let (fresh, after) = (seen(&mut decoder(), &data, size, MAX_PIXELS, 0), seen(&mut used, &data, size, MAX_PIXELS, 0xAA));
        prop_assert!(fresh.is_ok());
        prop_assert_eq!(fresh, after);
    }

    #[test]
    fn another_size_than_indexed_is_refused((data, (width, height)) in file(), more in 1u32..9) {
        let refused = seen(&mut decoder(), &data, (width, height + more), MAX_PIXELS, 0).map_err(|e| e.0);
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
            let first = seen(&mut decoder, &data, size, MAX_PIXELS, 0);
            assert_eq!(first, seen(&mut decoder, &data, size, MAX_PIXELS, 0xFF), "copy {copy} of kind {kind}");
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
