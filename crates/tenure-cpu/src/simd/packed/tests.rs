//! Every format and instruction set against the scalar codec and sums in `f64`.

use half::f16;
use tenure_tensor::{DType, codec};

use super::*;
use crate::simd::act8::{self, BLOCK_BYTES};

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

/// How the bytes of blocks are made.
#[derive(Clone, Copy, Debug)]
enum Fill {
    Random(u64),
    /// All of them this byte.
    Byte(u8),
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn float(&mut self) -> f32 {
        (self.next() % 20_001) as f32 / 10_000.0 - 1.0
    }
}

/// Rows of blocks: any bytes, with scales that are numbers of usual size.
fn rows(dtype: DType, cols: usize, rows: usize, fill: Fill) -> Vec<u8> {
    let len = dtype.row_bytes(cols).unwrap_or(0) * rows;
    let mut random = Random(match fill {
        Fill::Random(seed) => seed,
        Fill::Byte(byte) => u64::from(byte) + 1,
    });
    let mut bytes: Vec<u8> = (0..len)
        .map(|_| match fill {
            Fill::Random(_) => (random.next() >> 33) as u8,
            Fill::Byte(byte) => byte,
        })
        .collect();
    let floats: &[usize] = match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
        DType::MXFP4 => &[],
        _ => &[0],
    };
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        for &at in floats {
            block[at..at + 2].copy_from_slice(&f16::from_f32(random.float() * 0.1).to_le_bytes());
        }
        if dtype == DType::MXFP4 {
            block[0] = 110 + (random.next() % 20) as u8;
        }
    }
    bytes
}

/// Quantised activations of `tokens` tokens.
fn acts(cols: usize, tokens: usize, x: impl FnMut(usize) -> f32) -> Vec<u8> {
    let x: Vec<f32> = (0..cols * tokens).map(x).collect();
    let mut bytes = vec![0; act8::bytes(tokens, cols)];
    for (x, bytes) in x.chunks_exact(cols).zip(bytes.chunks_exact_mut(act8::bytes(1, cols))) {
        act8::quantize(Isa::Portable, x, bytes);
    }
    bytes
}

fn pack(dtype: DType, cols: usize, file: &[u8]) -> Vec<u8> {
    let row = dtype.row_bytes(cols).unwrap();
    let bytes = panel_bytes(dtype, cols).unwrap();
    let mut panels = vec![0xaa; bytes * file.len().div_ceil(ROWS * row)];
    for (rows, panel) in file.chunks(ROWS * row).zip(panels.chunks_exact_mut(bytes)) {
        pack_panel(dtype, cols, rows, panel);
    }
    panels
}

/// What every place of `out` holds before; a place that must not be written keeps it.
const BEFORE: f32 = 0.75;

fn product(
    isa: Isa,
    dtype: DType,
    panels: &[u8],
    acts: Act8<'_>,
    features: usize,
    stride: usize,
    add: bool,
) -> Vec<f32> {
    let mut out = vec![BEFORE; stride * acts.rows()];
    // SAFETY: `out` has `stride` floats for each token, no fewer than features.
    unsafe { matmul(isa, dtype, panels, acts, Out { base: out.as_mut_ptr(), stride, features, add }) };
    out
}

fn check(isa: Isa, dtype: DType, cols: usize, features: usize, tokens: usize, fill: Fill, x: impl FnMut(usize) -> f32) {
    let file = rows(dtype, cols, features, fill);
    let panels = pack(dtype, cols, &file);
    let bytes = acts(cols, tokens, x);
    let acts = Act8::new(&bytes, tokens, cols);
    let stride = features + 3;
    let got = product(isa, dtype, &panels, acts, features, stride, false);
    let mut w = vec![0.0f32; cols];
    let format = Format::of(dtype).unwrap();
    let panel = panels.len() / features.div_ceil(ROWS);
    for feature in 0..features {
        let row = file.len() / features;
        codec::dequantize(dtype, &file[feature * row..(feature + 1) * row], &mut w).unwrap();
        let (scales, _) = format.parts(&panels[feature / ROWS * panel..][..panel], cols);
        for token in 0..tokens {
            let (mut want, mut size) = (0.0f64, 0.0f64);
            for (b, block) in acts.row(token).chunks_exact(BLOCK_BYTES).enumerate() {
                let d = f64::from(act8::float(block, act8::SCALE));
                for k in 0..BLOCK {
                    let (w, a) = (f64::from(w[b * BLOCK + k]), d * f64::from(block[k] as i8));
                    // A weight may be the small difference of its product and its minimum.
                    let min = f64::from(format.scale(scales, feature % ROWS, b, k / 16).1);
                    want += w * a;
                    size += (w.abs() + 2.0 * min.abs()) * a.abs();
                }
            }
            let miss = (f64::from(got[token * stride + feature]) - want).abs();
            assert!(
                miss <= 1e-6 * size + 1e-30,
                "{isa:?} {dtype} {cols} columns, feature {feature} of {features}, token {token} of {tokens}, {fill:?}: \
                 {} for {want}, size {size}",
                got[token * stride + feature]
            );
        }
    }
    for (i, value) in got.iter().enumerate() {
        assert!(i % stride < features || *value == BEFORE, "{isa:?} {dtype} wrote beyond its features");
    }
}

fn widths(dtype: DType) -> [usize; 4] {
    if dtype.block_len() == 32 { [32, 96, 288, 544] } else { [256, 512, 768, 2304] }
}

#[test]
fn products_agree_with_the_codec() {
    for isa in Isa::available() {
        for dtype in FORMATS {
            let mut random = Random(7);
            for (i, cols) in widths(dtype).into_iter().enumerate() {
                for (features, tokens) in [(1, 1), (16, 2), (17, 3), (5, 4), (33, 5), (16, 9)] {
                    let fill = Fill::Random(99 + i as u64);
                    check(isa, dtype, cols, features, tokens, fill, |_| random.float());
                }
            }
            check(isa, dtype, 256, 3, 67, Fill::Random(5), |_| random.float());
        }
    }
}

#[test]
fn extremes_do_not_overflow() {
    for isa in Isa::available() {
        for dtype in FORMATS {
            // 0xf0 and 0x0f: nibbles at opposite ends; 0x80 and 0x7f: signed bytes at theirs; 0x55: alternating bits.
            for byte in [0x00, 0xff, 0xf0, 0x0f, 0x80, 0x7f, 0x55] {
                for tokens in [1, 5] {
                    check(isa, dtype, 512, 17, tokens, Fill::Byte(byte), |_| 3.0);
                    check(isa, dtype, 512, 17, tokens, Fill::Byte(byte), |_| -3.0);
                    check(isa, dtype, 512, 17, tokens, Fill::Byte(byte), |i| if i % 2 == 0 { 3.0 } else { -3.0 });
                    check(isa, dtype, 512, 17, tokens, Fill::Byte(byte), |i| if i % 32 < 16 { -3.0 } else { 3.0 });
                }
            }
        }
    }
}

#[test]
fn a_result_does_not_depend_on_what_is_computed_beside_it() {
    for isa in Isa::available() {
        for dtype in FORMATS {
            let (cols, features, tokens) = (2816 / 256 * 256, 40, 70);
            let file = rows(dtype, cols, features, Fill::Random(3));
            let panels = pack(dtype, cols, &file);
            let mut random = Random(11);
            let bytes = acts(cols, tokens, |_| random.float());
            let one = act8::bytes(1, cols);
            let all = product(isa, dtype, &panels, Act8::new(&bytes, tokens, cols), features, features, false);
            for (first, count) in [(0, 1), (3, 2), (5, 3), (6, 4), (9, 7), (64, 6), (69, 1)] {
                let acts = Act8::new(&bytes[first * one..(first + count) * one], count, cols);
                let some = product(isa, dtype, &panels, acts, features, features, false);
                assert!(
                    bits(&some) == bits(&all[first * features..(first + count) * features]),
                    "{isa:?} {dtype} {count}"
                );
            }
            let panel = panel_bytes(dtype, cols).unwrap();
            let acts = Act8::new(&bytes, tokens, cols);
            let last = product(isa, dtype, &panels[2 * panel..], acts, features - 32, features - 32, false);
            for token in 0..tokens {
                let want = &all[token * features + 32..(token + 1) * features];
                assert!(bits(&last[token * 8..token * 8 + 8]) == bits(want), "{isa:?} {dtype}");
            }
            let added = product(isa, dtype, &panels, acts, features, features, true);
            assert!(added.iter().zip(&all).all(|(added, all)| *added == BEFORE + *all), "{isa:?} {dtype}");
        }
    }
}

#[test]
fn instruction_sets_agree() {
    for dtype in FORMATS {
        let (cols, features, tokens) = (1024, 20, 6);
        let panels = pack(dtype, cols, &rows(dtype, cols, features, Fill::Random(17)));
        let mut random = Random(23);
        let bytes = acts(cols, tokens, |_| random.float());
        let acts = Act8::new(&bytes, tokens, cols);
        let want = product(Isa::Portable, dtype, &panels, acts, features, features, false);
        let size = (want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32).sqrt();
        for isa in Isa::available() {
            let got = product(isa, dtype, &panels, acts, features, features, false);
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() <= 1e-5 * size, "{isa:?} {dtype} {got} {want}");
            }
        }
    }
}

#[test]
fn rows_come_back_as_the_codec_has_them() {
    for dtype in FORMATS {
        for count in [1, 16] {
            let cols = 768;
            let mut file = rows(dtype, cols, count, Fill::Random(31));
            if dtype == DType::MXFP4 {
                for (e, block) in file.chunks_exact_mut(17).enumerate() {
                    block[0] = [0, 1, 2, 3, 127, 254, 255][e % 7];
                }
            }
            let panel = pack(dtype, cols, &file);
            let (mut got, mut want) = (vec![0.0; cols], vec![0.0; cols]);
            for (r, row) in file.chunks_exact(file.len() / count).enumerate() {
                codec::dequantize(dtype, row, &mut want).unwrap();
                dequantize_row(dtype, &panel, r, &mut got);
                assert!(bits(&got) == bits(&want), "{dtype} row {r}");
            }
            for r in count..ROWS {
                dequantize_row(dtype, &panel, r, &mut got);
                assert!(dtype == DType::MXFP4 || got.iter().all(|&x| x == 0.0), "{dtype} row {r} is not there");
            }
        }
    }
}

#[test]
fn a_block_that_is_not_finite_shows() {
    for isa in Isa::available() {
        for dtype in FORMATS {
            let panels = pack(dtype, 256, &rows(dtype, 256, 16, Fill::Random(41)));
            let bytes = acts(256, 2, |i| if i == 300 { f32::INFINITY } else { 1.0 });
            let out = product(isa, dtype, &panels, Act8::new(&bytes, 2, 256), 16, 16, false);
            assert!(out[..16].iter().all(|x| x.is_finite()) && out[16..].iter().all(|x| x.is_nan()), "{isa:?} {dtype}");
        }
    }
}

#[test]
fn only_whole_blocks_have_panels() {
    assert_eq!(panel_bytes(DType::Q4_0, 64), Some(16 * 36));
    assert_eq!(panel_bytes(DType::Q4_0, 32), Some(16 * 18 + 32), "scales are filled up to a line");
    assert_eq!(panel_bytes(DType::Q6K, 256), Some(16 * 210 + 32));
    for (dtype, cols) in
        [(DType::Q4_0, 0), (DType::Q4_0, 48), (DType::Q4K, 128), (DType::F32, 256), (DType::Q8_0, usize::MAX - 31)]
    {
        assert_eq!(panel_bytes(dtype, cols), None, "{dtype} {cols}");
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
