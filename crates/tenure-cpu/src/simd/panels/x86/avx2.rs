//! AVX2, a few rows: weights are unpacked as they are read, and those that fill a signed byte lend their sign to the
//! activation.

// Loops over rows of activations and sides of a panel index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::super::{Act, Acts, BLOCK, Format, QUARTER, ROWS, Scales, Values};
use super::avx2_wide::{Wide, avx2_wide};
use super::{Kind, ahead, has_min, parts, sum};
use crate::simd::float::Out;

/// Rows from which on weights are unpacked once for all of them.
const WIDE: usize = 4;

/// Rows that use the same unpacked weights.
pub(super) const ROWS_TOGETHER: usize = 64;

/// # Safety
/// See [`avx2`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2_panel<K: Kind>(panel: &[u8], cols: usize, acts: Acts<'_>, out: Out) {
    let per_row = cols / BLOCK;
    let rows = acts.blocks.len() / per_row;
    let Acts { blocks: acts, words } = acts;
    let (acts, words) = (acts.as_ptr(), words.as_ptr());
    // SAFETY: the caller's promise; `acts` has `rows` rows, and as many words.
    unsafe {
        match rows {
            0 => {}
            1 => avx2_rows::<K, 1>(panel, per_row, acts, out),
            2 => avx2_rows::<K, 2>(panel, per_row, acts, out),
            3 => avx2_rows::<K, 3>(panel, per_row, acts, out),
            WIDE.. => {
                for row in (0..rows).step_by(ROWS_TOGETHER) {
                    let out = Out { base: out.base.add(row * out.stride), ..out };
                    let wide = Wide { acts: acts.add(row * per_row), words: words.add(row * per_row), per_row };
                    avx2_wide::<K>(panel, wide, (rows - row).min(ROWS_TOGETHER), out);
                }
            }
        }
    }
}

/// # Safety
/// See [`avx2`]; `acts` is valid for `N` rows of `per_row`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_rows<K: Kind, const N: usize>(panel: &[u8], per_row: usize, acts: *const Act, out: Out) {
    let f = K::FORMAT;
    let mut sums = [[_mm256_setzero_ps(); N]; 2];
    let mut piece = panel.as_ptr();
    // SAFETY: the panel has `per_row / f.blocks()` pieces of `stride` bytes, every row `per_row` activations.
    unsafe {
        for column in 0..per_row / f.blocks() {
            let trailer = piece.add(f.blocks() * f.planes());
            for b in 0..f.blocks() {
                let at = acts.add(column * f.blocks() + b);
                if N == 1 {
                    // The panel is read once: ask for what comes next, a little at a time.
                    let share = f.stride() / f.blocks();
                    for line in (0..share).step_by(64) {
                        _mm_prefetch::<_MM_HINT_T0>(piece.wrapping_add(b * share + line + ahead(f)).cast());
                    }
                }
                for part in 0..parts(f) {
                    let dots = avx2_part::<K, N>(piece.add(b * f.planes()), part, at, per_row);
                    for h in 0..2 {
                        let scale = scale_avx2(f, trailer, b, part, h);
                        let min = min_avx2(f, trailer, b, part, h);
                        for n in 0..N {
                            let act = &*at.add(n * per_row);
                            if has_min(f) {
                                sums[h][n] = _mm256_fmadd_ps(min, _mm256_set1_ps(sum(f, act, part)), sums[h][n]);
                            }
                            let scale = _mm256_mul_ps(scale, _mm256_set1_ps(act.unit));
                            sums[h][n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[h][n]), scale, sums[h][n]);
                        }
                    }
                }
            }
            piece = piece.add(f.stride());
        }
        for n in 0..N {
            let mut rows = [0.0f32; ROWS];
            _mm256_storeu_ps(rows.as_mut_ptr(), sums[0][n]);
            _mm256_storeu_ps(rows.as_mut_ptr().add(8), sums[1][n]);
            std::ptr::copy_nonoverlapping(rows.as_ptr(), out.base.add(n * out.stride), out.features);
        }
    }
}

/// Products of one part of a block column with `N` rows of activations, as integers, for both sides of the rows.
///
/// # Safety
/// `planes` is valid for the planes of a block column, `at` for `N` activations `per_row` apart.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_part<K: Kind, const N: usize>(
    planes: *const u8,
    part: usize,
    at: *const Act,
    per_row: usize,
) -> [[__m256i; N]; 2] {
    let f = K::FORMAT;
    let quarters = 4 / parts(f);
    let mut dots = [[_mm256_setzero_si256(); N]; 2];
    // SAFETY: the caller's promise.
    unsafe {
        for quarter in quarters * part..quarters * (part + 1) {
            let g = 2 * quarter;
            let weights = [
                [group_avx2::<K>(planes, 0, g), group_avx2::<K>(planes, 1, g)],
                [group_avx2::<K>(planes, 0, g + 1), group_avx2::<K>(planes, 1, g + 1)],
            ];
            for n in 0..N {
                let act = &*at.add(n * per_row);
                let steps = _mm256_set1_epi32(bytemuck::cast(act.steps[quarter]));
                let q = act.q.as_ptr().add(QUARTER * quarter).cast::<i32>();
                let q = [_mm256_set1_epi32(q.read_unaligned()), _mm256_set1_epi32(q.add(1).read_unaligned())];
                for h in 0..2 {
                    if signed(f) {
                        for g in 0..2 {
                            let act = _mm256_sign_epi8(q[g], weights[g][h]);
                            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights[g][h]), act);
                            dots[h][n] = _mm256_add_epi32(dots[h][n], _mm256_madd_epi16(pairs, steps));
                        }
                    } else {
                        let first = _mm256_maddubs_epi16(weights[0][h], q[0]);
                        let pairs = _mm256_add_epi16(first, _mm256_maddubs_epi16(weights[1][h], q[1]));
                        dots[h][n] = _mm256_add_epi32(dots[h][n], _mm256_madd_epi16(pairs, steps));
                    }
                }
            }
        }
    }
    dots
}

/// Whether weights fill a signed byte, so that two products of a pair fill 16 bits.
pub(super) const fn signed(format: Format) -> bool {
    matches!(format.values, Values::Signed | Values::Table)
}

/// What is taken off a quant, or off a value of a table that was made unsigned.
pub(super) const fn less(format: Format) -> i16 {
    match format.values {
        Values::Less(shift) => 1 << shift,
        Values::SmallTable => 12,
        Values::Plain | Values::Signed | Values::Table => 0,
    }
}

/// The weights of group `g` for side `h` of the rows, [`less`] too large.
///
/// # Safety
/// `planes` is valid for the planes of a block column.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn group_avx2<K: Kind>(planes: *const u8, h: usize, g: usize) -> __m256i {
    let f = K::FORMAT;
    // SAFETY: the caller's promise.
    unsafe {
        let line = |at: usize| _mm256_loadu_si256(planes.add(at + 32 * h).cast());
        let right = |v, by: usize| _mm256_srl_epi16(v, _mm_cvtsi32_si128(by as i32));
        let left = |v, by: usize| _mm256_sll_epi16(v, _mm_cvtsi32_si128(by as i32));
        if f.eight {
            return line(64 * g);
        }
        let (mut code, mut at, mut above) = (_mm256_setzero_si256(), 0, 0);
        if f.four {
            code = _mm256_and_si256(right(line(64 * (g % 4)), 4 * (g / 4)), _mm256_set1_epi8(15));
            (at, above) = (256, 4);
        }
        if f.two {
            let bits = _mm256_and_si256(right(line(at + 64 * (g % 2)), 2 * (g / 2)), _mm256_set1_epi8(3));
            code = _mm256_or_si256(code, left(bits, above));
            (at, above) = (at + 128, above + 2);
        }
        if f.one {
            let bits = _mm256_and_si256(right(line(at), g), _mm256_set1_epi8(1));
            code = _mm256_or_si256(code, left(bits, above));
        }
        if matches!(f.values, Values::Table | Values::SmallTable) {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(K::TABLE.as_ptr().cast()));
            code = _mm256_shuffle_epi8(_mm256_add_epi8(table, _mm256_set1_epi8(less(f) as i8)), code);
        }
        code
    }
}

/// The scales of one part of block `b` for side `h` of the rows; exact, as an f16 times a byte fits an f32.
///
/// # Safety
/// `trailer` is valid for a trailer of the format.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn scale_avx2(f: Format, trailer: *const u8, b: usize, part: usize, h: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = |at: usize, i: usize| _mm_loadl_epi64(trailer.add(at + ROWS * i + 8 * h).cast());
        let steps = match f.scales {
            Scales::Exponent => return exponents_avx2(trailer.add(8 * h)),
            Scales::Block | Scales::BlockMin => return halves_avx2(trailer.add(16 * h)),
            Scales::Halves => _mm256_cvtepi8_epi32(bytes(32, 2 * b + part)),
            Scales::HalvesMin => _mm256_and_si256(_mm256_cvtepu8_epi32(bytes(64, 2 * b + part)), _mm256_set1_epi32(15)),
            Scales::Blocks => _mm256_cvtepi8_epi32(bytes(32, b)),
            Scales::BlocksMin => _mm256_cvtepu8_epi32(bytes(64, b)),
        };
        _mm256_mul_ps(halves_avx2(trailer.add(16 * h)), _mm256_cvtepi32_ps(steps))
    }
}

/// What is added for each unit of the sum of activations, as [`scale_avx2`].
///
/// # Safety
/// `trailer` is valid for a trailer of the format.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn min_avx2(f: Format, trailer: *const u8, b: usize, part: usize, h: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = |at: usize, i: usize| _mm_loadl_epi64(trailer.add(at + ROWS * i + 8 * h).cast());
        let steps = match f.scales {
            Scales::BlockMin => return halves_avx2(trailer.add(32 + 16 * h)),
            Scales::HalvesMin => _mm256_srli_epi32::<4>(_mm256_cvtepu8_epi32(bytes(64, 2 * b + part))),
            Scales::BlocksMin => _mm256_cvtepu8_epi32(bytes(64 + 128, b)),
            Scales::Block | Scales::Exponent | Scales::Halves | Scales::Blocks => {
                let taken = _mm256_set1_ps(-f32::from(less(f)));
                return _mm256_mul_ps(scale_avx2(f, trailer, b, part, h), taken);
            }
        };
        let minus = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_setzero_si256(), steps));
        _mm256_mul_ps(halves_avx2(trailer.add(32 + 16 * h)), minus)
    }
}

/// Eight f16 as f32.
///
/// # Safety
/// `from` is valid for 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves_avx2(from: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
}

/// Eight times `2^(e - 128)`.
///
/// # Safety
/// `from` is valid for 8 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn exponents_avx2(from: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    let e = unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) };
    let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
    let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
    let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, is_small))
}
