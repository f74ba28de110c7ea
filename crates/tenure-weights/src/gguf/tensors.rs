//! The second pass over the tensor infos: meaning, names, and where the data lies.

use tenure_tensor::{ByteSize, DType, Shape, TensorSpec};

use super::scan::{MAX_DIMS, TensorBytes};
use super::value::split_str;
use crate::error::try_vec;
use crate::tensor::{StoredTensor, find_by_name, index_by_name};
use crate::{ErrorKind, Shown};

pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
pub(super) const MIN_ALIGNMENT: u64 = 8;
pub(super) const MAX_ALIGNMENT: u64 = 1 << 20;

/// No size or offset may exceed this, so that sums of two of them cannot wrap.
const MAX_SIZE: u64 = i64::MAX as u64;

/// The tensors of one file, whose data is proven to lie in the file side by side.
#[derive(Debug)]
pub(crate) struct TensorTable {
    pub(crate) tensors: Vec<StoredTensor>,
    pub(crate) by_name: Vec<u32>,
    pub(super) alignment: u64,
    pub(super) data_start: u64,
}

impl TensorTable {
    pub(super) fn find(&self, name: &str) -> Option<&StoredTensor> {
        find_by_name(&self.tensors, &self.by_name, name)
    }

    pub(super) fn build(infos: &TensorBytes, alignment: u64, file_len: u64, file: u32) -> Result<Self, ErrorKind> {
        let mut tensors = try_vec(infos.count, "the tensor table")?;
        let mut rest = Infos(&infos.bytes);
        for _ in 0..infos.count {
            tensors.push(rest.tensor(alignment, file)?);
        }
        let by_name = index_by_name(&tensors)?;
        let end = infos.start + infos.bytes.len() as u64;
        let data_start = end.next_multiple_of(alignment);
        let mut table = TensorTable { tensors, by_name, alignment, data_start };
        table.check_layout(file_len)?;
        for tensor in &mut table.tensors {
            tensor.offset += data_start;
        }
        Ok(table)
    }

    /// Proves that the tensors tile the data section. Offsets are still relative to it.
    fn check_layout(&self, file_len: u64) -> Result<(), ErrorKind> {
        let data_len = file_len.saturating_sub(self.data_start);
        let mut order = Vec::new();
        if !self.tensors.is_sorted_by_key(|t| t.offset) {
            order = try_vec(self.tensors.len(), "the tensor table")?;
            order.extend(0..self.tensors.len() as u32);
            order.sort_unstable_by_key(|&i| self.tensors.get(i as usize).map(|t| t.offset));
        }
        let mut want = 0u64;
        let mut out_of_file = None;
        for i in 0..self.tensors.len() {
            let i = order.get(i).map_or(i, |&i| i as usize);
            let Some(t) = self.tensors.get(i) else { break };
            let name = || Shown::new(&t.spec.name);
            if t.offset < want {
                return Err(ErrorKind::Overlap { tensor: name(), offset: t.offset, end: want });
            }
            if t.offset > want && t.offset >= data_len {
                return Err(ErrorKind::BadOffset { tensor: name(), offset: t.offset.into() });
            }
            if t.offset > want {
                return Err(ErrorKind::Gap { tensor: name(), want, offset: t.offset });
            }
            let end = t.offset + t.bytes.get();
            if end > data_len && out_of_file.is_none() {
                let end = self.data_start.saturating_add(end);
                out_of_file = Some(ErrorKind::TensorOutOfFile { tensor: name(), end, len: file_len });
            }
            let padded = end.checked_next_multiple_of(self.alignment).filter(|&end| end <= MAX_SIZE);
            want = padded.ok_or_else(|| ErrorKind::SizeOverflow { tensor: name() })?;
        }
        if let Some(kind) = out_of_file {
            return Err(kind);
        }
        if data_len > want {
            return Err(ErrorKind::TrailingData { bytes: data_len - want });
        }
        Ok(())
    }
}

/// The infos not yet read. Their structure was scanned, so that reads beyond the end do not come about; if one did, it
/// would give zeros, which the checks below refuse.
struct Infos<'a>(&'a [u8]);

impl<'a> Infos<'a> {
    fn tensor(&mut self, alignment: u64, file: u32) -> Result<StoredTensor, ErrorKind> {
        let name = split_str(self.0).unwrap_or("");
        self.skip(8 + name.len());
        let tensor = || Shown::new(name);

        let rank = self.u32().min(MAX_DIMS) as usize;
        let mut dims: Vec<usize> = try_vec(rank, "a shape")?;
        let mut elements = 1u64;
        for _ in 0..rank {
            let dim = self.u64();
            if dim == 0 || dim > MAX_SIZE {
                return Err(ErrorKind::BadShape { tensor: tensor(), got: dim.into() });
            }
            let overflow = || ErrorKind::SizeOverflow { tensor: tensor() };
            dims.push(usize::try_from(dim).map_err(|_| overflow())?);
            elements = elements.checked_mul(dim).filter(|&n| n <= MAX_SIZE).ok_or_else(overflow)?;
        }
        // The file has the innermost dimension first.
        dims.reverse();

        let id = self.u32();
        let dtype = DType::from_ggml(id)
            .ok_or_else(|| ErrorKind::BadDtype { tensor: tensor(), got: Shown::from(u64::from(id)) })?;
        let spec = TensorSpec { name: name.to_owned(), dtype, shape: Shape::new(dims) };
        let cols = spec.shape.cols();
        if !cols.is_multiple_of(dtype.block_len()) {
            return Err(ErrorKind::BadShape { tensor: tensor(), got: Shown::from(cols as u64) });
        }
        let bytes = spec.bytes().filter(|bytes| bytes.get() <= MAX_SIZE);
        let bytes: ByteSize = bytes.ok_or_else(|| ErrorKind::SizeOverflow { tensor: tensor() })?;

        let offset = self.u64();
        if !offset.is_multiple_of(alignment) || offset > MAX_SIZE {
            return Err(ErrorKind::BadOffset { tensor: tensor(), offset: offset.into() });
        }
        // Both are at most 2^63-1: the sum does not wrap, and the layout check bounds it.
        Ok(StoredTensor { spec, bytes, offset, file })
    }

    fn u32(&mut self) -> u32 {
        let value = self.0.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        self.skip(4);
        value
    }

    fn u64(&mut self) -> u64 {
        let value = self.0.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        self.skip(8);
        value
    }

    fn skip(&mut self, n: usize) {
        self.0 = self.0.get(n..).unwrap_or_default();
    }
}
