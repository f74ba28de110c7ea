//! Good files read by `gguf-rs` too: names, shapes, offsets and metadata agree. (Not sizes, where that crate errs.)

mod common;

use common::Folder;
use tenure_tensor::{DType, Shape};
use tenure_weights::gguf::{Gguf, GgufWriter};

#[test]
fn another_reader_sees_the_same() {
    let folder = Folder::new();
    let mut writer = GgufWriter::new()
        .kv("general.architecture", "llama")
        .kv("llama.block_count", 2u32)
        .kv("llama.rope.freq_base", 10_000.0f32)
        .kv("tokenizer.ggml.tokens", ["<s>", "</s>", "é"]);
    let shapes: [&[usize]; 4] = [&[3, 256], &[256], &[2, 3, 512], &[1, 2, 3, 256]];
    for (i, dtype) in DType::ALL.into_iter().filter(|d| d.is_computable() && d.ggml_id().is_some()).enumerate() {
        let shape = shapes[i % shapes.len()];
        let bytes = dtype.row_bytes(shape.iter().product()).unwrap();
        writer = writer.tensor(format!("t.{i}.{dtype}"), dtype, Shape::new(shape), vec![i as u8; bytes]);
    }
    let path = folder.write("m.gguf", writer.finish().unwrap());

    let ours = Gguf::open(&path).unwrap();
    let theirs = gguf_rs::get_gguf_container(path.to_str().unwrap()).unwrap().decode().unwrap();
    assert_eq!(theirs.tensors().len(), ours.tensors().len());
    for (a, b) in ours.tensors().iter().zip(theirs.tensors()) {
        assert_eq!(a.spec().name, b.name);
        assert_eq!(a.spec().dtype.ggml_id(), Some(b.kind));
        assert_eq!(a.offset() - ours.data_start(), b.offset);
        // It pads shapes to four dimensions, innermost first.
        let dims: Vec<u64> = a.spec().shape.dims().iter().rev().map(|&d| d as u64).collect();
        assert_eq!(dims[..], b.shape[..dims.len()]);
        assert!(b.shape[dims.len()..].iter().all(|&d| d == 1));
    }
    assert_eq!(theirs.data_offset(), ours.data_start());
    let keys = ours.metadata().iter().map(|(key, _)| key).filter(|key| theirs.metadata().contains_key(*key));
    assert_eq!(keys.count(), 4);
    assert_eq!(theirs.metadata()["llama.block_count"], 2);
    assert_eq!(theirs.metadata()["tokenizer.ggml.tokens"][2], "é");
}
