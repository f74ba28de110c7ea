//! What image models need beside rows and products: kernels slid over images, norms over groups of channels, attention
//! without a cache.

use std::ops::Range;

use tenure_graph::{Beside, Grid};

use crate::lower::{AttendOp, ConvOp, GroupOp, STAT_ROWS};
use crate::raw::claims::Claims;
use crate::raw::team::Member;
use crate::simd::attend::{Bias, HeadRows, Keys, QUERIES, attend, scratch_floats};
use crate::simd::float::{self, Out, winograd};

use super::{Interpreter, Run};

/// Rows of a convolution that are claimed together: enough for a converted piece of the weights, and few enough for a team.
const CONV_ROWS: usize = 96;
/// Features of a convolution that are claimed together, where its rows alone do not busy the team.
const CONV_FEATURES: usize = 64;
/// Units a member should have, so that all end together.
const UNITS: usize = 4;

/// Parts of an attention without a cache that are claimed separately.
pub(super) fn attend_units(op: &AttendOp) -> usize {
    op.sequences * op.heads * op.queries.div_ceil(QUERIES)
}

/// The row of `x` that a pixel of [`tenure_graph::Op::Unpatch`] comes from, and which run of its columns.
pub(super) fn unpatched(grid: Grid, size: usize, row: usize) -> (usize, usize) {
    let width = grid.width as usize * size;
    let (line, column) = (row / width, row % width);
    // Lines of one image follow those of the image before it.
    (line / size * grid.width as usize + column / size, line % size * size + column % size)
}

impl Run<'_> {
    /// Rows of a convolution's result, and features claimed together.
    fn conv_parts(&self, op: &ConvOp) -> (usize, usize) {
        let rows = self.step.rows().of(self.me.plan.value(op.out).rows);
        let features = self.me.plan.value(op.out).cols;
        let few = rows.div_ceil(CONV_ROWS) < UNITS * self.me.team.count();
        (rows, if few { CONV_FEATURES.min(features) } else { features })
    }

    pub(super) fn conv_units(&self, op: &ConvOp) -> usize {
        let (rows, together) = self.conv_parts(op);
        rows.div_ceil(CONV_ROWS) * self.me.plan.value(op.out).cols.div_ceil(together)
    }

    pub(super) fn conv(&self, op: &ConvOp, member: Member<'_>, claims: &Claims) {
        let me = self.me;
        let (x, zeros) = self.slid_over(op);
        let weight = me.weight(op.w);
        let (base, features) = me.value(op.out);
        let (rows, together) = self.conv_parts(op);
        let blocks = features.div_ceil(together);
        let row_bytes = weight.bytes().len() / features;
        while let Some(claimed) = claims.claim(member.index, 1) {
            let (first, block) = (claimed.start / blocks * CONV_ROWS, claimed.start % blocks * together);
            let (range, some) = (first..rows.min(first + CONV_ROWS), block..features.min(block + together));
            let w = &weight.bytes()[some.start * row_bytes..some.end * row_bytes];
            // SAFETY: rows and features of this unit, which this member alone has.
            unsafe {
                let base = base.add(first * features + some.start);
                let out = Out { base, stride: features, features: some.len() };
                float::conv2d(me.isa, weight.dtype(), w, x, &op.slide, zeros, range.clone(), out);
                if let Some(bias) = op.bias {
                    float::add_to_rows(me.isa, out, range.len(), &me.vector(bias)[some]);
                }
            }
        }
    }

    pub(super) fn winograd_parts(&self, op: &ConvOp) -> winograd::Parts {
        winograd::Parts::new(op.slide.grid, self.me.plan.value(op.out).cols, UNITS * self.me.team.count())
    }

    pub(super) fn winograd(&self, op: &ConvOp, member: Member<'_>, claims: &Claims) {
        let me = self.me;
        let (x, zeros) = self.slid_over(op);
        let weight = me.weight(op.w);
        let (base, features) = me.value(op.out);
        let (w, dtype, bias) = (weight.bytes(), weight.dtype(), op.bias.map(|bias| me.vector(bias)));
        let slid = winograd::Slid { x, grid: op.slide.grid, w, dtype, bias, zeros, features };
        let (parts, scratch) = (self.winograd_parts(op), me.member_scratch(member.index));
        while let Some(claimed) = claims.claim(member.index, 1) {
            // SAFETY: pixels and features of this part, which this member alone has.
            unsafe { winograd::slide(me.isa, slid, parts, claimed.start, scratch, base) };
        }
    }

    /// The pixels that a kernel is slid over, and one of zeros for what lies outside.
    fn slid_over(&self, op: &ConvOp) -> (&[f32], &[f32]) {
        let (from, channels) = self.me.value(op.x);
        // SAFETY: written in an earlier phase, and by nobody in this one.
        let x = unsafe { std::slice::from_raw_parts(from, op.slide.grid.rows() * channels) };
        (x, &self.me.zeros[..channels])
    }

    pub(super) fn group_sums(&self, op: &GroupOp, member: Member<'_>, claims: &Claims) {
        let me = self.me;
        while let Some(claimed) = claims.claim(member.index, 1) {
            let (image, run) = (claimed.start / op.runs(), claimed.start % op.runs());
            // SAFETY: the sums of this unit, which this member alone has.
            let sums = unsafe { me.group_unit(claimed.start, op.groups) };
            sums.fill([0.0; 2]);
            for row in run * STAT_ROWS..op.pixels.min((run + 1) * STAT_ROWS) {
                // SAFETY: written in an earlier phase.
                float::group_sums(me.isa, unsafe { me.row(op.x, image * op.pixels + row) }, sums);
            }
        }
    }

    pub(super) fn group_factors(&self, op: &GroupOp, images: Range<usize>) {
        let me = self.me;
        let cols = me.plan.value(op.x).cols;
        for image in images {
            for run in 1..op.runs() {
                // SAFETY: the sums of this image, which this member alone has; written in an earlier phase.
                let (all, more) = unsafe {
                    let first = image * op.runs();
                    (me.group_unit(first, op.groups), me.group_unit(first + run, op.groups))
                };
                for (all, more) in all.iter_mut().zip(more) {
                    all[0] += more[0];
                    all[1] += more[1];
                }
            }
            // SAFETY: as above.
            let sums = unsafe { me.group_unit(image * op.runs(), op.groups) };
            let count = op.pixels * (cols / op.groups);
            // SAFETY: the factors of this image.
            let (factors, terms) = unsafe { me.group_row_mut(image, cols) };
            float::group_factors(sums, count, me.vector(op.weight), me.vector(op.bias), op.eps, factors, terms);
        }
    }

    pub(super) fn attend(&self, op: &AttendOp, member: Member<'_>, claims: &Claims) {
        let me = self.me;
        let cols = me.plan.value(op.q).cols;
        let head_dim = cols / op.heads;
        let tiles = op.queries.div_ceil(QUERIES);
        let scratch = &mut me.member_scratch(member.index)[..scratch_floats(head_dim)];
        while let Some(claimed) = claims.claim(member.index, 1) {
            let (sequence, rest) = (claimed.start / (op.heads * tiles), claimed.start % (op.heads * tiles));
            let (head, first) = (rest / tiles, rest % tiles * QUERIES);
            let on = |val, count: usize| {
                let (base, _) = me.value(val);
                // SAFETY: a sequence's rows, written in an earlier phase.
                let rows = unsafe { std::slice::from_raw_parts(base.add(sequence * count * cols), count * cols) };
                HeadRows { rows: &rows[head * head_dim..], stride: cols }
            };
            let keys = |k, v, count| Keys { k: on(k, count), v: on(v, count), count };
            let more = op.beside.map(|Beside { k, v, keys: count }| keys(k, v, count));
            let spans = [keys(op.k, op.v, op.keys), more.unwrap_or(Keys::NONE)];
            let bias =
                op.bias.map(|bias| Bias { buckets: bias.buckets, table: me.vector(bias.table), heads: op.heads, head });
            let range = first..op.queries.min(first + QUERIES);
            let (base, _) = me.value(op.out);
            // SAFETY: the head's columns of these rows, which this member alone has.
            unsafe {
                let base = base.add((sequence * op.queries + first) * cols + head * head_dim);
                let out = Out { base, stride: cols, features: head_dim };
                let q = on(op.q, op.queries);
                attend(me.isa, q, &spans, head_dim, op.scale, range, op.causal, bias.as_ref(), scratch, out);
            }
        }
    }
}

impl Interpreter {
    /// The sums of a run of rows.
    ///
    /// # Safety
    /// Nobody else touches them meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn group_unit(&self, unit: usize, groups: usize) -> &mut [[f64; 2]] {
        // SAFETY: inside the scratch, which has room for all runs; the caller upholds the rest.
        unsafe {
            let base = self.scratch_base.0.add(self.scratch.groups).cast::<[f64; 2]>();
            std::slice::from_raw_parts_mut(base.add(unit * groups), groups)
        }
    }

    /// What the columns of an image are multiplied with, and what is added.
    pub(super) fn group_row(&self, image: usize, cols: usize) -> (&[f32], &[f32]) {
        // SAFETY: inside the scratch; written in an earlier phase, and by nobody in this one.
        let both: &[f32] = unsafe {
            let base = self.scratch_base.0.add(self.scratch.groups + self.scratch.group_sums).cast::<f32>();
            std::slice::from_raw_parts(base.add(image * 2 * cols), 2 * cols)
        };
        both.split_at(cols)
    }

    /// # Safety
    /// Nobody else touches them meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn group_row_mut(&self, image: usize, cols: usize) -> (&mut [f32], &mut [f32]) {
        // SAFETY: inside the scratch; the caller upholds the rest.
        let both = unsafe {
            let base = self.scratch_base.0.add(self.scratch.groups + self.scratch.group_sums).cast::<f32>();
            std::slice::from_raw_parts_mut(base.add(image * 2 * cols), 2 * cols)
        };
        both.split_at_mut(cols)
    }
}
