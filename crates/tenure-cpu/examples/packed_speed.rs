//! Speed of products with packed weights on one thread, beside what the machine can do at most.
//!
//! `cargo run --release -p tenure-cpu --example packed_speed [ROUNDS]`: each round measures everything once; the best
//! of the rounds is printed.

use std::hint::black_box;

use tenure_cpu::simd::act8::{self, Act8};
use tenure_cpu::simd::packed::{self, Out, ROWS};
use tenure_cpu::simd::{Isa, bounds};
use tenure_tensor::DType;

const COLS: usize = 1536;
/// Bytes of weights for one token: more than caches hold.
const STREAM: usize = 96 << 20;
const FORMATS: [DType; 13] = [
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2K,
    DType::Q3K,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
    DType::IQ4NL,
    DType::IQ4XS,
    DType::MXFP4,
];

fn seconds(work: impl FnOnce()) -> f64 {
    let begun = clock();
    work();
    clock() - begun
}

/// Processor time of this thread, so that other processes' turns do not count.
fn clock() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(3);
    let isa = Isa::best();
    println!("{isa:?}; int8 peak {:.0} GOP/s", bounds::int8_peak(isa, 1, 5) / 1e9);
    println!("format  pack GB/s | 1 token GB/s  of read | GOP/s at 2  4  8  64  512 tokens");
    for dtype in FORMATS {
        if only.as_ref().is_some_and(|o| o != dtype.name()) {
            continue;
        }
        let row = dtype.row_bytes(COLS).unwrap_or(0);
        let panel = packed::panel_bytes(dtype, COLS).unwrap_or(0);
        let count = STREAM / panel;
        let mut seed = 9u32;
        let file: Vec<u8> = (0..ROWS * row)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // No exponent of an f16 that is not finite.
                (seed >> 24) as u8 & 0x3b | 0x20
            })
            .collect();
        let mut weights = vec![0u8; panel * count + 64];
        let start = weights.as_ptr().align_offset(64);
        let weights = &mut weights[start..start + panel * count];
        let x: Vec<f32> = (0..COLS * 512).map(|i| (i % 61) as f32 - 30.0).collect();
        let mut acts = vec![0u8; act8::bytes(512, COLS)];
        for (x, acts) in x.chunks_exact(COLS).zip(acts.chunks_exact_mut(act8::bytes(1, COLS))) {
            act8::quantize(isa, x, acts);
        }
        let mut out = vec![0.0f32; 512 * ROWS * 64.max(count)];
        let mut pack = f64::INFINITY;
        let (mut one, mut read) = (f64::INFINITY, f64::INFINITY);
        let mut many = [f64::INFINITY; 5];
        for _ in 0..rounds {
            pack = pack.min(seconds(|| {
                for panel in weights.chunks_exact_mut(panel) {
                    packed::pack_panel(dtype, COLS, &file, panel);
                }
            }));
            for _ in 0..2 {
                read = read.min(seconds(|| {
                    let words: &[u64] = bytemuck::cast_slice(&weights[..weights.len() / 64 * 64]);
                    let mut sums = [0u64; 8];
                    for line in words.chunks_exact(8) {
                        for (sum, word) in sums.iter_mut().zip(line) {
                            *sum ^= word;
                        }
                    }
                    black_box(sums);
                }));
                let mut product = |panels: &[u8], tokens: usize| {
                    let acts = Act8::new(&acts[..act8::bytes(tokens, COLS)], tokens, COLS);
                    let features = panels.len() / panel * ROWS;
                    let out = Out { base: out.as_mut_ptr(), stride: features, features, add: false };
                    // SAFETY: `out` has room for all.
                    seconds(|| unsafe { packed::matmul(isa, dtype, panels, acts, out) })
                };
                one = one.min(product(weights, 1));
                // Brings the panels of the next measurements into the cache.
                product(&weights[..36 * panel], 2);
                for (best, tokens) in many.iter_mut().zip([2, 4, 8, 64, 512]) {
                    *best = best.min(product(&weights[..36 * panel], tokens));
                }
            }
        }
        let bytes = weights.len() as f64 / 1e9;
        print!(
            "{:7} {:5.1} | {:5.1} {:5.2} | {:5.1} |",
            dtype.name(),
            (row * ROWS * count) as f64 / 1e9 / pack,
            bytes / one,
            read / one,
            bytes / lone
        );
        for (seconds, tokens) in many.iter().zip([2, 4, 8, 64, 512]) {
            print!(" {:5.0}", (2 * 36 * ROWS * COLS * tokens) as f64 / 1e9 / seconds);
        }
        println!();
    }
}
