//! What runs where: each operation, with weights of each type, asked of each backend.
//!
//! A plan of that one operation is recorded, and the backends are asked whether they have kernels for it. Nothing is
//! written down by hand.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use tenure_cpu::simd::Isa;
use tenure_graph::{
    Activation, Beside, Buckets, Graph, Grid, InputId, KvType, OutputId, Plan, RelativeBias, RopeSpec, RopeStyle, Rows,
    Slide, StepShape, Val, Yarn,
};
use tenure_tensor::{DType, Shape, TensorSpec, codec};

/// Where it is written.
pub(crate) const FILE: &str = "docs/SUPPORT.md";

/// The instruction sets of the CPU backend, and their names.
const ISAS: [(Isa, &str); 3] =
    [(Isa::Portable, "CPU, portable"), (Isa::Avx2, "CPU, AVX2"), (Isa::Avx512Vnni, "CPU, AVX-512 VNNI")];
/// Columns of every value: whole blocks of every type.
const COLS: usize = 512;
/// Elements of a head.
const HEAD: usize = 64;

/// Says whether the file is what the code says.
pub(crate) fn check(text: &str, faults: &mut Vec<String>) {
    match document() {
        Ok(now) if now == text => {}
        Ok(_) => faults.push(format!("{FILE} is not what cargo xtask support writes")),
        Err(error) => faults.push(error),
    }
}

/// The whole document.
pub(crate) fn document() -> Result<String, String> {
    let mut text = String::from(
        "# What runs where\n\nWritten by `cargo xtask support` from what the code says; `cargo xtask check` compares. \
         Each line is a plan of that operation, asked of each backend. The reference is the scalar codec of the type. \
         For Vulkan the kernels (`kernels/vulkan`) are named that run on every device.\n",
    );
    table(&mut text, "Products", "weights", computed().map(|dtype| (dtype.name().to_owned(), product(dtype))))?;
    table(
        &mut text,
        "Rows of tables (`embed`)",
        "table",
        computed().map(|dtype| (dtype.name().to_owned(), rows(dtype))),
    )?;
    let floats = || computed().filter(|dtype| !dtype.is_block());
    table(&mut text, "Norms (`rms_norm`)", "weight", floats().map(|dtype| (dtype.name().to_owned(), norm(dtype))))?;
    table(&mut text, "Bias of a product", "bias", floats().map(|dtype| (dtype.name().to_owned(), bias(dtype))))?;
    let caches = [KvType::F32, KvType::F16, KvType::Q8_0];
    table(
        &mut text,
        "Attention and its cache (`kv_store`, `attention`)",
        "cache",
        caches.map(|kv| (format!("{kv:?}"), cache(kv))),
    )?;
    table(&mut text, "Ropes", "kind", ropes())?;
    table(&mut text, "Others, of 32-bit floats", "operation", others())?;
    let kernels = floats().map(|dtype| (dtype.name().to_owned(), conv2d(dtype)));
    table(&mut text, "Kernels slid over images (`conv2d`)", "kernel", kernels)?;
    table(&mut text, "Others over images, of 32-bit floats", "operation", over_images())?;
    let not: Vec<&str> = DType::ALL.into_iter().filter(|dtype| !dtype.is_computable()).map(DType::name).collect();
    let _ = write!(
        text,
        "\n## Known, but not computed with\n\nFiles with tensors of these types open; a model that uses one is refused: {}.\n",
        not.join(", ")
    );
    Ok(text)
}

/// A plan, the type of its cache, and that of the weights it is about.
type Asked = (Result<Plan, String>, KvType, Option<DType>);

fn table(
    text: &mut String,
    title: &str,
    first: &str,
    lines: impl IntoIterator<Item = (String, Asked)>,
) -> Result<(), String> {
    let mut columns: Vec<&str> = ISAS.iter().map(|(_, name)| *name).collect();
    let mark = |yes: bool| if yes { "yes" } else { "no" };
    let mut rows = String::new();
    for (name, (plan, kv, dtype)) in lines {
        let plan = plan.map_err(|error| format!("{title}, {name}: {error}"))?;
        let mut cells = ISAS.map(|(isa, _)| mark(tenure_cpu::supports(isa, &plan, kv).is_ok())).to_vec();
        if let Some(dtype) = dtype {
            cells.insert(0, mark(has_codec(dtype)));
            if columns.len() < cells.len() {
                columns.insert(0, "reference");
            }
        }
        let vulkan = match tenure_vulkan::kernels(&plan, kv) {
            Ok(kernels) => list(&own(kernels, &plan)),
            Err(_) => "no".to_owned(),
        };
        let _ = writeln!(rows, "| {name} | {} | {vulkan} |", cells.join(" | "));
    }
    let (names, line) = (columns.join(" | "), " :---: |".repeat(columns.len()));
    let _ = write!(text, "\n## {title}\n\n| {first} | {names} | Vulkan |\n| --- |{line} --- |\n{rows}");
    Ok(())
}

/// The kernels of the operation itself: each plan begins with rows of a table and ends with the copy of its result.
fn own(mut kernels: BTreeSet<&'static str>, plan: &Plan) -> BTreeSet<&'static str> {
    if plan.steps().len() > 1 {
        kernels.remove("embed");
    }
    if plan.inputs().is_empty() {
        kernels.remove("copy");
    }
    kernels
}

fn list(kernels: &BTreeSet<&'static str>) -> String {
    kernels.iter().copied().collect::<Vec<_>>().join(", ")
}

fn computed() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|dtype| dtype.is_computable())
}

fn has_codec(dtype: DType) -> bool {
    let (block, mut values) = (vec![0; dtype.block_bytes()], vec![0.0; dtype.block_len()]);
    codec::dequantize(dtype, &block, &mut values).is_ok()
}

/// A plan whose table is of one type, and whose weight `w` of another.
fn plan(
    table: DType,
    weight: Option<(DType, Shape)>,
    body: impl FnOnce(&Graph<'_>, Val) -> Val,
) -> Result<Plan, String> {
    plan_of(OutputId::Hidden, table, weight, body)
}

/// The same with an output of that kind.
fn plan_of(
    output: OutputId,
    table: DType,
    weight: Option<(DType, Shape)>,
    body: impl FnOnce(&Graph<'_>, Val) -> Val,
) -> Result<Plan, String> {
    let tensors =
        std::iter::once(("table", (table, Shape::from([COLS, COLS])))).chain(weight.map(|weight| ("w", weight)));
    let file: Vec<TensorSpec> =
        tensors.map(|(name, (dtype, shape))| TensorSpec { name: name.to_owned(), dtype, shape }).collect();
    // So long that positions are divided.
    let g = Graph::new(&file, StepShape { rows: 64, outs: 64, context: 512 });
    let x = g.embed(g.table("table", COLS, COLS), 1.0);
    let out = body(&g, x);
    g.finish(&[(output, out)]).map_err(|error| error.to_string())
}

fn product(dtype: DType) -> Asked {
    let weight = Some((dtype, Shape::from([COLS, COLS])));
    (plan(DType::F32, weight, |g, x| g.matmul(x, g.matrix("w", COLS, COLS), None)), KvType::F32, Some(dtype))
}

fn rows(dtype: DType) -> Asked {
    (plan(dtype, None, |_, x| x), KvType::F32, Some(dtype))
}

fn norm(dtype: DType) -> Asked {
    let weight = Some((dtype, Shape::from([COLS])));
    (plan(DType::F32, weight, |g, x| g.rms_norm(x, g.vector("w", COLS), 1e-5)), KvType::F32, Some(dtype))
}

fn bias(dtype: DType) -> Asked {
    let weight = Some((dtype, Shape::from([COLS])));
    let body = |g: &Graph<'_>, x| g.matmul(x, g.matrix("table", COLS, COLS), Some(g.vector("w", COLS)));
    (plan(DType::F32, weight, body), KvType::F32, Some(dtype))
}

fn cache(kv: KvType) -> Asked {
    let body = |g: &Graph<'_>, x| {
        let layer = g.kv_layer(COLS / HEAD, HEAD);
        g.kv_store(x, x, layer);
        g.attention(x, layer, COLS / HEAD, 0.125, None, None)
    };
    (plan(DType::F32, None, body), kv, Some(kv.dtype()))
}

fn ropes() -> Vec<(String, Asked)> {
    let yarn = Yarn { original_context: 64, ext_factor: 1.0, attn_factor: 1.0, beta_fast: 32.0, beta_slow: 1.0 };
    let mut lines = Vec::new();
    for style in [RopeStyle::Adjacent, RopeStyle::Halves] {
        for (what, with_factors, yarn) in [("", false, None), (", factors", true, None), (", YaRN", false, Some(yarn))]
        {
            let weight = with_factors.then(|| (DType::F32, Shape::from([HEAD / 2])));
            let recorded = plan(DType::F32, weight, |g, x| {
                let factors = with_factors.then(|| g.vector("w", HEAD / 2));
                g.rope(x, HEAD, &RopeSpec { style, dims: HEAD, base: 1e4, freq_scale: 1.0, factors, yarn })
            });
            lines.push((format!("{style:?}{what}"), (recorded, KvType::F32, None)));
        }
    }
    lines
}

fn others() -> Vec<(String, Asked)> {
    type Body = fn(&Graph<'_>, Val) -> Val;
    let all: [(&str, Body); 16] = [
        ("`glu`, SiLU", |g, x| g.glu(x, x, Activation::Silu)),
        ("`glu`, GELU (tanh)", |g, x| g.glu(x, x, Activation::GeluTanh)),
        ("`add`", |g, x| g.add(x, x)),
        ("`scale`", |g, x| g.scale(x, 2.0)),
        ("`softcap`", |g, x| g.softcap(x, 30.0)),
        ("`take_rows`", |g, x| g.take_rows(x)),
        ("`input`", |g, _| g.input(InputId::Hidden, Rows::Step, COLS)),
        ("`embed` by position", |g, _| g.embed_positions(g.table("table", COLS, COLS))),
        ("`layer_norm`", |g, x| g.layer_norm(x, None, None, 1e-5)),
        ("`activate`, SiLU", |g, x| g.activate(x, Activation::Silu)),
        ("`activate`, GELU", |g, x| g.activate(x, Activation::Gelu)),
        ("`activate`, GELU (tanh)", |g, x| g.activate(x, Activation::GeluTanh)),
        ("`activate`, quick GELU", |g, x| g.activate(x, Activation::QuickGelu)),
        ("`activate`, ReLU", |g, x| g.activate(x, Activation::Relu)),
        ("`glu_halves`", |g, x| g.glu_halves(x, Activation::Gelu)),
        ("`concat`", |g, x| g.concat(x, x)),
    ];
    let ask = |(name, body): (&str, Body)| (name.to_owned(), (plan(DType::F32, None, body), KvType::F32, None));
    let logits = plan_of(OutputId::Logits, DType::F32, None, |g, x| g.take_rows(x));
    let largest = ("`take_rows`, and the largest of each row".to_owned(), (logits, KvType::F32, None));
    all.into_iter().map(ask).chain([largest]).collect()
}

/// What the operations over images are asked about.
const GRID: Grid = Grid { images: 2, height: 4, width: 8 };

/// A plan over images, with a weight `w`.
fn image_plan(weight: Option<(DType, Shape)>, body: impl FnOnce(&Graph<'_>, Val) -> Val) -> Asked {
    let spec = |(dtype, shape)| TensorSpec { name: "w".to_owned(), dtype, shape };
    let file: Vec<TensorSpec> = weight.map(spec).into_iter().collect();
    let dtype = file.first().map(|spec| spec.dtype);
    let g = Graph::new(&file, StepShape { rows: 0, outs: 0, context: 0 });
    let x = g.input(InputId::Sample, Rows::Fixed(GRID.rows() as u32), COLS);
    let out = body(&g, x);
    (g.finish(&[(OutputId::Sample, out)]).map_err(|error| error.to_string()), KvType::F32, dtype)
}

fn conv2d(dtype: DType) -> Asked {
    let slide = Slide { grid: GRID, size: 3, stride: 1, before: 1, after: 1 };
    let weight = Some((dtype, Shape::from([COLS, COLS, 3, 3])));
    image_plan(weight, |g, x| g.conv2d(x, g.kernel("w", COLS, COLS, 3), None, slide))
}

/// Rows that say how each image is modulated.
fn by(g: &Graph<'_>) -> Val {
    g.input(InputId::Pooled, Rows::Fixed(GRID.images), 6 * COLS)
}

fn over_images() -> Vec<(String, Asked)> {
    type Body = fn(&Graph<'_>, Val) -> Val;
    let all: [(&str, Option<Shape>, Body); 11] = [
        ("`group_norm`", Some(Shape::from([COLS])), |g, x| {
            let w = g.vector("w", COLS);
            g.group_norm(x, w, w, 32, 1e-5, GRID.pixels())
        }),
        ("`upsample`", None, |g, x| {
            let to = Grid { height: 2 * GRID.height, width: 2 * GRID.width, ..GRID };
            g.upsample(x, GRID, to)
        }),
        ("`attend`", None, |g, x| g.attend(x, x, x, COLS / HEAD, 0.125, GRID.pixels(), GRID.pixels(), false)),
        ("`attend`, causal", None, |g, x| g.attend(x, x, x, COLS / HEAD, 0.125, GRID.pixels(), GRID.pixels(), true)),
        ("`attend`, to what is beside", None, |g, x| {
            let beside = Some(Beside { k: x, v: x, keys: GRID.pixels() });
            let (heads, pixels) = (COLS / HEAD, GRID.pixels());
            g.attend_with(x, x, x, beside, heads, 0.125, pixels, pixels, false, None)
        }),
        ("`attend`, with a bias of the distance", Some(Shape::from([32, COLS / HEAD])), |g, x| {
            let buckets = Buckets { count: 32, max_distance: 128 };
            let bias = Some(RelativeBias { table: g.vectors("w", 32, COLS / HEAD), buckets });
            let (heads, pixels) = (COLS / HEAD, GRID.pixels());
            g.attend_with(x, x, x, None, heads, 0.125, pixels, pixels, false, bias)
        }),
        ("`add_row`", None, |g, x| {
            let row = g.input(InputId::Pooled, Rows::Fixed(GRID.images), COLS);
            g.add_row(x, row, GRID.pixels())
        }),
        ("`modulate`", None, |g, x| g.modulate(x, by(g), 0, 1, GRID.pixels())),
        ("`add_gated`", None, |g, x| g.add_gated(x, x, by(g), 2, GRID.pixels())),
        ("`add_centre`", Some(Shape::from([256, COLS])), |g, x| g.add_centre(x, g.table("w", 256, COLS), 16, GRID)),
        ("`unpatch`", None, |g, x| g.unpatch(x, GRID, 2)),
    ];
    let ask = |(name, shape, body): (&str, Option<Shape>, Body)| {
        let (plan, kv, _) = image_plan(shape.map(|shape| (DType::F32, shape)), body);
        (name.to_owned(), (plan, kv, None))
    };
    all.into_iter().map(ask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_a_plan_has_a_line() {
        let mut seen = BTreeSet::new();
        let lines = computed().map(product).chain(computed().map(rows)).chain([norm(DType::F32), cache(KvType::F32)]);
        let others = ropes().into_iter().chain(others()).chain(over_images());
        for (plan, ..) in lines.chain([conv2d(DType::F32)]).chain(others.map(|(_, asked)| asked)) {
            seen.extend(plan.expect("a sound plan").steps().iter().map(|step| step.op.name()));
        }
        // The operations as `tenure-graph` names them.
        let source = include_str!("../../crates/tenure-graph/src/op.rs");
        let names = source.lines().filter_map(|line| line.trim().strip_prefix("Op::")?.split_once(" => \""));
        let names: BTreeSet<&str> = names.filter_map(|(_, rest)| rest.split('"').next()).collect();
        assert!(names.len() > 8, "{names:?}");
        assert_eq!(seen, names);
    }

    #[test]
    fn a_type_nobody_computes_with_is_refused() {
        let (plan, ..) = product(DType::TQ1_0);
        plan.expect_err("no codec");
        assert!(!has_codec(DType::TQ1_0));
        assert!(has_codec(DType::Q4K));
    }
}
