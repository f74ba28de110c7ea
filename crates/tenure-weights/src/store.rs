//! The store: one model's tensors, from however many files.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use tenure_tensor::{ByteSize, TensorSpec};

use crate::file::{ModelFile, ReadAt};
use crate::tensor::{find_by_name, index_by_name, position_by_name};
use crate::{ErrorKind, Shown, StoredTensor, WeightsError, gguf, safetensors, shards};

/// The tensors of one model: a GGUF or safetensors file, or a set of shards.
///
/// Opening reads and checks headers only. The files stay open: one that is renamed over keeps its bytes, one that is
/// written to or cut is noticed at the next read.
#[derive(Debug)]
pub struct WeightStore {
    pub(crate) files: Vec<ModelFile>,
    pub(crate) tensors: Vec<StoredTensor>,
    by_name: Vec<u32>,
    pub(crate) gguf: Option<gguf::Metadata>,
    pub(crate) text: Option<safetensors::Metadata>,
}

impl WeightStore {
    /// Opens a GGUF or safetensors file, the first of several shards (their siblings are found), a shard index
    /// (`….safetensors.index.json`), or a folder that holds one of these.
    ///
    /// A file is taken for GGUF when it starts so or is called `.gguf`, else for safetensors. In a folder,
    /// `model.safetensors` and `diffusion_pytorch_model.safetensors` (or their indices) come first; otherwise there must
    /// be exactly one model. A diffusers pipeline is [`ErrorKind::DiffusersFolder`]: see [`crate::diffusers`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        shards::open(path.as_ref())
    }

    /// The tensors, in file order, shard after shard.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &StoredTensor> + Clone {
        self.tensors.iter()
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor called `name`, in O(log n).
    pub fn find(&self, name: &str) -> Option<&StoredTensor> {
        find_by_name(&self.tensors, &self.by_name, name)
    }

    /// Name, type and shape of the tensor called `name`.
    pub fn spec(&self, name: &str) -> Option<&TensorSpec> {
        self.find(name).map(StoredTensor::spec)
    }

    /// The GGUF metadata, of the first shard; `None` for safetensors.
    pub fn metadata(&self) -> Option<&gguf::Metadata> {
        self.gguf.as_ref()
    }

    /// The safetensors `__metadata__`, of the first shard; `None` for GGUF.
    pub fn text_metadata(&self) -> Option<&safetensors::Metadata> {
        self.text.as_ref()
    }

    /// The files, in shard order.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(ModelFile::path)
    }

    /// The size of all files together.
    pub fn file_bytes(&self) -> ByteSize {
        self.files.iter().map(|file| ByteSize::new(file.len())).sum()
    }

    /// Reads `buf.len()` bytes of `tensor`, a tensor of this store, from `offset` within it.
    ///
    /// Interrupted reads are repeated and short ones continued. [`ErrorKind::FileChanged`] when the file's size or
    /// modification time is no longer what it was when it was opened; `buf` then holds nothing of use.
    pub fn read_at(&self, tensor: &StoredTensor, offset: u64, buf: &mut [u8]) -> Result<(), WeightsError> {
        let file = self.file_of(tensor, offset, buf.len() as u64)?;
        file.read_at(tensor.offset + offset, buf).map_err(|kind| WeightsError::new(file.path(), kind))
    }

    /// The bytes of `tensor`, a tensor of this store, mapped into memory.
    ///
    /// A map is the cheap way to weights that are used where they are, and it trusts the file: when another process
    /// shortens it, touching the lost part kills this process (SIGBUS). Passing [`TrustFile`] says that nobody will.
    pub fn map(&self, tensor: &StoredTensor, _: TrustFile) -> Result<MappedTensor, WeightsError> {
        let bytes = tensor.bytes.get();
        let file = self.file_of(tensor, 0, bytes)?;
        let fail = |kind| WeightsError::new(file.path(), kind);
        let map = file.map().map_err(fail)?;
        let start = usize::try_from(tensor.offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(usize::try_from(bytes).ok()?)?));
        match range {
            Some(range) if range.end <= map.len() => Ok(MappedTensor { map, range: (range.start, range.end) }),
            _ => Err(fail(ErrorKind::FileChanged)),
        }
    }

    /// Whether every file is still what it was when it was opened. To be asked after a load.
    pub fn verify_unchanged(&self) -> Result<(), WeightsError> {
        let changed = |file: &ModelFile| file.verify_unchanged().map_err(|kind| WeightsError::new(file.path(), kind));
        self.files.iter().try_for_each(changed)
    }

    /// Puts shards together. The tables of one file are taken over as they are.
    pub(crate) fn assemble(
        files: Vec<ModelFile>,
        tensors: Vec<StoredTensor>,
        by_name: Option<Vec<u32>>,
    ) -> Result<Self, ErrorKind> {
        let by_name = by_name.map_or_else(|| index_by_name(&tensors), Ok)?;
        Ok(WeightStore { files, tensors, by_name, gguf: None, text: None })
    }

    /// The place of the tensor called `name` among all.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        position_by_name(&self.tensors, &self.by_name, name)
    }

    fn file_of(&self, tensor: &StoredTensor, offset: u64, len: u64) -> Result<&ModelFile, WeightsError> {
        let bytes = tensor.bytes.get();
        let file = self.files.get(tensor.file());
        let inside = offset.checked_add(len).is_some_and(|end| end <= bytes);
        // The second condition holds for every tensor of this store.
        file.filter(|file| inside && tensor.offset.saturating_add(bytes) <= file.len()).ok_or_else(|| {
            let path = file.or(self.files.first()).map_or(Path::new(""), |file| file.path());
            let tensor = Shown::new(&tensor.spec.name);
            WeightsError::new(path, ErrorKind::ReadOutOfTensor { tensor, offset, len, bytes })
        })
    }
}

/// The caller's word that nobody writes to or shortens a model file while it is mapped.
#[derive(Clone, Copy, Debug)]
pub struct TrustFile;

/// The bytes of a tensor in a mapped file. Keeps the mapping alive, also beyond its store.
#[derive(Clone, Debug)]
pub struct MappedTensor {
    map: Arc<Mmap>,
    range: (usize, usize),
}

impl MappedTensor {
    /// `len` of the bytes from `start` on, such as some of the tensor's rows; `None` where there are not so many.
    pub fn part(&self, start: u64, len: u64) -> Option<MappedTensor> {
        let (from, to) = self.range;
        let start = from.checked_add(usize::try_from(start).ok()?)?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        (end <= to).then(|| MappedTensor { map: self.map.clone(), range: (start, end) })
    }
}

impl Deref for MappedTensor {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // In range since `WeightStore::map`.
        self.map.get(self.range.0..self.range.1).unwrap_or_default()
    }
}
