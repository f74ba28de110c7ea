//! How fast the float and attention kernels are, next to what the machine can do.
//!
//! `cargo run --release -p tenure-cpu --example float_speed [threads]`; every figure is the best of several rounds.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use half::f16;
use tenure_cpu::simd::attention::{
    CHUNK, HeadsOut, KvView, Queries, Scoring, attention, attention_chunk, block_bytes, merge, partial_floats,
    scratch_floats, store,
};
use tenure_cpu::simd::{Isa, bounds, float};
use tenure_graph::{Activation, KV_BLOCK, KvType};
use tenure_tensor::DType;

const ROUNDS: usize = 7;

/// The attention of a small model: 9 query heads on 3 KV heads of 64 dimensions, in 30 layers.
const LAYERS: usize = 30;
const KV_HEADS: usize = 3;
const GROUP: usize = 3;
const HEAD_DIM: usize = 64;

fn main() {
    let threads = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(1);
    let bandwidth = bounds::read_bandwidth(threads, ROUNDS);
    println!("threads {threads}; plain reads {:.1} GB/s", bandwidth / 1e9);
    for isa in Isa::available().into_iter().rev() {
        println!("{isa:?}");
        if isa == Isa::Avx2 {
            println!("  multiply-adds in registers {:.1} GFLOP/s", fma_peak(threads) / 1e9);
        }
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            for rows in [1, 2, 4, 8] {
                let (bytes, seconds) = decode(isa, dtype, rows, threads);
                println!("  {dtype} x {rows} rows {:.1} GB/s", bytes / seconds / 1e9);
            }
        }
        for dtype in [DType::F16, DType::F32] {
            for (features, cols) in [(1536, 576), (576, 1536), (896, 4864)] {
                let speed = prefill(isa, dtype, features, cols, threads);
                println!("  {dtype} {features}x{cols} x 512 rows {:.1} GFLOP/s", speed / 1e9);
            }
        }
        for kv in [KvType::F16, KvType::F32, KvType::Q8_0] {
            let (bytes, seconds) = attention_decode(isa, kv, 4096, threads);
            println!("  attention {kv:?}, 1 row at 4096: {:.2} ms, {:.1} GB/s", seconds * 1e3, bytes / seconds / 1e9);
        }
        for (kv, before) in [(KvType::F16, 0), (KvType::F16, 3584), (KvType::F32, 0), (KvType::Q8_0, 0)] {
            let speed = attention_prefill(isa, kv, before, 512, threads);
            println!("  attention {kv:?}, 512 rows after {before}: {:.1} GFLOP/s", speed / 1e9);
        }
        let mut gate = vec![0.7; 1536];
        let up = vec![0.3; 1536];
        let seconds = best(|| (0..1000).for_each(|_| float::glu(isa, Activation::Silu, black_box(&mut gate), &up)));
        println!("  silu gate {:.2} ns an element", seconds / 1000.0 / 1536.0 * 1e9);
        let mut out = vec![0.0; 576];
        let seconds = best(|| {
            (0..1000).for_each(|_| float::rms_norm(isa, black_box(&up[..576]), Some(&up[..576]), 1e-5, &mut out));
        });
        println!("  norm of 576 {:.0} ns", seconds / 1000.0 * 1e9);
    }
}

fn best(mut work: impl FnMut()) -> f64 {
    (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// Lets `threads` threads take the numbers below `count` one by one.
fn share(threads: usize, count: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let next = AtomicUsize::new(0);
    let member = || {
        let mut scratch = vec![0.0; scratch_floats(HEAD_DIM)];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            work(number, &mut scratch);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(member);
        }
        member();
    });
}

fn weights(dtype: DType, count: usize) -> Vec<u8> {
    let value = |i: usize| (i * 7 % 31) as f32 / 31.0 - 0.5;
    match dtype {
        DType::F32 => (0..count).flat_map(|i| value(i).to_le_bytes()).collect(),
        DType::BF16 => (0..count).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect(),
        _ => (0..count).flat_map(|i| f16::from_f32(value(i)).to_le_bytes()).collect(),
    }
}

/// A raw pointer that threads share; they write disjoint elements.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: see above.
unsafe impl Send for Shared {}
// SAFETY: see above.
unsafe impl Sync for Shared {}

impl Shared {
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// Bytes of weights and seconds of a product with few rows.
fn decode(isa: Isa, dtype: DType, rows: usize, threads: usize) -> (f64, f64) {
    const COLS: usize = 576;
    const FEATURES: usize = 120_064;
    const CLAIM: usize = 64;
    let w = weights(dtype, FEATURES * COLS);
    let row_bytes = w.len() / FEATURES;
    let x = vec![0.5; rows * COLS];
    let mut out = vec![0f32; rows * FEATURES];
    let base = Shared(out.as_mut_ptr());
    let seconds = best(|| {
        share(threads, FEATURES / CLAIM, |number, _| {
            let w = &w[number * CLAIM * row_bytes..][..CLAIM * row_bytes];
            let out = float::Out { base: base.at(number * CLAIM), stride: FEATURES, features: CLAIM };
            // SAFETY: every number has its own features.
            unsafe { float::matmul(isa, dtype, w, &x, COLS, out) };
        });
    });
    black_box(&out);
    (w.len() as f64, seconds)
}

fn prefill(isa: Isa, dtype: DType, features: usize, cols: usize, threads: usize) -> f64 {
    const ROWS: usize = 512;
    const CLAIM: usize = 64;
    let w = weights(dtype, features * cols);
    let row_bytes = w.len() / features;
    let x = vec![0.5; ROWS * cols];
    let mut out = vec![0f32; ROWS * features];
    let base = Shared(out.as_mut_ptr());
    let seconds = best(|| {
        share(threads, features / CLAIM, |number, _| {
            let w = &w[number * CLAIM * row_bytes..][..CLAIM * row_bytes];
            let out = float::Out { base: base.at(number * CLAIM), stride: features, features: CLAIM };
            // SAFETY: every number has its own features.
            unsafe { float::matmul(isa, dtype, w, &x, cols, out) };
        });
    });
    black_box(&out);
    2.0 * (ROWS * features * cols) as f64 / seconds
}

/// A cache for all layers and heads: for each, `blocks` blocks.
fn cache(kv: KvType, layers: usize, blocks: usize) -> Vec<u8> {
    let bytes = block_bytes(kv, HEAD_DIM).expect("64 is a multiple of 32");
    let mut pool = vec![0; layers * KV_HEADS * blocks * bytes];
    let k: Vec<f32> = (0..HEAD_DIM).map(|d| d as f32 / 64.0 - 0.5).collect();
    for block in pool.chunks_mut(bytes) {
        for slot in 0..KV_BLOCK {
            // SAFETY: the block is borrowed and long enough.
            unsafe { store(kv, block.as_mut_ptr(), slot, &k, &k) };
        }
    }
    pool
}

fn scoring() -> Scoring {
    Scoring { head_dim: HEAD_DIM, scale: 0.125, softcap: None, window: None }
}

/// Bytes of the cache and seconds of one row's attention in all layers; threads take chunks.
fn attention_decode(isa: Isa, kv: KvType, depth: usize, threads: usize) -> (f64, f64) {
    let blocks = depth / KV_BLOCK;
    let pool = cache(kv, LAYERS, blocks);
    let bytes = block_bytes(kv, HEAD_DIM).unwrap_or(0);
    // A layer's block holds all heads; the sequence's blocks are in no order.
    let stride = KV_HEADS * bytes;
    let table: Vec<u32> = (0..blocks as u32).map(|i| i * 37 % blocks as u32).collect();
    let q = vec![0.1; KV_HEADS * GROUP * HEAD_DIM];
    let positions = [depth as u32 - 1];
    let chunks = depth / CHUNK;
    let partial = partial_floats(HEAD_DIM);
    let mut partials = vec![0f32; LAYERS * KV_HEADS * chunks * GROUP * partial];
    let base = Shared(partials.as_mut_ptr());
    let pool_start = pool.as_ptr() as usize;
    let mut out = vec![0f32; HEAD_DIM];
    let seconds = best(|| {
        share(threads, LAYERS * KV_HEADS * chunks, |number, scratch| {
            let (layer_head, chunk) = (number / chunks, number % chunks);
            let (layer, head) = (layer_head / KV_HEADS, layer_head % KV_HEADS);
            let at = layer * blocks * stride + head * bytes;
            let view = KvView { base: (pool_start + at) as *const u8, stride, blocks: &table, kv };
            let q = &q[head * GROUP * HEAD_DIM..][..GROUP * HEAD_DIM];
            let queries = Queries { q, stride: q.len(), group: GROUP, positions: &positions };
            // SAFETY: every number has its own partial results; the cache holds all positions.
            unsafe {
                let partials = std::slice::from_raw_parts_mut(base.at(number * GROUP * partial), GROUP * partial);
                attention_chunk(isa, &scoring(), &view, &queries, chunk, scratch, partials);
            }
        });
        for query in 0..LAYERS * KV_HEADS * GROUP {
            let at = (query / GROUP * chunks * GROUP + query % GROUP) * partial;
            // SAFETY: all threads have ended.
            let partials = unsafe { std::slice::from_raw_parts(base.at(at), ((chunks - 1) * GROUP + 1) * partial) };
            merge(isa, HEAD_DIM, partials, GROUP * partial, chunks, &mut out);
        }
    });
    black_box(&out);
    (pool.len() as f64, seconds)
}

fn attention_prefill(isa: Isa, kv: KvType, before: usize, rows: usize, threads: usize) -> f64 {
    const TILE: usize = 16;
    let blocks = (before + rows).div_ceil(KV_BLOCK);
    let pool = cache(kv, 1, blocks);
    let bytes = block_bytes(kv, HEAD_DIM).unwrap_or(0);
    let stride = KV_HEADS * bytes;
    let table: Vec<u32> = (0..blocks as u32).collect();
    let row = KV_HEADS * GROUP * HEAD_DIM;
    let q = vec![0.1; rows * row];
    let positions: Vec<u32> = (before as u32..(before + rows) as u32).collect();
    let mut out = vec![0f32; rows * row];
    let base = Shared(out.as_mut_ptr());
    let pool_start = pool.as_ptr() as usize;
    let seconds = best(|| {
        share(threads, KV_HEADS * rows / TILE, |number, scratch| {
            let (tile, head) = (number / KV_HEADS, number % KV_HEADS);
            let view = KvView { base: (pool_start + head * bytes) as *const u8, stride, blocks: &table, kv };
            let at = tile * TILE * row + head * GROUP * HEAD_DIM;
            let queries = Queries {
                q: &q[at..],
                stride: row,
                group: GROUP,
                positions: &positions[tile * TILE..(tile + 1) * TILE],
            };
            // SAFETY: every number has its own rows and heads; the cache holds all positions.
            unsafe {
                attention(isa, &scoring(), &view, &queries, scratch, HeadsOut { base: base.at(at), stride: row });
            }
        });
    });
    black_box(&out);
    let pairs = (rows * before + rows * (rows + 1) / 2) as f64;
    4.0 * pairs * (KV_HEADS * GROUP * HEAD_DIM) as f64 / seconds
}

/// Floating-point operations per second of independent multiply-adds on 8 lanes.
#[cfg(target_arch = "x86_64")]
fn fma_peak(threads: usize) -> f64 {
    const TURNS: usize = 4_000_000;
    let turn = || {
        for _ in 0..TURNS {
            // SAFETY: the caller found AVX2 and FMA; registers only, all declared.
            unsafe {
                std::arch::asm!(
                    "vfmadd231ps ymm0, ymm14, ymm15",
                    "vfmadd231ps ymm1, ymm14, ymm15",
                    "vfmadd231ps ymm2, ymm14, ymm15",
                    "vfmadd231ps ymm3, ymm14, ymm15",
                    "vfmadd231ps ymm4, ymm14, ymm15",
                    "vfmadd231ps ymm5, ymm14, ymm15",
                    "vfmadd231ps ymm6, ymm14, ymm15",
                    "vfmadd231ps ymm7, ymm14, ymm15",
                    "vfmadd231ps ymm8, ymm14, ymm15",
                    "vfmadd231ps ymm9, ymm14, ymm15",
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _,
                    out("ymm5") _, out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _,
                    options(nomem, nostack, preserves_flags),
                );
            }
        }
    };
    let seconds = best(|| {
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(turn);
            }
            turn();
        });
    });
    (threads * TURNS * 10 * 16) as f64 / seconds
}

#[cfg(not(target_arch = "x86_64"))]
fn fma_peak(_: usize) -> f64 {
    0.0
}
