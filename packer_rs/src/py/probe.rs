//! Python names of `probe`: names in as bytes, columns out as numpy arrays. The interpreter's lock is released
//! throughout.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::{Error, Kind};
use crate::fetch::IN_PAGES;
use crate::fetch::remote;
use crate::fetch::window::Window;
use crate::pixels::format::FORMAT_NAMES;
use crate::pixels::regions;
use crate::probe::{self, Header, Outcome, Payload, polygons};
use crate::py::attend::attended;
use crate::py::errors::to_py;
use crate::py::foreign::{Helpers, helpers as given};

/// Code in the format column of a row that is broken, and of one that was not opened since it is unchanged.
const BROKEN: u8 = 255;
const UNCHANGED: u8 = 254;

/// Adds this room's names to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("FORMAT_NAMES", FORMAT_NAMES.to_vec())?;
    m.add("FORMAT_BROKEN", BROKEN)?;
    m.add("FORMAT_UNCHANGED", UNCHANGED)?;
    m.add_function(wrap_pyfunction!(probe_bytes, m)?)?;
    m.add_function(wrap_pyfunction!(probe_files, m)?)?;
    m.add_function(wrap_pyfunction!(probe_tar, m)?)?;
    m.add_function(wrap_pyfunction!(probe_members, m)?)?;
    m.add_function(wrap_pyfunction!(probe_parquet, m)?)?;
    m.add_function(wrap_pyfunction!(probe_objects, m)?)?;
    m.add_function(wrap_pyfunction!(remote_list, m)?)?;
    m.add_function(wrap_pyfunction!(without_secrets, m)?)?;
    m.add_function(wrap_pyfunction!(remote_meta, m)?)?;
    m.add_function(wrap_pyfunction!(remote_read, m)?)?;
    m.add_function(wrap_pyfunction!(region_of_polygons, m)?)?;
    m.add_function(wrap_pyfunction!(region_of_counts, m)?)?;
    m.add_function(wrap_pyfunction!(region_of_text, m)?)
}

/// Height and width after orientation of an encoded image in memory; None where the bytes are no image.
#[pyfunction]
#[pyo3(signature = (data, helpers = None))]
fn probe_bytes(py: Python<'_>, data: &Bound<'_, PyBytes>, helpers: Option<&Bound<'_, Helpers>>) -> Option<(i32, i32)> {
    let (bytes, helpers) = (data.as_bytes(), given(helpers));
    let header = py.detach(|| {
        let mut scratch = Vec::new();
        probe::probe_header(&mut Window::new(bytes, 0, bytes.len() as u64, &mut scratch), &helpers)
    });
    header.ok().map(|h| (h.height, h.width))
}

/// The header columns of many images.
#[derive(Default)]
struct Columns {
    width: Vec<i32>,
    height: Vec<i32>,
    orientation: Vec<u8>,
    format: Vec<u8>,
    length: Vec<i64>,
    errors: Vec<(usize, String)>,
}

impl Columns {
    fn push(&mut self, length: i64, header: Result<Header, u8>) {
        let empty = |code| (0, 0, 1, code);
        let (width, height, orientation, format) =
            header.map_or_else(empty, |h| (h.width, h.height, h.orientation, h.format as u8));
        self.width.push(width);
        self.height.push(height);
        self.orientation.push(orientation);
        self.format.push(format);
        self.length.push(length);
    }

    fn into_dict(self, py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("width", self.width.into_pyarray(py))?;
        dict.set_item("height", self.height.into_pyarray(py))?;
        dict.set_item("orientation", self.orientation.into_pyarray(py))?;
        dict.set_item("format", self.format.into_pyarray(py))?;
        dict.set_item("length", self.length.into_pyarray(py))?;
        dict.set_item("errors", self.errors)?;
        Ok(dict)
    }
}

/// Probes the files `root/name` for NUL-separated `names`.
#[pyfunction]
#[pyo3(signature = (root, names, threads, known = None, helpers = None))]
fn probe_files<'py>(
    py: Python<'py>,
    root: &[u8],
    names: &[u8],
    threads: usize,
    known: Option<(PyReadonlyArray1<'py, i64>, PyReadonlyArray1<'py, i64>)>,
    helpers: Option<&Bound<'py, Helpers>>,
) -> PyResult<Bound<'py, PyDict>> {
    let split: Vec<&[u8]> = if names.is_empty() { Vec::new() } else { names.split(|&b| b == 0).collect() };
    let known: Vec<(i64, i64)> = match &known {
        Some((length, mtime)) => length.as_slice()?.iter().copied().zip(mtime.as_slice()?.iter().copied()).collect(),
        None => Vec::new(),
    };
    if !known.is_empty() && known.len() != split.len() {
        return Err(to_py(Error::new(Kind::Index, format!("{} known stamps for {} names", known.len(), split.len()))));
    }
    let helpers = given(helpers);
    let threads = NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN);
    let (columns, mtime_ns) = py.detach(|| {
        let (mut columns, mut mtime_ns) = (Columns::default(), Vec::with_capacity(split.len()));
        for (i, file) in probe::probe_files(root, &split, &known, threads, &helpers).into_iter().enumerate() {
            mtime_ns.push(file.mtime_ns);
            let header = match file.outcome {
                Outcome::Image(header) => Ok(header),
                Outcome::Unchanged => Err(UNCHANGED),
                Outcome::Broken(reason) => {
                    columns.errors.push((i, reason));
                    Err(BROKEN)
                }
            };
            columns.push(file.length, header);
        }
        (columns, mtime_ns)
    });
    let dict = columns.into_dict(py)?;
    dict.set_item("mtime_ns", PyArray1::from_vec(py, mtime_ns))?;
    Ok(dict)
}

/// Reads the images in one binary column of a Parquet file.
#[pyfunction]
#[pyo3(signature = (path, column, helpers = None))]
fn probe_parquet<'py>(
    py: Python<'py>,
    path: &[u8],
    column: &str,
    helpers: Option<&Bound<'py, Helpers>>,
) -> PyResult<Bound<'py, PyDict>> {
    let helpers = given(helpers);
    let values = attended(py, || probe::scan_column(Path::new(OsStr::from_bytes(path)), column, &helpers))?
        .map_err(|reason| to_py(Error::new(Kind::Index, format!("'{}': {reason}", String::from_utf8_lossy(path)))))?;
    let (values, length) = values;
    let (mut columns, mut offsets, mut checks) = (Columns::default(), Vec::new(), Vec::new());
    for (i, value) in values.into_iter().enumerate() {
        let header = value.header.map_err(|reason| {
            columns.errors.push((i, reason));
            BROKEN
        });
        columns.push(value.length as i64, header);
        offsets.push(value.place.map_or(IN_PAGES, |at| at as i64));
        checks.push(value.check);
    }
    let dict = columns.into_dict(py)?;
    dict.set_item("offset", offsets.into_pyarray(py))?;
    dict.set_item("check", checks.into_pyarray(py))?;
    dict.set_item("container_length", length)?;
    Ok(dict)
}

/// Probes the members of a container at known places.
#[pyfunction]
#[pyo3(signature = (path, offset, length, threads, helpers = None))]
fn probe_members<'py>(
    py: Python<'py>,
    path: &[u8],
    offset: PyReadonlyArray1<'py, u64>,
    length: PyReadonlyArray1<'py, u64>,
    threads: usize,
    helpers: Option<&Bound<'py, Helpers>>,
) -> PyResult<Bound<'py, PyDict>> {
    let helpers = given(helpers);
    let places: Vec<(u64, u64)> = offset.as_slice()?.iter().copied().zip(length.as_slice()?.iter().copied()).collect();
    let threads = NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN);
    let probe = || probe::probe_members(Path::new(OsStr::from_bytes(path)), &places, threads, &helpers);
    let (members, held) = attended(py, probe)?
        .map_err(|reason| to_py(Error::new(Kind::Index, format!("'{}': {reason}", String::from_utf8_lossy(path)))))?;
    let (mut columns, mut checks) = (Columns::default(), Vec::new());
    for (i, (member, (_, bytes))) in members.into_iter().zip(places).enumerate() {
        let header = member.header.map_err(|reason| {
            columns.errors.push((i, reason));
            BROKEN
        });
        columns.push(bytes as i64, header);
        checks.push(member.check);
    }
    let dict = columns.into_dict(py)?;
    dict.set_item("check", checks.into_pyarray(py))?;
    dict.set_item("container_length", held)?;
    Ok(dict)
}

/// Probes the objects `root` + key; columns as of `probe_files`, without times.
#[pyfunction]
#[pyo3(signature = (root, objects, helpers = None))]
fn probe_objects<'py>(
    py: Python<'py>,
    root: &str,
    objects: Vec<(String, u64)>,
    helpers: Option<&Bound<'py, Helpers>>,
) -> PyResult<Bound<'py, PyDict>> {
    let helpers = given(helpers);
    let found = attended(py, || probe::probe_objects(root, &objects, &helpers))?;
    let mut columns = Columns::default();
    for (i, (header, (_, length))) in found.into_iter().zip(&objects).enumerate() {
        let header = header.map_err(|reason| {
            columns.errors.push((i, reason));
            BROKEN
        });
        columns.push(*length as i64, header);
    }
    columns.into_dict(py)
}

fn refused(url: &str, error: &std::io::Error) -> PyErr {
    to_py(Error::new(Kind::Index, format!("'{}' cannot be read: {error}", remote::without_secrets(url))))
}

/// A text without the secrets of the URLs in it.
#[pyfunction]
fn without_secrets(text: &str) -> String {
    remote::without_secrets(text).into_owned()
}

/// Key, length and time of an object.
type Listed = (String, u64, i64);

/// The objects beneath a URL, and keys there that cannot be asked for.
#[pyfunction]
fn remote_list(py: Python<'_>, url: &str) -> PyResult<(Vec<Listed>, Vec<String>)> {
    let found = attended(py, || remote::list(url))?.map_err(|e| refused(url, &e))?;
    Ok((found.objects.into_iter().map(|meta| (meta.key, meta.length, meta.mtime_ns)).collect(), found.odd))
}

/// Length and time of an object.
#[pyfunction]
fn remote_meta(py: Python<'_>, url: &str) -> PyResult<(u64, i64)> {
    let meta = attended(py, || remote::Object::new(url)?.meta())?.map_err(|e| refused(url, &e))?;
    Ok((meta.length, meta.mtime_ns))
}

/// A range of an object.
#[pyfunction]
fn remote_read<'py>(py: Python<'py>, url: &str, offset: u64, length: u64) -> PyResult<Bound<'py, PyBytes>> {
    let found = attended(py, || remote::Object::new(url)?.fetch(offset..offset.saturating_add(length)))?;
    Ok(PyBytes::new(py, &found.map_err(|e| refused(url, &e))?))
}

/// Scans one plain tar: columns of its image members, and its label and caption members whole.
#[pyfunction]
#[pyo3(signature = (path, images, texts, helpers = None))]
fn probe_tar<'py>(
    py: Python<'py>,
    path: &[u8],
    images: Vec<String>,
    texts: Vec<String>,
    helpers: Option<&Bound<'py, Helpers>>,
) -> PyResult<Bound<'py, PyDict>> {
    let helpers = given(helpers);
    let scan = attended(py, || {
        let images: Vec<&[u8]> = images.iter().map(String::as_bytes).collect();
        let texts: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        probe::scan_tar(Path::new(OsStr::from_bytes(path)), &images, &texts, &helpers)
    })?;
    let (mut columns, mut names) = (Columns::default(), Vec::new());
    let (mut offsets, mut checks) = (Vec::new(), Vec::new());
    let mut found_texts = Vec::new();
    for entry in scan.entries {
        let name = PyBytes::new(py, &entry.name);
        match entry.payload {
            Payload::Image(header) => {
                let header = header.map_err(|reason| {
                    columns.errors.push((names.len(), reason));
                    BROKEN
                });
                columns.push(entry.length as i64, header);
                names.push(name);
                offsets.push(entry.offset as i64);
                checks.push(entry.check);
            }
            Payload::Text(content) => {
                let (content, reason) = match content {
                    Ok(bytes) => (Some(PyBytes::new(py, &bytes)), None),
                    Err(reason) => (None, Some(reason)),
                };
                found_texts.push((name, content, reason));
            }
        }
    }
    let dict = columns.into_dict(py)?;
    dict.set_item("names", names)?;
    dict.set_item("offset", offsets.into_pyarray(py))?;
    dict.set_item("check", checks.into_pyarray(py))?;
    dict.set_item("texts", found_texts)?;
    let others = scan.others.iter().map(|(end, (count, name))| (PyBytes::new(py, end), *count, PyBytes::new(py, name)));
    dict.set_item("others", others.collect::<Vec<_>>())?;
    dict.set_item("container_length", scan.length)?;
    dict.set_item("fault", scan.fault)?;
    Ok(dict)
}

/// The text of the runs of a region, which must be those of an image of this size.
fn region_text<'py>(py: Python<'py>, counts: &[u32], width: u32, height: u32) -> PyResult<Bound<'py, PyBytes>> {
    let (pixels, all) =
        (counts.iter().map(|&count| u64::from(count)).sum::<u64>(), u64::from(width) * u64::from(height));
    if pixels != all {
        let message = format!("its runs are of {pixels} pixels, and the image has {width} × {height}");
        return Err(PyValueError::new_err(message));
    }
    Ok(PyBytes::new(py, &regions::encode(counts)))
}

/// A region of polygons as COCO's text of runs.
#[pyfunction]
fn region_of_polygons(
    py: Python<'_>,
    polygons: Vec<Vec<f64>>,
    width: u32,
    height: u32,
) -> PyResult<Bound<'_, PyBytes>> {
    if u64::from(width) * u64::from(height) > u64::from(u32::MAX) || width == 0 || height == 0 {
        return Err(PyValueError::new_err(format!("an image of {width} × {height} pixels has no runs")));
    }
    if let Some(corner) = polygons.iter().flatten().find(|corner| corner.is_nan() || corner.abs() >= 1e8) {
        return Err(PyValueError::new_err(format!("a corner of it is at {corner}")));
    }
    let runs = py.detach(|| polygons::union(&polygons, width, height));
    region_text(py, &runs, width, height)
}

/// The same of runs.
#[pyfunction]
fn region_of_counts(py: Python<'_>, counts: Vec<u32>, width: u32, height: u32) -> PyResult<Bound<'_, PyBytes>> {
    region_text(py, &counts, width, height)
}

/// The same of a text, which is checked.
#[pyfunction]
fn region_of_text<'py>(py: Python<'py>, text: &[u8], width: u32, height: u32) -> PyResult<Bound<'py, PyBytes>> {
    let counts = regions::decode(text).map_err(|_| PyValueError::new_err("its text of runs is none"))?;
    region_text(py, &counts, width, height)
}
