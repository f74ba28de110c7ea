//! What a backend is: memory, layouts, lanes and executables.

use std::fmt;
use std::sync::Arc;

use tenure_graph::{InputId, KV_BLOCK, KvLayer, KvType, OutputId, Plan, Rows, WeightUse};
use tenure_tensor::{ByteSize, DType};

use crate::deadline::{Stop, Stopped};
use crate::results::{Wanted, check_wanted};
use crate::segment::{Lease, RawSegment, SegmentKind};

/// A kind of device and its memory.
///
/// # Safety
/// `alloc` must return memory of `bytes` that is valid until `free` is called with it, and disjoint from every other
/// live segment.
pub unsafe trait Backend: Send + Sync + fmt::Debug {
    /// A name people know it by, such as `cpu`.
    fn name(&self) -> String;

    /// What the backend holds beside its segments, measured when it was opened.
    fn overhead(&self) -> ByteSize;

    /// What an allocation of `bytes` really takes.
    fn round_up(&self, bytes: ByteSize) -> ByteSize;

    /// The largest segment there can be.
    fn largest_segment(&self) -> ByteSize;

    /// What can still be allocated as the driver says now, others' use of the device taken off; `None` where it does
    /// not say.
    fn available(&self) -> Option<ByteSize>;

    /// The same device opened anew, with the same options: the way on when this one was lost.
    ///
    /// # Errors
    /// [`DeviceError`] when it cannot be opened.
    fn reopen(&self) -> Result<Arc<dyn Backend>, DeviceError>;

    /// Allocates `bytes`, a size that [`Backend::round_up`] gave, where memory of that kind belongs.
    ///
    /// # Errors
    /// [`AllocError`] when the device has no such memory, or is gone.
    fn alloc(&self, kind: SegmentKind, bytes: ByteSize) -> Result<RawSegment, AllocError>;

    /// Frees a segment.
    ///
    /// # Safety
    /// `segment` came from this backend's `alloc`, was not freed before, and nothing uses it any more.
    unsafe fn free(&self, segment: RawSegment);

    /// Fills a segment with a word, such as a NaN that shows who relies on memory nobody wrote.
    ///
    /// # Errors
    /// [`DeviceError`] when the device cannot.
    ///
    /// # Safety
    /// `segment` came from this backend's `alloc`, was not freed, and nothing uses it meanwhile.
    unsafe fn fill(&self, segment: RawSegment, word: u32) -> Result<(), DeviceError>;

    /// How a weight is held.
    fn weight_layout(&self, weight: &WeightUse) -> WeightLayout;

    /// The size of one KV block (`KV_BLOCK` positions, all heads, keys and values) of a layer.
    ///
    /// # Errors
    /// [`DeviceError::UnsupportedKv`] when the layer cannot be held in that type.
    fn kv_block_bytes(&self, layer: KvLayer, kv: KvType) -> Result<ByteSize, DeviceError>;

    /// Whether there are kernels for everything in `plan`, with a KV cache of that type.
    ///
    /// # Errors
    /// [`DeviceError`] naming the first thing there is none for.
    fn supports(&self, plan: &Plan, kv: KvType) -> Result<(), DeviceError>;

    /// What running `plan` takes beside its arena.
    fn scratch(&self, plan: &Plan) -> ByteSize;

    /// What host and device exchange in a step of `plan`, its inputs and outputs, where they do not share memory.
    fn exchange(&self, plan: &Plan) -> ByteSize;

    /// Opens a queue of work.
    ///
    /// # Errors
    /// [`DeviceError`] when the device cannot give one.
    fn open_lane(&self) -> Result<Box<dyn Lane>, DeviceError>;
}

/// How a backend holds a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightLayout {
    /// Its size in the backend's memory.
    pub bytes: ByteSize,
    /// Whether the file's own bytes will do, so that they can be used from a mapping without a copy.
    pub mappable: bool,
}

/// A backend's queue of work. [`DeviceLane`](crate::DeviceLane) is the safe way to use one.
pub trait Lane: Send {
    /// Brings weights from their files into their leases, in the backend's layout.
    ///
    /// # Errors
    /// [`LoadError`]; the leases then hold garbage.
    ///
    /// # Safety
    /// The leases are of the backend that opened this lane, the items' places do not overlap and begin at multiples of
    /// [`WEIGHT_ALIGN`](crate::WEIGHT_ALIGN), and nobody else uses the leases meanwhile.
    unsafe fn load(&mut self, load: &Load<'_>, stop: &Stop) -> Result<(), LoadError>;

    /// Makes `plan` ready to run over the given memory.
    ///
    /// # Errors
    /// [`DeviceError`] when memory and plan do not fit each other.
    ///
    /// # Safety
    /// The leases are of the backend that opened this lane. While the executable lives, nobody else uses the KV cache,
    /// the arena, the scratch and the exchange memory, which do not overlap, and nobody writes the weights. Resident
    /// weights begin at multiples of [`WEIGHT_ALIGN`](crate::WEIGHT_ALIGN); mapped ones have a layout that is
    /// [`mappable`](WeightLayout::mappable).
    unsafe fn bind(&mut self, plan: Arc<Plan>, memory: &Memory) -> Result<Box<dyn Exec>, DeviceError>;
}

/// What [`Lane::load`] brings in.
pub struct Load<'a> {
    /// The weights, each with its place.
    pub items: &'a [LoadItem<'a>],
    /// Where their bytes come from: `read(item, offset, into)`. Called from several threads.
    pub read: &'a ReadFn<'a>,
    /// Told the number of file bytes done so far. Called from several threads.
    pub progress: &'a (dyn Fn(ByteSize) + Sync),
}

/// One weight on its way in.
pub struct LoadItem<'a> {
    /// The weight.
    pub weight: &'a WeightUse,
    /// Where it goes.
    pub lease: &'a Lease,
    /// Where in it, in bytes; a multiple of [`WEIGHT_ALIGN`](crate::WEIGHT_ALIGN).
    pub offset: u64,
}

/// Reads bytes of one item.
pub type ReadFn<'a> = dyn Fn(usize, u64, &mut [u8]) -> Result<(), SourceError> + Sync + 'a;

/// What a source of weights says when it fails.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// The memory a plan is bound to.
pub struct Memory {
    /// One place for each of the plan's weights.
    pub weights: Vec<WeightPlace>,
    /// The KV cache.
    pub kv: KvPlace,
    /// At least the plan's arena; for one program alone, as the KV cache and the scratch memory are.
    pub arena: Lease,
    /// At least what [`Backend::scratch`] said, unless that was nothing.
    pub scratch: Option<Lease>,
    /// At least what [`Backend::exchange`] said, unless that was nothing.
    pub exchange: Option<Lease>,
}

/// Where a weight is.
#[derive(Clone)]
pub enum WeightPlace {
    /// In a lease, from `offset` on, in the backend's layout.
    Resident {
        /// The memory.
        lease: Lease,
        /// The first byte; a multiple of [`WEIGHT_ALIGN`](crate::WEIGHT_ALIGN).
        offset: u64,
    },
    /// In host memory, as the file has it.
    Mapped(Arc<dyn HostBytes>),
}

/// Bytes of the host that stay where they are while somebody holds this.
pub trait HostBytes: Send + Sync {
    /// The bytes.
    fn bytes(&self) -> &[u8];
}

/// Where the KV cache is.
#[derive(Clone)]
pub struct KvPlace {
    /// The memory: for each layer in order, `blocks` blocks. None where the plan has no layers.
    pub lease: Option<Lease>,
    /// Blocks of each layer.
    pub blocks: usize,
    /// Element type.
    pub kv: KvType,
}

/// A plan bound to memory.
pub trait Exec: Send {
    /// Runs one step and waits for its end, or until any of `stops` is due.
    ///
    /// # Errors
    /// [`RunError`]; what the step would have written (its rows' KV entries, its outputs) is then undefined, everything
    /// else is untouched.
    fn run(&mut self, step: &StepInputs<'_>, stops: &[Stop]) -> Result<(), RunError>;

    /// Copies rows of an output of the last step, from `row` on, as many as `into` has room for.
    ///
    /// # Errors
    /// [`RunError::BadInput`] when there are no such rows, one was not wanted whole, or `into` is not as long as whole rows.
    fn read(&mut self, output: OutputId, row: usize, into: &mut [f32]) -> Result<(), RunError>;

    /// Copies the ids and values of the largest logits of one output of the last step, in the order of
    /// [`Wanted::Top`]: as many as were wanted, or all where there are no more.
    ///
    /// # Errors
    /// [`RunError::BadInput`] when there is no such row, it was wanted whole, or `into` has another length.
    fn read_top(&mut self, row: usize, into: &mut [(u32, f32)]) -> Result<(), RunError>;

    /// Waits until nothing of a step that was stopped is under way any more, or until `stop` is due.
    ///
    /// # Errors
    /// [`RunError`]: what was under way may still be, unless the device is gone.
    fn settle(&mut self, stop: &Stop) -> Result<(), RunError>;
}

/// What changes from step to step.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs<'a> {
    /// Token of each row.
    pub tokens: &'a [u32],
    /// Position of each row in its sequence.
    pub positions: &'a [u32],
    /// Which block table each row uses.
    pub tables: &'a [u32],
    /// The KV blocks of each sequence, in order of position; table after table, each as long as the plan's shape says.
    pub blocks: &'a [u32],
    /// Rows whose results are wanted, in this order.
    pub outputs: &'a [u32],
    /// What is wanted of the logits of each of them.
    pub wanted: &'a [Wanted],
    /// The plan's inputs, row after row; what it does not know is not looked at.
    pub given: &'a [(InputId, &'a [f32])],
}

/// Rows of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepRows {
    /// All of them.
    pub step: usize,
    /// Those whose results are wanted.
    pub out: usize,
}

impl StepRows {
    /// How many rows of a kind there are.
    pub const fn of(self, rows: Rows) -> usize {
        match rows {
            Rows::Step => self.step,
            Rows::Out => self.out,
            Rows::Fixed(count) => count as usize,
        }
    }
}

impl StepInputs<'_> {
    /// An input's rows; none where it is not given.
    pub fn given(&self, id: InputId) -> &[f32] {
        self.given.iter().find(|(other, _)| *other == id).map_or(&[], |(_, rows)| rows)
    }

    /// How many rows it has.
    pub const fn rows(&self) -> StepRows {
        StepRows { step: self.tokens.len(), out: self.outputs.len() }
    }

    /// Checks that every index of the step lies inside the bounds of `plan` and a cache of `kv_blocks` blocks, and that
    /// no two rows write the same position. `written` is room for that: with a capacity of the plan's rows, nothing is
    /// allocated.
    ///
    /// # Errors
    /// [`RunError::BadInput`] naming the first that does not.
    pub fn check(&self, plan: &Plan, kv_blocks: usize, written: &mut Vec<u64>) -> Result<(), RunError> {
        let shape = plan.shape();
        let bad = |what, got: usize, bound: usize| RunError::BadInput { what, got: got as u64, bound: bound as u64 };
        let rows = self.tokens.len();
        // A plan without rows of its own has none; one whose rows see each other has all.
        if rows > shape.rows || (rows == 0 && shape.rows > 0) || (rows < shape.rows && plan.is_whole()) {
            return Err(bad("rows", rows, shape.rows));
        }
        for (what, len) in [("positions", self.positions.len()), ("tables", self.tables.len())] {
            if len != rows {
                return Err(bad(what, len, rows));
            }
        }
        if self.outputs.len() > shape.outs {
            return Err(bad("outputs", self.outputs.len(), shape.outs));
        }
        check_wanted(plan, self)?;
        if let Some(&out) = self.outputs.iter().find(|&&out| out as usize >= rows) {
            return Err(bad("output row", out as usize, rows));
        }
        if let Some(vocab) = plan.vocab()
            && let Some(&token) = self.tokens.iter().find(|&&token| token as usize >= vocab)
        {
            return Err(bad("token", token as usize, vocab));
        }
        for &(id, val) in plan.inputs() {
            let value = plan.value(val);
            let (given, wanted) = (self.given(id).len(), self.rows().of(value.rows) * value.cols);
            if given != wanted {
                return Err(bad("given rows", given, wanted));
            }
        }
        written.clear();
        for row in 0..rows {
            let (position, table) = (self.positions[row] as usize, self.tables[row] as usize);
            if position >= shape.context {
                return Err(bad("position", position, shape.context));
            }
            if plan.kv_layers().is_empty() {
                continue;
            }
            let start = table.saturating_mul(shape.table_len());
            let needed = position / KV_BLOCK + 1;
            let Some(blocks) = self.blocks.get(start..start.saturating_add(needed)) else {
                return Err(bad("table", table, self.blocks.len() / shape.table_len()));
            };
            if let Some(&block) = blocks.iter().find(|&&block| block as usize >= kv_blocks) {
                return Err(bad("block", block as usize, kv_blocks));
            }
            written.push(u64::from(blocks[needed - 1]) * KV_BLOCK as u64 + (position % KV_BLOCK) as u64);
        }
        written.sort_unstable();
        if let Some(pair) = written.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(bad("position written twice", pair[0] as usize, 0));
        }
        Ok(())
    }
}

/// Empties a list of the host and makes room in it for `len` elements.
///
/// # Errors
/// [`DeviceError::HostOutOfMemory`].
pub fn host_room<T>(list: &mut Vec<T>, len: usize) -> Result<(), DeviceError> {
    list.clear();
    let asked = ByteSize::of(len).times(size_of::<T>() as u64);
    list.try_reserve_exact(len).map_err(|_| DeviceError::HostOutOfMemory { asked })
}

/// Why a device gave no memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// It has none.
    #[error("{device} could not allocate {bytes}")]
    OutOfMemory {
        /// The device.
        device: String,
        /// What was asked for.
        bytes: ByteSize,
    },
    /// It is gone.
    #[error("{device} was lost")]
    Lost {
        /// The device.
        device: String,
    },
}

/// Something a device cannot do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The KV type does not suit the model.
    #[error("a {kv:?} cache needs heads of a multiple of 32 elements; this model's have {head_dim}")]
    UnsupportedKv {
        /// The type asked for.
        kv: KvType,
        /// The model's head size.
        head_dim: usize,
    },
    /// A weight's type has no kernel on the device.
    #[error("{device} has no kernel for {dtype} (tensor {name:?})")]
    UnsupportedDtype {
        /// The device.
        device: String,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: DType,
    },
    /// An operation has no kernel on the device.
    #[error("{device} has no kernel for the operation {op}")]
    UnsupportedOp {
        /// The device.
        device: String,
        /// The operation ([`tenure_graph::Op::name`]).
        op: &'static str,
    },
    /// The processor lacks the instruction set asked for.
    #[error("this processor does not have {isa}")]
    UnsupportedIsa {
        /// What was asked for.
        isa: String,
    },
    /// A number of threads that cannot be meant.
    #[error("{threads} threads were asked for; 1 to {most} are possible")]
    BadThreads {
        /// What was asked for.
        threads: usize,
        /// The most that are taken.
        most: usize,
    },
    /// The operating system gave no thread.
    #[error("a worker thread could not be started: {0}")]
    ThreadSpawn(String),
    /// The memory given does not fit the plan.
    #[error("{what} holds {got}, the plan needs {need}")]
    WrongMemory {
        /// Which memory.
        what: &'static str,
        /// What it holds.
        got: ByteSize,
        /// What is needed.
        need: ByteSize,
    },
    /// A weight that is not held as the backend's layout has it, or not at a multiple of 64 bytes.
    #[error("tensor {name:?} does not lie as the device wants it")]
    WrongLayout {
        /// The tensor.
        name: String,
    },
    /// Memory that is being written, or used while it would be written.
    #[error("{what} are in use")]
    InUse {
        /// Which memory.
        what: &'static str,
    },
    /// Memory of another backend.
    #[error("{what} belongs to another backend")]
    ForeignLease {
        /// Which memory.
        what: &'static str,
    },
    /// The host had no memory.
    #[error("the host could not allocate {asked}")]
    HostOutOfMemory {
        /// What was asked for.
        asked: ByteSize,
    },
    /// Something is larger than the device can take in one piece.
    #[error("{what} takes {bytes} in one piece; {device} takes {most}")]
    TooLarge {
        /// The device.
        device: String,
        /// What is too large.
        what: String,
        /// Its size.
        bytes: ByteSize,
        /// The largest that can be.
        most: ByteSize,
    },
    /// The device had no memory for what it needs beside segments, such as its own objects.
    #[error("{device} is out of memory: {why}")]
    OutOfMemory {
        /// The device.
        device: String,
        /// What it said.
        why: String,
    },
    /// The device is gone, with everything on it; it must be opened anew.
    #[error("{device} was lost")]
    Lost {
        /// The device.
        device: String,
    },
    /// The device failed.
    #[error("{device} failed: {why}")]
    Failed {
        /// The device.
        device: String,
        /// What it said.
        why: String,
    },
}

/// Why weights could not be brought in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The source failed.
    #[error("tensor {name:?}: {error}")]
    Source {
        /// The tensor.
        name: String,
        /// What the source said.
        error: SourceError,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The deadline came, or somebody cancelled.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The deadline came, or somebody cancelled.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The step's inputs break a bound of the plan.
    #[error("step input {what} is {got}, the bound is {bound}")]
    BadInput {
        /// Which input.
        what: &'static str,
        /// Its value.
        got: u64,
        /// What it must stay below (or equal, for lengths).
        bound: u64,
    },
    /// A step that is checked layer by layer gave an infinity, or no number: damaged weights, as a rule.
    #[error("layer {layer} gave numbers that are infinite or none")]
    NonFiniteActivation {
        /// The first such layer, counted from 0.
        layer: usize,
    },
    /// The device is gone, with everything on it; it must be opened anew.
    #[error("{device} was lost")]
    Lost {
        /// The device.
        device: String,
    },
    /// The device had no memory to run the step.
    #[error("{device} is out of memory: {why}")]
    OutOfMemory {
        /// The device.
        device: String,
        /// What it said.
        why: String,
    },
    /// The device failed while it ran the step.
    #[error("{device} failed: {why}")]
    Failed {
        /// The device.
        device: String,
        /// What it said.
        why: String,
    },
}
