//! Attention of a step: which rows and heads are computed together, by whom, and where partial results lie.

use crate::lower::AttentionOp;
use crate::raw::claims::Claims;
use crate::raw::team::Member;
use crate::simd::attention::{self, HeadsOut, KvView, Queries, Scoring};

use super::{Interpreter, Run};

impl Run<'_> {
    /// The cache of one head of a layer, as a row's sequence has it.
    fn view(&self, op: &AttentionOp, head: usize, row: usize) -> KvView<'_> {
        let me = self.me;
        let (start, stride) = me.kv.layers[op.layer.index()];
        let head_bytes = stride / me.plan.kv_layer(op.layer).heads;
        // SAFETY: inside the cache; see `CpuLane::bind`.
        let base = unsafe { me.kv.base.0.add(start + head * head_bytes) };
        KvView { base, stride, blocks: self.table(row), kv: me.kv.kv }
    }

    /// The query heads of some rows that share one KV head.
    fn queries(&self, op: &AttentionOp, kv_head: usize, rows: std::ops::Range<usize>) -> Queries<'_> {
        let layer = self.me.plan.kv_layer(op.layer);
        let group = op.heads / layer.heads;
        let stride = op.heads * layer.head_dim;
        let first = kv_head * group * layer.head_dim;
        // SAFETY: rows of the step, written in an earlier phase.
        let q = unsafe {
            let base = self.me.value(op.q).0.add(rows.start * stride);
            std::slice::from_raw_parts(base, rows.len() * stride)
        };
        Queries { q: &q[first..], stride, group, positions: &self.step.positions[rows] }
    }

    /// Rows of one KV head that are computed together: enough that a converted block of the cache serves many queries.
    fn attention_tile(&self, op: &AttentionOp) -> usize {
        (attention::MAX_QUERIES / (op.heads / self.me.plan.kv_layer(op.layer).heads)).max(1)
    }

    /// Parts of an attention that are claimed separately.
    pub(super) fn attention_units(&self, op: &AttentionOp) -> usize {
        let (rows, heads) = (self.step.tokens.len(), self.me.plan.kv_layer(op.layer).heads);
        if self.split { rows * heads * self.me.scratch.chunks } else { rows.div_ceil(self.attention_tile(op)) * heads }
    }

    pub(super) fn attention(&self, op: &AttentionOp, member: Member<'_>, claims: &Claims) {
        let me = self.me;
        let layer = me.plan.kv_layer(op.layer);
        let scoring = op.scoring(layer.head_dim);
        let scratch = me.member_scratch(member.index);
        let rows = self.step.tokens.len();
        let (tile, chunks) = (self.attention_tile(op), me.scratch.chunks);
        while let Some(claimed) = claims.claim(member.index, 1) {
            let unit = claimed.start;
            if self.split {
                let (row, rest) = (unit / (layer.heads * chunks), unit % (layer.heads * chunks));
                self.one_chunk(op, &scoring, row, rest / chunks, rest % chunks, scratch);
            } else {
                let (first, head) = (unit / layer.heads * tile, unit % layer.heads);
                self.some_rows(op, &scoring, first..(first + tile).min(rows), head, scratch);
            }
        }
    }

    /// All positions, for some rows of one KV head; rows of one sequence are computed together.
    fn some_rows(
        &self,
        op: &AttentionOp,
        scoring: &Scoring,
        rows: std::ops::Range<usize>,
        kv_head: usize,
        scratch: &mut [f32],
    ) {
        let me = self.me;
        let group = op.heads / me.plan.kv_layer(op.layer).heads;
        let stride = op.heads * scoring.head_dim;
        let mut first = rows.start;
        while first < rows.end {
            let same = |&row: &usize| self.step.tables[row] == self.step.tables[first];
            let end = (first..rows.end).take_while(same).count() + first;
            let queries = self.queries(op, kv_head, first..end);
            // SAFETY: the cache is written in other phases only; these heads of these rows belong to this unit.
            unsafe {
                let base = me.value(op.out).0.add(first * stride + kv_head * group * scoring.head_dim);
                let out = HeadsOut { base, stride };
                attention::attention(me.isa, scoring, &self.view(op, kv_head, first), &queries, scratch, out);
            }
            first = end;
        }
    }

    /// One chunk of positions, for one KV head of one row.
    fn one_chunk(
        &self,
        op: &AttentionOp,
        scoring: &Scoring,
        row: usize,
        kv_head: usize,
        chunk: usize,
        scratch: &mut [f32],
    ) {
        if !attention::chunks(scoring, self.step.positions[row]).contains(&chunk) {
            return;
        }
        let queries = self.queries(op, kv_head, row..row + 1);
        // SAFETY: the cache is written in other phases only; this chunk of these heads belongs to this unit.
        unsafe {
            let partials = self.me.partials(op, row, kv_head, chunk);
            let view = self.view(op, kv_head, row);
            attention::attention_chunk(self.me.isa, scoring, &view, &queries, chunk, scratch, partials);
        }
    }

    /// Joins the chunks of a row's heads.
    pub(super) fn merge(&self, op: &AttentionOp, row: usize, out: &mut [f32]) {
        let me = self.me;
        let layer = me.plan.kv_layer(op.layer);
        let (head_dim, group) = (layer.head_dim, op.heads / layer.heads);
        let chunks = attention::chunks(&op.scoring(head_dim), self.step.positions[row]);
        let one = attention::partial_floats(head_dim);
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            // SAFETY: written in the phase before, chunk after chunk of a KV head.
            let partials = unsafe {
                let first = me.partial(op, row, head / group, chunks.start);
                let len = (chunks.len() - 1) * group * one + one;
                std::slice::from_raw_parts(first.add(head % group * one), len)
            };
            attention::merge(me.isa, head_dim, partials, group * one, chunks.len(), out);
        }
    }
}

impl AttentionOp {
    pub(super) fn scoring(&self, head_dim: usize) -> Scoring {
        Scoring { head_dim, scale: self.scale, softcap: self.softcap, window: self.window }
    }
}

impl Interpreter {
    #[allow(clippy::mut_from_ref)]
    pub(super) fn member_scratch(&self, member: usize) -> &mut [f32] {
        // SAFETY: inside the scratch; each member has its own.
        unsafe {
            let base = self.scratch_base.0.add(self.scratch.members + member * self.scratch.member_bytes);
            std::slice::from_raw_parts_mut(base.cast(), self.scratch.member_bytes / size_of::<f32>())
        }
    }

    /// Partial results of the query heads of one KV head, for one chunk of one row.
    ///
    /// # Safety
    /// Only the caller touches them meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn partials(&self, op: &AttentionOp, row: usize, kv_head: usize, chunk: usize) -> &mut [f32] {
        let layer = self.plan.kv_layer(op.layer);
        let floats = op.heads / layer.heads * attention::partial_floats(layer.head_dim);
        // SAFETY: inside the scratch; the caller upholds the rest.
        unsafe { std::slice::from_raw_parts_mut(self.partial(op, row, kv_head, chunk), floats) }
    }

    /// Where [`partials`](Self::partials) begin; those of the following chunks lie behind them.
    fn partial(&self, op: &AttentionOp, row: usize, kv_head: usize, chunk: usize) -> *mut f32 {
        let layer = self.plan.kv_layer(op.layer);
        let floats = op.heads / layer.heads * attention::partial_floats(layer.head_dim);
        let at = ((row * layer.heads + kv_head) * self.scratch.chunks + chunk) * floats;
        // SAFETY: inside the scratch, which has `rows * heads * chunks` partials.
        unsafe { self.scratch_base.0.add(self.scratch.partials).cast::<f32>().add(at) }
    }

    pub(super) fn kv_store(&self, layer: usize, block: usize, position: usize, k: &[f32], v: &[f32]) {
        let (start, stride) = self.kv.layers[layer];
        let heads = self.plan.kv_layers()[layer].heads;
        let head_dim = k.len() / heads;
        for (head, (k, v)) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
            // SAFETY: inside the cache; `check` made sure that no two rows write one position, and attention reads in
            // another phase.
            unsafe {
                let base = self.kv.base.0.add(start + block * stride + head * (stride / heads));
                attention::store(self.kv.kv, base, position, k, v);
            }
        }
    }
}
