//! Everything of a batch that needs no pixels. In: a planned batch. Out: checked against its limits, and written to its
//! block: segments, padding, identities, geometry. The images' own slots (patches, positions, segment ids) are
//! `worker`'s.

use crate::error::{Error, Kind, Result};
use crate::fetch::Source;
use crate::render::layout::{BatchLayout, ImageValues, MaskValues, ViewFields, ViewValues, WarpValues};
use crate::render::memory::Block;
use crate::render::place::slot;
use crate::render::targets;
use crate::slots::{BatchLimits, PlannedBatch};

/// `PackedBatch.status` of an image that was rendered.
pub const OK: u8 = 1;
/// `PackedBatch.status` of an image that was not.
pub const FAILED: u8 = 2;

/// Refuses a planned batch that does not fit its limits or its indexes: nothing is written on trust.
pub fn check(batch: &PlannedBatch, limits: &BatchLimits, sources: &[Source]) -> Result<()> {
    let bad = |what: String| Err(Error::new(Kind::Render, format!("planned batch {}: {what}", batch.first)));
    if batch.sequences.len() > batch.batch_size {
        return bad(format!("{} sequences, but batch_size = {}", batch.sequences.len(), batch.batch_size));
    }
    if !(1..=4096).contains(&batch.patch_size) {
        return bad(format!("patch_size = {} is not allowed; it must be between 1 and 4096", batch.patch_size));
    }
    if batch.warps.len() > batch.sequences.len() {
        return bad(format!(
            "warps of {} sequences are not allowed with {}; give each image one, or none",
            batch.warps.len(),
            batch.sequences.len()
        ));
    }
    for (s, sequence) in batch.sequences.iter().enumerate() {
        if sequence.len() > limits.max_images as usize {
            return bad(format!(
                "sequence {s} has {} images, more than max_images = {}",
                sequence.len(),
                limits.max_images
            ));
        }
        let (mut ends, mut text_end, mut boxes) = ([0u64; 2], 0u32, 0u32);
        let warps = batch.warps.get(s).map_or(&[][..], Vec::as_slice);
        let belong = if limits.warps { sequence.len() } else { 0 };
        if warps.len() != belong {
            return bad(format!("sequence {s} has {} warps, where {belong} belong", warps.len()));
        }
        for image in sequence {
            let Some(source) = sources.get(usize::from(image.source)) else {
                return bad(format!("sequence {s} names source {}, of {}", image.source, sources.len()));
            };
            let Ok(row) =
                usize::try_from(image.row).map_err(drop).and_then(|r| if r < source.len() { Ok(r) } else { Err(()) })
            else {
                return bad(format!("sequence {s} names image {} of an index of {}", image.row, source.len()));
            };
            let (width, height, c) = (source.width.get(row), source.height.get(row), image.crop);
            let inside =
                |at: i32, len: i32, all: i32| at >= 0 && len >= 1 && i64::from(at) + i64::from(len) <= i64::from(all);
            if !inside(c.left, c.width, width) || !inside(c.top, c.height, height) {
                return bad(format!("image {row} of {width} × {height} pixels has a crop outside it: {c:?}"));
            }
            let views = [Some(limits.view), limits.teacher.map(|(v, _)| v)];
            for (t, view) in views.into_iter().enumerate().filter_map(|(t, v)| Some((t, v?))) {
                let (offset, kept, grid) = slot(image, t == 1);
                let tokens = u64::from(view.prefix_tokens) + kept as u64;
                let fits = kept >= 1
                    && kept <= grid.tokens() as usize
                    && tokens <= u64::from(view.max_tokens)
                    && grid.h.max(grid.w) <= i16::MAX as u16
                    && offset as u64 == ends[t]
                    && ends[t] + tokens <= u64::from(view.sequence_length);
                if !fits {
                    return bad(format!(
                        "image {row} does not fit its slot in sequence {s}: {image:?} within {view:?}"
                    ));
                }
                ends[t] += tokens;
            }
            if limits.text_tokens > 0 {
                let own = caption_tokens(source, row, limits);
                if image.text_offset != text_end || text_end + own > limits.text_tokens {
                    return bad(format!(
                        "image {row} has its caption of {own} tokens at {}, where {text_end} of {} are taken; the index may \
                         hold other captions than were planned: write it again",
                        image.text_offset, limits.text_tokens
                    ));
                }
                text_end += own;
            }
            if limits.targets.boxes > 0 {
                boxes = boxes.saturating_add(targets::count(source, row));
                if boxes > limits.targets.boxes {
                    return bad(format!(
                        "sequence {s} has {boxes} boxes up to image {row}, and room for {}; the index may hold other boxes \
                         than were planned: write it again",
                        limits.targets.boxes
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Tokens that an image's caption takes, as the planner counted them.
fn caption_tokens(source: &Source, row: usize, limits: &BatchLimits) -> u32 {
    if row < source.captions.len() { source.captions.count(row).min(limits.max_text_tokens as usize) as u32 } else { 0 }
}

/// Writes all that needs no pixels.
pub fn fill(batch: &PlannedBatch, layout: &BatchLayout, limits: &BatchLimits, sources: &[Source], block: &mut Block) {
    fill_view(batch, &layout.view, layout, false, block);
    if let Some(teacher) = &layout.teacher {
        fill_view(batch, teacher, layout, true, block);
    }
    if let Some(fields) = &layout.warps {
        let WarpValues { warps, warp_layers } = fields.whole(block);
        warps.fill(0.0);
        warp_layers.fill(0);
        for (s, sequence) in batch.warps.iter().enumerate() {
            for (at, warp) in (s * layout.max_images..).zip(sequence) {
                warps[at * 9..at * 9 + 9].copy_from_slice(&warp.map);
                warp_layers[at] = warp.layers;
            }
        }
    }
    if let Some(fields) = &layout.boxes {
        targets::fill(batch, fields, limits, sources, block);
    }
    if let Some(fields) = &layout.masks {
        let (MaskValues { masks }, cells) = (fields.whole(block), fields.side * fields.side);
        let (l, prefix) = (limits.view.sequence_length as usize, limits.view.prefix_tokens as usize);
        for (s, masks) in masks.chunks_exact_mut(l * cells).enumerate() {
            let last = batch.sequences.get(s).and_then(|sequence| sequence.last());
            let end = last.map_or(0, |image| image.offset as usize + prefix + image.kept as usize);
            masks[end * cells..].fill(targets::VOID);
        }
    }
    let values = layout.images.whole(block);
    let ImageValues { status, labels, image_ids, source_ids, sizes, crops, flips, text, text_cu_seqlens: cuts } =
        values;
    status.fill(0);
    labels.fill(-1);
    image_ids.fill(-1);
    source_ids.fill(-1);
    sizes.fill(0);
    crops.fill(0);
    flips.fill(0);
    let (e, k) = (layout.max_images, limits.label_width as usize);
    for (s, sequence) in batch.sequences.iter().enumerate() {
        for (i, image) in sequence.iter().enumerate() {
            let (at, row) = (s * e + i, image.row as usize);
            let source = &sources[usize::from(image.source)];
            let l = &source.locations;
            // The worker that renders it may set it to failed.
            status[at] = OK;
            for j in 0..k.min(l.label_width) {
                if let Some(n) = (row * l.label_width + j < l.labels.len()).then_some(row * l.label_width + j) {
                    labels[at * k + j] = l.labels.get(n);
                }
            }
            image_ids[at] = row as i64;
            source_ids[at] = image.source as i16;
            sizes[at * 2..at * 2 + 2].copy_from_slice(&[source.height.get(row), source.width.get(row)]);
            let c = image.crop;
            crops[at * 4..at * 4 + 4].copy_from_slice(&[c.top, c.left, c.height, c.width]);
            flips[at] = u8::from(image.flip);
        }
    }
    if limits.text_tokens > 0 {
        text.fill(-1);
        let (b, lt) = (layout.batch_size, limits.text_tokens as usize);
        let mut n = 0;
        for s in 0..b {
            let mut end = s * lt;
            for image in batch.sequences.get(s).map_or(&[][..], Vec::as_slice) {
                cuts[n] = end as i32;
                n += 1;
                let source = &sources[usize::from(image.source)];
                let own = caption_tokens(source, image.row as usize, limits) as usize;
                source.captions.write(image.row as usize, &mut text[end..end + own]);
                end += own;
            }
            // The padding starts where the last caption ends.
            cuts[n] = end as i32;
            n += 1;
        }
        cuts[n..].fill((b * lt) as i32);
    }
}

fn fill_view(batch: &PlannedBatch, view: &ViewFields, layout: &BatchLayout, teacher: bool, block: &mut Block) {
    let (l, m) = (view.limits.sequence_length as usize, view.limits.max_tokens as usize);
    let (prefix, bytes) = (view.limits.prefix_tokens as usize, view.bytes_per_token());
    let ViewValues { patches, positions, segment_ids, cu_seqlens: cuts, grids } = view.whole(block);
    grids.fill(0);
    cuts[0] = 0;
    let mut n = 1;
    for s in 0..layout.batch_size {
        let sequence = batch.sequences.get(s).map_or(&[][..], Vec::as_slice);
        let mut end = 0;
        for (i, image) in sequence.iter().enumerate() {
            let (offset, kept, grid) = slot(image, teacher);
            end = offset + prefix + kept;
            cuts[n] = (s * l + end) as i32;
            n += 1;
            let at = (s * layout.max_images + i) * 2;
            grids[at..at + 2].copy_from_slice(&[grid.h as i16, grid.w as i16]);
        }
        positions[(s * l + end) * 2..(s + 1) * l * 2].fill(-1);
        segment_ids[s * l + end..(s + 1) * l].fill(-1);
        patches[(s * l + end) * bytes..(s + 1) * l * bytes].fill(0);
        // Padding is real segments of at most M: an attention kernel must neither skip it nor see a longer one.
        while end < l {
            end = (end + m).min(l);
            cuts[n] = (s * l + end) as i32;
            n += 1;
        }
    }
    cuts[n..].fill((layout.batch_size * l) as i32);
}
