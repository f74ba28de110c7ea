//! A Vulkan device for tests.

use std::sync::Arc;

use tenure_device::{Backend, Lease};
use tenure_tensor::ByteSize;
use tenure_vulkan::testing::Driver;
use tenure_vulkan::{Caps, KernelSet, ValidationLog, Vulkan, VulkanError, VulkanOptions};

/// An open device, and what the validation layer says about its use.
pub struct Gpu {
    /// The device.
    pub backend: Arc<Vulkan>,
    log: ValidationLog,
}

/// The first Vulkan device with cooperative matrices in use, where it has some; else says so.
///
/// # Panics
/// When it has none although the environment has `TENURE_COOPERATIVE`, as where CI runs a driver that is chosen for them.
pub fn cooperative() -> Option<Caps> {
    let first = tenure_vulkan::devices().ok().and_then(|found| found.into_iter().next());
    let has = first.is_some_and(|device| device.features.cooperative_matrix.is_some());
    if !has {
        assert!(std::env::var_os("TENURE_COOPERATIVE").is_none(), "this driver must have cooperative matrices");
        eprintln!("NOT TESTED: the first Vulkan device has no cooperative matrices");
    }
    has.then(|| Caps { cooperative_matrix: Some(true), ..Caps::default() })
}

impl Gpu {
    /// The first Vulkan device, watched over by the validation layer, with the fastest kernels that it and `caps` allow.
    /// On a machine without either, says so and gives `None`; a test calls it off then. Where the environment has `CI`,
    /// that is a failure: there the packages are installed, and a test that does not run proves nothing.
    ///
    /// # Panics
    /// When there is a device that cannot be opened, or none in CI.
    pub fn open(caps: Caps) -> Option<Gpu> {
        Gpu::open_failing(caps, Driver::default())
    }

    /// The same, with a driver that fails as it is told to.
    ///
    /// # Panics
    /// As [`Gpu::open`].
    pub fn open_failing(caps: Caps, driver: Driver) -> Option<Gpu> {
        let log = ValidationLog::new();
        let options = VulkanOptions { validation: Some(log.clone()), caps, ..VulkanOptions::default() };
        match Vulkan::open_failing(&options, driver) {
            Ok(backend) => {
                let fastest = match (backend.info().features.cooperative_matrix, caps.cooperative_matrix) {
                    (Some(_), Some(true)) => KernelSet::Cooperative,
                    (Some(_), Some(false)) => KernelSet::Subgroup,
                    (_, _) => backend.info().kernels(),
                };
                let expected = if caps.no_subgroup_arithmetic { KernelSet::Plain } else { fastest };
                assert_eq!(backend.kernels(), expected);
                Some(Gpu { backend: Arc::new(backend), log })
            }
            Err(
                error @ (VulkanError::NoLoader { .. }
                | VulkanError::NoDriver
                | VulkanError::NoDevice
                | VulkanError::NoValidationLayer),
            ) => {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "CI must have a Vulkan device and its validation layer: {error}"
                );
                eprintln!("NOT TESTED: {error}");
                None
            }
            Err(error) => panic!("a device is there and cannot be opened: {error}"),
        }
    }

    /// What the backend has allocated beside its overhead.
    pub fn allocated(&self) -> ByteSize {
        self.backend.allocated().saturating_sub(self.backend.overhead())
    }

    /// The words of a lease's memory.
    ///
    /// # Panics
    /// When the device cannot be read.
    ///
    /// # Safety
    /// Nothing runs that writes the memory.
    pub unsafe fn words(&self, lease: &Lease) -> Vec<u32> {
        // SAFETY: the caller's promise.
        unsafe { self.backend.peek(lease.raw()) }.expect("the device is there")
    }

    /// Closes the device, and sees to it that the validation layer had nothing to say, objects left behind included.
    ///
    /// # Panics
    /// When it had, or somebody still holds the device.
    pub fn close(self) {
        let Gpu { backend, log } = self;
        drop(Arc::into_inner(backend).expect("nobody else holds the device"));
        let messages = log.messages();
        assert!(messages.is_empty(), "{} messages, the first: {}", messages.len(), messages[0]);
    }
}
