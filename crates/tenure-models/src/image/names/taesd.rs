//! Tiny autoencoders: the layers as their author numbers them, and as diffusers does.

use super::rule::{Rule, Take, apply, same};

/// The names of diffusers.
const DIFFUSERS: &[Rule] = &[
    same("encoder.layers.{}.weight"),
    same("encoder.layers.{}.bias"),
    same("encoder.layers.{}.conv.{}.*"),
    same("encoder.layers.{}.skip.*"),
    same("decoder.layers.{}.weight"),
    same("decoder.layers.{}.bias"),
    same("decoder.layers.{}.conv.{}.*"),
    same("decoder.layers.{}.skip.*"),
];

/// What the author's name `name` becomes. The author's decoder counts the clamp before its first kernel, diffusers' does
/// not.
pub(super) fn numbered(name: &str) -> Vec<(String, Take)> {
    let Some((side, rest)) = name.split_once('.') else { return Vec::new() };
    let Some((layer, part)) = rest.split_once('.') else { return Vec::new() };
    let clamps = match side {
        "encoder" => 0,
        "decoder" => 1,
        _ => return Vec::new(),
    };
    let layer = layer.parse::<usize>().ok().and_then(|layer| layer.checked_sub(clamps));
    layer.map_or_else(Vec::new, |layer| diffusers(&format!("{side}.layers.{layer}.{part}")))
}

/// What the name `name` of diffusers is: itself, if a tiny autoencoder has such a tensor.
pub(super) fn diffusers(name: &str) -> Vec<(String, Take)> {
    apply(DIFFUSERS, name)
}
