//! Files that can be read and are not as they should be: damaged weights, and tensors that nobody uses.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tenure::{
    ByteSize, Deadline, Device, Engine, ErrorKind, GenerateOptions, LoadOptions, Prompt, SamplerParams, Stop, Text,
    TextOptions, WeightStore, vulkan::Caps,
};
use tenure_conformance::{Gpu, Temporary, fixture};
use tenure_tensor::DType;
use tenure_weights::gguf::{GgufWriter, KvValue};

const PROMPT: [u32; 20] = [7; 20];

fn soon() -> Stop {
    Stop::by(Deadline::after(Duration::from_secs(60)))
}

/// Where a block's f16 scale is.
fn scale_at(dtype: DType) -> Option<usize> {
    match dtype {
        DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 | DType::IQ4NL => Some(0),
        DType::Q4K | DType::Q5K | DType::IQ4XS => Some(0),
        DType::Q2K => Some(80),
        DType::Q3K => Some(108),
        DType::Q6K => Some(208),
        _ => None,
    }
}

/// The file with the first scale of a tensor replaced.
fn spoilt(path: &Path, tensor: &str, scale: u16) -> Vec<u8> {
    let store = WeightStore::open(path).expect("a sound file");
    let tensor = store.find(tensor).expect("is there");
    let in_block = scale_at(tensor.spec().dtype).expect("has a scale");
    let mut bytes = std::fs::read(path).expect("readable");
    let at = tensor.offset() as usize + in_block;
    bytes[at..at + 2].copy_from_slice(&scale.to_le_bytes());
    bytes
}

/// Every tensor with scales of every model, by file and name.
fn to_damage(models: &[&str]) -> Vec<(PathBuf, String)> {
    let mut tensors = Vec::new();
    for path in models.iter().map(|model| fixture(model)) {
        let store = WeightStore::open(&path).expect("a sound file");
        // Of a table that is not the head as well, only rows of the prompt's tokens matter.
        let untied = store.find("output.weight").is_some();
        let specs = store.tensors().map(|tensor| tensor.spec()).filter(|spec| scale_at(spec.dtype).is_some());
        let specs = specs.filter(|spec| !(untied && spec.name == "token_embd.weight"));
        tensors.extend(specs.map(|spec| (path.clone(), spec.name.clone())));
    }
    tensors
}

#[test]
fn scales_that_are_no_numbers_are_found_in_their_layer() {
    let gpu = Gpu::open(Caps::default());
    let models = ["qwen3-k.gguf", "llama-blocks.gguf", "gemma3-q4_0.gguf"];
    let mut engines = vec![(Engine::auto().expect("cpu"), &models[..], 100)];
    // On a device the check is the same; making its pipelines takes time.
    let on = |gpu: &Gpu| Engine::on(Device::new(gpu.backend.clone(), ByteSize::new(1 << 30)));
    engines.extend(gpu.as_ref().map(|gpu| (on(gpu), &models[..1], 16)));
    let checked = TextOptions { check_activations: true, batch: 8, ..TextOptions::default() };
    for (engine, models, least) in &engines {
        let (mut layers, mut heads) = (0, 0);
        for (sound, name) in &to_damage(models) {
            for (what, scale) in [("nan", 0x7e00), ("inf", 0x7c00)] {
                let file =
                    Temporary::new(&format!("{name}-{what}.gguf"), &spoilt(sound, name, scale)).expect("writable");
                let model = engine.load_text_with(file.path(), &checked, &LoadOptions::default()).expect("loads");
                let mut session = model.session().expect("free");
                let tied = name == "token_embd.weight";
                match name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()) {
                    Some(layer) => {
                        for _ in 0..2 {
                            let error = session.evaluate(&PROMPT, &soon()).expect_err("damaged");
                            assert_eq!(
                                (error.class().as_str(), error.kind()),
                                ("NonFiniteActivation", ErrorKind::NonFinite)
                            );
                            assert!(error.to_string().contains(&format!("layer {layer} ")), "{name} {what}: {error}");
                        }
                        layers += 1;
                    }
                    // The first row of the table is a token that the prompt does not have, and the first logit.
                    None => {
                        let logits = session.evaluate(&PROMPT, &soon()).expect("no layer is damaged");
                        assert!(!logits[0].is_finite(), "{name} {what}");
                        assert!(tied || name == "output.weight", "{name}");
                        heads += 1;
                    }
                }
                drop(session);
                // Unchecked, it is the sampler that refuses.
                let model = engine.load_text(file.path()).expect("loads");
                let mut session = model.session().expect("free");
                let options = GenerateOptions {
                    sampler: SamplerParams::greedy(),
                    max_tokens: Some(4),
                    ..GenerateOptions::default()
                };
                let answer = session.generate_with(Prompt::Tokens(PROMPT.to_vec()), options).expect("begins");
                let error = answer.finish(Deadline::after(Duration::from_secs(60))).expect_err("damaged");
                assert_eq!(error.class(), "NonFiniteLogits", "{name} {what}");
            }
        }
        assert!(layers >= *least && heads >= 2, "{layers} in layers, {heads} in heads");
    }
    drop(engines);
    if let Some(gpu) = gpu {
        gpu.close();
    }
}

#[test]
fn checked_steps_give_the_same_bits_and_hold_what_is_planned() {
    let engine = Engine::auto().expect("cpu");
    let logits = |check_activations| {
        let options = TextOptions { check_activations, batch: 8, sequences: 2, ..TextOptions::default() };
        let store = Arc::new(WeightStore::open(fixture("gemma3-q4_0.gguf")).expect("a sound file"));
        let plan = engine.plan::<Text>(&store, &options).expect("plans");
        let planned = plan.bytes();
        let reservation = engine.reserve(&plan, &soon()).expect("fits");
        let model = engine.load(plan, reservation, &LoadOptions::default()).expect("loads");
        assert_eq!(engine.report().allocated, planned);
        let mut session = model.session().expect("free");
        let logits: Vec<u32> =
            session.evaluate(&PROMPT, &soon()).expect("sound").iter().map(|logit| logit.to_bits()).collect();
        (logits, planned)
    };
    let (plain, checked) = (logits(false), logits(true));
    assert_eq!(plain.0, checked.0);
    assert!(checked.1 > plain.1, "what the layers give takes memory");
}

#[test]
fn tensors_that_nobody_uses_are_counted() {
    let engine = Engine::auto().expect("cpu");
    let path = fixture("llama-f32.gguf");
    let store = WeightStore::open(&path).expect("a sound file");
    let mut golden: Option<Vec<f32>> = None;
    for extra in [0, 1, 100_000] {
        let mut writer = GgufWriter::new();
        for (key, value) in store.metadata().expect("a GGUF").iter() {
            writer = writer.kv(key, KvValue::from(value));
        }
        for tensor in store.tensors() {
            let mut bytes = vec![0; tensor.bytes().get() as usize];
            store.read_at(tensor, 0, &mut bytes).expect("readable");
            let spec = tensor.spec();
            writer = writer.tensor(spec.name.clone(), spec.dtype, spec.shape.clone(), bytes);
        }
        for index in 0..extra {
            writer = writer.tensor(format!("extra.{index}.weight"), DType::F32, [2], vec![0; 8]);
        }
        let file =
            Temporary::new(&format!("extra-{extra}.gguf"), &writer.finish().expect("a sound file")).expect("writable");
        let store = Arc::new(WeightStore::open(file.path()).expect("a sound file"));
        let plan = engine.plan::<Text>(&store, &TextOptions::default()).expect("plans");
        assert_eq!(plan.unused_tensors().count(), extra);
        assert!(plan.unused_tensors().all(|spec| spec.name.starts_with("extra.")));
        let reservation = engine.reserve(&plan, &soon()).expect("fits");
        let model = engine.load(plan, reservation, &LoadOptions::default()).expect("loads");
        let mut session = model.session().expect("free");
        let logits = session.evaluate(&PROMPT, &soon()).expect("evaluates").to_vec();
        let golden = golden.get_or_insert_with(|| logits.clone());
        assert!(logits.iter().zip(&*golden).all(|(a, b)| a.to_bits() == b.to_bits()), "{extra} more tensors");
    }
}
