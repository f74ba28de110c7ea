//! From a file to a model that is ready to run: plan, then load.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tenure_device::{
    CarveError, Device, DeviceError, Footprint, HostBytes, KvPlace, Lease, Load, LoadItem, Memory, Reservation,
    SegmentKind, SourceError, Stop, WEIGHT_ALIGN, WeightPlace,
};
use tenure_graph::{KvType, Plan, PlanError, StepShape};
use tenure_models::{Outputs, TextConfig};
use tenure_tensor::{ByteSize, TensorSpec};
use tenure_tokenizer::{ChatTemplate, TemplateError, Tokenizer};
use tenure_weights::{MappedTensor, StoredTensor, TrustFile, WeightStore};

use crate::engine::{LoadOptions, LoadPlan};
use crate::error::{Cause, Error};
use crate::family::sealed;
use crate::text::options::{TextOptions, WeightAccess};
use crate::text::stepper::Stepper;

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
    plan: Arc<Plan>,
    places: Vec<Planned>,
    kv_blocks: usize,
    footprint: Footprint,
    mapped: ByteSize,
}

/// Where a weight will be.
enum Planned {
    /// In one of the weight segments, from `offset` on.
    Resident {
        segment: usize,
        offset: u64,
    },
    Mapped,
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
    /// How much, of the budget or of the file's mapping.
    pub bytes: ByteSize,
    /// Whether the budget bears it; mapped weights are the file's own pages.
    pub in_budget: bool,
}

/// Positions by default, where the model allows more.
const DEFAULT_CONTEXT: usize = 4096;

impl sealed::Family for Text {
    type Options = TextOptions;
    type Plan = TextPlan;
    type Loaded = LoadedText;

    fn plan(device: &Device, store: &Arc<WeightStore>, options: &TextOptions) -> Result<TextPlan, Error> {
        TextPlan::new(device, store, options)
    }

    fn label(plan: &TextPlan) -> &str {
        &plan.label
    }

    fn footprint(plan: &TextPlan) -> &Footprint {
        &plan.footprint
    }

    fn advice(plan: &TextPlan, device: &Device) -> String {
        plan.advice(device)
    }

    fn load(plan: TextPlan, reservation: Reservation, options: &LoadOptions) -> Result<LoadedText, Error> {
        plan.load(reservation, options)
    }

    fn held(loaded: &LoadedText) -> ByteSize {
        loaded.held
    }
}

impl LoadPlan<Text> {
    /// What loading takes, part by part.
    pub fn components(&self) -> Vec<Component> {
        let part = |name, kind| Component { name, bytes: self.inner.footprint.of(kind), in_budget: true };
        vec![
            part("weights", SegmentKind::Weights),
            part("kv cache", SegmentKind::Kv),
            part("arena", SegmentKind::Arena),
            part("scratch", SegmentKind::Scratch),
            part("exchange", SegmentKind::Exchange),
            Component { name: "mapped weights", bytes: self.inner.mapped, in_budget: false },
        ]
    }

    /// Positions of one sequence.
    pub fn context(&self) -> usize {
        self.inner.context
    }

    /// The hyperparameters.
    pub fn config(&self) -> &TextConfig {
        &self.inner.config
    }

    /// The recorded step.
    pub fn step(&self) -> &Plan {
        &self.inner.plan
    }

    /// Tensors of the file that the model does not use, in the order of the file.
    pub fn unused_tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        let used: HashSet<&str> = self.inner.plan.weights().iter().map(|weight| weight.spec.name.as_str()).collect();
        self.inner.store.tensors().map(StoredTensor::spec).filter(move |spec| !used.contains(spec.name.as_str()))
    }

    /// What to change if it does not fit into what `device` has free.
    pub fn advice(&self, device: &Device) -> String {
        self.inner.advice(device)
    }
}

impl TextPlan {
    fn new(device: &Device, store: &Arc<WeightStore>, options: &TextOptions) -> Result<Self, Error> {
        let path = path_of(store);
        let model_error = |error| Cause::Model { path: path.to_owned(), source: error };
        let config = TextConfig::from_gguf(store).map_err(model_error)?;
        let context = options.context.unwrap_or(config.context.min(DEFAULT_CONTEXT));
        check(options, context)?;
        let shape = StepShape {
            rows: options.batch.min(context.saturating_mul(options.sequences)).max(options.sequences),
            outs: options.logit_rows.max(options.sequences),
            context,
        };
        let outputs = if options.check_activations { Outputs::LogitsAndLayers } else { Outputs::Logits };
        let plan = tenure_models::record(store, &config, shape, outputs).map_err(model_error)?;
        let backend = device.backend();

        // The sizes of the weight segments; a weight lies in one of them.
        let (mut places, mut segments, mut mapped) = (Vec::new(), vec![ByteSize::ZERO], ByteSize::ZERO);
        for weight in plan.weights() {
            let layout = backend.weight_layout(weight);
            if layout.mappable && options.access == WeightAccess::Mapped {
                mapped += layout.bytes;
                places.push(Planned::Mapped);
            } else {
                let mut offset = segments.last().map_or(ByteSize::ZERO, |last| last.align_up(WEIGHT_ALIGN));
                if offset > ByteSize::ZERO && offset + layout.bytes > backend.largest_segment() {
                    segments.push(ByteSize::ZERO);
                    offset = ByteSize::ZERO;
                }
                let segment = segments.len() - 1;
                segments[segment] = offset + layout.bytes;
                places.push(Planned::Resident { segment, offset: offset.get() });
            }
        }
        let kv_blocks = shape.table_len().saturating_mul(options.sequences);
        let mut kv = ByteSize::ZERO;
        for &layer in plan.kv_layers() {
            kv += backend.kv_block_bytes(layer, options.kv)?.times(kv_blocks as u64);
        }
        let mut footprint = Footprint::default();
        for &bytes in &segments {
            footprint.add(device, SegmentKind::Weights, bytes);
        }
        footprint.add(device, SegmentKind::Kv, kv);
        footprint.add(device, SegmentKind::Arena, plan.arena());
        footprint.add(device, SegmentKind::Scratch, backend.scratch(&plan));
        footprint.add(device, SegmentKind::Exchange, backend.exchange(&plan));
        let label = path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        Ok(TextPlan {
            store: store.clone(),
            label,
            config,
            options: options.clone(),
            context,
            plan: Arc::new(plan),
            places,
            kv_blocks,
            footprint,
            mapped,
        })
    }

    /// What would fit into the bytes that are free now.
    fn advice(&self, device: &Device) -> String {
        let free = device.report().free();
        let taken =
            |options: &TextOptions| TextPlan::new(device, &self.store, options).ok().map(|plan| plan.footprint.total());
        let fits = |options: &TextOptions| taken(options).is_some_and(|bytes| bytes <= free);
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
        // Not every head size has the smaller cache.
        let least = TextOptions {
            sequences: 1,
            kv: if taken(&smaller).is_some() { KvType::Q8_0 } else { self.options.kv },
            ..self.options.clone()
        };
        let mut ways = Vec::new();
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
        if ways.is_empty() {
            let least = taken(&with_context(&least, 1)).unwrap_or(self.footprint.total());
            return format!(
                "even a context of 1 takes {least}, and {free} are free: raise the budget or free other models"
            );
        }
        ways.join("; ")
    }

    fn load(self, mut reservation: Reservation, options: &LoadOptions) -> Result<LoadedText, Error> {
        let TextPlan { store, config, options: wanted, context, plan, places, kv_blocks, footprint, mapped, .. } = self;
        let path = path_of(&store).to_owned();
        let stop = Stop { deadline: options.deadline, cancel: options.cancel.clone() };
        let device = reservation.device().clone();

        // The tokenizer is built while the weights are read.
        let (text_side, device_side) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("tokenizer".to_owned());
            let text_side = thread.spawn_scoped(scope, || open_text(&store));
            let device_side = (|| {
                let mut lane = device.open_lane()?;
                let count = |kind| footprint.segments().iter().filter(|(other, _)| *other == kind).count();
                let mut carve = |kind| reservation.carve(kind);
                let weights: Vec<Lease> = (0..count(SegmentKind::Weights))
                    .map(|_| carve(SegmentKind::Weights))
                    .collect::<Result<_, CarveError>>()?;
                let kv = carve(SegmentKind::Kv)?;
                let arena = carve(SegmentKind::Arena)?;
                let mut carve_some = |kind| (count(kind) > 0).then(|| carve(kind)).transpose();
                let (scratch, exchange) = (carve_some(SegmentKind::Scratch)?, carve_some(SegmentKind::Exchange)?);

                let mut items = Vec::new();
                let mut weight_places = Vec::new();
                for (weight, place) in plan.weights().iter().zip(&places) {
                    match *place {
                        Planned::Resident { segment, offset } => {
                            let lease = &weights[segment];
                            items.push(LoadItem { weight, lease, offset });
                            weight_places.push(WeightPlace::Resident { lease: lease.clone(), offset });
                        }
                        Planned::Mapped => {
                            let mapped = store.map(stored(&store, &weight.spec.name)?, TrustFile)?;
                            weight_places.push(WeightPlace::Mapped(Arc::new(Mapped(mapped))));
                        }
                    }
                }
                let total: ByteSize = items.iter().filter_map(|item| item.weight.spec.bytes()).sum();
                let done = AtomicU64::new(0);
                let read = |item: usize, offset: u64, into: &mut [u8]| -> Result<(), SourceError> {
                    let tensor = stored(&store, &items[item].weight.spec.name)?;
                    Ok(store.read_at(tensor, offset, into)?)
                };
                let progress = |bytes: ByteSize| {
                    let done = done.fetch_add(bytes.get(), Ordering::Relaxed) + bytes.get();
                    if let Some(tell) = &options.progress {
                        tell(ByteSize::new(done), total);
                    }
                };
                lane.load(&Load { items: &items, read: &read, progress: &progress }, &stop)
                    .map_err(|error| Cause::Load { path: path.clone(), source: error })?;
                store.verify_unchanged()?;
                let kv = KvPlace { lease: kv, blocks: kv_blocks, kv: wanted.kv };
                let memory = Memory { weights: weight_places, kv, arena, scratch, exchange };
                Ok::<_, Error>(lane.bind(plan.clone(), &memory)?)
            })();
            let text_side = match text_side.map(|thread| thread.join()) {
                Ok(Ok(result)) => result,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(error) => Err(DeviceError::ThreadSpawn(error.to_string()).into()),
            };
            (text_side, device_side)
        });
        let program = device_side?;
        let (tokenizer, template) = text_side?;
        Ok(LoadedText {
            stepper: Stepper::new(program, wanted.sequences)?,
            config,
            tokenizer,
            template,
            context,
            sequences: wanted.sequences,
            held: footprint.total(),
            read_per_step: plan.weights().iter().filter(|w| w.as_matrix).filter_map(|w| w.spec.bytes()).sum(),
            mapped,
            path,
        })
    }
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

/// A mapped tensor, as a backend holds it.
struct Mapped(MappedTensor);

impl HostBytes for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

type TextSide = (Tokenizer, Option<Result<ChatTemplate, TemplateError>>);

/// The file a store was opened from, or the first of its files.
fn path_of(store: &WeightStore) -> &Path {
    store.files().next().unwrap_or(Path::new(""))
}

/// The plan names only tensors the store has; a missing one is reported all the same.
fn stored<'s>(store: &'s WeightStore, name: &str) -> Result<&'s StoredTensor, PlanError> {
    store.find(name).ok_or_else(|| PlanError::MissingTensor { name: name.to_owned() })
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
