//! Where a named model is: a path, or a file in the cache of the Hugging Face hub.

use std::path::{Path, PathBuf};

/// Why a model was not found.
#[derive(Debug, PartialEq, Eq)]
pub struct NotFound(String);

impl std::fmt::Display for NotFound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The file that `name` means: a path if there is one, else `ORG/NAME[:FILE]` in the hub's cache. Nothing is fetched.
///
/// # Errors
/// When neither is there; the message says where was looked.
pub fn resolve(name: &str) -> Result<PathBuf, NotFound> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.to_owned());
    }
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = variable("HOME").or_else(|| variable("USERPROFILE"));
    let cache = variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| home.map(|home| home.join(".cache/huggingface/hub")));
    match cache {
        Some(cache) => in_cache(&cache, name),
        None => Err(NotFound(format!("{name}: no such file"))),
    }
}

/// `ORG/NAME[:FILE]` below `cache`: the newest snapshot that has the file; without a file, the snapshot's own
/// folder where that is a diffusers pipeline, or else the only GGUF.
fn in_cache(cache: &Path, name: &str) -> Result<PathBuf, NotFound> {
    let (repository, file) = match name.split_once(':') {
        Some((repository, file)) => (repository, Some(file)),
        None => (name, None),
    };
    let missing = |what: &str| NotFound(format!("{name}: no such file, and {what} in {}", cache.display()));
    let parts: Vec<&str> = repository.split('/').collect();
    let sound = |part: &&str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0']);
    if parts.len() != 2 || !parts.iter().all(sound) {
        return Err(NotFound(format!("{name}: no such file")));
    }
    // A file of a snapshot may be in a folder of it, never outside.
    if file.is_some_and(|file| !file.split('/').all(|part| sound(&part))) {
        return Err(NotFound(format!("{name}: the file's name leaves the snapshot")));
    }
    let snapshots = cache.join(format!("models--{}--{}", parts[0], parts[1])).join("snapshots");
    let mut found: Vec<PathBuf> = std::fs::read_dir(&snapshots)
        .map_err(|_| missing("no snapshot of that repository"))?
        .flatten()
        .map(|e| e.path())
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.metadata().and_then(|meta| meta.modified()).ok()));
    for snapshot in found {
        match file {
            Some(file) if snapshot.join(file).is_file() => return Ok(snapshot.join(file)),
            Some(_) => {}
            None if snapshot.join("model_index.json").is_file() => return Ok(snapshot),
            None => {
                let mut models: Vec<PathBuf> = std::fs::read_dir(&snapshot)
                    .map_err(|_| missing("an unreadable snapshot"))?
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
                    .collect();
                match (models.pop(), models.is_empty()) {
                    (Some(model), true) => return Ok(model),
                    (Some(_), false) => return Err(missing("several files, so name one after a colon")),
                    (None, _) => {}
                }
            }
        }
    }
    Err(missing("no such file of that repository"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_as_the_hub_lays_them_out() {
        let cache = std::env::temp_dir().join(format!("tenure-hub-{}", std::process::id()));
        let snapshot = cache.join("models--org--name/snapshots/abc");
        std::fs::create_dir_all(&snapshot).expect("writable");
        std::fs::write(snapshot.join("one.gguf"), b"x").expect("writable");
        assert_eq!(in_cache(&cache, "org/name"), Ok(snapshot.join("one.gguf")));
        assert_eq!(in_cache(&cache, "org/name:one.gguf"), Ok(snapshot.join("one.gguf")));
        std::fs::write(snapshot.join("two.gguf"), b"x").expect("writable");
        assert!(in_cache(&cache, "org/name").is_err_and(|error| error.0.contains("several")));
        for absent in ["org/name:three.gguf", "org/other", "a/b/c", "org/name:../abc/one.gguf", "../name:one.gguf"] {
            assert!(in_cache(&cache, absent).is_err(), "{absent}");
        }
        std::fs::remove_dir_all(&cache).expect("ours");
    }
}
