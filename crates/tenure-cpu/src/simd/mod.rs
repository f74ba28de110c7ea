//! Kernels. Unsafe code is here, in `raw/`, and in the unsafe traits' methods in `backend.rs` and `lane.rs`; nowhere else.

pub mod attend;
pub mod attention;
pub mod bounds;
pub mod float;
mod isa;
pub mod panels;

pub use isa::Isa;
