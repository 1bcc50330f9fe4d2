//! Any bytes as a WebP or AVIF file: verdict and samples do not depend on what the buffers held before. With
//! `CFLAGS=-fsanitize=address` libwebp and dav1d themselves are watched.
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
    static TOOLS: RefCell<(Option<Decoder>, Pixels)> = RefCell::default();
}

fn samples(pixels: &Pixels) -> Vec<u8> {
    let (count, channels) = match pixels.colours {
        Colours::Ycc | Colours::Yuv(_) => (3, 1),
        Colours::Rgb => (1, 3),
        Colours::Grey => (1, 1),
    };
    let rows = pixels.planes[..count].iter().flat_map(|p| (0..p.height as usize).map(move |y| (p, y)));
    rows.flat_map(|(p, y)| pixels.data[p.start + y * p.stride..][..p.width as usize * channels].to_vec()).collect()
}

fuzz_target!(|data: &[u8]| {
    let webp = data.starts_with(b"RIFF") && data.get(8..12) == Some(b"WEBP");
    if !webp && data.get(4..8) != Some(b"ftyp") {
        return;
    }
    let Ok(header) = probe_header(&mut Window::new(data, 0, data.len() as u64, &mut Vec::new()), &Helpers::default())
    else {
        return;
    };
    let (width, height) = Frame::new(header.orientation).swapped((header.width, header.height));
    let wanted = Wanted {
        size: (width as u32, height as u32),
        crop: Crop { top: 0, left: 0, height, width },
        target: (16, 16),
        dct_scaling: true,
        background: [10, 200, 30],
        max_pixels: 1 << 20,
        depth: Depth::Full,
        convert: false,
        keep_damaged: false,
    };
    TOOLS.with_borrow_mut(|(decoder, pixels)| {
        let decoder = decoder.get_or_insert_with(|| Decoder::new(Arc::default()).expect("memory for a decoder"));
        let [first, second] = [0, 0xFF].map(|before| {
            pixels.data.fill(before);
            let verdict = decoder.decode(data, &wanted, pixels).map_err(|e| (e.reason, e.detail));
            verdict.map(|()| samples(pixels))
        });
        assert!(first == second, "{:?} {:?}", first.err(), second.err());
    });
});
