//! Whole images against what the pipelines of diffusers draw with the same small models (`fixtures/image`), through the
//! facade: folders, tokenizers, text encoders, samplers, guidance, and what begins from an image or under a mask.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tenure::diffusion::{Guidance, Method, SigmaRule, SkipLayers, Spacing};
use tenure::{
    Deadline, Drawn, Engine, Image, ImageOptions, ImagePaths, ImageRequest, ImageSession, Init, LoadOptions, Mask,
    ModelHandle, Picture, Residency, WeightStore,
};
use tenure_conformance::checks::same_bits;
use tenure_conformance::numbers::{weight, words};
use tenure_tensor::{DType, Shape, TensorSpec};

/// The largest difference of latents, against the largest number wanted.
const BOUND: f32 = 1e-4;
/// Pixels of the largest image, across and down.
const LARGEST: (usize, usize) = (112, 112);

#[test]
fn pipelines_draw_what_diffusers_draws() {
    let fixtures = Fixtures::read();
    let engine = Engine::auto().expect("cpu");
    let mut wrong = Vec::new();
    for name in fixtures.models.keys() {
        let (_folder, model) = fixtures.load(&engine, name, Residency::Keep);
        let runs: Vec<&Run> = fixtures.runs.iter().filter(|run| run.model == *name).collect();
        assert!(!runs.is_empty(), "{name}");
        for run in runs {
            let drawn = run.draw(&mut model.session());
            let error = far(&drawn.latents, &fixtures.output(&format!("{}.latents", run.name)));
            println!("{:24} {error:.1e}", run.name);
            if error > BOUND || error.is_nan() {
                wrong.push(format!("{}: {error:.1e}", run.name));
            }
            if fixtures.outputs.find(&format!("{}.picture", run.name)).is_some() {
                let want = fixtures.output(&format!("{}.picture", run.name));
                let off = |(&got, want): (&u8, &f32)| (f32::from(got) - want).abs();
                let most = drawn.pictures[0].rgb().iter().zip(&want).map(off).fold(0.0, f32::max);
                if most > 1.0 || want.len() != drawn.pictures[0].rgb().len() {
                    wrong.push(format!("{}: {most} of 255", run.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Two models at a time in one engine, drawing in turns: the same bits as before the other drew.
#[test]
fn a_b_a_across_two_models_gives_a_twice() {
    let fixtures = Fixtures::read();
    let engine = Engine::auto().expect("cpu");
    let pairs = [
        ("sdxl-under-mask", "lcm", Residency::Keep),
        ("inpainting", "sd35-without-layers", Residency::ByPhase),
        ("sd35-under-mask", "sd21-v", Residency::Keep),
    ];
    for (a, b, residency) in pairs {
        let [a, b] = [a, b].map(|name| fixtures.runs.iter().find(|run| run.name == name).expect("a run"));
        let [(_of_a, model_a), (_of_b, model_b)] = [a, b].map(|run| fixtures.load(&engine, &run.model, residency));
        let (mut session_a, mut session_b) = (model_a.session(), model_b.session());
        let first = a.draw(&mut session_a);
        b.draw(&mut session_b);
        let again = a.draw(&mut session_a);
        assert!(same_bits(&first.latents, &again.latents) && first.pictures == again.pictures, "{}", a.name);
    }
}

#[test]
fn a_model_that_is_told_the_guidance_wants_it_and_lcm() {
    let fixtures = Fixtures::read();
    let preset = |name: &str| {
        let folder = fixtures.models[name].write(name);
        let model = Image::open(&ImagePaths::new(&folder.0)).expect("sound");
        Image::preset(&model).expect("sound")
    };
    for name in ["lcm", "lcm-xl"] {
        let preset = preset(name);
        assert_eq!((preset.method, &preset.guidance), (Method::LCM, &Guidance::of(8.0)), "{name}");
        assert!(preset.advice(8.0, 4).is_empty() && !preset.advice(1.0, 4).is_empty(), "{name}");
    }
    assert_eq!(preset("sdxl").method, Method::DPMPP_2M);
}

#[test]
fn a_schedule_that_is_not_known_or_cannot_be_is_refused() {
    let mut fixtures = Fixtures::read();
    let engine = Engine::auto().expect("cpu");
    let mut refused = |name: &str, key: &str, value: serde_json::Value, says: &str| {
        let model = fixtures.models.get_mut(name).expect("a model");
        let settings = model.files.get_mut("scheduler/scheduler_config.json").expect("settings");
        let before = std::mem::replace(&mut settings[key], value);
        let folder = model.write(name);
        let error = engine.load_image(&folder.0).err().unwrap_or_else(|| panic!("{name} {key}")).to_string();
        assert!(error.contains(says), "{error}");
        model.files.get_mut("scheduler/scheduler_config.json").expect("settings")[key] = before;
    };
    refused("sd15", "beta_schedule", "sigmoid".into(), "beta_schedule of the model's scheduler is sigmoid");
    refused("sd15", "beta_end", (-1.0).into(), "beta_end");
    refused("sd15", "num_train_timesteps", 0.into(), "train_timesteps");
    refused("sd3-without-t5", "shift", 0.0.into(), "shift");
    refused("sd3-without-t5", "num_train_timesteps", (1u64 << 60).into(), "train_timesteps");
}

/// What `fixtures/image/pipelines.py` wrote.
#[derive(Deserialize)]
struct Written {
    models: BTreeMap<String, Model>,
    runs: Vec<Run>,
}

struct Fixtures {
    models: BTreeMap<String, Model>,
    runs: Vec<Run>,
    outputs: WeightStore,
}

/// A model's folder; the weights follow from their names.
#[derive(Deserialize)]
struct Model {
    /// Settings, as they stand in files.
    files: HashMap<String, serde_json::Value>,
    /// Tensors of each file.
    weights: HashMap<String, BTreeMap<String, Vec<usize>>>,
    /// Folders of `fixtures/image-tokenizer`.
    tokenizers: HashMap<String, String>,
}

/// One image.
#[derive(Deserialize)]
struct Run {
    name: String,
    model: String,
    prompt: String,
    negative: String,
    width: usize,
    height: usize,
    steps: usize,
    guidance: f32,
    seeds: Vec<u64>,
    /// Of flow models, the family's own.
    method: Option<String>,
    spacing: String,
    rule: String,
    strength: Option<f64>,
    /// Left, top, right, bottom.
    mask: Option<[usize; 4]>,
    skip: Option<Skip>,
}

/// Skip-layer guidance.
#[derive(Deserialize)]
struct Skip {
    layers: Vec<usize>,
    scale: f32,
    start: f64,
    end: f64,
}

impl Fixtures {
    fn read() -> Fixtures {
        let text = std::fs::read(fixture("image/pipelines.json")).expect("a fixture");
        let Written { models, runs } = serde_json::from_slice(&text).expect("as the script writes it");
        let outputs = WeightStore::open(fixture("image/pipelines.safetensors")).expect("a fixture");
        Fixtures { models, runs, outputs }
    }

    /// Loads a model from a folder, which must outlive it.
    fn load(&self, engine: &Engine, name: &str, residency: Residency) -> (Folder, ModelHandle<Image>) {
        let folder = self.models[name].write(name);
        let options = ImageOptions { size: Some(LARGEST), residency, ..ImageOptions::default() };
        let loaded = engine.load_image_with(&ImagePaths::new(&folder.0), &options, &LoadOptions::default());
        (folder, loaded.unwrap_or_else(|error| panic!("{name}: {error}")))
    }

    fn output(&self, name: &str) -> Vec<f32> {
        let tensor = self.outputs.find(name).unwrap_or_else(|| panic!("no output {name}"));
        let mut bytes = vec![0; tensor.spec().bytes().expect("small").get() as usize];
        self.outputs.read_at(tensor, 0, &mut bytes).expect("reads");
        let mut values = vec![0.0; tensor.spec().shape.elements().expect("small")];
        tenure_tensor::codec::dequantize(tensor.spec().dtype, &bytes, &mut values).expect("floats");
        values
    }
}

/// A folder of its own, gone when it is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder left behind among the build's files harms nobody.
        let _: std::io::Result<()> = std::fs::remove_dir_all(&self.0);
    }
}

impl Model {
    fn write(&self, name: &str) -> Folder {
        use std::sync::atomic::{AtomicU32, Ordering};
        static WRITTEN: AtomicU32 = AtomicU32::new(0);
        let count = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let own = format!("{name}-{}-{count}", std::process::id());
        let folder = Folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join(own));
        let put = |file: &str, bytes: &[u8]| {
            let path = folder.0.join(file);
            std::fs::create_dir_all(path.parent().expect("in the folder")).expect("writable");
            std::fs::write(path, bytes).expect("writable");
        };
        for (file, settings) in &self.files {
            put(file, settings.to_string().as_bytes());
        }
        for (file, tensors) in &self.weights {
            let part = file.split('/').next().expect("a folder");
            put(file, &safetensors(&format!("{name}/{part}"), tensors));
        }
        for (to, from) in &self.tokenizers {
            for entry in std::fs::read_dir(fixture("image-tokenizer").join(from)).expect("a fixture") {
                let path = entry.expect("a fixture").path();
                let file = path.file_name().expect("a file").to_string_lossy();
                put(&format!("{to}/{file}"), &std::fs::read(&path).expect("a fixture"));
            }
        }
        folder
    }
}

impl Run {
    fn draw(&self, session: &mut ImageSession) -> Drawn {
        let drawn = session.draw_all(self.request(), Deadline::after(Duration::from_secs(600)));
        drawn.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn request(&self) -> ImageRequest {
        let skip = |skip: &Skip| SkipLayers {
            layers: skip.layers.clone(),
            scale: skip.scale,
            start: skip.start,
            end: skip.end,
        };
        let flow = self.method.is_none();
        let spacing = match self.spacing.as_str() {
            "leading" => Spacing::Leading,
            "trailing" => Spacing::Trailing,
            "linspace" => Spacing::Linspace,
            other => panic!("{other}"),
        };
        ImageRequest {
            negative: self.negative.clone(),
            size: Some((self.width, self.height)),
            steps: Some(self.steps),
            guidance: Some(Guidance { skip_layers: self.skip.as_ref().map(skip), ..Guidance::of(self.guidance) }),
            method: Some(self.method.as_ref().map_or(Method::Euler, |name| Method::named(name).expect("a sampler"))),
            spacing: Some(spacing).filter(|_| !flow),
            sigmas: Some(SigmaRule::named(&self.rule).expect("a rule")),
            seeds: self.seeds.clone(),
            init: self.strength.map(|strength| Init { picture: self.picture(), strength, mask: self.mask() }),
            ..ImageRequest::new(&self.prompt)
        }
    }

    /// Squares, six across and six down, the last cut off.
    fn picture(&self) -> Picture {
        const SIDE: usize = 6;
        let coarse: Vec<u8> =
            words(&format!("{}.picture", self.name)).take(3 * SIDE * SIDE).map(|word| (word >> 56) as u8).collect();
        let (across, down) = (self.width.div_ceil(SIDE), self.height.div_ceil(SIDE));
        let pixels = (0..self.height).flat_map(|y| (0..self.width).map(move |x| (x / across, y / down)));
        let rgb = pixels.flat_map(|(x, y)| coarse[(y * SIDE + x) * 3..][..3].iter().copied()).collect();
        Picture::new(self.width, self.height, rgb).expect("sound")
    }

    fn mask(&self) -> Option<Mask> {
        let [left, top, right, bottom] = self.mask?;
        let inside = |i: usize| {
            let (x, y) = (i % self.width, i / self.width);
            (left..right).contains(&x) && (top..bottom).contains(&y)
        };
        let bytes: Vec<u8> = (0..self.width * self.height).map(|i| if inside(i) { 255 } else { 0 }).collect();
        Some(Mask::from_bytes(self.width, self.height, &bytes).expect("sound"))
    }
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// A file of 32-bit floats, each tensor's numbers by its name behind `salt`.
fn safetensors(salt: &str, tensors: &BTreeMap<String, Vec<usize>>) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dims) in tensors {
        let spec = TensorSpec { name: format!("{salt}/{name}"), dtype: DType::F32, shape: Shape::new(dims.clone()) };
        let begin = data.len();
        data.extend(weight(&spec));
        let entry = serde_json::json!({ "dtype": "F32", "shape": dims, "data_offsets": [begin, data.len()] });
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// The largest difference, against the largest number wanted.
fn far(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    got.iter().zip(want).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f32::max)
}
