//! Kernels: the only place of this crate, beside `raw/`, that holds `unsafe`.

pub mod bounds;
mod isa;

pub use isa::Isa;
