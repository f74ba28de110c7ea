//! What a step is made of, counted: on a device that others share, counts say more than times.

use std::collections::{BTreeMap, BTreeSet};

use tenure_device::DeviceError;
use tenure_graph::{KvType, Plan, Rows};

use crate::backend::{Shared, Vulkan};
use crate::hazard::{Access, Hazards};
use crate::kernel::Kernel;
use crate::layout::{KvLayout, weight_bytes};
use crate::lower::{Bounds, Dispatch, Many, TooLarge, lower, pieces};

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
}

/// The kernels that run a plan, by name: the same on every device.
///
/// # Errors
/// [`DeviceError::UnsupportedDtype`] or [`DeviceError::UnsupportedKv`] with the first thing no kernel is for;
/// [`DeviceError::TooLarge`] when something fits into no binding of a device with the least that Vulkan 1.1 demands.
pub fn kernels(plan: &Plan, kv: KvType) -> Result<BTreeSet<&'static str>, DeviceError> {
    let device = || "vulkan".to_owned();
    for weight in plan.weights() {
        if weight_bytes(weight).is_none() {
            let (name, dtype) = (weight.spec.name.clone(), weight.spec.dtype);
            return Err(DeviceError::UnsupportedDtype { device: device(), name, dtype });
        }
    }
    if let Some(layer) = plan.kv_layers().iter().find(|&&layer| KvLayout::of(layer, kv).is_none()) {
        return Err(DeviceError::UnsupportedKv { kv, head_dim: layer.head_dim });
    }
    let least = Bounds { window: 1 << 27, groups: 65_535, work: u64::MAX };
    let dispatches = lower(plan, &Shared::nowhere(plan, kv, None), least);
    let dispatches = dispatches.map_err(|TooLarge { what, bytes, most }| DeviceError::TooLarge {
        device: device(),
        what,
        bytes,
        most,
    })?;
    let names = |dispatch: &Dispatch| Many::ALL.map(|many| dispatch.kernel_for(many).name());
    Ok(dispatches.iter().flat_map(names).collect())
}

impl Vulkan {
    /// Counts what a step of `plan` with so many rows and outputs takes on this device, with a KV cache of `kv_blocks`
    /// blocks.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] when something fits into no binding.
    pub fn explain(
        &self,
        plan: &Plan,
        (kv, kv_blocks): (KvType, usize),
        rows: usize,
        outs: usize,
    ) -> Result<Explanation, DeviceError> {
        let shared = self.shared();
        let sites = Shared::nowhere(plan, kv, Some(kv_blocks));
        let dispatches = lower(plan, &sites, shared.bounds()).map_err(|error| shared.too_large(error))?;
        let align = shared.gpu.limits.align;
        let many = Many::kind(rows, outs);
        let pieces = pieces(&dispatches, plan.shape(), many, shared.gpu.limits.work);
        let mut explanation = Explanation { submissions: pieces.len(), ..Explanation::default() };
        for piece in pieces {
            let mut hazards = Hazards::default();
            for dispatch in &dispatches[piece] {
                explanation.barriers += usize::from(hazards.must_wait(dispatch.bound(align)));
                let rows = match dispatch.grid.rows {
                    Rows::Step => rows,
                    Rows::Out => outs,
                };
                explanation.count(dispatch, many, rows);
            }
        }
        Ok(explanation)
    }
}

impl Explanation {
    fn count(&mut self, dispatch: &Dispatch, many: Many, rows: usize) {
        let kernel = dispatch.kernel_for(many);
        *self.dispatches.entry(kernel.name()).or_default() += 1;
        let tiles = dispatch.grid.groups(kernel.tile(), rows)[1];
        let rows = (rows as u64).saturating_sub(dispatch.grid.first).min(dispatch.grid.most);
        for (at, (region, access)) in dispatch.operands.iter().enumerate() {
            match (kernel, at, access) {
                // Read anew for each tile of rows.
                (Kernel::MatVec | Kernel::MatMul, 1, Access::Read) => {
                    self.weight_bytes += region.bytes * u64::from(tiles);
                }
                (Kernel::Embed, 0, _) => self.weight_bytes += rows * region.bytes / u64::from(dispatch.words[3]).max(1),
                (Kernel::MatVec | Kernel::MatMul, 2, _) if dispatch.words[5] == 0 => {}
                (Kernel::MatVec | Kernel::MatMul, 2, _) | (Kernel::RmsNorm | Kernel::Rope, 1, _) => {
                    self.weight_bytes += region.bytes;
                }
                (Kernel::KvStore, 2, _) | (Kernel::Attention | Kernel::AttentionRows, 1, _) => {}
                (_, _, _) => self.value_bytes += region.bytes / dispatch.grid.most.max(1) * rows,
            }
        }
    }
}
