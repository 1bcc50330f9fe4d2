//! Where things go in a batch's block. In: a block and its layout, and an image with its number. Out: the image's slots
//! in each view and its own values, found once and named; or every field whole, for whoever has the block to itself.
//!
//! Apart, since all writing to blocks that several threads share goes through here: what is `unsafe` in rendering is
//! one promise, that an image's places are in one hand at a time.

use crate::render::field::{Field, Value};
use crate::render::layout::{BatchLayout, EncodedFields, ImageFields, ViewFields};
use crate::render::memory::Block;
use crate::slots::{Grid, PlannedImage};

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
    /// Its segment: which image of its sequence it is.
    pub segment: i16,
    view: Place<'a>,
    teacher: Option<Place<'a>>,
    block: &'a Block,
    layout: &'a BatchLayout,
    /// Its number among the B·E images that the batch has room for.
    number: usize,
}

impl<'a> Places<'a> {
    /// The places of image `i` of sequence `s`.
    ///
    /// # Safety
    /// The batch was checked against its limits, `layout` is that of `block`, and nobody else uses this image's places
    /// while these are there.
    pub unsafe fn of(image: &'a PlannedImage, (s, i): (u32, u32), layout: &'a BatchLayout, block: &'a Block) -> Self {
        let s = s as usize;
        Self {
            image,
            segment: i as i16,
            view: Place::of(image, s, &layout.view, false, block),
            teacher: layout.teacher.as_ref().map(|fields| Place::of(image, s, fields, true, block)),
            block,
            layout,
            number: s * layout.max_images + i as usize,
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

/// Whole fields of one view, named as in `ViewFields`.
pub struct ViewValues<'a> {
    pub patches: &'a mut [u8],
    pub positions: &'a mut [i16],
    pub segment_ids: &'a mut [i16],
    pub cu_seqlens: &'a mut [i32],
    pub grids: &'a mut [i16],
}

/// Whole fields of the images, named as in `ImageFields`.
pub struct ImageValues<'a> {
    pub status: &'a mut [u8],
    pub labels: &'a mut [i64],
    pub image_ids: &'a mut [i64],
    pub source_ids: &'a mut [i16],
    pub sizes: &'a mut [i32],
    pub crops: &'a mut [i32],
    pub flips: &'a mut [u8],
    pub text: &'a mut [i32],
    pub text_cu_seqlens: &'a mut [i32],
}

/// Whole fields of an encoded batch, named as in `EncodedFields`.
pub struct EncodedValues<'a> {
    pub keys: &'a mut [i64],
    pub orientations: &'a mut [u8],
    pub spans: &'a mut [i64],
    pub uri_spans: &'a mut [i64],
    pub file_offsets: &'a mut [i64],
    pub data: &'a mut [u8],
}

impl ViewFields {
    /// Its values in a block that is nobody else's.
    pub fn whole<'a>(&self, block: &'a mut Block) -> ViewValues<'a> {
        let block = &*block;
        // SAFETY: different fields of a block that is borrowed whole.
        unsafe {
            ViewValues {
                patches: block.whole(&self.patches),
                positions: block.whole(&self.positions),
                segment_ids: block.whole(&self.segment_ids),
                cu_seqlens: block.whole(&self.cu_seqlens),
                grids: block.whole(&self.grids),
            }
        }
    }
}

impl ImageFields {
    /// Their values in a block that is nobody else's.
    pub fn whole<'a>(&self, block: &'a mut Block) -> ImageValues<'a> {
        let block = &*block;
        // SAFETY: different fields of a block that is borrowed whole.
        unsafe {
            ImageValues {
                status: block.whole(&self.status),
                labels: block.whole(&self.labels),
                image_ids: block.whole(&self.image_ids),
                source_ids: block.whole(&self.source_ids),
                sizes: block.whole(&self.sizes),
                crops: block.whole(&self.crops),
                flips: block.whole(&self.flips),
                text: block.whole(&self.text),
                text_cu_seqlens: block.whole(&self.text_cu_seqlens),
            }
        }
    }
}

impl EncodedFields {
    /// Their values in a block that is nobody else's.
    pub fn whole<'a>(&self, block: &'a mut Block) -> EncodedValues<'a> {
        let block = &*block;
        // SAFETY: different fields of a block that is borrowed whole.
        unsafe {
            EncodedValues {
                keys: block.whole(&self.keys),
                orientations: block.whole(&self.orientations),
                spans: block.whole(&self.spans),
                uri_spans: block.whole(&self.uri_spans),
                file_offsets: block.whole(&self.file_offsets),
                data: block.whole(&self.data),
            }
        }
    }
}
