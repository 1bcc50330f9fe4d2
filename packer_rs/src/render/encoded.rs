//! Batches that carry encoded files in place of pixels. In: planned batches, and files as they are fetched. Out: the
//! same blocks as for pixels, except that `patches` has no bytes and `data` has the files, one after another, then
//! their names.
//!
//! Apart from `worker`, since nothing is decoded: whoever takes the batch does that (`navit_loader.render.device`). A
//! file that cannot be had is masked here, exactly as it would be with pixels; one that cannot be decoded is found out
//! at the other end.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::failure::{Failure, Reason};
use crate::fetch::Source;
use crate::render::layout::{BatchLayout, EncodedFields, EncodedValues};
use crate::render::memory::Block;
use crate::render::place::Places;
use crate::slots::{BatchLimits, PlannedBatch};

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

/// Writes what is known before any file is fetched.
pub fn fill_encoded(
    batch: &PlannedBatch,
    layout: &BatchLayout,
    encoded: &EncodedFields,
    sources: &[Source],
    block: &mut Block,
) {
    let EncodedValues { keys, orientations, spans, uri_spans, file_offsets, data } = encoded.whole(block);
    keys.fill(0);
    orientations.fill(0);
    spans.fill(0);
    uri_spans.fill(0);
    file_offsets.fill(0);
    let numbered = || {
        let sequences = batch.sequences.iter().enumerate();
        sequences.flat_map(|(s, q)| q.iter().enumerate().map(move |(i, image)| (s * layout.max_images + i, image)))
    };
    let mut end = 0;
    for (at, image) in numbered() {
        let (source, row) = (&sources[usize::from(image.source)], image.row as usize);
        let l = &source.locations;
        keys[at] = image.key.cast_signed();
        orientations[at] = if row < l.orientation.len() { l.orientation.get(row) } else { 1 };
        file_offsets[at] = if row < l.offset.len() { l.offset.get(row) } else { 0 };
        // The length stays 0 until the file is there.
        spans[at * 2] = end as i64;
        end += source.length(row);
    }
    for (at, image) in numbered() {
        let uri = name(&sources[usize::from(image.source)], image.row as usize);
        uri_spans[at * 2..at * 2 + 2].copy_from_slice(&[end as i64, uri.len() as i64]);
        data[end..end + uri.len()].copy_from_slice(uri.as_bytes());
        end += uri.len();
    }
}

impl Worker {
    /// Puts the bytes of an image in their place, or masks its slots. What a failed file leaves free holds nothing, so
    /// that a batch is the same whoever makes it.
    pub fn keep(
        &mut self,
        fetched: std::result::Result<&[u8], Failure>,
        places: &mut Places<'_>,
        source: &Source,
        encoded: &EncodedFields,
    ) -> std::result::Result<(), Failure> {
        let length = source.length(places.image.row as usize);
        let fetched = fetched.and_then(|bytes| {
            let same = bytes.len() == length;
            let changed = || format!("{} bytes, but {length} when it was indexed", bytes.len());
            if same { Ok(bytes) } else { Err(Failure::fetch(Reason::Changed, changed())) }
        });
        match fetched {
            Ok(bytes) => {
                places.data(encoded, length).copy_from_slice(bytes);
                places.span(encoded)[1] = length as i64;
                self.take_places(places);
                Ok(())
            }
            Err(failure) => {
                places.data(encoded, length).fill(0);
                self.mask(places);
                Err(failure)
            }
        }
    }
}
