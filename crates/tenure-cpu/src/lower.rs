//! From a plan's steps to phases: runs of work that need no barrier inside.
//!
//! A *rows* phase applies several operations to each row, row by row, every member of the team having rows of its own;
//! a *matmul* phase computes several products of the same activations; an *attention* phase is one operation. Two
//! steps share a phase only when no byte one of them writes can be touched by the other through another row.

use tenure_graph::{
    Activation, Beside, Grid, Index, InputId, KvLayerId, Op, Plan, RelativeBias, RopeSpec, Rows, Slide, Span, Val,
    WeightId,
};

use crate::layout::RowForm;
use crate::simd::Isa;
use crate::simd::float::winograd;

/// What the interpreter runs between two barriers.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Each row through all operations.
    Rows {
        /// Which rows.
        rows: Rows,
        /// What is done to each.
        ops: Vec<RowOp>,
    },
    /// Products, panel by panel.
    MatMul(Vec<MatMulOp>),
    /// Attention of one layer.
    Attention(AttentionOp),
    /// A kernel slid over images, some rows and features at a time.
    Conv(ConvOp),
    /// The same for a kernel that Winograd's filtering takes, some tiles and features at a time.
    Winograd(ConvOp),
    /// Sums of groups of channels, a run of rows at a time.
    GroupSums(GroupOp),
    /// What each column of an image is multiplied with, and what is added.
    GroupFactors(GroupOp),
    /// Attention without a cache, some queries of a head at a time.
    Attend(AttendOp),
}

/// An operation on one row.
#[derive(Debug, Clone)]
pub(crate) enum RowOp {
    /// Cosines and sines of the row's position, for one kind of rope.
    RopeTable {
        table: usize,
    },
    Input {
        id: InputId,
        out: Val,
    },
    Embed {
        table: WeightId,
        by: Index,
        scale: f32,
        out: Val,
    },
    RmsNorm {
        x: Val,
        weight: WeightId,
        eps: f32,
        group: usize,
        out: Val,
    },
    LayerNorm {
        x: Val,
        weight: Option<WeightId>,
        bias: Option<WeightId>,
        eps: f32,
        out: Val,
    },
    /// By what [`Phase::GroupFactors`] found.
    GroupNorm {
        x: Val,
        pixels: usize,
        out: Val,
    },
    Upsample {
        x: Val,
        grid: Grid,
        to: Grid,
        out: Val,
    },
    Activate {
        x: Val,
        activation: Activation,
        out: Val,
    },
    GluHalves {
        x: Val,
        activation: Activation,
        out: Val,
    },
    Concat {
        a: Val,
        b: Val,
        out: Val,
    },
    AddRow {
        x: Val,
        row: Val,
        every: usize,
        out: Val,
    },
    Modulate {
        x: Val,
        by: Val,
        shift: usize,
        scale: usize,
        every: usize,
        out: Val,
    },
    AddGated {
        x: Val,
        y: Val,
        by: Val,
        gate: usize,
        every: usize,
        out: Val,
    },
    AddCentre {
        x: Val,
        table: WeightId,
        side: u32,
        grid: Grid,
        out: Val,
    },
    Unpatch {
        x: Val,
        grid: Grid,
        size: u32,
        out: Val,
    },
    Rope {
        x: Val,
        head_dim: usize,
        table: usize,
        out: Val,
    },
    KvStore {
        k: Val,
        v: Val,
        layer: KvLayerId,
    },
    /// Joins the partial results of a split attention.
    MergeAttention {
        op: AttentionOp,
    },
    Glu {
        gate: Val,
        up: Val,
        activation: Activation,
        out: Val,
    },
    Add {
        a: Val,
        b: Val,
        out: Val,
    },
    Scale {
        x: Val,
        factor: f32,
        out: Val,
    },
    Softcap {
        x: Val,
        cap: f32,
        out: Val,
    },
    TakeRows {
        x: Val,
        out: Val,
    },
    /// Brings a row into the form that the products that follow take.
    Form {
        x: Val,
        form: RowForm,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct MatMulOp {
    pub(crate) x: Val,
    pub(crate) w: WeightId,
    pub(crate) bias: Option<WeightId>,
    /// In which `x` is multiplied.
    pub(crate) form: RowForm,
    pub(crate) rows: Rows,
    pub(crate) out: Val,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ConvOp {
    pub(crate) x: Val,
    pub(crate) w: WeightId,
    pub(crate) bias: Option<WeightId>,
    pub(crate) slide: Slide,
    pub(crate) out: Val,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupOp {
    pub(crate) x: Val,
    pub(crate) weight: WeightId,
    pub(crate) bias: WeightId,
    pub(crate) groups: usize,
    pub(crate) eps: f32,
    pub(crate) pixels: usize,
    pub(crate) images: usize,
}

/// Rows whose groups are summed up together.
pub(crate) const STAT_ROWS: usize = 64;

impl GroupOp {
    /// Runs of rows of one image.
    pub(crate) fn runs(&self) -> usize {
        self.pixels.div_ceil(STAT_ROWS)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct AttendOp {
    pub(crate) q: Val,
    pub(crate) k: Val,
    pub(crate) v: Val,
    pub(crate) beside: Option<Beside>,
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) causal: bool,
    pub(crate) bias: Option<RelativeBias>,
    pub(crate) sequences: usize,
    pub(crate) out: Val,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionOp {
    pub(crate) q: Val,
    pub(crate) layer: KvLayerId,
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
    pub(crate) softcap: Option<f32>,
    pub(crate) out: Val,
}

/// A plan, lowered.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub(crate) phases: Vec<Phase>,
    /// The distinct ropes of the plan.
    pub(crate) ropes: Vec<RopeSpec>,
    /// Bytes of the most rows that are in another form at a time.
    pub(crate) formed_bytes: usize,
}

/// Lowers `plan` for kernels of an instruction set.
pub(crate) fn lower(plan: &Plan, isa: Isa) -> Lowered {
    let mut lowering = Lowering {
        plan,
        isa,
        done: Lowered { phases: Vec::new(), ropes: Vec::new(), formed_bytes: 0 },
        touched: Vec::new(),
        formed: None,
    };
    for step in plan.steps() {
        if let Op::Rope { rope, .. } = &step.op
            && !lowering.done.ropes.contains(rope)
        {
            lowering.done.ropes.push(rope.clone());
        }
    }
    for table in 0..lowering.done.ropes.len() {
        lowering.row_op(Rows::Step, RowOp::RopeTable { table }, &[], &[]);
    }
    for step in plan.steps() {
        lowering.step(&step.op, step.out);
    }
    lowering.done
}

/// The buffer of rows in another form, as if it lay behind the arena.
const FORMED: Touch = Touch { span: Span { offset: 1 << 62, bytes: 1 << 32 }, stride: 0 };

/// Bytes a step reads or writes, and how far its rows are apart; 0: not row by row.
#[derive(Clone, Copy, PartialEq)]
struct Touch {
    span: Span,
    stride: usize,
}

struct Touched {
    reads: Vec<Touch>,
    writes: Vec<Touch>,
}

struct Lowering<'p> {
    plan: &'p Plan,
    isa: Isa,
    done: Lowered,
    /// What the steps of the last phase touch.
    touched: Vec<Touched>,
    /// Whose rows the buffer of rows in another form holds.
    formed: Option<(Val, RowForm)>,
}

impl Lowering<'_> {
    fn step(&mut self, op: &Op, out: Option<Val>) {
        match (op, out) {
            (&Op::Input { id }, Some(out)) => self.row_op(self.rows(out), RowOp::Input { id, out }, &[], &[out]),
            (&Op::Embed { table, by, scale }, Some(out)) => {
                self.row_op(Rows::Step, RowOp::Embed { table, by, scale, out }, &[], &[out]);
            }
            (&Op::RmsNorm { x, weight, eps, group }, Some(out)) => {
                self.row_op(self.rows(out), RowOp::RmsNorm { x, weight, eps, group, out }, &[x], &[out]);
            }
            (Op::Rope { x, head_dim, rope }, Some(out)) => {
                let table = self.done.ropes.iter().position(|known| known == rope).unwrap_or(0);
                let op = RowOp::Rope { x: *x, head_dim: *head_dim, table, out };
                self.row_op(self.rows(out), op, &[*x], &[out]);
            }
            (&Op::KvStore { k, v, layer }, _) => {
                self.row_op(Rows::Step, RowOp::KvStore { k, v, layer }, &[k, v], &[]);
            }
            (&Op::Glu { gate, up, activation }, Some(out)) => {
                self.row_op(self.rows(out), RowOp::Glu { gate, up, activation, out }, &[gate, up], &[out]);
            }
            (&Op::Add { a, b }, Some(out)) => {
                self.row_op(self.rows(out), RowOp::Add { a, b, out }, &[a, b], &[out]);
            }
            (&Op::Scale { x, factor }, Some(out)) => {
                self.row_op(self.rows(out), RowOp::Scale { x, factor, out }, &[x], &[out]);
            }
            (&Op::Softcap { x, cap }, Some(out)) => {
                self.row_op(self.rows(out), RowOp::Softcap { x, cap, out }, &[x], &[out]);
            }
            (&Op::TakeRows { x }, Some(out)) => {
                // It reads rows of other members, so what it reads is not row by row.
                let reads = vec![Touch { stride: 0, ..self.touch(x) }];
                let writes = vec![self.touch(out)];
                self.rows_phase(Rows::Out, RowOp::TakeRows { x, out }, Touched { reads, writes });
            }
            (&Op::LayerNorm { x, weight, bias, eps }, Some(out)) => {
                self.row_op(self.rows(out), RowOp::LayerNorm { x, weight, bias, eps, out }, &[x], &[out]);
            }
            (&Op::GroupNorm { x, weight, bias, groups, eps, pixels }, Some(out)) => {
                let images = self.plan.shape().capacity(self.rows(x)) / pixels;
                let op = GroupOp { x, weight, bias, groups, eps, pixels, images };
                self.open(Phase::GroupSums(op));
                self.open(Phase::GroupFactors(op));
                self.open(Phase::Rows { rows: self.rows(out), ops: Vec::new() });
                self.row_op(self.rows(out), RowOp::GroupNorm { x, pixels, out }, &[x], &[out]);
            }
            (&Op::Conv2d { x, w, bias, slide }, Some(out)) => {
                let op = ConvOp { x, w, bias, slide, out };
                let taken = winograd::takes(&slide, self.plan.value(x).cols, self.plan.value(out).cols);
                self.open(if taken { Phase::Winograd(op) } else { Phase::Conv(op) });
            }
            (&Op::Attend { q, k, v, beside, heads, scale, queries, keys, causal, bias }, Some(out)) => {
                let sequences = self.plan.shape().capacity(self.rows(q)) / queries;
                let op = AttendOp { q, k, v, beside, heads, scale, queries, keys, causal, bias, sequences, out };
                self.open(Phase::Attend(op));
            }
            (&Op::Upsample { x, grid, to }, Some(out)) => {
                let touched =
                    Touched { reads: vec![Touch { stride: 0, ..self.touch(x) }], writes: vec![self.touch(out)] };
                self.rows_phase(self.rows(out), RowOp::Upsample { x, grid, to, out }, touched);
            }
            (&Op::Activate { x, activation }, Some(out)) => {
                self.row_op(self.rows(out), RowOp::Activate { x, activation, out }, &[x], &[out]);
            }
            (&Op::GluHalves { x, activation }, Some(out)) => {
                self.row_op(self.rows(out), RowOp::GluHalves { x, activation, out }, &[x], &[out]);
            }
            (&Op::Concat { a, b }, Some(out)) => {
                self.row_op(self.rows(out), RowOp::Concat { a, b, out }, &[a, b], &[out]);
            }
            (&Op::AddRow { x, row, every }, Some(out)) => {
                let reads = vec![self.touch(x), Touch { stride: 0, ..self.touch(row) }];
                let touched = Touched { reads, writes: vec![self.touch(out)] };
                self.rows_phase(self.rows(out), RowOp::AddRow { x, row, every, out }, touched);
            }
            (&Op::Modulate { x, by, shift, scale, every }, Some(out)) => {
                let reads = vec![self.touch(x), Touch { stride: 0, ..self.touch(by) }];
                let touched = Touched { reads, writes: vec![self.touch(out)] };
                self.rows_phase(self.rows(out), RowOp::Modulate { x, by, shift, scale, every, out }, touched);
            }
            (&Op::AddGated { x, y, by, gate, every }, Some(out)) => {
                let reads = vec![self.touch(x), self.touch(y), Touch { stride: 0, ..self.touch(by) }];
                let touched = Touched { reads, writes: vec![self.touch(out)] };
                self.rows_phase(self.rows(out), RowOp::AddGated { x, y, by, gate, every, out }, touched);
            }
            (&Op::AddCentre { x, table, side, grid }, Some(out)) => {
                self.row_op(self.rows(out), RowOp::AddCentre { x, table, side, grid, out }, &[x], &[out]);
            }
            (&Op::Unpatch { x, grid, size }, Some(out)) => {
                let touched =
                    Touched { reads: vec![Touch { stride: 0, ..self.touch(x) }], writes: vec![self.touch(out)] };
                self.rows_phase(self.rows(out), RowOp::Unpatch { x, grid, size, out }, touched);
            }
            (&Op::MatMul { x, w, bias }, Some(out)) => {
                let (rows, form) = (self.rows(out), RowForm::of(self.isa, self.plan.weight(w)));
                let op = MatMulOp { x, w, bias, form, rows, out };
                let read = if form == RowForm::Floats { self.touch(x) } else { self.form(x, form) };
                self.matmul(op, Touched { reads: vec![read], writes: vec![Touch { stride: 0, ..self.touch(out) }] });
            }
            (&Op::Attention { q, layer, heads, scale, window, softcap }, Some(out)) => {
                let op = AttentionOp { q, layer, heads, scale, window, softcap, out };
                self.open(Phase::Attention(op));
                self.open(Phase::Rows { rows: Rows::Step, ops: Vec::new() });
                self.row_op(Rows::Step, RowOp::MergeAttention { op }, &[], &[out]);
            }
            // The builder gives every operation but `KvStore` a result.
            (
                Op::Input { .. }
                | Op::LayerNorm { .. }
                | Op::GroupNorm { .. }
                | Op::Conv2d { .. }
                | Op::Upsample { .. }
                | Op::Attend { .. }
                | Op::Activate { .. }
                | Op::GluHalves { .. }
                | Op::Concat { .. }
                | Op::AddRow { .. }
                | Op::Modulate { .. }
                | Op::AddGated { .. }
                | Op::AddCentre { .. }
                | Op::Unpatch { .. }
                | Op::Embed { .. }
                | Op::RmsNorm { .. }
                | Op::Rope { .. }
                | Op::Glu { .. }
                | Op::Add { .. }
                | Op::Scale { .. }
                | Op::Softcap { .. }
                | Op::TakeRows { .. }
                | Op::MatMul { .. }
                | Op::Attention { .. },
                None,
            ) => {}
        }
    }

    /// Brings rows into another form where they are not; where that is.
    fn form(&mut self, x: Val, form: RowForm) -> Touch {
        if self.formed != Some((x, form)) {
            self.formed = Some((x, form));
            let value = self.plan.value(x);
            let bytes = form.bytes(self.plan.shape().capacity(value.rows), value.cols);
            self.done.formed_bytes = self.done.formed_bytes.max(bytes);
            let (reads, writes) = (vec![self.touch(x)], vec![Touch { stride: form.bytes(1, value.cols), ..FORMED }]);
            self.rows_phase(value.rows, RowOp::Form { x, form }, Touched { reads, writes });
        }
        FORMED
    }

    fn row_op(&mut self, rows: Rows, op: RowOp, reads: &[Val], writes: &[Val]) {
        let touched = Touched {
            reads: reads.iter().map(|&v| self.touch(v)).collect(),
            writes: writes.iter().map(|&v| self.touch(v)).collect(),
        };
        self.rows_phase(rows, op, touched);
    }

    fn rows_phase(&mut self, rows: Rows, op: RowOp, touched: Touched) {
        let joins = matches!(self.done.phases.last(), Some(Phase::Rows { rows: open, .. }) if *open == rows)
            && self.touched.iter().all(|earlier| earlier.may_share_rows(&touched));
        if !joins {
            self.open(Phase::Rows { rows, ops: Vec::new() });
        }
        if let Some(Phase::Rows { ops, .. }) = self.done.phases.last_mut() {
            ops.push(op);
            self.touched.push(touched);
        }
    }

    fn matmul(&mut self, op: MatMulOp, touched: Touched) {
        let joins = matches!(self.done.phases.last(), Some(Phase::MatMul(_)))
            && self.touched.iter().all(|earlier| earlier.is_apart_from(&touched));
        if !joins {
            self.open(Phase::MatMul(Vec::new()));
        }
        if let Some(Phase::MatMul(ops)) = self.done.phases.last_mut() {
            ops.push(op);
            self.touched.push(touched);
        }
    }

    fn open(&mut self, phase: Phase) {
        self.done.phases.push(phase);
        self.touched.clear();
    }

    fn rows(&self, val: Val) -> Rows {
        self.plan.value(val).rows
    }

    fn touch(&self, val: Val) -> Touch {
        Touch { span: self.plan.span(val), stride: self.plan.value(val).cols }
    }
}

impl Touch {
    /// Whether row `i` of one touches bytes of row `j` of the other only when `i == j`.
    fn same_rows(self, other: Touch) -> bool {
        !self.span.overlaps(other.span)
            || (self.span.offset == other.span.offset && self.stride == other.stride && self.stride != 0)
    }
}

impl Touched {
    fn may_share_rows(&self, later: &Touched) -> bool {
        let all = |a: &[Touch], b: &[Touch]| a.iter().all(|x| b.iter().all(|y| x.same_rows(*y)));
        all(&self.writes, &later.reads) && all(&self.writes, &later.writes) && all(&self.reads, &later.writes)
    }

    fn is_apart_from(&self, later: &Touched) -> bool {
        let all = |a: &[Touch], b: &[Touch]| a.iter().all(|x| b.iter().all(|y| !x.span.overlaps(y.span)));
        all(&self.writes, &later.reads) && all(&self.writes, &later.writes) && all(&self.reads, &later.writes)
    }
}
