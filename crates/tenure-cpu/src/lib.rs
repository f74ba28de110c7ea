//! CPU backend: runs a plan with SIMD kernels chosen at run time.

mod raw;
pub mod simd;
