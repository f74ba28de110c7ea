//! GGUF files, versions 2 and 3, little-endian, after the GGUF specification of the ggml project.
//!
//! The header is copied before it is checked and never read again, so what was checked is what is used. Everything is
//! bounded by the bytes that were read: metadata stays in the copied header and is read through typed iterators.
//!
//! Where the specification leaves room, or files in the wild differ, this reader decides as follows:
//! - Nested arrays are accepted up to [`MAX_NESTING`] deep; strings, also those in arrays, are UTF-8 and may hold NUL.
//! - Keys and tensor names have 1 to 65,535 bytes, are UTF-8 and hold no NUL. (ggml itself stops at 63 for tensors.)
//! - `general.alignment` is a `u32`, a power of two from 8 to 2^20.
//! - Tensors may be listed in any order, but their data must follow one another, each padded to the alignment, without
//!   holes; after the last at most its own padding may follow, whose bytes do not matter. Anything more is
//!   [`TrailingData`](crate::ErrorKind::TrailingData).
//! - No tensor is empty, and none has more than 2^63-1 elements or bytes.
//! - A count is [`CountExceedsFile`](crate::ErrorKind::CountExceedsFile) when its entries would need 256 MiB more than is left of the file;
//!   below that a file that ends too early is [`Truncated`](crate::ErrorKind::Truncated), as an interrupted download is.
//! - Headers end within 4 GiB.

mod metadata;
mod scan;
mod tensors;
mod value;
pub mod write;

use std::path::{Path, PathBuf};

use crate::file::{ModelFile, ReadAt};
use crate::tensor::StoredTensor;
use crate::{ErrorKind, WeightsError};

pub use metadata::Metadata;
pub use scan::MAX_NESTING;
pub use value::{Array, Strs, Value, ValueType};
pub use write::{GgufWriter, KvValue};

pub(crate) use tensors::TensorTable;

/// The checked header of one GGUF file.
#[derive(Debug)]
pub struct Gguf {
    pub(crate) metadata: Metadata,
    pub(crate) table: TensorTable,
    version: u32,
}

impl Gguf {
    /// Reads and checks the header of the file at `path`. Tensor data is not read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let file = ModelFile::open(path.as_ref())?;
        Self::read(&file, file.path(), 0)
    }

    /// Checks a whole file in memory.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WeightsError> {
        Self::read(&bytes, Path::new("(memory)"), 0)
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment of tensor data in bytes.
    pub fn alignment(&self) -> u64 {
        self.table.alignment
    }

    /// Where the data section starts in the file.
    pub fn data_start(&self) -> u64 {
        self.table.data_start
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.table.tensors
    }

    /// The tensor called `name`.
    pub fn find(&self, name: &str) -> Option<&StoredTensor> {
        self.table.find(name)
    }

    /// Reads a header; its tensors are noted as those of file number `file_index`.
    pub(crate) fn read(src: &impl ReadAt, path: &Path, file_index: u32) -> Result<Self, WeightsError> {
        let fail = |kind| WeightsError::new(path, kind);
        let header = scan::scan(src).map_err(fail)?;
        let metadata = Metadata::index(PathBuf::from(path), header.metadata).map_err(fail)?;
        let alignment = metadata.alignment().map_err(fail)?;
        let table = TensorTable::build(&header.tensors, alignment, src.len(), file_index).map_err(fail)?;
        Ok(Gguf { metadata, table, version: header.version })
    }
}

impl ErrorKind {
    /// Whether the file merely ends too early, as an interrupted download does.
    pub fn is_truncation(&self) -> bool {
        matches!(self, ErrorKind::Truncated { .. } | ErrorKind::TensorOutOfFile { .. })
    }
}
