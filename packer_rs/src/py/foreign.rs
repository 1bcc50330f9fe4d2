//! Python name of the helpers that read what the engine does not. In: the command of one, from `navit_loader.foreign`.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::pixels::decode::foreign::Helpers as Inner;

/// Helper processes, started when the first image needs one; they end with this object.
#[pyclass(frozen, module = "navit_loader._packer")]
pub struct Helpers {
    inner: Arc<Inner>,
}

#[pymethods]
impl Helpers {
    #[new]
    fn new(command: Vec<String>) -> Self {
        Self { inner: Arc::new(Inner::new(command)) }
    }
}

/// The helpers that a caller gave, or none.
pub fn helpers(given: Option<&Bound<'_, Helpers>>) -> Arc<Inner> {
    given.map_or_else(Arc::default, |h| h.get().inner.clone())
}

/// Adds this room's name to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Helpers>()
}
