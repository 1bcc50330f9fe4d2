//! Why an image has no pixels. In: what a read or a decoder met. Out: a failure with its stage, its reason and what was
//! said; or a fault that may pass.
//!
//! Apart from the ledger, which keeps failures, since everything from the file to the pixels can fail and none of it
//! may know of rendering.

use std::any::Any;
use std::cell::Cell;
use std::panic;
use std::sync::Once;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// Where an image failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Its bytes could not be had.
    Fetch,
    /// Its bytes gave no pixels.
    Decode,
}

/// Why an image failed: the small set of words that ledgers count by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// There is no such file, member or row.
    Missing,
    /// It is not what was indexed or planned.
    Changed,
    /// The index places it where nothing can be.
    Index,
    /// It ends too early.
    Truncated,
    /// It is damaged.
    Corrupt,
    /// No decoder at hand reads it.
    Unsupported,
    /// It is beyond a limit.
    TooLarge,
    /// A decoder panicked, crashed or came to no end.
    Panic,
    /// Memory was short.
    Memory,
    /// A helper process could not be started.
    Helper,
}

impl Stage {
    /// Its word in ledgers and in Python.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Decode => "decode",
        }
    }
}

impl Reason {
    /// Its word in ledgers and in Python.
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Changed => "changed",
            Self::Index => "index",
            Self::Truncated => "truncated",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::TooLarge => "too_large",
            Self::Panic => "panic",
            Self::Memory => "memory",
            Self::Helper => "helper",
        }
    }

    /// Whether it says nothing of the image: such a failure fails the request and masks nothing.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Memory | Self::Helper)
    }
}

impl Serialize for Stage {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.word())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.word())
    }
}

/// A failure that every replica sees: the image's slot is masked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Where it failed.
    pub stage: Stage,
    /// Why, as one word.
    pub reason: Reason,
    /// Why, in full: what the library or the system said.
    pub detail: String,
}

impl Failure {
    /// Its bytes could not be had.
    pub fn fetch(reason: Reason, detail: impl Into<String>) -> Self {
        Self { stage: Stage::Fetch, reason, detail: detail.into() }
    }

    /// Its bytes gave no pixels.
    pub fn decode(reason: Reason, detail: impl Into<String>) -> Self {
        Self { stage: Stage::Decode, reason, detail: detail.into() }
    }
}

/// What can go wrong with one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every replica sees it, now and later.
    Failed(Failure),
    /// It may pass: retried, not before the time that the other side asked for, then the request fails. Never masked.
    Passing {
        /// What was said.
        why: String,
        /// How long the other side asked not to be asked.
        after: Duration,
    },
    /// It says nothing of the image, and time alone will not help: the request fails at once. Never masked.
    Refused(String),
}

impl Fault {
    /// One that may pass at any time.
    pub fn passing(why: impl Into<String>) -> Self {
        Self::Passing { why: why.into(), after: Duration::ZERO }
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

thread_local! {
    /// Whether a panic here is expected, and told otherwise.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a dependency on bytes that it may panic over. Such a panic is given back as what it said, and prints nothing.
///
/// # Errors
/// What the panic said.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !EXPECTED.get() {
                before(info);
            }
        }));
    });
    let outer = EXPECTED.replace(true);
    let outcome = panic::catch_unwind(panic::AssertUnwindSafe(work));
    EXPECTED.set(outer);
    outcome.map_err(|panic| said(&*panic).to_owned())
}

/// What a caught panic said.
pub fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
