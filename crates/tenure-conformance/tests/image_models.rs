//! Parts of image models against what transformers and diffusers compute (`fixtures/image`).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tenure_conformance::numbers::{numbers, weight, words};
use tenure_conformance::{NOTHING, Poisoned, bind, rows_of};
use tenure_cpu::simd::Isa;
use tenure_cpu::{Cpu, CpuOptions};
use tenure_device::{Backend, Deadline, RunError, StepInputs, Stop};
use tenure_graph::{Activation, Grid, InputId, OutputId, Plan, WeightCatalog};
use tenure_models::ModelError;
use tenure_models::image::{
    ClipConfig, ClipTaken, MmditConfig, UnetConfig, record_clip, record_mmdit, record_t5, record_taesd_decoder,
    record_taesd_encoder, record_unet, record_vae_decoder, record_vae_encoder,
};
use tenure_tensor::{DType, Shape, TensorSpec};
use tenure_weights::WeightStore;

/// The largest difference, against the largest number wanted.
const BOUND: f64 = 1e-5;

#[test]
fn parts_of_image_models_agree_with_the_truth() {
    let fixtures = Fixtures::read();
    for isa in Isa::available() {
        let options = CpuOptions { isa: Some(isa), threads: Some(2), ..CpuOptions::default() };
        let backend: Arc<dyn Backend> = Arc::new(Poisoned::new(Arc::new(Cpu::new(&options).expect("cpu"))));
        for case in &fixtures.cases {
            for (output, id, plan) in case.plans(&fixtures.models[&case.model]) {
                let what = format!("{isa:?} {} {output}", case.name);
                let (plan, want) = (Arc::new(plan), fixtures.output(&format!("{}.{output}", case.name)));
                let got = case.results(&backend, &plan, id);
                assert_eq!(got.len(), want.len(), "{what}");
                let largest = want.iter().fold(0.0, |most: f64, x| most.max(f64::from(x.abs())));
                let far = |(got, want): (&f32, &f32)| (f64::from(*got) - f64::from(*want)).abs() / largest;
                let error =
                    got.iter().zip(&want).map(far).fold(0.0, |most, error| if error > most { error } else { most });
                assert!(error <= BOUND && got.iter().all(|x| x.is_finite()), "{what}: {error:e}");
            }
        }
    }
}

#[test]
fn results_are_the_same_bits_on_any_team_and_again() {
    let fixtures = Fixtures::read();
    for case in &fixtures.cases {
        let mut first: Option<Vec<f32>> = None;
        for threads in [1, 2, 5] {
            let options = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
            let backend: Arc<dyn Backend> = Arc::new(Poisoned::new(Arc::new(Cpu::new(&options).expect("cpu"))));
            let (_, id, plan) = case.plans(&fixtures.models[&case.model]).swap_remove(0);
            let plan = Arc::new(plan);
            let got = case.results(&backend, &plan, id);
            let first = first.get_or_insert_with(|| got.clone());
            assert!(first.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()), "{} {threads}", case.name);
        }
    }
}

#[test]
fn a_step_without_all_rows_of_a_prompt_is_refused() {
    let fixtures = Fixtures::read();
    let model = &fixtures.models["t5"];
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(&CpuOptions::default()).expect("cpu"));
    let plan = Arc::new(record_t5(model, 9, 2).expect("a sound plan"));
    let mut program = bind(&cpu, &plan, &weight);
    for rows in [1, 9, 17] {
        let (tokens, positions) = (vec![1; rows], (0..rows as u32).map(|row| row % 9).collect::<Vec<_>>());
        let step = StepInputs { tokens: &tokens, positions: &positions, tables: &vec![0; rows], ..NOTHING };
        let refused =
            program.run(&step, &[Stop::by(Deadline::after(Duration::from_secs(60)))]).expect_err("rows are missing");
        assert!(matches!(refused, RunError::BadInput { what: "rows", .. }), "{refused}");
    }
}

#[test]
fn what_a_denoiser_cannot_be_recorded_for_has_its_error() {
    let fixtures = Fixtures::read();
    let config = MmditConfig { heads: 3, skipped: vec![] };
    let record = |model: &Model, config: &MmditConfig, height, width, tokens| {
        let grid = Grid { images: 2, height, width };
        record_mmdit(model, config, grid, tokens).expect_err("must be refused").to_string()
    };
    let model = &fixtures.models["mmdit-sd35"];
    assert_eq!(record(model, &config, 7, 8, 9), "mmdit: latent height is 7");
    assert_eq!(record(model, &config, 8, 0, 9), "mmdit: latent width is 0");
    // Positions are stored for 8 by 8 patches.
    assert_eq!(record(model, &config, 18, 4, 9), "add_centre: height is 9");
    assert_eq!(record(model, &config, 8, 8, 0), "attend: 0 does not fit 0");
    assert_eq!(record(model, &config, 8, 8, usize::MAX), "the arena overflows the address space");
    assert_eq!(record(model, &config, 1 << 31, 1 << 31, 9), "conv2d: 0 does not fit 9223372036854775808");
    for heads in [0, 5] {
        let refused = record(model, &MmditConfig { heads, skipped: vec![] }, 8, 8, 9);
        assert!(refused.contains("norm_q.weight") || refused.starts_with("attend"), "{refused}");
    }
    for name in ["pos_embed.pos_embed", "transformer_blocks.1.attn2.to_k.weight", "proj_out.weight"] {
        let mut less = Model(model.0.clone());
        less.0.remove(name);
        assert_eq!(record(&less, &config, 8, 8, 9), format!("tensor {name:?} is missing"));
    }
    // Nothing is read of blocks that are left out.
    let plan =
        record_mmdit(model, &MmditConfig { heads: 3, skipped: vec![1] }, Grid { images: 1, height: 4, width: 4 }, 9);
    let plan = plan.expect("a sound plan");
    assert!(plan.weights().iter().all(|weight| !weight.spec.name.starts_with("transformer_blocks.1.")));
    let mut less = Model(fixtures.models["t5"].0.clone());
    less.0.remove("shared.weight");
    let refused = record_t5(&less, 4, 1).expect_err("no table").to_string();
    assert_eq!(refused, "tensor \"encoder.embed_tokens.weight\" is missing");
    let table = fixtures.models["t5"].0["shared.weight"].clone();
    less.0.insert("encoder.embed_tokens.weight".to_owned(), table);
    record_t5(&less, 4, 1).expect("its other name");
}

/// What `fixtures/image/make.py` wrote.
#[derive(Deserialize)]
struct Written {
    models: HashMap<String, HashMap<String, Vec<usize>>>,
    cases: Vec<Case>,
}

struct Fixtures {
    models: HashMap<String, Model>,
    cases: Vec<Case>,
    outputs: WeightStore,
}

/// A model's tensors; their numbers follow from the names.
struct Model(HashMap<String, TensorSpec>);

#[derive(Deserialize)]
struct Case {
    name: String,
    model: String,
    part: Part,
    #[serde(default)]
    timesteps: Vec<f64>,
    /// Of SDXL, for each image: sizes and places whose sinusoids follow the pooled prompt.
    #[serde(default)]
    sizes: Vec<Vec<f64>>,
    /// On the sample.
    factor: Option<f32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Clip { heads: usize, quick: bool, chunks: usize },
    T5 { tokens: usize, sequences: usize },
    Unet { heads: Vec<usize>, guidance: Option<usize>, grid: [u32; 3], tokens: usize },
    Mmdit { heads: usize, skipped: Vec<usize>, grid: [u32; 3], tokens: usize },
    VaeDecoder { grid: [u32; 3] },
    VaeEncoder { grid: [u32; 3] },
    TaesdDecoder { grid: [u32; 3] },
    TaesdEncoder { grid: [u32; 3] },
}

impl Fixtures {
    fn read() -> Fixtures {
        let file = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/image").join(name);
        let text = std::fs::read(file("models.json")).expect("a fixture");
        let Written { models, cases } = serde_json::from_slice(&text).expect("as the script writes it");
        let spec = |(name, dims): (String, Vec<usize>)| {
            let shape = Shape::new(dims);
            (name.clone(), TensorSpec { name, dtype: DType::F32, shape })
        };
        let model = |(name, tensors): (String, HashMap<_, _>)| (name, Model(tensors.into_iter().map(spec).collect()));
        assert!(cases.len() > 20);
        let outputs = WeightStore::open(file("outputs.safetensors")).expect("a fixture");
        Fixtures { models: models.into_iter().map(model).collect(), cases, outputs }
    }

    fn output(&self, name: &str) -> Vec<f32> {
        let tensor = self.outputs.find(name).unwrap_or_else(|| panic!("no output {name}"));
        let mut bytes = vec![0; tensor.spec().bytes().expect("small").get() as usize];
        self.outputs.read_at(tensor, 0, &mut bytes).expect("reads");
        bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect()
    }
}

impl WeightCatalog for Model {
    fn find(&self, name: &str) -> Option<&TensorSpec> {
        self.0.get(name)
    }
}

impl Case {
    /// The plans of the part, each with the name of what it gives.
    fn plans(&self, model: &Model) -> Vec<(&'static str, OutputId, Plan)> {
        let on = |&[images, height, width]: &[u32; 3]| Grid { images, height, width };
        let sample = |plan: Result<Plan, ModelError>| {
            vec![("Sample", OutputId::Sample, plan.unwrap_or_else(|error| panic!("{}: {error}", self.name)))]
        };
        match &self.part {
            &Part::Clip { heads, quick, chunks } => {
                let activation = if quick { Activation::QuickGelu } else { Activation::Gelu };
                let pooled = if model.0.contains_key("text_projection.weight") { "Projected" } else { "Last" };
                let plan = |taken| {
                    let config = ClipConfig { heads, activation, taken };
                    record_clip(model, &config, chunks).expect("a sound plan")
                };
                vec![
                    ("Last", OutputId::Context, plan(ClipTaken::Last)),
                    ("Penultimate", OutputId::Context, plan(ClipTaken::Penultimate)),
                    ("PenultimateNormed", OutputId::Context, plan(ClipTaken::PenultimateNormed)),
                    (pooled, OutputId::Hidden, plan(ClipTaken::Penultimate)),
                ]
            }
            &Part::T5 { tokens, sequences } => {
                vec![("Context", OutputId::Context, record_t5(model, tokens, sequences).expect("a sound plan"))]
            }
            Part::Unet { heads, guidance, grid, tokens } => {
                sample(record_unet(model, &UnetConfig { heads: heads.clone(), guidance: *guidance }, on(grid), *tokens))
            }
            Part::Mmdit { heads, skipped, grid, tokens } => {
                let config = MmditConfig { heads: *heads, skipped: skipped.clone() };
                sample(record_mmdit(model, &config, on(grid), *tokens))
            }
            Part::VaeDecoder { grid } => sample(record_vae_decoder(model, on(grid))),
            Part::VaeEncoder { grid } => sample(record_vae_encoder(model, on(grid))),
            Part::TaesdDecoder { grid } => sample(record_taesd_decoder(model, on(grid))),
            Part::TaesdEncoder { grid } => sample(record_taesd_encoder(model, on(grid))),
        }
    }

    /// What comes of a step, and of the same step once more: the same bits.
    fn results(&self, backend: &Arc<dyn Backend>, plan: &Arc<Plan>, output: OutputId) -> Vec<f32> {
        let mut program = bind(backend, plan, &weight);
        let shape = plan.shape();
        let vocab = plan.vocab().unwrap_or(1) as u64;
        let tokens: Vec<u32> =
            words(&format!("{}.tokens", self.name)).take(shape.rows).map(|word| (word % vocab) as u32).collect();
        let positions: Vec<u32> = (0..shape.rows).map(|row| (row % shape.context.max(1)) as u32).collect();
        let inputs: Vec<(InputId, Vec<f32>)> =
            plan.inputs().iter().map(|&(id, _)| (id, self.input(plan, id))).collect();
        let given: Vec<(InputId, &[f32])> = inputs.iter().map(|(id, rows)| (*id, &rows[..])).collect();
        let tables = vec![0; shape.rows];
        let step = StepInputs { tokens: &tokens, positions: &positions, tables: &tables, given: &given, ..NOTHING };
        rows_of(&mut program, &step, output)
    }

    fn input(&self, plan: &Plan, id: InputId) -> Vec<f32> {
        let value = plan.input(id).expect("known");
        let (rows, cols) = (plan.shape().capacity(value.rows), value.cols);
        let name = format!("{}.{id:?}", self.name);
        match id {
            InputId::Timestep => {
                assert_eq!(self.timesteps.len(), rows, "{name}");
                self.timesteps.iter().flat_map(|&t| sinusoids(t, cols)).collect()
            }
            InputId::Pooled if !self.sizes.is_empty() => {
                /// Sinusoids of each of the sizes in the fixture's model.
                const EACH: usize = 8;
                let of_sizes = |sizes: &Vec<f64>| sizes.iter().flat_map(|&x| sinusoids(x, EACH)).collect::<Vec<_>>();
                let own = cols - EACH * self.sizes[0].len();
                let pooled: Vec<f32> = numbers(&name).take(rows * own).collect();
                let both =
                    pooled.chunks_exact(own).zip(&self.sizes).map(|(own, sizes)| [own, &of_sizes(sizes)].concat());
                both.flatten().collect()
            }
            InputId::Sample => numbers(&name).map(|x| x * self.factor.unwrap_or(1.0)).take(rows * cols).collect(),
            InputId::Hidden | InputId::Guidance | InputId::Context | InputId::Pooled => {
                numbers(&name).take(rows * cols).collect()
            }
        }
    }
}

/// Cosines, then sines.
fn sinusoids(t: f64, dim: usize) -> Vec<f32> {
    let half = dim / 2;
    let angle = |i: usize| t * (-(10_000f64.ln()) / half as f64 * i as f64).exp();
    (0..half).map(|i| angle(i).cos() as f32).chain((0..half).map(|i| angle(i).sin() as f32)).collect()
}
