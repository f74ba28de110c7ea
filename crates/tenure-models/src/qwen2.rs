//! Qwen 2 and 2.5: biases of q, k and v (Yang et al. 2024, arXiv:2407.10671).

use tenure_graph::Val;

use crate::decoder::{AttentionSpec, Decoder, pre_norm_layers};

pub(crate) fn record(m: &Decoder<'_, '_>) -> Val {
    let rope = m.rope();
    let scale = 1.0 / (m.config.head_dim as f32).sqrt();
    let spec = AttentionSpec { rope: &rope, scale, window: None, qkv_bias: true, head_norms: false };
    pre_norm_layers(m, &spec)
}
