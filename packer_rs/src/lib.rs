//! The engine of navit: **plan first, pixels later.**
//!
//! ```text
//! columns ─► order ─► draw ─► pack ─► plan ─► fetch ─► decode ─► resize ─► patchify ─► render
//!  (headers)            integers in, integers out        (bytes and pixels, into the slots)
//! ```
//!
//! Everything up to [`plan`] needs only image sizes, so it is a pure function of index, configuration, seed and epoch.
//! Everything after it fills the slots that the plan gave, behind the feature `render`, which is on by default.

pub mod columns;
pub mod error;
pub mod failure;
#[cfg(feature = "render")]
pub mod fetch;
#[cfg(feature = "render")]
pub mod pixels;
pub mod plan;
#[cfg(feature = "render")]
pub mod probe;
#[cfg(feature = "python")]
mod py;
#[cfg(feature = "render")]
pub mod render;
pub mod slots;
mod sync;
