//! How weights, KV blocks and scratch lie in this backend's memory.

use tenure_device::WeightLayout;
use tenure_graph::{Plan, WeightUse};
use tenure_tensor::{ByteSize, DType};

use crate::lower::{Lowered, Phase};
use crate::simd::float::{self, Line, winograd};
use crate::simd::{Isa, attend, attention, panels};

/// How a weight is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As the file has it.
    Raw,
    /// Panels of 16 rows, repacked at load.
    Panels,
    /// 32-bit floats, converted at load.
    Vector,
    /// A kernel's elements as the file has them, each result's place by place, with the channels last.
    Kernel,
}

impl Layout {
    /// The layout for a weight.
    pub(crate) fn of(weight: &WeightUse) -> Layout {
        if weight.is_vector() {
            Layout::Vector
        } else if weight.as_kernel {
            Layout::Kernel
        } else if weight.as_matrix && panels::panel_bytes(weight.spec.dtype, weight.cols()).is_some() {
            Layout::Panels
        } else {
            Layout::Raw
        }
    }

    /// The bytes a weight takes.
    pub(crate) fn bytes(self, weight: &WeightUse) -> ByteSize {
        match self {
            Layout::Raw | Layout::Kernel => weight.spec.bytes().unwrap_or(ByteSize::new(u64::MAX)),
            Layout::Panels => {
                let panel = panels::panel_bytes(weight.spec.dtype, weight.cols()).unwrap_or(0);
                ByteSize::of(panel).times(weight.rows().div_ceil(panels::ROWS) as u64)
            }
            Layout::Vector => ByteSize::of(weight.cols()).times(size_of::<f32>() as u64),
        }
    }
}

/// How the rows are held that a weight is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowForm {
    /// As they are.
    Floats,
    /// Quantised, in blocks.
    Blocks,
    /// In words.
    Words,
}

impl RowForm {
    /// The form for a weight.
    pub(crate) fn of(isa: Isa, weight: &WeightUse) -> RowForm {
        let words = weight.spec.dtype == DType::BF16 && float::takes_words(isa, weight.cols());
        match Layout::of(weight) {
            Layout::Panels => RowForm::Blocks,
            Layout::Raw if words => RowForm::Words,
            Layout::Raw | Layout::Kernel | Layout::Vector => RowForm::Floats,
        }
    }

    /// Bytes of so many rows of `cols` columns, beside the rows themselves.
    pub(crate) fn bytes(self, rows: usize, cols: usize) -> usize {
        match self {
            RowForm::Floats => 0,
            RowForm::Blocks => panels::act_bytes(rows, cols),
            RowForm::Words => float::lines_of(cols).saturating_mul(rows).saturating_mul(size_of::<Line>()),
        }
    }
}

/// What [`tenure_device::Backend::weight_layout`] says.
pub(crate) fn weight_layout(weight: &WeightUse) -> WeightLayout {
    let layout = Layout::of(weight);
    // A mapped vector would have to be of the right type and alignment; vectors are small.
    let mappable = layout == Layout::Raw && weight.spec.dtype != DType::F64;
    WeightLayout { bytes: layout.bytes(weight), mappable }
}

/// Most rows of a step whose attention is split by position.
const SPLIT_ROWS: usize = 4;

/// Where things lie in the scratch segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scratch {
    /// Cosines and sines: for each rope its offset and the floats of one row.
    pub(crate) ropes: Vec<(usize, usize)>,
    /// Rows in the form that products take.
    pub(crate) formed: usize,
    /// Each member's own room, for attention and convolutions.
    pub(crate) members: usize,
    /// Bytes of one member's room.
    pub(crate) member_bytes: usize,
    /// Sums of groups, of each run of [`STAT_ROWS`] rows; then what rows are multiplied with and what is added.
    pub(crate) groups: usize,
    /// Bytes of the sums.
    pub(crate) group_sums: usize,
    /// Partial results of split attention.
    pub(crate) partials: usize,
    /// Chunks of the longest sequence.
    pub(crate) chunks: usize,
    /// Most rows whose attention is split.
    pub(crate) split_rows: usize,
    /// All of it.
    pub(crate) bytes: usize,
}

impl Scratch {
    /// The layout for `plan` and a team of `members`.
    pub(crate) fn new(plan: &Plan, lowered: &Lowered, members: usize) -> Scratch {
        let shape = plan.shape();
        let mut end = 0usize;
        let mut take = |bytes: usize| {
            let at = end;
            end = at.saturating_add(bytes).next_multiple_of(64);
            at
        };
        let ropes =
            lowered.ropes.iter().map(|rope| (take(shape.rows * rope.dims * size_of::<f32>()), rope.dims)).collect();
        let formed = take(lowered.formed_bytes);
        let (mut member_bytes, mut partial) = (0, 0);
        let split_rows = SPLIT_ROWS.min(shape.rows);
        let chunks = shape.context.div_ceil(attention::CHUNK);
        let (mut group_sums, mut group_factors) = (0, 0);
        for phase in &lowered.phases {
            match phase {
                Phase::Attention(op) => {
                    let head_dim = plan.kv_layer(op.layer).head_dim;
                    member_bytes = member_bytes.max(attention::scratch_floats(head_dim) * size_of::<f32>());
                    let one = attention::partial_floats(head_dim) * size_of::<f32>();
                    partial = partial.max(split_rows * op.heads * chunks * one);
                }
                Phase::Attend(op) => {
                    let head_dim = plan.value(op.q).cols / op.heads;
                    member_bytes = member_bytes.max(attend::scratch_floats(head_dim) * size_of::<f32>());
                }
                Phase::GroupSums(op) => {
                    group_sums = group_sums.max(op.images * op.runs() * op.groups * size_of::<[f64; 2]>());
                    group_factors = group_factors.max(op.images * plan.value(op.x).cols * size_of::<[f32; 2]>());
                }
                Phase::Winograd(op) => {
                    let floats = winograd::scratch_floats(op.slide.grid, plan.value(op.out).cols);
                    member_bytes = member_bytes.max(floats * size_of::<f32>());
                }
                Phase::Rows { .. } | Phase::MatMul(_) | Phase::GroupFactors(_) | Phase::Conv(_) => {}
            }
        }
        let group_sums = group_sums.next_multiple_of(64);
        let groups = take(group_sums + group_factors);
        let member_bytes = member_bytes.next_multiple_of(64);
        let members_at = take(member_bytes * members);
        let partials = take(partial);
        Scratch {
            ropes,
            formed,
            members: members_at,
            member_bytes,
            groups,
            group_sums,
            partials,
            chunks,
            split_rows,
            bytes: end,
        }
    }
}
