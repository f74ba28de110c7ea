//! Any recording that the builder accepts gives a plan that the verifier proves.

use proptest::prelude::*;
use tenure_graph::{Activation, Graph, OutputId, PlanError, RopeSpec, RopeStyle, StepShape, Val, verify};
use tenure_tensor::{DType, Shape, TensorSpec};

fn spec(name: &str, dtype: DType, shape: Shape) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape }
}

fn file() -> Vec<TensorSpec> {
    vec![
        spec("embd", DType::Q8_0, Shape::from([100, 64])),
        spec("norm", DType::F32, Shape::from([64])),
        spec("head_norm", DType::F32, Shape::from([16])),
        spec("square", DType::Q4_0, Shape::from([64, 64])),
        spec("up", DType::F16, Shape::from([96, 64])),
        spec("down", DType::F16, Shape::from([64, 96])),
        spec("strange", DType::IQ2XS, Shape::from([64, 64])),
        spec("norm_q", DType::Q8_0, Shape::from([64])),
    ]
}

const SHAPE: StepShape = StepShape { rows: 8, outs: 2, context: 64 };

fn rope() -> RopeSpec {
    RopeSpec { style: RopeStyle::Halves, dims: 16, base: 1e4, freq_scale: 1.0, factors: None, yarn: None }
}

/// Applies one operation, chosen by `pick`, to values of width 64.
fn apply(g: &Graph<'_>, values: &[Val], pick: (u8, u8, u8)) -> Val {
    let at = |n: u8| values[n as usize % values.len()];
    let (a, b) = (at(pick.1), at(pick.2));
    match pick.0 % 8 {
        0 => g.rms_norm(a, g.vector("norm", 64), 1e-6),
        1 => g.rms_norm(a, g.vector("head_norm", 16), 1e-6),
        2 => g.matmul(a, g.matrix("square", 64, 64), Some(g.vector("norm", 64))),
        3 => g.rope(a, 16, &rope()),
        4 => g.glu(a, b, Activation::Silu),
        5 => g.add(a, b),
        6 => g.softcap(g.scale(a, 0.5), 30.0),
        _ => {
            let kv = g.kv_layer(2, 16);
            let narrow = |x| g.matmul(x, g.matrix("up", 96, 64), None);
            let wide = g.matmul(narrow(b), g.matrix("down", 64, 96), None);
            let kv4 = g.kv_layer(4, 16);
            g.kv_store(wide, a, kv4);
            let _ = kv;
            g.attention(a, kv4, 4, 0.25, Some(7), None)
        }
    }
}

proptest! {
    #[test]
    fn every_recording_is_proven(picks in prop::collection::vec(any::<(u8, u8, u8)>(), 1..60)) {
        let file = file();
        let g = Graph::new(&file, SHAPE);
        let mut values = vec![g.embed(g.table("embd", 100, 64), 2.0)];
        for pick in picks {
            values.push(apply(&g, &values, pick));
        }
        let last = values[values.len() - 1];
        let logits = g.matmul(g.take_rows(last), g.matrix("embd", 100, 64), None);
        let plan = g.finish(&[(OutputId::Logits, logits)]).expect("a sound recording");
        prop_assert_eq!(verify(&plan), Ok(()));
        // Values that live at the same time cannot take less than the largest of them.
        let largest = plan.steps().iter().filter_map(|step| step.out).map(|out| plan.span(out).bytes).max();
        prop_assert!(Some(plan.arena().get()) >= largest);
    }
}

#[test]
fn memory_is_reused_along_a_chain() {
    let file = file();
    let g = Graph::new(&file, SHAPE);
    let mut x = g.embed(g.table("embd", 100, 64), 1.0);
    for _ in 0..50 {
        x = g.matmul(x, g.matrix("square", 64, 64), None);
    }
    let plan = g.finish(&[(OutputId::Logits, x)]).expect("sound");
    assert_eq!(plan.arena().get(), 2 * 8 * 64 * 4, "two values live at a time");
}

fn refused(record: impl Fn(&Graph<'_>) -> Val) -> PlanError {
    let file = file();
    let g = Graph::new(&file, SHAPE);
    let val = record(&g);
    g.finish(&[(OutputId::Logits, val)]).expect_err("must be refused")
}

#[test]
fn faults_of_a_recording_are_typed_and_name_the_tensor() {
    let embd = |g: &Graph<'_>| g.embed(g.table("embd", 100, 64), 1.0);
    assert_eq!(
        refused(|g| g.matmul(embd(g), g.matrix("absent", 64, 64), None)),
        PlanError::MissingTensor { name: "absent".into() }
    );
    assert_eq!(
        refused(|g| g.matmul(embd(g), g.matrix("up", 64, 96), None)),
        PlanError::WrongShape { name: "up".into(), want: Shape::from([64, 96]), got: Shape::from([96, 64]) }
    );
    assert_eq!(
        refused(|g| g.matmul(embd(g), g.matrix("strange", 64, 64), None)),
        PlanError::Unsupported { name: "strange".into(), dtype: DType::IQ2XS }
    );
    assert_eq!(
        refused(|g| g.rms_norm(embd(g), g.vector("norm_q", 64), 1e-6)),
        PlanError::WrongDtype { name: "norm_q".into(), got: DType::Q8_0 }
    );
    assert!(matches!(refused(|g| g.add(embd(g), g.take_rows(embd(g)))), PlanError::ShapeMismatch { op: "add", .. }));
    assert!(matches!(
        refused(|g| g.rms_norm(embd(g), g.vector("norm", 64), f32::NAN)),
        PlanError::BadParameter { op: "rms_norm", .. }
    ));
    // The first error is the one reported.
    assert_eq!(
        refused(|g| {
            let x = g.matmul(embd(g), g.matrix("first", 64, 64), None);
            g.matmul(x, g.matrix("second", 64, 64), None)
        }),
        PlanError::MissingTensor { name: "first".into() }
    );
}

#[test]
fn attention_over_a_cache_the_step_does_not_write_is_refused() {
    let error = refused(|g| {
        let x = g.embed(g.table("embd", 100, 64), 1.0);
        g.attention(x, g.kv_layer(4, 16), 4, 0.25, None, None)
    });
    assert!(matches!(error, PlanError::KvBeforeWrite { .. }), "{error:?}");
}
