//! Loading weights and binding plans.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use rayon::prelude::*;
use tenure_device::{DeviceError, Exec, Lane, LastStep, Lease, Load, LoadError, Memory, Stop, WeightPlace, host_room};
use tenure_graph::{Plan, RopeAngles, WeightUse};
use tenure_tensor::ByteSize;

use crate::layout::{Layout, RowForm, Scratch};
use crate::lower::{Phase, lower};
use crate::raw::claims::Claims;
use crate::raw::interpreter::{Base, Interpreter, Kv};
use crate::raw::load::{bring_in, divide};
use crate::raw::segment::SegmentBytes;
use crate::raw::team::Team;
use crate::raw::weight::Weight;
use crate::simd::{Isa, attention, float};

pub(crate) struct CpuLane {
    team: Arc<Team>,
    isa: Isa,
}

impl CpuLane {
    pub(crate) fn new(threads: usize, isa: Isa) -> Result<Self, DeviceError> {
        Ok(CpuLane { team: Arc::new(Team::new(threads)?), isa })
    }
}

impl Lane for CpuLane {
    unsafe fn load(&mut self, load: &Load<'_>, stop: &Stop) -> Result<(), LoadError> {
        let mut chunks = Vec::new();
        let mut segments = Vec::new();
        for (index, item) in load.items.iter().enumerate() {
            let layout = Layout::of(item.weight);
            let need = ByteSize::new(item.offset) + layout.bytes(item.weight);
            if need > item.lease.bytes() {
                return Err(DeviceError::WrongMemory { what: "weights", got: item.lease.bytes(), need }.into());
            }
            segments.push(SegmentBytes::new(item.lease));
            divide(index, item, layout, &mut chunks);
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.team.count())
            .build()
            .map_err(|error| DeviceError::ThreadSpawn(error.to_string()))?;
        pool.install(|| {
            chunks.par_iter().try_for_each_init(Vec::new, |staging, chunk| {
                stop.check()?;
                bring_in(load, &segments[chunk.item], chunk, staging)
            })
        })
    }

    unsafe fn bind(&mut self, plan: Arc<Plan>, memory: &Memory) -> Result<Box<dyn Exec>, DeviceError> {
        let lowered = lower(&plan, self.isa);
        let scratch = Scratch::new(&plan, &lowered, self.team.count());
        let enough = |what, got: ByteSize, need: ByteSize| {
            if got < need { Err(DeviceError::WrongMemory { what, got, need }) } else { Ok(()) }
        };
        enough("arena", memory.arena.bytes(), plan.arena())?;
        // Nothing needs nothing, wherever it is.
        let lent = memory.scratch.as_ref().filter(|_| scratch.bytes > 0);
        enough("scratch", lent.map_or(ByteSize::ZERO, Lease::bytes), ByteSize::of(scratch.bytes))?;
        let lent = lent.unwrap_or(&memory.arena);
        let cache = memory.kv.lease.as_ref();

        let mut layers = Vec::new();
        let mut end = 0usize;
        for &layer in plan.kv_layers() {
            let head = attention::block_bytes(memory.kv.kv, layer.head_dim)
                .ok_or(DeviceError::UnsupportedKv { kv: memory.kv.kv, head_dim: layer.head_dim })?;
            let layer_bytes = head.checked_mul(layer.heads).and_then(|block| block.checked_mul(memory.kv.blocks));
            layers.push((end, head * layer.heads));
            end = layer_bytes.and_then(|bytes| end.checked_add(bytes)).unwrap_or(usize::MAX);
            enough("kv cache", cache.map_or(ByteSize::ZERO, Lease::bytes), ByteSize::of(end))?;
        }

        let cache = cache.unwrap_or(&memory.arena);

        let (mut weights, mut exponents) = (Vec::new(), Vec::new());
        let mut held = vec![cache.clone(), memory.arena.clone(), lent.clone()];
        for (weight, place) in plan.weights().iter().zip(&memory.weights) {
            let layout = Layout::of(weight);
            let (cols, rows, dtype) = (weight.cols(), weight.rows(), weight.spec.dtype);
            let bytes = layout.bytes(weight);
            exponents.push(exponents_of(self.isa, weight)?);
            weights.push(match place {
                WeightPlace::Resident { lease, offset } => {
                    enough("weights", lease.bytes(), ByteSize::new(*offset) + bytes)?;
                    held.push(lease.clone());
                    let base = Base::of(lease, *offset);
                    Weight::Resident { base, bytes: bytes.get() as usize, layout, cols, rows, dtype }
                }
                WeightPlace::Mapped(mapped) => {
                    enough("mapped weights", ByteSize::of(mapped.bytes().len()), bytes)?;
                    Weight::Mapped { bytes: mapped.clone(), cols, rows, dtype }
                }
            });
        }
        enough("weights", ByteSize::of(weights.len()), ByteSize::of(plan.weights().len()))?;
        let ropes = lowered
            .ropes
            .iter()
            .map(|rope| RopeAngles::new(rope, rope.factors.map(|f| weights[f.index()].vector())))
            .collect();
        let channels = lowered.phases.iter().map(|phase| match phase {
            Phase::Conv(op) | Phase::Winograd(op) => plan.value(op.x).cols,
            _ => 0,
        });
        let channels = channels.max().unwrap_or(0);
        let mut zeros = Vec::new();
        host_room(&mut zeros, channels)?;
        zeros.resize(channels, 0.0);
        Ok(Box::new(Interpreter {
            zeros,
            team: self.team.clone(),
            isa: self.isa,
            exponents,
            ropes,
            weights,
            arena: Base::of(&memory.arena, 0),
            scratch_base: Base::of(lent, 0),
            scratch,
            kv: Kv { base: Base::of(cache, 0), kv: memory.kv.kv, blocks: memory.kv.blocks, layers },
            claims: [Claims::new(self.team.count()), Claims::new(self.team.count())],
            written: Vec::with_capacity(plan.shape().rows),
            last: LastStep::new(&plan),
            lowered,
            plan,
            _held: held,
        }))
    }
}

/// Room for the exponents of a weight, where products are in words.
fn exponents_of(isa: Isa, weight: &WeightUse) -> Result<Vec<AtomicU8>, DeviceError> {
    let mut exponents = Vec::new();
    if weight.as_matrix && RowForm::of(isa, weight) == RowForm::Words {
        let count = weight.rows() * float::exponents_of(weight.cols());
        host_room(&mut exponents, count)?;
        exponents.resize_with(count, AtomicU8::default);
    }
    Ok(exponents)
}
