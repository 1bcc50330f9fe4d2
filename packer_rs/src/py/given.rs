//! What Python hands to the renderer. In: dictionaries of numbers and numpy columns. Out: the limits and sources of the
//! engine, checked, over the same memory.

use std::sync::Arc;

use numpy::{Element, PyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::columns::{Captions, Chunk, Column, Locations, StringColumn};
use crate::error::{Error, Kind};
use crate::fetch::Source;
use crate::py::columns::{column, lists};
use crate::py::errors::to_py;
use crate::slots::{BatchLimits, ViewLimits};

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
    if !(1..=32767).contains(&limits.max_images) {
        return Err(bad(format!("max_images = {} is not allowed; it must be between 1 and 32767", limits.max_images)));
    }
    Ok(limits)
}

pub(super) fn source(d: &Bound<'_, PyDict>) -> PyResult<Source> {
    fn ints<'py, T: Element + Copy + Send + Sync + 'static>(d: &Bound<'py, PyDict>, name: &str) -> PyResult<Column<T>> {
        match d.get_item(name)? {
            Some(list) => column(name, &list.extract::<Vec<Bound<'py, PyArray1<T>>>>()?),
            None => Ok(Column::from_vec(Vec::new())),
        }
    }
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
            return Err(to_py(Error::new(
                Kind::Index,
                format!("index column '{what}' has {len} rows, but 'width' has {rows}; write the index again"),
            )));
        }
    }
    let spans: u64 = d.get_item("span_bytes")?.map_or(Ok(0), |s| s.extract())?;
    let mut source = Source::new(width, height, locations, captions).with_spans(spans);
    source.fingerprint = d.get_item("fingerprint")?.map_or(Ok(String::new()), |f| f.extract())?;
    Ok(source)
}

fn captions(d: &Bound<'_, PyDict>) -> PyResult<Captions> {
    type Lists<'py, T> = Vec<(Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<T>>)>;
    let end: i32 = d.get_item("text_end")?.map_or(Ok(-1), |e| e.extract())?;
    if let Some(pairs) = d.get_item("caption_ids")?.filter(|p| p.is_truthy().unwrap_or(false)) {
        return Ok(Captions::Ids(lists("caption_ids", &pairs.extract::<Lists<'_, i32>>()?)?, end));
    }
    match d.get_item("caption")?.filter(|p| p.is_truthy().unwrap_or(false)) {
        Some(pairs) => Ok(Captions::Bytes(lists("caption", &pairs.extract::<Lists<'_, u8>>()?)?, end)),
        None => Ok(Captions::None),
    }
}

pub(super) fn chunk_of_bytes(bytes: Bound<'_, PyBytes>) -> Chunk<u8> {
    let (start, len) = (bytes.as_bytes().as_ptr(), bytes.as_bytes().len());
    let keep: Py<PyBytes> = bytes.unbind();
    // SAFETY: a bytes object never changes, and the chunk keeps it.
    unsafe { Chunk::from_raw(start, len, Arc::new(keep)) }
}
