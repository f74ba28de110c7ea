//! Operations on Vulkan: every one, every format, every variant of the kernels, odd shapes. Memory begins as NaN, and the
//! arena is NaN again before every step, so that what nobody wrote shows, and what was written beyond a step's rows. The
//! truth is the definition in 64-bit floats where it is short, and elsewhere the CPU backend's portable kernels, which
//! have such tests of their own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tenure_conformance::checks::soon;
use tenure_conformance::{Bound, Gpu, POISON, Poisoned, bind_with_cache, products};
use tenure_cpu::simd::Isa;
use tenure_cpu::{Cpu, CpuOptions};
use tenure_device::{Backend, Lease, MOST_TOP, Program, RunError, StepInputs, StepRows, Wanted};
use tenure_graph::{
    Activation, Graph, InputId, KV_BLOCK, KvType, OutputId, Plan, RopeSpec, RopeStyle, StepShape, Val, Value,
    WeightCatalog, Yarn,
};
use tenure_tensor::{ByteSize, DType, Shape, TensorSpec, codec};
use tenure_vulkan::{Caps, KernelSet};

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
        self.put_values(name, dtype, shape, &values)
    }

    /// What is stored of these values.
    fn put_values(&mut self, name: &str, dtype: DType, shape: Shape, values: &[f32]) -> Vec<f32> {
        let mut bytes = Vec::new();
        codec::quantize(dtype, values, &mut bytes).expect("whole blocks");
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

fn bind(backend: &Arc<dyn Backend>, plan: &Arc<Plan>, file: &File, kv: KvType) -> Bound {
    let blocks = plan.shape().table_len() * TABLES;
    bind_with_cache(backend, plan, kv, blocks, &|spec| file.0[&spec.name].1.clone())
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
        let wanted = vec![Wanted::Row; outputs.len()];
        let inputs = StepInputs { tokens, positions, tables, blocks: &blocks, outputs, wanted: &wanted, given: &[] };
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
    bound: [Option<&'s Lease>; 3],
    weights: Vec<u32>,
    kv: Vec<u32>,
}

impl<'s> Sentinels<'s> {
    fn new(gpu: &'s Gpu, plan: &'s Plan, bound: [Option<&'s Lease>; 3]) -> Self {
        // SAFETY: the program has not run yet.
        let [weights, kv] =
            unsafe { [bound[0], bound[1]].map(|lease| lease.map_or_else(Vec::new, |lease| gpu.words(lease))) };
        Sentinels { gpu, plan, bound, weights, kv }
    }

    fn check(&mut self, what: &str, step: &Rows) {
        // SAFETY: the step has ended, and no other is under way.
        let [weights, kv, arena] =
            self.bound.map(|lease| lease.map_or_else(Vec::new, |lease| unsafe { self.gpu.words(lease) }));
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

    /// The dispatches of a plan's steps of so many rows.
    fn dispatches(&self, plan: &Plan, rows: usize) -> BTreeMap<&'static str, usize> {
        let backend = &self.gpu.as_ref().expect("open until closed").backend;
        let blocks = TABLES * plan.shape().table_len();
        backend.explain(plan, (KvType::F32, blocks), rows, &vec![Wanted::Row; rows]).expect("lowers").dispatches
    }

    /// The kernel for products of these.
    fn multiplies_by(&self, plan: &Plan, rows: usize) -> &'static str {
        let dispatches = self.dispatches(plan, rows);
        let products = dispatches.keys().filter(|name| name.starts_with("mat"));
        let names: Vec<&'static str> = products.copied().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        names[0]
    }

    fn kernels(&self) -> KernelSet {
        self.gpu.as_ref().expect("open until closed").backend.kernels()
    }

    fn on_gpu(&self, what: &str, plan: &Arc<Plan>, file: &File, kv: KvType, steps: &[Rows]) -> Vec<Vec<f32>> {
        let Bound { mut program, weights, kv, arena } = bind(&self.poisoned, plan, file, kv);
        let gpu = self.gpu.as_ref().expect("open until closed");
        let mut sentinels = Sentinels::new(gpu, plan, [Some(&weights), kv.as_ref(), Some(&arena)]);
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

/// The types that every backend computes with: those that a GGUF file may have.
fn computed() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|dtype| dtype.is_computable() && dtype.ggml_id().is_some())
}

/// Devices as they are, and taken for lesser ones: no timeline semaphores, memory out of the host's reach, bindings so
/// small that weights, values and caches are divided.
fn devices(binding: u64) -> [Caps; 2] {
    let lesser = Caps {
        no_timeline_semaphores: true,
        no_mapped_memory: true,
        no_subgroup_arithmetic: false,
        binding: Some(ByteSize::new(binding)),
        ..Caps::default()
    };
    [Caps::default(), lesser]
}

/// The same, and with the plain kernels, for operations whose kernels have other variants.
fn variants(binding: u64) -> [Caps; 3] {
    let [whole, lesser] = devices(binding);
    [whole, lesser, Caps { no_subgroup_arithmetic: true, ..whole }]
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
    let leases = [Some(&weights), kv.as_ref(), Some(&arena)];
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
    let ways = products().into_iter();
    let divided = ways.clone().map(|caps| Caps { binding: Some(ByteSize::new(12 << 10)), ..caps });
    for caps in variants(12 << 10).into_iter().chain(ways).chain(divided) {
        let Some(pair) = Pair::open(caps) else { return };
        let mut random = Random(1);
        for dtype in computed() {
            // In the last, lanes have work more than once.
            let widths =
                if dtype.is_block() { [dtype.block_len(), 3 * dtype.block_len(), 2304] } else { [1, 67, 2310] };
            for (at, k) in widths.into_iter().enumerate() {
                for n in if at < 2 { &[1, 7, 70][..] } else { &[9] } {
                    let n = *n;
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
                    // Cooperative matrices are of f16, and used where there are many rows; integers are of 16 bits.
                    let kernels = pair.kernels();
                    let integer = kernels.integer && dtype.is_block();
                    let (name, bound) = match (kernels.cooperative && dtype != DType::F32, integer) {
                        (true, _) => ("matmul_cooperative", 1e-3),
                        (false, true) => ("matmul_integer", 1e-4),
                        (false, false) => ("matmul", 2e-6),
                    };
                    let got = pair.on_gpu(&what, &plan, &file, KvType::F32, &steps);
                    let (few, many) = (1 + 5 + 8, 9 + 37);
                    assert_eq!(got.len(), few + many);
                    close(&what, &got[..few], &want[..few], if integer { 1e-4 } else { 2e-6 });
                    close(&what, &got[few..], &want[few..], bound);
                    assert_eq!(pair.multiplies_by(&plan, 37), name);
                    assert_eq!(pair.multiplies_by(&plan, 8), if integer { "matvec_integer" } else { "matvec" });
                }
            }
        }
        pair.close();
    }
}

/// Rows far beyond f16 on both sides, one by one as exact as others, and one with a number that is none.
#[test]
fn products_take_rows_of_any_size() {
    for caps in products() {
        let Some(pair) = Pair::open(caps) else { return };
        rows_of_any_size(pair);
    }
}

fn rows_of_any_size(pair: Pair) {
    let kernels = pair.kernels();
    let (mut random, n) = (Random(11), 70);
    let sizes = [(DType::F16, 100, 1.0f32), (DType::F16, 64, 3e3), (DType::BF16, 33, 1e-9), (DType::BF16, 160, 1e20)];
    for (dtype, k, size) in
        sizes.into_iter().chain([(DType::Q8_0, 96, 1e-3), (DType::Q4K, 512, 1.0), (DType::MXFP4, 64, 1e33)])
    {
        let mut file = File::default();
        let mut x: Vec<f32> = (0..VOCAB * k).map(|_| random.normal()).collect();
        for (token, row) in x.chunks_exact_mut(k).enumerate() {
            // Below 2^-111 there is less of them.
            let size = (10f32.powi(token as i32 - 14) / size.max(1.0)).max(1e-32);
            row.iter_mut().for_each(|x| *x *= size);
        }
        x[5 * k + k / 2] = f32::NAN;
        let bytes = x.iter().flat_map(|x| x.to_le_bytes()).collect();
        let spec = TensorSpec { name: "table".to_owned(), dtype: DType::F32, shape: Shape::from([VOCAB, k]) };
        file.0.insert("table".to_owned(), (spec, bytes));
        // Larger towards the end of each row, and of the features.
        let values: Vec<f32> = (0..n * k)
            .map(|at| random.normal() * size * 2f32.powi((at % k * 12 / k + at / k * 8 / n) as i32 - 19))
            .collect();
        let w = file.put_values("w", dtype, Shape::from([n, k]), &values);
        let plan = Arc::new(plan(&file, shape(260), k, |g, x| g.matmul(x, g.matrix("w", n, k), None)));
        let many = Rows::run(130, 0).and(Rows::run(130, 3).of(1));
        for step in [Rows::run(7, 1), Rows::run(9, 0), Rows::run(127, 1), Rows::run(129, 2), many] {
            let bound = match (kernels.cooperative && step.tokens.len() > 8, kernels.integer && dtype.is_block()) {
                (true, _) => 1e-3,
                (false, true) => 1e-4,
                (false, false) => 2e-6,
            };
            let what = format!("{dtype}, {} rows", step.tokens.len());
            let got = pair.on_gpu(&what, &plan, &file, KvType::F32, std::slice::from_ref(&step));
            for (got, &token) in got.iter().zip(&step.tokens) {
                let x = &x[token as usize * k..][..k];
                if token == 5 {
                    assert!(got.iter().all(|x| x.is_nan()), "{what}");
                    continue;
                }
                for (n, (&got, w)) in got.iter().zip(w.chunks_exact(k)).enumerate() {
                    let products = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let (want, all) = products.fold((0.0, 0.0), |(sum, all), x| (sum + x, all + x.abs()));
                    let error = (f64::from(got) - want).abs();
                    assert!(error <= bound * all, "{what}: token {token}, feature {n}: {got} instead of {want}");
                }
            }
        }
    }
    pair.close();
}

/// Rows are brought into the form that a product reads once for all products that follow one another, and anew where
/// something else was put in their place: parts of attention, rows of other values, of the step or of its outputs.
#[test]
fn products_of_the_same_rows_with_other_work_between() {
    let ways = products().into_iter().chain([Caps::default()]);
    // Products of ten rows at a time.
    let divided = ways.clone().map(|caps| Caps { work: Some(10 * 64 * 64), ..caps });
    for caps in ways.chain(divided) {
        let Some(pair) = Pair::open(caps) else { return };
        let mut random = Random(15);
        let (width, shape) = (64, StepShape { rows: 64, outs: 64, context: 700 });
        let (mut file, _) = table(width, &mut random);
        file.put("norm", DType::F32, Shape::from([width]), &mut random);
        let weights = [
            ("q", DType::Q4_0, width),
            ("k", DType::F16, width / 2),
            ("v", DType::F32, width / 2),
            ("gate", DType::Q8_0, width),
            ("down", DType::Q5_1, width),
            ("first", DType::Q4_1, 40),
            ("more", DType::Q5_0, width),
            ("last", DType::Q4_0, 40),
        ];
        for (name, dtype, n) in weights {
            file.put(name, dtype, Shape::from([n, width]), &mut random);
        }
        let plan = plan(&file, shape, width, |g, x| {
            let by = |x, name: &str| {
                let (_, _, n) = weights.into_iter().find(|weight| weight.0 == name).expect("is listed");
                g.matmul(x, g.matrix(name, n, width), None)
            };
            let x = g.rms_norm(x, g.vector("norm", width), 1e-5);
            let layer = g.kv_layer(1, width / 2);
            let (q, k, v) = (by(x, "q"), by(x, "k"), by(x, "v"));
            g.kv_store(k, v, layer);
            let attended = g.attention(q, layer, 2, 0.1, None, None);
            let down = by(g.glu(by(x, "gate"), attended, Activation::Silu), "down");
            let first = by(g.take_rows(x), "first");
            let sum = g.add(down, by(x, "more"));
            g.add(first, by(g.take_rows(sum), "last"))
        });
        let mut steps: Vec<Rows> = filled(0, 600, 64).collect();
        let few_wanted = |rows: usize, first: u32| Rows { outputs: vec![3, 1], ..Rows::run(rows, first) };
        steps.extend([
            Rows::run(1, 600),
            Rows::run(5, 601),
            few_wanted(40, 606),
            few_wanted(7, 646),
            Rows::run(40, 653),
        ]);
        let few = pair.dispatches(&plan, 5);
        let norms = if pair.kernels().integer { ("rms_norm.i16", "glu.i16", 2) } else { ("rms_norm", "glu", 0) };
        let count = |name| few.get(name).copied().unwrap_or(0);
        // The norm leaves rows for products, and so does the gate. What comes between is attention, or rows of outputs.
        assert_eq!((count(norms.0), count(norms.1)), (1, 1), "{few:?}");
        assert!(count("rows_to_i16") >= norms.2, "{few:?}");
        // The processor rounds rows, too.
        pair.agree("products", plan, &file, KvType::F32, &steps, 3e-3);
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
    for caps in variants(8 << 10) {
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
    for caps in variants(1 << 20) {
        let Some(pair) = Pair::open(caps) else { return };
        let mut random = Random(5);
        for (heads, kv_heads, head_dim) in [(1, 1, 32), (6, 2, 64), (3, 3, 33), (4, 1, 96), (2, 1, 2), (2, 2, 256)] {
            for (kv, bound) in [(KvType::F32, 2e-6), (KvType::F16, 2e-6), (KvType::Q8_0, 1e-4)] {
                if kv == KvType::Q8_0 && head_dim % 32 != 0 {
                    continue;
                }
                for (window, softcap) in [(None, None), (Some(7), None), (Some(40), Some(5.0))] {
                    let heads_of = (heads, kv_heads, head_dim);
                    let (file, plan) = attention(heads_of, shape(70), (window, softcap), &mut random);
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

/// A layer of attention.
fn attention(
    (heads, kv_heads, head_dim): (usize, usize, usize),
    shape: StepShape,
    (window, softcap): (Option<usize>, Option<f32>),
    random: &mut Random,
) -> (File, Plan) {
    let width = 48;
    let mut file = File::default();
    // What is cached is exact, so that all round it alike.
    file.put("table", DType::F16, Shape::from([VOCAB, width]), random);
    for (name, n) in [("q", heads), ("k", kv_heads), ("v", kv_heads)] {
        file.pick(name, n * head_dim, width, random);
    }
    let plan = plan(&file, shape, width, |g, x| {
        let layer = g.kv_layer(kv_heads, head_dim);
        let part = |name, n| g.matmul(x, g.matrix(name, n * head_dim, width), None);
        let (q, k, v) = (part("q", heads), part("k", kv_heads), part("v", kv_heads));
        g.kv_store(k, v, layer);
        g.attention(q, layer, heads, 0.1, window, softcap)
    });
    (file, plan)
}

/// Steps that fill the cache of a table with `count` positions, `rows` at a time.
fn filled(table: u32, count: usize, rows: usize) -> impl Iterator<Item = Rows> {
    (0..count).step_by(rows).map(move |first| Rows::run(rows.min(count - first), first as u32).of(table))
}

/// Few rows that attend to so much that their positions are divided, and that is joined.
#[test]
fn attention_over_divided_positions() {
    for caps in variants(1 << 20) {
        let Some(pair) = Pair::open(caps) else { return };
        let mut random = Random(11);
        let shape = StepShape { rows: 64, outs: 64, context: 700 };
        for (heads, head_dim, kv, window, bound) in [
            ((3, 1), 32, KvType::F16, None, 2e-6),
            ((2, 2), 33, KvType::F32, Some(300), 2e-6),
            ((1, 1), 64, KvType::Q8_0, Some(520), 1e-4),
        ] {
            let (file, plan) = attention((heads.0, heads.1, head_dim), shape, (window, None), &mut random);
            let mut steps: Vec<Rows> = filled(0, 690, 64).chain(filled(2, 320, 64)).collect();
            steps.push(Rows::run(1, 690).and(Rows::run(2, 0).of(1)).and(Rows::run(5, 320).of(2)));
            steps.push(Rows::run(3, 691));
            pair.agree(&format!("{heads:?} x {head_dim} {kv:?} {window:?}"), plan, &file, kv, &steps, bound);
        }
        pair.close();
    }
}

/// Many rows, some computed together and some row by row, by how many of a sequence there are side by side.
#[test]
fn attention_of_many_sequences_at_once() {
    for caps in variants(1 << 20) {
        let Some(pair) = Pair::open(caps) else { return };
        let mut random = Random(12);
        let shape = StepShape { rows: 40, outs: 40, context: 100 };
        // Heads of 352 are too large to be computed together.
        for (heads, kv_heads, head_dim) in [(3, 1, 32), (1, 1, 352)] {
            let (file, plan) = attention((heads, kv_heads, head_dim), shape, (Some(20), None), &mut random);
            let mut steps: Vec<Rows> = (0..3).flat_map(|table| filled(table, 40, 40)).collect();
            let one = |at: u32| Rows::run(1, 40 + at / 3).of(at % 3);
            let apart = |rows: std::ops::Range<u32>| rows.map(one).reduce(Rows::and).expect("some rows");
            steps.push(apart(0..12));
            steps.push(Rows::run(13, 44).and(apart(12 + 2..12 + 3)).and(Rows::run(9, 44).of(1)));
            steps.push(Rows::run(16, 57).and(Rows::run(11, 45).of(2)));
            pair.agree(&format!("{heads}/{kv_heads} x {head_dim}"), plan, &file, KvType::F16, &steps, 2e-6);
        }
        pair.close();
    }
}

/// A row's bits do not depend on what else is computed in a step of few rows.
#[test]
fn attention_gives_the_same_bits_in_any_company() {
    for caps in variants(1 << 20) {
        let Some(pair) = Pair::open(caps) else { return };
        let shape = StepShape { rows: 64, outs: 64, context: 700 };
        let (file, plan) = attention((2, 1, 16), shape, (None, None), &mut Random(13));
        let plan = Arc::new(plan);
        let (long, short, other) = (Rows::run(1, 600), Rows::run(1, 20).of(1), Rows::run(3, 300).of(2));
        let mut steps: Vec<Rows> = filled(0, 600, 64).chain(filled(1, 20, 64)).chain(filled(2, 300, 64)).collect();
        let filled: usize = steps.iter().map(|step| step.tokens.len()).sum();
        // The same positions again and again, with the same keys and values.
        steps.extend([long.clone(), short.clone(), other.clone()]);
        steps.extend([other.clone().and(long.clone()), long.clone().and(short), long.and(other)]);
        let results = pair.on_gpu("company", &plan, &file, KvType::F16, &steps);
        let bits = |row: usize| results[filled + row].iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        for (alone, in_company) in [(0, 8), (1, 10), (4, 14), (0, 9), (2, 5)] {
            assert_eq!(bits(alone), bits(in_company), "rows {alone} and {in_company}");
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
    let wanted = [Wanted::Row; 5000];
    let (tokens, positions, tables, blocks) = (&[2], &[0], &[0], &[0; TABLES]);
    let inputs = StepInputs { tokens, positions, tables, blocks, outputs: &outputs, wanted: &wanted, given: &[] };
    program.run(&inputs, &[soon()]).expect("runs");
    let mut row = [0.0; 16];
    program.read(OutputId::Logits, 0, &mut row).expect("computed");
    assert_eq!(row, table[32..48]);
    for beyond in [1, 4999] {
        assert!(program.read(OutputId::Logits, beyond, &mut row).is_err(), "row {beyond}");
    }
    // Nor is there a top of what is not by outputs.
    let (outputs, wanted) = (&[0], &[Wanted::Top(1)]);
    let inputs = StepInputs { tokens, positions, tables, blocks, outputs, wanted, given: &[] };
    assert!(matches!(program.run(&inputs, &[soon()]), Err(RunError::BadInput { .. })));
}

/// Rows of a vocabulary that are hard to order.
fn hard_rows(cols: usize, random: &mut Random) -> Vec<Vec<f32>> {
    let inf = f32::INFINITY;
    let mut at = || random.next() as usize % cols;
    let with = |row: Vec<f32>, places: [usize; 3], values: [f32; 3]| {
        let mut row = row;
        places.into_iter().zip(values).for_each(|(place, value)| row[place] = value);
        row
    };
    let places = [at(), at(), at()];
    let ascending: Vec<f32> = (0..cols).map(|id| id as f32 * 0.25 - 7.0).collect();
    let normal: Vec<f32> = (0..cols).map(|_| random.normal() * 8.0).collect();
    vec![
        normal.clone(),
        // Few values: ties all over, at the edge of the largest too.
        (0..cols).map(|_| (random.next() % 5) as f32 - 2.0).collect(),
        ascending.iter().map(|x| -x).collect(),
        ascending,
        // Equal but for their sign.
        (0..cols).map(|_| if random.next().is_multiple_of(2) { 0.0 } else { -0.0 }).collect(),
        vec![-inf; cols],
        with(vec![-inf; cols], places, [-3.0, f32::MIN, f32::MAX]),
        with(normal.clone(), places, [f32::NAN, inf, -f32::NAN]),
        with(normal, [cols - 1; 3], [f32::NAN; 3]),
        vec![f32::NAN; cols],
    ]
}

/// Exactly the largest, by sorting everything.
fn sorted_top(row: &[f32], k: usize) -> Vec<(u32, u32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
    all.sort_by(|&(a, x), &(b, y)| {
        y.is_nan().cmp(&x.is_nan()).then(y.partial_cmp(&x).unwrap_or(std::cmp::Ordering::Equal)).then(a.cmp(&b))
    });
    all.truncate(k);
    bits_of(&all)
}

/// Which NaN is a device's own affair.
fn bits_of(top: &[(u32, f32)]) -> Vec<(u32, u32)> {
    top.iter().map(|&(id, x)| (id, if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() })).collect()
}

/// Steps that want the largest logits of some rows and the whole of others, in no order.
fn largest_agree(backend: &Arc<dyn Backend>, widths: &[usize]) {
    let mut random = Random(31);
    for &cols in widths {
        let rows = hard_rows(cols, &mut random);
        let count = rows.len();
        let bytes = rows.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
        let spec = TensorSpec { name: "table".to_owned(), dtype: DType::F32, shape: Shape::from([count, cols]) };
        let file = File(HashMap::from([("table".to_owned(), (spec, bytes))]));
        let g = Graph::new(&file, StepShape { rows: count, outs: count + 2, context: 32 });
        let x = g.take_rows(g.embed(g.table("table", count, cols), 1.0));
        let plan = Arc::new(g.finish(&[(OutputId::Logits, x)]).expect("a sound plan"));
        let mut program = bind(backend, &plan, &file, KvType::F32).program;
        let tokens: Vec<u32> = (0..count as u32).collect();
        let (positions, tables, blocks) = (&tokens, vec![0; count], vec![0; TABLES]);
        for ks in [&[1][..], &[MOST_TOP], &[40, 0], &[2, 0, 64, 127, 7], &[0], &[3, 128, 1]] {
            let outputs: Vec<u32> = (0..count + 2).map(|_| (random.next() % count as u64) as u32).collect();
            let wanted: Vec<Wanted> = (0..outputs.len())
                .map(|at| ks[at % ks.len()])
                .map(|k| if k == 0 { Wanted::Row } else { Wanted::Top(k) })
                .collect();
            let inputs = StepInputs {
                tokens: &tokens,
                positions,
                tables: &tables,
                blocks: &blocks,
                outputs: &outputs,
                wanted: &wanted,
                given: &[],
            };
            program.run(&inputs, &[soon()]).expect("runs");
            for (at, (&output, &wanted)) in outputs.iter().zip(&wanted).enumerate() {
                let row = &rows[output as usize];
                let what = format!("{} x {cols}, row {output}, {wanted:?}", backend.name());
                let mut whole = vec![0.5; cols];
                let mut top = vec![(7, 0.5); if let Wanted::Top(k) = wanted { k.min(cols) } else { 1 }];
                let (read, read_top) = (program.read(OutputId::Logits, at, &mut whole), program.read_top(at, &mut top));
                match wanted {
                    Wanted::Row => {
                        read.expect("was wanted");
                        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                        assert!(whole.iter().zip(row).all(same), "{what}");
                        assert!(matches!(read_top, Err(RunError::BadInput { .. })), "{what}");
                    }
                    Wanted::Top(k) => {
                        read_top.expect("was wanted");
                        assert_eq!(bits_of(&top), sorted_top(row, k), "{what}");
                        assert!(matches!(read, Err(RunError::BadInput { .. })), "{what}");
                        top.push((0, 0.0));
                        let error = program.read_top(at, &mut top).expect_err("one too many");
                        assert!(matches!(error, RunError::BadInput { .. }), "{what}");
                    }
                }
            }
            assert!(program.read_top(outputs.len(), &mut [(0, 0.0)]).is_err());
            for wrong in [&[Wanted::Top(0)][..], &[Wanted::Top(MOST_TOP + 1)], &[], &[Wanted::Row; 2]] {
                let inputs = StepInputs { outputs: &[0], wanted: wrong, ..inputs };
                assert!(matches!(program.run(&inputs, &[soon()]), Err(RunError::BadInput { .. })), "{wrong:?}");
                assert!(program.read_top(0, &mut [(0, 0.0)]).is_err(), "no step has ended");
            }
        }
    }
}

#[test]
fn the_largest_logits_on_the_processor() {
    for isa in Isa::available() {
        let options = CpuOptions { threads: Some(2), isa: Some(isa), ..CpuOptions::default() };
        let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(&options).expect("is there"));
        largest_agree(&cpu, &[1, 5, 127, 128, 129, 1000, 4097, 20_011]);
    }
}

#[test]
fn the_largest_logits_on_vulkan() {
    for caps in devices(256 << 10) {
        let Some(pair) = Pair::open(caps) else { return };
        largest_agree(&pair.poisoned, &[1, 5, 127, 128, 129, 4095, 4096, 4097, 12_321, 49_999]);
        pair.close();
    }
}

/// What one part of a model hands to the next arrives bit for bit, however many rows there are.
#[test]
fn rows_that_come_with_a_step() {
    for caps in devices(4 << 10) {
        let Some(pair) = Pair::open(caps) else { return };
        for cols in [1, 67, 512] {
            let mut file = File::default();
            file.put("w", DType::F32, Shape::from([cols]), &mut Random(11));
            let g = Graph::new(&file, shape(37));
            let x = g.input(InputId::Hidden, tenure_graph::Rows::Step, cols);
            let y = g.rms_norm(x, g.vector("w", cols), 1e-6);
            let plan = Arc::new(g.finish(&[(OutputId::Hidden, x), (OutputId::Logits, y)]).expect("a sound plan"));
            assert_eq!(
                (plan.vocab(), plan.input(InputId::Hidden)),
                (None, Some(Value { rows: tenure_graph::Rows::Step, cols }))
            );
            for backend in [&pair.poisoned, &pair.cpu] {
                let mut program = bind(backend, &plan, &file, KvType::F32).program;
                for rows in [1, 37, 9] {
                    let hidden: Vec<f32> = (0..rows * cols).map(|at| at as f32 - 3.5).collect();
                    let (positions, zeros): (Vec<u32>, _) = ((0..rows as u32).collect(), vec![0; rows]);
                    let blocks: Vec<u32> = (0..plan.shape().table_len() as u32).collect();
                    for (given, holds) in [(&hidden[1..], false), (&hidden[..], true)] {
                        let step = StepInputs {
                            tokens: &zeros,
                            positions: &positions,
                            tables: &zeros,
                            blocks: &blocks,
                            outputs: &[],
                            wanted: &[],
                            given: &[(InputId::Hidden, given)],
                        };
                        assert_eq!(program.run(&step, &[soon()]).is_ok(), holds, "a number is missing, or none");
                    }
                    let mut all = vec![f32::NAN; rows * cols];
                    program.read(OutputId::Hidden, 0, &mut all).expect("all rows at once");
                    assert_eq!(all, hidden);
                    program.read(OutputId::Hidden, 1, &mut all).expect_err("one row too many");
                    let mut row = vec![f32::NAN; cols];
                    for (at, want) in hidden.chunks_exact(cols).enumerate() {
                        program.read(OutputId::Hidden, at, &mut row).expect("was computed");
                        assert_eq!(row, want, "{cols} columns, row {at} of {rows}");
                    }
                }
            }
        }
        pair.close();
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
