//! The store on real files: shards, folders, paths that lead astray, files that change.

mod common;

use std::path::Path;
use std::time::{Duration, SystemTime};

use common::{Folder, entry, safetensors};
use tenure_tensor::DType;
use tenure_weights::diffusers::{Pipeline, Settings, variants};
use tenure_weights::gguf::{GgufWriter, Value};
use tenure_weights::{ErrorKind, ShardFault, TrustFile, WeightStore};

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn kind(path: impl AsRef<Path>) -> ErrorKind {
    WeightStore::open(path).unwrap_err().kind().clone()
}

fn shard_fault(path: impl AsRef<Path>) -> ShardFault {
    match kind(path) {
        ErrorKind::BadShardIndex { why } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_writer_and_the_reader_agree() {
    let folder = Folder::new();
    let q4: Vec<u8> = (0..72).collect();
    let file = GgufWriter::new()
        .kv("general.alignment", 64u32)
        .kv("u8", 1u8)
        .kv("i8", -1i8)
        .kv("u16", 2u16)
        .kv("i16", -2i16)
        .kv("u32", 3u32)
        .kv("i32", -3i32)
        .kv("u64", 4u64)
        .kv("i64", -4i64)
        .kv("f32", 0.5f32)
        .kv("f64", 0.25f64)
        .kv("bool", true)
        .kv("str", "größe")
        .kv("strs", ["a", "", "c\0d"])
        .kv("u32s", vec![1u32, 2])
        .kv("i32s", vec![-1i32])
        .kv("f32s", [1.5f32])
        .kv("bools", [true, false])
        .tensor("b", DType::Q4_0, [2, 64], q4.clone())
        .tensor("a", DType::F32, [3], f32s(&[1.0, 2.0, 3.0]))
        .finish()
        .unwrap();
    let store = WeightStore::open(folder.write("m.gguf", file)).unwrap();
    let m = store.metadata().unwrap();
    assert_eq!((m.u32("u32").unwrap(), m.f32("f32").unwrap(), m.bool("bool").unwrap()), (3, 0.5, true));
    assert_eq!(m.str("str").unwrap(), "größe");
    assert_eq!((m.opt_u16("u16").unwrap(), m.opt_i32("i32").unwrap()), (Some(2), Some(-3)));
    assert!(m.strs("strs").unwrap().eq(["a", "", "c\0d"]));
    assert_eq!(m.strs("strs").unwrap().len(), 3);
    assert!(m.array("u32s").unwrap().u32s().unwrap().eq([1, 2]));
    assert!(m.array("i32s").unwrap().i32s().unwrap().eq([-1]));
    assert!(m.array("f32s").unwrap().f32s().unwrap().eq([1.5]));
    assert!(m.array("bools").unwrap().bools().unwrap().eq([true, false]));
    assert_eq!(m.array("bools").unwrap().values().count(), 2);
    assert!(matches!(m.value("u64"), Some(Value::U64(4))));
    assert!(matches!(m.value("f64"), Some(Value::F64(0.25))));
    let keys: Vec<_> = m.iter().map(|(key, _)| key).collect();
    assert_eq!(keys[..3], ["general.alignment", "u8", "i8"]);

    let names: Vec<_> = store.tensors().map(|t| t.spec().name.as_str()).collect();
    assert_eq!(names, ["b", "a"]);
    let b = store.find("b").unwrap();
    assert_eq!((b.spec().shape.dims(), b.offset() % 64), (&[2, 64][..], 0));
    let mut part = [0; 5];
    store.read_at(b, 36, &mut part).unwrap();
    assert_eq!(part, q4[36..41]);
    assert!(store.find("c").is_none());
}

#[test]
fn metadata_of_another_type_or_absent_is_named() {
    let folder = Folder::new();
    let file = GgufWriter::new().kv("a", "8").kv("b", 8i64).kv("c", [1u8]).kv("d", 8.0f32).finish().unwrap();
    let path = folder.write("m.gguf", file);
    let store = WeightStore::open(&path).unwrap();
    let m = store.metadata().unwrap();
    let wrong = |key: &str, want, got: &str| ErrorKind::WrongType { key: key.into(), want, got: got.into() };
    assert_eq!(m.u32("a").unwrap_err().kind(), &wrong("a", "u32", "string"));
    assert_eq!(m.u32("b").unwrap_err().kind(), &wrong("b", "u32", "i64"));
    assert_eq!(m.opt_u32("d").unwrap_err().kind(), &wrong("d", "u32", "f32"));
    assert_eq!(m.f32("c").unwrap_err().kind(), &wrong("c", "f32", "array of u8"));
    assert_eq!(m.strs("c").unwrap_err().kind(), &wrong("c", "array of string", "array of u8"));
    assert_eq!(m.array("a").unwrap_err().kind(), &wrong("a", "array", "string"));
    let missing = m.u32("e").unwrap_err();
    assert_eq!(missing.kind(), &ErrorKind::MissingKey { key: "e".into() });
    assert_eq!(missing.path(), path);
    assert_eq!(m.opt_u32("e").unwrap(), None);
}

#[test]
fn what_the_reader_would_refuse_the_writer_refuses() {
    let refused = |w: GgufWriter| w.finish().unwrap_err().kind().clone();
    let short = refused(GgufWriter::new().tensor("t", DType::F32, [2], vec![0; 7]));
    assert_eq!(short, ErrorKind::SizeMismatch { tensor: "t".into(), want: 8, got: 7 });
    assert!(matches!(refused(GgufWriter::new().tensor("t", DType::Bool, [2], vec![0; 2])), ErrorKind::BadDtype { .. }));
    assert!(matches!(refused(GgufWriter::new().kv("k", 1u8).kv("k", 1u8)), ErrorKind::DuplicateKey { .. }));
    assert!(matches!(refused(GgufWriter::new().kv("general.alignment", 3u32)), ErrorKind::BadAlignment { .. }));
}

#[test]
fn reads_beyond_a_tensor_are_refused() {
    let folder = Folder::new();
    let file = GgufWriter::new().tensor("t", DType::F32, [8], vec![1; 32]).finish().unwrap();
    let store = WeightStore::open(folder.write("m.gguf", file)).unwrap();
    let t = store.find("t").unwrap();
    for (offset, len) in [(0, 33), (32, 1), (u64::MAX, 2)] {
        let e = store.read_at(t, offset, &mut vec![0; len]).unwrap_err();
        assert!(matches!(e.kind(), ErrorKind::ReadOutOfTensor { bytes: 32, .. }), "{e}");
    }
    store.read_at(t, 32, &mut []).unwrap();
}

#[test]
fn maps_outlive_their_store() {
    let folder = Folder::new();
    let data = f32s(&[1.0, 2.0, 3.0, 4.0]);
    let file = GgufWriter::new().tensor("t", DType::F32, [4], data.clone()).finish().unwrap();
    let store = WeightStore::open(folder.write("m.gguf", file)).unwrap();
    let map = store.map(store.find("t").unwrap(), TrustFile).unwrap();
    let copy = map.clone();
    // Some of the bytes, and some of those.
    let middle = map.part(4, 8).unwrap();
    assert_eq!((&*middle, &*middle.part(4, 4).unwrap()), (&data[4..12], &data[8..12]));
    assert!(middle.part(8, 0).unwrap().is_empty());
    for (start, len) in [(0, 9), (9, 0), (8, 1), (u64::MAX, 1), (1, u64::MAX)] {
        assert!(middle.part(start, len).is_none(), "{start} {len}");
    }
    drop((store, map));
    let there = std::thread::spawn(move || copy.to_vec()).join().unwrap();
    assert_eq!(there, data);
}

#[test]
fn p03_only_regular_files_are_opened() {
    let folder = Folder::new();
    assert_eq!(kind(folder.path()), ErrorKind::NoWeights);
    assert!(matches!(
        kind(folder.path().join("absent.gguf")),
        ErrorKind::Io { op: "stat", kind: std::io::ErrorKind::NotFound }
    ));
    assert!(matches!(kind(folder.write("empty.gguf", "")), ErrorKind::Truncated { .. }));
    assert!(matches!(kind(folder.write("empty.safetensors", "")), ErrorKind::Truncated { .. }));
    #[cfg(unix)]
    {
        assert!(matches!(kind("/dev/zero"), ErrorKind::NotAFile { .. }));
        let pipe = folder.path().join("pipe.gguf");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(matches!(kind(&pipe), ErrorKind::NotAFile { .. }));
    }
    assert!(matches!(
        tenure_weights::gguf::Gguf::open(folder.path()).unwrap_err().kind(),
        ErrorKind::NotAFile { what: "a directory" }
    ));
}

#[test]
fn p04_a_replaced_file_keeps_working() {
    let folder = Folder::new();
    let file = |v| GgufWriter::new().tensor("t", DType::F32, [2], f32s(&[v, v])).finish().unwrap();
    let path = folder.write("m.gguf", file(1.0));
    let store = WeightStore::open(&path).unwrap();
    std::fs::rename(folder.write("new.gguf", file(2.0)), &path).unwrap();
    let mut bytes = [0; 8];
    store.read_at(store.find("t").unwrap(), 0, &mut bytes).unwrap();
    assert_eq!(bytes[..], f32s(&[1.0, 1.0]));
    store.verify_unchanged().unwrap();
}

#[test]
fn p05_p06_a_cut_or_overwritten_file_is_noticed() {
    let folder = Folder::new();
    let whole = GgufWriter::new().tensor("t", DType::F32, [1024], vec![1; 4096]).finish().unwrap();
    let path = folder.write("m.gguf", &whole);
    let changed = |store: &WeightStore| {
        let t = store.find("t").unwrap();
        let read = store.read_at(t, 4000, &mut [0; 96]).unwrap_err();
        assert_eq!(read.kind(), &ErrorKind::FileChanged);
        assert_eq!(read.path(), path);
        assert_eq!(store.verify_unchanged().unwrap_err().kind(), &ErrorKind::FileChanged);
        assert_eq!(store.map(t, TrustFile).unwrap_err().kind(), &ErrorKind::FileChanged);
    };
    let store = WeightStore::open(&path).unwrap();
    let open = || std::fs::File::options().write(true).open(&path).unwrap();
    open().set_len(200).unwrap();
    changed(&store);

    std::fs::write(&path, &whole).unwrap();
    let store = WeightStore::open(&path).unwrap();
    let extent = store.find("t").map(|t| (t.offset(), t.bytes())).unwrap();
    std::fs::write(&path, vec![0xff; whole.len()]).unwrap();
    // The clock of a file system may tick too slowly to show so quick a change.
    open().set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
    changed(&store);
    assert_eq!(store.find("t").map(|t| (t.offset(), t.bytes())), Some(extent));
}

/// A row of GGUF shards with a tensor each.
fn gguf_shard(no: u16, count: u16, tensors: i32) -> Vec<u8> {
    GgufWriter::new()
        .kv("general.architecture", "llama")
        .kv("split.no", no)
        .kv("split.count", count)
        .kv("split.tensors.count", tensors)
        .tensor(format!("t{no}"), DType::F32, [2], f32s(&[f32::from(no); 2]))
        .finish()
        .unwrap()
}

#[test]
fn gguf_shards_make_one_model() {
    let folder = Folder::new();
    for no in 0..3 {
        folder.write(&format!("m-0000{}-of-00003.gguf", no + 1), gguf_shard(no, 3, 3));
    }
    for path in [folder.path().to_owned(), folder.path().join("m-00001-of-00003.gguf")] {
        let store = WeightStore::open(path).unwrap();
        assert_eq!((store.len(), store.files().len()), (3, 3));
        let mut bytes = [0; 8];
        store.read_at(store.find("t2").unwrap(), 0, &mut bytes).unwrap();
        assert_eq!(bytes[..], f32s(&[2.0, 2.0]));
        assert_eq!(store.metadata().unwrap().str("general.architecture").unwrap(), "llama");
    }
    let later = shard_fault(folder.path().join("m-00002-of-00003.gguf"));
    assert_eq!(later, ShardFault::SplitNo { file: "m-00002-of-00003.gguf".into(), want: 0, got: 1 });
}

#[test]
fn p02_gguf_shards_that_do_not_fit() {
    let folder = Folder::new();
    let first = folder.write("m-00001-of-00002.gguf", gguf_shard(0, 2, 2));
    assert_eq!(shard_fault(&first), ShardFault::MissingShard { file: "m-00002-of-00002.gguf".into() });
    let file = || "m-00002-of-00002.gguf".into();
    folder.write("m-00002-of-00002.gguf", gguf_shard(0, 2, 2));
    assert_eq!(shard_fault(&first), ShardFault::SplitNo { file: file(), want: 1, got: 0 });
    folder.write("m-00002-of-00002.gguf", gguf_shard(1, 3, 2));
    assert_eq!(shard_fault(&first), ShardFault::SplitCount { file: file(), want: 2, got: 3 });
    folder.write("m-00002-of-00002.gguf", gguf_shard(1, 2, 2));
    assert!(WeightStore::open(&first).is_ok());
    folder.write("m-00001-of-00002.gguf", gguf_shard(0, 2, 7));
    assert_eq!(shard_fault(&first), ShardFault::TensorCount { want: 2, got: 7 });
    let many = folder.write("n-00001-of-65535.gguf", gguf_shard(0, 65_535, 2));
    assert_eq!(shard_fault(&many), ShardFault::TooManyShards { got: 65_535, limit: 10_000 });
    let other = folder.write("other.gguf", gguf_shard(0, 2, 2));
    assert_eq!(shard_fault(&other), ShardFault::FileName { file: "other.gguf".into(), no: 1, count: 2 });

    let twice = |no: u16| {
        let w = GgufWriter::new().kv("split.no", no).kv("split.count", 2u16);
        w.tensor("t", DType::F32, [1], vec![0; 4]).finish().unwrap()
    };
    folder.write("d-00002-of-00002.gguf", twice(1));
    let first = folder.write("d-00001-of-00002.gguf", twice(0));
    assert_eq!(shard_fault(&first), ShardFault::DuplicateTensor { tensor: "t".into() });
}

const INDEX: &str = "model.safetensors.index.json";

/// Two safetensors shards, `a` in the first and `b` in the second.
fn safetensors_shards() -> Folder {
    let folder = Folder::new();
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        let bytes = safetensors(format!("{{{}}}", entry(name, "F32", "4", "0,16")), 16);
        folder.write(&format!("model-0000{}-of-00002.safetensors", i + 1), bytes);
    }
    folder
}

fn index(total: &str, map: &[(&str, &str)]) -> String {
    let map: Vec<String> = map.iter().map(|(t, f)| format!("\"{t}\":\"{f}\"")).collect();
    format!("{{\"metadata\":{{\"total_size\":{total}}},\"weight_map\":{{{}}}}}", map.join(","))
}

const ONE: &str = "model-00001-of-00002.safetensors";
const TWO: &str = "model-00002-of-00002.safetensors";

#[test]
fn safetensors_shards_make_one_model() {
    let folder = safetensors_shards();
    let path = folder.write(INDEX, index("32", &[("b", TWO), ("a", ONE)]));
    for path in [path.clone(), folder.path().to_owned(), folder.path().join(ONE)] {
        let store = WeightStore::open(path).unwrap();
        assert_eq!((store.len(), store.files().len()), (2, 2));
        assert!(store.files().nth(store.find("a").unwrap().file()).unwrap().ends_with(ONE));
    }
    folder.write(INDEX, index("32.0", &[("b", TWO), ("a", ONE)]));
    assert!(WeightStore::open(path).is_ok());
}

#[test]
fn p02_safetensors_shards_that_do_not_fit() {
    let folder = safetensors_shards();
    let fault = |text: String| shard_fault(folder.write(INDEX, text));
    assert_eq!(fault(index("33", &[("a", ONE), ("b", TWO)])), ShardFault::TotalSize { want: 32, got: 33 });
    let missing = fault(index("32", &[("a", ONE), ("b", "model-3.safetensors")]));
    assert_eq!(missing, ShardFault::MissingShard { file: "model-3.safetensors".into() });
    let swapped = fault(index("32", &[("a", TWO), ("b", ONE)]));
    assert_eq!(swapped, ShardFault::TensorNotInShard { tensor: "a".into(), file: TWO.into() });
    let absent = fault(index("32", &[("a", ONE), ("b", TWO), ("c", TWO)]));
    assert_eq!(absent, ShardFault::TensorNotInShard { tensor: "c".into(), file: TWO.into() });
    let unlisted = fault(index("32", &[("a", ONE), ("x", TWO)]));
    assert_eq!(unlisted, ShardFault::TensorNotInShard { tensor: "x".into(), file: TWO.into() });
    let three = safetensors(format!("{{{},{}}}", entry("b", "F32", "4", "0,16"), entry("c", "F32", "1", "16,20")), 20);
    folder.write(TWO, three);
    let more = fault(index("36", &[("a", ONE), ("b", TWO)]));
    assert_eq!(more, ShardFault::TensorNotInIndex { tensor: "c".into(), file: TWO.into() });
    std::fs::copy(folder.path().join(ONE), folder.path().join("copy.safetensors")).unwrap();
    let copied = fault(index("32", &[("a", ONE), ("b", "copy.safetensors")]));
    assert_eq!(copied, ShardFault::DuplicateTensor { tensor: "a".into() });

    let twice = kind(folder.write(INDEX, index("36", &[("a", ONE), ("b", TWO), ("c", TWO), ("a", ONE)])));
    assert_eq!(twice, ErrorKind::DuplicateTensor { tensor: "a".into() });
    for text in ["", "{}", "[]", r#"{"weight_map":{"a":1}}"#, r#"{"weight_map":{},"weight_map":{}}"#] {
        assert!(matches!(kind(folder.write(INDEX, text)), ErrorKind::BadHeader { .. }), "{text}");
    }
}

#[test]
fn p01_names_that_lead_out_are_refused() {
    let folder = safetensors_shards();
    for name in ["../x", "/etc/passwd", "a\\u0000b", "C:\\\\x", "a/../../x", "", "."] {
        let got = kind(folder.write(INDEX, index("32", &[("a", ONE), ("b", name)])));
        assert!(matches!(got, ErrorKind::PathEscapesModelDir { .. }), "{name}: {got:?}");
    }
    #[cfg(unix)]
    {
        let outside = Folder::new();
        let target = outside.write("x.safetensors", std::fs::read(folder.path().join(TWO)).unwrap());
        std::os::unix::fs::symlink(target, folder.path().join("link.safetensors")).unwrap();
        let got = kind(folder.write(INDEX, index("32", &[("a", ONE), ("b", "link.safetensors")])));
        assert_eq!(got, ErrorKind::PathEscapesModelDir { name: "link.safetensors".into() });
    }
}

#[cfg(unix)]
#[test]
fn the_links_of_a_hugging_face_cache_are_followed() {
    let shards = safetensors_shards();
    let cache = Folder::new();
    for (blob, name) in [("b1", ONE), ("b2", TWO)] {
        cache.write(&format!("blobs/{blob}"), std::fs::read(shards.path().join(name)).unwrap());
        std::fs::create_dir_all(cache.path().join("snapshots/rev")).unwrap();
        let link = cache.path().join("snapshots/rev").join(name);
        std::os::unix::fs::symlink(format!("../../blobs/{blob}"), link).unwrap();
    }
    let path = cache.write(&format!("snapshots/rev/{INDEX}"), index("32", &[("a", ONE), ("b", TWO)]));
    assert_eq!(WeightStore::open(path).unwrap().len(), 2);
}

#[test]
fn folders_hold_one_model_or_say_so() {
    let folder = Folder::new();
    let tiny = GgufWriter::new().finish().unwrap();
    folder.write("b.gguf", &tiny);
    assert!(WeightStore::open(folder.path()).unwrap().is_empty());
    folder.write("a.gguf", &tiny);
    assert_eq!(kind(folder.path()), ErrorKind::AmbiguousFolder { first: "a.gguf".into(), second: "b.gguf".into() });
    folder.write("model.safetensors", safetensors("{}", 0));
    assert!(WeightStore::open(folder.path()).unwrap().text_metadata().is_some());
}

#[test]
fn a_diffusers_folder_lists_its_components() {
    let folder = Folder::new();
    let weights = safetensors(format!("{{{}}}", entry("w", "F32", "1", "0,4")), 4);
    let text = r#"{"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0", "requires_safety_checker": false,
        "safety_checker": [null, null], "scheduler": ["diffusers", "PNDMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"], "text_encoder": ["transformers", "CLIPTextModel"]}"#;
    folder.write("model_index.json", text);
    folder.write("scheduler/scheduler_config.json", "{}");
    folder.write("unet/diffusion_pytorch_model.fp16.safetensors", &weights);
    folder.write("unet/diffusion_pytorch_model.safetensors", &weights);
    folder.write("text_encoder/model.safetensors", &weights);
    assert_eq!(kind(folder.path()), ErrorKind::DiffusersFolder);

    let pipeline = Pipeline::open(folder.path()).unwrap();
    assert_eq!(pipeline.class.as_deref(), Some("StableDiffusionPipeline"));
    let names: Vec<_> = pipeline.components.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["scheduler", "unet", "text_encoder"]);
    let unet = pipeline.find("unet").unwrap();
    assert!(unet.variant(None).unwrap().ends_with("diffusion_pytorch_model.safetensors"));
    assert!(unet.variant(Some("fp16")).unwrap().ends_with("diffusion_pytorch_model.fp16.safetensors"));
    assert_eq!(WeightStore::open(unet.variant(Some("fp16")).unwrap()).unwrap().len(), 1);
    assert!(pipeline.find("scheduler").unwrap().weights.is_empty());

    let sets = variants(&folder.path().join("unet")).unwrap();
    assert_eq!(sets.iter().map(|set| set.name.as_deref()).collect::<Vec<_>>(), [None, Some("fp16")]);
    assert!(variants(&folder.path().join("nowhere")).unwrap().is_empty());

    folder.write("model_index.json", r#"{"../unet": ["diffusers", "X"]}"#);
    let escape = Pipeline::open(folder.path()).unwrap_err();
    assert!(matches!(escape.kind(), ErrorKind::PathEscapesModelDir { .. }), "{escape}");
}

#[test]
fn a_components_settings_are_typed() {
    let folder = Folder::new();
    assert_eq!(Settings::open(folder.path().join("config.json")).unwrap(), None);
    let text = r#"{"act": "gelu", "scale": 0.5, "heads": 8, "each": [5, 10], "set": false, "none": null, "less": -1}"#;
    let settings = Settings::open(folder.write("config.json", text)).unwrap().unwrap();
    assert_eq!((settings.str("act").unwrap(), settings.f64("scale").unwrap()), (Some("gelu"), Some(0.5)));
    assert_eq!((settings.usize("heads").unwrap(), settings.bool("set").unwrap()), (Some(8), Some(false)));
    assert_eq!(settings.usizes("heads").unwrap(), Some(vec![8]));
    assert_eq!(settings.usizes("each").unwrap(), Some(vec![5, 10]));
    assert_eq!((settings.str("none").unwrap(), settings.str("absent").unwrap()), (None, None));
    assert!(settings.has("less") && !settings.has("none") && !settings.has("absent"));
    let wrong = |e: tenure_weights::WeightsError| match e.kind() {
        ErrorKind::WrongType { want, got, .. } => (*want, got.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(wrong(settings.str("scale").unwrap_err()), ("string", "0.5".to_owned()));
    assert_eq!(wrong(settings.bool("act").unwrap_err()), ("bool", "\\\"gelu\\\"".to_owned()));
    for key in ["less", "scale", "act", "each"] {
        assert!(settings.usize(key).is_err(), "{key}");
    }
    assert!(settings.usizes("less").is_err() && settings.f64("act").is_err());
    for text in ["", "{", "[]", "1"] {
        let e = Settings::open(folder.write("config.json", text)).unwrap_err();
        assert!(matches!(e.kind(), ErrorKind::BadHeader { .. }), "{text}: {e}");
    }
}
