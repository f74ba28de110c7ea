//! A tensor and where its bytes are.

use tenure_tensor::{ByteSize, TensorSpec};

use crate::error::try_vec;
use crate::{ErrorKind, Shown};

/// A tensor of a model file: its spec, and where its bytes are.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    pub(crate) spec: TensorSpec,
    pub(crate) bytes: ByteSize,
    pub(crate) offset: u64,
    pub(crate) file: u32,
}

impl StoredTensor {
    /// Name, type and shape.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// Its size.
    pub fn bytes(&self) -> ByteSize {
        self.bytes
    }

    /// Where its data starts in its file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its file, as an index into [`WeightStore::files`](crate::WeightStore::files).
    pub fn file(&self) -> usize {
        self.file as usize
    }
}

/// Indices of `tensors` sorted by name, or the name that occurs twice.
pub(crate) fn index_by_name(tensors: &[StoredTensor]) -> Result<Vec<u32>, ErrorKind> {
    let name = |&i: &u32| tensors.get(i as usize).map(|t| t.spec.name.as_str());
    let mut by_name = try_vec(tensors.len(), "the tensor table")?;
    by_name.extend(0..tensors.len() as u32);
    by_name.sort_unstable_by(|a, b| name(a).cmp(&name(b)));
    match by_name.windows(2).find(|w| matches!(w, [a, b] if name(a) == name(b))) {
        Some([a, _]) => Err(ErrorKind::DuplicateTensor { tensor: Shown::new(name(a).unwrap_or("")) }),
        _ => Ok(by_name),
    }
}

pub(crate) fn find_by_name<'t>(tensors: &'t [StoredTensor], by_name: &[u32], name: &str) -> Option<&'t StoredTensor> {
    tensors.get(position_by_name(tensors, by_name, name)?)
}

pub(crate) fn position_by_name(tensors: &[StoredTensor], by_name: &[u32], name: &str) -> Option<usize> {
    let at = by_name.binary_search_by(|&i| tensors.get(i as usize).map(|t| t.spec.name.as_str()).cmp(&Some(name)));
    by_name.get(at.ok()?).map(|&i| i as usize)
}
