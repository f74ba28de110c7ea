//! Attention without a cache: tiles of queries over tiles of keys, with a running maximum and sum (Milakov & Gimelshein
//! 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135), so that no more than one tile of scores is ever held.

use std::ops::Range;

use tenure_graph::Buckets;

use crate::simd::Isa;
use crate::simd::float::lanes::{Kernel, Lanes, dispatch};
use crate::simd::float::tile::{Tiles, tiles};
use crate::simd::float::{Out, add, scale};

/// Queries computed together.
pub const QUERIES: usize = 96;
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

/// One head's keys and values.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// The keys.
    pub k: HeadRows<'a>,
    /// The values.
    pub v: HeadRows<'a>,
    /// Rows of each.
    pub count: usize,
}

impl Keys<'_> {
    /// None.
    pub const NONE: Self =
        Keys { k: HeadRows { rows: &[], stride: 0 }, v: HeadRows { rows: &[], stride: 0 }, count: 0 };
}

/// What is added to one head's scores for the distance of key and query.
pub struct Bias<'a> {
    /// Which distances share a row of the table.
    pub buckets: Buckets,
    /// `[buckets, heads]`.
    pub table: &'a [f32],
    /// Columns of the table.
    pub heads: usize,
    /// This head's.
    pub head: usize,
}

/// Floats of scratch that one call needs.
pub const fn scratch_floats(head_dim: usize) -> usize {
    let padded = padded(head_dim);
    QUERIES * (KEYS + head_dim + padded) + KEYS * (head_dim + padded) + 2 * QUERIES + DISTANCES
}

/// Floats that the elements of a head take where they are whole vectors of every instruction set.
const fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// Distances from the queries of a tile to its keys.
const DISTANCES: usize = QUERIES + KEYS;

/// Attention of the queries in `range`, of `q`, over the keys and values of all spans, which stand one behind the other, or
/// over those up to a query's own place.
///
/// # Safety
/// `out` is valid for `head_dim` floats of so many rows, `stride` apart, and nobody else touches them meanwhile.
#[allow(clippy::too_many_arguments)] // The definition's operands.
pub unsafe fn attend(
    isa: Isa,
    q: HeadRows<'_>,
    spans: &[Keys<'_>],
    head_dim: usize,
    factor: f32,
    range: Range<usize>,
    causal: bool,
    bias: Option<&Bias<'_>>,
    scratch: &mut [f32],
    out: Out,
) {
    let count = range.len();
    let need = |rows: usize, of: &HeadRows<'_>| rows == 0 || (rows - 1) * of.stride + head_dim <= of.rows.len();
    assert!(count <= QUERIES && need(range.end, &q));
    assert!(spans.iter().all(|keys| need(keys.count, &keys.k) && need(keys.count, &keys.v)));
    assert!(scratch.len() >= scratch_floats(head_dim) && out.features == head_dim);
    let padded = padded(head_dim);
    let (scores, rest) = scratch.split_at_mut(QUERIES * KEYS);
    let (keys_packed, rest) = rest.split_at_mut(KEYS * head_dim);
    let (values_packed, rest) = rest.split_at_mut(KEYS * padded);
    let (scaled, rest) = rest.split_at_mut(QUERIES * head_dim);
    let (sums, rest) = rest.split_at_mut(QUERIES * padded);
    let (largest, rest) = rest.split_at_mut(QUERIES);
    let (weights, biases) = rest.split_at_mut(QUERIES);
    for (row, to) in range.clone().zip(scaled.chunks_exact_mut(head_dim)) {
        to.copy_from_slice(&q.rows[row * q.stride..][..head_dim]);
        scale(isa, to, factor);
    }
    sums[..count * padded].fill(0.0);
    largest[..count].fill(f32::NEG_INFINITY);
    weights[..count].fill(0.0);

    // Each tile of keys, its own first row, and its place among the keys of all spans.
    let ends = spans.iter().scan(0, |end, keys| {
        *end += keys.count;
        Some(*end)
    });
    let tiles = spans.iter().zip(ends).flat_map(|(keys, end)| {
        let before = end - keys.count;
        let last = if causal { keys.count.min(range.end.saturating_sub(before)) } else { keys.count };
        (0..last).step_by(KEYS).map(move |first| (keys.k, keys.v, first, KEYS.min(last - first), before + first))
    });
    for (k, v, first, here, place) in tiles {
        if let Some(bias) = bias {
            // From the last query's distances to the first's.
            for (at, to) in biases[..here + count - 1].iter_mut().enumerate() {
                *to = bias.table[bias.buckets.of(range.end - 1, place + at) * bias.heads + bias.head];
            }
        }
        let (from, to) = (k.rows[first * k.stride..].as_ptr(), keys_packed.as_mut_ptr());
        let (queries, into) = (scaled.as_ptr(), scores.as_mut_ptr());
        dispatch(isa, Scores { from, stride: k.stride, here, head_dim, to, queries, count, into });
        for (at, row) in scores.chunks_exact_mut(KEYS).take(count).enumerate() {
            let seen = &mut row[..here];
            let seen_keys = if causal { (range.start + at + 1).saturating_sub(place).min(here) } else { here };
            let (seen, hidden) = seen.split_at_mut(seen_keys);
            hidden.fill(0.0);
            if seen.is_empty() {
                continue;
            }
            if bias.is_some() {
                add(isa, seen, &biases[count - 1 - at..][..seen_keys]);
            }
            let before = largest[at];
            let now = dispatch(isa, Largest { x: seen, least: before });
            let sum = dispatch(isa, Exponentials { x: seen, largest: now });
            // Nothing was seen before where there is no maximum.
            let kept = if before == f32::NEG_INFINITY { 0.0 } else { (before - now).exp() };
            largest[at] = now;
            weights[at] = weights[at] * kept + sum;
            if kept != 1.0 {
                scale(isa, &mut sums[at * padded..][..head_dim], kept);
            }
        }
        let (from, to) = (v.rows[first * v.stride..].as_ptr(), values_packed.as_mut_ptr());
        let (scores, into) = (scores.as_ptr(), sums.as_mut_ptr());
        dispatch(isa, Values { from, stride: v.stride, here, head_dim, to, scores, count, into });
    }
    for (at, sum) in sums.chunks_exact_mut(padded).take(count).enumerate() {
        let sum = &mut sum[..head_dim];
        scale(isa, sum, 1.0 / weights[at]);
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(sum.as_ptr(), out.base.add(at * out.stride), head_dim) };
    }
}

/// The scores of a tile: `into[query][key]`, [`KEYS`] a row, is the product of both.
struct Scores {
    /// The keys' rows, `stride` floats from one to the next, `here` of them.
    from: *const f32,
    stride: usize,
    here: usize,
    head_dim: usize,
    /// Room for `KEYS * head_dim` floats: keys side by side, in panels of two vectors.
    to: *mut f32,
    /// `count` rows of `head_dim`.
    queries: *const f32,
    count: usize,
    into: *mut f32,
}

impl Kernel for Scores {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Scores { from, stride, here, head_dim, to, queries, count, into } = self;
        let width = 2 * V::N;
        // SAFETY: the rows are `attend`'s, all places below `KEYS`; the caller vouches for the instruction set.
        unsafe {
            for panel in 0..here.div_ceil(width) {
                let to = to.add(panel * width * head_dim);
                for eight in 0..width / 8 {
                    let key = panel * width + eight * 8;
                    let whole = if key + 8 <= here { head_dim / 8 * 8 } else { 0 };
                    for i in (0..whole).step_by(8) {
                        V::transpose8(from.add(key * stride + i), stride, to.add(i * width + eight * 8), width);
                    }
                    for i in whole..head_dim {
                        for at in 0..8 {
                            let x = if key + at < here { from.add((key + at) * stride + i).read() } else { 0.0 };
                            to.add(i * width + eight * 8 + at).write(x);
                        }
                    }
                }
                let out = into.add(panel * width);
                let product =
                    Tiles { x: queries, x_stride: head_dim, w: to, depth: head_dim, out, out_stride: KEYS, add: false };
                tiles::<V, 2>(&product, count);
            }
        }
    }
}

/// Adds to `into[query]`, [`padded`] floats a row, the values of a tile, each times its key's score.
struct Values {
    /// The values' rows, `stride` floats from one to the next, `here` of them.
    from: *const f32,
    stride: usize,
    here: usize,
    head_dim: usize,
    /// Room for `KEYS` rows of so many floats, in panels of two vectors, the last of one or three where their number is odd.
    to: *mut f32,
    /// `count` rows of [`KEYS`].
    scores: *const f32,
    count: usize,
    into: *mut f32,
}

impl Values {
    /// The columns from `column` on, a panel of `W` vectors; returns `W`.
    ///
    /// # Safety
    /// As for [`Kernel::run`].
    #[inline(always)]
    unsafe fn panel<V: Lanes, const W: usize>(&self, column: usize) -> usize {
        // SAFETY: the rows are `attend`'s; the panel lies in the room of its columns.
        unsafe {
            let to = self.to.add(KEYS * column);
            for key in 0..self.here {
                let from = self.from.add(key * self.stride);
                for at in 0..W {
                    let column = column + at * V::N;
                    let left = self.head_dim.saturating_sub(column);
                    let x = if left >= V::N { V::load(from.add(column)) } else { V::load_part(from.add(column), left) };
                    x.store(to.add((key * W + at) * V::N));
                }
            }
            let (x_stride, out_stride) = (KEYS, padded(self.head_dim));
            let out = self.into.add(column);
            let product = Tiles { x: self.scores, x_stride, w: to, depth: self.here, out, out_stride, add: true };
            tiles::<V, W>(&product, self.count);
        }
        W
    }
}

impl Kernel for Values {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let mut column = 0;
        while column < self.head_dim {
            // SAFETY: the caller's contract.
            let vectors = unsafe {
                match (self.head_dim - column).div_ceil(V::N) {
                    1 => self.panel::<V, 1>(column),
                    3 => self.panel::<V, 3>(column),
                    _ => self.panel::<V, 2>(column),
                }
            };
            column += vectors * V::N;
        }
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
                let power = V::load(x.add(i)).sub(largest).exp_of_negative();
                power.store(x.add(i));
                sum = sum.add(power);
                i += V::N;
            }
            let mut all = sum.sum();
            if i < len {
                let power = V::load_part(x.add(i), len - i).sub(largest).exp_of_negative();
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

    /// Spans of keys, as the definition has them.
    struct Case {
        queries: usize,
        spans: [usize; 2],
        head_dim: usize,
        causal: bool,
        bias: Option<(usize, usize)>,
    }

    fn head_of(first: usize, stride: usize) -> impl Fn(&[f32]) -> HeadRows<'_> {
        move |rows| HeadRows { rows: rows.get(first..).unwrap_or(&[]), stride }
    }

    /// By comparing powers, without logarithms: `distance` is in range `n` of `ranges` from `exact * ratio^(n / ranges)` on.
    fn bucket(query: i64, key: i64, of: Buckets) -> usize {
        let (half, exact) = (of.count / 2, of.count / 4);
        let distance = (key - query).unsigned_abs() as usize;
        let ranges = (half - exact) as i32;
        let begins = |n: usize| -> bool {
            (distance as f64 / exact as f64).powi(ranges) >= (of.max_distance as f64 / exact as f64).powi(n as i32)
        };
        let range = (1..half - exact).rev().find(|&n| begins(n)).unwrap_or(0);
        let within = if distance < exact { distance } else { exact + range };
        if key > query { half + within } else { within }
    }

    #[test]
    fn matches_the_definition() {
        let case = |queries, spans, head_dim, causal, bias| Case { queries, spans, head_dim, causal, bias };
        let cases = [
            case(1, [1, 0], 1, false, None),
            case(3, [200, 0], 40, false, None),
            case(130, [77, 0], 8, false, None),
            case(77, [77, 0], 64, true, None),
            case(150, [150, 0], 33, true, None),
            case(66, [129, 1], 16, false, None),
            case(5, [3, 300], 7, false, None),
            case(131, [128, 131], 24, false, None),
            case(150, [70, 80], 33, true, None),
            case(140, [65, 75], 8, false, Some((32, 128))),
            case(1, [1, 0], 5, false, Some((32, 128))),
            case(300, [300, 0], 8, false, Some((32, 128))),
            case(129, [129, 0], 17, true, Some((8, 20))),
            case(65, [65, 0], 3, false, Some((4, 2))),
            case(97, [130, 0], 160, false, None),
            case(7, [40, 0], 512, false, None),
            case(98, [130, 5], 40, false, None),
            case(7, [33, 0], 24, true, None),
        ];
        let mut random = Random::new(21);
        for isa in Isa::available() {
            for Case { queries, spans, head_dim, causal, bias } in &cases {
                let (queries, head_dim, causal) = (*queries, *head_dim, *causal);
                let (heads, head) = (3, 1);
                let stride = heads * head_dim;
                let q = random.floats(queries * stride, 2.0);
                let pairs = spans.map(|keys| (random.floats(keys * stride, 2.0), random.floats(keys * stride, 1.0)));
                let table = bias.map_or(vec![], |(buckets, _)| random.floats(buckets * heads, 2.0));
                let bias = bias.map(|(count, max_distance)| {
                    let buckets = Buckets { count, max_distance };
                    Bias { buckets, table: &table, heads, head }
                });
                let on = head_of(head * head_dim, stride);
                let mut got = vec![-7.0f32; queries * (head_dim + 2)];
                got.chunks_exact_mut(head_dim + 2).for_each(|row| row[..head_dim].fill(f32::NAN));
                // Nothing behind the scratch is written.
                let mut scratch = vec![f32::NAN; scratch_floats(head_dim) + 64];
                scratch[scratch_floats(head_dim)..].fill(-7.0);
                for first in (0..queries).step_by(QUERIES) {
                    let range = first..queries.min(first + QUERIES);
                    let keys = [0, 1].map(|at| Keys { k: on(&pairs[at].0), v: on(&pairs[at].1), count: spans[at] });
                    // SAFETY: the vector has room for all rows.
                    unsafe {
                        let base = got.as_mut_ptr().add(first * (head_dim + 2));
                        let out = Out { base, stride: head_dim + 2, features: head_dim };
                        attend(isa, on(&q), &keys, head_dim, 0.3, range, causal, bias.as_ref(), &mut scratch, out);
                    }
                }
                assert!(scratch[scratch_floats(head_dim)..].iter().all(|&x| x == -7.0), "{isa:?} {head_dim}");
                let beside = got.chunks_exact(head_dim + 2).flat_map(|row| &row[head_dim..]);
                assert!(beside.into_iter().all(|&x| x == -7.0), "elements beside the head stay");
                let got: Vec<f32> = got.chunks_exact(head_dim + 2).flat_map(|row| row[..head_dim].to_vec()).collect();
                let (k, v) = ([&pairs[0].0[..], &pairs[1].0].concat(), [&pairs[0].1[..], &pairs[1].1].concat());
                let at = |of: &[f32], row: usize, d: usize| f64::from(of[row * stride + head * head_dim + d]);
                let mut want = Vec::new();
                for i in 0..queries {
                    let seen = if causal { i + 1 } else { spans[0] + spans[1] };
                    let score = |j: usize| -> f64 {
                        let product: f64 = (0..head_dim).map(|d| at(&q, i, d) * at(&k, j, d)).sum();
                        let add = bias.as_ref().map_or(0.0, |bias| {
                            f64::from(table[bucket(i as i64, j as i64, bias.buckets) * heads + head])
                        });
                        product * f64::from(0.3f32) + add
                    };
                    let scores: Vec<f64> = (0..seen).map(score).collect();
                    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                    for d in 0..head_dim {
                        let weighted = |(j, s): (usize, &f64)| (s - largest).exp() * at(&v, j, d);
                        want.push(scores.iter().enumerate().map(weighted).sum::<f64>() / sum);
                    }
                }
                assert_close(&got, &want, 1e-5, 1e-5, &format!("{isa:?} {queries} {spans:?} {head_dim} {causal}"));
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
                let keys = Keys { k: on(&k), v: on(&q), count: 1 };
                attend(isa, on(&q), &[keys], 8, 1.0, 0..1, false, None, &mut scratch, to);
            }
            assert!(out.iter().all(|x| x.is_nan()), "{isa:?}");
        }
    }
}
