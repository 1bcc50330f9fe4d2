//! The short way of usual PNG files beside the crate `png`: whatever the file, the same verdict, the same words, the same
//! pixels.

#[path = "common/agree.rs"]
mod agree;

use agree::agree;
use png::{BitDepth, ColorType, Filter};
use proptest::prelude::*;

/// How a file is written.
#[derive(Clone, Debug)]
struct Style {
    width: u32,
    height: u32,
    colours: ColorType,
    depth: BitDepth,
    filter: Filter,
    /// Bytes of a data chunk; 0: one chunk.
    chunk: usize,
    text: bool,
    noise: u8,
    seed: u64,
}

fn style() -> impl Strategy<Value = Style> {
    let colours =
        prop::sample::select(vec![ColorType::Grayscale, ColorType::Rgb, ColorType::GrayscaleAlpha, ColorType::Rgba]);
    let filter = prop::sample::select(vec![
        Filter::NoFilter,
        Filter::Sub,
        Filter::Up,
        Filter::Avg,
        Filter::Paeth,
        Filter::Adaptive,
    ]);
    let depth = prop_oneof![4 => Just(BitDepth::Eight), 1 => Just(BitDepth::Sixteen)];
    let chunk = prop_oneof![1 => Just(0usize), 1 => 1usize..200];
    (1u32..70, 1u32..50, colours, depth, filter, chunk, any::<bool>(), any::<u8>(), any::<u64>()).prop_map(
        |(width, height, colours, depth, filter, chunk, text, noise, seed)| Style {
            width,
            height,
            colours,
            depth,
            filter,
            chunk,
            text,
            noise,
            seed,
        },
    )
}

fn chunk(kind: &[u8], body: &[u8]) -> Vec<u8> {
    let named = [kind, body].concat();
    [&(body.len() as u32).to_be_bytes()[..], &named, &crc32fast::hash(&named).to_be_bytes()].concat()
}

fn encode(style: &Style) -> Vec<u8> {
    let bytes = style.colours.samples() * if style.depth == BitDepth::Sixteen { 2 } else { 1 };
    let line = style.width as usize * bytes;
    let mut state = style.seed;
    let pixels: Vec<u8> = (0..line * style.height as usize)
        .map(|n| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let noise = if style.noise == 0 { 0 } else { (state >> 40) as u8 % style.noise };
            ((n % line / bytes * 3 + n / line * 5) as u8).wrapping_add(noise)
        })
        .collect();
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, style.width, style.height);
    encoder.set_color(style.colours);
    encoder.set_depth(style.depth);
    encoder.set_filter(style.filter);
    encoder.write_header().expect("a header").write_image_data(&pixels).expect("an image");
    if style.text {
        out.splice(33..33, [chunk(b"tEXt", b"Title\0a"), chunk(b"pHYs", &[0; 9])].concat());
    }
    if style.chunk > 0 {
        let first = data(&out);
        let mut packed = Vec::new();
        let mut at = first;
        while &out[at + 4..at + 8] == b"IDAT" {
            let length = length(&out, at);
            packed.extend_from_slice(&out[at + 8..at + 8 + length]);
            at += 12 + length;
        }
        let parts: Vec<u8> = packed.chunks(style.chunk).flat_map(|part| chunk(b"IDAT", part)).collect();
        out.splice(first..at, parts);
    }
    out
}

fn length(file: &[u8], at: usize) -> usize {
    u32::from_be_bytes(file[at..at + 4].try_into().expect("four bytes")) as usize
}

/// Where the first data chunk begins.
fn data(file: &[u8]) -> usize {
    let mut at = 8;
    while &file[at + 4..at + 8] != b"IDAT" {
        at += 12 + length(file, at);
    }
    at
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whole_files_give_the_same_pixels(style in style()) {
        prop_assert!(agree(&encode(&style), (style.width, style.height)).is_ok());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn damage_is_judged_alike(
        style in style(), hits in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..7, any::<u8>()), 1..4), mend: bool,
    ) {
        let mut file = encode(&style);
        for (at, kind, value) in hits {
            let at = at.index(file.len());
            match kind {
                0 => file[at] = value,
                1 => file[at] ^= 1 << (value % 8),
                2 => file.insert(at, value),
                3 => drop(file.remove(at)),
                4 => file.truncate(at.max(9)),
                // A chunk more, before the data or behind them.
                5 => {
                    let kinds = [&b"IDAT"[..], b"tRNS", b"gAMA", b"pHYs", b"IHDR", b"PLTE", b"sBIT", b"acTL", b"tEXt", b"IEND"];
                    let kind = kinds[usize::from(value) % kinds.len()];
                    let place = if file.len() < 60 { 8 } else if value & 16 == 0 { 33 } else { file.len() - 12 };
                    file.splice(place..place, chunk(kind, &[0; 9][..usize::from(value % 10)]));
                }
                _ => file.extend_from_slice(b"behind it"),
            }
        }
        if mend {
            // Sums are made right again, so that what is wrong is seen further in.
            let mut at = 8;
            while at + 12 <= file.len() && at + 12 + length(&file, at) <= file.len() {
                let end = at + 8 + length(&file, at);
                let sum = crc32fast::hash(&file[at + 4..end]).to_be_bytes();
                file[end..end + 4].copy_from_slice(&sum);
                at = end + 4;
            }
        }
        let _ = agree(&file, (style.width, style.height));
    }
}
