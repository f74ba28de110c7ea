//! What lies in files of image models beside the models: known, and of no use for making pictures.

/// Names that begin like this.
const BEGINNINGS: &[&str] = &[
    // Averages of the weights while training, and what the schedule is made of.
    "model_ema.",
    "betas",
    "alphas_cumprod",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_",
    "logvar",
    "lvlb_weights",
    "denoiser.sigmas",
    "first_stage_model.model_ema.",
    "first_stage_model.loss.",
    "loss.",
    // Marks that say what the model predicts.
    "v_pred",
    "ztsnr",
    // The halves of models that look at pictures or write text.
    "vision_model.",
    "visual_projection.",
    "visual.",
    "decoder.block.",
    "decoder.embed_tokens.",
    "decoder.final_layer_norm.",
    "dec.",
    "lm_head.",
];

/// Names that end like this.
const ENDS: &[&str] = &["embeddings.position_ids", "logit_scale", "encoder.embed_tokens.weight"];

/// Whether a tensor of that name is known to lie beside models.
pub(crate) fn is_beside(name: &str) -> bool {
    BEGINNINGS.iter().any(|begin| name.starts_with(begin)) || ENDS.iter().any(|end| name.ends_with(end))
}
