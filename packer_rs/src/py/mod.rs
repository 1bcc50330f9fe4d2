//! The Python boundary, and the only folder that knows Python. Takes Python's arguments, checked, with the
//! interpreter's lock let go while the engine works. Gives Python's values, and each error as the exception of its
//! kind. One file per room, each registering its own names.
//!
//! May not decide anything: what is planned, read or rendered is the other rooms' affair.

mod attend;
mod batch;
mod columns;
mod encoded;
mod errors;
mod floats;
mod foreign;
mod given;
mod layout;
mod notify;
mod pack;
mod plan;
mod planned;
mod probe;
mod render;
mod sizing;

use pyo3::prelude::*;

/// The extension module `navit_loader._packer`.
#[pymodule]
fn _packer(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    // A benchmark refuses to measure a debug build.
    m.add("BUILD_PROFILE", if cfg!(debug_assertions) { "debug" } else { "release" })?;
    // `doctor` says what is slow without it.
    m.add("ASSEMBLER", cfg!(feature = "assembler"))?;
    m.add("BUILD_OVERRIDES", overrides())?;
    attend::register(m)?;
    foreign::register(m)?;
    pack::register(m)?;
    plan::register(m)?;
    sizing::register(m)?;
    layout::register(m)?;
    planned::register(m)?;
    probe::register(m)?;
    render::register(m)?;
    encoded::register(m)?;
    floats::register(m)?;
    Ok(())
}

/// What the environment of the build put in place of the workspace's own release profile, such as `lto=off`: a table of figures
/// names it, since such an engine is slower.
fn overrides() -> String {
    let given = [
        ("lto", option_env!("CARGO_PROFILE_RELEASE_LTO")),
        ("codegen-units", option_env!("CARGO_PROFILE_RELEASE_CODEGEN_UNITS")),
        ("opt-level", option_env!("CARGO_PROFILE_RELEASE_OPT_LEVEL")),
    ];
    let set = given.into_iter().filter_map(|(key, value)| value.map(|value| format!("{key}={value}")));
    set.collect::<Vec<_>>().join(" ")
}
