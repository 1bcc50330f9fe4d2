//! Encoded bytes → pixels → patches. Takes a file's bytes and what is wanted of them. Gives planes of just enough
//! pixels, resized, turned and cut into the patches of a target grid.
//!
//! May not know where bytes come from, which slot of which batch they are for, or how images were planned.

pub mod decode;
pub mod floats;
pub mod format;
pub mod items;
pub mod kernels;
pub mod matrix;
pub mod orient;
pub mod patchify;
pub mod picture;
pub mod regions;
pub mod resize;
pub mod rgb;
pub mod tags;
pub mod taps;
pub mod warp;
