//! A Brownian path as a binary tree of bridges, each with a seed of its own, so that an increment between any two
//! points is the same whatever else is asked (Li et al., <https://arxiv.org/abs/2001.01328>).
//!
//! Seeds and arithmetic are those of torchsde's `BrownianInterval(tol=1e-6, pool_size=24, halfway_tree=True)`, which the
//! SDE samplers of k-diffusion and diffusers draw from: the numbers are theirs wherever those of the generator are.

use crate::diffusion::noise::{NoiseKind, Stream};
use crate::diffusion::seed_sequence::seed_words;
use crate::error::SamplingError;

/// Halvings down to the resolution: 2^40 millionths is far beyond any sigma.
const DEPTH: usize = 44;

/// One image's Brownian path over an interval of sigmas.
#[derive(Debug, Clone)]
pub struct BrownianTree {
    seed: u64,
    /// Seeded anew for each node.
    stream: Stream,
    range: (f64, f64),
    /// The increment over the whole interval, then over the node in hand of each depth.
    increments: Vec<Vec<f32>>,
    normals: Vec<f32>,
}

/// A part of the interval, of which there are 2^depth, counted from the left by `key`.
#[derive(Clone, Copy)]
struct Node {
    start: f64,
    end: f64,
    key: u64,
    depth: usize,
}

impl BrownianTree {
    /// The path of `elements` numbers from sigma `range.0` to sigma `range.1`.
    ///
    /// # Errors
    /// [`SamplingError::BadDiffusion`] unless 0 <= range.0 < range.1 <= 10^6, or for no elements.
    pub fn new(kind: NoiseKind, seed: u64, range: (f64, f64), elements: usize) -> Result<Self, SamplingError> {
        if !(range.0 >= 0.0 && range.0 < range.1 && range.1 <= 1e6) {
            let value = if range.0 >= 0.0 { range.1 } else { range.0 };
            return Err(SamplingError::BadDiffusion { field: "range of sigmas", value });
        }
        if elements == 0 {
            return Err(SamplingError::BadDiffusion { field: "numbers of an image", value: 0.0 });
        }
        let [root, ..] = seed_words(seed, None);
        let stream = Stream::new(kind, u64::from(root));
        let (increments, normals) = (vec![vec![0.0; elements]], vec![0.0; elements]);
        let mut tree = BrownianTree { seed, stream, range, increments, normals };
        tree.stream.fill(&mut tree.normals);
        let scale = (range.1 - range.0).sqrt() as f32;
        if let Some(whole) = tree.increments.first_mut() {
            for (w, normal) in whole.iter_mut().zip(&tree.normals) {
                *w = normal * scale;
            }
        }
        Ok(tree)
    }

    /// The interval.
    pub fn range(&self) -> (f64, f64) {
        self.range
    }

    /// The path's increment from sigma `from` to sigma `to`, held within the interval and rounded to six digits.
    ///
    /// # Errors
    /// [`SamplingError::LatentLength`] for an `out` of another length than the path, [`SamplingError::BadDiffusion`] for
    /// a NaN.
    pub fn increment(&mut self, from: f64, to: f64, out: &mut [f32]) -> Result<(), SamplingError> {
        if out.len() != self.normals.len() {
            return Err(SamplingError::LatentLength { what: "noise", got: out.len(), want: self.normals.len() });
        }
        if from.is_nan() || to.is_nan() {
            return Err(SamplingError::BadDiffusion { field: "sigma", value: f64::NAN });
        }
        let root = Node { start: six_digits(self.range.0), end: six_digits(self.range.1), key: 0, depth: 0 };
        let held = |sigma: f64| six_digits(sigma.clamp(root.start, root.end));
        let (low, high) = (held(from.min(to)), held(from.max(to)));
        out.fill(0.0);
        if low < high {
            self.add(root, low, high, out);
        }
        if from > to {
            for w in out {
                *w = -*w;
            }
        }
        Ok(())
    }

    /// The increment over the square root of the distance: a standard normal number.
    pub(crate) fn normalised_increment(&mut self, from: f64, to: f64, out: &mut [f32]) -> Result<(), SamplingError> {
        self.increment(from, to, out)?;
        let root = (to as f32 - from as f32).abs().sqrt();
        if root > 0.0 {
            for w in out {
                *w /= root;
            }
        }
        Ok(())
    }

    /// Adds the increment from `low` to `high`, both within the node, from left to right.
    fn add(&mut self, node: Node, low: f64, high: f64, out: &mut [f32]) {
        if low == node.start && high == node.end || node.depth == DEPTH {
            if let Some(increment) = self.increments.get(node.depth) {
                for (sum, w) in out.iter_mut().zip(increment) {
                    *sum += w;
                }
            }
            return;
        }
        let middle = six_digits(0.5 * (node.end + node.start));
        let (key, depth) = (2 * node.key, node.depth + 1);
        self.split(node, middle);
        if low < middle {
            self.add(Node { end: middle, key, depth, ..node }, low, high.min(middle), out);
        }
        if high > middle {
            if let Some((parent, left)) = self.pair(node.depth) {
                for (w, whole) in left.iter_mut().zip(parent) {
                    *w = whole - *w;
                }
            }
            self.add(Node { start: middle, key: key + 1, depth, ..node }, low.max(middle), high, out);
        }
    }

    /// The increment over a node's left half, by the bridge between its ends, into the next depth.
    fn split(&mut self, node: Node, middle: f64) {
        let [seed, ..] = seed_words(self.seed, Some((node.key, node.depth as u64)));
        self.stream.reseed(u64::from(seed));
        self.stream.fill(&mut self.normals);
        if self.increments.len() <= node.depth + 1 {
            self.increments.push(vec![0.0; self.normals.len()]);
        }
        let (left, right) = (middle - node.start, node.end - middle);
        let reciprocal = 1.0 / (node.end - node.start);
        let deviation = (left * right * reciprocal).max(0.0).sqrt() as f32;
        let (length, reciprocal) = (left as f32, reciprocal as f32);
        let normals = std::mem::take(&mut self.normals);
        if let Some((parent, half)) = self.pair(node.depth) {
            for ((w, whole), normal) in half.iter_mut().zip(parent).zip(&normals) {
                *w = length * whole * reciprocal + deviation * normal;
            }
        }
        self.normals = normals;
    }

    /// The increments of a depth and of the next.
    fn pair(&mut self, depth: usize) -> Option<(&[f32], &mut [f32])> {
        match self.increments.get_mut(depth..depth + 2) {
            Some([parent, child]) => Some((parent, child)),
            _ => None,
        }
    }
}

/// Rounded to the tree's resolution in decimal digits, ties by the exact binary value.
fn six_digits(sigma: f64) -> f64 {
    let millionths = sigma * 1e6;
    let lost = sigma.mul_add(1e6, -millionths);
    let (floor, rest) = (millionths.floor(), millionths - millionths.floor());
    // What the product has lost decides a tie.
    let up = rest > 0.5 || rest == 0.5 && (lost > 0.0 || lost == 0.0 && floor % 2.0 == 1.0);
    (if up { floor + 1.0 } else { floor }) / 1e6
}
