//! CPU backend: runs a plan with SIMD kernels chosen at run time.

mod backend;
mod host;
mod lane;
mod layout;
mod lower;
mod raw;
pub mod simd;
mod support;
mod top;

pub use backend::{Cpu, CpuOptions};
pub use host::host_memory;
pub use support::supports;
