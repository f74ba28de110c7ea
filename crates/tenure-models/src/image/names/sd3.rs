//! The transformer of Stable Diffusion 3 and 3.5: the original names and those of diffusers.

use super::rule::{Rule, Take, apply, renamed, same, swapped, third};

/// The original names.
const ORIGINAL: &[Rule] = &[
    Rule { from: "pos_embed", to: "pos_embed.pos_embed", take: Take::Outer },
    renamed("x_embedder.proj.*", "pos_embed.proj.*"),
    renamed("t_embedder.mlp.0.*", "time_text_embed.timestep_embedder.linear_1.*"),
    renamed("t_embedder.mlp.2.*", "time_text_embed.timestep_embedder.linear_2.*"),
    renamed("y_embedder.mlp.0.*", "time_text_embed.text_embedder.linear_1.*"),
    renamed("y_embedder.mlp.2.*", "time_text_embed.text_embedder.linear_2.*"),
    same("context_embedder.*"),
    third(0, "joint_blocks.{}.x_block.attn.qkv.*", "transformer_blocks.{}.attn.to_q.*"),
    third(1, "joint_blocks.{}.x_block.attn.qkv.*", "transformer_blocks.{}.attn.to_k.*"),
    third(2, "joint_blocks.{}.x_block.attn.qkv.*", "transformer_blocks.{}.attn.to_v.*"),
    renamed("joint_blocks.{}.x_block.attn.ln_q.*", "transformer_blocks.{}.attn.norm_q.*"),
    renamed("joint_blocks.{}.x_block.attn.ln_k.*", "transformer_blocks.{}.attn.norm_k.*"),
    renamed("joint_blocks.{}.x_block.attn.proj.*", "transformer_blocks.{}.attn.to_out.0.*"),
    third(0, "joint_blocks.{}.context_block.attn.qkv.*", "transformer_blocks.{}.attn.add_q_proj.*"),
    third(1, "joint_blocks.{}.context_block.attn.qkv.*", "transformer_blocks.{}.attn.add_k_proj.*"),
    third(2, "joint_blocks.{}.context_block.attn.qkv.*", "transformer_blocks.{}.attn.add_v_proj.*"),
    renamed("joint_blocks.{}.context_block.attn.ln_q.*", "transformer_blocks.{}.attn.norm_added_q.*"),
    renamed("joint_blocks.{}.context_block.attn.ln_k.*", "transformer_blocks.{}.attn.norm_added_k.*"),
    renamed("joint_blocks.{}.context_block.attn.proj.*", "transformer_blocks.{}.attn.to_add_out.*"),
    third(0, "joint_blocks.{}.x_block.attn2.qkv.*", "transformer_blocks.{}.attn2.to_q.*"),
    third(1, "joint_blocks.{}.x_block.attn2.qkv.*", "transformer_blocks.{}.attn2.to_k.*"),
    third(2, "joint_blocks.{}.x_block.attn2.qkv.*", "transformer_blocks.{}.attn2.to_v.*"),
    renamed("joint_blocks.{}.x_block.attn2.ln_q.*", "transformer_blocks.{}.attn2.norm_q.*"),
    renamed("joint_blocks.{}.x_block.attn2.ln_k.*", "transformer_blocks.{}.attn2.norm_k.*"),
    renamed("joint_blocks.{}.x_block.attn2.proj.*", "transformer_blocks.{}.attn2.to_out.0.*"),
    renamed("joint_blocks.{}.x_block.adaLN_modulation.1.*", "transformer_blocks.{}.norm1.linear.*"),
    renamed("joint_blocks.{}.context_block.adaLN_modulation.1.*", "transformer_blocks.{}.norm1_context.linear.*"),
    renamed("joint_blocks.{}.x_block.mlp.fc1.*", "transformer_blocks.{}.ff.net.0.proj.*"),
    renamed("joint_blocks.{}.x_block.mlp.fc2.*", "transformer_blocks.{}.ff.net.2.*"),
    renamed("joint_blocks.{}.context_block.mlp.fc1.*", "transformer_blocks.{}.ff_context.net.0.proj.*"),
    renamed("joint_blocks.{}.context_block.mlp.fc2.*", "transformer_blocks.{}.ff_context.net.2.*"),
    renamed("final_layer.linear.*", "proj_out.*"),
    // Shift and scale there, scale and shift here.
    swapped("final_layer.adaLN_modulation.1.*", "norm_out.linear.*"),
];

/// What is different in the last block, whose prompt ends there and is only scaled and shifted before attention.
const LAST: &[Rule] =
    &[swapped("joint_blocks.{}.context_block.adaLN_modulation.1.*", "transformer_blocks.{}.norm1_context.linear.*")];

/// The names of diffusers.
const DIFFUSERS: &[Rule] = &[
    Rule { from: "pos_embed.pos_embed", to: "pos_embed.pos_embed", take: Take::Outer },
    same("pos_embed.proj.*"),
    same("time_text_embed.timestep_embedder.linear_1.*"),
    same("time_text_embed.timestep_embedder.linear_2.*"),
    same("time_text_embed.text_embedder.linear_1.*"),
    same("time_text_embed.text_embedder.linear_2.*"),
    same("context_embedder.*"),
    same("transformer_blocks.{}.attn.to_q.*"),
    same("transformer_blocks.{}.attn.to_k.*"),
    same("transformer_blocks.{}.attn.to_v.*"),
    same("transformer_blocks.{}.attn.to_out.0.*"),
    same("transformer_blocks.{}.attn.norm_q.*"),
    same("transformer_blocks.{}.attn.norm_k.*"),
    same("transformer_blocks.{}.attn.add_q_proj.*"),
    same("transformer_blocks.{}.attn.add_k_proj.*"),
    same("transformer_blocks.{}.attn.add_v_proj.*"),
    same("transformer_blocks.{}.attn.to_add_out.*"),
    same("transformer_blocks.{}.attn.norm_added_q.*"),
    same("transformer_blocks.{}.attn.norm_added_k.*"),
    same("transformer_blocks.{}.attn2.to_q.*"),
    same("transformer_blocks.{}.attn2.to_k.*"),
    same("transformer_blocks.{}.attn2.to_v.*"),
    same("transformer_blocks.{}.attn2.to_out.0.*"),
    same("transformer_blocks.{}.attn2.norm_q.*"),
    same("transformer_blocks.{}.attn2.norm_k.*"),
    same("transformer_blocks.{}.norm1.linear.*"),
    same("transformer_blocks.{}.norm1_context.linear.*"),
    same("transformer_blocks.{}.ff.net.0.proj.*"),
    same("transformer_blocks.{}.ff.net.2.*"),
    same("transformer_blocks.{}.ff_context.net.0.proj.*"),
    same("transformer_blocks.{}.ff_context.net.2.*"),
    same("proj_out.*"),
    same("norm_out.linear.*"),
];

/// The number of the last block of the original names.
pub(super) fn last<'n>(names: impl Iterator<Item = &'n str>) -> Option<usize> {
    names.filter_map(block).max()
}

/// What the original name `name` becomes, where the last block is number `last`.
pub(super) fn original(name: &str, last: Option<usize>) -> Vec<(String, Take)> {
    if last.is_some() && block(name) == last {
        let different = apply(LAST, name);
        if !different.is_empty() {
            return different;
        }
    }
    apply(ORIGINAL, name)
}

/// What the name `name` of diffusers is: itself, if the transformer has such a tensor.
pub(super) fn diffusers(name: &str) -> Vec<(String, Take)> {
    apply(DIFFUSERS, name)
}

fn block(name: &str) -> Option<usize> {
    name.strip_prefix("joint_blocks.")?.split_once('.')?.0.parse().ok()
}
