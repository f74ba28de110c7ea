//! A backend that fails on purpose.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tenure_device::{
    AllocError, Backend, DeviceError, Exec, Lane, Load, LoadError, Memory, RawSegment, RunError, SegmentKind,
    StepInputs, Stop, WeightLayout, check_all,
};
use tenure_graph::{KvLayer, KvType, OutputId, Plan, WeightUse};
use tenure_tensor::ByteSize;

/// What a backend is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Allocate a segment.
    Alloc,
    /// Open a lane.
    OpenLane,
    /// Read bytes of a weight during a load.
    ReadWeight,
    /// Bind a plan.
    Bind,
    /// Run a step; fails before it begins.
    Run,
    /// Run a step; fails after it has written.
    RunLate,
    /// Copy an output.
    Read,
    /// Run a step that does not end before somebody stops it. Not among [`Operation::ALL`].
    Stall,
}

impl Operation {
    /// Every operation that fails by itself.
    pub const ALL: [Operation; 7] = [
        Operation::Alloc,
        Operation::OpenLane,
        Operation::ReadWeight,
        Operation::Bind,
        Operation::Run,
        Operation::RunLate,
        Operation::Read,
    ];
}

/// Which call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind of call.
    pub operation: Operation,
    /// The first that fails, counted from 1 since the fault was armed.
    pub nth: usize,
    /// Whether all later ones fail too.
    pub sticky: bool,
}

/// Wraps a backend and fails the calls it is told to.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Backend>,
    trigger: Arc<Trigger>,
    /// What it says that can still be allocated, where that is not what the wrapped one says.
    available: Mutex<Option<ByteSize>>,
}

#[derive(Debug, Default)]
struct Trigger {
    fault: Mutex<Option<Fault>>,
    calls: AtomicUsize,
    fired: AtomicBool,
}

impl Faulty {
    /// A backend that works until a fault is armed.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Faulty { inner, trigger: Arc::default(), available: Mutex::default() }
    }

    /// Arms a fault; counting starts anew.
    pub fn arm(&self, fault: Fault) {
        *self.trigger.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
        self.trigger.calls.store(0, Ordering::SeqCst);
        self.trigger.fired.store(false, Ordering::SeqCst);
    }

    /// Says from now on that so much can still be allocated, as if others held the rest of the device; `None`: what
    /// the wrapped backend says.
    pub fn say_available(&self, bytes: Option<ByteSize>) {
        *self.available.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    /// Works again.
    pub fn disarm(&self) {
        *self.trigger.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether the armed fault has struck.
    pub fn fired(&self) -> bool {
        self.trigger.fired.load(Ordering::SeqCst)
    }
}

impl Trigger {
    /// Whether this call is to fail.
    fn strikes(&self, operation: Operation) -> bool {
        let fault = *self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(fault) = fault.filter(|fault| fault.operation == operation) else { return false };
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let strikes = call == fault.nth || (fault.sticky && call > fault.nth);
        self.fired.fetch_or(strikes, Ordering::SeqCst);
        strikes
    }
}

fn injected() -> RunError {
    RunError::Failed { device: "faulty".to_owned(), why: "injected".to_owned() }
}

// SAFETY: memory comes from the wrapped backend, which upholds the contract.
unsafe impl Backend for Faulty {
    fn name(&self) -> String {
        format!("faulty {}", self.inner.name())
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
        let said = *self.available.lock().unwrap_or_else(PoisonError::into_inner);
        said.or_else(|| self.inner.available())
    }

    fn reopen(&self) -> Result<Arc<dyn Backend>, DeviceError> {
        Ok(Arc::new(Faulty::new(self.inner.reopen()?)))
    }

    fn alloc(&self, kind: SegmentKind, bytes: ByteSize) -> Result<RawSegment, AllocError> {
        if self.trigger.strikes(Operation::Alloc) {
            return Err(AllocError::OutOfMemory { device: self.name(), bytes });
        }
        self.inner.alloc(kind, bytes)
    }

    unsafe fn free(&self, segment: RawSegment) {
        // SAFETY: the caller's promise is the wrapped backend's.
        unsafe { self.inner.free(segment) };
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
        if self.trigger.strikes(Operation::OpenLane) {
            return Err(DeviceError::ThreadSpawn("injected".to_owned()));
        }
        Ok(Box::new(FaultyLane { inner: self.inner.open_lane()?, trigger: self.trigger.clone() }))
    }
}

struct FaultyLane {
    inner: Box<dyn Lane>,
    trigger: Arc<Trigger>,
}

impl Lane for FaultyLane {
    unsafe fn load(&mut self, load: &Load<'_>, stop: &Stop) -> Result<(), LoadError> {
        let read = |item: usize, offset: u64, into: &mut [u8]| {
            if self.trigger.strikes(Operation::ReadWeight) {
                return Err("injected".into());
            }
            (load.read)(item, offset, into)
        };
        // SAFETY: the caller's promise is the wrapped lane's.
        unsafe { self.inner.load(&Load { items: load.items, read: &read, progress: load.progress }, stop) }
    }

    unsafe fn bind(&mut self, plan: Arc<Plan>, memory: &Memory) -> Result<Box<dyn Exec>, DeviceError> {
        if self.trigger.strikes(Operation::Bind) {
            return Err(DeviceError::HostOutOfMemory { asked: ByteSize::ZERO });
        }
        // SAFETY: the caller's promise is the wrapped lane's.
        let inner = unsafe { self.inner.bind(plan, memory)? };
        Ok(Box::new(FaultyExec { inner, trigger: self.trigger.clone() }))
    }
}

struct FaultyExec {
    inner: Box<dyn Exec>,
    trigger: Arc<Trigger>,
}

impl Exec for FaultyExec {
    fn run(&mut self, step: &StepInputs<'_>, stops: &[Stop]) -> Result<(), RunError> {
        if self.trigger.strikes(Operation::Run) {
            return Err(injected());
        }
        if self.trigger.strikes(Operation::Stall) {
            loop {
                check_all(stops)?;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        self.inner.run(step, stops)?;
        if self.trigger.strikes(Operation::RunLate) { Err(injected()) } else { Ok(()) }
    }

    fn read(&mut self, output: OutputId, row: usize, into: &mut [f32]) -> Result<(), RunError> {
        if self.trigger.strikes(Operation::Read) {
            return Err(injected());
        }
        self.inner.read(output, row, into)
    }

    fn read_top(&mut self, row: usize, into: &mut [(u32, f32)]) -> Result<(), RunError> {
        if self.trigger.strikes(Operation::Read) {
            return Err(injected());
        }
        self.inner.read_top(row, into)
    }

    fn settle(&mut self, stop: &Stop) -> Result<(), RunError> {
        self.inner.settle(stop)
    }
}
