//! `MXFP4`, after the OCP Microscaling Formats specification 1.0: 32 values of E2M1 under one power of two.

/// What each E2M1 code stands for, doubled so that all are whole; the scale is halved to match.
const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// One byte of exponent (E8M0), 16 bytes of nibbles; value = 2^(e - 128) table[q].
///
/// The specification reserves exponent 255 for NaN; GGML gives it no such meaning, nor does this.
pub(super) fn mxfp4_from(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = half_scale(block[0]);
    for j in 0..32 {
        let q = block[1 + j % 16] >> (4 * (j / 16)) & 15;
        out[j] = d * f32::from(DOUBLED[usize::from(q)]);
    }
}

pub(super) fn mxfp4_to(x: &[f32; 32]) -> [u8; 17] {
    let mut block = [0; 17];
    let most = super::largest(x).abs();
    // The exponent of the largest value, less the two of the largest code, 6 = 1.5 x 2^2.
    block[0] = ((most.to_bits() >> 23) as u8).saturating_sub(2);
    let d = half_scale(block[0]);
    for (j, x) in x.iter().enumerate() {
        let miss = |code: usize| (d * f32::from(DOUBLED[code]) - x).abs();
        let best = (1..16).fold(0, |best, code| if miss(code) < miss(best) { code } else { best });
        block[1 + j % 16] |= (best as u8) << (4 * (j / 16));
    }
    block
}

/// 2^(e - 128), the least two of which are subnormal.
fn half_scale(e: u8) -> f32 {
    f32::from_bits(match e {
        0 | 1 => 0x0020_0000 << e,
        _ => u32::from(e - 1) << 23,
    })
}
