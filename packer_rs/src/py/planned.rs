//! Python's name of one batch's planned images. In: what the planner found, or plain dictionaries. Out: what
//! `Renderer.submit` takes.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::slots::{Crop, Grid, PlannedBatch as Inner, PlannedImage, Warp};

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

fn warp(d: &Bound<'_, PyDict>) -> PyResult<Warp> {
    Ok(Warp { map: field(d, "warp")?, layers: field(d, "warp_layers")? })
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
        let said = sequences.iter().flatten().map(|d| d.contains("warp")).collect::<PyResult<Vec<_>>>()?;
        let warped = said.contains(&true);
        let of_all = if warped { &sequences[..] } else { &[] };
        let warps = of_all.iter().map(|s| s.iter().map(warp).collect()).collect::<PyResult<_>>()?;
        let sequences = sequences.iter().map(|s| s.iter().map(image).collect()).collect::<PyResult<_>>()?;
        Ok(Self { inner: Inner { epoch, first, position: 0, patch_size, batch_size, sequences, warps } })
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
        for (s, sequence) in self.inner.sequences.iter().enumerate() {
            let inner = PyList::empty(py);
            for (n, i) in sequence.iter().enumerate() {
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
                if let Some(warp) = self.inner.warp(s, n) {
                    d.set_item("warp", warp.map)?;
                    d.set_item("warp_layers", warp.layers)?;
                }
                inner.append(d)?;
            }
            outer.append(inner)?;
        }
        Ok(outer)
    }
}

/// Adds this room's name to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PlannedBatch>()
}
