//! The result of a recording.

use std::fmt;

use tenure_tensor::ByteSize;

use crate::op::Op;
use crate::value::{InputId, KvLayer, KvLayerId, OutputId, Rows, StepShape, Val, WeightId, WeightUse};

/// A model's step, recorded once: operations over spans of one static arena. Immutable and proven by
/// [`crate::verify`]; peak memory is known before anything is allocated.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) shape: StepShape,
    pub(crate) weights: Vec<WeightUse>,
    pub(crate) kv_layers: Vec<KvLayer>,
    pub(crate) values: Vec<Value>,
    pub(crate) spans: Vec<Span>,
    pub(crate) steps: Vec<Step>,
    pub(crate) outputs: Vec<(OutputId, Val)>,
    pub(crate) arena: ByteSize,
    pub(crate) vocab: Option<usize>,
    pub(crate) inputs: Vec<(InputId, Val)>,
    pub(crate) whole: bool,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What is done.
    pub op: Op,
    /// Where the result goes; `None` for operations that only touch state.
    pub out: Option<Val>,
}

/// A value's extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    /// How many rows.
    pub rows: Rows,
    /// Elements (f32) of a row.
    pub cols: usize,
}

/// A range of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Bytes from the arena's start.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Span {
    /// Whether the two share a byte.
    pub const fn overlaps(self, other: Span) -> bool {
        self.offset < other.offset + other.bytes && other.offset < self.offset + self.bytes
    }
}

impl Plan {
    /// The largest step it can run.
    pub const fn shape(&self) -> StepShape {
        self.shape
    }

    /// Every weight it reads, each once.
    pub fn weights(&self) -> &[WeightUse] {
        &self.weights
    }

    /// The weight with that place in the list.
    pub fn weight(&self, id: WeightId) -> &WeightUse {
        &self.weights[id.index()]
    }

    /// The layers of its KV cache.
    pub fn kv_layers(&self) -> &[KvLayer] {
        &self.kv_layers
    }

    /// One layer of its KV cache.
    pub fn kv_layer(&self, id: KvLayerId) -> KvLayer {
        self.kv_layers[id.index()]
    }

    /// Rows and columns of a value.
    pub fn value(&self, val: Val) -> Value {
        self.values[val.index()]
    }

    /// A value's place in the arena: row after row of f32, for the plan's capacity of rows.
    pub fn span(&self, val: Val) -> Span {
        self.spans[val.index()]
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// What the plan hands to its caller.
    pub fn outputs(&self) -> &[(OutputId, Val)] {
        &self.outputs
    }

    /// The value behind an output.
    pub fn output(&self, id: OutputId) -> Option<Val> {
        self.outputs.iter().find(|(other, _)| *other == id).map(|&(_, val)| val)
    }

    /// The arena's size.
    pub const fn arena(&self) -> ByteSize {
        self.arena
    }

    /// The number of tokens the embedding knows, if there is one; every token of a step is below it.
    pub const fn vocab(&self) -> Option<usize> {
        self.vocab
    }

    /// Whether every step must have all rows of the shape: rows are computed from others of the same step.
    pub const fn is_whole(&self) -> bool {
        self.whole
    }

    /// Floating-point operations of a step with all its rows, by the definitions: a multiplication and an addition for each
    /// pair. Counted are products with weights, kernels that are slid, and attention without a cache; not what depends on a
    /// cache ([`Op::Attention`]), nor what is done to each element alone.
    pub fn operations(&self) -> u64 {
        let rows = |val: Val| self.shape.capacity(self.value(val).rows) as u64;
        let pairs = |step: &Step| match (&step.op, step.out) {
            (Op::MatMul { w, .. } | Op::Conv2d { w, .. }, Some(out)) => {
                rows(out) * self.weight(*w).spec.shape.elements().unwrap_or(0) as u64
            }
            (Op::Attend { q, queries, keys, beside, .. }, _) => {
                let seen = (keys + beside.map_or(0, |more| more.keys)) as u64;
                let sequences = rows(*q) / (*queries).max(1) as u64;
                // Scores, and what is taken by them.
                2 * sequences * *queries as u64 * seen * self.value(*q).cols as u64
            }
            _ => 0,
        };
        2 * self.steps.iter().map(pairs).sum::<u64>()
    }

    /// What comes with a step beside tokens.
    pub fn inputs(&self) -> &[(InputId, Val)] {
        &self.inputs
    }

    /// The value of an input.
    pub fn input(&self, id: InputId) -> Option<Value> {
        self.inputs.iter().find(|(other, _)| *other == id).map(|&(_, val)| self.value(val))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StepShape { rows, outs, context } = self.shape;
        writeln!(f, "step of up to {rows} rows, {outs} out, context {context}; arena {} B", self.arena.get())?;
        for (i, weight) in self.weights.iter().enumerate() {
            writeln!(f, "w{i} {} {} {}", weight.spec.name, weight.spec.dtype, weight.spec.shape)?;
        }
        for (i, layer) in self.kv_layers.iter().enumerate() {
            writeln!(f, "kv{i} {} x {}", layer.heads, layer.head_dim)?;
        }
        for step in &self.steps {
            match step.out {
                Some(out) => {
                    let value = self.value(out);
                    let rows = match value.rows {
                        Rows::Step => "step".to_owned(),
                        Rows::Out => "out".to_owned(),
                        Rows::Fixed(count) => count.to_string(),
                    };
                    writeln!(f, "{out} [{rows}, {}] @{} = {}", value.cols, self.span(out).offset, step.op)?;
                }
                None => writeln!(f, "{}", step.op)?,
            }
        }
        for (id, val) in &self.outputs {
            writeln!(f, "{id:?} = {val}")?;
        }
        Ok(())
    }
}
