//! `Q2_K` to `Q6_K`: super-blocks of 256 values in groups of 16 or 32, whose scales are quantised in turn.

use super::{half_at, inverse, largest, put_half};

/// 16 bytes of (minimum, scale) nibbles, 64 bytes of 2-bit codes, `d, dmin: f16`; value = d scale q - dmin min.
pub(super) fn q2_k_from(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for g in 0..16 {
        let dl = d * f32::from(block[g] & 15);
        let ml = dmin * f32::from(block[g] >> 4);
        for i in 16 * g..16 * g + 16 {
            out[i] = dl * f32::from(two_bits(&block[16..], i)) - ml;
        }
    }
}

/// 32 bytes of third bits, 64 bytes of 2-bit codes, 12 bytes of 6-bit scales, `d: f16`;
/// value = d (scale - 32) (q - 4).
pub(super) fn q3_k_from(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 108);
    for g in 0..16 {
        let low = block[96 + g % 8] >> (4 * (g / 8)) & 15;
        let high = block[104 + g % 4] >> (2 * (g / 4)) & 3;
        let dl = d * (f32::from(low | high << 4) - 32.0);
        for i in 16 * g..16 * g + 16 {
            let q = two_bits(&block[32..], i) | high_bit(block, i) << 2;
            out[i] = dl * (f32::from(q) - 4.0);
        }
    }
}

/// `d, dmin: f16`, 12 bytes of 6-bit scales and minima, 128 bytes of nibbles; value = d scale q - dmin min.
pub(super) fn q4_k_from(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for g in 0..8 {
        let (scale, min) = scale_min(&block[4..16], g);
        let (dl, ml) = (d * f32::from(scale), dmin * f32::from(min));
        for i in 32 * g..32 * g + 32 {
            out[i] = dl * f32::from(nibble(&block[16..], i)) - ml;
        }
    }
}

/// As `Q4_K`, with 32 bytes of fifth bits before the nibbles.
pub(super) fn q5_k_from(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for g in 0..8 {
        let (scale, min) = scale_min(&block[4..16], g);
        let (dl, ml) = (d * f32::from(scale), dmin * f32::from(min));
        for i in 32 * g..32 * g + 32 {
            let q = nibble(&block[48..], i) | high_bit(&block[16..], i) << 4;
            out[i] = dl * f32::from(q) - ml;
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of high 2 bits, 16 scales as `i8`, `d: f16`; value = d scale (q - 32).
pub(super) fn q6_k_from(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for g in 0..16 {
        let dl = d * f32::from(block[192 + g] as i8);
        for i in 16 * g..16 * g + 16 {
            let q = wide_nibble(block, i) | two_bits(&block[128..], i) << 4;
            out[i] = dl * (f32::from(q) - 32.0);
        }
    }
}

pub(super) fn q2_k_to(x: &[f32; 256]) -> [u8; 84] {
    let mut block = [0; 84];
    let ranges = ranges::<16, 16>(x, 3.0);
    let d = put_half(&mut block, 80, largest(&ranges.map(|r| r.0)) / 15.0);
    let dmin = put_half(&mut block, 82, largest(&ranges.map(|r| r.1)) / 15.0);
    for (g, (scale, min)) in ranges.into_iter().enumerate() {
        let (scale, min) = (code(scale, d, 15.0), code(min, dmin, 15.0));
        block[g] = scale | min << 4;
        for i in 16 * g..16 * g + 16 {
            let q = code(x[i] + dmin * f32::from(min), d * f32::from(scale), 3.0);
            put_two_bits(&mut block[16..], i, q);
        }
    }
    block
}

pub(super) fn q3_k_to(x: &[f32; 256]) -> [u8; 110] {
    let mut block = [0; 110];
    let scales = signed_scales(x, -4.0);
    let d = put_half(&mut block, 108, largest(&scales) / -32.0);
    for (g, scale) in scales.into_iter().enumerate() {
        let scale = (scale * inverse(d)).round().clamp(-32.0, 31.0);
        let biased = (scale + 32.0) as u8;
        block[96 + g % 8] |= (biased & 15) << (4 * (g / 8));
        block[104 + g % 4] |= (biased >> 4) << (2 * (g / 4));
        for i in 16 * g..16 * g + 16 {
            let q = code(x[i] + 4.0 * d * scale, d * scale, 7.0);
            put_two_bits(&mut block[32..], i, q & 3);
            put_high_bit(&mut block, i, q >> 2);
        }
    }
    block
}

pub(super) fn q4_k_to(x: &[f32; 256]) -> [u8; 144] {
    let mut block = [0; 144];
    put_grouped(&mut block, x, 15.0, |block, i, q| put_nibble(&mut block[16..], i, q));
    block
}

pub(super) fn q5_k_to(x: &[f32; 256]) -> [u8; 176] {
    let mut block = [0; 176];
    put_grouped(&mut block, x, 31.0, |block, i, q| {
        put_nibble(&mut block[48..], i, q & 15);
        put_high_bit(&mut block[16..], i, q >> 4);
    });
    block
}

pub(super) fn q6_k_to(x: &[f32; 256]) -> [u8; 210] {
    let mut block = [0; 210];
    let scales = signed_scales(x, -32.0);
    let d = put_half(&mut block, 208, largest(&scales) / -128.0);
    for (g, scale) in scales.into_iter().enumerate() {
        let scale = (scale * inverse(d)).round().clamp(-128.0, 127.0);
        block[192 + g] = scale as i8 as u8;
        for i in 16 * g..16 * g + 16 {
            let q = code(x[i] + 32.0 * d * scale, d * scale, 63.0);
            let (half, row, lane) = (i / 128, i / 64 % 2, i % 64);
            block[64 * half + lane] |= (q & 15) << (4 * row);
            put_two_bits(&mut block[128..], i, q >> 4);
        }
    }
    block
}

/// Scales, minima and codes of `Q4_K` and `Q5_K`.
fn put_grouped(block: &mut [u8], x: &[f32; 256], top: f32, put: impl Fn(&mut [u8], usize, u8)) {
    let ranges = ranges::<8, 32>(x, top);
    let d = put_half(block, 0, largest(&ranges.map(|r| r.0)) / 63.0);
    let dmin = put_half(block, 2, largest(&ranges.map(|r| r.1)) / 63.0);
    for (g, (scale, min)) in ranges.into_iter().enumerate() {
        let (scale, min) = (code(scale, d, 63.0), code(min, dmin, 63.0));
        put_scale_min(&mut block[4..16], g, scale, min);
        for i in 32 * g..32 * g + 32 {
            put(block, i, code(x[i] + dmin * f32::from(min), d * f32::from(scale), top));
        }
    }
}

/// For each group of `N` values: the step so that codes 0 to `top` span them and zero, and how far they reach below
/// zero.
fn ranges<const G: usize, const N: usize>(x: &[f32; 256], top: f32) -> [(f32, f32); G] {
    let mut out = [(0.0, 0.0); G];
    for (out, group) in out.iter_mut().zip(x.as_chunks::<N>().0) {
        let min = group.iter().copied().fold(0.0, f32::min);
        let max = group.iter().copied().fold(0.0, f32::max);
        *out = ((max - min) / top, -min);
    }
    out
}

/// For each group of 16 values: the step that makes the largest the code `lowest`.
fn signed_scales(x: &[f32; 256], lowest: f32) -> [f32; 16] {
    let mut out = [0.0; 16];
    for (out, group) in out.iter_mut().zip(x.as_chunks::<16>().0) {
        *out = largest(group) / lowest;
    }
    out
}

/// The code from 0 to `top` whose multiple of `step` is nearest to `x`.
fn code(x: f32, step: f32, top: f32) -> u8 {
    (x * inverse(step)).round().clamp(0.0, top) as u8
}

/// Six-bit scale and minimum number `g` of eight. The first four of each have a byte to themselves; its upper two bits
/// belong to the last four, whose low bits share the last four bytes.
fn scale_min(packed: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        return (packed[g] & 63, packed[g + 4] & 63);
    }
    let low = packed[g + 4];
    (low & 15 | packed[g - 4] >> 6 << 4, low >> 4 | packed[g] >> 6 << 4)
}

fn put_scale_min(packed: &mut [u8], g: usize, scale: u8, min: u8) {
    if g < 4 {
        packed[g] |= scale;
        packed[g + 4] |= min;
    } else {
        packed[g + 4] |= scale & 15 | min << 4;
        packed[g - 4] |= scale >> 4 << 6;
        packed[g] |= min >> 4 << 6;
    }
}

/// Two bits of value `i`: 32 bytes hold 128 values, one after another in each byte's bit pairs.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    bytes[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3
}

fn put_two_bits(bytes: &mut [u8], i: usize, q: u8) {
    bytes[32 * (i / 128) + i % 32] |= q << (2 * (i / 32 % 4));
}

/// The extra bit of value `i`: bit `i / 32` of byte `i % 32`.
fn high_bit(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 32] >> (i / 32) & 1
}

fn put_high_bit(bytes: &mut [u8], i: usize, bit: u8) {
    bytes[i % 32] |= bit << (i / 32);
}

/// The nibble of value `i`: 32 bytes hold 64 values, the first 32 in the low nibbles.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2)) & 15
}

fn put_nibble(bytes: &mut [u8], i: usize, q: u8) {
    bytes[32 * (i / 64) + i % 32] |= q << (4 * (i / 32 % 2));
}

/// The nibble of value `i` in `Q6_K`: 64 bytes hold 128 values, the first 64 in the low nibbles.
fn wide_nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[64 * (i / 128) + i % 64] >> (4 * (i / 64 % 2)) & 15
}
