//! The fields of protocol buffers, read one by one.

use crate::error::{FileFault, TokenizerError};

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    /// A varint.
    Number(u64),
    /// Eight bytes.
    Fixed64,
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
    /// Four bytes.
    Fixed32(u32),
}

/// The fields of one message, with their numbers. Ends after the first error.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    file: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Of a message in `file`.
    pub(crate) fn of(file: &'static str, message: &'a [u8]) -> Self {
        Fields { file, rest: message }
    }

    fn field(&mut self) -> Result<(u64, Field<'a>), u64> {
        let tag = self.varint().ok_or(0u64)?;
        let number = tag >> 3;
        let value = match tag & 7 {
            0 => self.varint().map(Field::Number),
            1 => self.take(8).map(|_| Field::Fixed64),
            2 => self.varint().and_then(|len| self.take(usize::try_from(len).ok()?)).map(Field::Bytes),
            5 => self.take(4).and_then(|bytes| Some(Field::Fixed32(u32::from_le_bytes(bytes.try_into().ok()?)))),
            _ => None,
        };
        value.filter(|_| number > 0).map(|value| (number, value)).ok_or(number)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), TokenizerError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        Some(self.field().map_err(|field| {
            self.rest = &[];
            FileFault::BadField { field }.of(self.file)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &[u8]) -> Result<Vec<(u64, Field<'_>)>, TokenizerError> {
        Fields::of("f", message).collect()
    }

    #[test]
    fn fields_of_all_kinds_are_read() {
        let message = [&[0x08, 0x96, 0x01, 0x12, 2, 7, 8, 0x1d, 1, 0, 0, 0][..], &[0x21; 9], &[0x80, 0x02, 0]].concat();
        let fields = read(&message).unwrap();
        assert_eq!(
            fields,
            [
                (1, Field::Number(150)),
                (2, Field::Bytes(&[7, 8])),
                (3, Field::Fixed32(1)),
                (4, Field::Fixed64),
                (32, Field::Number(0)),
            ]
        );
        assert_eq!(read(&[]).unwrap(), []);
    }

    #[test]
    fn what_is_cut_short_or_of_no_known_kind_is_an_error() {
        let bad = |field| Err(FileFault::BadField { field }.of("f"));
        assert_eq!(read(&[0x80]), bad(0));
        assert_eq!(read(&[0x08]), bad(1));
        assert_eq!(read(&[0x12, 3, 1, 2]), bad(2));
        assert_eq!(read(&[0x1d, 1, 2, 3]), bad(3));
        assert_eq!(read(&[0x0b]), bad(1));
        assert_eq!(read(&[0x00, 0x00]), bad(0));
        assert_eq!(read(&[&[0x08][..], &[0xff; 10]].concat()), bad(1));
        assert_eq!(read(&[&[0x12][..], &[0xff; 9], &[1]].concat()), bad(2));
    }
}
