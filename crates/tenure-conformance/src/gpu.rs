//! A Vulkan device for tests.

use std::sync::Arc;

use tenure_device::{Backend, Lease};
use tenure_tensor::ByteSize;
use tenure_vulkan::testing::Driver;
use tenure_vulkan::{Caps, Features, KernelSet, ValidationLog, Vulkan, VulkanError, VulkanOptions};

/// An open device, and what the validation layer says about its use.
pub struct Gpu {
    /// The device.
    pub backend: Arc<Vulkan>,
    log: ValidationLog,
}

/// Whether a device has what products by integer dot products need.
fn has_integer(features: &Features) -> bool {
    let Features { integer_dot, storage_8bit, storage_16bit, subgroup_arithmetic, .. } = *features;
    integer_dot && storage_8bit && storage_16bit && subgroup_arithmetic
}

/// Whether a device has what products by cooperative matrices need.
fn has_cooperative(features: &Features) -> bool {
    features.cooperative_matrix.is_some() && features.storage_16bit && features.subgroup_arithmetic
}

/// The ways to multiply that the first Vulkan device has beside the one that every device has: by integer dot products, by
/// cooperative matrices, by both. Says what it lacks.
///
/// # Panics
/// When it lacks one that the environment demands: `TENURE_PRODUCTS` is `all`, or in CI, where it is not set, integer dot
/// products.
pub fn products() -> Vec<Caps> {
    let demand = std::env::var_os("TENURE_PRODUCTS");
    let ci = if std::env::var_os("CI").is_some() { "integer" } else { "none" };
    let demand = demand.as_ref().map_or(ci, |demand| demand.to_str().unwrap_or_default());
    assert!(["all", "integer", "none"].contains(&demand), "TENURE_PRODUCTS is all, integer or none");
    let Some(features) = tenure_vulkan::devices().ok().and_then(|found| Some(found.first()?.features)) else {
        assert_eq!(demand, "none", "there is no Vulkan device");
        return Vec::new();
    };
    let has = |what: &str, has: bool, demanded: bool| {
        assert!(has || !demanded, "this driver must have {what}");
        if !has {
            eprintln!("NOT TESTED: the first Vulkan device has no {what}");
        }
        has
    };
    let integer = has("integer dot products", has_integer(&features), demand != "none");
    let cooperative = has("cooperative matrices", has_cooperative(&features), demand == "all");
    let ways = [(true, false), (false, true), (true, true)].into_iter();
    let there = ways.filter(|way| (!way.0 || integer) && (!way.1 || cooperative));
    there.map(|way| Caps { integer_dot: Some(way.0), cooperative_matrix: Some(way.1), ..Caps::default() }).collect()
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
                let mut expected = backend.info().kernels();
                let features = backend.info().features;
                if let Some(wanted) = caps.integer_dot {
                    expected.integer = wanted && has_integer(&features);
                }
                if let Some(wanted) = caps.cooperative_matrix {
                    expected.cooperative = wanted && has_cooperative(&features);
                }
                if caps.no_subgroup_arithmetic {
                    expected = KernelSet::PLAIN;
                }
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

    /// What rounding to f16, to integers of 16 bits or to nothing but f32 may do to a model's logits: the normalised mean
    /// square error against the truth.
    pub fn rounding(&self) -> f64 {
        match self.backend.kernels() {
            kernels if kernels.cooperative => 1e-5,
            kernels if kernels.integer => 1e-6,
            _ => 1e-9,
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
