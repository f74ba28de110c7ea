//! `F32`, `F16` and `BF16`, little-endian, one value a block.

use half::{bf16, f16};

pub(super) fn f32_from(bytes: &[u8; 4], out: &mut [f32; 1]) {
    *out = [f32::from_le_bytes(*bytes)];
}

pub(super) fn f16_from(bytes: &[u8; 2], out: &mut [f32; 1]) {
    *out = [f16::from_le_bytes(*bytes).to_f32()];
}

pub(super) fn bf16_from(bytes: &[u8; 2], out: &mut [f32; 1]) {
    *out = [bf16::from_le_bytes(*bytes).to_f32()];
}

pub(super) fn f32_to(values: &[f32; 1]) -> [u8; 4] {
    values[0].to_le_bytes()
}

/// Rounds to nearest, ties to even.
pub(super) fn f16_to(values: &[f32; 1]) -> [u8; 2] {
    f16::from_f32(values[0]).to_le_bytes()
}

/// Rounds to nearest, ties to even.
pub(super) fn bf16_to(values: &[f32; 1]) -> [u8; 2] {
    bf16::from_f32(values[0]).to_le_bytes()
}
