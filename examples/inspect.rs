//! Metadata and tensors of a model file.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Map, Value, json};
use tenure::{Image, ImagePaths, WeightStore};
use tenure_examples::cli::{Refusal, parsed, run};
use tenure_examples::hub;
use tenure_weights::gguf;

/// Shows what is in a GGUF or safetensors file.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The file; the first of several shards, an index, or a diffusers folder; or ORG/NAME[:FILE] in the hub's cache.
    file: String,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    parsed(|arguments: Arguments| run(arguments.json, || inspect(&arguments).map(Some)))
}

/// Arrays longer than this are shown by their length.
const SHOWN: usize = 16;

fn inspect(arguments: &Arguments) -> Result<Value, Refusal> {
    let path = hub::resolve(&arguments.file).map_err(|error| Refusal::new("NotFound", error))?;
    if path.join("model_index.json").is_file() {
        return folder(arguments, &path);
    }
    let store = WeightStore::open(&path)?;
    let mut metadata = Map::new();
    for (key, value) in store.metadata().iter().flat_map(|meta| meta.iter()) {
        metadata.insert(key.to_owned(), of_value(&value));
    }
    let tensors: Vec<Value> = store
        .tensors()
        .map(|tensor| {
            let spec = tensor.spec();
            json!({
                "name": spec.name,
                "type": spec.dtype.name(),
                "shape": spec.shape.dims(),
                "file": tensor.file(),
                "offset": tensor.offset(),
                "bytes": tensor.bytes().get(),
            })
        })
        .collect();
    // Parts of image models, where the file is a whole one.
    let model = Image::open(&ImagePaths::new(&path)).ok();
    if !arguments.json {
        let mut out = BufWriter::new(std::io::stdout().lock());
        if let Some(model) = &model {
            let parts: Vec<String> = model.parts().map(|part| part.part().to_string()).collect();
            writeln!(out, "{}: {}", model.config().family, parts.join(", "))?;
        }
        for (key, value) in &metadata {
            writeln!(out, "{key} = {value}")?;
        }
        for tensor in store.tensors() {
            let spec = tensor.spec();
            let (offset, bytes) = (tensor.offset(), tensor.bytes());
            writeln!(out, "{:48} {:8} {:24} @{offset} {bytes}", spec.name, spec.dtype, spec.shape)?;
        }
        out.flush()?;
    }
    let mut answer = json!({"metadata": metadata, "tensors": tensors});
    if let Some(model) = model {
        answer["family"] = json!(model.config().family.to_string());
        answer["parts"] = model.parts().map(|part| json!({"name": part.part().to_string()})).collect();
    }
    Ok(answer)
}

/// The parts of a diffusers folder.
fn folder(arguments: &Arguments, path: &Path) -> Result<Value, Refusal> {
    let model = Image::open(&ImagePaths::new(path))?;
    let parts: Vec<Value> = model
        .parts()
        .map(|part| {
            json!({
                "name": part.part().to_string(),
                "files": part.files().map(|file| file.display().to_string()).collect::<Vec<_>>(),
                "tensors": part
                    .tensors()
                    .map(|spec| json!({"name": spec.name, "type": spec.dtype.name(), "shape": spec.shape.dims()}))
                    .collect::<Vec<_>>(),
            })
        })
        .collect();
    if !arguments.json {
        let mut out = BufWriter::new(std::io::stdout().lock());
        writeln!(out, "{}", model.config().family)?;
        for part in model.parts() {
            writeln!(out, "{}: {}", part.part(), part.path().display())?;
            for spec in part.tensors() {
                writeln!(out, "  {:64} {:8} {}", spec.name, spec.dtype, spec.shape)?;
            }
        }
        out.flush()?;
    }
    Ok(json!({"family": model.config().family.to_string(), "parts": parts}))
}

fn of_value(value: &gguf::Value<'_>) -> Value {
    match value {
        gguf::Value::U8(v) => json!(v),
        gguf::Value::I8(v) => json!(v),
        gguf::Value::U16(v) => json!(v),
        gguf::Value::I16(v) => json!(v),
        gguf::Value::U32(v) => json!(v),
        gguf::Value::I32(v) => json!(v),
        gguf::Value::U64(v) => json!(v),
        gguf::Value::I64(v) => json!(v),
        gguf::Value::F32(v) => json!(v),
        gguf::Value::F64(v) => json!(v),
        gguf::Value::Bool(v) => json!(v),
        gguf::Value::Str(v) => json!(v),
        gguf::Value::Array(array) if array.len() > SHOWN => {
            json!({"array_of": array.element_type().name(), "length": array.len()})
        }
        gguf::Value::Array(array) => Value::Array(array.values().map(|value| of_value(&value)).collect()),
    }
}
