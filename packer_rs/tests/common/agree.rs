//! A decoder of our own beside the crate that judges. In: a file. Out: what both say of it, which must be the same.

use std::sync::Arc;

use navit_packer::failure::Reason;
use navit_packer::pixels::decode::Decoder;
use navit_packer::pixels::picture::{Colours, Depth, Pixels, Wanted};
use navit_packer::slots::Crop;

pub type Seen = Result<(Colours, Vec<u8>), (Reason, String)>;

/// What both ways say of a file; they must agree.
pub fn agree(file: &[u8], size: (u32, u32)) -> Seen {
    let wanted = Wanted {
        size,
        crop: Crop { top: 0, left: 0, height: size.1 as i32, width: size.0 as i32 },
        target: size,
        dct_scaling: true,
        background: [255, 128, 0],
        max_pixels: 1 << 20,
        depth: Depth::Full,
        keep_damaged: false,
        convert: false,
    };
    let seen = [Decoder::new(Arc::default()), Decoder::reference()].map(|decoder| {
        let mut decoder = decoder.unwrap_or_else(|e| panic!("{}", e.detail));
        let mut pixels = Pixels { data: vec![0xA5; 300], ..Pixels::default() };
        match decoder.decode(file, &wanted, &mut pixels) {
            Ok(()) => {
                let channels = if pixels.colours == Colours::Rgb { 3 } else { 1 };
                let plane = pixels.planes[0];
                let all = size.0 as usize * size.1 as usize * channels;
                assert_eq!(plane.stride, size.0 as usize * channels);
                Ok((pixels.colours, pixels.data[plane.start..plane.start + all].to_vec()))
            }
            Err(e) => Err((e.reason, e.detail)),
        }
    });
    assert!(seen[0] == seen[1], "{:?}", [0, 1].map(|n: usize| seen[n].as_ref().err()));
    seen.into_iter().next().expect("two of them")
}
