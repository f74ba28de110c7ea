//! The loader, an instance, and the devices it knows.

use std::ffi::CStr;
use std::sync::Arc;

use ash::vk;
use tenure_tensor::ByteSize;

use crate::devices::{CooperativeMatrix, DeviceInfo, DeviceKind, Features};
use crate::error::VulkanError;
use crate::raw::device::{COOPERATIVE, called, free_of};
use crate::raw::validation::{LAYER, Messenger, ValidationLog};

/// A Vulkan instance. Devices hold a share of it.
pub(crate) struct Instance {
    pub(crate) raw: ash::Instance,
    messenger: Option<Messenger>,
    // Keeps the loader's library, and the log that the layer writes to, until the instance is gone.
    entry: ash::Entry,
    _log: Option<ValidationLog>,
}

/// A device that is not open.
pub(crate) struct Adapter {
    pub(crate) raw: vk::PhysicalDevice,
    pub(crate) info: DeviceInfo,
    pub(crate) family: u32,
    pub(crate) limits: vk::PhysicalDeviceLimits,
    pub(crate) memory: vk::PhysicalDeviceMemoryProperties,
    pub(crate) largest_allocation: u64,
}

impl Instance {
    /// Loads Vulkan. With a log, the validation layer watches over every call and writes there.
    pub(crate) fn new(log: Option<&ValidationLog>) -> Result<Arc<Self>, VulkanError> {
        // SAFETY: the system's Vulkan loader is trusted as every shared library of the system is.
        let entry = unsafe { ash::Entry::load() };
        let entry = entry.map_err(|error| VulkanError::NoLoader { why: error.to_string() })?;
        // SAFETY: a query without preconditions.
        let version = unsafe { entry.try_enumerate_instance_version() };
        let version = version.map_err(called("vkEnumerateInstanceVersion"))?.unwrap_or(vk::API_VERSION_1_0);
        if version < vk::API_VERSION_1_1 {
            return Err(VulkanError::NoDevice);
        }
        let app = vk::ApplicationInfo::default().application_name(c"tenure").api_version(vk::API_VERSION_1_1);
        let (mut layers, mut extensions) = (Vec::new(), Vec::new());
        if log.is_some() {
            // SAFETY: a query without preconditions.
            let known = unsafe { entry.enumerate_instance_layer_properties() };
            let known = known.map_err(called("vkEnumerateInstanceLayerProperties"))?;
            if !known.iter().any(|layer| layer.layer_name_as_c_str().is_ok_and(|name| name == LAYER)) {
                return Err(VulkanError::NoValidationLayer);
            }
            layers.push(LAYER.as_ptr());
            extensions.push(ash::ext::debug_utils::NAME.as_ptr());
            extensions.push(ash::ext::validation_features::NAME.as_ptr());
        }
        let checks = [vk::ValidationFeatureEnableEXT::SYNCHRONIZATION_VALIDATION];
        let mut features = vk::ValidationFeaturesEXT::default().enabled_validation_features(&checks);
        let mut early = log.map(ValidationLog::messenger_info);
        let mut info = vk::InstanceCreateInfo::default()
            .application_info(&app)
            .enabled_layer_names(&layers)
            .enabled_extension_names(&extensions);
        if let Some(early) = &mut early {
            info = info.push_next(&mut features).push_next(early);
        }
        // SAFETY: `info` and what it points to live during the call; the log outlives the instance, which holds it.
        let raw = match unsafe { entry.create_instance(&info, None) } {
            Ok(raw) => raw,
            Err(vk::Result::ERROR_INCOMPATIBLE_DRIVER) => return Err(VulkanError::NoDriver),
            Err(error) => return Err(called("vkCreateInstance")(error)),
        };
        let mut instance = Instance { raw, messenger: None, entry, _log: log.cloned() };
        if let Some(log) = log {
            instance.messenger = Some(Messenger::new(&instance.entry, &instance.raw, log)?);
        }
        Ok(Arc::new(instance))
    }

    /// The devices that can run the kernels, in the loader's order.
    pub(crate) fn adapters(&self) -> Result<Vec<Adapter>, VulkanError> {
        // SAFETY: the instance is alive.
        let found = unsafe { self.raw.enumerate_physical_devices() };
        let found = match found {
            Ok(found) => found,
            // What a loader says that found drivers but no device of theirs.
            Err(vk::Result::ERROR_INITIALIZATION_FAILED) => Vec::new(),
            Err(error) => return Err(called("vkEnumeratePhysicalDevices")(error)),
        };
        let mut adapters = Vec::new();
        for raw in found {
            adapters.extend(self.adapter(raw, adapters.len())?);
        }
        if adapters.is_empty() { Err(VulkanError::NoDevice) } else { Ok(adapters) }
    }

    /// A device, unless it is older than Vulkan 1.1 or cannot compute.
    fn adapter(&self, raw: vk::PhysicalDevice, index: usize) -> Result<Option<Adapter>, VulkanError> {
        // SAFETY: `raw` is a device of this instance. Structures are chained only where the device lists the extension
        // that defines them.
        unsafe {
            let plain = self.raw.get_physical_device_properties(raw);
            if plain.api_version < vk::API_VERSION_1_1 {
                return Ok(None);
            }
            let families = self.raw.get_physical_device_queue_family_properties(raw);
            let computes = |flags: vk::QueueFlags| flags.contains(vk::QueueFlags::COMPUTE);
            let Some(family) = families.iter().position(|family| computes(family.queue_flags)) else {
                return Ok(None);
            };
            let listed = self.raw.enumerate_device_extension_properties(raw);
            let listed = listed.map_err(called("vkEnumerateDeviceExtensionProperties"))?;
            let lists =
                |name: &CStr| listed.iter().any(|one| one.extension_name_as_c_str().is_ok_and(|known| known == name));

            let mut driver = vk::PhysicalDeviceDriverProperties::default();
            let mut subgroup = vk::PhysicalDeviceSubgroupProperties::default();
            let mut size = vk::PhysicalDeviceMaintenance3Properties::default();
            let mut dots = vk::PhysicalDeviceShaderIntegerDotProductProperties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut subgroup).push_next(&mut size);
            if lists(ash::khr::shader_integer_dot_product::NAME) {
                properties = properties.push_next(&mut dots);
            }
            if lists(ash::khr::driver_properties::NAME) {
                properties = properties.push_next(&mut driver);
            }
            self.raw.get_physical_device_properties2(raw, &mut properties);
            let limits = properties.properties.limits;

            let mut storage16 = vk::PhysicalDevice16BitStorageFeatures::default();
            let mut storage8 = vk::PhysicalDevice8BitStorageFeatures::default();
            let mut small = vk::PhysicalDeviceShaderFloat16Int8Features::default();
            let mut dot = vk::PhysicalDeviceShaderIntegerDotProductFeatures::default();
            let mut matrix = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
            let mut model = vk::PhysicalDeviceVulkanMemoryModelFeatures::default();
            let mut size_control = vk::PhysicalDeviceSubgroupSizeControlFeatures::default();
            let mut sizes = vk::PhysicalDeviceSubgroupSizeControlProperties::default();
            let mut timeline = vk::PhysicalDeviceTimelineSemaphoreFeatures::default();
            let mut features = vk::PhysicalDeviceFeatures2::default().push_next(&mut storage16);
            if lists(ash::khr::_8bit_storage::NAME) {
                features = features.push_next(&mut storage8);
            }
            if lists(ash::khr::shader_float16_int8::NAME) {
                features = features.push_next(&mut small);
            }
            if lists(ash::khr::shader_integer_dot_product::NAME) {
                features = features.push_next(&mut dot);
            }
            let cooperative = COOPERATIVE.into_iter().all(lists);
            if cooperative {
                features = features.push_next(&mut matrix).push_next(&mut model).push_next(&mut size_control);
                let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut sizes);
                self.raw.get_physical_device_properties2(raw, &mut properties);
            }
            if lists(ash::khr::timeline_semaphore::NAME) {
                features = features.push_next(&mut timeline);
            }
            self.raw.get_physical_device_features2(raw, &mut features);

            let cooperative = cooperative
                && matrix.cooperative_matrix == vk::TRUE
                && small.shader_float16 == vk::TRUE
                && model.vulkan_memory_model == vk::TRUE
                && model.vulkan_memory_model_device_scope == vk::TRUE
                && size_control.subgroup_size_control == vk::TRUE
                && size_control.compute_full_subgroups == vk::TRUE
                && sizes.required_subgroup_size_stages.contains(vk::ShaderStageFlags::COMPUTE)
                && u64::from(sizes.max_compute_workgroup_subgroups) * u64::from(subgroup.subgroup_size) >= 128;
            let sizes = sizes.min_subgroup_size..=sizes.max_subgroup_size;
            let cooperative_matrix = if cooperative && sizes.contains(&subgroup.subgroup_size) {
                self.cooperative_matrix(raw, subgroup.subgroup_size, limits.max_compute_shared_memory_size)
            } else {
                None
            };

            let budgeted = lists(ash::ext::memory_budget::NAME);
            let (memory, budget) = self.memory(raw, budgeted);

            let kind = match plain.device_type {
                vk::PhysicalDeviceType::DISCRETE_GPU => DeviceKind::Discrete,
                vk::PhysicalDeviceType::INTEGRATED_GPU => DeviceKind::Integrated,
                vk::PhysicalDeviceType::VIRTUAL_GPU => DeviceKind::Virtual,
                vk::PhysicalDeviceType::CPU => DeviceKind::Cpu,
                _ => DeviceKind::Other,
            };
            let heap = local_heap(&memory);
            let total = memory.memory_heaps[heap].size;
            let free = if budgeted { free_of(&memory, &budget, heap) } else { None };
            let text = |text: Result<&CStr, _>| {
                text.map_or_else(
                    |_: std::ffi::FromBytesUntilNulError| String::new(),
                    |text| text.to_string_lossy().into_owned(),
                )
            };
            let driver = match text(driver.driver_name_as_c_str()) {
                name if name.is_empty() => format!("{:#x}", plain.driver_version),
                name => format!("{name} {}", text(driver.driver_info_as_c_str())).trim_end().to_owned(),
            };
            let version = plain.api_version;
            let api = [vk::api_version_major(version), vk::api_version_minor(version), vk::api_version_patch(version)];
            let info = DeviceInfo {
                index,
                name: text(plain.device_name_as_c_str()),
                driver,
                api: api.map(|part| part.to_string()).join("."),
                kind,
                memory: ByteSize::new(total),
                free,
                features: Features {
                    timeline_semaphores: timeline.timeline_semaphore == vk::TRUE,
                    memory_budget: budgeted,
                    storage_16bit: storage16.storage_buffer16_bit_access == vk::TRUE,
                    storage_8bit: storage8.storage_buffer8_bit_access == vk::TRUE,
                    float16: small.shader_float16 == vk::TRUE,
                    int8: small.shader_int8 == vk::TRUE,
                    integer_dot: dot.shader_integer_dot_product == vk::TRUE,
                    integer_dot_accelerated: dot.shader_integer_dot_product == vk::TRUE
                        && dots.integer_dot_product4x8_bit_packed_signed_accelerated == vk::TRUE,
                    cooperative_matrix,
                    subgroup_size: subgroup.subgroup_size,
                    subgroup_arithmetic: subgroup.supported_stages.contains(vk::ShaderStageFlags::COMPUTE)
                        && subgroup.supported_operations.contains(vk::SubgroupFeatureFlags::ARITHMETIC),
                },
            };
            let largest_allocation = size.max_memory_allocation_size;
            Ok(Some(Adapter { raw, info, family: family as u32, limits, memory, largest_allocation }))
        }
    }
}

impl Instance {
    /// The largest shape of cooperative matrices of f16, with sums in f32, that kernels can take.
    ///
    /// # Safety
    /// The device is of this instance, and has cooperative matrices.
    unsafe fn cooperative_matrix(
        &self,
        device: vk::PhysicalDevice,
        subgroup_size: u32,
        shared_memory: u32,
    ) -> Option<CooperativeMatrix> {
        let name = c"vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR";
        // SAFETY: the instance is alive. A call that an old loader does not know would end the process.
        unsafe { self.entry.get_instance_proc_addr(self.raw.handle(), name.as_ptr()) }?;
        let calls = ash::khr::cooperative_matrix::Instance::new(&self.entry, &self.raw);
        // SAFETY: the caller's contract. What fails is done without.
        let known = unsafe { calls.get_physical_device_cooperative_matrix_properties(device) }.ok()?;
        let (half, float) = (vk::ComponentTypeKHR::FLOAT16, vk::ComponentTypeKHR::FLOAT32);
        let shapes = known
            .iter()
            .filter(|one| {
                [one.a_type, one.b_type, one.c_type, one.result_type] == [half, half, float, float]
                    && one.scope == vk::ScopeKHR::SUBGROUP
            })
            .map(|one| CooperativeMatrix { m: one.m_size, n: one.n_size, k: one.k_size, subgroup_size })
            .filter(|shape| shape.is_taken(shared_memory));
        shapes.max_by_key(|shape| shape.m * shape.n * shape.k)
    }

    /// A device's memory, and what of it this process may use, where the device lists that extension.
    pub(crate) fn memory(
        &self,
        device: vk::PhysicalDevice,
        budgeted: bool,
    ) -> (vk::PhysicalDeviceMemoryProperties, vk::PhysicalDeviceMemoryBudgetPropertiesEXT<'static>) {
        let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
        let mut memory = vk::PhysicalDeviceMemoryProperties2::default();
        if budgeted {
            memory = memory.push_next(&mut budget);
        }
        // SAFETY: the device is of this instance; the structure is chained only where its extension is listed.
        unsafe { self.raw.get_physical_device_memory_properties2(device, &mut memory) };
        let memory = memory.memory_properties;
        budget.p_next = std::ptr::null_mut();
        (memory, budget)
    }
}

/// The largest heap of the device's own memory.
fn local_heap(memory: &vk::PhysicalDeviceMemoryProperties) -> usize {
    let heaps = memory.memory_heaps_as_slice().iter().enumerate();
    let local = heaps.filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    local.max_by_key(|(_, heap)| heap.size).map_or(0, |(at, _)| at)
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.messenger = None;
        // SAFETY: devices hold a share of the instance, so none is left; the messenger was destroyed just now.
        unsafe { self.raw.destroy_instance(None) };
    }
}
