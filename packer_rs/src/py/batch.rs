//! A finished batch as Python sees it. In: a block of memory and where each field lies in it. Out: numpy arrays over
//! the block, which goes back to its pool with the last of them.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use numpy::ndarray::{ArrayView, ArrayView1, IxDyn};
use numpy::{Element, PyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::py::given;
use crate::render::Rendered;
use crate::render::field::{Dtype, Field};
use crate::render::layout::{BatchLayout, ViewFields};
use crate::render::ledger::Entry;
use crate::render::memory::Block;

/// Owner of a batch's memory: the base object of its arrays.
#[pyclass(frozen, module = "navit_loader._packer")]
pub(super) struct Buffer {
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

    /// All of it, u8, as it lies there.
    fn bytes<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray1<u8>> {
        let block = &slf.get().block;
        // SAFETY: rendering is over, and every byte was written once at least, by zeroes.
        let view = unsafe { ArrayView1::from_shape_ptr(block.len(), block.start().cast_const()) };
        // SAFETY: the block neither moves nor goes before its owner, which the array keeps as its base.
        unsafe { PyArray1::borrow_from_array(&view, slf.clone().into_any()) }
    }

    /// Whether `bind` was called for this memory, with this batch or an earlier one.
    #[getter]
    fn bound(&self) -> bool {
        self.block.bound()
    }

    /// Binds this memory for all batches that will lie in it; `release` is called once before it goes.
    fn bind(&self, release: Py<PyAny>) -> bool {
        self.block.bind(Box::new(move || {
            // At the interpreter's end nobody can be called, and all memory goes anyway.
            Python::try_attach(|py| release.call0(py).map_err(|e| e.write_unraisable(py, None)).is_ok());
        }))
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
                IxDyn(field.shape()),
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
        Dtype::F32 => typed::<f32>(owner, field),
    }
}

pub(super) fn to_dict(py: Python<'_>, rendered: Rendered) -> PyResult<Bound<'_, PyDict>> {
    let owner = Bound::new(py, Buffer { block: rendered.block })?;
    let view_of = |view: &ViewFields| -> PyResult<Bound<'_, PyDict>> {
        let d = PyDict::new(py);
        for field in view.fields() {
            d.set_item(field.name, array(&owner, field))?;
        }
        d.set_item("patch_size", view.patch_size)?;
        d.set_item("max_seqlen", view.limits.max_tokens)?;
        d.set_item("prefix_tokens", view.limits.prefix_tokens)?;
        Ok(d)
    };
    let d = view_of(&rendered.layout.view)?;
    let layout = &rendered.layout;
    for (field, _) in layout.fields().filter(|&(field, teacher)| !teacher && !d.contains(field.name).unwrap_or(false)) {
        d.set_item(field.name, array(&owner, field))?;
    }
    d.set_item("teacher", layout.teacher.as_ref().map(view_of).transpose()?)?;
    d.set_item("epoch", rendered.epoch)?;
    d.set_item("sequence", rendered.first)?;
    Ok(d)
}

/// Name, dtype, shape and first byte.
type Described = (String, &'static str, Vec<usize>, usize);

/// What a batch of `count` sequences looks like: its fields in the order of the wire, and the bytes of its block.
#[pyfunction]
pub(super) fn batch_fields(
    limits: &Bound<'_, PyDict>,
    patch_size: u32,
    count: u32,
    encoded: bool,
) -> PyResult<(Vec<Described>, usize)> {
    let layout = BatchLayout::of(&given::limits(limits)?, patch_size, count as usize, encoded.then_some(0));
    let described = |(field, teacher): (&Field, bool)| {
        let name = if teacher { format!("teacher.{}", field.name) } else { field.name.to_owned() };
        (name, field.dtype.code(), field.shape().to_vec(), field.offset)
    };
    Ok((layout.fields().map(described).collect(), layout.bytes))
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
        d.set_item("stage", e.failure.stage.word())?;
        d.set_item("reason", e.failure.reason.word())?;
        d.set_item("detail", e.failure.detail)?;
        list.append(d)?;
    }
    Ok(list)
}
