//! Which family of models a denoiser is of, and what is none that Tenure knows.

use std::fmt;

use tenure_graph::WeightCatalog;
use tenure_weights::WeightStore;

use crate::error::ModelError;
use crate::image::part::PartWeights;

/// A family of image models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageFamily {
    /// Stable Diffusion 1.
    Sd1,
    /// Stable Diffusion 2.
    Sd2,
    /// Stable Diffusion XL.
    Sdxl,
    /// Stable Diffusion 3 Medium.
    Sd3Medium,
    /// Stable Diffusion 3.5 Medium.
    Sd35Medium,
    /// Stable Diffusion 3.5 Large.
    Sd35Large,
}

impl ImageFamily {
    /// Whether the denoiser is a transformer and not a U-Net.
    pub const fn is_mmdit(self) -> bool {
        match self {
            ImageFamily::Sd1 | ImageFamily::Sd2 | ImageFamily::Sdxl => false,
            ImageFamily::Sd3Medium | ImageFamily::Sd35Medium | ImageFamily::Sd35Large => true,
        }
    }

    /// The family of `denoiser`, by its tensors and their shapes.
    pub(crate) fn of(denoiser: &PartWeights) -> Result<Self, ModelError> {
        let unsupported = |name: &str| unsupported(denoiser, name);
        if denoiser.find("transformer_blocks.0.attn.add_q_proj.weight").is_some() {
            if denoiser.find("pos_embed.pos_embed").is_none() {
                return Err(unsupported("a transformer without a table of positions"));
            }
            if denoiser.find("transformer_blocks.0.attn2.to_q.weight").is_some() {
                return Ok(ImageFamily::Sd35Medium);
            }
            let norm = denoiser.find("transformer_blocks.0.attn.norm_q.weight").is_some();
            return Ok(if norm { ImageFamily::Sd35Large } else { ImageFamily::Sd3Medium });
        }
        if denoiser.find("conv_in.weight").is_none() && denoiser.find("time_embedding.linear_1.weight").is_none() {
            return Err(unsupported("not a known denoiser"));
        }
        let context = denoiser.need_dim(UNET_CONTEXT, 1)?;
        if let Some(added) = denoiser.dim("add_embedding.linear_1.weight", 1) {
            // Five numbers beside the prompt, where SDXL has six, and OpenCLIP's encoder alone.
            let refiner = context == 1280 && added == 2560;
            return if refiner { Err(unsupported("the refiner of SDXL")) } else { Ok(ImageFamily::Sdxl) };
        }
        Ok(match context {
            768 => ImageFamily::Sd1,
            1024 => ImageFamily::Sd2,
            // Other sizes than the published: SD 2 has matrices where SD 1 has kernels of one pixel.
            _ if denoiser.rank_in_file(UNET_PROJECTION) == Some(2) => ImageFamily::Sd2,
            _ => ImageFamily::Sd1,
        })
    }
}

impl fmt::Display for ImageFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImageFamily::Sd1 => "Stable Diffusion 1",
            ImageFamily::Sd2 => "Stable Diffusion 2",
            ImageFamily::Sdxl => "Stable Diffusion XL",
            ImageFamily::Sd3Medium => "Stable Diffusion 3 Medium",
            ImageFamily::Sd35Medium => "Stable Diffusion 3.5 Medium",
            ImageFamily::Sd35Large => "Stable Diffusion 3.5 Large",
        })
    }
}

/// The U-Net's matrix of keys over the prompt in the middle, where every such model has one.
pub(crate) const UNET_CONTEXT: &str = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";

const UNET_PROJECTION: &str = "mid_block.attentions.0.proj_in.weight";

/// Where a name is looked at.
enum Mark {
    /// At its beginning, behind `model.diffusion_model.` if that stands before it.
    Begins(&'static str),
    Contains(&'static str),
    Is(&'static str),
}

/// Tensors that other models have, and what those models are.
const OTHERS: &[(Mark, &str)] = &[
    (Mark::Contains(".lora_down."), "a LoRA"),
    (Mark::Contains(".lora_up."), "a LoRA"),
    (Mark::Contains(".lora_A."), "a LoRA"),
    (Mark::Contains("lora_unet_"), "a LoRA"),
    (Mark::Is("emb_params"), "a textual inversion"),
    (Mark::Begins("control_model."), "a ControlNet"),
    (Mark::Begins("controlnet_cond_embedding."), "a ControlNet"),
    (Mark::Begins("controlnet_blocks."), "a ControlNet"),
    (Mark::Begins("input_hint_block."), "a ControlNet"),
    (Mark::Begins("zero_convs."), "a ControlNet"),
    (Mark::Begins("distilled_guidance_layer."), "Chroma"),
    (Mark::Begins("double_stream_modulation_img."), "Flux 2"),
    (Mark::Begins("double_blocks."), "Flux"),
    (Mark::Begins("single_transformer_blocks."), "Flux"),
    (Mark::Contains(".time_stack."), "Stable Video Diffusion"),
    (Mark::Contains(".time_mixer."), "Stable Video Diffusion"),
    (Mark::Contains(".temporal_transformer_blocks."), "Stable Video Diffusion"),
    (Mark::Contains(".motion_modules."), "AnimateDiff"),
    (Mark::Begins("clip_txt_mapper."), "Stable Cascade"),
    (Mark::Begins("double_layers."), "AuraFlow"),
    (Mark::Begins("cap_embedder."), "Lumina or Z-Image"),
    (Mark::Begins("patchify_proj."), "LTX-Video"),
    (Mark::Begins("adaln_single."), "PixArt"),
    (Mark::Begins("patch_embedding."), "Wan"),
    (Mark::Is("edm_mean"), "Playground 2.5"),
    (Mark::Is("edm_vpred.sigma_max"), "CosXL"),
    (Mark::Begins("label_emb.weight"), "the upscaler of Stable Diffusion 2"),
    (Mark::Begins("class_embedding."), "a U-Net with classes"),
];

/// What model a file holds, if it is one that is known and not supported.
pub(crate) fn other_model(store: &WeightStore) -> Option<&'static str> {
    let has = |mark: &Mark| {
        store.tensors().any(|tensor| {
            let name = tensor.spec().name.as_str();
            match mark {
                Mark::Begins(begin) => name.strip_prefix("model.diffusion_model.").unwrap_or(name).starts_with(begin),
                Mark::Contains(part) => name.contains(part),
                Mark::Is(whole) => name == *whole,
            }
        })
    };
    OTHERS.iter().find(|(mark, _)| has(mark)).map(|(_, name)| *name)
}

/// Names that language models begin with.
const TEXT: &[&str] =
    &["blk.0.", "token_embd.", "model.layers.0.", "model.embed_tokens.", "transformer.h.0.", "lm_head."];

/// What a file says of itself, if it holds a language model.
pub(crate) fn text_model(store: &WeightStore) -> Option<String> {
    let text = store.tensors().any(|tensor| TEXT.iter().any(|begin| tensor.spec().name.starts_with(begin)));
    text.then(|| architecture(store).unwrap_or_default())
}

/// The `general.architecture` of a GGUF file, shortened.
pub(crate) fn architecture(store: &WeightStore) -> Option<String> {
    let written = store.metadata()?.opt_str("general.architecture").ok()??;
    Some(written.chars().take(64).collect())
}

fn unsupported(denoiser: &PartWeights, name: &str) -> ModelError {
    ModelError::UnsupportedFamily { path: denoiser.path().to_owned(), name: name.to_owned() }
}
