//! Python's name of how an epoch's sequences fall into batches. In: a plan's epoch, or the counts that a daemon sent.
//! Out: where batches begin, how many there are, and where it is planned here, their images.

use std::sync::{Arc, Mutex};

use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{Error, Kind};
use crate::plan::balance;
use crate::plan::block::Report;
use crate::plan::epoch::{Epoch, Table};
use crate::py::errors::to_py;
use crate::py::planned::PlannedBatch;
use crate::sync::lock;

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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

impl Layout {
    /// That of an epoch that is planned here.
    pub fn local(epoch: Arc<Epoch>) -> Self {
        Self { inner: Inside::Local(epoch) }
    }

    fn table<T>(&self, read: impl FnOnce(&Table) -> T) -> T {
        match &self.inner {
            Inside::Local(epoch) => epoch.with_table(read),
            Inside::Remote(table) => read(&lock(table)),
        }
    }

    /// What `ask` answers of the table of an epoch that is planned here, block by block until it does; between two of
    /// them signals are seen.
    fn resolve<T: Send>(py: Python<'_>, epoch: &Epoch, ask: impl Fn(&Table) -> Option<T> + Copy + Send) -> PyResult<T> {
        loop {
            if let Some(answer) = py.detach(move || epoch.ask_or_plan(ask)).map_err(to_py)? {
                return Ok(answer);
            }
            py.check_signals()?;
        }
    }

    /// Makes the counts of the blocks before `stop` known.
    fn count_up_to(py: Python<'_>, epoch: &Epoch, stop: u64) -> PyResult<()> {
        while !py.detach(|| epoch.count_on(stop, cores())).map_err(to_py)? {
            py.check_signals()?;
        }
        Ok(())
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
            Self::count_up_to(py, epoch, stop)?;
        }
        if stop > self.known() {
            let message = format!("blocks {start}..{stop} were asked for; only {} are known", self.known());
            return Err(to_py(Error::new(Kind::State, message)));
        }
        let counts: Vec<u32> = self.table(|t| (start..stop).map(|b| t.count(b)).collect());
        Ok(PyArray1::from_vec(py, counts))
    }

    /// Counts the next blocks, no more than takes some tens of milliseconds. Whether those before `stop` are known.
    fn count_on(&self, py: Python<'_>, stop: u64) -> PyResult<bool> {
        let epoch = self.epoch()?;
        py.detach(|| epoch.count_on(stop, cores())).map_err(to_py)
    }

    /// The known block that holds sequence `first`, or the last one beyond the end, and the sequences before it.
    fn place(&self, first: u64) -> Option<(u64, u64)> {
        self.table(|t| t.place(first))
    }

    /// Where the batch after the one at `first` starts; None where a remote layout needs more counts.
    fn next(&self, py: Python<'_>, first: u64, batch_size: u64) -> PyResult<Option<u64>> {
        let batch_size = Self::positive(batch_size)?;
        Ok(match &self.inner {
            Inside::Local(epoch) => Some(Self::resolve(py, epoch, |t| t.next(first, batch_size))?),
            Inside::Remote(table) => lock(table).next(first, batch_size),
        })
    }

    /// Steps of every rank from `first` on. Plans the whole epoch where it is not known.
    #[pyo3(signature = (first, batch_size, world_size, drop))]
    fn steps(&self, py: Python<'_>, first: u64, batch_size: u64, world_size: u64, drop: bool) -> PyResult<u64> {
        let batch_size = Self::positive(batch_size)?;
        let world_size = world_size.max(1);
        if let Inside::Local(epoch) = &self.inner {
            Self::count_up_to(py, epoch, epoch.plan().num_blocks())?;
        }
        self.table(|t| t.steps(first, batch_size, world_size, drop))
            .ok_or_else(|| to_py(Error::new(Kind::State, "the daemon has not sent all counts of this epoch yet")))
    }

    /// The planned images of the batch at `first`.
    fn batch(&self, py: Python<'_>, first: u64, batch_size: u64) -> PyResult<PlannedBatch> {
        let batch_size = Self::positive(batch_size)?;
        let epoch = self.epoch()?;
        let end = Self::resolve(py, epoch, |t| t.next(first, batch_size))?;
        let inner = py.detach(|| epoch.batch(first, end, batch_size as usize)).map_err(to_py)?;
        Ok(PlannedBatch { inner })
    }

    /// The same where nothing has to be planned for it, else None. Quick.
    fn batch_at_hand(&self, first: u64, batch_size: u64) -> PyResult<Option<PlannedBatch>> {
        let batch_size = Self::positive(batch_size)?;
        let found = self.epoch()?.batch_at_hand(first, batch_size as usize).map_err(to_py)?;
        Ok(found.map(|inner| PlannedBatch { inner }))
    }

    /// Whether the counts that are known reach to the end of the batch at `first`.
    fn reaches(&self, first: u64, batch_size: u64) -> PyResult<bool> {
        let batch_size = Self::positive(batch_size)?;
        Ok(self.table(|t| t.next(first, batch_size)).is_some())
    }

    /// The sum of the images' squared segments of each sequence of the blocks `start..stop`.
    fn squares<'py>(&self, py: Python<'py>, start: u64, stop: u64) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let epoch = self.epoch()?;
        let config = &epoch.plan().config;
        let mut sums = Vec::new();
        for block in start..stop.min(self.num_blocks()) {
            let planned = py.detach(|| epoch.block(block)).map_err(to_py)?;
            py.check_signals()?;
            let of =
                |i: usize| planned.sequence(i).iter().map(|s| balance::squares(config, s.kept, s.teacher_grid)).sum();
            sums.extend((0..planned.len()).map(|i| -> u64 { of(i) }));
        }
        Ok(PyArray1::from_vec(py, sums))
    }

    /// What happened while the blocks `start..stop` were planned, summed up; `lateness` is the largest.
    fn report<'py>(&self, py: Python<'py>, start: u64, stop: u64) -> PyResult<Bound<'py, PyDict>> {
        let epoch = self.epoch()?;
        let stop = stop.min(self.num_blocks());
        let (mut sum, mut sequences) = (Report::default(), 0u64);
        for block in start..stop {
            let planned = py.detach(|| epoch.block(block)).map_err(to_py)?;
            py.check_signals()?;
            let r = planned.report;
            sequences += planned.len() as u64;
            sum.images += r.images;
            sum.tokens += r.tokens;
            sum.dropped += r.dropped;
            sum.slots += r.slots;
            sum.tail += r.tail;
            sum.closed += r.closed;
            sum.lateness = sum.lateness.max(r.lateness);
            sum.moved += r.moved;
            sum.moved_tokens += r.moved_tokens;
        }
        let d = PyDict::new(py);
        d.set_item("sequences", sequences)?;
        d.set_item("images", sum.images)?;
        d.set_item("tokens", sum.tokens)?;
        d.set_item("dropped", sum.dropped)?;
        d.set_item("slots", sum.slots)?;
        d.set_item("tail", sum.tail)?;
        d.set_item("closed", sum.closed)?;
        d.set_item("lateness", sum.lateness)?;
        d.set_item("moved", sum.moved)?;
        d.set_item("moved_tokens", sum.moved_tokens)?;
        Ok(d)
    }
}

/// Adds this room's name to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Layout>()
}
