//! Python's name of the families' sizes. In: a rule with its bounds, and heights and widths as numpy arrays, checked by
//! `navit_loader.plan.sizing`. Out: rows and columns of patches.

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::error::{Error, Kind};
use crate::plan::config::Resolution;
use crate::py::errors::to_py;

type Arrays<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>);

/// Grids of images; see `navit_loader.plan.sizing`.
#[pyfunction]
fn smart_grids<'py>(
    py: Python<'py>,
    resolution_json: &str,
    patch_size: u32,
    height: PyReadonlyArray1<'py, u32>,
    width: PyReadonlyArray1<'py, u32>,
) -> PyResult<Arrays<'py>> {
    let bad = |message: String| to_py(Error::new(Kind::Plan, message));
    let resolution: Resolution =
        serde_json::from_str(resolution_json).map_err(|e| bad(format!("plan.resolution: {e}")))?;
    let sizing = resolution.sizing().ok_or_else(|| bad("plan.resolution.kind is not 'smart'".into()))?;
    let (height, width) = (height.as_slice()?, width.as_slice()?);
    let grids = py.detach(|| {
        let sides = height.iter().zip(width);
        sides.map(|(&h, &w)| sizing.grid(h, w, patch_size).unwrap_or((0, 0))).collect::<Vec<_>>()
    });
    let (rows, columns) = grids.into_iter().map(|(h, w)| (i64::from(h), i64::from(w))).unzip();
    Ok((PyArray1::from_vec(py, rows), PyArray1::from_vec(py, columns)))
}

/// Adds this room's name to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(smart_grids, m)?)
}
