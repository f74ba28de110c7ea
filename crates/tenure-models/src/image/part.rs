//! The parts of an image model, each with its tensors as diffusers or transformers names them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use tenure_graph::WeightCatalog;
use tenure_tensor::{Shape, TensorSpec};
use tenure_weights::diffusers::Settings;
use tenure_weights::gguf::Value;
use tenure_weights::{MappedTensor, Shown, StoredTensor, TrustFile, WeightStore};

use crate::error::ModelError;
use crate::image::names::Layout;
use crate::image::view::{Unfit, View};

/// A part of an image model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// OpenAI's text encoder (SD 1, SDXL, SD 3).
    ClipL,
    /// OpenCLIP's largest text encoder (SDXL, SD 3).
    ClipG,
    /// OpenCLIP's text encoder of SD 2.
    ClipH,
    /// The T5 encoder (SD 3, where it may be missing).
    T5,
    /// The U-Net or transformer.
    Denoiser,
    /// The autoencoder.
    Vae,
    /// A tiny autoencoder, beside the autoencoder or instead of it.
    Taesd,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::ClipL => "CLIP-L text encoder",
            Part::ClipG => "CLIP-G text encoder",
            Part::ClipH => "CLIP-H text encoder",
            Part::T5 => "T5 text encoder",
            Part::Denoiser => "denoiser",
            Part::Vae => "autoencoder",
            Part::Taesd => "tiny autoencoder",
        })
    }
}

/// The tensors of one part, by the names that diffusers or transformers (without a `text_model.`) have for them.
///
/// A tensor is a view of one of the file's: all of it, some of its rows, two ranges of rows exchanged, a matrix turned
/// over, or blocks decoded: vectors and the like to f32; to f16 where the rows of the file are not those of the tensor, or are turned
/// over.
#[derive(Clone, Debug)]
pub struct PartWeights {
    part: Part,
    store: Arc<WeightStore>,
    /// By name.
    views: Vec<View>,
    /// Places in the store of tensors that the part has and does without.
    set_aside: Vec<usize>,
    pub(crate) settings: Option<Settings>,
}

impl PartWeights {
    /// Which part it is.
    pub fn part(&self) -> Part {
        self.part
    }

    /// Name, type and shape of every tensor, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorSpec> + Clone {
        self.views.iter().map(|view| &view.spec)
    }

    /// Reads `buf.len()` bytes of the tensor called `name` from `offset` within it.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`]; [`ModelError::Weights`] naming the file for a read beyond the tensor, or one that
    /// fails or finds the file changed. `buf` then holds nothing of use.
    pub fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> Result<(), ModelError> {
        Ok(self.named(name)?.read_at(&self.store, offset, buf)?)
    }

    /// Whether the bytes of the tensor called `name` lie in the file as they are, in one piece.
    pub fn is_contiguous(&self, name: &str) -> bool {
        self.view(name).is_some_and(View::is_contiguous)
    }

    /// The bytes of the tensor called `name`, mapped into memory; `None` where they do not lie in the file as they are, in
    /// one piece. See [`WeightStore::map`] for what it trusts.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`]; [`ModelError::Weights`] when the file cannot be mapped.
    pub fn map(&self, name: &str, trust: TrustFile) -> Result<Option<MappedTensor>, ModelError> {
        Ok(self.named(name)?.map(&self.store, trust)?)
    }

    /// Whether the files are still what they were when they were opened. To be asked after a load.
    ///
    /// # Errors
    /// [`ModelError::Weights`] naming the file that changed.
    pub fn verify_unchanged(&self) -> Result<(), ModelError> {
        Ok(self.store.verify_unchanged()?)
    }

    /// The file, or the first of several shards.
    pub fn path(&self) -> &Path {
        path_of(&self.store)
    }

    /// The files.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.store.files()
    }

    /// The names of the files' tensors that are used, each once.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        let mut used: Vec<usize> = self.views.iter().map(|view| view.source).collect();
        used.sort_unstable();
        used.dedup();
        used.into_iter().filter_map(|at| self.store.tensors().nth(at)).map(|tensor| tensor.spec().name.as_str())
    }

    /// The tensors of a part of `store` whose names begin with `prefix` and go on as `layout` has them.
    pub(crate) fn new(
        part: Part,
        store: &Arc<WeightStore>,
        prefix: &'static str,
        layout: Layout,
        settings: Option<Settings>,
    ) -> Result<Self, ModelError> {
        let path = path_of(store);
        let behind = |tensor: &'_ StoredTensor| tensor.spec().name.strip_prefix(prefix).map(str::to_owned);
        let known: Vec<(usize, String)> =
            store.tensors().enumerate().filter_map(|(at, tensor)| Some((at, behind(tensor)?))).collect();
        let names = layout.names(known.iter().map(|(_, name)| name.as_str()));
        let (mut views, mut set_aside) = (Vec::new(), Vec::new());
        for (at, name) in &known {
            let Some(tensor) = store.tensors().nth(*at) else { continue };
            let mut shape = None;
            for (to, take) in names.map(name) {
                // Of SD 2's encoder nothing is projected.
                if part == Part::ClipH && to == "text_projection.weight" {
                    set_aside.push(*at);
                    continue;
                }
                let shape = match &shape {
                    Some(shape) => shape,
                    None => shape.insert(shape_of(part, store, tensor)?),
                };
                let view = View::new(to, take, *at, tensor, shape).map_err(|unfit| {
                    let (path, tensor_name) = (path.to_owned(), Shown::new(&tensor.spec().name));
                    match unfit {
                        Unfit::Shape => {
                            ModelError::BadPartTensor { part, path, tensor: tensor_name, shape: shape.clone() }
                        }
                        Unfit::Blocks => {
                            let dtype = tensor.spec().dtype;
                            ModelError::BlocksApart { part, path, tensor: tensor_name, dtype }
                        }
                    }
                })?;
                views.push(view);
            }
        }
        views.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        let twice = views.windows(2).find_map(|pair| match pair {
            [a, b] if a.spec.name == b.spec.name => Some((a, b)),
            _ => None,
        });
        if let Some((a, b)) = twice {
            let name = |view: &View| {
                Shown::new(store.tensors().nth(view.source).map_or("", |tensor| tensor.spec().name.as_str()))
            };
            return Err(ModelError::DoubledPart { part, path: path.to_owned(), first: name(a), second: name(b) });
        }
        Ok(PartWeights { part, store: store.clone(), views, set_aside, settings })
    }

    pub(crate) fn store(&self) -> &Arc<WeightStore> {
        &self.store
    }

    /// The places in their store of the tensors that are used, or known to be of the part.
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> {
        self.views.iter().map(|view| view.source).chain(self.set_aside.iter().copied())
    }

    /// Leaves out the tensors for which `keep` does not hold.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let aside = self.views.iter().filter(|view| !keep(&view.spec.name)).map(|view| view.source);
        self.set_aside.extend(aside);
        self.views.retain(|view| keep(&view.spec.name));
    }

    /// The dimension `at` of the tensor called `name`.
    pub(crate) fn dim(&self, name: &str, at: usize) -> Option<usize> {
        self.find(name)?.shape.dims().get(at).copied()
    }

    /// Dimensions that the file has of the tensor called `name`, which may be more than are seen here.
    pub(crate) fn rank_in_file(&self, name: &str) -> Option<usize> {
        let tensor = self.store.tensors().nth(self.view(name)?.source)?;
        Some(shape_of(self.part, &self.store, tensor).ok()?.rank())
    }

    /// [`PartWeights::dim`] of a tensor that the part must have.
    pub(crate) fn need_dim(&self, name: &str, at: usize) -> Result<usize, ModelError> {
        let spec = self.find(name).ok_or_else(|| ModelError::MissingPartTensor {
            part: self.part,
            path: self.path().to_owned(),
            tensor: name.to_owned(),
        })?;
        spec.shape.dims().get(at).copied().ok_or_else(|| self.bad(name))
    }

    /// That the shape of the tensor called `name` cannot be.
    pub(crate) fn bad(&self, name: &str) -> ModelError {
        let shape = self.find(name).map_or_else(Shape::default, |spec| spec.shape.clone());
        ModelError::BadPartTensor { part: self.part, path: self.path().to_owned(), tensor: Shown::new(name), shape }
    }

    /// How many `{}` there are, counted from 0, for which there is a tensor called `before{}behind`.
    pub(crate) fn count(&self, before: &str, behind: &str) -> usize {
        (0..).take_while(|i| self.find(&format!("{before}{i}{behind}")).is_some()).count()
    }

    fn named(&self, name: &str) -> Result<&View, ModelError> {
        self.view(name).ok_or_else(|| ModelError::MissingPartTensor {
            part: self.part,
            path: self.path().to_owned(),
            tensor: name.to_owned(),
        })
    }

    fn view(&self, name: &str) -> Option<&View> {
        let at = self.views.binary_search_by(|view| view.spec.name.as_str().cmp(name)).ok()?;
        self.views.get(at)
    }
}

impl WeightCatalog for PartWeights {
    fn find(&self, name: &str) -> Option<&TensorSpec> {
        self.view(name).map(|view| &view.spec)
    }
}

/// The first file of a store.
pub(crate) fn path_of(store: &WeightStore) -> &Path {
    store.files().next().unwrap_or(Path::new(""))
}

/// The shape of a tensor, which ComfyUI-GGUF's files write down where they laid the elements out in other rows.
fn shape_of(part: Part, store: &WeightStore, tensor: &StoredTensor) -> Result<Shape, ModelError> {
    let spec = tensor.spec();
    let written = store.metadata().and_then(|metadata| metadata.value(&format!("comfy.gguf.orig_shape.{}", spec.name)));
    let Some(Value::Array(dims)) = written else { return Ok(spec.shape.clone()) };
    let bad = || ModelError::BadPartTensor {
        part,
        path: path_of(store).to_owned(),
        tensor: Shown::new(&spec.name),
        shape: spec.shape.clone(),
    };
    let dim = |value: Value<'_>| match value {
        Value::I32(n) => usize::try_from(n).ok(),
        Value::U32(n) => usize::try_from(n).ok(),
        Value::I64(n) => usize::try_from(n).ok(),
        Value::U64(n) => usize::try_from(n).ok(),
        _ => None,
    };
    if dims.len() > 8 {
        return Err(bad());
    }
    let dims: Option<Vec<usize>> = dims.values().map(dim).collect();
    let shape = Shape::new(dims.ok_or_else(bad)?);
    if shape.elements().is_some() && shape.elements() == spec.shape.elements() { Ok(shape) } else { Err(bad()) }
}
