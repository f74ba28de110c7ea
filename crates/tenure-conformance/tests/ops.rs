//! Operations on Vulkan: every one, every format, odd shapes. Memory begins as NaN, and the arena is NaN again before
//! every step, so that what nobody wrote shows, and what was written beyond a step's rows. The truth is the definition in 64-bit floats where it is short, and
//! elsewhere the CPU backend's portable kernels, which have such tests of their own.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tenure_conformance::{Gpu, POISON, Poisoned};
use tenure_cpu::simd::Isa;
use tenure_cpu::{Cpu, CpuOptions};
use tenure_device::{
    Backend, Deadline, Device, Footprint, KvPlace, Lease, Load, LoadItem, Memory, Program, SegmentKind, StepInputs,
    StepRows, Stop, WEIGHT_ALIGN, WeightPlace,
};
use tenure_graph::{
    Activation, Graph, KV_BLOCK, KvType, OutputId, Plan, RopeSpec, RopeStyle, StepShape, Val, WeightCatalog, Yarn,
};
use tenure_tensor::{ByteSize, DType, Shape, TensorSpec, codec};
use tenure_vulkan::Caps;

/// Weights by name.
#[derive(Default)]
struct File(HashMap<String, (TensorSpec, Vec<u8>)>);

impl WeightCatalog for File {
    fn find(&self, name: &str) -> Option<&TensorSpec> {
        self.0.get(name).map(|(spec, _)| spec)
    }
}

impl File {
    /// Random values of a type.
    fn put(&mut self, name: &str, dtype: DType, shape: Shape, random: &mut Random) -> Vec<f32> {
        let values: Vec<f32> = (0..shape.elements().expect("small")).map(|_| random.normal()).collect();
        let mut bytes = Vec::new();
        codec::quantize(dtype, &values, &mut bytes).expect("whole blocks");
        let mut stored = vec![0.0; values.len()];
        codec::dequantize(dtype, &bytes, &mut stored).expect("just made");
        self.0.insert(name.to_owned(), (TensorSpec { name: name.to_owned(), dtype, shape }, bytes));
        stored
    }
}

impl File {
    /// A matrix each of whose rows picks one column.
    fn pick(&mut self, name: &str, n: usize, k: usize, random: &mut Random) {
        let mut bytes = vec![0; n * k * size_of::<f32>()];
        for row in bytes.chunks_exact_mut(k * size_of::<f32>()) {
            let column = random.next() as usize % k;
            row[column * size_of::<f32>()..][..size_of::<f32>()].copy_from_slice(&1f32.to_le_bytes());
        }
        let spec = TensorSpec { name: name.to_owned(), dtype: DType::F32, shape: Shape::from([n, k]) };
        self.0.insert(name.to_owned(), (spec, bytes));
    }
}

/// A small generator (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// About normal.
    fn normal(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum::<f32>() * 1.7
    }
}

/// One step of a test.
#[derive(Clone, Debug)]
struct Rows {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    tables: Vec<u32>,
    outputs: Vec<u32>,
}

impl Rows {
    /// `count` rows of one sequence from `first` on, all of them wanted.
    fn run(count: usize, first: u32) -> Rows {
        Rows {
            tokens: (0..count as u32).map(|row| (row * 7 + first) % VOCAB as u32).collect(),
            positions: (first..first + count as u32).collect(),
            tables: vec![0; count],
            outputs: (0..count as u32).collect(),
        }
    }

    /// Of another table.
    fn of(mut self, table: u32) -> Rows {
        self.tables.fill(table);
        self
    }

    /// Both in one step.
    fn and(mut self, other: Rows) -> Rows {
        let first = self.tokens.len() as u32;
        self.tokens.extend(other.tokens);
        self.positions.extend(other.positions);
        self.tables.extend(other.tables);
        self.outputs.extend(other.outputs.iter().map(|row| row + first));
        self
    }
}

/// Tokens of every test's table.
const VOCAB: usize = 37;
/// Block tables of every test.
const TABLES: usize = 3;

fn soon() -> Stop {
    Stop::by(Deadline::after(Duration::from_secs(120)))
}

/// A plan on a backend, and the memory it works in.
struct Bound {
    program: Program,
    weights: Lease,
    kv: Lease,
    arena: Lease,
}

fn bind(backend: &Arc<dyn Backend>, plan: &Arc<Plan>, file: &File, kv: KvType) -> Bound {
    let device = Device::new(backend.clone(), ByteSize::new(1 << 32));
    let blocks = plan.shape().table_len() * TABLES;
    let (mut footprint, mut offsets, mut end) = (Footprint::default(), Vec::new(), ByteSize::ZERO);
    for weight in plan.weights() {
        offsets.push(end.get());
        end = (end + backend.weight_layout(weight).bytes).align_up(WEIGHT_ALIGN);
    }
    let of_kv = |&layer| backend.kv_block_bytes(layer, kv).expect("suits").times(blocks as u64);
    let cache: ByteSize = plan.kv_layers().iter().map(of_kv).sum();
    for (kind, bytes) in [
        (SegmentKind::Weights, end),
        (SegmentKind::Kv, cache.max(ByteSize::new(64))),
        (SegmentKind::Arena, plan.arena()),
        (SegmentKind::Scratch, backend.scratch(plan)),
        (SegmentKind::Exchange, backend.exchange(plan)),
    ] {
        footprint.add(&device, kind, bytes);
    }
    let mut reservation = device.reserve("test", &footprint, &soon()).expect("small");
    let weights = reservation.carve(SegmentKind::Weights).expect("reserved");
    let kv = KvPlace { lease: reservation.carve(SegmentKind::Kv).expect("reserved"), blocks, kv };
    let arena = reservation.carve(SegmentKind::Arena).expect("reserved");
    let (scratch, exchange) =
        (reservation.carve(SegmentKind::Scratch).ok(), reservation.carve(SegmentKind::Exchange).ok());
    let items: Vec<LoadItem<'_>> = plan
        .weights()
        .iter()
        .zip(&offsets)
        .map(|(weight, &offset)| LoadItem { weight, lease: &weights, offset })
        .collect();
    let read = |item: usize, offset: u64, into: &mut [u8]| {
        let bytes = &file.0[&items[item].weight.spec.name].1;
        into.copy_from_slice(&bytes[offset as usize..][..into.len()]);
        Ok(())
    };
    let mut lane = device.open_lane().expect("opens");
    lane.load(&Load { items: &items, read: &read, progress: &|_| () }, &soon()).expect("loads");
    let places = offsets.iter().map(|&offset| WeightPlace::Resident { lease: weights.clone(), offset }).collect();
    let memory = Memory { weights: places, kv, arena, scratch, exchange };
    let program = lane.bind(plan.clone(), &memory).expect("binds");
    Bound { program, weights, kv: memory.kv.lease, arena: memory.arena }
}

/// The blocks of all tables: tables far from each other, their blocks in no order.
fn blocks(plan: &Plan) -> Vec<u32> {
    let len = plan.shape().table_len();
    let blocks: Vec<u32> = (0..(len * TABLES) as u32).map(|at| (at * 7 + 3) % (len * TABLES) as u32).collect();
    let mut seen = blocks.clone();
    seen.sort_unstable();
    seen.dedup();
    if seen.len() == blocks.len() { blocks } else { (0..(len * TABLES) as u32).rev().collect() }
}

/// The rows wanted of each step. `after` looks at the memory after each.
fn results(program: &mut Program, steps: &[Rows], mut after: impl FnMut(&Rows)) -> Vec<Vec<f32>> {
    let plan = program.plan();
    let cols = plan.value(plan.output(OutputId::Logits).expect("an output")).cols;
    let blocks = blocks(plan);
    let mut all = Vec::new();
    for step @ Rows { tokens, positions, tables, outputs } in steps {
        let inputs = StepInputs { tokens, positions, tables, blocks: &blocks, outputs };
        program.run(&inputs, &[soon()]).expect("runs");
        for row in 0..outputs.len() {
            let mut out = vec![f32::NAN; cols];
            program.read(OutputId::Logits, row, &mut out).expect("was computed");
            all.push(out);
        }
        after(step);
    }
    all
}

/// What no step may touch, checked after each: weights, cached positions that are not the step's own, and of the arena
/// what lies beyond the rows of its values, which is NaN before each step.
struct Sentinels<'s> {
    gpu: &'s Gpu,
    plan: &'s Plan,
    bound: [&'s Lease; 3],
    weights: Vec<u32>,
    kv: Vec<u32>,
}

impl<'s> Sentinels<'s> {
    fn new(gpu: &'s Gpu, plan: &'s Plan, bound: [&'s Lease; 3]) -> Self {
        // SAFETY: the program has not run yet.
        let [weights, kv] = unsafe { [gpu.words(bound[0]), gpu.words(bound[1])] };
        Sentinels { gpu, plan, bound, weights, kv }
    }

    fn check(&mut self, what: &str, step: &Rows) {
        // SAFETY: the step has ended, and no other is under way.
        let [weights, kv, arena] = self.bound.map(|lease| unsafe { self.gpu.words(lease) });
        assert!(weights == self.weights, "{what}: weights were written");
        let rows = StepRows { step: step.tokens.len(), out: step.outputs.len() };
        let mut untouched = vec![true; arena.len()];
        for val in self.plan.steps().iter().filter_map(|step| step.out) {
            let (value, span) = (self.plan.value(val), self.plan.span(val));
            untouched[span.offset as usize / 4..][..rows.of(value.rows) * value.cols].fill(false);
        }
        let stray = (0..arena.len()).find(|&at| untouched[at] && arena[at] != POISON);
        assert_eq!(stray, None, "{what}: a word of the arena beyond the step's rows was written");
        self.check_cache(what, step, &kv);
        self.kv = kv;
    }

    /// The cache of a layer: head by head the keys of all blocks, then the values, position after position.
    fn check_cache(&self, what: &str, step: &Rows, kv: &[u32]) {
        let [layer] = self.plan.kv_layers() else {
            assert!(self.plan.kv_layers().is_empty(), "one layer at most");
            assert!(kv == self.kv, "{what}: a cache that is not there was written");
            return;
        };
        let (len, blocks) = (self.plan.shape().table_len(), blocks(self.plan));
        let positions = blocks.len() * KV_BLOCK;
        let own: HashSet<usize> = step
            .positions
            .iter()
            .zip(&step.tables)
            .map(|(&position, &table)| {
                let block = blocks[table as usize * len + position as usize / KV_BLOCK] as usize;
                block * KV_BLOCK + position as usize % KV_BLOCK
            })
            .collect();
        let words = kv.len() / (2 * layer.heads * positions);
        let stray = (0..kv.len()).find(|&at| kv[at] != self.kv[at] && !own.contains(&(at / words % positions)));
        assert_eq!(stray, None, "{what}: a position that is not the step's was written");
    }
}

/// Backends to compare.
struct Pair {
    gpu: Option<Gpu>,
    poisoned: Arc<dyn Backend>,
    cpu: Arc<dyn Backend>,
}

impl Pair {
    fn open(caps: Caps) -> Option<Pair> {
        let gpu = Gpu::open(caps)?;
        let poisoned: Arc<dyn Backend> = Arc::new(Poisoned::new(gpu.backend.clone()));
        Some(Pair { gpu: Some(gpu), poisoned, cpu: portable() })
    }

    fn close(mut self) {
        let gpu = self.gpu.take();
        drop(self);
        gpu.expect("open until now").close();
    }

    fn on_gpu(&self, what: &str, plan: &Arc<Plan>, file: &File, kv: KvType, steps: &[Rows]) -> Vec<Vec<f32>> {
        let Bound { mut program, weights, kv, arena } = bind(&self.poisoned, plan, file, kv);
        let gpu = self.gpu.as_ref().expect("open until closed");
        let mut sentinels = Sentinels::new(gpu, plan, [&weights, &kv, &arena]);
        results(&mut program, steps, |step| sentinels.check(what, step))
    }

    /// Both agree but for rounding.
    fn agree(&self, what: &str, plan: Plan, file: &File, kv: KvType, steps: &[Rows], bound: f64) {
        let plan = Arc::new(plan);
        let want = results(&mut bind(&self.cpu, &plan, file, kv).program, steps, |_| ());
        close(what, &self.on_gpu(what, &plan, file, kv, steps), &want, bound);
    }
}

/// The largest difference, against the largest number wanted.
fn close(what: &str, got: &[Vec<f32>], want: &[Vec<f32>], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().flatten().fold(1e-3, |largest: f64, x| largest.max(f64::from(x.abs())));
    for (row, (got, want)) in got.iter().zip(want).enumerate() {
        for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(got) - f64::from(want)).abs() / largest;
            assert!(error <= bound, "{what}: row {row}, element {at}: {got} instead of {want}");
        }
    }
}

/// A file with a table, and a graph that begins with its rows.
fn table(cols: usize, random: &mut Random) -> (File, Vec<f32>) {
    let mut file = File::default();
    let values = file.put("table", DType::F32, Shape::from([VOCAB, cols]), random);
    (file, values)
}

fn plan(file: &File, shape: StepShape, cols: usize, body: impl FnOnce(&Graph<'_>, Val) -> Val) -> Plan {
    let g = Graph::new(file, shape);
    let x = g.embed(g.table("table", VOCAB, cols), 1.0);
    let out = body(&g, x);
    g.finish(&[(OutputId::Logits, out)]).expect("a sound plan")
}

fn shape(rows: usize) -> StepShape {
    StepShape { rows, outs: rows, context: 4 * KV_BLOCK + 5 }
}

fn computed() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|dtype| dtype.is_computable())
}

/// Devices as they are, and taken for lesser ones: no timeline semaphores, memory out of the host's reach, bindings so
/// small that weights, values and caches are divided.
fn devices(binding: u64) -> [Caps; 2] {
    let lesser = Caps {
        no_timeline_semaphores: true,
        no_mapped_memory: true,
        binding: Some(ByteSize::new(binding)),
        ..Caps::default()
    };
    [Caps::default(), lesser]
}

#[test]
fn sentinels_see_what_a_step_should_not_have_written() {
    let Some(pair) = Pair::open(Caps::default()) else { return };
    let (file, _) = table(64, &mut Random(6));
    let plan = Arc::new(plan(&file, shape(9), 64, |g, x| {
        let layer = g.kv_layer(2, 32);
        g.kv_store(x, x, layer);
        g.attention(x, layer, 2, 0.1, None, None)
    }));
    let Bound { mut program, weights, kv, arena } = bind(&pair.poisoned, &plan, &file, KvType::F16);
    let gpu = pair.gpu.as_ref().expect("open until closed");
    let seen = |sentinels: &mut Sentinels<'_>, claimed: &Rows| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sentinels.check("", claimed))).is_err()
    };
    let leases = [&weights, &kv, &arena];
    let ran = Rows::run(5, 30);
    let mut sentinels = Sentinels::new(gpu, &plan, leases);
    results(&mut program, std::slice::from_ref(&ran), |_| ());
    let (mut fewer, mut elsewhere) = (ran.clone(), ran.clone());
    fewer.tokens.truncate(4);
    elsewhere.positions[3] += 1;
    assert!(seen(&mut sentinels, &fewer), "a row of the arena");
    assert!(seen(&mut sentinels, &elsewhere), "a position of the cache");
    sentinels.weights[0] ^= 1;
    assert!(seen(&mut sentinels, &ran), "a weight");
    sentinels.weights[0] ^= 1;
    assert!(!seen(&mut sentinels, &ran), "what it may write");
    drop((program, weights, kv, arena));
    pair.close();
}

#[test]
fn products_of_every_format() {
    for caps in devices(8 << 10) {
        let Some(pair) = Pair::open(caps) else { return };
        let mut random = Random(1);
        for dtype in computed() {
            let widths = if dtype.is_block() { [dtype.block_len(), 3 * dtype.block_len()] } else { [1, 67] };
            for (at, k) in widths.into_iter().enumerate() {
                for n in [1, 7, 70] {
                    let (mut file, x) = table(k, &mut random);
                    let w = file.put("w", dtype, Shape::from([n, k]), &mut random);
                    let b = file.put("b", DType::F32, Shape::from([n]), &mut random);
                    let biased = at == 0;
                    let plan = Arc::new(plan(&file, shape(37), k, |g, x| {
                        g.matmul(x, g.matrix("w", n, k), biased.then(|| g.vector("b", n)))
                    }));
                    let steps = [1, 5, 8, 9, 37].map(|rows| Rows::run(rows, 0));
                    let want: Vec<Vec<f32>> = steps
                        .iter()
                        .flat_map(|step| &step.tokens)
                        .map(|&token| {
                            let x = &x[token as usize * k..][..k];
                            let product = |(n, w): (usize, &[f32])| {
                                let sum: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                                (sum + if biased { f64::from(b[n]) } else { 0.0 }) as f32
                            };
                            w.chunks_exact(k).enumerate().map(product).collect()
                        })
                        .collect();
                    let what = format!("{dtype} [{n}, {k}]");
                    close(&what, &pair.on_gpu(&what, &plan, &file, KvType::F32, &steps), &want, 2e-6);
                }
            }
        }
        pair.close();
    }
}

#[test]
fn rows_of_tables_of_every_format() {
    for caps in devices(8 << 10) {
        let Some(pair) = Pair::open(caps) else { return };
        let mut random = Random(2);
        for dtype in computed() {
            let blocks =
                if dtype.is_block() { vec![dtype.block_len(), 3 * dtype.block_len()] } else { vec![1, 33, 1026] };
            for cols in blocks {
                let mut file = File::default();
                let values = file.put("table", dtype, Shape::from([VOCAB, cols]), &mut random);
                let g = Graph::new(&file, shape(9));
                let out = g.embed(g.table("table", VOCAB, cols), 1.5);
                let plan = Arc::new(g.finish(&[(OutputId::Logits, out)]).expect("a sound plan"));
                let steps = [Rows::run(9, 0), Rows::run(9, 20)];
                let tokens = steps.iter().flat_map(|step| &step.tokens);
                let want: Vec<Vec<f32>> = tokens
                    .map(|&token| values[token as usize * cols..][..cols].iter().map(|x| x * 1.5).collect())
                    .collect();
                let what = format!("{dtype} x {cols}");
                close(&what, &pair.on_gpu(&what, &plan, &file, KvType::F32, &steps), &want, 2e-7);
            }
        }
        pair.close();
    }
}

#[test]
fn norms_and_elementwise_operations() {
    for caps in devices(8 << 10) {
        let Some(pair) = Pair::open(caps) else { return };
        let mut random = Random(3);
        for (cols, group) in [(1, 1), (33, 33), (96, 32), (129, 43), (1026, 1026)] {
            let (mut file, _) = table(cols, &mut random);
            file.put("norm", DType::F16, Shape::from([group]), &mut random);
            let steps = [Rows::run(1, 3), Rows::run(11, 0)];
            let run = |what: &str, body: &dyn Fn(&Graph<'_>, Val) -> Val| {
                let plan = plan(&file, shape(11), cols, body);
                pair.agree(&format!("{what}, {cols}"), plan, &file, KvType::F32, &steps, 1e-6);
            };
            run("norm", &|g, x| g.rms_norm(x, g.vector("norm", group), 1e-5));
            run("silu", &|g, x| g.glu(g.scale(x, 3.0), g.scale(x, -0.5), Activation::Silu));
            run("gelu", &|g, x| g.glu(g.scale(x, 3.0), g.scale(x, -0.5), Activation::GeluTanh));
            run("gelu of large numbers", &|g, x| g.glu(g.scale(x, 300.0), x, Activation::GeluTanh));
            run("silu of large numbers", &|g, x| g.glu(g.scale(x, 300.0), x, Activation::Silu));
            run("add", &|g, x| g.add(g.scale(x, 2.0), x));
            run("add in place", &|g, x| {
                let y = g.scale(x, 2.0);
                g.add(g.add(y, x), x)
            });
            run("softcap", &|g, x| g.softcap(g.scale(x, 40.0), 30.0));
            run("softcap of large numbers", &|g, x| g.softcap(g.scale(x, 1e6), 30.0));
            run("rows taken", &|g, x| g.scale(g.take_rows(x), 2.0));
        }
        // Rows in another order, and twice.
        let (file, _) = table(40, &mut random);
        let plan = plan(&file, shape(11), 40, |g, x| g.take_rows(x));
        let mut step = Rows::run(11, 0);
        step.outputs = vec![10, 0, 0, 7];
        pair.agree("rows taken in another order", plan, &file, KvType::F32, &[step], 0.0);
        pair.close();
    }
}

#[test]
fn ropes_of_every_kind_at_every_position() {
    for caps in devices(8 << 10) {
        let Some(pair) = Pair::open(caps) else { return };
        let mut random = Random(4);
        let yarn = Yarn { original_context: 4096, ext_factor: 1.0, attn_factor: 1.0, beta_fast: 32.0, beta_slow: 1.0 };
        for style in [RopeStyle::Adjacent, RopeStyle::Halves] {
            for (heads, head_dim, dims) in [(1, 2, 2), (3, 32, 32), (2, 80, 32), (5, 17, 6)] {
                for (what, base, freq_scale, with_factors, yarn) in [
                    ("plain", 10_000.0, 1.0, false, None),
                    ("scaled", 1e6, 0.25, false, None),
                    ("divided", 5e5, 1.0, true, None),
                    ("yarn", 1e4, 0.25, false, Some(yarn)),
                ] {
                    let cols = heads * head_dim;
                    let (mut file, _) = table(cols, &mut random);
                    let factors: Vec<f32> = (0..dims / 2).map(|i| 1.0 + i as f32 * 0.37).collect();
                    let bytes = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
                    let spec =
                        TensorSpec { name: "factors".to_owned(), dtype: DType::F32, shape: Shape::from([dims / 2]) };
                    file.0.insert("factors".to_owned(), (spec, bytes));
                    let shape = StepShape { rows: 9, outs: 9, context: 200_000 };
                    let plan = plan(&file, shape, cols, |g, x| {
                        let factors = with_factors.then(|| g.vector("factors", dims / 2));
                        let rope = RopeSpec { style, dims, base, freq_scale, factors, yarn };
                        g.rope(x, head_dim, &rope)
                    });
                    let mut far = Rows::run(9, 0);
                    far.positions = vec![0, 1, 31, 32, 4095, 65_535, 99_999, 131_071, 199_999];
                    let what = format!("{what} {style:?} {heads} x {head_dim}, {dims}");
                    pair.agree(&what, plan, &file, KvType::F32, &[far], 1e-6);
                }
            }
        }
        pair.close();
    }
}

#[test]
fn attention_over_several_sequences() {
    for caps in devices(1 << 20) {
        let Some(pair) = Pair::open(caps) else { return };
        let mut random = Random(5);
        for (heads, kv_heads, head_dim) in [(1, 1, 32), (6, 2, 64), (3, 3, 33), (4, 1, 96), (2, 1, 2), (2, 2, 256)] {
            for (kv, bound) in [(KvType::F32, 2e-6), (KvType::F16, 2e-6), (KvType::Q8_0, 1e-4)] {
                if kv == KvType::Q8_0 && head_dim % 32 != 0 {
                    continue;
                }
                for (window, softcap) in [(None, None), (Some(7), None), (Some(40), Some(5.0))] {
                    let width = 48;
                    let mut file = File::default();
                    // What is cached is exact, so that both round it alike.
                    file.put("table", DType::F16, Shape::from([VOCAB, width]), &mut random);
                    for (name, n) in [("q", heads), ("k", kv_heads), ("v", kv_heads)] {
                        file.pick(name, n * head_dim, width, &mut random);
                    }
                    let plan = plan(&file, shape(70), width, |g, x| {
                        let layer = g.kv_layer(kv_heads, head_dim);
                        let part = |name, n| g.matmul(x, g.matrix(name, n * head_dim, width), None);
                        let (q, k, v) = (part("q", heads), part("k", kv_heads), part("v", kv_heads));
                        g.kv_store(k, v, layer);
                        g.attention(q, layer, heads, 0.1, window, softcap)
                    });
                    let steps = [
                        Rows::run(3, 0).of(1),
                        Rows::run(65, 0).of(2),
                        Rows::run(1, 3).of(1).and(Rows::run(2, 65).of(2)).and(Rows::run(40, 0)),
                        Rows::run(1, 40).and(Rows::run(1, 67).of(2)),
                        Rows::run(61, 68).of(2),
                    ];
                    let what = format!("{heads}/{kv_heads} x {head_dim} {kv:?} {window:?} {softcap:?}");
                    pair.agree(&what, plan, &file, kv, &steps, bound);
                }
            }
        }
        pair.close();
    }
}

/// The CPU backend with its portable kernels.
fn portable() -> Arc<dyn Backend> {
    let options = CpuOptions { threads: Some(1), isa: Some(Isa::Portable), ..CpuOptions::default() };
    Arc::new(Cpu::new(&options).expect("portable"))
}

#[test]
fn rows_beyond_a_value_cannot_be_read() {
    let mut file = File::default();
    let table = file.put("table", DType::F32, Shape::from([VOCAB, 16]), &mut Random(7));
    // More results may be asked for than the value they are of has rows.
    let g = Graph::new(&file, StepShape { rows: 1, outs: 5000, context: 32 });
    let x = g.embed(g.table("table", VOCAB, 16), 1.0);
    let plan = Arc::new(g.finish(&[(OutputId::Logits, x)]).expect("a sound plan"));
    let mut program = bind(&portable(), &plan, &file, KvType::F32).program;
    let outputs = [0; 5000];
    let inputs = StepInputs { tokens: &[2], positions: &[0], tables: &[0], blocks: &[0; TABLES], outputs: &outputs };
    program.run(&inputs, &[soon()]).expect("runs");
    let mut row = [0.0; 16];
    program.read(OutputId::Logits, 0, &mut row).expect("computed");
    assert_eq!(row, table[32..48]);
    for beyond in [1, 4999] {
        assert!(program.read(OutputId::Logits, beyond, &mut row).is_err(), "row {beyond}");
    }
}

#[test]
fn weights_are_used_as_they_were_taken() {
    let mut file = File::default();
    file.put("w", DType::Q8_0, Shape::from([32, 32]), &mut Random(9));
    let g = Graph::new(&file, StepShape { rows: 1, outs: 1, context: 32 });
    let table = g.table("w", 32, 32);
    let x = g.matmul(g.embed(table, 1.0), table, None);
    let error = g.finish(&[(OutputId::Logits, x)]).expect_err("never taken as a matrix");
    assert!(error.to_string().contains('w'), "{error}");
}
