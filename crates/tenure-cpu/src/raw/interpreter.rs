//! Runs a lowered plan over raw memory.
//!
//! It turns the plan's spans into slices. What makes that sound:
//! the verifier proved that steps read only what they wrote, the lowering put steps that could touch each other's
//! rows into different phases, barriers divide the phases, and [`Interpreter::run`] checks every run-time index
//! (token, position, block, row) against the memory before anything starts.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use bytemuck::Pod;
use tenure_device::{Exec, LastStep, Lease, RunError, StepInputs, Stop, check_all};
use tenure_graph::{Index, KV_BLOCK, KvType, OutputId, Plan, RopeAngles, Val, WeightId, centre};

use crate::layout::{RowForm, Scratch};
use crate::lower::{Lowered, MatMulOp, Phase, RowOp};
use crate::raw::claims::Claims;
use crate::raw::team::{Broken, Member, Team};
use crate::raw::weight::Weight;
use crate::simd::attention::CHUNK;
use crate::simd::float::Out;
use crate::simd::{Isa, float, panels};
use crate::top::top;

use image::{attend_units, unpatched};

mod attention;
mod image;

/// A plan bound to memory.
pub(crate) struct Interpreter {
    pub(crate) team: Arc<Team>,
    pub(crate) isa: Isa,
    /// For each weight that is multiplied in words, exponents of all rows.
    pub(crate) exponents: Vec<Vec<AtomicU8>>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) lowered: Lowered,
    pub(crate) ropes: Vec<RopeAngles>,
    pub(crate) weights: Vec<Weight>,
    pub(crate) arena: Base,
    pub(crate) scratch_base: Base,
    pub(crate) scratch: Scratch,
    pub(crate) kv: Kv,
    /// What lies around images: as many as the most channels.
    pub(crate) zeros: Vec<f32>,
    /// What is left to be claimed of a phase, and what there will be to claim of the next.
    pub(crate) claims: [Claims; 2],
    /// Room for the check that no two rows write one position.
    pub(crate) written: Vec<u64>,
    /// What may be read.
    pub(crate) last: LastStep,
    /// Keeps the memory alive; see [`tenure_device::Program`], which holds the leases as well.
    pub(crate) _held: Vec<Lease>,
}

/// The start of a segment.
#[derive(Clone, Copy)]
pub(crate) struct Base(pub(crate) *mut u8);

// SAFETY: the pointer is into a lease that the interpreter holds; access is coordinated by phases and barriers.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

/// The KV cache.
pub(crate) struct Kv {
    pub(crate) base: Base,
    pub(crate) kv: KvType,
    pub(crate) blocks: usize,
    /// Offset of each layer's first block, and the size of one block of it.
    pub(crate) layers: Vec<(usize, usize)>,
}

/// What varies from step to step, as every member sees it.
struct Run<'r> {
    me: &'r Interpreter,
    step: &'r StepInputs<'r>,
    stops: &'r [Stop],
    /// Chunks of one row's positions are given out separately.
    split: bool,
    /// The phase after which the members stop, if they do.
    halt_after: AtomicUsize,
}

impl Exec for Interpreter {
    fn run(&mut self, step: &StepInputs<'_>, stops: &[Stop]) -> Result<(), RunError> {
        self.last.begin();
        step.check(&self.plan, self.kv.blocks, &mut self.written)?;
        let longest = step.positions.iter().max().map_or(0, |&p| p as usize + 1);
        let run = Run {
            split: step.tokens.len() <= self.scratch.split_rows && longest > CHUNK,
            halt_after: AtomicUsize::new(usize::MAX),
            me: self,
            step,
            stops,
        };
        (0..self.team.count()).for_each(|member| run.share(0, member));
        let halted = self.team.run(&|member| {
            // A member that panicked breaks the region for all; the team reports it.
            let _: Result<(), Broken> = run.phases(member);
        });
        let stopped = run.halt_after.load(Ordering::Relaxed) != usize::MAX;
        match halted {
            Err(Broken) => Err(RunError::Failed { device: "cpu".to_owned(), why: "a kernel panicked".to_owned() }),
            // The flag was set because the stop was due, so the check fails; if the clock disagrees, it was due anyway.
            Ok(()) if stopped => Err(check_all(stops).err().unwrap_or(tenure_device::Stopped::Cancelled).into()),
            Ok(()) => {
                self.last.end(step);
                Ok(())
            }
        }
    }

    fn read(&mut self, output: OutputId, row: usize, into: &mut [f32]) -> Result<(), RunError> {
        let place = self.last.check_read(&self.plan, output, row, into.len())?;
        let (_, val) = self.plan.outputs()[place];
        let cols = self.plan.value(val).cols;
        for (at, into) in into.chunks_exact_mut(cols).enumerate() {
            // SAFETY: no step runs (`&mut self`), and the row is below the capacity of its value.
            into.copy_from_slice(unsafe { self.row(val, row + at) });
        }
        Ok(())
    }

    fn read_top(&mut self, row: usize, into: &mut [(u32, f32)]) -> Result<(), RunError> {
        let place = self.last.check_read_top(&self.plan, row, into.len())?;
        let (_, val) = self.plan.outputs()[place];
        // SAFETY: as for `read`.
        top(unsafe { self.row(val, row) }, into);
        Ok(())
    }

    fn settle(&mut self, _: &Stop) -> Result<(), RunError> {
        // A step that is stopped has ended when it returns.
        Ok(())
    }
}

impl Interpreter {
    fn value(&self, val: Val) -> (*mut f32, usize) {
        let (span, value) = (self.plan.span(val), self.plan.value(val));
        // SAFETY: the span lies inside the arena (verified when the plan was made, compared with the lease at bind).
        (unsafe { self.arena.0.add(span.offset as usize) }.cast(), value.cols)
    }

    /// # Safety
    /// `row` is below the capacity of the value's rows, and no member writes the row meanwhile.
    unsafe fn row(&self, val: Val, row: usize) -> &[f32] {
        let (base, cols) = self.value(val);
        // SAFETY: the row lies inside the value's span, which is aligned to 64 bytes; the caller upholds the rest.
        unsafe { std::slice::from_raw_parts(base.add(row * cols), cols) }
    }

    /// # Safety
    /// `row` is below the capacity of the value's rows, and only the caller touches the row meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row_mut(&self, val: Val, row: usize) -> &mut [f32] {
        let (base, cols) = self.value(val);
        // SAFETY: as for `row`.
        unsafe { std::slice::from_raw_parts_mut(base.add(row * cols), cols) }
    }

    /// Parts of a product that are claimed separately: panels, or as many plain rows.
    fn units(&self, op: &MatMulOp) -> usize {
        self.weight(op.w).rows().div_ceil(panels::ROWS)
    }

    fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.index()]
    }

    fn vector(&self, id: WeightId) -> &[f32] {
        self.weight(id).vector()
    }
}

impl Run<'_> {
    fn phases(&self, member: Member<'_>) -> Result<(), Broken> {
        let me = self.me;
        let count = self.step.rows();
        for (at, phase) in me.lowered.phases.iter().enumerate() {
            // The other claims are used by nobody before the barrier.
            self.share(at + 1, member.index);
            match phase {
                Phase::Rows { rows, ops } => self.rows(ops, member.share(count.of(*rows))),
                Phase::MatMul(ops) => self.matmuls(ops, member, &me.claims[at % 2]),
                Phase::Attention(op) => self.attention(op, member, &me.claims[at % 2]),
                Phase::Conv(op) => self.conv(op, member, &me.claims[at % 2]),
                Phase::Winograd(op) => self.winograd(op, member, &me.claims[at % 2]),
                Phase::GroupSums(op) => self.group_sums(op, member, &me.claims[at % 2]),
                Phase::GroupFactors(op) => self.group_factors(op, member.share(op.images)),
                Phase::Attend(op) => self.attend(op, member, &me.claims[at % 2]),
            }
            // One member looks, and all hear of it at the barrier. A single row's phases are microseconds.
            if member.index == 0 && (count.step > 1 || at.is_multiple_of(16)) && check_all(self.stops).is_err() {
                self.halt_after.store(at, Ordering::Relaxed);
            }
            member.barrier()?;
            if self.halt_after.load(Ordering::Relaxed) <= at {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Gives a member its run of a phase's units.
    fn share(&self, phase: usize, member: usize) {
        let units = match self.me.lowered.phases.get(phase) {
            Some(Phase::MatMul(ops)) => self.matmul_units(ops),
            Some(Phase::Attention(op)) => self.attention_units(op),
            Some(Phase::Conv(op)) => self.conv_units(op),
            Some(Phase::Winograd(op)) => self.winograd_parts(op).count(),
            Some(Phase::GroupSums(op)) => op.images * op.runs(),
            Some(Phase::Attend(op)) => attend_units(op),
            Some(Phase::Rows { .. } | Phase::GroupFactors(_)) | None => return,
        };
        self.me.claims[phase % 2].share(member, units);
    }

    fn rows(&self, ops: &[RowOp], rows: Range<usize>) {
        for row in rows {
            for op in ops {
                // SAFETY: rows are shared out disjointly, and the lowering put into one phase only operations that
                // touch nothing of other rows that another of them writes.
                unsafe { self.row_op(op, row) };
            }
        }
    }

    /// # Safety
    /// Only the caller touches this row's values during the phase.
    unsafe fn row_op(&self, op: &RowOp, row: usize) {
        let me = self.me;
        let isa = me.isa;
        // SAFETY: `row` is below the step's rows, which are below the capacity; the caller upholds exclusiveness.
        let read = |val| unsafe { me.row(val, row) };
        // SAFETY: as above. A result that shares its input's memory is written in place.
        let write = |val| unsafe { me.row_mut(val, row) };
        let in_place = |x: Val, out: Val| {
            if me.plan.span(x) != me.plan.span(out) {
                write(out).copy_from_slice(read(x));
            }
            write(out)
        };
        match *op {
            RowOp::RopeTable { table } => {
                let angles = &me.ropes[table];
                float::rope_table(
                    self.step.positions[row],
                    &angles.per_position,
                    angles.magnitude,
                    me.rope_table(table, row),
                );
            }
            RowOp::Input { id, out } => {
                let out = write(out);
                let cols = out.len();
                out.copy_from_slice(&self.step.given(id)[row * cols..(row + 1) * cols]);
            }
            RowOp::Embed { table, by, scale, out } => {
                let out = write(out);
                let index = match by {
                    Index::Token => self.step.tokens[row],
                    Index::Position => self.step.positions[row],
                };
                me.weight(table).look_up(index as usize, out);
                if scale != 1.0 {
                    float::scale(isa, out, scale);
                }
            }
            RowOp::RmsNorm { x, weight, eps, group, out } => {
                let weight = me.vector(weight);
                for (x, out) in read(x).chunks_exact(group).zip(write(out).chunks_exact_mut(group)) {
                    float::rms_norm(isa, x, Some(weight), eps, out);
                }
            }
            RowOp::Rope { x, head_dim, table, out } => {
                let style = me.lowered.ropes[table].style;
                for head in in_place(x, out).chunks_exact_mut(head_dim) {
                    float::rope(isa, style, head, me.rope_table(table, row));
                }
            }
            RowOp::KvStore { k, v, layer } => {
                let (block, slot) = self.block_of(row);
                me.kv_store(layer.index(), block, slot, read(k), read(v));
            }
            RowOp::MergeAttention { op } => {
                if self.split {
                    self.merge(&op, row, write(op.out));
                }
            }
            RowOp::Glu { gate, up, activation, out } => float::glu(isa, activation, in_place(gate, out), read(up)),
            RowOp::Add { a, b, out } => float::add(isa, in_place(a, out), read(b)),
            RowOp::Scale { x, factor, out } => float::scale(isa, in_place(x, out), factor),
            RowOp::Softcap { x, cap, out } => float::softcap(isa, in_place(x, out), cap),
            RowOp::TakeRows { x, out } => {
                let from = self.step.outputs[row] as usize;
                // SAFETY: `from` was checked against the step's rows; the phase writes no value of all rows.
                write(out).copy_from_slice(unsafe { me.row(x, from) });
            }
            RowOp::LayerNorm { x, weight, bias, eps, out } => {
                let (weight, bias) = (weight.map(|w| me.vector(w)), bias.map(|b| me.vector(b)));
                float::layer_norm(isa, read(x), weight, bias, eps, write(out));
            }
            RowOp::GroupNorm { x, pixels, out } => {
                let (factors, terms) = me.group_row(row / pixels, read(x).len());
                let out = write(out);
                out.copy_from_slice(read(x));
                float::scale_shift(isa, out, factors, terms);
            }
            RowOp::Upsample { x, grid, to, out } => {
                let (width, image, at) = (to.width as usize, row / to.pixels(), row % to.pixels());
                let from = image * grid.pixels() + at / width / 2 * grid.width as usize + at % width / 2;
                // SAFETY: a row of the smaller grid; the phase writes nothing of it.
                write(out).copy_from_slice(unsafe { me.row(x, from) });
            }
            RowOp::Activate { x, activation, out } => float::activate(isa, activation, in_place(x, out)),
            RowOp::GluHalves { x, activation, out } => {
                let (up, gate) = read(x).split_at(me.plan.value(out).cols);
                let out = write(out);
                out.copy_from_slice(gate);
                float::glu(isa, activation, out, up);
            }
            RowOp::Concat { a, b, out } => {
                let (left, right) = (read(a), read(b));
                let out = write(out);
                out[..left.len()].copy_from_slice(left);
                out[left.len()..].copy_from_slice(right);
            }
            RowOp::AddRow { x, row: added, every, out } => {
                // SAFETY: there are as many rows as `every` divides this value's; the phase writes none of them.
                let added = unsafe { me.row(added, row / every) };
                float::add(isa, in_place(x, out), added);
            }
            RowOp::Modulate { x, by, shift, scale, every, out } => {
                let out = in_place(x, out);
                // SAFETY: as for `AddRow`.
                let by = unsafe { me.row(by, row / every) };
                let cols = out.len();
                float::modulate(isa, out, &by[scale * cols..][..cols], &by[shift * cols..][..cols]);
            }
            RowOp::AddGated { x, y, by, gate, every, out } => {
                let out = in_place(x, out);
                // SAFETY: as for `AddRow`.
                let by = unsafe { me.row(by, row / every) };
                float::add_gated(isa, out, read(y), &by[gate * out.len()..][..out.len()]);
            }
            RowOp::AddCentre { x, table, side, grid, out } => {
                let out = write(out);
                me.weight(table).look_up(centre(side, grid, row % grid.pixels()), out);
                float::add(isa, out, read(x));
            }
            RowOp::Unpatch { x, grid, size, out } => {
                let (out, size) = (write(out), size as usize);
                let (from, run) = unpatched(grid, size, row);
                // SAFETY: a row of the smaller grid; the phase writes nothing of it.
                let x = unsafe { me.row(x, from) };
                out.copy_from_slice(&x[run * out.len()..][..out.len()]);
            }
            RowOp::Form { x, form } => {
                let x = read(x);
                // SAFETY: a row in its form, which this member alone has.
                unsafe {
                    match form {
                        RowForm::Floats => {}
                        RowForm::Blocks => panels::quantize(isa, x, me.formed(row, x.len() / panels::BLOCK)),
                        RowForm::Words => float::to_words(isa, x, me.formed(row, float::lines_of(x.len()))),
                    }
                }
            }
        }
    }
}

/// Units of products that a member claims at a time: few enough to share the end of a product evenly.
fn claim_size(units: usize, members: usize) -> usize {
    (units / (members * 16)).clamp(1, 16)
}

/// Rows from which on a product's are divided into runs, and the most rows of a run: what is multiplied stays in a cache
/// while all weights pass.
const MANY_ROWS: usize = 512;
const RUN_ROWS: usize = 192;

impl Run<'_> {
    /// Runs that the rows of products are divided into.
    fn row_runs(&self, ops: &[MatMulOp]) -> usize {
        let rows = self.most_rows(ops);
        if rows > MANY_ROWS { rows.div_ceil(RUN_ROWS) } else { 1 }
    }

    fn most_rows(&self, ops: &[MatMulOp]) -> usize {
        ops.iter().map(|op| self.step.rows().of(op.rows)).max().unwrap_or(0)
    }

    /// Parts of products that are claimed separately: the panels of all, for each run of rows.
    fn matmul_units(&self, ops: &[MatMulOp]) -> usize {
        self.row_runs(ops) * ops.iter().map(|op| self.me.units(op)).sum::<usize>()
    }

    fn matmuls(&self, ops: &[MatMulOp], member: Member<'_>, claims: &Claims) {
        let (total, runs) = (self.matmul_units(ops), self.row_runs(ops));
        let run_rows = self.most_rows(ops).div_ceil(runs);
        // Several rows pass faster through panels that are taken together.
        let whole = if run_rows > 1 { panels::TOGETHER } else { 1 };
        let most = claim_size(total, member.count).next_multiple_of(whole);
        while let Some(claimed) = claims.claim(member.index, most) {
            let (mut at, mut left) = (claimed.start, claimed.len());
            while left > 0 {
                let (run, mut from) = (at / (total / runs), at % (total / runs));
                for op in ops {
                    let here = self.me.units(op);
                    if from >= here {
                        from -= here;
                        continue;
                    }
                    let count = left.min(here - from);
                    let rows = self.step.rows().of(op.rows);
                    self.panels(op, from, count, rows.min(run * run_rows)..rows.min((run + 1) * run_rows));
                    (at, left, from) = (at + count, left - count, 0);
                    if left == 0 {
                        break;
                    }
                }
            }
        }
    }

    /// Computes `count` panels of one product, for some rows of the step.
    fn panels(&self, op: &MatMulOp, first: usize, count: usize, rows: Range<usize>) {
        let me = self.me;
        if rows.is_empty() {
            return;
        }
        let weight = me.weight(op.w);
        let (cols, n) = (weight.cols(), weight.rows());
        let bytes = weight.bytes();
        let (out, stride) = me.value(op.out);
        let features = first * panels::ROWS..((first + count) * panels::ROWS).min(n);
        // SAFETY: a row and a feature of the result.
        let base = unsafe { out.add(rows.start * stride + features.start) };
        let out = Out { base, stride, features: features.len() };
        let slice = |row_bytes: usize| &bytes[features.start * row_bytes..features.end * row_bytes];
        // SAFETY: the features are this member's alone, every row has `stride` columns of room, and the rows read were
        // written in an earlier phase, in the form that the product takes.
        unsafe {
            match op.form {
                RowForm::Blocks => {
                    let panel = panels::panel_bytes(weight.dtype(), cols).unwrap_or(0);
                    let panels = &bytes[first * panel..(first + count) * panel];
                    let acts = me.formed_rows(rows.clone(), cols / panels::BLOCK);
                    panels::matmul(me.isa, weight.dtype(), panels, cols, acts, out);
                }
                RowForm::Words => {
                    let x = me.formed_rows(rows.clone(), float::lines_of(cols));
                    let exponents = &me.exponents[op.w.index()];
                    let pieces = float::exponents_of(cols);
                    let exponents = &exponents[features.start * pieces..features.end * pieces];
                    float::matmul_words(me.isa, slice(2 * cols), exponents, x, cols, out);
                }
                RowForm::Floats => {
                    let w = slice(weight.dtype().row_bytes(cols).unwrap_or(0));
                    let x = me.value(op.x).0.add(rows.start * cols);
                    let x = std::slice::from_raw_parts(x, rows.len() * cols);
                    float::matmul(me.isa, weight.dtype(), w, x, cols, out);
                }
            }
        }
        if let Some(bias) = op.bias {
            // SAFETY: the features of this member alone.
            unsafe { float::add_to_rows(me.isa, out, rows.len(), &me.vector(bias)[features]) };
        }
    }

    /// The block and the place in it that a row's position has.
    fn block_of(&self, row: usize) -> (usize, usize) {
        let position = self.step.positions[row] as usize;
        (self.table(row)[position / KV_BLOCK] as usize, position % KV_BLOCK)
    }

    /// The block table of a row's sequence.
    fn table(&self, row: usize) -> &[u32] {
        let len = self.me.plan.shape().table_len();
        let start = self.step.tables[row] as usize * len;
        &self.step.blocks[start..(start + len).min(self.step.blocks.len())]
    }
}

impl Interpreter {
    #[allow(clippy::mut_from_ref)]
    fn rope_table(&self, table: usize, row: usize) -> &mut [f32] {
        let (offset, floats) = self.scratch.ropes[table];
        // SAFETY: inside the scratch; a row's table is written in the first phase by the member that has the row, and
        // read later.
        unsafe {
            let base = self.scratch_base.0.add(offset).cast::<f32>();
            std::slice::from_raw_parts_mut(base.add(row * floats), floats)
        }
    }

    /// Rows in the form that products take, with `per_row` parts each.
    ///
    /// # Safety
    /// They were written in this form, and nobody writes them meanwhile.
    unsafe fn formed_rows<T: Pod>(&self, rows: Range<usize>, per_row: usize) -> &[T] {
        // SAFETY: inside the scratch, which has room for all rows of a step in any form; the caller's contract.
        unsafe {
            let base = self.scratch_base.0.add(self.scratch.formed).cast::<T>();
            std::slice::from_raw_parts(base.add(rows.start * per_row), rows.len() * per_row)
        }
    }

    /// Where a row's form of `per_row` parts goes.
    ///
    /// # Safety
    /// Nobody else touches it meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn formed<T: Pod>(&self, row: usize, per_row: usize) -> &mut [T] {
        // SAFETY: as for `formed_rows`.
        unsafe {
            let base = self.scratch_base.0.add(self.scratch.formed).cast::<T>();
            std::slice::from_raw_parts_mut(base.add(row * per_row), per_row)
        }
    }
}
