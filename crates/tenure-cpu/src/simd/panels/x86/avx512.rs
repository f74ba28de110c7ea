//! AVX-512 VNNI: a line is one register.

// Loops over rows of activations and sides of a panel index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::{Act, BLOCK, Format, ROWS, Scales, TOGETHER, Values};
use super::{Kind, ahead, has_steps, less, parts, signed, sum, sum_in_units};
use crate::simd::float::Out;

/// Rows from which on six are taken together where registers suffice.
const SIX_FROM: usize = 12;

/// Up to [`TOGETHER`] panels of `bytes` each, one behind the other.
///
/// # Safety
/// See [`avx512`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn avx512_panels<K: Kind>(panels: &[u8], bytes: usize, cols: usize, acts: &[Act], out: Out) {
    // SAFETY: the caller's promise.
    unsafe {
        if panels.len() == TOGETHER * bytes && acts.len() > cols / BLOCK {
            return avx512_all_rows::<K, TOGETHER>(panels, bytes, cols, acts, out);
        }
        for (index, panel) in panels.chunks(bytes).enumerate() {
            let first = index * ROWS;
            let out = Out { base: out.base.add(first), features: ROWS.min(out.features - first), ..out };
            avx512_all_rows::<K, 1>(panel, bytes, cols, acts, out);
        }
    }
}

/// # Safety
/// See [`avx512`]; there are `P` panels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512_all_rows<K: Kind, const P: usize>(panels: &[u8], bytes: usize, cols: usize, acts: &[Act], out: Out) {
    let per_row = cols / BLOCK;
    let rows = acts.len() / per_row;
    let mut row = 0;
    // SAFETY: the caller's promise; `acts` has `rows` rows.
    unsafe {
        while row < rows {
            let acts = acts.as_ptr().add(row * per_row);
            let (out, stream) = (Out { base: out.base.add(row * out.stride), ..out }, row == 0);
            row += match rows - row {
                1 => avx512_rows::<K, P, 1>(panels, bytes, per_row, acts, out, stream),
                2 | 3 => avx512_rows::<K, P, 2>(panels, bytes, per_row, acts, out, stream),
                left if left >= SIX_FROM && !has_steps(K::FORMAT) => {
                    avx512_rows::<K, P, 6>(panels, bytes, per_row, acts, out, stream)
                }
                _ => avx512_rows::<K, P, 4>(panels, bytes, per_row, acts, out, stream),
            };
        }
    }
}

/// `N` rows; returns `N`. With `stream` nobody has read the panels just before.
///
/// # Safety
/// See [`avx512`]; there are `P` panels, and `acts` is valid for `N` rows of `per_row`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512_rows<K: Kind, const P: usize, const N: usize>(
    panels: &[u8],
    bytes: usize,
    per_row: usize,
    acts: *const Act,
    out: Out,
    stream: bool,
) -> usize {
    let f = K::FORMAT;
    let blocks = f.blocks();
    let mut sums = [[_mm512_setzero_ps(); N]; P];
    let mut piece = panels.as_ptr();
    // SAFETY: a panel has `per_row / blocks` pieces of `stride` bytes, every row `per_row` activations.
    unsafe {
        for column in 0..per_row / blocks {
            let trailer = piece.add(blocks * f.planes());
            for first in (0..blocks).step_by(f.together()) {
                let mut dots = [[_mm512_setzero_si512(); N]; P];
                for b in first..first + f.together() {
                    let at = acts.add(column * blocks + b);
                    if stream {
                        let share = P * f.stride() / blocks;
                        // Several rows are with these panels for long enough to bring the next ones.
                        let distance = if N == 1 { ahead(f) } else { P * bytes };
                        let next = panels.as_ptr().wrapping_add((column * blocks + b) * share + distance);
                        for line in (0..share).step_by(64) {
                            _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast());
                        }
                    }
                    let from = [piece.add(b * f.planes()), trailer];
                    add_part::<K, P, N, 0>(from, bytes, b, at, per_row, &mut dots);
                    if parts(f) == 2 {
                        add_part::<K, P, N, 1>(from, bytes, b, at, per_row, &mut dots);
                    }
                    if f.has_min() {
                        for part in 0..parts(f) {
                            let mut min = [_mm512_setzero_ps(); P];
                            for p in 0..P {
                                min[p] = min_avx512(f, trailer.add(p * bytes), b, part);
                            }
                            for n in 0..N {
                                let sum = _mm512_set1_ps(sum(f, &*at.add(n * per_row), part));
                                for p in 0..P {
                                    sums[p][n] = _mm512_fmadd_ps(min[p], sum, sums[p][n]);
                                }
                            }
                        }
                    }
                }
                let mut scale = [_mm512_setzero_ps(); P];
                for p in 0..P {
                    scale[p] = scale_avx512(f, trailer.add(p * bytes));
                }
                for n in 0..N {
                    let unit = _mm512_set1_ps((*acts.add(n * per_row + column * blocks + first)).unit);
                    for p in 0..P {
                        let scale = _mm512_mul_ps(scale[p], unit);
                        sums[p][n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[p][n]), scale, sums[p][n]);
                    }
                }
            }
            piece = piece.add(f.stride());
        }
        for p in 0..P {
            let features = (out.features - p * ROWS).min(ROWS);
            let mask = (u32::MAX >> (32 - features)) as __mmask16;
            for n in 0..N {
                _mm512_mask_storeu_ps(out.base.add(n * out.stride + p * ROWS), mask, sums[p][n]);
            }
        }
    }
    N
}

/// Adds the products of part `PART` of a block column with `N` rows of activations, as integers with the integer scales.
///
/// # Safety
/// The planes of a block column and a trailer, and those `bytes` behind them of each further panel, are valid, `at` for
/// `N` activations `per_row` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn add_part<K: Kind, const P: usize, const N: usize, const PART: usize>(
    [planes, trailer]: [*const u8; 2],
    bytes: usize,
    b: usize,
    at: *const Act,
    per_row: usize,
    dots: &mut [[__m512i; N]; P],
) {
    let f = K::FORMAT;
    let mut these = [[_mm512_setzero_si512(); N]; P];
    macro_rules! add_groups {
        ($($g:literal)*) => {
            $(if $g * parts(f) / 8 == PART {
                add_group::<K, P, N, $g>(planes, bytes, at, per_row, &mut these);
            })*
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        add_groups!(0 1 2 3 4 5 6 7);
        for p in 0..P {
            let steps = steps_avx512(f, trailer.add(p * bytes), b, PART);
            for n in 0..N {
                if less(f) != 0 {
                    let sum = sum_in_units(f, &*at.add(n * per_row), PART);
                    these[p][n] = _mm512_sub_epi32(these[p][n], _mm512_set1_epi32(sum * i32::from(less(f))));
                }
                if has_steps(f) {
                    these[p][n] = _mm512_mullo_epi32(these[p][n], steps);
                }
                dots[p][n] = _mm512_add_epi32(dots[p][n], these[p][n]);
            }
        }
    }
}

/// Adds the products of group `G`, whose number the compiler has to know to shift by it.
///
/// # Safety
/// As for [`add_part`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn add_group<K: Kind, const P: usize, const N: usize, const G: usize>(
    planes: *const u8,
    bytes: usize,
    at: *const Act,
    per_row: usize,
    dots: &mut [[__m512i; N]; P],
) {
    // SAFETY: the caller's promise.
    unsafe {
        // The even and the odd bytes, in 16 bits.
        let mut weights = [[_mm512_setzero_si512(); 2]; P];
        for p in 0..P {
            let group = group_avx512::<K>(planes.add(p * bytes), G);
            weights[p] = if signed(K::FORMAT) {
                [_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(group)), _mm512_srai_epi16::<8>(group)]
            } else {
                [_mm512_and_si512(group, _mm512_set1_epi16(255)), _mm512_srli_epi16::<8>(group)]
            };
        }
        for n in 0..N {
            let words = (&raw const (*at.add(n * per_row)).words).cast::<i32>().add(2 * G);
            for half in 0..2 {
                let words = _mm512_set1_epi32(words.add(half).read_unaligned());
                for p in 0..P {
                    dots[p][n] = add_products(dots[p][n], weights[p][half], words);
                }
            }
        }
    }
}

/// `_mm512_dpwssd_epi32` as one instruction: compilers that do not know the processor make two of it.
///
/// # Safety
/// The processor has AVX-512 F and VNNI.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn add_products(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: arithmetic on registers; the instruction set is there.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {a}, {b}",
            sum = inout(zmm_reg) sum,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// The quants of group `g`, [`less`] too large.
///
/// # Safety
/// `planes` is valid for the planes of a block column.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn group_avx512<K: Kind>(planes: *const u8, g: usize) -> __m512i {
    let f = K::FORMAT;
    // SAFETY: the caller's promise.
    unsafe {
        let line = |at: usize| _mm512_loadu_si512(planes.add(at).cast());
        let right = |v, by: usize| _mm512_srl_epi16(v, _mm_cvtsi32_si128(by as i32));
        let left = |v, by: usize| _mm512_sll_epi16(v, _mm_cvtsi32_si128(by as i32));
        if f.eight {
            return line(64 * g);
        }
        let (mut code, mut at, mut above) = (_mm512_setzero_si512(), 0, 0);
        if f.four {
            code = _mm512_and_si512(right(line(64 * (g % 4)), 4 * (g / 4)), _mm512_set1_epi8(15));
            (at, above) = (256, 4);
        }
        if f.two {
            let bits = _mm512_and_si512(right(line(at + 64 * (g % 2)), 2 * (g / 2)), _mm512_set1_epi8(3));
            code = _mm512_or_si512(code, left(bits, above));
            (at, above) = (at + 128, above + 2);
        }
        if f.one {
            let bits = _mm512_and_si512(right(line(at), g), _mm512_set1_epi8(1));
            code = _mm512_or_si512(code, left(bits, above));
        }
        if matches!(f.values, Values::Table | Values::SmallTable) {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(K::TABLE.as_ptr().cast()));
            code = _mm512_shuffle_epi8(table, code);
        }
        code
    }
}

/// Sixteen f16 as f32.
///
/// # Safety
/// `from` is valid for 32 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn halves_avx512(from: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
}

/// Sixteen times `2^(e - 128)`.
///
/// # Safety
/// `from` is valid for 16 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn exponents_avx512(from: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    let e = unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) };
    let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
    let small = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), e);
    let is_small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    _mm512_castsi512_ps(_mm512_mask_blend_epi32(is_small, normal, small))
}

/// The scales of a block or superblock.
///
/// # Safety
/// `trailer` is valid for a trailer of the format.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn scale_avx512(f: Format, trailer: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        match f.scales {
            Scales::Exponent => exponents_avx512(trailer),
            Scales::Block
            | Scales::BlockMin
            | Scales::Halves
            | Scales::HalvesMin
            | Scales::Blocks
            | Scales::BlocksMin => halves_avx512(trailer),
        }
    }
}

/// The integer scales of one part of block `b` in a superblock.
///
/// # Safety
/// `trailer` is valid for a trailer of the format.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn steps_avx512(f: Format, trailer: *const u8, b: usize, part: usize) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = |at: usize, i: usize| _mm_loadu_si128(trailer.add(at + ROWS * i).cast());
        match f.scales {
            Scales::Block | Scales::BlockMin | Scales::Exponent => _mm512_set1_epi32(1),
            Scales::Halves => _mm512_cvtepi8_epi32(bytes(32, 2 * b + part)),
            Scales::HalvesMin => _mm512_and_si512(_mm512_cvtepu8_epi32(bytes(64, 2 * b + part)), _mm512_set1_epi32(15)),
            Scales::Blocks => _mm512_cvtepi8_epi32(bytes(32, b)),
            Scales::BlocksMin => _mm512_cvtepu8_epi32(bytes(64, b)),
        }
    }
}

/// What is added to every weight of one part of block `b`.
///
/// # Safety
/// `trailer` is valid for a trailer of the format.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn min_avx512(f: Format, trailer: *const u8, b: usize, part: usize) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = |at: usize, i: usize| _mm_loadu_si128(trailer.add(at + ROWS * i).cast());
        let steps = match f.scales {
            Scales::BlockMin => return halves_avx512(trailer.add(32)),
            Scales::HalvesMin => _mm512_srli_epi32::<4>(_mm512_cvtepu8_epi32(bytes(64, 2 * b + part))),
            Scales::BlocksMin => _mm512_cvtepu8_epi32(bytes(64 + 128, b)),
            Scales::Block | Scales::Exponent | Scales::Halves | Scales::Blocks => return _mm512_setzero_ps(),
        };
        let minus = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_setzero_si512(), steps));
        _mm512_mul_ps(halves_avx512(trailer.add(32)), minus)
    }
}
