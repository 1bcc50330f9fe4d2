//! Invariants of the header probe: no bytes make it panic, a window shows the same wherever an image lies, and what a
//! tar scan returns lies inside the tar.

use navit_packer::fetch::window::{ReadAt, Window};
use navit_packer::pixels::decode::foreign::Helpers;
use navit_packer::pixels::format::Format;
use navit_packer::probe::{Outcome, Payload, probe_files, probe_header, scan_tar};
use proptest::prelude::*;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

fn chunk(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], kind, body, &[0; 4]].concat()
}

fn exif(orientation: u8) -> Vec<u8> {
    [&b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..], &[orientation, 0, 0, 0, 0, 0, 0, 0]].concat()
}

/// A PNG by its chunks alone, with `pixels` bytes in IDAT chunks of at most `cut`, and EXIF behind them.
fn png(width: u32, height: u32, orientation: u8, pixels: usize, cut: usize) -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    out.extend(chunk(b"IHDR", &[&width.to_be_bytes()[..], &height.to_be_bytes()[..], &[8, 2, 0, 0, 0]].concat()));
    for part in vec![7u8; pixels.max(1)].chunks(cut) {
        out.extend(chunk(b"IDAT", part));
    }
    out.extend(chunk(b"eXIf", &exif(orientation)));
    out.extend(chunk(b"IEND", &[]));
    out
}

fn octal(field: &mut [u8], value: u64) {
    let digits = format!("{value:0width$o}\0", width = field.len() - 1);
    field.copy_from_slice(digits.as_bytes());
}

fn member(name: &str, content: &[u8]) -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    octal(&mut block[124..136], content.len() as u64);
    block[148..156].fill(b' ');
    block[156] = b'0';
    block[257..263].copy_from_slice(b"ustar\0");
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    octal(&mut block[148..155], sum);
    let mut out = [&block[..], content].concat();
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// A file of its own for each case, gone with the guard.
struct Scratch(PathBuf);

impl Scratch {
    fn new(content: &[u8]) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("navit-probe-{}-{number}", std::process::id()));
        std::fs::write(&path, content).expect("the temporary folder is writable");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn probe(bytes: &[u8]) -> Result<(i32, i32, u8, Format), String> {
    let mut buffer = Vec::new();
    probe_header(&mut Window::new(bytes, 0, bytes.len() as u64, &mut buffer), &Helpers::default())
        .map(|h| (h.width, h.height, h.orientation, h.format))
}

/// Counts reads, to show that pixels are jumped over.
struct Counting<'a>(&'a [u8], AtomicUsize);

impl ReadAt for Counting<'_> {
    fn read_at(&self, into: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.1.fetch_add(into.len(), Ordering::Relaxed);
        self.0.read_at(into, offset)
    }
}

#[test]
fn pixels_are_jumped_over() {
    let whole = png(300, 200, 6, 4_000_000, 1 << 20);
    let counting = Counting(&whole, AtomicUsize::new(0));
    let mut buffer = Vec::new();
    let found = probe_header(&mut Window::new(&counting, 0, whole.len() as u64, &mut buffer), &Helpers::default());
    assert_eq!(found.map(|h| (h.width, h.height)), Ok((200, 300)));
    assert!(counting.1.load(Ordering::Relaxed) < 8_000);
}

const STARTS: &[&[u8]] = &[
    b"",
    b"\xFF\xD8\xFF",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\x20\0\0\0WEBPVP8X",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0\x08\0\0\0",
    b"MM\0+\0\x08\0\0",
];

proptest! {
    #[test]
    fn any_bytes_give_a_size_or_a_reason(
        start in prop::sample::select(STARTS),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = [start, &rest].concat();
        match probe(&bytes) {
            Ok((width, height, orientation, _)) => {
                prop_assert!(width > 0 && height > 0 && (1..=8).contains(&orientation));
            }
            Err(reason) => prop_assert!(!reason.is_empty()),
        }
    }

    #[test]
    fn every_cut_of_a_png_is_noticed(w in 1u32..5000, h in 1u32..5000, o in 1u8..=8, pixels in 1usize..20_000, cut in 1usize..9000) {
        let whole = png(w, h, o, pixels, cut);
        let (w, h) = if o >= 5 { (h, w) } else { (w, h) };
        prop_assert_eq!(probe(&whole), Ok((w as i32, h as i32, o, Format::Png)));
        // Nothing is read behind the name of the last chunk: its checksum may be missing.
        let last = whole.len() - 5;
        prop_assert!(probe(&whole[..last]).is_err());
        prop_assert!(probe(&whole[..last.min(whole.len() * cut / 9000)]).is_err());
    }

    #[test]
    fn an_image_reads_the_same_anywhere(before in 0usize..5000, pixels in 1usize..9000, o in 1u8..=8) {
        let whole = png(31, 17, o, pixels, 4096);
        let mut bytes = vec![0xFF; before];
        bytes.extend(&whole);
        bytes.extend([0xFF; 100]);
        let mut buffer = Vec::new();
        let within = probe_header(&mut Window::new(&bytes[..], before as u64, whole.len() as u64, &mut buffer), &Helpers::default());
        prop_assert_eq!(within.map(|h| (h.width, h.height, h.orientation, h.format)), probe(&whole));
    }

    #[test]
    fn a_tar_gives_back_its_members(sizes in prop::collection::vec((1u32..900, 0usize..2000, 0usize..700), 1..8), damage in any::<(u16, u8)>(), cut in any::<u16>()) {
        let mut tar = Vec::new();
        let mut expected = Vec::new();
        for (i, &(width, pixels, text)) in sizes.iter().enumerate() {
            let (image, label) = (png(width, 9, 1, pixels, 500), vec![b'x'; text]);
            expected.push((format!("a/{i}.PNG"), image.len()));
            expected.push((format!("a/{i}.cls"), text));
            tar.extend(member(&format!("a/{i}.PNG"), &image));
            tar.extend(member(&format!("a/{i}.cls"), &label));
            tar.extend(member(&format!("a/{i}.npy"), b"other"));
        }
        tar.resize(tar.len() + 1024, 0);
        let file = Scratch::new(&tar);
        let scan = scan_tar(&file.0, &[b"png"], &[b"cls"], &Helpers::default());
        prop_assert_eq!(&scan.fault, &None);
        prop_assert_eq!(scan.others.values().map(|(count, _)| count).sum::<u64>(), sizes.len() as u64);
        let found: Vec<_> = scan.entries.iter().map(|e| (String::from_utf8_lossy(&e.name).into_owned(), e.length as usize)).collect();
        prop_assert_eq!(found, expected);
        for entry in &scan.entries {
            let content = &tar[entry.offset as usize..][..entry.length as usize];
            match &entry.payload {
                Payload::Image(header) => {
                    prop_assert_eq!(header.clone().map(|h| (h.width, h.height, h.orientation, h.format)), probe(content));
                }
                Payload::Text(text) => prop_assert_eq!(text.as_deref(), Ok(content)),
            }
        }
        // Damaged and cut, it still ends, and nothing points outside.
        let (at, to) = damage;
        let at = usize::from(at) % tar.len();
        tar[at] = to;
        tar.truncate(tar.len() - usize::from(cut) % tar.len());
        let file = Scratch::new(&tar);
        for entry in scan_tar(&file.0, &[b"png"], &[b"cls"], &Helpers::default()).entries {
            prop_assert!(entry.offset + entry.length <= tar.len() as u64);
        }
    }
}

#[test]
fn files_are_probed_in_order_on_any_number_of_threads() {
    let files: Vec<_> = (1..200u32).map(|i| Scratch::new(&png(i, 3, 1, 10, 10))).collect();
    let names: Vec<&[u8]> = files.iter().map(|f| f.0.as_os_str().as_encoded_bytes()).collect();
    let probed = |threads| {
        probe_files(b"", &names, &[], NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN), &Helpers::default())
    };
    let one = probed(1);
    for (i, file) in one.iter().enumerate() {
        assert!(matches!(&file.outcome, Outcome::Image(h) if h.width == i as i32 + 1), "{file:?}");
    }
    assert_eq!(one, probed(3));
    let known: Vec<_> = one.iter().map(|f| (f.length, f.mtime_ns)).collect();
    let again = probe_files(b"", &names, &known, NonZeroUsize::MIN, &Helpers::default());
    assert!(again.iter().all(|f| f.outcome == Outcome::Unchanged));
}
