//! Blocks of the KV cache, and attention over them.
//!
//! A block holds one head's keys and values of 32 positions: keys transposed (`[head_dim][32]`, so that vector lanes
//! are positions), values as they come (`[32][head_dim]`). 8-bit blocks have one scale per position and 32 elements.
//!
//! Attention goes over the positions in chunks of [`CHUNK`], aligned at multiples of it: scores, their largest, their
//! exponentials and sum, the weighted sum of values; chunks are joined in order of position by [`Partial::join`]
//! (Dao et al. 2022, arXiv:2205.14135). A query's result depends on its own positions only, not on what is computed
//! beside it.

use half::f16;
use tenure_graph::{KV_BLOCK, KvType};

use crate::simd::Isa;
use crate::simd::elementwise::{exp, exp_sum, for_isa, fused};
use crate::simd::rows::half_to_f32;

/// Positions whose scores are kept at a time.
pub const CHUNK: usize = 512;
/// Queries computed together.
pub const QUERIES: usize = 4;
/// Elements of a head that share one scale in 8-bit blocks.
const SCALE_GROUP: usize = 32;

/// Bytes of one head's block, keys and values, if the type suits the head's size.
pub fn block_bytes(kv: KvType, head_dim: usize) -> Option<usize> {
    half_bytes(kv, head_dim)?.checked_mul(2)
}

/// Bytes of the keys (or of the values) of a block.
fn half_bytes(kv: KvType, head_dim: usize) -> Option<usize> {
    let elements = head_dim.checked_mul(KV_BLOCK)?;
    match kv {
        KvType::F32 => elements.checked_mul(4),
        KvType::F16 => elements.checked_mul(2),
        KvType::Q8_0 if head_dim.is_multiple_of(SCALE_GROUP) => elements.checked_add(elements / SCALE_GROUP * 2),
        KvType::Q8_0 => None,
    }
}

/// Writes one position's key and value into a block.
///
/// # Safety
/// `block` is valid for [`block_bytes`], aligned to 4 bytes, and nobody else writes this position or reads the block
/// meanwhile; other positions may be written at the same time.
pub unsafe fn write(kv: KvType, block: *mut u8, position: usize, k: &[f32], v: &[f32]) {
    let dim = k.len();
    assert!(position < KV_BLOCK && v.len() == dim);
    let Some(half) = half_bytes(kv, dim) else { return };
    // SAFETY (all of the function): every offset below lies inside the block; see `half_bytes`.
    unsafe {
        let values = block.add(half);
        match kv {
            KvType::F32 => {
                let (keys, values) = (block.cast::<f32>(), values.cast::<f32>());
                for d in 0..dim {
                    *keys.add(d * KV_BLOCK + position) = k[d];
                    *values.add(position * dim + d) = v[d];
                }
            }
            KvType::F16 => {
                let (keys, values) = (block.cast::<f16>(), values.cast::<f16>());
                for d in 0..dim {
                    *keys.add(d * KV_BLOCK + position) = f16::from_f32(k[d]);
                    *values.add(position * dim + d) = f16::from_f32(v[d]);
                }
            }
            KvType::Q8_0 => {
                let elements = dim * KV_BLOCK;
                let scales = |base: *mut u8, group: usize| base.add(elements).cast::<f16>().add(group * KV_BLOCK);
                for group in 0..dim / SCALE_GROUP {
                    let range = group * SCALE_GROUP..(group + 1) * SCALE_GROUP;
                    let (scale, inverse) = scale_of(&k[range.clone()]);
                    *scales(block, group).add(position) = scale;
                    for d in range.clone() {
                        *block.cast::<i8>().add(d * KV_BLOCK + position) = (k[d] * inverse).round() as i8;
                    }
                    let (scale, inverse) = scale_of(&v[range.clone()]);
                    *scales(values, group).add(position) = scale;
                    for d in range {
                        *values.cast::<i8>().add(position * dim + d) = (v[d] * inverse).round() as i8;
                    }
                }
            }
        }
    }
}

/// The scale of 8-bit quantisation (Q8_0: largest magnitude over 127) and its inverse.
fn scale_of(x: &[f32]) -> (f16, f32) {
    let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let scale = largest / 127.0;
    (f16::from_f32(scale), if scale > 0.0 { 1.0 / scale } else { 0.0 })
}

/// One head's blocks of a sequence.
#[derive(Clone, Copy)]
pub struct Blocks<'t> {
    /// Element type.
    pub kv: KvType,
    /// Elements of a head.
    pub head_dim: usize,
    /// Block 0 of this head.
    pub base: *const u8,
    /// Bytes from one block to the next.
    pub stride: usize,
    /// The blocks of the sequence, in order of position.
    pub table: &'t [u32],
}

/// What a group of queries that share a head is to see.
#[derive(Clone, Copy)]
pub struct Query<'q> {
    /// `[head_dim]`.
    pub q: &'q [f32],
    /// The first position seen.
    pub from: usize,
    /// One past the last position seen.
    pub to: usize,
}

/// How scores are made.
#[derive(Clone, Copy)]
pub struct Scores {
    /// Factor on the products.
    pub scale: f32,
    /// Bound of the scores.
    pub softcap: Option<f32>,
}

/// Attention over some positions: the largest score, the sum of exponentials, and the sum of values weighted by them.
pub struct Partial<'p> {
    /// Largest score; -inf where nothing is seen.
    pub peak: &'p mut f32,
    /// Sum of `exp(score - peak)`.
    pub sum: &'p mut f32,
    /// `[head_dim]`.
    pub values: &'p mut [f32],
}

impl<'p> Partial<'p> {
    /// Floats of a partial.
    pub const fn floats(head_dim: usize) -> usize {
        head_dim + 2
    }

    /// A partial in `floats`.
    pub fn within(floats: &'p mut [f32]) -> Self {
        match floats {
            [peak, sum, values @ ..] => Partial { peak, sum, values },
            _ => panic!("a partial needs room for peak and sum"),
        }
    }

    /// Nothing seen yet.
    pub fn clear(&mut self) {
        (*self.peak, *self.sum) = (f32::NEG_INFINITY, 0.0);
        self.values.fill(0.0);
    }

    /// Adds the positions of `later`.
    pub fn join(&mut self, later: &Partial<'_>) {
        if *later.sum == 0.0 {
            return;
        }
        let peak = self.peak.max(*later.peak);
        let (mine, theirs) = (exp::<false>(*self.peak - peak), exp::<false>(*later.peak - peak));
        *self.sum = *self.sum * mine + *later.sum * theirs;
        for (a, &b) in self.values.iter_mut().zip(&*later.values) {
            *a = *a * mine + b * theirs;
        }
        *self.peak = peak;
    }

    /// The result of attention.
    pub fn finish(&self, out: &mut [f32]) {
        let scale = 1.0 / *self.sum;
        for (out, &value) in out.iter_mut().zip(&*self.values) {
            *out = value * scale;
        }
    }
}

/// Floats that [`chunk`] and [`attend`] need as scratch.
pub const fn scratch_floats(head_dim: usize) -> usize {
    QUERIES * (CHUNK + 2 * Partial::floats(head_dim)) + KV_BLOCK * head_dim
}

/// Attention of up to [`QUERIES`] queries over the positions of chunk `index` that each sees; `partials` receives
/// [`Partial::floats`] floats for each.
///
/// # Safety
/// The blocks are valid for reads, and nobody writes them meanwhile.
pub unsafe fn chunk(
    isa: Isa,
    blocks: &Blocks<'_>,
    index: usize,
    queries: &[Query<'_>],
    scores: Scores,
    partials: &mut [f32],
    scratch: &mut [f32],
) {
    assert!(queries.len() <= QUERIES && scratch.len() >= scratch_floats(blocks.head_dim));
    assert!(partials.len() == queries.len() * Partial::floats(blocks.head_dim));
    for_isa!(isa, chunk_body(isa: Isa, blocks: &Blocks<'_>, index: usize, queries: &[Query<'_>], scores: Scores, partials: &mut [f32], scratch: &mut [f32]));
}

/// Attention of up to [`QUERIES`] queries over all they see; `out` receives `head_dim` floats for each.
///
/// # Safety
/// As for [`chunk`].
pub unsafe fn attend(
    isa: Isa,
    blocks: &Blocks<'_>,
    queries: &[Query<'_>],
    scores: Scores,
    scratch: &mut [f32],
    mut out: impl FnMut(usize, &Partial<'_>),
) {
    let floats = Partial::floats(blocks.head_dim);
    let (scratch, both) = scratch.split_at_mut(scratch_floats(blocks.head_dim));
    let (joined, parts) = both[..2 * queries.len() * floats].split_at_mut(queries.len() * floats);
    joined.chunks_exact_mut(floats).for_each(|floats| Partial::within(floats).clear());
    let from = queries.iter().map(|query| query.from).min().unwrap_or(0);
    let to = queries.iter().map(|query| query.to).max().unwrap_or(0);
    for index in from / CHUNK..to.div_ceil(CHUNK) {
        // SAFETY: the caller's promise.
        unsafe { chunk(isa, blocks, index, queries, scores, parts, scratch) };
        for (joined, part) in joined.chunks_exact_mut(floats).zip(parts.chunks_exact_mut(floats)) {
            Partial::within(joined).join(&Partial::within(part));
        }
    }
    for (index, joined) in joined.chunks_exact_mut(floats).enumerate() {
        out(index, &Partial::within(joined));
    }
}

#[inline(always)]
fn chunk_body<const FMA: bool>(
    isa: Isa,
    blocks: &Blocks<'_>,
    index: usize,
    queries: &[Query<'_>],
    scores: Scores,
    partials: &mut [f32],
    scratch: &mut [f32],
) {
    let dim = blocks.head_dim;
    let start = index * CHUNK;
    let (rows, scratch) = scratch.split_at_mut(QUERIES * CHUNK);
    let tile = &mut scratch[..KV_BLOCK * dim];
    let seen = |query: &Query<'_>| query.from.max(start).min(start + CHUNK)..query.to.max(start).min(start + CHUNK);
    let from = queries.iter().map(|query| seen(query).start).min().unwrap_or(start);
    let to = queries.iter().map(|query| seen(query).end).max().unwrap_or(start);
    let half = half_bytes(blocks.kv, dim).unwrap_or(0);
    let block = |at: usize| {
        // SAFETY: the table's blocks lie inside the cache, as the caller promised.
        unsafe { blocks.base.add(blocks.table[at] as usize * blocks.stride) }
    };
    for at in from / KV_BLOCK..to.div_ceil(KV_BLOCK) {
        // SAFETY: the keys are the block's first half.
        unsafe { widen_keys(blocks.kv, block(at), dim, tile) };
        let column = at * KV_BLOCK - start;
        match queries.len() {
            1 => products::<FMA, 1>(queries, tile, rows, column),
            2 => products::<FMA, 2>(queries, tile, rows, column),
            3 => products::<FMA, 3>(queries, tile, rows, column),
            _ => products::<FMA, 4>(queries, tile, rows, column),
        }
    }
    let floats = Partial::floats(dim);
    for ((query, row), partial) in
        queries.iter().zip(rows.chunks_exact_mut(CHUNK)).zip(partials.chunks_exact_mut(floats))
    {
        let mut partial = Partial::within(partial);
        partial.clear();
        let range = seen(query);
        if range.is_empty() {
            continue;
        }
        let row = &mut row[range.start - start..range.end - start];
        for score in row.iter_mut() {
            *score *= scores.scale;
            if let Some(cap) = scores.softcap {
                *score = cap * (*score / cap).tanh();
            }
        }
        let peak = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // A row of nothing but -inf has no exponentials; whoever sees other chunks goes by those.
        if peak == f32::NEG_INFINITY {
            row.fill(0.0);
            continue;
        }
        *partial.peak = peak;
        *partial.sum = exp_sum(isa, row, peak);
    }
    for at in from / KV_BLOCK..to.div_ceil(KV_BLOCK) {
        // SAFETY: the values are the block's second half.
        unsafe { widen_values(blocks.kv, block(at).add(half), dim, tile) };
        for ((query, row), partial) in
            queries.iter().zip(rows.chunks_exact(CHUNK)).zip(partials.chunks_exact_mut(floats))
        {
            let range = seen(query);
            let first = range.start.max(at * KV_BLOCK);
            let last = range.end.min((at + 1) * KV_BLOCK);
            let values = &mut partial[2..];
            for position in first..last.max(first) {
                let weight = row[position - start];
                let v = &tile[(position - at * KV_BLOCK) * dim..][..dim];
                for (value, &v) in values.iter_mut().zip(v) {
                    *value = fused::<FMA>(weight, v, *value);
                }
            }
        }
    }
}

/// Products of each query with the 32 keys of a block.
#[inline(always)]
fn products<const FMA: bool, const N: usize>(queries: &[Query<'_>], keys: &[f32], rows: &mut [f32], column: usize) {
    let mut sums = [[0.0f32; KV_BLOCK]; N];
    for (d, keys) in keys.chunks_exact(KV_BLOCK).enumerate() {
        for (query, sums) in queries.iter().zip(&mut sums) {
            let q = query.q[d];
            for i in 0..KV_BLOCK {
                sums[i] = fused::<FMA>(q, keys[i], sums[i]);
            }
        }
    }
    for (row, sums) in rows.chunks_exact_mut(CHUNK).zip(&sums) {
        row[column..column + KV_BLOCK].copy_from_slice(sums);
    }
}

/// # Safety
/// `keys` is valid for the keys of a block.
#[inline(always)]
unsafe fn widen_keys(kv: KvType, keys: *const u8, dim: usize, tile: &mut [f32]) {
    // SAFETY: the caller's promise; the scales follow the elements.
    unsafe {
        widen(kv, keys, tile);
        if kv == KvType::Q8_0 {
            let scales = keys.add(dim * KV_BLOCK).cast::<f16>();
            for (d, line) in tile.chunks_exact_mut(KV_BLOCK).enumerate() {
                let scales = std::slice::from_raw_parts(scales.add(d / SCALE_GROUP * KV_BLOCK), KV_BLOCK);
                for (x, &scale) in line.iter_mut().zip(scales) {
                    *x *= half_to_f32(scale);
                }
            }
        }
    }
}

/// # Safety
/// `values` is valid for the values of a block.
#[inline(always)]
unsafe fn widen_values(kv: KvType, values: *const u8, dim: usize, tile: &mut [f32]) {
    // SAFETY: the caller's promise; the scales follow the elements.
    unsafe {
        widen(kv, values, tile);
        if kv == KvType::Q8_0 {
            let scales = values.add(dim * KV_BLOCK).cast::<f16>();
            for (position, line) in tile.chunks_exact_mut(dim).enumerate() {
                for (group, line) in line.chunks_exact_mut(SCALE_GROUP).enumerate() {
                    let scale = half_to_f32(*scales.add(group * KV_BLOCK + position));
                    line.iter_mut().for_each(|x| *x *= scale);
                }
            }
        }
    }
}

/// # Safety
/// `from` is valid for as many elements as `tile` has.
#[inline(always)]
unsafe fn widen(kv: KvType, from: *const u8, tile: &mut [f32]) {
    // SAFETY: the caller's promise; blocks are aligned to at least 4 bytes.
    unsafe {
        match kv {
            KvType::F32 => tile.copy_from_slice(std::slice::from_raw_parts(from.cast(), tile.len())),
            KvType::F16 => {
                let halves = std::slice::from_raw_parts(from.cast::<f16>(), tile.len());
                for (x, &half) in tile.iter_mut().zip(halves) {
                    *x = half_to_f32(half);
                }
            }
            KvType::Q8_0 => {
                let bytes = std::slice::from_raw_parts(from.cast::<i8>(), tile.len());
                for (x, &byte) in tile.iter_mut().zip(bytes) {
                    *x = f32::from(byte);
                }
            }
        }
    }
}
