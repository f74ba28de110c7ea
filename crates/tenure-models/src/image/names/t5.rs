//! The T5 encoder: the names of transformers, and those of llama.cpp's GGUF files.

use super::rule::{Rule, numbers, renamed, same};

/// The names of transformers.
pub(super) const TRANSFORMERS: &[Rule] = &[
    same(SHARED),
    same("encoder.block.{}.layer.0.SelfAttention.q.weight"),
    same("encoder.block.{}.layer.0.SelfAttention.k.weight"),
    same("encoder.block.{}.layer.0.SelfAttention.v.weight"),
    same("encoder.block.{}.layer.0.SelfAttention.o.weight"),
    numbers(
        "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    same("encoder.block.{}.layer.0.layer_norm.weight"),
    same("encoder.block.{}.layer.1.DenseReluDense.wi_0.weight"),
    same("encoder.block.{}.layer.1.DenseReluDense.wi_1.weight"),
    same("encoder.block.{}.layer.1.DenseReluDense.wo.weight"),
    same("encoder.block.{}.layer.1.layer_norm.weight"),
    same("encoder.final_layer_norm.weight"),
];

/// The embedding table.
pub(super) const SHARED: &str = "shared.weight";

/// Its second name, under which some files have it alone.
pub(super) const EMBED: Rule = renamed("encoder.embed_tokens.weight", SHARED);

/// The names of llama.cpp.
pub(super) const GGUF: &[Rule] = &[
    renamed("token_embd.weight", SHARED),
    renamed("enc.blk.{}.attn_q.weight", "encoder.block.{}.layer.0.SelfAttention.q.weight"),
    renamed("enc.blk.{}.attn_k.weight", "encoder.block.{}.layer.0.SelfAttention.k.weight"),
    renamed("enc.blk.{}.attn_v.weight", "encoder.block.{}.layer.0.SelfAttention.v.weight"),
    renamed("enc.blk.{}.attn_o.weight", "encoder.block.{}.layer.0.SelfAttention.o.weight"),
    numbers("enc.blk.{}.attn_rel_b.weight", "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"),
    renamed("enc.blk.{}.attn_norm.weight", "encoder.block.{}.layer.0.layer_norm.weight"),
    renamed("enc.blk.{}.ffn_gate.weight", "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight"),
    renamed("enc.blk.{}.ffn_up.weight", "encoder.block.{}.layer.1.DenseReluDense.wi_1.weight"),
    renamed("enc.blk.{}.ffn_down.weight", "encoder.block.{}.layer.1.DenseReluDense.wo.weight"),
    renamed("enc.blk.{}.ffn_norm.weight", "encoder.block.{}.layer.1.layer_norm.weight"),
    renamed("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
];
