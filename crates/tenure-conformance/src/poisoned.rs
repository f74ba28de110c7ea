//! A backend whose memory begins as NaN, and whose arena is NaN again before every step.

use std::sync::Arc;

use tenure_device::{
    AllocError, Backend, DeviceError, Exec, Lane, Lease, Load, LoadError, Memory, RawSegment, RunError, SegmentKind,
    StepInputs, Stop, WeightLayout,
};
use tenure_graph::{KvLayer, KvType, OutputId, Plan, WeightUse};
use tenure_tensor::ByteSize;

/// What memory that nobody wrote is filled with: a quiet NaN as f32, and NaN as a pair of f16.
pub const POISON: u32 = 0x7fff_7fff;

/// Wraps a backend. Results must not differ from the wrapped backend's by a bit.
#[derive(Debug)]
pub struct Poisoned {
    inner: Arc<dyn Backend>,
}

impl Poisoned {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Poisoned { inner }
    }
}

// SAFETY: memory comes from the wrapped backend, which upholds the contract.
unsafe impl Backend for Poisoned {
    fn name(&self) -> String {
        format!("poisoned {}", self.inner.name())
    }

    fn overhead(&self) -> ByteSize {
        self.inner.overhead()
    }

    fn round_up(&self, bytes: ByteSize) -> ByteSize {
        self.inner.round_up(bytes)
    }

    fn largest_segment(&self) -> ByteSize {
        self.inner.largest_segment()
    }

    fn available(&self) -> Option<ByteSize> {
        self.inner.available()
    }

    fn reopen(&self) -> Result<Arc<dyn Backend>, DeviceError> {
        Ok(Arc::new(Poisoned::new(self.inner.reopen()?)))
    }

    fn alloc(&self, kind: SegmentKind, bytes: ByteSize) -> Result<RawSegment, AllocError> {
        let raw = self.inner.alloc(kind, bytes)?;
        // SAFETY: just allocated.
        match unsafe { self.inner.fill(raw, POISON) } {
            Ok(()) => Ok(raw),
            Err(_) => {
                // SAFETY: just allocated, and handed to nobody.
                unsafe { self.inner.free(raw) };
                Err(AllocError::OutOfMemory { device: self.name(), bytes })
            }
        }
    }

    unsafe fn free(&self, segment: RawSegment) {
        // SAFETY: the caller's promise: a live segment of ours that nobody uses.
        unsafe {
            // Freeing goes on if the device cannot fill any more.
            let _: Result<(), DeviceError> = self.inner.fill(segment, POISON);
            self.inner.free(segment);
        }
    }

    unsafe fn fill(&self, segment: RawSegment, word: u32) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise is the wrapped backend's.
        unsafe { self.inner.fill(segment, word) }
    }

    fn weight_layout(&self, weight: &WeightUse) -> WeightLayout {
        self.inner.weight_layout(weight)
    }

    fn kv_block_bytes(&self, layer: KvLayer, kv: KvType) -> Result<ByteSize, DeviceError> {
        self.inner.kv_block_bytes(layer, kv)
    }

    fn supports(&self, plan: &Plan, kv: KvType) -> Result<(), DeviceError> {
        self.inner.supports(plan, kv)
    }

    fn scratch(&self, plan: &Plan) -> ByteSize {
        self.inner.scratch(plan)
    }

    fn exchange(&self, plan: &Plan) -> ByteSize {
        self.inner.exchange(plan)
    }

    fn open_lane(&self) -> Result<Box<dyn Lane>, DeviceError> {
        Ok(Box::new(PoisonedLane { inner: self.inner.open_lane()?, backend: self.inner.clone() }))
    }
}

struct PoisonedLane {
    inner: Box<dyn Lane>,
    backend: Arc<dyn Backend>,
}

impl Lane for PoisonedLane {
    unsafe fn load(&mut self, load: &Load<'_>, stop: &Stop) -> Result<(), LoadError> {
        // SAFETY: the caller's promise is the wrapped lane's.
        unsafe { self.inner.load(load, stop) }
    }

    unsafe fn bind(&mut self, plan: Arc<Plan>, memory: &Memory) -> Result<Box<dyn Exec>, DeviceError> {
        // SAFETY: the caller's promise is the wrapped lane's.
        let inner = unsafe { self.inner.bind(plan, memory)? };
        let transient = std::iter::once(&memory.arena).chain(&memory.scratch).cloned().collect();
        Ok(Box::new(PoisonedExec { inner, backend: self.backend.clone(), transient }))
    }
}

struct PoisonedExec {
    inner: Box<dyn Exec>,
    backend: Arc<dyn Backend>,
    transient: Vec<Lease>,
}

impl Exec for PoisonedExec {
    fn run(&mut self, step: &StepInputs<'_>, stops: &[Stop]) -> Result<(), RunError> {
        for lease in &self.transient {
            // SAFETY: arena and scratch belong to this program, whose steps run one at a time (`&mut self`).
            let filled = unsafe { self.backend.fill(lease.raw(), POISON) };
            filled.map_err(|error| RunError::Failed { device: "poisoned".to_owned(), why: error.to_string() })?;
        }
        self.inner.run(step, stops)
    }

    fn read(&mut self, output: OutputId, row: usize, into: &mut [f32]) -> Result<(), RunError> {
        self.inner.read(output, row, into)
    }

    fn read_top(&mut self, row: usize, into: &mut [(u32, f32)]) -> Result<(), RunError> {
        self.inner.read_top(row, into)
    }

    fn settle(&mut self, stop: &Stop) -> Result<(), RunError> {
        self.inner.settle(stop)
    }
}
