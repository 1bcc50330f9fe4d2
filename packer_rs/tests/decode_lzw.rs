//! The short way of usual TIFF files of LZW beside the crate `tiff`: whatever the file, the same verdict, the same words, the
//! same pixels.

#[path = "common/agree.rs"]
mod agree;

use std::io::Cursor;

use agree::agree;
use proptest::prelude::*;
use tiff::encoder::{Compression, Predictor, TiffEncoder, colortype};
use tiff::tags::Tag;

/// How a file is written.
#[derive(Clone, Debug)]
struct Style {
    width: u32,
    height: u32,
    channels: usize,
    /// What a fourth sample is: nothing, premultiplied alpha, alpha.
    extra: u16,
    big: bool,
    rows: u32,
    differences: bool,
    noise: u8,
    seed: u64,
    described: bool,
}

fn style() -> impl Strategy<Value = Style> {
    let noise = prop_oneof![Just(0u8), Just(2), any::<u8>()];
    let channels = prop_oneof![Just((1usize, 0u16)), Just((3, 0)), (0u16..3).prop_map(|extra| (4, extra))];
    (1u32..90, 1u32..70, channels, any::<bool>(), 1u32..80, any::<bool>(), noise, any::<u64>(), any::<bool>()).prop_map(
        |(width, height, (channels, extra), big, rows, differences, noise, seed, described)| Style {
            width,
            height,
            channels,
            extra,
            big,
            rows,
            differences,
            noise,
            seed,
            described,
        },
    )
}

fn encode(style: &Style) -> Vec<u8> {
    let channels = style.channels;
    let line = style.width as usize * channels;
    let mut state = style.seed;
    let pixels: Vec<u8> = (0..line * style.height as usize)
        .map(|n| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let noise = if style.noise == 0 { 0 } else { (state >> 40) as u8 % style.noise };
            ((n % line / channels / 4 + n / line / 3) as u8).wrapping_add(noise)
        })
        .collect();
    let mut out = Cursor::new(Vec::new());
    let predictor = if style.differences { Predictor::Horizontal } else { Predictor::None };
    macro_rules! write {
        ($encoder:expr, $colour:ty) => {{
            let encoder = $encoder.expect("memory").with_compression(Compression::Lzw).with_predictor(predictor);
            let mut encoder = encoder;
            let mut image = encoder.new_image::<$colour>(style.width, style.height).expect("a header");
            image.rows_per_strip(style.rows).expect("a number of rows");
            if channels == 4 {
                image.encoder().write_tag(Tag::ExtraSamples, style.extra).expect("a tag");
            }
            if style.described {
                image.encoder().write_tag(Tag::ImageDescription, "described").expect("a tag");
            }
            image.write_data(&pixels).expect("an image");
        }};
    }
    match (style.big, channels) {
        (false, 1) => write!(TiffEncoder::new(&mut out), colortype::Gray8),
        (false, 3) => write!(TiffEncoder::new(&mut out), colortype::RGB8),
        (false, _) => write!(TiffEncoder::new(&mut out), colortype::RGBA8),
        (true, 1) => write!(TiffEncoder::new_big(&mut out), colortype::Gray8),
        (true, 3) => write!(TiffEncoder::new_big(&mut out), colortype::RGB8),
        (true, _) => write!(TiffEncoder::new_big(&mut out), colortype::RGBA8),
    }
    out.into_inner()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(700))]

    #[test]
    fn whole_files_give_the_same_pixels(style in style()) {
        let seen = agree(&encode(&style), (style.width, style.height));
        prop_assert!(seen.is_ok() || style.channels == 4, "{:?}", seen);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn damage_is_judged_alike(
        style in style(), hits in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..5, any::<u8>()), 1..4),
    ) {
        let mut file = encode(&style);
        for (at, kind, value) in hits {
            let at = at.index(file.len());
            match kind {
                0 => file[at] = value,
                1 => file[at] ^= 1 << (value % 8),
                2 => file.insert(at, value),
                3 => drop(file.remove(at)),
                _ => file.truncate(at.max(9)),
            }
        }
        let _ = agree(&file, (style.width, style.height));
    }
}
