//! What the example binaries share.

pub mod bounds;
pub mod cli;
pub mod device;
pub mod fetch;
pub mod hub;
pub mod interrupt;
pub mod progress;
