//! How one block of memory is cut into the fields of a batch. In: limits, P and B. Out: where each field lies: in the order of
//! the wire, each at a multiple of 64, so that a block can be handed to another process as it is.

use crate::error::{Error, Kind, Result};
use crate::render::field::{ALIGN, Dtype, Field};
use crate::slots::{BatchLimits, ViewLimits};

/// The fields of one view.
#[derive(Clone, Debug)]
pub struct ViewFields {
    /// patches, positions, segment_ids, cu_seqlens, grids
    pub fields: [Field; 5],
    /// Its limits.
    pub limits: ViewLimits,
    /// Its P.
    pub patch_size: u32,
}

impl ViewFields {
    /// Bytes of one patch: P·P·3, or 0 in a batch of encoded files.
    pub fn bytes_per_token(&self) -> usize {
        self.fields[0].shape[2]
    }
}

/// Where each field of a batch lies.
#[derive(Clone, Debug)]
pub struct BatchLayout {
    /// The batch's own view.
    pub view: ViewFields,
    /// The teacher's view.
    pub teacher: Option<ViewFields>,
    /// status, labels, image_ids, source_ids, sizes, crops, flips, text, text_cu_seqlens
    pub rest: [Field; 9],
    /// E.
    pub max_images: usize,
    /// B.
    pub batch_size: usize,
    /// Where encoded files lie, in a batch that carries them in place of pixels.
    pub encoded: Option<EncodedFields>,
    /// Bytes of the block.
    pub bytes: usize,
}

/// The fields that a batch of encoded files has besides; its `patches` have no bytes.
#[derive(Clone, Debug)]
pub struct EncodedFields {
    /// keys, orientations, spans, uri_spans, file_offsets, data
    pub fields: [Field; 6],
}

impl BatchLayout {
    /// The layout of a batch of `batch_size` sequences with patches of `patch_size`.
    pub fn new(limits: &BatchLimits, patch_size: u32, batch_size: usize) -> Result<Self> {
        Self::make(limits, patch_size, batch_size, None)
    }

    /// The layout of the same batch with encoded files in place of pixels: `data` bytes of files and names.
    pub fn encoded(limits: &BatchLimits, patch_size: u32, batch_size: usize, data: usize) -> Result<Self> {
        let mut layout = Self::make(limits, patch_size, batch_size, Some(data))?;
        // Every such batch has another size. Coarse steps, an eighth of the size at most, let the pool use blocks again.
        let step = (layout.bytes.next_power_of_two() / 16).max(ALIGN);
        layout.bytes = layout.bytes.next_multiple_of(step);
        Ok(layout)
    }

    fn make(limits: &BatchLimits, patch_size: u32, batch_size: usize, data: Option<usize>) -> Result<Self> {
        let mut end = 0usize;
        let mut too_large = false;
        let mut field = |name, dtype, shape: &[usize]| {
            let width = match dtype {
                Dtype::U8 => 1,
                Dtype::I16 => 2,
                Dtype::I32 => 4,
                Dtype::I64 => 8,
            };
            let offset = end;
            let bytes = shape.iter().try_fold(width, |n: usize, &s| n.checked_mul(s));
            let next = bytes.and_then(|b| end.checked_add(b)).and_then(|e| e.checked_next_multiple_of(ALIGN));
            match next {
                Some(next) if next <= isize::MAX as usize / 2 => end = next,
                _ => too_large = true,
            }
            Field { name, dtype, shape: shape.to_vec(), offset }
        };
        let (b, e, k) = (batch_size, limits.max_images as usize, limits.label_width as usize);
        let view = |field: &mut dyn FnMut(&'static str, Dtype, &[usize]) -> Field, limits: ViewLimits, p: u32| {
            let (l, m) = (limits.sequence_length as usize, limits.max_tokens.max(1) as usize);
            let cuts = b.saturating_mul(e + l.div_ceil(m)).saturating_add(1);
            let p2 = if data.is_some() { 0 } else { (p as usize).saturating_mul(p as usize).saturating_mul(3) };
            ViewFields {
                fields: [
                    field("patches", Dtype::U8, &[b, l, p2]),
                    field("positions", Dtype::I16, &[b, l, 2]),
                    field("segment_ids", Dtype::I16, &[b, l]),
                    field("cu_seqlens", Dtype::I32, &[cuts]),
                    field("grids", Dtype::I16, &[b, e, 2]),
                ],
                limits,
                patch_size: p,
            }
        };
        let own = view(&mut field, limits.view, patch_size);
        let t = limits.text_tokens as usize;
        let text_shape = [b, t];
        let rest = [
            field("status", Dtype::U8, &[b, e]),
            field("labels", Dtype::I64, &[b, e, k]),
            field("image_ids", Dtype::I64, &[b, e]),
            field("source_ids", Dtype::I16, &[b, e]),
            field("sizes", Dtype::I32, &[b, e, 2]),
            field("crops", Dtype::I32, &[b, e, 4]),
            field("flips", Dtype::U8, &[b, e]),
            field("text", Dtype::I32, if t == 0 { &[0] } else { &text_shape }),
            field("text_cu_seqlens", Dtype::I32, &[if t == 0 { 0 } else { b * (e + 1) + 1 }]),
        ];
        let teacher = limits.teacher.map(|(limits, p)| view(&mut field, limits, p));
        let encoded = data.map(|data| EncodedFields {
            fields: [
                field("keys", Dtype::I64, &[b, e]),
                field("orientations", Dtype::U8, &[b, e]),
                field("spans", Dtype::I64, &[b, e, 2]),
                field("uri_spans", Dtype::I64, &[b, e, 2]),
                field("file_offsets", Dtype::I64, &[b, e]),
                field("data", Dtype::U8, &[data]),
            ],
        });
        // Offsets into the flattened tokens are 32-bit.
        let tokens = [Some(limits.view), limits.teacher.map(|(v, _)| v)].into_iter().flatten();
        if too_large || tokens.map(|v| v.sequence_length as usize).any(|l| b.saturating_mul(l) > i32::MAX as usize) {
            return Err(Error::new(
                Kind::Render,
                format!("a batch of {batch_size} sequences is too large for one buffer; lower data.batch_size"),
            ));
        }
        Ok(Self { view: own, teacher, rest, max_images: e, batch_size: b, encoded, bytes: end.max(ALIGN) })
    }
}
