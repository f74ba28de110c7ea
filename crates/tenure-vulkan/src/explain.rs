//! What a step is made of, counted: on a device that others share, counts say more than times.

use std::collections::{BTreeMap, BTreeSet};

use tenure_device::{DeviceError, StepRows, Wanted, top_len};
use tenure_graph::{KvType, OutputId, Plan, Rows, Val};

use crate::backend::{Shared, Vulkan};
use crate::hazard::Hazards;
use crate::kernel::Kernel;
use crate::kinds::{Many, Placed};
use crate::layout::{KvLayout, WORD, weight_bytes};
use crate::lower::{Bounds, Dispatch, lower, pieces};
use crate::tops::ENTRY;

/// The commands of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Runs of each kernel, by its name.
    pub dispatches: BTreeMap<&'static str, usize>,
    /// Barriers between them.
    pub barriers: usize,
    /// Submissions.
    pub submissions: usize,
    /// Bytes of weights that kernels read.
    pub weight_bytes: u64,
    /// Bytes of values that kernels read and write, without the KV cache.
    pub value_bytes: u64,
    /// Bytes of results that the host reads.
    pub read_back_bytes: u64,
}

/// The kernels that run a plan, by name, on a device with the least that Vulkan 1.1 demands.
///
/// # Errors
/// [`DeviceError::UnsupportedDtype`] or [`DeviceError::UnsupportedKv`] with the first thing no kernel is for;
/// [`DeviceError::TooLarge`] when something fits into no binding of a device with the least that Vulkan 1.1 demands.
pub fn kernels(plan: &Plan, kv: KvType) -> Result<BTreeSet<&'static str>, DeviceError> {
    kernels_within(plan, kv, Bounds::LEAST, "vulkan".to_owned())
}

/// [`kernels`] on a device.
pub(crate) fn kernels_within(
    plan: &Plan,
    kv: KvType,
    bounds: Bounds,
    device: String,
) -> Result<BTreeSet<&'static str>, DeviceError> {
    for weight in plan.weights() {
        if weight_bytes(weight).is_none() {
            let (name, dtype) = (weight.spec.name.clone(), weight.spec.dtype);
            return Err(DeviceError::UnsupportedDtype { device, name, dtype });
        }
    }
    if let Some(layer) = plan.kv_layers().iter().find(|&&layer| KvLayout::of(layer, kv).is_none()) {
        return Err(DeviceError::UnsupportedKv { kv, head_dim: layer.head_dim });
    }
    let dispatches = lower(plan, &Shared::nowhere(plan, kv, None), bounds).map_err(|error| error.on(device))?;
    Ok(dispatches.iter().map(|dispatch| dispatch.kernel.name()).collect())
}

impl Vulkan {
    /// Counts what a step of `plan` with so many rows takes on this device, with a KV cache of `kv_blocks` blocks, where
    /// `wanted` says what is wanted of each output. The rows are the last of a sequence as long as the plan's context.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] when something fits into no binding.
    pub fn explain(
        &self,
        plan: &Plan,
        (kv, kv_blocks): (KvType, usize),
        rows: usize,
        wanted: &[Wanted],
    ) -> Result<Explanation, DeviceError> {
        let shared = self.shared();
        let sites = Shared::nowhere(plan, kv, Some(kv_blocks));
        let dispatches = lower(plan, &sites, shared.bounds()).map_err(|error| error.on(shared.gpu.name()))?;
        let align = shared.gpu.limits.align;
        let positions: Vec<u32> = (0..plan.shape().context as u32).rev().take(rows).rev().collect();
        let placed = Placed { tables: &vec![0; positions.len()], positions: &positions };
        let step = StepRows { step: rows, out: wanted.len() };
        let many = Many::kind(&dispatches, placed, wanted.len());
        let pieces = pieces(&dispatches, plan.shape(), many, shared.gpu.limits.work);
        let read_back_bytes = read_back(plan, step, wanted);
        let mut explanation = Explanation { submissions: pieces.len(), read_back_bytes, ..Explanation::default() };
        for piece in pieces {
            let mut hazards = Hazards::default();
            for dispatch in dispatches[piece].iter().filter(|dispatch| dispatch.is_in(many)) {
                explanation.barriers += usize::from(hazards.must_wait(dispatch.bound(align)));
                let rows = dispatch.rows(step, wanted);
                let groups = dispatch.groups(rows, placed);
                // What there is nothing to do for, or nobody wants, is recorded, but costs next to nothing.
                if !groups.contains(&0) {
                    explanation.count(dispatch, rows, groups);
                }
            }
        }
        Ok(explanation)
    }
}

/// Bytes of results that the host reads.
fn read_back(plan: &Plan, step: StepRows, wanted: &[Wanted]) -> u64 {
    let of = |&(output, val): &(OutputId, Val)| {
        let value = plan.value(val);
        let row = value.cols as u64 * WORD;
        match (output, value.rows) {
            (OutputId::Logits, Rows::Out) => wanted
                .iter()
                .map(|wanted| match *wanted {
                    Wanted::Row => row,
                    Wanted::Top(k) => top_len(k, value.cols) as u64 * ENTRY,
                })
                .sum(),
            (OutputId::Logits | OutputId::Hidden | OutputId::Layer(_) | OutputId::Sample | OutputId::Context, rows) => {
                step.of(rows) as u64 * row
            }
        }
    };
    plan.outputs().iter().map(of).sum()
}

impl Explanation {
    fn count(&mut self, dispatch: &Dispatch, rows: usize, groups: [u32; 3]) {
        let kernel = dispatch.kernel;
        let is_product = kernel.is_product();
        *self.dispatches.entry(kernel.name()).or_default() += 1;
        let rows = (rows as u64).saturating_sub(dispatch.grid.first).min(dispatch.grid.most);
        for (at, (region, _)) in dispatch.operands.iter().enumerate() {
            match (kernel, at) {
                // Read anew for each tile of rows.
                (_, 1) if is_product => self.weight_bytes += region.bytes * u64::from(groups[1]),
                (Kernel::Embed, 0) => self.weight_bytes += rows * region.bytes / u64::from(dispatch.words[3]).max(1),
                (_, 2) if is_product => {
                    self.weight_bytes += if dispatch.words[5] == 0 { 0 } else { region.bytes };
                }
                (Kernel::RmsNorm | Kernel::RmsNormI16 | Kernel::Rope, 1) => self.weight_bytes += region.bytes,
                (Kernel::KvStore, 2) | (Kernel::Attention | Kernel::AttentionRows, 1) => {}
                // Parts, which are written here and read where they are joined.
                (Kernel::Attention, 2) if dispatch.parts.is_some() => {
                    let parts = rows * dispatch.grid.columns * u64::from(groups[2]);
                    self.value_bytes += 2 * parts * (u64::from(dispatch.constants[1]) + 2) * WORD;
                }
                (Kernel::AttentionJoin, 0) => {}
                (_, _) => self.value_bytes += region.bytes / dispatch.grid.most.max(1) * rows,
            }
        }
    }
}
