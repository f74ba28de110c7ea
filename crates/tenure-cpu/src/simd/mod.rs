//! Kernels: the only place of this crate, beside `raw/`, that holds `unsafe`.

pub mod attention;
pub mod bounds;
pub mod float;
mod isa;
pub mod panels;

pub use isa::Isa;
