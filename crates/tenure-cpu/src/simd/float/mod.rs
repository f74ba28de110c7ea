//! Kernels over plain floats: norms, rotary embedding, gated units, element by element, and products with weights
//! that a file holds as floats.
//!
//! A row's result depends on the row alone: not on how many rows a call has, nor on how callers divide them.

pub(crate) mod element;
mod elementwise;
pub(crate) mod lanes;
pub(crate) mod lanes_portable;
#[cfg(target_arch = "x86_64")]
mod lanes_x86;
mod matmul;
mod matmul_words;
mod norm;
mod rope;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tile;
pub mod winograd;
mod words;

pub use elementwise::{activate, add, add_gated, add_to_rows, glu, modulate, scale, scale_shift, softcap};
pub use matmul::{MOST_SIZE, Out, conv2d, has_kernel, matmul};
pub use matmul_words::matmul_words;
pub use norm::{group_factors, group_sums, layer_norm, rms_norm};
pub use rope::{rope, rope_table};
pub use words::{Line, exponents_of, lines_of, takes_words, to_words};
