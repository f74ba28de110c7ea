//! A small GGUF writer, for fixtures, tests and tools.

use std::io;

use tenure_tensor::{DType, Shape, TensorSpec};

use super::scan::MAX_NAME;
use super::tensors::{DEFAULT_ALIGNMENT, MAX_ALIGNMENT, MIN_ALIGNMENT};
use super::value::{Value, ValueType};
use crate::{ErrorKind, Shown, WeightsError};

/// Builds a GGUF file of version 3 in memory.
///
/// ```
/// use tenure_tensor::DType;
/// use tenure_weights::gguf::{Gguf, GgufWriter};
///
/// let file = GgufWriter::new()
///     .kv("general.architecture", "llama")
///     .kv("llama.block_count", 2u32)
///     .kv("tokenizer.ggml.tokens", ["<s>", "a"])
///     .tensor("token_embd.weight", DType::F32, [2, 4], vec![0; 32])
///     .finish()?;
/// assert_eq!(Gguf::from_bytes(&file)?.metadata().u32("llama.block_count")?, 2);
/// # Ok::<(), tenure_weights::WeightsError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    pairs: Vec<(String, KvValue)>,
    tensors: Vec<(TensorSpec, Vec<u8>)>,
}

impl GgufWriter {
    /// A file with neither metadata nor tensors.
    pub fn new() -> Self {
        GgufWriter::default()
    }

    /// Adds a key-value pair. `general.alignment` sets the alignment of the data.
    pub fn kv(mut self, key: impl Into<String>, value: impl Into<KvValue>) -> Self {
        self.pairs.push((key.into(), value.into()));
        self
    }

    /// Adds a tensor with its data; `shape` has the outermost dimension first.
    pub fn tensor(
        mut self,
        name: impl Into<String>,
        dtype: DType,
        shape: impl Into<Shape>,
        data: impl Into<Vec<u8>>,
    ) -> Self {
        self.tensors.push((TensorSpec { name: name.into(), dtype, shape: shape.into() }, data.into()));
        self
    }

    /// The file. Fails when a tensor's data is not as long as its shape and type say, its type has no number in the
    /// format, or anything else would make [`Gguf::from_bytes`](super::Gguf::from_bytes) refuse the file.
    pub fn finish(&self) -> Result<Vec<u8>, WeightsError> {
        let fail = |kind| WeightsError::new("(memory)", kind);
        let alignment = self.alignment().map_err(fail)?;
        let mut out = Vec::new();
        out.extend_from_slice(b"GGUF");
        out.extend_from_slice(&3u32.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            put_str(&mut out, key);
            out.extend_from_slice(&(value.value_type() as u32).to_le_bytes());
            value.put(&mut out);
        }
        let mut offset = 0u64;
        for (spec, data) in &self.tensors {
            put_info(&mut out, spec, data, offset).map_err(fail)?;
            offset = (offset + data.len() as u64).next_multiple_of(alignment);
        }
        for (_, data) in &self.tensors {
            out.resize(out.len().next_multiple_of(alignment as usize), 0);
            out.extend_from_slice(data);
        }
        out.resize(out.len().next_multiple_of(alignment as usize), 0);
        super::Gguf::from_bytes(&out)?;
        Ok(out)
    }

    /// Writes the file to `to`. What [`finish`](Self::finish) refuses comes as `InvalidInput`.
    pub fn write_to(&self, mut to: impl io::Write) -> io::Result<()> {
        let file = self.finish().map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        to.write_all(&file)
    }

    fn alignment(&self) -> Result<u64, ErrorKind> {
        match self.pairs.iter().find(|(key, _)| key == "general.alignment") {
            None => Ok(DEFAULT_ALIGNMENT),
            Some((_, KvValue::U32(n)))
                if n.is_power_of_two() && (MIN_ALIGNMENT..=MAX_ALIGNMENT).contains(&u64::from(*n)) =>
            {
                Ok(u64::from(*n))
            }
            Some((_, other)) => Err(ErrorKind::BadAlignment { got: Shown::new(format!("{other:?}")) }),
        }
    }
}

fn put_info(out: &mut Vec<u8>, spec: &TensorSpec, data: &[u8], offset: u64) -> Result<(), ErrorKind> {
    let tensor = || Shown::new(&spec.name);
    let bytes = spec.name.len() as u64;
    if bytes > MAX_NAME {
        return Err(ErrorKind::BadTensorName { tensor: tensor(), bytes });
    }
    let id =
        spec.dtype.ggml_id().ok_or_else(|| ErrorKind::BadDtype { tensor: tensor(), got: spec.dtype.name().into() })?;
    let want = spec
        .bytes()
        .ok_or_else(|| ErrorKind::BadShape { tensor: tensor(), got: Shown::new(spec.shape.to_string()) })?
        .get();
    if want != data.len() as u64 {
        return Err(ErrorKind::SizeMismatch { tensor: tensor(), want, got: data.len() as u64 });
    }
    put_str(out, &spec.name);
    out.extend_from_slice(&(spec.shape.rank() as u32).to_le_bytes());
    for &dim in spec.shape.dims().iter().rev() {
        out.extend_from_slice(&(dim as u64).to_le_bytes());
    }
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&offset.to_le_bytes());
    Ok(())
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend_from_slice(&(s.len() as u64).to_le_bytes());
    out.extend_from_slice(s.as_bytes());
}

/// A metadata value to be written.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // The names are the types'.
pub enum KvValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    /// The element type, and the elements, which must all be of that type.
    Array(ValueType, Vec<KvValue>),
}

impl KvValue {
    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            KvValue::U8(_) => ValueType::U8,
            KvValue::I8(_) => ValueType::I8,
            KvValue::U16(_) => ValueType::U16,
            KvValue::I16(_) => ValueType::I16,
            KvValue::U32(_) => ValueType::U32,
            KvValue::I32(_) => ValueType::I32,
            KvValue::U64(_) => ValueType::U64,
            KvValue::I64(_) => ValueType::I64,
            KvValue::F32(_) => ValueType::F32,
            KvValue::F64(_) => ValueType::F64,
            KvValue::Bool(_) => ValueType::Bool,
            KvValue::Str(_) => ValueType::Str,
            KvValue::Array(..) => ValueType::Array,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            KvValue::U8(v) => out.extend_from_slice(&v.to_le_bytes()),
            KvValue::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
            KvValue::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
            KvValue::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
            KvValue::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
            KvValue::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
            KvValue::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
            KvValue::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
            KvValue::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
            KvValue::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
            KvValue::Bool(v) => out.push(u8::from(*v)),
            KvValue::Str(v) => put_str(out, v),
            KvValue::Array(element, values) => {
                out.extend_from_slice(&(*element as u32).to_le_bytes());
                out.extend_from_slice(&(values.len() as u64).to_le_bytes());
                values.iter().for_each(|v| v.put(out));
            }
        }
    }
}

impl From<Value<'_>> for KvValue {
    fn from(value: Value<'_>) -> Self {
        match value {
            Value::U8(v) => KvValue::U8(v),
            Value::I8(v) => KvValue::I8(v),
            Value::U16(v) => KvValue::U16(v),
            Value::I16(v) => KvValue::I16(v),
            Value::U32(v) => KvValue::U32(v),
            Value::I32(v) => KvValue::I32(v),
            Value::U64(v) => KvValue::U64(v),
            Value::I64(v) => KvValue::I64(v),
            Value::F32(v) => KvValue::F32(v),
            Value::F64(v) => KvValue::F64(v),
            Value::Bool(v) => KvValue::Bool(v),
            Value::Str(v) => KvValue::Str(v.to_owned()),
            Value::Array(v) => KvValue::Array(v.element_type(), v.values().map(KvValue::from).collect()),
        }
    }
}

macro_rules! from_scalar {
    ($($t:ty => $variant:ident),*) => {$(
        impl From<$t> for KvValue {
            fn from(value: $t) -> Self {
                KvValue::$variant(value.into())
            }
        }

        impl From<Vec<$t>> for KvValue {
            fn from(values: Vec<$t>) -> Self {
                KvValue::Array(ValueType::$variant, values.into_iter().map(KvValue::from).collect())
            }
        }

        impl<const N: usize> From<[$t; N]> for KvValue {
            fn from(values: [$t; N]) -> Self {
                KvValue::Array(ValueType::$variant, values.into_iter().map(KvValue::from).collect())
            }
        }
    )*};
}

from_scalar!(
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32, f64 => F64,
    bool => Bool, &str => Str, String => Str
);
