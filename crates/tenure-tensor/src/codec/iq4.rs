//! `IQ4_NL` and `IQ4_XS`: four-bit indices into a fixed table of unevenly spaced values.

use super::{half_at, inverse, largest, put_half};

/// What each code stands for, before the scale.
const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// `d: f16`, 16 bytes of nibbles; value = d table[q].
pub(super) fn iq4_nl_from(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for j in 0..32 {
        out[j] = d * f32::from(VALUES[usize::from(nibble(&block[2..], j))]);
    }
}

/// `d: f16`, high two bits of eight scales in a `u16`, low four bits of them in 4 bytes, 128 bytes of nibbles, 16 to
/// each group of 32; value = d (scale - 32) table[q].
pub(super) fn iq4_xs_from(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for g in 0..8 {
        let low = block[4 + g / 2] >> (4 * (g % 2)) & 15;
        let scale = low | ((high >> (2 * g) & 3) << 4) as u8;
        let dl = d * (f32::from(scale) - 32.0);
        for j in 0..32 {
            out[32 * g + j] = dl * f32::from(VALUES[usize::from(nibble(&block[8 + 16 * g..], j))]);
        }
    }
}

pub(super) fn iq4_nl_to(x: &[f32; 32]) -> [u8; 18] {
    let mut block = [0; 18];
    let d = put_half(&mut block, 0, largest(x) / f32::from(VALUES[0]));
    put_nearest(&mut block[2..], x, d);
    block
}

pub(super) fn iq4_xs_to(x: &[f32; 256]) -> [u8; 136] {
    let mut block = [0; 136];
    let groups = x.as_chunks::<32>().0;
    let mut wanted = [0.0; 8];
    for (want, group) in wanted.iter_mut().zip(groups) {
        *want = largest(group) / f32::from(VALUES[0]);
    }
    let d = put_half(&mut block, 0, largest(&wanted) / -32.0);
    let mut high = 0u16;
    for (g, group) in groups.iter().enumerate() {
        let scale = (wanted[g] * inverse(d)).round().clamp(-32.0, 31.0);
        let code = (scale + 32.0) as u8;
        block[4 + g / 2] |= (code & 15) << (4 * (g % 2));
        high |= u16::from(code >> 4) << (2 * g);
        put_nearest(&mut block[8 + 16 * g..], group, d * scale);
    }
    block[2..4].copy_from_slice(&high.to_le_bytes());
    block
}

fn put_nearest(bytes: &mut [u8], x: &[f32; 32], d: f32) {
    for (j, x) in x.iter().enumerate() {
        let q = x * inverse(d);
        let miss = |code: usize| (f32::from(VALUES[code]) - q).abs();
        let best = (1..16).fold(0, |best, code| if miss(code) < miss(best) { code } else { best });
        bytes[j % 16] |= (best as u8) << (4 * (j / 16));
    }
}

fn nibble(bytes: &[u8], j: usize) -> u8 {
    bytes[j % 16] >> (4 * (j / 16)) & 15
}
