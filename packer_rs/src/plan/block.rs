//! The images of one block, packed into sequences: run by run at one patch size, by the packer that suits them.
//!
//! In: what was drawn for each image of the block, in order. Out: its sequences, and what happened on the way. Apart
//! from [`crate::plan`], which knows where the images come from; here they are sizes and numbers.

use crate::plan::balance::{even, squares};
use crate::plan::config::{Fit, Packing, PlanConfig};
use crate::plan::draw::{Drawn, Draws};
use crate::plan::pack::{Limits, Load, Used, bins, exact};
use crate::plan::random::philox;
use crate::slots::{Grid, PlannedImage, Warp};

/// Where the mean length leaves room for this many images in a sequence, exact fill has the better choice.
const IMAGES_FOR_EXACT: f64 = 3.2;

/// What happened while a block was planned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Images planned.
    pub images: u64,
    /// Slots taken, prefix tokens included.
    pub tokens: u64,
    /// Patch tokens dropped.
    pub dropped: u64,
    /// Slots of all sequences.
    pub slots: u64,
    /// Slots left empty at the block's end: where exact fill has no full lookahead left, else in the last sequence.
    pub tail: u64,
    /// Sequences with room that `max_images` closed.
    pub closed: u64,
    /// Most places that an image came later than its place in the order.
    pub lateness: u64,
    /// Images that `fit` moved.
    pub moved: u64,
    /// Tokens by which it moved them, summed.
    pub moved_tokens: u64,
}

/// The sequences of one block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockPlan {
    /// Images by sequence and slot.
    pub images: Vec<PlannedImage>,
    /// What becomes of each; empty where nothing is warped.
    pub warps: Vec<Warp>,
    /// Where each sequence starts in `images`; one more than there are sequences.
    pub starts: Vec<u32>,
    /// The patch size of each run of sequences.
    pub patch_sizes: Vec<u32>,
    /// What happened.
    pub report: Report,
}

impl BlockPlan {
    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The images of one sequence.
    pub fn sequence(&self, i: usize) -> &[PlannedImage] {
        &self.images[self.starts[i] as usize..self.starts[i + 1] as usize]
    }

    /// What becomes of them, in a plan that warps.
    pub fn warps_of(&self, i: usize) -> &[Warp] {
        &self.warps[self.starts[i] as usize..self.starts[i + 1] as usize]
    }
}

/// A packed sequence that waits for its place in a window.
struct Held {
    numbers: Vec<u32>,
    at_the_end: bool,
}

/// An image at the patch size of the current run.
#[derive(Clone, Copy, Default)]
struct Sized {
    grid: Grid,
    kept: u32,
    teacher_grid: Grid,
    text: u32,
    boxes: u32,
}

/// Packs the drawn images of one block, run by run.
pub struct BlockPlanner<'a> {
    config: &'a PlanConfig,
    draws: &'a Draws,
    limits: Limits,
    drawn: &'a [(Drawn, [u32; 2])],
    warps: &'a [Warp],
    sized: Vec<Sized>,
    /// Images not yet packed, oldest first, from `head` on; `loads` beside them, valid up to `ready`.
    waiting: Vec<u32>,
    loads: Vec<Load>,
    head: usize,
    ready: usize,
    patch: u32,
    /// Key of the turns of windows, and how many were turned.
    turns: u64,
    turned: u32,
    /// Sequences of the run with what they cost, where they are balanced.
    held: Vec<Held>,
    costs: Vec<u64>,
    out: BlockPlan,
}

impl<'a> BlockPlanner<'a> {
    /// All images of the block wait, in their order; `drawn` has beside each the tokens of its caption and its boxes, `warps` is empty or
    /// has one for each, `turns` is the key by which windows of `balance` sequences are turned.
    pub fn new(
        config: &'a PlanConfig,
        draws: &'a Draws,
        limits: Limits,
        turns: u64,
        drawn: &'a [(Drawn, [u32; 2])],
        warps: &'a [Warp],
    ) -> Self {
        let n = drawn.len();
        Self {
            config,
            draws,
            limits,
            drawn,
            warps,
            sized: vec![Sized::default(); n],
            waiting: (0..n as u32).collect(),
            loads: vec![Load::default(); n],
            head: 0,
            ready: 0,
            patch: 0,
            turns,
            turned: 0,
            held: Vec::new(),
            costs: Vec::new(),
            out: BlockPlan {
                images: Vec::with_capacity(n),
                warps: Vec::with_capacity(warps.len()),
                starts: vec![0],
                patch_sizes: Vec::new(),
                report: Report { images: n as u64, ..Report::default() },
            },
        }
    }

    /// Images that wait.
    pub fn left(&self) -> usize {
        self.waiting.len() - self.head
    }

    /// Sizes the waiting images up to place `end` at the patch size of the run.
    fn size_up_to(&mut self, end: usize) {
        let c = self.config;
        let end = end.min(self.waiting.len());
        for place in self.ready..end {
            let i = self.waiting[place] as usize;
            let &(ref drawn, [text, boxes]) = &self.drawn[i];
            let cap = c.max_tokens - c.prefix_tokens;
            let grid = self.draws.grid(drawn, self.patch, cap);
            let kept = self.draws.kept(drawn, grid, self.patch, cap);
            let (teacher_grid, teacher_load) = c.teacher.as_ref().map_or((Grid::default(), 0), |t| {
                let grid = self.draws.grid(drawn, t.patch_size, t.max_tokens - t.prefix_tokens);
                (grid, grid.tokens() + t.prefix_tokens)
            });
            self.sized[i] = Sized { grid, kept, teacher_grid, text, boxes };
            self.loads[place] = [kept + c.prefix_tokens, teacher_load, text, boxes];
        }
        self.ready = self.ready.max(end);
    }

    /// Packs one run of at most `sequences` sequences at one patch size.
    pub fn run(&mut self, patch: u32, sequences: usize) {
        self.patch = patch;
        self.out.patch_sizes.push(patch);
        self.ready = self.head;
        let c = self.config;
        // Enough to fill the run, and then some; everything where there is one run.
        let whole = sequences == usize::MAX;
        let sample = if whole { usize::MAX } else { 4096 };
        self.size_up_to(self.head.saturating_add(sample));
        let sample = &self.loads[self.head..self.ready];
        let mean = sample.iter().map(|l| f64::from(l[0])).sum::<f64>() / sample.len() as f64;
        let packing = match c.packing {
            Packing::Auto if c.fit != Fit::None => Packing::Exact,
            Packing::Auto if f64::from(c.sequence_length) < IMAGES_FOR_EXACT * mean => Packing::BestFitDecreasing,
            Packing::Auto => Packing::Exact,
            chosen => chosen,
        };
        if packing == Packing::Exact {
            self.stream(sequences);
        } else {
            if !whole {
                let need = 1.1 * sequences as f64 * f64::from(c.sequence_length) + f64::from(c.sequence_length);
                while self.ready < self.waiting.len() && self.ready_tokens() < need {
                    self.size_up_to(self.ready + 4096);
                }
            }
            self.window(packing, sequences);
        }
        self.balance();
    }

    /// The sequences of the run, in windows from its start, so that each window has one patch size.
    fn balance(&mut self) {
        let (held, costs) = (std::mem::take(&mut self.held), std::mem::take(&mut self.costs));
        let window = self.config.balance.max(1);
        for (held, costs) in held.chunks(window).zip(costs.chunks(window)) {
            let bits = philox(self.turns, [self.turned, 0, 0, 0])[0];
            self.turned += 1;
            for i in even(costs, bits) {
                let Held { numbers, at_the_end } = &held[i as usize];
                self.write(numbers, *at_the_end);
            }
        }
    }

    fn ready_tokens(&self) -> f64 {
        self.loads[self.head..self.ready].iter().map(|l| f64::from(l[0])).sum()
    }

    /// Head-first exact fill.
    fn stream(&mut self, sequences: usize) {
        let c = self.config;
        let large = self.loads[self.head..self.ready].iter().map(|l| l[0]).max().unwrap_or(1);
        let mut packer = exact::Exact::new(self.limits, c.lookahead, large);
        let mut chosen = Vec::new();
        for _ in 0..sequences {
            if self.left() == 0 {
                break;
            }
            self.size_up_to(self.head + packer.window());
            let end = self.ready.min(self.head + packer.window());
            let used = packer.choose(&self.loads[self.head..end], &mut chosen);
            if c.fit != Fit::None && used.load[0] < c.sequence_length {
                self.fit(&mut chosen, used, end);
            }
            let at_the_end = chosen.last().map_or(0, |&p| p as usize) + c.lookahead >= self.left();
            let numbers: Vec<u32> = chosen.iter().map(|&p| self.waiting[self.head + p as usize]).collect();
            self.emit(numbers, at_the_end);
            exact::take(&mut self.waiting, self.head, &chosen);
            self.head = exact::take(&mut self.loads, self.head, &chosen);
        }
    }

    /// Closes a sequence exactly by moving one image: a chosen one grows, or a waiting one is cut or grown to the gap,
    /// whichever moves the fewest tokens (NaViT, section 2.3: "the last image's resolution or token dropping rate").
    fn fit(&mut self, chosen: &mut Vec<u32>, used: Used, end: usize) {
        let c = self.config;
        let cap = c.max_tokens - c.prefix_tokens;
        let gap = c.sequence_length - used.load[0];
        let mut best: Option<(u32, usize, Grid, u32)> = None;
        let last = chosen.last().map_or(0, |&p| p as usize);
        let places = (last..=last).chain((1..end - self.head).filter(|&p| chosen.binary_search(&(p as u32)).is_err()));
        for (n, place) in places.enumerate() {
            let i = self.waiting[self.head + place] as usize;
            let s = self.sized[i];
            let want = if n == 0 { s.kept + gap } else { gap.saturating_sub(c.prefix_tokens) };
            if n > 0 && !self.limits.fits(&used, &[0, self.loads[self.head + place][1], s.text, s.boxes]) {
                continue;
            }
            let moved = want.abs_diff(s.kept);
            if best.is_some_and(|(least, ..)| moved >= least) {
                continue;
            }
            if let Some(grid) = self.draws.refit(&self.drawn[i].0, s.grid, s.kept, want, self.patch, cap) {
                best = Some((moved, place, grid, want));
            }
        }
        let Some((moved, place, grid, kept)) = best else { return };
        let i = self.waiting[self.head + place] as usize;
        self.sized[i].grid = grid;
        self.sized[i].kept = kept;
        if let Err(at) = chosen.binary_search(&(place as u32)) {
            chosen.insert(at, place as u32);
        }
        self.out.report.moved += 1;
        self.out.report.moved_tokens += u64::from(moved);
    }

    /// The packers that keep many sequences open: all that is ready at once; what exceeds the run waits for the next.
    fn window(&mut self, packing: Packing, sequences: usize) {
        let loads = &self.loads[self.head..self.ready];
        let limits = &self.limits;
        let packed = match packing {
            Packing::FirstFit => bins::first_fit(loads, limits),
            Packing::BestFit => bins::best_fit(loads, limits),
            Packing::Auto | Packing::Exact | Packing::BestFitDecreasing => bins::best_fit_decreasing(loads, limits),
        };
        let mut taken: Vec<u32> = Vec::new();
        for sequence in packed.sequences().take(sequences) {
            taken.extend_from_slice(sequence);
            let numbers: Vec<u32> = sequence.iter().map(|&p| self.waiting[self.head + p as usize]).collect();
            let at_the_end = taken.len() == self.left();
            self.emit(numbers, at_the_end);
        }
        taken.sort_unstable();
        exact::take(&mut self.waiting, self.head, &taken);
        self.head = exact::take(&mut self.loads, self.head, &taken);
    }

    /// Takes one sequence: to its place, or to the others of its run, which are then balanced.
    fn emit(&mut self, numbers: Vec<u32>, at_the_end: bool) {
        let c = self.config;
        if c.balance == 0 {
            return self.write(&numbers, at_the_end);
        }
        let cost = |&number: &u32| {
            let s = self.sized[number as usize];
            squares(c, s.kept, s.teacher_grid)
        };
        self.costs.push(numbers.iter().map(cost).sum());
        self.held.push(Held { numbers, at_the_end });
    }

    /// Appends one sequence.
    fn write(&mut self, numbers: &[u32], at_the_end: bool) {
        let c = self.config;
        let teacher_prefix = c.teacher.as_ref().map_or(0, |t| t.prefix_tokens);
        let (mut offset, mut teacher_offset, mut text_offset) = (0, 0, 0);
        let r = &mut self.out.report;
        for &number in numbers {
            let (drawn, _) = &self.drawn[number as usize];
            let s = self.sized[number as usize];
            r.lateness = r.lateness.max((self.out.images.len() as u64).saturating_sub(u64::from(number)));
            r.dropped += u64::from(s.grid.tokens() - s.kept);
            self.out.images.push(PlannedImage {
                row: drawn.row,
                key: drawn.key,
                crop: drawn.crop,
                offset,
                kept: s.kept,
                teacher_offset,
                text_offset,
                grid: s.grid,
                teacher_grid: s.teacher_grid,
                source: drawn.source,
                flip: drawn.flip,
            });
            self.out.warps.extend(self.warps.get(number as usize));
            offset += c.prefix_tokens + s.kept;
            if c.teacher.is_some() {
                teacher_offset += teacher_prefix + s.teacher_grid.tokens();
            }
            text_offset += s.text;
        }
        r.tokens += u64::from(offset);
        r.slots += u64::from(c.sequence_length);
        r.closed += u64::from(numbers.len() == c.max_images as usize && offset < c.sequence_length);
        if at_the_end {
            r.tail += u64::from(c.sequence_length - offset);
        }
        self.out.starts.push(self.out.images.len() as u32);
    }

    /// The block's sequences.
    pub fn finish(self) -> BlockPlan {
        self.out
    }
}
