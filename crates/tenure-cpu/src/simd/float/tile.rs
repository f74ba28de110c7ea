//! Tiles of registers: a few rows of one matrix, element by element, times one to three vectors of each row of another.
//!
//! Every sum goes through the elements one after the other, whatever rows are computed beside it.

// Walked by index, several arrays at once, with bounds known when compiling.
#![allow(clippy::needless_range_loop)]

use crate::simd::float::lanes::Lanes;

/// `out[row] = x[row] * w`, or that added to what is there.
pub(crate) struct Tiles {
    /// `depth` floats each, `x_stride` floats from one row to the next.
    pub(crate) x: *const f32,
    pub(crate) x_stride: usize,
    /// `[depth][W * V::N]`, one row behind the other.
    pub(crate) w: *const f32,
    pub(crate) depth: usize,
    /// `W * V::N` floats each.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    /// To what is there.
    pub(crate) add: bool,
}

/// All of `rows` rows, for `W` vectors: one to three.
///
/// # Safety
/// The operands are valid for so many rows, the result for writing; the processor has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn tiles<V: Lanes, const W: usize>(tiles: &Tiles, rows: usize) {
    let mut row = 0;
    while row < rows {
        // SAFETY: so many rows are left.
        unsafe {
            // As many accumulators as there are registers for, beside the vectors and one element.
            row += match rows - row {
                left if V::WIDE && W < 3 && left >= 12 => tile::<V, W, 12>(tiles, row),
                left if V::WIDE && W == 3 && left >= 8 => tile::<V, W, 8>(tiles, row),
                left if W < 3 && left >= 6 => tile::<V, W, 6>(tiles, row),
                5 if W < 3 => tile::<V, W, 5>(tiles, row),
                3 => tile::<V, W, 3>(tiles, row),
                2 => tile::<V, W, 2>(tiles, row),
                1 => tile::<V, W, 1>(tiles, row),
                _ => tile::<V, W, 4>(tiles, row),
            };
        }
    }
}

/// `T` rows from `row` on; returns `T`.
///
/// # Safety
/// As for [`tiles`].
#[inline(always)]
unsafe fn tile<V: Lanes, const W: usize, const T: usize>(tiles: &Tiles, row: usize) -> usize {
    // SAFETY: the caller's contract.
    unsafe {
        let x = tiles.x.add(row * tiles.x_stride);
        let mut sums = [[V::splat(0.0); W]; T];
        for i in 0..tiles.depth {
            let mut w = [V::splat(0.0); W];
            for at in 0..W {
                w[at] = V::load(tiles.w.add((i * W + at) * V::N));
            }
            for t in 0..T {
                let x = V::splat(x.add(t * tiles.x_stride + i).read());
                for at in 0..W {
                    sums[t][at] = w[at].fma(x, sums[t][at]);
                }
            }
        }
        for t in 0..T {
            for at in 0..W {
                let out = tiles.out.add((row + t) * tiles.out_stride + at * V::N);
                let sum = if tiles.add { V::load(out).add(sums[t][at]) } else { sums[t][at] };
                sum.store(out);
            }
        }
    }
    T
}
