//! One map from the engine's errors to the exceptions of `navit_loader.errors`.

use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::error::{Error, Kind};

/// The Python exception for an engine error; the lookup happens on the error path alone.
pub fn to_py(error: Error) -> PyErr {
    Python::attach(|py| {
        let name = match error.kind {
            Kind::Pack => "PackError",
            Kind::Plan => "PlanError",
            Kind::State => "StateError",
            Kind::Index => "IndexFileError",
            Kind::Render => "RenderError",
        };
        let class =
            py.import("navit_loader.errors").and_then(|m| m.getattr(name)).and_then(|c| Ok(c.cast_into::<PyType>()?));
        match class {
            Ok(class) => PyErr::from_type(class, error.message),
            Err(e) => e,
        }
    })
}
