//! Python names of `render`: `Renderer`, `Pending` and `render_images`. In: planned batches and columns of indexes. Out: the
//! fields of `PackedBatch` as numpy arrays over the batch's own block, which goes back to its pool with the last of them.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use numpy::ndarray::{ArrayView, IxDyn};
use numpy::{Element, PyArray, PyArray1, PyArray3, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::buffers::{Dtype, Field, ViewFields};
use crate::columns::{Captions, Chunk, Column, Locations, StringColumn};
use crate::error::{Error, Kind};
use crate::fetch::Source;
use crate::ledger::Entry;
use crate::memory::Block;
use crate::probe::{Window, probe_header};
use crate::py::columns::{column, lists};
use crate::py::errors::to_py;
use crate::py::foreign::{Helpers, helpers as given};
use crate::py::notify::Signal;
use crate::py::plan::PlannedBatch;
use crate::render::{Input, RenderSettings, Rendered, Renderer as Engine, Ticket, render_in_place};
use crate::slots::{BatchLimits, ViewLimits};

/// Signals of the interpreter (Ctrl-C) are looked at this often while a batch is awaited.
const SLICE: Duration = Duration::from_millis(50);

fn bad(message: impl Into<String>) -> PyErr {
    to_py(Error::new(Kind::Render, message))
}

fn get<'py, T: FromPyObjectOwned<'py>>(d: &Bound<'py, PyDict>, name: &str) -> PyResult<T> {
    match d.get_item(name)? {
        Some(value) => value.extract().map_err(Into::into),
        None => Err(bad(format!("'{name}' is missing"))),
    }
}

fn view_limits(d: &Bound<'_, PyDict>) -> PyResult<ViewLimits> {
    let limits = ViewLimits {
        sequence_length: get(d, "sequence_length")?,
        max_tokens: get(d, "max_tokens")?,
        prefix_tokens: get(d, "prefix_tokens")?,
    };
    if !(1..=32767).contains(&limits.sequence_length) || !(1..=limits.sequence_length).contains(&limits.max_tokens) {
        return Err(bad(format!("limits are not possible: {limits:?}")));
    }
    Ok(limits)
}

pub(super) fn batch_limits(d: &Bound<'_, PyDict>) -> PyResult<BatchLimits> {
    let teacher = match d.get_item("teacher")? {
        Some(t) if !t.is_none() => {
            let t = t.cast_into::<PyDict>()?;
            let p: u32 = get(&t, "patch_size")?;
            if !(1..=4096).contains(&p) {
                return Err(bad(format!("teacher.patch_size = {p} is not allowed; it must be between 1 and 4096")));
            }
            Some((view_limits(&t)?, p))
        }
        _ => None,
    };
    let limits = BatchLimits {
        view: view_limits(d)?,
        teacher,
        max_images: get(d, "max_images")?,
        label_width: get(d, "label_width")?,
        text_tokens: get(d, "text_tokens")?,
        max_text_tokens: get(d, "max_text_tokens")?,
    };
    if !(1..=32767).contains(&limits.max_images) {
        return Err(bad(format!("max_images = {} is not allowed; it must be between 1 and 32767", limits.max_images)));
    }
    Ok(limits)
}

fn source(d: &Bound<'_, PyDict>) -> PyResult<Source> {
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
    let memory: Vec<Chunk<u8>> = match d.get_item("bytes")? {
        Some(list) => list.extract::<Vec<Bound<'_, PyBytes>>>()?.into_iter().map(chunk_of_bytes).collect(),
        None => Vec::new(),
    };
    let locations = Locations {
        shard: ints(d, "shard")?,
        shards: d.get_item("shards")?.map_or(Ok(Vec::new()), |s| s.extract())?,
        name,
        offset: ints(d, "offset")?,
        length: ints(d, "length")?,
        orientation: ints(d, "orientation")?,
        labels: ints(d, "labels")?,
        label_width: d.get_item("label_width")?.map_or(Ok(0), |w| w.extract())?,
    };
    let (width, height): (Column<i32>, Column<i32>) = (ints(d, "width")?, ints(d, "height")?);
    let rows = width.len();
    let mut lengths = vec![("height", height.len(), false), ("orientation", locations.orientation.len(), false)];
    if memory.is_empty() {
        lengths.extend([
            ("shard", locations.shard.len(), false),
            ("name", locations.name.len(), false),
            ("offset", locations.offset.len(), false),
            ("length", locations.length.len(), false),
        ]);
    } else {
        lengths.push(("bytes", memory.len(), false));
    }
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
    Ok(Source::new(width, height, locations, captions).with_memory(memory).with_spans(spans))
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

fn chunk_of_bytes(bytes: Bound<'_, PyBytes>) -> Chunk<u8> {
    let (start, len) = (bytes.as_bytes().as_ptr(), bytes.as_bytes().len());
    let keep: Py<PyBytes> = bytes.unbind();
    // SAFETY: a bytes object never changes, and the chunk keeps it.
    unsafe { Chunk::from_raw(start, len, Arc::new(keep)) }
}

/// Owner of a batch's memory: the base object of its arrays.
#[pyclass(frozen, module = "navit_loader._packer")]
struct Buffer {
    block: Arc<Block>,
}

#[pymethods]
impl Buffer {
    /// By what number another process knows it, and the memfd by which it maps it; None where it lies on the heap.
    #[getter]
    fn shared(&self) -> Option<(u64, i32)> {
        self.block.shared().map(|s| (s.number, s.fd.as_raw_fd()))
    }

    /// Bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.block.len()
    }

    /// Its memory is never used again after this batch.
    fn abandon(&self) {
        self.block.abandon();
    }
}

fn array<'py>(owner: &Bound<'py, Buffer>, field: &Field) -> Bound<'py, PyAny> {
    fn typed<'py, T: Element>(owner: &Bound<'py, Buffer>, field: &Field) -> Bound<'py, PyAny> {
        let block = &owner.get().block;
        // SAFETY: rendering is over, so the block is this owner's alone; the field lies inside it and is of this type.
        let view = unsafe {
            ArrayView::<T, IxDyn>::from_shape_ptr(
                IxDyn(&field.shape),
                block.start().add(field.offset).cast::<T>().cast_const(),
            )
        };
        // SAFETY: the block neither moves nor goes before its owner, which the array keeps as its base.
        unsafe { PyArray::borrow_from_array(&view, owner.clone().into_any()) }.into_any()
    }
    match field.dtype {
        Dtype::U8 => typed::<u8>(owner, field),
        Dtype::I16 => typed::<i16>(owner, field),
        Dtype::I32 => typed::<i32>(owner, field),
        Dtype::I64 => typed::<i64>(owner, field),
    }
}

pub(super) fn to_dict(py: Python<'_>, rendered: Rendered) -> PyResult<Bound<'_, PyDict>> {
    let owner = Bound::new(py, Buffer { block: rendered.block })?;
    let view_of = |view: &ViewFields| -> PyResult<Bound<'_, PyDict>> {
        let d = PyDict::new(py);
        for field in &view.fields {
            d.set_item(field.name, array(&owner, field))?;
        }
        d.set_item("patch_size", view.patch_size)?;
        d.set_item("max_seqlen", view.limits.max_tokens)?;
        d.set_item("prefix_tokens", view.limits.prefix_tokens)?;
        Ok(d)
    };
    let d = view_of(&rendered.layout.view)?;
    for field in &rendered.layout.rest {
        d.set_item(field.name, array(&owner, field))?;
    }
    d.set_item("teacher", rendered.layout.teacher.as_ref().map(view_of).transpose()?)?;
    for field in rendered.layout.encoded.iter().flat_map(|e| &e.fields) {
        d.set_item(field.name, array(&owner, field))?;
    }
    d.set_item("epoch", rendered.epoch)?;
    d.set_item("sequence", rendered.first)?;
    Ok(d)
}

/// Entries of a ledger as dictionaries.
pub(super) fn entries(py: Python<'_>, found: Vec<Entry>) -> PyResult<Bound<'_, PyList>> {
    let list = PyList::empty(py);
    for e in found {
        let d = PyDict::new(py);
        d.set_item("epoch", e.epoch)?;
        d.set_item("source", e.source)?;
        d.set_item("image", e.image)?;
        d.set_item("uri", e.uri)?;
        d.set_item("offset", e.offset)?;
        d.set_item("stage", e.stage)?;
        d.set_item("reason", e.reason)?;
        d.set_item("detail", e.detail)?;
        list.append(d)?;
    }
    Ok(list)
}

/// Renders planned batches on threads of its own, in the order of submission, within a bound of bytes.
///
/// Raises `RenderError` from every method in a process other than the one that made it.
#[pyclass(frozen, module = "navit_loader._packer")]
struct Renderer {
    engine: Engine,
    signal: Arc<Signal>,
}

#[pymethods]
impl Renderer {
    #[new]
    #[pyo3(signature = (render_json, limits, sources, helpers = None, shared = false))]
    fn new(
        py: Python<'_>,
        render_json: &str,
        limits: &Bound<'_, PyDict>,
        sources: Vec<Bound<'_, PyDict>>,
        helpers: Option<&Bound<'_, Helpers>>,
        shared: bool,
    ) -> PyResult<Self> {
        let settings = RenderSettings::from_json(render_json).map_err(to_py)?;
        let limits = batch_limits(limits)?;
        let sources = sources.iter().map(source).collect::<PyResult<Vec<_>>>()?;
        let signal = Arc::new(Signal::new().map_err(|e| bad(format!("no file descriptor for events: {e}")))?);
        let notify = {
            let signal = signal.clone();
            Box::new(move || signal.raise())
        };
        let helpers = given(helpers);
        let engine = py.detach(|| Engine::new(settings, limits, sources, helpers, shared, notify)).map_err(to_py)?;
        Ok(Self { engine, signal })
    }

    #[pyo3(signature = (batch, encoded=false))]
    fn submit(&self, py: Python<'_>, batch: &PlannedBatch, encoded: bool) -> PyResult<Pending> {
        let plan = batch.inner.clone();
        let ticket = py.detach(|| self.engine.submit(plan, encoded)).map_err(to_py)?;
        Ok(Pending { ticket: Mutex::new(ticket) })
    }

    /// Bytes that an encoded batch takes in memory.
    fn encoded_bytes(&self, py: Python<'_>, batch: &PlannedBatch) -> PyResult<usize> {
        py.detach(|| self.engine.encoded_bytes(&batch.inner)).map_err(to_py)
    }

    /// Becomes readable when a batch is over; read 8 bytes to clear it.
    #[getter]
    fn fd(&self) -> i32 {
        self.signal.fd()
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = py.detach(|| self.engine.stats()).map_err(to_py)?;
        let d = PyDict::new(py);
        d.set_item("images", stats.images)?;
        d.set_item("tokens", stats.tokens)?;
        d.set_item("failed", stats.failed)?;
        d.set_item("profiles", stats.profiles)?;
        d.set_item("bytes_in_flight", stats.bytes_in_flight)?;
        for (name, seconds) in ["fetch", "decode", "resize", "patches", "wait"].into_iter().zip(stats.seconds) {
            d.set_item(name, seconds)?;
        }
        Ok(d)
    }

    fn failures<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        entries(py, py.detach(|| self.engine.failures()).map_err(to_py)?)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.engine.close());
    }
}

/// One submitted batch. Dropping it cancels it.
#[pyclass(frozen, module = "navit_loader._packer")]
struct Pending {
    ticket: Mutex<Ticket>,
}

impl Pending {
    fn ticket(&self) -> std::sync::MutexGuard<'_, Ticket> {
        self.ticket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Pending {
    #[getter]
    fn ready(&self, py: Python<'_>) -> PyResult<bool> {
        py.detach(|| self.ticket().ready()).map_err(to_py)
    }

    /// The batch's fields, or None when `timeout` seconds pass before it is finished.
    #[pyo3(signature = (timeout=None))]
    fn wait<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let limit = match timeout {
            Some(t) if t.is_nan() => return Err(bad("timeout is not a number")),
            Some(t) => Duration::try_from_secs_f64(t.clamp(0.0, 1e9)).ok(),
            None => None,
        };
        let end = limit.and_then(|l| Instant::now().checked_add(l));
        loop {
            let slice = Instant::now() + SLICE;
            let until = end.map_or(slice, |e| e.min(slice));
            if let Some(rendered) = py.detach(|| self.ticket().wait(until)).map_err(to_py)? {
                return to_dict(py, rendered).map(Some);
            }
            py.check_signals()?;
            if end.is_some_and(|e| Instant::now() >= e) {
                return Ok(None);
            }
        }
    }

    fn cancel(&self, py: Python<'_>) {
        py.detach(|| self.ticket().cancel());
    }
}

/// Renders one planned batch from images in memory: encoded bytes, or H × W × 3 arrays of u8. Row r of the plan is image r.
#[pyfunction]
#[pyo3(signature = (images, batch, limits, render_json, helpers = None))]
fn render_images<'py>(
    py: Python<'py>,
    images: Vec<Bound<'py, PyAny>>,
    batch: &PlannedBatch,
    limits: &Bound<'py, PyDict>,
    render_json: &str,
    helpers: Option<&Bound<'py, Helpers>>,
) -> PyResult<Bound<'py, PyDict>> {
    let helpers = given(helpers);
    let settings = RenderSettings::from_json(render_json).map_err(to_py)?;
    let limits = batch_limits(limits)?;
    let mut kept: Vec<Chunk<u8>> = Vec::new();
    let (mut encoded, mut widths, mut heights, mut orientations) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut window = Vec::new();
    for (n, image) in images.iter().enumerate() {
        if let Ok(bytes) = image.cast::<PyBytes>() {
            let data = bytes.as_bytes();
            let header = py
                .detach(|| probe_header(&mut Window::new(data, 0, data.len() as u64, &mut window), &helpers))
                .map_err(|e| bad(format!("images[{n}] cannot be read: {e}")))?;
            widths.push(header.width);
            heights.push(header.height);
            orientations.push(header.orientation);
            encoded.push(true);
            kept.push(chunk_of_bytes(bytes.clone()));
        } else if let Ok(array) = image.cast::<PyArray3<u8>>() {
            let &[h, w, 3] = array.shape() else {
                return Err(bad(format!("images[{n}] has shape {:?}; it must be (height, width, 3)", array.shape())));
            };
            if !array.is_c_contiguous() {
                return Err(bad(format!("images[{n}] is not contiguous; pass numpy.ascontiguousarray(image)")));
            }
            let size = |v: usize| i32::try_from(v).map_err(|_| bad(format!("images[{n}] is too large")));
            widths.push(size(w)?);
            heights.push(size(h)?);
            orientations.push(1u8);
            encoded.push(false);
            let keep: Py<PyArray3<u8>> = array.clone().unbind();
            // SAFETY: contiguous, kept by the chunk; the caller waits here, so nobody writes to it meanwhile.
            kept.push(unsafe { Chunk::from_raw(array.data().cast_const(), h * w * 3, Arc::new(keep)) });
        } else {
            return Err(bad(format!(
                "images[{n}] is {}; it must be bytes or a numpy array of u8, height × width × 3",
                image.get_type().name()?
            )));
        }
    }
    let rows = widths.len();
    let locations = Locations {
        shard: Column::from_vec(vec![0; rows]),
        shards: vec!["images/".into()],
        name: StringColumn::from_strings(&vec![""; rows]),
        offset: Column::from_vec(vec![0; rows]),
        length: Column::from_vec(vec![0; rows]),
        orientation: Column::from_vec(orientations),
        labels: Column::from_vec(Vec::new()),
        label_width: 0,
    };
    let source = Source::new(Column::from_vec(widths), Column::from_vec(heights), locations, Captions::None);
    let plan = batch.inner.clone();
    let rendered = py.detach(|| {
        let inputs: Vec<_> = kept
            .iter()
            .zip(&encoded)
            .map(|(c, &e)| if e { Input::Encoded(c.as_slice()) } else { Input::Rgb(c.as_slice()) })
            .collect();
        render_in_place(plan, &limits, source, &inputs, &settings, &helpers)
    });
    to_dict(py, rendered.map_err(to_py)?.0)
}

/// Adds this room's names to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Buffer>()?;
    m.add_class::<Renderer>()?;
    m.add_class::<Pending>()?;
    m.add_function(wrap_pyfunction!(render_images, m)?)
}
