//! Files of image models' tokenizers: read with limits, looked into with typed errors.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::Value;

use crate::error::{FileFault, TokenizerError, shown};

/// No published file of these kinds has a quarter of this.
pub(crate) const LARGEST_FILE: u64 = 16 << 20;

/// No published vocabulary of these kinds has a quarter of this.
pub(crate) const LARGEST_VOCABULARY: usize = 1 << 20;

/// The file called `name` in `folder`, or none if there is no such file.
pub(crate) fn read(folder: &Path, name: &'static str) -> Result<Option<Vec<u8>>, TokenizerError> {
    let path = folder.join(name);
    let unreadable = |error: std::io::Error| TokenizerError::Unreadable { path: path.clone(), kind: error.kind() };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut bytes = Vec::new();
    // One more, so that what is too large shows even where the system tells no size.
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    check_size(name, &bytes)?;
    Ok(Some(bytes))
}

/// The value that JSON spells.
pub(crate) fn json(file: &'static str, bytes: &[u8]) -> Result<Value, TokenizerError> {
    check_size(file, bytes)?;
    serde_json::from_slice(bytes)
        .map_err(|error| FileFault::NotJson { line: error.line(), column: error.column() }.of(file))
}

/// The text of a file.
pub(crate) fn utf8<'a>(file: &'static str, bytes: &'a [u8]) -> Result<&'a str, TokenizerError> {
    check_size(file, bytes)?;
    std::str::from_utf8(bytes).map_err(|error| FileFault::NotUtf8 { at: error.valid_up_to() }.of(file))
}

/// Zlib data of the crate's own, made large again.
pub(crate) fn inflate(file: &'static str, data: &[u8]) -> Result<Vec<u8>, TokenizerError> {
    miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(data, LARGEST_FILE as usize)
        .map_err(|_| FileFault::NotZlib.of(file))
}

/// A number of a token, as JSON has it.
pub(crate) fn id(file: &'static str, token: &str, value: &Value) -> Result<u32, TokenizerError> {
    let id = value.as_i64().ok_or_else(|| FileFault::Missing { what: "number of a token" }.of(file))?;
    u32::try_from(id)
        .ok()
        .filter(|&id| (id as usize) < LARGEST_VOCABULARY)
        .ok_or_else(|| FileFault::BadId { token: shown(token), id }.of(file))
}

/// The error about a setting that has a value which is not done.
pub(crate) fn unsupported(file: &'static str, what: &'static str, value: &Value) -> TokenizerError {
    FileFault::Unsupported { what, got: shown(&value.to_string()) }.of(file)
}

/// Refuses a file that is too large.
pub(crate) fn check_size(file: &'static str, bytes: &[u8]) -> Result<(), TokenizerError> {
    let size = bytes.len() as u64;
    if size > LARGEST_FILE {
        return Err(FileFault::TooLarge { bytes: size, most: LARGEST_FILE }.of(file));
    }
    Ok(())
}
