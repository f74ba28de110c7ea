//! The largest logits of each output: where they are found, and how much memory that takes.

use tenure_device::{MOST_TOP, top_len};
use tenure_graph::{OutputId, Plan, Rows, Val};

use crate::layout::WORD;

/// Logits that a workgroup looks through.
pub(crate) const PART: u64 = 4096;
/// Bytes of an entry: the id and the logit.
pub(crate) const ENTRY: u64 = 2 * WORD;

/// How the largest logits of an output are found: those of each part of a row, in the scratch, and from these those of
/// the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tops {
    pub(crate) logits: Val,
    /// Logits of a row.
    pub(crate) cols: u64,
    /// Parts of a row, each of [`PART`] logits but for the last.
    pub(crate) parts: u64,
    /// Entries of a list, at most.
    pub(crate) room: u64,
    /// Outputs of a step, at most.
    pub(crate) outs: u64,
}

impl Tops {
    /// For the plan's logits, if its steps give any of the rows wanted.
    pub(crate) fn of(plan: &Plan) -> Option<Tops> {
        let logits = plan.output(OutputId::Logits)?;
        let value = plan.value(logits);
        let cols = value.cols as u64;
        let outs = match value.rows {
            Rows::Out => plan.shape().outs as u64,
            Rows::Step | Rows::Fixed(_) => return None,
        };
        Some(Tops { logits, cols, parts: cols.div_ceil(PART), room: top_len(MOST_TOP, value.cols) as u64, outs })
    }

    /// Bytes of the largest logits of all rows.
    pub(crate) const fn bytes(self) -> u64 {
        self.outs.saturating_mul(self.room * ENTRY)
    }

    /// Bytes of those of the parts of all rows.
    pub(crate) const fn scratch_bytes(self) -> u64 {
        self.bytes().saturating_mul(self.parts)
    }

    /// Words of the entries of a row.
    pub(crate) const fn row_words(self) -> u64 {
        self.room * ENTRY / WORD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_can_be_wanted_as_a_workgroup_has_lanes() {
        let common = include_str!("../../../kernels/vulkan/common.glsl");
        assert!(common.contains(&format!("const uint LANES = {MOST_TOP}u;")));
    }
}
