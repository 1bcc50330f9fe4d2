//! A fixed plan against a stored digest, on every processor that the tests run on: an x86 daemon and an Arm trainer
//! must plan the same. In: a configuration that uses each kind of draw. Out: one number over every field of every
//! image.
//!
//! `make test-aarch64` runs it on an emulated Arm processor, as CI does. A change of order, draws or packing
//! changes the digest: raise `PLAN_VERSION` in `navit_loader/plan/identity.py` along with it.

use std::sync::Arc;

use navit_packer::columns::{Column, Sizes};
use navit_packer::plan::Plan;
use navit_packer::plan::config::PlanConfig;
use navit_packer::plan::streams::Stream;

/// Everything drawn: a mixture, two patch sizes, crops, flips, beta drop on a schedule, a teacher's view.
const BETA: &str = r#"{
    "seed": 11, "sequence_length": 256, "max_images": 24, "max_tokens": 100, "max_grid": 32, "prefix_tokens": 1,
    "patch_sizes": [12, 16], "patch_weights": [2.0, 1.0], "patch_run": 9, "packing": "auto", "lookahead": 24,
    "fit": "resolution", "block_images": 700, "virtual_epoch": 2400, "text_tokens": 0, "max_text_tokens": 0, "filter": "",
    "class_weights": {},
    "order": {"kind": "permutation", "block": 64, "window": 4},
    "resolution": {"kind": "truncated_normal", "unit": "side", "low": 48, "high": 200, "mean": -0.5, "std": 1.0,
        "upscale": false},
    "drop": {"kind": "beta", "rate": 0.5, "min_rate": 0.2, "max_rate": 0.9, "std": 0.02, "keep_whole": 0.1,
        "schedule": {"kind": "sigmoid", "start": 0.7, "end": 0.3, "images": 1, "midpoint": 2000.0, "width": 700.0}},
    "crop": {"kind": "random_resized", "scale": [0.2, 1.0], "ratio": [0.75, 1.3333333333333333], "flip": 0.5},
    "teacher": {"patch_size": 14, "sequence_length": 900, "max_tokens": 200, "prefix_tokens": 2}
}"#;

/// What `BETA` leaves out: blocks, areas, resolution-dependent drop, captions, packing over whole blocks.
const DEPENDENT: &str = r#"{
    "seed": 12, "sequence_length": 200, "max_images": 9, "max_tokens": 144, "max_grid": 32, "prefix_tokens": 0,
    "patch_sizes": [16], "patch_weights": [], "patch_run": 256, "packing": "best_fit_decreasing", "lookahead": 32,
    "fit": "none", "block_images": 1000, "virtual_epoch": 0, "text_tokens": 60, "max_text_tokens": 0, "filter": "", "class_weights": {},
    "order": {"kind": "blocks", "block": 32, "window": 4},
    "resolution": {"kind": "uniform", "unit": "area", "low": 48, "high": 192, "mean": 0.0, "std": 1.0,
        "upscale": true},
    "drop": {"kind": "resolution_dependent", "rate": 0.5, "min_rate": 0.1, "max_rate": 0.6, "std": 0.05,
        "keep_whole": 0.0, "schedule": {"kind": "constant", "start": 0.8, "end": 0.2, "images": 1, "midpoint": 0.0,
        "width": 1.0}},
    "crop": {"kind": "none", "scale": [0.08, 1.0], "ratio": [0.75, 1.3333333333333333], "flip": 0.0},
    "teacher": null
}"#;

/// Sizes between 32 and about 700 pixels, captions below 50 tokens, from integers alone.
fn sizes(n: u64, seed: u64) -> Arc<Sizes> {
    let column = |salt: u64, low: u64, span: u64| {
        let value = |i: u64| {
            let mixed = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed.wrapping_mul(salt));
            (low + (mixed ^ (mixed >> 31)).wrapping_mul(0xD6E8_FEB8_6659_FD93) % span) as i32
        };
        Column::from_vec((0..n).map(value).collect())
    };
    Arc::new(Sizes {
        path: String::new(),
        width: column(3, 32, 700),
        height: column(5, 32, 600),
        caption_tokens: column(7, 0, 50),
        box_count: Column::from_vec(Vec::new()),
    })
}

/// FNV-1a, 64 bits, over the little-endian bytes of each number.
struct Fnv(u64);

impl Fnv {
    fn add(&mut self, value: u64) {
        for byte in value.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }
}

fn digest(config: &str, rows: &[u64], weights: &[f64]) -> u64 {
    let config: PlanConfig = serde_json::from_str(config).expect("a configuration");
    let sources: Vec<_> = (1..).zip(rows).map(|(seed, &n)| sizes(n, seed)).collect();
    let stream = |(i, (&len, &weight))| Stream { source: i as u16, rows: None, len, weight };
    let streams = rows.iter().zip(weights).enumerate().map(stream).collect();
    let plan = Plan::new(config, sources, streams).expect("a plan");
    let mut hash = Fnv(0xCBF2_9CE4_8422_2325);
    for (epoch, block) in (0..2).flat_map(|e| (0..plan.num_blocks()).map(move |b| (e, b))) {
        let planned = plan.block(epoch, block).expect("a block");
        planned.starts.iter().chain(&planned.patch_sizes).for_each(|&n| hash.add(u64::from(n)));
        for i in &planned.images {
            [i.row, i.key].into_iter().for_each(|n| hash.add(n));
            [i.crop.top, i.crop.left, i.crop.height, i.crop.width].into_iter().for_each(|n| hash.add(n as u64));
            [i.offset, i.kept, i.teacher_offset, i.text_offset].into_iter().for_each(|n| hash.add(u64::from(n)));
            [i.grid.h, i.grid.w, i.teacher_grid.h, i.teacher_grid.w, i.source, u16::from(i.flip)]
                .into_iter()
                .for_each(|n| hash.add(u64::from(n)));
        }
        for warp in &planned.warps {
            warp.map.iter().for_each(|v| hash.add(u64::from(v.to_bits())));
            hash.add(u64::from(warp.layers));
        }
    }
    hash.0
}

#[test]
fn every_processor_plans_the_same() {
    assert_eq!(format!("{:016x}", digest(BETA, &[1500, 400], &[3.0, 1.0])), "67960a69d9f9a533");
}

#[test]
fn every_processor_plans_the_same_with_blocks_and_captions() {
    assert_eq!(format!("{:016x}", digest(DEPENDENT, &[2500], &[1.0])), "1fac417ad6e35d7a");
}

#[test]
fn every_processor_balances_the_same() {
    let balanced = |config: &str, window: u32| config.replacen('{', &format!(r#"{{"balance": {window},"#), 1);
    assert_eq!(format!("{:016x}", digest(&balanced(BETA, 8), &[1500, 400], &[3.0, 1.0])), "1be8013a8392f4b1");
    assert_eq!(format!("{:016x}", digest(&balanced(DEPENDENT, 64), &[2500], &[1.0])), "65aa9aa80bf72a50");
}

#[test]
fn every_processor_warps_the_same() {
    for (table, found) in [
        (
            r#""random", "rotation": 30.0, "shear": 12.0, "translation": 0.2, "perspective": 0.4, "layers": 2, "magnitude": 10.0"#,
            "f923071930bd2423",
        ),
        (
            r#""randaugment", "rotation": 0.0, "shear": 0.0, "translation": 0.0, "perspective": 0.0, "layers": 3, "magnitude": 15.0"#,
            "3d9705ca5ecbf779",
        ),
    ] {
        let warp = format!(r#""warp": {{"probability": 1.0, "kind": {table}}}, "seed": 12"#);
        let config = DEPENDENT.replace(r#""seed": 12"#, &warp);
        assert_eq!(format!("{:016x}", digest(&config, &[700], &[1.0])), found);
    }
}
