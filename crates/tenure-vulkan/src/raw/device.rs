//! An open device and its queue.

use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ash::vk;
use tenure_device::{DeviceError, RunError};
use tenure_tensor::ByteSize;

use crate::backend::Caps;
use crate::devices::{CooperativeMatrix, DeviceInfo, DeviceKind};
use crate::error::VulkanError;
use crate::kernel::KernelSet;
use crate::raw::instance::{Adapter, Instance};

/// An open device. Everything made on it holds a share, so it is closed last.
pub(crate) struct Gpu {
    pub(crate) raw: ash::Device,
    /// The calls of timeline semaphores, where the device has them.
    pub(crate) timeline: Option<ash::khr::timeline_semaphore::Device>,
    pub(crate) info: DeviceInfo,
    pub(crate) family: u32,
    pub(crate) limits: Limits,
    pub(crate) types: MemoryTypes,
    /// Which variants of the kernels it runs.
    pub(crate) kernels: KernelSet,
    /// Submissions are made by one thread at a time.
    queue: Mutex<vk::Queue>,
    /// Bytes of device memory that are allocated.
    allocated: AtomicU64,
    lost: AtomicBool,
    /// Work on the device never ended, so nothing it might touch may be destroyed.
    stuck: AtomicBool,
    instance: Arc<Instance>,
    physical: vk::PhysicalDevice,
    /// How long work that was stopped is waited for before the device is given up.
    pub(crate) linger: Duration,
    #[cfg(feature = "testing")]
    interpose: Option<Arc<crate::testing::Interpose>>,
}

/// What bounds the shape of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The most bytes a shader sees through one binding.
    pub(crate) range: u64,
    /// The same, for what can be divided.
    pub(crate) window: u64,
    /// What the beginning of a binding is a multiple of.
    pub(crate) align: u64,
    /// The most workgroups in one direction.
    pub(crate) groups: u64,
    /// The most bytes of one allocation.
    pub(crate) allocation: u64,
    /// The most multiplications of one submission.
    pub(crate) work: u64,
}

/// Which memory is taken for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryTypes {
    /// What kernels work in.
    pub(crate) device: u32,
    /// Whether the host can write that memory itself.
    pub(crate) device_is_mapped: bool,
    /// What host and device exchange.
    pub(crate) host: u32,
}

/// What kernels with integer dot products need.
const INTEGER: [&CStr; 2] = [ash::khr::_8bit_storage::NAME, ash::khr::shader_integer_dot_product::NAME];
/// What kernels with cooperative matrices need.
pub(crate) const COOPERATIVE: [&CStr; 4] = [
    ash::khr::cooperative_matrix::NAME,
    ash::khr::shader_float16_int8::NAME,
    ash::khr::vulkan_memory_model::NAME,
    ash::ext::subgroup_size_control::NAME,
];
/// What the beginning of a binding is a multiple of at least: kernels read four words at a time.
const LEAST_ALIGN: u64 = 16;
/// Multiplications of one submission: below what a slow device does before its driver loses patience.
const WORK: u64 = 30_000_000_000;
/// The same on a driver that runs on the processor, where a submission is what a stop waits for.
const PROCESSOR_WORK: u64 = 2_000_000_000;
/// Submissions that were stopped take less, also on a busy machine, unless the device hangs.
const LINGER: Duration = Duration::from_secs(60);
/// The most bytes a beginning of a binding can have to be a multiple of.
pub(crate) const MOST_ALIGN: u64 = 256;

impl Gpu {
    /// Opens a device, which is taken to have no more than `caps` allow.
    pub(crate) fn open(
        instance: Arc<Instance>,
        adapter: Adapter,
        caps: &Caps,
        #[cfg(feature = "testing")] driver: &crate::testing::Driver,
    ) -> Result<Arc<Self>, VulkanError> {
        let Adapter { raw: physical, info, family, limits, memory, largest_allocation } = adapter;
        let priorities = [1.0];
        let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&priorities)];
        let use_timeline = info.features.timeline_semaphores && !caps.no_timeline_semaphores;
        let mut timeline = vk::PhysicalDeviceTimelineSemaphoreFeatures::default().timeline_semaphore(true);
        let mut extensions = Vec::new();
        let mut create = vk::DeviceCreateInfo::default().queue_create_infos(&queues);
        if use_timeline {
            extensions.push(ash::khr::timeline_semaphore::NAME.as_ptr());
            create = create.push_next(&mut timeline);
        }
        let kernels = caps.kernels(&info);
        let mut matrix = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
        let mut float16 = vk::PhysicalDeviceShaderFloat16Int8Features::default().shader_float16(true);
        // Other kernels have atomics of device scope, which the first of these rules out without the second.
        let mut model = vk::PhysicalDeviceVulkanMemoryModelFeatures::default()
            .vulkan_memory_model(true)
            .vulkan_memory_model_device_scope(true);
        let mut sizes = vk::PhysicalDeviceSubgroupSizeControlFeatures::default()
            .subgroup_size_control(true)
            .compute_full_subgroups(true);
        let mut storage16 = vk::PhysicalDevice16BitStorageFeatures::default().storage_buffer16_bit_access(true);
        let mut storage8 = vk::PhysicalDevice8BitStorageFeatures::default().storage_buffer8_bit_access(true);
        let mut dot = vk::PhysicalDeviceShaderIntegerDotProductFeatures::default().shader_integer_dot_product(true);
        if kernels.integer || kernels.cooperative {
            create = create.push_next(&mut storage16);
        }
        if kernels.integer {
            extensions.extend(INTEGER.map(CStr::as_ptr));
            create = create.push_next(&mut storage8).push_next(&mut dot);
        }
        if kernels.cooperative {
            extensions.extend(COOPERATIVE.map(CStr::as_ptr));
            create = create.push_next(&mut matrix).push_next(&mut float16).push_next(&mut model).push_next(&mut sizes);
        }
        create = create.enabled_extension_names(&extensions);
        // SAFETY: the adapter is of this instance; the queue family exists; extensions are listed and their bits set.
        let raw = unsafe { instance.raw.create_device(physical, &create, None) };
        let raw = raw.map_err(called("vkCreateDevice"))?;
        // SAFETY: the queue was asked for just now.
        let queue = unsafe { raw.get_device_queue(family, 0) };
        let timeline = use_timeline.then(|| ash::khr::timeline_semaphore::Device::new(&instance.raw, &raw));
        let types = usable_types(&raw).and_then(|usable| MemoryTypes::choose(&memory, usable, info.kind, caps));
        let limits = Limits {
            range: u64::from(limits.max_storage_buffer_range),
            window: u64::from(limits.max_storage_buffer_range).min(caps.binding.map_or(u64::MAX, ByteSize::get)),
            align: limits.min_storage_buffer_offset_alignment.clamp(LEAST_ALIGN, MOST_ALIGN),
            groups: u64::from(limits.max_compute_work_group_count[0].min(limits.max_compute_work_group_count[1])),
            allocation: largest_allocation.min(caps.allocation.map_or(u64::MAX, ByteSize::get)),
            work: caps.work.unwrap_or(if info.kind == DeviceKind::Cpu { PROCESSOR_WORK } else { WORK }),
        };
        let mut gpu = Gpu {
            raw,
            timeline,
            info,
            family,
            limits,
            kernels,
            types: MemoryTypes { device: 0, device_is_mapped: false, host: 0 },
            queue: Mutex::new(queue),
            allocated: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            instance,
            physical,
            linger: LINGER,
            #[cfg(feature = "testing")]
            interpose: driver.interpose.clone(),
        };
        #[cfg(feature = "testing")]
        if let Some(linger) = driver.linger {
            gpu.linger = linger;
        }
        // Only now, so that a refusal closes the device.
        gpu.types = types?;
        Ok(Arc::new(gpu))
    }

    /// The cooperative matrices that its kernels use.
    pub(crate) fn cooperative(&self) -> Option<CooperativeMatrix> {
        self.info.features.cooperative_matrix.filter(|_| self.kernels.cooperative)
    }

    /// The name it is known by.
    pub(crate) fn name(&self) -> String {
        format!("vulkan:{} ({})", self.info.index, self.info.name)
    }

    /// The queue, for one submission.
    pub(crate) fn queue(&self) -> MutexGuard<'_, vk::Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of memory that was allocated.
    pub(crate) fn took(&self, bytes: u64) {
        self.allocated.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Takes note of memory that was freed.
    pub(crate) fn gave(&self, bytes: u64) {
        self.allocated.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Device memory that is allocated.
    pub(crate) fn allocated(&self) -> ByteSize {
        ByteSize::new(self.allocated.load(Ordering::Acquire))
    }

    /// Whether a call said that the device is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Takes note of work that never ended: the device is given up, and what was made on it is leaked.
    pub(crate) fn abandon(&self) {
        self.stuck.store(true, Ordering::Release);
        self.lost.store(true, Ordering::Release);
    }

    /// Whether what was made on the device may still be in use although its owner is gone.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Acquire)
    }

    /// Makes a call of the driver, and takes note if it says that the device is gone. A device that was given up is not
    /// called any more.
    pub(crate) fn call<T>(
        &self,
        call: &'static str,
        body: impl FnOnce() -> Result<T, vk::Result>,
    ) -> Result<T, GpuError> {
        if self.is_lost() {
            return Err(GpuError { call, result: vk::Result::ERROR_DEVICE_LOST });
        }
        #[cfg(feature = "testing")]
        if let Some(result) = self.interposed(call) {
            if call == "vkEndCommandBuffer" {
                // One that fails ends the recording all the same.
                let _: Result<T, vk::Result> = body();
            }
            return Err(GpuError { call, result });
        }
        body().map_err(|result| {
            if result == vk::Result::ERROR_DEVICE_LOST {
                self.lost.store(true, Ordering::Release);
            }
            GpuError { call, result }
        })
    }

    /// What a test has the call return, if anything.
    #[cfg(feature = "testing")]
    fn interposed(&self, call: &'static str) -> Option<vk::Result> {
        use crate::testing::Injected;
        let injected = self.interpose.as_ref()?(call)?;
        Some(match injected {
            Injected::OutOfDeviceMemory => vk::Result::ERROR_OUT_OF_DEVICE_MEMORY,
            Injected::Lost => {
                // Nothing runs on a device that is gone.
                // SAFETY: the device is alive, and the lock keeps its one queue to this thread.
                let idle = unsafe {
                    let _queue = self.queue();
                    self.raw.device_wait_idle()
                };
                debug_assert!(idle.is_ok());
                self.lost.store(true, Ordering::Release);
                vk::Result::ERROR_DEVICE_LOST
            }
            Injected::Hang => {
                std::thread::sleep(Duration::from_millis(1));
                vk::Result::TIMEOUT
            }
        })
    }

    /// What of the memory that kernels work in can still be allocated, where the driver tells.
    pub(crate) fn available(&self) -> Option<ByteSize> {
        if !self.info.features.memory_budget {
            return None;
        }
        let (memory, budget) = self.instance.memory(self.physical, true);
        let heap = memory.memory_types[self.types.device as usize].heap_index as usize;
        free_of(&memory, &budget, heap)
    }
}

/// What of a heap this process may still take, from what the driver says; nothing that cannot be.
pub(crate) fn free_of(
    memory: &vk::PhysicalDeviceMemoryProperties,
    budget: &vk::PhysicalDeviceMemoryBudgetPropertiesEXT<'_>,
    heap: usize,
) -> Option<ByteSize> {
    let size = memory.memory_heaps_as_slice().get(heap)?.size;
    let (budget, usage) = (*budget.heap_budget.get(heap)?, *budget.heap_usage.get(heap)?);
    // A driver that says nothing says 0 of both.
    (budget > 0).then(|| ByteSize::new(budget.min(size).saturating_sub(usage)))
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.is_stuck() {
            // The device's work may still run in the driver, whose code must then stay where it is.
            std::mem::forget(self.instance.clone());
            return;
        }
        // SAFETY: everything made on the device holds a share of it, so nothing is left.
        unsafe { self.raw.destroy_device(None) };
    }
}

impl MemoryTypes {
    fn choose(
        memory: &vk::PhysicalDeviceMemoryProperties,
        usable: u32,
        kind: DeviceKind,
        caps: &Caps,
    ) -> Result<Self, VulkanError> {
        use vk::MemoryPropertyFlags as Flags;
        let types = memory.memory_types_as_slice();
        let with = |wanted: Flags| {
            let fits = |at: &usize| usable & (1 << at) != 0 && types[*at].property_flags.contains(wanted);
            (0..types.len()).find(fits).map(|at| at as u32)
        };
        let shared = Flags::HOST_VISIBLE | Flags::HOST_COHERENT;
        let cached = shared | Flags::HOST_CACHED;
        let none = || VulkanError::Call { call: "vkGetBufferMemoryRequirements", why: "no suitable memory".to_owned() };
        let host = with(cached).or_else(|| with(shared)).ok_or_else(none)?;
        // A discrete device's memory is only written by the host through a window, if at all.
        let unified = !caps.no_mapped_memory && kind != DeviceKind::Discrete;
        let mapped = || with(Flags::DEVICE_LOCAL | cached).or_else(|| with(Flags::DEVICE_LOCAL | shared));
        let mapped = unified.then(mapped).flatten();
        let device = mapped.or_else(|| with(Flags::DEVICE_LOCAL)).unwrap_or(host);
        Ok(MemoryTypes { device, device_is_mapped: mapped.is_some(), host })
    }
}

/// The memory types that buffers of ours can lie in.
fn usable_types(device: &ash::Device) -> Result<u32, VulkanError> {
    let requirements = requirements(device, 1 << 16).map_err(called("vkCreateBuffer"))?;
    Ok(requirements.memory_type_bits)
}

/// What a buffer of so many bytes asks of its memory.
pub(crate) fn requirements(device: &ash::Device, bytes: u64) -> Result<vk::MemoryRequirements, vk::Result> {
    // SAFETY: the device is alive, and the buffer is destroyed where it was made.
    unsafe {
        let buffer = device.create_buffer(&buffer_info(bytes), None)?;
        let requirements = device.get_buffer_memory_requirements(buffer);
        device.destroy_buffer(buffer, None);
        Ok(requirements)
    }
}

/// All buffers are made alike, so that one answer about their memory holds for all.
pub(crate) fn buffer_info(bytes: u64) -> vk::BufferCreateInfo<'static> {
    vk::BufferCreateInfo::default()
        .size(bytes)
        .usage(
            vk::BufferUsageFlags::STORAGE_BUFFER
                | vk::BufferUsageFlags::UNIFORM_BUFFER
                | vk::BufferUsageFlags::INDIRECT_BUFFER
                | vk::BufferUsageFlags::TRANSFER_SRC
                | vk::BufferUsageFlags::TRANSFER_DST,
        )
        .sharing_mode(vk::SharingMode::EXCLUSIVE)
}

/// A call that failed on an open device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GpuError {
    pub(crate) call: &'static str,
    pub(crate) result: vk::Result,
}

impl GpuError {
    /// As a lane reports it.
    pub(crate) fn of_device(self, gpu: &Gpu) -> DeviceError {
        let (device, why) = (gpu.name(), self.why());
        match self.class() {
            Class::Lost => DeviceError::Lost { device },
            Class::OutOfMemory => DeviceError::OutOfMemory { device, why },
            Class::Other => DeviceError::Failed { device, why },
        }
    }

    /// As an executable reports it.
    pub(crate) fn of_run(self, gpu: &Gpu) -> RunError {
        let (device, why) = (gpu.name(), self.why());
        match self.class() {
            Class::Lost => RunError::Lost { device },
            Class::OutOfMemory => RunError::OutOfMemory { device, why },
            Class::Other => RunError::Failed { device, why },
        }
    }

    /// Whether the device is gone.
    pub(crate) fn is_loss(self) -> bool {
        self.class() == Class::Lost
    }

    fn class(self) -> Class {
        match self.result {
            vk::Result::ERROR_DEVICE_LOST => Class::Lost,
            vk::Result::ERROR_OUT_OF_DEVICE_MEMORY
            | vk::Result::ERROR_OUT_OF_HOST_MEMORY
            | vk::Result::ERROR_OUT_OF_POOL_MEMORY
            | vk::Result::ERROR_TOO_MANY_OBJECTS
            | vk::Result::ERROR_FRAGMENTED_POOL => Class::OutOfMemory,
            _ => Class::Other,
        }
    }

    /// What failed, and how.
    fn why(self) -> String {
        format!("{}: {}", self.call, self.result)
    }
}

/// What a caller can make of a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Lost,
    OutOfMemory,
    Other,
}

/// Names the call that failed before a device was open.
pub(crate) fn called(call: &'static str) -> impl Fn(vk::Result) -> VulkanError {
    move |result| VulkanError::Call { call, why: result.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_driver_says_of_its_memory_is_believed_within_reason() {
        let mut memory = vk::PhysicalDeviceMemoryProperties { memory_heap_count: 2, ..Default::default() };
        memory.memory_heaps[1].size = 1000;
        let free = |heap, said, used| {
            let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
            (budget.heap_budget[1], budget.heap_usage[1]) = (said, used);
            free_of(&memory, &budget, heap).map(ByteSize::get)
        };
        assert_eq!(free(1, 800, 300), Some(500));
        assert_eq!(free(1, 800, 900), Some(0), "others took it since");
        assert_eq!(free(1, u64::MAX, 300), Some(700), "more than there is");
        assert_eq!(free(1, 0, 0), None, "nothing was said");
        assert_eq!(free(2, 800, 300), None, "no such heap");
    }
}
