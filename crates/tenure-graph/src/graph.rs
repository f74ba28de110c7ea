//! The recorder that model code runs against.

use std::cell::RefCell;
use std::collections::HashMap;

use tenure_tensor::{DType, Shape, TensorSpec};

use crate::arena;
use crate::error::PlanError;
use crate::op::{Activation, Beside, Buckets, Index, Op, RelativeBias, RopeSpec, Slide};
use crate::plan::{Plan, Step, Value};
use crate::value::{
    Grid, InputId, KvLayer, KvLayerId, OutputId, Rows, StepShape, Val, WeightCatalog, WeightId, WeightUse,
};
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
    inputs: Vec<(InputId, Val)>,
    error: Option<PlanError>,
}

impl<'c> Graph<'c> {
    /// A recording of steps up to `shape` over the tensors of `catalog`.
    pub fn new(catalog: &'c dyn WeightCatalog, shape: StepShape) -> Self {
        let graph = Graph { catalog, shape, tape: RefCell::default() };
        for (what, rows) in [("rows", shape.rows), ("outs", shape.outs), ("context", shape.context)] {
            if rows > u32::MAX as usize {
                graph.fail(PlanError::BadParameter { op: "step", what, value: rows.to_string() });
            }
        }
        graph
    }

    /// Whether the file has a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.catalog.find(name).is_some()
    }

    /// The first dimension of a tensor, outermost first: the results of a matrix or kernel.
    pub fn outermost(&self, name: &str) -> Option<usize> {
        self.catalog.find(name)?.shape.dims().first().copied()
    }

    /// Columns of a value.
    pub fn cols(&self, val: Val) -> usize {
        self.value(val).cols
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

    /// So many vectors of plain numbers in one tensor, `[rows, cols]`, held as a vector is.
    pub fn vectors(&self, name: &str, rows: usize, cols: usize) -> WeightId {
        self.weight(name, Shape::from([rows, cols]), |_| {})
    }

    /// [`Graph::vector`] if the file has it.
    pub fn vector_opt(&self, name: &str, len: usize) -> Option<WeightId> {
        self.has(name).then(|| self.vector(name, len))
    }

    /// A kernel to slide over images, `[n, channels, size, size]`.
    pub fn kernel(&self, name: &str, n: usize, channels: usize, size: usize) -> WeightId {
        self.weight(name, Shape::from([n, channels, size, size]), |weight| weight.as_kernel = true)
    }

    /// [`Op::Input`]; each comes once.
    pub fn input(&self, id: InputId, rows: Rows, cols: usize) -> Val {
        let twice = self.tape.borrow().inputs.iter().any(|&(other, _)| other == id);
        self.demand(!twice, || bad("input", "number", 2));
        let val = self.push(Op::Input { id }, rows, cols);
        self.tape.borrow_mut().inputs.push((id, val));
        val
    }

    /// [`Op::Embed`] by tokens.
    pub fn embed(&self, table: WeightId, scale: f32) -> Val {
        let (vocab, cols) = self.matrix_shape(table);
        self.tape.borrow_mut().vocab = Some(vocab);
        self.push(Op::Embed { table, by: Index::Token, scale }, Rows::Step, cols)
    }

    /// [`Op::Embed`] by positions; the table has a row for each.
    pub fn embed_positions(&self, table: WeightId) -> Val {
        let (rows, cols) = self.matrix_shape(table);
        self.demand(rows >= self.shape.context, || mismatch("embed", rows, self.shape.context));
        self.push(Op::Embed { table, by: Index::Position, scale: 1.0 }, Rows::Step, cols)
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

    /// [`Op::LayerNorm`].
    pub fn layer_norm(&self, x: Val, weight: Option<WeightId>, bias: Option<WeightId>, eps: f32) -> Val {
        let Value { rows, cols } = self.value(x);
        for vector in [weight, bias].into_iter().flatten() {
            let len = self.vector_len(vector);
            self.demand(len == cols, || mismatch("layer_norm", cols, len));
        }
        self.demand(eps.is_finite() && eps > 0.0, || bad("layer_norm", "eps", eps));
        self.push(Op::LayerNorm { x, weight, bias, eps }, rows, cols)
    }

    /// [`Op::GroupNorm`] of images of so many pixels.
    pub fn group_norm(&self, x: Val, weight: WeightId, bias: WeightId, groups: usize, eps: f32, pixels: usize) -> Val {
        let Value { rows, cols } = self.value(x);
        for vector in [weight, bias] {
            let len = self.vector_len(vector);
            self.demand(len == cols, || mismatch("group_norm", cols, len));
        }
        self.demand(groups > 0 && cols.is_multiple_of(groups), || mismatch("group_norm", cols, groups));
        self.demand(eps.is_finite() && eps > 0.0, || bad("group_norm", "eps", eps));
        self.divides("group_norm", rows, pixels);
        self.push(Op::GroupNorm { x, weight, bias, groups, eps, pixels }, rows, cols)
    }

    /// [`Op::Conv2d`].
    pub fn conv2d(&self, x: Val, w: WeightId, bias: Option<WeightId>, slide: Slide) -> Val {
        let Value { rows, cols } = self.value(x);
        let (n, k) = self.matrix_shape(w);
        let size = slide.size as usize;
        self.over("conv2d", rows, slide.grid);
        self.demand(size > 0 && k == size * size * cols, || mismatch("conv2d", k, size * size * cols));
        if let Some(bias) = bias {
            let len = self.vector_len(bias);
            self.demand(len == n, || mismatch("conv2d bias", len, n));
        }
        // Zeros as wide as the kernel would give results that no pixel is part of.
        let sound = slide.stride > 0 && slide.before < slide.size && slide.after < slide.size;
        let result = slide.result().filter(|result| sound && result.rows() <= u32::MAX as usize);
        self.demand(result.is_some(), || bad("conv2d", "slide", format!("{slide:?}")));
        let result = result.map_or(0, Grid::rows);
        self.push(Op::Conv2d { x, w, bias, slide }, Rows::Fixed(result as u32), n)
    }

    /// [`Op::Upsample`].
    pub fn upsample(&self, x: Val, grid: Grid, to: Grid) -> Val {
        let Value { rows, cols } = self.value(x);
        self.over("upsample", rows, grid);
        let doubles = |from: u32, to: u32| from > 0 && to.div_ceil(2) == from;
        let sound = grid.images == to.images && doubles(grid.height, to.height) && doubles(grid.width, to.width);
        self.demand(sound && to.rows() <= u32::MAX as usize, || bad("upsample", "result", format!("{to:?}")));
        self.push(Op::Upsample { x, grid, to }, Rows::Fixed(to.rows() as u32), cols)
    }

    /// [`Op::Attend`] within sequences of `queries` rows of `q` and `keys` rows of `k` and `v`, of nothing else.
    #[allow(clippy::too_many_arguments)] // Each is a number of the definition.
    pub fn attend(
        &self,
        q: Val,
        k: Val,
        v: Val,
        heads: usize,
        scale: f32,
        queries: usize,
        keys: usize,
        causal: bool,
    ) -> Val {
        self.attend_with(q, k, v, None, heads, scale, queries, keys, causal, None)
    }

    /// [`Op::Attend`] within sequences of `queries` rows of `q` and `keys` rows of `k` and `v`. Rows that are causal have
    /// nothing beside them; with a bias there are as many queries as keys, and nothing beside them.
    #[allow(clippy::too_many_arguments)] // Each is a number of the definition.
    pub fn attend_with(
        &self,
        q: Val,
        k: Val,
        v: Val,
        beside: Option<Beside>,
        heads: usize,
        scale: f32,
        queries: usize,
        keys: usize,
        causal: bool,
        bias: Option<RelativeBias>,
    ) -> Val {
        let (of_q, of_k) = (self.value(q), self.same("attend", k, v));
        self.demand(of_q.cols == of_k.cols, || mismatch("attend", of_q.cols, of_k.cols));
        self.demand(heads > 0 && of_q.cols.is_multiple_of(heads), || mismatch("attend", of_q.cols, heads));
        self.demand(scale.is_finite() && scale > 0.0, || bad("attend", "scale", scale));
        self.demand(!causal || queries == keys, || mismatch("attend", queries, keys));
        self.divides("attend", of_q.rows, queries);
        self.divides("attend", of_k.rows, keys);
        let sequences = |rows, each: usize| self.shape.capacity(rows) / each.max(1);
        let (left, right) = (sequences(of_q.rows, queries), sequences(of_k.rows, keys));
        self.demand(left == right, || mismatch("attend", left, right));
        if let Some(Beside { k, v, keys }) = beside {
            let more = self.same("attend", k, v);
            self.demand(more.cols == of_q.cols, || mismatch("attend", of_q.cols, more.cols));
            self.divides("attend", more.rows, keys);
            let right = sequences(more.rows, keys);
            self.demand(left == right, || mismatch("attend", left, right));
            self.demand(!causal && bias.is_none(), || bad("attend", "keys beside", keys));
        }
        if let Some(RelativeBias { table, buckets: Buckets { count, max_distance } }) = bias {
            let len = self.vector_len(table);
            self.demand(Some(len) == count.checked_mul(heads), || mismatch("attend", len, count));
            self.demand(count > 0 && count.is_multiple_of(4), || bad("attend", "buckets", count));
            self.demand(max_distance > count / 4, || bad("attend", "max_distance", max_distance));
            self.demand(queries == keys, || mismatch("attend", queries, keys));
        }
        self.push(Op::Attend { q, k, v, beside, heads, scale, queries, keys, causal, bias }, of_q.rows, of_q.cols)
    }

    /// [`Op::Activate`].
    pub fn activate(&self, x: Val, activation: Activation) -> Val {
        let Value { rows, cols } = self.value(x);
        self.push(Op::Activate { x, activation }, rows, cols)
    }

    /// [`Op::GluHalves`].
    pub fn glu_halves(&self, x: Val, activation: Activation) -> Val {
        let Value { rows, cols } = self.value(x);
        self.demand(cols.is_multiple_of(2), || mismatch("glu_halves", cols, 2));
        self.push(Op::GluHalves { x, activation }, rows, cols / 2)
    }

    /// [`Op::Concat`].
    pub fn concat(&self, a: Val, b: Val) -> Val {
        let (left, right) = (self.value(a), self.value(b));
        self.demand(left.rows == right.rows, || {
            mismatch("concat", self.shape.capacity(left.rows), self.shape.capacity(right.rows))
        });
        self.push(Op::Concat { a, b }, left.rows, left.cols + right.cols)
    }

    /// [`Op::AddRow`].
    pub fn add_row(&self, x: Val, row: Val, every: usize) -> Val {
        let (of_x, of_row) = (self.value(x), self.value(row));
        self.demand(of_x.cols == of_row.cols, || mismatch("add_row", of_x.cols, of_row.cols));
        let rows = self.shape.capacity(of_row.rows).checked_mul(every);
        self.demand(rows == Some(self.shape.capacity(of_x.rows)), || {
            mismatch("add_row", self.shape.capacity(of_x.rows), every)
        });
        self.push(Op::AddRow { x, row, every }, of_x.rows, of_x.cols)
    }

    /// [`Op::Modulate`].
    pub fn modulate(&self, x: Val, by: Val, shift: usize, scale: usize, every: usize) -> Val {
        let Value { rows, cols } = self.value(x);
        for run in [shift, scale] {
            self.runs("modulate", x, by, run, every);
        }
        self.push(Op::Modulate { x, by, shift, scale, every }, rows, cols)
    }

    /// [`Op::AddGated`].
    pub fn add_gated(&self, x: Val, y: Val, by: Val, gate: usize, every: usize) -> Val {
        let Value { rows, cols } = self.same("add_gated", x, y);
        self.runs("add_gated", x, by, gate, every);
        self.push(Op::AddGated { x, y, by, gate, every }, rows, cols)
    }

    /// [`Op::AddCentre`].
    pub fn add_centre(&self, x: Val, table: WeightId, side: u32, grid: Grid) -> Val {
        let (Value { rows, cols }, (places, k)) = (self.value(x), self.matrix_shape(table));
        self.demand(cols == k, || mismatch("add_centre", cols, k));
        let square = (side as usize).checked_mul(side as usize);
        self.demand(square == Some(places), || mismatch("add_centre", places, side as usize));
        self.demand(grid.height <= side, || bad("add_centre", "height", grid.height));
        self.demand(grid.width <= side, || bad("add_centre", "width", grid.width));
        self.over("add_centre", rows, grid);
        self.push(Op::AddCentre { x, table, side, grid }, rows, cols)
    }

    /// [`Op::Unpatch`].
    pub fn unpatch(&self, x: Val, grid: Grid, size: u32) -> Val {
        let Value { rows, cols } = self.value(x);
        let each = (size as usize).checked_mul(size as usize).filter(|&each| each > 0 && cols.is_multiple_of(each));
        self.demand(each.is_some(), || mismatch("unpatch", cols, size as usize));
        self.over("unpatch", rows, grid);
        let each = each.unwrap_or(1);
        let result = grid.rows().checked_mul(each).and_then(|rows| u32::try_from(rows).ok());
        self.demand(result.is_some(), || bad("unpatch", "size", size));
        self.push(Op::Unpatch { x, grid, size }, Rows::Fixed(result.unwrap_or(0)), cols / each)
    }

    /// Ends the recording: lays out the arena and proves the plan.
    ///
    /// # Errors
    /// The first error of the recording, or what [`crate::verify`] found.
    pub fn finish(self, outputs: &[(OutputId, Val)]) -> Result<Plan, PlanError> {
        let Graph { shape, tape, .. } = self;
        let Tape { weights, kv_layers, values, steps, vocab, inputs, error, .. } = tape.into_inner();
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
        for (what, rows, count) in [("rows", Rows::Step, shape.rows), ("outs", Rows::Out, shape.outs)] {
            if count == 0 && values.iter().any(|value| value.rows == rows) {
                return Err(bad("step", what, count));
            }
        }
        if shape.context == 0 && !kv_layers.is_empty() {
            return Err(bad("step", "context", 0));
        }
        let mut sizes = Vec::with_capacity(values.len());
        for value in &values {
            let bytes =
                shape.capacity(value.rows).checked_mul(value.cols).and_then(|n| n.checked_mul(size_of::<f32>()));
            sizes.push(bytes.ok_or(PlanError::TooLarge)? as u64);
        }
        let kept: Vec<Val> = outputs.iter().map(|&(_, val)| val).collect();
        let (spans, arena) = arena::place(&sizes, &steps, &kept)?;
        let outputs = outputs.to_vec();
        let whole = steps.iter().any(|step| match step.op {
            Op::Attend { k: rows, .. } | Op::GroupNorm { x: rows, .. } => values[rows.index()].rows == Rows::Step,
            _ => false,
        });
        let plan = Plan { shape, weights, kv_layers, values, spans, steps, outputs, arena, vocab, inputs, whole };
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
                tape.weights.push(WeightUse {
                    spec: spec.clone(),
                    as_table: false,
                    as_matrix: false,
                    as_kernel: false,
                });
                tape.by_name.insert(name.to_owned(), id);
                id
            }
        };
        let weight = &mut tape.weights[id.index()];
        mark(weight);
        let (got, is_table) = (&weight.spec.shape, weight.as_table && !weight.as_matrix);
        let fits = match want.dims() {
            [len] => crate::value::is_vector_of(got, *len),
            // A kernel of one pixel is a matrix.
            &[n, k] => *got == want || got.dims() == [n, k, 1, 1] || (is_table && got.dims() == [1, n, k]),
            _ => *got == want,
        };
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
        tape.weights.push(WeightUse { spec, as_table: false, as_matrix: false, as_kernel: false });
        WeightId(tape.weights.len() as u32 - 1)
    }

    fn matrix_shape(&self, id: WeightId) -> (usize, usize) {
        let tape = self.tape.borrow();
        let weight = &tape.weights[id.index()];
        let rows = weight.rows();
        (rows, weight.spec.shape.elements().unwrap_or(0) / rows.max(1))
    }

    fn vector_len(&self, id: WeightId) -> usize {
        self.tape.borrow().weights[id.index()].spec.shape.elements().unwrap_or(0)
    }

    fn value(&self, val: Val) -> Value {
        self.tape.borrow().values[val.index()]
    }

    /// Rows are so many sequences of `each`.
    fn divides(&self, op: &'static str, rows: Rows, each: usize) {
        let count = self.shape.capacity(rows);
        self.demand(each > 0 && count.is_multiple_of(each), || mismatch(op, count, each));
    }

    /// `by` has a row for `every` rows of `x`, of as many runs of its columns as to have this one.
    fn runs(&self, op: &'static str, x: Val, by: Val, run: usize, every: usize) {
        let (of_x, of_by) = (self.value(x), self.value(by));
        let rows = self.shape.capacity(of_by.rows).checked_mul(every);
        self.demand(rows == Some(self.shape.capacity(of_x.rows)), || {
            mismatch(op, self.shape.capacity(of_x.rows), every)
        });
        let cols = run.checked_add(1).and_then(|runs| runs.checked_mul(of_x.cols));
        self.demand(cols.is_some_and(|cols| cols <= of_by.cols), || mismatch(op, of_by.cols, run));
    }

    /// Rows are the pixels of a grid.
    fn over(&self, op: &'static str, rows: Rows, grid: Grid) {
        let count = self.shape.capacity(rows);
        self.demand(matches!(rows, Rows::Fixed(_)) && count == grid.rows(), || mismatch(op, count, grid.rows()));
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
        Op::LayerNorm { weight, bias, .. } => {
            [weight, bias].into_iter().flatten().try_for_each(|&id| demand(id, WeightUse::is_vector))
        }
        Op::GroupNorm { weight, bias, .. } => {
            demand(*weight, WeightUse::is_vector)?;
            demand(*bias, WeightUse::is_vector)
        }
        Op::Conv2d { w, bias, .. } => {
            demand(*w, |weight| weight.as_kernel && !weight.as_matrix && !weight.as_table)?;
            bias.map_or(Ok(()), |bias| demand(bias, WeightUse::is_vector))
        }
        Op::Attend { bias, .. } => bias.map_or(Ok(()), |bias| demand(bias.table, WeightUse::is_vector)),
        Op::AddCentre { table, .. } => demand(*table, |weight| weight.as_table),
        Op::Input { .. }
        | Op::Upsample { .. }
        | Op::Activate { .. }
        | Op::GluHalves { .. }
        | Op::Concat { .. }
        | Op::AddRow { .. }
        | Op::Modulate { .. }
        | Op::AddGated { .. }
        | Op::Unpatch { .. }
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
