//! Pipelines, made once for each kernel and its constants.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};

use ash::vk;

use crate::kernel::{Kernel, MOST_BINDINGS, PUSH_WORDS};
use crate::raw::device::{Gpu, GpuError};

/// The pipelines of a device. They live as long as it is open.
pub(crate) struct Pipelines {
    gpu: Arc<Gpu>,
    /// The step's bounds; and its bounds and inputs.
    step: [vk::DescriptorSetLayout; 2],
    /// Sets of 1, 2, … buffers.
    operands: [vk::DescriptorSetLayout; MOST_BINDINGS],
    made: Mutex<HashMap<(Kernel, [u32; 2]), Pipeline>>,
    layouts: Mutex<HashMap<(bool, usize), vk::PipelineLayout>>,
}

/// A kernel ready to run.
#[derive(Clone, Copy)]
pub(crate) struct Pipeline {
    pub(crate) raw: vk::Pipeline,
    pub(crate) layout: vk::PipelineLayout,
}

impl Pipelines {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Self, GpuError> {
        let mut pipelines = Pipelines {
            gpu: gpu.clone(),
            step: [vk::DescriptorSetLayout::null(); 2],
            operands: [vk::DescriptorSetLayout::null(); MOST_BINDINGS],
            made: Mutex::default(),
            layouts: Mutex::default(),
        };
        let (uniform, storage) = (vk::DescriptorType::UNIFORM_BUFFER, vk::DescriptorType::STORAGE_BUFFER);
        pipelines.step = [set_layout(gpu, &[uniform])?, vk::DescriptorSetLayout::null()];
        pipelines.step[1] = set_layout(gpu, &[uniform, storage])?;
        for count in 0..MOST_BINDINGS {
            pipelines.operands[count] = set_layout(gpu, &[storage; MOST_BINDINGS][..=count])?;
        }
        Ok(pipelines)
    }

    /// The layout of the set that tells of the step, with its inputs or without.
    pub(crate) fn step_layout(&self, with_inputs: bool) -> vk::DescriptorSetLayout {
        self.step[usize::from(with_inputs)]
    }

    /// The layout of a set of so many buffers, from 1 to [`MOST_BINDINGS`].
    pub(crate) fn operand_layout(&self, count: usize) -> vk::DescriptorSetLayout {
        self.operands[count - 1]
    }

    /// A kernel with its constants, made if need be.
    pub(crate) fn pipeline(&self, kernel: Kernel, constants: [u32; 2]) -> Result<Pipeline, GpuError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&pipeline) = made.get(&(kernel, constants)) {
            return Ok(pipeline);
        }
        let layout = self.layout(kernel)?;
        let raw = self.make(kernel, constants, layout)?;
        let pipeline = Pipeline { raw, layout };
        made.insert((kernel, constants), pipeline);
        Ok(pipeline)
    }

    fn layout(&self, kernel: Kernel) -> Result<vk::PipelineLayout, GpuError> {
        let key = (kernel.reads_inputs(), kernel.bindings());
        let mut layouts = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&layout) = layouts.get(&key) {
            return Ok(layout);
        }
        let sets = [self.step_layout(key.0), self.operand_layout(key.1)];
        let push = [vk::PushConstantRange::default()
            .stage_flags(vk::ShaderStageFlags::COMPUTE)
            .size((PUSH_WORDS * size_of::<u32>()) as u32)];
        let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets).push_constant_ranges(&push);
        // SAFETY: the device and the set layouts are alive.
        let create = || unsafe { self.gpu.raw.create_pipeline_layout(&info, None) };
        let layout = self.gpu.call("vkCreatePipelineLayout", create)?;
        layouts.insert(key, layout);
        Ok(layout)
    }

    fn make(&self, kernel: Kernel, constants: [u32; 2], layout: vk::PipelineLayout) -> Result<vk::Pipeline, GpuError> {
        let device = &self.gpu.raw;
        let unreadable = |_| GpuError { call: "vkCreateShaderModule", result: vk::Result::ERROR_INVALID_SHADER_NV };
        let code = ash::util::read_spv(&mut Cursor::new(kernel.code(self.gpu.kernels))).map_err(unreadable)?;
        let entries = [0u32, 1].map(|id| vk::SpecializationMapEntry { constant_id: id, offset: id * 4, size: 4 });
        let bytes: Vec<u8> = constants.iter().flat_map(|constant| constant.to_ne_bytes()).collect();
        let constants = vk::SpecializationInfo::default().map_entries(&entries).data(&bytes);
        // SAFETY: the device and the layout are alive; the code is the project's own, compiled and validated; what the
        // infos point to lives during the calls; the module is destroyed where it was made.
        unsafe {
            let info = vk::ShaderModuleCreateInfo::default().code(&code);
            let module = self.gpu.call("vkCreateShaderModule", || device.create_shader_module(&info, None))?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(c"main")
                .specialization_info(&constants);
            let mut size = vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo::default();
            let stage = match self.gpu.cooperative() {
                Some(shape) if kernel == Kernel::MatMulCooperative => {
                    size = size.required_subgroup_size(shape.subgroup_size);
                    stage.flags(vk::PipelineShaderStageCreateFlags::REQUIRE_FULL_SUBGROUPS).push_next(&mut size)
                }
                Some(_) | None => stage,
            };
            let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout)];
            let made = self.gpu.call("vkCreateComputePipelines", || {
                let made = device.create_compute_pipelines(vk::PipelineCache::null(), &info, None);
                made.map_err(|(_, error)| error)
            });
            device.destroy_shader_module(module, None);
            Ok(made?.first().copied().unwrap_or_default())
        }
    }
}

fn set_layout(gpu: &Gpu, kinds: &[vk::DescriptorType]) -> Result<vk::DescriptorSetLayout, GpuError> {
    let bindings: Vec<_> = (0..)
        .zip(kinds)
        .map(|(at, &kind)| {
            vk::DescriptorSetLayoutBinding::default()
                .binding(at)
                .descriptor_type(kind)
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
        })
        .collect();
    let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
    // SAFETY: the device is alive, and what `info` points to lives during the call.
    gpu.call("vkCreateDescriptorSetLayout", || unsafe { gpu.raw.create_descriptor_set_layout(&info, None) })
}

impl Drop for Pipelines {
    fn drop(&mut self) {
        if self.gpu.is_stuck() {
            return;
        }
        let made = std::mem::take(self.made.get_mut().unwrap_or_else(PoisonError::into_inner));
        let layouts = std::mem::take(self.layouts.get_mut().unwrap_or_else(PoisonError::into_inner));
        let device = &self.gpu.raw;
        // SAFETY: all are ours alone. Executables hold a share of the pipelines until their submissions have ended.
        // Destroying a null handle does nothing.
        unsafe {
            made.values().for_each(|pipeline| device.destroy_pipeline(pipeline.raw, None));
            layouts.values().for_each(|&layout| device.destroy_pipeline_layout(layout, None));
            for &layout in self.step.iter().chain(&self.operands) {
                device.destroy_descriptor_set_layout(layout, None);
            }
        }
    }
}
