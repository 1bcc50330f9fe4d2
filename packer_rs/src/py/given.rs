//! What Python hands to the renderer. In: dictionaries of numbers and numpy columns. Out: the limits and sources of the
//! engine, checked, over the same memory.

use std::sync::Arc;

use numpy::{Element, PyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::columns::{Boxes, Captions, Chunk, Column, ListColumn, Locations, StringColumn};
use crate::error::{Error, Kind};
use crate::fetch::{Masks, Source};
use crate::py::columns::{byte_lists, column, corners, lists};
use crate::py::errors::to_py;
use crate::slots::{BatchLimits, TargetLimits, ViewLimits};

/// Tokens of a sequence at most; Python has the same number for its configuration.
const MAX_LENGTH: u32 = 1 << 20;

pub(super) fn bad(message: impl Into<String>) -> PyErr {
    to_py(Error::new(Kind::Render, message))
}

fn get<'py, T: FromPyObjectOwned<'py>>(d: &Bound<'py, PyDict>, name: &str) -> PyResult<T> {
    match d.get_item(name)? {
        Some(value) => value.extract().map_err(Into::into),
        None => Err(bad(format!("'{name}' is missing"))),
    }
}

/// What fixes the shapes of a batch, as it was given.
pub(super) fn limits(d: &Bound<'_, PyDict>) -> PyResult<BatchLimits> {
    let view = |d: &Bound<'_, PyDict>| -> PyResult<ViewLimits> {
        Ok(ViewLimits {
            sequence_length: get(d, "sequence_length")?,
            max_tokens: get(d, "max_tokens")?,
            prefix_tokens: get(d, "prefix_tokens")?,
        })
    };
    let teacher = match d.get_item("teacher")? {
        Some(t) if !t.is_none() => {
            let t = t.cast_into::<PyDict>()?;
            Some((view(&t)?, get(&t, "patch_size")?))
        }
        _ => None,
    };
    Ok(BatchLimits {
        view: view(d)?,
        teacher,
        max_images: get(d, "max_images")?,
        label_width: get(d, "label_width")?,
        text_tokens: get(d, "text_tokens")?,
        max_text_tokens: get(d, "max_text_tokens")?,
        warps: d.get_item("warps")?.map_or(Ok(false), |w| w.extract())?,
        targets: TargetLimits {
            boxes: d.get_item("boxes")?.map_or(Ok(0), |n| n.extract())?,
            clip: d.get_item("clip")?.map_or(Ok(0.0), |n| n.extract())?,
            masks: d.get_item("masks")?.map_or(Ok(0), |n| n.extract())?,
            regions: d.get_item("regions")?.map_or(Ok(false), |n| n.extract())?,
        },
    })
}

/// The same, refused where nothing can be rendered with it.
pub(super) fn batch_limits(d: &Bound<'_, PyDict>) -> PyResult<BatchLimits> {
    let limits = limits(d)?;
    for view in [Some(limits.view), limits.teacher.map(|(view, _)| view)].into_iter().flatten() {
        let possible = (1..=MAX_LENGTH).contains(&view.sequence_length)
            && (1..=view.sequence_length).contains(&view.max_tokens)
            && view.prefix_tokens <= 32767;
        if !possible {
            return Err(bad(format!("limits are not possible: {view:?}")));
        }
    }
    if let Some((_, p)) = limits.teacher.filter(|(_, p)| !(1..=4096).contains(p)) {
        return Err(bad(format!("teacher.patch_size = {p} is not allowed; it must be between 1 and 4096")));
    }
    if limits.targets.boxes > 32767
        || limits.targets.masks > 64
        || (limits.targets.masks > 0 && limits.teacher.is_some())
    {
        return Err(bad(format!("limits are not possible: {:?} beside {:?}", limits.targets, limits.teacher)));
    }
    if !(1..=32767).contains(&limits.max_images) {
        return Err(bad(format!("max_images = {} is not allowed; it must be between 1 and 32767", limits.max_images)));
    }
    Ok(limits)
}

fn ints<'py, T: Element + Copy + Send + Sync + 'static>(d: &Bound<'py, PyDict>, name: &str) -> PyResult<Column<T>> {
    match d.get_item(name)? {
        Some(list) => column(name, &list.extract::<Vec<Bound<'py, PyArray1<T>>>>()?),
        None => Ok(Column::from_vec(Vec::new())),
    }
}

type Lists<'py, T> = Vec<(Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<T>>)>;

pub(super) fn source(d: &Bound<'_, PyDict>) -> PyResult<Source> {
    let name = match d.get_item("name")? {
        Some(pairs) => lists("name", &pairs.extract::<Vec<(Bound<'_, PyArray1<i64>>, Bound<'_, PyArray1<u8>>)>>()?)?,
        None => StringColumn::from_strings::<&str>(&[]),
    };
    let locations = Locations {
        shard: ints(d, "shard")?,
        shards: d.get_item("shards")?.map_or(Ok(Vec::new()), |s| s.extract())?,
        name,
        offset: ints(d, "offset")?,
        length: ints(d, "length")?,
        container_length: ints(d, "container_length")?,
        check: ints(d, "check")?,
        orientation: ints(d, "orientation")?,
        labels: ints(d, "labels")?,
        label_width: d.get_item("label_width")?.map_or(Ok(0), |w| w.extract())?,
    };
    let (width, height): (Column<i32>, Column<i32>) = (ints(d, "width")?, ints(d, "height")?);
    let rows = width.len();
    let mut lengths = vec![
        ("height", height.len(), false),
        ("orientation", locations.orientation.len(), false),
        ("shard", locations.shard.len(), false),
        ("name", locations.name.len(), false),
        ("offset", locations.offset.len(), false),
        ("length", locations.length.len(), false),
        ("container_length", locations.container_length.len(), true),
        ("check", locations.check.len(), true),
    ];
    let captions = captions(d)?;
    lengths.push(("caption", captions.len(), true));
    for (what, len, optional) in lengths {
        if len != rows && !(optional && len == 0) {
            return Err(unequal(what, len, rows));
        }
    }
    let spans: u64 = d.get_item("span_bytes")?.map_or(Ok(0), |s| s.extract())?;
    let (boxes, masks) = (boxes(d, rows)?, masks(d, rows)?);
    let mut source = Source::new(width, height, locations, captions).with_spans(spans);
    source.fingerprint = d.get_item("fingerprint")?.map_or(Ok(String::new()), |f| f.extract())?;
    (source.boxes, source.masks) = (boxes, masks);
    Ok(source)
}

fn captions(d: &Bound<'_, PyDict>) -> PyResult<Captions> {
    let end: i32 = d.get_item("text_end")?.map_or(Ok(-1), |e| e.extract())?;
    if let Some(pairs) = d.get_item("caption_ids")?.filter(|p| p.is_truthy().unwrap_or(false)) {
        return Ok(Captions::Ids(lists("caption_ids", &pairs.extract::<Lists<'_, i32>>()?)?, end));
    }
    match d.get_item("caption")?.filter(|p| p.is_truthy().unwrap_or(false)) {
        Some(pairs) => Ok(Captions::Bytes(lists("caption", &pairs.extract::<Lists<'_, u8>>()?)?, end)),
        None => Ok(Captions::None),
    }
}

/// A column of lists that must have a list for each row.
fn of_rows<T: Element + Send + Sync + 'static>(
    d: &Bound<'_, PyDict>,
    name: &str,
    rows: usize,
) -> PyResult<ListColumn<T>> {
    let found = lists(name, &get::<Lists<'_, T>>(d, name)?)?;
    if found.len() == rows { Ok(found) } else { Err(unequal(name, found.len(), rows)) }
}

fn unequal(what: &str, len: usize, rows: usize) -> PyErr {
    let message = format!("index column '{what}' has {len} rows, but 'width' has {rows}; write the index again");
    to_py(Error::new(Kind::Index, message))
}

/// The boxes of an index that has any.
fn boxes(d: &Bound<'_, PyDict>, rows: usize) -> PyResult<Option<Boxes>> {
    if !d.contains("boxes")? {
        return Ok(None);
    }
    let boxes = Boxes {
        corners: corners("boxes", &get::<Lists<'_, f32>>(d, "boxes")?)?,
        labels: of_rows(d, "box_labels", rows)?,
        flags: of_rows(d, "box_flags", rows)?,
        ids: of_rows(d, "box_ids", rows)?,
        areas: of_rows(d, "box_areas", rows)?,
    };
    if boxes.len() == rows { Ok(Some(boxes)) } else { Err(unequal("boxes", boxes.len(), rows)) }
}

/// The masks of an index that has any: files of their own, or the regions of its boxes.
fn masks(d: &Bound<'_, PyDict>, rows: usize) -> PyResult<Masks> {
    let kind: String = d.get_item("masks")?.map_or(Ok(String::new()), |kind| kind.extract())?;
    match kind.as_str() {
        "" => Ok(Masks::None),
        "regions" => {
            let found = byte_lists("regions", &get::<Vec<_>>(d, "regions")?)?;
            if found.len() == rows { Ok(Masks::Regions(found)) } else { Err(unequal("regions", found.len(), rows)) }
        }
        _ => {
            let name = lists("mask_name", &get::<Lists<'_, u8>>(d, "mask_name")?)?;
            let locations = Locations {
                shard: ints(d, "mask_shard")?,
                shards: get(d, "mask_shards")?,
                name,
                offset: ints(d, "mask_offset")?,
                length: ints(d, "mask_length")?,
                container_length: Column::from_vec(Vec::new()),
                check: Column::from_vec(Vec::new()),
                orientation: Column::from_vec(Vec::new()),
                labels: Column::from_vec(Vec::new()),
                label_width: 0,
            };
            let lengths = [locations.shard.len(), locations.name.len(), locations.offset.len(), locations.length.len()];
            if lengths != [rows; 4] {
                return Err(unequal("mask_name", lengths[1], rows));
            }
            let none = || Column::from_vec(Vec::new());
            let files = Box::new(Source::new(none(), none(), locations, Captions::None));
            Ok(Masks::Files { files, panoptic: kind == "panoptic", classes: get(d, "mask_classes")? })
        }
    }
}

pub(super) fn chunk_of_bytes(bytes: Bound<'_, PyBytes>) -> Chunk<u8> {
    let (start, len) = (bytes.as_bytes().as_ptr(), bytes.as_bytes().len());
    let keep: Py<PyBytes> = bytes.unbind();
    // SAFETY: a bytes object never changes, and the chunk keeps it.
    unsafe { Chunk::from_raw(start, len, Arc::new(keep)) }
}
