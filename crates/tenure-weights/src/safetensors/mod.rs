//! safetensors files, after the format description of the safetensors project.
//!
//! The header is parsed here with `serde_json`, streaming, and not by the `safetensors` crate: that one wants the whole
//! file as a slice, keeps the last of two tensors of one name, and does not say which tensor is at fault. It serves as
//! the oracle in this crate's tests.
//!
//! Where the format leaves room, this reader decides as follows:
//! - The header has at most 100,000,000 bytes, starts with `{` and ends with it or with white space.
//! - An unknown field of a tensor, a repeated field and a `__metadata__` value that is not a string are
//!   [`BadHeader`](crate::ErrorKind::BadHeader).
//! - Types without a [`DType`](tenure_tensor::DType) (4 and 6 bits, complex, E8M0, FNUZ) are [`BadDtype`](crate::ErrorKind::BadDtype).
//! - Tensor names have 1 to 65,535 bytes and no NUL; they are never used as paths. Tensors have at most 8 dimensions.
//! - The tensors tile the data section exactly, in any order; nothing follows the last.
//! - The bytes of `BOOL` tensors are not looked at.

mod header;

use std::path::Path;

use crate::file::{ModelFile, ReadAt};
use crate::tensor::{StoredTensor, find_by_name, index_by_name};
use crate::{ErrorKind, Shown, WeightsError};

pub use header::Metadata;

/// The most bytes a header may have.
pub const MAX_HEADER: u64 = 100_000_000;

/// The checked header of one safetensors file.
#[derive(Debug)]
pub struct Safetensors {
    pub(crate) tensors: Vec<StoredTensor>,
    pub(crate) by_name: Vec<u32>,
    pub(crate) metadata: Metadata,
}

impl Safetensors {
    /// Reads and checks the header of the file at `path`. Tensor data is not read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let file = ModelFile::open(path.as_ref())?;
        Self::read(&file, file.path(), 0)
    }

    /// Checks a whole file in memory.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WeightsError> {
        Self::read(&bytes, Path::new("(memory)"), 0)
    }

    /// The tensors, in the order of the header.
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn find(&self, name: &str) -> Option<&StoredTensor> {
        find_by_name(&self.tensors, &self.by_name, name)
    }

    /// The `__metadata__` of the file.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Reads a header; its tensors are noted as those of file number `file_index`.
    pub(crate) fn read(src: &impl ReadAt, path: &Path, file_index: u32) -> Result<Self, WeightsError> {
        Self::read_kind(src, file_index).map_err(|kind| WeightsError::new(path, kind))
    }

    fn read_kind(src: &impl ReadAt, file: u32) -> Result<Self, ErrorKind> {
        let len = src.len();
        if len < 8 {
            return Err(ErrorKind::Truncated { what: "header length", at: 0, need: 8, len });
        }
        let mut bytes = [0; 8];
        src.read_at(0, &mut bytes)?;
        let header_len = u64::from_le_bytes(bytes);
        if header_len > MAX_HEADER {
            return Err(ErrorKind::HeaderTooLarge { bytes: header_len, limit: MAX_HEADER });
        }
        let data_start = 8 + header_len;
        let Some(data_len) = len.checked_sub(data_start) else {
            return Err(ErrorKind::Truncated { what: "header", at: 8, need: header_len, len });
        };
        let mut text = crate::error::try_vec(header_len as usize, "the header")?;
        text.resize(header_len as usize, 0);
        src.read_at(8, &mut text)?;
        let (mut tensors, metadata) = header::parse(&text, data_start, data_len, file)?;
        drop(text);
        let by_name = index_by_name(&tensors)?;
        check_layout(&tensors, data_len)?;
        for tensor in &mut tensors {
            tensor.offset += data_start;
        }
        Ok(Safetensors { tensors, by_name, metadata })
    }
}

/// Proves that the tensors tile the data section. Offsets are still relative to it, and all ends lie within it.
fn check_layout(tensors: &[StoredTensor], data_len: u64) -> Result<(), ErrorKind> {
    // Empty tensors come before the one that starts where they are.
    let place = |t: &StoredTensor| (t.offset, t.bytes);
    let mut order = Vec::new();
    if !tensors.is_sorted_by_key(place) {
        order = crate::error::try_vec(tensors.len(), "the tensor table")?;
        order.extend(0..tensors.len() as u32);
        order.sort_unstable_by_key(|&i| tensors.get(i as usize).map(place));
    }
    let mut want = 0;
    for i in 0..tensors.len() {
        let Some(t) = tensors.get(order.get(i).map_or(i, |&i| i as usize)) else { break };
        let tensor = || Shown::new(&t.spec.name);
        if t.offset < want {
            return Err(ErrorKind::Overlap { tensor: tensor(), offset: t.offset, end: want });
        }
        if t.offset > want {
            return Err(ErrorKind::Gap { tensor: tensor(), want, offset: t.offset });
        }
        want += t.bytes.get();
    }
    if data_len > want {
        return Err(ErrorKind::TrailingData { bytes: data_len - want });
    }
    Ok(())
}
