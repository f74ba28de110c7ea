//! CLIP's text encoders: the names of transformers, of OpenCLIP, and what stable-diffusion.cpp makes of the latter.

use super::rule::{Rule, renamed, same, third, transposed};

/// The names of transformers, without a `text_model.` before them.
pub(super) const TRANSFORMERS: &[Rule] = &[
    same("embeddings.token_embedding.weight"),
    same("embeddings.position_embedding.weight"),
    same("encoder.layers.{}.layer_norm1.*"),
    same("encoder.layers.{}.layer_norm2.*"),
    same("encoder.layers.{}.self_attn.q_proj.*"),
    same("encoder.layers.{}.self_attn.k_proj.*"),
    same("encoder.layers.{}.self_attn.v_proj.*"),
    same("encoder.layers.{}.self_attn.out_proj.*"),
    same("encoder.layers.{}.mlp.fc1.*"),
    same("encoder.layers.{}.mlp.fc2.*"),
    same("final_layer_norm.*"),
    same("text_projection.weight"),
    // stable-diffusion.cpp's name for the line above.
    renamed("text_projection", "text_projection.weight"),
    // Its names for what OpenCLIP has in one piece.
    third(0, "encoder.layers.{}.self_attn.in_proj.*", "encoder.layers.{}.self_attn.q_proj.*"),
    third(1, "encoder.layers.{}.self_attn.in_proj.*", "encoder.layers.{}.self_attn.k_proj.*"),
    third(2, "encoder.layers.{}.self_attn.in_proj.*", "encoder.layers.{}.self_attn.v_proj.*"),
];

/// What is different where stable-diffusion.cpp renamed an OpenCLIP model: its projection is still turned over.
pub(super) const RENAMED_PROJECTION: &[Rule] = &[transposed("text_projection", "text_projection.weight")];

/// The names of OpenCLIP.
pub(super) const OPEN_CLIP: &[Rule] = &[
    renamed("token_embedding.weight", "embeddings.token_embedding.weight"),
    renamed("positional_embedding", "embeddings.position_embedding.weight"),
    renamed("transformer.resblocks.{}.ln_1.*", "encoder.layers.{}.layer_norm1.*"),
    renamed("transformer.resblocks.{}.ln_2.*", "encoder.layers.{}.layer_norm2.*"),
    third(0, "transformer.resblocks.{}.attn.in_proj_weight", "encoder.layers.{}.self_attn.q_proj.weight"),
    third(1, "transformer.resblocks.{}.attn.in_proj_weight", "encoder.layers.{}.self_attn.k_proj.weight"),
    third(2, "transformer.resblocks.{}.attn.in_proj_weight", "encoder.layers.{}.self_attn.v_proj.weight"),
    third(0, "transformer.resblocks.{}.attn.in_proj_bias", "encoder.layers.{}.self_attn.q_proj.bias"),
    third(1, "transformer.resblocks.{}.attn.in_proj_bias", "encoder.layers.{}.self_attn.k_proj.bias"),
    third(2, "transformer.resblocks.{}.attn.in_proj_bias", "encoder.layers.{}.self_attn.v_proj.bias"),
    renamed("transformer.resblocks.{}.attn.out_proj.*", "encoder.layers.{}.self_attn.out_proj.*"),
    renamed("transformer.resblocks.{}.mlp.c_fc.*", "encoder.layers.{}.mlp.fc1.*"),
    renamed("transformer.resblocks.{}.mlp.c_proj.*", "encoder.layers.{}.mlp.fc2.*"),
    renamed("ln_final.*", "final_layer_norm.*"),
    // Used as x @ w there, and as x @ w^T here.
    transposed("text_projection", "text_projection.weight"),
    same("text_projection.weight"),
];
