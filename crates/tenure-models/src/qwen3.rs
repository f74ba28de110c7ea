//! Qwen 3, dense: norms of q and k (Yang et al. 2025, arXiv:2505.09388).

use tenure_graph::Val;

use crate::decoder::{AttentionSpec, Decoder, pre_norm_layers};

pub(crate) fn record(m: &Decoder<'_, '_>) -> Val {
    let rope = m.rope();
    let scale = 1.0 / (m.config.head_dim as f32).sqrt();
    let spec = AttentionSpec { rope: &rope, scale, window: None, qkv_bias: false, head_norms: true };
    pre_norm_layers(m, &spec)
}
