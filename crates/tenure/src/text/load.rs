//! From a file to a model that is ready to run: plan, then load.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tenure_device::{CarveError, Device, DeviceError, Footprint, KvPlace, Lease, Memory, Program, SegmentKind, Stop};
use tenure_graph::{KvType, Plan, PlanError, StepShape};
use tenure_models::{Outputs, Part, TextConfig};
use tenure_tensor::{ByteSize, TensorSpec};
use tenure_tokenizer::{ChatTemplate, TemplateError, Tokenizer};
use tenure_weights::{StoredTensor, WeightStore};

use crate::engine::{Engine, LoadOptions, LoadPlan, Reservation, Share};
use crate::error::{Cause, Error};
use crate::family::sealed;
use crate::text::options::{Offload, TextOptions};
use crate::text::stepper::Stepper;
use crate::weights::Placement;

/// The family of language models.
#[derive(Debug)]
pub enum Text {}

/// Everything needed to load a text model, worked out from its headers.
pub struct TextPlan {
    store: Arc<WeightStore>,
    label: String,
    pub(crate) config: TextConfig,
    pub(crate) options: TextOptions,
    pub(crate) context: usize,
    shape: StepShape,
    kv_blocks: usize,
    /// In the order they are computed in.
    parts: Vec<PlannedPart>,
    /// One for each part.
    shares: Vec<Share>,
}

/// A part of a model that one device computes.
struct PlannedPart {
    plan: Arc<Plan>,
    placement: Placement,
}

/// A loaded text model.
pub struct LoadedText {
    pub(crate) config: TextConfig,
    pub(crate) tokenizer: Tokenizer,
    /// A template that cannot be read must not keep anybody from raw prompts; using it gives the error.
    pub(crate) template: Option<Result<ChatTemplate, TemplateError>>,
    pub(crate) stepper: Stepper,
    pub(crate) context: usize,
    pub(crate) sequences: usize,
    held: ByteSize,
    mapped: ByteSize,
    pub(crate) read_per_step: ByteSize,
    pub(crate) path: PathBuf,
}

/// One line of what loading takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// What it is.
    pub name: &'static str,
    /// On which device.
    pub device: String,
    /// How much, of the budget or of the file's mapping.
    pub bytes: ByteSize,
    /// Whether the budget bears it; mapped weights are the file's own pages.
    pub in_budget: bool,
}

/// Positions by default, where the model allows more.
const DEFAULT_CONTEXT: usize = 4096;

impl sealed::Family for Text {
    type Source = WeightStore;
    type Options = TextOptions;
    type Plan = TextPlan;
    type Loaded = LoadedText;

    fn plan(engine: &Engine, store: &Arc<WeightStore>, options: &TextOptions) -> Result<TextPlan, Error> {
        TextPlan::new(engine, store, options)
    }

    fn label(plan: &TextPlan) -> &str {
        &plan.label
    }

    fn shares(plan: &TextPlan) -> &[Share] {
        &plan.shares
    }

    fn advice(plan: &TextPlan, engine: &Engine) -> String {
        plan.advice(engine)
    }

    fn load(plan: TextPlan, reservation: Reservation, options: &LoadOptions) -> Result<LoadedText, Error> {
        plan.load(reservation, options)
    }

    fn held(loaded: &LoadedText) -> ByteSize {
        loaded.held
    }

    fn settle(loaded: &mut LoadedText, stop: &Stop) -> bool {
        loaded.stepper.settle(stop)
    }
}

impl LoadPlan<Text> {
    /// What loading takes, device by device and purpose by purpose.
    pub fn components(&self) -> Vec<Component> {
        let mut components = Vec::new();
        for (part, Share { device, footprint }) in self.inner.parts.iter().zip(&self.inner.shares) {
            let device = device.backend().name();
            let of = |name, bytes, in_budget| Component { name, device: device.clone(), bytes, in_budget };
            components.extend(
                [
                    ("weights", SegmentKind::Weights),
                    ("kv cache", SegmentKind::Kv),
                    ("arena", SegmentKind::Arena),
                    ("scratch", SegmentKind::Scratch),
                    ("exchange", SegmentKind::Exchange),
                ]
                .map(|(name, kind)| of(name, footprint.of(kind), true)),
            );
            components.push(of("mapped weights", part.placement.mapped, false));
        }
        components
    }

    /// Positions of one sequence.
    pub fn context(&self) -> usize {
        self.inner.context
    }

    /// The hyperparameters.
    pub fn config(&self) -> &TextConfig {
        &self.inner.config
    }

    /// The recorded steps of the parts, in the order they are computed in, each with its device.
    pub fn steps(&self) -> impl Iterator<Item = (&Device, &Plan)> {
        self.inner.steps()
    }

    /// How many layers each device computes, in the order they are computed in.
    pub fn layers(&self) -> impl Iterator<Item = (&Device, usize)> {
        self.steps().map(|(device, plan)| (device, plan.kv_layers().len()))
    }

    /// Tensors of the file that the model does not use, in the order of the file.
    pub fn unused_tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        let weights = self.steps().flat_map(|(_, plan)| plan.weights());
        let used: HashSet<&str> = weights.map(|weight| weight.spec.name.as_str()).collect();
        self.inner.store.tensors().map(StoredTensor::spec).filter(move |spec| !used.contains(spec.name.as_str()))
    }
}

impl TextPlan {
    fn new(engine: &Engine, store: &Arc<WeightStore>, options: &TextOptions) -> Result<Self, Error> {
        let path = path_of(store);
        let config =
            TextConfig::from_gguf(store).map_err(|error| Cause::Model { path: path.to_owned(), source: error })?;
        let context = options.context.unwrap_or(config.context.min(DEFAULT_CONTEXT));
        check(options, context)?;
        let shape = StepShape {
            rows: options.batch.min(context.saturating_mul(options.sequences)).max(options.sequences),
            outs: options.logit_rows.max(options.sequences),
            context,
        };
        let label = path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        let mut plan = TextPlan {
            store: store.clone(),
            label,
            config,
            options: options.clone(),
            context,
            shape,
            kv_blocks: shape.table_len().saturating_mul(options.sequences),
            parts: Vec::new(),
            shares: Vec::new(),
        };
        plan.divide(engine)?;
        Ok(plan)
    }

    /// Plans the parts, as the options want the model shared out.
    fn divide(&mut self, engine: &Engine) -> Result<(), Error> {
        let (device, layers) = (engine.device(), self.config.layers);
        match (engine.host(), self.options.offload) {
            (None, Offload::All | Offload::Auto) | (Some(_), Offload::All) => self.take(&[(device, Part::Whole)]),
            (None, Offload::Layers(_)) => Err(Cause::BadParameter {
                field: "offload",
                value: format!("{:?}", self.options.offload),
                possible: "an engine without a host computes everything on its device".to_owned(),
            }
            .into()),
            (Some(host), Offload::Layers(0)) => self.take(&[(host, Part::Whole)]),
            (Some(host), Offload::Layers(count)) => self.cut(host, device, layers - count.min(layers)),
            (Some(host), Offload::Auto) => {
                let fits = |plan: &TextPlan| plan.shares.last().is_some_and(Share::fits);
                // A part may also be refused outright, such as for what is larger than a device binds.
                if self.take(&[(device, Part::Whole)]).is_ok() && fits(self) {
                    return Ok(());
                }
                // The fewest layers that the host must compute; with all of them it needs no device.
                let (mut low, mut high) = (0, layers);
                while low < high {
                    let middle = low + (high - low) / 2;
                    if self.cut(host, device, middle).is_ok() && fits(self) {
                        high = middle;
                    } else {
                        low = middle + 1;
                    }
                }
                if low == layers { self.take(&[(host, Part::Whole)]) } else { self.cut(host, device, low) }
            }
        }
    }

    /// Has the host compute the layers before `layer`.
    fn cut(&mut self, host: &Device, device: &Device, layer: usize) -> Result<(), Error> {
        self.take(&[(host, Part::Before(layer)), (device, Part::From(layer))])
    }

    /// Plans these parts.
    fn take(&mut self, parts: &[(&Device, Part)]) -> Result<(), Error> {
        let planned: Vec<_> = parts.iter().map(|&(device, part)| self.part(device, part)).collect::<Result<_, _>>()?;
        (self.parts, self.shares) = planned.into_iter().unzip();
        Ok(())
    }

    /// Plans one part.
    fn part(&self, device: &Device, part: Part) -> Result<(PlannedPart, Share), Error> {
        let options = &self.options;
        let outputs = if options.check_activations { Outputs::LogitsAndLayers } else { Outputs::Logits };
        let plan = tenure_models::record(&self.store, &self.config, part, self.shape, outputs)
            .map_err(|error| Cause::Model { path: path_of(&self.store).to_owned(), source: error })?;
        let backend = device.backend();
        backend.supports(&plan, options.kv)?;

        let placement = Placement::new(backend, plan.weights(), options.access, &*self.store);
        let mut kv = ByteSize::ZERO;
        for &layer in plan.kv_layers() {
            kv += backend.kv_block_bytes(layer, options.kv)?.times(self.kv_blocks as u64);
        }
        let mut footprint = Footprint::default();
        for &bytes in &placement.segments {
            footprint.add(device, SegmentKind::Weights, bytes);
        }
        footprint.add(device, SegmentKind::Kv, kv);
        footprint.add(device, SegmentKind::Arena, plan.arena());
        footprint.add(device, SegmentKind::Scratch, backend.scratch(&plan));
        footprint.add(device, SegmentKind::Exchange, backend.exchange(&plan));
        let share = Share { device: device.clone(), footprint };
        Ok((PlannedPart { plan: Arc::new(plan), placement }, share))
    }

    /// The parts' steps, each with its device.
    fn steps(&self) -> impl Iterator<Item = (&Device, &Plan)> {
        self.shares.iter().zip(&self.parts).map(|(share, part)| (&share.device, &*part.plan))
    }

    /// The first share for which too little is free.
    fn over(&self) -> Option<&Share> {
        self.shares.iter().find(|share| !share.fits())
    }

    /// What would fit into the bytes that are free now.
    fn advice(&self, engine: &Engine) -> String {
        let with = |options: &TextOptions| TextPlan::new(engine, &self.store, options).ok();
        let fits = |options: &TextOptions| with(options).is_some_and(|plan| plan.over().is_none());
        let with_context = |options: &TextOptions, context| TextOptions { context: Some(context), ..options.clone() };
        let longest = |options: &TextOptions| {
            let (mut low, mut high) = (0, self.context);
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                if fits(&with_context(options, middle)) { low = middle } else { high = middle }
            }
            (low > 0).then_some(low)
        };
        let smaller = TextOptions { kv: KvType::Q8_0, ..self.options.clone() };
        let fewer = TextOptions { sequences: 1, ..self.options.clone() };
        let offloaded = TextOptions { offload: Offload::Auto, ..self.options.clone() };
        // Not every head size has the smaller cache.
        let least = TextOptions {
            sequences: 1,
            kv: if with(&smaller).is_some() { KvType::Q8_0 } else { self.options.kv },
            ..self.options.clone()
        };
        let mut ways = Vec::new();
        if engine.host().is_some()
            && let Some(plan) = with(&offloaded).filter(|plan| plan.over().is_none())
        {
            let on_device = plan.steps().filter(|(device, _)| device.is(engine.device()));
            let layers: usize = on_device.map(|(_, step)| step.kv_layers().len()).sum();
            ways.push(match layers {
                0 => "the host alone has room for it".to_owned(),
                _ => format!("{layers} of {} layers on {} fit", self.config.layers, engine.device().backend().name()),
            });
        }
        if let Some(context) = longest(&self.options) {
            ways.push(format!("a context of {context} fits"));
        }
        if self.options.kv != KvType::Q8_0 && fits(&smaller) {
            ways.push("a q8_0 KV cache fits".to_owned());
        }
        if self.options.sequences > 1 && fits(&fewer) {
            ways.push("one sequence fits".to_owned());
        }
        if ways.is_empty()
            && let Some(context) = longest(&least)
        {
            ways.push(format!("one sequence with a {:?} KV cache and a context of {context} fits", least.kv));
        }
        if ways.is_empty()
            && let Some(share) = with(&with_context(&least, 1)).as_ref().and_then(TextPlan::over).or(self.over())
        {
            let (least, free) = (share.footprint.total(), share.device.report().free());
            return format!(
                "even a context of 1 takes {least}, and {free} are free: raise the budget or free other models"
            );
        }
        ways.join("; ")
    }

    fn load(self, reservation: Reservation, options: &LoadOptions) -> Result<LoadedText, Error> {
        let held = reservation.remaining();
        let total: ByteSize = self.parts.iter().map(|part| part.placement.resident).sum();
        let done = AtomicU64::new(0);
        let progress = |bytes: ByteSize| {
            let done = done.fetch_add(bytes.get(), Ordering::Relaxed) + bytes.get();
            if let Some(tell) = &options.progress {
                tell(ByteSize::new(done), total);
            }
        };
        let stop = Stop { deadline: options.deadline, cancel: options.cancel.clone() };

        // The tokenizer is built while the weights are read.
        let (text_side, programs) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("tokenizer".to_owned());
            let text_side = thread.spawn_scoped(scope, || open_text(&self.store));
            let parts = self.parts.iter().zip(reservation.shares);
            let programs: Result<Vec<Program>, Error> =
                parts.map(|(part, reservation)| self.load_part(part, reservation, &progress, &stop)).collect();
            let text_side = match text_side.map(|thread| thread.join()) {
                Ok(Ok(result)) => result,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(error) => Err(DeviceError::ThreadSpawn(error.to_string()).into()),
            };
            (text_side, programs)
        });
        let programs = programs?;
        let (tokenizer, template) = text_side?;
        let weights = self.parts.iter().flat_map(|part| part.plan.weights());
        Ok(LoadedText {
            read_per_step: weights.filter(|w| w.as_matrix).filter_map(|w| w.spec.bytes()).sum(),
            mapped: self.parts.iter().map(|part| part.placement.mapped).sum(),
            stepper: Stepper::new(programs, self.options.sequences, self.shape)?,
            path: path_of(&self.store).to_owned(),
            tokenizer,
            template,
            context: self.context,
            sequences: self.options.sequences,
            config: self.config,
            held,
        })
    }

    fn load_part(
        &self,
        part: &PlannedPart,
        mut reservation: tenure_device::Reservation,
        progress: &(dyn Fn(ByteSize) + Sync),
        stop: &Stop,
    ) -> Result<Program, Error> {
        let PlannedPart { plan, placement } = part;
        let mut lane = reservation.device().open_lane()?;
        let segments = carve_all(&mut reservation, SegmentKind::Weights)?;
        let mut carve = |kind| Ok::<_, CarveError>(carve_all(&mut reservation, kind)?.pop());
        let kv = KvPlace { lease: carve(SegmentKind::Kv)?, blocks: self.kv_blocks, kv: self.options.kv };
        let arena = carve(SegmentKind::Arena)?.ok_or(PlanError::Empty)?;
        let (scratch, exchange) = (carve(SegmentKind::Scratch)?, carve(SegmentKind::Exchange)?);
        let weights = placement.load(&mut lane, plan.weights(), &segments, &*self.store, progress, stop)?;
        Ok(lane.bind(plan.clone(), &Memory { weights, kv, arena, scratch, exchange })?)
    }
}

/// Everything that was reserved for a purpose.
pub(crate) fn carve_all(
    reservation: &mut tenure_device::Reservation,
    kind: SegmentKind,
) -> Result<Vec<Lease>, CarveError> {
    (0..reservation.pending(kind)).map(|_| reservation.carve(kind)).collect()
}

impl LoadedText {
    /// Weights used from the file's mapping.
    pub(crate) fn mapped(&self) -> ByteSize {
        self.mapped
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

type TextSide = (Tokenizer, Option<Result<ChatTemplate, TemplateError>>);

/// The file a store was opened from, or the first of its files.
fn path_of(store: &WeightStore) -> &Path {
    store.files().next().unwrap_or(Path::new(""))
}

fn open_text(store: &WeightStore) -> Result<TextSide, Error> {
    let path = path_of(store);
    let meta = store.metadata().ok_or(tenure_models::ModelError::NoMetadata);
    let meta = meta.map_err(|error| Cause::Model { path: path.to_owned(), source: error })?;
    let tokenizer =
        Tokenizer::from_gguf(meta).map_err(|error| Cause::Tokenizer { path: path.to_owned(), source: error })?;
    Ok((tokenizer, meta.opt_str("tokenizer.chat_template")?.map(ChatTemplate::new)))
}

fn check(options: &TextOptions, context: usize) -> Result<(), Error> {
    let bounds = [
        ("context", context, u32::MAX as usize / 2),
        ("sequences", options.sequences, 1024),
        ("batch", options.batch, 1 << 16),
        ("logit_rows", options.logit_rows, 1 << 16),
    ];
    for (field, value, max) in bounds {
        if value == 0 || value > max {
            let possible = format!("1 to {max} are possible");
            return Err(Cause::BadParameter { field, value: value.to_string(), possible }.into());
        }
    }
    Ok(())
}
