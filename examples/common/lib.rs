//! What the example binaries share.

pub mod bounds;
pub mod cli;
pub mod interrupt;
pub mod progress;
