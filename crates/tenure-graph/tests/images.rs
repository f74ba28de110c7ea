//! What operations of image models take, and what they refuse.

use tenure_graph::{
    Beside, Buckets, Graph, Grid, InputId, OutputId, Plan, PlanError, RelativeBias, Rows, Slide, StepShape, Val, centre,
};
use tenure_tensor::{DType, Shape, TensorSpec};

const GRID: Grid = Grid { images: 2, height: 3, width: 5 };
const PIXELS: usize = 15;
const COLS: usize = 8;

fn record(body: impl FnOnce(&Graph<'_>) -> Val) -> Result<Plan, PlanError> {
    let spec = |name: &str, shape| TensorSpec { name: name.into(), dtype: DType::F16, shape };
    let file = vec![
        spec("places", Shape::from([1, 49, COLS])),
        spec("other_places", Shape::from([2, 49, COLS])),
        spec("bias", Shape::from([32, 2])),
        spec("tokens", Shape::from([10, COLS])),
    ];
    let g = Graph::new(&file, StepShape { rows: 12, outs: 0, context: 6 });
    let out = body(&g);
    g.finish(&[(OutputId::Sample, out)])
}

fn refused(body: impl FnOnce(&Graph<'_>) -> Val) -> String {
    record(body).expect_err("must be refused").to_string()
}

fn pixels(g: &Graph<'_>) -> Val {
    g.input(InputId::Sample, Rows::Fixed(2 * PIXELS as u32), COLS)
}

fn prompts(g: &Graph<'_>) -> Val {
    g.input(InputId::Context, Rows::Fixed(2 * 7), COLS)
}

fn by(g: &Graph<'_>) -> Val {
    g.input(InputId::Pooled, Rows::Fixed(2), 3 * COLS)
}

fn bias(g: &Graph<'_>, max_distance: usize) -> Option<RelativeBias> {
    Some(RelativeBias { table: g.vectors("bias", 32, 2), buckets: Buckets { count: 32, max_distance } })
}

#[test]
fn operations_are_counted_by_their_definitions() {
    // Two sequences of 15 pixels see themselves and 7 tokens each: scores and sums of 8 columns.
    let attention = record(|g| {
        let (x, y) = (pixels(g), prompts(g));
        g.attend_with(x, x, x, Some(Beside { k: y, v: y, keys: 7 }), 2, 0.5, PIXELS, PIXELS, false, None)
    });
    assert_eq!(attention.expect("sound").operations(), 2 * 2 * (2 * 15 * 22 * 8));
    let file = vec![
        TensorSpec { name: "kernel".into(), dtype: DType::F16, shape: Shape::from([6, COLS, 3, 3]) },
        TensorSpec { name: "matrix".into(), dtype: DType::F16, shape: Shape::from([5, 6]) },
    ];
    let g = Graph::new(&file, StepShape { rows: 12, outs: 0, context: 6 });
    // Every second pixel of 3 x 5, with zeros around: 2 x 3 of each of two images.
    let slide = Slide { grid: GRID, size: 3, stride: 2, before: 1, after: 1 };
    let x = g.conv2d(pixels(&g), g.kernel("kernel", 6, COLS, 3), None, slide);
    let out = g.matmul(x, g.matrix("matrix", 5, 6), None);
    let plan = g.finish(&[(OutputId::Sample, out)]).expect("sound");
    assert_eq!(plan.operations(), 2 * 12 * (6 * 9 * 8) + 2 * 12 * (5 * 6));
}

#[test]
fn each_has_its_line() {
    let plan = record(|g| {
        let (x, y, by) = (pixels(g), prompts(g), by(g));
        let x = g.add_centre(x, g.table("places", 49, COLS), 7, GRID);
        let x = g.modulate(x, by, 0, 2, PIXELS);
        let beside = Some(Beside { k: y, v: y, keys: 7 });
        let z = g.attend_with(x, x, x, beside, 2, 0.5, PIXELS, PIXELS, false, None);
        let z = g.attend_with(z, z, z, None, 2, 1.0, PIXELS, PIXELS, false, bias(g, 128));
        g.unpatch(g.add_gated(x, z, by, 1, PIXELS), GRID, 2)
    })
    .expect("sound");
    let text = plan.to_string();
    for line in [
        "= add_centre %0 w0 side=7 2x3x5",
        "= modulate %3 %2 shift=0 scale=2 every=15",
        "= attend %4 %4 %4 %1 %1 heads=2 scale=0.5 15x15+7",
        "= attend %5 %5 %5 heads=2 scale=1 15x15 +w1 buckets=32 distance=128",
        "= add_gated %4 %6 %2 gate=1 every=15",
        "%8 [120, 2]",
        "= unpatch %7 2x3x5 size=2",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let table = |g: &Graph<'_>| g.table("places", 49, COLS);
    for (what, refused) in [
        ("modulate: 24 does not fit 3", refused(|g| g.modulate(pixels(g), by(g), 3, 0, PIXELS))),
        ("modulate: 24 does not fit 3", refused(|g| g.modulate(pixels(g), by(g), 0, 3, PIXELS))),
        ("modulate: 30 does not fit 14", refused(|g| g.modulate(pixels(g), by(g), 0, 1, 14))),
        ("add_gated: Value", refused(|g| g.add_gated(pixels(g), prompts(g), by(g), 0, PIXELS))),
        (
            "add_gated: 24 does not fit 3",
            refused(|g| {
                let x = pixels(g);
                g.add_gated(x, x, by(g), 3, PIXELS)
            }),
        ),
        (
            "add_centre: 30 does not fit 45",
            refused(|g| g.add_centre(pixels(g), table(g), 7, Grid { images: 3, ..GRID })),
        ),
        ("add_centre: 49 does not fit 6", refused(|g| g.add_centre(pixels(g), table(g), 6, GRID))),
        (
            "add_centre: height is 15",
            refused(|g| g.add_centre(pixels(g), table(g), 7, Grid { images: 2, height: 15, width: 1 })),
        ),
        (
            "tensor \"other_places\" has shape",
            refused(|g| g.add_centre(pixels(g), g.table("other_places", 98, COLS), 7, GRID)),
        ),
        ("unpatch: 8 does not fit 3", refused(|g| g.unpatch(pixels(g), GRID, 3))),
        ("unpatch: 8 does not fit 0", refused(|g| g.unpatch(pixels(g), GRID, 0))),
        ("unpatch: 30 does not fit 15", refused(|g| g.unpatch(pixels(g), Grid { images: 1, ..GRID }, 2))),
    ] {
        assert!(refused.starts_with(what), "{refused}, not {what}");
    }
}

#[test]
fn attention_refuses_streams_of_other_sequences() {
    let attend = |keys: usize, causal: bool, biased: Option<usize>| {
        refused(|g| {
            let (x, y) = (pixels(g), prompts(g));
            let bias = biased.and_then(|distance| bias(g, distance));
            let beside = Some(Beside { k: y, v: y, keys }).filter(|_| keys > 0);
            g.attend_with(x, x, x, beside, 2, 1.0, PIXELS, PIXELS, causal, bias)
        })
    };
    assert_eq!(attend(14, false, None), "attend: 2 does not fit 1");
    assert_eq!(attend(5, false, None), "attend: 14 does not fit 5");
    assert_eq!(attend(7, true, None), "attend: keys beside is 7");
    assert_eq!(attend(7, false, Some(128)), "attend: keys beside is 7");
    assert_eq!(attend(0, false, Some(8)), "attend: max_distance is 8");
}

#[test]
fn a_plan_whose_rows_see_each_other_needs_all_of_them() {
    let tokens = |g: &Graph<'_>| g.embed(g.table("tokens", 10, COLS), 1.0);
    let plan = record(tokens).expect("sound");
    assert!(!plan.is_whole());
    let plan = record(|g| {
        let x = tokens(g);
        g.attend(x, x, x, 2, 1.0, 6, 6, false)
    });
    assert!(plan.expect("sound").is_whole());
}

/// As transformers computes them.
#[test]
fn distances_share_buckets() {
    let buckets = Buckets { count: 32, max_distance: 128 };
    for (distance, bucket) in [
        (0, 0),
        (1, 1),
        (7, 7),
        (8, 8),
        (11, 8),
        (12, 9),
        (15, 9),
        (16, 10),
        (22, 10),
        (23, 11),
        (31, 11),
        (32, 12),
        (45, 12),
        (46, 13),
        (63, 13),
        (64, 14),
        (90, 14),
        (91, 15),
        (127, 15),
        (128, 15),
        (100_000, 15),
    ] {
        assert_eq!(buckets.of(100_000, 100_000 - distance), bucket, "{distance} before");
        let behind = if distance == 0 { 0 } else { 16 + bucket };
        assert_eq!(buckets.of(3, 3 + distance), behind, "{distance} behind");
    }
}

#[test]
fn an_image_lies_in_the_middle_of_a_square() {
    assert_eq!(centre(7, GRID, 0), 2 * 7 + 1);
    assert_eq!(centre(7, GRID, PIXELS - 1), 4 * 7 + 5);
    assert_eq!(centre(6, GRID, 6), 2 * 6 + 1);
    assert_eq!(centre(1, Grid { images: 1, height: 1, width: 1 }, 0), 0);
}

#[test]
fn grids_beyond_all_memory_are_refused() {
    let most = Grid { images: u32::MAX, height: u32::MAX, width: u32::MAX };
    assert_eq!(most.rows(), usize::MAX);
    let cut = Grid { images: 1, height: 1 << 16, width: 1 << 16 };
    for grid in [most, cut] {
        let x = |g: &Graph<'_>| g.input(InputId::Sample, Rows::Fixed(grid.rows() as u32), COLS);
        refused(|g| g.upsample(x(g), grid, Grid { width: grid.width.saturating_mul(2), ..grid }));
        refused(|g| g.unpatch(x(g), grid, 2));
    }
}
