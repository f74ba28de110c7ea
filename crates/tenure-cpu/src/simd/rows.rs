//! Products with weights held as plain floats, row by row, as the file has them.

use half::{bf16, f16};
use tenure_tensor::DType;

use crate::simd::Isa;
use crate::simd::elementwise::{for_isa, fused, tree};

/// Where a product's results go: `features` columns of each row, rows `stride` floats apart.
#[derive(Clone, Copy)]
pub struct Out {
    /// The first feature of the first row.
    pub base: *mut f32,
    /// Floats from one row to the next.
    pub stride: usize,
    /// Columns written.
    pub features: usize,
}

/// Partial sums of one product, kept side by side.
const LANES: usize = 16;
/// Columns converted to f32 at a time.
const TILE: usize = 512;

/// `out[row][feature] = dot(w[feature], x[row])` for rows of `cols` floats.
///
/// # Safety
/// `out` is valid for every row of `x`, and nobody else touches it meanwhile.
pub unsafe fn matmul(isa: Isa, dtype: DType, w: &[u8], x: &[f32], cols: usize, out: Out) {
    let Some(bytes) = dtype.row_bytes(cols).filter(|&bytes| bytes > 0) else { return };
    assert!(w.len() == bytes * out.features && x.len().is_multiple_of(cols));
    for (feature, w) in w.chunks_exact(bytes).enumerate() {
        // SAFETY: `feature` is below `out.features`; the caller upholds the rest.
        let base = unsafe { out.base.add(feature) };
        let stride = out.stride;
        for_isa!(isa, row_body(dtype: DType, w: &[u8], x: &[f32], cols: usize, base: *mut f32, stride: usize));
    }
}

/// Rows of `x` computed together, so that a converted piece of `w` is used several times.
const TOGETHER: usize = 4;

#[inline(always)]
fn row_body<const FMA: bool>(dtype: DType, w: &[u8], x: &[f32], cols: usize, base: *mut f32, stride: usize) {
    let rows = x.len() / cols;
    let mut first = 0;
    while first < rows {
        let count = TOGETHER.min(rows - first);
        let x = &x[first * cols..(first + count) * cols];
        let sums = match count {
            4 => dot::<FMA, 4>(dtype, w, x, cols),
            3 => widen(dot::<FMA, 3>(dtype, w, x, cols)),
            2 => widen(dot::<FMA, 2>(dtype, w, x, cols)),
            _ => widen(dot::<FMA, 1>(dtype, w, x, cols)),
        };
        for (row, sum) in sums.iter().take(count).enumerate() {
            // SAFETY: a row of `x`, for which the caller of `matmul` promised room.
            unsafe { *base.add((first + row) * stride) = *sum };
        }
        first += count;
    }
}

#[inline(always)]
fn widen<const N: usize>(sums: [f32; N]) -> [f32; TOGETHER] {
    let mut wide = [0.0; TOGETHER];
    wide[..N].copy_from_slice(&sums);
    wide
}

#[inline(always)]
fn dot<const FMA: bool, const N: usize>(dtype: DType, w: &[u8], x: &[f32], cols: usize) -> [f32; N] {
    let mut sums = [[0.0f32; LANES]; N];
    let mut tile = [0.0f32; TILE];
    let width = dtype.block_bytes();
    let mut at = 0;
    while at < cols {
        let len = TILE.min(cols - at);
        widen_row(dtype, &w[at / dtype.block_len() * width..(at + len) / dtype.block_len() * width], &mut tile[..len]);
        tile[len..len.next_multiple_of(LANES)].fill(0.0);
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = &x[row * cols + at..row * cols + at + len];
            let lines = x.chunks_exact(LANES);
            let rest = lines.remainder();
            for (x, w) in lines.zip(tile.chunks_exact(LANES)) {
                for i in 0..LANES {
                    sums[i] = fused::<FMA>(w[i], x[i], sums[i]);
                }
            }
            for (i, (&x, &w)) in rest.iter().zip(&tile[len - rest.len()..]).enumerate() {
                sums[i] = fused::<FMA>(w, x, sums[i]);
            }
        }
        at += len;
    }
    sums.map(tree)
}

/// Converts plain floats of a file; their alignment is that of bytes.
#[inline(always)]
fn widen_row(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *out = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        DType::BF16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
        _ if dtype.is_block() => drop(tenure_tensor::codec::dequantize(dtype, bytes, out)),
        _ => {
            for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = half_to_f32(f16::from_le_bytes([bytes[0], bytes[1]]));
            }
        }
    }
}

/// The conversion by integer arithmetic, which the compiler can vectorise.
#[inline(always)]
pub(crate) fn half_to_f32(h: f16) -> f32 {
    let bits = u32::from(h.to_bits());
    let (sign, rest) = ((bits & 0x8000) << 16, bits & 0x7fff);
    // Exponent and mantissa moved into place, scaled by 2^112: exact for normals and subnormals alike.
    let scaled = f32::from_bits(rest << 13) * f32::from_bits((254 - 15) << 23);
    let special = f32::from_bits((rest << 13) | 0x7f80_0000);
    let value = if rest >= 0x7c00 { special } else { scaled };
    f32::from_bits(value.to_bits() | sign)
}
