//! What a batch looks like: the one definition of its fields, their types, shapes and places. In: limits, P and B. Out:
//! where each field lies in the batch's block: in the order of the wire, each at a multiple of 64, so that a block can
//! be handed to another process as it is. Python asks for it (`_packer.batch_fields`); docs/protocol.md says it in
//! words.

use crate::error::{Error, Kind, Result};
use crate::render::field::{ALIGN, Dtype, Field};
use crate::render::memory::Block;
use crate::slots::{BatchLimits, ViewLimits};

/// Fields by name, in the order of the wire, with whatever else is kept beside them; and their values in a block, by the
/// same names.
macro_rules! fields {
    ($(#[$about:meta])* $fields:ident as $values:ident: $($name:ident $value:ty),*; $($beside:ident $of:ty),*) => {
        $(#[$about])*
        #[derive(Clone, Debug)]
        #[expect(missing_docs, reason = "named and documented as in navit_loader.batch and navit_loader.render.encoded")]
        pub struct $fields {
            $(pub $name: Field,)*
            $(pub $beside: $of,)*
        }

        /// Whole fields of a block.
        #[expect(missing_docs, reason = "named as the fields are")]
        pub struct $values<'a> {
            $(pub $name: &'a mut [$value],)*
        }

        impl $fields {
            /// In the order of the wire.
            pub fn fields(&self) -> impl Iterator<Item = &Field> {
                [$(&self.$name),*].into_iter()
            }

            /// Their values in a block that is nobody else's.
            pub fn whole<'a>(&self, block: &'a mut Block) -> $values<'a> {
                let block = &*block;
                // SAFETY: different fields of a block that is borrowed whole.
                unsafe { $values { $($name: block.whole(&self.$name),)* } }
            }
        }
    };
}

fields! {
    /// The fields of one view, its limits and its P.
    ViewFields as ViewValues:
    patches u8, positions i16, segment_ids i16, cu_seqlens i32, grids i16; limits ViewLimits, patch_size u32
}

fields! {
    /// The fields that say something of images, whatever the view.
    ImageFields as ImageValues:
    status u8, labels i64, image_ids i64, source_ids i16, sizes i32, crops i32, flips u8, text i32, text_cu_seqlens i32;
}

fields! {
    /// The fields that a batch of warped images has besides.
    WarpFields as WarpValues:
    warps f32, warp_layers u8;
}

fields! {
    /// The fields that a batch with boxes has besides.
    BoxFields as BoxValues:
    boxes f32, box_labels i32, box_flags u8, box_places i16, box_cu_seqlens i32;
}

fields! {
    /// The field that a batch with masks has besides, its cells per side of a patch, and whether they tell regions.
    MaskFields as MaskValues:
    masks i16; side usize, regions bool
}

fields! {
    /// The fields that a batch of encoded files has besides; its `patches` have no bytes.
    EncodedFields as EncodedValues:
    keys i64, orientations u8, spans i64, uri_spans i64, file_offsets i64, data u8;
}

impl ViewFields {
    /// Bytes of one patch: P·P·3, or 0 in a batch of encoded files.
    pub fn bytes_per_token(&self) -> usize {
        self.patches.shape()[2]
    }
}

/// Where each field of a batch lies.
#[derive(Clone, Debug)]
pub struct BatchLayout {
    /// The batch's own view.
    pub view: ViewFields,
    /// What is said of its images.
    pub images: ImageFields,
    /// How they are warped, in a plan that does.
    pub warps: Option<WarpFields>,
    /// Their boxes, in a plan that wants them.
    pub boxes: Option<BoxFields>,
    /// Their masks, likewise.
    pub masks: Option<MaskFields>,
    /// The teacher's view.
    pub teacher: Option<ViewFields>,
    /// Where encoded files lie, in a batch that carries them in place of pixels.
    pub encoded: Option<EncodedFields>,
    /// E.
    pub max_images: usize,
    /// B.
    pub batch_size: usize,
    /// Bytes of the block.
    pub bytes: usize,
}

impl BatchLayout {
    /// The layout of a batch of `batch_size` sequences with patches of `patch_size`.
    pub fn new(limits: &BatchLimits, patch_size: u32, batch_size: usize) -> Result<Self> {
        Self::of(limits, patch_size, batch_size, None).checked()
    }

    /// The layout of the same batch with encoded files in place of pixels: `data` bytes of files and names.
    pub fn encoded(limits: &BatchLimits, patch_size: u32, batch_size: usize, data: usize) -> Result<Self> {
        let mut layout = Self::of(limits, patch_size, batch_size, Some(data)).checked()?;
        // Every such batch has another size. Coarse steps, an eighth of the size at most, let the pool use blocks
        // again.
        let step = (layout.bytes.next_power_of_two() / 16).max(ALIGN);
        layout.bytes = layout.bytes.next_multiple_of(step);
        Ok(layout)
    }

    /// Its fields in the order of the wire; those of the teacher's view are marked.
    pub fn fields(&self) -> impl Iterator<Item = (&Field, bool)> {
        let warps = self.warps.iter().flat_map(WarpFields::fields);
        let boxes = self.boxes.iter().flat_map(BoxFields::fields);
        let targets = boxes.chain(self.masks.iter().flat_map(MaskFields::fields));
        let own = self.view.fields().chain(self.images.fields()).chain(warps).chain(targets);
        let own = own.map(|field| (field, false));
        let teacher = self.teacher.iter().flat_map(ViewFields::fields).map(|field| (field, true));
        own.chain(teacher).chain(self.encoded.iter().flat_map(EncodedFields::fields).map(|field| (field, false)))
    }

    fn checked(self) -> Result<Self> {
        // Offsets into the flattened tokens are 32-bit.
        let views = std::iter::once(&self.view).chain(&self.teacher);
        let most = views.map(|v| self.batch_size.saturating_mul(v.limits.sequence_length as usize)).max();
        if self.bytes > isize::MAX as usize / 2 || most > Some(i32::MAX as usize) {
            let b = self.batch_size;
            let message = format!("a batch of {b} sequences is too large for one buffer; lower data.batch_size");
            return Err(Error::new(Kind::Render, message));
        }
        Ok(self)
    }

    /// What such a batch looks like, with `data` bytes of files and names where it is an encoded one, however large it
    /// would be.
    pub fn of(limits: &BatchLimits, patch_size: u32, batch_size: usize, data: Option<usize>) -> Self {
        let mut end = 0usize;
        let mut field = |name, dtype: Dtype, shape: &[usize]| {
            let offset = end;
            let bytes = shape.iter().fold(dtype.bytes(), |n, &side| n.saturating_mul(side));
            end = end.saturating_add(bytes).checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
            Field::new(name, dtype, shape, offset)
        };
        let (b, e, k) = (batch_size, limits.max_images as usize, limits.label_width as usize);
        let view = |field: &mut dyn FnMut(&'static str, Dtype, &[usize]) -> Field, limits: ViewLimits, p: u32| {
            let (l, m) = (limits.sequence_length as usize, limits.max_tokens.max(1) as usize);
            let cuts = b.saturating_mul(e + l.div_ceil(m)).saturating_add(1);
            let p2 = if data.is_some() { 0 } else { (p as usize).saturating_mul(p as usize).saturating_mul(3) };
            ViewFields {
                patches: field("patches", Dtype::U8, &[b, l, p2]),
                positions: field("positions", Dtype::I16, &[b, l, 2]),
                segment_ids: field("segment_ids", Dtype::I16, &[b, l]),
                cu_seqlens: field("cu_seqlens", Dtype::I32, &[cuts]),
                grids: field("grids", Dtype::I16, &[b, e, 2]),
                limits,
                patch_size: p,
            }
        };
        let own = view(&mut field, limits.view, patch_size);
        let t = limits.text_tokens as usize;
        let text_shape = [b, t];
        let images = ImageFields {
            status: field("status", Dtype::U8, &[b, e]),
            labels: field("labels", Dtype::I64, &[b, e, k]),
            image_ids: field("image_ids", Dtype::I64, &[b, e]),
            source_ids: field("source_ids", Dtype::I16, &[b, e]),
            sizes: field("sizes", Dtype::I32, &[b, e, 2]),
            crops: field("crops", Dtype::I32, &[b, e, 4]),
            flips: field("flips", Dtype::U8, &[b, e]),
            text: field("text", Dtype::I32, if t == 0 { &[0] } else { &text_shape }),
            text_cu_seqlens: field("text_cu_seqlens", Dtype::I32, &[if t == 0 { 0 } else { b * (e + 1) + 1 }]),
        };
        let warps = limits.warps.then(|| WarpFields {
            warps: field("warps", Dtype::F32, &[b, e, 9]),
            warp_layers: field("warp_layers", Dtype::U8, &[b, e]),
        });
        let (o, cells) = (limits.targets.boxes as usize, limits.targets.masks as usize);
        let boxes = (o > 0).then(|| BoxFields {
            boxes: field("boxes", Dtype::F32, &[b, o, 4]),
            box_labels: field("box_labels", Dtype::I32, &[b, o]),
            box_flags: field("box_flags", Dtype::U8, &[b, o]),
            box_places: field("box_places", Dtype::I16, &[b, o]),
            box_cu_seqlens: field("box_cu_seqlens", Dtype::I32, &[b.saturating_mul(e + 1).saturating_add(1)]),
        });
        let masks = (cells > 0).then(|| MaskFields {
            masks: field("masks", Dtype::I16, &[b, limits.view.sequence_length as usize, cells * cells]),
            side: cells,
            regions: limits.targets.regions,
        });
        let teacher = limits.teacher.map(|(limits, p)| view(&mut field, limits, p));
        let encoded = data.map(|data| EncodedFields {
            keys: field("keys", Dtype::I64, &[b, e]),
            orientations: field("orientations", Dtype::U8, &[b, e]),
            spans: field("spans", Dtype::I64, &[b, e, 2]),
            uri_spans: field("uri_spans", Dtype::I64, &[b, e, 2]),
            file_offsets: field("file_offsets", Dtype::I64, &[b, e]),
            data: field("data", Dtype::U8, &[data]),
        });
        let bytes = end.max(ALIGN);
        Self { view: own, images, warps, boxes, masks, teacher, encoded, max_images: e, batch_size: b, bytes }
    }
}
