//! Python names of `render`: `Renderer`, `Pending` and `render_images`. In: planned batches, and sources (`given`).
//! Out: the fields of `PackedBatch` (`batch`). The interpreter's lock is released wherever something takes time.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use numpy::{PyArray3, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::columns::{Captions, Chunk, Column, Locations, StringColumn};
use crate::fetch::window::Window;
use crate::fetch::{Foreseen, Read, Source};
use crate::pixels::decode::foreign::Helpers as Foreign;
use crate::probe::probe_header;
use crate::py::attend::{SLICE, attend, tell};
use crate::py::batch::{Buffer, batch_fields, entries, to_dict};
use crate::py::errors::to_py;
use crate::py::foreign::{Helpers, helpers as given};
use crate::py::given::{bad, batch_limits, chunk_of_bytes, source};
use crate::py::notify::Signal;
use crate::py::plan::Plan;
use crate::py::planned::PlannedBatch;
use crate::render::{Input, RenderSettings, Renderer as Engine, Ticket, render_in_place};
use crate::sync::lock;

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
    #[pyo3(signature = (render_json, limits, sources, helpers = None, shared = false, plan = None))]
    fn new(
        py: Python<'_>,
        render_json: &str,
        limits: &Bound<'_, PyDict>,
        sources: Vec<Bound<'_, PyDict>>,
        helpers: Option<&Bound<'_, Helpers>>,
        shared: bool,
        plan: Option<&Bound<'_, Plan>>,
    ) -> PyResult<Self> {
        let settings = RenderSettings::from_json(render_json).map_err(to_py)?;
        let limits = batch_limits(limits)?;
        let plan = plan.map(|plan| plan.get().inner.clone());
        let next = move |source, rows: &_, after| plan.as_ref().map_or(u64::MAX, |p| p.next_turn(source, rows, after));
        let sources = sources.iter().map(source).collect::<PyResult<Vec<_>>>()?;
        let signal = Arc::new(Signal::new().map_err(|e| bad(format!("no file descriptor for events: {e}")))?);
        let notify = {
            let signal = signal.clone();
            Box::new(move || signal.raise())
        };
        let helpers = given(helpers);
        let engine = py
            .detach(|| Engine::new(settings, limits, sources, helpers, shared, Box::new(next), notify))
            .map_err(to_py)?;
        Ok(Self { engine, signal })
    }

    #[pyo3(signature = (batch, encoded=false))]
    fn submit(&self, py: Python<'_>, batch: &PlannedBatch, encoded: bool) -> PyResult<Pending> {
        let plan = batch.inner.clone();
        let ticket = py.detach(|| self.engine.submit(plan, encoded)).map_err(to_py)?;
        Ok(Pending { ticket: Mutex::new(ticket) })
    }

    /// Starts to fetch what a later batch will need.
    fn foresee(&self, py: Python<'_>, batch: &PlannedBatch) -> PyResult<Ahead> {
        let images = batch.inner.sequences.iter().map(Vec::len).sum();
        let Foreseen { reads, complete } = py.detach(|| self.engine.foresee(&batch.inner)).map_err(to_py)?;
        Ok(Ahead { images, complete, _reads: reads })
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
        d.set_item("dark", stats.dark)?;
        d.set_item("bytes_in_flight", stats.bytes_in_flight)?;
        d.set_item("bytes_of_parts", stats.bytes_of_parts)?;
        d.set_item("bytes_fetched", stats.bytes_fetched)?;
        if let Some(cache) = stats.cache {
            let c = PyDict::new(py);
            c.set_item("bytes_read", cache.read)?;
            c.set_item("bytes_evicted", cache.evicted)?;
            c.set_item("spans_damaged", cache.damaged)?;
            c.set_item("spans_unwritten", cache.unwritten)?;
            d.set_item("cache", c)?;
        }
        for (name, seconds) in ["fetch", "decode", "resize", "patches", "wait"].into_iter().zip(stats.seconds) {
            d.set_item(name, seconds)?;
        }
        Ok(d)
    }

    fn profiles(&self, py: Python<'_>) -> PyResult<Vec<(&'static str, u64, String)>> {
        py.detach(|| self.engine.profiles()).map_err(to_py)
    }

    fn failures<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        entries(py, py.detach(|| self.engine.failures()).map_err(to_py)?)
    }

    fn failure_counts(&self, py: Python<'_>) -> PyResult<Vec<(&'static str, &'static str, u64)>> {
        let counts = py.detach(|| self.engine.failure_counts()).map_err(to_py)?;
        Ok(counts.into_iter().map(|((stage, reason), n)| (stage.word(), reason.word(), n)).collect())
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.engine.close());
    }
}

/// What a later batch needs, on its way or at hand while this is held.
#[pyclass(frozen, module = "navit_loader._packer")]
struct Ahead {
    /// Images of the batch.
    #[pyo3(get)]
    images: usize,
    /// Whether nothing is left to be started.
    #[pyo3(get)]
    complete: bool,
    _reads: Vec<Arc<Read>>,
}

/// One submitted batch. Dropping it cancels it.
#[pyclass(frozen, module = "navit_loader._packer")]
struct Pending {
    ticket: Mutex<Ticket>,
}

impl Pending {
    fn ticket(&self) -> std::sync::MutexGuard<'_, Ticket> {
        lock(&self.ticket)
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
                tell(py)?;
                return to_dict(py, rendered).map(Some);
            }
            attend(py)?;
            if end.is_some_and(|e| Instant::now() >= e) {
                return Ok(None);
            }
        }
    }

    fn cancel(&self, py: Python<'_>) {
        py.detach(|| self.ticket().cancel());
    }
}

/// Images in memory: their bytes or samples, kept alive, and what is known of each.
#[derive(Default)]
pub(super) struct Images {
    pub kept: Vec<Chunk<u8>>,
    pub encoded: Vec<bool>,
    pub widths: Vec<i32>,
    pub heights: Vec<i32>,
    pub orientations: Vec<u8>,
}

impl Images {
    /// From bytes, or H × W × 3 arrays of u8.
    pub fn of(py: Python<'_>, images: &[Bound<'_, PyAny>], helpers: &Arc<Foreign>) -> PyResult<Self> {
        let mut found = Self::default();
        let mut window = Vec::new();
        for (n, image) in images.iter().enumerate() {
            if let Ok(bytes) = image.cast::<PyBytes>() {
                let data = bytes.as_bytes();
                let header = py
                    .detach(|| probe_header(&mut Window::new(data, 0, data.len() as u64, &mut window), helpers))
                    .map_err(|e| bad(format!("images[{n}] cannot be read: {e}")))?;
                found.widths.push(header.width);
                found.heights.push(header.height);
                found.orientations.push(header.orientation);
                found.encoded.push(true);
                found.kept.push(chunk_of_bytes(bytes.clone()));
            } else if let Ok(array) = image.cast::<PyArray3<u8>>() {
                let &[h, w, 3] = array.shape() else {
                    return Err(bad(format!(
                        "images[{n}] has shape {:?}; it must be (height, width, 3)",
                        array.shape()
                    )));
                };
                if !array.is_c_contiguous() {
                    return Err(bad(format!("images[{n}] is not contiguous; pass numpy.ascontiguousarray(image)")));
                }
                let size = |v: usize| i32::try_from(v).map_err(|_| bad(format!("images[{n}] is too large")));
                found.widths.push(size(w)?);
                found.heights.push(size(h)?);
                found.orientations.push(1u8);
                found.encoded.push(false);
                let keep: Py<PyArray3<u8>> = array.clone().unbind();
                // SAFETY: contiguous, kept by the chunk; the caller waits here, so nobody writes to it meanwhile.
                found.kept.push(unsafe { Chunk::from_raw(array.data().cast_const(), h * w * 3, Arc::new(keep)) });
            } else {
                return Err(bad(format!(
                    "images[{n}] is {}; it must be bytes or a numpy array of u8, height × width × 3",
                    image.get_type().name()?
                )));
            }
        }
        Ok(found)
    }
}

/// What the engine takes of one of them.
pub(super) fn input<'a>((chunk, &encoded): (&'a Chunk<u8>, &bool)) -> Input<'a> {
    if encoded { Input::Encoded(chunk.as_slice()) } else { Input::Rgb(chunk.as_slice()) }
}

/// Renders one planned batch from images in memory: encoded bytes, or H × W × 3 arrays of u8. Row r of the plan is
/// image r.
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
    let Images { kept, encoded, widths, heights, orientations } = Images::of(py, &images, &helpers)?;
    let rows = widths.len();
    let locations = Locations {
        shard: Column::from_vec(vec![0; rows]),
        shards: vec!["images/".into()],
        name: StringColumn::from_strings(&vec![""; rows]),
        offset: Column::from_vec(vec![0; rows]),
        length: Column::from_vec(vec![0; rows]),
        container_length: Column::from_vec(Vec::new()),
        check: Column::from_vec(Vec::new()),
        orientation: Column::from_vec(orientations),
        labels: Column::from_vec(Vec::new()),
        label_width: 0,
    };
    let source = Source::new(Column::from_vec(widths), Column::from_vec(heights), locations, Captions::None);
    let plan = batch.inner.clone();
    let rendered = py.detach(|| {
        let inputs: Vec<_> = kept.iter().zip(&encoded).map(input).collect();
        render_in_place(plan, &limits, source, &inputs, &settings, &helpers)
    });
    to_dict(py, rendered.map_err(to_py)?.0)
}

/// Adds this room's names to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Buffer>()?;
    m.add_class::<Renderer>()?;
    m.add_class::<Ahead>()?;
    m.add_class::<Pending>()?;
    m.add_function(wrap_pyfunction!(batch_fields, m)?)?;
    m.add_function(wrap_pyfunction!(render_images, m)?)
}
