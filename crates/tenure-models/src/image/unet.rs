//! The U-Net of Stable Diffusion 1 and 2 and of SDXL (Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023,
//! arXiv:2307.01952).

use tenure_graph::{Activation, Graph, Grid, InputId, OutputId, Plan, Rows, StepShape, Val, WeightCatalog};

use crate::error::ModelError;
use crate::image::layers::{FINE_EPS, Net, RESIDUAL_EPS};

/// What is not written in the tensors' shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnetConfig {
    /// Attention heads at each level, outermost first; the last is also the middle's.
    pub heads: Vec<usize>,
    /// Columns of the sinusoids of the guidance, where the network is told it (latent consistency models, Luo et al. 2023,
    /// arXiv:2310.04378) and so answers as if it had been guided.
    pub guidance: Option<usize>,
}

/// Records one evaluation over `grid` with a prompt of `tokens` for each image: takes [`InputId::Sample`], [`InputId::Timestep`],
/// [`InputId::Context`], [`InputId::Guidance`] where the network is told it, and where the file has such weights
/// [`InputId::Pooled`]; gives [`OutputId::Sample`].
///
/// # Errors
/// [`ModelError`] naming the tensor that is missing, misshapen, or of a type not computed with.
pub fn record_unet(
    catalog: &dyn WeightCatalog,
    config: &UnetConfig,
    grid: Grid,
    tokens: usize,
) -> Result<Plan, ModelError> {
    let g = Graph::new(catalog, StepShape { rows: 0, outs: 0, context: 0 });
    let net = Net { g: &g };
    let dim =
        |name: &str, at: usize| catalog.find(name).and_then(|spec| spec.shape.dims().get(at).copied()).unwrap_or(1);
    let images = Rows::Fixed(grid.images);

    let time = g.input(InputId::Timestep, images, dim("time_embedding.linear_1.weight", 1));
    let time = match config.guidance {
        Some(cols) => g.add(net.linear(TOLD_GUIDANCE, g.input(InputId::Guidance, images, cols)), time),
        None => time,
    };
    let time = net.linear("time_embedding.linear_2", net.silu(net.linear("time_embedding.linear_1", time)));
    let added = "add_embedding.linear_1";
    let time = if g.has(&format!("{added}.weight")) {
        let pooled = g.input(InputId::Pooled, images, dim(&format!("{added}.weight"), 1));
        let pooled = net.linear("add_embedding.linear_2", net.silu(net.linear(added, pooled)));
        g.add(pooled, time)
    } else {
        time
    };
    // Every residual block begins with this.
    let time = net.silu(time);
    // The middle has attention in every such model.
    let width = dim("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1);
    let context = g.input(InputId::Context, Rows::Fixed(grid.images * tokens as u32), width);
    let unet = Unet { net, config, context, time, tokens };

    let channels = dim("conv_in.weight", 1);
    let x = g.input(InputId::Sample, Rows::Fixed(grid.rows() as u32), channels);
    let mut x = net.conv("conv_in", x, grid);
    let (mut grid, mut kept) = (grid, vec![(x, grid)]);
    let levels = (0..).take_while(|i| g.has(&format!("down_blocks.{i}.resnets.0.conv1.weight"))).count();
    for level in 0..levels {
        let name = format!("down_blocks.{level}");
        for i in 0..unet.count(&name) {
            x = unet.block(&name, i, x, level, grid);
            kept.push((x, grid));
        }
        let halve = format!("{name}.downsamplers.0.conv");
        if g.has(&format!("{halve}.weight")) {
            (x, grid) = net.halve(&halve, x, grid, 1);
            kept.push((x, grid));
        }
    }
    x = net.residual("mid_block.resnets.0", x, Some(time), RESIDUAL_EPS, grid);
    x = unet.transformer("mid_block.attentions.0", x, levels.saturating_sub(1), grid);
    x = net.residual("mid_block.resnets.1", x, Some(time), RESIDUAL_EPS, grid);
    for at in 0..levels {
        let name = format!("up_blocks.{at}");
        for i in 0..unet.count(&name) {
            if let Some((before, _)) = kept.pop() {
                x = g.concat(x, before);
            }
            x = unet.block(&name, i, x, levels - 1 - at, grid);
        }
        let double = format!("{name}.upsamplers.0.conv");
        if g.has(&format!("{double}.weight")) {
            // What was halved may have had an odd size.
            let to = kept.last().map_or(grid, |&(_, grid)| grid);
            (x, grid) = (net.double_to(&double, x, grid, to), to);
        }
    }
    let x = net.conv("conv_out", net.silu(net.group_norm("conv_norm_out", x, RESIDUAL_EPS, grid)), grid);
    Ok(g.finish(&[(OutputId::Sample, x)])?)
}

/// The matrix that what the network is told of the guidance goes through.
pub(crate) const TOLD_GUIDANCE: &str = "time_embedding.cond_proj";

struct Unet<'g, 'c> {
    net: Net<'g, 'c>,
    config: &'g UnetConfig,
    context: Val,
    time: Val,
    tokens: usize,
}

impl Unet<'_, '_> {
    /// Residual blocks of a level.
    fn count(&self, name: &str) -> usize {
        (0..).take_while(|i| self.net.g.has(&format!("{name}.resnets.{i}.conv1.weight"))).count()
    }

    /// A residual block, and the transformer behind it if there is one.
    fn block(&self, name: &str, i: usize, x: Val, level: usize, grid: Grid) -> Val {
        let x = self.net.residual(&format!("{name}.resnets.{i}"), x, Some(self.time), RESIDUAL_EPS, grid);
        let name = format!("{name}.attentions.{i}");
        if self.net.g.has(&format!("{name}.proj_in.weight")) { self.transformer(&name, x, level, grid) } else { x }
    }

    /// Self-attention, attention over the prompt and a gated unit, so many times, around which `x` goes.
    fn transformer(&self, name: &str, x: Val, level: usize, grid: Grid) -> Val {
        let (net, g) = (self.net, self.net.g);
        let heads = self.config.heads.get(level).copied().unwrap_or(0);
        let mut y = net.linear(&format!("{name}.proj_in"), net.group_norm(&format!("{name}.norm"), x, FINE_EPS, grid));
        let block = |i: usize, part: &str| format!("{name}.transformer_blocks.{i}.{part}");
        let depth = (0..).take_while(|&i| g.has(&block(i, "norm1.weight"))).count();
        for i in 0..depth {
            let pixels = grid.pixels();
            let z = net.layer_norm(&block(i, "norm1"), y);
            y = g.add(net.attention(&block(i, "attn1"), z, z, heads, pixels, pixels), y);
            let z = net.layer_norm(&block(i, "norm2"), y);
            y = g.add(net.attention(&block(i, "attn2"), z, self.context, heads, pixels, self.tokens), y);
            let z = net.linear(&block(i, "ff.net.0.proj"), net.layer_norm(&block(i, "norm3"), y));
            y = g.add(net.linear(&block(i, "ff.net.2"), g.glu_halves(z, Activation::Gelu)), y);
        }
        g.add(net.linear(&format!("{name}.proj_out"), y), x)
    }
}
