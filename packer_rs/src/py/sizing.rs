//! Python's name of the families' sizes. In: a rule with its bounds, and heights and widths as numpy arrays, checked by
//! `navit_loader.plan.sizing`. Out: sizes in pixels, rows and columns of patches, and why images are refused.

use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::error::{Error, Kind};
use crate::plan::config::Resolution;
use crate::plan::sizing::Target;
use crate::py::errors::to_py;

type Sizes<'py> = Bound<'py, PyArray2<i64>>;

/// Sizes and grids of images; see `navit_loader.plan.sizing`.
#[pyfunction]
fn smart_sizes<'py>(
    py: Python<'py>,
    resolution_json: &str,
    patch_size: u32,
    height: PyReadonlyArray1<'py, u32>,
    width: PyReadonlyArray1<'py, u32>,
) -> PyResult<(Sizes<'py>, Vec<(usize, &'static str)>)> {
    let bad = |message: String| to_py(Error::new(Kind::Plan, message));
    let resolution: Resolution =
        serde_json::from_str(resolution_json).map_err(|e| bad(format!("plan.resolution: {e}")))?;
    let sizing = resolution.sizing().ok_or_else(|| bad("plan.resolution.kind is not 'smart'".into()))?;
    let (height, width) = (height.as_slice()?, width.as_slice()?);
    let (sizes, refused) = py.detach(|| {
        let mut refused = Vec::new();
        let sides = height.iter().zip(width).enumerate();
        let each = sides.flat_map(|(n, (&h, &w))| match sizing.target(h, w, patch_size) {
            Ok(Target { size, grid }) => [size.0, size.1, grid.0, grid.1].map(i64::from),
            Err(why) => {
                refused.push((n, why));
                [0; 4]
            }
        });
        (each.collect::<Vec<_>>(), refused)
    });
    Ok((PyArray1::from_vec(py, sizes).reshape([height.len(), 4])?, refused))
}

/// Adds this room's name to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(smart_sizes, m)?)
}
