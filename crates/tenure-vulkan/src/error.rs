//! What can be wrong with a machine's Vulkan.

/// Why no device could be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VulkanError {
    /// The machine has no Vulkan loader.
    #[error("no Vulkan loader: {why}")]
    NoLoader {
        /// What the system said.
        why: String,
    },
    /// The loader found no driver.
    #[error("the Vulkan loader found no driver")]
    NoDriver,
    /// There are drivers, but no device that can compute with Vulkan 1.1.
    #[error("no Vulkan 1.1 device with a compute queue")]
    NoDevice,
    /// No device of that number or name.
    #[error("no Vulkan device {asked:?}; there are {}", .found.join(", "))]
    UnknownDevice {
        /// What was asked for.
        asked: String,
        /// The devices' names, in order.
        found: Vec<String>,
    },
    /// The validation layer was asked for and is not installed.
    #[error("the validation layer is not installed")]
    NoValidationLayer,
    /// A call failed.
    #[error("{call}: {why}")]
    Call {
        /// The function.
        call: &'static str,
        /// What it returned.
        why: String,
    },
}
