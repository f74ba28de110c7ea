//! The encoder of T5 version 1.1 (Raffel et al. 2019, arXiv:1910.10683; gated units: Shazeer 2020, arXiv:2002.05202).

use tenure_graph::{Activation, Buckets, Graph, OutputId, Plan, RelativeBias, StepShape, Val, WeightCatalog};

use crate::error::ModelError;
use crate::image::layers::Net;

/// Added to the mean square by the norms.
const EPS: f32 = 1e-6;
/// The distance from which on all share one bucket.
const MAX_DISTANCE: usize = 128;

/// Records the encoder of `sequences` prompts of so many `tokens` each, all of which see each other whatever they are:
/// [`OutputId::Context`], a row for each token, the last layer's results normed. Positions of a step are not looked at
/// beyond their bound: a row's place in its prompt is its place in the step.
///
/// Names are those of transformers; the table of tokens is `shared.weight` or `encoder.embed_tokens.weight`.
///
/// # Errors
/// [`ModelError`] naming the tensor that is missing, misshapen, or of a type not computed with.
pub fn record_t5(catalog: &dyn WeightCatalog, tokens: usize, sequences: usize) -> Result<Plan, ModelError> {
    let rows = tokens.saturating_mul(sequences);
    let g = Graph::new(catalog, StepShape { rows, outs: 0, context: tokens });
    let net = Net { g: &g };
    let dims = |name: &str| (g.outermost(name).unwrap_or(1), catalog.find(name).map_or(1, |spec| spec.shape.cols()));
    let shared = "shared.weight";
    let table = if g.has(shared) { shared } else { "encoder.embed_tokens.weight" };
    let (vocab, width) = dims(table);
    let mut x = g.embed(g.table(table, vocab, width), 1.0);
    let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let (count, heads) = dims(bias);
    let buckets = Buckets { count, max_distance: MAX_DISTANCE };
    let bias = RelativeBias { table: g.vectors(bias, count, heads), buckets };

    let norm = |name: &str, x: Val| g.rms_norm(x, g.vector(&format!("{name}.weight"), width), EPS);
    let layers = (0..).take_while(|i| g.has(&format!("encoder.block.{i}.layer.0.layer_norm.weight"))).count();
    for i in 0..layers {
        let name = |part: &str| format!("encoder.block.{i}.layer.{part}");
        let y = norm(&name("0.layer_norm"), x);
        let part = |part: &str, x| net.linear(&name(&format!("0.SelfAttention.{part}")), x);
        let (q, k, v) = (part("q", y), part("k", y), part("v", y));
        // Scores are not divided by the root of the head's size: the weights are trained so.
        let y = g.attend_with(q, k, v, None, heads, 1.0, tokens, tokens, false, Some(bias));
        x = g.add(part("o", y), x);
        let y = norm(&name("1.layer_norm"), x);
        let part = |part: &str, x| net.linear(&name(&format!("1.DenseReluDense.{part}")), x);
        let y = g.glu(part("wi_0", y), part("wi_1", y), Activation::GeluTanh);
        x = g.add(part("wo", y), x);
    }
    let x = norm("encoder.final_layer_norm", x);
    Ok(g.finish(&[(OutputId::Context, x)])?)
}
