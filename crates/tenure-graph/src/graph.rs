//! The recorder that model code runs against.

use std::cell::RefCell;
use std::collections::HashMap;

use tenure_tensor::{DType, Shape, TensorSpec};

use crate::arena;
use crate::error::PlanError;
use crate::op::{Activation, Op, RopeSpec};
use crate::plan::{Plan, Step, Value};
use crate::value::{KvLayer, KvLayerId, OutputId, Rows, StepShape, Val, WeightCatalog, WeightId, WeightUse};
use crate::verify::verify;

/// Records a model's step.
///
/// Methods take `&self`, so that calls nest as in mathematics. The first error is kept; what follows it is recorded
/// into the void, and [`Graph::finish`] returns it.
pub struct Graph<'c> {
    catalog: &'c dyn WeightCatalog,
    shape: StepShape,
    tape: RefCell<Tape>,
}

#[derive(Default)]
struct Tape {
    weights: Vec<WeightUse>,
    by_name: HashMap<String, WeightId>,
    kv_layers: Vec<KvLayer>,
    values: Vec<Value>,
    steps: Vec<Step>,
    vocab: Option<usize>,
    input_cols: usize,
    error: Option<PlanError>,
}

impl<'c> Graph<'c> {
    /// A recording of steps up to `shape` over the tensors of `catalog`.
    pub fn new(catalog: &'c dyn WeightCatalog, shape: StepShape) -> Self {
        let graph = Graph { catalog, shape, tape: RefCell::default() };
        for (what, rows) in [("rows", shape.rows), ("outs", shape.outs), ("context", shape.context)] {
            if rows == 0 || rows > u32::MAX as usize {
                graph.fail(PlanError::BadParameter { op: "step", what, value: rows.to_string() });
            }
        }
        graph
    }

    /// Whether the file has a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.catalog.find(name).is_some()
    }

    /// A matrix to multiply with, `[n, k]`.
    pub fn matrix(&self, name: &str, n: usize, k: usize) -> WeightId {
        self.weight(name, Shape::from([n, k]), |weight| weight.as_matrix = true)
    }

    /// A table whose rows are looked up, `[rows, cols]`.
    pub fn table(&self, name: &str, rows: usize, cols: usize) -> WeightId {
        self.weight(name, Shape::from([rows, cols]), |weight| weight.as_table = true)
    }

    /// A vector of `len` plain numbers: norm weight, bias, rope factors.
    pub fn vector(&self, name: &str, len: usize) -> WeightId {
        self.weight(name, Shape::from([len]), |_| {})
    }

    /// [`Graph::vector`] if the file has it.
    pub fn vector_opt(&self, name: &str, len: usize) -> Option<WeightId> {
        self.has(name).then(|| self.vector(name, len))
    }

    /// [`Op::Input`]; a plan has one at most.
    pub fn input(&self, cols: usize) -> Val {
        self.demand(self.tape.borrow().input_cols == 0, || bad("input", "number", 2));
        self.tape.borrow_mut().input_cols = cols;
        self.push(Op::Input, Rows::Step, cols)
    }

    /// [`Op::Embed`].
    pub fn embed(&self, table: WeightId, scale: f32) -> Val {
        let (vocab, cols) = self.matrix_shape(table);
        self.tape.borrow_mut().vocab = Some(vocab);
        self.push(Op::Embed { table, scale }, Rows::Step, cols)
    }

    /// [`Op::RmsNorm`] over groups as long as `weight`.
    pub fn rms_norm(&self, x: Val, weight: WeightId, eps: f32) -> Val {
        let Value { rows, cols } = self.value(x);
        let group = self.vector_len(weight);
        self.demand(group > 0 && cols.is_multiple_of(group), || mismatch("rms_norm", cols, group));
        self.demand(eps.is_finite() && eps > 0.0, || bad("rms_norm", "eps", eps));
        self.push(Op::RmsNorm { x, weight, eps, group }, rows, cols)
    }

    /// [`Op::MatMul`].
    pub fn matmul(&self, x: Val, w: WeightId, bias: Option<WeightId>) -> Val {
        let Value { rows, cols } = self.value(x);
        let (n, k) = self.matrix_shape(w);
        self.demand(cols == k, || mismatch("matmul", cols, k));
        if let Some(bias) = bias {
            let len = self.vector_len(bias);
            self.demand(len == n, || mismatch("matmul bias", len, n));
        }
        self.push(Op::MatMul { x, w, bias }, rows, n)
    }

    /// [`Op::Rope`].
    pub fn rope(&self, x: Val, head_dim: usize, rope: &RopeSpec) -> Val {
        let Value { rows, cols } = self.value(x);
        self.demand(head_dim > 0 && cols.is_multiple_of(head_dim), || mismatch("rope", cols, head_dim));
        self.demand(rope.dims > 0 && rope.dims.is_multiple_of(2) && rope.dims <= head_dim, || {
            bad("rope", "dims", rope.dims)
        });
        self.demand(rope.base.is_finite() && rope.base > 0.0, || bad("rope", "base", rope.base));
        self.demand(rope.freq_scale.is_finite() && rope.freq_scale > 0.0, || {
            bad("rope", "freq_scale", rope.freq_scale)
        });
        if let Some(factors) = rope.factors {
            let len = self.vector_len(factors);
            self.demand(len == rope.dims / 2, || mismatch("rope factors", len, rope.dims / 2));
        }
        self.demand(rows == Rows::Step, || bad("rope", "rows", "out"));
        self.push(Op::Rope { x, head_dim, rope: rope.clone() }, rows, cols)
    }

    /// A new layer of the KV cache.
    pub fn kv_layer(&self, heads: usize, head_dim: usize) -> KvLayerId {
        let mut tape = self.tape.borrow_mut();
        tape.kv_layers.push(KvLayer { heads, head_dim });
        KvLayerId(tape.kv_layers.len() as u32 - 1)
    }

    /// [`Op::KvStore`].
    pub fn kv_store(&self, k: Val, v: Val, layer: KvLayerId) {
        let KvLayer { heads, head_dim } = self.tape.borrow().kv_layers[layer.index()];
        for val in [k, v] {
            let value = self.value(val);
            self.demand(value == Value { rows: Rows::Step, cols: heads * head_dim }, || {
                mismatch("kv_store", value.cols, heads * head_dim)
            });
        }
        self.tape.borrow_mut().steps.push(Step { op: Op::KvStore { k, v, layer }, out: None });
    }

    /// [`Op::Attention`].
    pub fn attention(
        &self,
        q: Val,
        layer: KvLayerId,
        heads: usize,
        scale: f32,
        window: Option<usize>,
        softcap: Option<f32>,
    ) -> Val {
        let kv = self.tape.borrow().kv_layers[layer.index()];
        let Value { rows, cols } = self.value(q);
        self.demand(rows == Rows::Step && cols == heads * kv.head_dim, || {
            mismatch("attention", cols, heads * kv.head_dim)
        });
        self.demand(kv.heads > 0 && heads.is_multiple_of(kv.heads), || mismatch("attention heads", heads, kv.heads));
        self.demand(scale.is_finite() && scale > 0.0, || bad("attention", "scale", scale));
        self.demand(window != Some(0), || bad("attention", "window", 0));
        self.demand(softcap.is_none_or(|cap| cap.is_finite() && cap > 0.0), || {
            bad("attention", "softcap", "not positive")
        });
        self.push(Op::Attention { q, layer, heads, scale, window, softcap }, rows, cols)
    }

    /// [`Op::Glu`].
    pub fn glu(&self, gate: Val, up: Val, activation: Activation) -> Val {
        let Value { rows, cols } = self.same("glu", gate, up);
        self.push(Op::Glu { gate, up, activation }, rows, cols)
    }

    /// [`Op::Add`].
    pub fn add(&self, a: Val, b: Val) -> Val {
        let Value { rows, cols } = self.same("add", a, b);
        self.push(Op::Add { a, b }, rows, cols)
    }

    /// [`Op::Scale`].
    pub fn scale(&self, x: Val, factor: f32) -> Val {
        let Value { rows, cols } = self.value(x);
        self.demand(factor.is_finite(), || bad("scale", "factor", factor));
        self.push(Op::Scale { x, factor }, rows, cols)
    }

    /// [`Op::Softcap`].
    pub fn softcap(&self, x: Val, cap: f32) -> Val {
        let Value { rows, cols } = self.value(x);
        self.demand(cap.is_finite() && cap > 0.0, || bad("softcap", "cap", cap));
        self.push(Op::Softcap { x, cap }, rows, cols)
    }

    /// [`Op::TakeRows`].
    pub fn take_rows(&self, x: Val) -> Val {
        let Value { rows, cols } = self.value(x);
        self.demand(rows == Rows::Step, || bad("take_rows", "rows", "out"));
        self.push(Op::TakeRows { x }, Rows::Out, cols)
    }

    /// Ends the recording: lays out the arena and proves the plan.
    ///
    /// # Errors
    /// The first error of the recording, or what [`crate::verify`] found.
    pub fn finish(self, outputs: &[(OutputId, Val)]) -> Result<Plan, PlanError> {
        let Graph { shape, tape, .. } = self;
        let Tape { weights, kv_layers, values, steps, vocab, input_cols, error, .. } = tape.into_inner();
        if let Some(error) = error {
            return Err(error);
        }
        if steps.is_empty() || outputs.is_empty() {
            return Err(PlanError::Empty);
        }
        for weight in &weights {
            check_type(weight)?;
        }
        steps.iter().try_for_each(|step| check_roles(&step.op, &weights))?;
        let mut sizes = Vec::with_capacity(values.len());
        for value in &values {
            let bytes =
                shape.capacity(value.rows).checked_mul(value.cols).and_then(|n| n.checked_mul(size_of::<f32>()));
            sizes.push(bytes.ok_or(PlanError::TooLarge)? as u64);
        }
        let kept: Vec<Val> = outputs.iter().map(|&(_, val)| val).collect();
        let (spans, arena) = arena::place(&sizes, &steps, &kept)?;
        let outputs = outputs.to_vec();
        let plan = Plan { shape, weights, kv_layers, values, spans, steps, outputs, arena, vocab, input_cols };
        verify(&plan)?;
        Ok(plan)
    }

    fn weight(&self, name: &str, want: Shape, mark: impl FnOnce(&mut WeightUse)) -> WeightId {
        let mut tape = self.tape.borrow_mut();
        let id = match tape.by_name.get(name) {
            Some(&id) => id,
            None => {
                let id = WeightId(tape.weights.len() as u32);
                let Some(spec) = self.catalog.find(name) else {
                    drop(tape);
                    self.fail(PlanError::MissingTensor { name: name.to_owned() });
                    return self.void_weight(want);
                };
                tape.weights.push(WeightUse { spec: spec.clone(), as_table: false, as_matrix: false });
                tape.by_name.insert(name.to_owned(), id);
                id
            }
        };
        let weight = &mut tape.weights[id.index()];
        mark(weight);
        let got = &weight.spec.shape;
        let fits = if want.rank() == 1 { crate::value::is_vector_of(got, want.cols()) } else { *got == want };
        if !fits {
            let error = PlanError::WrongShape { name: name.to_owned(), want, got: got.clone() };
            drop(tape);
            self.fail(error);
        }
        id
    }

    /// Stands in for a missing weight, so that recording goes on to its end.
    fn void_weight(&self, shape: Shape) -> WeightId {
        let mut tape = self.tape.borrow_mut();
        let spec = TensorSpec { name: String::new(), dtype: DType::F32, shape };
        tape.weights.push(WeightUse { spec, as_table: false, as_matrix: false });
        WeightId(tape.weights.len() as u32 - 1)
    }

    fn matrix_shape(&self, id: WeightId) -> (usize, usize) {
        let tape = self.tape.borrow();
        let shape = &tape.weights[id.index()].spec.shape;
        (shape.rows().unwrap_or(0), shape.cols())
    }

    fn vector_len(&self, id: WeightId) -> usize {
        self.tape.borrow().weights[id.index()].spec.shape.elements().unwrap_or(0)
    }

    fn value(&self, val: Val) -> Value {
        self.tape.borrow().values[val.index()]
    }

    fn same(&self, op: &'static str, a: Val, b: Val) -> Value {
        let (left, right) = (self.value(a), self.value(b));
        self.demand(left == right, || PlanError::ShapeMismatch {
            op,
            left: format!("{left:?}"),
            right: format!("{right:?}"),
        });
        left
    }

    fn push(&self, op: Op, rows: Rows, cols: usize) -> Val {
        self.demand(cols > 0, || bad(op.name(), "columns", 0));
        let mut tape = self.tape.borrow_mut();
        let val = Val(tape.values.len() as u32);
        tape.values.push(Value { rows, cols });
        tape.steps.push(Step { op, out: Some(val) });
        val
    }

    fn demand(&self, holds: bool, error: impl FnOnce() -> PlanError) {
        if !holds {
            self.fail(error());
        }
    }

    fn fail(&self, error: PlanError) {
        self.tape.borrow_mut().error.get_or_insert(error);
    }
}

/// Weights are used as they were taken: what lies in memory differs between matrices, tables and vectors.
fn check_roles(op: &Op, weights: &[WeightUse]) -> Result<(), PlanError> {
    let demand = |id: WeightId, right: fn(&WeightUse) -> bool| match &weights[id.index()] {
        weight if right(weight) => Ok(()),
        weight => Err(PlanError::BadParameter { op: op.name(), what: "weight", value: weight.spec.name.clone() }),
    };
    match op {
        Op::Embed { table, .. } => demand(*table, |weight| weight.as_table),
        Op::RmsNorm { weight, .. } => demand(*weight, WeightUse::is_vector),
        Op::MatMul { w, bias, .. } => {
            demand(*w, |weight| weight.as_matrix)?;
            bias.map_or(Ok(()), |bias| demand(bias, WeightUse::is_vector))
        }
        Op::Rope { rope, .. } => rope.factors.map_or(Ok(()), |factors| demand(factors, WeightUse::is_vector)),
        Op::Input
        | Op::KvStore { .. }
        | Op::Attention { .. }
        | Op::Glu { .. }
        | Op::Add { .. }
        | Op::Scale { .. }
        | Op::Softcap { .. }
        | Op::TakeRows { .. } => Ok(()),
    }
}

fn check_type(weight: &WeightUse) -> Result<(), PlanError> {
    let TensorSpec { name, dtype, .. } = &weight.spec;
    if !dtype.is_computable() {
        return Err(PlanError::Unsupported { name: name.clone(), dtype: *dtype });
    }
    if weight.is_vector() && dtype.is_block() {
        return Err(PlanError::WrongDtype { name: name.clone(), got: *dtype });
    }
    Ok(())
}

fn mismatch(op: &'static str, left: usize, right: usize) -> PlanError {
    PlanError::ShapeMismatch { op, left: left.to_string(), right: right.to_string() }
}

fn bad(op: &'static str, what: &'static str, value: impl ToString) -> PlanError {
    PlanError::BadParameter { op, what, value: value.to_string() }
}
