//! Parts of image models against what transformers and diffusers compute (`fixtures/image`).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tenure_conformance::Poisoned;
use tenure_cpu::simd::Isa;
use tenure_cpu::{Cpu, CpuOptions};
use tenure_device::{
    Backend, Deadline, Device, Footprint, KvPlace, Load, LoadItem, Memory, Program, RunError, SegmentKind, StepInputs,
    Stop, WEIGHT_ALIGN, WeightPlace,
};
use tenure_graph::{Activation, Grid, InputId, KvType, OutputId, Plan, WeightCatalog};
use tenure_models::ModelError;
use tenure_models::image::{
    ClipConfig, ClipTaken, MmditConfig, UnetConfig, record_clip, record_mmdit, record_t5, record_taesd_decoder,
    record_taesd_encoder, record_unet, record_vae_decoder, record_vae_encoder,
};
use tenure_tensor::{ByteSize, DType, Shape, TensorSpec};
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
                let got = case.results(&backend, &plan, &fixtures.models[&case.model], id);
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
            let model = &fixtures.models[&case.model];
            let (_, id, plan) = case.plans(model).swap_remove(0);
            let plan = Arc::new(plan);
            // Of each binding the step runs twice.
            let got = case.results(&backend, &plan, model, id);
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
    let mut program = bind(&cpu, &plan, model);
    for rows in [1, 9, 17] {
        let (tokens, positions) = (vec![1; rows], (0..rows as u32).map(|row| row % 9).collect::<Vec<_>>());
        let step = StepInputs { tokens: &tokens, positions: &positions, tables: &vec![0; rows], ..NOTHING };
        let refused = program.run(&step, &[soon()]).expect_err("rows are missing");
        assert!(matches!(refused, RunError::BadInput { what: "rows", .. }), "{refused}");
    }
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
    Unet { heads: Vec<usize>, grid: [u32; 3], tokens: usize },
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
                let plan = |taken| {
                    let config = ClipConfig { heads, activation, taken };
                    record_clip(model, &config, chunks).expect("a sound plan")
                };
                vec![
                    ("Last", OutputId::Context, plan(ClipTaken::Last)),
                    ("Penultimate", OutputId::Context, plan(ClipTaken::Penultimate)),
                    ("Last", OutputId::Hidden, plan(ClipTaken::Penultimate)),
                ]
            }
            &Part::T5 { tokens, sequences } => {
                vec![("Context", OutputId::Context, record_t5(model, tokens, sequences).expect("a sound plan"))]
            }
            Part::Unet { heads, grid, tokens } => {
                sample(record_unet(model, &UnetConfig { heads: heads.clone() }, on(grid), *tokens))
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
    fn results(&self, backend: &Arc<dyn Backend>, plan: &Arc<Plan>, model: &Model, output: OutputId) -> Vec<f32> {
        let mut program = bind(backend, plan, model);
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
        let value = plan.value(plan.output(output).expect("an output"));
        let mut run = || {
            program.run(&step, &[soon()]).expect("runs");
            let mut rows = vec![f32::NAN; shape.capacity(value.rows) * value.cols];
            for (row, out) in rows.chunks_exact_mut(value.cols).enumerate() {
                program.read(output, row, out).expect("was computed");
            }
            rows
        };
        let (first, second) = (run(), run());
        assert!(first.iter().zip(&second).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", self.name);
        first
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
            InputId::Hidden | InputId::Context | InputId::Pooled => numbers(&name).take(rows * cols).collect(),
        }
    }
}

/// Cosines, then sines.
fn sinusoids(t: f64, dim: usize) -> Vec<f32> {
    let half = dim / 2;
    let angle = |i: usize| t * (-(10_000f64.ln()) / half as f64 * i as f64).exp();
    (0..half).map(|i| angle(i).cos() as f32).chain((0..half).map(|i| angle(i).sin() as f32)).collect()
}

/// SplitMix64 (Steele et al. 2014) from the FNV-1a hash of the name.
fn words(name: &str) -> impl Iterator<Item = u64> {
    let hash = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, hash);
    (1..).map(move |at: u64| {
        let z = seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// From -1 to 1, in 24 bits.
fn numbers(name: &str) -> impl Iterator<Item = f32> {
    words(name).map(|word| (word >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
}

/// A weight's bytes.
fn weight(spec: &TensorSpec) -> Vec<u8> {
    const TABLES: [&str; 4] =
        ["embedding.weight", "shared.weight", "pos_embed.pos_embed", "relative_attention_bias.weight"];
    let (name, dims) = (&spec.name[..], spec.shape.dims());
    let (base, factor) = match dims {
        [_] if name.ends_with(".weight") => (1.0, 0.2),
        [_] => (0.0, 0.2),
        _ if TABLES.iter().any(|table| name.ends_with(table)) => (0.0, 1.0),
        _ => (0.0, (3.0 / dims[1..].iter().product::<usize>() as f64).sqrt() as f32),
    };
    numbers(name).take(dims.iter().product()).flat_map(|x| (base + factor * x).to_le_bytes()).collect()
}

const NOTHING: StepInputs<'static> =
    StepInputs { tokens: &[], positions: &[], tables: &[], blocks: &[], outputs: &[], wanted: &[], given: &[] };

fn soon() -> Stop {
    Stop::by(Deadline::after(Duration::from_secs(120)))
}

fn bind(backend: &Arc<dyn Backend>, plan: &Arc<Plan>, model: &Model) -> Program {
    let device = Device::new(backend.clone(), ByteSize::new(1 << 32));
    let (mut footprint, mut offsets, mut end) = (Footprint::default(), Vec::new(), ByteSize::ZERO);
    for weight in plan.weights() {
        offsets.push(end.get());
        end = (end + backend.weight_layout(weight).bytes).align_up(WEIGHT_ALIGN);
    }
    for (kind, bytes) in [
        (SegmentKind::Weights, end),
        (SegmentKind::Arena, plan.arena()),
        (SegmentKind::Scratch, backend.scratch(plan)),
        (SegmentKind::Exchange, backend.exchange(plan)),
    ] {
        footprint.add(&device, kind, bytes);
    }
    let mut reservation = device.reserve("test", &footprint, &soon()).expect("small");
    let weights = reservation.carve(SegmentKind::Weights).expect("reserved");
    let arena = reservation.carve(SegmentKind::Arena).expect("reserved");
    let (scratch, exchange) =
        (reservation.carve(SegmentKind::Scratch).ok(), reservation.carve(SegmentKind::Exchange).ok());
    let items: Vec<LoadItem<'_>> = plan
        .weights()
        .iter()
        .zip(&offsets)
        .map(|(weight, &offset)| LoadItem { weight, lease: &weights, offset })
        .collect();
    let files: Vec<Vec<u8>> = plan.weights().iter().map(|used| weight(&model.0[&used.spec.name])).collect();
    let read = |item: usize, offset: u64, into: &mut [u8]| {
        into.copy_from_slice(&files[item][offset as usize..][..into.len()]);
        Ok(())
    };
    let mut lane = device.open_lane().expect("opens");
    lane.load(&Load { items: &items, read: &read, progress: &|_| () }, &soon()).expect("loads");
    let weights = offsets.iter().map(|&offset| WeightPlace::Resident { lease: weights.clone(), offset }).collect();
    let kv = KvPlace { lease: None, blocks: 0, kv: KvType::F32 };
    lane.bind(plan.clone(), &Memory { weights, kv, arena, scratch, exchange }).expect("binds")
}
