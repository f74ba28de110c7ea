//! Lists a GGUF file: its metadata and its tensors.

use tenure_weights::gguf::Gguf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: list_gguf FILE")?;
    let file = Gguf::open(&path)?;
    for (key, value) in file.metadata().iter() {
        println!("{key} = {value:?}");
    }
    for tensor in file.tensors() {
        let spec = tensor.spec();
        println!("{:10} {:6} {:<20} {}", tensor.offset(), spec.dtype, spec.shape.to_string(), spec.name);
    }
    Ok(())
}
