//! `….safetensors.index.json`: which tensor is in which shard. Read in passes, so that nothing is kept per tensor.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use crate::error::try_vec;
use crate::file::{ModelFile, ReadAt};
use crate::{ErrorKind, ShardFault, Shown, WeightStore};

const MAX_INDEX: u64 = 100_000_000;

/// The shards in order of first mention, and what the index says of their size.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) shards: Vec<String>,
    numbers: BTreeMap<String, u32>,
    pub(crate) total_size: Option<u64>,
}

pub(crate) fn read(file: &ModelFile) -> Result<String, ErrorKind> {
    let bytes = file.len();
    if bytes > MAX_INDEX {
        return Err(ErrorKind::HeaderTooLarge { bytes, limit: MAX_INDEX });
    }
    let mut text = try_vec(bytes as usize, "the shard index")?;
    text.resize(bytes as usize, 0);
    file.read_at(0, &mut text)?;
    String::from_utf8(text).map_err(bad_header)
}

pub(crate) fn summary(text: &str, most: usize) -> Result<Summary, ErrorKind> {
    let mut summary = Summary::default();
    let mut fault = None;
    let total = walk(text, &mut fault, |_, file, fault| {
        if summary.numbers.contains_key(file) {
            return;
        }
        if summary.shards.len() == most {
            let why = ShardFault::TooManyShards { got: most as u64 + 1, limit: most as u64 };
            *fault = Some(ErrorKind::BadShardIndex { why });
            return;
        }
        summary.numbers.insert(file.to_owned(), summary.shards.len() as u32);
        summary.shards.push(file.to_owned());
    })?;
    summary.total_size = total;
    Ok(summary)
}

/// Proves that the index and the shards name the same tensors in the same files.
pub(crate) fn check(text: &str, summary: &Summary, store: &WeightStore) -> Result<(), ErrorKind> {
    let mut listed = try_vec(store.len(), "the shard index")?;
    listed.resize(store.len(), false);
    let mut fault = None;
    walk(text, &mut fault, |tensor, file, fault| {
        let number = summary.numbers.get(file).copied();
        match store.position(tensor).filter(|&i| store.tensors.get(i).map(|t| t.file) == number) {
            None => {
                let why = ShardFault::TensorNotInShard { tensor: Shown::new(tensor), file: Shown::new(file) };
                *fault = Some(ErrorKind::BadShardIndex { why });
            }
            Some(i) => {
                let place = listed.get_mut(i).map(|listed| std::mem::replace(listed, true));
                if place == Some(true) {
                    *fault = Some(ErrorKind::DuplicateTensor { tensor: Shown::new(tensor) });
                }
            }
        }
    })?;
    match store.tensors.iter().zip(&listed).find(|(_, listed)| !**listed) {
        None => Ok(()),
        Some((t, _)) => {
            let file = summary.shards.get(t.file()).map_or("", String::as_str).into();
            let why = ShardFault::TensorNotInIndex { tensor: Shown::new(&t.spec.name), file };
            Err(ErrorKind::BadShardIndex { why })
        }
    }
}

fn bad_header(why: impl fmt::Display) -> ErrorKind {
    ErrorKind::BadHeader { why: Shown::new(why.to_string()) }
}

/// Gives each (tensor, file) to `each`, which may leave a fault; the `total_size`, if there is one.
fn walk(
    text: &str,
    fault: &mut Option<ErrorKind>,
    each: impl FnMut(&str, &str, &mut Option<ErrorKind>),
) -> Result<Option<u64>, ErrorKind> {
    let mut json = serde_json::Deserializer::from_str(text);
    let mut total = None;
    let root = Root { each, fault, total: &mut total };
    let done = json.deserialize_map(root).and_then(|()| json.end());
    match (fault.take(), done) {
        (Some(kind), _) => Err(kind),
        (None, Err(e)) => Err(bad_header(e)),
        (None, Ok(())) => Ok(total),
    }
}

struct Root<'a, F> {
    each: F,
    fault: &'a mut Option<ErrorKind>,
    total: &'a mut Option<u64>,
}

impl<'de, F: FnMut(&str, &str, &mut Option<ErrorKind>)> Visitor<'de> for Root<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shard index")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let (mut weights, mut metadata) = (false, false);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let repeated = match &*key {
                "weight_map" => {
                    let each = &mut self.each;
                    map.next_value_seed(WeightMap { each, fault: &mut *self.fault })?;
                    std::mem::replace(&mut weights, true)
                }
                "metadata" => {
                    *self.total = map.next_value::<IndexMetadata>()?.total_size.map(|TotalSize(n)| n);
                    std::mem::replace(&mut metadata, true)
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if repeated {
                return Err(A::Error::custom(format_args!("{key:?} twice")));
            }
        }
        if weights { Ok(()) } else { Err(A::Error::custom("no \"weight_map\"")) }
    }
}

#[derive(serde::Deserialize)]
struct IndexMetadata {
    total_size: Option<TotalSize>,
}

/// Some tools write the size as a float.
struct TotalSize(u64);

impl<'de> serde::Deserialize<'de> for TotalSize {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = TotalSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size in bytes")
            }

            fn visit_u64<E>(self, n: u64) -> Result<TotalSize, E> {
                Ok(TotalSize(n))
            }

            fn visit_f64<E: Error>(self, x: f64) -> Result<TotalSize, E> {
                let n = x as u64;
                if n as f64 == x { Ok(TotalSize(n)) } else { Err(E::custom("total_size is no natural number")) }
            }
        }
        json.deserialize_u64(Number)
    }
}

struct WeightMap<'a, F> {
    each: &'a mut F,
    fault: &'a mut Option<ErrorKind>,
}

impl<'de, F: FnMut(&str, &str, &mut Option<ErrorKind>)> DeserializeSeed<'de> for WeightMap<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&str, &str, &mut Option<ErrorKind>)> Visitor<'de> for WeightMap<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((tensor, file)) = map.next_entry::<Cow<'de, str>, Cow<'de, str>>()? {
            (self.each)(&tensor, &file, self.fault);
            if self.fault.is_some() {
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}
