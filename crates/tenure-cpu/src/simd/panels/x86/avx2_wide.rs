//! AVX2, many rows: weights are unpacked once for all of them, those that fill a signed byte to 16 bits.

// Loops over rows of activations and sides of a panel index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::super::{Act, BLOCK, QUARTER, ROWS, SUPER, Words};
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

/// What to ask memory for: so many bytes for each block column that is computed.
#[derive(Clone, Copy)]
struct Ahead {
    from: *const u8,
    bytes: usize,
}

/// Where the activations of some rows are, from some block column on.
#[derive(Clone, Copy)]
pub(super) struct Wide {
    pub(super) acts: *const Act,
    pub(super) words: *const Words,
    /// Block columns of a row.
    pub(super) per_row: usize,
}

impl Wide {
    /// So many block columns further.
    ///
    /// # Safety
    /// They are there.
    #[inline(always)]
    unsafe fn add(self, columns: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Wide { acts: self.acts.add(columns), words: self.words.add(columns), ..self } }
    }
}

/// # Safety
/// See [`avx2`]; `at` is valid for `rows` rows, at most [`ROWS_TOGETHER`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2_wide<K: Kind>(panel: &[u8], at: Wide, rows: usize, out: Out) {
    let f = K::FORMAT;
    let per_row = at.per_row;
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
                let at = at.add(row * per_row + first);
                let sums = sums.add(row * ROWS);
                match rows - row {
                    1 => tile_avx2::<K, 1>(room, blocks, at, sums, ahead),
                    2 => tile_avx2::<K, 2>(room, blocks, at, sums, ahead),
                    3 => tile_avx2::<K, 3>(room, blocks, at, sums, ahead),
                    _ => tile_avx2::<K, TILE>(room, blocks, at, sums, ahead),
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
/// `room` holds `blocks` block columns, `at` is valid for as many of `N` rows, `sums` for 16 floats of each.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_avx2<K: Kind, const N: usize>(
    room: *mut Unpacked,
    blocks: usize,
    at: Wide,
    sums: *mut f32,
    ahead: Ahead,
) {
    let f = K::FORMAT;
    // SAFETY: the caller's promise.
    unsafe {
        for b in 0..blocks {
            for line in (0..ahead.bytes).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(ahead.from.wrapping_add(b * ahead.bytes + line).cast());
            }
            let codes = (&raw const (*room).codes[b]).cast::<u8>();
            for part in 0..parts(f) {
                let mut dots = [[_mm256_setzero_si256(); N]; 2];
                if signed(f) {
                    dots_of_words_avx2::<N>(codes, at.add(b), &mut dots);
                } else if parts(f) == 1 {
                    dots_of_bytes_avx2::<N, 4>(codes, at.add(b), 0, &mut dots);
                } else {
                    dots_of_bytes_avx2::<N, 2>(codes, at.add(b), 2 * part, &mut dots);
                }
                for h in 0..2 {
                    let scale = _mm256_load_ps((&raw const (*room).scales[b][part]).cast::<f32>().add(8 * h));
                    for n in 0..N {
                        let act = &*at.acts.add(n * at.per_row + b);
                        let to = sums.add(ROWS * n + 8 * h);
                        // What does not need the dots comes first, and is done when they are.
                        let mut total = _mm256_load_ps(to);
                        if has_min(f) {
                            let min = _mm256_load_ps((&raw const (*room).mins[b][part]).cast::<f32>().add(8 * h));
                            total = _mm256_fmadd_ps(min, _mm256_set1_ps(sum(f, act, part)), total);
                        }
                        let scale = _mm256_mul_ps(scale, _mm256_set1_ps(act.unit));
                        _mm256_store_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[h][n]), scale, total));
                    }
                }
            }
        }
    }
}

/// Adds the products of so many quarters of a block column's weights, in bytes, with `N` rows of activations, for both
/// sides of the rows; `quarter` is the first.
///
/// # Safety
/// `codes` is valid for the block column's 512 bytes and aligned to 32, `at` for a block column of `N` rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots_of_bytes_avx2<const N: usize, const QUARTERS: usize>(
    codes: *const u8,
    at: Wide,
    quarter: usize,
    dots: &mut [[__m256i; N]; 2],
) {
    // SAFETY: the caller's promise; the text reads what the loop does.
    unsafe {
        let codes = codes.add(128 * quarter);
        let q = (&raw const (*at.acts).q).cast::<u8>().add(QUARTER * quarter);
        let steps = (&raw const (*at.acts).steps[quarter]).cast::<u8>();
        let [low, high] = dots;
        if let (Some((low, [])), Some((high, []))) =
            (low.split_first_chunk_mut::<4>(), high.split_first_chunk_mut::<4>())
        {
            // Written out, because compilers compute one side after the other, and spill what both need.
            let stride = at.per_row * size_of::<Act>();
            macro_rules! quarters {
                ($($quarter:literal)*) => {
                    std::arch::asm!(
                        $(
                            concat!("vmovdqa {w0}, [{codes} + 128 * ", $quarter, "]"),
                            concat!("vmovdqa {w1}, [{codes} + 128 * ", $quarter, " + 32]"),
                            concat!("vmovdqa {w2}, [{codes} + 128 * ", $quarter, " + 64]"),
                            concat!("vmovdqa {w3}, [{codes} + 128 * ", $quarter, " + 96]"),
                            row!("a0" "b0" "0a" "" $quarter),
                            row!("a1" "b1" "0a" " + {stride}" $quarter),
                            row!("a2" "b2" "0a" " + 2 * {stride}" $quarter),
                            row!("a3" "b3" "3a" "" $quarter),
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
            macro_rules! row {
                ($a:literal $b:literal $base:literal $at:literal $quarter:literal) => {
                    concat!(
                        "vpbroadcastd {q0}, [{q",
                        $base,
                        "}",
                        $at,
                        " + 8 * ",
                        $quarter,
                        "]\n",
                        "vpbroadcastd {q1}, [{q",
                        $base,
                        "}",
                        $at,
                        " + 8 * ",
                        $quarter,
                        " + 4]\n",
                        "vpmaddubsw {p0}, {w0}, {q0}\n",
                        "vpmaddubsw {q0}, {w1}, {q0}\n",
                        "vpmaddubsw {p1}, {w2}, {q1}\n",
                        "vpmaddubsw {q1}, {w3}, {q1}\n",
                        "vpaddw {p0}, {p0}, {p1}\n",
                        "vpbroadcastd {p1}, [{s",
                        $base,
                        "}",
                        $at,
                        " + 4 * ",
                        $quarter,
                        "]\n",
                        "vpaddw {q0}, {q0}, {q1}\n",
                        "vpmaddwd {p0}, {p0}, {p1}\n",
                        "vpmaddwd {q0}, {q0}, {p1}\n",
                        "vpaddd {",
                        $a,
                        "}, {",
                        $a,
                        "}, {p0}\n",
                        "vpaddd {",
                        $b,
                        "}, {",
                        $b,
                        "}, {q0}\n",
                    )
                };
            }
            if QUARTERS == 2 {
                quarters!("0" "1");
            } else {
                quarters!("0" "1" "2" "3");
            }
            return;
        }
        for quarter in 0..QUARTERS {
            let line = codes.add(128 * quarter).cast::<__m256i>();
            let weights = [
                _mm256_load_si256(line),
                _mm256_load_si256(line.add(1)),
                _mm256_load_si256(line.add(2)),
                _mm256_load_si256(line.add(3)),
            ];
            for n in 0..N {
                let at = n * at.per_row * size_of::<Act>();
                let steps = _mm256_set1_epi32(steps.add(at + 4 * quarter).cast::<i32>().read_unaligned());
                let q = q.add(at + QUARTER * quarter).cast::<i32>();
                let q = [_mm256_set1_epi32(q.read_unaligned()), _mm256_set1_epi32(q.add(1).read_unaligned())];
                for h in 0..2 {
                    let first = _mm256_maddubs_epi16(weights[h], q[0]);
                    let pairs = _mm256_add_epi16(first, _mm256_maddubs_epi16(weights[2 + h], q[1]));
                    dots[h][n] = _mm256_add_epi32(dots[h][n], _mm256_madd_epi16(pairs, steps));
                }
            }
        }
    }
}

/// Adds the products of a block column's weights, in 16 bits, with `N` rows of activations in 16 bits, for both sides of
/// the rows.
///
/// # Safety
/// `codes` is valid for 1024 bytes and aligned to 32, `at` for a block column of `N` rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots_of_words_avx2<const N: usize>(codes: *const u8, at: Wide, dots: &mut [[__m256i; N]; 2]) {
    // SAFETY: the caller's promise; the text reads what the loop does.
    unsafe {
        let acts = at.words.cast::<u8>();
        let stride = at.per_row * size_of::<Words>();
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
