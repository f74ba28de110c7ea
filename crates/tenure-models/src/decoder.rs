//! What the decoder-only architectures share: names of tensors, and the parts of a layer.

use std::cell::RefCell;
use std::ops::Range;

use tenure_graph::{Activation, Graph, InputId, KvLayerId, RopeSpec, Rows, Val};

use crate::config::TextConfig;
use crate::text::Part;

/// One model being recorded.
pub(crate) struct Decoder<'g, 'c> {
    pub(crate) g: &'g Graph<'c>,
    pub(crate) config: &'g TextConfig,
    pub(crate) part: Part,
    /// What each layer gave.
    pub(crate) given: RefCell<Vec<Val>>,
}

/// One layer being recorded.
pub(crate) struct Layer<'d, 'g, 'c> {
    decoder: &'d Decoder<'g, 'c>,
    pub(crate) index: usize,
    kv: KvLayerId,
}

/// The attention of one layer.
#[derive(Clone, Copy)]
pub(crate) struct AttentionSpec<'r> {
    pub(crate) rope: &'r RopeSpec,
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
    /// Whether q, k and v must have biases; elsewhere they may.
    pub(crate) qkv_bias: bool,
    /// Whether q and k are normed head by head.
    pub(crate) head_norms: bool,
}

/// Llama's layers: a norm before each block, grouped-query attention, SwiGLU.
pub(crate) fn pre_norm_layers(m: &Decoder<'_, '_>, spec: &AttentionSpec<'_>) -> Val {
    let mut x = m.begin(1.0);
    for i in m.layers() {
        let layer = m.layer(i);
        let mut y = layer.attention(layer.rms_norm(x, "attn_norm.weight"), spec);
        if m.is_last(i) {
            (x, y) = (m.g.take_rows(x), m.g.take_rows(y));
        }
        x = m.g.add(y, x);
        let y = layer.feed_forward(layer.rms_norm(x, "ffn_norm.weight"), Activation::Silu);
        x = layer.ends(m.g.add(y, x));
    }
    m.end(x)
}

impl<'g, 'c> Decoder<'g, 'c> {
    /// What the first layer of this part takes: token embeddings times `scale`, or what the part before gave.
    pub(crate) fn begin(&self, scale: f32) -> Val {
        match self.part {
            Part::Whole | Part::Before(_) => {
                self.g.embed(self.g.table("token_embd.weight", self.config.vocab, self.config.width), scale)
            }
            Part::From(_) => self.g.input(InputId::Hidden, Rows::Step, self.config.width),
        }
    }

    /// The layers of this part.
    pub(crate) fn layers(&self) -> Range<usize> {
        self.part.layers(self.config.layers)
    }

    /// What this part makes of its last layer: logits, or what the part behind takes.
    pub(crate) fn end(&self, x: Val) -> Val {
        match self.part {
            Part::Whole | Part::From(_) => self.logits(x),
            Part::Before(_) => x,
        }
    }

    /// The rope of this model, with the divisors the file may give.
    pub(crate) fn rope(&self) -> RopeSpec {
        let rope = &self.config.rope;
        RopeSpec { factors: self.g.vector_opt("rope_freqs.weight", rope.dims / 2), ..rope.clone() }
    }

    pub(crate) fn layer<'d>(&'d self, index: usize) -> Layer<'d, 'g, 'c> {
        let kv = self.g.kv_layer(self.config.kv_heads[index], self.config.head_dim);
        Layer { decoder: self, index, kv }
    }

    /// Whether that layer is the last: from its feed-forward block on, only rows whose logits are wanted matter.
    pub(crate) fn is_last(&self, index: usize) -> bool {
        index + 1 == self.config.layers
    }

    pub(crate) fn rms_norm(&self, x: Val, name: &str) -> Val {
        self.g.rms_norm(x, self.g.vector(name, self.config.width), self.config.rms_eps)
    }

    /// Final norm and head; the head is the embedding table where the file has no other.
    fn logits(&self, x: Val) -> Val {
        let g = self.g;
        let x = self.rms_norm(x, "output_norm.weight");
        let head = if g.has("output.weight") { "output.weight" } else { "token_embd.weight" };
        let logits = g.matmul(x, g.matrix(head, self.config.vocab, self.config.width), None);
        self.config.logit_softcap.map_or(logits, |cap| g.softcap(logits, cap))
    }
}

impl Layer<'_, '_, '_> {
    /// `blk.<index>.<name>`.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("blk.{}.{name}", self.index)
    }

    pub(crate) fn rms_norm(&self, x: Val, name: &str) -> Val {
        self.decoder.rms_norm(x, &self.name(name))
    }

    /// `x` is what the layer gives.
    pub(crate) fn ends(&self, x: Val) -> Val {
        self.decoder.given.borrow_mut().push(x);
        x
    }

    /// `x @ w^T`, plus the bias if there must be one or the file has one.
    fn linear(&self, x: Val, name: &str, n: usize, k: usize, must_bias: bool) -> Val {
        let g = self.decoder.g;
        let bias = self.name(&format!("{name}.bias"));
        let bias = (must_bias || g.has(&bias)).then(|| g.vector(&bias, n));
        g.matmul(x, g.matrix(&self.name(&format!("{name}.weight")), n, k), bias)
    }

    /// Self-attention over normed `x`.
    pub(crate) fn attention(&self, x: Val, spec: &AttentionSpec<'_>) -> Val {
        let Decoder { g, config, .. } = self.decoder;
        let (heads, head_dim, kv_heads) = (config.heads, config.head_dim, config.kv_heads[self.index]);
        let mut q = self.linear(x, "attn_q", heads * head_dim, config.width, spec.qkv_bias);
        let mut k = self.linear(x, "attn_k", kv_heads * head_dim, config.width, spec.qkv_bias);
        let v = self.linear(x, "attn_v", kv_heads * head_dim, config.width, spec.qkv_bias);
        if spec.head_norms {
            q = self.head_norm(q, "attn_q_norm.weight");
            k = self.head_norm(k, "attn_k_norm.weight");
        }
        let q = g.rope(q, head_dim, spec.rope);
        let k = g.rope(k, head_dim, spec.rope);
        g.kv_store(k, v, self.kv);
        let y = g.attention(q, self.kv, heads, spec.scale, spec.window, None);
        self.linear(y, "attn_output", config.width, heads * head_dim, false)
    }

    /// The gated feed-forward block over normed `x`.
    pub(crate) fn feed_forward(&self, x: Val, activation: Activation) -> Val {
        let Decoder { g, config, .. } = self.decoder;
        let ffn = config.ffn[self.index];
        let gate = self.linear(x, "ffn_gate", ffn, config.width, false);
        let up = self.linear(x, "ffn_up", ffn, config.width, false);
        self.linear(g.glu(gate, up, activation), "ffn_down", config.width, ffn, false)
    }

    fn head_norm(&self, x: Val, name: &str) -> Val {
        let Decoder { g, config, .. } = self.decoder;
        g.rms_norm(x, g.vector(&self.name(name), config.head_dim), config.rms_eps)
    }
}
