//! U-Nets: the original names, which number the blocks through, and those of diffusers, which number them by level.

use super::rule::{Rule, Take, apply, renamed, same};

/// Outside the blocks, the original names.
const LDM: &[Rule] = &[
    renamed("time_embed.0.*", "time_embedding.linear_1.*"),
    renamed("time_embed.2.*", "time_embedding.linear_2.*"),
    renamed("time_embed.cond_proj.weight", "time_embedding.cond_proj.weight"),
    renamed("time_embedding.cond_proj.weight", "time_embedding.cond_proj.weight"),
    renamed("label_emb.0.0.*", "add_embedding.linear_1.*"),
    renamed("label_emb.0.2.*", "add_embedding.linear_2.*"),
    renamed("input_blocks.0.0.*", "conv_in.*"),
    renamed("out.0.*", "conv_norm_out.*"),
    renamed("out.2.*", "conv_out.*"),
];

/// A residual block, the original names.
const LDM_RESNET: &[Rule] = &[
    renamed("in_layers.0.*", "norm1.*"),
    renamed("in_layers.2.*", "conv1.*"),
    renamed("emb_layers.1.*", "time_emb_proj.*"),
    renamed("out_layers.0.*", "norm2.*"),
    renamed("out_layers.3.*", "conv2.*"),
    renamed("skip_connection.*", "conv_shortcut.*"),
];

/// Outside the blocks, the names of diffusers.
const DIFFUSERS: &[Rule] = &[
    same("time_embedding.linear_1.*"),
    same("time_embedding.linear_2.*"),
    same("time_embedding.cond_proj.weight"),
    same("add_embedding.linear_1.*"),
    same("add_embedding.linear_2.*"),
    same("conv_in.*"),
    same("conv_norm_out.*"),
    same("conv_out.*"),
];

/// A residual block, the names of diffusers.
const DIFFUSERS_RESNET: &[Rule] = &[
    same("norm1.*"),
    same("conv1.*"),
    same("time_emb_proj.*"),
    same("norm2.*"),
    same("conv2.*"),
    same("conv_shortcut.*"),
];

/// A transformer, whose names are the same in both.
const TRANSFORMER: &[Rule] = &[
    same("norm.*"),
    same("proj_in.*"),
    same("proj_out.*"),
    same("transformer_blocks.{}.norm1.*"),
    same("transformer_blocks.{}.norm2.*"),
    same("transformer_blocks.{}.norm3.*"),
    same("transformer_blocks.{}.attn1.to_q.*"),
    same("transformer_blocks.{}.attn1.to_k.*"),
    same("transformer_blocks.{}.attn1.to_v.*"),
    same("transformer_blocks.{}.attn1.to_out.0.*"),
    same("transformer_blocks.{}.attn2.to_q.*"),
    same("transformer_blocks.{}.attn2.to_k.*"),
    same("transformer_blocks.{}.attn2.to_v.*"),
    same("transformer_blocks.{}.attn2.to_out.0.*"),
    same("transformer_blocks.{}.ff.net.0.proj.*"),
    same("transformer_blocks.{}.ff.net.2.*"),
];

/// Where the levels of a U-Net in the original names end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Levels {
    /// Numbers of the input blocks that take every second pixel, ascending.
    downs: Vec<usize>,
    /// Numbers of the output blocks behind which pixels are doubled, ascending.
    ups: Vec<usize>,
}

impl Levels {
    pub(super) fn of<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        let mut levels = Levels::default();
        for name in names {
            if let Some((n, "0", part)) = numbered(name, "input_blocks.")
                && part == "op.weight"
            {
                levels.downs.push(n);
            }
            if let Some((n, "1" | "2", part)) = numbered(name, "output_blocks.")
                && part == "conv.weight"
            {
                levels.ups.push(n);
            }
        }
        levels.downs.sort_unstable();
        levels.ups.sort_unstable();
        levels
    }

    /// What the original name `name` becomes.
    pub(super) fn map(&self, name: &str) -> Vec<(String, Take)> {
        if let Some((n, part)) = name.strip_prefix("middle_block.").and_then(|rest| rest.split_once('.')) {
            return match n {
                "0" => within("mid_block.resnets.0", LDM_RESNET, part),
                "1" => within("mid_block.attentions.0", TRANSFORMER, part),
                "2" => within("mid_block.resnets.1", LDM_RESNET, part),
                _ => Vec::new(),
            };
        }
        if let Some((n @ 1.., slot, part)) = numbered(name, "input_blocks.") {
            // A level ends with the block that takes every second pixel, and the first block of all is none of a level.
            let (level, i) = place(&self.downs, n, 1);
            return match (slot, part.strip_prefix("op.")) {
                ("0", Some(end)) => vec![(format!("down_blocks.{level}.downsamplers.0.conv.{end}"), Take::Whole)],
                ("0", None) => within(&format!("down_blocks.{level}.resnets.{i}"), LDM_RESNET, part),
                ("1", _) => within(&format!("down_blocks.{level}.attentions.{i}"), TRANSFORMER, part),
                _ => Vec::new(),
            };
        }
        if let Some((n, slot, part)) = numbered(name, "output_blocks.") {
            let (level, i) = place(&self.ups, n, 0);
            return match (slot, part.strip_prefix("conv.")) {
                ("1" | "2", Some(end)) => vec![(format!("up_blocks.{level}.upsamplers.0.conv.{end}"), Take::Whole)],
                ("0", _) => within(&format!("up_blocks.{level}.resnets.{i}"), LDM_RESNET, part),
                ("1", None) => within(&format!("up_blocks.{level}.attentions.{i}"), TRANSFORMER, part),
                _ => Vec::new(),
            };
        }
        apply(LDM, name)
    }
}

/// What the name `name` of diffusers is: itself, if a U-Net has such a tensor.
pub(super) fn diffusers(name: &str) -> Vec<(String, Take)> {
    // down_blocks.0.resnets.1.conv1.weight, mid_block.attentions.0.norm.weight
    let behind = |prefix: &str, name: &str, numbers: usize| -> Option<usize> {
        let mut rest = name.strip_prefix(prefix)?;
        for _ in 0..numbers {
            rest = rest.split_once('.').filter(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))?.1;
        }
        Some(name.len() - rest.len())
    };
    let block = ["down_blocks.", "up_blocks."].iter().find_map(|prefix| behind(prefix, name, 1));
    let Some(at) = block.or_else(|| behind("mid_block.", name, 0)) else { return apply(DIFFUSERS, name) };
    let (block, rest) = name.split_at_checked(at).unwrap_or((name, ""));
    for (kind, table) in [("resnets.", DIFFUSERS_RESNET), ("attentions.", TRANSFORMER)] {
        if let Some(end) = behind(kind, rest, 1) {
            let (middle, part) = rest.split_at_checked(end).unwrap_or((rest, ""));
            return within(format!("{block}{middle}").trim_end_matches('.'), table, part);
        }
    }
    let sampler = ["downsamplers.0.conv.", "upsamplers.0.conv."].iter().any(|kind| rest.starts_with(kind));
    if sampler { vec![(name.to_owned(), Take::Whole)] } else { Vec::new() }
}

/// `PREFIX12.0.rest` as 12, "0", "rest".
fn numbered<'n>(name: &'n str, prefix: &str) -> Option<(usize, &'n str, &'n str)> {
    let (n, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    let (slot, part) = rest.split_once('.')?;
    Some((n.parse().ok()?, slot, part))
}

/// The level that block `n` is in, and its place there. Blocks count from `first`; those in `ends` end a level.
fn place(ends: &[usize], n: usize, first: usize) -> (usize, usize) {
    let level = ends.partition_point(|&end| end < n);
    let start = level.checked_sub(1).and_then(|before| ends.get(before)).map_or(first, |end| end + 1);
    (level, n.saturating_sub(start))
}

fn within(block: &str, table: &[Rule], part: &str) -> Vec<(String, Take)> {
    apply(table, part).into_iter().map(|(part, take)| (format!("{block}.{part}"), take)).collect()
}
