//! One image: bytes → its kept patches in its slots, in every view. In: encoded bytes and the image's plan. Out: its slots of
//! the block written, or zeroed and masked. Buffers are the thread's own and are used again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::failure::{Failure, Reason};
use crate::fetch::Source;
use crate::pixels::decode::Decoder;
use crate::pixels::decode::foreign::Helpers;
use crate::pixels::orient::Frame;
use crate::pixels::patchify::patchify;
use crate::pixels::picture::{Pixels, Wanted};
use crate::pixels::resize::{Resizer, Small};
use crate::plan::draw::kept_tokens;
use crate::render::fill::{FAILED, slot};
use crate::render::layout::{BatchLayout, ViewFields};
use crate::render::memory::Block;
use crate::render::settings::RenderSettings;
use crate::slots::PlannedImage;

/// Nanoseconds spent, over all threads.
#[derive(Default)]
pub struct Clocks {
    pub fetch: AtomicU64,
    pub decode: AtomicU64,
    pub resize: AtomicU64,
    pub patches: AtomicU64,
    pub wait: AtomicU64,
}

/// Adds the time since `from` and returns now.
pub fn lap(clock: &AtomicU64, from: Instant) -> Instant {
    let now = Instant::now();
    clock.fetch_add((now - from).as_nanos() as u64, Ordering::Relaxed);
    now
}

/// Where an image's pixels come from.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// An encoded file.
    Encoded(&'a [u8]),
    /// R, G, B triples of the upright image, with its size as given.
    Rgb(&'a [u8]),
}

/// The tools and buffers of one thread.
pub struct Worker {
    decoder: Decoder,
    resizer: Resizer,
    pixels: Pixels,
    small: Small,
    line: Vec<u8>,
    tokens: Vec<u32>,
}

impl Worker {
    /// A worker whose `helpers` read what no decoder here does.
    pub fn new(helpers: Arc<Helpers>) -> Result<Self, Failure> {
        Ok(Self {
            decoder: Decoder::new(helpers)?,
            resizer: Resizer::default(),
            pixels: Pixels::default(),
            small: Small::default(),
            line: Vec::new(),
            tokens: Vec::new(),
        })
    }

    /// Whether `bytes`, the file rendered last, embed a colour profile other than sRGB.
    pub fn other_than_srgb(&self, bytes: &[u8]) -> bool {
        self.decoder.other_than_srgb(bytes)
    }

    /// Renders image `i` of sequence `s`. On a failure, a panic of a decoder included, its slots are masked; whoever calls sees
    /// to it that a failure that may pass ends the batch.
    #[allow(clippy::too_many_arguments)]
    pub fn render(
        &mut self,
        input: Result<Input<'_>, Failure>,
        image: &PlannedImage,
        (s, i): (usize, usize),
        source: &Source,
        layout: &BatchLayout,
        block: &Block,
        settings: &RenderSettings,
        clocks: &Clocks,
    ) -> Result<(), Failure> {
        let outcome = input.and_then(|input| {
            catch_unwind(AssertUnwindSafe(|| {
                let frame = self.decode(input, image, source, layout, settings, clocks)?;
                for (view, teacher) in views(layout) {
                    self.view(image, (s, i), view, teacher, frame, source, block, settings, clocks)?;
                }
                Ok(())
            }))
            .unwrap_or_else(|panic| {
                let said = panic.downcast_ref::<String>().map(String::as_str);
                let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                Err(Failure::decode(Reason::Panic, said))
            })
        });
        if outcome.is_err() {
            self.mask_all(image, (s, i), layout, block);
        }
        self.pixels.trim();
        outcome
    }

    fn decode(
        &mut self,
        input: Input<'_>,
        image: &PlannedImage,
        source: &Source,
        layout: &BatchLayout,
        settings: &RenderSettings,
        clocks: &Clocks,
    ) -> Result<Frame, Failure> {
        let row = image.row as usize;
        let orientation = &source.locations.orientation;
        let frame = Frame::new(if row < orientation.len() { orientation.get(row) } else { 1 });
        let oriented = (source.width.get(row), source.height.get(row));
        let from = Instant::now();
        let size = frame.swapped((oriented.0 as u32, oriented.1 as u32));
        match input {
            Input::Rgb(rgb) => {
                if rgb.len() as u64 != u64::from(size.0) * u64::from(size.1) * 3 {
                    return Err(Failure::decode(Reason::Changed, "an array of another size than planned"));
                }
                self.pixels.take_rgb(rgb, size);
            }
            Input::Encoded(bytes) => {
                let mut target = (0, 0);
                for (view, teacher) in views(layout) {
                    let (_, _, grid) = slot(image, teacher);
                    let (w, h) = frame.swapped((u32::from(grid.w), u32::from(grid.h)));
                    target = (target.0.max(w * view.patch_size), target.1.max(h * view.patch_size));
                }
                let wanted = Wanted {
                    size,
                    crop: frame.stored_crop(image.crop, oriented),
                    target,
                    dct_scaling: settings.dct_scaling,
                    background: settings.background,
                    max_pixels: settings.max_pixels,
                };
                self.decoder.decode(bytes, &wanted, &mut self.pixels)?;
            }
        }
        lap(&clocks.decode, from);
        Ok(frame)
    }

    #[allow(clippy::too_many_arguments)]
    fn view(
        &mut self,
        image: &PlannedImage,
        (s, i): (usize, usize),
        view: &ViewFields,
        teacher: bool,
        frame: Frame,
        source: &Source,
        block: &Block,
        settings: &RenderSettings,
        clocks: &Clocks,
    ) -> Result<(), Failure> {
        let from = Instant::now();
        let (_, kept, grid) = slot(image, teacher);
        let p = view.patch_size;
        let row = image.row as usize;
        let crop = frame.stored_crop(image.crop, (source.width.get(row), source.height.get(row)));
        let target = frame.swapped((u32::from(grid.w) * p, u32::from(grid.h) * p));
        self.resizer.resize(&self.pixels, crop, target, settings.filter, &mut self.small);
        let from = lap(&clocks.resize, from);
        self.places(image, (s, i), view, teacher, block, i as i16);
        let (first, bytes) = (self.first(image, s, view, teacher), (p * p * 3) as usize);
        let prefix = view.limits.prefix_tokens as usize;
        // SAFETY: the image's own slots of a u8 field.
        let patches = unsafe { block.part::<u8>(&view.fields[0], first * bytes, (prefix + kept) * bytes) };
        let (blank, patches) = patches.split_at_mut(prefix * bytes);
        blank.fill(0);
        let turned = if image.flip { frame.flipped() } else { frame };
        patchify(&self.small, turned, usize::from(grid.w), p as usize, &self.tokens, &mut self.line, patches);
        lap(&clocks.patches, from);
        Ok(())
    }

    fn first(&self, image: &PlannedImage, s: usize, view: &ViewFields, teacher: bool) -> usize {
        s * view.limits.sequence_length as usize + slot(image, teacher).0
    }

    /// Positions and segment ids of the image's slots; leaves its kept tokens in `self.tokens`.
    fn places(
        &mut self,
        image: &PlannedImage,
        (s, _): (usize, usize),
        view: &ViewFields,
        teacher: bool,
        block: &Block,
        segment: i16,
    ) {
        let (_, kept, grid) = slot(image, teacher);
        self.tokens.clear();
        if kept == grid.tokens() as usize {
            self.tokens.extend(0..grid.tokens());
        } else {
            kept_tokens(image.key, grid.tokens(), kept as u32, &mut self.tokens);
        }
        let (first, prefix) = (self.first(image, s, view, teacher), view.limits.prefix_tokens as usize);
        // SAFETY: the image's own slots of an i16 field.
        unsafe { block.part::<i16>(&view.fields[2], first, prefix + kept) }.fill(segment);
        // SAFETY: as above.
        let positions = unsafe { block.part::<i16>(&view.fields[1], first * 2, (prefix + kept) * 2) };
        let (learned, real) = positions.split_at_mut(prefix * 2);
        for (j, to) in learned.chunks_exact_mut(2).enumerate() {
            to.copy_from_slice(&[-1, j as i16]);
        }
        let width = u32::from(grid.w);
        for (to, &token) in real.chunks_exact_mut(2).zip(&self.tokens) {
            to.copy_from_slice(&[(token / width) as i16, (token % width) as i16]);
        }
    }

    /// Positions and segment ids in every view, of an image without pixels.
    pub(super) fn take_places(
        &mut self,
        image: &PlannedImage,
        (s, i): (usize, usize),
        layout: &BatchLayout,
        block: &Block,
    ) {
        for (view, teacher) in views(layout) {
            self.places(image, (s, i), view, teacher, block, i as i16);
        }
    }

    /// A failed image, in every view.
    pub(super) fn mask_all(
        &mut self,
        image: &PlannedImage,
        (s, i): (usize, usize),
        layout: &BatchLayout,
        block: &Block,
    ) {
        for (view, teacher) in views(layout) {
            self.mask(image, (s, i), view, teacher, block);
        }
        // SAFETY: one value of the field's own type, and the image belongs to this thread.
        let status = unsafe { block.part::<u8>(&layout.rest[0], s * layout.max_images + i, 1) };
        status.fill(FAILED);
    }

    /// A failed image: its segment stays, its tokens belong to nobody and hold nothing.
    fn mask(&mut self, image: &PlannedImage, at: (usize, usize), view: &ViewFields, teacher: bool, block: &Block) {
        self.places(image, at, view, teacher, block, -1);
        let (_, kept, _) = slot(image, teacher);
        let bytes = view.bytes_per_token();
        let (first, prefix) = (self.first(image, at.0, view, teacher), view.limits.prefix_tokens as usize);
        // SAFETY: the image's own slots of a u8 field.
        unsafe { block.part::<u8>(&view.fields[0], first * bytes, (prefix + kept) * bytes) }.fill(0);
    }
}

fn views(layout: &BatchLayout) -> impl Iterator<Item = (&ViewFields, bool)> {
    [Some((&layout.view, false)), layout.teacher.as_ref().map(|v| (v, true))].into_iter().flatten()
}
