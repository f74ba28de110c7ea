//! A backend whose memory begins as NaN, and whose arena is NaN again before every step.

use std::sync::Arc;

use tenure_device::{
    AllocError, Backend, DeviceError, Exec, Lane, Lease, Load, LoadError, Memory, RawSegment, RunError, StepInputs,
    Stop, WeightLayout,
};
use tenure_graph::{KvLayer, KvType, OutputId, Plan, WeightUse};
use tenure_tensor::ByteSize;

/// A quiet NaN as f32, and NaN as a pair of f16.
const POISON: u32 = 0x7fff_7fff;

/// Wraps a backend of host memory. Results must not differ from the wrapped backend's by a bit.
#[derive(Debug)]
pub struct Poisoned {
    inner: Arc<dyn Backend>,
}

impl Poisoned {
    /// Wraps `inner`, whose segments must be host addresses (the CPU backend's are).
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Poisoned { inner }
    }
}

/// # Safety
/// `raw` is a live segment of host memory that nobody uses meanwhile.
unsafe fn poison(raw: RawSegment) {
    // SAFETY: segments are whole pages, so aligned and a multiple of four bytes; the caller upholds the rest.
    let words = unsafe { std::slice::from_raw_parts_mut(raw.token as usize as *mut u32, raw.bytes.get() as usize / 4) };
    words.fill(POISON);
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

    fn alloc(&self, bytes: ByteSize) -> Result<RawSegment, AllocError> {
        let raw = self.inner.alloc(bytes)?;
        // SAFETY: just allocated.
        unsafe { poison(raw) };
        Ok(raw)
    }

    unsafe fn free(&self, segment: RawSegment) {
        // SAFETY: the caller's promise: a live segment of ours that nobody uses.
        unsafe {
            poison(segment);
            self.inner.free(segment);
        }
    }

    fn weight_layout(&self, weight: &WeightUse) -> WeightLayout {
        self.inner.weight_layout(weight)
    }

    fn kv_block_bytes(&self, layer: KvLayer, kv: KvType) -> Result<ByteSize, DeviceError> {
        self.inner.kv_block_bytes(layer, kv)
    }

    fn scratch(&self, plan: &Plan) -> ByteSize {
        self.inner.scratch(plan)
    }

    fn open_lane(&self) -> Result<Box<dyn Lane>, DeviceError> {
        Ok(Box::new(PoisonedLane { inner: self.inner.open_lane()? }))
    }
}

struct PoisonedLane {
    inner: Box<dyn Lane>,
}

impl Lane for PoisonedLane {
    unsafe fn load(&mut self, load: &Load<'_>, stop: &Stop) -> Result<(), LoadError> {
        // SAFETY: the caller's promise is the wrapped lane's.
        unsafe { self.inner.load(load, stop) }
    }

    unsafe fn bind(&mut self, plan: Arc<Plan>, memory: &Memory) -> Result<Box<dyn Exec>, DeviceError> {
        // SAFETY: the caller's promise is the wrapped lane's.
        let inner = unsafe { self.inner.bind(plan, memory)? };
        Ok(Box::new(PoisonedExec { inner, transient: [memory.arena.clone(), memory.scratch.clone()] }))
    }
}

struct PoisonedExec {
    inner: Box<dyn Exec>,
    transient: [Lease; 2],
}

impl Exec for PoisonedExec {
    fn run(&mut self, step: &StepInputs<'_>, stops: &[Stop]) -> Result<(), RunError> {
        for lease in &self.transient {
            // SAFETY: arena and scratch belong to this program, whose steps run one at a time (`&mut self`).
            unsafe { poison(lease.raw()) };
        }
        self.inner.run(step, stops)
    }

    fn read(&mut self, output: OutputId, row: usize, into: &mut [f32]) -> Result<(), RunError> {
        self.inner.read(output, row, into)
    }
}
