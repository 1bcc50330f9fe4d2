//! Where an image's values go in a batch's block. In: a block and its layout, and an image with its number. Out: the image's
//! slots in each view and its own values, found once and named.
//!
//! Apart, since all writing to blocks that several threads share goes through here: what is `unsafe` in it is one promise,
//! that an image's places are in one hand at a time.

use crate::render::field::{Field, Value};
use crate::render::layout::{BatchLayout, BoxFields, EncodedFields, MaskFields, ViewFields};
use crate::render::memory::Block;
use crate::render::targets::VOID;
use crate::slots::{Grid, PlannedBatch, PlannedImage, Warp};

/// First slot, tokens after drop and grid of an image in one view.
pub fn slot(image: &PlannedImage, teacher: bool) -> (usize, usize, Grid) {
    if teacher {
        (image.teacher_offset as usize, image.teacher_grid.tokens() as usize, image.teacher_grid)
    } else {
        (image.offset as usize, image.kept as usize, image.grid)
    }
}

/// One image's slots in one view: those of its prefix tokens, then those of its kept ones.
pub struct Place<'a> {
    block: &'a Block,
    fields: &'a ViewFields,
    /// First slot, counted through all sequences.
    first: usize,
    prefix: usize,
    /// Patch tokens after drop.
    pub kept: usize,
    /// Patches per side before drop.
    pub grid: Grid,
}

impl<'a> Place<'a> {
    fn of(image: &PlannedImage, s: usize, fields: &'a ViewFields, teacher: bool, block: &'a Block) -> Self {
        let (offset, kept, grid) = slot(image, teacher);
        let (length, prefix) = (fields.limits.sequence_length as usize, fields.limits.prefix_tokens as usize);
        Self { block, fields, first: s * length + offset, prefix, kept, grid }
    }

    /// P.
    pub fn patch_size(&self) -> u32 {
        self.fields.patch_size
    }

    /// Pixels: those of the prefix tokens, then those of the kept ones.
    pub fn patches(&mut self) -> (&mut [u8], &mut [u8]) {
        self.slots(&self.fields.patches, self.fields.bytes_per_token())
    }

    /// (y, x): of the prefix tokens, then of the kept ones.
    pub fn positions(&mut self) -> (&mut [i16], &mut [i16]) {
        self.slots(&self.fields.positions, 2)
    }

    /// Segment ids: of the prefix tokens, then of the kept ones.
    pub fn segments(&mut self) -> (&mut [i16], &mut [i16]) {
        self.slots(&self.fields.segment_ids, 1)
    }

    fn slots<T: Value>(&mut self, field: &Field, width: usize) -> (&mut [T], &mut [T]) {
        let all = (self.prefix + self.kept) * width;
        // SAFETY: the image's own slots, and its places are in this hand alone, as `Places::of` was promised.
        unsafe { self.block.part(field, self.first * width, all) }.split_at_mut(self.prefix * width)
    }
}

/// All that belongs to one image of a batch.
pub struct Places<'a> {
    /// What is planned for it.
    pub image: &'a PlannedImage,
    /// What becomes of its pixels, where the plan says anything of it.
    pub warp: Option<&'a Warp>,
    /// Its segment: which image of its sequence it is.
    pub segment: i16,
    view: Place<'a>,
    teacher: Option<Place<'a>>,
    block: &'a Block,
    layout: &'a BatchLayout,
    /// Its number among the B·E images that the batch has room for.
    number: usize,
    /// Its number among the images and paddings of the batch's box offsets.
    boxes: usize,
}

impl<'a> Places<'a> {
    /// The places of image `i` of sequence `s` of `plan`.
    ///
    /// # Safety
    /// The batch was checked against its limits, `layout` is that of `block`, and nobody else uses this image's places
    /// while these are there.
    pub unsafe fn of(plan: &'a PlannedBatch, (s, i): (u32, u32), layout: &'a BatchLayout, block: &'a Block) -> Self {
        let (s, i) = (s as usize, i as usize);
        let image = &plan.sequences[s][i];
        Self {
            image,
            warp: plan.warp(s, i),
            segment: i as i16,
            view: Place::of(image, s, &layout.view, false, block),
            teacher: layout.teacher.as_ref().map(|fields| Place::of(image, s, fields, true, block)),
            block,
            layout,
            number: s * layout.max_images + i,
            boxes: plan.sequences[..s].iter().map(|sequence| sequence.len() + 1).sum::<usize>() + i,
        }
    }

    /// Its slots in each view.
    pub fn views(&mut self) -> impl Iterator<Item = &mut Place<'a>> {
        std::iter::once(&mut self.view).chain(&mut self.teacher)
    }

    /// Its status.
    pub fn status(&mut self) -> &mut u8 {
        &mut self.values(&self.layout.images.status, self.number, 1)[0]
    }

    /// The cells of its kept tokens, those of its prefix tokens hold nothing then.
    pub fn masks(&mut self, fields: &MaskFields) -> &mut [i16] {
        let (prefix, own) = self.view.slots(&fields.masks, fields.side * fields.side);
        prefix.fill(VOID);
        own
    }

    /// Takes its boxes away: an image that is not seen has none, though they keep their slots.
    pub fn mask_boxes(&mut self, fields: &BoxFields) {
        // SAFETY: written before any image was handed out, and by nobody since.
        let ends: &[i32] = unsafe { self.block.read(&fields.box_cu_seqlens, self.boxes, 2) };
        let (first, count) = (ends[0] as usize, (ends[1] - ends[0]) as usize);
        self.values(&fields.boxes, 4 * first, 4 * count).fill(0f32);
        self.values(&fields.box_labels, first, count).fill(-1i32);
        self.values(&fields.box_flags, first, count).fill(0u8);
        self.values(&fields.box_places, first, count).fill(-1i16);
    }

    /// The batch's layout.
    pub fn layout(&self) -> &'a BatchLayout {
        self.layout
    }

    /// Where its file starts in the encoded batch's data, and how long it is.
    pub fn span(&mut self, encoded: &EncodedFields) -> &mut [i64] {
        self.values(&encoded.spans, 2 * self.number, 2)
    }

    /// Its bytes in the encoded batch's data, as they were laid out.
    pub fn data(&mut self, encoded: &EncodedFields, length: usize) -> &mut [u8] {
        let start = self.span(encoded)[0] as usize;
        self.values(&encoded.data, start, length)
    }

    fn values<T: Value>(&mut self, field: &Field, at: usize, len: usize) -> &mut [T] {
        // SAFETY: the image's own values, and they are in this hand alone, as `of` was promised.
        unsafe { self.block.part(field, at, len) }
    }
}
