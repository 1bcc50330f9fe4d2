//! Which JPEG decoder is the default, by measurement: our own for plain files, beside libjpeg-turbo, which
//! decodes the others, and zune-jpeg, the fastest in pure Rust that we know. In: JPEG files. Out: milliseconds an image
//! for each, one thread, medians over interleaved rounds.
//!
//! ```text
//! python bench/corpus.py /tmp/corpus --count 60 && cargo run --release -p navit-packer --example jpeg_decoders /tmp/corpus/*/*
//! ```

use std::sync::Arc;
use std::time::Instant;

use navit_packer::pixels::decode::Decoder;
use navit_packer::pixels::picture::{Depth, Pixels, Wanted};
use navit_packer::slots::Crop;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

const ROUNDS: usize = 15;
const SHRINKS: [u32; 4] = [1, 2, 4, 8];

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn zune(data: &[u8], colours: ColorSpace) -> Outcome<((u32, u32), Vec<u8>)> {
    let options = DecoderOptions::default().jpeg_set_out_colorspace(colours);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(data), options);
    let pixels = decoder.decode()?;
    let (width, height) = decoder.dimensions().ok_or("no size")?;
    Ok(((width as u32, height as u32), pixels))
}

fn planes(decoder: &mut Decoder, data: &[u8], size: (u32, u32), shrink: u32, out: &mut Pixels) -> Outcome<()> {
    let crop = Crop { top: 0, left: 0, height: size.1 as i32, width: size.0 as i32 };
    let target = (size.0 / shrink, size.1 / shrink);
    let wanted = Wanted {
        size,
        crop,
        target,
        dct_scaling: true,
        background: [255; 3],
        max_pixels: 1 << 30,
        depth: Depth::Full,
        keep_damaged: false,
        convert: false,
    };
    decoder.decode(data, &wanted, out).map_err(|e| e.detail.into())
}

fn main() -> Outcome<()> {
    let files = std::env::args().skip(1).map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
    if files.is_empty() {
        return Err("name some JPEG files".into());
    }
    let sizes = files.iter().map(|f| Ok(zune(f, ColorSpace::RGB)?.0)).collect::<Outcome<Vec<_>>>()?;
    let mut own = Decoder::new(Arc::default()).map_err(|e| e.detail)?;
    let mut turbo = Decoder::reference().map_err(|e| e.detail)?;
    let mut pixels = Pixels::default();
    let mut names = vec!["zune-jpeg to RGB".to_owned(), "zune-jpeg to Y, Cb, Cr".to_owned()];
    for shrink in SHRINKS {
        names.extend(["libjpeg-turbo", "our own"].map(|decoder| format!("{decoder} to planes at 1/{shrink}")));
    }
    let mut times = vec![Vec::new(); names.len()];
    for _ in 0..ROUNDS {
        for (which, times) in times.iter_mut().enumerate() {
            let start = Instant::now();
            for (data, &size) in files.iter().zip(&sizes) {
                match which {
                    0 => drop(zune(data, ColorSpace::RGB)?),
                    1 => drop(zune(data, ColorSpace::YCbCr)?),
                    n => {
                        let decoder = if n % 2 == 0 { &mut turbo } else { &mut own };
                        planes(decoder, data, size, SHRINKS[n / 2 - 1], &mut pixels)?;
                    }
                }
            }
            times.push(start.elapsed().as_secs_f64() * 1e3 / files.len() as f64);
        }
    }
    for (name, mut times) in names.into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        println!("{name:<32} {:7.3} ms an image", times[ROUNDS / 2]);
    }
    Ok(())
}
