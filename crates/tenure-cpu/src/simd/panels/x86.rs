//! The kernels of x86-64.
//!
//! AVX2: a line of 64 bytes is two sides of 8 rows. Products of unsigned weights of up to 6 bits and signed activations
//! are added in 16 bits over a quarter block (4 * 63 * 127 < 2^15), multiplied by the scale of its activations and added
//! in 32; what a format takes off its quants is taken off by the sum of the activations. For a few rows, weights that fill
//! a signed byte lend their sign to the activation. From [`WIDE`] rows on, weights are unpacked once for up to
//! [`ROWS_TOGETHER`] of them, those that fill a signed byte to 16 bits.
//!
//! AVX-512 VNNI: a line is one register, signed weights are made unsigned by adding 128, which the sum of the activations
//! takes back.

// Loops over rows of activations and halves of a panel index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use tenure_tensor::DType;

use super::{Act, BLOCK, FP4, Format, IQ4, QUARTER, ROWS, STEPS, SUPER, Scales, Values, format};
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

/// As [`super::quantize`], with the same bits on every processor that is not portable.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn quantize_avx2(x: &[f32], acts: &mut [Act]) {
    let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
    let ones = _mm256_set1_epi8(1);
    for (x, act) in x.chunks_exact(BLOCK).zip(acts) {
        // SAFETY: 32 floats are read, 32 bytes written.
        unsafe {
            let from = x.as_ptr();
            let x = [
                _mm256_loadu_ps(from),
                _mm256_loadu_ps(from.add(QUARTER)),
                _mm256_loadu_ps(from.add(2 * QUARTER)),
                _mm256_loadu_ps(from.add(3 * QUARTER)),
            ];
            // The largest of each quarter, in the end one to a lane of 32 bits.
            let mut pairs = [_mm256_setzero_ps(); 2];
            let mut nan = _mm256_setzero_ps();
            for i in 0..2 {
                let (a, b) = (x[2 * i], x[2 * i + 1]);
                nan = _mm256_or_ps(nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, b));
                let (a, b) = (_mm256_and_ps(a, magnitude), _mm256_and_ps(b, magnitude));
                pairs[i] = _mm256_max_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            }
            let low = _mm256_shuffle_ps::<0b10_00_10_00>(pairs[0], pairs[1]);
            let high = _mm256_shuffle_ps::<0b11_01_11_01>(pairs[0], pairs[1]);
            let both = _mm256_max_ps(low, high);
            let both = _mm256_max_ps(both, _mm256_shuffle_ps::<0b10_11_00_01>(both, both));
            // Lanes 0 and 2 of each half: quarters 0, 2 and 1, 3.
            let (even, odd) = (_mm256_castps256_ps128(both), _mm256_extractf128_ps::<1>(both));
            let largest = _mm_blend_ps::<0b1010>(even, odd);
            let two = _mm_max_ps(largest, _mm_movehl_ps(largest, largest));
            let all = _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
            let all = if _mm256_movemask_ps(nan) == 0 { all } else { f32::NAN };
            act.unit = all * (1.0 / (127.0 * STEPS));
            let steps = _mm_ceil_ps(_mm_mul_ps(largest, _mm_set1_ps(STEPS / all)));
            let steps = _mm_max_ps(_mm_min_ps(steps, _mm_set1_ps(STEPS)), _mm_set1_ps(1.0));
            let inverse = _mm_div_ps(_mm_set1_ps(1.0), _mm_mul_ps(steps, _mm_set1_ps(act.unit)));
            let inverse = if all > 0.0 { inverse } else { _mm_setzero_ps() };
            let steps = _mm_cvtps_epi32(steps);
            let steps = _mm_or_si128(steps, _mm_slli_epi32::<16>(steps));
            act.steps = bytemuck::cast(steps);
            let spread = _mm256_set_m128(inverse, inverse);
            let words = [
                _mm256_cvtps_epi32(_mm256_mul_ps(x[0], _mm256_permute_ps::<0b00_00_00_00>(spread))),
                _mm256_cvtps_epi32(_mm256_mul_ps(x[1], _mm256_permute_ps::<0b01_01_01_01>(spread))),
                _mm256_cvtps_epi32(_mm256_mul_ps(x[2], _mm256_permute_ps::<0b10_10_10_10>(spread))),
                _mm256_cvtps_epi32(_mm256_mul_ps(x[3], _mm256_permute_ps::<0b11_11_11_11>(spread))),
            ];
            // Packing works within 128 bits: 4 numbers of each quarter, put in order afterwards.
            let low = _mm256_packs_epi32(words[0], words[1]);
            let high = _mm256_packs_epi32(words[2], words[3]);
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let q = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
            _mm256_storeu_si256(act.q.as_mut_ptr().cast(), q);
            let fours = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, q), _mm256_set1_epi16(1));
            let eights = _mm256_add_epi32(fours, _mm256_shuffle_epi32::<0b10_11_00_01>(fours));
            // Lanes 0 and 2 of each half, times the steps in the low 16 bits of each lane.
            let quarters = _mm256_permutevar8x32_epi32(eights, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
            let steps = _mm_and_si128(steps, _mm_set1_epi32(0xffff));
            let sums = _mm_madd_epi16(_mm256_castsi256_si128(quarters), steps);
            let sums = _mm_hadd_epi32(sums, sums);
            let [low, high] = bytemuck::cast(_mm_cvtsi128_si64(sums));
            act.set_sums([low, high]);
        }
    }
}

/// Whether weights fill a signed byte, so that two products of a pair fill 16 bits.
const fn signed(format: Format) -> bool {
    matches!(format.values, Values::Signed | Values::Table)
}

/// What is taken off a quant, or off a value of a table that was made unsigned.
const fn less(format: Format) -> i16 {
    match format.values {
        Values::Less(shift) => 1 << shift,
        Values::SmallTable => 12,
        Values::Plain | Values::Signed | Values::Table => 0,
    }
}

/// Rows from which on weights are unpacked once for all of them.
const WIDE: usize = 4;
/// Rows that use the same unpacked weights.
const ROWS_TOGETHER: usize = 64;
/// Rows computed side by side.
const TILE: usize = 4;

/// # Safety
/// See [`avx2`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_panel<K: Kind>(panel: &[u8], cols: usize, acts: &[Act], out: Out) {
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
                            let dot = _mm256_mul_ps(_mm256_cvtepi32_ps(dots[h][n]), _mm256_set1_ps(act.unit));
                            sums[h][n] = _mm256_fmadd_ps(dot, scale, sums[h][n]);
                            if has_min(f) {
                                sums[h][n] = _mm256_fmadd_ps(min, _mm256_set1_ps(sum(f, act, part)), sums[h][n]);
                            }
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

/// How many bytes ahead of its use a panel is asked for: what was fastest, on the whole.
const fn ahead(f: Format) -> usize {
    if f.blocks() == 1 { 2048 } else { 4096 }
}

/// Parts of a block column with scales of weights of their own.
const fn parts(f: Format) -> usize {
    match f.scales {
        Scales::Halves | Scales::HalvesMin => 2,
        Scales::Block | Scales::BlockMin | Scales::Exponent | Scales::Blocks | Scales::BlocksMin => 1,
    }
}

/// Whether something times the sum of the activations is added to a product.
const fn has_min(f: Format) -> bool {
    less(f) != 0 || matches!(f.scales, Scales::BlockMin | Scales::HalvesMin | Scales::BlocksMin)
}

/// The sum of the activations of a part.
#[inline(always)]
fn sum(f: Format, act: &Act, part: usize) -> f32 {
    if parts(f) == 1 { act.total } else { act.halves[part] }
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

/// Up to [`SUPER`] block columns of a panel, unpacked.
#[repr(C, align(64))]
struct Unpacked {
    /// For each block column and group, 4 bytes of every row; or, for each pair of columns, 2 numbers of 16 bits.
    codes: [[u8; 1024]; SUPER],
    /// For each block column and part.
    scales: [[[f32; ROWS]; 2]; SUPER],
    /// For each block column and part, times the sum of the activations.
    mins: [[[f32; ROWS]; 2]; SUPER],
    /// Activations of a tile in 16 bits, times their steps.
    acts: [[[i16; BLOCK]; TILE]; SUPER],
    /// For each row of activations.
    sums: [[f32; ROWS]; ROWS_TOGETHER],
}

/// # Safety
/// See [`avx2`]; `acts` is valid for `rows` rows of `per_row`, at most [`ROWS_TOGETHER`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_wide<K: Kind>(panel: &[u8], per_row: usize, acts: *const Act, rows: usize, out: Out) {
    let f = K::FORMAT;
    let mut room = std::mem::MaybeUninit::<Unpacked>::uninit();
    let room = room.as_mut_ptr();
    // SAFETY: the panel has `per_row / f.blocks()` pieces of `stride` bytes; what is read of `room` was written: sums
    // here, everything else by `unpack_avx2` and `tile_avx2` for as many block columns as are used.
    unsafe {
        let sums = (&raw mut (*room).sums).cast::<f32>();
        sums.write_bytes(0, rows * ROWS);
        for first in (0..per_row).step_by(SUPER) {
            let blocks = SUPER.min(per_row - first);
            unpack_avx2::<K>(panel.as_ptr().add(first / f.blocks() * f.stride()), blocks, room);
            let mut row = 0;
            while row < rows {
                let at = acts.add(row * per_row + first);
                let sums = sums.add(row * ROWS);
                match rows - row {
                    1 => tile_avx2::<K, 1>(room, blocks, at, per_row, sums),
                    2 => tile_avx2::<K, 2>(room, blocks, at, per_row, sums),
                    3 => tile_avx2::<K, 3>(room, blocks, at, per_row, sums),
                    _ => tile_avx2::<K, TILE>(room, blocks, at, per_row, sums),
                }
                row += TILE;
            }
        }
        for row in 0..rows {
            std::ptr::copy_nonoverlapping(sums.add(row * ROWS), out.base.add(row * out.stride), out.features);
        }
    }
}

/// Unpacks block columns that begin with a piece of a panel.
///
/// # Safety
/// `piece` is valid for `blocks` block columns (all of a superblock), `room` for writing.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_avx2<K: Kind>(piece: *const u8, blocks: usize, room: *mut Unpacked) {
    let f = K::FORMAT;
    // The bytes of the first and of the last two columns, above an empty byte each.
    let first = _mm256_set1_epi32(i32::from_le_bytes([0x80, 0, 0x80, 1]));
    let last = _mm256_set1_epi32(i32::from_le_bytes([0x80, 2, 0x80, 3]));
    let rows = _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c, 0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
    // An index with its top bit set gives zero whatever is added below it.
    let (first, last) = (_mm256_add_epi8(first, rows), _mm256_add_epi8(last, rows));
    // SAFETY: the caller's promise.
    unsafe {
        for block in 0..blocks {
            let (piece, b) = (piece.add(block / f.blocks() * f.stride()), block % f.blocks());
            let (planes, trailer) = (piece.add(b * f.planes()), piece.add(f.blocks() * f.planes()));
            let codes = (&raw mut (*room).codes[block]).cast::<u8>();
            for g in 0..8 {
                for h in 0..2 {
                    let weights = group_avx2::<K>(planes, h, g);
                    if signed(f) {
                        let to = codes.add(128 * g + 32 * h);
                        let pair = |index| _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(weights, index));
                        _mm256_store_si256(to.cast(), pair(first));
                        _mm256_store_si256(to.add(64).cast(), pair(last));
                    } else {
                        _mm256_store_si256(codes.add(64 * g + 32 * h).cast(), weights);
                    }
                }
            }
            for part in 0..parts(f) {
                for h in 0..2 {
                    let to = (&raw mut (*room).scales[block][part]).cast::<f32>().add(8 * h);
                    _mm256_store_ps(to, scale_avx2(f, trailer, b, part, h));
                    if has_min(f) {
                        let to = (&raw mut (*room).mins[block][part]).cast::<f32>().add(8 * h);
                        _mm256_store_ps(to, min_avx2(f, trailer, b, part, h));
                    }
                }
            }
        }
    }
}

/// Adds the products of unpacked block columns with `N` rows of activations to `sums`.
///
/// # Safety
/// `room` holds `blocks` block columns, `at` is valid for as many activations of `N` rows `per_row` apart, `sums` for 16
/// floats of each.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_avx2<K: Kind, const N: usize>(
    room: *mut Unpacked,
    blocks: usize,
    at: *const Act,
    per_row: usize,
    sums: *mut f32,
) {
    let f = K::FORMAT;
    // SAFETY: the caller's promise.
    unsafe {
        if signed(f) {
            for b in 0..blocks {
                for n in 0..N {
                    let act = &*at.add(n * per_row + b);
                    let to = (&raw mut (*room).acts[b][n]).cast::<__m256i>();
                    for half in 0..2 {
                        let q = _mm256_cvtepi8_epi16(_mm_loadu_si128(act.q.as_ptr().cast::<__m128i>().add(half)));
                        let [low, high] = [act.steps[2 * half][0], act.steps[2 * half + 1][0]];
                        let steps = _mm256_set_m128i(_mm_set1_epi16(high), _mm_set1_epi16(low));
                        _mm256_store_si256(to.add(half), _mm256_mullo_epi16(q, steps));
                    }
                }
            }
        }
        for b in 0..blocks {
            let codes = (&raw const (*room).codes[b]).cast::<u8>();
            for part in 0..parts(f) {
                let mut dots = [[_mm256_setzero_si256(); N]; 2];
                if signed(f) {
                    dots_of_words_avx2::<N>(codes, (&raw const (*room).acts[b]).cast(), &mut dots);
                } else {
                    let quarters = 4 / parts(f);
                    for quarter in quarters * part..quarters * (part + 1) {
                        dots_of_bytes_avx2::<N>(codes.add(128 * quarter), at.add(b), per_row, quarter, &mut dots);
                    }
                }
                for h in 0..2 {
                    let scale = _mm256_load_ps((&raw const (*room).scales[b][part]).cast::<f32>().add(8 * h));
                    for n in 0..N {
                        let act = &*at.add(n * per_row + b);
                        let to = sums.add(ROWS * n + 8 * h);
                        let dot = _mm256_mul_ps(_mm256_cvtepi32_ps(dots[h][n]), _mm256_set1_ps(act.unit));
                        let mut total = _mm256_fmadd_ps(dot, scale, _mm256_load_ps(to));
                        if has_min(f) {
                            let min = _mm256_load_ps((&raw const (*room).mins[b][part]).cast::<f32>().add(8 * h));
                            total = _mm256_fmadd_ps(min, _mm256_set1_ps(sum(f, act, part)), total);
                        }
                        _mm256_store_ps(to, total);
                    }
                }
            }
        }
    }
}

/// Adds the products of a quarter block column's weights, in bytes, with `N` rows of activations, for both sides of the
/// rows.
///
/// # Safety
/// `codes` is valid for 128 bytes and aligned to 32, `at` for `N` activations `per_row` apart.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots_of_bytes_avx2<const N: usize>(
    codes: *const u8,
    at: *const Act,
    per_row: usize,
    quarter: usize,
    dots: &mut [[__m256i; N]; 2],
) {
    // SAFETY: the caller's promise; the text reads what the loop does.
    unsafe {
        let q = (&raw const (*at).q).cast::<u8>().add(QUARTER * quarter);
        let steps = (&raw const (*at).steps[quarter]).cast::<u8>();
        let [low, high] = dots;
        if let (Some((low, [])), Some((high, []))) =
            (low.split_first_chunk_mut::<4>(), high.split_first_chunk_mut::<4>())
        {
            // Written out, because compilers compute one side after the other, and spill what both need.
            let stride = per_row * size_of::<Act>();
            macro_rules! rows {
                ($($a:literal $b:literal $base:literal $at:literal;)*) => {
                    std::arch::asm!(
                        "vmovdqa {w0}, [{codes}]",
                        "vmovdqa {w1}, [{codes} + 32]",
                        "vmovdqa {w2}, [{codes} + 64]",
                        "vmovdqa {w3}, [{codes} + 96]",
                        $(
                            concat!("vpbroadcastd {q0}, [{q", $base, "}", $at, "]"),
                            concat!("vpbroadcastd {q1}, [{q", $base, "}", $at, " + 4]"),
                            "vpmaddubsw {p0}, {w0}, {q0}",
                            "vpmaddubsw {q0}, {w1}, {q0}",
                            "vpmaddubsw {p1}, {w2}, {q1}",
                            "vpmaddubsw {q1}, {w3}, {q1}",
                            "vpaddw {p0}, {p0}, {p1}",
                            concat!("vpbroadcastd {p1}, [{s", $base, "}", $at, "]"),
                            "vpaddw {q0}, {q0}, {q1}",
                            "vpmaddwd {p0}, {p0}, {p1}",
                            "vpmaddwd {q0}, {q0}, {p1}",
                            concat!("vpaddd {", $a, "}, {", $a, "}, {p0}"),
                            concat!("vpaddd {", $b, "}, {", $b, "}, {q0}"),
                        )*
                        codes = in(reg) codes,
                        stride = in(reg) stride,
                        q0a = in(reg) q,
                        q3a = in(reg) q.add(3 * stride),
                        s0a = in(reg) steps,
                        s3a = in(reg) steps.add(3 * stride),
                        a0 = inout(ymm_reg) low[0], a1 = inout(ymm_reg) low[1],
                        a2 = inout(ymm_reg) low[2], a3 = inout(ymm_reg) low[3],
                        b0 = inout(ymm_reg) high[0], b1 = inout(ymm_reg) high[1],
                        b2 = inout(ymm_reg) high[2], b3 = inout(ymm_reg) high[3],
                        w0 = out(ymm_reg) _, w1 = out(ymm_reg) _, w2 = out(ymm_reg) _, w3 = out(ymm_reg) _,
                        q0 = out(ymm_reg) _, q1 = out(ymm_reg) _, p0 = out(ymm_reg) _, p1 = out(ymm_reg) _,
                        options(readonly, nostack, preserves_flags),
                    )
                };
            }
            rows!("a0" "b0" "0a" ""; "a1" "b1" "0a" " + {stride}"; "a2" "b2" "0a" " + 2 * {stride}"; "a3" "b3" "3a" "";);
            return;
        }
        let line = codes.cast::<__m256i>();
        let weights = [
            _mm256_load_si256(line),
            _mm256_load_si256(line.add(1)),
            _mm256_load_si256(line.add(2)),
            _mm256_load_si256(line.add(3)),
        ];
        for n in 0..N {
            let act = &*at.add(n * per_row);
            let steps = _mm256_set1_epi32(bytemuck::cast(act.steps[quarter]));
            let q = act.q.as_ptr().add(QUARTER * quarter).cast::<i32>();
            let q = [_mm256_set1_epi32(q.read_unaligned()), _mm256_set1_epi32(q.add(1).read_unaligned())];
            for h in 0..2 {
                let first = _mm256_maddubs_epi16(weights[h], q[0]);
                let pairs = _mm256_add_epi16(first, _mm256_maddubs_epi16(weights[2 + h], q[1]));
                dots[h][n] = _mm256_add_epi32(dots[h][n], _mm256_madd_epi16(pairs, steps));
            }
        }
    }
}

/// Adds the products of a block column's weights, in 16 bits, with `N` rows of activations in 16 bits, for both sides of
/// the rows.
///
/// # Safety
/// `codes` is valid for 1024 bytes and aligned to 32, `acts` for 32 numbers of each of `N` rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots_of_words_avx2<const N: usize>(codes: *const u8, acts: *const i32, dots: &mut [[__m256i; N]; 2]) {
    // SAFETY: the caller's promise; the text reads what the loop does.
    unsafe {
        let [low, high] = dots;
        if let (Some((low, [])), Some((high, []))) =
            (low.split_first_chunk_mut::<4>(), high.split_first_chunk_mut::<4>())
        {
            macro_rules! pairs {
                ($($step:literal)*) => {
                    std::arch::asm!(
                        $(
                            concat!("vmovdqa {w0}, [{codes} + 64 * ", $step, "]"),
                            concat!("vmovdqa {w1}, [{codes} + 64 * ", $step, " + 32]"),
                            concat!("vpbroadcastd {q0}, [{acts} + 4 * ", $step, "]"),
                            concat!("vpbroadcastd {q1}, [{acts} + 64 + 4 * ", $step, "]"),
                            concat!("vpbroadcastd {q2}, [{acts} + 128 + 4 * ", $step, "]"),
                            concat!("vpbroadcastd {q3}, [{acts} + 192 + 4 * ", $step, "]"),
                            "vpmaddwd {p0}, {w0}, {q0}",
                            "vpmaddwd {q0}, {w1}, {q0}",
                            "vpmaddwd {p1}, {w0}, {q1}",
                            "vpmaddwd {q1}, {w1}, {q1}",
                            "vpaddd {a0}, {a0}, {p0}",
                            "vpaddd {b0}, {b0}, {q0}",
                            "vpaddd {a1}, {a1}, {p1}",
                            "vpaddd {b1}, {b1}, {q1}",
                            "vpmaddwd {p0}, {w0}, {q2}",
                            "vpmaddwd {q2}, {w1}, {q2}",
                            "vpmaddwd {p1}, {w0}, {q3}",
                            "vpmaddwd {q3}, {w1}, {q3}",
                            "vpaddd {a2}, {a2}, {p0}",
                            "vpaddd {b2}, {b2}, {q2}",
                            "vpaddd {a3}, {a3}, {p1}",
                            "vpaddd {b3}, {b3}, {q3}",
                        )*
                        codes = in(reg) codes,
                        acts = in(reg) acts,
                        a0 = inout(ymm_reg) low[0], a1 = inout(ymm_reg) low[1],
                        a2 = inout(ymm_reg) low[2], a3 = inout(ymm_reg) low[3],
                        b0 = inout(ymm_reg) high[0], b1 = inout(ymm_reg) high[1],
                        b2 = inout(ymm_reg) high[2], b3 = inout(ymm_reg) high[3],
                        w0 = out(ymm_reg) _, w1 = out(ymm_reg) _, p0 = out(ymm_reg) _, p1 = out(ymm_reg) _,
                        q0 = out(ymm_reg) _, q1 = out(ymm_reg) _, q2 = out(ymm_reg) _, q3 = out(ymm_reg) _,
                        options(readonly, nostack, preserves_flags),
                    )
                };
            }
            pairs!("0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15");
            return;
        }
        for pair in 0..BLOCK / 2 {
            let line = codes.add(64 * pair).cast();
            let weights = [_mm256_load_si256(line), _mm256_load_si256(line.add(1))];
            for n in 0..N {
                let act = _mm256_set1_epi32(*acts.add(BLOCK / 2 * n + pair));
                for h in 0..2 {
                    dots[h][n] = _mm256_add_epi32(dots[h][n], _mm256_madd_epi16(weights[h], act));
                }
            }
        }
    }
}

/// The scales of one part of block `b` for side `h` of the rows; exact, as an f16 times a byte fits an f32.
///
/// # Safety
/// `trailer` is valid for a trailer of the format.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scale_avx2(f: Format, trailer: *const u8, b: usize, part: usize, h: usize) -> __m256 {
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
unsafe fn min_avx2(f: Format, trailer: *const u8, b: usize, part: usize, h: usize) -> __m256 {
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

/// The weights of group `g` for side `h` of the rows, [`less`] too large.
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
        if matches!(f.values, Values::Table | Values::SmallTable) {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(K::TABLE.as_ptr().cast()));
            code = _mm256_shuffle_epi8(_mm256_add_epi8(table, _mm256_set1_epi8(less(f) as i8)), code);
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
            for b in 0..blocks {
                let at = acts.add(column * blocks + b);
                if N == 1 {
                    let share = f.stride() / blocks;
                    for line in (0..share).step_by(64) {
                        _mm_prefetch::<_MM_HINT_T0>(piece.wrapping_add(b * share + line + ahead(f)).cast());
                    }
                }
                for part in 0..parts(f) {
                    let dots = avx512_part::<K, N>(piece.add(b * f.planes()), part, at, per_row);
                    let (scale, min) = scales_avx512(f, trailer, b, part);
                    for n in 0..N {
                        let act = &*at.add(n * per_row);
                        let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[n]), _mm512_set1_ps(act.unit));
                        sums[n] = _mm512_fmadd_ps(dot, scale, sums[n]);
                        if let Some(min) = min {
                            sums[n] = _mm512_fmadd_ps(min, _mm512_set1_ps(sum(f, act, part)), sums[n]);
                        }
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

/// What was added to make weights unsigned.
const fn offset(format: Format) -> f32 {
    match format.values {
        Values::Less(shift) => (1 << shift) as f32,
        Values::Signed | Values::Table | Values::SmallTable => 128.0,
        Values::Plain => 0.0,
    }
}

/// Products of one part of a block column with `N` rows of activations, as integers, [`offset`] times the sum of the
/// activations too large.
///
/// # Safety
/// `planes` is valid for the planes of a block column, `at` for `N` activations `per_row` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512_part<K: Kind, const N: usize>(
    planes: *const u8,
    part: usize,
    at: *const Act,
    per_row: usize,
) -> [__m512i; N] {
    let quarters = 4 / parts(K::FORMAT);
    let mut dots = [_mm512_setzero_si512(); N];
    // SAFETY: the caller's promise.
    unsafe {
        for quarter in quarters * part..quarters * (part + 1) {
            let weights = [group_avx512::<K>(planes, 2 * quarter), group_avx512::<K>(planes, 2 * quarter + 1)];
            for n in 0..N {
                let act = &*at.add(n * per_row);
                let q = act.q.as_ptr().add(QUARTER * quarter).cast::<i32>();
                let q = [_mm512_set1_epi32(q.read_unaligned()), _mm512_set1_epi32(q.add(1).read_unaligned())];
                let dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights[0], q[0]);
                let dot = _mm512_dpbusd_epi32(dot, weights[1], q[1]);
                let steps = _mm512_set1_epi32(i32::from(act.steps[quarter][0]));
                dots[n] = _mm512_add_epi32(dots[n], _mm512_mullo_epi32(dot, steps));
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
        if matches!(f.values, Values::Table | Values::SmallTable) {
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

/// The scales of one part of block `b`, and what is added for each unit of the sum of its activations.
///
/// # Safety
/// `trailer` is valid for a trailer of the format.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn scales_avx512(f: Format, trailer: *const u8, b: usize, part: usize) -> (__m512, Option<__m512>) {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = |at: usize, i: usize| _mm_loadu_si128(trailer.add(at + ROWS * i).cast());
        let times = |at: usize, steps| _mm512_mul_ps(halves_avx512(trailer.add(at)), _mm512_cvtepi32_ps(steps));
        let minus = |steps| _mm512_sub_epi32(_mm512_setzero_si512(), steps);
        let scale = match f.scales {
            Scales::Block => halves_avx512(trailer),
            Scales::Exponent => exponents_avx512(trailer),
            Scales::Halves => times(0, _mm512_cvtepi8_epi32(bytes(32, 2 * b + part))),
            Scales::Blocks => times(0, _mm512_cvtepi8_epi32(bytes(32, b))),
            Scales::BlockMin => return (halves_avx512(trailer), Some(halves_avx512(trailer.add(32)))),
            Scales::HalvesMin => {
                let both = _mm512_cvtepu8_epi32(bytes(64, 2 * b + part));
                let scale = times(0, _mm512_and_si512(both, _mm512_set1_epi32(15)));
                return (scale, Some(times(32, minus(_mm512_srli_epi32::<4>(both)))));
            }
            Scales::BlocksMin => {
                let (scale, min) = (_mm512_cvtepu8_epi32(bytes(64, b)), _mm512_cvtepu8_epi32(bytes(64 + 128, b)));
                return (times(0, scale), Some(times(32, minus(min))));
            }
        };
        let taken = (offset(f) != 0.0).then(|| _mm512_mul_ps(scale, _mm512_set1_ps(-offset(f))));
        (scale, taken)
    }
}
