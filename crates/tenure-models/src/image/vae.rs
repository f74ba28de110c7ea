//! The autoencoder of Stable Diffusion (Kingma & Welling 2013, arXiv:1312.6114; Rombach et al. 2022, arXiv:2112.10752).

use tenure_graph::{Graph, Grid, InputId, OutputId, Plan, Rows, StepShape, Val, WeightCatalog};

use crate::error::ModelError;
use crate::image::layers::{FINE_EPS, Net};

/// Records the decoder: latents over `grid` ([`InputId::Sample`]), already scaled as the autoencoder has them -> pixels,
/// eight times as many in both directions ([`OutputId::Sample`], 3 channels from -1 to 1).
///
/// # Errors
/// [`ModelError`] naming the tensor that is missing, misshapen, or of a type not computed with.
pub fn record_vae_decoder(catalog: &dyn WeightCatalog, grid: Grid) -> Result<Plan, ModelError> {
    let g = Graph::new(catalog, StepShape { rows: 0, outs: 0, context: 0 });
    let net = Net { g: &g };
    let mut x = sample(&g, catalog, "decoder.conv_in.weight", grid);
    if g.has("post_quant_conv.weight") {
        x = net.linear("post_quant_conv", x);
    }
    x = middle(net, "decoder", net.conv("decoder.conv_in", x, grid), grid);
    let mut grid = grid;
    for level in 0..blocks(&g, "decoder.up_blocks") {
        let name = format!("decoder.up_blocks.{level}");
        for i in 0..blocks(&g, &format!("{name}.resnets")) {
            x = net.residual(&format!("{name}.resnets.{i}"), x, None, FINE_EPS, grid);
        }
        let double = format!("{name}.upsamplers.0.conv");
        if g.has(&format!("{double}.weight")) {
            (x, grid) = net.double(&double, x, grid);
        }
    }
    let x = ends(net, "decoder", x, grid);
    Ok(g.finish(&[(OutputId::Sample, x)])?)
}

/// Records the encoder: pixels over `grid` ([`InputId::Sample`], 3 channels from -1 to 1) -> for each latent's pixel the
/// means of its channels, then the logarithms of their variances ([`OutputId::Sample`]).
///
/// # Errors
/// [`ModelError`] naming the tensor that is missing, misshapen, or of a type not computed with.
pub fn record_vae_encoder(catalog: &dyn WeightCatalog, grid: Grid) -> Result<Plan, ModelError> {
    let g = Graph::new(catalog, StepShape { rows: 0, outs: 0, context: 0 });
    let net = Net { g: &g };
    let mut x = net.conv("encoder.conv_in", sample(&g, catalog, "encoder.conv_in.weight", grid), grid);
    let mut grid = grid;
    for level in 0..blocks(&g, "encoder.down_blocks") {
        let name = format!("encoder.down_blocks.{level}");
        for i in 0..blocks(&g, &format!("{name}.resnets")) {
            x = net.residual(&format!("{name}.resnets.{i}"), x, None, FINE_EPS, grid);
        }
        let halve = format!("{name}.downsamplers.0.conv");
        if g.has(&format!("{halve}.weight")) {
            // Zeros below and to the right only.
            (x, grid) = net.halve(&halve, x, grid, 0);
        }
    }
    x = ends(net, "encoder", middle(net, "encoder", x, grid), grid);
    if g.has("quant_conv.weight") {
        x = net.linear("quant_conv", x);
    }
    Ok(g.finish(&[(OutputId::Sample, x)])?)
}

pub(crate) fn sample(g: &Graph<'_>, catalog: &dyn WeightCatalog, kernel: &str, grid: Grid) -> Val {
    let channels = catalog.find(kernel).and_then(|spec| spec.shape.dims().get(1).copied()).unwrap_or(1);
    g.input(InputId::Sample, Rows::Fixed(grid.rows() as u32), channels)
}

/// How many blocks of a list there are.
fn blocks(g: &Graph<'_>, name: &str) -> usize {
    let has =
        |i: &usize| g.has(&format!("{name}.{i}.conv1.weight")) || g.has(&format!("{name}.{i}.resnets.0.conv1.weight"));
    (0..).take_while(has).count()
}

/// The middle, with attention of one head over all pixels.
fn middle(net: Net<'_, '_>, side: &str, x: Val, grid: Grid) -> Val {
    let name = |part: &str| format!("{side}.mid_block.{part}");
    let x = net.residual(&name("resnets.0"), x, None, FINE_EPS, grid);
    let y = net.group_norm(&name("attentions.0.group_norm"), x, FINE_EPS, grid);
    let y = net.attention(&name("attentions.0"), y, y, 1, grid.pixels(), grid.pixels());
    net.residual(&name("resnets.1"), net.g.add(y, x), None, FINE_EPS, grid)
}

fn ends(net: Net<'_, '_>, side: &str, x: Val, grid: Grid) -> Val {
    let x = net.silu(net.group_norm(&format!("{side}.conv_norm_out"), x, FINE_EPS, grid));
    net.conv(&format!("{side}.conv_out"), x, grid)
}
