//! The denoiser of Stable Diffusion 3 and 3.5, a transformer over two streams (Esser et al. 2024, arXiv:2403.03206):
//! patches of the image and tokens of the prompt have weights of their own and attend together.

use tenure_graph::{
    Activation, Beside, Graph, Grid, InputId, OutputId, Plan, PlanError, Rows, Slide, StepShape, Val, WeightCatalog,
};

use crate::error::ModelError;
use crate::image::layers::{FINE_EPS, Net};

/// Latent pixels of a side of a patch.
const PATCH: u32 = 2;

/// What is not written in the tensors' shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MmditConfig {
    /// Attention heads.
    pub heads: usize,
    /// Blocks that are left out, counted from 0 (skip-layer guidance).
    pub skipped: Vec<usize>,
}

/// Records one evaluation over `grid` with a prompt of `tokens` for each image: takes [`InputId::Sample`],
/// [`InputId::Timestep`], [`InputId::Context`] and [`InputId::Pooled`], gives [`OutputId::Sample`]. The latents' height and
/// width are even, and no more than twice the side of the square that positions are stored for.
///
/// # Errors
/// [`ModelError`] naming the tensor that is missing, misshapen, or of a type not computed with, or the size that cannot be.
pub fn record_mmdit(
    catalog: &dyn WeightCatalog,
    config: &MmditConfig,
    grid: Grid,
    tokens: usize,
) -> Result<Plan, ModelError> {
    for (what, size) in [("latent height", grid.height), ("latent width", grid.width)] {
        if size == 0 || !size.is_multiple_of(PATCH) {
            return Err(PlanError::BadParameter { op: "mmdit", what, value: size.to_string() }.into());
        }
    }
    let g = Graph::new(catalog, StepShape { rows: 0, outs: 0, context: 0 });
    let net = Net { g: &g };
    let dim =
        |name: &str, at: usize| catalog.find(name).and_then(|spec| spec.shape.dims().get(at).copied()).unwrap_or(1);
    let images = Rows::Fixed(grid.images);

    let embedded = |part: &str, id| {
        let name = |layer: usize| format!("time_text_embed.{part}.linear_{layer}");
        let x = g.input(id, images, dim(&format!("{}.weight", name(1)), 1));
        net.linear(&name(2), net.silu(net.linear(&name(1), x)))
    };
    let time = embedded("timestep_embedder", InputId::Timestep);
    // Everything that is modulated begins with this.
    let time = net.silu(g.add(embedded("text_embedder", InputId::Pooled), time));

    let rows = (grid.images as usize).checked_mul(tokens).and_then(|rows| u32::try_from(rows).ok());
    let rows = rows.ok_or(PlanError::TooLarge)?;
    let context = g.input(InputId::Context, Rows::Fixed(rows), dim("context_embedder.weight", 1));
    let mut context = net.linear("context_embedder", context);

    let channels = dim("pos_embed.proj.weight", 1);
    let x = g.input(InputId::Sample, Rows::Fixed(grid.rows() as u32), channels);
    let slide = Slide { grid, size: PATCH, stride: PATCH, before: 0, after: 0 };
    let (x, patches) = net.slide("pos_embed.proj", x, slide);
    let positions = "pos_embed.pos_embed";
    let side = dim(positions, 1).isqrt();
    let table = g.table(positions, side * side, g.cols(x));
    let mut x = g.add_centre(x, table, side as u32, patches);

    let mmdit = Mmdit { net, heads: config.heads, time, pixels: patches.pixels(), tokens };
    let blocks = (0..).take_while(|i| g.has(&format!("transformer_blocks.{i}.norm1.linear.weight"))).count();
    for i in (0..blocks).filter(|i| !config.skipped.contains(i)) {
        (x, context) = mmdit.block(&format!("transformer_blocks.{i}"), x, context);
    }
    let by = net.linear("norm_out.linear", time);
    // Here the scale comes first.
    let x = g.modulate(mmdit.norm(x), by, 1, 0, patches.pixels());
    let x = g.unpatch(net.linear("proj_out", x), patches, PATCH);
    Ok(g.finish(&[(OutputId::Sample, x)])?)
}

struct Mmdit<'g, 'c> {
    net: Net<'g, 'c>,
    heads: usize,
    time: Val,
    /// Patches of an image.
    pixels: usize,
    tokens: usize,
}

/// Queries, keys and values.
struct Projected {
    q: Val,
    k: Val,
    v: Val,
}

impl Mmdit<'_, '_> {
    fn norm(&self, x: Val) -> Val {
        self.net.g.layer_norm(x, None, None, FINE_EPS)
    }

    /// Attention of both streams together, of the image's alone where the block has weights for it, then each stream's own
    /// layers. A block that ends the prompt's stream only lends it to the image's.
    fn block(&self, name: &str, x: Val, context: Val) -> (Val, Val) {
        let (g, net) = (self.net.g, self.net);
        let name = |part: &str| format!("{name}.{part}");
        let goes_on = g.has(&name("ff_context.net.0.proj.weight"));
        let by = net.linear(&name("norm1.linear"), self.time);
        let by_context = net.linear(&name("norm1_context.linear"), self.time);

        let normed = self.norm(x);
        let image = self.projected(&name("attn"), IMAGE, g.modulate(normed, by, 0, 1, self.pixels));
        // Shift, then scale; a stream that ends has the scale first.
        let (shift, scale) = if goes_on { (0, 1) } else { (1, 0) };
        let y = g.modulate(self.norm(context), by_context, shift, scale, self.tokens);
        let prompt = self.projected(&name("attn"), PROMPT, y);

        let y = self.attend(image.q, self.pixels, &image, Some(&prompt));
        let mut x = g.add_gated(x, net.linear(&name("attn.to_out.0"), y), by, 2, self.pixels);
        if g.has(&name("attn2.to_q.weight")) {
            let alone = self.projected(&name("attn2"), IMAGE, g.modulate(normed, by, 6, 7, self.pixels));
            let y = self.attend(alone.q, self.pixels, &alone, None);
            x = g.add_gated(x, net.linear(&name("attn2.to_out.0"), y), by, 8, self.pixels);
        }
        x = self.feed_forward(&name("ff"), x, by, self.pixels);
        if !goes_on {
            return (x, context);
        }
        let y = self.attend(prompt.q, self.tokens, &image, Some(&prompt));
        let context = g.add_gated(context, net.linear(&name("attn.to_add_out"), y), by_context, 2, self.tokens);
        (x, self.feed_forward(&name("ff_context"), context, by_context, self.tokens))
    }

    /// Two products with a function between them, around which `x` goes.
    fn feed_forward(&self, name: &str, x: Val, by: Val, every: usize) -> Val {
        let (g, net) = (self.net.g, self.net);
        let y = net.linear(&format!("{name}.net.0.proj"), g.modulate(self.norm(x), by, 3, 4, every));
        let y = net.linear(&format!("{name}.net.2"), g.activate(y, Activation::GeluTanh));
        g.add_gated(x, y, by, 5, every)
    }

    fn projected(&self, name: &str, parts: Parts, x: Val) -> Projected {
        let g = self.net.g;
        let part = |part: &str| self.net.linear(&format!("{name}.{part}"), x);
        let normed = |norm: &str, y: Val| {
            // Of each head, where the file has such norms.
            let norm = g.vector_opt(&format!("{name}.{norm}.weight"), g.cols(y) / self.heads.max(1));
            norm.map_or(y, |norm| g.rms_norm(y, norm, FINE_EPS))
        };
        let Parts { q, k, v, norm_q, norm_k } = parts;
        Projected { q: normed(norm_q, part(q)), k: normed(norm_k, part(k)), v: part(v) }
    }

    fn attend(&self, q: Val, queries: usize, image: &Projected, prompt: Option<&Projected>) -> Val {
        let g = self.net.g;
        let beside = prompt.map(|&Projected { k, v, .. }| Beside { k, v, keys: self.tokens });
        let scale = 1.0 / ((g.cols(q) / self.heads.max(1)) as f32).sqrt();
        g.attend_with(q, image.k, image.v, beside, self.heads, scale, queries, self.pixels, false, None)
    }
}

/// What the weights of queries, keys and values are called, and those of their norms.
struct Parts {
    q: &'static str,
    k: &'static str,
    v: &'static str,
    norm_q: &'static str,
    norm_k: &'static str,
}

const IMAGE: Parts = Parts { q: "to_q", k: "to_k", v: "to_v", norm_q: "norm_q", norm_k: "norm_k" };
const PROMPT: Parts =
    Parts { q: "add_q_proj", k: "add_k_proj", v: "add_v_proj", norm_q: "norm_added_q", norm_k: "norm_added_k" };
