//! Joining the partial results of chunks.
//!
//! A partial result is the weighted sum of values, the largest score, and the sum of the weights `e^(score - largest)`.

use crate::simd::Isa;
use crate::simd::attention::lanes;
use crate::simd::float::lanes::{Kernel, Lanes, dispatch_narrow};

/// Floats of one query's partial result of a chunk.
pub const fn partial_floats(head_dim: usize) -> usize {
    (head_dim + 2).next_multiple_of(16)
}

/// Joins one query's partial results, of which there are `count` at multiples of `stride` floats, in order of
/// position, and writes the query's result.
pub fn merge(isa: Isa, head_dim: usize, partials: &[f32], stride: usize, count: usize, out: &mut [f32]) {
    assert!(count > 0 && out.len() == head_dim);
    dispatch_narrow(isa, lanes(head_dim), Merge { head_dim, partials, stride, count, out });
}

struct Merge<'a> {
    head_dim: usize,
    partials: &'a [f32],
    stride: usize,
    count: usize,
    out: &'a mut [f32],
}

impl Kernel for Merge<'_> {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Merge { head_dim, partials, stride, count, out } = self;
        // What is joined next to what must be as in `attention`: the first partial result is the start.
        let mut weights = Weights::of(head_dim, partials);
        out.copy_from_slice(&partials[..head_dim]);
        for number in 1..count {
            let partial = &partials[number * stride..];
            let next = Weights::of(head_dim, partial);
            // SAFETY: the lengths are checked by the slices; the caller vouches for the instruction set.
            unsafe { weights.join::<V>(next, out, &partial[..head_dim]) };
        }
        // SAFETY: as above.
        unsafe { weights.finish::<V>(out) };
    }
}

/// Joins one more partial result into another.
pub(super) struct Join<'a> {
    pub(super) head_dim: usize,
    pub(super) into: &'a mut [f32],
    pub(super) partial: &'a [f32],
}

impl Kernel for Join<'_> {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Join { head_dim, into, partial } = self;
        let mut weights = Weights::of(head_dim, into);
        let next = Weights::of(head_dim, partial);
        // SAFETY: the lengths are checked by the slices; the caller vouches for the instruction set.
        unsafe { weights.join::<V>(next, &mut into[..head_dim], &partial[..head_dim]) };
        into[head_dim] = weights.largest;
        into[head_dim + 1] = weights.sum;
    }
}

/// Writes the result behind a joined partial result.
pub(super) struct Finish<'a> {
    pub(super) head_dim: usize,
    pub(super) joined: &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl Kernel for Finish<'_> {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        self.out.copy_from_slice(&self.joined[..self.head_dim]);
        // SAFETY: the caller vouches for the instruction set.
        unsafe { Weights::of(self.head_dim, self.joined).finish::<V>(self.out) };
    }
}

/// What stands behind the weighted values of a partial result.
#[derive(Clone, Copy)]
struct Weights {
    largest: f32,
    sum: f32,
}

impl Weights {
    #[inline(always)]
    fn of(head_dim: usize, partial: &[f32]) -> Weights {
        Weights { largest: partial[head_dim], sum: partial[head_dim + 1] }
    }

    /// No position took part.
    #[inline(always)]
    fn is_empty(self) -> bool {
        self.largest == f32::NEG_INFINITY && self.sum == 0.0
    }

    /// # Safety
    /// The processor has the instruction set of `V`, whose size divides the rows' length.
    #[inline(always)]
    unsafe fn join<V: Lanes>(&mut self, next: Weights, values: &mut [f32], next_values: &[f32]) {
        if next.is_empty() {
            return;
        }
        if self.is_empty() {
            values.copy_from_slice(next_values);
            *self = next;
            return;
        }
        let largest = if self.largest > next.largest { self.largest } else { next.largest };
        // SAFETY: all accesses lie inside runs of `N` elements; the caller vouches for the instruction set.
        unsafe {
            let before = V::splat(self.largest - largest).exp_of_negative();
            let after = V::splat(next.largest - largest).exp_of_negative();
            let sum = V::splat(next.sum).fma(after, V::splat(self.sum).mul(before));
            *self = Weights { largest, sum: sum.largest() };
            for (values, next) in values.chunks_exact_mut(V::N).zip(next_values.chunks_exact(V::N)) {
                let old = V::load(values.as_ptr()).mul(before);
                V::load(next.as_ptr()).fma(after, old).store(values.as_mut_ptr());
            }
        }
    }

    /// # Safety
    /// As for [`Weights::join`].
    #[inline(always)]
    unsafe fn finish<V: Lanes>(self, values: &mut [f32]) {
        if self.is_empty() {
            values.fill(0.0);
            return;
        }
        for values in values.chunks_exact_mut(V::N) {
            // SAFETY: a run has `N` elements; the caller vouches for the instruction set.
            unsafe { V::load(values.as_ptr()).div(V::splat(self.sum)).store(values.as_mut_ptr()) };
        }
    }
}
