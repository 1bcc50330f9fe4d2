//! Python's name of the plan. In: configuration and size columns. Out: its limits, and the layout of an epoch.

use std::sync::Arc;

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::columns::Sizes;
use crate::error::{Error, Kind};
use crate::plan::Plan as Engine;
use crate::plan::config::PlanConfig;
use crate::plan::epoch::Epoch;
use crate::plan::streams::Stream;
use crate::py::columns::column;
use crate::py::errors::to_py;
use crate::py::layout::Layout;
use crate::slots::ViewLimits;

/// A plan over the size columns of its indexes.
#[pyclass(frozen, module = "navit_loader._packer")]
pub struct Plan {
    /// The engine's own form.
    pub inner: Arc<Engine>,
}

type StreamArgument<'py> = (u16, Option<PyReadonlyArray1<'py, u64>>, f64);

fn sizes(d: &Bound<'_, PyDict>) -> PyResult<Sizes> {
    let ints = |name: &str| match d.get_item(name)? {
        Some(list) => column(name, &list.extract::<Vec<Bound<'_, PyArray1<i32>>>>()?),
        None => Ok(crate::columns::Column::from_vec(Vec::new())),
    };
    let path = d.get_item("path")?.map_or(Ok("an index".to_owned()), |p| p.extract())?;
    let (width, height) = (ints("width")?, ints("height")?);
    let (caption_tokens, box_count) = (ints("caption_tokens")?, ints("box_count")?);
    let sizes = Sizes { path, width, height, caption_tokens, box_count };
    for (name, len, optional) in [
        ("height", sizes.height.len(), false),
        ("caption_tokens", sizes.caption_tokens.len(), true),
        ("box_count", sizes.box_count.len(), true),
    ] {
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
        d.set_item("warps", l.warps)?;
        d.set_item("boxes", l.targets.boxes)?;
        d.set_item("clip", l.targets.clip)?;
        d.set_item("masks", l.targets.masks)?;
        d.set_item("regions", l.targets.regions)?;
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
        Ok(Layout::local(Arc::new(Epoch::from_block(self.inner.clone(), epoch, block, before))))
    }
}

/// Adds this room's name to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Plan>()
}
