//! What can be wrong with a model file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why a model file was refused or could not be read: the file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", .0.path.display(), .0.kind)]
pub struct WeightsError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    kind: ErrorKind,
}

impl WeightsError {
    /// The error `kind`, found in the file or folder at `path`.
    pub fn new(path: impl Into<PathBuf>, kind: ErrorKind) -> Self {
        WeightsError(Box::new(Inner { path: path.into(), kind }))
    }

    /// The file or folder at fault.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What is wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }
}

/// What is wrong with a model file.
///
/// Names that come out of a file (keys, tensor names, file names) are [`Shown`]: control characters escaped, long
/// names cut. Sizes and offsets are in bytes; offsets count from the start of the file unless a field says otherwise.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ErrorKind {
    /// The operating system refused an operation.
    #[error("{op}: {kind}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// The system's answer.
        kind: io::ErrorKind,
    },
    /// A directory, pipe, device or socket where a regular file is needed.
    #[error("is {what}, not a regular file")]
    NotAFile {
        /// What it is instead.
        what: &'static str,
    },
    /// The file's size or modification time is no longer what it was when the file was opened.
    #[error("changed after it was opened")]
    FileChanged,
    /// The host has no memory for a table of the file's contents.
    #[error("the host has no {bytes} bytes left for {what}")]
    HostOutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// The bytes asked for.
        bytes: u64,
    },

    /// The file ends inside its header.
    #[error("truncated: {what} at byte {at} needs {need} bytes, the file has {len}")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        at: u64,
        /// Its size.
        need: u64,
        /// The file's size.
        len: u64,
    },
    /// The file does not start with the format's magic number.
    #[error("bad magic {got:02x?}")]
    BadMagic {
        /// The first four bytes.
        got: [u8; 4],
    },
    /// A format version this reader does not know.
    #[error("unsupported version {got}")]
    UnsupportedVersion {
        /// The version in the file.
        got: u32,
    },
    /// A big-endian file.
    #[error("big-endian file (version field {got:#010x})")]
    WrongEndian {
        /// The version field as read in little-endian order.
        got: u32,
    },
    /// A header larger than this reader accepts.
    #[error("header of {bytes} bytes, at most {limit} are accepted")]
    HeaderTooLarge {
        /// The size the file asks for.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A number of entries that no file can hold.
    #[error("{count} {what}: more than any file can hold")]
    CountTooLarge {
        /// What is counted.
        what: &'static str,
        /// The count in the file.
        count: u64,
    },
    /// A number of entries far beyond what is left of the file.
    #[error("{count} {what} need at least {need} bytes, {left} are left in the file")]
    CountExceedsFile {
        /// What is counted.
        what: &'static str,
        /// The count in the file.
        count: u64,
        /// The least bytes so many entries take, saturated.
        need: u64,
        /// The bytes left.
        left: u64,
    },
    /// The last key-value pair is a tensor info: the key-value count is too large.
    #[error("the key-value pair {key} is a tensor info: the key-value count is one too large")]
    BadKv {
        /// The name read as a key.
        key: Shown,
    },
    /// A string length that no file can hold.
    #[error("{what} of {bytes} bytes")]
    StringTooLong {
        /// What the string is.
        what: &'static str,
        /// The length in the file.
        bytes: u64,
    },
    /// A metadata key that is empty, too long, not UTF-8, or holds a NUL.
    #[error("bad key {key} of {bytes} bytes")]
    BadKey {
        /// The key.
        key: Shown,
        /// Its length.
        bytes: u64,
    },
    /// A metadata key that occurs twice.
    #[error("duplicate key {key}")]
    DuplicateKey {
        /// The key.
        key: Shown,
    },
    /// A value type number outside the format.
    #[error("key {key}: bad value type {got}")]
    BadValueType {
        /// The key.
        key: Shown,
        /// The number in the file.
        got: u32,
    },
    /// Arrays within arrays within arrays.
    #[error("key {key}: arrays nested more than {limit} deep")]
    NestingTooDeep {
        /// The key.
        key: Shown,
        /// The limit.
        limit: u32,
    },
    /// A bool that is neither 0 nor 1.
    #[error("key {key}: bool of value {got}")]
    BadBool {
        /// The key.
        key: Shown,
        /// The byte in the file.
        got: u8,
    },
    /// `general.alignment` is not a u32 that is a power of two from 8 to 2^20.
    #[error("bad alignment: {got}")]
    BadAlignment {
        /// The value in the file.
        got: Shown,
    },
    /// A metadata string that is not UTF-8.
    #[error("key {key}: string at byte {at} is not UTF-8")]
    BadString {
        /// The key.
        key: Shown,
        /// Where the string's bytes start.
        at: u64,
    },

    /// A tensor name that is empty, too long, not UTF-8, or holds a NUL.
    #[error("bad tensor name {tensor} of {bytes} bytes")]
    BadTensorName {
        /// The name.
        tensor: Shown,
        /// Its length.
        bytes: u64,
    },
    /// A tensor name that occurs twice.
    #[error("duplicate tensor {tensor}")]
    DuplicateTensor {
        /// The name.
        tensor: Shown,
    },
    /// A number of dimensions outside what is accepted.
    #[error("tensor {tensor}: {got} dimensions, accepted are {min} to {max}")]
    BadRank {
        /// The tensor.
        tensor: Shown,
        /// Dimensions in the file.
        got: u64,
        /// The least accepted.
        min: u32,
        /// The most accepted.
        max: u32,
    },
    /// A dimension that is zero, negative, fractional or too large, or a row that is not whole blocks.
    #[error("tensor {tensor}: bad dimension {got}")]
    BadShape {
        /// The tensor.
        tensor: Shown,
        /// The dimension at fault.
        got: Shown,
    },
    /// A size that does not fit into 63 bits.
    #[error("tensor {tensor}: its size overflows")]
    SizeOverflow {
        /// The tensor.
        tensor: Shown,
    },
    /// An element type that is unknown or was removed from the format.
    #[error("tensor {tensor}: bad element type {got}")]
    BadDtype {
        /// The tensor.
        tensor: Shown,
        /// The type in the file.
        got: Shown,
    },
    /// A data offset that is not aligned, reversed, or beyond the data.
    #[error("tensor {tensor}: bad data offset {offset}")]
    BadOffset {
        /// The tensor.
        tensor: Shown,
        /// The offset within the data section.
        offset: Shown,
    },
    /// Two tensors share bytes.
    #[error("tensor {tensor} at data offset {offset} overlaps the tensor before it, which ends at {end}")]
    Overlap {
        /// The later tensor.
        tensor: Shown,
        /// Its offset within the data section.
        offset: u64,
        /// Where the earlier one ends.
        end: u64,
    },
    /// Bytes between tensors that belong to none.
    #[error("a hole before tensor {tensor}: expected at data offset {want}, is at {offset}")]
    Gap {
        /// The tensor behind the hole.
        tensor: Shown,
        /// Where the tensor had to start.
        want: u64,
        /// Where it starts.
        offset: u64,
    },
    /// A tensor's data reaches beyond the end of the file.
    #[error("tensor {tensor}: its data ends at byte {end}, the file has {len}")]
    TensorOutOfFile {
        /// The tensor.
        tensor: Shown,
        /// Where its data ends, saturated.
        end: u64,
        /// The file's size.
        len: u64,
    },
    /// Bytes after the last tensor that belong to none.
    #[error("{bytes} bytes after the last tensor")]
    TrailingData {
        /// How many.
        bytes: u64,
    },
    /// The bytes given to a tensor are not the bytes its shape and type need.
    #[error("tensor {tensor}: {got} bytes given, its shape and type need {want}")]
    SizeMismatch {
        /// The tensor.
        tensor: Shown,
        /// Bytes needed.
        want: u64,
        /// Bytes given.
        got: u64,
    },
    /// A JSON header or index that is not what the format asks for.
    #[error("bad header: {why}")]
    BadHeader {
        /// What is wrong, with the line and column where known.
        why: Shown,
    },

    /// A metadata key that is not there.
    #[error("no key {key}")]
    MissingKey {
        /// The key.
        key: Shown,
    },
    /// A metadata value of another type than asked for. Types are compared exactly: a `u64` is not a `u32`.
    #[error("key {key}: is {got}, must be {want}")]
    WrongType {
        /// The key.
        key: Shown,
        /// The type asked for.
        want: &'static str,
        /// The type in the file.
        got: String,
    },

    /// A file name in an index leads out of the model's folder.
    #[error("the file name {name} leads out of the model's folder")]
    PathEscapesModelDir {
        /// The file name.
        name: Shown,
    },
    /// Shards that do not make up one model.
    #[error("bad shard index: {why}")]
    BadShardIndex {
        /// What does not fit.
        why: ShardFault,
    },
    /// A folder without weights this crate reads.
    #[error("no GGUF or safetensors weights in this folder")]
    NoWeights,
    /// A folder with several models; name one of the files.
    #[error("several models in this folder, such as {first} and {second}")]
    AmbiguousFolder {
        /// One of them.
        first: Shown,
        /// Another.
        second: Shown,
    },
    /// A folder that holds a diffusers pipeline; open its components one by one (see [`crate::diffusers`]).
    #[error("a diffusers folder: open its components one by one")]
    DiffusersFolder,
    /// A read beyond a tensor's bytes, or of a tensor of another store.
    #[error("tensor {tensor}: a read of {len} bytes at {offset}, it has {bytes}")]
    ReadOutOfTensor {
        /// The tensor.
        tensor: Shown,
        /// Where the read starts, from the tensor's start.
        offset: u64,
        /// Its length.
        len: u64,
        /// The tensor's size.
        bytes: u64,
    },
}

/// Why a set of shards is not one model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardFault {
    /// A shard's file is not there.
    #[error("shard {file} is missing")]
    MissingShard {
        /// The file name.
        file: Shown,
    },
    /// A tensor is in two shards.
    #[error("tensor {tensor} is in two shards")]
    DuplicateTensor {
        /// The tensor.
        tensor: Shown,
    },
    /// The index lists a tensor that its shard does not hold.
    #[error("tensor {tensor} is not in {file}")]
    TensorNotInShard {
        /// The tensor.
        tensor: Shown,
        /// The shard.
        file: Shown,
    },
    /// A shard holds a tensor that the index does not list.
    #[error("tensor {tensor} of {file} is not in the index")]
    TensorNotInIndex {
        /// The tensor.
        tensor: Shown,
        /// The shard.
        file: Shown,
    },
    /// The index's `total_size` is not the sum of its tensors.
    #[error("total_size is {got}, the tensors have {want} bytes")]
    TotalSize {
        /// The sum of the tensors.
        want: u64,
        /// The index's figure.
        got: u64,
    },
    /// More shards than are accepted.
    #[error("{got} shards, at most {limit} are accepted")]
    TooManyShards {
        /// The number of shards.
        got: u64,
        /// The limit.
        limit: u64,
    },
    /// `split.count` is not the count the first shard gives, or out of range.
    #[error("{file}: split.count is {got}, must be {want}")]
    SplitCount {
        /// The shard.
        file: Shown,
        /// The right count.
        want: u64,
        /// The shard's count.
        got: u64,
    },
    /// `split.no` is not the shard's place in the row.
    #[error("{file}: split.no is {got}, must be {want}")]
    SplitNo {
        /// The shard.
        file: Shown,
        /// The right number.
        want: u64,
        /// The shard's number.
        got: u64,
    },
    /// `split.tensors.count` is not the sum over the shards.
    #[error("split.tensors.count is {got}, the shards hold {want}")]
    TensorCount {
        /// The sum over the shards.
        want: u64,
        /// The first shard's figure.
        got: i64,
    },
    /// The file's name does not end in `-00001-of-0000N.gguf` as its `split` keys ask for.
    #[error("the file name {file} does not name shard {no} of {count}")]
    FileName {
        /// The file name.
        file: Shown,
        /// The shard's place, counted from 1.
        no: u64,
        /// The number of shards.
        count: u64,
    },
}

/// A name out of a file, made safe to print: invalid UTF-8 and control characters escaped, cut after 96 characters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shown(Box<str>);

impl Shown {
    const LIMIT: usize = 96;

    /// `name`, escaped and cut.
    pub fn new(name: impl AsRef<[u8]>) -> Self {
        let name = name.as_ref();
        // A character takes at most 4 bytes: what is beyond this cannot be shown anyway.
        let head = name.get(..Self::LIMIT * 4).unwrap_or(name);
        let mut out = String::new();
        let mut chars = 0;
        for chunk in head.utf8_chunks() {
            let escaped = chunk.invalid().iter().map(|b| format!("\\x{b:02x}"));
            for piece in chunk.valid().chars().map(|c| c.escape_debug().to_string()).chain(escaped) {
                if chars == Self::LIMIT {
                    out.push('…');
                    return Shown(out.into());
                }
                out.push_str(&piece);
                chars += 1;
            }
        }
        Shown(out.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<&str> for Shown {
    fn from(name: &str) -> Self {
        Shown::new(name)
    }
}

impl From<u64> for Shown {
    fn from(number: u64) -> Self {
        Shown::new(number.to_string())
    }
}

/// A vector of exactly `n` places, or the error that says there is no memory for it.
pub(crate) fn try_vec<T>(n: usize, what: &'static str) -> Result<Vec<T>, ErrorKind> {
    let mut v = Vec::new();
    v.try_reserve_exact(n)
        .map_err(|_| ErrorKind::HostOutOfMemory { what, bytes: (n as u64).saturating_mul(size_of::<T>() as u64) })?;
    Ok(v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_cut() {
        assert_eq!(Shown::new("a\0b\x1b[31m").as_str(), "a\\0b\\u{1b}[31m");
        assert_eq!(Shown::new([b'a', 0xff]).as_str(), "a\\xff");
        assert_eq!(Shown::new("x".repeat(1 << 20)).as_str().chars().count(), 97);
        assert_eq!(Shown::new("é".repeat(200)).as_str().chars().count(), 97);
    }

    #[test]
    fn an_error_names_the_file() {
        let e = WeightsError::new("m.gguf", ErrorKind::DuplicateKey { key: "a".into() });
        assert_eq!(e.to_string(), "m.gguf: duplicate key `a`");
    }
}
