//! Finding a model's files: single files, shards and folders.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::file::{ModelFile, ReadAt, io_at};
use crate::gguf::Gguf;
use crate::safetensors::Safetensors;
use crate::{ErrorKind, ShardFault, Shown, StoredTensor, WeightStore, WeightsError, index};

/// The most shards a model may have.
const MAX_SHARDS: u64 = 10_000;
const INDEX_SUFFIX: &str = ".safetensors.index.json";

pub(crate) fn open(path: &Path) -> Result<WeightStore, WeightsError> {
    let meta = std::fs::metadata(path).map_err(io_at("stat")).map_err(|kind| WeightsError::new(path, kind))?;
    if meta.is_dir() {
        return open(&in_folder(path)?);
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    if name.ends_with(".json") {
        return open_index(path);
    }
    if let Some((stem, ..)) = numbered(name, ".safetensors") {
        let index = path.with_file_name(format!("{stem}{INDEX_SUFFIX}"));
        if index.is_file() {
            return open_index(&index);
        }
    }
    let file = ModelFile::open(path)?;
    let mut magic = [0; 4];
    let read = if file.len() < 4 { Ok(()) } else { file.read_at(0, &mut magic) };
    read.map_err(|kind| WeightsError::new(path, kind))?;
    if magic == *b"GGUF" || name.ends_with(".gguf") { open_gguf(file) } else { open_safetensors(file) }
}

fn open_safetensors(file: ModelFile) -> Result<WeightStore, WeightsError> {
    let Safetensors { tensors, by_name, metadata } = Safetensors::read(&file, file.path(), 0)?;
    let path = file.path().to_owned();
    let mut store =
        WeightStore::assemble(vec![file], tensors, Some(by_name)).map_err(|kind| WeightsError::new(path, kind))?;
    store.text = Some(metadata);
    Ok(store)
}

/// A GGUF file, with its siblings when its `split` keys announce some.
fn open_gguf(file: ModelFile) -> Result<WeightStore, WeightsError> {
    let first = Gguf::read(&file, file.path(), 0)?;
    let path = file.path().to_owned();
    let fail = |kind| WeightsError::new(&path, kind);
    let bad = |why| fail(ErrorKind::BadShardIndex { why });
    let count = first.metadata.opt_u16("split.count")?.map(u64::from).unwrap_or(1);
    let name = Shown::new(path.file_name().unwrap_or_default().as_encoded_bytes());
    if count == 0 {
        return Err(bad(ShardFault::SplitCount { file: name, want: 1, got: 0 }));
    }
    if count > MAX_SHARDS {
        return Err(bad(ShardFault::TooManyShards { got: count, limit: MAX_SHARDS }));
    }
    if count == 1 {
        let mut store = WeightStore::assemble(vec![file], first.table.tensors, Some(first.table.by_name))
            .map_err(|kind| WeightsError::new(&path, kind))?;
        store.gguf = Some(first.metadata);
        return Ok(store);
    }

    let no = first.metadata.opt_u16("split.no")?.map(u64::from).unwrap_or(0);
    if no != 0 {
        return Err(bad(ShardFault::SplitNo { file: name, want: 0, got: no }));
    }
    let text = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    let stem = match numbered(text, ".gguf") {
        Some((stem, 1, n)) if n == count => stem.to_owned(),
        _ => return Err(bad(ShardFault::FileName { file: name, no: 1, count })),
    };
    let announced = first.metadata.opt_i32("split.tensors.count")?.map(i64::from);

    let mut files = vec![file];
    let mut tensors = first.table.tensors;
    for i in 1..count {
        let shard = format!("{stem}-{:05}-of-{count:05}.gguf", i + 1);
        let shown = Shown::new(&shard);
        let file = open_shard(&path.with_file_name(&shard), shown.clone(), &path)?;
        let more = Gguf::read(&file, file.path(), i as u32)?;
        let got = more.metadata.opt_u16("split.count")?.map(u64::from).unwrap_or(0);
        if got != count {
            return Err(bad(ShardFault::SplitCount { file: shown, want: count, got }));
        }
        let got = more.metadata.opt_u16("split.no")?.map(u64::from).unwrap_or(0);
        if got != i {
            return Err(bad(ShardFault::SplitNo { file: shown, want: i, got }));
        }
        tensors.extend(more.table.tensors);
        files.push(file);
    }
    if let Some(got) = announced.filter(|&got| got != tensors.len() as i64) {
        return Err(bad(ShardFault::TensorCount { want: tensors.len() as u64, got }));
    }
    let mut store = WeightStore::assemble(files, tensors, None).map_err(between_shards).map_err(fail)?;
    store.gguf = Some(first.metadata);
    Ok(store)
}

/// The stem, place and count of `stem-00001-of-00003.ext`.
fn numbered<'n>(name: &'n str, extension: &str) -> Option<(&'n str, u64, u64)> {
    let (rest, count) = name.strip_suffix(extension)?.rsplit_once("-of-")?;
    let (stem, no) = rest.rsplit_once('-')?;
    let number = |text: &str| text.parse().ok().filter(|_| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit()));
    Some((stem, number(no)?, number(count)?))
}

/// A shard index of safetensors files.
fn open_index(path: &Path) -> Result<WeightStore, WeightsError> {
    let fail = |kind| WeightsError::new(path, kind);
    let bad = |why| fail(ErrorKind::BadShardIndex { why });
    let json = ModelFile::open(path)?;
    let text = index::read(&json).map_err(fail)?;
    let summary = index::summary(&text, MAX_SHARDS as usize).map_err(fail)?;
    let folder = path.parent().unwrap_or(Path::new(""));

    let mut files: Vec<ModelFile> = Vec::new();
    let mut tensors: Vec<StoredTensor> = Vec::new();
    let mut metadata = None;
    for (i, name) in summary.shards.iter().enumerate() {
        let file = open_shard(&inside(folder, name).map_err(fail)?, Shown::new(name), path)?;
        let shard = Safetensors::read(&file, file.path(), i as u32)?;
        tensors.extend(shard.tensors);
        metadata.get_or_insert(shard.metadata);
        files.push(file);
    }
    let mut store = WeightStore::assemble(files, tensors, None).map_err(between_shards).map_err(fail)?;
    store.text = metadata;

    let want: u64 = store.tensors().map(|t| t.bytes().get()).fold(0, u64::saturating_add);
    if let Some(got) = summary.total_size.filter(|&got| got != want) {
        return Err(bad(ShardFault::TotalSize { want, got }));
    }
    index::check(&text, &summary, &store).map_err(fail)?;
    Ok(store)
}

/// A name that is in two shards is the index's fault, not one file's.
fn between_shards(kind: ErrorKind) -> ErrorKind {
    match kind {
        ErrorKind::DuplicateTensor { tensor } => {
            ErrorKind::BadShardIndex { why: ShardFault::DuplicateTensor { tensor } }
        }
        other => other,
    }
}

fn open_shard(path: &Path, file: Shown, first: &Path) -> Result<ModelFile, WeightsError> {
    ModelFile::open(path).map_err(|e| match e.kind() {
        ErrorKind::Io { kind: io::ErrorKind::NotFound, .. } => {
            WeightsError::new(first, ErrorKind::BadShardIndex { why: ShardFault::MissingShard { file } })
        }
        _ => e,
    })
}

/// The path of `name` within `folder`. Neither the name nor a link may lead out of it, except into the `blobs` folder
/// of a Hugging Face cache, where `<repo>/snapshots/<revision>/file` is a link to `<repo>/blobs/<hash>`.
pub(crate) fn inside(folder: &Path, name: &str) -> Result<PathBuf, ErrorKind> {
    let escapes = || ErrorKind::PathEscapesModelDir { name: Shown::new(name) };
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.is_empty() || name.contains(['\0', '\\', ':']) {
        return Err(escapes());
    }
    let path = folder.join(name);
    let base = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let (Ok(target), Ok(base)) = (path.canonicalize(), base.canonicalize()) else {
        // It is not there, which opening it will say.
        return Ok(path);
    };
    let blobs = base.ancestors().find(|dir| dir.ends_with("snapshots")).map(|dir| dir.with_file_name("blobs"));
    if target.starts_with(&base) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        Ok(path)
    } else {
        Err(escapes())
    }
}

/// The one model of a folder.
fn in_folder(folder: &Path) -> Result<PathBuf, WeightsError> {
    let fail = |kind| WeightsError::new(folder, kind);
    if folder.join("model_index.json").is_file() {
        return Err(fail(ErrorKind::DiffusersFolder));
    }
    for stem in ["model", "diffusion_pytorch_model"] {
        for name in [format!("{stem}{INDEX_SUFFIX}"), format!("{stem}.safetensors")] {
            let path = folder.join(name);
            if path.is_file() {
                return Ok(path);
            }
        }
    }
    let mut found: Option<PathBuf> = None;
    for entry in std::fs::read_dir(folder).map_err(io_at("list")).map_err(fail)? {
        let path = entry.map_err(io_at("list")).map_err(fail)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        // Of a numbered row only the first counts.
        let first = |extension| name.ends_with(extension) && numbered(name, extension).is_none_or(|(_, no, _)| no == 1);
        if !(first(".gguf") || first(".safetensors")) || !path.is_file() {
            continue;
        }
        if let Some(other) = found.replace(path.clone()) {
            let shown = |path: &Path| Shown::new(path.file_name().unwrap_or_default().as_encoded_bytes());
            let (a, b) = if other < path { (&other, &path) } else { (&path, &other) };
            return Err(fail(ErrorKind::AmbiguousFolder { first: shown(a), second: shown(b) }));
        }
    }
    found.ok_or_else(|| fail(ErrorKind::NoWeights))
}
