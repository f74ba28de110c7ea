//! Arguments of the binaries that take image models.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tenure::{
    ByteSize, Cancel, CpuOptions, Device, Engine, Image, ImageModel, ImageOptions, ImagePaths, LoadOptions, LoadPlan,
    ModelHandle, NetworkMemory, Residency, Stop, Tiling, WeightAccess,
};

use crate::cli::{ModelArgs, Refusal, access, bytes, note};
use crate::device::DeviceArg;

/// Which image model, and how it is held.
#[derive(Args, Clone)]
pub struct ImageArgs {
    /// A checkpoint (.safetensors, .gguf), a diffusers folder, or `ORG/NAME[:FILE]` in the Hugging Face cache. Without it:
    /// a tiny model that draws coloured shapes.
    #[arg(short = 'm', long = "model")]
    pub model: Option<String>,
    /// Where it is computed: `cpu`, `vulkan` (the best GPU), `vulkan:0` (by number), `vulkan:NAME` (by part of its name),
    /// or `auto` (a discrete GPU if there is one that can draw, or else the processor).
    #[arg(long, default_value = "cpu")]
    pub device: DeviceArg,
    /// Show the GPUs that can be used, and end.
    #[arg(long)]
    pub list_devices: bool,
    /// Threads that compute [default: physical cores].
    #[arg(short = 't', long)]
    pub threads: Option<usize>,
    /// Bytes the model may take [default: the machine's memory]; K, M, G are binary.
    #[arg(long, value_parser = bytes)]
    pub budget: Option<ByteSize>,
    /// Read all weights instead of mapping those that need no repacking.
    #[arg(long)]
    pub no_mmap: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub parts: ImageParts,
}

/// What else belongs to an image model, and the images it is to draw.
#[derive(Args, Clone)]
pub struct ImageParts {
    /// The autoencoder, instead of the model's own.
    #[arg(long)]
    pub vae: Option<PathBuf>,
    /// The CLIP-L text encoder, instead of the model's own.
    #[arg(long)]
    pub clip_l: Option<PathBuf>,
    /// The CLIP-G text encoder, instead of the model's own.
    #[arg(long)]
    pub clip_g: Option<PathBuf>,
    /// The T5 text encoder, instead of the model's own.
    #[arg(long)]
    pub t5xxl: Option<PathBuf>,
    /// A tiny autoencoder: faster, with less detail.
    #[arg(long)]
    pub taesd: Option<PathBuf>,
    /// Use the tiny autoencoder for previews only.
    #[arg(long, requires = "taesd")]
    pub taesd_preview_only: bool,
    /// Which weights of a diffusers folder, such as fp16.
    #[arg(long)]
    pub variant: Option<String>,
    /// Width in pixels [default: what the model was trained for].
    #[arg(short = 'W', long, allow_negative_numbers = true)]
    pub width: Option<i64>,
    /// Height in pixels [default: what the model was trained for].
    #[arg(short = 'H', long, allow_negative_numbers = true)]
    pub height: Option<i64>,
    /// How large images become pixels: `auto`, `whole`, or in tiles of so many pixels.
    #[arg(long, default_value = "auto", value_parser = tiling)]
    pub tile: Tiling,
    /// Which networks stay in memory [default: all, if they fit; for one request each while it is used].
    #[arg(long, value_enum)]
    pub residency: Option<ResidencyArg>,
}

/// Which networks stay in memory.
#[derive(Clone, Copy, ValueEnum)]
pub enum ResidencyArg {
    /// All, if they fit.
    Auto,
    /// All.
    Keep,
    /// Each while it is used.
    Phase,
}

impl ImageArgs {
    /// Opens the model.
    ///
    /// # Errors
    /// When a name leads to no file, or the files are no image model.
    pub fn open(&self) -> Result<Arc<ImageModel>, Refusal> {
        let model = match &self.model {
            Some(name) => crate::hub::resolve(name).map_err(|error| Refusal::new("NotFound", error))?,
            None => crate::paint::path()?,
        };
        Ok(Image::open(&self.parts.paths(model))?)
    }

    /// How the model is loaded for images of a size.
    pub fn options(&self, size: Option<(usize, usize)>, from_images: bool) -> ImageOptions {
        self.parts.options(size, from_images, access(self.no_mmap))
    }

    /// An engine for a model, as these arguments want it.
    ///
    /// # Errors
    /// When threads cannot be started, or there is no such device.
    pub fn engine(&self, model: &Arc<ImageModel>) -> Result<Engine, Refusal> {
        if let Some(vulkan) = self.device.open(self.budget)? {
            let budget = vulkan.budget();
            let engine = Engine::on(Device::new(Arc::new(vulkan), budget));
            let refused = engine.plan::<Image>(model, &self.options(None, false)).err();
            match refused.filter(|error| error.class() == "UnsupportedOp") {
                None => return Ok(engine),
                Some(error) if self.device == DeviceArg::Auto => {
                    note(format_args!("{error}; the processor draws instead\n"));
                }
                Some(error) => {
                    let message = format!("images cannot be drawn there yet: {error}; --device cpu draws them");
                    return Err(Refusal::new("UnsupportedOp", message));
                }
            }
        }
        Ok(Engine::cpu(CpuOptions { threads: self.threads, budget: self.budget, ..CpuOptions::default() })?)
    }

    /// Loads what was planned, with a progress bar on stderr if that is a terminal.
    ///
    /// # Errors
    /// When it does not fit, or loading fails.
    pub fn load(engine: &Engine, plan: LoadPlan<Image>, cancel: &Cancel) -> Result<ModelHandle<Image>, Refusal> {
        let mut load = LoadOptions { cancel: cancel.clone(), ..LoadOptions::default() };
        let bar = crate::progress::bytes("loading");
        let shown = bar.clone();
        load.progress = Some(Arc::new(move |done, total| {
            shown.set_length(total.get());
            shown.set_position(done.get());
        }));
        let reservation = engine.reserve(&plan, &Stop { deadline: load.deadline, cancel: cancel.clone() })?;
        let model = engine.load(plan, reservation, &load)?;
        bar.finish_and_clear();
        Ok(model)
    }
}

impl ImageParts {
    /// The files of the model at `model`.
    pub fn paths(&self, model: PathBuf) -> ImagePaths {
        ImagePaths {
            model,
            vae: self.vae.clone(),
            clip_l: self.clip_l.clone(),
            clip_g: self.clip_g.clone(),
            t5: self.t5xxl.clone(),
            taesd: self.taesd.clone(),
            variant: self.variant.clone(),
        }
    }

    /// The image model that a binary for models of both kinds was given; `None` where it may be a text model.
    ///
    /// # Errors
    /// When the name leads to no file, or the files cannot be read.
    pub fn model_of(&self, arguments: &ModelArgs) -> Result<Option<Arc<ImageModel>>, Refusal> {
        if arguments.model.is_none() {
            return Ok(None);
        }
        match Image::open(&self.paths(arguments.path(&Cancel::new())?)) {
            Ok(model) => Ok(Some(model)),
            Err(error) if ["TextModel", "NotAnImageModel"].contains(&&*error.class()) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Width and height of the images, where they are given.
    ///
    /// # Errors
    /// For one without the other where the model has no size to go by, or sides below 0.
    pub fn size(&self, default: Option<(usize, usize)>) -> Result<Option<(usize, usize)>, Refusal> {
        let side = |side: i64| {
            let bad = || Refusal::new("BadParameter", format!("a side of {side} pixels is not possible"));
            usize::try_from(side).map_err(|_| bad())
        };
        Ok(match (self.width, self.height, default) {
            (None, None, default) => default,
            (Some(width), Some(height), _) => Some((side(width)?, side(height)?)),
            (Some(width), None, Some((_, height))) => Some((side(width)?, height)),
            (None, Some(height), Some((width, _))) => Some((width, side(height)?)),
            (Some(one), None, None) | (None, Some(one), None) => Some((side(one)?, side(one)?)),
        })
    }

    /// How the model is loaded for images of a size.
    pub fn options(&self, size: Option<(usize, usize)>, from_images: bool, access: WeightAccess) -> ImageOptions {
        ImageOptions {
            size,
            from_images,
            tiny_autoencoder: self.taesd.is_some() && !self.taesd_preview_only,
            tiling: self.tile,
            residency: match self.residency {
                None | Some(ResidencyArg::Auto) => Residency::Auto,
                Some(ResidencyArg::Keep) => Residency::Keep,
                Some(ResidencyArg::Phase) => Residency::ByPhase,
            },
            access,
            ..ImageOptions::default()
        }
    }
}

fn tiling(text: &str) -> Result<Tiling, String> {
    match text {
        "auto" => Ok(Tiling::Auto),
        "whole" => Ok(Tiling::Whole),
        side => side.parse().map(Tiling::Tiles).map_err(|_| "auto, whole, or pixels".to_owned()),
    }
}

/// What each network of a plan takes, as JSON.
pub fn networks(plan: &LoadPlan<Image>) -> Vec<Value> {
    let json = |network: NetworkMemory| {
        json!({
            "name": network.network.to_string(),
            "weights_bytes": network.weights.get(),
            "mapped_bytes": network.mapped.get(),
            "step_bytes": network.step.get(),
        })
    };
    plan.networks().map(json).collect()
}
