//! From files to an image model that is ready to draw: plan, then load.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tenure_device::{Device, Footprint, SegmentKind, Stop};
use tenure_graph::{Grid, KvType, Plan, WeightCatalog};
use tenure_models::image::{ImageFamily, ImageModel, ImagePaths, Part, Prediction, ScheduleFacts};
use tenure_sampling::diffusion::{
    self, BetaSchedule, FlowSchedule, FlowShift, NoiseSchedule, Preset, Process, Variant,
};
use tenure_tensor::ByteSize;

use crate::engine::{Engine, LoadOptions, LoadPlan, Reservation, Share};
use crate::error::{Cause, Error};
use crate::family::sealed;
use crate::image::autoencoder::SIDES;
use crate::image::bench::{Bench, PlannedNetwork, StepMemory, Tools};
use crate::image::colours::Colours;
use crate::image::conditioning::Tokenizers;
use crate::image::options::{ImageOptions, Residency, Tiling};
use crate::image::picture::LATENT;
use crate::image::work::{Network, Work};
use crate::weights::{Placement, WeightSource};

/// The family of image models.
#[derive(Debug)]
pub enum Image {}

impl Image {
    /// Opens a model's files and recognises what it is. Reads headers only.
    ///
    /// # Errors
    /// When the files are no image model Tenure can run, or parts of one are missing.
    pub fn open(paths: &ImagePaths) -> Result<Arc<ImageModel>, Error> {
        Ok(Arc::new(ImageModel::open(paths).map_err(Cause::ImageModel)?))
    }

    /// What the family of a model wants.
    ///
    /// # Errors
    /// When what the files say of the schedule cannot be.
    pub fn preset(model: &ImageModel) -> Result<Preset, Error> {
        Ok(Kind::of(model)?.preset)
    }

    /// How many of CLIP's chunks a prompt takes with a model's tokenizers ([`ImageOptions::prompt_chunks`]).
    ///
    /// # Errors
    /// When it is not well-formed, takes more than are possible, or the model's own tokenizer cannot be read.
    pub fn chunks(model: &ImageModel, prompt: &str) -> Result<usize, Error> {
        Tokenizers::open(model)?.chunks(prompt)
    }
}

/// Everything needed to load an image model, worked out from its headers.
pub struct ImagePlan {
    model: Arc<ImageModel>,
    label: String,
    options: ImageOptions,
    kind: Kind,
    size: (usize, usize),
    keep: bool,
    tile: Option<usize>,
    networks: BTreeMap<Network, PlannedNetwork>,
    plans: Vec<(Network, Plan)>,
    share: Share,
}

/// What a model was trained for.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) preset: Preset,
    pub(crate) process: Process,
}

/// A loaded image model.
pub struct LoadedImage {
    pub(crate) model: Arc<ImageModel>,
    pub(crate) kind: Kind,
    pub(crate) tokenizers: Tokenizers,
    pub(crate) bench: Bench,
    pub(crate) tile: Option<usize>,
    pub(crate) from_images: bool,
    /// What images are made with.
    pub(crate) autoencoder: Part,
    /// For previews, once somebody asked for them, where there is no tiny autoencoder.
    pub(crate) colours: OnceLock<Colours>,
    held: ByteSize,
}

/// What one network takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkMemory {
    /// Which.
    pub network: Network,
    /// Bytes of its weights in the budget.
    pub weights: ByteSize,
    /// Bytes of its weights that are the file's own pages.
    pub mapped: ByteSize,
    /// Bytes of its steps over the largest image, beside the weights.
    pub step: ByteSize,
}

/// Tokens of one of CLIP's chunks, and of T5's longest sequence.
const CHUNK_TOKENS: usize = 77;
const T5_TOKENS: usize = 512;
/// The most chunks of a prompt.
const MOST_CHUNKS: usize = 64;

impl sealed::Family for Image {
    type Source = ImageModel;
    type Options = ImageOptions;
    type Plan = ImagePlan;
    type Loaded = LoadedImage;

    fn plan(engine: &Engine, source: &Arc<ImageModel>, options: &ImageOptions) -> Result<ImagePlan, Error> {
        ImagePlan::new(engine.device(), source, options)
    }

    fn label(plan: &ImagePlan) -> &str {
        &plan.label
    }

    fn shares(plan: &ImagePlan) -> &[Share] {
        std::slice::from_ref(&plan.share)
    }

    fn advice(plan: &ImagePlan, engine: &Engine) -> String {
        plan.advice(engine)
    }

    fn load(plan: ImagePlan, reservation: Reservation, options: &LoadOptions) -> Result<LoadedImage, Error> {
        plan.load(reservation, options)
    }

    fn held(loaded: &LoadedImage) -> ByteSize {
        loaded.held
    }

    fn settle(_: &mut LoadedImage, _: &Stop) -> bool {
        // Images are made on the processor, which leaves nothing under way.
        true
    }
}

impl LoadPlan<Image> {
    /// The files and what was recognised of them.
    pub fn model(&self) -> &ImageModel {
        &self.inner.model
    }

    /// Width and height of the largest image, in pixels.
    pub fn size(&self) -> (usize, usize) {
        self.inner.size
    }

    /// Whether all networks stay in memory; otherwise each is there while it is used.
    pub fn keeps_all(&self) -> bool {
        self.inner.keep
    }

    /// The side of the tiles that the largest image is decoded in, in pixels; `None`: it is decoded at once.
    pub fn tile(&self) -> Option<usize> {
        self.inner.tile.map(|side| side * LATENT)
    }

    /// What each network takes, in the order they are used in.
    pub fn networks(&self) -> impl Iterator<Item = NetworkMemory> {
        self.inner.networks.iter().map(|(&network, planned)| NetworkMemory {
            network,
            weights: planned.placement.segments.iter().copied().sum(),
            mapped: planned.placement.mapped,
            step: planned.steps.sum(),
        })
    }

    /// The recorded steps over the largest image, each with its network.
    pub fn steps(&self) -> impl Iterator<Item = (Network, &Plan)> {
        self.inner.plans.iter().map(|(network, plan)| (*network, plan))
    }
}

impl ImagePlan {
    fn new(device: &Device, model: &Arc<ImageModel>, options: &ImageOptions) -> Result<Self, Error> {
        let kind = Kind::of(model)?;
        let size = options.size.unwrap_or((kind.preset.width, kind.preset.height));
        check_size(model, size)?;
        if let Tiling::Tiles(side) = options.tiling
            && (side < 128 || !side.is_multiple_of(64))
        {
            let possible = "multiples of 64 from 128 on are possible".to_owned();
            return Err(Cause::BadParameter { field: "tile", value: side.to_string(), possible }.into());
        }
        in_bounds("prompt_chunks", options.prompt_chunks, 1, MOST_CHUNKS)?;
        let label = model.path().file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        let (keep, whole) = (options.residency != Residency::ByPhase, fixed_tile(options.tiling));
        let planner = Planner { device, model, options, size };
        // From what is fastest to what takes least; the last is kept also where it does not fit, for the error to say.
        let keeps: &[bool] = match options.residency {
            Residency::Auto => &[true, false],
            Residency::Keep | Residency::ByPhase => &[keep],
        };
        let longest = size.0.max(size.1) / LATENT;
        let mut tiles = vec![whole];
        if options.tiling == Tiling::Auto {
            tiles.extend(SIDES.into_iter().filter(|&side| side < longest).map(Some));
        }
        let mut last = None;
        for &keep in keeps {
            for &tile in &tiles {
                let (networks, plans) = planner.networks(tile)?;
                let share = Share { device: device.clone(), footprint: footprint(device, &networks, keep) };
                let fits = share.fits();
                last = Some((keep, tile, networks, plans, share));
                if fits {
                    break;
                }
            }
            if last.as_ref().is_some_and(|(.., share)| share.fits()) {
                break;
            }
        }
        let (keep, tile, networks, plans, share) = last.ok_or(tenure_graph::PlanError::Empty)?;
        let (model, options) = (model.clone(), options.clone());
        Ok(ImagePlan { model, label, options, kind, size, keep, tile, networks, plans, share })
    }

    /// What would fit into the bytes that are free now.
    fn advice(&self, engine: &Engine) -> String {
        let free = engine.report().free();
        let with = |options: ImageOptions| ImagePlan::new(engine.device(), &self.model, &options).ok();
        let fits = |options: &ImageOptions| with(options.clone()).is_some_and(|plan| plan.share.fits());
        let auto = ImageOptions { tiling: Tiling::Auto, residency: Residency::Auto, ..self.options.clone() };
        if fits(&auto) {
            return "with tiles, or one network in memory at a time, it fits".to_owned();
        }
        const SIDES: [usize; 13] = [8192, 6144, 4096, 3072, 2048, 1536, 1280, 1024, 768, 640, 512, 384, 256];
        for side in SIDES.into_iter().filter(|&side| side * side < self.size.0 * self.size.1) {
            if fits(&ImageOptions { size: Some((side, side)), ..auto.clone() }) {
                return format!("images of {side}x{side} pixels fit");
            }
        }
        format!("{} of {} are free: raise the budget or free other models", free, engine.report().budget)
    }

    fn load(self, mut reservation: Reservation, options: &LoadOptions) -> Result<LoadedImage, Error> {
        let held = reservation.remaining();
        let reservation = reservation.shares.pop().ok_or(tenure_graph::PlanError::Empty)?;
        let stop = Stop { deadline: options.deadline, cancel: options.cancel.clone() };
        let total: ByteSize = self.networks.values().map(|network| network.placement.resident).sum();
        let done = AtomicU64::new(0);
        let progress = |bytes: ByteSize| {
            let done = done.fetch_add(bytes.get(), Ordering::Relaxed) + bytes.get();
            if let Some(tell) = &options.progress {
                tell(ByteSize::new(done), total);
            }
        };
        let tokenizers = Tokenizers::open(&self.model)?;
        let autoencoder = autoencoder(&self.model, &self.options);
        let tools = if self.keep {
            Tools::keeping(self.model.clone(), self.networks, reservation, &progress, &stop)?
        } else {
            Tools::by_phase(self.model.clone(), self.networks, reservation)?
        };
        Ok(LoadedImage {
            model: self.model,
            kind: self.kind,
            tokenizers,
            bench: Bench::new(tools),
            tile: fixed_tile(self.options.tiling),
            from_images: self.options.from_images,
            autoencoder,
            colours: OnceLock::new(),
            held,
        })
    }
}

/// Works out what the networks take.
struct Planner<'p> {
    device: &'p Device,
    model: &'p ImageModel,
    options: &'p ImageOptions,
    size: (usize, usize),
}

type Networks = (BTreeMap<Network, PlannedNetwork>, Vec<(Network, Plan)>);

impl Planner<'_> {
    /// The networks, where pixels are computed in tiles of that side.
    fn networks(&self, tile: Option<usize>) -> Result<Networks, Error> {
        let (mut networks, mut plans) = (BTreeMap::new(), Vec::new());
        for work in self.work(tile) {
            let network = work.network();
            let plan = work.record(self.model).map_err(|source| self.of_model(source))?;
            let backend = self.device.backend();
            backend.supports(&plan, KvType::F32)?;
            let source = self.model.require(work.part()).map_err(|source| self.of_model(source))?;
            let source: &dyn WeightSource = source;
            let weights = plan.weights().to_vec();
            let placement = Placement::new(backend, &weights, self.options.access, source);
            let steps = StepMemory::of(&plan, self.device);
            networks.insert(network, PlannedNetwork { weights, placement, steps });
            plans.push((network, plan));
        }
        Ok((networks, plans))
    }

    /// What is computed for the largest image.
    fn work(&self, tile: Option<usize>) -> Vec<Work> {
        let (width, height) = (self.size.0 / LATENT, self.size.1 / LATENT);
        let has = |part: &Part| self.model.part(*part).is_some();
        let mut work: Vec<Work> =
            [Part::ClipL, Part::ClipG, Part::ClipH].into_iter().filter(has).map(Work::Clip).collect();
        if has(&Part::T5) {
            work.push(Work::T5 { tokens: T5_TOKENS });
        }
        let grid = |width: usize, height: usize| Grid { images: 1, height: height as u32, width: width as u32 };
        let side = tile.unwrap_or(usize::MAX);
        let (across, down) = (width.min(side), height.min(side));
        let tokens = CHUNK_TOKENS * self.options.prompt_chunks
            + if self.model.config().family.is_mmdit() { T5_TOKENS } else { 0 };
        work.push(Work::Denoise { grid: grid(width, height), tokens, without: Vec::new() });
        let main = autoencoder(self.model, self.options);
        for part in [Part::Vae, Part::Taesd].into_iter().filter(has) {
            if part == Part::Vae && main == Part::Taesd {
                continue;
            }
            // The tiny autoencoder beside another one is for previews, which are whole.
            if self.options.from_images && part == main {
                work.push(Work::Encode { part, grid: grid(across * LATENT, down * LATENT) });
            }
            work.push(Work::Decode { part, grid: grid(across, down) });
        }
        work
    }

    fn of_model(&self, source: tenure_models::ModelError) -> Error {
        Cause::Model { path: self.model.path().to_owned(), source }.into()
    }
}

/// The autoencoder that images are made with: the tiny one where that is wanted, or there is no other.
fn autoencoder(model: &ImageModel, options: &ImageOptions) -> Part {
    let tiny = options.tiny_autoencoder && model.part(Part::Taesd).is_some();
    if model.part(Part::Vae).is_some() && !tiny { Part::Vae } else { Part::Taesd }
}

/// What is taken of the device: all weights and the most that a step takes, or the most that one network takes in all.
fn footprint(device: &Device, networks: &BTreeMap<Network, PlannedNetwork>, keep: bool) -> Footprint {
    let of = |networks: &[&PlannedNetwork]| {
        let mut footprint = Footprint::default();
        for &bytes in networks.iter().flat_map(|network| &network.placement.segments) {
            footprint.add(device, SegmentKind::Weights, bytes);
        }
        let most = networks.iter().map(|network| network.steps).fold(StepMemory::default(), StepMemory::max);
        footprint.add(device, SegmentKind::Arena, most.arena);
        footprint.add(device, SegmentKind::Scratch, most.scratch);
        footprint
    };
    if keep {
        return of(&networks.values().collect::<Vec<_>>());
    }
    let each = networks.values().map(|network| of(&[network]));
    each.max_by_key(Footprint::total).unwrap_or_default()
}

/// Latents of a tile's side, where the caller fixed it.
fn fixed_tile(tiling: Tiling) -> Option<usize> {
    match tiling {
        Tiling::Auto => None,
        Tiling::Whole => Some(usize::MAX),
        Tiling::Tiles(side) => Some(side / LATENT),
    }
}

/// Whether the model can draw images of a size.
pub(crate) fn check_size(model: &ImageModel, (width, height): (usize, usize)) -> Result<(), Error> {
    let step = if model.config().family.is_mmdit() { 2 * LATENT } else { LATENT };
    let longest = longest_side(model);
    let sound = |side: usize| (MIN_SIDE..=longest).contains(&side) && side.is_multiple_of(step);
    if sound(width) && sound(height) {
        return Ok(());
    }
    let possible = format!("sides that are multiples of {step} from {MIN_SIDE} to {longest} are possible");
    Err(Cause::BadParameter { field: "size", value: format!("{width}x{height}"), possible }.into())
}

/// Pixels of the longest side a model can draw: transformers know so many positions.
fn longest_side(model: &ImageModel) -> usize {
    let table = model.part(Part::Denoiser).filter(|_| model.config().family.is_mmdit());
    let Some(spec) = table.and_then(|weights| weights.find("pos_embed.pos_embed")) else { return MAX_SIDE };
    let positions = spec.shape.elements().unwrap_or(0) / spec.shape.cols().max(1);
    (positions.isqrt() * 2 * LATENT).min(MAX_SIDE)
}

/// Whether a number is one of those that are possible.
pub(crate) fn in_bounds(field: &'static str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let possible = format!("{least} to {most} are possible");
    Err(Cause::BadParameter { field, value: value.to_string(), possible }.into())
}

/// Pixels of the shortest and longest side.
const MIN_SIDE: usize = 64;
const MAX_SIDE: usize = 16_384;

impl Kind {
    fn of(model: &ImageModel) -> Result<Self, Error> {
        let config = model.config();
        let family = match (config.family, config.prediction) {
            (ImageFamily::Sd1, _) => Variant::Sd1,
            (ImageFamily::Sd2, Prediction::V) => Variant::Sd2V,
            (ImageFamily::Sd2, _) => Variant::Sd2Base,
            (ImageFamily::Sdxl, _) => Variant::Sdxl,
            (ImageFamily::Sd3Medium, _) => Variant::Sd3Medium,
            (ImageFamily::Sd35Medium, _) => Variant::Sd35Medium,
            (ImageFamily::Sd35Large, _) => Variant::Sd35Large,
        };
        let name = model.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let facts = &config.schedule;
        // What a model was distilled for, its scheduler may say too: LCMScheduler.
        let variant = family.named(&format!("{name} {}", facts.class.as_deref().unwrap_or_default()));
        let process = match (variant.process()?, config.prediction) {
            (Process::Discrete { .. }, prediction) => Process::Discrete {
                schedule: NoiseSchedule::new(
                    betas(facts)?,
                    facts.train_timesteps.unwrap_or(TRAIN_TIMESTEPS),
                    facts.zero_terminal_snr == Some(true),
                )?,
                prediction: match prediction {
                    Prediction::V => diffusion::Prediction::V,
                    Prediction::Sample => diffusion::Prediction::Sample,
                    Prediction::Noise | Prediction::Flow => diffusion::Prediction::Epsilon,
                },
            },
            (Process::Flow(flow), _) => {
                let shift = facts.shift.map_or(flow.shift(), FlowShift::Static);
                let train_timesteps = facts.train_timesteps.unwrap_or(flow.train_timesteps());
                Process::Flow(FlowSchedule::new(shift, train_timesteps)?)
            }
        };
        let preset = variant.preset();
        let mut preset = if config.is_told_guidance() { preset.told_guidance() } else { preset };
        if let Some(offset) = facts.steps_offset {
            in_bounds("steps_offset", offset, 0, facts.train_timesteps.unwrap_or(TRAIN_TIMESTEPS).saturating_sub(1))?;
            preset.schedule.steps_offset = offset;
        }
        if let Some(size) = config.size.filter(|&size| check_size(model, size).is_ok()) {
            (preset.width, preset.height) = size;
        }
        Ok(Kind { preset, process })
    }
}

/// Timesteps that models were trained with, where their files do not say it.
const TRAIN_TIMESTEPS: usize = 1000;

/// How betas grow, by the folder; Stable Diffusion's own where it does not say it.
fn betas(facts: &ScheduleFacts) -> Result<BetaSchedule, Error> {
    let (start, end) = (facts.beta_start.unwrap_or(0.00085), facts.beta_end.unwrap_or(0.012));
    match facts.beta_schedule.as_deref() {
        None | Some("scaled_linear") => Ok(BetaSchedule::ScaledLinear { start, end }),
        Some("linear") => Ok(BetaSchedule::Linear { start, end }),
        Some("squaredcos_cap_v2") => Ok(BetaSchedule::SquaredCosine),
        Some(other) => {
            let possible = "scaled_linear, linear and squaredcos_cap_v2 are possible".to_owned();
            let value = other.chars().take(64).collect();
            Err(Cause::BadParameter { field: "beta_schedule of the model's scheduler", value, possible }.into())
        }
    }
}
