//! Normal numbers as torch draws them with a generator of a CUDA device, in 32-bit floats: Philox4x32-10 with one
//! subsequence for each thread, four numbers at a time, and cuRAND's Box-Muller transform.
//!
//! Torch starts a thread for each number up to as many as the device can hold at once, in blocks of 256; thread t
//! writes its four numbers a whole grid apart. Up to that many numbers the result is the same on every device: number i
//! is the first of the four of subsequence i. Larger draws depend on the device.

use crate::philox::Philox;

const BLOCK: usize = 256;

/// What `torch.Generator("cuda").manual_seed(seed)` is on a device.
#[derive(Debug, Clone)]
pub(crate) struct TorchCuda {
    seed: u64,
    /// The most threads in a grid.
    resident: usize,
    /// Blocks of four words that each subsequence has given.
    offset: u64,
}

impl TorchCuda {
    /// `resident` is how many threads the device can hold at once: multiprocessors times threads of each.
    pub(crate) fn new(seed: u64, resident: u32) -> Self {
        TorchCuda { seed, resident: resident as usize, offset: 0 }
    }

    pub(crate) fn reseed(&mut self, seed: u64) {
        (self.seed, self.offset) = (seed, 0);
    }

    /// `torch.randn(out.len(), device="cuda", generator=self)`.
    pub(crate) fn fill(&mut self, out: &mut [f32]) {
        let blocks = out.len().div_ceil(BLOCK).min((self.resident / BLOCK).max(1)).max(1);
        let grid = blocks * BLOCK;
        for (round, out) in out.chunks_mut(grid.saturating_mul(4)).enumerate() {
            for thread in 0..grid.min(out.len()) {
                let words = Philox::new(self.seed, thread as u64).block(self.offset + round as u64);
                let [a, b, c, d] = words;
                let [x, y] = box_muller(a, b);
                let [z, w] = box_muller(c, d);
                for (i, normal) in [x, y, z, w].into_iter().enumerate() {
                    if let Some(place) = out.get_mut(thread + i * grid) {
                        *place = normal;
                    }
                }
            }
        }
        self.offset += out.len().div_ceil(grid.saturating_mul(4)) as u64;
    }
}

/// In the roundings of 32-bit floats, where a difference would show in the tails.
fn box_muller(x: u32, y: u32) -> [f32; 2] {
    const UNIT: f32 = 1.0 / 4_294_967_296.0;
    const TURN: f32 = UNIT * std::f32::consts::TAU;
    let u = (x as f32).mul_add(UNIT, UNIT / 2.0);
    let v = (y as f32).mul_add(TURN, TURN / 2.0);
    let radius = (-2.0 * f64::from(u).ln()).max(0.0).sqrt();
    let (sin, cos) = f64::from(v).sin_cos();
    [(radius * sin) as f32, (radius * cos) as f32]
}
