//! Python name of `pack`. In: lengths as numpy arrays, checked by `navit_loader.plan.packing`. Out: sequence and offset
//! of each item.

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::error::{Error, Kind};
use crate::plan::pack::{Algorithm, Limits, Load, pack as pack_loads};
use crate::py::errors::to_py;

type Arrays<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>);

/// Packs items; see `navit_loader.pack`.
#[pyfunction]
#[pyo3(signature = (lengths, capacity, algorithm, lookahead, max_items, text_lengths, text_capacity))]
#[expect(clippy::too_many_arguments, reason = "one argument for each of pack's own")]
fn pack<'py>(
    py: Python<'py>,
    lengths: PyReadonlyArray1<'py, u32>,
    capacity: u32,
    algorithm: &str,
    lookahead: usize,
    max_items: u32,
    text_lengths: Option<PyReadonlyArray1<'py, u32>>,
    text_capacity: u32,
) -> PyResult<Arrays<'py>> {
    let algorithm = match algorithm {
        "auto" => Algorithm::Auto,
        "exact" => Algorithm::Exact,
        "first_fit" => Algorithm::FirstFit,
        "best_fit" => Algorithm::BestFit,
        "best_fit_decreasing" => Algorithm::BestFitDecreasing,
        "spfhp" => Algorithm::Histogram,
        "next_fit" => Algorithm::NextFit,
        other => return Err(to_py(Error::new(Kind::Pack, format!("algorithm = '{other}' is not known")))),
    };
    let mut loads: Vec<Load> = lengths.as_slice()?.iter().map(|&l| [l, 0, 0, 0]).collect();
    if let Some(text) = text_lengths {
        loads.iter_mut().zip(text.as_slice()?).for_each(|(load, &t)| load[2] = t);
    }
    let limits = Limits { capacity: [capacity, u32::MAX, text_capacity, u32::MAX], max_items };
    let (sequence, offset) = py
        .detach(|| {
            let packing = pack_loads(&loads, &limits, algorithm, lookahead)?;
            let (mut sequence, mut offset) = (vec![0i64; loads.len()], vec![0i64; loads.len()]);
            for (s, items) in packing.sequences().enumerate() {
                let mut at = 0;
                for &item in items {
                    sequence[item as usize] = s as i64;
                    offset[item as usize] = at;
                    at += i64::from(loads[item as usize][0]);
                }
            }
            Ok((sequence, offset))
        })
        .map_err(to_py)?;
    Ok((PyArray1::from_vec(py, sequence), PyArray1::from_vec(py, offset)))
}

/// Adds this room's names to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(pack, m)?)
}
