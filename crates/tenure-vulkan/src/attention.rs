//! How attention is divided: rows between two kernels, and a row's positions among workgroups.
//!
//! Rows of one sequence that follow one another are computed together, where there are enough of them. A few rows would
//! leave most of a device idle when they attend to much, so their positions are divided into parts, which another kernel
//! joins. `kernels/vulkan/elements.glsl` and `softmax.glsl` divide in the same way.

use tenure_graph::{KvLayerId, Op, Plan};

use crate::kinds::FEW;
use crate::layout::WORD;

/// How the positions of a row are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    /// The most parts of a row.
    pub(crate) most: u32,
    /// The positions a row attends to, at most; 0: all.
    window: u32,
}

/// Positions of a unit, which is never divided: as many as a workgroup has lanes.
const UNIT: usize = 128;
/// Units of a part, at least: with fewer there is more to join than to compute.
const LEAST_UNITS: usize = 2;
/// Parts of a row, at most: enough to occupy a device with the heads of one row.
const MOST_PARTS: usize = 32;
/// Rows that may be computed together.
pub(crate) const ROWS: usize = 8;
/// Rows of a sequence there must be on the average, for them to be computed together.
const LEAST_ROWS: usize = 4;

impl Parts {
    /// For rows of so many heads that attend to `window` positions of `context`, or to all; `None` when a row is never
    /// divided, or what is to be joined does not fit a binding of so many bytes.
    pub(crate) fn of(
        plan: &Plan,
        layer: KvLayerId,
        heads: usize,
        window: Option<usize>,
        binding: u64,
    ) -> Option<Parts> {
        let context = plan.shape().context;
        let units = match window {
            // The first and the last of them may reach beyond the window.
            Some(window) => context.div_ceil(UNIT).min(window.div_ceil(UNIT).saturating_add(1)),
            None => context.div_ceil(UNIT),
        };
        let fit = binding / part_bytes(plan, layer, heads).max(1);
        let most = units.div_ceil(LEAST_UNITS).min(MOST_PARTS).min(fit as usize);
        (most > 1).then_some(Parts { most: most as u32, window: window.unwrap_or(0) as u32 })
    }

    /// Parts of a row at `position`.
    pub(crate) fn count(self, position: u32) -> u32 {
        let unit = UNIT as u32;
        let first = if self.window != 0 && position >= self.window { position + 1 - self.window } else { 0 };
        let units = position / unit - first / unit + 1;
        units.div_ceil(units.div_ceil(self.most).max(LEAST_UNITS as u32))
    }
}

/// Bytes of one part of all heads of the most rows that are divided: of each its sums, the largest score, and the sum of
/// its weights.
pub(crate) fn part_bytes(plan: &Plan, layer: KvLayerId, heads: usize) -> u64 {
    let (rows, part) = (plan.shape().rows.min(FEW) as u64, (plan.kv_layer(layer).head_dim as u64 + 2) * WORD);
    rows.saturating_mul(heads as u64).saturating_mul(part)
}

/// Bytes of the parts of the operation that has most, given the most bytes of a binding.
pub(crate) fn scratch_bytes(plan: &Plan, binding: u64) -> u64 {
    let of = |op: &Op| match *op {
        Op::Attention { layer, heads, window, .. } => {
            let parts = Parts::of(plan, layer, heads, window, binding).map_or(0, |parts| u64::from(parts.most));
            parts * part_bytes(plan, layer, heads)
        }
        _ => 0,
    };
    plan.steps().iter().map(|step| of(&step.op)).max().unwrap_or(0)
}

/// Which of the rows are computed together, and which row by row, given the table of each: whether there are any.
pub(crate) fn shared_and_left(tables: &[u32]) -> (bool, bool) {
    let is_shared = |tables: &[u32]| tables.len() >= LEAST_ROWS * tables.chunk_by(|a, b| a == b).count();
    let mut tiles = tables.chunks(ROWS);
    (tiles.clone().any(is_shared), tiles.any(|tile| !is_shared(tile)))
}

#[cfg(test)]
mod tests {
    use tenure_graph::{Graph, OutputId, StepShape};
    use tenure_tensor::{DType, Shape, TensorSpec};

    use super::*;

    /// One layer of four heads of 16.
    fn plan(rows: usize, context: usize, window: Option<usize>) -> Plan {
        let file = vec![TensorSpec { name: "w".to_owned(), dtype: DType::F32, shape: Shape::from([64, 64]) }];
        let g = Graph::new(&file, StepShape { rows, outs: 1, context });
        let x = g.embed(g.table("w", 64, 64), 1.0);
        let layer = g.kv_layer(4, 16);
        g.kv_store(x, x, layer);
        let y = g.take_rows(g.attention(x, layer, 4, 0.25, window, None));
        g.finish(&[(OutputId::Logits, y)]).expect("a sound plan")
    }

    fn parts(context: usize, window: Option<usize>, binding: u64) -> Option<Parts> {
        let plan = plan(20, context, window);
        let attention = plan.steps().iter().find_map(|step| match step.op {
            Op::Attention { layer, .. } => Some(layer),
            _ => None,
        });
        Parts::of(&plan, attention.expect("is there"), 4, window, binding)
    }

    #[test]
    fn positions_are_divided_by_themselves_and_what_the_plan_allows() {
        assert_eq!(parts(256, None, u64::MAX), None, "two units are one part");
        let few = parts(257, None, u64::MAX).expect("three units");
        assert_eq!([0, 127, 255, 256].map(|position| few.count(position)), [1, 1, 1, 2]);
        let long = parts(1 << 20, None, u64::MAX).expect("many units");
        assert_eq!([4095, 8191, 8192, 8320].map(|position| long.count(position)), [16, 32, 22, 22]);
        for position in (0..1 << 20).step_by(997) {
            assert!((1..=32).contains(&long.count(position)), "{position}");
        }
        // A window is divided wherever it lies.
        assert_eq!(parts(1 << 20, Some(128), u64::MAX), None);
        let window = parts(1 << 20, Some(512), u64::MAX).expect("five units");
        assert_eq!([511, 512, 513, 639, 640].map(|position| window.count(position)), [2, 3, 3, 2, 3]);
    }

    #[test]
    fn parts_fit_a_binding_or_there_are_none() {
        let part = 8 * 4 * 18 * WORD;
        assert_eq!(parts(4096, None, 2 * part - 1), None);
        assert_eq!(parts(4096, None, 3 * part).map(|parts| parts.most), Some(3));
        assert_eq!(scratch_bytes(&plan(20, 4096, None), 3 * part), 3 * part);
        assert_eq!(scratch_bytes(&plan(20, 4096, None), u64::MAX), 16 * part);
        assert_eq!(scratch_bytes(&plan(2, 300, None), u64::MAX), 2 * part / 4);
        assert_eq!(scratch_bytes(&plan(20, 256, None), u64::MAX), 0);
    }

    #[test]
    fn rows_are_computed_together_where_sequences_have_enough_of_them() {
        assert_eq!(shared_and_left(&[]), (false, false));
        assert_eq!(shared_and_left(&[3; 20]), (true, false), "8, 8 and 4");
        assert_eq!(shared_and_left(&[3; 19]), (true, true), "8, 8 and 3");
        assert_eq!(shared_and_left(&[1, 1, 1, 1, 1, 1, 1, 2]), (true, false));
        assert_eq!(shared_and_left(&[1, 1, 2, 2, 1, 1, 1, 1]), (false, true), "three runs");
        assert_eq!(shared_and_left(&[1, 2, 3, 4, 5, 6, 7, 8, 9]), (false, true));
    }

    /// What host and device must divide alike.
    #[test]
    fn the_kernels_divide_in_the_same_way() {
        let sources = [
            include_str!("../../../kernels/vulkan/common.glsl"),
            include_str!("../../../kernels/vulkan/elements.glsl"),
            include_str!("../../../kernels/vulkan/softmax.glsl"),
        ];
        for (name, value) in [("LANES", UNIT), ("LEAST_UNITS", LEAST_UNITS), ("ROWS", ROWS), ("LEAST_ROWS", LEAST_ROWS)]
        {
            let line = format!("const uint {name} = {value}u;");
            assert!(sources.iter().any(|source| source.lines().any(|found| found == line)), "{line}");
        }
    }
}
