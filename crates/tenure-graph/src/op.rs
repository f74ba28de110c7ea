//! The closed set of operations a plan may contain.

use std::fmt;

use crate::value::{KvLayerId, Val, WeightId};

/// One operation over values of the arena. `x` and friends are inputs; the result is the step's output value.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The rows that come with the step, of a part of a model that another part precedes -> `[step, cols]`.
    Input,
    /// Rows of `table` (`[vocab, cols]`) named by the step's tokens, times `scale` -> `[step, cols]`.
    Embed {
        /// The embedding table.
        table: WeightId,
        /// Factor on every element (Gemma: sqrt(cols); 1 elsewhere).
        scale: f32,
    },
    /// Root-mean-square norm over each run of `group` columns, times `weight` (Zhang & Sennrich 2019, arXiv:1910.07467).
    RmsNorm {
        /// `[rows, cols]`.
        x: Val,
        /// `[group]`; the same for every group.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
        /// Columns normalised together: the row, or one attention head.
        group: usize,
    },
    /// `x @ w^T (+ bias)`: `[rows, k]` by `[n, k]` -> `[rows, n]`.
    MatMul {
        /// `[rows, k]`.
        x: Val,
        /// `[n, k]`.
        w: WeightId,
        /// `[n]`.
        bias: Option<WeightId>,
    },
    /// Rotary position embedding of each head by the row's position (Su et al. 2021, arXiv:2104.09864).
    Rope {
        /// `[step, heads * head_dim]`.
        x: Val,
        /// Elements per head.
        head_dim: usize,
        /// Which elements turn, and how fast.
        rope: RopeSpec,
    },
    /// Writes the rows' keys and values into the KV blocks of their sequences.
    KvStore {
        /// `[step, kv_heads * head_dim]`.
        k: Val,
        /// `[step, kv_heads * head_dim]`.
        v: Val,
        /// Which layer's cache.
        layer: KvLayerId,
    },
    /// Causal attention of each row over its sequence's cached positions up to and including its own.
    Attention {
        /// `[step, heads * head_dim]`.
        q: Val,
        /// Which layer's cache.
        layer: KvLayerId,
        /// Query heads; a multiple of the layer's KV heads (grouped-query attention, arXiv:2305.13245).
        heads: usize,
        /// Factor on the scores.
        scale: f32,
        /// Only the last so many positions, the row's own included.
        window: Option<usize>,
        /// Scores become `cap * tanh(score / cap)`.
        softcap: Option<f32>,
    },
    /// `activation(gate) * up` (Shazeer 2020, arXiv:2002.05202).
    Glu {
        /// `[rows, cols]`.
        gate: Val,
        /// `[rows, cols]`.
        up: Val,
        /// Applied to `gate`.
        activation: Activation,
    },
    /// `a + b`.
    Add {
        /// `[rows, cols]`.
        a: Val,
        /// `[rows, cols]`.
        b: Val,
    },
    /// `x * factor`.
    Scale {
        /// `[rows, cols]`.
        x: Val,
        /// The factor.
        factor: f32,
    },
    /// `cap * tanh(x / cap)`.
    Softcap {
        /// `[rows, cols]`.
        x: Val,
        /// The bound.
        cap: f32,
    },
    /// The rows of `x` whose results the caller asked for: `[step, cols]` -> `[out, cols]`.
    TakeRows {
        /// `[step, cols]`.
        x: Val,
    },
}

/// The function of a gated linear unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// The tanh form of GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415).
    GeluTanh,
}

/// How a head's elements turn with the position.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// How many leading elements of a head turn; even, at most the head's size.
    pub dims: usize,
    /// Pair `i` turns by `position * base^(-2 i / dims)`.
    pub base: f32,
    /// Factor on every angle (`1 / factor` of linear scaling).
    pub freq_scale: f32,
    /// Divisors of the angles, one per pair (Llama 3's `rope_freqs.weight`).
    pub factors: Option<WeightId>,
    /// YaRN interpolation (Peng et al. 2023, arXiv:2309.00071).
    pub yarn: Option<Yarn>,
}

/// Parameters of YaRN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// The context length the model was trained with.
    pub original_context: usize,
    /// Weight of the extrapolated angles (1: full YaRN).
    pub ext_factor: f32,
    /// Factor on cosine and sine.
    pub attn_factor: f32,
    /// Rotations above which a pair is extrapolated.
    pub beta_fast: f32,
    /// Rotations below which a pair is interpolated.
    pub beta_slow: f32,
}

/// Which elements of a head form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// `(2 i, 2 i + 1)`: Llama's files.
    Adjacent,
    /// `(i, i + dims / 2)`: GPT-NeoX, Qwen, Gemma.
    Halves,
}

/// What an operation reads besides its input values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Writes a layer's KV cache.
    WritesKv(KvLayerId),
    /// Reads a layer's KV cache.
    ReadsKv(KvLayerId),
}

impl Op {
    /// The operation's name: the stem of its kernel files.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Input => "input",
            Op::Embed { .. } => "embed",
            Op::RmsNorm { .. } => "rms_norm",
            Op::MatMul { .. } => "matmul",
            Op::Rope { .. } => "rope",
            Op::KvStore { .. } => "kv_store",
            Op::Attention { .. } => "attention",
            Op::Glu { .. } => "glu",
            Op::Add { .. } => "add",
            Op::Scale { .. } => "scale",
            Op::Softcap { .. } => "softcap",
            Op::TakeRows { .. } => "take_rows",
        }
    }

    /// The values the operation reads.
    pub fn inputs(&self) -> impl Iterator<Item = Val> + use<> {
        let (a, b) = match *self {
            Op::Input | Op::Embed { .. } => (None, None),
            Op::RmsNorm { x, .. }
            | Op::MatMul { x, .. }
            | Op::Rope { x, .. }
            | Op::Scale { x, .. }
            | Op::Softcap { x, .. }
            | Op::TakeRows { x } => (Some(x), None),
            Op::Attention { q, .. } => (Some(q), None),
            Op::KvStore { k, v, .. } => (Some(k), Some(v)),
            Op::Glu { gate, up, .. } => (Some(gate), Some(up)),
            Op::Add { a, b } => (Some(a), Some(b)),
        };
        a.into_iter().chain(b)
    }

    /// The input whose memory the result may take over when nothing reads it later: each output element depends on
    /// no element of that input but the one at the same place (rope: the same pair).
    pub const fn in_place(&self) -> Option<Val> {
        match *self {
            Op::Rope { x, .. } | Op::Scale { x, .. } | Op::Softcap { x, .. } => Some(x),
            Op::Glu { gate, .. } => Some(gate),
            Op::Add { a, .. } => Some(a),
            Op::Input
            | Op::Embed { .. }
            | Op::RmsNorm { .. }
            | Op::MatMul { .. }
            | Op::KvStore { .. }
            | Op::Attention { .. }
            | Op::TakeRows { .. } => None,
        }
    }

    /// What state the operation touches.
    pub const fn effect(&self) -> Effect {
        match *self {
            Op::KvStore { layer, .. } => Effect::WritesKv(layer),
            Op::Attention { layer, .. } => Effect::ReadsKv(layer),
            Op::Input
            | Op::Embed { .. }
            | Op::RmsNorm { .. }
            | Op::MatMul { .. }
            | Op::Rope { .. }
            | Op::Glu { .. }
            | Op::Add { .. }
            | Op::Scale { .. }
            | Op::Softcap { .. }
            | Op::TakeRows { .. } => Effect::None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        for v in self.inputs() {
            write!(f, " {v}")?;
        }
        match self {
            Op::Embed { table, scale } => write!(f, " {table} *{scale}"),
            Op::RmsNorm { weight, eps, group, .. } => write!(f, " {weight} eps={eps} group={group}"),
            Op::MatMul { w, bias, .. } => {
                write!(f, " {w}")?;
                bias.map_or(Ok(()), |b| write!(f, " +{b}"))
            }
            Op::Rope { head_dim, rope, .. } => write!(
                f,
                " head={head_dim} dims={} {:?} base={} scale={}{}{}",
                rope.dims,
                rope.style,
                rope.base,
                rope.freq_scale,
                rope.factors.map_or(String::new(), |w| format!(" factors={w}")),
                if rope.yarn.is_some() { " yarn" } else { "" },
            ),
            Op::KvStore { layer, .. } => write!(f, " {layer}"),
            Op::Attention { layer, heads, scale, window, softcap, .. } => {
                write!(f, " {layer} heads={heads} scale={scale}")?;
                window.map_or(Ok(()), |w| write!(f, " window={w}"))?;
                softcap.map_or(Ok(()), |c| write!(f, " softcap={c}"))
            }
            Op::Glu { activation, .. } => write!(f, " {activation:?}"),
            Op::Scale { factor, .. } => write!(f, " *{factor}"),
            Op::Softcap { cap, .. } => write!(f, " cap={cap}"),
            Op::Input | Op::Add { .. } | Op::TakeRows { .. } => Ok(()),
        }
    }
}
