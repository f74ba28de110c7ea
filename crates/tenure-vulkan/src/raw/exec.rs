//! A plan in recorded commands, bound to buffers.

use std::sync::Arc;
use std::time::Duration;

use ash::vk;
use tenure_device::{DeviceError, Exec, LastStep, RunError, StepInputs, Stop, check_all};
use tenure_graph::{OutputId, Plan};

use crate::exchange::{BOUNDS_BYTES, COUNT_BYTES, Exchange, SLOTS, Writer};
use crate::hazard::{Hazards, Region};
use crate::kinds::{Many, Placed};
use crate::layout::WORD;
use crate::lower::{Dispatch, pieces};
use crate::raw::buffer::Buffer;
use crate::raw::command::{Commands, Recorded};
use crate::raw::descriptor::{Bound, Sets};
use crate::raw::device::{Gpu, GpuError};
use crate::raw::pipeline::Pipelines;
use crate::raw::ticks::{Tick, Ticks};
use crate::tops::Tops;

/// A plan bound to memory: command buffers for each kind of step, twice, each time with inputs of its own.
pub(crate) struct VulkanExec {
    parts: Parts,
    /// By slot, then by [`Many::place`]: pieces that are submitted one after the other.
    recordings: [[Vec<vk::CommandBuffer>; Many::ALL.len()]; SLOTS],
    ticks: Ticks,
    // Destroyed when nothing runs any more; see `drop`.
    _commands: Commands,
    _sets: Sets,
    writer: Writer,
    written: Vec<u64>,
    slot: usize,
    /// What may be read.
    last: LastStep,
}

/// What an executable is made of.
pub(crate) struct Parts {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) pipelines: Arc<Pipelines>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) dispatches: Vec<Dispatch>,
    /// Which dispatches read and write what, by number; the exchange is among them.
    pub(crate) buffers: Vec<Arc<Buffer>>,
    pub(crate) exchange_buffer: Arc<Buffer>,
    pub(crate) exchange: Exchange,
    pub(crate) kv_blocks: usize,
}

/// Submissions under way at once.
const AHEAD: usize = 2;
/// Between looks at the stops.
const SLICE: Duration = Duration::from_millis(5);

impl VulkanExec {
    /// Records the dispatches.
    ///
    /// # Safety
    /// While the executable lives nobody else writes what it reads, or touches what it writes.
    pub(crate) unsafe fn new(parts: Parts) -> Result<Self, DeviceError> {
        let fail = |error: GpuError| error.of_device(&parts.gpu);
        let mut commands = Commands::new(&parts.gpu).map_err(fail)?;
        let bindings: usize = parts.dispatches.iter().map(|dispatch| dispatch.operands.len()).sum();
        let sets = parts.dispatches.len() + 2 * SLOTS;
        let sets = Sets::new(&parts.gpu, sets as u32, (bindings + SLOTS) as u32, 2 * SLOTS as u32).map_err(fail)?;
        let mut operands = Vec::with_capacity(parts.dispatches.len());
        for dispatch in &parts.dispatches {
            operands.push(parts.operands(&sets, dispatch).map_err(fail)?);
        }
        let shape = parts.plan.shape();
        let mut recordings: [[Vec<vk::CommandBuffer>; Many::ALL.len()]; SLOTS] = Default::default();
        for (slot, recordings) in recordings.iter_mut().enumerate() {
            let step = parts.step_sets(&sets, slot).map_err(fail)?;
            for (many, recording) in Many::ALL.into_iter().zip(recordings) {
                if !many.may_be(&parts.dispatches, shape) {
                    continue;
                }
                for piece in pieces(&parts.dispatches, shape, many, parts.gpu.limits.work) {
                    let buffer = parts.record(&mut commands, slot, many, piece, step, &operands).map_err(fail)?;
                    recording.push(buffer);
                }
            }
        }
        let ticks = Ticks::new(&parts.gpu).map_err(fail)?;
        let written = Vec::with_capacity(shape.rows);
        let writer = Writer::default();
        let last = LastStep::new(&parts.plan);
        Ok(VulkanExec { parts, recordings, ticks, _commands: commands, _sets: sets, writer, written, slot: 0, last })
    }

    /// Waits for a submission, until a stop is due.
    fn wait(&mut self, tick: Tick, stops: &[Stop]) -> Result<(), RunError> {
        while !self.ticks.wait(tick, SLICE).map_err(|error| error.of_run(&self.parts.gpu))? {
            check_all(stops)?;
        }
        Ok(())
    }
}

impl Exec for VulkanExec {
    fn run(&mut self, step: &StepInputs<'_>, stops: &[Stop]) -> Result<(), RunError> {
        self.last.begin();
        step.check(&self.parts.plan, self.parts.kv_blocks, &mut self.written)?;
        self.parts.alive()?;
        // A step that was stopped may still be under way.
        self.wait(self.ticks.last(), stops)?;
        check_all(stops)?;

        self.slot = (self.slot + 1) % SLOTS;
        let Parts { plan, exchange, dispatches, exchange_buffer, .. } = &self.parts;
        let placed = Placed { tables: step.tables, positions: step.positions };
        let many = Many::kind(dispatches, placed, step.outputs.len());
        // SAFETY: every submission has ended, so nothing reads the slot.
        let slot = unsafe { exchange_buffer.words(exchange.bounds(self.slot), exchange.slot_bytes() / WORD) };
        let Some(slot) = slot else { return Err(self.parts.unmapped()) };
        self.writer.write(exchange, dispatches, many, step, slot);
        for (&(id, _), &offset) in plan.inputs().iter().zip(&exchange.given) {
            let given = step.given(id);
            // SAFETY: as above.
            let words = unsafe { exchange_buffer.words(offset, given.len() as u64) };
            let Some(words) = words else { return Err(self.parts.unmapped()) };
            for (to, x) in words.iter_mut().zip(given) {
                *to = x.to_bits();
            }
        }

        let mut under_way = [None; AHEAD];
        for at in 0..self.recordings[self.slot][many.place()].len() {
            if let Some(tick) = under_way[at % AHEAD].take() {
                self.wait(tick, stops)?;
                check_all(stops)?;
            }
            let commands = self.recordings[self.slot][many.place()][at];
            // SAFETY: recorded completely, and not under way: all submissions had ended, and each piece is submitted
            // once in a step. What it uses is held by `self`, which waits before it lets go.
            let tick = unsafe { self.ticks.submit(commands) };
            under_way[at % AHEAD] = Some(tick.map_err(|error| error.of_run(&self.parts.gpu))?);
        }
        self.wait(self.ticks.last(), stops)?;
        self.last.end(step);
        Ok(())
    }

    fn read(&mut self, output: OutputId, row: usize, into: &mut [f32]) -> Result<(), RunError> {
        self.parts.alive()?;
        let Parts { plan, exchange, exchange_buffer, .. } = &self.parts;
        let place = self.last.check_read(plan, output, row, into.len())?;
        let cols = plan.value(plan.outputs()[place].1).cols;
        let at = exchange.outputs[place] + row as u64 * cols as u64 * WORD;
        // SAFETY: the last step has ended (there are no rows otherwise), so nothing writes its outputs.
        let words = unsafe { exchange_buffer.words(at, into.len() as u64) };
        let Some(words) = words else { return Err(self.parts.unmapped()) };
        for (into, &word) in into.iter_mut().zip(&*words) {
            *into = f32::from_bits(word);
        }
        Ok(())
    }

    fn read_top(&mut self, row: usize, into: &mut [(u32, f32)]) -> Result<(), RunError> {
        let Parts { plan, exchange, exchange_buffer, .. } = &self.parts;
        self.last.check_read_top(plan, row, into.len())?;
        let row_words = Tops::of(plan).map_or(0, Tops::row_words);
        let at = exchange.tops + row as u64 * row_words * WORD;
        // SAFETY: as for `read`.
        let Some(words) = (unsafe { exchange_buffer.words(at, row_words) }) else { return Err(self.parts.unmapped()) };
        for (into, &[id, logit]) in into.iter_mut().zip(words.as_chunks().0) {
            *into = (id, f32::from_bits(logit));
        }
        Ok(())
    }

    fn settle(&mut self, stop: &Stop) -> Result<(), RunError> {
        if self.ticks.settle_before(Some(stop)).map_err(|error| error.of_run(&self.parts.gpu))? {
            return Ok(());
        }
        stop.check().map_err(RunError::from)
    }
}

impl Drop for VulkanExec {
    fn drop(&mut self) {
        // A step that was stopped may still run. Whatever comes of it, what it uses may go afterwards, or is leaked with
        // the device.
        let _: Result<(), GpuError> = self.ticks.settle();
    }
}

impl Parts {
    /// The buffers of a dispatch.
    fn operands(&self, sets: &Sets, dispatch: &Dispatch) -> Result<vk::DescriptorSet, GpuError> {
        let bound: Vec<Bound<'_>> = dispatch
            .bound(self.gpu.limits.align)
            .map(|(Region { buffer, offset, bytes }, _)| Bound {
                buffer: &self.buffers[buffer],
                offset,
                bytes,
                uniform: false,
            })
            .collect();
        let layout = self.pipelines.operand_layout(dispatch.kernel.bindings());
        // SAFETY: a dispatch has as many operands as its kernel has bindings; `self` holds the buffers.
        unsafe { sets.set(layout, &bound) }
    }

    /// What kernels see of a slot: its bounds, and its bounds and inputs.
    fn step_sets(&self, sets: &Sets, slot: usize) -> Result<[vk::DescriptorSet; 2], GpuError> {
        let buffer = &*self.exchange_buffer;
        let bounds = Bound { buffer, offset: self.exchange.bounds(slot), bytes: BOUNDS_BYTES, uniform: true };
        let (offset, bytes) = self.exchange.inputs(slot);
        let inputs = Bound { buffer, offset, bytes, uniform: false };
        // SAFETY: bindings as the layouts have them; `self` holds the buffer.
        unsafe {
            let plain = sets.set(self.pipelines.step_layout(false), &[bounds])?;
            Ok([plain, sets.set(self.pipelines.step_layout(true), &[bounds, inputs])?])
        }
    }

    /// Records one submission.
    fn record(
        &self,
        commands: &mut Commands,
        slot: usize,
        many: Many,
        piece: std::ops::Range<usize>,
        step: [vk::DescriptorSet; 2],
        operands: &[vk::DescriptorSet],
    ) -> Result<vk::CommandBuffer, GpuError> {
        let mut recorded = Vec::with_capacity(piece.len());
        let mut hazards = Hazards::default();
        let align = self.gpu.limits.align;
        for at in piece.filter(|&at| self.dispatches[at].is_in(many)) {
            let dispatch = &self.dispatches[at];
            let kernel = dispatch.kernel;
            let one = Recorded {
                pipeline: self.pipelines.pipeline(kernel, dispatch.constants)?,
                step: step[usize::from(kernel.reads_inputs())],
                operands: operands[at],
                push: dispatch.push(align),
                counts: (&self.exchange_buffer, self.exchange.counts(slot) + at as u64 * COUNT_BYTES),
            };
            recorded.push((hazards.must_wait(dispatch.bound(align)), one));
        }
        let buffer = commands.buffer()?;
        // SAFETY: the command buffer is new; everything it names is held by the executable, which waits before it lets
        // go; sets were made with the layouts of the kernels they are bound to.
        unsafe {
            commands.record(buffer, |recording| {
                // What was loaded, and what the submission before wrote.
                recording.barrier();
                for (wait, one) in &recorded {
                    if *wait {
                        recording.dispatch_barrier();
                    }
                    recording.dispatch(one);
                }
                recording.host_barrier();
            })?;
        }
        Ok(buffer)
    }

    /// Whether the device is there at all.
    fn alive(&self) -> Result<(), RunError> {
        if self.gpu.is_lost() { Err(RunError::Lost { device: self.gpu.name() }) } else { Ok(()) }
    }

    fn unmapped(&self) -> RunError {
        RunError::Failed { device: self.gpu.name(), why: "the exchange memory is out of reach".to_owned() }
    }
}

/// Copies from device memory, by way of a mapped buffer's `room`.
///
/// # Safety
/// Nobody writes the source or touches the room meanwhile.
pub(crate) unsafe fn download(
    gpu: &Arc<Gpu>,
    from: (&Buffer, u64),
    room: (&Buffer, u64),
    bytes: u64,
) -> Result<Vec<u32>, GpuError> {
    let mut commands = Commands::new(gpu)?;
    let mut ticks = Ticks::new(gpu)?;
    let buffer = commands.buffer()?;
    // SAFETY: a new command buffer; the caller vouches for the ranges; all of it outlives the wait, or is leaked.
    unsafe {
        commands.record(buffer, |recording| {
            recording.barrier();
            recording.copy(from, room, bytes);
            recording.host_barrier();
        })?;
        ticks.submit(buffer)?;
    }
    ticks.settle()?;
    // SAFETY: the copy has ended; the caller vouches for the room.
    Ok(unsafe { room.0.words(room.1, bytes / WORD) }.map_or_else(Vec::new, |words| words.to_vec()))
}

/// Fills a buffer with a word.
///
/// # Safety
/// Nobody touches the buffer meanwhile.
pub(crate) unsafe fn fill(gpu: &Arc<Gpu>, buffer: &Buffer, word: u32) -> Result<(), GpuError> {
    // SAFETY: the caller's promise.
    if let Some(words) = unsafe { buffer.words(0, buffer.bytes / WORD) } {
        words.fill(word);
        return Ok(());
    }
    let mut commands = Commands::new(gpu)?;
    let mut ticks = Ticks::new(gpu)?;
    let recorded = commands.buffer()?;
    // SAFETY: a new command buffer; what it names outlives the wait, or is leaked.
    unsafe {
        commands.record(recorded, |recording| {
            recording.barrier();
            recording.fill(buffer, word);
            recording.barrier();
        })?;
        ticks.submit(recorded)?;
    }
    ticks.settle()
}
