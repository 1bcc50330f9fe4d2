//! One error type for the whole engine. Each message names the value and the remedy; `py` maps each kind to one Python
//! exception of `navit_loader.errors`.

use std::fmt;

/// Which room an error comes from, and so which Python exception it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Lengths or limits that cannot be packed: `PackError`.
    Pack,
    /// A configuration that cannot be planned with this index: `PlanError`.
    Plan,
    /// A state, sequence number or epoch out of range: `StateError`.
    State,
    /// A column of the index of the wrong length or content: `IndexFileError`.
    Index,
    /// A batch that could not be rendered: `RenderError`.
    Render,
}

/// An error of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The room it comes from.
    pub kind: Kind,
    /// One line that names the value and what is allowed.
    pub message: String,
}

impl Error {
    /// An error of this kind with this message.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// `Result` with the engine's error.
pub type Result<T> = std::result::Result<T, Error>;
