//! What an image model's tensors and settings say of it, as plain values.

use std::path::PathBuf;

use tenure_graph::{Activation, WeightCatalog};
use tenure_tensor::codec;
use tenure_weights::WeightStore;
use tenure_weights::diffusers::Settings;

use crate::error::ModelError;
use crate::image::family::{ImageFamily, UNET_CONTEXT};
use crate::image::part::{Part, PartWeights};
use crate::image::unet::TOLD_GUIDANCE;
use crate::image::{ClipConfig, ClipTaken, UnetConfig};

/// Everything of a model that is not in its weights, recognised once. A caller may change what it knows better.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageConfig {
    /// The family.
    pub family: ImageFamily,
    /// What the denoiser predicts.
    pub prediction: Prediction,
    /// Whether the denoiser takes a mask and the masked picture's latents behind the sample.
    pub inpainting: bool,
    /// Width and height in pixels that the model was trained for, where its files say so.
    pub size: Option<(usize, usize)>,
    /// Channels of latents.
    pub latent_channels: usize,
    /// How the autoencoder's latents become the denoiser's: (z - shift) * scale.
    pub latent_scale: LatentScale,
    /// The CLIP-L text encoder, in families that have one.
    pub clip_l: Option<ClipConfig>,
    /// The CLIP-G text encoder, in families that have one.
    pub clip_g: Option<ClipConfig>,
    /// The CLIP-H text encoder, in the family that has one.
    pub clip_h: Option<ClipConfig>,
    /// The T5 encoder, where there is one.
    pub t5: Option<T5Facts>,
    /// The denoiser.
    pub denoiser: DenoiserConfig,
    /// What the model says of its schedule.
    pub schedule: ScheduleFacts,
}

impl ImageConfig {
    /// The configuration of the CLIP text encoder `part`.
    pub fn clip(&self, part: Part) -> Option<&ClipConfig> {
        match part {
            Part::ClipL => self.clip_l.as_ref(),
            Part::ClipG => self.clip_g.as_ref(),
            Part::ClipH => self.clip_h.as_ref(),
            Part::T5 | Part::Denoiser | Part::Vae | Part::Taesd => None,
        }
    }

    /// Whether the denoiser is told the guidance, and needs no second answer to a negative prompt.
    pub fn is_told_guidance(&self) -> bool {
        match &self.denoiser {
            DenoiserConfig::Unet(unet) => unet.guidance.is_some(),
            DenoiserConfig::Mmdit(_) => false,
        }
    }
}

/// What a denoiser predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prediction {
    /// The noise.
    Noise,
    /// signal * noise - noise level * image (Salimans & Ho 2022, arXiv:2202.00512).
    V,
    /// noise - image, along a straight path (Lipman et al. 2022, arXiv:2210.02747).
    Flow,
    /// The image (SDXL-Lightning of one step).
    Sample,
}

/// How an autoencoder's latents become a denoiser's: (z - shift) * scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentScale {
    /// The factor.
    pub scale: f32,
    /// What is taken off before.
    pub shift: f32,
}

/// What is special to a kind of denoiser.
#[derive(Clone, Debug, PartialEq)]
pub enum DenoiserConfig {
    /// A U-Net.
    Unet(UnetConfig),
    /// A transformer of Stable Diffusion 3.
    Mmdit(MmditFacts),
}

/// A transformer of Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmditFacts {
    /// Joint blocks.
    pub blocks: usize,
    /// How many of them, the first, attend to the picture a second time.
    pub dual_blocks: usize,
    /// Columns of every block.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Pixels of a latent on one side of a patch.
    pub patch: usize,
    /// Patches on one side of the table of positions.
    pub positions: usize,
    /// Columns of the prompt.
    pub context: usize,
    /// Columns of what stands for the whole prompt.
    pub pooled: usize,
    /// Whether queries and keys are normed.
    pub qk_norm: bool,
}

/// A T5 encoder (Raffel et al. 2019, arXiv:1910.10683).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct T5Facts {
    /// Layers.
    pub layers: usize,
    /// Columns of every layer.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Relative positions that have a bias of their own.
    pub buckets: usize,
    /// The distance from which on all positions share the last bucket.
    pub max_distance: usize,
    /// Added to the mean square by the norms.
    pub eps: f32,
}

/// What a folder's `scheduler_config.json` says, or a mark in a file; `None` for what they do not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScheduleFacts {
    /// The scheduler's class, such as `PNDMScheduler`.
    pub class: Option<String>,
    /// Whether the step behind the last has no noise at all (DDIM).
    pub set_alpha_to_one: Option<bool>,
    /// Added to every timestep of the spacing `leading`.
    pub steps_offset: Option<usize>,
    /// How betas grow, such as `scaled_linear`.
    pub beta_schedule: Option<String>,
    /// The first beta.
    pub beta_start: Option<f64>,
    /// The last beta.
    pub beta_end: Option<f64>,
    /// Timesteps of training.
    pub train_timesteps: Option<usize>,
    /// Whether betas are scaled so that the last timestep has no signal.
    pub zero_terminal_snr: Option<bool>,
    /// The shift of a flow schedule.
    pub shift: Option<f64>,
}

/// The parts a configuration is worked out of.
pub(crate) struct Parts<'p> {
    pub(crate) find: &'p dyn Fn(Part) -> Option<&'p PartWeights>,
    /// The folder's `scheduler_config.json`.
    pub(crate) scheduler: Option<&'p Settings>,
}

impl Parts<'_> {
    /// The configuration, once every part is known to be there.
    pub(crate) fn config(&self, family: ImageFamily) -> Result<ImageConfig, ModelError> {
        let Some(denoiser) = (self.find)(Part::Denoiser) else {
            return Err(ModelError::MissingPart { part: Part::Denoiser, path: PathBuf::new(), family: Some(family) });
        };
        let (takes, latent_channels, kind) = match family {
            ImageFamily::Sd1 | ImageFamily::Sd2 | ImageFamily::Sdxl => {
                let kind = DenoiserConfig::Unet(unet(family, denoiser)?);
                (denoiser.need_dim("conv_in.weight", 1)?, denoiser.need_dim("conv_out.weight", 0)?, kind)
            }
            ImageFamily::Sd3Medium | ImageFamily::Sd35Medium | ImageFamily::Sd35Large => {
                let facts = mmdit(denoiser)?;
                let pixels = facts.patch.saturating_mul(facts.patch).max(1);
                let gives = denoiser.need_dim("proj_out.weight", 0)? / pixels;
                (denoiser.need_dim("pos_embed.proj.weight", 1)?, gives, DenoiserConfig::Mmdit(facts))
            }
        };
        let inpainting = takes != latent_channels;
        if latent_channels == 0 || inpainting && Some(takes) != latent_channels.checked_mul(2).map(|n| n + 1) {
            return Err(unsupported("a number of input channels of the denoiser", &takes.to_string()));
        }
        self.check_widths(family, denoiser, latent_channels)?;
        let clip = |part| (self.find)(part).map(|weights| clip(family, weights)).transpose();
        Ok(ImageConfig {
            family,
            prediction: self.prediction(family, denoiser, inpainting)?,
            inpainting,
            size: size(denoiser)?,
            latent_channels,
            latent_scale: self.latent_scale(family)?,
            clip_l: clip(Part::ClipL)?,
            clip_g: clip(Part::ClipG)?,
            clip_h: clip(Part::ClipH)?,
            t5: (self.find)(Part::T5).map(t5).transpose()?,
            denoiser: kind,
            schedule: match self.scheduler {
                Some(settings) => schedule(settings)?,
                None => {
                    let zero = denoiser.store().find("ztsnr").map(|_| true);
                    ScheduleFacts { zero_terminal_snr: zero, ..ScheduleFacts::default() }
                }
            },
        })
    }

    /// That the parts are of one model: what one gives is as wide as what the other takes.
    fn check_widths(&self, family: ImageFamily, denoiser: &PartWeights, latents: usize) -> Result<(), ModelError> {
        let width = |part| match (self.find)(part) {
            Some(clip) => clip.need_dim("embeddings.token_embedding.weight", 1),
            None => Ok(0),
        };
        let disagree = |part: Part, what: &'static str, got: usize, want: usize| {
            let path = (self.find)(part).map_or(denoiser.path(), PartWeights::path).to_owned();
            if got == want { Ok(()) } else { Err(ModelError::PartsDisagree { part, path, family, what, got, want }) }
        };
        let columns = "columns of the prompt";
        match family {
            ImageFamily::Sd1 => {
                disagree(Part::ClipL, columns, width(Part::ClipL)?, denoiser.need_dim(UNET_CONTEXT, 1)?)?
            }
            ImageFamily::Sd2 => {
                disagree(Part::ClipH, columns, width(Part::ClipH)?, denoiser.need_dim(UNET_CONTEXT, 1)?)?
            }
            ImageFamily::Sdxl => {
                let both = width(Part::ClipL)?.saturating_add(width(Part::ClipG)?);
                disagree(Part::ClipG, columns, both, denoiser.need_dim(UNET_CONTEXT, 1)?)?;
            }
            ImageFamily::Sd3Medium | ImageFamily::Sd35Medium | ImageFamily::Sd35Large => {
                let both = width(Part::ClipL)?.saturating_add(width(Part::ClipG)?);
                let pooled = denoiser.need_dim("time_text_embed.text_embedder.linear_1.weight", 1)?;
                disagree(Part::ClipG, "columns of the pooled prompt", both, pooled)?;
                let context = denoiser.need_dim("context_embedder.weight", 1)?;
                if let Some(t5) = (self.find)(Part::T5) {
                    disagree(Part::T5, columns, t5.need_dim("shared.weight", 1)?, context)?;
                }
            }
        }
        if let Some(vae) = (self.find)(Part::Vae) {
            disagree(Part::Vae, "channels of latents", vae.need_dim("decoder.conv_in.weight", 1)?, latents)?;
        }
        if let Some(taesd) = (self.find)(Part::Taesd) {
            disagree(Part::Taesd, "channels of latents", taesd.need_dim("decoder.layers.0.weight", 1)?, latents)?;
        }
        Ok(())
    }

    /// What the denoiser predicts: by the folder, by what the file says, by marks, or by the norm that gives it away.
    fn prediction(
        &self,
        family: ImageFamily,
        denoiser: &PartWeights,
        inpainting: bool,
    ) -> Result<Prediction, ModelError> {
        if family.is_mmdit() {
            return Ok(Prediction::Flow);
        }
        if let Some(written) = self.scheduler.map(|settings| settings.str("prediction_type")).transpose()?.flatten() {
            return match written {
                "epsilon" => Ok(Prediction::Noise),
                "v_prediction" => Ok(Prediction::V),
                "sample" => Ok(Prediction::Sample),
                other => Err(unsupported("a prediction_type", other)),
            };
        }
        if let Some(found) = written_prediction(denoiser.store()) {
            return Ok(found);
        }
        match family {
            // Its folder does not say so, and nothing else is known to be.
            ImageFamily::Sd2 if self.scheduler.is_none() && !inpainting => {
                let spread = spread(denoiser)?.unwrap_or(0.0);
                Ok(if spread > V_SPREAD { Prediction::V } else { Prediction::Noise })
            }
            _ => Ok(Prediction::Noise),
        }
    }

    fn latent_scale(&self, family: ImageFamily) -> Result<LatentScale, ModelError> {
        let published = match family {
            ImageFamily::Sd1 | ImageFamily::Sd2 => LatentScale { scale: 0.18215, shift: 0.0 },
            ImageFamily::Sdxl => LatentScale { scale: 0.13025, shift: 0.0 },
            ImageFamily::Sd3Medium | ImageFamily::Sd35Medium | ImageFamily::Sd35Large => {
                LatentScale { scale: 1.5305, shift: 0.0609 }
            }
        };
        let Some(settings) = (self.find)(Part::Vae).and_then(|vae| vae.settings.as_ref()) else { return Ok(published) };
        if settings.has("latents_mean") || settings.has("latents_std") {
            return Err(unsupported("an autoencoder with a mean for each channel", "latents_mean"));
        }
        let scale = settings.f64("scaling_factor")?.map_or(published.scale, |scale| scale as f32);
        let shift = if settings.has("scaling_factor") { 0.0 } else { published.shift };
        let shift = settings.f64("shift_factor")?.map_or(shift, |shift| shift as f32);
        if !(scale.is_finite() && scale > 0.0 && shift.is_finite()) {
            let value = format!("{scale}, {shift}");
            return Err(ModelError::BadHyperparameter { key: "scaling_factor, shift_factor".to_owned(), value });
        }
        Ok(LatentScale { scale, shift })
    }
}

/// The norm whose bias is spread wider in those SD 2 models that predict v.
const V_NORM: &str = ".transformer_blocks.0.norm1.bias";
/// Its standard deviation, from which on a model is taken to predict v.
const V_SPREAD: f64 = 0.09;

/// What the file's own metadata or marks say.
fn written_prediction(store: &WeightStore) -> Option<Prediction> {
    if store.find("v_pred").is_some() {
        return Some(Prediction::V);
    }
    match store.text_metadata()?.value("modelspec.prediction_type")?.to_ascii_lowercase().as_str() {
        "v" | "v_prediction" | "v-prediction" => Some(Prediction::V),
        "epsilon" | "eps" => Some(Prediction::Noise),
        _ => None,
    }
}

/// The size that the file's own metadata or the folder's settings say.
fn size(denoiser: &PartWeights) -> Result<Option<(usize, usize)>, ModelError> {
    let written = denoiser.store().text_metadata().and_then(|metadata| metadata.value("modelspec.resolution"));
    let sides = written.and_then(|text| text.split_once('x'));
    if let Some((Ok(width), Ok(height))) = sides.map(|(width, height)| (width.parse(), height.parse())) {
        return Ok(Some((width, height)));
    }
    let latents = denoiser.settings.as_ref().map(|settings| settings.usize("sample_size")).transpose()?.flatten();
    let side = latents.and_then(|side| side.checked_mul(8));
    Ok(side.map(|side| (side, side)))
}

/// The standard deviation of the last transformer's first bias.
fn spread(denoiser: &PartWeights) -> Result<Option<f64>, ModelError> {
    let last = denoiser.tensors().filter(|spec| spec.name.starts_with("up_blocks.") && spec.name.ends_with(V_NORM));
    // Levels and places have one digit here.
    let Some(spec) = last.last().filter(|spec| spec.shape.elements().is_some_and(|n| (1..=1 << 16).contains(&n)))
    else {
        return Ok(None);
    };
    let mut bytes = vec![0; spec.bytes().map_or(0, |bytes| bytes.get() as usize)];
    denoiser.read_at(&spec.name, 0, &mut bytes)?;
    let mut values = vec![0.0; spec.shape.elements().unwrap_or(0)];
    if codec::dequantize(spec.dtype, &bytes, &mut values).is_err() {
        return Ok(None);
    }
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let squares = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>();
    Ok(Some((squares / n).sqrt()))
}

/// Heads of `width` columns, 64 each; at least one.
const fn heads_of_64(width: usize) -> usize {
    if width < 128 { 1 } else { width / 64 }
}

fn clip(family: ImageFamily, weights: &PartWeights) -> Result<ClipConfig, ModelError> {
    let width = weights.need_dim("embeddings.token_embedding.weight", 1)?;
    let settings = weights.settings.as_ref();
    let heads = settings.map(|s| s.usize("num_attention_heads")).transpose()?.flatten();
    let heads = heads.unwrap_or(heads_of_64(width));
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(bad("num_attention_heads", heads));
    }
    let activation = match settings.map(|s| s.str("hidden_act")).transpose()?.flatten() {
        Some("quick_gelu") => Activation::QuickGelu,
        Some("gelu") => Activation::Gelu,
        Some(other) => return Err(unsupported("a function between the products of a text encoder", other)),
        None if weights.part() == Part::ClipL => Activation::QuickGelu,
        None => Activation::Gelu,
    };
    let taken = match family {
        ImageFamily::Sd1 | ImageFamily::Sd2 => ClipTaken::Last,
        ImageFamily::Sdxl | ImageFamily::Sd3Medium | ImageFamily::Sd35Medium | ImageFamily::Sd35Large => {
            ClipTaken::Penultimate
        }
    };
    Ok(ClipConfig { heads, activation, taken })
}

fn unet(family: ImageFamily, denoiser: &PartWeights) -> Result<UnetConfig, ModelError> {
    let levels = denoiser.count("down_blocks.", ".resnets.0.conv1.weight");
    let widths = (0..levels).map(|i| denoiser.need_dim(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 0));
    let widths = widths.collect::<Result<Vec<_>, _>>()?;
    // diffusers calls the number of heads so, for want of a better past.
    let written = match &denoiser.settings {
        Some(settings) => match settings.usizes("num_attention_heads")? {
            Some(heads) => Some(heads),
            None => settings.usizes("attention_head_dim")?,
        },
        None => None,
    };
    let heads = match written {
        Some(one) if one.len() == 1 => one.repeat(levels),
        Some(each) if each.len() == levels => each,
        Some(other) => return Err(bad("attention_head_dim", other.len())),
        None => match family {
            ImageFamily::Sd1 => vec![8; levels],
            ImageFamily::Sd2
            | ImageFamily::Sdxl
            | ImageFamily::Sd3Medium
            | ImageFamily::Sd35Medium
            | ImageFamily::Sd35Large => widths.iter().map(|&width| heads_of_64(width)).collect(),
        },
    };
    let fit = |(level, (&heads, &width)): (usize, (&usize, &usize))| {
        let attends =
            level + 1 == levels || denoiser.find(&format!("down_blocks.{level}.attentions.0.norm.weight")).is_some();
        heads > 0 && (!attends || width.is_multiple_of(heads))
    };
    if let Some(wrong) = heads.iter().zip(&widths).enumerate().find(|&pair| !fit(pair)) {
        return Err(bad("attention_head_dim", *wrong.1.0));
    }
    let told = format!("{TOLD_GUIDANCE}.weight");
    let guidance = denoiser.find(&told).map(|_| denoiser.need_dim(&told, 1)).transpose()?;
    Ok(UnetConfig { heads, guidance })
}

fn mmdit(denoiser: &PartWeights) -> Result<MmditFacts, ModelError> {
    let width = denoiser.need_dim("pos_embed.proj.weight", 0)?;
    let rows = denoiser.need_dim("pos_embed.pos_embed", 1)?;
    let positions = rows.isqrt();
    if positions * positions != rows {
        return Err(denoiser.bad("pos_embed.pos_embed"));
    }
    let heads = denoiser.settings.as_ref().map(|s| s.usize("num_attention_heads")).transpose()?.flatten();
    let heads = match heads.or(denoiser.dim("transformer_blocks.0.attn.norm_q.weight", 0).map(|dim| width / dim.max(1)))
    {
        Some(heads) => heads,
        None => heads_of_64(width),
    };
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(bad("num_attention_heads", heads));
    }
    Ok(MmditFacts {
        blocks: denoiser.count("transformer_blocks.", ".attn.to_q.weight"),
        dual_blocks: denoiser.count("transformer_blocks.", ".attn2.to_q.weight"),
        width,
        heads,
        patch: denoiser.need_dim("pos_embed.proj.weight", 3)?,
        positions,
        context: denoiser.need_dim("context_embedder.weight", 1)?,
        pooled: denoiser.need_dim("time_text_embed.text_embedder.linear_1.weight", 1)?,
        qk_norm: denoiser.find("transformer_blocks.0.attn.norm_q.weight").is_some(),
    })
}

fn t5(weights: &PartWeights) -> Result<T5Facts, ModelError> {
    const BIAS: &str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let settings = weights.settings.as_ref();
    let distance = settings.map(|s| s.usize("relative_attention_max_distance")).transpose()?.flatten();
    let eps = settings.map(|s| s.f64("layer_norm_epsilon")).transpose()?.flatten();
    let heads = weights.need_dim(BIAS, 1)?;
    if heads == 0 || !weights.need_dim("encoder.block.0.layer.0.SelfAttention.q.weight", 0)?.is_multiple_of(heads) {
        return Err(weights.bad(BIAS));
    }
    Ok(T5Facts {
        layers: weights.count("encoder.block.", ".layer.0.SelfAttention.q.weight"),
        width: weights.need_dim("shared.weight", 1)?,
        heads,
        vocab: weights.need_dim("shared.weight", 0)?,
        buckets: weights.need_dim(BIAS, 0)?,
        max_distance: distance.unwrap_or(128),
        eps: eps.map_or(1e-6, |eps| eps as f32),
    })
}

fn schedule(settings: &Settings) -> Result<ScheduleFacts, ModelError> {
    let text = |key| settings.str(key).map(|text| text.map(str::to_owned));
    Ok(ScheduleFacts {
        class: text("_class_name")?,
        set_alpha_to_one: settings.bool("set_alpha_to_one")?,
        steps_offset: settings.usize("steps_offset")?,
        beta_schedule: text("beta_schedule")?,
        beta_start: settings.f64("beta_start")?,
        beta_end: settings.f64("beta_end")?,
        train_timesteps: settings.usize("num_train_timesteps")?,
        zero_terminal_snr: settings.bool("rescale_betas_zero_snr")?,
        shift: settings.f64("shift")?,
    })
}

fn unsupported(what: &'static str, value: &str) -> ModelError {
    ModelError::UnsupportedFeature { what, value: value.chars().take(64).collect() }
}

fn bad(key: &str, value: usize) -> ModelError {
    ModelError::BadHyperparameter { key: key.to_owned(), value: value.to_string() }
}
