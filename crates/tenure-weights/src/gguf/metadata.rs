//! The key-value pairs of a GGUF file.

use std::path::PathBuf;

use super::scan::MetadataBytes;
use super::tensors::{DEFAULT_ALIGNMENT, MAX_ALIGNMENT, MIN_ALIGNMENT};
use super::value::{self, Array, Place, Strs, Value, ValueType};
use crate::error::try_vec;
use crate::{ErrorKind, Shown, WeightsError};

/// The key-value pairs of a GGUF file, in file order, found by key in O(log n).
///
/// The typed getters compare types exactly, as llama.cpp does: a hyperparameter that must be a `u32` and is stored as a
/// `u64`, `i32`, `f32` or string is [`WrongType`](ErrorKind::WrongType). Those called `opt_…` give `None` where the
/// others give [`MissingKey`](ErrorKind::MissingKey), and still refuse another type.
#[derive(Debug)]
pub struct Metadata {
    path: PathBuf,
    bytes: Vec<u8>,
    /// In file order.
    pairs: Vec<Pair>,
    /// Indices into `pairs`, by key.
    by_key: Vec<u32>,
}

/// Where a key's length and a value's type number are in the header.
#[derive(Debug, Clone, Copy)]
struct Pair {
    key: u32,
    value: u32,
}

impl Metadata {
    /// The number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The pairs in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.pairs.iter().filter_map(|pair| Some((self.key_of(*pair), self.value_of(*pair)?)))
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        let found = self.by_key.binary_search_by(|&i| self.key_at(i).cmp(key)).ok()?;
        self.value_of(*self.pairs.get(*self.by_key.get(found)? as usize)?)
    }

    /// The string at `key`.
    pub fn str(&self, key: &str) -> Result<&str, WeightsError> {
        self.opt_str(key)?.ok_or_else(|| self.missing(key))
    }

    /// The `u32` at `key`.
    pub fn u32(&self, key: &str) -> Result<u32, WeightsError> {
        self.opt_u32(key)?.ok_or_else(|| self.missing(key))
    }

    /// The `f32` at `key`.
    pub fn f32(&self, key: &str) -> Result<f32, WeightsError> {
        self.opt_f32(key)?.ok_or_else(|| self.missing(key))
    }

    /// The bool at `key`.
    pub fn bool(&self, key: &str) -> Result<bool, WeightsError> {
        self.opt_bool(key)?.ok_or_else(|| self.missing(key))
    }

    /// The array at `key`.
    pub fn array(&self, key: &str) -> Result<Array<'_>, WeightsError> {
        self.opt_array(key)?.ok_or_else(|| self.missing(key))
    }

    /// The array of strings at `key`.
    pub fn strs(&self, key: &str) -> Result<Strs<'_>, WeightsError> {
        self.array(key)?.strs()
    }

    /// The string at `key`, if there is such a key.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, WeightsError> {
        self.typed(key, "string", |v| if let Value::Str(s) = v { Some(s) } else { None })
    }

    /// The `u32` at `key`, if there is such a key.
    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>, WeightsError> {
        self.typed(key, "u32", |v| if let Value::U32(n) = v { Some(n) } else { None })
    }

    /// The `u16` at `key`, if there is such a key.
    pub fn opt_u16(&self, key: &str) -> Result<Option<u16>, WeightsError> {
        self.typed(key, "u16", |v| if let Value::U16(n) = v { Some(n) } else { None })
    }

    /// The `i32` at `key`, if there is such a key.
    pub fn opt_i32(&self, key: &str) -> Result<Option<i32>, WeightsError> {
        self.typed(key, "i32", |v| if let Value::I32(n) = v { Some(n) } else { None })
    }

    /// The `f32` at `key`, if there is such a key.
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>, WeightsError> {
        self.typed(key, "f32", |v| if let Value::F32(x) = v { Some(x) } else { None })
    }

    /// The bool at `key`, if there is such a key.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, WeightsError> {
        self.typed(key, "bool", |v| if let Value::Bool(b) = v { Some(b) } else { None })
    }

    /// The array at `key`, if there is such a key.
    pub fn opt_array(&self, key: &str) -> Result<Option<Array<'_>>, WeightsError> {
        self.typed(key, "array", |v| if let Value::Array(a) = v { Some(a) } else { None })
    }

    /// Walks the scanned bytes once and sorts the keys.
    pub(super) fn index(path: PathBuf, scanned: MetadataBytes) -> Result<Self, ErrorKind> {
        let mut pairs = try_vec(scanned.pairs, "the metadata index")?;
        let mut at = scanned.first_key;
        for _ in 0..scanned.pairs {
            let Some((pair, end)) = pair_at(&scanned.bytes, at) else { break };
            pairs.push(pair);
            at = end;
        }
        let mut by_key = try_vec(pairs.len(), "the metadata index")?;
        by_key.extend(0..pairs.len() as u32);
        let mut metadata = Metadata { path, bytes: scanned.bytes, pairs, by_key };
        let mut by_key = std::mem::take(&mut metadata.by_key);
        by_key.sort_unstable_by(|&a, &b| metadata.key_at(a).cmp(metadata.key_at(b)));
        let twice = by_key.windows(2).find(|w| matches!(w, [a, b] if metadata.key_at(*a) == metadata.key_at(*b)));
        if let Some([a, _]) = twice {
            return Err(ErrorKind::DuplicateKey { key: Shown::new(metadata.key_at(*a)) });
        }
        metadata.by_key = by_key;
        Ok(metadata)
    }

    /// The checked `general.alignment`.
    pub(super) fn alignment(&self) -> Result<u64, ErrorKind> {
        let got = match self.value("general.alignment") {
            None => return Ok(DEFAULT_ALIGNMENT),
            Some(Value::U32(n)) => {
                let alignment = u64::from(n);
                if n.is_power_of_two() && (MIN_ALIGNMENT..=MAX_ALIGNMENT).contains(&alignment) {
                    return Ok(alignment);
                }
                n.to_string()
            }
            Some(other) => format!("a value of type {}", other.type_name()),
        };
        Err(ErrorKind::BadAlignment { got: Shown::new(got) })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        want: &'static str,
        pick: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, WeightsError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let got = value.type_name();
        pick(value).map(Some).ok_or_else(|| Place { path: &self.path, key }.wrong_type(want, got))
    }

    fn missing(&self, key: &str) -> WeightsError {
        WeightsError::new(&self.path, ErrorKind::MissingKey { key: Shown::new(key) })
    }

    fn key_at(&self, i: u32) -> &str {
        self.pairs.get(i as usize).map_or("", |pair| self.key_of(*pair))
    }

    fn key_of(&self, pair: Pair) -> &str {
        self.bytes.get(pair.key as usize..).and_then(value::split_str).unwrap_or("")
    }

    fn value_of(&self, pair: Pair) -> Option<Value<'_>> {
        let rest = self.bytes.get(pair.value as usize..)?;
        let ty = ValueType::from_id(u32::from_le_bytes(*rest.first_chunk()?))?;
        let place = Place { path: &self.path, key: self.key_of(pair) };
        Value::parse(place, ty, rest.get(4..)?).map(|(value, _)| value)
    }
}

/// The pair at `at`, and where it ends.
fn pair_at(bytes: &[u8], at: usize) -> Option<(Pair, usize)> {
    let key_len = value::value_bytes(ValueType::Str, bytes.get(at..)?)?;
    let value_at = at.checked_add(key_len)?;
    let rest = bytes.get(value_at..)?;
    let ty = ValueType::from_id(u32::from_le_bytes(*rest.first_chunk()?))?;
    let end = value_at + 4 + value::value_bytes(ty, rest.get(4..)?)?;
    Some((Pair { key: at as u32, value: value_at as u32 }, end))
}
