//! Llama 1 to 3, Mistral, SmolLM2 (Touvron et al. 2023, arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783).

use tenure_graph::Val;

use crate::decoder::{AttentionSpec, Decoder, pre_norm_layers};

pub(crate) fn record(m: &Decoder<'_, '_>) -> Val {
    let rope = m.rope();
    let scale = 1.0 / (m.config.head_dim as f32).sqrt();
    let spec = AttentionSpec { rope: &rope, scale, window: None, qkv_bias: false, head_norms: false };
    pre_norm_layers(m, &spec)
}
