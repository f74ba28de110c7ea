//! The backend: a device found at run time, its memory, layouts and lanes.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tenure_device::{AllocError, Backend, DeviceError, Lane, RawSegment, SegmentKind, WeightLayout};
use tenure_graph::{KvLayer, KvType, Plan, WeightUse};
use tenure_tensor::ByteSize;

use crate::attention::scratch_bytes;
use crate::devices::{DeviceInfo, DeviceKind, DeviceSelector};
use crate::error::VulkanError;
use crate::exchange::Exchange;
use crate::explain::kernels_within;
use crate::kernel::{KernelSet, MOST_HEAD};
use crate::lane::VulkanLane;
use crate::layout::{KvLayout, WORD, weight_bytes};
use crate::lower::{Bounds, Sites, lower, ropes, rows_bytes};
use crate::raw::buffer::{Buffer, Home, allocation_bytes};
use crate::raw::device::{Gpu, GpuError, called};
#[cfg(feature = "testing")]
use crate::raw::exec::download;
use crate::raw::exec::fill;
use crate::raw::instance::Instance;
use crate::raw::pipeline::Pipelines;
use crate::raw::upload::Staging;
use crate::raw::validation::ValidationLog;
use crate::tops::Tops;

/// Which device, and how it is used.
#[derive(Clone, Debug, Default)]
pub struct VulkanOptions {
    /// Which device.
    pub device: DeviceSelector,
    /// Bytes of its memory that may be used; `None`, or more than there is: all there is. Where the driver says what is free, no more than
    /// that is used either.
    pub budget: Option<ByteSize>,
    /// Has Khronos' validation layer watch over every call and write to this log.
    pub validation: Option<ValidationLog>,
    /// What the device is taken to have no more of.
    pub caps: Caps,
}

/// Takes a device for a lesser one, so that what lesser devices need can be tried on any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Waits with fences.
    pub no_timeline_semaphores: bool,
    /// Device memory is out of the host's reach, as on most discrete devices.
    pub no_mapped_memory: bool,
    /// Kernels are the plain ones: no arithmetic across subgroups.
    pub no_subgroup_arithmetic: bool,
    /// Whether integer dot products are used where there are some, for products of quantised weights; activations are
    /// rounded to 16 bits for them. `None`: where the device says that they are faster than other instructions.
    pub integer_dot: Option<bool>,
    /// Whether cooperative matrices are used where there are some, for products of many rows; weights and activations are
    /// rounded to f16 for them. `None`: on GPUs, for a processor gains nothing by them.
    pub cooperative_matrix: Option<bool>,
    /// The most bytes of weights, values or caches behind one binding.
    pub binding: Option<ByteSize>,
    /// The most bytes of one allocation.
    pub allocation: Option<ByteSize>,
    /// The most multiplications of one submission; `None`: what a slow device does before its driver loses patience.
    pub work: Option<u64>,
}

impl Caps {
    /// The kernels that a device runs under these.
    pub(crate) fn kernels(&self, info: &DeviceInfo) -> KernelSet {
        if self.no_subgroup_arithmetic {
            return KernelSet::PLAIN;
        }
        let all = KernelSet::of(&info.features);
        KernelSet {
            integer: all.integer && self.integer_dot.unwrap_or(info.features.integer_dot_accelerated),
            cooperative: all.cooperative && self.cooperative_matrix.unwrap_or(info.kind != DeviceKind::Cpu),
            ..all
        }
    }
}

/// The Vulkan backend: one open device.
pub struct Vulkan {
    shared: Arc<Shared>,
    budget: ByteSize,
    overhead: ByteSize,
    next: AtomicU64,
    /// What it was opened with.
    options: VulkanOptions,
    #[cfg(feature = "testing")]
    driver: crate::testing::Driver,
}

/// What the backend and its lanes share.
pub(crate) struct Shared {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) pipelines: Arc<Pipelines>,
    /// The live segments, by token.
    segments: Mutex<HashMap<u64, Arc<Buffer>>>,
    /// Where the host cannot write device memory itself.
    pub(crate) staging: Option<Mutex<Staging>>,
}

impl Vulkan {
    /// Opens a device.
    ///
    /// # Errors
    /// [`VulkanError`] when there is no loader, no driver, no such device, or it cannot be opened.
    pub fn open(options: &VulkanOptions) -> Result<Self, VulkanError> {
        Vulkan::open_on(
            options,
            #[cfg(feature = "testing")]
            crate::testing::Driver::default(),
        )
    }

    /// Opens a device whose driver fails as a test has it fail.
    ///
    /// # Errors
    /// As [`Vulkan::open`].
    #[cfg(feature = "testing")]
    pub fn open_failing(options: &VulkanOptions, driver: crate::testing::Driver) -> Result<Self, VulkanError> {
        Vulkan::open_on(options, driver)
    }

    /// The words of a segment.
    ///
    /// # Errors
    /// [`DeviceError`] when there is no such segment, or the device fails.
    ///
    /// # Safety
    /// Nobody writes the segment meanwhile.
    #[cfg(feature = "testing")]
    pub unsafe fn peek(&self, segment: RawSegment) -> Result<Vec<u32>, DeviceError> {
        let buffer = self.shared.segment(segment).ok_or(DeviceError::ForeignLease { what: "segment" })?;
        // SAFETY: the caller's promise.
        if let Some(words) = unsafe { buffer.words(0, buffer.bytes / WORD) } {
            return Ok(words.to_vec());
        }
        let of_device = |error: GpuError| error.of_device(&self.shared.gpu);
        let room = Buffer::new(&self.shared.gpu, buffer.bytes, Home::Host).map_err(of_device)?;
        // SAFETY: the room is new; the caller vouches for the segment.
        unsafe { download(&self.shared.gpu, (&buffer, 0), (&room, 0), buffer.bytes) }.map_err(of_device)
    }

    fn open_on(
        options: &VulkanOptions,
        #[cfg(feature = "testing")] driver: crate::testing::Driver,
    ) -> Result<Self, VulkanError> {
        let instance = Instance::new(options.validation.as_ref())?;
        let mut adapters = instance.adapters()?;
        let infos: Vec<&DeviceInfo> = adapters.iter().map(|adapter| &adapter.info).collect();
        let adapter = adapters.swap_remove(options.device.pick(&infos)?);
        let gpu = Gpu::open(
            instance,
            adapter,
            &options.caps,
            #[cfg(feature = "testing")]
            &driver,
        )?;
        let fail = |error: GpuError| called(error.call)(error.result);
        let staging = match gpu.types.device_is_mapped {
            true => None,
            false => Some(Staging::new(&gpu).map_err(fail)?),
        };
        let overhead = staging.as_ref().map_or(ByteSize::ZERO, |staging| ByteSize::new(staging.bytes()));
        let pipelines = Arc::new(Pipelines::new(&gpu).map_err(fail)?);
        let shared = Shared { gpu, pipelines, segments: Mutex::default(), staging: staging.map(Mutex::new) };
        let memory = shared.gpu.info.memory;
        let budget = options.budget.map_or(memory, |budget| budget.min(memory));
        Ok(Vulkan {
            shared: Arc::new(shared),
            budget,
            overhead,
            next: AtomicU64::new(1),
            options: options.clone(),
            #[cfg(feature = "testing")]
            driver,
        })
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        &self.shared.gpu.info
    }

    /// Which variants of the kernels it runs.
    pub fn kernels(&self) -> KernelSet {
        self.shared.gpu.kernels
    }

    /// Bytes that may be used.
    pub fn budget(&self) -> ByteSize {
        self.budget
    }

    /// The sum of the driver's allocations that are live: all segments, and the backend's overhead.
    pub fn allocated(&self) -> ByteSize {
        self.shared.gpu.allocated()
    }
}

impl Shared {
    /// The buffer of a segment.
    pub(crate) fn segment(&self, raw: RawSegment) -> Option<Arc<Buffer>> {
        self.segments().get(&raw.token).cloned()
    }

    fn segments(&self) -> MutexGuard<'_, HashMap<u64, Arc<Buffer>>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What bounds a dispatch. A binding begins a little before what it is to show.
    pub(crate) fn bounds(&self) -> Bounds {
        let limits = &self.gpu.limits;
        Bounds {
            window: limits.window.saturating_sub(limits.align),
            groups: limits.groups,
            work: limits.work,
            integer: self.gpu.kernels.integer,
            cooperative: self.gpu.cooperative(),
        }
    }

    /// Whether the device is there at all.
    pub(crate) fn alive(&self) -> Result<(), DeviceError> {
        if self.gpu.is_lost() { Err(DeviceError::Lost { device: self.gpu.name() }) } else { Ok(()) }
    }

    /// Places that do not overlap and are nowhere: how many dispatches there are does not depend on where things are.
    pub(crate) fn nowhere(plan: &Plan, kv_type: KvType, kv_blocks: Option<usize>) -> Sites {
        let weights = plan.weights().len();
        let ropes = ropes(plan).len();
        let mut end = 0;
        let layers = plan.kv_layers().iter().map(|&layer| {
            let block = KvLayout::of(layer, kv_type).map_or(ByteSize::ZERO, KvLayout::block_bytes);
            let at = end;
            end = block.times(kv_blocks.unwrap_or(0) as u64).get().saturating_add(end);
            at
        });
        Sites {
            layers: layers.collect(),
            weights: (0..weights).map(|at| (at, 0)).collect(),
            kv: weights,
            kv_type,
            kv_blocks,
            arena: weights + 1,
            exchange: weights + 2,
            scratch: weights + 3,
            turns: vec![0; ropes],
            magnitudes: vec![1.0; ropes],
            inputs: vec![0; plan.inputs().len()],
            outputs: vec![0; plan.outputs().len()],
            tops: 0,
        }
    }

    /// Bytes that kernels leave for one another, in one place after another: rows of activations as products read them,
    /// parts of attention, the largest logits of parts of rows.
    pub(crate) fn scratch_bytes(&self, plan: &Plan) -> u64 {
        let bounds = self.bounds();
        let parts = scratch_bytes(plan, bounds.window);
        parts.max(rows_bytes(plan, bounds)).max(Tops::of(plan).map_or(0, Tops::scratch_bytes))
    }

    /// How a plan's exchange memory is laid out.
    pub(crate) fn exchange(&self, plan: &Plan) -> Exchange {
        // Caches divided by heads take the most dispatches.
        let sites = Shared::nowhere(plan, KvType::F32, None);
        // What does not fit is reported when the plan is bound.
        let dispatches = lower(plan, &sites, self.bounds()).map_or(0, |dispatches| dispatches.len());
        Exchange::new(plan, dispatches)
    }
}

// SAFETY: every segment is a buffer with memory of its own, which lives until it is freed.
unsafe impl Backend for Vulkan {
    fn name(&self) -> String {
        self.shared.gpu.name()
    }

    fn overhead(&self) -> ByteSize {
        self.overhead
    }

    fn round_up(&self, bytes: ByteSize) -> ByteSize {
        // A size no buffer can have is refused when it is allocated.
        allocation_bytes(&self.shared.gpu, bytes.get()).map_or(bytes, ByteSize::new)
    }

    fn largest_segment(&self) -> ByteSize {
        ByteSize::new(self.shared.gpu.limits.allocation)
    }

    fn available(&self) -> Option<ByteSize> {
        self.shared.gpu.available()
    }

    fn reopen(&self) -> Result<Arc<dyn Backend>, DeviceError> {
        let opened = Vulkan::open_on(
            &self.options,
            #[cfg(feature = "testing")]
            self.driver.clone(),
        );
        let failed = |error: VulkanError| DeviceError::Failed { device: self.name(), why: error.to_string() };
        Ok(Arc::new(opened.map_err(failed)?))
    }

    fn alloc(&self, kind: SegmentKind, bytes: ByteSize) -> Result<RawSegment, AllocError> {
        let home = match kind {
            SegmentKind::Weights | SegmentKind::Kv | SegmentKind::Arena | SegmentKind::Scratch => Home::Device,
            SegmentKind::Exchange => Home::Host,
        };
        let buffer = Buffer::new(&self.shared.gpu, bytes.get(), home);
        let buffer = buffer.map_err(|error| match error.is_loss() {
            true => AllocError::Lost { device: self.name() },
            false => AllocError::OutOfMemory { device: self.name(), bytes },
        })?;
        let segment =
            RawSegment { token: self.next.fetch_add(1, Ordering::Relaxed), bytes: ByteSize::new(buffer.bytes) };
        self.shared.segments().insert(segment.token, Arc::new(buffer));
        Ok(segment)
    }

    unsafe fn free(&self, segment: RawSegment) {
        let freed = self.shared.segments().remove(&segment.token);
        drop(freed);
    }

    unsafe fn fill(&self, segment: RawSegment, word: u32) -> Result<(), DeviceError> {
        let Some(buffer) = self.shared.segment(segment) else {
            return Err(DeviceError::ForeignLease { what: "segment" });
        };
        // SAFETY: the caller's promise.
        unsafe { fill(&self.shared.gpu, &buffer, word) }.map_err(|error| error.of_device(&self.shared.gpu))
    }

    fn weight_layout(&self, weight: &WeightUse) -> WeightLayout {
        let bytes = ByteSize::new(weight_bytes(weight).unwrap_or(u64::MAX));
        WeightLayout { bytes, mappable: false }
    }

    fn kv_block_bytes(&self, layer: KvLayer, kv: KvType) -> Result<ByteSize, DeviceError> {
        if layer.head_dim > MOST_HEAD {
            let bytes = |elements| ByteSize::of(elements).times(WORD);
            return Err(DeviceError::TooLarge {
                device: self.name(),
                what: "one head's query".to_owned(),
                bytes: bytes(layer.head_dim),
                most: bytes(MOST_HEAD),
            });
        }
        let layout = KvLayout::of(layer, kv).ok_or(DeviceError::UnsupportedKv { kv, head_dim: layer.head_dim })?;
        Ok(layout.block_bytes())
    }

    fn supports(&self, plan: &Plan, kv: KvType) -> Result<(), DeviceError> {
        kernels_within(plan, kv, self.shared.bounds(), self.name()).map(drop)
    }

    fn scratch(&self, plan: &Plan) -> ByteSize {
        ByteSize::new(self.shared.scratch_bytes(plan))
    }

    fn exchange(&self, plan: &Plan) -> ByteSize {
        ByteSize::new(self.shared.exchange(plan).bytes)
    }

    fn open_lane(&self) -> Result<Box<dyn Lane>, DeviceError> {
        self.shared.alive()?;
        Ok(Box::new(VulkanLane::new(self.shared.clone())))
    }
}

impl fmt::Debug for Vulkan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vulkan({}, {} allocated)", self.name(), self.allocated())
    }
}
