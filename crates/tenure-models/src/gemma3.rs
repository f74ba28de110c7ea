//! Gemma 3 (Gemma Team 2025, arXiv:2503.19786).

use tenure_graph::{Activation, Val};

use crate::decoder::{AttentionSpec, Decoder};

/// The 27B model, alone in having this many layers, scales its scores by the width per head, not by the head's size.
const LAYERS_OF_27B: usize = 62;

/// Norms before and after each block, norms of q and k, scaled embeddings; most layers see a sliding window and have
/// a rotary base of their own.
pub(crate) fn record(m: &Decoder<'_, '_>) -> Val {
    let c = m.config;
    let score_dim = if c.layers == LAYERS_OF_27B { c.width / c.heads } else { c.head_dim };
    let scale = 1.0 / (score_dim as f32).sqrt();
    let global = m.rope();
    let mut x = m.begin((c.width as f32).sqrt());
    for i in m.layers() {
        let layer = m.layer(i);
        let (rope, window) = match c.sliding.as_ref().filter(|sliding| sliding.covers(i)) {
            Some(sliding) => (&sliding.rope, Some(sliding.window)),
            None => (&global, None),
        };
        let spec = AttentionSpec { rope, scale, window, qkv_bias: false, head_norms: true };
        let mut y = layer.attention(layer.rms_norm(x, "attn_norm.weight"), &spec);
        if m.is_last(i) {
            (x, y) = (m.g.take_rows(x), m.g.take_rows(y));
        }
        x = m.g.add(layer.rms_norm(y, "post_attention_norm.weight"), x);
        let y = layer.feed_forward(layer.rms_norm(x, "ffn_norm.weight"), Activation::GeluTanh);
        x = layer.ends(m.g.add(layer.rms_norm(y, "post_ffw_norm.weight"), x));
    }
    m.end(x)
}
