//! Lists a model's metadata and tensors: a GGUF or safetensors file, an index, or a folder.

use tenure_weights::WeightStore;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: list_weights FILE_OR_FOLDER")?;
    let store = WeightStore::open(&path)?;
    for (key, value) in store.metadata().iter().flat_map(|m| m.iter()) {
        println!("{key} = {value:?}");
    }
    for (key, value) in store.text_metadata().iter().flat_map(|m| m.iter()) {
        println!("{key} = {value:?}");
    }
    for tensor in store.tensors() {
        let spec = tensor.spec();
        println!("{:12} {:8} {:<24} {}", tensor.offset(), spec.dtype, spec.shape.to_string(), spec.name);
    }
    println!("{} tensors, {} in {} files", store.len(), store.file_bytes(), store.files().len());
    Ok(())
}
