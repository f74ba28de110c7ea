//! The closed set of operations a plan may contain.

use std::fmt;

use crate::value::{Grid, InputId, KvLayerId, Val, WeightId};

/// One operation over values of the arena. `x` and friends are inputs; the result is the step's output value.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Rows that come with the step -> `[rows, cols]`.
    Input {
        /// Which.
        id: InputId,
    },
    /// Rows of `table` (`[vocab, cols]`) named by the step's tokens or positions, times `scale` -> `[step, cols]`.
    Embed {
        /// The embedding table.
        table: WeightId,
        /// What names its rows.
        by: Index,
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
    /// Layer norm of each row (Ba et al. 2016, arXiv:1607.06450), times `weight`, plus `bias`, where there are such.
    LayerNorm {
        /// `[rows, cols]`.
        x: Val,
        /// `[cols]`.
        weight: Option<WeightId>,
        /// `[cols]`.
        bias: Option<WeightId>,
        /// Added to the variance.
        eps: f32,
    },
    /// Norm over groups of channels of an image (Wu & He 2018, arXiv:1803.08494), times `weight`, plus `bias`.
    GroupNorm {
        /// `[images * pixels, cols]`.
        x: Val,
        /// `[cols]`.
        weight: WeightId,
        /// `[cols]`.
        bias: WeightId,
        /// Groups; they divide the columns.
        groups: usize,
        /// Added to the variance.
        eps: f32,
        /// Rows of one image.
        pixels: usize,
    },
    /// A square kernel slid over images, zeros around them: `[images * height * width, channels]` -> rows of the result's
    /// grid ([`Slide::result`]), a column for each of the kernel's results.
    Conv2d {
        /// The images.
        x: Val,
        /// `[n, channels, size, size]`.
        w: WeightId,
        /// `[n]`.
        bias: Option<WeightId>,
        /// How it is slid.
        slide: Slide,
    },
    /// Each pixel four times, by the nearest pixel: images twice as high and wide, or without the last row or column of
    /// that.
    Upsample {
        /// `[images * height * width, cols]`.
        x: Val,
        /// The grid of `x`.
        grid: Grid,
        /// That of the result.
        to: Grid,
    },
    /// Attention of the rows of `q` over all rows of `k` and `v` of the same sequence, and of what is beside them, or over
    /// those up to their own place.
    Attend {
        /// `[sequences * queries, heads * head_dim]`.
        q: Val,
        /// `[sequences * keys, heads * head_dim]`.
        k: Val,
        /// As `k`.
        v: Val,
        /// More keys and values that each sequence sees.
        beside: Option<Beside>,
        /// Heads.
        heads: usize,
        /// Factor on the scores.
        scale: f32,
        /// Rows of `q` of a sequence.
        queries: usize,
        /// Rows of `k` and `v` of a sequence.
        keys: usize,
        /// Whether a row sees only what is not behind it.
        causal: bool,
        /// What is added to the scores.
        bias: Option<RelativeBias>,
    },
    /// `activation(x)`.
    Activate {
        /// `[rows, cols]`.
        x: Val,
        /// The function.
        activation: Activation,
    },
    /// `a` times `activation(b)`, where `a` and `b` are the halves of each row: `[rows, 2 * cols]` -> `[rows, cols]`.
    GluHalves {
        /// `[rows, 2 * cols]`.
        x: Val,
        /// Applied to the second half.
        activation: Activation,
    },
    /// The columns of both side by side: `[rows, a]`, `[rows, b]` -> `[rows, a + b]`.
    Concat {
        /// `[rows, a]`.
        a: Val,
        /// `[rows, b]`.
        b: Val,
    },
    /// A row added to each of as many rows: row `i / every` of `row` to row `i` of `x`.
    AddRow {
        /// `[rows * every, cols]`.
        x: Val,
        /// `[rows, cols]`.
        row: Val,
        /// Rows that get the same.
        every: usize,
    },
    /// `x * (1 + scale) + shift`, where scale and shift are columns of a row for each of as many rows: row `i / every` of
    /// `by` for row `i` of `x` (Peebles & Xie 2022, arXiv:2212.09748).
    Modulate {
        /// `[rows * every, cols]`.
        x: Val,
        /// `[rows, runs * cols]`.
        by: Val,
        /// Which run of columns of `by` is the shift.
        shift: usize,
        /// Which is the scale.
        scale: usize,
        /// Rows that get the same.
        every: usize,
    },
    /// `x + gate * y`, where the gate is columns of a row for each of as many rows: row `i / every` of `by` for row `i` of
    /// `x` and `y`.
    AddGated {
        /// `[rows * every, cols]`.
        x: Val,
        /// As `x`.
        y: Val,
        /// `[rows, runs * cols]`.
        by: Val,
        /// Which run of columns of `by` is the gate.
        gate: usize,
        /// Rows that get the same.
        every: usize,
    },
    /// Rows of a table added that stand for places of a square, row of places after row of places: to each image those in
    /// its middle ([`centre`]).
    AddCentre {
        /// `[images * height * width, cols]`.
        x: Val,
        /// `[side * side, cols]`.
        table: WeightId,
        /// Places of a row of the square.
        side: u32,
        /// The grid of `x`.
        grid: Grid,
    },
    /// Each pixel becomes `size * size` pixels, row after row of them: the runs of its columns.
    Unpatch {
        /// `[images * height * width, size * size * cols]`.
        x: Val,
        /// The grid of `x`.
        grid: Grid,
        /// Pixels of a row of what a pixel becomes.
        size: u32,
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
    /// GELU itself: `x * (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
    /// `x * sigmoid(1.702 x)`: CLIP's.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
}

/// Keys and values of another stream beside those of [`Op::Attend`], without being copied there: of the prompt beside
/// the image's (Esser et al. 2024, arXiv:2403.03206).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Beside {
    /// `[sequences * keys, heads * head_dim]`.
    pub k: Val,
    /// As `k`.
    pub v: Val,
    /// Rows of a sequence.
    pub keys: usize,
}

/// What is added to a score for the distance from the query to the key, a number for each head (Raffel et al. 2019,
/// arXiv:1910.10683).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelativeBias {
    /// `[buckets, heads]`.
    pub table: WeightId,
    /// Which of its rows a distance has.
    pub buckets: Buckets,
}

/// Distances in both directions, divided into buckets: half of them for keys at the query's place and before it, half for
/// those behind it. Of each half, one half are the shortest distances one by one, the other ever wider ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Buckets {
    /// How many; a multiple of 4.
    pub count: usize,
    /// The distance from which on all share one bucket; more than a quarter of the buckets.
    pub max_distance: usize,
}

impl Buckets {
    /// The bucket of a key at `key` for a query at `query`.
    pub fn of(&self, query: usize, key: usize) -> usize {
        let half = self.count / 2;
        let exact = half / 2;
        let side = if key > query { half } else { 0 };
        let distance = key.abs_diff(query);
        if distance < exact {
            return side + distance;
        }
        let ratio = |of: usize| (of as f64 / exact.max(1) as f64).ln();
        // A distance at which a range begins is not to fall short of it by rounding.
        let range = ratio(distance) / ratio(self.max_distance) * (half - exact) as f64 + 1e-9;
        side + (exact + range as usize).min(half.saturating_sub(1))
    }
}

/// What of a step names rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Index {
    /// Its tokens.
    Token,
    /// Their positions.
    Position,
}

/// The place in a square of `side` by `side` places that a pixel has when the image lies in its middle; where halves do not
/// come out even, above and to the left of it. The image is no larger than the square.
pub const fn centre(side: u32, grid: Grid, pixel: usize) -> usize {
    let (side, width, height) = (side as usize, grid.width as usize, grid.height as usize);
    let (top, left) = ((side - height) / 2, (side - width) / 2);
    (top + pixel / width) * side + left + pixel % width
}

/// How a kernel is slid over a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slide {
    /// What it is slid over.
    pub grid: Grid,
    /// Its height and width.
    pub size: u32,
    /// Pixels from one place to the next.
    pub stride: u32,
    /// Rows and columns of zeros above and to the left.
    pub before: u32,
    /// Below and to the right.
    pub after: u32,
}

impl Slide {
    /// The grid of the results, if the kernel fits into what it is slid over.
    pub fn result(&self) -> Option<Grid> {
        let places = |len: u32| {
            let len = len.checked_add(self.before)?.checked_add(self.after)?.checked_sub(self.size)?;
            Some(len.checked_div(self.stride)? + 1)
        };
        let Grid { images, height, width } = self.grid;
        Some(Grid { images, height: places(height)?, width: places(width)? })
    }
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
            Op::Input { .. } => "input",
            Op::Embed { .. } => "embed",
            Op::RmsNorm { .. } => "rms_norm",
            Op::MatMul { .. } => "matmul",
            Op::Rope { .. } => "rope",
            Op::KvStore { .. } => "kv_store",
            Op::Attention { .. } => "attention",
            Op::LayerNorm { .. } => "layer_norm",
            Op::GroupNorm { .. } => "group_norm",
            Op::Conv2d { .. } => "conv2d",
            Op::Upsample { .. } => "upsample",
            Op::Attend { .. } => "attend",
            Op::Activate { .. } => "activate",
            Op::GluHalves { .. } => "glu_halves",
            Op::Concat { .. } => "concat",
            Op::AddRow { .. } => "add_row",
            Op::Modulate { .. } => "modulate",
            Op::AddGated { .. } => "add_gated",
            Op::AddCentre { .. } => "add_centre",
            Op::Unpatch { .. } => "unpatch",
            Op::Glu { .. } => "glu",
            Op::Add { .. } => "add",
            Op::Scale { .. } => "scale",
            Op::Softcap { .. } => "softcap",
            Op::TakeRows { .. } => "take_rows",
        }
    }

    /// The values the operation reads.
    pub fn inputs(&self) -> impl Iterator<Item = Val> + use<> {
        let one = |x| [Some(x), None, None, None, None];
        let two = |a, b| [Some(a), Some(b), None, None, None];
        let read = match *self {
            Op::Input { .. } | Op::Embed { .. } => [None; 5],
            Op::RmsNorm { x, .. }
            | Op::LayerNorm { x, .. }
            | Op::GroupNorm { x, .. }
            | Op::Conv2d { x, .. }
            | Op::Upsample { x, .. }
            | Op::Activate { x, .. }
            | Op::GluHalves { x, .. }
            | Op::MatMul { x, .. }
            | Op::Rope { x, .. }
            | Op::Scale { x, .. }
            | Op::Softcap { x, .. }
            | Op::AddCentre { x, .. }
            | Op::Unpatch { x, .. }
            | Op::TakeRows { x } => one(x),
            Op::Attention { q, .. } => one(q),
            Op::Attend { q, k, v, beside, .. } => {
                [Some(q), Some(k), Some(v), beside.map(|more| more.k), beside.map(|more| more.v)]
            }
            Op::KvStore { k, v, .. } => two(k, v),
            Op::Glu { gate, up, .. } => two(gate, up),
            Op::Add { a, b } | Op::Concat { a, b } => two(a, b),
            Op::AddRow { x, row, .. } => two(x, row),
            Op::Modulate { x, by, .. } => two(x, by),
            Op::AddGated { x, y, by, .. } => [Some(x), Some(y), Some(by), None, None],
        };
        read.into_iter().flatten()
    }

    /// The input whose memory the result may take over when nothing reads it later: each output element depends on
    /// no element of that input but the one at the same place (rope: the same pair).
    pub const fn in_place(&self) -> Option<Val> {
        match *self {
            Op::Rope { x, .. }
            | Op::Scale { x, .. }
            | Op::Softcap { x, .. }
            | Op::Activate { x, .. }
            | Op::AddRow { x, .. }
            | Op::Modulate { x, .. }
            | Op::AddGated { x, .. } => Some(x),
            Op::Glu { gate, .. } => Some(gate),
            Op::Add { a, .. } => Some(a),
            Op::Input { .. }
            | Op::Embed { .. }
            | Op::RmsNorm { .. }
            | Op::LayerNorm { .. }
            | Op::GroupNorm { .. }
            | Op::Conv2d { .. }
            | Op::Upsample { .. }
            | Op::Attend { .. }
            | Op::GluHalves { .. }
            | Op::Concat { .. }
            | Op::AddCentre { .. }
            | Op::Unpatch { .. }
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
            Op::Input { .. }
            | Op::Embed { .. }
            | Op::RmsNorm { .. }
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
            Op::Input { id } => write!(f, " {id:?}"),
            Op::Embed { table, by, scale } => write!(f, " {table} {by:?} *{scale}"),
            Op::LayerNorm { weight, bias, eps, .. } => {
                [weight, bias].into_iter().flatten().try_for_each(|w| write!(f, " {w}"))?;
                write!(f, " eps={eps}")
            }
            Op::GroupNorm { weight, bias, groups, eps, pixels, .. } => {
                write!(f, " {weight} {bias} groups={groups} eps={eps} pixels={pixels}")
            }
            Op::Conv2d { w, bias, slide, .. } => {
                let Slide { grid, size, stride, before, after } = slide;
                let Grid { images, height, width } = grid;
                write!(f, " {w} {images}x{height}x{width} size={size} stride={stride} zeros={before},{after}")?;
                bias.map_or(Ok(()), |b| write!(f, " +{b}"))
            }
            Op::Upsample { to: Grid { images, height, width }, .. } => write!(f, " -> {images}x{height}x{width}"),
            Op::Attend { heads, scale, queries, keys, beside, causal, bias, .. } => {
                write!(f, " heads={heads} scale={scale} {queries}x{keys}")?;
                beside.map_or(Ok(()), |more| write!(f, "+{}", more.keys))?;
                bias.map_or(Ok(()), |RelativeBias { table, buckets: Buckets { count, max_distance } }| {
                    write!(f, " +{table} buckets={count} distance={max_distance}")
                })?;
                f.write_str(if *causal { " causal" } else { "" })
            }
            Op::Activate { activation, .. } | Op::GluHalves { activation, .. } => write!(f, " {activation:?}"),
            Op::AddRow { every, .. } => write!(f, " every={every}"),
            Op::Modulate { shift, scale, every, .. } => write!(f, " shift={shift} scale={scale} every={every}"),
            Op::AddGated { gate, every, .. } => write!(f, " gate={gate} every={every}"),
            Op::AddCentre { table, side, grid: Grid { images, height, width }, .. } => {
                write!(f, " {table} side={side} {images}x{height}x{width}")
            }
            Op::Unpatch { grid: Grid { images, height, width }, size, .. } => {
                write!(f, " {images}x{height}x{width} size={size}")
            }
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
            Op::Concat { .. } | Op::Add { .. } | Op::TakeRows { .. } => Ok(()),
        }
    }
}
