//! Model architectures, one file each, recorded over the graph builder.
//!
//! What it is: what a file's hyperparameters mean ([`TextConfig`]), and what each architecture computes ([`record`]).
//! What it is not: anything that touches a device, or knows how weights are quantised.
#![forbid(unsafe_code)]

mod config;
mod decoder;
mod error;
mod gemma3;
pub mod image;
mod llama;
mod qwen2;
mod qwen3;
mod text;

pub use config::{Sliding, TextArchitecture, TextConfig};
pub use error::ModelError;
pub use text::{Outputs, Part, record};
