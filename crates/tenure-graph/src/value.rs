//! Names of the things a plan speaks of.

use std::fmt;

use tenure_tensor::{DType, Shape, TensorSpec};

/// A value computed by one step of a plan: rows of f32 in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Val(pub(crate) u32);

/// A weight tensor of the plan, by its place in [`crate::Plan::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub(crate) u32);

/// A layer of the KV cache, by its place in [`crate::Plan::kv_layers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KvLayerId(pub(crate) u32);

/// How many rows a value has when a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// One per token of the step.
    Step,
    /// One per row whose result the caller asked for.
    Out,
    /// Always so many: pixels, or tokens of a prompt of known length.
    Fixed(u32),
}

/// The largest step a plan can run. What varies below these bounds is data of the step, never a new plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// Tokens.
    pub rows: usize,
    /// Rows whose results can be asked for.
    pub outs: usize,
    /// Positions of one sequence.
    pub context: usize,
}

impl StepShape {
    /// KV blocks of one sequence: the length of a block table.
    pub const fn table_len(&self) -> usize {
        self.context.div_ceil(KV_BLOCK)
    }

    /// The capacity of `rows`.
    pub const fn capacity(&self, rows: Rows) -> usize {
        match rows {
            Rows::Step => self.rows,
            Rows::Out => self.outs,
            Rows::Fixed(count) => count as usize,
        }
    }
}

/// What a plan hands to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OutputId {
    /// `[out, vocab]`: one row of logits per requested row.
    Logits,
    /// `[step, width]`: what a part of a model hands to the part that follows it.
    Hidden,
    /// What was denoised, decoded or encoded.
    Sample,
    /// Encoded prompts, a row for each token.
    Context,
    /// `[step, width]`, of the last layer `[out, width]`: what a layer hands to the next, counted from 0.
    Layer(u32),
}

/// Rows that come with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InputId {
    /// What the part of a model before this one gave.
    Hidden,
    /// What is denoised, decoded or encoded: latents or pixels.
    Sample,
    /// Sinusoids of the timesteps, a row for each image.
    Timestep,
    /// Sinusoids of how strongly the prompt is to lead, a row for each image.
    Guidance,
    /// Encoded prompts, a row for each token.
    Context,
    /// Pooled prompts, and what else conditions an image as a whole: a row for each.
    Pooled,
}

/// Images side by side, row of pixels after row of pixels: a value over it has `images * height * width` rows, its
/// columns are channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// How many images.
    pub images: u32,
    /// Pixels of a column.
    pub height: u32,
    /// Pixels of a row.
    pub width: u32,
}

impl Grid {
    /// Pixels of all images.
    pub const fn rows(self) -> usize {
        (self.images as usize).saturating_mul(self.pixels())
    }

    /// Pixels of one image.
    pub const fn pixels(self) -> usize {
        (self.height as usize).saturating_mul(self.width as usize)
    }
}

/// A weight a plan reads, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightUse {
    /// Name, type and shape as the file has them.
    pub spec: TensorSpec,
    /// Whether rows of it are looked up.
    pub as_table: bool,
    /// Whether it is multiplied with.
    pub as_matrix: bool,
    /// Whether it is slid over a grid: `[n, channels, height, width]`, held with the channels last.
    pub as_kernel: bool,
}

impl WeightUse {
    /// Whether it is a vector (norm weight, bias, rope factors): held as f32 on every device.
    pub const fn is_vector(&self) -> bool {
        !self.as_table && !self.as_matrix && !self.as_kernel
    }

    /// Rows of a matrix or table, results of a kernel; 1 for a vector.
    pub fn rows(&self) -> usize {
        match self.spec.shape.dims() {
            _ if self.is_vector() => 1,
            // A table may be written with a leading one.
            &[1, rows, _] | &[rows, ..] => rows,
            [] => 0,
        }
    }

    /// Elements of one row.
    pub fn cols(&self) -> usize {
        self.spec.shape.elements().unwrap_or(0) / self.rows().max(1)
    }
}

/// One layer's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvLayer {
    /// Key-value heads.
    pub heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
}

/// Positions of one KV block.
pub const KV_BLOCK: usize = 32;

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    #[default]
    F16,
    /// 8-bit integers with one f16 scale per 32 elements of a head.
    Q8_0,
}

impl KvType {
    /// The type as a tensor's element type.
    pub const fn dtype(self) -> DType {
        match self {
            KvType::F32 => DType::F32,
            KvType::F16 => DType::F16,
            KvType::Q8_0 => DType::Q8_0,
        }
    }
}

macro_rules! index {
    ($name:ident, $prefix:literal) => {
        impl $name {
            /// The place in the plan's list.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

index!(Val, "%");
index!(WeightId, "w");
index!(KvLayerId, "kv");

/// A tensor's shape, or a note that it does not exist, as a model sees its file.
pub trait WeightCatalog {
    /// The tensor of that name, if the file has it.
    fn find(&self, name: &str) -> Option<&TensorSpec>;
}

impl WeightCatalog for Vec<TensorSpec> {
    fn find(&self, name: &str) -> Option<&TensorSpec> {
        self.iter().find(|spec| spec.name == name)
    }
}

/// Shapes of vectors may be written with leading ones.
pub(crate) fn is_vector_of(shape: &Shape, len: usize) -> bool {
    shape.elements() == Some(len) && shape.cols() == len
}
