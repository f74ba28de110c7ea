//! Autoencoders: the original names and those of diffusers.

use super::rule::{Rule, Take, apply, pixel, renamed, same};

/// Beside encoder and decoder, in both.
const OUTSIDE: &[Rule] = &[same("quant_conv.*"), same("post_quant_conv.*")];

/// Within the encoder or the decoder, the original names.
const LDM: &[Rule] = &[
    same("conv_in.*"),
    same("conv_out.*"),
    renamed("norm_out.*", "conv_norm_out.*"),
    renamed("mid.attn_1.norm.*", "mid_block.attentions.0.group_norm.*"),
    pixel("mid.attn_1.q.*", "mid_block.attentions.0.to_q.*"),
    pixel("mid.attn_1.k.*", "mid_block.attentions.0.to_k.*"),
    pixel("mid.attn_1.v.*", "mid_block.attentions.0.to_v.*"),
    pixel("mid.attn_1.proj_out.*", "mid_block.attentions.0.to_out.0.*"),
    // Older names of stable-diffusion.cpp's files.
    pixel("mid.attn_1.to_q.*", "mid_block.attentions.0.to_q.*"),
    pixel("mid.attn_1.to_k.*", "mid_block.attentions.0.to_k.*"),
    pixel("mid.attn_1.to_v.*", "mid_block.attentions.0.to_v.*"),
    pixel("mid.attn_1.to_out.0.*", "mid_block.attentions.0.to_out.0.*"),
    renamed("down.{}.downsample.conv.*", "down_blocks.{}.downsamplers.0.conv.*"),
];

/// Within the encoder or the decoder, the names of diffusers.
const DIFFUSERS: &[Rule] = &[
    same("conv_in.*"),
    same("conv_out.*"),
    same("conv_norm_out.*"),
    same("mid_block.attentions.0.group_norm.*"),
    pixel("mid_block.attentions.0.to_q.*", "mid_block.attentions.0.to_q.*"),
    pixel("mid_block.attentions.0.to_k.*", "mid_block.attentions.0.to_k.*"),
    pixel("mid_block.attentions.0.to_v.*", "mid_block.attentions.0.to_v.*"),
    pixel("mid_block.attentions.0.to_out.0.*", "mid_block.attentions.0.to_out.0.*"),
    // Names before diffusers 0.17.
    pixel("mid_block.attentions.0.query.*", "mid_block.attentions.0.to_q.*"),
    pixel("mid_block.attentions.0.key.*", "mid_block.attentions.0.to_k.*"),
    pixel("mid_block.attentions.0.value.*", "mid_block.attentions.0.to_v.*"),
    pixel("mid_block.attentions.0.proj_attn.*", "mid_block.attentions.0.to_out.0.*"),
    same("down_blocks.{}.downsamplers.0.conv.*"),
    same("up_blocks.{}.upsamplers.0.conv.*"),
];

/// Residual blocks: `*` is what stands behind the block.
const LDM_BLOCKS: &[Rule] = &[
    renamed("mid.block_1.*", "mid_block.resnets.0.*"),
    renamed("mid.block_2.*", "mid_block.resnets.1.*"),
    renamed("down.{}.block.{}.*", "down_blocks.{}.resnets.{}.*"),
];

const DIFFUSERS_BLOCKS: &[Rule] =
    &[same("mid_block.resnets.{}.*"), same("down_blocks.{}.resnets.{}.*"), same("up_blocks.{}.resnets.{}.*")];

const RESNET: &[Rule] = &[
    same("norm1.*"),
    same("conv1.*"),
    same("norm2.*"),
    same("conv2.*"),
    same("conv_shortcut.*"),
    renamed("nin_shortcut.*", "conv_shortcut.*"),
];

/// How many levels the decoder of the names has. The original names count them from the last.
pub(super) fn levels<'n>(names: impl Iterator<Item = &'n str>) -> usize {
    let level = |name: &str| name.strip_prefix("decoder.up.")?.split_once('.')?.0.parse::<usize>().ok();
    names.filter_map(level).max().map_or(0, |last| last.saturating_add(1))
}

/// What the original name `name` becomes, in an autoencoder of so many levels.
pub(super) fn ldm(name: &str, levels: usize) -> Vec<(String, Take)> {
    let Some((side, rest)) = side(name) else { return apply(OUTSIDE, name) };
    // decoder.up.3.block.0.conv1.weight is up_blocks.0.resnets.0.conv1.weight
    if let Some((level, part)) = rest.strip_prefix("up.").and_then(|rest| rest.split_once('.')) {
        let level = level.parse::<usize>().ok().and_then(|level| levels.checked_sub(level.checked_add(1)?));
        let Some(level) = level else { return Vec::new() };
        if let Some(end) = part.strip_prefix("upsample.conv.") {
            return vec![(format!("{side}.up_blocks.{level}.upsamplers.0.conv.{end}"), Take::Whole)];
        }
        let Some((block, part)) = part.strip_prefix("block.").and_then(|rest| rest.split_once('.')) else {
            return Vec::new();
        };
        if block.is_empty() || !block.bytes().all(|b| b.is_ascii_digit()) {
            return Vec::new();
        }
        return resnet(&format!("{side}.up_blocks.{level}.resnets.{block}"), part);
    }
    within(side, rest, LDM, LDM_BLOCKS)
}

/// What the name `name` of diffusers is: itself, if an autoencoder has such a tensor.
pub(super) fn diffusers(name: &str) -> Vec<(String, Take)> {
    match side(name) {
        Some((side, rest)) => within(side, rest, DIFFUSERS, DIFFUSERS_BLOCKS),
        None => apply(OUTSIDE, name),
    }
}

fn side(name: &str) -> Option<(&str, &str)> {
    name.split_once('.').filter(|(side, _)| matches!(*side, "encoder" | "decoder"))
}

fn within(side: &str, rest: &str, table: &[Rule], blocks: &[Rule]) -> Vec<(String, Take)> {
    if let Some(name) = blocks.iter().find_map(|rule| rule.apply(rest)) {
        // Behind two numbers, or one in the middle.
        let at = name.find("resnets.").and_then(|at| Some(at + 8 + name.get(at + 8..)?.find('.')?));
        let Some((block, part)) = at.and_then(|at| name.split_at_checked(at)) else { return Vec::new() };
        return resnet(&format!("{side}.{block}"), part.trim_start_matches('.'));
    }
    apply(table, rest).into_iter().map(|(name, take)| (format!("{side}.{name}"), take)).collect()
}

fn resnet(block: &str, part: &str) -> Vec<(String, Take)> {
    apply(RESNET, part).into_iter().map(|(part, take)| (format!("{block}.{part}"), take)).collect()
}
