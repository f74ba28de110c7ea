//! Repacking of file blocks into panels.
//!
//! All bit shuffling is done on 32-bit words (4 codes of a row), a few operations for each; then words are put where a
//! panel wants them. A block of the file becomes a list of words in the order of the panel's lines.

use tenure_tensor::DType;

use super::layout::{Format, LINE, SUPER};
use super::{ROWS, panel_bytes};
use crate::simd::act8::BLOCK;

/// Repacks up to 16 rows of `cols` columns, one after another as a file has them, into a panel; rows that are missing
/// are zero.
///
/// # Panics
/// If the type has no panels, or the lengths are not those of whole rows and of a panel.
pub fn pack_panel(dtype: DType, cols: usize, rows: &[u8], panel: &mut [u8]) {
    let row_bytes = dtype.row_bytes(cols).unwrap_or(0);
    assert!(
        panel_bytes(dtype, cols) == Some(panel.len())
            && rows.len().is_multiple_of(row_bytes)
            && rows.len() <= ROWS * row_bytes,
        "shape of a panel"
    );
    let Some(format) = Format::of(dtype) else { return };
    if rows.len() < ROWS * row_bytes {
        panel.fill(0);
    }
    let (scales, planes) = panel.split_at_mut(format.scales.region(cols / BLOCK));
    match dtype {
        DType::Q4_0 => columns::<18, 4, 1>(rows, row_bytes, planes, |b, _| words(&b[2..18])),
        DType::IQ4NL => columns::<18, 4, 1>(rows, row_bytes, planes, |b, _| words(&b[2..18])),
        DType::MXFP4 => columns::<17, 4, 1>(rows, row_bytes, planes, |b, _| words(&b[1..17])),
        DType::Q4_1 => columns::<20, 4, 1>(rows, row_bytes, planes, |b, _| words(&b[4..20])),
        DType::Q5_0 => columns::<22, 5, 1>(rows, row_bytes, planes, |b, _| {
            with(words::<4>(&b[6..22]), [spread(words::<1>(&b[2..6])[0])])
        }),
        DType::Q5_1 => columns::<24, 5, 1>(rows, row_bytes, planes, |b, _| {
            with(words::<4>(&b[8..24]), [spread(words::<1>(&b[4..8])[0])])
        }),
        DType::Q8_0 => {
            columns::<34, 8, 1>(rows, row_bytes, planes, |b, _| words(&b[2..34]).map(|w: u32| w ^ 0x8080_8080))
        }
        DType::Q4K => columns::<144, 4, SUPER>(rows, row_bytes, planes, |b, i| nibbles(&b[16 + 32 * (i / 2)..], i % 2)),
        DType::Q5K => columns::<176, 5, SUPER>(rows, row_bytes, planes, |b, i| {
            with(nibbles(&b[48 + 32 * (i / 2)..], i % 2), bits(&b[16..48], i))
        }),
        DType::Q6K => columns::<210, 6, SUPER>(rows, row_bytes, planes, |b, i| {
            let low = nibbles(&b[64 * (i / 4) + 32 * (i % 2)..], i % 4 / 2);
            with(low, pairs(&b[128 + 32 * (i / 4)..], i % 4))
        }),
        DType::Q2K => columns::<84, 2, SUPER>(rows, row_bytes, planes, |b, i| pairs(&b[16 + 32 * (i / 4)..], i % 4)),
        DType::Q3K => columns::<110, 3, SUPER>(rows, row_bytes, planes, |b, i| {
            with(pairs(&b[32 + 32 * (i / 4)..], i % 4), bits(&b[..32], i))
        }),
        DType::IQ4XS => columns::<136, 4, SUPER>(rows, row_bytes, planes, |b, i| words(&b[8 + 16 * i..24 + 16 * i])),
        // `panel_bytes` knows the types above only.
        _ => (),
    }
    let unit = format.scales.bytes();
    for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
        let file = row.chunks_exact(dtype.block_bytes());
        for (block, scales) in file.zip(scales.chunks_exact_mut(unit)) {
            put_scales(dtype, block, r, scales);
        }
    }
}

/// Fills the planes: `W` lines for each of the `N` blocks of 32 columns in a file block of `B` bytes.
#[inline(always)]
fn columns<const B: usize, const W: usize, const N: usize>(
    rows: &[u8],
    row_bytes: usize,
    planes: &mut [u8],
    code_words: impl Fn(&[u8; B], usize) -> [u32; W],
) {
    // One file block column of the rows at a time, so that lines are written once and whole.
    for (column, planes) in planes.chunks_exact_mut(N * W * LINE).enumerate() {
        for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
            let Some(block) = row[column * B..].first_chunk::<B>() else { return };
            for (i, planes) in planes.chunks_exact_mut(W * LINE).enumerate() {
                for (line, word) in planes.chunks_exact_mut(LINE).zip(code_words(block, i)) {
                    line[4 * r..4 * r + 4].copy_from_slice(&word.to_le_bytes());
                }
            }
        }
    }
}

fn put_scales(dtype: DType, block: &[u8], r: usize, unit: &mut [u8]) {
    let mut float = |slot: usize, at: usize| {
        let to = 2 * (slot * ROWS + r);
        unit[to..to + 2].copy_from_slice(&block[at..at + 2]);
    };
    match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4NL => float(0, 0),
        DType::Q4_1 | DType::Q5_1 => {
            float(0, 0);
            float(1, 2);
        }
        DType::MXFP4 => unit[r] = block[0],
        DType::Q4K | DType::Q5K => {
            float(0, 0);
            float(1, 2);
            let packed = &block[4..16];
            for i in 0..SUPER {
                // The first four scales and minima have a byte each, whose upper two bits belong to the last four.
                let (scale, min) = if i < 4 {
                    (packed[i] & 63, packed[i + 4] & 63)
                } else {
                    (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4)
                };
                unit[4 * ROWS + ROWS * i + r] = scale;
                unit[4 * ROWS + ROWS * (SUPER + i) + r] = min;
            }
        }
        DType::Q2K => {
            float(0, 80);
            float(1, 82);
            for i in 0..2 * SUPER {
                unit[4 * ROWS + ROWS * i + r] = block[i];
            }
        }
        DType::Q3K => {
            float(0, 108);
            for i in 0..2 * SUPER {
                let low = block[96 + i % 8] >> (4 * (i / 8)) & 15;
                let high = block[104 + i % 4] >> (2 * (i / 4)) & 3;
                unit[2 * ROWS + ROWS * i + r] = (low | high << 4).wrapping_sub(32);
            }
        }
        DType::Q6K => {
            float(0, 208);
            for i in 0..2 * SUPER {
                unit[2 * ROWS + ROWS * i + r] = block[192 + i];
            }
        }
        DType::IQ4XS => {
            float(0, 0);
            let high = u16::from_le_bytes([block[2], block[3]]);
            for i in 0..SUPER {
                let low = block[4 + i / 2] >> (4 * (i % 2)) & 15;
                unit[2 * ROWS + ROWS * i + r] = (low | ((high >> (2 * i) & 3) << 4) as u8).wrapping_sub(32);
            }
        }
        // `panel_bytes` knows the types above only.
        _ => (),
    }
}

/// The first `N` words.
#[inline(always)]
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let bytes = &bytes[..4 * N];
    std::array::from_fn(|i| u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]))
}

/// The low (`high` = 0) or high nibbles of 32 bytes as a 4-bit plane: the last 16 above the first 16.
#[inline(always)]
fn nibbles(bytes: &[u8], high: usize) -> [u32; 4] {
    const LOW: u32 = 0x0f0f_0f0f;
    let w: [u32; 8] = words(bytes);
    std::array::from_fn(|i| (w[i] >> (4 * high) & LOW) | (w[i + 4] >> (4 * high) & LOW) << 4)
}

/// Bit pair `at` of 32 bytes as a 2-bit plane.
#[inline(always)]
fn pairs(bytes: &[u8], at: usize) -> [u32; 2] {
    let w: [u32; 8] = words::<8>(bytes).map(|w| w >> (2 * at) & 0x0303_0303);
    std::array::from_fn(|i| w[i] | w[i + 2] << 2 | w[i + 4] << 4 | w[i + 6] << 6)
}

/// Bit `at` of 32 bytes as a 1-bit plane.
#[inline(always)]
fn bits(bytes: &[u8], at: usize) -> [u32; 1] {
    let w: [u32; 8] = words::<8>(bytes).map(|w| w >> at & 0x0101_0101);
    [w.iter().enumerate().fold(0, |all, (g, w)| all | w << g)]
}

/// 32 bits in the order of columns as a 1-bit plane: bit `4 g + i` moves to bit `g` of byte `i`.
#[inline(always)]
fn spread(bits: u32) -> u32 {
    // The index of a bit has five binary digits; each exchange swaps two of them everywhere: 0 with 2, 1 with 3, then 2
    // with 4 and 3 with 4.
    let exchange = |x: u32, mask: u32, by: u32| {
        let t = (x ^ (x >> by)) & mask;
        x ^ t ^ (t << by)
    };
    let x = exchange(bits, 0x0a0a_0a0a, 3);
    let x = exchange(x, 0x00cc_00cc, 6);
    let x = exchange(x, 0x0000_f0f0, 12);
    exchange(x, 0x0000_ff00, 8)
}

#[inline(always)]
fn with<const A: usize, const B: usize, const W: usize>(a: [u32; A], b: [u32; B]) -> [u32; W] {
    std::array::from_fn(|i| if i < A { a[i] } else { b[i - A] })
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn each_bit_moves_to_its_place() {
        for k in 0..32 {
            assert_eq!(spread(1 << k), 1 << (8 * (k % 4) + k / 4), "bit {k}");
        }
    }
}
