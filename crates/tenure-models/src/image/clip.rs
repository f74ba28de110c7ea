//! CLIP's text encoders (Radford et al. 2021, arXiv:2103.00020; Ilharco et al. 2021, OpenCLIP).

use tenure_graph::{Activation, Graph, OutputId, Plan, StepShape, WeightCatalog};

use crate::error::ModelError;
use crate::image::layers::Net;

/// Positions of one chunk of a prompt.
const POSITIONS: usize = 77;

/// What is not written in the tensors' shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClipConfig {
    /// Attention heads.
    pub heads: usize,
    /// The function between the two products of a layer.
    pub activation: Activation,
    /// Which layer's results condition the denoiser.
    pub taken: ClipTaken,
}

/// Which results of a text encoder condition a denoiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipTaken {
    /// The last layer's, normed (SD 1, SD 2).
    Last,
    /// The last layer's but one, as they are (SDXL, SD 3).
    Penultimate,
    /// The last layer's but one, normed (SD 2 with all the layers that OpenCLIP has).
    PenultimateNormed,
}

/// Records the encoder of `chunks` chunks of 77 tokens, each with the positions 0 to 76: [`OutputId::Context`], a row for
/// each token; and [`OutputId::Hidden`], the last layer's results normed, and projected where the file has a projection:
/// the row of the end token is the pooled prompt.
///
/// # Errors
/// [`ModelError`] naming the tensor that is missing, misshapen, or of a type not computed with.
pub fn record_clip(catalog: &dyn WeightCatalog, config: &ClipConfig, chunks: usize) -> Result<Plan, ModelError> {
    let rows = chunks * POSITIONS;
    let g = Graph::new(catalog, StepShape { rows, outs: 0, context: POSITIONS });
    let net = Net { g: &g };
    let table = |name: &str, cols| g.table(name, g.outermost(name).unwrap_or(1), cols);
    let token = "embeddings.token_embedding.weight";
    let width = catalog.find(token).map_or(1, |spec| spec.shape.cols());
    let mut x = g.embed(table(token, width), 1.0);
    x = g.add(x, g.embed_positions(table("embeddings.position_embedding.weight", width)));
    let mut before = x;
    let layers = (0..).take_while(|i| g.has(&format!("encoder.layers.{i}.mlp.fc1.weight"))).count();
    for i in 0..layers {
        before = x;
        let name = |part: &str| format!("encoder.layers.{i}.{part}");
        let y = net.layer_norm(&name("layer_norm1"), x);
        let part = |part: &str| net.linear(&name(&format!("self_attn.{part}_proj")), y);
        let (q, k, v) = (part("q"), part("k"), part("v"));
        let scale = 1.0 / ((width / config.heads.max(1)) as f32).sqrt();
        let y = g.attend(q, k, v, config.heads, scale, POSITIONS, POSITIONS, true);
        x = g.add(net.linear(&name("self_attn.out_proj"), y), x);
        let y = net.linear(&name("mlp.fc1"), net.layer_norm(&name("layer_norm2"), x));
        x = g.add(net.linear(&name("mlp.fc2"), g.activate(y, config.activation)), x);
    }
    let last = net.layer_norm("final_layer_norm", x);
    let taken = match config.taken {
        ClipTaken::Last => last,
        ClipTaken::Penultimate => before,
        ClipTaken::PenultimateNormed => net.layer_norm("final_layer_norm", before),
    };
    let projection = "text_projection";
    let pooled = if g.has(&format!("{projection}.weight")) { net.linear(projection, last) } else { last };
    Ok(g.finish(&[(OutputId::Context, taken), (OutputId::Hidden, pooled)])?)
}
