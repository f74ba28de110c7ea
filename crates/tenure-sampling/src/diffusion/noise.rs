//! Noise of a batch: one stream of normal numbers for each image.

use crate::diffusion::brownian::BrownianTree;
use crate::diffusion::torch_cpu::TorchCpu;
use crate::diffusion::torch_cuda::TorchCuda;
use crate::error::SamplingError;
use crate::philox::Philox;

/// Whose normal numbers a seed stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NoiseKind {
    /// Those of `torch.randn` with a generator of the CPU, in 32-bit floats: what diffusers with a CPU generator,
    /// ComfyUI and A1111's "CPU" source draw.
    TorchCpu,
    /// Those of `torch.randn` with a generator of a CUDA device, in 32-bit floats: what diffusers with a CUDA generator
    /// and A1111's "GPU" source draw.
    TorchCuda {
        /// How many threads the device holds at once: its multiprocessors times the threads of each (82 * 1536 on an RTX
        /// 3090, 128 * 1536 on an RTX 4090, 108 * 2048 on an A100). Draws of up to that many numbers are the same on
        /// all devices; `u32::MAX` takes that for granted, as A1111's "NV" source does.
        resident_threads: u32,
    },
    /// Our own: every number a function of seed and place alone, and none of the random bits thrown away.
    Philox,
}

/// Normal numbers for a batch of images, each with a stream of its own.
#[derive(Debug, Clone)]
pub struct Noise {
    kind: NoiseKind,
    seeds: Vec<u64>,
    streams: Vec<Stream>,
    elements: usize,
    trees: Vec<BrownianTree>,
}

impl Noise {
    /// Streams for `seeds.len()` images of `elements` numbers each. An image's numbers depend on its own seed alone. One
    /// seed for a batch drawn at once, as diffusers does with a single generator, is one "image" of the whole batch.
    ///
    /// # Errors
    /// [`SamplingError::BadDiffusion`] for no image, or images of nothing.
    pub fn new(kind: NoiseKind, seeds: &[u64], elements: usize) -> Result<Self, SamplingError> {
        if seeds.is_empty() {
            return Err(SamplingError::BadDiffusion { field: "number of seeds", value: 0.0 });
        }
        if elements == 0 || elements.checked_mul(seeds.len()).is_none() {
            return Err(SamplingError::BadDiffusion { field: "numbers of an image", value: elements as f64 });
        }
        let streams = seeds.iter().map(|&seed| Stream::new(kind, seed)).collect();
        Ok(Noise { kind, seeds: seeds.to_vec(), streams, elements, trees: Vec::new() })
    }

    /// How many numbers a batch has.
    pub fn len(&self) -> usize {
        self.elements * self.streams.len()
    }

    /// Never: a batch has at least one number.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Draws a batch of standard normal numbers, image after image.
    ///
    /// # Errors
    /// [`SamplingError::LatentLength`] if `out` does not hold a batch; nothing was drawn then.
    pub fn fill(&mut self, out: &mut [f32]) -> Result<(), SamplingError> {
        self.check(out)?;
        for (stream, image) in self.streams.iter_mut().zip(out.chunks_mut(self.elements)) {
            stream.fill(image);
        }
        Ok(())
    }

    /// The same streams where they stand, for images of another size.
    ///
    /// # Errors
    /// [`SamplingError::BadDiffusion`] for images of nothing.
    pub fn resized(mut self, elements: usize) -> Result<Self, SamplingError> {
        if elements == 0 || elements.checked_mul(self.streams.len()).is_none() {
            return Err(SamplingError::BadDiffusion { field: "numbers of an image", value: elements as f64 });
        }
        self.elements = elements;
        self.trees.clear();
        Ok(self)
    }

    /// Back to the first number.
    pub fn reset(&mut self) {
        for (stream, &seed) in self.streams.iter_mut().zip(&self.seeds) {
            stream.reseed(seed);
        }
    }

    /// Standard normal numbers from the images' Brownian paths over the sigmas `range`: the increment from one sigma to
    /// a lower one, over the square root of their distance.
    pub(crate) fn fill_increments(
        &mut self,
        range: (f64, f64),
        sigmas: (f64, f64),
        out: &mut [f32],
    ) -> Result<(), SamplingError> {
        self.check(out)?;
        if self.trees.first().is_none_or(|tree| tree.range() != range) {
            let trees = self.seeds.iter().map(|&seed| BrownianTree::new(self.kind, seed, range, self.elements));
            self.trees = trees.collect::<Result<_, _>>()?;
        }
        for (tree, image) in self.trees.iter_mut().zip(out.chunks_mut(self.elements)) {
            tree.normalised_increment(sigmas.0, sigmas.1, image)?;
        }
        Ok(())
    }

    fn check(&self, out: &[f32]) -> Result<(), SamplingError> {
        match (out.len(), self.len()) {
            (got, want) if got != want => Err(SamplingError::LatentLength { what: "noise", got, want }),
            _ => Ok(()),
        }
    }
}

/// One image's numbers.
#[derive(Debug, Clone)]
pub(crate) enum Stream {
    TorchCpu(Box<TorchCpu>),
    TorchCuda(TorchCuda),
    Philox { philox: Philox, next: u64 },
}

impl Stream {
    pub(crate) fn new(kind: NoiseKind, seed: u64) -> Self {
        match kind {
            NoiseKind::TorchCpu => Stream::TorchCpu(Box::new(TorchCpu::new(seed))),
            NoiseKind::TorchCuda { resident_threads } => Stream::TorchCuda(TorchCuda::new(seed, resident_threads)),
            NoiseKind::Philox => Stream::Philox { philox: Philox::new(seed, 0), next: 0 },
        }
    }

    /// The same kind's numbers of another seed, from the first.
    pub(crate) fn reseed(&mut self, seed: u64) {
        match self {
            Stream::TorchCpu(generator) => **generator = TorchCpu::new(seed),
            Stream::TorchCuda(generator) => generator.reseed(seed),
            Stream::Philox { philox, next } => (*philox, *next) = (Philox::new(seed, 0), 0),
        }
    }

    pub(crate) fn fill(&mut self, out: &mut [f32]) {
        match self {
            Stream::TorchCpu(generator) => generator.fill(out),
            Stream::TorchCuda(generator) => generator.fill(out),
            Stream::Philox { philox, next } => {
                for four in out.chunks_mut(4) {
                    let [a, b, c, d] = philox.block(*next);
                    *next = next.wrapping_add(1);
                    let ([x, y], [z, w]) = (box_muller(a, b), box_muller(c, d));
                    for (place, normal) in four.iter_mut().zip([x, y, z, w]) {
                        *place = normal;
                    }
                }
            }
        }
    }
}

/// Two normal numbers from two words, never infinite.
fn box_muller(a: u32, b: u32) -> [f32; 2] {
    let u = (f64::from(a) + 0.5) / 4_294_967_296.0;
    let radius = (-2.0 * u.ln()).sqrt();
    let (sin, cos) = (f64::from(b) / 4_294_967_296.0 * std::f64::consts::TAU).sin_cos();
    [(radius * cos) as f32, (radius * sin) as f32]
}
