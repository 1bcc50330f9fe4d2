//! Any bytes as an image's header: no crash, no hang, and what is found is a size that an index can hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use navit_packer::fetch::window::Window;
use navit_packer::pixels::decode::foreign::Helpers;
use navit_packer::probe::probe_header;

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = probe_header(&mut Window::new(data, 0, data.len() as u64, &mut Vec::new()), &Helpers::default())
    {
        assert!(header.width >= 1 && header.height >= 1 && (1..=8).contains(&header.orientation));
    }
});
