//! AVX2, many rows: weights are unpacked once for all of them, with their integer scales.

// Loops over rows of activations and sides of a panel index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::super::{Act, BLOCK, ROWS, SUPER};
use super::avx2::{ROWS_TOGETHER, Words, group_avx2, min_avx2, scale_avx2, steps_avx2};
use super::{Kind, less, parts, sum};
use crate::simd::float::Out;

/// Rows computed side by side.
const TILE: usize = 4;

/// Up to [`SUPER`] block columns of a panel, unpacked.
#[repr(C, align(64))]
struct Unpacked {
    /// For each block column and pair of columns (of a group the even, then the odd), 2 numbers of 16 bits of every row.
    codes: [[u8; 1024]; SUPER],
    /// Of the blocks that are added together, at the first.
    scales: [[f32; ROWS]; SUPER],
    /// For each block column and part, times the sum of the activations.
    mins: [[[f32; ROWS]; 2]; SUPER],
    /// For each row of activations.
    sums: [[f32; ROWS]; ROWS_TOGETHER],
}

/// What to ask memory for: so many bytes for each block column that is computed.
#[derive(Clone, Copy)]
struct Ahead {
    from: *const u8,
    bytes: usize,
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
            let piece = panel.as_ptr().add(first / f.blocks() * f.stride());
            unpack_avx2::<K>(piece, blocks, room);
            // While the first rows are computed, what is unpacked next is on its way; behind a panel lies the next.
            let share = f.stride() / f.blocks();
            let mut ahead = Ahead { from: piece.wrapping_add(blocks * share), bytes: share };
            let mut row = 0;
            while row < rows {
                let at = acts.add(row * per_row + first);
                let sums = sums.add(row * ROWS);
                match rows - row {
                    1 => tile_avx2::<K, 1>(room, blocks, at, per_row, sums, ahead),
                    2 => tile_avx2::<K, 2>(room, blocks, at, per_row, sums, ahead),
                    3 => tile_avx2::<K, 3>(room, blocks, at, per_row, sums, ahead),
                    _ => tile_avx2::<K, TILE>(room, blocks, at, per_row, sums, ahead),
                }
                ahead.bytes = 0;
                row += TILE;
            }
        }
        for row in 0..rows {
            let (from, to) = (sums.add(row * ROWS), out.base.add(row * out.stride));
            if out.features == ROWS {
                // Whole panels are most; a copy of a length known beforehand is two stores.
                std::ptr::copy_nonoverlapping(from, to, ROWS);
            } else {
                std::ptr::copy_nonoverlapping(from, to, out.features);
            }
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
    // SAFETY: the caller's promise.
    unsafe {
        for block in 0..blocks {
            let (piece, b) = (piece.add(block / f.blocks() * f.stride()), block % f.blocks());
            let (planes, trailer) = (piece.add(b * f.planes()), piece.add(f.blocks() * f.planes()));
            let codes = (&raw mut (*room).codes[block]).cast::<u8>();
            let groups = 8 / parts(f);
            for part in 0..parts(f) {
                for h in 0..2 {
                    let steps = steps_avx2(f, trailer, b, part, h);
                    let scaled = Words::new(f, steps);
                    // What is taken off, twice in 32 bits.
                    let low = _mm256_and_si256(steps, _mm256_set1_epi32(0xffff));
                    let twice = _mm256_or_si256(low, _mm256_slli_epi32::<16>(low));
                    let taken = _mm256_mullo_epi16(twice, _mm256_set1_epi16(less(f)));
                    for g in groups * part..groups * (part + 1) {
                        let words = scaled.of(f, group_avx2::<K>(planes, h, g));
                        for (odd, mut words) in words.into_iter().enumerate() {
                            if less(f) != 0 {
                                words = _mm256_sub_epi16(words, taken);
                            }
                            _mm256_store_si256(codes.add(128 * g + 64 * odd + 32 * h).cast(), words);
                        }
                    }
                    if f.has_min() {
                        let to = (&raw mut (*room).mins[block][part]).cast::<f32>().add(8 * h);
                        _mm256_store_ps(to, min_avx2(f, trailer, b, part, h));
                    }
                }
            }
            if b.is_multiple_of(f.together()) {
                for h in 0..2 {
                    let to = (&raw mut (*room).scales[block]).cast::<f32>().add(8 * h);
                    _mm256_store_ps(to, scale_avx2(f, trailer, h));
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
    ahead: Ahead,
) {
    let f = K::FORMAT;
    // SAFETY: the caller's promise.
    unsafe {
        for first in (0..blocks).step_by(f.together()) {
            // Many at a time, where there are many; else at the end, with the sum in a register.
            let mins_first = f.has_min() && f.together() > 1;
            if mins_first {
                add_mins_avx2::<K, N>(room, first, at, per_row, sums);
            }
            let mut dots = [[_mm256_setzero_si256(); N]; 2];
            let wanted = f.together() * ahead.bytes;
            for line in (0..wanted).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(ahead.from.wrapping_add(first * ahead.bytes + line).cast());
            }
            dots_avx2::<N>((&raw const (*room).codes[first]).cast(), f.together(), at.add(first), per_row, &mut dots);
            for h in 0..2 {
                let scale = _mm256_load_ps((&raw const (*room).scales[first]).cast::<f32>().add(8 * h));
                for n in 0..N {
                    let to = sums.add(ROWS * n + 8 * h);
                    // What does not need the dots comes first, and is done when they are.
                    let mut total = _mm256_load_ps(to);
                    if f.has_min() && !mins_first {
                        const { assert!(!K::FORMAT.has_min() || K::FORMAT.together() > 1 || parts(K::FORMAT) == 1) };
                        let min = _mm256_load_ps((&raw const (*room).mins[first][0]).cast::<f32>().add(8 * h));
                        let sum = _mm256_set1_ps(sum(f, &*at.add(n * per_row + first), 0));
                        total = _mm256_fmadd_ps(min, sum, total);
                    }
                    let scale = _mm256_mul_ps(scale, _mm256_set1_ps((*at.add(n * per_row + first)).unit));
                    _mm256_store_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[h][n]), scale, total));
                }
            }
        }
    }
}

/// Adds what the minima of blocks that are added together make.
///
/// # Safety
/// As for [`tile_avx2`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_mins_avx2<K: Kind, const N: usize>(
    room: *const Unpacked,
    first: usize,
    at: *const Act,
    per_row: usize,
    sums: *mut f32,
) {
    let f = K::FORMAT;
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = [[_mm256_setzero_ps(); N]; 2];
        for h in 0..2 {
            for n in 0..N {
                totals[h][n] = _mm256_load_ps(sums.add(ROWS * n + 8 * h));
            }
        }
        for b in first..first + f.together() {
            for part in 0..parts(f) {
                let mins = (&raw const (*room).mins[b][part]).cast::<f32>();
                let mins = [_mm256_load_ps(mins), _mm256_load_ps(mins.add(8))];
                for n in 0..N {
                    let sum = _mm256_set1_ps(sum(f, &*at.add(n * per_row + b), part));
                    for h in 0..2 {
                        totals[h][n] = _mm256_fmadd_ps(mins[h], sum, totals[h][n]);
                    }
                }
            }
        }
        for h in 0..2 {
            for n in 0..N {
                _mm256_store_ps(sums.add(ROWS * n + 8 * h), totals[h][n]);
            }
        }
    }
}

/// Adds the products of some block columns' weights with `N` rows of activations, for both sides of the rows.
///
/// # Safety
/// `codes` is valid for 1024 bytes of each and aligned to 32, `at` for as many activations of `N` rows `per_row` apart.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots_avx2<const N: usize>(
    codes: *const u8,
    blocks: usize,
    at: *const Act,
    per_row: usize,
    dots: &mut [[__m256i; N]; 2],
) {
    // SAFETY: the caller's promise; the text reads what the loop does, for `blocks > 0`: the words at the beginning of
    // an `Act`, of four rows `stride` apart.
    unsafe {
        let stride = per_row * size_of::<Act>();
        let [low, high] = dots;
        if let (Some((low, [])), Some((high, []))) =
            (low.split_first_chunk_mut::<4>(), high.split_first_chunk_mut::<4>())
        {
            // Written out, because compilers compute one side after the other, and spill what both need; with its loop,
            // because they unroll it beyond what processors keep of decoded instructions.
            let acts = (&raw const (*at).words).cast::<u8>();
            macro_rules! pairs {
                ($($step:literal)*) => {
                    std::arch::asm!(
                        "2:",
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
                        "add {codes}, 1024",
                        "add {acts}, {act}",
                        "add {third}, {act}",
                        "dec {blocks}",
                        "jnz 2b",
                        codes = inout(reg) codes => _,
                        blocks = inout(reg) blocks => _,
                        acts = inout(reg) acts => _,
                        third = inout(reg) acts.add(3 * stride) => _,
                        stride = in(reg) stride,
                        act = const size_of::<Act>(),
                        a0 = inout(ymm_reg) low[0], a1 = inout(ymm_reg) low[1],
                        a2 = inout(ymm_reg) low[2], a3 = inout(ymm_reg) low[3],
                        b0 = inout(ymm_reg) high[0], b1 = inout(ymm_reg) high[1],
                        b2 = inout(ymm_reg) high[2], b3 = inout(ymm_reg) high[3],
                        w0 = out(ymm_reg) _, w1 = out(ymm_reg) _, p0 = out(ymm_reg) _, p1 = out(ymm_reg) _,
                        q0 = out(ymm_reg) _, q1 = out(ymm_reg) _, q2 = out(ymm_reg) _, q3 = out(ymm_reg) _,
                        options(readonly, nostack),
                    )
                };
            }
            pairs!("0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15");
            return;
        }
        for block in 0..blocks {
            let codes = codes.add(1024 * block);
            for pair in 0..BLOCK / 2 {
                let line = codes.add(64 * pair).cast();
                let weights = [_mm256_load_si256(line), _mm256_load_si256(line.add(1))];
                for n in 0..N {
                    let words = (&raw const (*at.add(n * per_row + block)).words).cast::<i32>();
                    let act = _mm256_set1_epi32(words.add(pair).read_unaligned());
                    for h in 0..2 {
                        dots[h][n] = _mm256_add_epi32(dots[h][n], _mm256_madd_epi16(weights[h], act));
                    }
                }
            }
        }
    }
}
