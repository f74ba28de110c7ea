//! `F32`, `F16`, `BF16`, `F8_E4M3` and `F8_E5M2`, little-endian, one value a block.

use std::ops::RangeInclusive;

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

pub(super) fn f8_e4m3_from(bytes: &[u8; 1], out: &mut [f32; 1]) {
    let (exponent, fraction) = (i32::from(bytes[0] >> 3 & 0xf), f32::from(bytes[0] & 7));
    let size = match (exponent, bytes[0] & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-9),
        _ => (8.0 + fraction) * 2f32.powi(exponent - 10),
    };
    *out = [if bytes[0] & 0x80 == 0 { size } else { -size }];
}

/// The upper half of an `f16`.
pub(super) fn f8_e5m2_from(bytes: &[u8; 1], out: &mut [f32; 1]) {
    *out = [f16::from_le_bytes([0, bytes[0]]).to_f32()];
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

/// Rounds to nearest, ties to even; what is too large becomes 448, the largest, for there is no infinity.
pub(super) fn f8_e4m3_to(values: &[f32; 1]) -> [u8; 1] {
    [nearest_code(values[0], -6..=8, 3, 126)]
}

/// Rounds to nearest, ties to even; what is too large becomes infinite.
pub(super) fn f8_e5m2_to(values: &[f32; 1]) -> [u8; 1] {
    [nearest_code(values[0], -14..=15, 2, 124)]
}

/// The code of the nearest number, none of a larger size than that of `most`. The exponents of normal numbers are
/// `octaves`, their fractions have so many bits.
fn nearest_code(value: f32, octaves: RangeInclusive<i32>, fraction: i32, most: u8) -> u8 {
    let (sign, size) = (if value.is_sign_negative() { 0x80 } else { 0 }, value.abs());
    if size.is_nan() {
        return sign | 0x7f;
    }
    // Below the first octave neighbours are as far from one another as in it.
    let octave = ((size.to_bits() >> 23) as i32 - 127).clamp(*octaves.start(), *octaves.end());
    let steps = (size / 2f32.powi(octave - fraction)).round_ties_even();
    // Codes of sizes are in order, as many for each octave.
    let code = (octave - octaves.start()) as f32 * 2f32.powi(fraction) + steps;
    sign | code.min(f32::from(most)) as u8
}
