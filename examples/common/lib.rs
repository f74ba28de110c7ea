//! What the example binaries share.

pub mod bounds;
pub mod cli;
pub mod device;
pub mod fetch;
pub mod hub;
pub mod image;
pub mod interrupt;
mod paint;
pub mod png;
pub mod progress;
