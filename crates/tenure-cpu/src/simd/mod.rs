//! Kernels: the only place of this crate, beside `raw/`, that holds `unsafe`.

pub mod bounds;
pub mod elementwise;
mod isa;
pub mod kv;
pub mod panels;
pub mod rows;

pub use isa::Isa;
