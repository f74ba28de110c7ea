//! Causal attention over a KV cache in blocks.
//!
//! The order of all sums is fixed by absolute positions. Positions are taken in chunks of [`CHUNK`], aligned at
//! multiples of it. Within a chunk: every score is a sum over the head's dimensions in order; their maximum; the sum
//! of the exponentials, lane by lane of the position; and the weighted values, position after position. The chunks'
//! partial results are joined in order of position. Whether one call does all of it ([`attention`]) or several
//! threads take chunks ([`attention_chunk`], then [`merge`]), and whichever queries are computed together, the result
//! is the same, bit for bit.

mod chunk;
mod kv;
mod merge;
#[cfg(test)]
mod tests;

use tenure_graph::KvType;

use crate::simd::Isa;
use crate::simd::attention::chunk::{Chunk, Query};
use crate::simd::attention::merge::{Finish, Join};
use crate::simd::float::lanes::dispatch_narrow;

pub use kv::{block_bytes, store};
pub use merge::{merge, partial_floats};

/// Positions whose scores are normalised together.
pub const CHUNK: usize = 512;
/// Queries computed together at most; a call may have more.
pub const MAX_QUERIES: usize = 48;

/// What scores are made of.
#[derive(Clone, Copy, Debug)]
pub struct Scoring {
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Factor on the products.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Only the last so many positions, the row's own included.
    pub window: Option<usize>,
}

/// The cache of one sequence, layer and KV head: its blocks lie anywhere in a pool.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    /// This head's part of the pool's block 0.
    pub base: *const u8,
    /// Bytes from one block of the pool to the next.
    pub stride: usize,
    /// The sequence's blocks, in order of position.
    pub blocks: &'a [u32],
    /// Element type.
    pub kv: KvType,
}

/// Query heads that share one KV head, of one or several rows of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// From the first row's first head of the group to the last row's last.
    pub q: &'a [f32],
    /// Floats from one row to the next.
    pub stride: usize,
    /// Heads of a row, one behind the other.
    pub group: usize,
    /// Each row's position; it attends to itself and to what lies before.
    pub positions: &'a [u32],
}

/// Where results go: a row's heads one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct HeadsOut {
    /// The first row's first head of the group.
    pub base: *mut f32,
    /// Floats from one row to the next.
    pub stride: usize,
}

/// Floats of scratch that a call needs.
pub const fn scratch_floats(head_dim: usize) -> usize {
    // Scores, partial results of a chunk, joined results, and a block of keys or values.
    MAX_QUERIES * (CHUNK + 2 * partial_floats(head_dim)) + tenure_graph::KV_BLOCK * head_dim
}

/// The chunks a row at `position` attends to.
pub fn chunks(scoring: &Scoring, position: u32) -> std::ops::Range<usize> {
    let (from, to) = attended(scoring, position);
    from / CHUNK..to.div_ceil(CHUNK)
}

/// Attention of all queries: softmax of the scores, times the values.
///
/// # Safety
/// Every block that holds a position attended to lies inside the pool and is initialised, whatever it holds beyond
/// those positions, and nobody writes to it meanwhile. `out` is valid for all rows, and nobody else touches those heads
/// meanwhile.
pub unsafe fn attention(
    isa: Isa,
    scoring: &Scoring,
    kv: &KvView<'_>,
    queries: &Queries<'_>,
    scratch: &mut [f32],
    out: HeadsOut,
) {
    queries.check(scoring, kv);
    let head_dim = scoring.head_dim;
    let (joined, scratch) = scratch.split_at_mut(MAX_QUERIES * partial_floats(head_dim));
    let (partials, scratch) = scratch.split_at_mut(MAX_QUERIES * partial_floats(head_dim));
    for first in (0..queries.count()).step_by(MAX_QUERIES) {
        let mut tile = [Query::NONE; MAX_QUERIES];
        let tile = queries.tile(scoring, first, &mut tile);
        let from = tile.iter().map(|query| query.from).min().unwrap_or(0);
        let to = tile.iter().map(|query| query.to).max().unwrap_or(0);
        let chunks = from / CHUNK..to.div_ceil(CHUNK);
        for number in chunks.clone() {
            let is_first = number == chunks.start;
            let target = if is_first { &mut *joined } else { &mut *partials };
            let chunk = Chunk::new(scoring, kv, tile, number, scratch, target);
            dispatch_narrow(isa, lanes(head_dim), chunk);
            if !is_first {
                for i in 0..tile.len() {
                    let at = i * partial_floats(head_dim);
                    let join = Join { head_dim, into: &mut joined[at..], partial: &partials[at..] };
                    dispatch_narrow(isa, lanes(head_dim), join);
                }
            }
        }
        for i in 0..tile.len() {
            let (row, head) = ((first + i) / queries.group, (first + i) % queries.group);
            // SAFETY: the caller vouches for `out`, of which this is one head.
            let out =
                unsafe { std::slice::from_raw_parts_mut(out.base.add(row * out.stride + head * head_dim), head_dim) };
            let joined = &joined[i * partial_floats(head_dim)..];
            dispatch_narrow(isa, lanes(head_dim), Finish { head_dim, joined, out });
        }
    }
}

/// One chunk's partial results of all queries: `partials` holds [`partial_floats`] for each, row after row.
///
/// # Safety
/// As for [`attention`], for the positions of this chunk.
pub unsafe fn attention_chunk(
    isa: Isa,
    scoring: &Scoring,
    kv: &KvView<'_>,
    queries: &Queries<'_>,
    number: usize,
    scratch: &mut [f32],
    partials: &mut [f32],
) {
    queries.check(scoring, kv);
    let partial = partial_floats(scoring.head_dim);
    assert_eq!(partials.len(), queries.count() * partial);
    for (tile_number, partials) in partials.chunks_mut(MAX_QUERIES * partial).enumerate() {
        let mut tile = [Query::NONE; MAX_QUERIES];
        let tile = queries.tile(scoring, tile_number * MAX_QUERIES, &mut tile);
        let chunk = Chunk::new(scoring, kv, tile, number, scratch, partials);
        dispatch_narrow(isa, lanes(scoring.head_dim), chunk);
    }
}

impl Queries<'_> {
    fn count(&self) -> usize {
        self.group * self.positions.len()
    }

    fn check(&self, scoring: &Scoring, kv: &KvView<'_>) {
        let rows = self.positions.len();
        assert!(self.group > 0 && block_bytes(kv.kv, scoring.head_dim).is_some());
        assert!(rows == 0 || self.q.len() >= (rows - 1) * self.stride + self.group * scoring.head_dim);
        let blocks = kv.blocks.len() * tenure_graph::KV_BLOCK;
        assert!(self.positions.iter().all(|&position| (position as usize) < blocks));
    }

    /// The queries from number `first` on, as many as fit.
    fn tile<'t>(&self, scoring: &Scoring, first: usize, tile: &'t mut [Query; MAX_QUERIES]) -> &'t [Query] {
        let count = self.count().saturating_sub(first).min(MAX_QUERIES);
        for (i, query) in tile[..count].iter_mut().enumerate() {
            let (row, head) = ((first + i) / self.group, (first + i) % self.group);
            let (from, to) = attended(scoring, self.positions[row]);
            let q = self.q[row * self.stride + head * scoring.head_dim..].as_ptr();
            *query = Query { q, from, to };
        }
        &tile[..count]
    }
}

/// The positions a row attends to: from the first to before the second.
fn attended(scoring: &Scoring, position: u32) -> (usize, usize) {
    let to = position as usize + 1;
    (scoring.window.map_or(0, |window| to.saturating_sub(window)), to)
}

/// Lanes that divide a head evenly.
const fn lanes(head_dim: usize) -> usize {
    if head_dim.is_multiple_of(16) {
        16
    } else if head_dim.is_multiple_of(8) {
        8
    } else {
        1
    }
}
