//! Vulkan backend: runs a plan on a GPU whose driver is found at run time.
//!
//! What it is: [`Backend`](tenure_device::Backend) over any device with Vulkan 1.1. Loader and driver are looked for when
//! a device is opened; nothing of Vulkan is needed to build. Commands are recorded when a plan is bound, and a step
//! writes its inputs, submits and waits. What it is not: a way to share a device with graphics, or a compiler; kernels
//! are checked in compiled.
//!
//! Three types to know: [`Vulkan`], [`VulkanOptions`], [`DeviceInfo`].
//!
//! ```
//! match tenure_vulkan::devices() {
//!     Ok(devices) => devices.iter().for_each(|device| println!("{}: {}", device.index, device.name)),
//!     Err(error) => println!("{error}"),
//! }
//! ```

mod attention;
mod backend;
mod devices;
mod error;
mod exchange;
mod explain;
mod hazard;
mod kernel;
mod kinds;
mod lane;
mod layout;
mod lower;
mod raw;
#[cfg(feature = "testing")]
pub mod testing;
mod tops;
mod turns;

pub use backend::{Caps, Vulkan, VulkanOptions};
pub use devices::{CooperativeMatrix, DeviceInfo, DeviceKind, DeviceSelector, Features, devices};
pub use error::VulkanError;
pub use explain::{Explanation, kernels};
pub use kernel::KernelSet;
pub use raw::validation::ValidationLog;
