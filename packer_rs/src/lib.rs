//! The engine of navit: **plan first, pixels later.**
//!
//! ```text
//! columns ─► order ─► draw ─► pack ─► plan ─► fetch ─► decode ─► resize ─► patchify ─► render
//!  (headers)            integers in, integers out        (bytes and pixels, into the slots)
//! ```
//!
//! Everything up to [`plan`] needs only image sizes, so it is a pure function of index, configuration, seed and epoch.
//! Everything after it fills the slots that the plan gave.

pub mod block;
pub mod buffers;
pub mod columns;
pub mod config;
pub mod decode;
pub mod draw;
pub mod epoch;
pub mod error;
pub mod fetch;
pub mod foreign;
pub mod kernels;
pub mod ledger;
pub mod memory;
pub mod order;
pub mod orient;
pub mod pack;
pub mod pages;
pub mod patchify;
pub mod plan;
pub mod probe;
#[cfg(feature = "python")]
mod py;
pub mod quantiles;
pub mod random;
pub mod recent;
pub mod remote;
pub mod render;
pub mod resize;
pub mod slots;
pub mod streams;
mod sync;
pub mod taps;
pub mod triples;
