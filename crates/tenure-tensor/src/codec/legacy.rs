//! `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1` and `Q8_0`: 32 values under one scale, `_1` with a minimum.
//!
//! Value `j` of the first 16 has its low four bits in the low nibble of byte `j`, value `j + 16` in the high one.

use super::{half_at, inverse, largest, put_half};

/// `d: f16`, 16 bytes of nibbles; value = d (q - 8).
pub(super) fn q4_0_from(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for j in 0..32 {
        out[j] = d * (f32::from(nibble(&block[2..], j)) - 8.0);
    }
}

/// `d, m: f16`, 16 bytes of nibbles; value = d q + m.
pub(super) fn q4_1_from(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for j in 0..32 {
        out[j] = d * f32::from(nibble(&block[4..], j)) + m;
    }
}

/// `d: f16`, 32 fifth bits, 16 bytes of nibbles; value = d (q - 16).
pub(super) fn q5_0_from(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for j in 0..32 {
        let q = nibble(&block[6..], j) | bit(&block[2..], j) << 4;
        out[j] = d * (f32::from(q) - 16.0);
    }
}

/// `d, m: f16`, 32 fifth bits, 16 bytes of nibbles; value = d q + m.
pub(super) fn q5_1_from(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for j in 0..32 {
        let q = nibble(&block[8..], j) | bit(&block[4..], j) << 4;
        out[j] = d * f32::from(q) + m;
    }
}

/// `d: f16`, 32 signed bytes; value = d q.
pub(super) fn q8_0_from(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for j in 0..32 {
        out[j] = f32::from(block[2 + j] as i8) * d;
    }
}

pub(super) fn q4_0_to(x: &[f32; 32]) -> [u8; 18] {
    let mut block = [0; 18];
    let d = largest(x) / -8.0;
    put_half(&mut block, 0, d);
    let codes = x.map(|x| (x * inverse(d) + 8.5).clamp(0.0, 15.0) as u8);
    put_nibbles(&mut block[2..], &codes);
    block
}

pub(super) fn q4_1_to(x: &[f32; 32]) -> [u8; 20] {
    let mut block = [0; 20];
    let codes = put_range(&mut block, x, 15);
    put_nibbles(&mut block[4..], &codes);
    block
}

pub(super) fn q5_0_to(x: &[f32; 32]) -> [u8; 22] {
    let mut block = [0; 22];
    let d = largest(x) / -16.0;
    put_half(&mut block, 0, d);
    let codes = x.map(|x| (x * inverse(d) + 16.5).clamp(0.0, 31.0) as u8);
    put_bits(&mut block[2..], &codes);
    put_nibbles(&mut block[6..], &codes);
    block
}

pub(super) fn q5_1_to(x: &[f32; 32]) -> [u8; 24] {
    let mut block = [0; 24];
    let codes = put_range(&mut block, x, 31);
    put_bits(&mut block[4..], &codes);
    put_nibbles(&mut block[8..], &codes);
    block
}

pub(super) fn q8_0_to(x: &[f32; 32]) -> [u8; 34] {
    let mut block = [0; 34];
    let d = largest(x).abs() / 127.0;
    put_half(&mut block, 0, d);
    for j in 0..32 {
        // Half away from zero, as C's roundf.
        block[2 + j] = (x[j] * inverse(d)).round() as i8 as u8;
    }
    block
}

/// Scale and minimum so that codes 0 to `top` span the values; the codes.
fn put_range(block: &mut [u8], x: &[f32; 32], top: u8) -> [u8; 32] {
    let min = x.iter().copied().fold(f32::INFINITY, f32::min);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (max - min) / f32::from(top);
    put_half(block, 0, d);
    put_half(block, 2, min);
    x.map(|x| ((x - min) * inverse(d) + 0.5).clamp(0.0, f32::from(top)) as u8)
}

fn nibble(bytes: &[u8], j: usize) -> u8 {
    bytes[j % 16] >> (4 * (j / 16)) & 15
}

fn bit(bytes: &[u8], j: usize) -> u8 {
    bytes[j / 8] >> (j % 8) & 1
}

fn put_nibbles(bytes: &mut [u8], codes: &[u8; 32]) {
    for j in 0..16 {
        bytes[j] = codes[j] & 15 | codes[j + 16] << 4;
    }
}

fn put_bits(bytes: &mut [u8], codes: &[u8; 32]) {
    for (j, code) in codes.iter().enumerate() {
        bytes[j / 8] |= (code >> 4) << (j % 8);
    }
}
