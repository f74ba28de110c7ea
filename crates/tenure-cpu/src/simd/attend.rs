//! Attention without a cache: tiles of queries over tiles of keys, with a running maximum and sum (Milakov & Gimelshein
//! 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135), so that no more than one tile of scores is ever held.

use std::ops::Range;

use crate::simd::Isa;
use crate::simd::float::lanes::{Kernel, Lanes, dispatch};
use crate::simd::float::{Out, product, scale};

/// Queries computed together.
pub const QUERIES: usize = 64;
/// Keys computed together.
const KEYS: usize = 128;

/// One head's rows: `head_dim` floats each, `stride` floats from one row to the next.
#[derive(Clone, Copy)]
pub struct HeadRows<'a> {
    /// From the head's first element of the first row on.
    pub rows: &'a [f32],
    /// Floats from one row to the next.
    pub stride: usize,
}

/// Floats of scratch that one call needs.
pub const fn scratch_floats(head_dim: usize) -> usize {
    QUERIES * KEYS + KEYS * head_dim + 2 * QUERIES * head_dim + 2 * QUERIES
}

/// Attention of the queries in `range`, of `q`, over `keys` rows of `k` and `v`, or over those up to a query's own place.
///
/// # Safety
/// `out` is valid for `head_dim` floats of so many rows, `stride` apart, and nobody else touches them meanwhile.
#[allow(clippy::too_many_arguments)] // The definition's operands.
pub unsafe fn attend(
    isa: Isa,
    q: HeadRows<'_>,
    k: HeadRows<'_>,
    v: HeadRows<'_>,
    head_dim: usize,
    factor: f32,
    range: Range<usize>,
    keys: usize,
    causal: bool,
    scratch: &mut [f32],
    out: Out,
) {
    let count = range.len();
    let need = |rows: usize, of: &HeadRows<'_>| rows == 0 || (rows - 1) * of.stride + head_dim <= of.rows.len();
    assert!(count <= QUERIES && need(range.end, &q) && need(keys, &k) && need(keys, &v));
    assert!(scratch.len() >= scratch_floats(head_dim) && out.features == head_dim);
    let (scores, rest) = scratch.split_at_mut(QUERIES * KEYS);
    let (turned, rest) = rest.split_at_mut(KEYS * head_dim);
    let (sums, rest) = rest.split_at_mut(QUERIES * head_dim);
    let (parts, rest) = rest.split_at_mut(QUERIES * head_dim);
    let (largest, weights) = rest.split_at_mut(QUERIES);
    sums[..count * head_dim].fill(0.0);
    largest[..count].fill(f32::NEG_INFINITY);
    weights[..count].fill(0.0);

    let last = if causal { keys.min(range.end) } else { keys };
    for first in (0..last).step_by(KEYS) {
        let here = KEYS.min(last - first);
        // SAFETY: the rows were checked; the scores have room.
        unsafe {
            let (from_q, from_k) = (q.rows.as_ptr().add(range.start * q.stride), k.rows.as_ptr().add(first * k.stride));
            let out = Out { base: scores.as_mut_ptr(), stride: KEYS, features: here };
            product(isa, from_k, k.stride, from_q, q.stride, count, head_dim, out);
        }
        for (at, row) in scores.chunks_exact_mut(KEYS).take(count).enumerate() {
            let (seen, behind) = row.split_at_mut(here);
            let seen_keys = if causal { (range.start + at + 1).saturating_sub(first).min(here) } else { here };
            let (seen, hidden) = seen.split_at_mut(seen_keys);
            hidden.fill(0.0);
            behind.fill(0.0);
            if seen.is_empty() {
                continue;
            }
            scale(isa, seen, factor);
            let before = largest[at];
            let now = dispatch(isa, Largest { x: seen, least: before });
            let sum = dispatch(isa, Exponentials { x: seen, largest: now });
            // Nothing was seen before where there is no maximum.
            let kept = if before == f32::NEG_INFINITY { 0.0 } else { (before - now).exp() };
            largest[at] = now;
            weights[at] = weights[at] * kept + sum;
            if kept != 1.0 {
                scale(isa, &mut sums[at * head_dim..(at + 1) * head_dim], kept);
            }
        }
        for (column, to) in turned.chunks_exact_mut(KEYS).enumerate().take(head_dim) {
            for (at, to) in to[..here].iter_mut().enumerate() {
                *to = v.rows[(first + at) * v.stride + column];
            }
        }
        // SAFETY: the scores hold `count` rows of `KEYS`, the values as many columns.
        unsafe {
            let out = Out { base: parts.as_mut_ptr(), stride: head_dim, features: head_dim };
            product(isa, turned.as_ptr(), KEYS, scores.as_ptr(), KEYS, count, here, out);
        }
        crate::simd::float::add(isa, &mut sums[..count * head_dim], &parts[..count * head_dim]);
    }
    for (at, sum) in sums.chunks_exact_mut(head_dim).take(count).enumerate() {
        scale(isa, sum, 1.0 / weights[at]);
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(sum.as_ptr(), out.base.add(at * out.stride), head_dim) };
    }
}

/// The largest of `x` and `least`; NaN where there is one.
struct Largest<'a> {
    x: &'a [f32],
    least: f32,
}

impl Kernel for Largest<'_> {
    type Result = f32;

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> f32 {
        let (len, x) = (self.x.len(), self.x.as_ptr());
        let mut i = 0;
        // SAFETY: all accesses are below `len`; the caller vouches for the instruction set.
        unsafe {
            // What is NaN in `x` stays, as the second operand does then.
            let mut largest = V::splat(self.least);
            while i + V::N <= len {
                largest = largest.max(V::load(x.add(i)));
                i += V::N;
            }
            let mut all = largest.largest();
            while i < len {
                all = if *x.add(i) > all { *x.add(i) } else { all };
                i += 1;
            }
            all
        }
    }
}

/// `x = e^(x - largest)`; the sum.
struct Exponentials<'a> {
    x: &'a mut [f32],
    largest: f32,
}

impl Kernel for Exponentials<'_> {
    type Result = f32;

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> f32 {
        let (len, x) = (self.x.len(), self.x.as_mut_ptr());
        let mut i = 0;
        // SAFETY: all accesses are below `len`; the caller vouches for the instruction set.
        unsafe {
            let largest = V::splat(self.largest);
            let mut sum = V::splat(0.0);
            while i + V::N <= len {
                let power = V::load(x.add(i)).sub(largest).exp();
                power.store(x.add(i));
                sum = sum.add(power);
                i += V::N;
            }
            let mut all = sum.sum();
            if i < len {
                let power = V::load_part(x.add(i), len - i).sub(largest).exp();
                power.store_part(x.add(i), len - i);
                for at in i..len {
                    all += *x.add(at);
                }
            }
            all
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::float::testing::{Random, assert_close};

    #[test]
    fn matches_the_definition() {
        let mut random = Random::new(21);
        for isa in Isa::available() {
            for (queries, keys, head_dim, causal) in
                [(1, 1, 1, false), (3, 200, 40, false), (130, 77, 8, false), (77, 77, 64, true), (150, 150, 33, true)]
            {
                let (heads, head) = (3, 1);
                let stride = heads * head_dim;
                let q = random.floats(queries * stride, 2.0);
                let k = random.floats(keys * stride, 2.0);
                let v = random.floats(keys * stride, 1.0);
                let rows = |of: &'_ [f32]| -> Vec<f32> { of[head * head_dim..].to_vec() };
                let (q_rows, k_rows, v_rows) = (rows(&q), rows(&k), rows(&v));
                let on = |rows| HeadRows { rows, stride };
                let mut got = vec![f32::NAN; queries * head_dim];
                let mut scratch = vec![f32::NAN; scratch_floats(head_dim)];
                for first in (0..queries).step_by(QUERIES) {
                    let range = first..queries.min(first + QUERIES);
                    // SAFETY: the vector has room for all rows.
                    unsafe {
                        let base = got.as_mut_ptr().add(first * head_dim);
                        let out = Out { base, stride: head_dim, features: head_dim };
                        let (q, k, v) = (on(&q_rows[..]), on(&k_rows[..]), on(&v_rows[..]));
                        attend(isa, q, k, v, head_dim, 0.3, range, keys, causal, &mut scratch, out);
                    }
                }
                let mut want = Vec::new();
                for i in 0..queries {
                    let seen = if causal { i + 1 } else { keys };
                    let score = |j: usize| -> f64 {
                        (0..head_dim)
                            .map(|d| f64::from(q_rows[i * stride + d]) * f64::from(k_rows[j * stride + d]))
                            .sum::<f64>()
                            * f64::from(0.3f32)
                    };
                    let scores: Vec<f64> = (0..seen).map(score).collect();
                    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                    for d in 0..head_dim {
                        let weighted = |(j, s): (usize, &f64)| (s - largest).exp() * f64::from(v_rows[j * stride + d]);
                        want.push(scores.iter().enumerate().map(weighted).sum::<f64>() / sum);
                    }
                }
                assert_close(&got, &want, 1e-5, 1e-5, &format!("{isa:?} {queries} {keys} {head_dim} {causal}"));
            }
        }
    }

    #[test]
    fn a_score_that_is_no_number_shows() {
        for isa in Isa::available() {
            let (q, k) = (vec![1.0; 8], vec![f32::NAN, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
            let (mut out, mut scratch) = ([0.0; 8], vec![0.0; scratch_floats(8)]);
            let on = |rows| HeadRows { rows, stride: 8 };
            // SAFETY: one row.
            unsafe {
                let to = Out { base: out.as_mut_ptr(), stride: 8, features: 8 };
                attend(isa, on(&q), on(&k), on(&q), 8, 1.0, 0..1, 1, false, &mut scratch, to);
            }
            assert!(out.iter().all(|x| x.is_nan()), "{isa:?}");
        }
    }
}
