//! Layers that image models share.

use tenure_graph::{Activation, Graph, Grid, Slide, Val, WeightId};

/// Groups of every group norm.
const GROUPS: usize = 32;
/// Added to the variance by the group norms of residual blocks of denoisers.
pub(crate) const RESIDUAL_EPS: f32 = 1e-5;
/// By those of autoencoders, and before transformers.
pub(crate) const FINE_EPS: f32 = 1e-6;
/// By layer norms.
const LAYER_EPS: f32 = 1e-5;

/// A network over images being recorded.
#[derive(Clone, Copy)]
pub(crate) struct Net<'g, 'c> {
    pub(crate) g: &'g Graph<'c>,
}

impl Net<'_, '_> {
    fn results(&self, name: &str) -> usize {
        // What is missing is named when it is taken.
        self.g.outermost(&format!("{name}.weight")).unwrap_or(1)
    }

    fn bias(&self, name: &str, n: usize) -> Option<WeightId> {
        self.g.vector_opt(&format!("{name}.bias"), n)
    }

    /// `x @ w^T`, plus the bias if the file has one; also a kernel of one pixel.
    pub(crate) fn linear(&self, name: &str, x: Val) -> Val {
        let n = self.results(name);
        self.g.matmul(x, self.g.matrix(&format!("{name}.weight"), n, self.g.cols(x)), self.bias(name, n))
    }

    pub(crate) fn slide(&self, name: &str, x: Val, slide: Slide) -> (Val, Grid) {
        let n = self.results(name);
        let kernel = self.g.kernel(&format!("{name}.weight"), n, self.g.cols(x), slide.size as usize);
        (self.g.conv2d(x, kernel, self.bias(name, n), slide), slide.result().unwrap_or(slide.grid))
    }

    /// A kernel of 3 by 3 pixels whose results are as many as the pixels.
    pub(crate) fn conv(&self, name: &str, x: Val, grid: Grid) -> Val {
        self.slide(name, x, Slide { grid, size: 3, stride: 1, before: 1, after: 1 }).0
    }

    /// A kernel of 3 by 3 pixels that takes every second place, with so many zeros before.
    pub(crate) fn halve(&self, name: &str, x: Val, grid: Grid, before: u32) -> (Val, Grid) {
        self.slide(name, x, Slide { grid, size: 3, stride: 2, before, after: 1 })
    }

    /// The nearest pixel four times, to the size that was halved to this one, then a kernel.
    pub(crate) fn double_to(&self, name: &str, x: Val, grid: Grid, to: Grid) -> Val {
        self.conv(name, self.g.upsample(x, grid, to), to)
    }

    /// The nearest pixel four times, then a kernel.
    pub(crate) fn double(&self, name: &str, x: Val, grid: Grid) -> (Val, Grid) {
        let to = Grid { height: grid.height * 2, width: grid.width * 2, ..grid };
        (self.double_to(name, x, grid, to), to)
    }

    pub(crate) fn group_norm(&self, name: &str, x: Val, eps: f32, grid: Grid) -> Val {
        let g = self.g;
        let vector = |part| g.vector(&format!("{name}.{part}"), g.cols(x));
        g.group_norm(x, vector("weight"), vector("bias"), GROUPS, eps, grid.pixels())
    }

    pub(crate) fn layer_norm(&self, name: &str, x: Val) -> Val {
        let g = self.g;
        let vector = |part| g.vector(&format!("{name}.{part}"), g.cols(x));
        g.layer_norm(x, Some(vector("weight")), Some(vector("bias")), LAYER_EPS)
    }

    pub(crate) fn silu(&self, x: Val) -> Val {
        self.g.activate(x, Activation::Silu)
    }

    /// Two kernels with norms before them, around which `x` goes; `time`: a row for each image, added in between.
    pub(crate) fn residual(&self, name: &str, x: Val, time: Option<Val>, eps: f32, grid: Grid) -> Val {
        let norm = |part: &str, x| self.silu(self.group_norm(&format!("{name}.{part}"), x, eps, grid));
        let mut y = self.conv(&format!("{name}.conv1"), norm("norm1", x), grid);
        if let Some(time) = time {
            y = self.g.add_row(y, self.linear(&format!("{name}.time_emb_proj"), time), grid.pixels());
        }
        let y = self.conv(&format!("{name}.conv2"), norm("norm2", y), grid);
        let around = format!("{name}.conv_shortcut");
        let x = if self.g.has(&format!("{around}.weight")) { self.linear(&around, x) } else { x };
        self.g.add(y, x)
    }

    /// Attention of `x` over `of`, within images (or prompts) of so many rows.
    pub(crate) fn attention(&self, name: &str, x: Val, of: Val, heads: usize, queries: usize, keys: usize) -> Val {
        let part = |part: &str, x| self.linear(&format!("{name}.{part}"), x);
        let (q, k, v) = (part("to_q", x), part("to_k", of), part("to_v", of));
        let head_dim = self.g.cols(q) / heads.max(1);
        let scale = 1.0 / (head_dim as f32).sqrt();
        part("to_out.0", self.g.attend(q, k, v, heads, scale, queries, keys, false))
    }
}
