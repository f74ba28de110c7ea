//! The kernels of x86-64.
//!
//! AVX2: a line of 64 bytes is two halves of 8 rows; products of unsigned weights and signed activations are added in
//! 16 bits while they cannot overflow (a pair of products of `b`-bit weights is at most `2 * (2^b - 1) * 127`), then
//! in 32. Signed weights lend their sign to the activation. AVX-512 VNNI: a line is one register, signed weights are
//! made unsigned by adding 128, which the sum of the activations takes back.

// Loops over rows of activations and halves of a panel index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use tenure_tensor::DType;

use super::{Act, BLOCK, FP4, Format, IQ4, ROWS, Scales, Values, format};
use crate::simd::float::Out;

/// One block format, known when the kernel is compiled.
trait Kind {
    const FORMAT: Format;
    const TABLE: [i8; 16];
}

macro_rules! kinds {
    ($($name:ident => $dtype:expr, $table:expr;)*) => {
        $(
            struct $name;
            impl Kind for $name {
                const FORMAT: Format = match format($dtype) {
                    Some(format) => format,
                    None => panic!("not a panel format"),
                };
                const TABLE: [i8; 16] = $table;
            }
        )*

        /// # Safety
        /// As for [`super::matmul`]; the processor has AVX2, FMA and F16C.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) unsafe fn avx2(dtype: DType, panel: &[u8], cols: usize, acts: &[Act], out: Out) {
            // SAFETY: the caller's promise.
            unsafe {
                $(if dtype == $dtype { return avx2_panel::<$name>(panel, cols, acts, out); })*
            }
        }

        /// # Safety
        /// As for [`super::matmul`]; the processor has AVX-512 F, BW, VL, DQ and VNNI.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        pub(super) unsafe fn avx512(dtype: DType, panel: &[u8], cols: usize, acts: &[Act], out: Out) {
            // SAFETY: the caller's promise.
            unsafe {
                $(if dtype == $dtype { return avx512_panel::<$name>(panel, cols, acts, out); })*
            }
        }
    };
}

kinds! {
    Q4_0 => DType::Q4_0, IQ4;
    Q4_1 => DType::Q4_1, IQ4;
    Q5_0 => DType::Q5_0, IQ4;
    Q5_1 => DType::Q5_1, IQ4;
    Q8_0 => DType::Q8_0, IQ4;
    Q2K => DType::Q2K, IQ4;
    Q3K => DType::Q3K, IQ4;
    Q4K => DType::Q4K, IQ4;
    Q5K => DType::Q5K, IQ4;
    Q6K => DType::Q6K, IQ4;
    Iq4Nl => DType::IQ4NL, IQ4;
    Iq4Xs => DType::IQ4XS, IQ4;
    Mxfp4 => DType::MXFP4, FP4;
}

/// Whether weights are signed, so that the activations take their sign.
const fn signed(format: Format) -> bool {
    matches!(format.values, Values::Signed | Values::Table)
}

/// Groups whose products are added in 16 bits.
const fn groups_in_16_bits(format: Format) -> usize {
    let bits = 4 * format.four as usize + 2 * format.two as usize + format.one as usize;
    let by_half = matches!(format.scales, Scales::Halves | Scales::HalvesMin);
    match bits {
        _ if signed(format) => 1,
        0..=4 if !by_half => 8,
        0..=5 => 4,
        _ => 2,
    }
}

/// # Safety
/// See [`avx2`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_panel<K: Kind>(panel: &[u8], cols: usize, acts: &[Act], out: Out) {
    let per_row = cols / BLOCK;
    let rows = acts.len() / per_row;
    let mut row = 0;
    // SAFETY: the caller's promise; `acts` has `rows` rows.
    unsafe {
        while row < rows {
            let acts = acts.as_ptr().add(row * per_row);
            let out = Out { base: out.base.add(row * out.stride), ..out };
            match rows - row {
                1 => avx2_rows::<K, 1>(panel, per_row, acts, out),
                2 => avx2_rows::<K, 2>(panel, per_row, acts, out),
                3 => avx2_rows::<K, 3>(panel, per_row, acts, out),
                _ => avx2_rows::<K, 4>(panel, per_row, acts, out),
            }
            row += 4;
        }
    }
}

/// # Safety
/// See [`avx2`]; `acts` is valid for `N` rows of `per_row`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_rows<K: Kind, const N: usize>(panel: &[u8], per_row: usize, acts: *const Act, out: Out) {
    let f = K::FORMAT;
    let blocks = f.blocks();
    let mut sums = [[_mm256_setzero_ps(); N]; 2];
    let mut piece = panel.as_ptr();
    // SAFETY: the panel has `per_row / blocks` pieces of `stride` bytes, every row `per_row` activations.
    unsafe {
        for column in 0..per_row / blocks {
            let trailer = piece.add(blocks * f.planes());
            if N == 1 {
                // The panel is read once: ask for what comes next.
                for line in (0..f.stride()).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(piece.wrapping_add(line + AHEAD).cast());
                }
            }
            if blocks == 1 {
                let at = acts.add(column);
                let dots = avx2_block::<K, N>(piece, at, per_row, [[_mm256_set1_epi16(1); 2]; 2]);
                for h in 0..2 {
                    let scale = match f.scales {
                        Scales::Exponent => exponents_avx2(trailer.add(8 * h)),
                        _ => halves_avx2(trailer.add(16 * h)),
                    };
                    for n in 0..N {
                        let act = &*at.add(n * per_row);
                        let mut dot = dots[h][n];
                        if let Values::Less(shift) = f.values {
                            dot = _mm256_sub_epi32(dot, _mm256_set1_epi32(act.sum << shift));
                        }
                        let dot = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(act.d));
                        sums[h][n] = _mm256_fmadd_ps(dot, scale, sums[h][n]);
                        if f.scales == Scales::BlockMin {
                            let min = halves_avx2(trailer.add(32 + 16 * h));
                            sums[h][n] = _mm256_fmadd_ps(min, _mm256_set1_ps(act.ds), sums[h][n]);
                        }
                    }
                }
            } else {
                let mut scaled = [[_mm256_setzero_ps(); N]; 2];
                let mut mins = [[_mm256_setzero_ps(); N]; 2];
                for b in 0..blocks {
                    let at = acts.add(column * blocks + b);
                    let mut scales = [[_mm256_setzero_si256(); 2]; 2];
                    let mut shifts = [_mm256_setzero_si256(); 2];
                    for h in 0..2 {
                        let (lo, hi, min) = sub_scales_avx2(f.scales, trailer, b, h);
                        scales[h] = [pair_avx2(lo, lo), pair_avx2(hi, hi)];
                        shifts[h] = match f.values {
                            Values::Less(_) => pair_avx2(lo, hi),
                            _ => min,
                        };
                    }
                    let dots = avx2_block::<K, N>(piece.add(b * f.planes()), at, per_row, scales);
                    for h in 0..2 {
                        for n in 0..N {
                            let act = &*at.add(n * per_row);
                            let mut dot = dots[h][n];
                            let halves = _mm256_set1_epi32(act.halves.as_ptr().cast::<i32>().read_unaligned());
                            if let Values::Less(shift) = f.values {
                                let less = _mm256_madd_epi16(shifts[h], halves);
                                let less = _mm256_sll_epi32(less, _mm_cvtsi32_si128(shift as i32));
                                dot = _mm256_sub_epi32(dot, less);
                            }
                            let d = _mm256_set1_ps(act.d);
                            scaled[h][n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), d, scaled[h][n]);
                            if matches!(f.scales, Scales::HalvesMin | Scales::BlocksMin) {
                                let min = _mm256_cvtepi32_ps(_mm256_madd_epi16(shifts[h], halves));
                                mins[h][n] = _mm256_fmadd_ps(min, d, mins[h][n]);
                            }
                        }
                    }
                }
                for h in 0..2 {
                    let d = halves_avx2(trailer.add(16 * h));
                    for n in 0..N {
                        sums[h][n] = _mm256_fmadd_ps(scaled[h][n], d, sums[h][n]);
                        if matches!(f.scales, Scales::HalvesMin | Scales::BlocksMin) {
                            let min = halves_avx2(trailer.add(32 + 16 * h));
                            sums[h][n] = _mm256_fnmadd_ps(mins[h][n], min, sums[h][n]);
                        }
                    }
                }
            }
            piece = piece.add(f.stride());
        }
        for n in 0..N {
            let to = out.base.add(n * out.stride);
            if out.features == ROWS {
                _mm256_storeu_ps(to, sums[0][n]);
                _mm256_storeu_ps(to.add(8), sums[1][n]);
            } else {
                let mut rows = [0.0f32; ROWS];
                _mm256_storeu_ps(rows.as_mut_ptr(), sums[0][n]);
                _mm256_storeu_ps(rows.as_mut_ptr().add(8), sums[1][n]);
                std::ptr::copy_nonoverlapping(rows.as_ptr(), to, out.features);
            }
        }
    }
}

/// How far ahead of its use a panel is asked for.
const AHEAD: usize = 2048;

/// Products of one block column with `N` rows of activations, as integers; sums of pairs are multiplied by `scales`
/// (16-bit; per half of the rows, per half of the columns).
///
/// # Safety
/// `planes` is valid for the planes of a block column, `at` for `N` activations `per_row` apart.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_block<K: Kind, const N: usize>(
    planes: *const u8,
    at: *const Act,
    per_row: usize,
    scales: [[__m256i; 2]; 2],
) -> [[__m256i; N]; 2] {
    let f = K::FORMAT;
    let together = groups_in_16_bits(f);
    let mut dots = [[_mm256_setzero_si256(); N]; 2];
    // SAFETY: the caller's promise.
    unsafe {
        for first in (0..8).step_by(together) {
            let mut pairs = [[_mm256_setzero_si256(); N]; 2];
            for g in first..first + together {
                let weights = [group_avx2::<K>(planes, 0, g), group_avx2::<K>(planes, 1, g)];
                for n in 0..N {
                    let q = (*at.add(n * per_row)).q.as_ptr().add(4 * g);
                    let act = _mm256_set1_epi32(q.cast::<i32>().read_unaligned());
                    for h in 0..2 {
                        let product = if signed(f) {
                            _mm256_maddubs_epi16(_mm256_abs_epi8(weights[h]), _mm256_sign_epi8(act, weights[h]))
                        } else {
                            _mm256_maddubs_epi16(weights[h], act)
                        };
                        pairs[h][n] = _mm256_add_epi16(pairs[h][n], product);
                    }
                }
            }
            for h in 0..2 {
                for n in 0..N {
                    let wide = _mm256_madd_epi16(pairs[h][n], scales[h][first / 4]);
                    dots[h][n] = _mm256_add_epi32(dots[h][n], wide);
                }
            }
        }
    }
    dots
}

/// The weights of group `g` for half `h` of the rows.
///
/// # Safety
/// `planes` is valid for the planes of a block column.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn group_avx2<K: Kind>(planes: *const u8, h: usize, g: usize) -> __m256i {
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
        if f.values == Values::Table {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(K::TABLE.as_ptr().cast()));
            code = _mm256_shuffle_epi8(table, code);
        }
        code
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

/// Scales of both halves of block `b` for half `h` of the rows, as 32-bit lanes, and the pair of minimums.
///
/// # Safety
/// `trailer` is valid for the trailer of a superblock.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sub_scales_avx2(scales: Scales, trailer: *const u8, b: usize, h: usize) -> (__m256i, __m256i, __m256i) {
    let zero = _mm256_setzero_si256();
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = |at: usize, i: usize| _mm_loadl_epi64(trailer.add(at + ROWS * i + 8 * h).cast());
        match scales {
            Scales::Halves => {
                let (lo, hi) = (bytes(32, 2 * b), bytes(32, 2 * b + 1));
                (_mm256_cvtepi8_epi32(lo), _mm256_cvtepi8_epi32(hi), zero)
            }
            Scales::HalvesMin => {
                let low = _mm256_set1_epi32(15);
                let (lo, hi) = (_mm256_cvtepu8_epi32(bytes(64, 2 * b)), _mm256_cvtepu8_epi32(bytes(64, 2 * b + 1)));
                let min = pair_avx2(_mm256_srli_epi32::<4>(lo), _mm256_srli_epi32::<4>(hi));
                (_mm256_and_si256(lo, low), _mm256_and_si256(hi, low), min)
            }
            Scales::Blocks => {
                let scale = _mm256_cvtepi8_epi32(bytes(32, b));
                (scale, scale, zero)
            }
            Scales::BlocksMin => {
                let scale = _mm256_cvtepu8_epi32(bytes(64, b));
                let min = _mm256_cvtepu8_epi32(bytes(64 + 128, b));
                (scale, scale, pair_avx2(min, min))
            }
            Scales::Block | Scales::BlockMin | Scales::Exponent => (zero, zero, zero),
        }
    }
}

/// Two small integers side by side in each 32-bit lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pair_avx2(lo: __m256i, hi: __m256i) -> __m256i {
    _mm256_blend_epi16::<0b1010_1010>(lo, _mm256_slli_epi32::<16>(hi))
}

/// # Safety
/// See [`avx512`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512_panel<K: Kind>(panel: &[u8], cols: usize, acts: &[Act], out: Out) {
    let per_row = cols / BLOCK;
    let rows = acts.len() / per_row;
    let mut row = 0;
    // SAFETY: the caller's promise; `acts` has `rows` rows.
    unsafe {
        while row < rows {
            let acts = acts.as_ptr().add(row * per_row);
            let out = Out { base: out.base.add(row * out.stride), ..out };
            let count = match rows - row {
                1 => {
                    avx512_rows::<K, 1>(panel, per_row, acts, out);
                    1
                }
                2 | 3 => {
                    avx512_rows::<K, 2>(panel, per_row, acts, out);
                    2
                }
                4..=7 => {
                    avx512_rows::<K, 4>(panel, per_row, acts, out);
                    4
                }
                _ => {
                    avx512_rows::<K, 8>(panel, per_row, acts, out);
                    8
                }
            };
            row += count;
        }
    }
}

/// # Safety
/// See [`avx512`]; `acts` is valid for `N` rows of `per_row`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512_rows<K: Kind, const N: usize>(panel: &[u8], per_row: usize, acts: *const Act, out: Out) {
    let f = K::FORMAT;
    let blocks = f.blocks();
    let mut sums = [_mm512_setzero_ps(); N];
    let mut piece = panel.as_ptr();
    // SAFETY: the panel has `per_row / blocks` pieces of `stride` bytes, every row `per_row` activations.
    unsafe {
        for column in 0..per_row / blocks {
            let trailer = piece.add(blocks * f.planes());
            if N == 1 {
                for line in (0..f.stride()).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(piece.wrapping_add(line + AHEAD).cast());
                }
            }
            if blocks == 1 {
                let at = acts.add(column);
                let [lo, hi] = avx512_block::<K, N>(piece, at, per_row);
                let scale = match f.scales {
                    Scales::Exponent => exponents_avx512(trailer),
                    _ => halves_avx512(trailer),
                };
                for n in 0..N {
                    let act = &*at.add(n * per_row);
                    let mut dot = _mm512_add_epi32(lo[n], hi[n]);
                    if let Some(shift) = offset(f) {
                        dot = _mm512_sub_epi32(dot, _mm512_set1_epi32(act.sum << shift));
                    }
                    let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(act.d));
                    sums[n] = _mm512_fmadd_ps(dot, scale, sums[n]);
                    if f.scales == Scales::BlockMin {
                        sums[n] = _mm512_fmadd_ps(halves_avx512(trailer.add(32)), _mm512_set1_ps(act.ds), sums[n]);
                    }
                }
            } else {
                let mut scaled = [_mm512_setzero_ps(); N];
                let mut mins = [_mm512_setzero_ps(); N];
                for b in 0..blocks {
                    let at = acts.add(column * blocks + b);
                    let (scale_lo, scale_hi, min_lo, min_hi) = sub_scales_avx512(f.scales, trailer, b);
                    let [lo, hi] = avx512_block::<K, N>(piece.add(b * f.planes()), at, per_row);
                    for n in 0..N {
                        let act = &*at.add(n * per_row);
                        let (mut lo, mut hi) = (lo[n], hi[n]);
                        let [sum_lo, sum_hi] = act.halves.map(i32::from);
                        if let Some(shift) = offset(f) {
                            lo = _mm512_sub_epi32(lo, _mm512_set1_epi32(sum_lo << shift));
                            hi = _mm512_sub_epi32(hi, _mm512_set1_epi32(sum_hi << shift));
                        }
                        let dot = if matches!(f.scales, Scales::Blocks | Scales::BlocksMin) {
                            _mm512_mullo_epi32(_mm512_add_epi32(lo, hi), scale_lo)
                        } else {
                            _mm512_add_epi32(_mm512_mullo_epi32(lo, scale_lo), _mm512_mullo_epi32(hi, scale_hi))
                        };
                        let d = _mm512_set1_ps(act.d);
                        scaled[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), d, scaled[n]);
                        let min = match f.scales {
                            Scales::HalvesMin => _mm512_add_epi32(
                                _mm512_mullo_epi32(min_lo, _mm512_set1_epi32(sum_lo)),
                                _mm512_mullo_epi32(min_hi, _mm512_set1_epi32(sum_hi)),
                            ),
                            Scales::BlocksMin => _mm512_mullo_epi32(min_lo, _mm512_set1_epi32(act.sum)),
                            _ => continue,
                        };
                        mins[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(min), d, mins[n]);
                    }
                }
                let d = halves_avx512(trailer);
                for n in 0..N {
                    sums[n] = _mm512_fmadd_ps(scaled[n], d, sums[n]);
                    if matches!(f.scales, Scales::HalvesMin | Scales::BlocksMin) {
                        sums[n] = _mm512_fnmadd_ps(mins[n], halves_avx512(trailer.add(32)), sums[n]);
                    }
                }
            }
            piece = piece.add(f.stride());
        }
        let mask = (u32::MAX >> (32 - out.features.min(ROWS))) as __mmask16;
        for (n, sum) in sums.iter().enumerate() {
            _mm512_mask_storeu_ps(out.base.add(n * out.stride), mask, *sum);
        }
    }
}

/// The power of two that was added to make weights unsigned.
const fn offset(format: Format) -> Option<u32> {
    match format.values {
        Values::Less(shift) => Some(shift),
        Values::Signed | Values::Table => Some(7),
        Values::Plain => None,
    }
}

/// Products of one block column with `N` rows of activations, for each half of the columns.
///
/// # Safety
/// `planes` is valid for the planes of a block column, `at` for `N` activations `per_row` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512_block<K: Kind, const N: usize>(
    planes: *const u8,
    at: *const Act,
    per_row: usize,
) -> [[__m512i; N]; 2] {
    let mut dots = [[_mm512_setzero_si512(); N]; 2];
    // SAFETY: the caller's promise.
    unsafe {
        for g in 0..8 {
            let weights = group_avx512::<K>(planes, g);
            for n in 0..N {
                let q = (*at.add(n * per_row)).q.as_ptr().add(4 * g);
                let act = _mm512_set1_epi32(q.cast::<i32>().read_unaligned());
                dots[g / 4][n] = _mm512_dpbusd_epi32(dots[g / 4][n], weights, act);
            }
        }
    }
    dots
}

/// The weights of group `g`, unsigned.
///
/// # Safety
/// `planes` is valid for the planes of a block column.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn group_avx512<K: Kind>(planes: *const u8, g: usize) -> __m512i {
    let f = K::FORMAT;
    let flip = _mm512_set1_epi8(-128);
    // SAFETY: the caller's promise.
    unsafe {
        let line = |at: usize| _mm512_loadu_si512(planes.add(at).cast());
        let right = |v, by: usize| _mm512_srl_epi16(v, _mm_cvtsi32_si128(by as i32));
        let left = |v, by: usize| _mm512_sll_epi16(v, _mm_cvtsi32_si128(by as i32));
        if f.eight {
            return _mm512_xor_si512(line(64 * g), flip);
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
        if f.values == Values::Table {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(K::TABLE.as_ptr().cast()));
            code = _mm512_shuffle_epi8(_mm512_xor_si512(table, flip), code);
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

/// Scales and minimums of both halves of block `b`.
///
/// # Safety
/// `trailer` is valid for the trailer of a superblock.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn sub_scales_avx512(scales: Scales, trailer: *const u8, b: usize) -> (__m512i, __m512i, __m512i, __m512i) {
    let zero = _mm512_setzero_si512();
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = |at: usize, i: usize| _mm_loadu_si128(trailer.add(at + ROWS * i).cast());
        match scales {
            Scales::Halves => {
                let (lo, hi) = (bytes(32, 2 * b), bytes(32, 2 * b + 1));
                (_mm512_cvtepi8_epi32(lo), _mm512_cvtepi8_epi32(hi), zero, zero)
            }
            Scales::HalvesMin => {
                let low = _mm512_set1_epi32(15);
                let (lo, hi) = (_mm512_cvtepu8_epi32(bytes(64, 2 * b)), _mm512_cvtepu8_epi32(bytes(64, 2 * b + 1)));
                let (min_lo, min_hi) = (_mm512_srli_epi32::<4>(lo), _mm512_srli_epi32::<4>(hi));
                (_mm512_and_si512(lo, low), _mm512_and_si512(hi, low), min_lo, min_hi)
            }
            Scales::Blocks => {
                let scale = _mm512_cvtepi8_epi32(bytes(32, b));
                (scale, scale, zero, zero)
            }
            Scales::BlocksMin => {
                let scale = _mm512_cvtepu8_epi32(bytes(64, b));
                let min = _mm512_cvtepu8_epi32(bytes(64 + 128, b));
                (scale, scale, min, min)
            }
            Scales::Block | Scales::BlockMin | Scales::Exponent => (zero, zero, zero, zero),
        }
    }
}
