//! Sets of bound buffers.

use std::sync::Arc;

use ash::vk;

use crate::raw::buffer::Buffer;
use crate::raw::device::{Gpu, GpuError};

/// Descriptor sets that live and die together.
pub(crate) struct Sets {
    gpu: Arc<Gpu>,
    pool: vk::DescriptorPool,
}

/// A buffer's part behind one binding.
#[derive(Clone, Copy)]
pub(crate) struct Bound<'b> {
    pub(crate) buffer: &'b Buffer,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// Whether it is seen as a uniform block.
    pub(crate) uniform: bool,
}

impl Sets {
    /// Room for so many sets, with so many bindings in all.
    pub(crate) fn new(gpu: &Arc<Gpu>, sets: u32, storage: u32, uniform: u32) -> Result<Self, GpuError> {
        let sizes = [
            vk::DescriptorPoolSize { ty: vk::DescriptorType::STORAGE_BUFFER, descriptor_count: storage.max(1) },
            vk::DescriptorPoolSize { ty: vk::DescriptorType::UNIFORM_BUFFER, descriptor_count: uniform.max(1) },
        ];
        let info = vk::DescriptorPoolCreateInfo::default().max_sets(sets.max(1)).pool_sizes(&sizes);
        // SAFETY: the device is alive, and what `info` points to lives during the call.
        let pool = gpu.call("vkCreateDescriptorPool", || unsafe { gpu.raw.create_descriptor_pool(&info, None) })?;
        Ok(Sets { gpu: gpu.clone(), pool })
    }

    /// A set of these bindings.
    ///
    /// # Safety
    /// The layout has as many bindings of those kinds, and the buffers outlive every use of the set.
    pub(crate) unsafe fn set(
        &self,
        layout: vk::DescriptorSetLayout,
        bound: &[Bound<'_>],
    ) -> Result<vk::DescriptorSet, GpuError> {
        let layouts = [layout];
        let info = vk::DescriptorSetAllocateInfo::default().descriptor_pool(self.pool).set_layouts(&layouts);
        // SAFETY: pool and layout are alive; the pool is used by one thread at a time, for its owner is.
        let allocate = || unsafe { self.gpu.raw.allocate_descriptor_sets(&info) };
        let sets = self.gpu.call("vkAllocateDescriptorSets", allocate)?;
        let set = sets.first().copied().unwrap_or_default();
        let infos: Vec<_> = bound
            .iter()
            .map(|bound| {
                [vk::DescriptorBufferInfo { buffer: bound.buffer.raw, offset: bound.offset, range: bound.bytes }]
            })
            .collect();
        let writes: Vec<_> = (0..)
            .zip(bound.iter().zip(&infos))
            .map(|(at, (bound, info))| {
                vk::WriteDescriptorSet::default()
                    .dst_set(set)
                    .dst_binding(at)
                    .descriptor_type(match bound.uniform {
                        true => vk::DescriptorType::UNIFORM_BUFFER,
                        false => vk::DescriptorType::STORAGE_BUFFER,
                    })
                    .buffer_info(info)
            })
            .collect();
        // SAFETY: the set is new, so no command uses it; the caller upholds the rest.
        unsafe { self.gpu.raw.update_descriptor_sets(&writes, &[]) };
        Ok(set)
    }
}

impl Drop for Sets {
    fn drop(&mut self) {
        if self.gpu.is_stuck() {
            return;
        }
        // SAFETY: ours alone; the owner waited for the commands that use the sets. Destroying a pool frees its sets.
        unsafe { self.gpu.raw.destroy_descriptor_pool(self.pool, None) };
    }
}
