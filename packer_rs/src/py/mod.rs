//! The Python boundary: the only folder that knows Python. One file per room, each registering its own names.

mod batch;
mod columns;
mod encoded;
mod errors;
mod foreign;
mod given;
mod layout;
mod notify;
mod pack;
mod plan;
mod planned;
mod probe;
mod render;

use pyo3::prelude::*;

/// The extension module `navit_loader._packer`.
#[pymodule]
fn _packer(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    // A benchmark refuses to measure a debug build.
    m.add("BUILD_PROFILE", if cfg!(debug_assertions) { "debug" } else { "release" })?;
    foreign::register(m)?;
    pack::register(m)?;
    plan::register(m)?;
    layout::register(m)?;
    planned::register(m)?;
    probe::register(m)?;
    render::register(m)?;
    encoded::register(m)?;
    Ok(())
}
