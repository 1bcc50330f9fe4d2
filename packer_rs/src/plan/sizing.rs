//! Target sizes by the rules of vision-language families' own processors, so that a plan and a processor agree on every
//! grid. In: height and width of an image in pixels, the patch size, a rule and its bounds. Out: the size to which it is
//! resized and the grid in patches, or why the family refuses the image. Apart from [`crate::plan::draw`], since nothing is
//! drawn here, and since processors ask without a plan.
//!
//! | rule | families | sides | bounds | refused where |
//! |---|---|---|---|---|
//! | `qwen` | Qwen2-VL, Qwen2.5-VL, Qwen3-VL | nearest, half to even; down or up into the bounds | `min_pixels`, `max_pixels` | beyond 200 : 1 |
//! | `glm` | GLM-4V, GLM-4.1V | as `qwen`, small images enlarged to one block first | as `qwen` | beyond 200 : 1 |
//! | `paddleocr` | PaddleOCR-VL | as `qwen`, each short side enlarged to one block first | as `qwen` | beyond 200 : 1, then |
//! | `lfm2` | LFM2-VL without tiles | as `qwen`, one block at least | as `qwen` | never |
//! | `siglip2` | SigLIP 2, timm's NaFlex | up, at the largest scale that fits, bisected | `max_pixels` | never |
//! | `pixtral` | Pixtral, Mistral 3 | scaled down only, then up to whole blocks | `max_side` | a side becomes 0 |
//! | `kimi` | Kimi (MoonViT) | scaled down only, then up to whole blocks | `max_pixels`, `max_side` | never |
//! | `gemma4` | Gemma 4 | down, at the scale of the budget | `max_pixels` | nothing is left |
//!
//! A block is `merge` × `merge` patches. Budgets in patches are given in pixels: times P². The order of the float
//! operations is the families'; each is rounded as IEEE 754 says, so that every processor plans the same.

use serde::Deserialize;

/// Whose arithmetic.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the table above")]
pub enum Rule {
    Qwen,
    Glm,
    Paddleocr,
    Lfm2,
    Siglip2,
    Pixtral,
    Kimi,
    Gemma4,
}

impl Rule {
    /// As it is written in `[plan.resolution]`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen => "qwen",
            Self::Glm => "glm",
            Self::Paddleocr => "paddleocr",
            Self::Lfm2 => "lfm2",
            Self::Siglip2 => "siglip2",
            Self::Pixtral => "pixtral",
            Self::Kimi => "kimi",
            Self::Gemma4 => "gemma4",
        }
    }
}

/// Longest side over the shortest that `qwen` and those like it take.
const RATIO: f64 = 200.0;

/// Where the bisection of `siglip2` ends, and a tenth of it where it begins.
const SCALES: f64 = 1e-5;

/// A rule with its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizing {
    /// Whose arithmetic.
    pub rule: Rule,
    /// Side of a block in patches.
    pub merge: u32,
    /// Area below which an image is enlarged.
    pub min_pixels: u64,
    /// Area above which it is scaled down.
    pub max_pixels: u64,
    /// Side above which it is scaled down.
    pub max_side: u32,
}

/// What becomes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Height and width in pixels to which it is resized; `kimi` pads them to whole blocks.
    pub size: (u32, u32),
    /// Rows and columns of patches.
    pub grid: (u32, u32),
}

impl Sizing {
    /// The target of an image of `height` × `width` pixels, or why the family refuses it.
    pub fn target(&self, height: u32, width: u32, patch: u32) -> Result<Target, &'static str> {
        let (h, w, p) = (f64::from(height), f64::from(width), f64::from(patch));
        let block = p * f64::from(self.merge);
        let (h, w) = match self.rule {
            Rule::Qwen => self.nearest(h, w, block, true)?,
            Rule::Glm => {
                let scale = if h < block || w < block { (block / h).max(block / w) } else { 1.0 };
                self.nearest((h * scale).floor(), (w * scale).floor(), block, true)?
            }
            Rule::Paddleocr => {
                let (h, w) = if h < block { (block, (w * block / h).round_ties_even()) } else { (h, w) };
                let (h, w) = if w < block { ((h * block / w).round_ties_even(), block) } else { (h, w) };
                self.nearest(h, w, block, true)?
            }
            Rule::Lfm2 => self.nearest(h, w, block, false)?,
            Rule::Siglip2 => self.bisected(h, w, p),
            Rule::Pixtral => {
                let most = f64::from(self.max_side);
                let ratio = (h / most).max(w / most);
                let (h, w) = if ratio > 1.0 { ((h / ratio).floor(), (w / ratio).floor()) } else { (h, w) };
                ((h / block).ceil() * block, (w / block).ceil() * block)
            }
            Rule::Kimi => self.lowered(h, w, p),
            Rule::Gemma4 => self.within(h, w, p, block)?,
        };
        if h < 1.0 || w < 1.0 {
            return Err("a side would have no pixels left");
        }
        let patches = |side: f64| ((side / block).ceil() * block / p) as u32;
        Ok(Target { size: (h as u32, w as u32), grid: (patches(h), patches(w)) })
    }

    /// Each side the nearest whole number of blocks; where the area leaves the bounds, both sides scaled and rounded
    /// inwards.
    fn nearest(&self, h: f64, w: f64, block: f64, bounded: bool) -> Result<(f64, f64), &'static str> {
        if bounded && h.max(w) / h.min(w) > RATIO {
            return Err("one side is more than 200 times the other");
        }
        let (least, most) = (self.min_pixels as f64, self.max_pixels as f64);
        let floor = if bounded { 0.0 } else { block };
        let near = |side: f64| ((side / block).round_ties_even() * block).max(floor);
        let (near_h, near_w) = (near(h), near(w));
        if near_h * near_w > most {
            let beta = (h * w / most).sqrt();
            let down = |side: f64| ((side / beta / block).floor() * block).max(block);
            Ok((down(h), down(w)))
        } else if near_h * near_w < least {
            let beta = (least / (h * w)).sqrt();
            let up = |side: f64| (side * beta / block).ceil() * block;
            Ok((up(h), up(w)))
        } else {
            Ok((near_h, near_w))
        }
    }

    /// Sides rounded up at the largest scale, to within `SCALES`, at which they fit the budget.
    fn bisected(&self, h: f64, w: f64, p: f64) -> (f64, f64) {
        let budget = (self.max_pixels as f64 / (p * p)).floor();
        let patches = |side: f64, scale: f64| (side * scale / p).ceil().max(1.0);
        let (mut low, mut high) = (SCALES / 10.0, 100.0);
        while high - low >= SCALES {
            let scale = (low + high) / 2.0;
            if patches(h, scale) * patches(w, scale) <= budget {
                low = scale;
            } else {
                high = scale;
            }
        }
        (patches(h, low) * p, patches(w, low) * p)
    }

    /// Scaled down to both bounds.
    fn lowered(&self, h: f64, w: f64, p: f64) -> (f64, f64) {
        let budget = (self.max_pixels as f64 / (p * p)).floor();
        let most = (f64::from(self.max_side) / p).floor() * p;
        let now = (h / p).floor().max(1.0) * (w / p).floor().max(1.0);
        let scale = (budget / now).sqrt().min(most / h).min(most / w).min(1.0);
        let side = |side: f64| (side * scale).floor().max(1.0).min(most);
        (side(h), side(w))
    }

    /// The most whole blocks within the budget; a thin image is one block wide.
    fn within(&self, h: f64, w: f64, p: f64, block: f64) -> Result<(f64, f64), &'static str> {
        let budget = (self.max_pixels as f64 / (p * p)).floor();
        let merge = f64::from(self.merge);
        let target = budget * p * p;
        let scale = (target / (h * w)).sqrt();
        let longest = (budget / (merge * merge)).floor() * block;
        let (down_h, down_w) = ((scale * h / block).floor() * block, (scale * w / block).floor() * block);
        let (h, w) = match (down_h > 0.0, down_w > 0.0) {
            (true, true) => (down_h, down_w),
            (false, true) => (block, ((w / h).floor() * block).min(longest)),
            (true, false) => (((h / w).floor() * block).min(longest), block),
            (false, false) => return Err("both sides would be less than a block of patches"),
        };
        if h * w <= target { Ok((h, w)) } else { Err("it would have more patches than the budget") }
    }
}
