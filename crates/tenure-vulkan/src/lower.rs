//! From a plan's steps to dispatches: which kernel, over which bytes, with which numbers.
//!
//! A binding shows a kernel only so many bytes, and a grid has only so many workgroups in a direction, so a step may
//! take several dispatches: parts of a weight's rows, of the step's rows, or of a cache's heads.

use tenure_device::{DeviceError, StepRows, Wanted};
use tenure_graph::{
    Activation, Index, InputId, KvLayerId, KvType, Op, OutputId, Plan, RopeSpec, RopeStyle, Rows, Step, StepShape, Val,
    WeightId,
};
use tenure_tensor::{ByteSize, DType};

use crate::attention::{Parts, ROWS, part_bytes, shared_and_left};
use crate::devices::CooperativeMatrix;
use crate::hazard::{Access, Region};
use crate::kernel::{COMMON_WORDS, Kernel, MOST_BINDINGS, MOST_HEAD_OF_ROWS, PUSH_WORDS, Tile};
use crate::kinds::{Amount, FEW, Many, Placed, When};
use crate::layout::{BlockLayout, KvLayout, WORD, weight_bytes};
use crate::tops::{ENTRY, PART, Tops};

mod products;

use products::Reformed;
pub(crate) use products::rows_bytes;

/// One run of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    pub(crate) kernel: Kernel,
    /// Specialisation constants.
    pub(crate) constants: [u32; 2],
    /// Which recordings it is in.
    pub(crate) when: When,
    /// How many rows of its kind there are in these, if that matters.
    pub(crate) amount: Option<Amount>,
    /// What is behind each binding.
    pub(crate) operands: Vec<(Region, Access)>,
    /// The kernel's own push constants.
    pub(crate) words: Vec<u32>,
    pub(crate) grid: Grid,
    /// Which of its rows it computes.
    pub(crate) share: Share,
    /// How the positions of its rows are divided, each part a workgroup.
    pub(crate) parts: Option<Parts>,
    /// Multiplications for each row.
    pub(crate) work: u64,
}

/// Which rows a dispatch computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// All.
    All,
    /// Those that are computed together, and those that are not.
    Together,
    Left,
}

/// How much a dispatch covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Columns, features or heads: whatever a kernel's tile counts in that direction.
    pub(crate) columns: u64,
    /// Whose number of rows counts.
    pub(crate) rows: Rows,
    /// The first row.
    pub(crate) first: u64,
    /// The most rows.
    pub(crate) most: u64,
}

/// The constant of [`Kernel::Copy`] where rows may be unwanted.
const LOGITS: u32 = 1;

/// What bounds a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The most bytes behind one binding, wherever they begin.
    pub(crate) window: u64,
    /// The most workgroups in one direction.
    pub(crate) groups: u64,
    /// The most multiplications of one submission, as long as one row has no more.
    pub(crate) work: u64,
    /// Whether products of quantised weights are computed by integer dot products.
    pub(crate) integer: bool,
    /// What products of many rows are computed by, where that is faster.
    pub(crate) cooperative: Option<CooperativeMatrix>,
}

impl Bounds {
    /// Those of a device with the least that Vulkan 1.1 demands; submissions may be of any length.
    pub(crate) const LEAST: Bounds =
        Bounds { window: 1 << 27, groups: 65_535, work: u64::MAX, integer: false, cooperative: None };
}

/// Where things are. Buffers are numbered; who lowers knows which is which.
#[derive(Clone, Debug)]
pub(crate) struct Sites {
    /// Buffer and offset of each weight.
    pub(crate) weights: Vec<(usize, u64)>,
    /// Buffer of the KV cache.
    pub(crate) kv: usize,
    /// Offset of each layer.
    pub(crate) layers: Vec<u64>,
    pub(crate) kv_type: KvType,
    /// Blocks of each layer; `None` for the most dispatches there can be.
    pub(crate) kv_blocks: Option<usize>,
    /// Buffer of the arena.
    pub(crate) arena: usize,
    /// Buffer of what is exchanged.
    pub(crate) exchange: usize,
    /// Buffer of what kernels leave for one another.
    pub(crate) scratch: usize,
    /// Offset of each distinct rope's turns, in the order of [`ropes`].
    pub(crate) turns: Vec<u64>,
    /// Factor on the cosines and sines of each.
    pub(crate) magnitudes: Vec<f32>,
    /// Offset of the rows of each of the plan's inputs.
    pub(crate) inputs: Vec<u64>,
    /// Offset of each output.
    pub(crate) outputs: Vec<u64>,
    /// Offset of the largest logits.
    pub(crate) tops: u64,
}

/// Why a plan has no dispatches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotLowered {
    /// Something fits into no binding.
    TooLarge { what: String, bytes: ByteSize, most: ByteSize },
    /// There is no kernel for an operation.
    Operation(&'static str),
}

impl NotLowered {
    /// What the caller is told.
    pub(crate) fn on(self, device: String) -> DeviceError {
        match self {
            NotLowered::TooLarge { what, bytes, most } => DeviceError::TooLarge { device, what, bytes, most },
            NotLowered::Operation(op) => DeviceError::UnsupportedOp { device, op },
        }
    }
}

/// The distinct ropes of a plan.
pub(crate) fn ropes(plan: &Plan) -> Vec<&RopeSpec> {
    let mut found: Vec<&RopeSpec> = Vec::new();
    for step in plan.steps() {
        if let Op::Rope { rope, .. } = &step.op
            && !found.contains(&rope)
        {
            found.push(rope);
        }
    }
    found
}

/// The dispatches of a plan, in order.
pub(crate) fn lower(plan: &Plan, sites: &Sites, bounds: Bounds) -> Result<Vec<Dispatch>, NotLowered> {
    let mut lowering = Lowering { plan, sites, bounds, ropes: ropes(plan), reformed: None, dispatches: Vec::new() };
    for step in plan.steps() {
        lowering.step(step)?;
    }
    let tops = Tops::of(plan);
    for (&(output, val), &offset) in plan.outputs().iter().zip(&sites.outputs) {
        let constant = if tops.is_some() && output == OutputId::Logits { LOGITS } else { 0 };
        lowering.read_back(val, constant, offset)?;
    }
    if let Some(tops) = tops {
        lowering.top(tops)?;
    }
    Ok(lowering.dispatches)
}

/// Divides the dispatches into submissions of so many multiplications at most, or of one dispatch that has more.
pub(crate) fn pieces(dispatches: &[Dispatch], shape: StepShape, many: Many, most: u64) -> Vec<std::ops::Range<usize>> {
    let (mut pieces, mut first, mut work) = (Vec::new(), 0, 0u64);
    for (at, dispatch) in dispatches.iter().enumerate().filter(|(_, dispatch)| dispatch.is_in(many)) {
        let capacity = shape.capacity(dispatch.grid.rows);
        let rows = if many.of(dispatch.grid.rows) { capacity } else { capacity.min(FEW) };
        let rows = (rows as u64).saturating_sub(dispatch.grid.first).min(dispatch.grid.most);
        let own = dispatch.work.saturating_mul(rows);
        if work.saturating_add(own) > most && at > first {
            pieces.push(first..at);
            (first, work) = (at, 0);
        }
        work = work.saturating_add(own);
    }
    if first < dispatches.len() {
        pieces.push(first..dispatches.len());
    }
    pieces
}

struct Lowering<'p> {
    plan: &'p Plan,
    sites: &'p Sites,
    bounds: Bounds,
    ropes: Vec<&'p RopeSpec>,
    reformed: Option<Reformed>,
    dispatches: Vec<Dispatch>,
}

/// Some rows.
#[derive(Clone, Copy)]
struct Run {
    rows: Rows,
    first: u64,
    count: u64,
}

impl Lowering<'_> {
    fn step(&mut self, step: &Step) -> Result<(), NotLowered> {
        if let Some(out) = step.out
            && matches!(self.plan.value(out).rows, Rows::Fixed(_))
        {
            return Err(NotLowered::Operation(step.op.name()));
        }
        let Some(out) = step.out else {
            // The only operation without a result.
            return match step.op {
                Op::KvStore { k, v, layer } => self.kv_store(k, v, layer),
                _ => Ok(()),
            };
        };
        match step.op {
            Op::Input { id } => self.input(id, out),
            Op::Embed { table, scale, by: Index::Token } => self.embed(table, scale, out),
            Op::RmsNorm { x, weight, eps, group } => {
                let cols = self.cols(out);
                let weight = self.vector(weight)?;
                let words = vec![cols as u32, group as u32, eps.to_bits()];
                let groups = cols / group as u64;
                // Units of integers are whole where the norm is of whole rows.
                let kernels = (Kernel::RmsNorm, (groups == 1).then_some(Kernel::RmsNormI16));
                self.for_products(kernels, (&[x], Some(weight)), (0, words), groups, out)
            }
            Op::MatMul { x, w, bias } => self.matmul(x, w, bias, out),
            Op::Rope { x, head_dim, ref rope } => self.rope(x, head_dim, rope, out),
            Op::KvStore { k, v, layer } => self.kv_store(k, v, layer),
            Op::Attention { q, layer, heads, scale, window, softcap } => {
                let scoring = [scale.to_bits(), window.unwrap_or(0) as u32, softcap.unwrap_or(0.0).to_bits()];
                self.attention(q, layer, heads, scoring, out)
            }
            Op::Glu { gate, up, activation } => {
                let kind = match activation {
                    Activation::Silu => 0,
                    Activation::GeluTanh => 1,
                    Activation::Gelu | Activation::QuickGelu | Activation::Relu => {
                        return Err(NotLowered::Operation(step.op.name()));
                    }
                };
                let cols = self.cols(out);
                let kernels = (Kernel::Glu, Some(Kernel::GluI16));
                self.for_products(kernels, (&[gate, up], None), (kind, vec![cols as u32]), cols, out)
            }
            Op::Add { a, b } => self.elementwise(Kernel::Add, 0, &[a, b], &[], out),
            Op::Scale { x, factor } => self.elementwise(Kernel::Scale, 0, &[x], &[factor.to_bits()], out),
            Op::Softcap { x, cap } => self.elementwise(Kernel::Softcap, 0, &[x], &[cap.to_bits()], out),
            Op::TakeRows { x } => self.take_rows(x, out),
            // Image models run on the CPU.
            Op::Embed { by: Index::Position, .. } => Err(NotLowered::Operation("embed by position")),
            Op::LayerNorm { .. }
            | Op::GroupNorm { .. }
            | Op::Conv2d { .. }
            | Op::Upsample { .. }
            | Op::Attend { .. }
            | Op::Activate { .. }
            | Op::GluHalves { .. }
            | Op::Concat { .. }
            | Op::AddRow { .. }
            | Op::Modulate { .. }
            | Op::AddGated { .. }
            | Op::AddCentre { .. }
            | Op::Unpatch { .. } => Err(NotLowered::Operation(step.op.name())),
        }
    }

    fn embed(&mut self, table: WeightId, scale: f32, out: Val) -> Result<(), NotLowered> {
        let (format, row) = self.matrix(table);
        let cols = self.cols(out);
        for (first, count) in
            self.windows(self.plan.weight(table).rows() as u64, row, u64::MAX, || self.row_name(table))?
        {
            let table = self.rows_of(table, row, first, count);
            self.by_rows(&[out], |me, run| {
                let words = [cols, row / WORD, first, count].map(|word| word as u32);
                let words = words.into_iter().chain([scale.to_bits()]).collect();
                me.push(Kernel::Embed, [format, 0], vec![table, me.write(out, run)], words, cols, run, 0);
            })?;
        }
        Ok(())
    }

    fn rope(&mut self, x: Val, head_dim: usize, rope: &RopeSpec, out: Val) -> Result<(), NotLowered> {
        let at = self.ropes.iter().position(|known| *known == rope).unwrap_or_default();
        let style = match rope.style {
            RopeStyle::Adjacent => 0,
            RopeStyle::Halves => 1,
        };
        let (offset, magnitude) = (self.sites.turns[at], self.sites.magnitudes[at]);
        let turns = Region { buffer: self.sites.exchange, offset, bytes: turns_bytes(rope) };
        let cols = self.cols(out);
        self.by_rows(&[x, out], |me, run| {
            let operands = vec![me.read(x, run), (turns, Access::Read), me.write(out, run)];
            let words = vec![cols as u32, head_dim as u32, rope.dims as u32, magnitude.to_bits()];
            me.push(Kernel::Rope, [style, 0], operands, words, cols, run, 0);
        })
    }

    fn kv_store(&mut self, k: Val, v: Val, layer: KvLayerId) -> Result<(), NotLowered> {
        let head_dim = self.plan.kv_layer(layer).head_dim as u64;
        for part in self.heads(layer)? {
            self.by_rows(&[k, v], |me, run| {
                let operands = vec![me.read(k, run), me.read(v, run), (part.region, Access::Write)];
                let words = [head_dim, part.all, part.first, part.count, part.blocks, part.position_words];
                let units = part.count * 2 * head_dim.div_ceil(64);
                let words = words.iter().map(|&word| word as u32).collect();
                me.push(Kernel::KvStore, [me.kv_format(), 0], operands, words, units, run, 0);
            })?;
        }
        Ok(())
    }

    fn attention(
        &mut self,
        q: Val,
        layer: KvLayerId,
        heads: usize,
        scoring: [u32; 3],
        out: Val,
    ) -> Result<(), NotLowered> {
        let kv = self.plan.kv_layer(layer);
        let (head_dim, group) = (kv.head_dim as u64, (heads / kv.heads) as u64);
        let context = self.plan.shape().context as u64;
        let window = Some(scoring[1] as usize).filter(|&window| window > 0);
        let parts = Parts::of(self.plan, layer, heads, window, self.bounds.window);
        let together = kv.head_dim <= MOST_HEAD_OF_ROWS;
        let most_parts = parts.map_or(1, |parts| parts.most);
        let bytes = u64::from(most_parts) * part_bytes(self.plan, layer, heads);
        let scratch = Region { buffer: self.sites.scratch, offset: 0, bytes };
        for part in self.heads(layer)? {
            let (first, count) = (part.first * group, part.count * group);
            let words = [head_dim, heads as u64, part.first, part.count, part.blocks, part.position_words, group];
            let words: Vec<u32> = words.iter().map(|&word| word as u32).chain(scoring).collect();
            let constants = [self.kv_format(), head_dim as u32];
            let of = |heads: u64| 2 * heads * head_dim * context;
            let work = of(count);
            // By the rows that all heads can have, however they are divided: then there are never more dispatches than
            // with every head by itself.
            // Rows that may be computed together are not divided: how they are computed must not depend on how much a
            // submission bears.
            let work_of_row = of(heads as u64);
            self.runs(&[q, out], (0, None), (work_of_row, ROWS as u64), |me, run| {
                let operands = [me.read(q, run), (part.region, Access::Read), me.write(out, run)];
                let mut attend = |kernel, mode, share, when, to, parts| {
                    let operands = vec![operands[0], operands[1], to];
                    let words = words.iter().copied().chain([most_parts, mode]).collect();
                    let dispatch = me.push(kernel, constants, operands, words, count, run, work);
                    (dispatch.share, dispatch.when, dispatch.parts) = (share, when, parts);
                };
                let when = When { short: true, long: parts.is_none(), many: !together };
                attend(Kernel::Attention, EACH_ROW, Share::All, when, operands[2], None);
                if together {
                    attend(Kernel::AttentionRows, EACH_ROW, Share::Together, When::MANY, operands[2], None);
                    attend(Kernel::Attention, LEFT_ROWS, Share::Left, When::MANY, operands[2], None);
                }
                if parts.is_some() {
                    attend(Kernel::Attention, PARTS, Share::All, When::LONG, (scratch, Access::Write), parts);
                    let joined = vec![(scratch, Access::Read), operands[2]];
                    let words = [heads as u32, first as u32, count as u32, scoring[1], most_parts].to_vec();
                    me.push(Kernel::AttentionJoin, constants, joined, words, count, run, 0).when = When::LONG;
                }
            })?;
        }
        Ok(())
    }

    fn elementwise(
        &mut self,
        kernel: Kernel,
        constant: u32,
        inputs: &[Val],
        words: &[u32],
        out: Val,
    ) -> Result<(), NotLowered> {
        let cols = self.cols(out);
        let values: Vec<Val> = inputs.iter().copied().chain([out]).collect();
        self.by_rows(&values, |me, run| {
            let read = inputs.iter().map(|&input| me.read(input, run));
            let operands = read.chain([me.write(out, run)]).collect();
            let words = std::iter::once(cols as u32).chain(words.iter().copied()).collect();
            me.push(kernel, [constant, 0], operands, words, cols, run, 0);
        })
    }

    fn take_rows(&mut self, x: Val, out: Val) -> Result<(), NotLowered> {
        let cols = self.cols(out);
        let capacity = self.plan.shape().capacity(Rows::Step) as u64;
        for (first, count) in self.windows(capacity, cols * WORD, u64::MAX, || format!("a row of {x}"))? {
            let source = self.read(x, Run { rows: Rows::Step, first, count });
            self.by_rows(&[out], |me, run| {
                let words = [cols, first, count].map(|word| word as u32).to_vec();
                me.push(Kernel::TakeRows, [0; 2], vec![source, me.write(out, run)], words, cols, run, 0);
            })?;
        }
        Ok(())
    }

    /// Copies the rows that come with the step from where the host writes them.
    fn input(&mut self, id: InputId, out: Val) -> Result<(), NotLowered> {
        let place = self.plan.inputs().iter().position(|&(other, _)| other == id);
        let offset = place.and_then(|place| self.sites.inputs.get(place)).copied().unwrap_or(0);
        let (cols, buffer) = (self.cols(out), self.sites.exchange);
        self.by_rows(&[out], |me, run| {
            let offset = offset + run.first * cols * WORD;
            let from = (Region { buffer, offset, bytes: run.count * cols * WORD }, Access::Read);
            me.push(Kernel::Copy, [0; 2], vec![from, me.write(out, run)], vec![cols as u32], cols, run, 0);
        })
    }

    /// Copies an output to where the host reads it.
    fn read_back(&mut self, val: Val, constant: u32, offset: u64) -> Result<(), NotLowered> {
        let (cols, buffer) = (self.cols(val), self.sites.exchange);
        self.by_rows(&[val], |me, run| {
            let offset = offset + run.first * cols * WORD;
            let to = (Region { buffer, offset, bytes: run.count * cols * WORD }, Access::Write);
            me.push(Kernel::Copy, [constant, 0], vec![me.read(val, run), to], vec![cols as u32], cols, run, 0);
        })
    }

    /// Finds the largest logits and puts them where the host reads them.
    fn top(&mut self, tops: Tops) -> Result<(), NotLowered> {
        let Tops { logits, cols, parts, room, outs } = tops;
        let (lists, list) = (parts * room * ENTRY, room * ENTRY);
        let most = self.bounds.groups;
        for (first, count) in self.windows(outs, lists.max(cols * WORD), most, || format!("a row of {logits}"))? {
            let run = Run { rows: Rows::Out, first, count };
            let of = |buffer, offset, row| Region { buffer, offset: offset + first * row, bytes: count * row };
            let found = of(self.sites.scratch, 0, lists);
            let back = of(self.sites.exchange, self.sites.tops, list);
            let words = [cols, PART, parts, room].map(|word| word as u32).to_vec();
            let row = self.read(logits, run);
            self.push(Kernel::TopK, [0; 2], vec![row, (found, Access::Write)], words.clone(), parts, run, 0);
            self.push(Kernel::TopK, [1, 0], vec![(found, Access::Read), (back, Access::Write)], words, 1, run, 0);
        }
        Ok(())
    }

    /// Divides the rows of some values, of which all have as many, into runs that fit the bindings and the grid.
    fn by_rows(&mut self, values: &[Val], each: impl FnMut(&mut Self, Run)) -> Result<(), NotLowered> {
        self.runs(values, (0, None), (0, 1), each)
    }

    /// The same where a row may be so wide in another form, for few rows, many or all, where each row takes so many
    /// multiplications, of which a submission bears a number, and so many rows stay together, where a binding holds them.
    fn runs(
        &mut self,
        values: &[Val],
        (wide, amount): (u64, Option<Amount>),
        (work, together): (u64, u64),
        mut each: impl FnMut(&mut Self, Run),
    ) -> Result<(), NotLowered> {
        let Some(&out) = values.last() else { return Ok(()) };
        let rows = self.plan.value(out).rows;
        let capacity = self.plan.shape().capacity(rows);
        let capacity = amount.map_or(capacity, |amount| amount.most(capacity)) as u64;
        let widest = values.iter().copied().max_by_key(|&val| self.cols(val)).unwrap_or(out);
        let row = wide.max(self.cols(widest) * WORD);
        let bearable = (self.bounds.work / work.max(1)).max(together);
        let most = self.bounds.groups.min(bearable).min(self.bounds.window / row.max(1));
        let most = if most >= together { most - most % together } else { most };
        for (first, count) in self.windows(capacity, row, most, || format!("a row of {widest}"))? {
            each(self, Run { rows, first, count });
        }
        Ok(())
    }

    /// Divides `count` rows of `row` bytes into windows that fit a binding, of `most` rows each.
    fn windows(
        &self,
        count: u64,
        row: u64,
        most: u64,
        what: impl Fn() -> String,
    ) -> Result<Vec<(u64, u64)>, NotLowered> {
        let window = self.bounds.window;
        let fits = (window / row.max(1)).min(most);
        if fits == 0 {
            return Err(NotLowered::TooLarge { what: what(), bytes: ByteSize::new(row), most: ByteSize::new(window) });
        }
        Ok((0..count.div_ceil(fits)).map(|at| (at * fits, fits.min(count - at * fits))).collect())
    }

    /// Divides a layer's cache by its heads.
    fn heads(&self, layer: KvLayerId) -> Result<Vec<HeadPart>, NotLowered> {
        let kv = self.plan.kv_layer(layer);
        let what = || format!("the cache of one head of {layer}");
        let Some(layout) = KvLayout::of(kv, self.sites.kv_type) else {
            return Err(NotLowered::TooLarge { what: what(), bytes: ByteSize::ZERO, most: ByteSize::ZERO });
        };
        let (blocks, most) = match self.sites.kv_blocks {
            Some(blocks) => (blocks, u64::MAX),
            None => (0, 1),
        };
        let head = layout.head_bytes(blocks);
        let parts = self.windows(layout.heads, head, most, what)?;
        let part = |(first, count)| HeadPart {
            region: Region {
                buffer: self.sites.kv,
                offset: self.sites.layers[layer.index()] + first * head,
                bytes: count * head,
            },
            all: layout.heads,
            first,
            count,
            blocks: blocks as u64,
            position_words: layout.position_words,
        };
        Ok(parts.into_iter().map(part).collect())
    }

    #[allow(clippy::too_many_arguments)]
    fn push(
        &mut self,
        kernel: Kernel,
        constants: [u32; 2],
        operands: Vec<(Region, Access)>,
        words: Vec<u32>,
        columns: u64,
        run: Run,
        work: u64,
    ) -> &mut Dispatch {
        debug_assert!(operands.len() == kernel.bindings() && operands.len() <= MOST_BINDINGS);
        debug_assert!(COMMON_WORDS + words.len() <= PUSH_WORDS);
        let writes =
            |&(region, access): &(Region, Access)| region.buffer == self.sites.scratch && access == Access::Write;
        if operands.iter().any(writes) {
            self.reformed = None;
        }
        let grid = Grid { columns, rows: run.rows, first: run.first, most: run.count };
        let (when, amount, share) = (When::ALWAYS, None, Share::All);
        let dispatch = Dispatch { kernel, constants, when, amount, operands, words, grid, share, parts: None, work };
        self.dispatches.push_mut(dispatch)
    }

    fn cols(&self, val: Val) -> u64 {
        self.plan.value(val).cols as u64
    }

    fn read(&self, val: Val, run: Run) -> (Region, Access) {
        (self.value(val, run), Access::Read)
    }

    fn write(&self, val: Val, run: Run) -> (Region, Access) {
        (self.value(val, run), Access::Write)
    }

    fn value(&self, val: Val, run: Run) -> Region {
        let row = self.cols(val) * WORD;
        let offset = self.plan.span(val).offset + run.first * row;
        Region { buffer: self.sites.arena, offset, bytes: run.count * row }
    }

    fn vector(&self, id: WeightId) -> Result<(Region, Access), NotLowered> {
        let (buffer, offset) = self.sites.weights[id.index()];
        let bytes = weight_bytes(self.plan.weight(id)).unwrap_or(0);
        if bytes > self.bounds.window {
            let (bytes, most) = (ByteSize::new(bytes), ByteSize::new(self.bounds.window));
            return Err(NotLowered::TooLarge { what: self.name(id), bytes, most });
        }
        Ok((Region { buffer, offset, bytes }, Access::Read))
    }

    /// Number of a matrix' type, and bytes of a row.
    fn matrix(&self, id: WeightId) -> (u32, u64) {
        let weight = self.plan.weight(id);
        let row = BlockLayout::of(weight.spec.dtype).map_or(0, |layout| layout.row_bytes(weight.cols()));
        (format(weight.spec.dtype), row)
    }

    fn rows_of(&self, id: WeightId, row: u64, first: u64, count: u64) -> (Region, Access) {
        let (buffer, offset) = self.sites.weights[id.index()];
        (Region { buffer, offset: offset + first * row, bytes: count * row }, Access::Read)
    }

    fn name(&self, id: WeightId) -> String {
        format!("tensor {:?}", self.plan.weight(id).spec.name)
    }

    fn row_name(&self, id: WeightId) -> String {
        format!("a row of {}", self.name(id))
    }

    fn kv_format(&self) -> u32 {
        format(self.sites.kv_type.dtype())
    }
}

/// Some heads of a layer's cache.
#[derive(Clone, Copy)]
struct HeadPart {
    region: Region,
    all: u64,
    first: u64,
    count: u64,
    blocks: u64,
    position_words: u64,
}

/// Bytes of a rope's turns.
pub(crate) const fn turns_bytes(rope: &RopeSpec) -> u64 {
    rope.dims as u64 / 2 * 2 * WORD
}

/// A type's number in the kernels: GGML's.
fn format(dtype: DType) -> u32 {
    dtype.ggml_id().unwrap_or(u32::MAX)
}

/// What [`Kernel::Attention`] computes: each row, or each that [`Kernel::AttentionRows`] leaves, or parts of the
/// positions of each.
const EACH_ROW: u32 = 0;
const LEFT_ROWS: u32 = 1;
const PARTS: u32 = 2;

impl Dispatch {
    /// Whether it is in a recording.
    pub(crate) const fn is_in(&self, many: Many) -> bool {
        let there_are = match self.amount {
            None => true,
            Some(Amount::Few) => !many.of(self.grid.rows),
            Some(Amount::Many) => many.of(self.grid.rows),
        };
        there_are
            && match (many.step, many.long) {
                (true, _) => self.when.many,
                (false, true) => self.when.long,
                (false, false) => self.when.short,
            }
    }

    /// Workgroups for a step with so many rows of its kind, where the step's rows are `placed`.
    pub(crate) fn groups(&self, rows: usize, placed: Placed<'_>) -> [u32; 3] {
        let mut groups = self.grid.groups(self.kernel.tile(), rows);
        let those = |all: usize| {
            let first = (self.grid.first as usize).min(all);
            first..first + (self.grid.most as usize).min(all - first)
        };
        let (together, left) = match self.share {
            Share::All => (true, true),
            Share::Together | Share::Left => shared_and_left(&placed.tables[those(placed.tables.len())]),
        };
        if (self.share == Share::Together && !together) || (self.share == Share::Left && !left) {
            groups[1] = 0;
        }
        if let Some(parts) = self.parts {
            let rows = &placed.positions[those(placed.positions.len())];
            groups[2] = rows.iter().map(|&position| parts.count(position)).max().unwrap_or(1);
        }
        groups
    }

    /// How many rows of a step it looks at, given what is wanted of the outputs.
    pub(crate) fn rows(&self, step: StepRows, wanted: &[Wanted]) -> usize {
        let is_top = |wanted: &Wanted| matches!(wanted, Wanted::Top(_));
        match (self.kernel, self.constants[0]) {
            (Kernel::TopK, _) if !wanted.iter().any(is_top) => 0,
            (Kernel::Copy, LOGITS) if wanted.iter().all(is_top) => 0,
            _ => step.of(self.grid.rows),
        }
    }

    /// What lies behind the bindings, which begin at multiples of `align`: a little before what is meant, maybe.
    pub(crate) fn bound(&self, align: u64) -> impl Iterator<Item = (Region, Access)> + Clone {
        self.operands.iter().map(move |&(region, access)| {
            let before = region.offset % align;
            (Region { offset: region.offset - before, bytes: region.bytes + before, ..region }, access)
        })
    }

    /// All push constants, given what bindings begin at multiples of.
    pub(crate) fn push(&self, align: u64) -> [u32; PUSH_WORDS] {
        let mut push = [0; PUSH_WORDS];
        for (base, (region, _)) in push.iter_mut().zip(&self.operands) {
            *base = (region.offset % align / WORD) as u32;
        }
        push[MOST_BINDINGS] = self.grid.first as u32;
        push[MOST_BINDINGS + 1] = match self.grid.rows {
            // Steps of a fixed number of rows are not lowered.
            Rows::Step | Rows::Fixed(_) => 0,
            Rows::Out => 1,
        };
        push[MOST_BINDINGS + 2] = self.grid.most as u32;
        for (word, own) in push[COMMON_WORDS..].iter_mut().zip(&self.words) {
            *word = *own;
        }
        push
    }
}

impl Grid {
    /// Workgroups for a step with so many rows of that kind.
    pub(crate) fn groups(self, tile: Tile, rows: usize) -> [u32; 3] {
        let rows = (rows as u64).saturating_sub(self.first).min(self.most);
        [self.columns.div_ceil(u64::from(tile.columns)) as u32, rows.div_ceil(u64::from(tile.rows)) as u32, 1]
    }
}

#[cfg(test)]
mod tests {
    use tenure_graph::{Graph, OutputId, StepShape};
    use tenure_tensor::{Shape, TensorSpec};

    use super::*;

    /// One layer of attention and a head, over a vocabulary of 300.
    fn plan() -> Plan {
        plan_of(20, 100)
    }

    fn plan_of(rows: usize, context: usize) -> Plan {
        let spec = |name: &str, dtype, shape| TensorSpec { name: name.to_owned(), dtype, shape };
        let file =
            vec![spec("embd", DType::Q4_0, Shape::from([300, 64])), spec("qkv", DType::F16, Shape::from([64, 64]))];
        let g = Graph::new(&file, StepShape { rows, outs: 3, context });
        let x = g.embed(g.table("embd", 300, 64), 1.0);
        let part = || g.matmul(x, g.matrix("qkv", 64, 64), None);
        let layer = g.kv_layer(4, 16);
        g.kv_store(part(), part(), layer);
        let y = g.take_rows(g.attention(part(), layer, 4, 0.25, None, None));
        let logits = g.matmul(y, g.matrix("embd", 300, 64), None);
        g.finish(&[(OutputId::Logits, logits)]).expect("a sound plan")
    }

    fn sites(plan: &Plan, kv_blocks: Option<usize>) -> Sites {
        Sites {
            weights: (0..plan.weights().len()).map(|at| (at, 64)).collect(),
            kv: 10,
            layers: vec![0; plan.kv_layers().len()],
            kv_type: KvType::F16,
            kv_blocks,
            arena: 11,
            exchange: 12,
            scratch: 13,
            turns: Vec::new(),
            magnitudes: Vec::new(),
            inputs: vec![0; plan.inputs().len()],
            outputs: vec![512],
            tops: 1 << 20,
        }
    }

    #[test]
    fn what_is_divided_is_covered_once_and_fits() {
        let plan = plan();
        let whole = Bounds::LEAST;
        let few = lower(&plan, &sites(&plan, Some(8)), whole).expect("fits");
        let always = few.iter().filter(|dispatch| dispatch.when.short && dispatch.when.long);
        // One for each operation, the copy of the output, two for its top; of products, whose rows may be few or many but
        // for the head's, one for each.
        assert_eq!(always.count(), plan.steps().len() + 3 + 3);
        let small = Bounds { window: 4096, groups: 20, ..Bounds::LEAST };
        let parts = lower(&plan, &sites(&plan, Some(1)), small).expect("fits");
        assert!(parts.len() > 2 * few.len());
        assert!(parts.iter().flat_map(|part| &part.operands).all(|(region, _)| region.bytes <= small.window));
        for part in &parts {
            let placed = Placed { tables: &[0; 20], positions: &[90; 20] };
            let [x, y, _] = part.groups(plan.shape().rows, placed);
            assert!(u64::from(x.max(y)) <= small.groups, "{part:?}");
        }
        // The parts of the head cover its features, for each run of rows.
        let mut next = 0;
        let head = parts.iter().filter(|part| part.kernel == Kernel::MatVec && part.grid.rows == Rows::Out);
        for part in head.filter(|part| part.grid.first == 0) {
            assert_eq!((u64::from(part.words[4]), part.words[3]), (next, 300));
            next += part.grid.columns;
        }
        assert_eq!(next, 300);
        // The most there can be is what memory for them is planned by.
        for blocks in [1, 8] {
            for work in [1, 1000, 10_000, 13_000, 30_000, 100_000, u64::MAX] {
                for bounds in [Bounds { work, ..small }, Bounds { work, ..whole }] {
                    let Ok(parts) = lower(&plan, &sites(&plan, Some(blocks)), bounds) else { continue };
                    let most = lower(&plan, &sites(&plan, None), bounds).expect("fits");
                    assert!(parts.len() <= most.len(), "{blocks} blocks, {bounds:?}");
                }
            }
        }
    }

    #[test]
    fn no_submission_has_more_work_than_is_bearable() {
        let plan = plan();
        let sites = sites(&plan, Some(8));
        let whole = Bounds::LEAST;
        // Three rows of one product, which has 64 x 64 multiplications a row.
        let small = Bounds { work: 3 * 64 * 64, ..whole };
        let (few, parts) = (lower(&plan, &sites, whole).expect("fits"), lower(&plan, &sites, small).expect("fits"));
        let many = Many { step: true, outs: true, long: false };
        assert_eq!(pieces(&few, plan.shape(), many, whole.work).len(), 1);
        let pieces = pieces(&parts, plan.shape(), many, small.work);
        assert!(pieces.len() > 10, "{pieces:?}");
        let rows =
            |part: &Dispatch| (plan.shape().capacity(part.grid.rows) as u64 - part.grid.first).min(part.grid.most);
        let mut next = 0;
        for piece in pieces {
            assert_eq!(piece.start, next);
            next = piece.end;
            let parts: Vec<&Dispatch> = parts[piece].iter().filter(|part| part.is_in(many)).collect();
            let work: u64 = parts.iter().map(|part| part.work * rows(part)).sum();
            // One row that has more cannot be divided, nor can those that attention may compute together.
            let least = if parts[0].kernel.name().starts_with("attention") { ROWS as u64 } else { 1 };
            assert!(work <= small.work || (parts.len() == 1 && rows(parts[0]) <= least), "{parts:?}");
        }
        assert_eq!(next, parts.len());
    }

    #[test]
    fn rows_are_brought_into_a_form_once_for_all_products_that_read_them() {
        let plan = plan();
        let cooperative = Some(CooperativeMatrix { m: 16, n: 16, k: 16, subgroup_size: 32 });
        let bounds = Bounds { integer: true, cooperative, ..Bounds::LEAST };
        let few = ["matvec", "rows_to_i16", "matvec_integer"];
        let many = ["rows_to_f16", "matmul_cooperative", "rows_to_i16", "matvec_integer"];
        // Small bindings divide rows and features, and so do submissions that bear little.
        for bounds in [bounds, Bounds { window: 1 << 12, ..bounds }, Bounds { work: 20_000, ..bounds }] {
            let dispatches = lower(&plan, &sites(&plan, Some(1)), bounds).expect("fits");
            let names = |many| {
                let recorded = dispatches.iter().filter(|dispatch| dispatch.is_in(many));
                let names = recorded.map(|dispatch| dispatch.kernel.name());
                let mut names: Vec<_> = names.filter(|name| name.contains("mat") || name.contains("rows_to")).collect();
                // What is divided is in as many runs as it takes.
                names.dedup();
                names
            };
            assert_eq!(names(Many { step: false, outs: false, long: false }), few);
            assert_eq!(names(Many { step: true, outs: false, long: false }), many);
            let scratch = dispatches.iter().flat_map(|dispatch| &dispatch.operands).filter(|(at, _)| at.buffer == 13);
            let end = scratch.map(|(at, _)| at.offset + at.bytes).max().expect("some");
            let tops = Tops::of(&plan).expect("logits").scratch_bytes();
            assert!(end <= rows_bytes(&plan, bounds).max(tops), "{end}");
            assert_eq!(rows_bytes(&plan, bounds), 20 * (4 + 32) * WORD);
        }
    }

    #[test]
    fn a_row_larger_than_a_binding_is_named() {
        let plan = plan();
        let of = |window| Bounds { window, ..Bounds::LEAST };
        let error = lower(&plan, &sites(&plan, Some(1)), of(100)).expect_err("tiny");
        assert!(matches!(error, NotLowered::TooLarge { most, .. } if most == ByteSize::new(100)), "{error:?}");
        let error = lower(&plan, &sites(&plan, Some(1000)), of(1 << 16));
        let error = error.expect_err("a long cache");
        let wanted = "the cache of one head of kv0";
        assert!(matches!(&error, NotLowered::TooLarge { what, .. } if what == wanted), "{error:?}");
    }

    /// Each row is attended for once in every kind of recording.
    #[test]
    fn attention_is_divided_among_its_kernels() {
        let plan = plan_of(20, 1000);
        let dispatches = lower(&plan, &sites(&plan, Some(32)), Bounds::LEAST).expect("fits");
        let groups = |tables: &[u32], positions: &[u32]| {
            let placed = Placed { tables, positions };
            let many = Many::kind(&dispatches, placed, 1);
            assert_eq!(Many::ALL[many.place()], many);
            assert!(many.may_be(&dispatches, plan.shape()));
            let attention = dispatches.iter().filter(|dispatch| dispatch.kernel.name().starts_with("attention"));
            let recorded = attention.filter(|dispatch| dispatch.is_in(many));
            let groups = recorded.map(|dispatch| (dispatch.kernel.name(), dispatch.groups(tables.len(), placed)));
            groups.collect::<Vec<_>>()
        };
        assert_eq!(groups(&[0, 1], &[255, 3]), [("attention", [4, 2, 1])]);
        assert_eq!(groups(&[0, 1], &[3, 999]), [("attention", [4, 2, 4]), ("attention_join", [4, 2, 1])]);
        assert_eq!(groups(&[0; 12], &[900; 12]), [("attention_rows", [4, 2, 1]), ("attention", [4, 0, 1])]);
        assert_eq!(groups(&[0; 11], &[900; 11]), [("attention_rows", [4, 2, 1]), ("attention", [4, 11, 1])]);
        let apart: Vec<u32> = (0..9).collect();
        assert_eq!(groups(&apart, &[900; 9]), [("attention_rows", [4, 0, 1]), ("attention", [4, 9, 1])]);
    }

    #[test]
    fn grids_follow_the_rows_of_the_step() {
        let grid = Grid { columns: 100, rows: Rows::Step, first: 32, most: 16 };
        let tile = Tile { columns: 64, rows: 4 };
        assert_eq!([0, 32, 33, 37, 48, 99].map(|rows| grid.groups(tile, rows)[1]), [0, 0, 1, 2, 4, 4]);
        assert_eq!(grid.groups(tile, 99)[0], 2);
    }
}
