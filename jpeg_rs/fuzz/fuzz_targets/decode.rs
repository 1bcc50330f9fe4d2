//! Any bytes as a JPEG file: no crash, no hang, and the fast form agrees with the plain one on the verdict and on every
//! sample.
#![no_main]

use libfuzzer_sys::fuzz_target;
use navit_jpeg::{Decoder, Header};

fuzz_target!(|data: &[u8]| {
    let Some(header) = Header::of(data).filter(|h| u64::from(h.size.0) * u64::from(h.size.1) <= 1 << 20) else { return };
    for shrink in [1, 2, 4, 8] {
        let seen = [Decoder::default(), Decoder::new(false)].map(|mut decoder| {
            let mut out = Vec::new();
            decoder.decode(&header, shrink, &mut out).map(|picture| (picture, out))
        });
        assert!(seen[0] == seen[1]);
    }
});
