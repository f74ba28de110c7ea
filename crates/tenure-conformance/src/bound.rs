//! A plan bound to memory of its own, and what comes of a step.

use std::sync::Arc;
use std::time::Duration;

use tenure_device::{
    Backend, Deadline, Device, Footprint, KvPlace, Load, LoadItem, Memory, Program, SegmentKind, StepInputs, Stop,
    WEIGHT_ALIGN, WeightPlace,
};
use tenure_graph::{KvType, OutputId, Plan};
use tenure_tensor::{ByteSize, TensorSpec};

/// A step without tokens.
pub const NOTHING: StepInputs<'static> =
    StepInputs { tokens: &[], positions: &[], tables: &[], blocks: &[], outputs: &[], wanted: &[], given: &[] };

/// Long enough for any step of a test.
fn soon() -> Stop {
    Stop::by(Deadline::after(Duration::from_secs(120)))
}

/// Binds a plan without a cache. `file` gives a weight's bytes.
///
/// # Panics
/// When the backend refuses: a test's plan is sound and small.
pub fn bind(backend: &Arc<dyn Backend>, plan: &Arc<Plan>, file: &dyn Fn(&TensorSpec) -> Vec<u8>) -> Program {
    let device = Device::new(backend.clone(), ByteSize::new(1 << 32));
    let (mut footprint, mut offsets, mut end) = (Footprint::default(), Vec::new(), ByteSize::ZERO);
    for weight in plan.weights() {
        offsets.push(end.get());
        end = (end + backend.weight_layout(weight).bytes).align_up(WEIGHT_ALIGN);
    }
    for (kind, bytes) in [
        (SegmentKind::Weights, end),
        (SegmentKind::Arena, plan.arena()),
        (SegmentKind::Scratch, backend.scratch(plan)),
        (SegmentKind::Exchange, backend.exchange(plan)),
    ] {
        footprint.add(&device, kind, bytes);
    }
    let mut reservation = device.reserve("test", &footprint, &soon()).expect("small");
    let arena = reservation.carve(SegmentKind::Arena).expect("reserved");
    // A plan may have no weights.
    let weights = reservation.carve(SegmentKind::Weights).unwrap_or_else(|_| arena.clone());
    let (scratch, exchange) =
        (reservation.carve(SegmentKind::Scratch).ok(), reservation.carve(SegmentKind::Exchange).ok());
    let items: Vec<LoadItem<'_>> = plan
        .weights()
        .iter()
        .zip(&offsets)
        .map(|(weight, &offset)| LoadItem { weight, lease: &weights, offset })
        .collect();
    let files: Vec<Vec<u8>> = plan.weights().iter().map(|weight| file(&weight.spec)).collect();
    let read = |item: usize, offset: u64, into: &mut [u8]| {
        into.copy_from_slice(&files[item][offset as usize..][..into.len()]);
        Ok(())
    };
    let mut lane = device.open_lane().expect("opens");
    lane.load(&Load { items: &items, read: &read, progress: &|_| () }, &soon()).expect("loads");
    let weights = offsets.iter().map(|&offset| WeightPlace::Resident { lease: weights.clone(), offset }).collect();
    let kv = KvPlace { lease: None, blocks: 0, kv: KvType::F32 };
    lane.bind(plan.clone(), &Memory { weights, kv, arena, scratch, exchange }).expect("binds")
}

/// All rows of an output of a step. The step runs twice; what comes of it is the same bits.
///
/// # Panics
/// When it is not, or the step fails.
pub fn rows_of(program: &mut Program, step: &StepInputs<'_>, output: OutputId) -> Vec<f32> {
    let plan = program.plan();
    let value = plan.value(plan.output(output).expect("an output"));
    let count = step.rows().of(value.rows);
    let mut run = || {
        program.run(step, &[soon()]).expect("runs");
        let mut rows = vec![f32::NAN; count * value.cols];
        for (row, out) in rows.chunks_exact_mut(value.cols).enumerate() {
            program.read(output, row, out).expect("was computed");
        }
        rows
    };
    let (first, second) = (run(), run());
    assert!(
        first.iter().zip(&second).all(|(a, b)| a.to_bits() == b.to_bits()),
        "a step's results depend on the one before"
    );
    first
}
