//! Images drawn with models in quantised files, made of the small model that draws coloured shapes (`fixtures/paint`) as
//! stable-diffusion.cpp and ComfyUI-GGUF make theirs: against the same weights decoded, and in memory to the byte.

use std::path::PathBuf;
use std::time::Duration;

use tenure::diffusion::{Guidance, Method, SigmaRule, Spacing};
use tenure::{
    ByteSize, Deadline, Drawn, Engine, Image, ImageFamily, ImageOptions, ImagePaths, ImageRequest, LoadOptions, Phase,
    Residency, WeightStore,
};
use tenure_conformance::Temporary;
use tenure_conformance::checks::soon;
use tenure_tensor::{DType, Shape, codec};
use tenure_weights::gguf::{GgufWriter, KvValue, ValueType};

/// A tensor of the model.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: DType,
    bytes: Vec<u8>,
}

impl Tensor {
    fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.iter().product()];
        codec::dequantize(self.dtype, &self.bytes, &mut values).expect("has a codec");
        values
    }

    /// The tensor in another type.
    fn to(&self, dtype: DType) -> Tensor {
        let mut bytes = Vec::new();
        codec::quantize(dtype, &self.values(), &mut bytes).expect("whole blocks");
        Tensor { name: self.name.clone(), shape: self.shape.clone(), dtype, bytes }
    }

    fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/paint/paint.safetensors")
}

/// The model's tensors.
fn paint() -> Vec<Tensor> {
    let store = WeightStore::open(fixture()).expect("a sound file");
    let tensor = |tensor: &tenure_weights::StoredTensor| {
        let mut bytes = vec![0; tensor.bytes().get() as usize];
        store.read_at(tensor, 0, &mut bytes).expect("there");
        let spec = tensor.spec();
        Tensor { name: spec.name.clone(), shape: spec.shape.dims().to_vec(), dtype: spec.dtype, bytes }
    };
    store.tensors().map(tensor).collect()
}

/// A GGUF file; some of its tensors laid out in other rows.
fn gguf(name: &str, tensors: &[Tensor], rows_of: impl Fn(&Tensor) -> Option<usize>) -> Temporary {
    let mut writer = GgufWriter::new().kv("general.architecture", "sd1");
    for tensor in tensors {
        let mut shape = tensor.shape.clone();
        if let Some(cols) = rows_of(tensor) {
            let dims = shape.iter().map(|&dim| KvValue::I32(dim as i32)).collect();
            writer = writer.kv(format!("comfy.gguf.orig_shape.{}", tensor.name), KvValue::Array(ValueType::I32, dims));
            shape = vec![tensor.elements() / cols, cols];
        }
        writer = writer.tensor(tensor.name.as_str(), tensor.dtype, Shape::new(shape), tensor.bytes.clone());
    }
    Temporary::new(name, &writer.finish().expect("a well-formed file")).expect("writable")
}

/// A safetensors file.
fn safetensors(name: &str, tensors: &[Tensor]) -> Temporary {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for tensor in tensors {
        let ends = [data.len(), data.len() + tensor.bytes.len()];
        let entry = serde_json::json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": ends});
        header.insert(tensor.name.clone(), entry);
        data.extend(&tensor.bytes);
    }
    let header = serde_json::Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    Temporary::new(name, &file).expect("writable")
}

/// The same numbers as 32-bit floats.
fn decoded(name: &str, tensors: &[Tensor]) -> Temporary {
    let plain: Vec<Tensor> = tensors.iter().map(|tensor| tensor.to(DType::F32)).collect();
    gguf(name, &plain, |_| None)
}

/// Draws with a model in each residency; planned bytes are held.
fn drawn(paths: &ImagePaths, steps: usize) -> Drawn {
    let engine = Engine::auto().expect("cpu");
    let model = Image::open(paths).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((model.unknown_tensors().count(), model.config().family), (0, ImageFamily::Sd1));
    let mut first: Option<Drawn> = None;
    for residency in [Residency::Keep, Residency::ByPhase] {
        let options = ImageOptions { size: Some((128, 128)), residency, ..ImageOptions::default() };
        let plan = engine.plan::<Image>(&model, &options).unwrap_or_else(|error| panic!("{error}"));
        let (planned, reservation) = (plan.bytes(), engine.reserve(&plan, &soon()).expect("fits"));
        let handle = engine.load(plan, reservation, &LoadOptions::default()).unwrap_or_else(|error| panic!("{error}"));
        let request = ImageRequest {
            negative: "a blue square".to_owned(),
            steps: Some(steps),
            guidance: Some(Guidance::of(5.0)),
            method: Some(Method::Euler),
            spacing: Some(Spacing::Leading),
            sigmas: Some(SigmaRule::Spaced),
            seeds: vec![1],
            size: Some((128, 128)),
            ..ImageRequest::new("a red circle")
        };
        let deadline = Deadline::after(Duration::from_secs(600));
        let drawn = handle.session().draw_all(request, deadline).unwrap_or_else(|error| panic!("{error}"));
        let report = engine.report();
        assert_eq!((report.allocated + report.reserved, handle.memory()), (planned, planned), "{residency:?}");
        for (phase, bytes) in drawn.memory.iter().filter(|(phase, _)| ![Phase::Load, Phase::Image].contains(phase)) {
            assert!(*bytes > ByteSize::ZERO && *bytes <= planned, "{residency:?} {phase:?}: {bytes} of {planned}");
        }
        if let Some(first) = &first {
            assert!(first.latents.iter().zip(&drawn.latents).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
        first = Some(drawn);
        engine.unload(handle, deadline).expect("nobody uses it");
    }
    first.expect("was drawn")
}

/// The root of the mean square of the differences, against that of the numbers wanted.
fn far(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let squares = |of: &mut dyn Iterator<Item = f32>| of.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let differences = squares(&mut got.iter().zip(want).map(|(a, b)| a - b));
    (differences / squares(&mut want.iter().copied())).sqrt()
}

/// The mean difference of bytes of two pictures.
fn unlike(a: &Drawn, b: &Drawn) -> f64 {
    let (a, b) = (a.pictures[0].rgb(), b.pictures[0].rgb());
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

const STEPS: usize = 4;

/// As stable-diffusion.cpp converts: every tensor whose rows are whole blocks but biases, also norms and tables.
fn checkpoint(wanted: DType, otherwise: DType) -> Vec<Tensor> {
    let with = |tensor: &Tensor| {
        let fits = |dtype: &DType| tensor.cols().is_multiple_of(dtype.block_len());
        let kept = tensor.name.ends_with(".bias") || !tensor.dtype.is_computable();
        [wanted, otherwise].into_iter().find(|dtype| !kept && fits(dtype))
    };
    paint().into_iter().map(|tensor| with(&tensor).map(|dtype| tensor.to(dtype)).unwrap_or(tensor)).collect()
}

#[test]
fn quantised_checkpoints_draw_what_their_decoded_weights_draw() {
    let original = drawn(&ImagePaths::new(fixture()), STEPS);
    for (wanted, otherwise, unlike_original) in [
        (DType::Q8_0, DType::Q8_0, 1.0),
        (DType::Q4K, DType::Q5_1, 4.0),
        (DType::Q4_0, DType::Q4_0, 8.0),
        (DType::BF16, DType::BF16, 4.0),
    ] {
        let tensors = checkpoint(wanted, otherwise);
        assert!(tensors.iter().any(|tensor| tensor.dtype == wanted && tensor.shape.len() == 2), "{wanted}");
        let (file, twin) = (gguf("blocks.gguf", &tensors, |_| None), decoded("decoded.gguf", &tensors));
        let got = drawn(&ImagePaths::new(file.path()), STEPS);
        let want = drawn(&ImagePaths::new(twin.path()), STEPS);
        let error = far(&got.latents, &want.latents);
        assert!(error < 1e-3, "{wanted}: {error:e}");
        let distance = unlike(&got, &original);
        assert!(distance < unlike_original, "{wanted}: {distance}");
        assert!(unlike(&got, &want) < 0.1, "{wanted}");
    }
}

/// Every number is what the file says, in products, in kernels slid over images and in vectors.
#[test]
fn checkpoints_of_8_bit_floats_draw_their_decoded_weights_bit_for_bit() {
    for (dtype, unlike_original) in [(DType::F8E4M3, 8.0), (DType::F8E5M2, 16.0)] {
        let to = |tensor: Tensor| if tensor.dtype.is_computable() { tensor.to(dtype) } else { tensor };
        let tensors: Vec<Tensor> = paint().into_iter().map(to).collect();
        let computed = tensors.iter().filter(|tensor| tensor.dtype.is_computable());
        let twin: Vec<Tensor> = computed.map(|tensor| tensor.to(DType::F32)).collect();
        let (file, twin) = (safetensors("floats8.safetensors", &tensors), safetensors("twin.safetensors", &twin));
        let got = drawn(&ImagePaths::new(file.path()), STEPS);
        let want = drawn(&ImagePaths::new(twin.path()), STEPS);
        assert!(got.latents.iter().zip(&want.latents).all(|(a, b)| a.to_bits() == b.to_bits()), "{dtype}");
        assert_eq!(got.pictures[0].rgb(), want.pictures[0].rgb(), "{dtype}");
        let distance = unlike(&got, &drawn(&ImagePaths::new(fixture()), STEPS));
        assert!(distance < unlike_original, "{dtype}: {distance}");
    }
}

/// The denoiser alone under bare names; kernels and matrices with narrow rows lie in rows of 256.
#[test]
fn a_quantised_denoiser_draws_with_encoders_of_other_files() {
    const PREFIX: &str = "model.diffusion_model.";
    let bare = |tensor: Tensor| {
        let name = tensor.name.strip_prefix(PREFIX)?.to_owned();
        Some(Tensor { name, ..tensor })
    };
    let in_rows = |tensor: &Tensor| {
        let (elements, rank) = (tensor.elements(), tensor.shape.len());
        rank > 1 && elements >= 512 && elements.is_multiple_of(256)
    };
    for wanted in [DType::Q8_0, DType::Q4K] {
        let of = |tensor: Tensor| if in_rows(&tensor) { tensor.to(wanted) } else { tensor.to(DType::F32) };
        let tensors: Vec<Tensor> = paint().into_iter().filter_map(bare).map(of).collect();
        let kernels = tensors.iter().filter(|tensor| tensor.dtype == wanted && tensor.shape.ends_with(&[3, 3]));
        assert!(kernels.count() > 20);
        let narrow = |tensor: &Tensor| (tensor.dtype == wanted && !tensor.cols().is_multiple_of(256)).then_some(256);
        let (file, twin) = (gguf("denoiser.gguf", &tensors, narrow), decoded("denoiser-decoded.gguf", &tensors));
        let paths = |model: &Temporary| ImagePaths {
            vae: Some(fixture()),
            clip_l: Some(fixture()),
            ..ImagePaths::new(model.path())
        };
        let (got, want) = (drawn(&paths(&file), STEPS), drawn(&paths(&twin), STEPS));
        let error = far(&got.latents, &want.latents);
        assert!(error < 1e-3, "{wanted}: {error:e}");
    }
}
