//! Products with block formats on every instruction set of this processor, against 64-bit floats.

use tenure_cpu::simd::Isa;
use tenure_cpu::simd::float::Out;
use tenure_cpu::simd::panels::{self, Act};
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
        for dtype in PANEL_TYPES {
            // Columns that fill the last unit of activations, and that do not.
            for cols in [dtype.block_len(), 9 * 32, 768] {
                let n = 37;
                if panels::panel_bytes(dtype, cols).is_none() {
                    continue;
                }
                let (packed, _) = matrix(dtype, n, cols, &mut numbers);
                let x = numbers.floats(130 * cols);
                let acts = quantized(isa, &x, cols);
                let per_row = cols / panels::BLOCK;
                let alone: Vec<f32> =
                    acts.chunks_exact(per_row).flat_map(|acts| product(isa, dtype, &packed, n, cols, acts)).collect();
                for rows in (2..=13).chain([63, 64, 65, 66, 67, 130]) {
                    let together = product(isa, dtype, &packed, n, cols, &acts[..rows * per_row]);
                    let same = together.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{isa:?} {dtype} {rows} rows of {cols}");
                }
            }
        }
    }
}

#[test]
fn activations_are_within_half_a_unit_and_the_same_on_every_instruction_set() {
    let mut numbers = Numbers(6);
    for scale in [1e-28f32, 1e-3, 1.0, 1e4, 3e38] {
        for cols in [32, 256, 9 * 32] {
            let x: Vec<f32> = numbers.floats(cols).iter().map(|x| x * scale).collect();
            let portable = quantized(Isa::Portable, &x, cols);
            for (x, acts) in x.chunks(256).zip(portable.chunks(8)) {
                let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let half = f64::from(largest) / 8191.0 / 2.0;
                let values = acts.iter().flat_map(|act| act.values());
                for (&x, value) in x.iter().zip(values) {
                    assert!((value - f64::from(x)).abs() <= half * (1.0 + 1e-3), "{x:e} is taken for {value:e}");
                }
            }
            for isa in Isa::available() {
                let same =
                    bytemuck::cast_slice::<Act, u8>(&quantized(isa, &x, cols)) == bytemuck::cast_slice(&portable);
                assert!(same, "{isa:?}, {cols} columns times {scale:e}");
            }
        }
    }
}

#[test]
fn activations_that_are_no_numbers_show_and_the_smallest_do_no_harm() {
    let mut numbers = Numbers(5);
    for isa in Isa::available() {
        for dtype in PANEL_TYPES {
            // Rows for the kernels of few rows, and of many.
            for rows in [1, 3, 5] {
                let (n, cols) = (17, 512);
                let (packed, _) = matrix(dtype, n, cols, &mut numbers);
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut x = numbers.floats(rows * cols);
                    x[(rows - 1) * cols + 300] = bad;
                    let got = product(isa, dtype, &packed, n, cols, &quantized(isa, &x, cols));
                    let (sound, spoilt) = got.split_at((rows - 1) * n);
                    assert!(sound.iter().all(|x| x.is_finite()), "{isa:?} {dtype}: {bad} spreads to other rows");
                    assert!(spoilt.iter().all(|x| !x.is_finite()), "{isa:?} {dtype}: {bad} is lost");
                }
                for tiny in [0.0, f32::from_bits(1), f32::MIN_POSITIVE, 1e-30] {
                    let x: Vec<f32> = numbers.floats(rows * cols).iter().map(|x| x.signum() * tiny).collect();
                    let got = product(isa, dtype, &packed, n, cols, &quantized(isa, &x, cols));
                    assert!(got.iter().all(|x| x.abs() <= 1e-24), "{isa:?} {dtype}: {tiny:e} gives {got:?}");
                }
            }
        }
    }
}
