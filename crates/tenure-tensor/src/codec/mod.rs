//! The scalar definition of each computable type: bytes to `f32` and back.
//!
//! These functions say what a block means; the kernels of every backend are tested against them. They are plain, not
//! fast. The layouts are those of GGML's `ggml-common.h`, the arithmetic that of its reference dequantisers: one
//! rounding per product and per sum, no fused multiply-add. Floats of 8 bits are those of Micikevicius et al. 2022
//! (arXiv:2209.05433), E4M3 without infinities.
//!
//! [`dequantize`] is exact by definition. [`quantize`] is one valid choice of codes, made for fixtures and tests: for
//! the plain types and `Q*_0`/`Q*_1` it makes the customary choice, for the others a simple one that does not
//! search for the best scales. Values whose block scale exceeds the range of an `f16` become infinite.
//!
//! ```
//! use tenure_tensor::{DType, codec};
//!
//! let x: Vec<f32> = (0..32).map(|i| i as f32 - 16.0).collect();
//! let mut blocks = Vec::new();
//! codec::quantize(DType::Q8_0, &x, &mut blocks)?;
//! let mut back = vec![0.0; 32];
//! codec::dequantize(DType::Q8_0, &blocks, &mut back)?;
//! assert!(x.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.1));
//! # Ok::<(), codec::CodecError>(())
//! ```

// A value's index picks its byte, its bits and its place at once; zipping three iterators would hide the layout.
#![allow(clippy::needless_range_loop)]

mod iq4;
mod k_quants;
mod legacy;
mod mxfp4;
mod plain;

use half::f16;

use crate::{DType, uncomputable};

/// Why bytes and values could not be turned into one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A type that Tenure does not compute with.
    #[error("{dtype} has no codec")]
    NoCodec {
        /// The type.
        dtype: DType,
    },
    /// The values are not whole blocks.
    #[error("{values} values are not whole blocks of {dtype}")]
    PartialBlock {
        /// The type.
        dtype: DType,
        /// The number of values.
        values: usize,
    },
    /// The bytes are not those of as many values.
    #[error("{values} values of {dtype} take {want} bytes, not {got}")]
    Length {
        /// The type.
        dtype: DType,
        /// The number of values.
        values: usize,
        /// The bytes they take.
        want: usize,
        /// The bytes given.
        got: usize,
    },
}

/// Turns the blocks of `bytes` into values; `out` must have exactly as many places as there are values.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
    let want = bytes_of(dtype, out.len())?;
    if bytes.len() != want {
        return Err(CodecError::Length { dtype, values: out.len(), want, got: bytes.len() });
    }
    match dtype {
        DType::F32 => decode(bytes, out, plain::f32_from),
        DType::F16 => decode(bytes, out, plain::f16_from),
        DType::BF16 => decode(bytes, out, plain::bf16_from),
        DType::F8E4M3 => decode(bytes, out, plain::f8_e4m3_from),
        DType::F8E5M2 => decode(bytes, out, plain::f8_e5m2_from),
        DType::Q4_0 => decode(bytes, out, legacy::q4_0_from),
        DType::Q4_1 => decode(bytes, out, legacy::q4_1_from),
        DType::Q5_0 => decode(bytes, out, legacy::q5_0_from),
        DType::Q5_1 => decode(bytes, out, legacy::q5_1_from),
        DType::Q8_0 => decode(bytes, out, legacy::q8_0_from),
        DType::Q2K => decode(bytes, out, k_quants::q2_k_from),
        DType::Q3K => decode(bytes, out, k_quants::q3_k_from),
        DType::Q4K => decode(bytes, out, k_quants::q4_k_from),
        DType::Q5K => decode(bytes, out, k_quants::q5_k_from),
        DType::Q6K => decode(bytes, out, k_quants::q6_k_from),
        DType::IQ4NL => decode(bytes, out, iq4::iq4_nl_from),
        DType::IQ4XS => decode(bytes, out, iq4::iq4_xs_from),
        DType::MXFP4 => decode(bytes, out, mxfp4::mxfp4_from),
        uncomputable!() => return Err(CodecError::NoCodec { dtype }),
    }
    Ok(())
}

/// Appends the blocks of `values` to `out`.
pub fn quantize(dtype: DType, values: &[f32], out: &mut Vec<u8>) -> Result<(), CodecError> {
    bytes_of(dtype, values.len())?;
    match dtype {
        DType::F32 => encode(values, out, plain::f32_to),
        DType::F16 => encode(values, out, plain::f16_to),
        DType::BF16 => encode(values, out, plain::bf16_to),
        DType::F8E4M3 => encode(values, out, plain::f8_e4m3_to),
        DType::F8E5M2 => encode(values, out, plain::f8_e5m2_to),
        DType::Q4_0 => encode(values, out, legacy::q4_0_to),
        DType::Q4_1 => encode(values, out, legacy::q4_1_to),
        DType::Q5_0 => encode(values, out, legacy::q5_0_to),
        DType::Q5_1 => encode(values, out, legacy::q5_1_to),
        DType::Q8_0 => encode(values, out, legacy::q8_0_to),
        DType::Q2K => encode(values, out, k_quants::q2_k_to),
        DType::Q3K => encode(values, out, k_quants::q3_k_to),
        DType::Q4K => encode(values, out, k_quants::q4_k_to),
        DType::Q5K => encode(values, out, k_quants::q5_k_to),
        DType::Q6K => encode(values, out, k_quants::q6_k_to),
        DType::IQ4NL => encode(values, out, iq4::iq4_nl_to),
        DType::IQ4XS => encode(values, out, iq4::iq4_xs_to),
        DType::MXFP4 => encode(values, out, mxfp4::mxfp4_to),
        uncomputable!() => return Err(CodecError::NoCodec { dtype }),
    }
    Ok(())
}

fn bytes_of(dtype: DType, values: usize) -> Result<usize, CodecError> {
    dtype.row_bytes(values).ok_or(CodecError::PartialBlock { dtype, values })
}

fn decode<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], block: impl Fn(&[u8; B], &mut [f32; N])) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        block(bytes, out);
    }
}

fn encode<const B: usize, const N: usize>(values: &[f32], out: &mut Vec<u8>, block: impl Fn(&[f32; N]) -> [u8; B]) {
    for values in values.as_chunks().0 {
        out.extend_from_slice(&block(values));
    }
}

/// The `f16` in two bytes of a block.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Stores `value` as `f16` and gives back what was stored.
fn put_half(block: &mut [u8], at: usize, value: f32) -> f32 {
    let half = f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

/// The value of largest magnitude, with its sign; 0 for none.
fn largest(values: &[f32]) -> f32 {
    values.iter().copied().fold(0.0, |best: f32, x| if x.abs() > best.abs() { x } else { best })
}

/// `1 / x`, or 0 for 0.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}
