//! One pass over the weights for whoever has rows to compute.
//!
//! Sessions of one model run on threads of their own and share its program. A session that needs rows computed puts
//! them in the queue; the first that finds nobody running takes everything that waits into one step, runs it, and
//! hands out the results. There is no scheduler thread.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tenure_device::{
    DeviceError, Program, RunError, StepInputs, StepRows, Stop, Wanted, check_all, host_room, top_len,
};
use tenure_graph::{InputId, OutputId, StepShape, Value};

use crate::text::slots::{Slots, room};

/// The programs of a loaded model, one for each of its parts, and the queue before them.
pub(crate) struct Stepper {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Locked by whoever runs a step, and by nobody who holds the queue's lock and waits.
    engine: Mutex<StepEngine>,
    capacity: usize,
    outs: usize,
}

struct Queue {
    slots: Slots,
    waiting: Vec<Request>,
    finished: Vec<Finished>,
    /// Somebody is composing or running a step.
    running: bool,
    next_ticket: u64,
}

/// Rows of one sequence.
struct Request {
    ticket: u64,
    slot: usize,
    /// Taken from the session and given back with the result.
    buffers: Buffers,
    /// Logits of so many of the last rows.
    outs: usize,
    wanted: Wanted,
    stop: Stop,
    /// What was wrong with its rows alone.
    fault: Option<RunError>,
}

struct Finished {
    ticket: u64,
    buffers: Buffers,
    result: Result<(), RunError>,
}

/// What a session lends to a step: the tokens to compute, and room for the logits it wants.
#[derive(Default)]
pub(crate) struct Buffers {
    /// Tokens that follow those already cached.
    pub(crate) tokens: Vec<u32>,
    /// One row of logits per wanted row; none where only the largest were wanted.
    pub(crate) logits: Vec<f32>,
    /// The largest logits of each wanted row; none where whole rows were wanted.
    pub(crate) top: Vec<(u32, f32)>,
}

/// Rows of one sequence, lent to a step.
pub(crate) struct Lent<'b> {
    pub(crate) slot: usize,
    pub(crate) buffers: &'b mut Buffers,
    /// Logits of so many of the last rows.
    pub(crate) outs: usize,
    /// What of them.
    pub(crate) wanted: Wanted,
}

/// How long a waiting session sleeps before it looks at its own deadline.
const NAP: Duration = Duration::from_millis(20);

struct StepEngine {
    /// The parts of the model in their order; what one gives, the next takes.
    programs: Vec<Program>,
    /// What a part gave: a row for each of the step.
    hidden: Vec<f32>,
    batch: Vec<Request>,
    /// Those of the batch.
    stops: Vec<Stop>,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    tables: Vec<u32>,
    outputs: Vec<u32>,
    wanted: Vec<Wanted>,
    blocks: Vec<u32>,
    /// Layers whose results are checked, in order.
    checked: Vec<Checked>,
    /// Room for one row of such a result.
    row: Vec<f32>,
}

/// A layer whose results are checked.
struct Checked {
    /// Its part's program.
    program: usize,
    layer: u32,
    value: Value,
}

impl Stepper {
    /// Waits for what a stopped step left under way; says whether nothing is any more.
    pub(crate) fn settle(&mut self, stop: &Stop) -> bool {
        let engine = self.engine.get_mut().unwrap_or_else(PoisonError::into_inner);
        // What runs on a device that is gone has ended, or is leaked with it.
        engine.programs.iter_mut().all(|program| !matches!(program.settle(stop), Err(RunError::Stopped(_))))
    }

    /// `programs`: of the parts of a model, of one shape, in their order.
    pub(crate) fn new(programs: Vec<Program>, sequences: usize, shape: StepShape) -> Result<Self, DeviceError> {
        let mut checked = Vec::new();
        let mut widest = 0;
        for (program, plan) in programs.iter().map(Program::plan).enumerate() {
            widest = widest.max(plan.input(InputId::Hidden).map_or(0, |value| value.cols));
            checked.extend(plan.outputs().iter().filter_map(|&(output, val)| match output {
                OutputId::Layer(layer) => Some(Checked { program, layer, value: plan.value(val) }),
                OutputId::Logits | OutputId::Hidden | OutputId::Sample | OutputId::Context => None,
            }));
        }
        let (mut row, mut hidden) = (Vec::new(), Vec::new());
        host_room(&mut row, checked.iter().map(|checked| checked.value.cols).max().unwrap_or(0))?;
        host_room(&mut hidden, shape.rows.saturating_mul(widest))?;
        let slots = Slots::new(sequences, shape.context)?;
        let engine = StepEngine {
            batch: Vec::with_capacity(sequences),
            stops: Vec::with_capacity(sequences),
            tokens: room(shape.rows)?,
            positions: room(shape.rows)?,
            tables: room(shape.rows)?,
            outputs: room(shape.outs)?,
            wanted: room(shape.outs)?,
            blocks: room(slots.tables().len())?,
            checked,
            row,
            programs,
            hidden,
        };
        let queue = Queue {
            slots,
            waiting: Vec::with_capacity(sequences),
            finished: Vec::with_capacity(sequences),
            running: false,
            next_ticket: 0,
        };
        Ok(Stepper {
            queue: Mutex::new(queue),
            changed: Condvar::new(),
            engine: Mutex::new(engine),
            capacity: shape.rows,
            outs: shape.outs,
        })
    }

    /// Rows of the largest step.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Rows of logits of the largest step.
    pub(crate) fn outs(&self) -> usize {
        self.outs
    }

    /// Opens a sequence if one is free; otherwise says how many there are.
    pub(crate) fn open(&self) -> Option<usize> {
        self.lock().slots.open()
    }

    pub(crate) fn close(&self, slot: usize) {
        self.lock().slots.close(slot);
    }

    /// Open sequences.
    pub(crate) fn open_count(&self) -> usize {
        self.lock().slots.open_count()
    }

    /// See [`Slots::reuse`].
    pub(crate) fn reuse(&self, slot: usize, prompt: &[u32]) -> usize {
        self.lock().slots.reuse(slot, prompt)
    }

    /// Tokens cached for a sequence.
    pub(crate) fn len(&self, slot: usize) -> usize {
        self.lock().slots.tokens(slot).len()
    }

    /// See [`Slots::truncate`].
    pub(crate) fn truncate(&self, slot: usize, len: usize) {
        self.lock().slots.truncate(slot, len);
    }

    /// Computes rows of one or more sequences: for each, the tokens after those it holds, and the logits of the last
    /// `outs` of them. The rows of all must fit the step's capacity, and each its sequence's context.
    ///
    /// # Errors
    /// The first thing that went wrong; a sequence whose rows failed holds what it held before.
    pub(crate) fn run(&self, lent: &mut [Lent<'_>], stop: &Stop) -> Result<(), RunError> {
        let mut queue = self.lock();
        let first = queue.next_ticket;
        queue.next_ticket += lent.len() as u64;
        for (ticket, &mut Lent { slot, ref mut buffers, outs, wanted }) in (first..).zip(&mut *lent) {
            let buffers = std::mem::take(&mut **buffers);
            queue.waiting.push(Request { ticket, slot, buffers, outs, wanted, stop: stop.clone(), fault: None });
        }
        let mut open = lent.len();
        let mut outcome = Ok(());
        let count = lent.len();
        let own = |ticket: u64| ticket.checked_sub(first).map(|at| at as usize).filter(|&at| at < count);
        loop {
            while let Some(at) = queue.finished.iter().position(|finished| own(finished.ticket).is_some()) {
                let Finished { ticket, buffers, result } = queue.finished.swap_remove(at);
                *lent[(ticket - first) as usize].buffers = buffers;
                outcome = outcome.and(result);
                open -= 1;
            }
            if open == 0 {
                break;
            }
            if queue.running {
                // What waits can be taken back; a step that it is part of sees the stop itself, and ends.
                if let Err(stopped) = stop.check() {
                    let before = open;
                    while let Some(at) = queue.waiting.iter().position(|request| own(request.ticket).is_some()) {
                        let Request { ticket, buffers, .. } = queue.waiting.remove(at);
                        *lent[(ticket - first) as usize].buffers = buffers;
                        outcome = outcome.and(Err(stopped.into()));
                        open -= 1;
                    }
                    if open < before {
                        continue;
                    }
                }
                queue = self.changed.wait_timeout(queue, NAP).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            if !queue.waiting.iter().any(|request| own(request.ticket).is_some()) {
                let why = "the step was abandoned by the thread that ran it".to_owned();
                outcome = Err(RunError::Failed { device: "step".to_owned(), why });
                break;
            }
            queue.running = true;
            drop(queue);
            let leave = LeaveOnDrop(self);
            let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
            engine.compose(&mut self.lock(), self.capacity, self.outs);
            let result = engine.step();
            queue = self.lock();
            engine.deliver(&mut queue, result);
            drop(engine);
            queue.running = false;
            std::mem::forget(leave);
            self.changed.notify_all();
        }
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the others go on if a step unwinds.
struct LeaveOnDrop<'s>(&'s Stepper);

impl Drop for LeaveOnDrop<'_> {
    fn drop(&mut self) {
        self.0.lock().running = false;
        self.0.changed.notify_all();
    }
}

impl StepEngine {
    /// Takes requests, first come first served, while their rows fit.
    fn compose(&mut self, queue: &mut Queue, capacity: usize, outs: usize) {
        for list in [&mut self.tokens, &mut self.positions, &mut self.tables, &mut self.outputs] {
            list.clear();
        }
        self.wanted.clear();
        self.batch.clear();
        self.stops.clear();
        let mut at = 0;
        while at < queue.waiting.len() {
            let Request { slot, ref buffers, outs: own, wanted, .. } = queue.waiting[at];
            let rows = buffers.tokens.len();
            let fits = self.tokens.len() + rows <= capacity && self.outputs.len() + own <= outs;
            if !fits && !self.batch.is_empty() {
                at += 1;
                continue;
            }
            let first = queue.slots.tokens(slot).len();
            queue.slots.grow(slot, first + rows);
            self.tokens.extend_from_slice(&buffers.tokens);
            self.positions.extend((first..first + rows).map(|position| position as u32));
            self.tables.extend(std::iter::repeat_n(slot as u32, rows));
            let end = self.tokens.len() as u32;
            self.outputs.extend(end.saturating_sub(own as u32)..end);
            self.wanted.resize(self.outputs.len(), wanted);
            self.stops.push(queue.waiting[at].stop.clone());
            self.batch.push(queue.waiting.remove(at));
        }
        self.blocks.clear();
        self.blocks.extend_from_slice(queue.slots.tables());
    }

    fn step(&mut self) -> Result<(), RunError> {
        self.hidden.clear();
        for program in &mut self.programs {
            let inputs = StepInputs {
                tokens: &self.tokens,
                positions: &self.positions,
                tables: &self.tables,
                blocks: &self.blocks,
                outputs: &self.outputs,
                wanted: &self.wanted,
                given: &[(InputId::Hidden, &self.hidden)],
            };
            program.run(&inputs, &self.stops)?;
            self.hidden.clear();
            if let Some(val) = program.plan().output(OutputId::Hidden) {
                let cols = program.plan().value(val).cols;
                self.hidden.resize(self.tokens.len() * cols, 0.0);
                for (row, into) in self.hidden.chunks_exact_mut(cols).enumerate() {
                    program.read(OutputId::Hidden, row, into)?;
                }
            }
        }
        self.check_layers()?;
        let Some(program) = self.programs.last_mut() else { return Ok(()) };
        let (mut row, plan) = (0, program.plan());
        let vocab = plan.output(OutputId::Logits).map_or(0, |val| plan.value(val).cols);
        for request in &mut self.batch {
            let Buffers { logits, top, .. } = &mut request.buffers;
            match request.wanted {
                Wanted::Row => {
                    top.clear();
                    fill(logits, request.outs * vocab, 0.0)?;
                    for logits in logits.chunks_exact_mut(vocab.max(1)) {
                        program.read(OutputId::Logits, row, logits)?;
                        row += 1;
                    }
                }
                Wanted::Top(k) => {
                    logits.clear();
                    let len = top_len(k, vocab);
                    fill(top, request.outs * len, (0, 0.0))?;
                    for top in top.chunks_exact_mut(len.max(1)) {
                        program.read_top(row, top)?;
                        row += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks through what the layers gave, if that is wanted, and notes the fault of each request that has one.
    fn check_layers(&mut self) -> Result<(), RunError> {
        for &Checked { program, layer, value } in &self.checked {
            check_all(&self.stops)?;
            self.row.resize(value.cols, 0.0);
            let mut first = 0;
            for request in &mut self.batch {
                let count = StepRows { step: request.buffers.tokens.len(), out: request.outs }.of(value.rows);
                let rows = first..first + count;
                first += count;
                for row in rows {
                    if request.fault.is_some() {
                        break;
                    }
                    self.programs[program].read(OutputId::Layer(layer), row, &mut self.row)?;
                    if !self.row.iter().all(|x| x.is_finite()) {
                        request.fault = Some(RunError::NonFiniteActivation { layer: layer as usize });
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands out the results. A step that was stopped ends the requests whose stop is due; the others wait for the next.
    fn deliver(&mut self, queue: &mut Queue, result: Result<(), RunError>) {
        let stopped = matches!(result, Err(RunError::Stopped(_)));
        let mut again = 0;
        for request in self.batch.drain(..) {
            let result = match request.stop.check() {
                Ok(()) if stopped => {
                    queue.waiting.insert(again, request);
                    again += 1;
                    continue;
                }
                Err(due) if stopped => Err(due.into()),
                Ok(()) | Err(_) => result.clone(),
            };
            let Request { ticket, slot, buffers, fault, .. } = request;
            let result = result.and_then(|()| fault.map_or(Ok(()), Err));
            if result.is_ok() {
                queue.slots.commit(slot, &buffers.tokens);
            }
            queue.finished.push(Finished { ticket, buffers, result });
        }
    }
}

/// Makes room for what is read.
fn fill<T: Clone>(list: &mut Vec<T>, len: usize, with: T) -> Result<(), RunError> {
    if list.try_reserve_exact(len.saturating_sub(list.len())).is_err() {
        let why = format!("no memory for {len} logits");
        return Err(RunError::Failed { device: "host".to_owned(), why });
    }
    list.resize(len, with);
    Ok(())
}
