//! What the tests of rendering share: JPEG files, an index of them, plans.

use navit_packer::columns::{Captions, Column, Locations, StringColumn};
use navit_packer::fetch::Source;
use navit_packer::render::RenderSettings;
use navit_packer::slots::{BatchLimits, Crop, Grid, PlannedBatch, PlannedImage, ViewLimits};
use turbojpeg_sys as tj;

/// How a JPEG file is written.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub width: usize,
    pub height: usize,
    pub quality: i32,
    pub sampling: tj::TJSAMP,
    /// MCUs between restart markers, 0 for none.
    pub restart: i32,
    pub optimised: bool,
    pub progressive: bool,
    /// How far a pixel may be from the smooth pattern.
    pub noise: u32,
    pub seed: u64,
}

impl Default for Style {
    fn default() -> Self {
        let sampling = tj::TJSAMP_TJSAMP_420;
        Self {
            width: 61,
            height: 45,
            quality: 90,
            sampling,
            restart: 0,
            optimised: false,
            progressive: false,
            noise: 0,
            seed: 0,
        }
    }
}

/// A JPEG of a smooth pattern, `width` × `height`, 4:2:0.
pub fn jpeg(width: usize, height: usize, seed: usize) -> Vec<u8> {
    encode(&Style { width, height, seed: seed as u64, ..Style::default() })
}

/// A JPEG of a smooth pattern with noise.
pub fn encode(style: &Style) -> Vec<u8> {
    let (width, height, seed) = (style.width, style.height, style.seed as usize);
    let mut state = style.seed;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if style.noise == 0 { 0 } else { (state >> 40) as usize % style.noise as usize }
    };
    let pixels: Vec<u8> = (0..width * height)
        .flat_map(|i| {
            let (x, y) = (i % width, i / width);
            let seed = seed % 1000;
            [x * 3 + seed, y * 5 + seed * 7, (x + y) * 2 + seed * 31].map(|v| ((v + noise()) % 256) as u8)
        })
        .collect();
    let (mut out, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the pixels have the size that is passed; the buffer is allocated by the library and freed below.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as i32);
        for (name, value) in [
            (tj::TJPARAM_TJPARAM_QUALITY, style.quality),
            (tj::TJPARAM_TJPARAM_SUBSAMP, style.sampling as i32),
            (tj::TJPARAM_TJPARAM_RESTARTBLOCKS, style.restart),
            (tj::TJPARAM_TJPARAM_OPTIMIZE, i32::from(style.optimised)),
            (tj::TJPARAM_TJPARAM_PROGRESSIVE, i32::from(style.progressive)),
        ] {
            assert_eq!(tj::tj3Set(handle, name as i32, value), 0);
        }
        let format = tj::TJPF_TJPF_RGB;
        let code =
            tj::tj3Compress8(handle, pixels.as_ptr(), width as i32, 0, height as i32, format, &mut out, &mut size);
        assert_eq!(code, 0);
        let bytes = std::slice::from_raw_parts(out, size as usize).to_vec();
        tj::tj3Free(out.cast());
        tj::tj3Destroy(handle);
        bytes
    }
}

/// An index of files in `folder`, which ends in `/`: name, width, height and length of each.
pub fn index(folder: &str, files: &[(String, i32, i32, i64)]) -> Source {
    let rows = files.len();
    let names: Vec<&str> = files.iter().map(|f| f.0.as_str()).collect();
    let locations = Locations {
        shard: Column::from_vec(vec![0; rows]),
        shards: vec![folder.into()],
        name: StringColumn::from_strings(&names),
        offset: Column::from_vec(vec![0; rows]),
        length: Column::from_vec(files.iter().map(|f| f.3).collect()),
        orientation: Column::from_vec((0..rows).map(|n| [1u8, 3][n % 2]).collect()),
        labels: Column::from_vec((0..rows as i64).collect()),
        label_width: 1,
    };
    let width = Column::from_vec(files.iter().map(|f| f.1).collect());
    let height = Column::from_vec(files.iter().map(|f| f.2).collect());
    Source::new(width, height, locations, Captions::None)
}

pub fn limits() -> BatchLimits {
    BatchLimits {
        view: ViewLimits { sequence_length: 1024, max_tokens: 64, prefix_tokens: 1 },
        teacher: None,
        max_images: 64,
        label_width: 1,
        text_tokens: 0,
        max_text_tokens: 0,
    }
}

pub fn settings(threads: usize, fetch_threads: usize) -> RenderSettings {
    RenderSettings::from_json(&format!(
        r#"{{"threads":{threads},"fetch_threads":{fetch_threads},"prefetch":4,"memory_mb":256,"filter":"bicubic",
        "dct_scaling":true,"background":[255,255,255],"max_pixels":178956970,"retries":3,"ledger":"",
        "failure_limit":0.2}}"#
    ))
    .expect("good settings")
}

/// One sequence of `count` images, rows in turn, each with 3 × 4 patches of which nine are kept.
pub fn plan(count: usize, files: &[(String, i32, i32, i64)]) -> PlannedBatch {
    let images = (0..count).map(|n| {
        let row = n % files.len();
        PlannedImage {
            row: row as u64,
            key: n as u64,
            crop: Crop { top: 0, left: 0, height: files[row].2, width: files[row].1 },
            offset: 10 * n as u32,
            kept: 9,
            grid: Grid { h: 3, w: 4 },
            flip: n % 3 == 0,
            ..PlannedImage::default()
        }
    });
    PlannedBatch { epoch: 0, first: 0, patch_size: 16, batch_size: 1, sequences: vec![images.collect()] }
}
