//! What the tests of rendering share: JPEG files, an index of them, plans.

#[path = "../../../jpeg_rs/tests/common/encode.rs"]
pub mod encode;

use encode::{Style, encode};
use navit_packer::columns::{Captions, Column, Locations, StringColumn};
use navit_packer::fetch::Source;
use navit_packer::render::RenderSettings;
use navit_packer::slots::{BatchLimits, Crop, Grid, PlannedBatch, PlannedImage, TargetLimits, ViewLimits};

/// A JPEG of a smooth pattern, `width` × `height`, 4:2:0.
pub fn jpeg(width: usize, height: usize, seed: usize) -> Vec<u8> {
    encode(&Style { width, height, seed: seed as u64, ..Style::default() })
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
        container_length: Column::from_vec(Vec::new()),
        check: Column::from_vec(Vec::new()),
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
        warps: false,
        targets: TargetLimits::default(),
    }
}

pub fn settings(threads: usize, fetch_threads: usize) -> RenderSettings {
    RenderSettings::from_json(&format!(
        r#"{{"threads":{threads},"fetch_threads":{fetch_threads},"prefetch":4,"memory_mb":256,"filter":"bicubic",
        "dct_scaling":true,"background":[255,255,255],"max_pixels":178956970,"depth":"full","profiles":"ignore","damaged":"mask","retries":3,"ledger":"",
        "failure_limit":0.2,"cache_dir":"","cache_gb":0.0}}"#
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
    PlannedBatch {
        epoch: 0,
        first: 0,
        position: 0,
        patch_size: 16,
        batch_size: 1,
        sequences: vec![images.collect()],
        warps: Vec::new(),
    }
}
