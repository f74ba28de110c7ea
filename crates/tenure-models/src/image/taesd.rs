//! The tiny autoencoder (Bohan 2023, github.com/madebyollin/taesd): latents as the denoiser has them, pixels from 0 to 1.

use tenure_graph::{Activation, Graph, Grid, OutputId, Plan, StepShape, Val, WeightCatalog};

use crate::error::ModelError;
use crate::image::layers::Net;
use crate::image::vae::sample;

/// Latents are clamped smoothly to this magnitude.
const MAGNITUDE: f32 = 3.0;

/// Records the decoder: latents over `grid` -> pixels, eight times as many in both directions.
///
/// # Errors
/// [`ModelError`] naming the tensor that is missing, misshapen, or of a type not computed with.
pub fn record_taesd_decoder(catalog: &dyn WeightCatalog, grid: Grid) -> Result<Plan, ModelError> {
    let g = Graph::new(catalog, StepShape { rows: 0, outs: 0, context: 0 });
    let net = Net { g: &g };
    let x = g.softcap(sample(&g, catalog, "decoder.layers.0.weight", grid), MAGNITUDE);
    let mut x = g.activate(net.conv("decoder.layers.0", x, grid), Activation::Relu);
    let (mut grid, mut at) = (grid, 2);
    loop {
        while g.has(&format!("decoder.layers.{at}.conv.0.weight")) {
            x = block(net, &format!("decoder.layers.{at}"), x, grid);
            at += 1;
        }
        // Behind the blocks of a level pixels are doubled, which has no weights, and then there is a kernel.
        if !g.has(&format!("decoder.layers.{}.weight", at + 1)) {
            break;
        }
        (x, grid) = net.double(&format!("decoder.layers.{}", at + 1), x, grid);
        at += 2;
    }
    let x = net.conv(&format!("decoder.layers.{at}"), x, grid);
    Ok(g.finish(&[(OutputId::Sample, x)])?)
}

/// Records the encoder: pixels over `grid` -> latents.
///
/// # Errors
/// [`ModelError`] naming the tensor that is missing, misshapen, or of a type not computed with.
pub fn record_taesd_encoder(catalog: &dyn WeightCatalog, grid: Grid) -> Result<Plan, ModelError> {
    let g = Graph::new(catalog, StepShape { rows: 0, outs: 0, context: 0 });
    let net = Net { g: &g };
    let mut x = net.conv("encoder.layers.0", sample(&g, catalog, "encoder.layers.0.weight", grid), grid);
    let (mut grid, mut at) = (grid, 1);
    loop {
        let name = format!("encoder.layers.{at}");
        at += 1;
        if g.has(&format!("{name}.conv.0.weight")) {
            x = block(net, &name, x, grid);
        } else if g.has(&format!("encoder.layers.{at}.conv.0.weight")) {
            (x, grid) = net.halve(&name, x, grid, 1);
        } else {
            x = net.conv(&name, x, grid);
            break;
        }
    }
    Ok(g.finish(&[(OutputId::Sample, x)])?)
}

/// Three kernels, around which `x` goes.
fn block(net: Net<'_, '_>, name: &str, x: Val, grid: Grid) -> Val {
    let relu = |x| net.g.activate(x, Activation::Relu);
    let conv = |i: usize, x| net.conv(&format!("{name}.conv.{i}"), x, grid);
    let y = conv(4, relu(conv(2, relu(conv(0, x)))));
    let around = format!("{name}.skip");
    let x = if net.g.has(&format!("{around}.weight")) { net.linear(&around, x) } else { x };
    relu(net.g.add(y, x))
}
