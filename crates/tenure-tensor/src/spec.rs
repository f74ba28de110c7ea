//! What is known of a tensor before its bytes are read.

use crate::{ByteSize, DType, Shape};

/// Name, element type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The tensor's name in its file.
    pub name: String,
    /// Element or block type.
    pub dtype: DType,
    /// Dimensions, outermost first. Blocks lie along the innermost dimension.
    pub shape: Shape,
}

impl TensorSpec {
    /// The tensor's size, or `None` when a row is not whole blocks or the size overflows.
    pub fn bytes(&self) -> Option<ByteSize> {
        let row = self.dtype.row_bytes(self.shape.cols())? as u64;
        let rows = self.shape.rows()? as u64;
        row.checked_mul(rows).map(ByteSize::new)
    }
}
