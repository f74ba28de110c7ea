//! AVX2, many rows: weights are unpacked once for all of them, those that fill a signed byte to 16 bits.

// Loops over rows of activations and sides of a panel index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::super::{Act, BLOCK, QUARTER, ROWS, SUPER};
use super::avx2::{ROWS_TOGETHER, group_avx2, min_avx2, scale_avx2, signed};
use super::{Kind, has_min, parts, sum};
use crate::simd::float::Out;

/// Rows computed side by side.
const TILE: usize = 4;

/// Up to [`SUPER`] block columns of a panel, unpacked.
#[repr(C, align(64))]
struct Unpacked {
    /// For each block column and group, 4 bytes of every row; or, for each pair of columns, 2 numbers of 16 bits.
    codes: [[u8; 1024]; SUPER],
    /// For each block column and part.
    scales: [[[f32; ROWS]; 2]; SUPER],
    /// For each block column and part, times the sum of the activations.
    mins: [[[f32; ROWS]; 2]; SUPER],
    /// For each row of activations.
    sums: [[f32; ROWS]; ROWS_TOGETHER],
}

/// # Safety
/// See [`avx2`]; `acts` is valid for `rows` rows of `per_row`, at most [`ROWS_TOGETHER`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2_wide<K: Kind>(panel: &[u8], per_row: usize, acts: *const Act, rows: usize, out: Out) {
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
        for b in 0..blocks {
            let codes = (&raw const (*room).codes[b]).cast::<u8>();
            for part in 0..parts(f) {
                let mut dots = [[_mm256_setzero_si256(); N]; 2];
                if signed(f) {
                    dots_of_words_avx2::<N>(codes, at.add(b), per_row, &mut dots);
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
/// `codes` is valid for 1024 bytes and aligned to 32, `at` for `N` activations `per_row` apart.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots_of_words_avx2<const N: usize>(
    codes: *const u8,
    at: *const Act,
    per_row: usize,
    dots: &mut [[__m256i; N]; 2],
) {
    // SAFETY: the caller's promise; the text reads what the loop does.
    unsafe {
        let acts = (&raw const (*at).words).cast::<u8>();
        let stride = per_row * size_of::<Act>();
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
                            concat!("vpbroadcastd {q1}, [{acts} + {stride} + 4 * ", $step, "]"),
                            concat!("vpbroadcastd {q2}, [{acts} + 2 * {stride} + 4 * ", $step, "]"),
                            concat!("vpbroadcastd {q3}, [{third} + 4 * ", $step, "]"),
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
                        stride = in(reg) stride,
                        third = in(reg) acts.add(3 * stride),
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
                let act = _mm256_set1_epi32(acts.add(n * stride + 4 * pair).cast::<i32>().read_unaligned());
                for h in 0..2 {
                    dots[h][n] = _mm256_add_epi32(dots[h][n], _mm256_madd_epi16(weights[h], act));
                }
            }
        }
    }
}
