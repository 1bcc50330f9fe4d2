//! Any bytes as a JPEG or PNG file: our own decoders, their plain forms and the libraries agree on the verdict and on every
//! sample.
#![no_main]

use std::cell::RefCell;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use navit_packer::fetch::window::Window;
use navit_packer::pixels::decode::Decoder;
use navit_packer::pixels::decode::foreign::Helpers;
use navit_packer::pixels::orient::Frame;
use navit_packer::pixels::picture::{Colours, Depth, Pixels, Wanted};
use navit_packer::probe::probe_header;
use navit_packer::slots::Crop;

thread_local! {
    static TOOLS: RefCell<(Option<[Decoder; 3]>, [Pixels; 3])> = RefCell::default();
}

fn rows(pixels: &Pixels) -> impl Iterator<Item = &[u8]> {
    let channels = if pixels.colours == Colours::Rgb { 3 } else { 1 };
    let count = if pixels.colours == Colours::Ycc { 3 } else { 1 };
    pixels.planes[..count].iter().flat_map(move |p| {
        (0..p.height as usize).map(move |y| &pixels.data[p.start + y * p.stride..][..p.width as usize * channels])
    })
}

fuzz_target!(|data: &[u8]| {
    if !data.starts_with(&[0xFF, 0xD8]) && !data.starts_with(b"\x89PNG") {
        return;
    }
    let Ok(header) = probe_header(&mut Window::new(data, 0, data.len() as u64, &mut Vec::new()), &Helpers::default())
    else {
        return;
    };
    let (width, height) = Frame::new(header.orientation).swapped((header.width, header.height));
    TOOLS.with_borrow_mut(|(decoders, pixels)| {
        let decoders = decoders.get_or_insert_with(|| {
            [Decoder::new(Arc::default()), Decoder::plain(), Decoder::reference()]
                .map(|d| d.expect("memory for a decoder"))
        });
        let (crop, size) = (Crop { top: 0, left: 0, height, width }, (width as u32, height as u32));
        for shrink in [1, 2, 4, 8] {
            let target = ((size.0 / shrink).max(1), (size.1 / shrink).max(1));
            let wanted = Wanted {
                size,
                crop,
                target,
                dct_scaling: true,
                background: [255; 3],
                max_pixels: 1 << 20,
                depth: Depth::Full,
                keep_damaged: false,
                convert: false,
            };
            let mut verdicts = decoders
                .iter_mut()
                .zip(pixels.iter_mut())
                .map(|(decoder, pixels)| decoder.decode(data, &wanted, pixels).map_err(|e| (e.reason, e.detail)));
            let verdicts = [(); 3].map(|()| verdicts.next().expect("three of them"));
            assert!(verdicts[0] == verdicts[2] && verdicts[1] == verdicts[2], "{verdicts:?}");
            if verdicts[0].is_ok() {
                assert!(rows(&pixels[0]).eq(rows(&pixels[2])) && rows(&pixels[1]).eq(rows(&pixels[2])));
            }
        }
    });
});
