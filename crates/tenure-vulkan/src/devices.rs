//! The devices of this machine.

use std::fmt;

use tenure_tensor::ByteSize;

use crate::backend::Caps;
use crate::error::VulkanError;
use crate::kernel::KernelSet;
use crate::raw::instance::Instance;

/// The Vulkan devices of this machine that can run the kernels, in the order of their index.
///
/// # Errors
/// [`VulkanError`] when there is no loader, no driver, or no device.
pub fn devices() -> Result<Vec<DeviceInfo>, VulkanError> {
    let instance = Instance::new(None)?;
    Ok(instance.adapters()?.into_iter().map(|adapter| adapter.info).collect())
}

/// What a device is, and what it reports that it can do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its place among the machine's devices.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its driver's name and version.
    pub driver: String,
    /// The version of Vulkan it implements.
    pub api: String,
    /// What sort of device it is.
    pub kind: DeviceKind,
    /// Its own memory.
    pub memory: ByteSize,
    /// What of it this process may still take, where the driver tells.
    pub free: Option<ByteSize>,
    /// What it can do beyond Vulkan 1.1.
    pub features: Features,
}

impl DeviceInfo {
    /// Which variants of the kernels such a device runs.
    pub fn kernels(&self) -> KernelSet {
        Caps::default().kernels(self)
    }
}

/// A sort of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the host's memory.
    Integrated,
    /// A GPU of a virtual machine.
    Virtual,
    /// The processor.
    Cpu,
    /// Something else.
    Other,
}

/// Features a device reports by their bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names are Vulkan's.
#[non_exhaustive]
pub struct Features {
    pub timeline_semaphores: bool,
    pub memory_budget: bool,
    pub storage_16bit: bool,
    pub storage_8bit: bool,
    pub float16: bool,
    pub int8: bool,
    pub integer_dot: bool,
    /// Whether those of four signed bytes in a word, the ones that kernels take, are faster than other instructions.
    pub integer_dot_accelerated: bool,
    /// The shape of cooperative matrices that kernels take, where all that they need is there.
    pub cooperative_matrix: Option<CooperativeMatrix>,
    pub subgroup_size: u32,
    pub subgroup_arithmetic: bool,
}

/// A shape of cooperative matrices, `m` rows by `k` times `k` by `n` columns: f16 with sums in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names are Vulkan's.
pub struct CooperativeMatrix {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    /// Invocations of the subgroups that have them.
    pub subgroup_size: u32,
}

impl CooperativeMatrix {
    /// Whether `matmul_cooperative` can be made of such matrices: subgroups share out its tile of 128 rows by 64 features
    /// in blocks two matrices wide, and each leaves the sums of one matrix in shared memory.
    pub(crate) fn is_taken(&self, shared_memory: u32) -> bool {
        let CooperativeMatrix { m, n, k, subgroup_size } = *self;
        let powers = [m, n, k, subgroup_size].iter().all(|size| size.is_power_of_two());
        if !powers || m > 128 || n > 32 || k > 32 || subgroup_size > 128 {
            return false;
        }
        let (subgroups, beside) = (128 / subgroup_size, 64 / n / 2);
        let high = (128 / m) * (64 / n) / subgroups / 2;
        high > 0 && subgroups >= beside && m * n * subgroups <= 1024 && shared_memory >= SHARED
    }

    /// The specialisation constant that tells the kernel.
    pub(crate) fn constant(&self) -> u32 {
        self.m | self.n << 8 | self.k << 16 | self.subgroup_size << 24
    }
}

/// Shared memory of `matmul_cooperative` at most: tiles of 64 features and 128 rows of 40 elements in f16, 1024 sums, and
/// two numbers for each subgroup.
const SHARED: u32 = (64 + 128) * 40 * 2 + 1024 * 4 + 2 * 128 * 4;

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DeviceKind::Discrete => "discrete",
            DeviceKind::Integrated => "integrated",
            DeviceKind::Virtual => "virtual",
            DeviceKind::Cpu => "cpu",
            DeviceKind::Other => "other",
        })
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [
            (self.timeline_semaphores, "timeline"),
            (self.memory_budget, "budget"),
            (self.storage_16bit, "storage16"),
            (self.storage_8bit, "storage8"),
            (self.float16, "f16"),
            (self.int8, "int8"),
            (self.integer_dot, "dot"),
            (self.integer_dot_accelerated, "dot-accelerated"),
            (self.subgroup_arithmetic, "subgroup-arithmetic"),
        ];
        write!(f, "subgroup{}", self.subgroup_size)?;
        named.iter().filter(|(has, _)| *has).try_for_each(|(_, name)| write!(f, " {name}"))?;
        self.cooperative_matrix.map_or(Ok(()), |shape| write!(f, " coopmat{}x{}x{}", shape.m, shape.n, shape.k))
    }
}

/// Which device is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceSelector {
    /// The first discrete one, or else the first integrated or virtual one, or else the first.
    #[default]
    Best,
    /// By its index.
    Index(usize),
    /// The first whose name has this part, in any case.
    Name(String),
}

impl DeviceSelector {
    /// The index of the device meant.
    pub(crate) fn pick(&self, infos: &[&DeviceInfo]) -> Result<usize, VulkanError> {
        let picked = match self {
            DeviceSelector::Best => {
                let rank = |kind| match kind {
                    DeviceKind::Discrete => 0,
                    DeviceKind::Integrated | DeviceKind::Virtual => 1,
                    DeviceKind::Other => 2,
                    DeviceKind::Cpu => 3,
                };
                (0..infos.len()).min_by_key(|&at| rank(infos[at].kind))
            }
            DeviceSelector::Index(index) => Some(*index).filter(|&index| index < infos.len()),
            DeviceSelector::Name(part) => {
                let part = part.to_lowercase();
                infos.iter().position(|info| info.name.to_lowercase().contains(&part))
            }
        };
        picked.ok_or_else(|| VulkanError::UnknownDevice {
            asked: self.to_string(),
            found: infos.iter().map(|info| format!("{}: {}", info.index, info.name)).collect(),
        })
    }
}

impl fmt::Display for DeviceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSelector::Best => f.write_str("best"),
            DeviceSelector::Index(index) => write!(f, "{index}"),
            DeviceSelector::Name(part) => f.write_str(part),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(index: usize, name: &str, kind: DeviceKind) -> DeviceInfo {
        DeviceInfo {
            index,
            name: name.to_owned(),
            driver: String::new(),
            api: "1.1.0".to_owned(),
            kind,
            memory: ByteSize::ZERO,
            free: None,
            features: Features {
                timeline_semaphores: false,
                memory_budget: false,
                storage_16bit: false,
                storage_8bit: false,
                float16: false,
                int8: false,
                integer_dot: false,
                integer_dot_accelerated: false,
                cooperative_matrix: None,
                subgroup_size: 1,
                subgroup_arithmetic: false,
            },
        }
    }

    #[test]
    fn shapes_that_the_kernel_can_be_made_of_are_taken() {
        let taken = |m, n, k, subgroup_size, memory| CooperativeMatrix { m, n, k, subgroup_size }.is_taken(memory);
        for (m, n, k, subgroup_size) in
            [(16, 16, 16, 32), (16, 16, 16, 64), (16, 8, 8, 32), (8, 16, 16, 16), (8, 8, 8, 8)]
        {
            assert!(taken(m, n, k, subgroup_size, 32 << 10), "{m} {n} {k} {subgroup_size}");
            assert!(!taken(m, n, k, subgroup_size, 16 << 10), "{m} {n} {k} {subgroup_size}");
        }
        // A whole row of matrices for a subgroup, one that is no power, sums of a matrix that leave no room.
        for (m, n, k, subgroup_size) in
            [(16, 64, 16, 32), (16, 12, 16, 32), (16, 16, 64, 32), (64, 32, 16, 8), (8, 8, 8, 256)]
        {
            assert!(!taken(m, n, k, subgroup_size, 32 << 10), "{m} {n} {k} {subgroup_size}");
        }
    }

    #[test]
    fn devices_are_picked_by_kind_number_and_name() {
        let all = [
            info(0, "llvmpipe", DeviceKind::Cpu),
            info(1, "Small iGPU", DeviceKind::Integrated),
            info(2, "Large GPU", DeviceKind::Discrete),
        ];
        let all: Vec<&DeviceInfo> = all.iter().collect();
        assert_eq!(DeviceSelector::Best.pick(&all), Ok(2));
        assert_eq!(DeviceSelector::Best.pick(&all[..1]), Ok(0));
        assert_eq!(DeviceSelector::Index(1).pick(&all), Ok(1));
        assert_eq!(DeviceSelector::Name("igpu".to_owned()).pick(&all), Ok(1));
        let error = DeviceSelector::Index(3).pick(&all).expect_err("there are three");
        assert_eq!(error.to_string(), "no Vulkan device \"3\"; there are 0: llvmpipe, 1: Small iGPU, 2: Large GPU");
        DeviceSelector::Name("nothing".to_owned()).pick(&all).expect_err("no such name");
    }
}
