//! The scalar codecs against blocks decoded by another implementation (`fixtures/codecs/make.py`), and round trips.

use tenure_tensor::DType;
use tenure_tensor::codec::{CodecError, dequantize, quantize};

fn computable() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|d| d.is_computable())
}

/// A reproducible stream of values in -1..1 with an uneven spread.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() * next() * next()).collect()
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[test]
fn random_blocks_decode_bit_for_bit() {
    let mut file: &[u8] = include_bytes!("../../../fixtures/codecs/blocks.bin");
    let mut seen = Vec::new();
    while let Some((head, rest)) = file.split_at_checked(8) {
        let dtype = DType::from_ggml(u32::from_le_bytes(head[..4].try_into().unwrap())).unwrap();
        let blocks = u32::from_le_bytes(head[4..].try_into().unwrap()) as usize;
        let (bytes, rest) = rest.split_at(blocks * dtype.block_bytes());
        let values = blocks * dtype.block_len();
        let (want, rest) = rest.split_at(values * 4);
        let mut got = vec![0.0; values];
        dequantize(dtype, bytes, &mut got).unwrap();
        for (i, (got, want)) in got.iter().zip(want.as_chunks::<4>().0).enumerate() {
            let want = f32::from_le_bytes(*want);
            assert!(same(*got, want), "{dtype}: value {i} is {got:e}, must be {want:e}");
        }
        seen.push(dtype);
        file = rest;
    }
    let known = [DType::F32, DType::F8E4M3, DType::F8E5M2];
    assert!(computable().filter(|d| !known.contains(d)).all(|d| seen.contains(&d)));
}

#[test]
fn floats_of_8_bits_are_those_of_another_implementation() {
    let mut file: &[u8] = include_bytes!("../../../fixtures/codecs/floats8.bin");
    let mut floats = |count: usize| -> Vec<f32> {
        let (own, rest) = file.split_at(4 * count);
        let (own, codes) = (own.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)), rest);
        file = codes;
        own.collect()
    };
    let mut parts = Vec::new();
    for dtype in [DType::F8E4M3, DType::F8E5M2] {
        let (decoded, values) = (floats(256), floats(4096));
        // As many codes as there are values.
        let codes: Vec<u8> = floats(1024).iter().flat_map(|bytes| bytes.to_le_bytes()).collect();
        parts.push((dtype, decoded, values, codes));
    }
    assert!(file.is_empty());
    for (dtype, decoded, values, codes) in parts {
        for (code, want) in (0..=u8::MAX).zip(decoded) {
            let mut got = [0.0];
            dequantize(dtype, &[code], &mut got).unwrap();
            assert!(same(got[0], want), "{dtype}: {code:#x} is {}, must be {want}", got[0]);
        }
        let mut got = Vec::new();
        quantize(dtype, &values, &mut got).unwrap();
        for ((value, want), got) in values.iter().zip(codes).zip(got) {
            assert!(
                got == want || value.is_nan() && got & 0x7f == 0x7f,
                "{dtype}: {value} is {got:#x}, must be {want:#x}"
            );
        }
    }
}

#[test]
fn values_survive_within_the_step_of_their_type() {
    // Root mean square error relative to that of the values, about that of a uniform code of as many bits.
    let bound = |dtype| match dtype {
        DType::F32 => 0.0,
        DType::F16 => 5e-4,
        DType::BF16 => 4e-3,
        DType::Q8_0 => 0.02,
        DType::F8E4M3 => 0.04,
        DType::Q6K => 0.05,
        DType::F8E5M2 => 0.08,
        DType::Q5_0 | DType::Q5_1 | DType::Q5K => 0.1,
        DType::Q4_0 | DType::Q4_1 | DType::Q4K | DType::IQ4NL | DType::IQ4XS | DType::MXFP4 => 0.2,
        DType::Q3K => 0.4,
        DType::Q2K => 0.6,
        other => panic!("{other} has no bound"),
    };
    for dtype in computable() {
        let x = noise(4096, 7);
        let mut bytes = Vec::new();
        quantize(dtype, &x, &mut bytes).unwrap();
        let mut back = vec![f32::NAN; x.len()];
        dequantize(dtype, &bytes, &mut back).unwrap();
        let sum = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v * v)).sum::<f64>();
        let error = sum(&mut x.iter().zip(&back).map(|(a, b)| a - b)) / sum(&mut x.iter().copied());
        assert!(error.sqrt() <= bound(dtype), "{dtype}: {}", error.sqrt());
    }
}

#[test]
fn what_was_quantised_is_quantised_again_to_the_same_values() {
    for dtype in computable() {
        // The simple quantisers of the super-block types choose their scales anew and may miss by a step.
        if dtype.block_len() == 256 {
            continue;
        }
        let (mut once, mut twice) = (Vec::new(), Vec::new());
        let mut x = noise(1024, 11);
        quantize(dtype, &x, &mut once).unwrap();
        dequantize(dtype, &once, &mut x).unwrap();
        quantize(dtype, &x, &mut twice).unwrap();
        let mut again = vec![0.0; x.len()];
        dequantize(dtype, &twice, &mut again).unwrap();
        let far = x.iter().zip(&again).filter(|(a, b)| (*a - *b).abs() > 2e-3 * a.abs().max(1e-3)).count();
        assert_eq!(far, 0, "{dtype}");
    }
}

#[test]
fn zeros_and_odd_values_do_not_panic() {
    let odd = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45];
    for dtype in computable() {
        let mut bytes = Vec::new();
        quantize(dtype, &[0.0; 512], &mut bytes).unwrap();
        let mut back = vec![f32::NAN; 512];
        dequantize(dtype, &bytes, &mut back).unwrap();
        assert!(back.iter().all(|&v| v == 0.0), "{dtype}");

        let x: Vec<f32> = (0..512).map(|i| odd[(i * i + i / 7) % odd.len()]).collect();
        bytes.clear();
        quantize(dtype, &x, &mut bytes).unwrap();
        dequantize(dtype, &bytes, &mut back).unwrap();
        assert_eq!(bytes.len(), dtype.row_bytes(512).unwrap());
    }
}

#[test]
fn wrong_lengths_and_types_are_refused() {
    let mut out = [0.0; 32];
    let short = dequantize(DType::Q4_0, &[0; 17], &mut out);
    assert_eq!(short, Err(CodecError::Length { dtype: DType::Q4_0, values: 32, want: 18, got: 17 }));
    let partial = quantize(DType::Q4K, &[0.0; 32], &mut Vec::new());
    assert_eq!(partial, Err(CodecError::PartialBlock { dtype: DType::Q4K, values: 32 }));
    for dtype in DType::ALL.into_iter().filter(|d| !d.is_computable()) {
        let n = dtype.block_len();
        let none = Err(CodecError::NoCodec { dtype });
        assert_eq!(dequantize(dtype, &vec![0; dtype.block_bytes()], &mut vec![0.0; n]), none);
        assert_eq!(quantize(dtype, &vec![0.0; n], &mut Vec::new()), none);
    }
}
