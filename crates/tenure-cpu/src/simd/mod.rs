//! Kernels: the only place of this crate, beside `raw/`, that holds `unsafe`.

pub mod act8;
pub mod attention;
pub mod bounds;
pub mod float;
mod isa;
pub mod packed;
pub mod panels;

pub use isa::Isa;
