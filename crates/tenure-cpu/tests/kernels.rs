//! Every kernel on every instruction set of this processor, against its definition in 64-bit floats.

use tenure_cpu::simd::kv::{self, Blocks, Partial, Query, Scores};
use tenure_cpu::simd::panels::{self, Act};
use tenure_cpu::simd::rows::{self, Out};
use tenure_cpu::simd::{Isa, elementwise};
use tenure_graph::{Activation, KV_BLOCK, KvType, RopeStyle};
use tenure_tensor::{DType, codec};

const PANEL_TYPES: [DType; 13] = [
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

/// A small generator of numbers (splitmix64), so that a failure repeats.
struct Numbers(u64);

impl Numbers {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// Random blocks of a type: any quants, scales that are small numbers.
fn blocks(dtype: DType, len: usize, numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..dtype.row_bytes(len).expect("whole blocks")).map(|_| numbers.bits() as u8).collect();
    // Where each format keeps its f16 scales.
    let halves: &[usize] = match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4NL | DType::IQ4XS => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
        _ => &[],
    };
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        for &at in halves {
            let scale = half::f16::from_f32(numbers.float() * 0.1);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        if dtype == DType::MXFP4 {
            block[0] = 118 + block[0] % 12;
        }
    }
    bytes
}

/// Weights of a type as panels, and as the codec gives them.
fn matrix(dtype: DType, n: usize, cols: usize, numbers: &mut Numbers) -> (Vec<u8>, Vec<f32>) {
    let bytes = blocks(dtype, n * cols, numbers);
    let mut plain = vec![0.0; n * cols];
    codec::dequantize(dtype, &bytes, &mut plain).expect("computable");
    let panel = panels::panel_bytes(dtype, cols).expect("held in panels");
    let row = dtype.row_bytes(cols).expect("whole blocks");
    let mut packed = vec![0xaa; n.div_ceil(panels::ROWS) * panel];
    for (rows, panel) in bytes.chunks(row * panels::ROWS).zip(packed.chunks_exact_mut(panel)) {
        panels::pack(dtype, cols, rows, panel);
    }
    (packed, plain)
}

fn quantized(isa: Isa, x: &[f32], cols: usize) -> Vec<Act> {
    let zero = bytemuck::Zeroable::zeroed();
    let mut acts: Vec<Act> = vec![zero; x.len() / panels::BLOCK];
    for (x, acts) in x.chunks_exact(cols).zip(acts.chunks_exact_mut(cols / panels::BLOCK)) {
        panels::quantize(isa, x, acts);
    }
    acts
}

/// Products by panels, with sentinels around the result.
fn product(isa: Isa, dtype: DType, packed: &[u8], n: usize, cols: usize, acts: &[Act]) -> Vec<f32> {
    let rows = acts.len() / (cols / panels::BLOCK);
    let stride = n + 3;
    let mut out = vec![f32::NAN; rows * stride];
    let target = Out { base: out.as_mut_ptr(), stride, features: n };
    // SAFETY: `out` has `rows` rows of `stride` floats.
    unsafe { panels::matmul(isa, dtype, packed, cols, acts, target) };
    out.chunks_exact(stride)
        .flat_map(|row| {
            assert!(row[n..].iter().all(|x| x.is_nan()), "{dtype}: wrote past the row");
            row[..n].to_vec()
        })
        .collect()
}

#[test]
fn a_row_of_a_panel_is_what_the_codec_gives() {
    let mut numbers = Numbers(1);
    for dtype in PANEL_TYPES {
        for n in [1, 15, 16, 17] {
            let cols = 512;
            let (packed, plain) = matrix(dtype, n, cols, &mut numbers);
            let panel = panels::panel_bytes(dtype, cols).expect("held in panels");
            for (row, want) in plain.chunks_exact(cols).enumerate() {
                let mut got = vec![0.0; cols];
                let at = row / panels::ROWS * panel;
                panels::dequantize_row(dtype, &packed[at..at + panel], row % panels::ROWS, &mut got);
                for (k, (got, want)) in got.iter().zip(want).enumerate() {
                    assert!((got - want).abs() <= want.abs() * 1e-6, "{dtype} row {row} column {k}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn a_panel_takes_hardly_more_room_than_the_file() {
    for dtype in PANEL_TYPES {
        let panel = panels::panel_bytes(dtype, 4096).expect("held in panels") as f64;
        let file = (dtype.row_bytes(4096).expect("whole blocks") * panels::ROWS) as f64;
        assert!(panel / file <= 1.04, "{dtype}: {}", panel / file);
    }
}

#[test]
fn products_are_exact_on_the_quantised_activations() {
    let mut numbers = Numbers(2);
    for isa in Isa::available() {
        for dtype in PANEL_TYPES {
            let unit = dtype.block_len();
            for (n, cols, rows) in [(1, unit, 1), (16, unit, 3), (17, 2 * unit, 5), (40, 3 * unit, 9), (31, 512, 13)] {
                let (packed, plain) = matrix(dtype, n, cols, &mut numbers);
                let x = numbers.floats(rows * cols);
                let acts = quantized(isa, &x, cols);
                let got = product(isa, dtype, &packed, n, cols, &acts);
                // What the activations stand for.
                let meant: Vec<f64> = acts.iter().flat_map(|act| act.values()).collect();
                let (mut error, mut norm) = (0.0f64, 0.0f64);
                for row in 0..rows {
                    for feature in 0..n {
                        let w = &plain[feature * cols..(feature + 1) * cols];
                        let x = &meant[row * cols..(row + 1) * cols];
                        let want: f64 = w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
                        let size: f64 = w.iter().zip(x).map(|(&w, x)| (f64::from(w) * x).abs()).sum();
                        let got = f64::from(got[row * n + feature]);
                        assert!((got - want).abs() <= 1e-5 * size, "{isa:?} {dtype} {n}x{cols}: {got} {want}");
                        error += (got - want).powi(2);
                        norm += want.powi(2);
                    }
                }
                assert!(error <= 1e-6 * norm, "{isa:?} {dtype}: {}", error / norm);
            }
        }
    }
}

#[test]
fn the_largest_quants_do_not_overflow() {
    for isa in Isa::available() {
        for dtype in PANEL_TYPES {
            for fill in [0x00u8, 0x7f, 0x80, 0x81, 0xff] {
                for sign in [1.0f32, -1.0] {
                    let cols = 512;
                    let mut bytes = vec![fill; dtype.row_bytes(cols).expect("whole blocks")];
                    let mut numbers = Numbers(3);
                    let sound = blocks(dtype, cols, &mut numbers);
                    let wide = dtype.block_bytes();
                    // Scales from sound blocks, all quants at an extreme.
                    let scale_bytes: &[usize] = match dtype {
                        DType::Q2K => &[80, 81, 82, 83],
                        DType::Q3K => &[108, 109],
                        DType::Q6K => &[208, 209],
                        DType::MXFP4 => &[0],
                        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 1, 2, 3],
                        _ => &[0, 1],
                    };
                    for (block, sound) in bytes.chunks_exact_mut(wide).zip(sound.chunks_exact(wide)) {
                        scale_bytes.iter().for_each(|&at| block[at] = sound[at]);
                    }
                    let mut plain = vec![0.0; cols];
                    codec::dequantize(dtype, &bytes, &mut plain).expect("computable");
                    let mut packed = vec![0; panels::panel_bytes(dtype, cols).expect("held in panels")];
                    panels::pack(dtype, cols, &bytes, &mut packed);
                    let x: Vec<f32> = (0..cols).map(|k| if k % 7 == 6 { -sign } else { sign }).collect();
                    let constant = vec![sign; cols];
                    for x in [x, constant] {
                        let got = product(isa, dtype, &packed, 1, cols, &quantized(isa, &x, cols))[0];
                        let want: f64 = plain.iter().zip(&x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                        let size: f64 = plain.iter().map(|&w| f64::from(w).abs()).sum();
                        assert!((f64::from(got) - want).abs() <= 1e-4 * size, "{isa:?} {dtype} {fill:x}: {got} {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_gets_the_same_bits_whatever_is_computed_beside_it() {
    let mut numbers = Numbers(4);
    for isa in Isa::available() {
        let (n, cols) = (37, 512);
        for dtype in PANEL_TYPES {
            let (packed, _) = matrix(dtype, n, cols, &mut numbers);
            let acts = quantized(isa, &numbers.floats(11 * cols), cols);
            let all = product(isa, dtype, &packed, n, cols, &acts);
            for (row, acts) in acts.chunks_exact(cols / panels::BLOCK).enumerate() {
                let alone = product(isa, dtype, &packed, n, cols, acts);
                let same = alone.iter().zip(&all[row * n..]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{isa:?} {dtype} row {row}");
            }
        }
    }
}

/// Products with plain weights of `n` features.
fn plain_product(isa: Isa, dtype: DType, w: &[u8], x: &[f32], cols: usize, n: usize) -> Vec<f32> {
    let rows = x.len() / cols;
    let mut out = vec![f32::NAN; rows * n];
    let target = Out { base: out.as_mut_ptr(), stride: n, features: n };
    // SAFETY: `out` has `rows` rows of `n` floats.
    unsafe { rows::matmul(isa, dtype, w, x, cols, target) };
    out
}

#[test]
fn plain_weights_are_multiplied_as_they_are() {
    let mut numbers = Numbers(5);
    for isa in Isa::available() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (n, cols, rows) in
                [(1, 1, 1), (3, 7, 2), (4, 8, 1), (5, 33, 4), (8, 512, 1), (9, 520, 70), (12, 1031, 5)]
            {
                let values = numbers.floats(n * cols);
                let mut w = Vec::new();
                codec::quantize(dtype, &values, &mut w).expect("plain");
                let mut plain = vec![0.0; n * cols];
                codec::dequantize(dtype, &w, &mut plain).expect("plain");
                let x = numbers.floats(rows * cols);
                let got = plain_product(isa, dtype, &w, &x, cols, n);
                for row in 0..rows {
                    let alone = plain_product(isa, dtype, &w, &x[row * cols..(row + 1) * cols], cols, n);
                    for feature in 0..n {
                        let w = &plain[feature * cols..(feature + 1) * cols];
                        let x = &x[row * cols..(row + 1) * cols];
                        let want: f64 = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                        let size: f64 = w.iter().zip(x).map(|(&w, &x)| f64::from(w * x).abs()).sum();
                        let got = got[row * n + feature];
                        assert!((f64::from(got) - want).abs() <= 1e-6 * size, "{isa:?} {dtype} {n}x{cols}");
                        assert_eq!(got.to_bits(), alone[feature].to_bits(), "{isa:?} {dtype} {n}x{cols} row {row}");
                    }
                }
            }
        }
    }
}

/// A cache of one head: written keys and values, everything else NaN.
struct Cache {
    kv: KvType,
    dim: usize,
    bytes: Vec<f32>,
    stride: usize,
    table: Vec<u32>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Cache {
    fn new(kv: KvType, dim: usize, len: usize, numbers: &mut Numbers) -> Self {
        let stride = kv::block_bytes(kv, dim).expect("suits");
        let blocks = len.div_ceil(KV_BLOCK) + 2;
        // All bits set is NaN in every float type.
        let mut bytes = vec![f32::from_bits(u32::MAX); (blocks * stride).div_ceil(4)];
        // Blocks in no order.
        let table: Vec<u32> = (0..len.div_ceil(KV_BLOCK)).map(|at| ((at * 7 + 1) % blocks) as u32).collect();
        let table = if has_twins(&table) { (0..table.len() as u32).rev().collect() } else { table };
        let (keys, values): (Vec<_>, Vec<_>) = (0..len).map(|_| (numbers.floats(dim), numbers.floats(dim))).unzip();
        for (position, (k, v)) in keys.iter().zip(&values).enumerate() {
            let block = table[position / KV_BLOCK] as usize * stride;
            // SAFETY: the block lies inside `bytes`.
            unsafe {
                let block = bytes.as_mut_ptr().cast::<u8>().add(block);
                kv::write(kv, block, position % KV_BLOCK, k, v);
            }
        }
        Cache { kv, dim, bytes, stride, table, keys, values }
    }

    fn blocks(&self) -> Blocks<'_> {
        let base = self.bytes.as_ptr().cast();
        Blocks { kv: self.kv, head_dim: self.dim, base, stride: self.stride, table: &self.table }
    }

    fn attend(&self, isa: Isa, queries: &[Query<'_>], scores: Scores) -> Vec<Vec<f32>> {
        let mut scratch = vec![f32::NAN; 2 * kv::scratch_floats(self.dim)];
        let mut results = vec![vec![0.0; self.dim]; queries.len()];
        // SAFETY: the table's blocks lie inside `bytes`.
        unsafe {
            kv::attend(isa, &self.blocks(), queries, scores, &mut scratch, |at, partial| {
                partial.finish(&mut results[at])
            });
        }
        results
    }

    /// The definition, in 64-bit floats.
    fn truth(&self, query: &Query<'_>, scores: Scores) -> Vec<f64> {
        let score = |k: &Vec<f32>| {
            let dot: f64 = query.q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
            let score = dot * f64::from(scores.scale);
            scores.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let weights: Vec<f64> = self.keys[query.from..query.to].iter().map(score).collect();
        let peak = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = weights.iter().map(|w| (w - peak).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let values = &self.values[query.from..query.to];
        (0..self.dim).map(|d| weights.iter().zip(values).map(|(w, v)| w * f64::from(v[d])).sum::<f64>() / sum).collect()
    }
}

fn has_twins(table: &[u32]) -> bool {
    let mut sorted = table.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0] == pair[1])
}

#[test]
fn attention_is_its_definition_and_sees_nothing_else() {
    let mut numbers = Numbers(6);
    for isa in Isa::available() {
        for (kv, bound) in [(KvType::F32, 2e-6), (KvType::F16, 2e-3), (KvType::Q8_0, 2e-2)] {
            for dim in [8, 32, 64, 80, 96, 128] {
                if kv::block_bytes(kv, dim).is_none() {
                    assert!(kv == KvType::Q8_0 && dim % 32 != 0);
                    continue;
                }
                let len = 1100;
                let cache = Cache::new(kv, dim, len, &mut numbers);
                for to in [1usize, 2, 31, 32, 33, 511, 512, 513, 1024, 1100] {
                    let q: Vec<Vec<f32>> = (0..3).map(|_| numbers.floats(dim)).collect();
                    let from = [0, to.saturating_sub(40), to - 1];
                    let queries: Vec<Query<'_>> = (0..3).map(|i| Query { q: &q[i], from: from[i], to }).collect();
                    let softcap = if to % 2 == 1 { None } else { Some(5.0) };
                    let scores = Scores { scale: 1.0 / (dim as f32).sqrt(), softcap };
                    let together = cache.attend(isa, &queries, scores);
                    for (query, got) in queries.iter().zip(&together) {
                        for (got, want) in got.iter().zip(cache.truth(query, scores)) {
                            assert!((f64::from(*got) - want).abs() <= bound, "{isa:?} {kv:?} {dim} {to}: {got} {want}");
                        }
                        let alone = &cache.attend(isa, std::slice::from_ref(query), scores)[0];
                        assert!(
                            alone.iter().zip(got).all(|(a, b)| a.to_bits() == b.to_bits()),
                            "{isa:?} {kv:?} {dim} {to}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn chunks_computed_apart_and_joined_are_the_whole() {
    let mut numbers = Numbers(7);
    let (dim, len) = (64, 1500);
    let cache = Cache::new(KvType::F16, dim, len, &mut numbers);
    let q = numbers.floats(dim);
    let scores = Scores { scale: 0.125, softcap: None };
    let query = Query { q: &q, from: 0, to: len };
    for isa in Isa::available() {
        let whole = &cache.attend(isa, &[query], scores)[0];
        let mut joined = vec![0.0; Partial::floats(dim)];
        Partial::within(&mut joined).clear();
        for index in 0..len.div_ceil(kv::CHUNK) {
            let mut part = vec![0.0; Partial::floats(dim)];
            let mut scratch = vec![f32::NAN; kv::scratch_floats(dim)];
            // SAFETY: the table's blocks lie inside the cache.
            unsafe { kv::chunk(isa, &cache.blocks(), index, &[query], scores, &mut part, &mut scratch) };
            Partial::within(&mut joined).join(&Partial::within(&mut part));
        }
        let mut result = vec![0.0; dim];
        Partial::within(&mut joined).finish(&mut result);
        assert!(result.iter().zip(whole).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?}");
    }
}

#[test]
fn norms_and_activations_are_their_definitions() {
    let mut numbers = Numbers(8);
    for isa in Isa::available() {
        for len in [1, 7, 31, 32, 33, 64, 576, 1000] {
            let (x, w) = (numbers.floats(len), numbers.floats(len));
            let mut got = vec![f32::NAN; len];
            elementwise::rms_norm(isa, &x, &w, 1e-5, &mut got);
            let mean: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / len as f64;
            for i in 0..len {
                let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(w[i]);
                assert!((f64::from(got[i]) - want).abs() <= 1e-6 * want.abs().max(1e-3), "{isa:?} {len}");
            }
            let gates: Vec<f32> = x.iter().map(|&x| x * 20.0).collect();
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let mut got = gates.clone();
                elementwise::glu(isa, activation, &mut got, &w);
                for i in 0..len {
                    let g = f64::from(gates[i]);
                    let act = match activation {
                        Activation::Silu => g / (1.0 + (-g).exp()),
                        Activation::GeluTanh => {
                            let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
                            0.5 * g * (1.0 + inner.tanh())
                        }
                    };
                    let want = act * f64::from(w[i]);
                    assert!(
                        (f64::from(got[i]) - want).abs() <= 4e-6 * want.abs() + 1e-7,
                        "{isa:?} {activation:?} {g}: {} {want}",
                        got[i]
                    );
                }
            }
        }
        // The ends of the range: no NaN, no overflow that the definition does not have.
        let mut ends = vec![-1e30f32, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e30];
        elementwise::glu(isa, Activation::Silu, &mut ends, &[1.0; 8]);
        assert!(ends[0].abs() == 0.0 && ends[7] == 1e30 && ends.iter().all(|x| x.is_finite()), "{ends:?}");
    }
}

#[test]
fn rope_turns_pairs_and_leaves_the_rest() {
    let table = [0.0f32, 1.0, 1.0, 0.0]; // cosines 0 and 1, sines 1 and 0
    let mut adjacent = [1.0, 2.0, 3.0, 4.0, 5.0];
    elementwise::rope(RopeStyle::Adjacent, &mut adjacent, &table);
    assert_eq!(adjacent, [-2.0, 1.0, 3.0, 4.0, 5.0]);
    let mut halves = [1.0, 2.0, 3.0, 4.0, 5.0];
    elementwise::rope(RopeStyle::Halves, &mut halves, &table);
    assert_eq!(halves, [-3.0, 2.0, 1.0, 4.0, 5.0]);
}
