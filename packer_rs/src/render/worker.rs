//! One image: bytes → its kept patches in its slots, in every view. In: encoded bytes and the image's plan. Out: its
//! slots of the block written, or zeroed and masked. Buffers are the thread's own and are used again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::failure::{Failure, Reason, said};
use crate::fetch::Source;
use crate::pixels::decode::Decoder;
use crate::pixels::decode::foreign::Helpers;
use crate::pixels::decode::profile::Kind as Profile;
use crate::pixels::floats::{Form, Scratch, strew};
use crate::pixels::orient::Frame;
use crate::pixels::patchify::patchify;
use crate::pixels::picture::{Pixels, Wanted};
use crate::pixels::resize::{Resizer, Small};
use crate::pixels::taps::Filter;
use crate::pixels::warp::Warper;
use crate::plan::draw::kept_tokens;
use crate::render::fill::FAILED;
use crate::render::place::{Place, Places};
use crate::render::settings::{Damaged, Profiles, RenderSettings};
use crate::render::targets::{Masker, VOID, Wanted as WantedMask};
use crate::slots::{Crop, PlannedImage, Warp};

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

/// One whole image and its part of somebody else's tensor.
pub struct Wholly<'a> {
    /// Where its pixels come from.
    pub input: Input<'a>,
    /// EXIF, 1 to 8.
    pub orientation: u8,
    /// Width and height after orientation.
    pub size: (i32, i32),
    /// Width and height to which it is resized.
    pub target: (u32, u32),
    /// Patches across.
    pub columns: usize,
    /// Where each patch begins in `out`, row by row; at least as many as the target touches.
    pub places: &'a [usize],
    /// Its floats.
    pub out: &'a mut [f32],
}

/// The tools and buffers of one thread.
pub struct Worker {
    decoder: Decoder,
    resizer: Resizer,
    pixels: Pixels,
    small: Small,
    warper: Warper,
    masker: Masker,
    line: Vec<u8>,
    scratch: Scratch,
    tokens: Vec<u32>,
}

impl Worker {
    /// A worker whose `helpers` read what no decoder here does.
    pub fn new(helpers: Arc<Helpers>) -> Result<Self, Failure> {
        Ok(Self::with(Decoder::new(helpers)?, Resizer::default()))
    }

    /// A worker with these decoders and this resizer.
    pub(super) fn with(decoder: Decoder, resizer: Resizer) -> Self {
        Self {
            decoder,
            resizer,
            pixels: Pixels::default(),
            small: Small::default(),
            warper: Warper::default(),
            masker: Masker::default(),
            line: Vec::new(),
            scratch: Scratch::default(),
            tokens: Vec::new(),
        }
    }

    /// Whether the file rendered last has 16 bits a sample, of which it uses few.
    pub fn dark(&self) -> bool {
        self.pixels.dark
    }

    /// The colour profile of the file rendered last, where it is none of sRGB and was not applied.
    pub fn profile(&self) -> Option<Profile> {
        self.decoder.profile()
    }

    /// Renders an image into its places; `mask` is the file of its mask, where the batch has any. On a failure, a panic of a decoder included, its slots are masked; whoever
    /// calls sees to it that a failure that may pass ends the batch.
    pub fn render(
        &mut self,
        input: Result<Input<'_>, Failure>,
        mask: &[u8],
        places: &mut Places<'_>,
        source: &Source,
        settings: &RenderSettings,
        clocks: &Clocks,
    ) -> Result<(), Failure> {
        let outcome = input.and_then(|input| {
            catch_unwind(AssertUnwindSafe(|| {
                let stored = self.decode(input, places, source, settings, clocks)?;
                let (image, segment) = ((places.image, places.warp), places.segment);
                for place in places.views() {
                    self.view(image, segment, place, stored, settings.filter, clocks);
                }
                self.cells(mask, places, source, settings, clocks)
            }))
            .unwrap_or_else(|panic| Err(Failure::decode(Reason::Panic, said(&*panic))))
        });
        if outcome.is_err() {
            self.mask(places);
        }
        self.pixels.trim();
        outcome
    }

    /// Decodes what all views need of an image. Returns how it lies as stored, and its crop there.
    fn decode(
        &mut self,
        input: Input<'_>,
        places: &mut Places<'_>,
        source: &Source,
        settings: &RenderSettings,
        clocks: &Clocks,
    ) -> Result<(Frame, Crop), Failure> {
        let (image, row) = (places.image, places.image.row as usize);
        let orientation = &source.locations.orientation;
        let frame = Frame::new(if row < orientation.len() { orientation.get(row) } else { 1 });
        let oriented = (source.width.get(row), source.height.get(row));
        let from = Instant::now();
        let mut target = (0, 0);
        for place in places.views() {
            let (w, h) = target_size(frame, place);
            target = (target.0.max(w), target.1.max(h));
        }
        let crop = self.pixels_of(input, frame, oriented, image.crop, target, settings)?;
        lap(&clocks.decode, from);
        Ok((frame, crop))
    }

    /// Decodes an image of `oriented` width and height for a target in the stored frame. Returns its crop there.
    fn pixels_of(
        &mut self,
        input: Input<'_>,
        frame: Frame,
        oriented: (i32, i32),
        crop: Crop,
        target: (u32, u32),
        settings: &RenderSettings,
    ) -> Result<Crop, Failure> {
        let size = frame.swapped((oriented.0 as u32, oriented.1 as u32));
        let crop = frame.stored_crop(crop, oriented);
        match input {
            Input::Rgb(rgb) => {
                if rgb.len() as u64 != u64::from(size.0) * u64::from(size.1) * 3 {
                    return Err(Failure::decode(Reason::Changed, "an array of another size than planned"));
                }
                self.pixels.take_rgb(rgb, size);
            }
            Input::Encoded(bytes) => {
                let wanted = Wanted {
                    size,
                    crop,
                    target,
                    dct_scaling: settings.dct_scaling,
                    background: settings.background,
                    max_pixels: settings.max_pixels,
                    depth: settings.depth.0,
                    keep_damaged: settings.damaged == Damaged::Keep,
                    convert: settings.profiles == Profiles::Convert,
                };
                self.decoder.decode(bytes, &wanted, &mut self.pixels)?;
            }
        }
        Ok(crop)
    }

    /// A whole image in the floats of a foreign tensor.
    pub(super) fn floats(
        &mut self,
        wanted: &mut Wholly<'_>,
        form: &Form,
        settings: &RenderSettings,
    ) -> Result<(), Failure> {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let (frame, (width, height)) = (Frame::new(wanted.orientation), wanted.size);
            let target = frame.swapped(wanted.target);
            let whole = Crop { top: 0, left: 0, height, width };
            let crop = self.pixels_of(wanted.input, frame, wanted.size, whole, target, settings)?;
            self.resizer.resize(&self.pixels, crop, target, settings.filter, &mut self.small);
            let scratch = (&mut self.scratch, &mut self.line);
            strew(&self.small, frame, wanted.columns, wanted.places, form, scratch, wanted.out);
            Ok(())
        }))
        .unwrap_or_else(|panic| Err(Failure::decode(Reason::Panic, said(&*panic))));
        self.pixels.trim();
        outcome
    }

    /// The decoded image in one view.
    fn view(
        &mut self,
        (image, warp): (&PlannedImage, Option<&Warp>),
        segment: i16,
        place: &mut Place<'_>,
        (frame, crop): (Frame, Crop),
        filter: Filter,
        clocks: &Clocks,
    ) {
        let from = Instant::now();
        self.resizer.resize(&self.pixels, crop, target_size(frame, place), filter, &mut self.small);
        let from = lap(&clocks.resize, from);
        self.positions(image.key, segment, place);
        let (columns, p) = (usize::from(place.grid.w), place.patch_size() as usize);
        let (prefix, patches) = place.patches();
        prefix.fill(0);
        let turned = if image.flip { frame.flipped() } else { frame };
        let (small, tokens, line) = (&self.small, &self.tokens, &mut self.line);
        match warp.filter(|warp| warp.map != Warp::NONE.map) {
            Some(warp) => self.warper.patchify(small, turned, columns, p, tokens, &warp.map, line, patches),
            None => patchify(small, turned, columns, p, tokens, line, patches),
        }
        lap(&clocks.patches, from);
    }

    /// The image's mask in the cells of its kept tokens. There is one view alone where there are masks.
    fn cells(
        &mut self,
        file: &[u8],
        places: &mut Places<'_>,
        source: &Source,
        settings: &RenderSettings,
        clocks: &Clocks,
    ) -> Result<(), Failure> {
        let Some(fields) = &places.layout().masks else { return Ok(()) };
        let from = Instant::now();
        let (image, warp, tokens) = (places.image, places.warp, self.tokens.as_slice());
        let wanted = WantedMask { image, warp, grid: image.grid, tokens, max_pixels: settings.max_pixels };
        let filled = self.masker.fill(&wanted, fields, source, file, places.masks(fields));
        lap(&clocks.patches, from);
        filled
    }

    /// Positions and segment ids of the image's slots in one view; leaves its kept tokens in `self.tokens`.
    fn positions(&mut self, key: u64, segment: i16, place: &mut Place<'_>) {
        let (grid, kept) = (place.grid, place.kept);
        self.tokens.clear();
        if kept == grid.tokens() as usize {
            self.tokens.extend(0..grid.tokens());
        } else {
            kept_tokens(key, grid.tokens(), kept as u32, &mut self.tokens);
        }
        let (prefix, own) = place.segments();
        prefix.fill(segment);
        own.fill(segment);
        let (prefix, own) = place.positions();
        for (j, to) in prefix.chunks_exact_mut(2).enumerate() {
            to.copy_from_slice(&[-1, j as i16]);
        }
        let columns = u32::from(grid.w);
        for (to, &token) in own.chunks_exact_mut(2).zip(&self.tokens) {
            to.copy_from_slice(&[(token / columns) as i16, (token % columns) as i16]);
        }
    }

    /// Positions and segment ids in every view, of an image without pixels.
    pub(super) fn take_places(&mut self, places: &mut Places<'_>) {
        let (key, segment) = (places.image.key, places.segment);
        for place in places.views() {
            self.positions(key, segment, place);
        }
    }

    /// A failed image, in every view: its segment stays, its tokens belong to nobody and hold nothing.
    pub(super) fn mask(&mut self, places: &mut Places<'_>) {
        let key = places.image.key;
        for place in places.views() {
            self.positions(key, -1, place);
            let (prefix, patches) = place.patches();
            prefix.fill(0);
            patches.fill(0);
        }
        if let Some(fields) = &places.layout().masks {
            places.masks(fields).fill(VOID);
        }
        if let Some(fields) = &places.layout().boxes {
            places.mask_boxes(fields);
        }
        *places.status() = FAILED;
    }
}

/// Width and height, as stored, to which a view's crop is resized.
fn target_size(frame: Frame, place: &Place<'_>) -> (u32, u32) {
    let (grid, p) = (place.grid, place.patch_size());
    frame.swapped((u32::from(grid.w) * p, u32::from(grid.h) * p))
}
