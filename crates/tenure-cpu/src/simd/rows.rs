//! Products with weights held as plain floats, row by row, as the file has them.

use half::{bf16, f16};
use tenure_tensor::DType;

use crate::simd::Isa;
use crate::simd::elementwise::tree;

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

/// Partial sums of one product, kept side by side and added as a tree at the end.
const LANES: usize = 8;
/// Columns converted to f32 at a time.
const TILE: usize = 512;
/// Features computed together, so that an activation loaded is used several times.
const FEATURES: usize = 4;
/// Rows computed while a piece of the weights is at hand in f32.
const ROWS: usize = 64;

/// `out[row][feature] = dot(w[feature], x[row])` for rows of `cols` columns; weights of any type with a scalar codec,
/// made for plain floats.
///
/// # Safety
/// `out` is valid for every row of `x`, and nobody else touches it meanwhile.
pub unsafe fn matmul(isa: Isa, dtype: DType, w: &[u8], x: &[f32], cols: usize, out: Out) {
    let Some(bytes) = dtype.row_bytes(cols).filter(|&bytes| bytes > 0) else { return };
    assert!(w.len() == bytes * out.features && x.len().is_multiple_of(cols));
    for (index, w) in w.chunks(bytes * FEATURES).enumerate() {
        let first = index * FEATURES;
        // SAFETY: the features lie inside `out`; the caller upholds the rest.
        let out = Out { base: unsafe { out.base.add(first) }, features: FEATURES.min(out.features - first), ..out };
        let product = Product { dtype, w, bytes, cols, out };
        for (block, x) in x.chunks(ROWS * cols).enumerate() {
            // SAFETY: the rows lie inside `out`.
            let base = unsafe { product.out.base.add(block * ROWS * product.out.stride) };
            let product = Product { out: Out { base, ..product.out }, ..product };
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` other than `Portable` is used only where the processor has it; see `Cpu::new`.
                Isa::Avx2 | Isa::Avx512Vnni => unsafe { block_avx2(&product, x) },
                #[cfg(not(target_arch = "x86_64"))]
                Isa::Avx2 | Isa::Avx512Vnni => block_portable(&product, x),
                Isa::Portable => block_portable(&product, x),
            }
        }
    }
}

/// A few features' weights and where their products go.
#[derive(Clone, Copy)]
struct Product<'w> {
    dtype: DType,
    w: &'w [u8],
    bytes: usize,
    cols: usize,
    out: Out,
}

impl Product<'_> {
    /// Converts columns `at..at + len` of each feature, `TILE` floats apart; what is beyond is zero.
    #[inline(always)]
    fn widen(&self, at: usize, len: usize, tile: &mut [f32; FEATURES * TILE]) {
        let (block, width) = (self.dtype.block_len(), self.dtype.block_bytes());
        for (w, tile) in self.w.chunks_exact(self.bytes).zip(tile.chunks_exact_mut(TILE)) {
            widen(self.dtype, &w[at / block * width..(at + len) / block * width], &mut tile[..len]);
            tile[len..len.next_multiple_of(LANES)].fill(0.0);
        }
    }

    #[inline(always)]
    fn store(&self, sums: &[[[f32; LANES]; FEATURES]]) {
        for (row, sums) in sums.iter().enumerate() {
            for (feature, &sums) in sums.iter().enumerate().take(self.out.features) {
                // SAFETY: a row and feature for which the caller of `matmul` promised room.
                unsafe { *self.out.base.add(row * self.out.stride + feature) = tree(sums) };
            }
        }
    }
}

fn block_portable(product: &Product<'_>, x: &[f32]) {
    let mut sums = [[[0.0f32; LANES]; FEATURES]; ROWS];
    let mut tile = [0.0f32; FEATURES * TILE];
    let rows = x.len() / product.cols;
    for at in (0..product.cols).step_by(TILE) {
        let len = TILE.min(product.cols - at);
        product.widen(at, len, &mut tile);
        for (x, sums) in x.chunks_exact(product.cols).zip(&mut sums) {
            for (w, sums) in tile.chunks_exact(TILE).zip(sums) {
                for (i, (&x, &w)) in x[at..at + len].iter().zip(w).enumerate() {
                    sums[i % LANES] += w * x;
                }
            }
        }
    }
    product.store(&sums[..rows]);
}

/// # Safety
/// The processor has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn block_avx2(product: &Product<'_>, x: &[f32]) {
    let rows = x.len() / product.cols;
    if rows == 1 && product.dtype == DType::F16 && product.out.features == FEATURES {
        // SAFETY: four features of `cols` halves, one row.
        return unsafe { one_row_f16(product, x) };
    }
    let mut sums = [[[0.0f32; LANES]; FEATURES]; ROWS];
    let mut tile = [0.0f32; FEATURES * TILE];
    for at in (0..product.cols).step_by(TILE) {
        let len = TILE.min(product.cols - at);
        product.widen(at, len, &mut tile);
        let mut row = 0;
        while row < rows {
            let x = &x[row * product.cols + at..];
            // SAFETY: `rows - row` rows of `len` columns from `x` on, `cols` apart.
            unsafe {
                match rows - row {
                    1 => tile_avx2::<1>(&tile, x, product.cols, len, &mut sums[row..]),
                    2 => tile_avx2::<2>(&tile, x, product.cols, len, &mut sums[row..]),
                    _ => tile_avx2::<3>(&tile, x, product.cols, len, &mut sums[row..]),
                }
            }
            row += 3;
        }
    }
    product.store(&sums[..rows]);
}

/// Adds the products of a tile with `N` rows.
///
/// # Safety
/// The processor has AVX2 and FMA; `x` is valid for `N` rows of `len` floats, `cols` apart.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_avx2<const N: usize>(
    tile: &[f32; FEATURES * TILE],
    x: &[f32],
    cols: usize,
    len: usize,
    sums: &mut [[[f32; LANES]; FEATURES]],
) {
    use std::arch::x86_64::*;
    let mut acc = [[_mm256_setzero_ps(); FEATURES]; N];
    let whole = len / LANES * LANES;
    // SAFETY: the caller's promise; the tile is zero beyond `len`.
    unsafe {
        for n in 0..N {
            for f in 0..FEATURES {
                acc[n][f] = _mm256_loadu_ps(sums[n][f].as_ptr());
            }
        }
        for k in (0..whole).step_by(LANES) {
            let w: [__m256; FEATURES] = std::array::from_fn(|f| _mm256_loadu_ps(tile.as_ptr().add(f * TILE + k)));
            for n in 0..N {
                let x = _mm256_loadu_ps(x.as_ptr().add(n * cols + k));
                for f in 0..FEATURES {
                    acc[n][f] = _mm256_fmadd_ps(w[f], x, acc[n][f]);
                }
            }
        }
        if whole < len {
            for n in 0..N {
                let mut rest = [0.0f32; LANES];
                rest[..len - whole].copy_from_slice(&x[n * cols + whole..n * cols + len]);
                let x = _mm256_loadu_ps(rest.as_ptr());
                for f in 0..FEATURES {
                    let w = _mm256_loadu_ps(tile.as_ptr().add(f * TILE + whole));
                    acc[n][f] = _mm256_fmadd_ps(w, x, acc[n][f]);
                }
            }
        }
        for n in 0..N {
            for f in 0..FEATURES {
                _mm256_storeu_ps(sums[n][f].as_mut_ptr(), acc[n][f]);
            }
        }
    }
}

/// One row with four features of f16, converted on the way: the order of the sums is that of [`tile_avx2`].
///
/// # Safety
/// The processor has AVX2, FMA and F16C; the product has four features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn one_row_f16(product: &Product<'_>, x: &[f32]) {
    use std::arch::x86_64::*;
    let whole = product.cols / LANES * LANES;
    let mut acc = [_mm256_setzero_ps(); FEATURES];
    let mut sums = [[[0.0f32; LANES]; FEATURES]];
    // SAFETY: the caller's promise; prefetching an address needs no memory there.
    unsafe {
        let w = product.w.as_ptr();
        for k in (0..whole).step_by(LANES) {
            let x = _mm256_loadu_ps(x.as_ptr().add(k));
            for (f, acc) in acc.iter_mut().enumerate() {
                let at = w.add(f * product.bytes + 2 * k);
                if k % 32 == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(1024).cast());
                }
                *acc = _mm256_fmadd_ps(_mm256_cvtph_ps(_mm_loadu_si128(at.cast())), x, *acc);
            }
        }
        if whole < product.cols {
            for (f, acc) in acc.iter_mut().enumerate() {
                let mut rest = [[0.0f32; LANES]; 2];
                let w = &product.w[f * product.bytes + 2 * whole..(f + 1) * product.bytes];
                widen(DType::F16, w, &mut rest[0][..product.cols - whole]);
                rest[1][..product.cols - whole].copy_from_slice(&x[whole..]);
                *acc = _mm256_fmadd_ps(_mm256_loadu_ps(rest[0].as_ptr()), _mm256_loadu_ps(rest[1].as_ptr()), *acc);
            }
        }
        for (sums, acc) in sums[0].iter_mut().zip(acc) {
            _mm256_storeu_ps(sums.as_mut_ptr(), acc);
        }
    }
    product.store(&sums);
}

/// Converts plain floats of a file; their alignment is that of bytes.
#[inline(always)]
fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) {
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
