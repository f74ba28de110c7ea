//! What of an image model is computed at a time: one network, over one size.

use tenure_graph::{Grid, InputId, Plan, PlanError};
use tenure_models::ModelError;
use tenure_models::image::{
    DenoiserConfig, ImageModel, MmditConfig, Part, record_clip, record_mmdit, record_t5, record_taesd_decoder,
    record_taesd_encoder, record_unet, record_vae_decoder, record_vae_encoder,
};

/// A network of an image model, with weights of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Network {
    /// A text encoder.
    Text(Part),
    /// From pixels to latents: the autoencoder's encoder, or the tiny autoencoder's.
    Encoder(Part),
    /// The U-Net or transformer.
    Denoiser,
    /// From latents to pixels: the autoencoder's decoder, or the tiny autoencoder's.
    Decoder(Part),
}

impl Network {
    /// The part of a model that has its weights.
    pub(crate) fn part(self) -> Part {
        match self {
            Network::Text(part) | Network::Encoder(part) | Network::Decoder(part) => part,
            Network::Denoiser => Part::Denoiser,
        }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Network::Text(part) => write!(f, "{part}"),
            Network::Encoder(part) => write!(f, "encoder of the {part}"),
            Network::Denoiser => write!(f, "{}", Part::Denoiser),
            Network::Decoder(part) => write!(f, "decoder of the {part}"),
        }
    }
}

/// A network over one size.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Work {
    /// One chunk of a prompt.
    Clip(Part),
    /// A prompt of so many tokens.
    T5 {
        tokens: usize,
    },
    Encode {
        part: Part,
        grid: Grid,
    },
    /// With prompts of so many tokens, without some of its blocks.
    Denoise {
        grid: Grid,
        tokens: usize,
        without: Vec<usize>,
    },
    Decode {
        part: Part,
        grid: Grid,
    },
}

impl Work {
    /// One image of so many latents across and down, decoded.
    pub(crate) fn decode(part: Part, width: usize, height: usize) -> Self {
        Work::Decode { part, grid: Grid { images: 1, height: height as u32, width: width as u32 } }
    }

    /// Whose weights it takes.
    pub(crate) fn network(&self) -> Network {
        match *self {
            Work::Clip(part) => Network::Text(part),
            Work::T5 { .. } => Network::Text(Part::T5),
            Work::Encode { part, .. } => Network::Encoder(part),
            Work::Denoise { .. } => Network::Denoiser,
            Work::Decode { part, .. } => Network::Decoder(part),
        }
    }

    /// The part of the model that has them.
    pub(crate) fn part(&self) -> Part {
        self.network().part()
    }

    /// The recorded step.
    pub(crate) fn record(&self, model: &ImageModel) -> Result<Plan, ModelError> {
        let (weights, config) = (model.require(self.part())?, model.config());
        match self {
            Work::Clip(part) => {
                let missing = || PlanError::MissingTensor { name: part.to_string() };
                record_clip(weights, config.clip(*part).ok_or_else(missing)?, 1)
            }
            &Work::T5 { tokens } => record_t5(weights, tokens, 1),
            &Work::Encode { part: Part::Taesd, grid } => record_taesd_encoder(weights, grid),
            &Work::Encode { grid, .. } => record_vae_encoder(weights, grid),
            Work::Denoise { grid, tokens, without } => match &config.denoiser {
                DenoiserConfig::Unet(unet) => record_unet(weights, unet, *grid, *tokens),
                DenoiserConfig::Mmdit(mmdit) => {
                    let config = MmditConfig { heads: mmdit.heads, skipped: without.clone() };
                    record_mmdit(weights, &config, *grid, *tokens)
                }
            },
            &Work::Decode { part: Part::Taesd, grid } => record_taesd_decoder(weights, grid),
            &Work::Decode { grid, .. } => record_vae_decoder(weights, grid),
        }
    }
}

/// How many columns an input of a plan has; none where it takes no such.
pub(crate) fn columns(plan: &Plan, id: InputId) -> usize {
    plan.input(id).map_or(0, |value| value.cols)
}
