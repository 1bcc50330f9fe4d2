//! Python names of the plan: `Plan`, `Layout` and `PlannedBatch`. In: configuration and size columns. Out: how an epoch
//! falls into batches, and each batch's planned images.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::columns::Sizes;
use crate::config::PlanConfig;
use crate::epoch::{Epoch, Table};
use crate::error::{Error, Kind};
use crate::plan::{Plan as Engine, Report};
use crate::py::columns::column;
use crate::py::errors::to_py;
use crate::slots::{Crop, Grid, PlannedBatch as Inner, PlannedImage, ViewLimits};
use crate::streams::Stream;

/// The planned images of one batch, as handed to `Renderer.submit`.
#[pyclass(frozen, module = "navit_loader._packer")]
pub struct PlannedBatch {
    /// The engine's own form.
    pub inner: Inner,
}

fn field<'py, T: FromPyObjectOwned<'py>>(d: &Bound<'py, PyDict>, name: &str) -> PyResult<T> {
    match d.get_item(name)? {
        Some(value) => value.extract().map_err(Into::into),
        None => Err(pyo3::exceptions::PyKeyError::new_err(name.to_owned())),
    }
}

fn image(d: &Bound<'_, PyDict>) -> PyResult<PlannedImage> {
    let grid = |name| field::<(u16, u16)>(d, name).map(|(h, w)| Grid { h, w });
    let (top, left, height, width) = field(d, "crop")?;
    Ok(PlannedImage {
        row: field(d, "row")?,
        key: field(d, "key")?,
        crop: Crop { top, left, height, width },
        offset: field(d, "offset")?,
        kept: field(d, "kept")?,
        teacher_offset: field(d, "teacher_offset")?,
        text_offset: field(d, "text_offset")?,
        grid: grid("grid")?,
        teacher_grid: grid("teacher_grid")?,
        source: field(d, "source")?,
        flip: field(d, "flip")?,
    })
}

#[pymethods]
impl PlannedBatch {
    /// From plain values; the planner makes them otherwise.
    #[new]
    fn new(
        epoch: u64,
        first: u64,
        patch_size: u32,
        batch_size: usize,
        sequences: Vec<Vec<Bound<'_, PyDict>>>,
    ) -> PyResult<Self> {
        let sequences = sequences.iter().map(|s| s.iter().map(image).collect()).collect::<PyResult<_>>()?;
        Ok(Self { inner: Inner { epoch, first, patch_size, batch_size, sequences } })
    }

    #[getter]
    fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    #[getter]
    fn first(&self) -> u64 {
        self.inner.first
    }

    #[getter]
    fn patch_size(&self) -> u32 {
        self.inner.patch_size
    }

    #[getter]
    fn batch_size(&self) -> usize {
        self.inner.batch_size
    }

    /// The images of each sequence as plain dictionaries; the inverse of the constructor.
    #[getter]
    fn sequences<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let outer = PyList::empty(py);
        for sequence in &self.inner.sequences {
            let inner = PyList::empty(py);
            for i in sequence {
                let d = PyDict::new(py);
                d.set_item("row", i.row)?;
                d.set_item("key", i.key)?;
                d.set_item("crop", (i.crop.top, i.crop.left, i.crop.height, i.crop.width))?;
                d.set_item("offset", i.offset)?;
                d.set_item("kept", i.kept)?;
                d.set_item("teacher_offset", i.teacher_offset)?;
                d.set_item("text_offset", i.text_offset)?;
                d.set_item("grid", (i.grid.h, i.grid.w))?;
                d.set_item("teacher_grid", (i.teacher_grid.h, i.teacher_grid.w))?;
                d.set_item("source", i.source)?;
                d.set_item("flip", i.flip)?;
                inner.append(d)?;
            }
            outer.append(inner)?;
        }
        Ok(outer)
    }
}

/// A plan over the size columns of its indexes.
#[pyclass(frozen, module = "navit_loader._packer")]
pub struct Plan {
    inner: Arc<Engine>,
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

type StreamArgument<'py> = (u16, Option<PyReadonlyArray1<'py, u64>>, f64);

fn sizes(d: &Bound<'_, PyDict>) -> PyResult<Sizes> {
    let ints = |name: &str| match d.get_item(name)? {
        Some(list) => column(name, &list.extract::<Vec<Bound<'_, PyArray1<i32>>>>()?),
        None => Ok(crate::columns::Column::from_vec(Vec::new())),
    };
    let sizes = Sizes { width: ints("width")?, height: ints("height")?, caption_tokens: ints("caption_tokens")? };
    for (name, len, optional) in
        [("height", sizes.height.len(), false), ("caption_tokens", sizes.caption_tokens.len(), true)]
    {
        if len != sizes.width.len() && !(optional && len == 0) {
            let rows = sizes.width.len();
            let message =
                format!("index column '{name}' has {len} rows, but 'width' has {rows}; write the index again");
            return Err(to_py(Error::new(Kind::Index, message)));
        }
    }
    Ok(sizes)
}

#[pymethods]
impl Plan {
    #[new]
    fn new(
        py: Python<'_>,
        plan_json: &str,
        sources: Vec<Bound<'_, PyDict>>,
        streams: Vec<StreamArgument<'_>>,
    ) -> PyResult<Self> {
        let bad = |message: String| to_py(Error::new(Kind::Plan, message));
        let config: PlanConfig =
            serde_json::from_str(plan_json).map_err(|e| bad(format!("plan configuration: {e}")))?;
        let sources = sources.iter().map(|d| Ok(Arc::new(sizes(d)?))).collect::<PyResult<Vec<_>>>()?;
        let mut taken = Vec::new();
        for (source, rows, weight) in streams {
            let Some(size) = sources.get(usize::from(source)) else {
                return Err(bad(format!("stream of source {source}, but there are {} sources", sources.len())));
            };
            let all = size.width.len() as u64;
            let rows = rows.map(|r| r.as_slice().map(<[u64]>::to_vec)).transpose()?;
            if let Some(row) = rows.as_ref().and_then(|r| r.iter().find(|&&row| row >= all)) {
                return Err(bad(format!("row {row} was selected of an index of {all} rows")));
            }
            let len = rows.as_ref().map_or(all, |r| r.len() as u64);
            taken.push(Stream { source, rows: rows.map(Arc::new), len, weight });
        }
        let inner = py.detach(|| Engine::new(config, sources, taken)).map_err(to_py)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    #[getter]
    fn epoch_images(&self) -> u64 {
        self.inner.epoch_images()
    }

    #[getter]
    fn num_blocks(&self) -> u64 {
        self.inner.num_blocks()
    }

    /// The limits that fix a batch's shapes, as `Renderer` takes them.
    fn limits<'py>(&self, py: Python<'py>, label_width: u32) -> PyResult<Bound<'py, PyDict>> {
        let l = self.inner.batch_limits(label_width);
        let view = |v: ViewLimits| -> PyResult<Bound<'py, PyDict>> {
            let d = PyDict::new(py);
            d.set_item("sequence_length", v.sequence_length)?;
            d.set_item("max_tokens", v.max_tokens)?;
            d.set_item("prefix_tokens", v.prefix_tokens)?;
            Ok(d)
        };
        let d = view(l.view)?;
        d.set_item("max_images", l.max_images)?;
        d.set_item("label_width", l.label_width)?;
        d.set_item("text_tokens", l.text_tokens)?;
        d.set_item("max_text_tokens", l.max_text_tokens)?;
        let teacher = match l.teacher {
            Some((v, patch_size)) => {
                let t = view(v)?;
                t.set_item("patch_size", patch_size)?;
                Some(t)
            }
            None => None,
        };
        d.set_item("teacher", teacher)?;
        Ok(d)
    }

    /// How an epoch's sequences fall into batches.
    #[pyo3(signature = (epoch, block = 0, before = 0))]
    fn layout(&self, epoch: u64, block: u64, before: u64) -> PyResult<Layout> {
        if epoch.checked_add(1).and_then(|e| e.checked_mul(self.inner.epoch_images())).is_none() {
            return Err(to_py(Error::new(Kind::State, format!("epoch {epoch} is out of range"))));
        }
        if block > 0 && block >= self.inner.num_blocks() {
            let message = format!("block {block} was asked for; there are {}", self.inner.num_blocks());
            return Err(to_py(Error::new(Kind::State, message)));
        }
        Ok(Layout { inner: Inside::Local(Arc::new(Epoch::from_block(self.inner.clone(), epoch, block, before))) })
    }
}

enum Inside {
    Local(Arc<Epoch>),
    Remote(Mutex<Table>),
}

/// How an epoch's sequences fall into batches: planned here, or from the counts that a daemon sent.
#[pyclass(frozen, module = "navit_loader._packer")]
pub struct Layout {
    inner: Inside,
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Layout {
    fn table<T>(&self, read: impl FnOnce(&Table) -> T) -> T {
        match &self.inner {
            Inside::Local(epoch) => epoch.with_table(read),
            Inside::Remote(table) => read(&lock(table)),
        }
    }

    fn epoch(&self) -> PyResult<&Arc<Epoch>> {
        match &self.inner {
            Inside::Local(epoch) => Ok(epoch),
            Inside::Remote(_) => {
                Err(to_py(Error::new(Kind::State, "this layout came from a daemon; it plans no batches")))
            }
        }
    }

    fn positive(batch_size: u64) -> PyResult<u64> {
        if (1..=1 << 20).contains(&batch_size) {
            return Ok(batch_size);
        }
        Err(to_py(Error::new(Kind::State, format!("batch_size = {batch_size} is not allowed; it must be at least 1"))))
    }
}

#[pymethods]
impl Layout {
    /// A layout whose counts come from elsewhere.
    #[staticmethod]
    fn remote(run: u64, num_blocks: u64) -> Self {
        Self { inner: Inside::Remote(Mutex::new(Table::new(run, num_blocks))) }
    }

    #[getter]
    fn run(&self) -> u64 {
        self.table(|t| t.run)
    }

    #[getter]
    fn num_blocks(&self) -> u64 {
        self.table(|t| t.num_blocks)
    }

    #[getter]
    fn known(&self) -> u64 {
        self.table(Table::known)
    }

    #[getter]
    fn num_sequences(&self) -> Option<u64> {
        self.table(Table::num_sequences)
    }

    /// Adds the counts of the next blocks.
    fn extend(&self, counts: Vec<u32>) -> PyResult<()> {
        match &self.inner {
            Inside::Local(epoch) => epoch.restore(&counts).map_err(to_py),
            Inside::Remote(table) => lock(table).extend(&counts).map_err(to_py),
        }
    }

    /// Sequences of the blocks `start..stop`, planning what is missing.
    fn counts<'py>(&self, py: Python<'py>, start: u64, stop: u64) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let from = self.table(|t| t.first_block);
        if start < from || start > stop || stop > self.num_blocks() {
            let message = format!("blocks {start}..{stop} were asked for; there are {from}..{}", self.num_blocks());
            return Err(to_py(Error::new(Kind::State, message)));
        }
        if let Inside::Local(epoch) = &self.inner {
            py.detach(|| epoch.count_up_to(stop, cores()));
        }
        if stop > self.known() {
            let message = format!("blocks {start}..{stop} were asked for; only {} are known", self.known());
            return Err(to_py(Error::new(Kind::State, message)));
        }
        let counts: Vec<u32> = self.table(|t| (start..stop).map(|b| t.count(b)).collect());
        Ok(PyArray1::from_vec(py, counts))
    }

    /// The known block that holds sequence `first`, or the last one beyond the end, and the sequences before it.
    fn place(&self, first: u64) -> Option<(u64, u64)> {
        self.table(|t| t.place(first))
    }

    /// Where the batch after the one at `first` starts; None where a remote layout needs more counts.
    fn next(&self, py: Python<'_>, first: u64, batch_size: u64) -> PyResult<Option<u64>> {
        let batch_size = Self::positive(batch_size)?;
        Ok(match &self.inner {
            Inside::Local(epoch) => Some(py.detach(|| epoch.resolve(|t| t.next(first, batch_size)))),
            Inside::Remote(table) => lock(table).next(first, batch_size),
        })
    }

    /// Steps of every rank from `first` on. Plans the whole epoch where it is not known.
    #[pyo3(signature = (first, batch_size, world_size, drop))]
    fn steps(&self, py: Python<'_>, first: u64, batch_size: u64, world_size: u64, drop: bool) -> PyResult<u64> {
        let batch_size = Self::positive(batch_size)?;
        let world_size = world_size.max(1);
        if let Inside::Local(epoch) = &self.inner {
            py.detach(|| epoch.num_sequences(cores()));
        }
        self.table(|t| t.steps(first, batch_size, world_size, drop))
            .ok_or_else(|| to_py(Error::new(Kind::State, "the daemon has not sent all counts of this epoch yet")))
    }

    /// The planned images of the batch at `first`.
    fn batch(&self, py: Python<'_>, first: u64, batch_size: u64) -> PyResult<PlannedBatch> {
        let batch_size = Self::positive(batch_size)?;
        let epoch = self.epoch()?;
        Ok(PlannedBatch { inner: py.detach(|| epoch.batch(first, batch_size as usize)) })
    }

    /// The same where nothing has to be planned for it, else None. Quick.
    fn batch_at_hand(&self, first: u64, batch_size: u64) -> PyResult<Option<PlannedBatch>> {
        let batch_size = Self::positive(batch_size)?;
        Ok(self.epoch()?.batch_at_hand(first, batch_size as usize).map(|inner| PlannedBatch { inner }))
    }

    /// Whether the counts that are known reach to the end of the batch at `first`.
    fn reaches(&self, first: u64, batch_size: u64) -> PyResult<bool> {
        let batch_size = Self::positive(batch_size)?;
        Ok(self.table(|t| t.next(first, batch_size)).is_some())
    }

    /// What happened while the blocks `start..stop` were planned, summed up; `lateness` is the largest.
    fn report<'py>(&self, py: Python<'py>, start: u64, stop: u64) -> PyResult<Bound<'py, PyDict>> {
        let epoch = self.epoch()?;
        let stop = stop.min(self.num_blocks());
        let (sum, sequences) = py.detach(|| {
            let (mut sum, mut sequences) = (Report::default(), 0u64);
            for block in start..stop {
                let planned = epoch.block(block);
                let r = planned.report;
                sequences += planned.len() as u64;
                sum.images += r.images;
                sum.tokens += r.tokens;
                sum.dropped += r.dropped;
                sum.slots += r.slots;
                sum.tail += r.tail;
                sum.lateness = sum.lateness.max(r.lateness);
                sum.moved += r.moved;
                sum.moved_tokens += r.moved_tokens;
            }
            (sum, sequences)
        });
        let d = PyDict::new(py);
        d.set_item("sequences", sequences)?;
        d.set_item("images", sum.images)?;
        d.set_item("tokens", sum.tokens)?;
        d.set_item("dropped", sum.dropped)?;
        d.set_item("slots", sum.slots)?;
        d.set_item("tail", sum.tail)?;
        d.set_item("lateness", sum.lateness)?;
        d.set_item("moved", sum.moved)?;
        d.set_item("moved_tokens", sum.moved_tokens)?;
        Ok(d)
    }
}

/// Adds this room's names to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Plan>()?;
    m.add_class::<Layout>()?;
    m.add_class::<PlannedBatch>()
}
