//! Diffusers folders: which components a pipeline has, and where their weights are.

use std::path::{Path, PathBuf};

use crate::file::{ModelFile, ReadAt, io_at};
use crate::{ErrorKind, Shown, WeightsError, shards};

const MAX_INDEX: u64 = 1 << 20;

/// A diffusers pipeline: a folder with `model_index.json` and a folder for each component.
///
/// This lists components only; open the weights of each with [`WeightStore::open`](crate::WeightStore::open).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// The pipeline's class, such as `StableDiffusionPipeline`.
    pub class: Option<String>,
    /// The components that `model_index.json` names, in its order. Those it sets to null are left out.
    pub components: Vec<PipelineComponent>,
}

/// One component, such as `unet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineComponent {
    /// Its name, which is also that of its folder.
    pub name: String,
    /// The library its class is from.
    pub library: String,
    /// Its class, such as `UNet2DConditionModel`.
    pub class: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Its weights, one entry a variant; empty for components without, such as schedulers.
    pub weights: Vec<Variant>,
}

/// One set of a component's weights.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variant {
    /// `None` for the plain files, else the variant's name, such as `fp16`.
    pub name: Option<String>,
    /// The file or shard index.
    pub path: PathBuf,
}

/// The settings of a component: its `config.json` or `scheduler_config.json`.
///
/// The getters give `None` for what is not there or null, and refuse a value of another type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    path: PathBuf,
    values: serde_json::Map<String, serde_json::Value>,
}

impl Settings {
    /// Reads the file at `path`; `None` when there is none.
    pub fn open(path: impl AsRef<Path>) -> Result<Option<Self>, WeightsError> {
        let path = path.as_ref();
        match read_index(path) {
            Ok(values) => Ok(Some(Settings { path: path.to_owned(), values })),
            Err(e) if matches!(e.kind(), ErrorKind::Io { kind: std::io::ErrorKind::NotFound, .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The string at `key`.
    pub fn str(&self, key: &str) -> Result<Option<&str>, WeightsError> {
        self.typed(key, "string", serde_json::Value::as_str)
    }

    /// The number at `key`.
    pub fn f64(&self, key: &str) -> Result<Option<f64>, WeightsError> {
        self.typed(key, "number", serde_json::Value::as_f64)
    }

    /// The bool at `key`.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, WeightsError> {
        self.typed(key, "bool", serde_json::Value::as_bool)
    }

    /// The number that is not negative at `key`.
    pub fn usize(&self, key: &str) -> Result<Option<usize>, WeightsError> {
        self.typed(key, "number that is not negative", as_usize)
    }

    /// The numbers that are not negative at `key`; one that is no list counts as a list of one.
    pub fn usizes(&self, key: &str) -> Result<Option<Vec<usize>>, WeightsError> {
        self.typed(key, "numbers that are not negative", |value| match value.as_array() {
            Some(values) => values.iter().map(as_usize).collect(),
            None => as_usize(value).map(|one| vec![one]),
        })
    }

    /// Whether there is a value other than null at `key`.
    pub fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        want: &'static str,
        pick: impl FnOnce(&'a serde_json::Value) -> Option<T>,
    ) -> Result<Option<T>, WeightsError> {
        let Some(value) = self.values.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
        let wrong = || ErrorKind::WrongType {
            key: Shown::new(key),
            want,
            got: Shown::new(value.to_string()).as_str().to_owned(),
        };
        pick(value).map(Some).ok_or_else(|| WeightsError::new(&self.path, wrong()))
    }
}

fn as_usize(value: &serde_json::Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

impl Pipeline {
    /// Reads `model_index.json` of `folder` and looks into the components' folders.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let folder = folder.as_ref();
        let path = folder.join("model_index.json");
        let index = read_index(&path)?;
        let mut class = None;
        let mut components = Vec::new();
        for (name, value) in index {
            if name == "_class_name" {
                class = value.as_str().map(str::to_owned);
                continue;
            }
            // Settings are not pairs, and absent components are pairs of null.
            let Some([library, class]) = value.as_array().map(Vec::as_slice) else { continue };
            let (Some(library), Some(class)) = (library.as_str(), class.as_str()) else { continue };
            if name.contains('/') {
                return Err(WeightsError::new(path, ErrorKind::PathEscapesModelDir { name: Shown::new(name) }));
            }
            let dir = shards::inside(folder, &name).map_err(|kind| WeightsError::new(&path, kind))?;
            let weights = variants(&dir)?;
            components.push(PipelineComponent {
                name,
                library: library.to_owned(),
                class: class.to_owned(),
                folder: dir,
                weights,
            });
        }
        Ok(Pipeline { class, components })
    }

    /// The component called `name`.
    pub fn find(&self, name: &str) -> Option<&PipelineComponent> {
        self.components.iter().find(|component| component.name == name)
    }
}

impl PipelineComponent {
    /// The weights of `variant`, or the plain ones for `None`.
    pub fn variant(&self, variant: Option<&str>) -> Option<&Path> {
        self.weights.iter().find(|v| v.name.as_deref() == variant).map(|v| v.path.as_path())
    }
}

fn read_index(path: &Path) -> Result<serde_json::Map<String, serde_json::Value>, WeightsError> {
    let fail = |kind| WeightsError::new(path, kind);
    let file = ModelFile::open(path)?;
    if file.len() > MAX_INDEX {
        return Err(fail(ErrorKind::HeaderTooLarge { bytes: file.len(), limit: MAX_INDEX }));
    }
    let mut text = vec![0; file.len() as usize];
    file.read_at(0, &mut text).map_err(fail)?;
    serde_json::from_slice(&text).map_err(|e| fail(ErrorKind::BadHeader { why: Shown::new(e.to_string()) }))
}

/// The sets of weights in a component's folder, plain ones first. A shard index hides its shards and comes before a
/// single file of the same variant.
fn variants(folder: &Path) -> Result<Vec<Variant>, WeightsError> {
    let mut found: Vec<Variant> = Vec::new();
    if !folder.is_dir() {
        return Ok(found);
    }
    let fail = |e| WeightsError::new(folder, io_at("list")(e));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        names.extend(entry.map_err(fail)?.file_name().into_string());
    }
    // Indices first.
    names.sort_by_key(|name| (!name.ends_with(".json"), name.clone()));
    for name in names {
        let Some(rest) = ["diffusion_pytorch_model", "model"].iter().find_map(|stem| name.strip_prefix(stem)) else {
            continue;
        };
        let Some(variant) = variant_of(rest) else { continue };
        if found.iter().all(|v| v.name != variant) {
            found.push(Variant { name: variant, path: folder.join(&name) });
        }
    }
    found.sort();
    Ok(found)
}

/// The variant that the rest of a file name tells, behind the stem: `.safetensors`, `.fp16.safetensors`,
/// `.safetensors.index.json`, `.safetensors.index.fp16.json`.
fn variant_of(rest: &str) -> Option<Option<String>> {
    if let Some(middle) = rest.strip_prefix(".safetensors.index").and_then(|rest| rest.strip_suffix(".json")) {
        return named(middle);
    }
    named(rest.strip_suffix(".safetensors")?)
}

fn named(middle: &str) -> Option<Option<String>> {
    if middle.is_empty() {
        return Some(None);
    }
    let name = middle.strip_prefix('.')?;
    // `model.fp16-00001-of-00002.safetensors` is a shard, which its index stands for.
    (!name.is_empty() && !name.contains("-of-")).then(|| Some(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_told_from_file_names() {
        let fp16 = Some(Some("fp16".to_owned()));
        assert_eq!(variant_of(".safetensors"), Some(None));
        assert_eq!(variant_of(".fp16.safetensors"), fp16);
        assert_eq!(variant_of(".safetensors.index.json"), Some(None));
        assert_eq!(variant_of(".safetensors.index.fp16.json"), fp16);
        assert_eq!(variant_of("-00001-of-00002.safetensors"), None);
        assert_eq!(variant_of(".fp16-00001-of-00002.safetensors"), None);
        assert_eq!(variant_of(".bin"), None);
    }
}
