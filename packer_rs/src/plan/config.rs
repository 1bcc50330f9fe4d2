//! `[plan]` as the planner reads it: the canonical JSON of `navit_loader.config.PlanConfig`, whose class documents and
//! checks every key. An unknown key here means that the two sides are of different versions.

use serde::Deserialize;

use crate::plan::sizing::{Rule, Sizing};

/// See `PlanConfig` in `navit_loader.config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented key by key in navit_loader.config")]
pub struct PlanConfig {
    pub seed: u64,
    pub sequence_length: u32,
    pub max_images: u32,
    pub max_tokens: u32,
    pub max_grid: u32,
    pub prefix_tokens: u32,
    pub patch_sizes: Vec<u32>,
    pub patch_weights: Vec<f64>,
    pub patch_run: u64,
    pub packing: Packing,
    pub lookahead: usize,
    pub fit: Fit,
    pub block_images: u64,
    pub virtual_epoch: u64,
    /// Left out where it is 1, so that such plans keep their names.
    #[serde(default = "once")]
    pub passes: u64,
    /// Left out where it is 0, as `passes`.
    #[serde(default)]
    pub balance: usize,
    pub text_tokens: u32,
    pub max_text_tokens: u32,
    /// Evaluated where the index is opened; here it is only part of the identity.
    #[serde(rename = "filter")]
    pub _filter: String,
    /// As `filter`.
    #[serde(rename = "class_weights")]
    pub _class_weights: std::collections::BTreeMap<String, f64>,
    pub order: Order,
    pub resolution: Resolution,
    pub drop: Drop,
    pub crop: CropConfig,
    pub teacher: Option<Teacher>,
    /// Left out where nothing is warped, as `passes`.
    pub warp: Option<WarpConfig>,
    /// Left out where no targets are wanted, as `passes`.
    pub targets: Option<TargetsConfig>,
}

fn once() -> u64 {
    1
}

impl PlanConfig {
    /// Tokens of one caption at most.
    pub fn caption_cap(&self) -> u32 {
        if self.max_text_tokens == 0 { self.text_tokens } else { self.max_text_tokens.min(self.text_tokens) }
    }
}

/// Which packer closes the sequences.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub enum Packing {
    Auto,
    Exact,
    FirstFit,
    BestFit,
    BestFitDecreasing,
}

/// How the last image of a sequence may move to close it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub enum Fit {
    None,
    Drop,
    Resolution,
}

/// See `Order` in `navit_loader.config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub struct Order {
    pub kind: OrderKind,
    pub block: u64,
    pub window: u64,
}

/// See `Order` in `navit_loader.config`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub enum OrderKind {
    Permutation,
    Blocks,
    Sequential,
}

/// See `Resolution` in `navit_loader.config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub struct Resolution {
    pub kind: ResolutionKind,
    pub unit: Unit,
    pub low: u32,
    pub high: u32,
    pub mean: f64,
    pub std: f64,
    pub upscale: bool,
    /// This and what follows it are left out unless the kind is `smart`, so that other plans keep their names.
    pub rule: Option<Rule>,
    #[serde(default)]
    pub merge: u32,
    #[serde(default)]
    pub min_pixels: u64,
    #[serde(default)]
    pub max_pixels: u64,
    #[serde(default)]
    pub max_side: u32,
}

impl Resolution {
    /// The family's rule by which sizes go; None where they are drawn or the image's own.
    pub fn sizing(&self) -> Option<Sizing> {
        let &Self { rule, merge, min_pixels, max_pixels, max_side, .. } = self;
        let rule = rule.filter(|_| self.kind == ResolutionKind::Smart)?;
        Some(Sizing { rule, merge, min_pixels, max_pixels, max_side })
    }
}

/// See `Resolution` in `navit_loader.config`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub enum ResolutionKind {
    TruncatedNormal,
    Uniform,
    Fixed,
    Native,
    Budget,
    Smart,
}

/// What a resolution draw is linear in.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub enum Unit {
    Side,
    Area,
}

/// See `Drop` in `navit_loader.config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub struct Drop {
    pub kind: DropKind,
    pub rate: f64,
    pub min_rate: f64,
    pub max_rate: f64,
    pub std: f64,
    pub keep_whole: f64,
    pub schedule: Schedule,
}

/// See `Drop` in `navit_loader.config`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub enum DropKind {
    None,
    Constant,
    Beta,
    ResolutionDependent,
}

/// See `Schedule` in `navit_loader.config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub struct Schedule {
    pub kind: ScheduleKind,
    pub start: f64,
    pub end: f64,
    pub images: u64,
    pub midpoint: f64,
    pub width: f64,
}

/// See `Schedule` in `navit_loader.config`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub enum ScheduleKind {
    Constant,
    Linear,
    Sigmoid,
}

/// See `Crop` in `navit_loader.config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub struct CropConfig {
    pub kind: CropKind,
    pub scale: (f64, f64),
    pub ratio: (f64, f64),
    pub flip: f64,
}

/// See `Crop` in `navit_loader.config`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub enum CropKind {
    None,
    RandomResized,
}

/// See `Warp` in `navit_loader.config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub struct WarpConfig {
    pub kind: WarpKind,
    pub rotation: f64,
    pub shear: f64,
    pub translation: f64,
    pub perspective: f64,
    pub probability: f64,
    pub layers: u32,
    pub magnitude: f64,
}

/// See `Warp` in `navit_loader.config`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub enum WarpKind {
    Random,
    RandAugment,
}

/// See `Targets` in `navit_loader.config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub struct TargetsConfig {
    pub boxes: bool,
    pub capacity: u32,
    pub clip: f32,
    pub masks: u32,
    pub kind: MaskKind,
}

impl TargetsConfig {
    /// O.
    pub fn box_capacity(&self) -> u32 {
        if self.boxes { self.capacity } else { 0 }
    }
}

/// See `Targets` in `navit_loader.config`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub enum MaskKind {
    Semantic,
    Regions,
}

/// See `Teacher` in `navit_loader.config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in navit_loader.config")]
pub struct Teacher {
    pub patch_size: u32,
    pub sequence_length: u32,
    pub max_tokens: u32,
    pub prefix_tokens: u32,
}
