//! Files whose hyperparameters cannot be: each gets its typed error, naming the key or tensor, before anything is
//! built on it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use tenure_graph::{PlanError, StepShape};
use tenure_models::{ModelError, Outputs, Part, TextConfig, record};
use tenure_tensor::{DType, Shape};
use tenure_weights::WeightStore;
use tenure_weights::gguf::{GgufWriter, KvValue, ValueType};

/// A small llama file to be spoilt: pairs and tensors by name.
#[derive(Clone)]
struct Model {
    pairs: Vec<(String, KvValue)>,
    tensors: Vec<(String, DType, Shape)>,
}

const VOCAB: usize = 32;
const WIDTH: usize = 64;

impl Model {
    fn new() -> Self {
        let u32s = [
            ("llama.block_count", 1),
            ("llama.embedding_length", WIDTH as u32),
            ("llama.feed_forward_length", 96),
            ("llama.attention.head_count", 4),
            ("llama.attention.head_count_kv", 2),
            ("llama.context_length", 128),
        ];
        let mut pairs = vec![
            ("general.architecture".to_owned(), KvValue::Str("llama".into())),
            ("llama.attention.layer_norm_rms_epsilon".to_owned(), KvValue::F32(1e-5)),
        ];
        pairs.extend(u32s.map(|(key, value)| (key.to_owned(), KvValue::U32(value))));
        let tokens = (0..VOCAB).map(|i| KvValue::Str(format!("t{i}"))).collect();
        pairs.push(("tokenizer.ggml.tokens".to_owned(), KvValue::Array(ValueType::Str, tokens)));
        let matrix = |name: &str, n, k| (name.to_owned(), DType::F32, Shape::from([n, k]));
        let vector = |name: &str, n| (name.to_owned(), DType::F32, Shape::from([n]));
        let tensors = vec![
            matrix("token_embd.weight", VOCAB, WIDTH),
            vector("output_norm.weight", WIDTH),
            vector("blk.0.attn_norm.weight", WIDTH),
            vector("blk.0.ffn_norm.weight", WIDTH),
            matrix("blk.0.attn_q.weight", WIDTH, WIDTH),
            matrix("blk.0.attn_k.weight", 32, WIDTH),
            matrix("blk.0.attn_v.weight", 32, WIDTH),
            matrix("blk.0.attn_output.weight", WIDTH, WIDTH),
            matrix("blk.0.ffn_gate.weight", 96, WIDTH),
            matrix("blk.0.ffn_up.weight", 96, WIDTH),
            matrix("blk.0.ffn_down.weight", WIDTH, 96),
        ];
        Model { pairs, tensors }
    }

    fn set(mut self, key: &str, value: KvValue) -> Self {
        self.pairs.retain(|(other, _)| other != key);
        self.pairs.push((key.to_owned(), value));
        self
    }

    fn unset(mut self, key: &str) -> Self {
        self.pairs.retain(|(other, _)| other != key);
        self
    }

    fn tensor(mut self, name: &str, dtype: DType, shape: impl Into<Shape>) -> Self {
        let at = self.tensors.iter().position(|(other, ..)| other == name);
        let tensor = (name.to_owned(), dtype, shape.into());
        match at {
            Some(at) => self.tensors[at] = tensor,
            None => self.tensors.push(tensor),
        }
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.tensors.retain(|(other, ..)| other != name);
        self
    }

    /// Writes the file, opens it, reads its hyperparameters and records its step.
    fn open(self) -> Result<TextConfig, ModelError> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("tenure-models-{}-{}.gguf", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let file = Temporary(std::env::temp_dir().join(name));
        let mut writer = GgufWriter::new();
        for (key, value) in self.pairs {
            writer = writer.kv(key, value);
        }
        for (name, dtype, shape) in self.tensors {
            let bytes = dtype.row_bytes(shape.cols()).expect("whole blocks") * shape.rows().expect("small");
            writer = writer.tensor(name, dtype, shape, vec![0; bytes]);
        }
        std::fs::write(&file.0, writer.finish().expect("a well-formed file")).expect("writable");
        let store = WeightStore::open(&file.0).expect("a well-formed file");
        let config = TextConfig::from_gguf(&store)?;
        record(&store, &config, Part::Whole, StepShape { rows: 4, outs: 1, context: 16 }, Outputs::Logits)?;
        Ok(config)
    }

    fn refused(self) -> ModelError {
        self.open().expect_err("must be refused")
    }
}

struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // A file left behind in the temporary folder harms nobody.
        let _: std::io::Result<()> = std::fs::remove_file(&self.0);
    }
}

#[track_caller]
fn bad_key(model: Model, want: &str) {
    match model.refused() {
        ModelError::BadHyperparameter { key, .. } => assert_eq!(key, want),
        other => panic!("expected BadHyperparameter for {want}, got {other:?}"),
    }
}

#[track_caller]
fn class(model: Model, want: &str) {
    match model.refused() {
        ModelError::Weights(error) => {
            let debug = format!("{:?}", error.kind());
            assert!(debug.starts_with(want), "{debug}");
        }
        other => panic!("expected {want}, got {other:?}"),
    }
}

#[test]
fn the_control_is_a_model() {
    let config = Model::new().open().expect("sound");
    assert_eq!((config.layers, config.head_dim, config.vocab), (1, 16, VOCAB));
    assert_eq!(config.rope.base, 10_000.0);
}

#[test]
fn m01_to_m03_heads() {
    bad_key(Model::new().set("llama.attention.head_count", KvValue::U32(0)), "llama.attention.head_count");
    bad_key(Model::new().set("llama.attention.head_count", KvValue::U32(5)), "llama.attention.head_count_kv");
    let odd = Model::new().set("llama.attention.head_count", KvValue::U32(6));
    bad_key(odd, "llama.embedding_length");
    for kv in [0, 3, 8] {
        bad_key(Model::new().set("llama.attention.head_count_kv", KvValue::U32(kv)), "llama.attention.head_count_kv");
    }
    let array = KvValue::Array(ValueType::U32, vec![KvValue::U32(2); 2]);
    bad_key(Model::new().set("llama.attention.head_count_kv", array), "llama.attention.head_count_kv");
    let array = KvValue::Array(ValueType::I32, vec![KvValue::I32(2)]);
    Model::new().set("llama.attention.head_count_kv", array).open().expect("one for each layer");
}

#[test]
fn m04_layers() {
    for layers in [0, 513, 1 << 31] {
        bad_key(Model::new().set("llama.block_count", KvValue::U32(layers)), "llama.block_count");
    }
    match Model::new().set("llama.block_count", KvValue::U32(2)).refused() {
        ModelError::Plan(PlanError::MissingTensor { name }) => assert_eq!(name, "blk.1.attn_norm.weight"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn m05_context() {
    for context in [0, u32::MAX] {
        bad_key(Model::new().set("llama.context_length", KvValue::U32(context)), "llama.context_length");
    }
}

#[test]
fn m06_rope() {
    for dims in [0, 15, 18] {
        let key = "llama.rope.dimension_count";
        bad_key(Model::new().set(key, KvValue::U32(dims)), key);
    }
    for base in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        bad_key(Model::new().set("llama.rope.freq_base", KvValue::F32(base)), "llama.rope.freq_base");
    }
    let linear = Model::new().set("llama.rope.scaling.type", KvValue::Str("linear".into()));
    for factor in [0.0, -2.0, f32::NAN] {
        let key = "llama.rope.scaling.factor";
        bad_key(linear.clone().set(key, KvValue::F32(factor)), key);
    }
    class(linear, "MissingKey");
    let scale = |model: Model| model.open().expect("a sound model").rope.freq_scale;
    let halved = Model::new().set("llama.rope.scaling.factor", KvValue::F32(2.0));
    assert_eq!(scale(halved.clone()), 0.5);
    assert_eq!(scale(halved.set("llama.rope.scaling.type", KvValue::Str("none".into()))), 1.0);
    assert_eq!(scale(Model::new().set("llama.rope.scale_linear", KvValue::F32(4.0))), 0.25);
    let strange = Model::new().set("llama.rope.scaling.type", KvValue::Str("spiral".into()));
    assert!(matches!(strange.refused(), ModelError::UnsupportedFeature { what: "rope scaling", .. }));
}

#[test]
fn m07_epsilon() {
    for epsilon in [0.0, -1e-6, f32::NAN] {
        let key = "llama.attention.layer_norm_rms_epsilon";
        bad_key(Model::new().set(key, KvValue::F32(epsilon)), key);
    }
}

#[test]
fn m08_experts() {
    bad_key(Model::new().set("llama.expert_used_count", KvValue::U32(8)), "llama.expert_used_count");
    let used = |count, used| {
        Model::new().set("llama.expert_count", KvValue::U32(count)).set("llama.expert_used_count", KvValue::U32(used))
    };
    bad_key(used(4, 8), "llama.expert_used_count");
    assert!(matches!(used(8, 2).refused(), ModelError::UnsupportedFeature { what: "mixture of experts", .. }));
}

#[test]
fn m09_types() {
    for value in [KvValue::Str("4".into()), KvValue::F32(4.0), KvValue::I64(4)] {
        class(Model::new().set("llama.attention.head_count", value), "WrongType");
    }
    class(Model::new().set("llama.attention.layer_norm_rms_epsilon", KvValue::U32(1)), "WrongType");
    class(Model::new().unset("llama.embedding_length"), "MissingKey");
    class(Model::new().unset("llama.feed_forward_length"), "MissingKey");
}

#[test]
fn m10_architecture() {
    class(Model::new().unset("general.architecture"), "MissingKey");
    for name in ["", "mamba", "LLAMA"] {
        let model = Model::new().set("general.architecture", KvValue::Str(name.into()));
        assert!(matches!(model.refused(), ModelError::UnsupportedArchitecture { name: shown } if shown == name));
    }
    let long = Model::new().set("general.architecture", KvValue::Str("\u{1}x".repeat(1 << 19)));
    let message = long.refused().to_string();
    assert!(message.len() < 1000 && !message.contains('\u{1}'), "shortened and escaped");
}

#[test]
fn m11_tensors() {
    for name in ["blk.0.attn_q.weight", "output_norm.weight"] {
        match Model::new().without(name).refused() {
            ModelError::Plan(PlanError::MissingTensor { name: missing }) => assert_eq!(missing, name),
            other => panic!("{other:?}"),
        }
    }
    let missing = Model::new().without("token_embd.weight").refused();
    assert!(matches!(missing, ModelError::MissingTensor { name } if name == "token_embd.weight"));
    for (name, shape) in
        [("blk.0.ffn_up.weight", Shape::from([WIDTH, 96])), ("blk.0.attn_k.weight", Shape::from([2, 16, WIDTH]))]
    {
        match Model::new().tensor(name, DType::F32, shape.clone()).refused() {
            ModelError::Plan(PlanError::WrongShape { name: wrong, got, .. }) => {
                assert_eq!((wrong.as_str(), got), (name, shape));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn m12_types_of_weights() {
    match Model::new().tensor("blk.0.attn_norm.weight", DType::Q8_0, [WIDTH]).refused() {
        ModelError::Plan(PlanError::WrongDtype { name, got }) => {
            assert_eq!((name.as_str(), got), ("blk.0.attn_norm.weight", DType::Q8_0));
        }
        other => panic!("{other:?}"),
    }
    for dtype in [DType::I64, DType::I8, DType::F64] {
        match Model::new().tensor("blk.0.attn_q.weight", dtype, [WIDTH, WIDTH]).refused() {
            ModelError::Plan(PlanError::Unsupported { name, dtype: got }) => {
                assert_eq!((name.as_str(), got), ("blk.0.attn_q.weight", dtype));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn m14_extra_tensors_are_no_matter() {
    let mut model = Model::new();
    for i in 0..20_000 {
        model = Model {
            tensors: {
                model.tensors.push((format!("extra.{i}"), DType::F32, Shape::from([1])));
                model.tensors
            },
            ..model
        };
    }
    let begun = std::time::Instant::now();
    model.open().expect("sound");
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
}

#[test]
fn m15_vocabulary() {
    let tokens = |count: usize| {
        let tokens = (0..count).map(|i| KvValue::Str(format!("t{i}"))).collect();
        Model::new().set("tokenizer.ggml.tokens", KvValue::Array(ValueType::Str, tokens))
    };
    for count in [0, 31, 33] {
        let error = tokens(count).refused();
        assert!(matches!(error, ModelError::VocabMismatch { tokens, rows: VOCAB } if tokens == count), "{error:?}");
    }
}
