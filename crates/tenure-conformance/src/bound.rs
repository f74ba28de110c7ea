//! A plan bound to memory of its own, and what comes of a step.

use std::sync::Arc;

use tenure_device::{
    Backend, Device, Footprint, KvPlace, Lease, Load, LoadItem, Memory, Program, SegmentKind, StepInputs, WEIGHT_ALIGN,
    WeightPlace,
};
use tenure_graph::{KvType, OutputId, Plan};
use tenure_tensor::{ByteSize, TensorSpec};

use crate::checks::soon;

/// A step without tokens.
pub const NOTHING: StepInputs<'static> =
    StepInputs { tokens: &[], positions: &[], tables: &[], blocks: &[], outputs: &[], wanted: &[], given: &[] };

/// A plan on a backend, and the memory it works in.
pub struct Bound {
    /// What is run.
    pub program: Program,
    /// The weights' memory.
    pub weights: Lease,
    /// The cache's; none where there are no layers.
    pub kv: Option<Lease>,
    /// The values'.
    pub arena: Lease,
}

/// Binds a plan without a cache. `file` gives a weight's bytes.
///
/// # Panics
/// When the backend refuses: a test's plan is sound and small.
pub fn bind(backend: &Arc<dyn Backend>, plan: &Arc<Plan>, file: &dyn Fn(&TensorSpec) -> Vec<u8>) -> Program {
    bind_with_cache(backend, plan, KvType::F32, 0, file).program
}

/// Binds a plan with a cache of so many blocks. `file` gives a weight's bytes.
///
/// # Panics
/// When the backend refuses: a test's plan is sound and small.
pub fn bind_with_cache(
    backend: &Arc<dyn Backend>,
    plan: &Arc<Plan>,
    kv: KvType,
    blocks: usize,
    file: &dyn Fn(&TensorSpec) -> Vec<u8>,
) -> Bound {
    let device = Device::new(backend.clone(), ByteSize::new(1 << 32));
    let (mut footprint, mut offsets, mut end) = (Footprint::default(), Vec::new(), ByteSize::ZERO);
    for weight in plan.weights() {
        offsets.push(end.get());
        end = (end + backend.weight_layout(weight).bytes).align_up(WEIGHT_ALIGN);
    }
    let of_kv = |&layer| backend.kv_block_bytes(layer, kv).expect("suits").times(blocks as u64);
    let cache: ByteSize = plan.kv_layers().iter().map(of_kv).sum();
    for (kind, bytes) in [
        (SegmentKind::Weights, end),
        (SegmentKind::Kv, cache),
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
    let kv = KvPlace { lease: reservation.carve(SegmentKind::Kv).ok(), blocks, kv };
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
    let places = offsets.iter().map(|&offset| WeightPlace::Resident { lease: weights.clone(), offset }).collect();
    let memory = Memory { weights: places, kv, arena, scratch, exchange };
    let program = lane.bind(plan.clone(), &memory).expect("binds");
    Bound { program, weights, kv: memory.kv.lease, arena: memory.arena }
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
