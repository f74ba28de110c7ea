//! All unsafety: owners of the driver's objects, which destroy them in the right order.

pub(crate) mod buffer;
pub(crate) mod command;
pub(crate) mod descriptor;
pub(crate) mod device;
pub(crate) mod exec;
pub(crate) mod instance;
pub(crate) mod pipeline;
pub(crate) mod ticks;
pub(crate) mod upload;
pub(crate) mod validation;
