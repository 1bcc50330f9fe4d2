//! From bytes to pixels to patches. In: an encoded image. Out: the patches of its target grid.

pub mod decode;
pub mod format;
pub mod kernels;
pub mod orient;
pub mod patchify;
pub mod picture;
pub mod resize;
pub mod taps;
pub mod triples;
