//! The first pass: reads the header in growing steps and proves its structure.

use tenure_tensor::DType;

use super::tensors::DEFAULT_ALIGNMENT;
use super::value::ValueType;
use crate::error::try_vec;
use crate::file::ReadAt;
use crate::{ErrorKind, Shown};

/// How deep arrays may lie within arrays.
pub const MAX_NESTING: u32 = 8;

/// Positions in a header are kept as u32.
const MAX_HEADER: u64 = u32::MAX as u64;
const FIRST_READ: u64 = 64 << 10;
const MOST_AHEAD: u64 = 1 << 20;
/// How far a count may exceed the file and still be called truncation. No memory is reserved by counts.
const COUNT_SLACK: u64 = 256 << 20;
const MIN_KV: u64 = 8 + 1 + 4 + 1;
const MIN_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;
pub(super) const MAX_NAME: u64 = 65_535;
pub(super) const MAX_DIMS: u32 = 4;

/// A header whose structure is proven: every length, type number, bool and metadata string is right.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: MetadataBytes,
    pub(super) tensors: TensorBytes,
}

/// The header up to the tensor infos.
#[derive(Debug)]
pub(super) struct MetadataBytes {
    pub(super) bytes: Vec<u8>,
    pub(super) first_key: usize,
    pub(super) pairs: usize,
}

/// The tensor infos.
pub(super) struct TensorBytes {
    pub(super) bytes: Vec<u8>,
    pub(super) count: usize,
    /// Where the infos start in the file.
    pub(super) start: u64,
}

pub(super) fn scan(src: &impl ReadAt) -> Result<Header, ErrorKind> {
    let mut scan = Scan { src, len: src.len(), buf: Vec::new(), pos: 0 };
    let version = scan.start()?;
    let n_tensors = scan.u64("tensor count")?;
    let n_kv = scan.u64("key-value count")?;
    for (count, least, what) in [(n_tensors, MIN_TENSOR, "tensors"), (n_kv, MIN_KV, "key-value pairs")] {
        if count.checked_mul(least).is_none_or(|bytes| bytes > i64::MAX as u64) {
            return Err(ErrorKind::CountTooLarge { what, count });
        }
        scan.plausible(count, least, what)?;
    }

    let first_key = scan.pos;
    let mut last_key = scan.pos;
    for _ in 0..n_kv {
        last_key = scan.pos;
        scan.pair()?;
    }
    let tensors_at = scan.pos;
    for i in 0..n_tensors {
        if let Err(kind) = scan.tensor_info() {
            if i == 0
                && n_kv > 0
                && let Some(key) = scan.pair_is_tensor(last_key)
            {
                return Err(ErrorKind::BadKv { key });
            }
            return Err(scan.one_tensor_too_many(tensors_at, i, n_tensors).unwrap_or(kind));
        }
    }

    // The two parts go to two places that live for different times.
    let mut infos = try_vec(scan.pos - tensors_at, "tensor infos")?;
    infos.extend_from_slice(scan.buf.get(tensors_at..scan.pos).unwrap_or_default());
    scan.buf.truncate(tensors_at);
    scan.buf.shrink_to_fit();
    Ok(Header {
        version,
        metadata: MetadataBytes { bytes: scan.buf, first_key, pairs: n_kv as usize },
        tensors: TensorBytes { bytes: infos, count: n_tensors as usize, start: tensors_at as u64 },
    })
}

struct Scan<'s, S> {
    src: &'s S,
    len: u64,
    buf: Vec<u8>,
    pos: usize,
}

impl<S: ReadAt> Scan<'_, S> {
    /// Magic and version.
    fn start(&mut self) -> Result<u32, ErrorKind> {
        let magic = self.array::<4>("magic")?;
        if magic != *b"GGUF" {
            return Err(ErrorKind::BadMagic { got: magic });
        }
        match self.u32("version")? {
            version @ (2 | 3) => Ok(version),
            got if got & 0xffff == 0 && got != 0 => Err(ErrorKind::WrongEndian { got }),
            got => Err(ErrorKind::UnsupportedVersion { got }),
        }
    }

    fn pair(&mut self) -> Result<(), ErrorKind> {
        let (at, bytes) = self.string("key")?;
        let key = self.slice(at, bytes);
        if !good_name(key) {
            return Err(ErrorKind::BadKey { key: Shown::new(key), bytes });
        }
        let id = self.u32("value type")?;
        self.value((at, bytes), id, 0)
    }

    fn value(&mut self, key: (usize, u64), id: u32, depth: u32) -> Result<(), ErrorKind> {
        let ty = self.value_type(key, id)?;
        match ty {
            ValueType::Str => self.string_value(key),
            ValueType::Array => {
                let id = self.u32("array element type")?;
                let element = self.value_type(key, id)?;
                let count = self.u64("array length")?;
                let least = element.fixed_bytes().unwrap_or(if element == ValueType::Str { 8 } else { 12 });
                self.plausible(count, least, "array elements")?;
                match element {
                    ValueType::Str => (0..count).try_for_each(|_| self.string_value(key)),
                    ValueType::Array if depth + 1 >= MAX_NESTING => {
                        Err(ErrorKind::NestingTooDeep { key: self.shown(key), limit: MAX_NESTING })
                    }
                    ValueType::Array => (0..count).try_for_each(|_| self.value(key, id, depth + 1)),
                    _ => self.fixed(key, element, count),
                }
            }
            _ => self.fixed(key, ty, 1),
        }
    }

    fn string_value(&mut self, key: (usize, u64)) -> Result<(), ErrorKind> {
        let (at, bytes) = self.string("string value")?;
        if std::str::from_utf8(self.slice(at, bytes)).is_err() {
            return Err(ErrorKind::BadString { key: self.shown(key), at: at as u64 });
        }
        Ok(())
    }

    /// `count` values of a type of fixed size.
    fn fixed(&mut self, key: (usize, u64), ty: ValueType, count: u64) -> Result<(), ErrorKind> {
        // `plausible` has bounded the count, so that this cannot saturate.
        let bytes = count.saturating_mul(ty.fixed_bytes().unwrap_or(1));
        let at = self.take(bytes, "value")?;
        if ty == ValueType::Bool
            && let Some(&got) = self.slice(at, bytes).iter().find(|&&b| b > 1)
        {
            return Err(ErrorKind::BadBool { key: self.shown(key), got });
        }
        Ok(())
    }

    /// Passes over one tensor info; what its numbers mean is checked later.
    fn tensor_info(&mut self) -> Result<(), ErrorKind> {
        let (at, bytes) = self.string("tensor name")?;
        let name = self.slice(at, bytes);
        if !good_name(name) {
            return Err(ErrorKind::BadTensorName { tensor: Shown::new(name), bytes });
        }
        let dims = self.u32("dimension count")?;
        if !(1..=MAX_DIMS).contains(&dims) {
            let tensor = self.shown((at, bytes));
            return Err(ErrorKind::BadRank { tensor, got: dims.into(), min: 1, max: MAX_DIMS });
        }
        self.take(u64::from(dims) * 8 + 4 + 8, "tensor info")?;
        Ok(())
    }

    /// Whether the pair at `at` makes sense as a tensor info: then it is one, and the pair count was too large.
    fn pair_is_tensor(&mut self, at: usize) -> Option<Shown> {
        self.pos = at;
        let (name_at, name_bytes) = self.string("").ok()?;
        let dims = self.u32("").ok().filter(|dims| (1..=MAX_DIMS).contains(dims))?;
        let mut elements = 1u64;
        let mut cols = 0;
        for d in 0..dims {
            let dim = self.u64("").ok().filter(|&dim| dim > 0)?;
            elements = elements.checked_mul(dim).filter(|&n| n <= i64::MAX as u64)?;
            if d == 0 {
                cols = dim;
            }
        }
        let dtype = DType::from_ggml(self.u32("").ok()?)?;
        self.u64("").ok()?;
        cols.is_multiple_of(dtype.block_len() as u64).then(|| self.shown((name_at, name_bytes)))
    }

    /// Whether the infos before number `i`, the last that is announced, account for the whole file: then the file holds
    /// one tensor less than it says.
    fn one_tensor_too_many(&mut self, tensors_at: usize, i: u64, n_tensors: u64) -> Option<ErrorKind> {
        if i == 0 || i + 1 != n_tensors {
            return None;
        }
        self.pos = tensors_at;
        let mut end = 0u64;
        for _ in 0..i {
            self.string("").ok()?;
            let dims = self.u32("").ok()?;
            let mut elements = 1u64;
            for _ in 0..dims {
                elements = elements.checked_mul(self.u64("").ok()?)?;
            }
            let dtype = DType::from_ggml(self.u32("").ok()?)?;
            let bytes = (elements / dtype.block_len() as u64).checked_mul(dtype.block_bytes() as u64)?;
            end = end.max(self.u64("").ok()?.checked_add(bytes)?);
        }
        // A guess that only chooses the error's name, so the usual alignment will do.
        let at = self.pos as u64;
        let data = at.next_multiple_of(DEFAULT_ALIGNMENT);
        let fits = |end: u64| data.checked_add(end).is_some_and(|end| end == self.len);
        (fits(end) || fits(end.checked_next_multiple_of(DEFAULT_ALIGNMENT)?)).then_some(ErrorKind::Truncated {
            what: "tensor info",
            at,
            need: MIN_TENSOR,
            len: self.len,
        })
    }

    fn value_type(&self, key: (usize, u64), id: u32) -> Result<ValueType, ErrorKind> {
        ValueType::from_id(id).ok_or_else(|| ErrorKind::BadValueType { key: self.shown(key), got: id })
    }

    /// Refuses a count that is out of all proportion to the file.
    fn plausible(&self, count: u64, least: u64, what: &'static str) -> Result<(), ErrorKind> {
        let need = count.saturating_mul(least);
        let left = self.len.saturating_sub(self.pos as u64);
        if need > left.saturating_add(COUNT_SLACK) {
            return Err(ErrorKind::CountExceedsFile { what, count, need, left });
        }
        Ok(())
    }

    /// A length and so many bytes; gives where they are.
    fn string(&mut self, what: &'static str) -> Result<(usize, u64), ErrorKind> {
        let bytes = self.u64(what)?;
        if bytes > i64::MAX as u64 {
            return Err(ErrorKind::StringTooLong { what, bytes });
        }
        Ok((self.take(bytes, what)?, bytes))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, ErrorKind> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, ErrorKind> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ErrorKind> {
        let at = self.take(N as u64, what)?;
        let mut out = [0; N];
        out.copy_from_slice(self.slice(at, N as u64));
        Ok(out)
    }

    /// Passes over `n` bytes, which are in the buffer then; gives where they start.
    fn take(&mut self, n: u64, what: &'static str) -> Result<usize, ErrorKind> {
        let at = self.pos;
        let end = (at as u64).saturating_add(n);
        if end > self.buf.len() as u64 {
            if end > self.len {
                return Err(ErrorKind::Truncated { what, at: at as u64, need: n, len: self.len });
            }
            if end > MAX_HEADER {
                return Err(ErrorKind::HeaderTooLarge { bytes: end, limit: MAX_HEADER });
            }
            self.read_to(end)?;
        }
        self.pos = end as usize;
        Ok(at)
    }

    /// Reads on to `end`, and somewhat beyond so that small fields do not each cost a read.
    fn read_to(&mut self, end: u64) -> Result<(), ErrorKind> {
        let have = self.buf.len();
        let ahead = (have as u64).clamp(FIRST_READ, MOST_AHEAD);
        let to = end.max(have as u64 + ahead).min(self.len) as usize;
        let more = to - have;
        self.buf.try_reserve(more).map_err(|_| ErrorKind::HostOutOfMemory { what: "the header", bytes: to as u64 })?;
        self.buf.resize(to, 0);
        self.src.read_at(have as u64, self.buf.get_mut(have..).unwrap_or_default())
    }

    fn slice(&self, at: usize, bytes: u64) -> &[u8] {
        self.buf.get(at..).and_then(|rest| rest.get(..bytes as usize)).unwrap_or_default()
    }

    fn shown(&self, (at, bytes): (usize, u64)) -> Shown {
        Shown::new(self.slice(at, bytes))
    }
}

/// The rule for keys and tensor names.
fn good_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() as u64 <= MAX_NAME && !name.contains(&0) && std::str::from_utf8(name).is_ok()
}
