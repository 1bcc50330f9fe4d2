//! Any bytes, decoded and resized as the header probe says they should be: no crash, no hang, no read beyond a buffer.
#![no_main]

use std::cell::RefCell;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use navit_packer::fetch::window::Window;
use navit_packer::pixels::decode::Decoder;
use navit_packer::pixels::decode::foreign::Helpers;
use navit_packer::pixels::orient::Frame;
use navit_packer::pixels::picture::{Depth, Pixels, Wanted};
use navit_packer::pixels::resize::{Resizer, Small};
use navit_packer::pixels::taps::Filter;
use navit_packer::probe::probe_header;
use navit_packer::slots::Crop;

thread_local! {
    static TOOLS: RefCell<(Option<Decoder>, Pixels, Resizer, Small)> = RefCell::default();
}

fuzz_target!(|data: &[u8]| {
    let Ok(header) = probe_header(&mut Window::new(data, 0, data.len() as u64, &mut Vec::new()), &Helpers::default())
    else {
        return;
    };
    let (width, height) = Frame::new(header.orientation).swapped((header.width, header.height));
    TOOLS.with_borrow_mut(|(decoder, pixels, resizer, small)| {
        let decoder = decoder.get_or_insert_with(|| Decoder::new(Arc::default()).expect("memory for a decoder"));
        let crop = Crop { top: 0, left: 0, height, width };
        for (target, dct_scaling) in [((32, 16), true), ((16, 48), false)] {
            let wanted = Wanted {
                size: (width as u32, height as u32),
                crop,
                target,
                dct_scaling,
                background: [255; 3],
                max_pixels: 1 << 20,
                depth: Depth::Full,
                keep_damaged: false,
                convert: false,
            };
            if decoder.decode(data, &wanted, pixels).is_ok() {
                decoder.profile();
                resizer.resize(pixels, crop, target, Filter::Bicubic, small);
            }
        }
    });
});
