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
pub mod config;
pub mod draw;
pub mod error;
pub mod order;
pub mod orient;
pub mod pack;
pub mod probe;
#[cfg(feature = "python")]
mod py;
pub mod random;
pub mod slots;
