//! From a plan's steps to dispatches: which kernel, over which bytes, with which numbers.
//!
//! A binding shows a kernel only so many bytes, and a grid has only so many workgroups in a direction, so a step may
//! take several dispatches: parts of a weight's rows, of the step's rows, or of a cache's heads.

use tenure_graph::{KvLayerId, KvType, Op, Plan, RopeSpec, RopeStyle, Rows, Step, StepShape, Val, WeightId};
use tenure_tensor::{ByteSize, DType};

use crate::hazard::{Access, Region};
use crate::kernel::{COMMON_WORDS, Kernel, MOST_BINDINGS, MOST_HEAD_OF_ROWS, PUSH_WORDS, Tile};
use crate::layout::{BlockLayout, KvLayout, WORD, weight_bytes};

/// One run of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    pub(crate) kernel: Kernel,
    /// Specialisation constants.
    pub(crate) constants: [u32; 2],
    /// What is behind each binding.
    pub(crate) operands: Vec<(Region, Access)>,
    /// The kernel's own push constants.
    pub(crate) words: Vec<u32>,
    pub(crate) grid: Grid,
    /// Multiplications for each row.
    pub(crate) work: u64,
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

/// Up to so many rows, products are computed by the kernel for few.
pub(crate) const FEW: usize = 8;

/// What bounds a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The most bytes behind one binding, wherever they begin.
    pub(crate) window: u64,
    /// The most workgroups in one direction.
    pub(crate) groups: u64,
    /// The most multiplications of one submission, as long as one row has no more.
    pub(crate) work: u64,
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
    /// Offset of each distinct rope's turns, in the order of [`ropes`].
    pub(crate) turns: Vec<u64>,
    /// Factor on the cosines and sines of each.
    pub(crate) magnitudes: Vec<f32>,
    /// Offset of each output.
    pub(crate) outputs: Vec<u64>,
}

/// Something that fits into no binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TooLarge {
    pub(crate) what: String,
    pub(crate) bytes: ByteSize,
    pub(crate) most: ByteSize,
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
pub(crate) fn lower(plan: &Plan, sites: &Sites, bounds: Bounds) -> Result<Vec<Dispatch>, TooLarge> {
    let mut lowering = Lowering { plan, sites, bounds, ropes: ropes(plan), dispatches: Vec::new() };
    for step in plan.steps() {
        lowering.step(step)?;
    }
    for (&(_, val), &offset) in plan.outputs().iter().zip(&sites.outputs) {
        lowering.read_back(val, offset)?;
    }
    Ok(lowering.dispatches)
}

/// Divides the dispatches into submissions of so many multiplications at most, or of one dispatch that has more.
pub(crate) fn pieces(dispatches: &[Dispatch], shape: StepShape, many: Many, most: u64) -> Vec<std::ops::Range<usize>> {
    let (mut pieces, mut first, mut work) = (Vec::new(), 0, 0u64);
    for (at, dispatch) in dispatches.iter().enumerate() {
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
    fn step(&mut self, step: &Step) -> Result<(), TooLarge> {
        let Some(out) = step.out else {
            // The only operation without a result.
            return match step.op {
                Op::KvStore { k, v, layer } => self.kv_store(k, v, layer),
                _ => Ok(()),
            };
        };
        match step.op {
            Op::Embed { table, scale } => self.embed(table, scale, out),
            Op::RmsNorm { x, weight, eps, group } => {
                let cols = self.cols(out);
                let weight = self.vector(weight)?;
                self.by_rows(&[x, out], |me, run| {
                    let operands = vec![me.read(x, run), weight, me.write(out, run)];
                    let words = vec![cols as u32, group as u32, eps.to_bits()];
                    me.push(Kernel::RmsNorm, [0; 2], operands, words, cols / group as u64, run, 0);
                })
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
                    tenure_graph::Activation::Silu => 0,
                    tenure_graph::Activation::GeluTanh => 1,
                };
                self.elementwise(Kernel::Glu, kind, &[gate, up], &[], out)
            }
            Op::Add { a, b } => self.elementwise(Kernel::Add, 0, &[a, b], &[], out),
            Op::Scale { x, factor } => self.elementwise(Kernel::Scale, 0, &[x], &[factor.to_bits()], out),
            Op::Softcap { x, cap } => self.elementwise(Kernel::Softcap, 0, &[x], &[cap.to_bits()], out),
            Op::TakeRows { x } => self.take_rows(x, out),
        }
    }

    fn embed(&mut self, table: WeightId, scale: f32, out: Val) -> Result<(), TooLarge> {
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

    fn matmul(&mut self, x: Val, w: WeightId, bias: Option<WeightId>, out: Val) -> Result<(), TooLarge> {
        let (format, row) = self.matrix(w);
        let (k, n) = (self.cols(x), self.cols(out));
        let bias = bias.map(|bias| self.vector(bias)).transpose()?;
        // Both kernels for products must have few enough workgroups.
        let tile = Kernel::MatVec.tile().columns.min(Kernel::MatMul.tile().columns);
        let most = self.bounds.groups * u64::from(tile);
        for (first, count) in self.windows(n, row, most, || self.row_name(w))? {
            let weight = self.rows_of(w, row, first, count);
            self.by_rows_of_work(&[x, out], k * count, |me, run| {
                let x = me.read(x, run);
                // What is bound in place of a bias that is not there is not read.
                let operands = vec![x, weight, bias.unwrap_or(x), me.write(out, run)];
                let words = [k, row / WORD, count, n, first, u64::from(bias.is_some())].map(|word| word as u32);
                me.push(Kernel::MatMul, [format, 0], operands, words.to_vec(), count, run, k * count);
            })?;
        }
        Ok(())
    }

    fn rope(&mut self, x: Val, head_dim: usize, rope: &RopeSpec, out: Val) -> Result<(), TooLarge> {
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

    fn kv_store(&mut self, k: Val, v: Val, layer: KvLayerId) -> Result<(), TooLarge> {
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
    ) -> Result<(), TooLarge> {
        let kv = self.plan.kv_layer(layer);
        let (head_dim, group) = (kv.head_dim as u64, (heads / kv.heads) as u64);
        let context = self.plan.shape().context as u64;
        for part in self.heads(layer)? {
            let count = part.count * group;
            let work = |heads: u64| 2 * heads * head_dim * context;
            // By the rows that all heads can have, however they are divided: then there are never more dispatches than
            // with every head by itself.
            self.by_rows_of_work(&[q, out], work(heads as u64), |me, run| {
                let operands = vec![me.read(q, run), (part.region, Access::Read), me.write(out, run)];
                let words = [head_dim, heads as u64, part.first, part.count, part.blocks, part.position_words, group];
                let words = words.iter().map(|&word| word as u32).chain(scoring).collect();
                let constants = [me.kv_format(), head_dim as u32];
                me.push(Kernel::Attention, constants, operands, words, count, run, work(count));
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
    ) -> Result<(), TooLarge> {
        let cols = self.cols(out);
        let values: Vec<Val> = inputs.iter().copied().chain([out]).collect();
        self.by_rows(&values, |me, run| {
            let read = inputs.iter().map(|&input| me.read(input, run));
            let operands = read.chain([me.write(out, run)]).collect();
            let words = std::iter::once(cols as u32).chain(words.iter().copied()).collect();
            me.push(kernel, [constant, 0], operands, words, cols, run, 0);
        })
    }

    fn take_rows(&mut self, x: Val, out: Val) -> Result<(), TooLarge> {
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

    /// Copies an output to where the host reads it.
    fn read_back(&mut self, val: Val, offset: u64) -> Result<(), TooLarge> {
        let (cols, buffer) = (self.cols(val), self.sites.exchange);
        self.by_rows(&[val], |me, run| {
            let offset = offset + run.first * cols * WORD;
            let to = (Region { buffer, offset, bytes: run.count * cols * WORD }, Access::Write);
            me.push(Kernel::Copy, [0; 2], vec![me.read(val, run), to], vec![cols as u32], cols, run, 0);
        })
    }

    /// Divides the rows of some values, of which all have as many, into runs that fit the bindings and the grid.
    fn by_rows(&mut self, values: &[Val], each: impl FnMut(&mut Self, Run)) -> Result<(), TooLarge> {
        self.by_rows_of_work(values, 0, each)
    }

    /// The same where each row takes so many multiplications, of which a submission bears a number.
    fn by_rows_of_work(
        &mut self,
        values: &[Val],
        work: u64,
        mut each: impl FnMut(&mut Self, Run),
    ) -> Result<(), TooLarge> {
        let Some(&out) = values.last() else { return Ok(()) };
        let rows = self.plan.value(out).rows;
        let capacity = self.plan.shape().capacity(rows) as u64;
        let widest = values.iter().copied().max_by_key(|&val| self.cols(val)).unwrap_or(out);
        let row = self.cols(widest) * WORD;
        let bearable = (self.bounds.work / work.max(1)).max(1);
        let most = self.bounds.groups.min(bearable);
        for (first, count) in self.windows(capacity, row, most, || format!("a row of {widest}"))? {
            each(self, Run { rows, first, count });
        }
        Ok(())
    }

    /// Divides `count` rows of `row` bytes into windows that fit a binding, of `most` rows each.
    fn windows(&self, count: u64, row: u64, most: u64, what: impl Fn() -> String) -> Result<Vec<(u64, u64)>, TooLarge> {
        let window = self.bounds.window;
        let fits = (window / row.max(1)).min(most);
        if fits == 0 {
            return Err(TooLarge { what: what(), bytes: ByteSize::new(row), most: ByteSize::new(window) });
        }
        Ok((0..count.div_ceil(fits)).map(|at| (at * fits, fits.min(count - at * fits))).collect())
    }

    /// Divides a layer's cache by its heads.
    fn heads(&self, layer: KvLayerId) -> Result<Vec<HeadPart>, TooLarge> {
        let kv = self.plan.kv_layer(layer);
        let what = || format!("the cache of one head of {layer}");
        let Some(layout) = KvLayout::of(kv, self.sites.kv_type) else {
            return Err(TooLarge { what: what(), bytes: ByteSize::ZERO, most: ByteSize::ZERO });
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
    ) {
        debug_assert!(operands.len() == kernel.bindings() && operands.len() <= MOST_BINDINGS);
        debug_assert!(COMMON_WORDS + words.len() <= PUSH_WORDS);
        let grid = Grid { columns, rows: run.rows, first: run.first, most: run.count };
        self.dispatches.push(Dispatch { kernel, constants, operands, words, grid, work });
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

    fn vector(&self, id: WeightId) -> Result<(Region, Access), TooLarge> {
        let (buffer, offset) = self.sites.weights[id.index()];
        let bytes = weight_bytes(self.plan.weight(id)).unwrap_or(0);
        if bytes > self.bounds.window {
            let (bytes, most) = (ByteSize::new(bytes), ByteSize::new(self.bounds.window));
            return Err(TooLarge { what: self.name(id), bytes, most });
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

impl Dispatch {
    /// The kernel, where so many rows of the step and of its outputs may come.
    pub(crate) fn kernel_for(&self, many: Many) -> Kernel {
        match (self.kernel, many.of(self.grid.rows)) {
            (Kernel::MatMul, false) => Kernel::MatVec,
            (Kernel::Attention, true) if self.constants[1] <= MOST_HEAD_OF_ROWS => Kernel::AttentionRows,
            (kernel, _) => kernel,
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
            Rows::Step => 0,
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

/// Which numbers of rows a recording is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Many {
    /// More than [`FEW`] rows of the step.
    pub(crate) step: bool,
    /// More than [`FEW`] outputs.
    pub(crate) outs: bool,
}

impl Many {
    /// The four kinds of recordings, by their place.
    pub(crate) const ALL: [Many; 4] = [
        Many { step: false, outs: false },
        Many { step: true, outs: false },
        Many { step: false, outs: true },
        Many { step: true, outs: true },
    ];

    /// The kind for a step.
    pub(crate) const fn kind(rows: usize, outs: usize) -> Many {
        Many { step: rows > FEW, outs: outs > FEW }
    }

    /// Its place in [`Many::ALL`].
    pub(crate) const fn place(self) -> usize {
        self.step as usize + 2 * self.outs as usize
    }

    /// Whether there may be many of these.
    pub(crate) const fn of(self, rows: Rows) -> bool {
        match rows {
            Rows::Step => self.step,
            Rows::Out => self.outs,
        }
    }
}

#[cfg(test)]
mod tests {
    use tenure_graph::{Graph, OutputId, StepShape, WeightCatalog};
    use tenure_tensor::{Shape, TensorSpec};

    use super::*;

    struct File(Vec<TensorSpec>);

    impl WeightCatalog for File {
        fn find(&self, name: &str) -> Option<&TensorSpec> {
            self.0.iter().find(|spec| spec.name == name)
        }
    }

    /// One layer of attention and a head, over a vocabulary of 300.
    fn plan() -> Plan {
        let spec = |name: &str, dtype, shape| TensorSpec { name: name.to_owned(), dtype, shape };
        let file = File(vec![
            spec("embd", DType::Q4_0, Shape::from([300, 64])),
            spec("qkv", DType::F16, Shape::from([64, 64])),
        ]);
        let g = Graph::new(&file, StepShape { rows: 20, outs: 3, context: 100 });
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
            turns: Vec::new(),
            magnitudes: Vec::new(),
            outputs: vec![512],
        }
    }

    #[test]
    fn what_is_divided_is_covered_once_and_fits() {
        let plan = plan();
        let whole = Bounds { window: 1 << 27, groups: 65_535, work: u64::MAX };
        let few = lower(&plan, &sites(&plan, Some(8)), whole).expect("fits");
        assert_eq!(few.len(), plan.steps().len() + 1, "one for each operation, and the copy of the output");
        let small = Bounds { window: 4096, groups: 20, work: u64::MAX };
        let parts = lower(&plan, &sites(&plan, Some(1)), small).expect("fits");
        assert!(parts.len() > 2 * few.len());
        assert!(parts.iter().flat_map(|part| &part.operands).all(|(region, _)| region.bytes <= small.window));
        for part in &parts {
            for many in Many::ALL {
                let [x, y, _] = part.grid.groups(part.kernel_for(many).tile(), plan.shape().rows);
                assert!(u64::from(x.max(y)) <= small.groups, "{part:?}");
            }
        }
        // The parts of the head cover its features, for each run of rows.
        let mut next = 0;
        let head = parts.iter().filter(|part| part.kernel == Kernel::MatMul && part.grid.rows == Rows::Out);
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
        let whole = Bounds { window: 1 << 27, groups: 65_535, work: u64::MAX };
        // Three rows of one product, which has 64 x 64 multiplications a row.
        let small = Bounds { work: 3 * 64 * 64, ..whole };
        let (few, parts) = (lower(&plan, &sites, whole).expect("fits"), lower(&plan, &sites, small).expect("fits"));
        let many = Many { step: true, outs: true };
        assert_eq!(pieces(&few, plan.shape(), many, whole.work).len(), 1);
        let pieces = pieces(&parts, plan.shape(), many, small.work);
        assert!(pieces.len() > 10, "{pieces:?}");
        let rows =
            |part: &Dispatch| (plan.shape().capacity(part.grid.rows) as u64 - part.grid.first).min(part.grid.most);
        let mut next = 0;
        for piece in pieces {
            assert_eq!(piece.start, next);
            next = piece.end;
            let parts = &parts[piece];
            let work: u64 = parts.iter().map(|part| part.work * rows(part)).sum();
            // One row that has more cannot be divided.
            assert!(work <= small.work || (parts.len() == 1 && rows(&parts[0]) == 1), "{parts:?}");
        }
        assert_eq!(next, parts.len());
    }

    #[test]
    fn a_row_larger_than_a_binding_is_named() {
        let plan = plan();
        let error = lower(&plan, &sites(&plan, Some(1)), Bounds { window: 100, groups: 65_535, work: u64::MAX })
            .expect_err("tiny");
        assert_eq!(error.most, ByteSize::new(100));
        let error = lower(&plan, &sites(&plan, Some(1000)), Bounds { window: 1 << 16, groups: 65_535, work: u64::MAX });
        assert_eq!(error.expect_err("a long cache").what, "the cache of one head of kv0");
    }

    #[test]
    fn grids_follow_the_rows_of_the_step() {
        let grid = Grid { columns: 100, rows: Rows::Step, first: 32, most: 16 };
        let tile = Tile { columns: 64, rows: 4 };
        assert_eq!([0, 32, 33, 37, 48, 99].map(|rows| grid.groups(tile, rows)[1]), [0, 0, 1, 2, 4, 4]);
        assert_eq!(grid.groups(tile, 99)[0], 2);
    }
}
