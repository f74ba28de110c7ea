//! A buffer with memory of its own.

use std::ptr::NonNull;
use std::sync::Arc;

use ash::vk;

use crate::raw::device::{Gpu, GpuError, buffer_info, requirements};

/// A buffer and the memory under it, which it fills.
pub(crate) struct Buffer {
    gpu: Arc<Gpu>,
    pub(crate) raw: vk::Buffer,
    memory: vk::DeviceMemory,
    pub(crate) bytes: u64,
    mapped: Option<Mapped>,
}

/// Where the host sees the memory.
#[derive(Clone, Copy)]
struct Mapped(NonNull<u8>);

// SAFETY: an address of memory that lives as long as its buffer; who may touch it when is said where it is touched.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

/// Which memory a buffer lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// What kernels work in.
    Device,
    /// What host and device exchange.
    Host,
}

/// What an allocation for so many bytes really takes.
pub(crate) fn allocation_bytes(gpu: &Gpu, bytes: u64) -> Option<u64> {
    requirements(&gpu.raw, bytes).ok().map(|requirements| requirements.size)
}

impl Buffer {
    /// A buffer of `bytes`, in memory of exactly as many where [`allocation_bytes`] gave that number.
    pub(crate) fn new(gpu: &Arc<Gpu>, bytes: u64, home: Home) -> Result<Self, GpuError> {
        // A driver may or may not notice that it cannot allocate so much at once.
        if bytes > gpu.limits.allocation {
            let result = vk::Result::ERROR_OUT_OF_DEVICE_MEMORY;
            return Err(GpuError { call: "vkAllocateMemory", result });
        }
        let (kind, is_mapped) = match home {
            Home::Device => (gpu.types.device, gpu.types.device_is_mapped),
            Home::Host => (gpu.types.host, true),
        };
        let device = &gpu.raw;
        // SAFETY: the device is alive. What was made is destroyed if a later call fails.
        unsafe {
            let raw = gpu.call("vkCreateBuffer", || device.create_buffer(&buffer_info(bytes), None))?;
            let size = device.get_buffer_memory_requirements(raw).size;
            let allocate = vk::MemoryAllocateInfo::default().allocation_size(size).memory_type_index(kind);
            let memory = gpu.call("vkAllocateMemory", || device.allocate_memory(&allocate, None));
            let memory = memory.inspect_err(|_| device.destroy_buffer(raw, None))?;
            gpu.took(size);
            let mut buffer = Buffer { gpu: gpu.clone(), raw, memory, bytes: size, mapped: None };
            gpu.call("vkBindBufferMemory", || device.bind_buffer_memory(raw, memory, 0))?;
            if is_mapped {
                let map = || device.map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty());
                buffer.mapped = NonNull::new(gpu.call("vkMapMemory", map)?.cast()).map(Mapped);
            }
            Ok(buffer)
        }
    }

    /// Bytes the host sees; `None` where it sees none, or the range leaves the buffer.
    ///
    /// # Safety
    /// While the result lives nobody else touches the range, the device included.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn bytes(&self, offset: u64, len: u64) -> Option<&mut [u8]> {
        let end = offset.checked_add(len)?;
        let Mapped(base) = self.mapped.filter(|_| end <= self.bytes)?;
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        // SAFETY: inside the mapping, which lives as long as the buffer; the caller upholds the rest.
        Some(unsafe { std::slice::from_raw_parts_mut(base.as_ptr().add(offset), len) })
    }

    /// Words the host sees, where the range is of whole words.
    ///
    /// # Safety
    /// As for [`bytes`](Self::bytes).
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn words(&self, offset: u64, len: u64) -> Option<&mut [u32]> {
        let end = offset.checked_add(len.checked_mul(4)?)?;
        let Mapped(base) = self.mapped.filter(|_| end <= self.bytes && offset.is_multiple_of(4))?;
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        // SAFETY: as above; a mapping is aligned to at least 64 bytes, so the words are aligned too.
        Some(unsafe { std::slice::from_raw_parts_mut(base.as_ptr().add(offset).cast(), len) })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.gpu.is_stuck() {
            return;
        }
        // SAFETY: made by `new`, destroyed here alone. Whoever has the device work on a buffer holds it until that has
        // ended (see `Exec` and `Upload`). Freeing memory unmaps it.
        unsafe {
            self.gpu.raw.destroy_buffer(self.raw, None);
            self.gpu.raw.free_memory(self.memory, None);
        }
        self.gpu.gave(self.bytes);
    }
}
