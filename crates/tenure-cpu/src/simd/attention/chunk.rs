//! Attention over the positions of one chunk.

// Tiles of registers are walked by index, several arrays at once, with bounds known when compiling.
#![allow(clippy::needless_range_loop)]

use tenure_graph::{KV_BLOCK, KvType};

use crate::simd::attention::kv::{half_bytes, load_keys, load_values};
use crate::simd::attention::{CHUNK, KvView, MAX_QUERIES, Scoring, partial_floats};
use crate::simd::float::element::{Element, F16, F32};
use crate::simd::float::lanes::{Kernel, Lanes};

/// One query head of one row, and the positions it attends to.
#[derive(Clone, Copy)]
pub(super) struct Query {
    pub(super) q: *const f32,
    pub(super) from: usize,
    /// The first position not attended to.
    pub(super) to: usize,
}

impl Query {
    pub(super) const NONE: Query = Query { q: std::ptr::null(), from: 0, to: 0 };
}

/// Computes the partial results of a tile of queries for one chunk.
pub(super) struct Chunk<'a> {
    scoring: &'a Scoring,
    kv: &'a KvView<'a>,
    queries: &'a [Query],
    /// The chunk's first position.
    start: usize,
    /// `CHUNK` scores for each query, which become weights.
    scores: &'a mut [f32],
    /// A block of keys or values as `f32`.
    block: &'a mut [f32],
    partials: &'a mut [f32],
}

impl<'a> Chunk<'a> {
    pub(super) fn new(
        scoring: &'a Scoring,
        kv: &'a KvView<'a>,
        queries: &'a [Query],
        number: usize,
        scratch: &'a mut [f32],
        partials: &'a mut [f32],
    ) -> Self {
        let (scores, block) = scratch.split_at_mut(MAX_QUERIES * CHUNK);
        assert!(queries.len() <= MAX_QUERIES && block.len() >= KV_BLOCK * scoring.head_dim);
        assert!(partials.len() >= queries.len() * partial_floats(scoring.head_dim));
        Chunk { scoring, kv, queries, start: number * CHUNK, scores, block, partials }
    }
}

/// Queries computed side by side at most. With two vectors each there are as many sums as the multiply-adds under way.
const SIDE: usize = 6;

impl Kernel for Chunk<'_> {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let head_dim = self.scoring.head_dim;
        let end = self.start + CHUNK;
        let mut queries = [Query::NONE; MAX_QUERIES];
        let queries = &mut queries[..self.queries.len()];
        let (mut from, mut to) = (end, self.start);
        for (i, (query, whole)) in queries.iter_mut().zip(self.queries).enumerate() {
            *query = Query { q: whole.q, from: whole.from.max(self.start), to: whole.to.min(end) };
            if query.from < query.to {
                (from, to) = (from.min(query.from), to.max(query.to));
            } else {
                (query.from, query.to) = (end, end);
            }
            let partial = &mut self.partials[i * partial_floats(head_dim)..][..partial_floats(head_dim)];
            partial.fill(0.0);
            partial[head_dim] = f32::NEG_INFINITY;
        }
        if from >= to {
            return;
        }
        let work = Work {
            scoring: *self.scoring,
            kv: *self.kv,
            queries,
            start: self.start,
            blocks: from / KV_BLOCK..to.div_ceil(KV_BLOCK),
            scores: self.scores.as_mut_ptr(),
            block: self.block.as_mut_ptr(),
            partials: self.partials.as_mut_ptr(),
        };
        // SAFETY: the lengths are checked above and by `new`; the callers vouch for the cache and the instruction set.
        unsafe {
            work.scores::<V>();
            for i in 0..work.queries.len() {
                work.weights::<V>(i);
            }
            work.values::<V>();
        }
    }
}

/// How a block's elements are read.
#[derive(Clone, Copy)]
enum Reading {
    /// As `f32`, where they are.
    F32,
    /// As `f16`, where they are.
    F16,
    /// As `f32`, after the block was converted: that pays from some number of queries on.
    Converted,
}

struct Work<'a> {
    scoring: Scoring,
    kv: KvView<'a>,
    /// Clipped to the chunk; `from` and `to` at its end when nothing is left.
    queries: &'a [Query],
    start: usize,
    /// Blocks that any of the queries attends to.
    blocks: std::ops::Range<usize>,
    scores: *mut f32,
    block: *mut f32,
    partials: *mut f32,
}

/// Some queries, by number.
#[derive(Clone, Copy)]
struct Side {
    queries: [usize; SIDE],
    count: usize,
}

impl Work<'_> {
    /// # Safety
    /// `block` is a block of the sequence.
    #[inline(always)]
    unsafe fn keys(&self, block: usize) -> *const u8 {
        self.kv.base.wrapping_add(self.kv.blocks[block] as usize * self.kv.stride)
    }

    /// # Safety
    /// As for [`Work::keys`].
    #[inline(always)]
    unsafe fn values_at(&self, block: usize) -> *const u8 {
        // SAFETY: the caller's contract.
        unsafe { self.keys(block) }.wrapping_add(half_bytes(self.kv.kv, self.scoring.head_dim))
    }

    /// The query's score, then weight, of the position.
    ///
    /// # Safety
    /// Both lie inside the chunk.
    #[inline(always)]
    unsafe fn score(&self, query: usize, position: usize) -> *mut f32 {
        // SAFETY: the caller's contract.
        unsafe { self.scores.add(query * CHUNK + position - self.start) }
    }

    #[inline(always)]
    fn attends(&self, query: usize, block: usize) -> bool {
        let query = &self.queries[query];
        query.from < (block + 1) * KV_BLOCK && query.to > block * KV_BLOCK
    }

    #[inline(always)]
    fn reading(&self, block: usize) -> Reading {
        let many = || (0..self.queries.len()).filter(|&query| self.attends(query, block)).nth(SIDE).is_some();
        match self.kv.kv {
            KvType::F32 => Reading::F32,
            KvType::F16 if !many() => Reading::F16,
            KvType::F16 | KvType::Q8_0 => Reading::Converted,
        }
    }

    /// The next queries, from number `next` on, that attend to the block.
    #[inline(always)]
    fn side_by_side(&self, block: usize, next: &mut usize, at_most: usize) -> Side {
        let mut side = Side { queries: [0; SIDE], count: 0 };
        while *next < self.queries.len() && side.count < at_most {
            if self.attends(*next, block) {
                side.queries[side.count] = *next;
                side.count += 1;
            }
            *next += 1;
        }
        side
    }

    /// Products of all queries with the keys of all blocks that they attend to any position of.
    ///
    /// # Safety
    /// The work is as `Chunk` makes it, and the processor has the instruction set of `V`.
    #[inline(always)]
    unsafe fn scores<V: Lanes>(&self) {
        for block in self.blocks.clone() {
            let reading = self.reading(block);
            // SAFETY: the block is one of the sequence's; the numbers are those of queries.
            unsafe {
                let keys = self.keys(block);
                if let Reading::Converted = reading {
                    load_keys::<V>(self.kv.kv, keys, self.scoring.head_dim, self.block);
                }
                // While this block is computed the next one is fetched; after the last keys, the first values.
                let next_block =
                    if block + 1 < self.blocks.end { self.keys(block + 1) } else { self.values_at(self.blocks.start) };
                let mut next = 0;
                loop {
                    let side = self.side_by_side(block, &mut next, SIDE);
                    match reading {
                        Reading::F16 => self.scores_of_side::<V, F16>(side, keys, block, next_block),
                        Reading::F32 | Reading::Converted => {
                            let keys = if let Reading::F32 = reading { keys } else { self.block.cast::<u8>() };
                            self.scores_of_side::<V, F32>(side, keys, block, next_block);
                        }
                    }
                    if side.count < SIDE {
                        break;
                    }
                }
            }
        }
    }

    /// # Safety
    /// As for [`Work::scores`].
    #[inline(always)]
    unsafe fn scores_of_side<V: Lanes, E: Element>(&self, side: Side, keys: *const u8, block: usize, next: *const u8) {
        // SAFETY: the caller's contract.
        unsafe {
            match side.count {
                1 => self.scores_of_count::<V, E, 1>(side, keys, block, next),
                2 => self.scores_of_count::<V, E, 2>(side, keys, block, next),
                3 => self.scores_of_count::<V, E, 3>(side, keys, block, next),
                4 => self.scores_of_count::<V, E, 4>(side, keys, block, next),
                5 => self.scores_of_count::<V, E, 5>(side, keys, block, next),
                6 => self.scores_of_count::<V, E, 6>(side, keys, block, next),
                _ => {}
            }
        }
    }

    /// # Safety
    /// As for [`Work::scores`].
    #[inline(always)]
    unsafe fn scores_of_count<V: Lanes, E: Element, const Q: usize>(
        &self,
        side: Side,
        keys: *const u8,
        block: usize,
        next: *const u8,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            if V::WIDE || Q > 2 {
                self.scores_of::<V, E, Q, 2>(side, keys, block, next);
            } else {
                self.scores_of::<V, E, Q, 4>(side, keys, block, next);
            }
        }
    }

    /// `Q` queries, `P` vectors of positions at a time.
    ///
    /// # Safety
    /// As for [`Work::scores`].
    #[inline(always)]
    unsafe fn scores_of<V: Lanes, E: Element, const Q: usize, const P: usize>(
        &self,
        side: Side,
        keys: *const u8,
        block: usize,
        next: *const u8,
    ) {
        let head_dim = self.scoring.head_dim;
        let mut q = [std::ptr::null(); Q];
        for i in 0..Q {
            q[i] = self.queries[side.queries[i]].q;
        }
        let mut at = 0;
        while at < KV_BLOCK {
            // SAFETY: `P * V::N` divides `KV_BLOCK`; a query has `head_dim` elements; prefetches may point anywhere.
            unsafe {
                let mut sums = [[V::splat(0.0); P]; Q];
                for d in 0..head_dim {
                    let mut k = [V::splat(0.0); P];
                    for p in 0..P {
                        k[p] = E::load(keys.add((d * KV_BLOCK + at + p * V::N) * E::BYTES));
                    }
                    for i in 0..Q {
                        let x = V::splat(*q[i].add(d));
                        for p in 0..P {
                            sums[i][p] = k[p].fma(x, sums[i][p]);
                        }
                    }
                    prefetch_evenly::<V, E>(next, at * head_dim + d * P * V::N);
                }
                for i in 0..Q {
                    let scores = self.score(side.queries[i], block * KV_BLOCK + at);
                    for p in 0..P {
                        sums[i][p].store(scores.add(p * V::N));
                    }
                }
            }
            at += P * V::N;
        }
    }

    /// Turns a query's products into scores and those into weights; notes their sum and the largest score.
    ///
    /// # Safety
    /// As for [`Work::scores`], which was called before.
    #[inline(always)]
    unsafe fn weights<V: Lanes>(&self, number: usize) {
        let query = &self.queries[number];
        if query.from >= query.to {
            return;
        }
        let first = query.from / KV_BLOCK * KV_BLOCK;
        let count = query.to.next_multiple_of(KV_BLOCK) - first;
        // SAFETY: the scores of these blocks were stored; two vectors divide a block.
        unsafe {
            let scores = self.score(number, first);
            let scale = V::splat(self.scoring.scale);
            let mut i = 0;
            while i < count {
                V::load(scores.add(i)).mul(scale).store(scores.add(i));
                i += V::N;
            }
            if let Some(cap) = self.scoring.softcap {
                let cap = V::splat(cap);
                let mut i = 0;
                while i < count {
                    V::load(scores.add(i)).div(cap).tanh().mul(cap).store(scores.add(i));
                    i += V::N;
                }
            }
            // Whatever lies in blocks beyond what the query attends to has no weight.
            for position in (first..query.from).chain(query.to..first + count) {
                *self.score(number, position) = f32::NEG_INFINITY;
            }
            let mut largest = [V::splat(f32::NEG_INFINITY); 2];
            let mut i = 0;
            while i < count {
                largest[0] = largest[0].max(V::load(scores.add(i)));
                largest[1] = largest[1].max(V::load(scores.add(i + V::N)));
                i += 2 * V::N;
            }
            let largest = largest[0].max(largest[1]).largest();
            // Scores of negative infinity alone: all weights are 0 (or NaN), whatever is subtracted.
            let base = V::splat(if largest == f32::NEG_INFINITY { 0.0 } else { largest });
            let mut sum = V::splat(0.0);
            let mut i = 0;
            while i < count {
                let weight = V::load(scores.add(i)).sub(base).exp_of_negative();
                weight.store(scores.add(i));
                sum = sum.add(weight);
                i += V::N;
            }
            let head_dim = self.scoring.head_dim;
            let partial = self.partials.add(number * partial_floats(head_dim));
            *partial.add(head_dim) = largest;
            *partial.add(head_dim + 1) = sum.sum();
        }
    }

    /// Adds up the weighted values.
    ///
    /// # Safety
    /// As for [`Work::weights`], which was called before.
    #[inline(always)]
    unsafe fn values<V: Lanes>(&self) {
        for block in self.blocks.clone() {
            let reading = self.reading(block);
            // SAFETY: the block is one of the sequence's; the numbers are those of queries.
            unsafe {
                let values = self.values_at(block);
                if let Reading::Converted = reading {
                    load_values::<V>(self.kv.kv, values, self.scoring.head_dim, self.block);
                }
                let next_block = self.values_at((block + 1).min(self.blocks.end - 1));
                let mut next = 0;
                loop {
                    let side = self.side_by_side(block, &mut next, SIDE);
                    match reading {
                        Reading::F16 => self.values_of_side::<V, F16>(side, values, block, next_block),
                        Reading::F32 | Reading::Converted => {
                            let values = if let Reading::F32 = reading { values } else { self.block.cast::<u8>() };
                            self.values_of_side::<V, F32>(side, values, block, next_block);
                        }
                    }
                    if side.count < SIDE {
                        break;
                    }
                }
            }
        }
    }

    /// The positions that all of them attend to are done together; what comes before and behind, one by one.
    ///
    /// # Safety
    /// As for [`Work::values`].
    #[inline(always)]
    unsafe fn values_of_side<V: Lanes, E: Element>(
        &self,
        side: Side,
        values: *const u8,
        block: usize,
        next: *const u8,
    ) {
        let (first, end) = (block * KV_BLOCK, (block + 1) * KV_BLOCK);
        let (mut from, mut to) = (first, end);
        for &query in &side.queries[..side.count] {
            from = from.max(self.queries[query].from);
            to = to.min(self.queries[query].to);
        }
        if from > to {
            (from, to) = (end, end);
        }
        // First what lies before the common positions, then those, then what lies behind.
        for turn in 0..2 * side.count + 1 {
            let (who, range) = if turn == side.count {
                (side, from..to)
            } else {
                let query = side.queries[if turn < side.count { turn } else { turn - side.count - 1 }];
                let own = self.queries[query];
                let own_range = if turn < side.count {
                    own.from.max(first)..from.min(own.to)
                } else {
                    to.max(own.from)..own.to.min(end)
                };
                (Side { queries: [query; SIDE], count: 1 }, own_range)
            };
            if range.is_empty() {
                continue;
            }
            // SAFETY: the range lies inside the block and inside what each of the queries attends to.
            unsafe {
                match who.count {
                    1 => self.values_of_range::<V, E, 1>(who, values, range, next),
                    2 => self.values_of_range::<V, E, 2>(who, values, range, next),
                    3 => self.values_of_range::<V, E, 3>(who, values, range, next),
                    4 => self.values_of_range::<V, E, 4>(who, values, range, next),
                    5 => self.values_of_range::<V, E, 5>(who, values, range, next),
                    6 => self.values_of_range::<V, E, 6>(who, values, range, next),
                    _ => {}
                }
            }
        }
    }

    /// # Safety
    /// As for [`Work::values`]; all `Q` queries attend to the range, which lies inside one block.
    #[inline(always)]
    unsafe fn values_of_range<V: Lanes, E: Element, const Q: usize>(
        &self,
        side: Side,
        values: *const u8,
        positions: std::ops::Range<usize>,
        next: *const u8,
    ) {
        let head_dim = self.scoring.head_dim;
        // SAFETY: the groups of vectors lie inside a row, whose length `V::N` divides.
        unsafe {
            let mut dim = 0;
            if Q > 2 || V::WIDE {
                while dim + 2 * V::N <= head_dim {
                    self.values_of::<V, E, Q, 2>(side, values, positions.clone(), dim, next);
                    dim += 2 * V::N;
                }
            } else {
                while dim + 4 * V::N <= head_dim {
                    self.values_of::<V, E, Q, 4>(side, values, positions.clone(), dim, next);
                    dim += 4 * V::N;
                }
            }
            while dim < head_dim {
                self.values_of::<V, E, Q, 1>(side, values, positions.clone(), dim, next);
                dim += V::N;
            }
        }
    }

    /// # Safety
    /// As for [`Work::values_of_range`]; `dim + P * V::N <= head_dim`.
    #[inline(always)]
    unsafe fn values_of<V: Lanes, E: Element, const Q: usize, const P: usize>(
        &self,
        side: Side,
        values: *const u8,
        positions: std::ops::Range<usize>,
        dim: usize,
        next: *const u8,
    ) {
        let head_dim = self.scoring.head_dim;
        // SAFETY: the caller's contract; prefetches may point anywhere.
        unsafe {
            let mut results = [std::ptr::null_mut::<f32>(); Q];
            let mut weights = [std::ptr::null::<f32>(); Q];
            let mut sums = [[V::splat(0.0); P]; Q];
            for i in 0..Q {
                results[i] = self.partials.add(side.queries[i] * partial_floats(head_dim) + dim);
                weights[i] = self.score(side.queries[i], positions.start);
                for p in 0..P {
                    sums[i][p] = V::load(results[i].add(p * V::N));
                }
            }
            let slot = positions.start % KV_BLOCK;
            for n in 0..positions.len() {
                let at = (slot + n) * head_dim + dim;
                let mut v = [V::splat(0.0); P];
                for p in 0..P {
                    v[p] = E::load(values.add((at + p * V::N) * E::BYTES));
                }
                for i in 0..Q {
                    let x = V::splat(*weights[i].add(n));
                    for p in 0..P {
                        sums[i][p] = v[p].fma(x, sums[i][p]);
                    }
                }
                prefetch_evenly::<V, E>(next, dim * KV_BLOCK + (slot + n) * P * V::N);
            }
            for i in 0..Q {
                for p in 0..P {
                    sums[i][p].store(results[i].add(p * V::N));
                }
            }
        }
    }
}

/// Fetches a line of the next block when `done`, the elements of this one done so far, reach it: evenly, for more at
/// once than the processor has under way would stall it.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn prefetch_evenly<V: Lanes, E: Element>(next: *const u8, done: usize) {
    const LINE: usize = 64;
    if done.is_multiple_of(LINE / 2) {
        // SAFETY: a prefetch may point anywhere.
        unsafe {
            V::prefetch(next.wrapping_add(done * E::BYTES));
            if E::BYTES == 4 {
                V::prefetch(next.wrapping_add(done * E::BYTES + LINE));
            }
        }
    }
}
