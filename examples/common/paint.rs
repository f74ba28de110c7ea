//! The tiny model that draws coloured shapes, for when no other is named.

use std::path::PathBuf;

use crate::cli::Refusal;
use crate::fetch::cache_folder;

/// The model itself, so that the binary needs nothing beside it.
const MODEL: &[u8] = include_bytes!("../../fixtures/paint/paint.safetensors");

/// The model as a file: put into the user's cache, if it is not there.
///
/// # Errors
/// When there is no place for it.
pub(crate) fn path() -> Result<PathBuf, Refusal> {
    let folder = cache_folder().map_err(|error| Refusal::new("Io", error))?;
    let path = folder.join("paint.safetensors");
    let fail = |error: std::io::Error| Refusal::new("Io", format!("{}: {error}", path.display()));
    if std::fs::read(&path).is_ok_and(|there| there == MODEL) {
        return Ok(path);
    }
    std::fs::create_dir_all(&folder).map_err(fail)?;
    // Another process may read it meanwhile: it must appear whole.
    let part = path.with_extension(format!("part-{}", std::process::id()));
    std::fs::write(&part, MODEL).and_then(|()| std::fs::rename(&part, &path)).map_err(fail)?;
    Ok(path)
}
