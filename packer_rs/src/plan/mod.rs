//! The plan of an epoch, block by block: which images a block has, what is drawn for each, and the patch size of each
//! run. Takes a configuration, the sizes of the indexes, an epoch and a block number. Gives the block's sequences,
//! packed by [`crate::plan::block`].
//!
//! May not know of files, bytes or pixels, nor of threads, time, batch size or ranks. A block is a pure function of
//! what it is given, without its predecessors: the images at its positions are computed, and the patch size of a run of
//! sequences is keyed by (seed, epoch, block, run of the block), so several patch sizes change nothing here.

pub mod balance;
pub mod block;
pub mod config;
pub mod draw;
pub mod epoch;
pub mod order;
pub mod pack;
pub mod quantiles;
pub mod random;
pub mod recent;
pub mod sizing;
pub mod streams;
pub mod targets;
pub mod warp;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::columns::Sizes;
use crate::error::{Error, Kind, Result};
use crate::failure::said;
use crate::plan::block::{BlockPlan, BlockPlanner};
use crate::plan::config::{CropKind, MaskKind, OrderKind, Packing, PlanConfig, ResolutionKind, TargetsConfig};
use crate::plan::draw::{Drawn, Draws};
use crate::plan::order::Kind as Order;
use crate::plan::pack::Limits;
use crate::plan::random::{derive, philox, unit};
use crate::plan::recent::Recent;
use crate::plan::streams::{Stream, Streams};
use crate::plan::warp::draw_warp;
use crate::slots::{BatchLimits, TargetLimits, ViewLimits, Warp};

const PATCH: u32 = 21;
const BALANCE: u32 = 22;

/// A configuration over opened indexes.
pub struct Plan {
    /// As given.
    pub config: PlanConfig,
    sources: Vec<Arc<Sizes>>,
    streams: Streams,
    draws: Draws,
    limits: Limits,
    epoch_images: u64,
    /// Blocks that were planned lately.
    pub recent: Recent,
}

impl Plan {
    /// A plan; refuses what this configuration cannot do with these indexes.
    pub fn new(config: PlanConfig, sources: Vec<Arc<Sizes>>, streams: Vec<Stream>) -> Result<Self> {
        let order = match config.order.kind {
            OrderKind::Permutation => Order::Permutation,
            OrderKind::Sequential => Order::Sequential,
            OrderKind::Blocks => Order::Blocks { block: config.order.block, window: config.order.window },
        };
        let streams = Streams::new(streams, config.seed, order)?;
        let draws = Draws::new(&config);
        if config.resolution.kind == ResolutionKind::Smart {
            if config.crop.kind == CropKind::None {
                refuse_sizes(&draws, &sources, &streams)?;
            }
        } else if !config.resolution.upscale {
            refuse_oversized_patches(&config, &sources)?;
        }
        let teacher = config.teacher.as_ref().map_or(0, |t| t.sequence_length);
        let boxes = config.targets.as_ref().map_or(0, TargetsConfig::box_capacity);
        let capacity = [config.sequence_length, teacher, config.text_tokens, boxes];
        let limits = Limits { capacity, max_items: config.max_images };
        let epoch_images = if config.virtual_epoch > 0 { config.virtual_epoch } else { streams.len() * config.passes };
        Ok(Self { draws, config, sources, streams, limits, epoch_images, recent: Recent::default() })
    }

    /// Images of one epoch.
    pub fn epoch_images(&self) -> u64 {
        self.epoch_images
    }

    /// Blocks of one epoch.
    pub fn num_blocks(&self) -> u64 {
        self.epoch_images.div_ceil(self.config.block_images)
    }

    /// By which image of the run, behind `after`, neighbouring rows of an index have had their next turn. Packers that
    /// take the images of a block as they fit know no turns within it.
    pub fn next_turn(&self, source: u16, rows: &Range<u64>, after: u64) -> u64 {
        let next = self.streams.next_turn(source, rows, after);
        if next == u64::MAX || matches!(self.config.packing, Packing::Auto | Packing::Exact) {
            return next;
        }
        let (images, block) = (self.epoch_images, self.config.block_images);
        let (epoch, within) = ((next - 1) / images, (next - 1) % images + 1);
        epoch * images + within.next_multiple_of(block).min(images)
    }

    /// Sequences that share a patch size inside a block; 0 where there is one patch size.
    pub fn run(&self) -> u64 {
        if self.config.patch_sizes.len() == 1 { 0 } else { self.config.patch_run }
    }

    /// The limits that fix a batch's shapes; K is the renderer's to know.
    pub fn batch_limits(&self, label_width: u32) -> BatchLimits {
        let c = &self.config;
        let view =
            |sequence_length, max_tokens, prefix_tokens| ViewLimits { sequence_length, max_tokens, prefix_tokens };
        BatchLimits {
            view: view(c.sequence_length, c.max_tokens, c.prefix_tokens),
            teacher: c.teacher.as_ref().map(|t| (view(t.sequence_length, t.max_tokens, t.prefix_tokens), t.patch_size)),
            max_images: c.max_images,
            label_width,
            text_tokens: c.text_tokens,
            max_text_tokens: c.caption_cap(),
            warps: c.warp.is_some(),
            targets: c.targets.as_ref().map_or_else(TargetLimits::default, |t| TargetLimits {
                boxes: t.box_capacity(),
                clip: t.clip,
                masks: t.masks,
                regions: t.kind == MaskKind::Regions,
            }),
        }
    }

    /// The patch size of a run of sequences of a block (FlexiViT draws one per step; runs keep batches uniform).
    fn patch_size(&self, epoch: u64, block: u64, run: u64) -> u32 {
        let (sizes, weights) = (&self.config.patch_sizes, &self.config.patch_weights);
        if sizes.len() == 1 {
            return sizes[0];
        }
        let key = derive(self.config.seed, epoch, block, PATCH);
        let u = unit(philox(key, [run as u32, (run >> 32) as u32, PATCH, 2])[0]);
        let weight = |i: usize| weights.get(i).copied().unwrap_or(1.0);
        let mut left = u * (0..sizes.len()).map(weight).sum::<f64>();
        for (i, &size) in sizes.iter().enumerate() {
            left -= weight(i);
            if left < 0.0 {
                return size;
            }
        }
        sizes.iter().enumerate().rev().find(|&(i, _)| weight(i) > 0.0).map_or(sizes[0], |(_, &size)| size)
    }

    /// Plans one block of an epoch.
    ///
    /// # Errors
    /// A row of a damaged index; a fault of ours, in place of a panic, so that whoever waits hears of it.
    pub fn block(&self, epoch: u64, block: u64) -> Result<BlockPlan> {
        catch_unwind(AssertUnwindSafe(|| self.planned(epoch, block))).unwrap_or_else(|panic| {
            let said = said(&*panic);
            let what = format!("block {block} of epoch {epoch} cannot be planned ({said})");
            Err(Error::new(Kind::Plan, format!("{what}; this is a fault of the engine: please report it")))
        })
    }

    fn planned(&self, epoch: u64, block: u64) -> Result<BlockPlan> {
        let first = block * self.config.block_images;
        let count = self.config.block_images.min(self.epoch_images - first);
        let mut cursor = self.streams.cursor();
        let mut warps: Vec<Warp> = Vec::new();
        let drawn = (0..count)
            .map(|i| {
                let seen = epoch * self.epoch_images + first + i;
                let place = cursor.at(seen);
                let sizes = &self.sources[usize::from(place.source)];
                let (size, text, boxes) = sizes.of(place.row as usize)?;
                let [.., room] = self.limits.capacity;
                let boxes = if room == 0 { 0 } else { boxes };
                if boxes > room {
                    return Err(too_many(sizes, place.row, boxes, room));
                }
                let text = text.min(self.config.caption_cap());
                let drawn = self.draws.draw(place.key, place.source, place.row, size, seen);
                // Whole images were looked at when the plan was made.
                if self.config.crop.kind != CropKind::None
                    && let Some(why) = self.draws.refuses(drawn.crop.height, drawn.crop.width)
                {
                    return Err(refused(sizes, place.row, "a crop of", (drawn.crop.height, drawn.crop.width), &why));
                }
                warps.extend(self.config.warp.as_ref().map(|c| draw_warp(c, place.key, place.row, drawn.crop)));
                Ok((drawn, [text, boxes]))
            })
            .collect::<Result<Vec<(Drawn, [u32; 2])>>>()?;
        let turns = derive(self.config.seed, epoch, block, BALANCE);
        let mut planner = BlockPlanner::new(&self.config, &self.draws, self.limits, turns, &drawn, &warps);
        let mut run = 0;
        while planner.left() > 0 {
            planner.run(
                self.patch_size(epoch, block, run),
                if self.run() == 0 { usize::MAX } else { self.run() as usize },
            );
            run += 1;
        }
        Ok(planner.finish())
    }
}

/// A family's rule refuses some sizes, and there must be room for the others: said before anything is planned.
fn refuse_sizes(draws: &Draws, sources: &[Arc<Sizes>], streams: &Streams) -> Result<()> {
    streams.rows().try_for_each(|(source, row)| {
        let sizes = &sources[usize::from(source)];
        let ((height, width), ..) = sizes.of(row as usize)?;
        match draws.refuses(height, width) {
            Some(why) => Err(refused(sizes, row, "", (height, width), &why)),
            None => Ok(()),
        }
    })
}

fn refused(sizes: &Sizes, row: u64, what: &str, (height, width): (i32, i32), why: &str) -> Error {
    let what = if what.is_empty() { String::new() } else { format!("{what} ") };
    let message = format!(
        "row {row} of '{}' is {what}{width} × {height} pixels, {why}; leave such images out by plan.filter, or change the \
         bounds of plan.resolution",
        sizes.path
    );
    Error::new(Kind::Plan, message)
}

/// Rows like this are left out where the streams are made; what reaches this is a caller's fault.
fn too_many(sizes: &Sizes, row: u64, boxes: u32, room: u32) -> Error {
    let message = format!(
        "row {row} of '{}' has {boxes} boxes, more than plan.targets.capacity = {room}; raise it, or leave such images out \
         by plan.filter",
        sizes.path
    );
    Error::new(Kind::Plan, message)
}

/// A patch larger than every image would turn each into one upscaled patch.
fn refuse_oversized_patches(config: &PlanConfig, sources: &[Arc<Sizes>]) -> Result<()> {
    let largest = config.patch_sizes.iter().copied().max().unwrap_or(1) as i32;
    let holds = |s: &Arc<Sizes>| {
        let mut pairs = s.width.chunks().zip(s.height.chunks());
        pairs.any(|(w, h)| w.iter().zip(h).any(|(&w, &h)| w.max(h) >= largest))
    };
    if sources.iter().any(holds) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Plan,
        format!(
            "plan.patch_sizes has {largest}, larger than both sides of every image; \
             take a smaller patch or set plan.resolution.upscale = true"
        ),
    ))
}
