//! Weights as a bound plan has them: in a lease, or in a mapping of the file.

use std::sync::Arc;

use tenure_device::HostBytes;
use tenure_tensor::{DType, codec};

use crate::layout::Layout;
use crate::raw::interpreter::Base;
use crate::simd::panels;

/// A weight's bytes.
pub(crate) enum Weight {
    Resident { base: Base, bytes: usize, layout: Layout, cols: usize, rows: usize, dtype: DType },
    Mapped { bytes: Arc<dyn HostBytes>, cols: usize, rows: usize, dtype: DType },
}

impl Weight {
    /// The bytes as they are held.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            // SAFETY: written by the load, read-only from then on, inside the lease the interpreter holds.
            Weight::Resident { base, bytes, .. } => unsafe { std::slice::from_raw_parts(base.0, *bytes) },
            Weight::Mapped { bytes, .. } => bytes.bytes(),
        }
    }

    /// The f32 elements of a vector.
    pub(crate) fn vector(&self) -> &[f32] {
        bytemuck::try_cast_slice(self.bytes()).unwrap_or_default()
    }

    pub(crate) fn cols(&self) -> usize {
        match *self {
            Weight::Resident { cols, .. } | Weight::Mapped { cols, .. } => cols,
        }
    }

    pub(crate) fn rows(&self) -> usize {
        match *self {
            Weight::Resident { rows, .. } | Weight::Mapped { rows, .. } => rows,
        }
    }

    pub(crate) fn dtype(&self) -> DType {
        match *self {
            Weight::Resident { dtype, .. } | Weight::Mapped { dtype, .. } => dtype,
        }
    }

    pub(crate) fn is_panels(&self) -> bool {
        match self {
            Weight::Resident { layout, .. } => *layout == Layout::Panels,
            Weight::Mapped { .. } => false,
        }
    }

    /// Copies one row as f32.
    pub(crate) fn look_up(&self, row: usize, out: &mut [f32]) {
        let (dtype, cols) = (self.dtype(), self.cols());
        if self.is_panels() {
            let panel = panels::panel_bytes(dtype, cols).unwrap_or(0);
            let at = row / panels::ROWS * panel;
            panels::dequantize_row(dtype, &self.bytes()[at..at + panel], row % panels::ROWS, out);
        } else if let Some(stride) = dtype.row_bytes(cols) {
            let bytes = &self.bytes()[row * stride..(row + 1) * stride];
            // The type was accepted when the plan was made.
            let _: Result<(), codec::CodecError> = codec::dequantize(dtype, bytes, out);
        }
    }
}
