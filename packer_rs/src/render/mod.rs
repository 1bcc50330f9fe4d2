//! Planned sequences → batch buffers. Takes planned batches, in the order in which they are wanted. Gives the same
//! batches with pixels, each as one block of memory, in whatever order they are asked for.
//!
//! May not know how images were chosen, nor who takes a batch: Python, processes and networks are for other rooms.
//!
//! ```text
//! submit ─► waiting ─► active ─► (fetch ahead) ─► decode, resize, patches, image by image ─► done ─► taken
//!                 bounded bytes                     any thread, any active batch
//! ```
//!
//! `layout` says what a batch looks like, `place` where an image's values go in it. `fill` writes what needs no pixels,
//! `worker` renders one image, `targets` its boxes and its mask, `encoded` leaves that to whoever takes the batch, `queue` shares the images out,
//! `engine` owns the threads and `threads` is what they do, `shared` is what all of them hold, a `ticket` is one batch
//! as its consumer holds it; `in_place` renders one batch without any of that, and `foreign` the
//! images of a tensor that is no batch of ours.

pub mod field;
pub mod layout;
pub mod ledger;
pub mod memory;

mod encoded;
mod engine;
mod fill;
mod foreign;
mod in_place;
mod job;
mod place;
mod queue;
mod settings;
mod shared;
mod targets;
mod threads;
mod ticket;
mod worker;

pub use engine::{Renderer, Stats};
pub use foreign::Floats;
pub use in_place::render_in_place;
pub use settings::{Profiles, RenderSettings};
pub use shared::Rendered;
pub use ticket::Ticket;
pub use worker::{Input, Wholly};
