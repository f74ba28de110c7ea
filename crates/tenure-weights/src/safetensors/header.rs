//! The JSON header, read twice: once to count, once to keep, so that every table has exactly its size.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tenure_tensor::{DType, Shape, TensorSpec};

use crate::error::try_vec;
use crate::tensor::StoredTensor;
use crate::{ErrorKind, Shown};

const METADATA: &str = "__metadata__";
const MAX_RANK: usize = 8;
const MAX_NAME: usize = 65_535;
/// No size or offset may exceed this, so that sums of two of them cannot wrap.
const MAX_SIZE: u64 = i64::MAX as u64;

/// The `__metadata__` of a file: strings by name.
#[derive(Debug, Default)]
pub struct Metadata {
    /// All keys and values, one after another.
    text: String,
    /// Where each key and each value ends in `text`.
    ends: Vec<(u32, u32)>,
    /// Indices into `ends`, by key.
    by_key: Vec<u32>,
}

impl Metadata {
    /// The number of entries.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The entries, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        (0..self.ends.len() as u32).map(|i| self.entry(i))
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<&str> {
        let found = self.by_key.binary_search_by(|&i| self.entry(i).0.cmp(key)).ok()?;
        self.by_key.get(found).map(|&i| self.entry(i).1)
    }

    fn entry(&self, i: u32) -> (&str, &str) {
        let i = i as usize;
        let start = i.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |&(_, end)| end);
        let &(key_end, end) = self.ends.get(i).unwrap_or(&(start, start));
        let part = |from: u32, to: u32| self.text.get(from as usize..to as usize).unwrap_or("");
        (part(start, key_end), part(key_end, end))
    }

    fn index(&mut self) -> Result<(), ErrorKind> {
        let mut by_key = try_vec(self.ends.len(), "the metadata index")?;
        by_key.extend(0..self.ends.len() as u32);
        by_key.sort_unstable_by(|&a, &b| self.entry(a).0.cmp(self.entry(b).0));
        let twice = by_key.windows(2).find(|w| matches!(w, [a, b] if self.entry(*a).0 == self.entry(*b).0));
        if let Some([a, _]) = twice {
            return Err(ErrorKind::DuplicateKey { key: Shown::new(self.entry(*a).0) });
        }
        self.by_key = by_key;
        Ok(())
    }
}

pub(super) fn parse(
    header: &[u8],
    data_start: u64,
    data_len: u64,
    file: u32,
) -> Result<(Vec<StoredTensor>, Metadata), ErrorKind> {
    let text = std::str::from_utf8(header).map_err(bad_header)?;
    if !text.starts_with('{') {
        return Err(ErrorKind::BadHeader { why: "does not start with {".into() });
    }
    let mut counts = Counts::default();
    let mut fault = None;
    run(text, &mut fault, |json, fault| json.deserialize_map(Count { counts: &mut counts, fault }))?;

    let text_place = String::from_utf8(try_vec(counts.text, "the metadata")?).unwrap_or_default();
    let ends = try_vec(counts.pairs, "the metadata")?;
    let mut metadata = Metadata { text: text_place, ends, by_key: Vec::new() };
    let mut tensors = try_vec(counts.tensors, "the tensor table")?;
    run(text, &mut fault, |json, fault| {
        let keep = Keep { tensors: &mut tensors, metadata: &mut metadata, data_start, data_len, file, fault };
        json.deserialize_map(keep)
    })?;
    metadata.index()?;
    Ok((tensors, metadata))
}

type Json<'de> = serde_json::Deserializer<serde_json::de::StrRead<'de>>;
type Fault = Option<ErrorKind>;

/// Runs one pass over the text. A visitor that finds something wrong leaves it in `fault` and returns any error.
fn run<'de>(
    text: &'de str,
    fault: &mut Fault,
    pass: impl FnOnce(&mut Json<'de>, &mut Fault) -> Result<(), serde_json::Error>,
) -> Result<(), ErrorKind> {
    let mut json = serde_json::Deserializer::from_str(text);
    let done = pass(&mut json, fault).and_then(|()| json.end());
    done.map_err(|e| fault.take().unwrap_or_else(|| bad_header(e)))
}

fn bad_header(why: impl fmt::Display) -> ErrorKind {
    ErrorKind::BadHeader { why: Shown::new(why.to_string()) }
}

/// Leaves `kind` in `fault`.
fn refuse<E: Error>(fault: &mut Fault, kind: ErrorKind) -> E {
    *fault = Some(kind);
    E::custom("refused")
}

#[derive(Default)]
struct Counts {
    tensors: usize,
    pairs: usize,
    text: usize,
}

/// The first pass: counts, and finds a second `__metadata__`.
struct Count<'a> {
    counts: &'a mut Counts,
    fault: &'a mut Fault,
}

impl<'de> Visitor<'de> for Count<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = false;
        while let Some(key) = map.next_key_seed(Text)? {
            if key != METADATA {
                map.next_value::<IgnoredAny>()?;
                self.counts.tensors += 1;
                continue;
            }
            if std::mem::replace(&mut seen, true) {
                return Err(refuse(self.fault, ErrorKind::DuplicateKey { key: METADATA.into() }));
            }
            let counts = &mut *self.counts;
            map.next_value_seed(Pairs(|key: &str, value: &str| {
                counts.pairs += 1;
                counts.text += key.len() + value.len();
            }))?;
        }
        Ok(())
    }
}

/// The second pass.
struct Keep<'a> {
    tensors: &'a mut Vec<StoredTensor>,
    metadata: &'a mut Metadata,
    data_start: u64,
    data_len: u64,
    file: u32,
    fault: &'a mut Fault,
}

impl<'de> Visitor<'de> for Keep<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(Text)? {
            if key == METADATA {
                let Metadata { text, ends, .. } = &mut *self.metadata;
                map.next_value_seed(Pairs(|key: &str, value: &str| {
                    text.push_str(key);
                    let key_end = text.len() as u32;
                    text.push_str(value);
                    ends.push((key_end, text.len() as u32));
                }))?;
                continue;
            }
            if key.is_empty() || key.len() > MAX_NAME || key.contains('\0') {
                let kind = ErrorKind::BadTensorName { tensor: Shown::new(&*key), bytes: key.len() as u64 };
                return Err(refuse(self.fault, kind));
            }
            let info = map.next_value_seed(Info { name: &key, fault: self.fault })?;
            match self.tensor(&key, info) {
                Ok(tensor) => self.tensors.push(tensor),
                Err(kind) => return Err(refuse(self.fault, kind)),
            }
        }
        Ok(())
    }
}

impl Keep<'_> {
    fn tensor(&mut self, name: &str, info: RawInfo) -> Result<StoredTensor, ErrorKind> {
        let tensor = || Shown::new(name);
        let RawInfo { dtype, shape, offsets: (begin, end) } = info;
        if end < begin || end > MAX_SIZE {
            return Err(ErrorKind::BadOffset { tensor: tensor(), offset: Shown::new(format!("{begin}, {end}")) });
        }
        let spec = TensorSpec { name: name.to_owned(), dtype, shape: Shape::new(shape) };
        let bytes = spec.bytes().filter(|bytes| bytes.get() <= MAX_SIZE);
        let bytes = bytes.ok_or_else(|| ErrorKind::SizeOverflow { tensor: tensor() })?;
        if end > self.data_len {
            let len = self.data_start + self.data_len;
            return Err(ErrorKind::TensorOutOfFile { tensor: tensor(), end: self.data_start.saturating_add(end), len });
        }
        if end - begin != bytes.get() {
            return Err(ErrorKind::SizeMismatch { tensor: tensor(), want: bytes.get(), got: end - begin });
        }
        Ok(StoredTensor { spec, bytes, offset: begin, file: self.file })
    }
}

/// A tensor's entry, as it stands in the header.
struct RawInfo {
    dtype: DType,
    shape: Vec<usize>,
    offsets: (u64, u64),
}

struct Info<'a> {
    name: &'a str,
    fault: &'a mut Fault,
}

impl<'de> DeserializeSeed<'de> for Info<'_> {
    type Value = RawInfo;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<RawInfo, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Info<'_> {
    type Value = RawInfo;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawInfo, A::Error> {
        let Info { name, fault } = self;
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key_seed(Text)? {
            let repeated = match &*field {
                "dtype" => {
                    let text = map.next_value_seed(Text)?;
                    let known = dtype_of(&text).ok_or_else(|| {
                        refuse(&mut *fault, ErrorKind::BadDtype { tensor: name.into(), got: Shown::new(&*text) })
                    })?;
                    dtype.replace(known).is_some()
                }
                "shape" => shape.replace(map.next_value_seed(Dims { name, fault: &mut *fault })?).is_some(),
                "data_offsets" => offsets.replace(map.next_value_seed(Offsets { name, fault: &mut *fault })?).is_some(),
                other => return Err(A::Error::custom(format_args!("tensor {name:?}: unknown field {other:?}"))),
            };
            if repeated {
                return Err(A::Error::custom(format_args!("tensor {name:?}: {field:?} twice")));
            }
        }
        let missing = |field: &str| A::Error::custom(format_args!("tensor {name:?}: no {field:?}"));
        Ok(RawInfo {
            dtype: dtype.ok_or_else(|| missing("dtype"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
            offsets: offsets.ok_or_else(|| missing("data_offsets"))?,
        })
    }
}

fn dtype_of(name: &str) -> Option<DType> {
    Some(match name {
        "F64" => DType::F64,
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "F8_E4M3" => DType::F8E4M3,
        "F8_E5M2" => DType::F8E5M2,
        "I64" => DType::I64,
        "I32" => DType::I32,
        "I16" => DType::I16,
        "I8" => DType::I8,
        "U64" => DType::U64,
        "U32" => DType::U32,
        "U16" => DType::U16,
        "U8" => DType::U8,
        "BOOL" => DType::Bool,
        _ => return None,
    })
}

struct Dims<'a> {
    name: &'a str,
    fault: &'a mut Fault,
}

impl<'de> DeserializeSeed<'de> for Dims<'_> {
    type Value = Vec<usize>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Vec<usize>, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Dims<'_> {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
        let mut dims = [0; MAX_RANK];
        let mut rank = 0;
        while let Some(dim) = seq.next_element_seed(Number)? {
            match dim.and_then(|dim| usize::try_from(dim).ok()).filter(|&dim| dim as u64 <= MAX_SIZE) {
                Some(dim) => dims.iter_mut().skip(rank).take(1).for_each(|place| *place = dim),
                None => {
                    let got = dim.map_or_else(|| "that is no natural number".into(), Shown::from);
                    return Err(refuse(self.fault, ErrorKind::BadShape { tensor: self.name.into(), got }));
                }
            }
            rank += 1;
        }
        match dims.get(..rank) {
            Some(dims) => Ok(dims.to_vec()),
            None => {
                let kind =
                    ErrorKind::BadRank { tensor: self.name.into(), got: rank as u64, min: 0, max: MAX_RANK as u32 };
                Err(refuse(self.fault, kind))
            }
        }
    }
}

struct Offsets<'a> {
    name: &'a str,
    fault: &'a mut Fault,
}

impl<'de> DeserializeSeed<'de> for Offsets<'_> {
    type Value = (u64, u64);

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(u64, u64), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Offsets<'_> {
    type Value = (u64, u64);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of two offsets")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(u64, u64), A::Error> {
        let mut next = || -> Result<u64, A::Error> {
            let offset =
                seq.next_element_seed(Number)?.ok_or_else(|| A::Error::custom("data_offsets needs two numbers"))?;
            offset.ok_or_else(|| {
                let offset = "that is no natural number".into();
                refuse(&mut *self.fault, ErrorKind::BadOffset { tensor: self.name.into(), offset })
            })
        };
        let both = (next()?, next()?);
        if seq.next_element::<IgnoredAny>()?.is_some() {
            return Err(A::Error::custom("data_offsets has more than two numbers"));
        }
        Ok(both)
    }
}

/// A number: `None` when it is negative, fractional or too large for a u64.
struct Number;

impl<'de> DeserializeSeed<'de> for Number {
    type Value = Option<u64>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Option<u64>, D::Error> {
        json.deserialize_u64(self)
    }
}

impl Visitor<'_> for Number {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Option<u64>, E> {
        Ok(Some(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Option<u64>, E> {
        Ok(u64::try_from(number).ok())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Option<u64>, E> {
        Ok(None)
    }
}

/// A string, borrowed where it holds no escapes.
pub(crate) struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Cow<'de, str>, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// An object of strings, handed to a function pair by pair.
struct Pairs<F>(F);

impl<'de, F: FnMut(&str, &str)> DeserializeSeed<'de> for Pairs<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&str, &str)> Visitor<'de> for Pairs<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(Text)? {
            let value = map.next_value_seed(Text)?;
            (self.0)(&key, &value);
        }
        Ok(())
    }
}
