//! Metadata values, borrowed from the header.

use std::fmt;
use std::path::Path;

use crate::{ErrorKind, Shown, WeightsError};

/// The type of a metadata value. The numbers are those of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are the types'.
#[rustfmt::skip]
pub enum ValueType {
    U8 = 0, I8 = 1, U16 = 2, I16 = 3, U32 = 4, I32 = 5, F32 = 6, Bool = 7, Str = 8, Array = 9, U64 = 10, I64 = 11, F64 = 12,
}

impl ValueType {
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::Str,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// The type with number `id`.
    pub fn from_id(id: u32) -> Option<ValueType> {
        Self::ALL.get(id as usize).copied()
    }

    /// The type's name.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::Str => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// Bytes of one value, for types where all have the same.
    pub(super) fn fixed_bytes(self) -> Option<u64> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::Str | ValueType::Array => None,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A metadata value.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The names are the types'.
pub enum Value<'a> {
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
    Str(&'a str),
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F32(_) => ValueType::F32,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::Str(_) => ValueType::Str,
            Value::Array(_) => ValueType::Array,
        }
    }

    /// The type as an error names it: `u32`, `array of string`.
    pub(super) fn type_name(&self) -> String {
        match self {
            Value::Array(a) => format!("array of {}", a.element),
            other => other.value_type().to_string(),
        }
    }

    /// The value of type `ty` at the front of `rest`, and the bytes it takes. The bytes were scanned before, so `None`
    /// does not come about.
    pub(super) fn parse(place: Place<'a>, ty: ValueType, rest: &'a [u8]) -> Option<(Self, usize)> {
        Some(match ty {
            ValueType::U8 => (Value::U8(*rest.first()?), 1),
            ValueType::I8 => (Value::I8(*rest.first()? as i8), 1),
            ValueType::U16 => (Value::U16(u16::from_le_bytes(*rest.first_chunk()?)), 2),
            ValueType::I16 => (Value::I16(i16::from_le_bytes(*rest.first_chunk()?)), 2),
            ValueType::U32 => (Value::U32(u32::from_le_bytes(*rest.first_chunk()?)), 4),
            ValueType::I32 => (Value::I32(i32::from_le_bytes(*rest.first_chunk()?)), 4),
            ValueType::F32 => (Value::F32(f32::from_le_bytes(*rest.first_chunk()?)), 4),
            ValueType::U64 => (Value::U64(u64::from_le_bytes(*rest.first_chunk()?)), 8),
            ValueType::I64 => (Value::I64(i64::from_le_bytes(*rest.first_chunk()?)), 8),
            ValueType::F64 => (Value::F64(f64::from_le_bytes(*rest.first_chunk()?)), 8),
            ValueType::Bool => (Value::Bool(*rest.first()? != 0), 1),
            ValueType::Str => {
                let s = split_str(rest)?;
                (Value::Str(s), 8 + s.len())
            }
            ValueType::Array => {
                let element = ValueType::from_id(u32::from_le_bytes(*rest.first_chunk()?))?;
                let len = usize::try_from(u64::from_le_bytes(*rest.get(4..)?.first_chunk()?)).ok()?;
                let bytes = rest.get(12..)?;
                let used = elements_bytes(element, len, bytes)?;
                (Value::Array(Array { place, element, len, bytes: bytes.get(..used)? }), 12 + used)
            }
        })
    }
}

/// Whose value it is, for errors.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) path: &'a Path,
    pub(super) key: &'a str,
}

impl Place<'_> {
    pub(super) fn wrong_type(&self, want: &'static str, got: String) -> WeightsError {
        WeightsError::new(self.path, ErrorKind::WrongType { key: Shown::new(self.key), want, got })
    }
}

/// A metadata array: its elements stay in the header and are read as they are asked for.
#[derive(Clone, Copy)]
pub struct Array<'a> {
    place: Place<'a>,
    element: ValueType,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The type of the elements.
    pub fn element_type(&self) -> ValueType {
        self.element
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, if they are strings.
    pub fn strs(&self) -> Result<Strs<'a>, WeightsError> {
        self.check(ValueType::Str, "array of string")?;
        Ok(Strs { rest: self.bytes, left: self.len })
    }

    /// The elements, if they are `u8`.
    pub fn u8s(&self) -> Result<&'a [u8], WeightsError> {
        self.check(ValueType::U8, "array of u8")?;
        Ok(self.bytes)
    }

    /// The elements, if they are `u32`.
    pub fn u32s(&self) -> Result<impl ExactSizeIterator<Item = u32> + Clone + 'a, WeightsError> {
        self.check(ValueType::U32, "array of u32")?;
        Ok(self.words().map(u32::from_le_bytes))
    }

    /// The elements, if they are `i32`.
    pub fn i32s(&self) -> Result<impl ExactSizeIterator<Item = i32> + Clone + 'a, WeightsError> {
        self.check(ValueType::I32, "array of i32")?;
        Ok(self.words().map(i32::from_le_bytes))
    }

    /// The elements, if they are `f32`.
    pub fn f32s(&self) -> Result<impl ExactSizeIterator<Item = f32> + Clone + 'a, WeightsError> {
        self.check(ValueType::F32, "array of f32")?;
        Ok(self.words().map(f32::from_le_bytes))
    }

    /// The elements, if they are bools.
    pub fn bools(&self) -> Result<impl ExactSizeIterator<Item = bool> + Clone + 'a, WeightsError> {
        self.check(ValueType::Bool, "array of bool")?;
        Ok(self.bytes.iter().map(|&b| b != 0))
    }

    /// The elements one by one, whatever their type.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + 'a {
        let Array { place, element, len, bytes } = *self;
        let mut rest = bytes;
        (0..len).map_while(move |_| {
            let (value, used) = Value::parse(place, element, rest)?;
            rest = rest.get(used..)?;
            Some(value)
        })
    }

    fn check(&self, element: ValueType, want: &'static str) -> Result<(), WeightsError> {
        if self.element == element {
            return Ok(());
        }
        Err(self.place.wrong_type(want, Value::Array(*self).type_name()))
    }

    fn words(&self) -> impl ExactSizeIterator<Item = [u8; 4]> + Clone + 'a {
        self.bytes.as_chunks::<4>().0.iter().copied()
    }
}

impl fmt::Debug for Array<'_> {
    /// Prints the type and the length: arrays of 262,144 tokens are common.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.element, self.len)
    }
}

/// The strings of an array, in order.
#[derive(Clone, Debug)]
pub struct Strs<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Strs<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.left = self.left.checked_sub(1)?;
        let s = split_str(self.rest)?;
        self.rest = self.rest.get(8 + s.len()..)?;
        Some(s)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strs<'_> {}

/// The string at the front of `rest`, which holds its length and its bytes.
pub(super) fn split_str(rest: &[u8]) -> Option<&str> {
    let len = usize::try_from(u64::from_le_bytes(*rest.first_chunk()?)).ok()?;
    std::str::from_utf8(rest.get(8..)?.get(..len)?).ok()
}

/// Bytes of a value of type `ty` at the front of `rest`. Nesting was bounded by the scan.
pub(super) fn value_bytes(ty: ValueType, rest: &[u8]) -> Option<usize> {
    match ty {
        ValueType::Str => 8usize.checked_add(usize::try_from(u64::from_le_bytes(*rest.first_chunk()?)).ok()?),
        ValueType::Array => {
            let element = ValueType::from_id(u32::from_le_bytes(*rest.first_chunk()?))?;
            let len = usize::try_from(u64::from_le_bytes(*rest.get(4..)?.first_chunk()?)).ok()?;
            elements_bytes(element, len, rest.get(12..)?)?.checked_add(12)
        }
        fixed => fixed.fixed_bytes().map(|n| n as usize),
    }
}

fn elements_bytes(element: ValueType, len: usize, bytes: &[u8]) -> Option<usize> {
    if let Some(each) = element.fixed_bytes() {
        return len.checked_mul(each as usize);
    }
    let mut used = 0;
    for _ in 0..len {
        used += value_bytes(element, bytes.get(used..)?)?;
    }
    Some(used)
}
