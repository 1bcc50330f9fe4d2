//! numpy columns → engine columns, without a copy. The arrays are kept alive for as long as the engine reads them.

use std::sync::Arc;

use numpy::{Element, PyArray1, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::columns::{BytesColumn, Chunk, Column, ListColumn};
use crate::error::{Error, Kind};
use crate::py::errors::to_py;

/// One contiguous one-dimensional array as a chunk that keeps it alive.
pub fn chunk<T: Element + Send + Sync + 'static>(array: &Bound<'_, PyArray1<T>>) -> PyResult<Chunk<T>> {
    if !array.is_contiguous() {
        return Err(to_py(Error::new(
            Kind::Index,
            "an index column must be contiguous; pass numpy.ascontiguousarray(column)",
        )));
    }
    let keep: Py<PyArray1<T>> = array.clone().unbind();
    // SAFETY: the owner holds the array, whose buffer is contiguous and does not move; the index is opened read-only
    // and `navit_loader.index` hands out no other view of it.
    Ok(unsafe { Chunk::from_raw(array.data().cast_const(), array.len(), Arc::new(keep)) })
}

/// A list of arrays as one column.
pub fn column<T: Element + Copy + Send + Sync + 'static>(
    name: &str,
    arrays: &[Bound<'_, PyArray1<T>>],
) -> PyResult<Column<T>> {
    let chunks = arrays.iter().map(chunk).collect::<PyResult<Vec<_>>>()?;
    Column::new(name, chunks).map_err(to_py)
}

/// The offsets and the values of a chunk of lists.
type Pair<'py, T> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<T>>);

/// A list of (offsets, values) as one column of lists; of strings where the values are bytes.
pub fn lists<T: Element + Send + Sync + 'static>(name: &str, pairs: &[Pair<'_, T>]) -> PyResult<ListColumn<T>> {
    let chunks = pairs.iter().map(|(o, v)| Ok((chunk(o)?, chunk(v)?))).collect::<PyResult<Vec<_>>>()?;
    ListColumn::new(name, chunks).map_err(to_py)
}

/// A list of (offsets, values) as one column of lists of boxes, four values each.
pub fn corners(name: &str, pairs: &[Pair<'_, f32>]) -> PyResult<ListColumn<[f32; 4]>> {
    let four = |(offsets, values): &Pair<'_, f32>| {
        let (offsets, flat) = (chunk(offsets)?, chunk(values)?);
        let (start, len) = (flat.as_slice().as_ptr().cast::<[f32; 4]>(), flat.as_slice().len() / 4);
        // SAFETY: the same values four by four, kept by the chunk that the owner holds; an array is aligned as its values are.
        Ok((offsets, unsafe { Chunk::from_raw(start, len, Arc::new(flat)) }))
    };
    ListColumn::new(name, pairs.iter().map(four).collect::<PyResult<Vec<_>>>()?).map_err(to_py)
}

/// Offsets of lists, offsets of strings, and bytes.
type Triple<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<u8>>);

/// A list of these as one column of lists of byte strings.
pub fn byte_lists(name: &str, triples: &[Triple<'_>]) -> PyResult<BytesColumn> {
    let chunks = triples.iter().map(|(lists, strings, bytes)| Ok((chunk(lists)?, chunk(strings)?, chunk(bytes)?)));
    BytesColumn::new(name, chunks.collect::<PyResult<Vec<_>>>()?).map_err(to_py)
}
