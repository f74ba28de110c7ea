//! Host memory and threads: what safe Rust cannot express about them.

pub(crate) mod claims;
pub(crate) mod interpreter;
pub(crate) mod load;
pub(crate) mod memory;
pub(crate) mod segment;
pub(crate) mod team;
pub(crate) mod weight;
