//! The engine of navit: **plan first, pixels later.**
//!
//! ```text
//! columns ─► order ─► draw ─► pack ─► plan ─► fetch ─► decode ─► resize ─► patchify ─► render
//!  (headers)            integers in, integers out        (bytes and pixels, into the slots)
//! ```
//!
//! Everything up to [`plan`] needs only image sizes, so it is a pure function of index, configuration, seed and epoch.
//! Everything after it fills the slots that the plan gave.

pub mod columns;
pub mod error;
pub mod failure;
pub mod fetch;
pub mod pixels;
pub mod plan;
pub mod probe;
#[cfg(feature = "python")]
mod py;
pub mod render;
pub mod slots;
mod sync;
