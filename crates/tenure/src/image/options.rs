//! What a caller may choose.

use std::sync::Arc;

use tenure_device::Cancel;
use tenure_sampling::diffusion::{Guidance, Method, NoiseKind, SigmaRule, Spacing};
use tenure_tensor::ByteSize;
use tenure_tokenizer::Emphasis;

use crate::image::picture::{Mask, Picture};
use crate::image::work::Network;
use crate::weights::WeightAccess;

/// How an image model is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageOptions {
    /// Width and height of the largest image in pixels; `None`: what the family was trained for. Memory is taken for it
    /// once; any image whose steps fit into that memory can be drawn.
    pub size: Option<(usize, usize)>,
    /// Whether images can be changed, not only drawn anew: the encoder of the autoencoder is loaded too.
    pub from_images: bool,
    /// Whether images are made with the tiny autoencoder where there is another too: faster, with less detail. Otherwise
    /// it makes previews.
    pub tiny_autoencoder: bool,
    /// How the latents of a large image become pixels.
    pub tiling: Tiling,
    /// Which parts stay in memory.
    pub residency: Residency,
    /// How weights are reached that the device can use as the file has them.
    pub access: WeightAccess,
    /// Chunks of 77 CLIP tokens of the longest prompt that room is planned for, 1 to 64 ([`Image::chunks`](crate::Image)
    /// counts them). There is room for more where decoding, or another network, takes more than the denoiser.
    pub prompt_chunks: usize,
}

impl Default for ImageOptions {
    fn default() -> Self {
        ImageOptions {
            size: None,
            from_images: true,
            tiny_autoencoder: false,
            tiling: Tiling::Auto,
            residency: Residency::Auto,
            access: WeightAccess::Mapped,
            prompt_chunks: 4,
        }
    }
}

/// How the latents of a large image become pixels, and pixels latents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tiling {
    /// At once, if that fits into what is free; or else in the largest tiles that do.
    #[default]
    Auto,
    /// At once.
    Whole,
    /// In square tiles of so many pixels, which overlap by a quarter; a multiple of 64, at least 128.
    Tiles(usize),
}

/// Which parts of a model stay in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// All, if they fit into what is free; or else each while it is used.
    #[default]
    Auto,
    /// All.
    Keep,
    /// Each while it is used: the text encoders, then the denoiser, then the autoencoder. What is taken of the budget is
    /// the most that one of these phases takes; each image reads the weights again.
    ByPhase,
}

/// What to draw.
#[derive(Clone, Debug)]
pub struct ImageRequest {
    /// What is to be seen, with emphasis as AUTOMATIC1111's web UI has it ([`tenure_tokenizer::Prompt`]).
    pub prompt: String,
    /// What is not.
    pub negative: String,
    /// Width and height in pixels, multiples of 8 (SD 3: of 16); `None`: what the family was trained for, or the size
    /// of [`ImageRequest::init`].
    pub size: Option<(usize, usize)>,
    /// Steps; `None`: what the family wants. So with all that follow.
    pub steps: Option<usize>,
    /// How strongly the prompt leads. Models that are told it (latent consistency models with `time_cond_proj_dim`) take
    /// the scale as it stands and never see the negative prompt.
    pub guidance: Option<Guidance>,
    /// The sampler.
    pub method: Option<Method>,
    /// Where the timesteps lie.
    pub spacing: Option<Spacing>,
    /// Where the sigmas lie.
    pub sigmas: Option<SigmaRule>,
    /// The shift of a flow model's schedule.
    pub shift: Option<f64>,
    /// One image for each seed; [`ImageRequest::MOST_IMAGES`] at most.
    pub seeds: Vec<u64>,
    /// Whose random numbers the seeds stand for.
    pub noise: NoiseKind,
    /// What the weights in prompts do.
    pub emphasis: Emphasis,
    /// An image to begin with.
    pub init: Option<Init>,
    /// The noise to begin with instead of that of the seeds: standard normal numbers, `[images, channels, height / 8,
    /// width / 8]`.
    pub noise_latents: Option<Vec<f32>>,
    /// Estimates of the images are shown after every so many steps: by the tiny autoencoder in full size, if the model has
    /// one; or else one pixel for each latent, an eighth of the size, by a linear map that is found with the model's own
    /// decoder before the first image (it decodes a few of 128 by 128 pixels).
    pub preview_every: Option<usize>,
    /// Is told how loading goes, where networks are brought in while images are drawn ([`Residency::ByPhase`]).
    pub loading: Option<Loading>,
    /// Ends the drawing early.
    pub cancel: Cancel,
}

impl ImageRequest {
    /// The most images of one request.
    pub const MOST_IMAGES: usize = 256;

    /// An image of `prompt` as the family wants it, with seed 0.
    pub fn new(prompt: impl Into<String>) -> Self {
        ImageRequest {
            prompt: prompt.into(),
            negative: String::new(),
            size: None,
            steps: None,
            guidance: None,
            method: None,
            spacing: None,
            sigmas: None,
            shift: None,
            seeds: vec![0],
            noise: NoiseKind::TorchCpu,
            emphasis: Emphasis::default(),
            init: None,
            noise_latents: None,
            preview_every: None,
            loading: None,
            cancel: Cancel::new(),
        }
    }
}

/// Whom to tell how loading a network goes: which, bytes that are there, and bytes in all. Called from several threads, by
/// [`Drawing::next`](crate::Drawing::next).
#[derive(Clone)]
pub struct Loading(Arc<dyn Fn(Network, ByteSize, ByteSize) + Send + Sync>);

impl Loading {
    /// Tells `told`.
    pub fn new(told: impl Fn(Network, ByteSize, ByteSize) + Send + Sync + 'static) -> Self {
        Loading(Arc::new(told))
    }

    pub(crate) fn tell(&self, network: Network, done: ByteSize, total: ByteSize) {
        (self.0)(network, done, total);
    }
}

impl std::fmt::Debug for Loading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Loading")
    }
}

/// An image to begin with.
#[derive(Clone, Debug)]
pub struct Init {
    /// The image. Its size is the result's.
    pub picture: Picture,
    /// How much of it is drawn anew, above 0 and up to 1: the share of the steps that is taken.
    pub strength: f64,
    /// Where it is drawn anew; `None`: everywhere. Latents take the mean of their 8 by 8 pixels; models that were made for
    /// masks are told, as diffusers does it, whether their first pixel is at least one half.
    pub mask: Option<Mask>,
}
