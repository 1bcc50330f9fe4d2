//! Python names for whoever decodes an encoded batch: `SlotRenderer`. In: the fields of such a batch. Out: which of its
//! images another decoder may have, how they lie as stored, and the pixels of all others, with a ledger of those that
//! have none.

use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::columns::{Captions, Column, Locations, StringColumn};
use crate::error::{Error, Kind, Result};
use crate::fetch::Source;
use crate::pixels::decode::foreign::Helpers as Foreign;
use crate::pixels::decode::plain_jpeg;
use crate::pixels::decode::profile::kind_in;
use crate::pixels::orient::Frame;
use crate::py::batch::{entries, to_dict};
use crate::py::errors::to_py;
use crate::py::foreign::{Helpers, helpers as given};
use crate::py::given::batch_limits;
use crate::py::planned::PlannedBatch;
use crate::render::ledger::{Entry, Ledger};
use crate::render::{Input, Profiles, RenderSettings, render_in_place};
use crate::slots::Crop;

/// What `prepare` returns, one value an image: plain or not, crop as stored, frame.
type Prepared<'py> = (Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<u8>>);

fn broken(n: usize, what: &str) -> Error {
    Error::new(
        Kind::Render,
        format!("image {n} of an encoded batch has {what}; the batch is damaged, ask for it again"),
    )
}

/// The images of one encoded batch, or some of them.
struct Images<'a> {
    data: &'a [u8],
    /// (start, length) in `data`.
    spans: &'a [i64],
    /// (height, width), oriented.
    sizes: &'a [i32],
    orientations: &'a [u8],
}

impl<'a> Images<'a> {
    fn check(&self, n: usize) -> Result<()> {
        if self.spans.len() != 2 * n || self.sizes.len() != 2 * n || self.orientations.len() != n {
            return Err(Error::new(Kind::Render, "an encoded batch has fields of different lengths"));
        }
        (0..n).try_for_each(|i| self.bytes(i).map(drop))
    }

    fn bytes(&self, n: usize) -> Result<&'a [u8]> {
        let (start, length) = (usize::try_from(self.spans[2 * n]), usize::try_from(self.spans[2 * n + 1]));
        let (Ok(start), Ok(length)) = (start, length) else { return Err(broken(n, "a negative span")) };
        start
            .checked_add(length)
            .and_then(|end| self.data.get(start..end))
            .ok_or_else(|| broken(n, "a span outside it"))
    }

    /// Width and height, oriented.
    fn size(&self, n: usize) -> (i32, i32) {
        (self.sizes[2 * n + 1], self.sizes[2 * n])
    }
}

/// The CPU renderer for images of encoded batches, and the ledger of what could not be decoded.
#[pyclass(frozen, module = "navit_loader._packer")]
struct SlotRenderer {
    helpers: Arc<Foreign>,
    settings: RenderSettings,
    ledger: Ledger,
}

#[pymethods]
impl SlotRenderer {
    #[new]
    #[pyo3(signature = (render_json, helpers = None))]
    fn new(render_json: &str, helpers: Option<&Bound<'_, Helpers>>) -> PyResult<Self> {
        let settings = RenderSettings::from_json(render_json).map_err(to_py)?;
        let ledger = Ledger::new(&settings.ledger, settings.failure_limit).map_err(to_py)?;
        Ok(Self { helpers: given(helpers), settings, ledger })
    }

    /// For each image: whether another decoder may have it; its crop as stored (top, left, height, width), flattened;
    /// how the oriented and flipped image lies in the stored one (1 swapped, 2 mirrored across, 4 mirrored down).
    #[allow(clippy::too_many_arguments)]
    fn prepare<'py>(
        &self,
        py: Python<'py>,
        data: PyReadonlyArray1<'py, u8>,
        spans: PyReadonlyArray2<'py, i64>,
        sizes: PyReadonlyArray2<'py, i32>,
        orientations: PyReadonlyArray1<'py, u8>,
        crops: PyReadonlyArray2<'py, i32>,
        flips: PyReadonlyArray1<'py, u8>,
    ) -> PyResult<Prepared<'py>> {
        let (n, max_pixels) = (orientations.len(), self.settings.max_pixels);
        let converts = self.settings.profiles == Profiles::Convert;
        let images = Images {
            data: data.as_slice()?,
            spans: spans.as_slice()?,
            sizes: sizes.as_slice()?,
            orientations: orientations.as_slice()?,
        };
        let (crops, flips) = (crops.as_slice()?, flips.as_slice()?);
        let made = py.detach(|| -> Result<_> {
            images.check(n)?;
            if crops.len() != 4 * n || flips.len() != n {
                return Err(Error::new(Kind::Render, "an encoded batch has fields of different lengths"));
            }
            let (mut plain, mut stored, mut frames) =
                (Vec::with_capacity(n), Vec::with_capacity(4 * n), Vec::with_capacity(n));
            for i in 0..n {
                let (width, height) = images.size(i);
                let [top, left, h, w] = [0, 1, 2, 3].map(|c| crops[4 * i + c]);
                let inside = |at: i32, len: i32, all: i32| {
                    at >= 0 && len >= 1 && i64::from(at) + i64::from(len) <= i64::from(all)
                };
                if !inside(top, h, height) || !inside(left, w, width) {
                    return Err(broken(i, "a crop outside it"));
                }
                let frame = Frame::new(images.orientations[i]);
                let crop = frame.stored_crop(Crop { top, left, height: h, width: w }, (width, height));
                let size = frame.swapped((width as u32, height as u32));
                let fits = u64::from(size.0) * u64::from(size.1) <= max_pixels;
                let as_it_is = !converts || kind_in(images.bytes(i)?).is_none();
                plain.push(u8::from(fits && as_it_is && plain_jpeg(images.bytes(i)?) == Some(size)));
                stored.extend([crop.top, crop.left, crop.height, crop.width]);
                let turned = if flips[i] == 0 { frame } else { frame.flipped() };
                frames.push(u8::from(turned.swap) | u8::from(turned.mirror_x) << 1 | u8::from(turned.mirror_y) << 2);
            }
            Ok((plain, stored, frames))
        });
        let (plain, stored, frames) = made.map_err(to_py)?;
        Ok((plain.into_pyarray(py), stored.into_pyarray(py), frames.into_pyarray(py)))
    }

    /// Renders a planned batch whose rows are these images, and enters those that fail under (source, image, offset,
    /// uri).
    #[allow(clippy::too_many_arguments)]
    fn render<'py>(
        &self,
        py: Python<'py>,
        data: PyReadonlyArray1<'py, u8>,
        spans: PyReadonlyArray2<'py, i64>,
        sizes: PyReadonlyArray2<'py, i32>,
        orientations: PyReadonlyArray1<'py, u8>,
        who: Vec<(u16, u64, i64, String)>,
        batch: &PlannedBatch,
        limits: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let n = orientations.len();
        let images = Images {
            data: data.as_slice()?,
            spans: spans.as_slice()?,
            sizes: sizes.as_slice()?,
            orientations: orientations.as_slice()?,
        };
        let (limits, plan) = (batch_limits(limits)?, batch.inner.clone());
        let rendered = py.detach(|| -> Result<_> {
            images.check(n)?;
            if who.len() != n {
                return Err(Error::new(Kind::Render, "an encoded batch has fields of different lengths"));
            }
            let inputs = (0..n).map(|i| images.bytes(i).map(Input::Encoded)).collect::<Result<Vec<_>>>()?;
            let sides = |which: usize| Column::from_vec((0..n).map(|i| images.sizes[2 * i + which]).collect());
            let locations = Locations {
                shard: Column::from_vec(vec![0; n]),
                shards: vec!["batch/".into()],
                name: StringColumn::from_strings(&vec![""; n]),
                offset: Column::from_vec(vec![0; n]),
                length: Column::from_vec(vec![0; n]),
                container_length: Column::from_vec(Vec::new()),
                check: Column::from_vec(Vec::new()),
                orientation: Column::from_vec(images.orientations.to_vec()),
                labels: Column::from_vec(Vec::new()),
                label_width: 0,
            };
            let source = Source::new(sides(1), sides(0), locations, Captions::None);
            let (epoch, failed) =
                (plan.epoch, render_in_place(plan, &limits, source, &inputs, &self.settings, &self.helpers)?);
            let (rendered, failures) = failed;
            for _ in failures.len()..n {
                self.ledger.passed();
            }
            for (row, failure) in failures {
                let (source, image, offset, uri) = who[row as usize].clone();
                self.ledger.failed(Entry { epoch, source, image, uri, offset, failure })?;
            }
            Ok(rendered)
        });
        to_dict(py, rendered.map_err(to_py)?)
    }

    /// Counts images that another decoder has rendered.
    fn passed(&self, py: Python<'_>, count: usize) {
        py.detach(|| (0..count).for_each(|_| self.ledger.passed()));
    }

    fn failures<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        entries(py, py.detach(|| self.ledger.entries()))
    }
}

/// Adds this room's names to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<SlotRenderer>()
}
