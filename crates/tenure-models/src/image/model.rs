//! An image model as people have it: one file, a folder, or a denoiser with its other parts beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tenure_tensor::TensorSpec;
use tenure_weights::diffusers::{self, Settings};
use tenure_weights::{Shown, WeightStore};

use crate::error::ModelError;
use crate::image::config::{ImageConfig, Parts};
use crate::image::family::{self, ImageFamily};
use crate::image::folder;
use crate::image::locate::{Found, Slot, parts_of};
use crate::image::names::{Layout, is_beside};
use crate::image::part::{Part, PartWeights, path_of};

/// The files of an image model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagePaths {
    /// The model: one file with all parts, a file with the denoiser, a diffusers folder, or a component's folder.
    pub model: PathBuf,
    /// The autoencoder, instead of the model's own.
    pub vae: Option<PathBuf>,
    /// The CLIP-L text encoder (or SD 2's CLIP-H), instead of the model's own.
    pub clip_l: Option<PathBuf>,
    /// The CLIP-G text encoder (or SD 2's CLIP-H), instead of the model's own.
    pub clip_g: Option<PathBuf>,
    /// The T5 encoder, instead of the model's own.
    pub t5: Option<PathBuf>,
    /// A tiny autoencoder.
    pub taesd: Option<PathBuf>,
    /// Which set of weights to take of folders, such as `fp16`; those parts that do not come in it are taken plain. `None`:
    /// the plain ones, or the only ones there are.
    pub variant: Option<String>,
}

impl ImagePaths {
    /// The model at `model`, with nothing beside it.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        ImagePaths { model: model.into(), ..ImagePaths::default() }
    }
}

/// An image model, opened: its parts, and what was recognised of it. Nothing but headers was read.
///
/// ```no_run
/// use tenure_models::image::{ImageModel, ImagePaths, Part, record_clip};
///
/// let model = ImageModel::open(&ImagePaths::new("model.safetensors"))?;
/// let (clip, config) = (model.require(Part::ClipL)?, model.config());
/// if let Some(config) = config.clip(Part::ClipL) {
///     let plan = record_clip(clip, config, 1)?;
///     println!("{} {}", model.config().family, plan.arena());
/// }
/// # Ok::<(), tenure_models::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ImageModel {
    path: PathBuf,
    config: ImageConfig,
    /// In the order of [`Part`].
    parts: Vec<PartWeights>,
    files: Vec<File>,
}

/// An opened file, with those of its tensors that are accounted for.
#[derive(Clone, Debug)]
struct File {
    store: Arc<WeightStore>,
    known: Vec<bool>,
}

impl ImageModel {
    /// Opens the files, finds the parts in them, and recognises the family from tensors and their shapes.
    ///
    /// A part that is given counts, and not one of the same kind in the model. The denoiser, the family's CLIP encoders and
    /// an autoencoder, which may be a tiny one, must be there; T5 need not.
    ///
    /// # Errors
    /// [`ModelError::NotAnImageModel`], [`ModelError::TextModel`], [`ModelError::UnsupportedFamily`] and
    /// [`ModelError::UnsupportedFeature`] for what is no model or none that is known; [`ModelError::MissingPart`],
    /// [`ModelError::DoubledPart`], [`ModelError::PartGivenTwice`], [`ModelError::PartNotUsed`] and
    /// [`ModelError::PartsDisagree`] for parts that do not make up a model; [`ModelError::MissingPartTensor`],
    /// [`ModelError::BadPartTensor`], [`ModelError::BlocksApart`] and [`ModelError::BadHyperparameter`] for parts that
    /// are damaged; [`ModelError::ScaledWeights`]; [`ModelError::NoVariant`]; and [`ModelError::Weights`] for files that
    /// cannot be read.
    pub fn open(paths: &ImagePaths) -> Result<Self, ModelError> {
        let variant = paths.variant.as_deref();
        let main = Main::open(&paths.model, variant)?;
        let mut builder = Builder { paths, main: &main, files: Vec::new(), parts: Vec::new() };

        let found = builder.main_part(Part::Denoiser, Slot::Denoiser)?.ok_or_else(|| main.without_denoiser())?;
        if let Some(name) = family::other_model(&found.store) {
            return Err(ModelError::UnsupportedFamily {
                path: path_of(&found.store).to_owned(),
                name: name.to_owned(),
            });
        }
        let denoiser = builder.build(Part::Denoiser, &found)?;
        let family = ImageFamily::of(&denoiser)?;
        builder.parts.push(denoiser);
        builder.text_encoders(family)?;
        builder.autoencoders(family)?;
        builder.set_aside(&main.found);

        let Builder { mut parts, files, .. } = builder;
        for File { store, .. } in &files {
            if let Some(tensor) = store.tensors().find(|tensor| is_scale(&tensor.spec().name)) {
                let (path, tensor) = (path_of(store).to_owned(), Shown::new(&tensor.spec().name));
                return Err(ModelError::ScaledWeights { path, tensor });
            }
        }
        parts.sort_by_key(PartWeights::part);
        let find = |part| parts.iter().find(|weights: &&PartWeights| weights.part() == part);
        let config = Parts { find: &find, scheduler: main.scheduler.as_ref() }.config(family)?;
        Ok(ImageModel { path: paths.model.clone(), config, parts, files })
    }

    /// What was recognised.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The model's own path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors of `part`, if the model has it.
    pub fn part(&self, part: Part) -> Option<&PartWeights> {
        self.parts.iter().find(|weights| weights.part() == part)
    }

    /// The tensors of `part`.
    ///
    /// # Errors
    /// [`ModelError::MissingPart`].
    pub fn require(&self, part: Part) -> Result<&PartWeights, ModelError> {
        let missing = || ModelError::MissingPart { part, path: self.path.clone(), family: Some(self.config.family) };
        self.part(part).ok_or_else(missing)
    }

    /// The parts, in the order of [`Part`].
    pub fn parts(&self) -> impl ExactSizeIterator<Item = &PartWeights> {
        self.parts.iter()
    }

    /// Tensors of the files that are of no part, also of none that was given instead, and not known to lie beside models
    /// either, each with its file.
    pub fn unknown_tensors(&self) -> impl Iterator<Item = (&Path, &TensorSpec)> {
        self.files.iter().flat_map(|file| {
            let unknown = file.store.tensors().zip(&file.known).filter(|(_, known)| !**known);
            let path = |at: usize| file.store.files().nth(at).unwrap_or(Path::new(""));
            unknown.map(move |(tensor, _)| (path(tensor.file()), tensor.spec()))
        })
    }
}

/// What is at the model's own path.
struct Main {
    path: PathBuf,
    found: Vec<Found>,
    /// The file, where there is one.
    store: Option<Arc<WeightStore>>,
    scheduler: Option<Settings>,
}

impl Main {
    fn open(path: &Path, variant: Option<&str>) -> Result<Self, ModelError> {
        if path.join("model_index.json").is_file() {
            let (found, scheduler) = folder::open(path, variant)?;
            return Ok(Main { path: path.to_owned(), found, store: None, scheduler });
        }
        if let Some(variant) = variant {
            let sets = diffusers::variants(path)?;
            if !sets.iter().any(|set| set.name.as_deref() == Some(variant)) {
                return Err(ModelError::NoVariant { path: path.to_owned(), variant: Shown::new(variant) });
            }
        }
        let (store, found) = open_file(path, variant)?;
        Ok(Main { path: path.to_owned(), found, store: Some(store), scheduler: None })
    }

    /// What the model is, if it has no denoiser.
    fn without_denoiser(&self) -> ModelError {
        let path = self.path.clone();
        if let Some(store) = &self.store {
            if let Some(name) = family::other_model(store) {
                return ModelError::UnsupportedFamily { path, name: name.to_owned() };
            }
            if self.found.is_empty() {
                if let Some(architecture) = family::text_model(store) {
                    return ModelError::TextModel { path, architecture };
                }
                return match family::architecture(store) {
                    Some(name) => ModelError::UnsupportedFamily { path, name },
                    None => ModelError::NotAnImageModel { path },
                };
            }
        }
        ModelError::MissingPart { part: Part::Denoiser, path, family: None }
    }
}

/// A model whose parts are being collected.
struct Builder<'p> {
    paths: &'p ImagePaths,
    main: &'p Main,
    files: Vec<File>,
    parts: Vec<PartWeights>,
}

impl Builder<'_> {
    fn text_encoders(&mut self, family: ImageFamily) -> Result<(), ModelError> {
        let paths = self.paths;
        let (clip_l, clip_g, t5) = (paths.clip_l.as_deref(), paths.clip_g.as_deref(), paths.t5.as_deref());
        let not_used = |part, given: Option<&Path>| match given {
            Some(path) => Err(ModelError::PartNotUsed { part, path: path.to_owned(), family }),
            None => Ok(()),
        };
        match family {
            ImageFamily::Sd1 => {
                not_used(Part::ClipG, clip_g)?;
                not_used(Part::T5, t5)?;
                self.need(Part::ClipL, Slot::FirstClip, clip_l, family)
            }
            ImageFamily::Sd2 => {
                not_used(Part::T5, t5)?;
                if let (Some(first), Some(second)) = (clip_l, clip_g) {
                    let (first, second) = (first.to_owned(), second.to_owned());
                    return Err(ModelError::PartGivenTwice { part: Part::ClipH, first, second });
                }
                self.need(Part::ClipH, Slot::FirstClip, clip_l.or(clip_g), family)
            }
            ImageFamily::Sdxl => {
                not_used(Part::T5, t5)?;
                self.need(Part::ClipL, Slot::FirstClip, clip_l, family)?;
                self.need(Part::ClipG, Slot::SecondClip, clip_g, family)
            }
            ImageFamily::Sd3Medium | ImageFamily::Sd35Medium | ImageFamily::Sd35Large => {
                self.need(Part::ClipL, Slot::FirstClip, clip_l, family)?;
                self.need(Part::ClipG, Slot::SecondClip, clip_g, family)?;
                self.take(Part::T5, Slot::T5, t5)?;
                Ok(())
            }
        }
    }

    fn autoencoders(&mut self, family: ImageFamily) -> Result<(), ModelError> {
        let whole = self.take(Part::Vae, Slot::Vae, self.paths.vae.as_deref())?;
        let tiny = self.take(Part::Taesd, Slot::Taesd, self.paths.taesd.as_deref())?;
        if whole || tiny { Ok(()) } else { Err(self.missing(Part::Vae, family)) }
    }

    fn need(&mut self, part: Part, slot: Slot, given: Option<&Path>, family: ImageFamily) -> Result<(), ModelError> {
        if self.take(part, slot, given)? { Ok(()) } else { Err(self.missing(part, family)) }
    }

    fn missing(&self, part: Part, family: ImageFamily) -> ModelError {
        ModelError::MissingPart { part, path: self.main.path.clone(), family: Some(family) }
    }

    /// Takes a part from the file given for it, else from the model; whether there is one.
    fn take(&mut self, part: Part, slot: Slot, given: Option<&Path>) -> Result<bool, ModelError> {
        let found = match given {
            Some(path) => {
                let (_, found) = open_file(path, self.paths.variant.as_deref())?;
                let one = given_part(part, slot, &found)?;
                self.set_aside(&found);
                Some(one.ok_or_else(|| ModelError::MissingPart { part, path: path.to_owned(), family: None })?)
            }
            None => self.main_part(part, slot)?,
        };
        let Some(found) = found else { return Ok(false) };
        let weights = self.build(part, &found)?;
        self.parts.push(weights);
        Ok(true)
    }

    /// The one part in that slot of the model.
    fn main_part(&self, part: Part, slot: Slot) -> Result<Option<Found>, ModelError> {
        one(part, self.main.found.iter().filter(|found| found.slot == slot))
    }

    fn build(&mut self, part: Part, found: &Found) -> Result<PartWeights, ModelError> {
        let mut weights = part_of(part, found)?;
        self.account(&weights);
        if part == Part::ClipH {
            let layers = weights.count("encoder.layers.", ".mlp.fc1.weight");
            // SD 2 takes the last layer's results but one: its published folder does without the last layer, other files
            // have it.
            if found.layout == Layout::OpenClip || layers == OPEN_CLIP_H_LAYERS {
                let last = format!("encoder.layers.{}.", layers.saturating_sub(1));
                weights.retain(|name| !name.starts_with(&last));
            }
        }
        Ok(weights)
    }

    /// Marks the tensors of parts as accounted for, whether they are used or not.
    fn set_aside(&mut self, found: &[Found]) {
        for found in found {
            // What is wrong with what is not used does not matter.
            if let Ok(weights) = part_of(Part::Denoiser, found) {
                self.account(&weights);
            }
        }
    }

    /// Marks the tensors of a part as accounted for.
    fn account(&mut self, weights: &PartWeights) {
        let store = weights.store();
        let at = match self.files.iter().position(|file| Arc::ptr_eq(&file.store, store)) {
            Some(at) => at,
            None => {
                let known = store.tensors().map(|tensor| is_beside(&tensor.spec().name)).collect();
                self.files.push(File { store: store.clone(), known });
                self.files.len() - 1
            }
        };
        let Some(file) = self.files.get_mut(at) else { return };
        for source in weights.places() {
            if let Some(known) = file.known.get_mut(source) {
                *known = true;
            }
        }
    }
}

/// Whether a tensor says what another's 8-bit floats are to be multiplied with, or that there are such tensors.
fn is_scale(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    matches!(last, "scale_weight" | "weight_scale" | "scale_input" | "scaled_fp8")
}

/// Layers of OpenCLIP's ViT-H/14 text encoder.
const OPEN_CLIP_H_LAYERS: usize = 24;

/// Opens a file or a component's folder.
fn open_file(path: &Path, variant: Option<&str>) -> Result<(Arc<WeightStore>, Vec<Found>), ModelError> {
    let sets = diffusers::variants(path)?;
    let store = Arc::new(WeightStore::open(folder::choice(&sets, variant).unwrap_or(path))?);
    let name = path_of(&store).file_name().and_then(|name| name.to_str()).unwrap_or("");
    // Beside a file of another name there may be any other model's settings.
    let own = ["model", "diffusion_pytorch_model"].iter().any(|stem| name.starts_with(stem));
    let settings = if own { Settings::open(path_of(&store).with_file_name("config.json"))? } else { None };
    let settings = settings.filter(|settings| settings.has("_class_name") || settings.has("model_type"));
    let found = parts_of(&store, settings.as_ref());
    Ok((store, found))
}

/// The part among those of the file given for it.
fn given_part(part: Part, slot: Slot, found: &[Found]) -> Result<Option<Found>, ModelError> {
    let clip = |slot| matches!(slot, Slot::FirstClip | Slot::SecondClip);
    // An encoder by itself is the one it is given for; of several in a file, the one that is named so.
    match one(part, found.iter().filter(|found| found.slot == slot))? {
        Some(found) => Ok(Some(found)),
        None => one(part, found.iter().filter(|found| clip(slot) && clip(found.slot))),
    }
}

/// The only one of `found`, if there is any.
fn one<'f>(part: Part, mut found: impl Iterator<Item = &'f Found>) -> Result<Option<Found>, ModelError> {
    let Some(first) = found.next() else { return Ok(None) };
    match found.next() {
        None => Ok(Some(first.clone())),
        Some(second) => Err(ModelError::DoubledPart {
            part,
            path: path_of(&first.store).to_owned(),
            first: Shown::new(first.prefix),
            second: Shown::new(second.prefix),
        }),
    }
}

fn part_of(part: Part, found: &Found) -> Result<PartWeights, ModelError> {
    PartWeights::new(part, &found.store, found.prefix, found.layout, found.settings.clone())
}
