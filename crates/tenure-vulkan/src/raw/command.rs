//! Recorded commands.

use std::sync::Arc;

use ash::vk;

use crate::kernel::PUSH_WORDS;
use crate::raw::buffer::Buffer;
use crate::raw::device::{Gpu, GpuError};
use crate::raw::pipeline::Pipeline;

/// Command buffers that live and die together.
pub(crate) struct Commands {
    gpu: Arc<Gpu>,
    pool: vk::CommandPool,
}

/// A command buffer being recorded.
pub(crate) struct Recording<'c> {
    gpu: &'c Gpu,
    raw: vk::CommandBuffer,
}

/// One dispatch as it is recorded.
pub(crate) struct Recorded<'b> {
    pub(crate) pipeline: Pipeline,
    pub(crate) step: vk::DescriptorSet,
    pub(crate) operands: vk::DescriptorSet,
    pub(crate) push: [u32; PUSH_WORDS],
    /// Where the number of workgroups will be.
    pub(crate) counts: (&'b Buffer, u64),
}

impl Commands {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Self, GpuError> {
        let info = vk::CommandPoolCreateInfo::default()
            .queue_family_index(gpu.family)
            .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER);
        // SAFETY: the device is alive.
        let pool = gpu.call("vkCreateCommandPool", || unsafe { gpu.raw.create_command_pool(&info, None) })?;
        Ok(Commands { gpu: gpu.clone(), pool })
    }

    /// A new command buffer.
    pub(crate) fn buffer(&mut self) -> Result<vk::CommandBuffer, GpuError> {
        let info = vk::CommandBufferAllocateInfo::default().command_pool(self.pool).command_buffer_count(1);
        // SAFETY: the pool is alive and used by one thread at a time (`&mut self`).
        let allocate = || unsafe { self.gpu.raw.allocate_command_buffers(&info) };
        let buffers = self.gpu.call("vkAllocateCommandBuffers", allocate)?;
        Ok(buffers.first().copied().unwrap_or_default())
    }

    /// Records into a command buffer of this pool, anew if it held something.
    ///
    /// # Safety
    /// The buffer is of this pool and not under way.
    pub(crate) unsafe fn record(
        &mut self,
        buffer: vk::CommandBuffer,
        body: impl FnOnce(&Recording<'_>),
    ) -> Result<(), GpuError> {
        let recording = Recording { gpu: &self.gpu, raw: buffer };
        // SAFETY: the caller upholds what recording asks for; the pool is used by one thread at a time.
        unsafe {
            let device = &self.gpu.raw;
            let begin = vk::CommandBufferBeginInfo::default();
            self.gpu.call("vkBeginCommandBuffer", || device.begin_command_buffer(buffer, &begin))?;
            body(&recording);
            self.gpu.call("vkEndCommandBuffer", || device.end_command_buffer(buffer))
        }
    }
}

impl Recording<'_> {
    /// Whatever earlier commands and submissions wrote is seen by later ones.
    pub(crate) fn barrier(&self) {
        let (compute, transfer) = (vk::PipelineStageFlags::COMPUTE_SHADER, vk::PipelineStageFlags::TRANSFER);
        let barrier = vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::SHADER_WRITE | vk::AccessFlags::TRANSFER_WRITE)
            .dst_access_mask(
                vk::AccessFlags::SHADER_READ
                    | vk::AccessFlags::SHADER_WRITE
                    | vk::AccessFlags::TRANSFER_READ
                    | vk::AccessFlags::TRANSFER_WRITE,
            );
        self.pipeline_barrier(compute | transfer, compute | transfer, barrier);
    }

    /// Whatever dispatches wrote is seen by later dispatches.
    pub(crate) fn dispatch_barrier(&self) {
        let compute = vk::PipelineStageFlags::COMPUTE_SHADER;
        let barrier = vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::SHADER_WRITE)
            .dst_access_mask(vk::AccessFlags::SHADER_READ | vk::AccessFlags::SHADER_WRITE);
        self.pipeline_barrier(compute, compute, barrier);
    }

    /// Whatever was written is seen by the host once it has waited.
    pub(crate) fn host_barrier(&self) {
        let (compute, transfer) = (vk::PipelineStageFlags::COMPUTE_SHADER, vk::PipelineStageFlags::TRANSFER);
        let barrier = vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::SHADER_WRITE | vk::AccessFlags::TRANSFER_WRITE)
            .dst_access_mask(vk::AccessFlags::HOST_READ);
        self.pipeline_barrier(compute | transfer, vk::PipelineStageFlags::HOST, barrier);
    }

    fn pipeline_barrier(
        &self,
        from: vk::PipelineStageFlags,
        to: vk::PipelineStageFlags,
        barrier: vk::MemoryBarrier<'_>,
    ) {
        // SAFETY: the buffer is being recorded.
        unsafe {
            let flags = vk::DependencyFlags::empty();
            self.gpu.raw.cmd_pipeline_barrier(self.raw, from, to, flags, &[barrier], &[], &[]);
        }
    }

    /// Runs a kernel.
    ///
    /// # Safety
    /// Sets, pipeline and buffers outlive the recording's use, and fit each other.
    pub(crate) unsafe fn dispatch(&self, recorded: &Recorded<'_>) {
        let Recorded { pipeline, step, operands, push, counts } = recorded;
        let (device, compute) = (&self.gpu.raw, vk::PipelineBindPoint::COMPUTE);
        let bytes: Vec<u8> = push.iter().flat_map(|word| word.to_ne_bytes()).collect();
        // SAFETY: the buffer is being recorded; the caller upholds the rest.
        unsafe {
            device.cmd_bind_pipeline(self.raw, compute, pipeline.raw);
            device.cmd_bind_descriptor_sets(self.raw, compute, pipeline.layout, 0, &[*step, *operands], &[]);
            device.cmd_push_constants(self.raw, pipeline.layout, vk::ShaderStageFlags::COMPUTE, 0, &bytes);
            device.cmd_dispatch_indirect(self.raw, counts.0.raw, counts.1);
        }
    }

    /// Copies bytes from one buffer into another.
    ///
    /// # Safety
    /// The ranges lie inside the buffers, which outlive the recording's use.
    pub(crate) unsafe fn copy(&self, from: (&Buffer, u64), to: (&Buffer, u64), bytes: u64) {
        let region = [vk::BufferCopy { src_offset: from.1, dst_offset: to.1, size: bytes }];
        // SAFETY: the buffer is being recorded; the caller upholds the rest.
        unsafe { self.gpu.raw.cmd_copy_buffer(self.raw, from.0.raw, to.0.raw, &region) };
    }

    /// Fills a buffer with a word.
    ///
    /// # Safety
    /// The buffer outlives the recording's use.
    pub(crate) unsafe fn fill(&self, buffer: &Buffer, word: u32) {
        // SAFETY: the buffer is being recorded; the caller upholds the rest.
        unsafe { self.gpu.raw.cmd_fill_buffer(self.raw, buffer.raw, 0, vk::WHOLE_SIZE, word) };
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        if self.gpu.is_stuck() {
            return;
        }
        // SAFETY: ours alone; the owner waited for its submissions. Destroying a pool frees its command buffers.
        unsafe { self.gpu.raw.destroy_command_pool(self.pool, None) };
    }
}
