//! Python names of tensors for somebody else's model: `spread` of patches that are rendered already, `Floats` of
//! images. In: where each patch goes, and the form of a patch. Out: a float array that Python made, filled.

use numpy::{PyReadonlyArray1, PyReadwriteArray1};
use pyo3::prelude::*;

use crate::pixels::floats::{Form, spread as spread_patches};
use crate::pixels::kernels::Scale;
use crate::py::errors::to_py;
use crate::py::foreign::{Helpers, helpers as given};
use crate::py::given::bad;
use crate::py::render::{Images, input};
use crate::render::{Floats as Inner, RenderSettings, Wholly};

/// Patch side; floats to the next colour and line; repeats, and floats from one to the next.
type Shape = (usize, usize, usize, usize, usize);

/// Subtracted, divided by, multiplied by.
type Scaling = ([f32; 3], [f32; 3], f32);

fn form((patch, colour, down, repeats, repeat): Shape, (less, over, times): Scaling) -> PyResult<Form> {
    if !(1..=4096).contains(&patch) {
        return Err(bad(format!("patches of {patch} × {patch} pixels; a side must be between 1 and 4096")));
    }
    Ok(Form { patch, colour, down, repeats, repeat, scale: Scale { less, over, times } })
}

/// Places as the engine has them, each with its patch inside `room` floats.
fn places(given: &[i64], form: &Form, room: usize) -> PyResult<Vec<usize>> {
    let last = form.extent().and_then(|extent| room.checked_sub(extent));
    let place = |&at: &i64| usize::try_from(at).ok().filter(|&at| last.is_some_and(|last| at <= last));
    let found: Option<Vec<_>> = given.iter().map(place).collect();
    found.ok_or_else(|| bad(format!("a patch does not fit into {room} floats")))
}

/// Normalises patches into `out`: number `rows[n]` of `patches` goes to `places[n]`.
#[pyfunction]
fn spread(
    py: Python<'_>,
    patches: PyReadonlyArray1<'_, u8>,
    rows: PyReadonlyArray1<'_, i64>,
    places: PyReadonlyArray1<'_, i64>,
    shape: Shape,
    scale: Scaling,
    mut out: PyReadwriteArray1<'_, f32>,
) -> PyResult<()> {
    let form = form(shape, scale)?;
    let (patches, out) = (patches.as_slice()?, out.as_slice_mut()?);
    let count = patches.len() / (form.patch * form.patch * 3);
    let row = |&row: &i64| usize::try_from(row).ok().filter(|&row| row < count);
    let rows: Option<Vec<_>> = rows.as_slice()?.iter().map(row).collect();
    let rows = rows.ok_or_else(|| bad(format!("a row is none of the {count} patches")))?;
    let at = self::places(places.as_slice()?, &form, out.len())?;
    py.detach(|| spread_patches(patches, &rows, &at, &form, out));
    Ok(())
}

/// Renders whole images into tensors, and keeps its buffers from call to call.
#[pyclass(frozen, module = "navit_loader._packer")]
struct Floats {
    inner: Inner,
}

#[pymethods]
impl Floats {
    #[new]
    #[pyo3(signature = (helpers = None, exact = false))]
    fn new(helpers: Option<&Bound<'_, Helpers>>, exact: bool) -> Self {
        Self { inner: Inner::new(given(helpers), exact) }
    }

    /// Renders into `out`. Gives the number of each that failed, and why.
    #[allow(clippy::too_many_arguments)]
    fn render<'py>(
        &self,
        py: Python<'py>,
        images: Vec<Bound<'py, PyAny>>,
        targets: Vec<(u32, u32)>,
        columns: Vec<usize>,
        starts: Vec<usize>,
        places: Vec<PyReadonlyArray1<'py, i64>>,
        shape: Shape,
        scale: Scaling,
        render_json: &str,
        mut out: PyReadwriteArray1<'py, f32>,
    ) -> PyResult<Vec<(usize, String)>> {
        let form = form(shape, scale)?;
        let settings = RenderSettings::from_json(render_json).map_err(to_py)?;
        let images = Images::of(py, &images, &self.inner.helpers)?;
        let count = images.kept.len();
        if [targets.len(), columns.len(), places.len()] != [count; 3] || starts.len() != count + 1 || starts[0] != 0 {
            return Err(bad(format!(
                "{count} images, but not as many targets, columns, places and parts of the tensor"
            )));
        }
        let mut left = out.as_slice_mut()?;
        let (mut parts, mut at) = (Vec::new(), Vec::new());
        for n in 0..count {
            let length = starts[n + 1].checked_sub(starts[n]).filter(|&l| l <= left.len());
            let (part, rest) = left.split_at_mut(length.ok_or_else(|| bad("parts of the tensor are not in order"))?);
            left = rest;
            let of = self::places(places[n].as_slice()?, &form, part.len())?;
            let ((height, width), across) = (targets[n], columns[n]);
            let (wide, high) = (across.saturating_mul(form.patch), of.len() / across.max(1) * form.patch);
            if width == 0 || height == 0 || width as usize > wide || height as usize > high {
                return Err(bad(format!("images[{n}] of {height} × {width} pixels is larger than its patches")));
            }
            parts.push(part);
            at.push(of);
        }
        let failed = py.detach(|| {
            let inputs = images.kept.iter().zip(&images.encoded).map(input);
            let whole = inputs.zip(parts).zip(&at).enumerate().map(|(n, ((input, out), places))| Wholly {
                input,
                orientation: images.orientations[n],
                size: (images.widths[n], images.heights[n]),
                target: (targets[n].1, targets[n].0),
                columns: columns[n],
                places,
                out,
            });
            self.inner.render(whole.collect(), &form, &settings)
        });
        Ok(failed.map_err(to_py)?.into_iter().map(|(n, f)| (n, f.detail)).collect())
    }
}

/// Adds this room's names to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(spread, m)?)?;
    m.add_class::<Floats>()
}
