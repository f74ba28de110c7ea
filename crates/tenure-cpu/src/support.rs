//! What there are kernels for.

use tenure_device::DeviceError;
use tenure_graph::{KvType, Plan};

use crate::layout::Layout;
use crate::simd::{Isa, attention, float, panels};

/// Whether the kernels of an instruction set run everything in a plan, on a processor that has it.
///
/// # Errors
/// [`DeviceError::UnsupportedDtype`] or [`DeviceError::UnsupportedKv`] with the first thing they do not.
pub fn supports(isa: Isa, plan: &Plan, kv: KvType) -> Result<(), DeviceError> {
    for weight in plan.weights() {
        let dtype = weight.spec.dtype;
        let products = match Layout::of(weight) {
            Layout::Panels => panels::has_kernel(isa, dtype),
            Layout::Kernel => float::has_kernel(dtype),
            Layout::Raw => !weight.as_matrix || float::has_kernel(dtype),
            Layout::Vector => !dtype.is_block(),
        };
        // Vectors and rows of tables are converted by the codecs.
        if !products || !dtype.is_computable() {
            let (device, name) = ("cpu".to_owned(), weight.spec.name.clone());
            return Err(DeviceError::UnsupportedDtype { device, name, dtype });
        }
    }
    let unsupported = plan.kv_layers().iter().find(|layer| attention::block_bytes(kv, layer.head_dim).is_none());
    unsupported.map_or(Ok(()), |layer| Err(DeviceError::UnsupportedKv { kv, head_dim: layer.head_dim }))
}
