//! AVX2, a few rows: weights are unpacked as they are read.

// Loops over rows of activations and sides of a panel index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::super::{Act, BLOCK, Format, ROWS, Scales, Values};
use super::avx2_wide::avx2_wide;
use super::{Kind, ahead, has_steps, less, parts, signed, sum, sum_in_units};
use crate::simd::float::Out;

/// Rows from which on weights are unpacked once for all of them.
const WIDE: usize = 4;

/// Rows that use the same unpacked weights.
pub(super) const ROWS_TOGETHER: usize = 64;

/// # Safety
/// See [`avx2`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2_panel<K: Kind>(panel: &[u8], cols: usize, acts: &[Act], out: Out) {
    let per_row = cols / BLOCK;
    let rows = acts.len() / per_row;
    let acts = acts.as_ptr();
    // SAFETY: the caller's promise; `acts` has `rows` rows.
    unsafe {
        match rows {
            0 => {}
            1 => avx2_rows::<K, 1>(panel, per_row, acts, out),
            2 => avx2_rows::<K, 2>(panel, per_row, acts, out),
            3 => avx2_rows::<K, 3>(panel, per_row, acts, out),
            WIDE.. => {
                for row in (0..rows).step_by(ROWS_TOGETHER) {
                    let out = Out { base: out.base.add(row * out.stride), ..out };
                    avx2_wide::<K>(panel, per_row, acts.add(row * per_row), (rows - row).min(ROWS_TOGETHER), out);
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
            for first in (0..f.blocks()).step_by(f.together()) {
                let mut dots = [[_mm256_setzero_si256(); N]; 2];
                for b in first..first + f.together() {
                    let at = acts.add(column * f.blocks() + b);
                    if N == 1 {
                        // The panel is read once: ask for what comes next, a little at a time.
                        let share = f.stride() / f.blocks();
                        for line in (0..share).step_by(64) {
                            _mm_prefetch::<_MM_HINT_T0>(piece.wrapping_add(b * share + line + ahead(f)).cast());
                        }
                    }
                    for part in 0..parts(f) {
                        add_part_avx2::<K, N>(piece.add(b * f.planes()), trailer, b, part, at, per_row, &mut dots);
                        if f.has_min() {
                            for h in 0..2 {
                                let min = min_avx2(f, trailer, b, part, h);
                                for n in 0..N {
                                    let sum = _mm256_set1_ps(sum(f, &*at.add(n * per_row), part));
                                    sums[h][n] = _mm256_fmadd_ps(min, sum, sums[h][n]);
                                }
                            }
                        }
                    }
                }
                for h in 0..2 {
                    let scale = scale_avx2(f, trailer, h);
                    for n in 0..N {
                        let unit = _mm256_set1_ps((*acts.add(n * per_row + column * f.blocks() + first)).unit);
                        let scale = _mm256_mul_ps(scale, unit);
                        sums[h][n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[h][n]), scale, sums[h][n]);
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

/// Adds the products of one part of a block column with `N` rows of activations, as integers with the integer scales,
/// for both sides of the rows.
///
/// # Safety
/// `planes` is valid for the planes of a block column, `trailer` for a trailer, `at` for `N` activations `per_row`
/// apart.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_part_avx2<K: Kind, const N: usize>(
    planes: *const u8,
    trailer: *const u8,
    b: usize,
    part: usize,
    at: *const Act,
    per_row: usize,
    dots: &mut [[__m256i; N]; 2],
) {
    let f = K::FORMAT;
    let groups = 8 / parts(f);
    let mut these = [[_mm256_setzero_si256(); N]; 2];
    // SAFETY: the caller's promise.
    unsafe {
        let steps = [steps_avx2(f, trailer, b, part, 0), steps_avx2(f, trailer, b, part, 1)];
        let scaled = [Words::new(f, steps[0]), Words::new(f, steps[1])];
        for g in groups * part..groups * (part + 1) {
            let weights =
                [scaled[0].of(f, group_avx2::<K>(planes, 0, g)), scaled[1].of(f, group_avx2::<K>(planes, 1, g))];
            for n in 0..N {
                let words = (&raw const (*at.add(n * per_row)).words).cast::<i32>().add(2 * g);
                let even = _mm256_set1_epi32(words.read_unaligned());
                let odd = _mm256_set1_epi32(words.add(1).read_unaligned());
                for h in 0..2 {
                    these[h][n] = _mm256_add_epi32(these[h][n], _mm256_madd_epi16(weights[h][0], even));
                    these[h][n] = _mm256_add_epi32(these[h][n], _mm256_madd_epi16(weights[h][1], odd));
                }
            }
        }
        for n in 0..N {
            let sum = sum_in_units(f, &*at.add(n * per_row), part);
            let taken = _mm256_set1_epi32(sum * i32::from(less(f)));
            for h in 0..2 {
                if less(f) != 0 {
                    let taken = if has_steps(f) { _mm256_mullo_epi32(taken, steps[h]) } else { taken };
                    these[h][n] = _mm256_sub_epi32(these[h][n], taken);
                }
                dots[h][n] = _mm256_add_epi32(dots[h][n], these[h][n]);
            }
        }
    }
}

/// Brings the bytes of a group to 16 bits, times the integer scales.
#[derive(Clone, Copy)]
pub(super) struct Words {
    /// The scales: for bytes without a sign one in each even byte, for others in both words of 32 bits.
    steps: __m256i,
}

impl Words {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn new(f: Format, steps: __m256i) -> Self {
        let low = _mm256_and_si256(steps, _mm256_set1_epi32(if signed(f) { 0xffff } else { 0xff }));
        Words { steps: _mm256_or_si256(low, _mm256_slli_epi32::<16>(low)) }
    }

    /// The even and the odd bytes.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn of(self, f: Format, bytes: __m256i) -> [__m256i; 2] {
        match (has_steps(f), signed(f)) {
            (false, false) => [_mm256_and_si256(bytes, _mm256_set1_epi16(255)), _mm256_srli_epi16::<8>(bytes)],
            (false, true) => [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes)), _mm256_srai_epi16::<8>(bytes)],
            // A product of pairs of which one is always zero.
            (true, false) => {
                let odd = _mm256_slli_epi16::<8>(self.steps);
                [_mm256_maddubs_epi16(bytes, self.steps), _mm256_maddubs_epi16(bytes, odd)]
            }
            (true, true) => {
                let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes));
                let odd = _mm256_srai_epi16::<8>(bytes);
                [_mm256_mullo_epi16(even, self.steps), _mm256_mullo_epi16(odd, self.steps)]
            }
        }
    }
}

/// The quants of group `g` for side `h` of the rows, [`less`] too large.
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
            code = _mm256_shuffle_epi8(table, code);
        }
        code
    }
}

/// The scales of a block or superblock for side `h` of the rows.
///
/// # Safety
/// `trailer` is valid for a trailer of the format.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn scale_avx2(f: Format, trailer: *const u8, h: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        match f.scales {
            Scales::Exponent => exponents_avx2(trailer.add(8 * h)),
            Scales::Block
            | Scales::BlockMin
            | Scales::Halves
            | Scales::HalvesMin
            | Scales::Blocks
            | Scales::BlocksMin => halves_avx2(trailer.add(16 * h)),
        }
    }
}

/// The integer scales of one part of block `b` in a superblock for side `h` of the rows.
///
/// # Safety
/// `trailer` is valid for a trailer of the format.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn steps_avx2(f: Format, trailer: *const u8, b: usize, part: usize, h: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = |at: usize, i: usize| _mm_loadl_epi64(trailer.add(at + ROWS * i + 8 * h).cast());
        match f.scales {
            Scales::Block | Scales::BlockMin | Scales::Exponent => _mm256_set1_epi32(1),
            Scales::Halves => _mm256_cvtepi8_epi32(bytes(32, 2 * b + part)),
            Scales::HalvesMin => _mm256_and_si256(_mm256_cvtepu8_epi32(bytes(64, 2 * b + part)), _mm256_set1_epi32(15)),
            Scales::Blocks => _mm256_cvtepi8_epi32(bytes(32, b)),
            Scales::BlocksMin => _mm256_cvtepu8_epi32(bytes(64, b)),
        }
    }
}

/// What is added to every weight of one part of block `b` for side `h` of the rows.
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
            Scales::Block | Scales::Exponent | Scales::Halves | Scales::Blocks => return _mm256_setzero_ps(),
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
