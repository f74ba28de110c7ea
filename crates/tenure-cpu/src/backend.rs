//! The backend: memory, layouts and lanes of the host's processor.

use std::sync::Arc;

use tenure_device::{AllocError, Backend, DeviceError, Lane, RawSegment, SegmentKind, WeightLayout};
use tenure_graph::{KvLayer, KvType, Plan, WeightUse};
use tenure_tensor::ByteSize;

use crate::lane::CpuLane;
use crate::layout::{self, Scratch};
use crate::lower::lower;
use crate::raw::load::STAGING;
use crate::raw::memory;
use crate::simd::{Isa, attention};
use crate::support::supports;

/// How the CPU is used.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included; `None`: one for each physical core.
    pub threads: Option<usize>,
    /// Instruction set; `None`: the best this processor has.
    pub isa: Option<Isa>,
    /// Bytes of host memory that may be used, the staging of loads included ([`Backend::overhead`]); `None`: what this
    /// machine, or the control groups of the process, allow.
    pub budget: Option<ByteSize>,
}

/// The CPU backend.
#[derive(Debug)]
pub struct Cpu {
    threads: usize,
    isa: Isa,
}

impl Cpu {
    /// A backend with these options.
    ///
    /// # Errors
    /// [`DeviceError::UnsupportedIsa`] when this processor lacks the instruction set asked for,
    /// [`DeviceError::BadThreads`] for no threads, or more than are taken for a mistake.
    pub fn new(options: &CpuOptions) -> Result<Self, DeviceError> {
        let isa = match options.isa {
            None => Isa::best(),
            Some(isa) if isa.is_available() => isa,
            Some(isa) => return Err(DeviceError::UnsupportedIsa { isa: format!("{isa:?}") }),
        };
        let threads = options.threads.unwrap_or_else(|| physical_cores().clamp(1, MAX_THREADS));
        if threads == 0 || threads > MAX_THREADS {
            return Err(DeviceError::BadThreads { threads, most: MAX_THREADS });
        }
        Ok(Cpu { threads, isa })
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

/// More threads than this are taken for a mistake.
const MAX_THREADS: usize = 1024;

// SAFETY: `raw::memory` returns fresh mappings, valid until freed and disjoint from each other.
unsafe impl Backend for Cpu {
    fn name(&self) -> String {
        "cpu".to_owned()
    }

    fn overhead(&self) -> ByteSize {
        STAGING.times(self.threads as u64)
    }

    fn round_up(&self, bytes: ByteSize) -> ByteSize {
        bytes.align_up(memory::PAGE)
    }

    fn largest_segment(&self) -> ByteSize {
        ByteSize::new(u64::MAX)
    }

    /// The operating system hands out memory that it may not have.
    fn available(&self) -> Option<ByteSize> {
        None
    }

    fn reopen(&self) -> Result<Arc<dyn Backend>, DeviceError> {
        Ok(Arc::new(Cpu { threads: self.threads, isa: self.isa }))
    }

    fn alloc(&self, _kind: SegmentKind, bytes: ByteSize) -> Result<RawSegment, AllocError> {
        memory::alloc(bytes)
    }

    unsafe fn free(&self, segment: RawSegment) {
        // SAFETY: the caller promises what `memory::free` asks for.
        unsafe { memory::free(segment) };
    }

    unsafe fn fill(&self, segment: RawSegment, word: u32) -> Result<(), DeviceError> {
        // SAFETY: the caller promises what `memory::fill` asks for.
        unsafe { memory::fill(segment, word) };
        Ok(())
    }

    fn weight_layout(&self, weight: &WeightUse) -> WeightLayout {
        layout::weight_layout(weight)
    }

    fn kv_block_bytes(&self, layer: KvLayer, kv: KvType) -> Result<ByteSize, DeviceError> {
        attention::block_bytes(kv, layer.head_dim)
            .map(|head| ByteSize::of(head).times(layer.heads as u64))
            .ok_or(DeviceError::UnsupportedKv { kv, head_dim: layer.head_dim })
    }

    fn supports(&self, plan: &Plan, kv: KvType) -> Result<(), DeviceError> {
        supports(self.isa, plan, kv)
    }

    fn scratch(&self, plan: &Plan) -> ByteSize {
        let lowered = lower(plan, self.isa);
        ByteSize::of(Scratch::new(plan, &lowered, self.threads).bytes)
    }

    fn exchange(&self, _plan: &Plan) -> ByteSize {
        ByteSize::ZERO
    }

    fn open_lane(&self) -> Result<Box<dyn Lane>, DeviceError> {
        Ok(Box::new(CpuLane::new(self.threads, self.isa)?))
    }
}

/// Cores that do not share their arithmetic with another.
fn physical_cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    siblings().map_or(logical, |siblings| (logical / siblings).max(1))
}

/// Hardware threads of one core, where the system tells.
fn siblings() -> Option<usize> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list").ok()?;
    let count = list.trim().split(',').map(|part| match part.split_once('-') {
        Some((from, to)) => Some(to.parse::<usize>().ok()?.checked_sub(from.parse().ok()?)? + 1),
        None => Some(1),
    });
    count.sum::<Option<usize>>().filter(|&n| n > 0)
}
