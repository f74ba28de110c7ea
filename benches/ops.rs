//! The ops of a step on one thread: products by format and number of rows, quantisation of activations, norms.

use std::sync::atomic::AtomicU8;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tenure_cpu::simd::Isa;
use tenure_cpu::simd::float::{self, Out};
use tenure_cpu::simd::panels::{self, Act};
use tenure_tensor::DType;

const BLOCKS: [DType; 13] = [
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
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const COLS: usize = 1536;
const FEATURES: usize = 512;

/// Bytes whose f16 readings are all finite.
fn bytes(len: usize) -> Vec<u8> {
    let mut seed = 9u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8 & 0x3b | 0x20
    };
    (0..len).map(|_| next()).collect()
}

fn products(c: &mut Criterion) {
    let isa = Isa::best();
    for dtype in BLOCKS.into_iter().chain(FLOATS) {
        let mut group = c.benchmark_group(format!("matmul/{dtype}"));
        let row = dtype.row_bytes(COLS).expect("whole blocks");
        let file = bytes(FEATURES * row);
        let weights = match panels::panel_bytes(dtype, COLS) {
            Some(panel) => {
                let mut packed = vec![0; FEATURES / panels::ROWS * panel];
                for (rows, panel) in file.chunks(panels::ROWS * row).zip(packed.chunks_exact_mut(panel)) {
                    panels::pack(dtype, COLS, rows, panel);
                }
                packed
            }
            None => file,
        };
        for rows in [1, 4, 8, 64, 512] {
            let x: Vec<f32> = (0..COLS * rows).map(|i| (i % 61) as f32 - 30.0).collect();
            let acts = quantized(isa, &x);
            let words = in_words(isa, dtype, &x);
            let exponents: Vec<AtomicU8> =
                (0..FEATURES * float::exponents_of(COLS)).map(|_| AtomicU8::default()).collect();
            let mut result = vec![0.0f32; rows * FEATURES];
            group.throughput(Throughput::Elements((COLS * FEATURES * rows) as u64));
            group.bench_function(BenchmarkId::from_parameter(rows), |b| {
                b.iter(|| {
                    let out = Out { base: result.as_mut_ptr(), stride: FEATURES, features: FEATURES };
                    // SAFETY: `result` has `rows` rows of `FEATURES` floats.
                    unsafe {
                        match (panels::panel_bytes(dtype, COLS), &words) {
                            (Some(_), _) => panels::matmul(isa, dtype, &weights, COLS, &acts, out),
                            (None, Some(words)) => {
                                float::matmul_words(isa, &weights, &exponents, words, COLS, out);
                            }
                            (None, None) => float::matmul(isa, dtype, &weights, &x, COLS, out),
                        }
                    }
                });
            });
        }
        group.finish();
    }
}

/// One row, and eight, with more weights than caches hold, as in decoding.
fn streams(c: &mut Criterion) {
    const STREAM: usize = 96 << 20;
    let isa = Isa::best();
    let mut group = c.benchmark_group("stream");
    group.sample_size(10);
    for dtype in BLOCKS {
        let Some(panel) = panels::panel_bytes(dtype, COLS) else { continue };
        let file = bytes(panels::ROWS * dtype.row_bytes(COLS).expect("whole blocks"));
        // At the alignment that weights have on a device.
        let mut room = vec![0u8; STREAM / panel * panel + 64];
        let aligned = room.as_ptr().align_offset(64);
        let packed = &mut room[aligned..aligned + STREAM / panel * panel];
        packed.chunks_exact_mut(panel).for_each(|panel| panels::pack(dtype, COLS, &file, panel));
        let features = packed.len() / panel * panels::ROWS;
        group.throughput(Throughput::Bytes(packed.len() as u64));
        for rows in [1, 8] {
            let acts = quantized(isa, &(0..COLS * rows).map(|i| (i % 61) as f32 - 30.0).collect::<Vec<f32>>());
            let mut result = vec![0.0f32; rows * features];
            group.bench_function(BenchmarkId::new(dtype.to_string(), rows), |b| {
                b.iter(|| {
                    let out = Out { base: result.as_mut_ptr(), stride: features, features };
                    // SAFETY: `result` has `rows` rows of `features` floats.
                    unsafe { panels::matmul(isa, dtype, packed, COLS, &acts, out) };
                });
            });
        }
    }
    group.finish();
}

/// Rows as products with weights of a type take them, where that is in words.
fn in_words(isa: Isa, dtype: DType, x: &[f32]) -> Option<Vec<float::Line>> {
    if dtype != DType::BF16 || !float::takes_words(isa, COLS) {
        return None;
    }
    let mut lines = vec![bytemuck::Zeroable::zeroed(); x.len() / COLS * float::lines_of(COLS)];
    for (x, lines) in x.chunks(COLS).zip(lines.chunks_mut(float::lines_of(COLS))) {
        float::to_words(isa, x, lines);
    }
    Some(lines)
}

fn quantized(isa: Isa, x: &[f32]) -> Vec<Act> {
    let mut acts = vec![bytemuck::Zeroable::zeroed(); x.len() / panels::BLOCK];
    panels::quantize(isa, x, &mut acts);
    acts
}

fn rows(c: &mut Criterion) {
    let isa = Isa::best();
    let x: Vec<f32> = (0..COLS).map(|i| (i % 61) as f32 - 30.0).collect();
    let mut group = c.benchmark_group("row");
    group.throughput(Throughput::Elements(COLS as u64));
    let mut acts = quantized(isa, &x);
    group.bench_function("quantize", |b| b.iter(|| panels::quantize(isa, &x, &mut acts)));
    let mut out = vec![0.0; COLS];
    group.bench_function("rms_norm", |b| b.iter(|| float::rms_norm(isa, &x, Some(&x), 1e-5, &mut out)));
    group.finish();
}

criterion_group!(benches, products, streams, rows);
criterion_main!(benches);
