//! Planned sequences → batch buffers. In: planned batches, in the order in which they are wanted. Out: the same batches with
//! pixels, each as one block of memory, in whatever order they are asked for.
//!
//! ```text
//! submit ─► waiting ─► active ─► (fetch ahead) ─► decode, resize, patches, image by image ─► done ─► taken
//!                 bounded bytes                     any thread, any active batch
//! ```
//!
//! `fill` writes what needs no pixels, `worker` renders one image, `encoded` leaves that to whoever takes the batch, `queue` shares the images out, `engine` owns the threads.

mod encoded;
mod engine;
mod fill;
mod queue;
mod settings;
mod worker;

pub use engine::{Rendered, Renderer, Stats, Ticket, render_in_place};
pub use settings::RenderSettings;
pub use worker::Input;
