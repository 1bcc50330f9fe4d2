//! What is drawn for one image: crop and flip, resolution, token drop. In: a key of (seed, source, source epoch), a row
//! and its size in pixels. Out: a `Drawn`, independent of the patch size, and from it the grid and the kept tokens for
//! a patch size; where sizes follow a family's rule, they are [`crate::plan::sizing`]'s.
//!
//! Sources: NaViT (arXiv 2307.06304) sections 2.2, 3.2 and appendix A; Pix2Struct (arXiv 2210.03347) section 2.2 for
//! `budget`.

use crate::plan::config::{CropKind, DropKind, Fit, PlanConfig, ResolutionKind, ScheduleKind, Unit};
use crate::plan::quantiles::{Betas, TruncatedNormal};
use crate::plan::random::{below, philox, unit};
use crate::plan::sizing::Sizing;
use crate::slots::{Crop, Grid};

/// Purposes keep the counters of different draws apart.
const CROP: u32 = 1;
const FLIP_AND_SIZE: u32 = 2;
const KEEP: u32 = 3;
const PERMUTE: u32 = 4;

/// α + β of the beta draw: its variance is 0.3·m·(1 − m) (NaViT, appendix A.4).
const CONCENTRATION: f64 = 1.0 / 0.3 - 1.0;

/// What was drawn for one image, before a patch size is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Drawn {
    /// Row in its index.
    pub row: u64,
    /// Crop in oriented source pixels.
    pub crop: Crop,
    /// Side of the target area, in pixels; infinite for `budget`.
    side: f64,
    /// Share of the tokens to drop; for the resolution-dependent kind, the part that does not depend on the patch size.
    drop: f64,
    /// Key of the token permutation.
    pub key: u64,
    /// Which index of the mixture.
    pub source: u16,
    /// Mirrored left to right.
    pub flip: bool,
    /// Nothing is dropped.
    whole: bool,
}

/// The draws of one plan: its configuration with what can be computed beforehand.
pub struct Draws {
    config: PlanConfig,
    resolution: Option<TruncatedNormal>,
    drop: Option<TruncatedNormal>,
    beta: Option<Betas>,
    sizing: Option<Sizing>,
    /// Logarithms of the smallest and the largest aspect ratio of a crop.
    aspect: (f64, f64),
}

impl Draws {
    /// The draws that `config` describes.
    pub fn new(config: &PlanConfig) -> Self {
        let r = &config.resolution;
        let resolution =
            (r.kind == ResolutionKind::TruncatedNormal).then(|| TruncatedNormal::new(r.mean, r.std, -1.0, 1.0));
        let drop =
            (config.drop.kind == DropKind::ResolutionDependent).then(|| TruncatedNormal::new(0.0, 1.0, -2.0, 2.0));
        let (d, schedule) = (&config.drop, &config.drop.schedule);
        let beta = (d.kind == DropKind::Beta).then(|| {
            let (a, b) = match schedule.kind {
                ScheduleKind::Constant => (d.rate, d.rate),
                ScheduleKind::Linear | ScheduleKind::Sigmoid => (schedule.start, schedule.end),
            };
            Betas::new(CONCENTRATION, a.min(b) / d.max_rate, a.max(b) / d.max_rate)
        });
        let aspect = (libm::log(config.crop.ratio.0), libm::log(config.crop.ratio.1));
        Self { config: config.clone(), resolution, drop, beta, sizing: r.sizing(), aspect }
    }

    /// Draws for one image.
    ///
    /// `key` holds seed, source and source epoch; `size` is (height, width) after orientation; `seen` is n, the images
    /// planned since the first step over all epochs, which the drop schedule is a function of.
    pub fn draw(&self, key: u64, source: u16, row: u64, size: (i32, i32), seen: u64) -> Drawn {
        let counter = |purpose: u32| philox(key, [row as u32, (row >> 32) as u32, purpose, 0]);
        let crop = match self.config.crop.kind {
            CropKind::None => Crop { top: 0, left: 0, height: size.0, width: size.1 },
            CropKind::RandomResized => self.random_crop(counter(CROP), size),
        };
        let bits = counter(FLIP_AND_SIZE);
        let dropping = self.config.drop.kind != DropKind::None;
        let token_key = if dropping || self.config.fit != Fit::None {
            let k = counter(KEEP);
            u64::from(k[0]) | u64::from(k[1]) << 32
        } else {
            0
        };
        Drawn {
            row,
            crop,
            side: self.side(unit(bits[0]), crop),
            drop: if dropping { self.drop_share(unit(bits[1]), seen) } else { 0.0 },
            key: token_key,
            source,
            flip: unit(bits[2]) < self.config.crop.flip,
            whole: unit(bits[3]) < self.config.drop.keep_whole,
        }
    }

    /// Random resized crop (Szegedy et al., *Going deeper with convolutions*, 2015): area share uniform, aspect ratio
    /// log-uniform. Where the drawn rectangle does not fit, its sides are cut to the image: one draw, no retries.
    fn random_crop(&self, bits: [u32; 4], (height, width): (i32, i32)) -> Crop {
        let (scale, (low, high)) = (self.config.crop.scale, self.aspect);
        let share = scale.0 + (scale.1 - scale.0) * unit(bits[0]);
        let aspect = libm::exp(low + (high - low) * unit(bits[1]));
        let area = share * f64::from(height) * f64::from(width);
        let w = ((area * aspect).sqrt() + 0.5).floor().clamp(1.0, f64::from(width)) as i32;
        let h = ((area / aspect).sqrt() + 0.5).floor().clamp(1.0, f64::from(height)) as i32;
        let top = below(bits[2], (height - h + 1) as u64) as i32;
        let left = below(bits[3], (width - w + 1) as u64) as i32;
        Crop { top, left, height: h, width: w }
    }

    /// Side of the target area (NaViT, section 3.2 and Figure 7: sampling the side, biased low, is best).
    fn side(&self, u: f64, crop: Crop) -> f64 {
        let r = &self.config.resolution;
        let (low, high) = (f64::from(r.low), f64::from(r.high));
        let own = (f64::from(crop.height) * f64::from(crop.width)).sqrt();
        let share = match r.kind {
            ResolutionKind::Native | ResolutionKind::Smart => return own,
            ResolutionKind::Budget => return if r.upscale { f64::INFINITY } else { own },
            ResolutionKind::Fixed => 1.0,
            ResolutionKind::Uniform => u,
            ResolutionKind::TruncatedNormal => self.resolution.as_ref().map_or(u, |t| 0.5 * (t.at(u) + 1.0)),
        };
        let side = match r.unit {
            Unit::Side => low + (high - low) * share,
            Unit::Area => (low * low + (high * high - low * low) * share).sqrt(),
        };
        if r.upscale { side } else { side.min(own) }
    }

    /// The scheduled mean drop rate, None where the configured one stands (NaViT, appendix A.5).
    fn scheduled(&self, seen: u64) -> Option<f64> {
        let s = &self.config.drop.schedule;
        let n = seen as f64;
        match s.kind {
            ScheduleKind::Constant => None,
            ScheduleKind::Linear => Some(s.start + (s.end - s.start) * (n / s.images as f64).min(1.0)),
            ScheduleKind::Sigmoid => Some(s.start + (s.end - s.start) / (1.0 + libm::exp((s.midpoint - n) / s.width))),
        }
    }

    fn drop_share(&self, u: f64, seen: u64) -> f64 {
        let d = &self.config.drop;
        let mean = self.scheduled(seen);
        match d.kind {
            DropKind::None => 0.0,
            DropKind::Constant => mean.unwrap_or(d.rate),
            DropKind::Beta => {
                let m = mean.unwrap_or(d.rate) / d.max_rate;
                d.max_rate * self.beta.as_ref().map_or(m, |t| t.at(m, u))
            }
            DropKind::ResolutionDependent => {
                // The schedule moves the whole line so that its middle has the scheduled rate.
                let shift = mean.map_or(0.0, |m| m - 0.5 * (d.min_rate + d.max_rate));
                shift + d.std * self.drop.as_ref().map_or(0.0, |t| t.at(u))
            }
        }
    }

    /// Patches per side of a drawn image at patch size `p`, at most `cap` tokens.
    ///
    /// Each side is the nearest whole number of patches, but never above the image's own size where that is not asked
    /// for, save that there is one patch at least. Where that exceeds `cap`, both sides are scaled to the budget and
    /// rounded down, as in Pix2Struct. A family's rule is followed to the letter; `refuses` says where it cannot be.
    pub fn grid(&self, drawn: &Drawn, p: u32, cap: u32) -> Grid {
        if let Some(sizing) = &self.sizing {
            let found = sizing.target(drawn.crop.height as u32, drawn.crop.width as u32, p);
            return found.map_or(Grid::default(), |t| Grid { h: t.grid.0 as u16, w: t.grid.1 as u16 });
        }
        let (ch, cw) = (f64::from(drawn.crop.height), f64::from(drawn.crop.width));
        let patch = f64::from(p);
        let max = self.config.max_grid.min(cap).min(32_767);
        let upscale = self.config.resolution.upscale;
        let own = |pixels: f64| if upscale { f64::INFINITY } else { (pixels / patch).floor() };
        let side = |patches: f64, pixels: f64| (patches.min(own(pixels)).max(1.0) as u32).min(max);
        if drawn.side.is_finite() {
            let scale = drawn.side / (ch * cw).sqrt() / patch;
            let (h, w) = (side((ch * scale + 0.5).floor(), ch), side((cw * scale + 0.5).floor(), cw));
            if h * w <= cap {
                return Grid { h: h as u16, w: w as u16 };
            }
        }
        // The small term keeps an exact fit (16 × 16 into 256) from being rounded below itself.
        let scale = (f64::from(cap) / (ch * cw)).sqrt() * (1.0 + 1e-12);
        let (mut h, mut w) = (side((ch * scale).floor(), ch), side((cw * scale).floor(), cw));
        // Thin images: the short side is one patch, so the long side takes the budget.
        if h * w > cap {
            (h, w) = if h > w { (cap / w, w) } else { (h, cap / h) };
        }
        Grid { h: h as u16, w: w as u16 }
    }

    /// Why an image of `height` × `width` pixels has no place in this plan: only a family's rule refuses one.
    pub fn refuses(&self, height: i32, width: i32) -> Option<String> {
        let (sizing, c) = (self.sizing.as_ref()?, &self.config);
        let teacher = c.teacher.as_ref().map(|t| (t.patch_size, t.max_tokens - t.prefix_tokens, "teacher.max_tokens"));
        let own = c.patch_sizes.iter().map(|&p| (p, c.max_tokens - c.prefix_tokens, "max_tokens"));
        let grid = |p| sizing.target(height as u32, width as u32, p).map(|target| target.grid);
        own.chain(teacher).find_map(|(p, cap, key)| match grid(p) {
            Err(why) => {
                let rule = sizing.rule.name();
                Some(format!("which plan.resolution.rule = '{rule}' refuses, as its processor does: {why}"))
            }
            Ok((h, w)) if h.max(w) > c.max_grid => {
                Some(format!("{h} × {w} patches, a side of more than plan.max_grid = {}", c.max_grid))
            }
            Ok((h, w)) if h * w > cap => Some(format!("{h} × {w} patches, more than plan.{key} has room for: {cap}")),
            Ok(_) => None,
        })
    }

    /// Tokens kept of `grid` at patch size `p`: at least one.
    pub fn kept(&self, drawn: &Drawn, grid: Grid, p: u32, cap: u32) -> u32 {
        let tokens = grid.tokens();
        let d = &self.config.drop;
        if d.kind == DropKind::None || drawn.whole {
            return tokens;
        }
        let mut share = drawn.drop;
        if d.kind == DropKind::ResolutionDependent {
            let (least, most) = self.configured_tokens(p, cap);
            let at = if most > least { ((f64::from(tokens) - least) / (most - least)).clamp(0.0, 1.0) } else { 1.0 };
            share += d.min_rate + (d.max_rate - d.min_rate) * at;
        }
        let kept = ((1.0 - share.clamp(0.0, 1.0)) * f64::from(tokens) + 0.5).floor() as u32;
        kept.clamp(1, tokens)
    }

    /// Tokens of the smallest and the largest configured size.
    fn configured_tokens(&self, p: u32, cap: u32) -> (f64, f64) {
        let r = &self.config.resolution;
        let area = f64::from(p) * f64::from(p);
        let cap = f64::from(cap);
        match r.kind {
            ResolutionKind::Native | ResolutionKind::Budget | ResolutionKind::Smart => (1.0, cap),
            ResolutionKind::Fixed => (1.0, (f64::from(r.high) * f64::from(r.high) / area).min(cap)),
            ResolutionKind::Uniform | ResolutionKind::TruncatedNormal => {
                let tokens = |side: u32| (f64::from(side) * f64::from(side) / area).clamp(1.0, cap);
                (tokens(r.low), tokens(r.high))
            }
        }
    }

    /// The grid nearest above the drawn one that lets `want` tokens be kept at about the drawn keep rate; None where
    /// the image cannot give that many. Only the grid may move with `Fit::Resolution`; with `Fit::Drop` it stays.
    pub fn refit(&self, drawn: &Drawn, grid: Grid, kept: u32, want: u32, p: u32, cap: u32) -> Option<Grid> {
        if want == 0 || want > cap {
            return None;
        }
        if self.config.fit == Fit::Drop {
            return (want <= grid.tokens()).then_some(grid);
        }
        // Grow or shrink the area by the ratio of tokens, then step up until the wish fits.
        let ratio = f64::from(want) / f64::from(kept.max(1));
        let area = f64::from(grid.tokens()) * f64::from(p) * f64::from(p);
        let mut side = (area * ratio).sqrt();
        for _ in 0..16 {
            let candidate = self.grid(&Drawn { side, ..*drawn }, p, cap);
            if candidate.tokens() >= want {
                return Some(candidate);
            }
            side += 0.25 * f64::from(p);
        }
        None
    }
}

/// Writes the ascending indices (row-major in the grid) of an image's kept tokens into `out`: the first `kept` places
/// of a permutation of all its tokens under `key`. So fewer kept tokens of the same image are always a subset of more.
pub fn kept_tokens(key: u64, tokens: u32, kept: u32, out: &mut Vec<u32>) {
    out.clear();
    out.extend(0..tokens);
    if kept >= tokens {
        return;
    }
    let mut bits = [0; 4];
    for i in 0..kept {
        if i % 4 == 0 {
            bits = philox(key, [i / 4, 0, PERMUTE, 0]);
        }
        let j = i as u64 + below(bits[i as usize % 4], u64::from(tokens - i));
        out.swap(i as usize, j as usize);
    }
    out.truncate(kept as usize);
    out.sort_unstable();
}
