//! Our own JPEG decoder beside libjpeg-turbo: whatever the file, both decoders agree on the verdict, its words, and
//! every sample.

#[path = "../../jpeg_rs/tests/common/encode.rs"]
mod encode;
#[path = "../../jpeg_rs/tests/common/scans.rs"]
mod scans;

use std::sync::Arc;

use encode::{Style, encode};
use navit_packer::failure::Reason;
use navit_packer::pixels::decode::Decoder;
use navit_packer::pixels::picture::{Colours, Depth, Pixels, Wanted};
use navit_packer::slots::Crop;
use proptest::prelude::*;
use turbojpeg_sys as tj;

const SAMPLINGS: [tj::TJSAMP; 7] = [
    tj::TJSAMP_TJSAMP_444,
    tj::TJSAMP_TJSAMP_422,
    tj::TJSAMP_TJSAMP_420,
    tj::TJSAMP_TJSAMP_GRAY,
    tj::TJSAMP_TJSAMP_440,
    tj::TJSAMP_TJSAMP_411,
    tj::TJSAMP_TJSAMP_441,
];

/// The decoders that must agree: the default one, the plain form of our own, and libjpeg-turbo.
struct Decoders {
    all: [Decoder; 3],
    pixels: [Pixels; 3],
}

fn decoders() -> Decoders {
    let all = [Decoder::new(Arc::default()), Decoder::plain(), Decoder::reference()];
    Decoders { all: all.map(|d| d.unwrap_or_else(|e| panic!("{}", e.detail))), pixels: Default::default() }
}

/// What can be seen of a plane: its width, height, scale and samples.
type Shown = (u32, u32, (f64, f64), Vec<u8>);

/// What can be seen of an image, or why there is none.
type Seen = Result<Vec<Shown>, (Reason, String)>;

fn seen(pixels: &Pixels) -> Vec<Shown> {
    let channels = if pixels.colours == Colours::Rgb { 3 } else { 1 };
    let count = if pixels.colours == Colours::Ycc { 3 } else { 1 };
    let planes = pixels.planes[..count].iter();
    planes
        .map(|p| {
            let row = |y: usize| &pixels.data[p.start + y * p.stride..][..p.width as usize * channels];
            (p.width, p.height, p.scale, (0..p.height as usize).flat_map(row).copied().collect())
        })
        .collect()
}

/// What is wanted of a file.
fn wanted(size: (u32, u32), crop: Crop, target: (u32, u32)) -> Wanted {
    Wanted {
        size,
        crop,
        target,
        dct_scaling: true,
        background: [255; 3],
        max_pixels: 1 << 20,
        depth: Depth::Full,
        keep_damaged: false,
        convert: false,
    }
}

impl Decoders {
    /// What all of them say of `data` at the scale 1/`shrink`.
    fn agree(&mut self, data: &[u8], size: (u32, u32), shrink: u32) -> Seen {
        self.agree_with(data, size, shrink, false)
    }

    /// The same, where damaged files are kept or not.
    fn agree_with(&mut self, data: &[u8], (width, height): (u32, u32), shrink: u32, keep_damaged: bool) -> Seen {
        let crop = Crop { top: 0, left: 0, height: height as i32, width: width as i32 };
        let target = ((width / shrink).max(1), (height / shrink).max(1));
        let wanted = Wanted { keep_damaged, ..wanted((width, height), crop, target) };
        let outcomes: Vec<Seen> = (self.all.iter_mut().zip(&mut self.pixels))
            .map(|(decoder, pixels)| match decoder.decode(data, &wanted, pixels) {
                Ok(()) => Ok(seen(pixels)),
                Err(e) => Err((e.reason, e.detail)),
            })
            .collect();
        assert!(
            outcomes.iter().all(|o| *o == outcomes[2]),
            "{:?}",
            outcomes.iter().map(|o| o.as_ref().err()).collect::<Vec<_>>()
        );
        outcomes.into_iter().next().expect("three of them")
    }
}

/// What `tj3Decompress8` makes of a file: R, G, B triples.
fn whole(data: &[u8], (width, height): (usize, usize)) -> Vec<u8> {
    let mut out = vec![0; width * height * 3];
    // SAFETY: the file is valid for its length, and the buffer has room for all of its triples.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as i32);
        let (bytes, size) = (data.as_ptr(), data.len() as _);
        assert_eq!(tj::tj3DecompressHeader(handle, bytes, size), 0);
        assert_eq!(tj::tj3Decompress8(handle, bytes, size, out.as_mut_ptr(), 0, tj::TJPF_TJPF_RGB), 0);
        tj::tj3Destroy(handle);
    }
    out
}

prop_compose! {
    fn style()(
        width in 1usize..150, height in 1usize..120, quality in 1i32..=100, sampling in 0usize..7,
        restart in prop_oneof![2 => Just(0i32), 1 => 1i32..12], optimised: bool, noise in 0u32..256, seed: u64,
    ) -> Style {
        Style { width, height, quality, sampling: SAMPLINGS[sampling], restart, optimised, progressive: false, noise, seed }
    }
}

/// Where the first segment of these codes stands.
fn segment(data: &[u8], codes: std::ops::RangeInclusive<u8>) -> usize {
    let mut at = 2;
    loop {
        // Stray bytes may stand before it.
        at += data[at..].iter().position(|&b| b == 0xFF).expect("a marker");
        if codes.contains(&data[at + 1]) {
            return at;
        }
        at += 2 + usize::from(u16::from_be_bytes([data[at + 2], data[at + 3]]));
    }
}

/// Many files: as many as `PROPTEST_CASES` says, or 2,500.
fn many() -> ProptestConfig {
    let told = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    ProptestConfig::with_cases(told.unwrap_or(2500))
}

/// One thing done to a file: where, what, with which value, and whether near its start.
type Hit = (prop::sample::Index, u8, u8, bool);

fn hits() -> impl Strategy<Value = Vec<Hit>> {
    proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8, any::<u8>(), any::<bool>()), 1..4)
}

/// Damages a file from `from` on.
fn damage(data: &mut Vec<u8>, from: usize, hits: &[Hit]) {
    let scan = segment(data, 0xDA..=0xDA);
    for &(at, kind, value, early) in hits {
        let most = if early && from < scan { scan + 12 } else { data.len() };
        let at = (from + at.index(most - from)).min(data.len() - 1);
        match kind {
            // An end in front of a marker: behind a scan, between restarts, before anything at all.
            7 => {
                let markers = data[at..].windows(2).position(|w| w[0] == 0xFF && !matches!(w[1], 0 | 0xFF));
                data.truncate(at + markers.unwrap_or(0));
                data.extend([0xFF, 0xD9]);
            }
            0 => data[at] = value,
            1 => data[at] ^= 1 << (value % 8),
            2 => data.insert(at, value),
            3 => drop(data.remove(at)),
            4 => data[at] = [0xFF, 0x00, 0xD9, 0xD0, 0xD1, 0xD7, 0x7F, 0x80][usize::from(value % 8)],
            // Divisors so large that everything runs over.
            5 if from == 0 => {
                let end = scan.min(89).min(data.len());
                data[25.min(at).min(end)..end].fill(value | 0xF0);
            }
            _ => data.truncate(at.max(3)),
        }
        if data.len() <= from + 1 {
            break;
        }
    }
}

/// What a file starts with: its first marker, and the JFIF segment.
const JFIF_END: usize = 20;

/// A file with things about it on which no pixel depends, one for each bit of `which`.
fn odd(data: &[u8], which: u8) -> Vec<u8> {
    let mut data = data.to_vec();
    let scan = segment(&data, 0xDA..=0xDA);
    let frame = segment(&data, 0xC0..=0xC2);
    let (sequential, components) = (data[frame + 1] != 0xC2, usize::from(data[frame + 9]));
    if which & 1 != 0 && sequential {
        let body = scan + 5 + 2 * components;
        data[body..body + 3].fill(0);
    }
    if which & 2 != 0 {
        data[11] = 2;
    }
    if which & 4 != 0 && components == 3 {
        data.splice(2..JFIF_END, *b"\xFF\xEE\x00\x0EAdobe\x00\x64\x00\x00\x00\x00\x02");
    }
    // Behind the first segment, whichever it is.
    let place = 4 + usize::from(u16::from_be_bytes([data[4], data[5]]));
    if which & 8 != 0 {
        let part = [&b"\xFF\xE2\x00\x18ICC_PROFILE\x00\x01\x02"[..], &[b'x'; 8]].concat();
        data.splice(place..place, part);
    }
    if which & 16 != 0 {
        data.splice(place..place, [1, 2, 3]);
    }
    if which & 32 != 0 {
        data.splice(place..place, *b"\xFF\xE1\x00\x22Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00");
    }
    data
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn exact_colours_are_those_that_libjpeg_shows(style in style()) {
        let data = encode(&style);
        let mut decoder = Decoder::exact(Arc::default()).unwrap_or_else(|e| panic!("{}", e.detail));
        let (size, mut pixels) = ((style.width, style.height), Pixels::default());
        let crop = Crop { top: 0, left: 0, height: size.1 as i32, width: size.0 as i32 };
        let wanted = wanted((size.0 as u32, size.1 as u32), crop, (1, 1));
        for _ in 0..2 {
            prop_assert!(decoder.decode(&data, &wanted, &mut pixels).is_ok());
            let [(_, _, scale, mut samples)] = <[Shown; 1]>::try_from(seen(&pixels)).expect("a plane");
            prop_assert_eq!(scale, (1.0, 1.0));
            if pixels.colours == Colours::Grey {
                samples = samples.iter().flat_map(|&v| [v; 3]).collect();
            }
            prop_assert!(samples == whole(&data, size));
        }
    }

    #[test]
    fn plain_files_give_the_same_samples(style in style()) {
        let (data, mut decoders) = (encode(&style), decoders());
        for shrink in [1, 2, 4, 8] {
            prop_assert!(decoders.agree(&data, (style.width as u32, style.height as u32), shrink).is_ok());
        }
    }
}

proptest! {
    #![proptest_config(many())]

    #[test]
    fn damage_is_judged_alike(
        style in style(), progressive in prop::bool::weighted(0.2), which in prop_oneof![2 => Just(0), 1 => 0u8..64], hits in hits(),
        shrink in 0u32..4, keep: bool,
    ) {
        let mut data = odd(&encode(&Style { progressive, ..style }), which);
        damage(&mut data, 0, &hits);
        let _ = decoders().agree_with(&data, (style.width as u32, style.height as u32), 1 << shrink, keep);
    }

    #[test]
    fn damaged_scans_of_any_script_are_judged_alike(
        width in 1usize..70, height in 1usize..50, seed: u64, hits in hits(), shrink in 0u32..4, keep: bool,
        y in prop::sample::select(vec![(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)]), grey: bool,
    ) {
        let sampling = if grey { vec![(1, 1)] } else { vec![y, (1, 1), (1, 1)] };
        let (mut data, _) = scans::encode(&scans::Script { width, height, sampling, seed });
        damage(&mut data, 0, &hits);
        let _ = decoders().agree_with(&data, (width as u32, height as u32), 1 << shrink, keep);
    }

    #[test]
    fn what_no_pixel_depends_on_changes_no_verdict(
        style in style(), progressive: bool, which in 1u8..64, hits in prop_oneof![1 => Just(Vec::new()), 4 => hits()],
    ) {
        let plain = encode(&Style { progressive, ..style });
        let behind = |data: &[u8]| {
            let scan = segment(data, 0xDA..=0xDA);
            scan + 2 + usize::from(u16::from_be_bytes([data[scan + 2], data[scan + 3]]))
        };
        let (mut one, mut other) = (plain.clone(), odd(&plain, which));
        damage(&mut one, behind(&plain), &hits);
        other.truncate(behind(&other));
        other.extend_from_slice(&one[behind(&plain)..]);
        let (size, mut decoders) = ((style.width as u32, style.height as u32), decoders());
        prop_assert_eq!(decoders.agree(&one, size, 1), decoders.agree(&other, size, 1));
    }
}

#[test]
fn every_cut_is_judged_alike() {
    let mut decoders = decoders();
    for restart in [0, 2] {
        let style = Style { restart, ..Style::default() };
        let data = encode(&style);
        for n in 2..data.len() {
            assert!(decoders.agree(&data[..n], (style.width as u32, style.height as u32), 1).is_err(), "{n}");
        }
    }
}

/// Where the scans of a file begin.
fn starts(data: &[u8]) -> Vec<usize> {
    (0..data.len() - 1).filter(|&at| data[at..].starts_with(&[0xFF, 0xDA])).collect()
}

#[test]
fn a_file_cut_between_two_scans_is_not_whole() {
    let (mut decoders, style) = (decoders(), Style { progressive: true, noise: 90, ..Style::default() });
    let (data, size) = (encode(&style), (style.width as u32, style.height as u32));
    let found = starts(&data);
    assert!(found.len() > 8);
    for &at in &found {
        let cut = [&data[..at], &[0xFF, 0xD9]].concat();
        for shrink in [1, 8] {
            let said = decoders.agree(&cut, size, shrink).expect_err("scans are missing");
            assert_eq!(said.0, if at == found[0] { said.0 } else { Reason::Truncated }, "{}", said.1);
            // The first scan holds something of every component; before it there is nothing.
            assert_eq!(decoders.agree_with(&cut, size, shrink, true).is_ok(), at != found[0]);
        }
    }
    assert_eq!(decoders.agree_with(&data, size, 1, true), decoders.agree(&data, size, 1));
}

#[test]
fn a_component_without_a_scan_is_never_invented() {
    // Three grey pictures put together as the scans of one file, of which the last is taken away.
    let style = Style { sampling: tj::TJSAMP_TJSAMP_GRAY, ..Style::default() };
    let grey = encode(&style);
    let (frame, scan) = (segment(&grey, 0xC0..=0xC0), segment(&grey, 0xDA..=0xDA));
    let tables = segment(&grey, 0xC4..=0xC4);
    let sides = &grey[frame + 5..frame + 9];
    let head = [&[0xFF, 0xC0, 0, 17, 8][..], sides, &[3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]].concat();
    let data = &grey[scan + 10..grey.len() - 2];
    let file = |parts: &[u8]| {
        let scans = parts.iter().map(|&id| [&[0xFF, 0xDA, 0, 8, 1, id, 0, 0, 63, 0][..], data].concat());
        [&grey[..frame], &head, &grey[tables..scan], &scans.collect::<Vec<_>>().concat(), &[0xFF, 0xD9]].concat()
    };
    let (mut decoders, size) = (decoders(), (style.width as u32, style.height as u32));
    assert!(decoders.agree(&file(&[1, 2, 3]), size, 1).is_ok());
    for parts in [&[1, 2][..], &[1, 3], &[1]] {
        for keep in [false, true] {
            assert_eq!(decoders.agree_with(&file(parts), size, 1, keep).expect_err("grey").0, Reason::Truncated);
        }
    }
}

#[test]
fn damage_is_kept_only_where_nothing_is_missing() {
    let (mut decoders, style) = (decoders(), Style { restart: 2, noise: 60, ..Style::default() });
    let (data, size) = (encode(&style), (style.width as u32, style.height as u32));
    let restarts: Vec<usize> =
        (0..data.len() - 1).filter(|&i| data[i] == 0xFF && matches!(data[i + 1], 0xD0..=0xD7)).collect();
    let whole = decoders.agree(&data, size, 1);
    let mut check = |file: &[u8], kept: Option<bool>| {
        assert!(decoders.agree(file, size, 1).is_err());
        let found = decoders.agree_with(file, size, 1, true);
        assert_eq!(found.is_ok(), kept.is_some());
        // The same pixels, where no coefficient was touched.
        assert!(kept != Some(true) || found == whole);
    };
    let mut stray = data.clone();
    // More of them than libjpeg reads ahead, which it would drop without a word.
    stray.splice(restarts[1]..restarts[1], [0x12; 20]);
    check(&stray, Some(true));
    // A piece that ends early, behind a harmless warning too; a piece less; pieces out of order; no end.
    let mut short = stray.clone();
    short.drain(restarts[2] + 8..restarts[2] + 20);
    check(&short, None);
    let mut less = data.clone();
    less.drain(restarts[1]..restarts[2]);
    check(&less, None);
    let mut order = data.clone();
    order[restarts[1] + 1] = 0xD5;
    check(&order, None);
    check(&stray[..stray.len() - 2], None);
}

#[test]
fn other_kinds_of_files_take_the_other_way() {
    let mut decoders = decoders();
    let plain = Style::default();
    let size = (plain.width as u32, plain.height as u32);
    let encoded = encode(&plain);
    // Stray bytes before the end: a warning that is let pass, so the file is good for either decoder.
    let mut stray = encoded.clone();
    stray.splice(encoded.len() - 2..encoded.len() - 2, [1, 2, 3]);
    let mut trailing = encoded.clone();
    trailing.extend_from_slice(b"a video, say");
    let progressive = encode(&Style { progressive: true, ..plain });
    for file in [encoded, stray, trailing, progressive] {
        assert!(decoders.agree(&file, size, 1).is_ok());
    }
}

#[test]
fn a_decoder_remembers_nothing_of_the_file_before() {
    // More tables than are kept, in turns, and a file without any in between.
    let mut reused = decoders();
    let files: Vec<_> = (0..12)
        .map(|n| {
            let style = Style {
                width: 40 + n,
                seed: n as u64,
                optimised: true,
                quality: 20 + 6 * n as i32,
                ..Style::default()
            };
            ((style.width as u32, style.height as u32), encode(&style))
        })
        .collect();
    for n in 0..60 {
        let (size, data) = &files[n * 7 % files.len()];
        assert_eq!(reused.agree(data, *size, 1), decoders().agree(data, *size, 1));
        let start = data.windows(2).position(|w| w == [0xFF, 0xC4]).expect("tables");
        let scan = segment(data, 0xDA..=0xDA);
        let bare = [&data[..start], &data[scan..]].concat();
        let _ = reused.agree(&bare, *size, 1);
    }
}
