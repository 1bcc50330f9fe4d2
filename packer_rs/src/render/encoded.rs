//! Batches that carry encoded files in place of pixels. In: planned batches, and files as they are fetched. Out: the same
//! blocks as for pixels, except that `patches` has no bytes and `data` has the files, one after another, then their names.
//!
//! Apart from `worker`, since nothing is decoded: whoever takes the batch does that (`navit_loader.render.dali`). A file that cannot
//! be had is masked here, exactly as it would be with pixels; one that cannot be decoded is found out at the other end.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::failure::{Failure, Reason};
use crate::fetch::Source;
use crate::render::layout::{BatchLayout, EncodedFields};
use crate::render::memory::Block;
use crate::slots::{BatchLimits, PlannedBatch, PlannedImage};

use super::worker::Worker;

/// Names longer than this are cut: they are for messages alone.
const NAME_BYTES: usize = 4096;

fn name(source: &Source, row: usize) -> String {
    let mut uri = source.uri(row);
    if uri.len() > NAME_BYTES {
        let end = (0..=NAME_BYTES).rev().find(|&n| uri.is_char_boundary(n)).unwrap_or(0);
        uri.truncate(end);
    }
    uri
}

/// Bytes of the files and names of a batch, as its indexes have them.
///
/// # Errors
/// They are more than `most`; the largest file is named. So a damaged length never becomes an allocation.
pub fn data_bytes(plan: &PlannedBatch, sources: &[Source], most: usize) -> Result<usize> {
    let mut sum = 0usize;
    let mut largest = (0, String::new());
    for image in plan.sequences.iter().flatten() {
        let (source, row) = (&sources[usize::from(image.source)], image.row as usize);
        let (length, uri) = (source.length(row), name(source, row));
        sum = sum.saturating_add(length).saturating_add(uri.len());
        if length > largest.0 {
            largest = (length, uri);
        }
    }
    if sum > most {
        let (length, uri) = largest;
        return Err(Error::new(
            Kind::Render,
            format!(
                "the files of batch {} have {sum} bytes in all, more than render.memory_mb allows ({most}); the largest is \
                 '{uri}' with {length}: raise it, or lower data.batch_size",
                plan.first
            ),
        ));
    }
    Ok(sum)
}

/// The layout of one encoded batch: each has its own number of bytes.
pub fn layout(plan: &PlannedBatch, limits: &BatchLimits, sources: &[Source], most: usize) -> Result<Arc<BatchLayout>> {
    let data = data_bytes(plan, sources, most)?;
    Ok(Arc::new(BatchLayout::encoded(limits, plan.patch_size, plan.batch_size, data)?))
}

/// Writes what is known before any file is fetched. Nobody else may use the block meanwhile.
pub fn fill_encoded(
    batch: &PlannedBatch,
    layout: &BatchLayout,
    encoded: &EncodedFields,
    sources: &[Source],
    block: &Block,
) {
    let [keys, orientations, spans, uri_spans, file_offsets, data] = &encoded.fields;
    // SAFETY: whole fields of their own types, and the caller has the block to itself.
    let (keys, orientations, spans, uri_spans, file_offsets, data) = unsafe {
        (
            block.part::<i64>(keys, 0, keys.len()),
            block.part::<u8>(orientations, 0, orientations.len()),
            block.part::<i64>(spans, 0, spans.len()),
            block.part::<i64>(uri_spans, 0, uri_spans.len()),
            block.part::<i64>(file_offsets, 0, file_offsets.len()),
            block.part::<u8>(data, 0, data.len()),
        )
    };
    keys.fill(0);
    orientations.fill(0);
    spans.fill(0);
    uri_spans.fill(0);
    file_offsets.fill(0);
    let places = || {
        let sequences = batch.sequences.iter().enumerate();
        sequences.flat_map(|(s, q)| q.iter().enumerate().map(move |(i, image)| (s * layout.max_images + i, image)))
    };
    let mut end = 0;
    for (at, image) in places() {
        let (source, row) = (&sources[usize::from(image.source)], image.row as usize);
        let l = &source.locations;
        keys[at] = image.key.cast_signed();
        orientations[at] = if row < l.orientation.len() { l.orientation.get(row) } else { 1 };
        file_offsets[at] = if row < l.offset.len() { l.offset.get(row) } else { 0 };
        // The length stays 0 until the file is there.
        spans[at * 2] = end as i64;
        end += source.length(row);
    }
    for (at, image) in places() {
        let uri = name(&sources[usize::from(image.source)], image.row as usize);
        uri_spans[at * 2..at * 2 + 2].copy_from_slice(&[end as i64, uri.len() as i64]);
        data[end..end + uri.len()].copy_from_slice(uri.as_bytes());
        end += uri.len();
    }
}

impl Worker {
    /// Puts the bytes of image `i` of sequence `s` in their place, or masks its slots. What a failed file leaves free holds
    /// nothing, so that a batch is the same whoever makes it.
    #[allow(clippy::too_many_arguments)]
    pub fn keep(
        &mut self,
        fetched: std::result::Result<&[u8], Failure>,
        image: &PlannedImage,
        (s, i): (usize, usize),
        source: &Source,
        layout: &BatchLayout,
        encoded: &EncodedFields,
        block: &Block,
    ) -> std::result::Result<(), Failure> {
        let [_, _, spans, _, _, data] = &encoded.fields;
        let at = s * layout.max_images + i;
        // SAFETY: the image's own values of an i64 field.
        let span = unsafe { block.part::<i64>(spans, at * 2, 2) };
        let length = source.length(image.row as usize);
        // SAFETY: the image's own bytes of a u8 field; `fill_encoded` has laid them out by the same lengths.
        let place = unsafe { block.part::<u8>(data, span[0] as usize, length) };
        let fetched = fetched.and_then(|bytes| {
            let same = bytes.len() == length;
            let changed = || format!("{} bytes, but {length} when it was indexed", bytes.len());
            if same { Ok(bytes) } else { Err(Failure::fetch(Reason::Changed, changed())) }
        });
        match fetched {
            Ok(bytes) => {
                place.copy_from_slice(bytes);
                span[1] = length as i64;
                self.take_places(image, (s, i), layout, block);
                Ok(())
            }
            Err(failure) => {
                place.fill(0);
                self.mask_all(image, (s, i), layout, block);
                Err(failure)
            }
        }
    }
}
