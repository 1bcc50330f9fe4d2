//! Boxes and masks of a batch. In: what an index says of an image, the image's planned geometry and its kept tokens; for a mask
//! beside the image its file. Out: the boxes that are seen, sequence by sequence, and for each kept token its cells.
//!
//! Apart from `worker`, which makes pixels: nothing here is resampled. A cell is what the mask says of the one source pixel at
//! its middle, through the geometry of the plan (`plan::targets`), by which the pixels go too.

use crate::columns::Boxes;
use crate::failure::{Failure, Reason};
use crate::fetch::{Masks, Source};
use crate::pixels::decode::Samples;
use crate::pixels::orient::Frame;
use crate::pixels::picture::KEEP_BYTES;
use crate::pixels::regions::Cells;
use crate::plan::targets::Seen;
use crate::render::layout::{BoxFields, BoxValues, MaskFields};
use crate::render::memory::Block;
use crate::slots::{BatchLimits, Grid, PlannedBatch, PlannedImage, Warp};

/// Flag of a box around a crowd, which is no object and of no class.
const CROWD: u8 = 1;

/// What a cell holds where nothing is known of it.
pub const VOID: i16 = -1;

/// Boxes of `row` as the planner counted them.
pub fn count(source: &Source, row: usize) -> u32 {
    source.boxes.as_ref().filter(|boxes| row < boxes.len()).map_or(0, |boxes| boxes.count(row) as u32)
}

fn seen<'a>(image: &PlannedImage, warp: Option<&'a Warp>) -> Seen<'a> {
    Seen { crop: image.crop, flip: image.flip, warp }
}

/// Writes the boxes of a batch, which needs no pixels.
pub fn fill(batch: &PlannedBatch, fields: &BoxFields, limits: &BatchLimits, sources: &[Source], block: &mut Block) {
    let BoxValues { boxes, box_labels, box_flags, box_places, box_cu_seqlens: cuts } = fields.whole(block);
    boxes.fill(0.0);
    box_labels.fill(-1);
    box_flags.fill(0);
    box_places.fill(-1);
    let room = limits.targets.boxes as usize;
    let mut n = 0;
    for s in 0..batch.batch_size {
        let mut end = s * room;
        for (i, image) in batch.sequences.get(s).map_or(&[][..], Vec::as_slice).iter().enumerate() {
            cuts[n] = end as i32;
            n += 1;
            let (source, row) = (&sources[usize::from(image.source)], image.row as usize);
            let Some(given) = source.boxes.as_ref().filter(|_| count(source, row) > 0) else { continue };
            let (seen, size) = (seen(image, batch.warp(s, i)), (source.width.get(row), source.height.get(row)));
            for (place, &corners) in given.corners.list(row).iter().enumerate() {
                let Some(corners) = seen.clipped(corners, size, limits.targets.clip) else { continue };
                boxes[end * 4..end * 4 + 4].copy_from_slice(&corners);
                box_labels[end] = given.labels.list(row)[place];
                box_flags[end] = given.flags.list(row)[place];
                box_places[end] = place as i16;
                end += 1;
            }
        }
        // The padding starts where the last box ends.
        cuts[n] = end as i32;
        n += 1;
    }
    cuts[n..].fill((batch.batch_size * room) as i32);
}

/// What one thread needs for masks, used again.
#[derive(Default)]
pub struct Masker {
    samples: Samples,
    cells: Cells,
    /// Painted cells, column by column.
    painted: Vec<i16>,
    /// Where in the samples each column and each row of cells is.
    across: Vec<usize>,
    down: Vec<usize>,
    /// Regions in the order in which they are painted.
    order: Vec<u32>,
}

/// What is wanted of the mask of one image.
pub struct Wanted<'a> {
    /// What is planned for the image.
    pub image: &'a PlannedImage,
    /// What becomes of its pixels, where the plan says anything of it.
    pub warp: Option<&'a Warp>,
    /// Patches per side before drop.
    pub grid: Grid,
    /// The kept ones of them.
    pub tokens: &'a [u32],
    /// Pixels of a mask at most.
    pub max_pixels: u64,
}

impl Masker {
    /// Writes the cells of an image's kept tokens to `out`. `file` is its mask, where masks are files; empty where it has none.
    ///
    /// # Errors
    /// The mask cannot be decoded, is of another size than the image, or the index is damaged.
    pub fn fill(
        &mut self,
        wanted: &Wanted<'_>,
        fields: &MaskFields,
        source: &Source,
        file: &[u8],
        out: &mut [i16],
    ) -> Result<(), Failure> {
        let row = wanted.image.row as usize;
        let boxes = source.boxes.as_ref().filter(|_| count(source, row) > 0);
        match &source.masks {
            Masks::Regions(regions) => {
                let Some(boxes) = boxes else {
                    out.fill(VOID);
                    return Ok(());
                };
                self.order.clear();
                self.order.extend(0..count(source, row));
                // The smaller one lies on top, of equal ones the later.
                let areas = boxes.areas.list(row);
                self.order.sort_unstable_by(|&a, &b| areas[b as usize].total_cmp(&areas[a as usize]).then(a.cmp(&b)));
                let height = source.height.get(row) as u32;
                self.stand(wanted, fields.side, height);
                self.painted.clear();
                self.painted.resize(self.cells.len(), VOID);
                for &place in &self.order {
                    let Some(text) = regions.get(row, place as usize) else { continue };
                    let value = value(boxes, row, place as usize, fields.regions);
                    self.cells.paint(text, value, &mut self.painted).map_err(|_| {
                        Failure::decode(
                            Reason::Index,
                            format!("region {place} in the index is damaged; build it again"),
                        )
                    })?;
                }
                self.gather(wanted, fields.side, out);
            }
            Masks::Files { .. } if file.is_empty() => out.fill(VOID),
            Masks::Files { panoptic, classes, .. } => {
                let oriented = (source.width.get(row) as u32, source.height.get(row) as u32);
                let orientation = &source.locations.orientation;
                let frame = Frame::new(if row < orientation.len() { orientation.get(row) } else { 1 });
                self.samples.decode(file, [oriented, frame.swapped(oriented)], wanted.max_pixels)?;
                // Whoever drew it saw the image upright, unless the mask's own sides say otherwise.
                let (width, height) = (self.samples.size.0 as u32, self.samples.size.1 as u32);
                let frame = if (width, height) == oriented { Frame::default() } else { frame };
                let class = |value: u32, void: u32| {
                    let known = value != void && (*classes == 0 || value < *classes);
                    if known { i16::try_from(value).unwrap_or(VOID) } else { VOID }
                };
                match (panoptic, self.samples.step) {
                    (true, _) => {
                        let (ids, mut last) = (boxes.map_or(&[][..], |boxes| boxes.ids.list(row)), (0, VOID));
                        self.sample(wanted, fields.side, frame, out, |sample| {
                            // The lowest byte comes first.
                            let id = sample.iter().rev().fold(0, |id, &byte| id << 8 | i64::from(byte));
                            if id != last.0 {
                                let place = if id == 0 { None } else { ids.iter().position(|&other| other == id) };
                                let of = |place| boxes.map_or(VOID, |boxes| value(boxes, row, place, fields.regions));
                                last = (id, place.map_or(VOID, of));
                            }
                            last.1
                        });
                    }
                    (false, 1) => self.sample(wanted, fields.side, frame, out, |s| class(u32::from(s[0]), 255)),
                    (false, 2) => self.sample(wanted, fields.side, frame, out, |s| {
                        class(u32::from(s[0]) << 8 | u32::from(s[1]), 65535)
                    }),
                    (false, _) => {
                        let why = "its mask is in colours; write the class of each pixel as grey or with a palette";
                        return Err(Failure::decode(Reason::Unsupported, why));
                    }
                }
            }
            Masks::None => out.fill(VOID),
        }
        self.samples.trim();
        if self.painted.len() * size_of::<i16>() > KEEP_BYTES {
            self.painted = Vec::new();
        }
        Ok(())
    }

    /// Where regions are painted: at the cells' middles, or, where a warp bends the lines, at each pixel of the crop.
    fn stand(&mut self, wanted: &Wanted<'_>, side: usize, height: u32) {
        let (seen, (across, down)) = (seen(wanted.image, wanted.warp), cells(wanted.grid, side));
        if seen.straight() {
            self.cells.set(seen.line(false, across), seen.line(true, down), height);
        } else {
            let c = seen.crop;
            self.cells.set(c.left as u32..(c.left + c.width) as u32, c.top as u32..(c.top + c.height) as u32, height);
        }
    }

    /// The painted cells of the kept tokens.
    fn gather(&self, wanted: &Wanted<'_>, side: usize, out: &mut [i16]) {
        let (seen, (across, down)) = (seen(wanted.image, wanted.warp), cells(wanted.grid, side));
        let c = seen.crop;
        if seen.straight() {
            let column = |x| if seen.flip { across - 1 - x } else { x };
            each(wanted, side, out, |x, y| self.painted[column(x) * down + y]);
        } else {
            each(wanted, side, out, |x, y| {
                let at = |(x, y)| (x as i32 - c.left) as usize * c.height as usize + (y as i32 - c.top) as usize;
                seen.pixel((x, y), (across, down)).map_or(VOID, |pixel| self.painted[at(pixel)])
            });
        }
    }

    /// What `read` makes of the samples at the middles of the kept tokens' cells.
    fn sample(
        &mut self,
        wanted: &Wanted<'_>,
        side: usize,
        frame: Frame,
        out: &mut [i16],
        mut read: impl FnMut(&[u8]) -> i16,
    ) {
        let (seen, (across, down)) = (seen(wanted.image, wanted.warp), cells(wanted.grid, side));
        let ((width, height), step) = (self.samples.size, self.samples.step);
        let data = &self.samples.data;
        // A column of the oriented image is one of the stored one, or a row.
        let (right, below) = frame.swapped((step, step * width));
        let (most, ends) = frame.swapped((width, height));
        let (mirror_x, mirror_y) = frame.swapped((frame.mirror_x, frame.mirror_y));
        let column = |x: u32| right * if mirror_x { most - 1 - x as usize } else { x as usize };
        let row = |y: u32| below * if mirror_y { ends - 1 - y as usize } else { y as usize };
        if seen.straight() {
            self.across.clear();
            self.across.extend(seen.line(false, across).map(column));
            if seen.flip {
                self.across.reverse();
            }
            self.down.clear();
            self.down.extend(seen.line(true, down).map(row));
            each(wanted, side, out, |x, y| read(&data[self.across[x] + self.down[y]..][..step]));
        } else {
            each(wanted, side, out, |x, y| {
                let found = seen.pixel((x, y), (across, down));
                found.map_or(VOID, |(x, y)| read(&data[column(x) + row(y)..][..step]))
            });
        }
    }
}

/// What the cells of one of an image's regions hold.
fn value(boxes: &Boxes, row: usize, place: usize, regions: bool) -> i16 {
    if regions {
        return place as i16;
    }
    let crowd = boxes.flags.list(row)[place] & CROWD != 0;
    if crowd { VOID } else { i16::try_from(boxes.labels.list(row)[place]).unwrap_or(VOID) }
}

/// Cells of a picture, across and down.
fn cells(grid: Grid, side: usize) -> (usize, usize) {
    (usize::from(grid.w) * side, usize::from(grid.h) * side)
}

/// Sets each cell of the kept tokens to what `value` says of its column and row.
fn each(wanted: &Wanted<'_>, side: usize, out: &mut [i16], mut value: impl FnMut(usize, usize) -> i16) {
    let columns = usize::from(wanted.grid.w);
    for (&token, to) in wanted.tokens.iter().zip(out.chunks_exact_mut(side * side)) {
        let (top, left) = (token as usize / columns * side, token as usize % columns * side);
        for (y, to) in to.chunks_exact_mut(side).enumerate() {
            for (x, to) in to.iter_mut().enumerate() {
                *to = value(left + x, top + y);
            }
        }
    }
}
