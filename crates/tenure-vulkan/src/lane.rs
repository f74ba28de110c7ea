//! Loading weights and binding plans.

use std::sync::{Arc, MutexGuard, TryLockError};
use std::time::Duration;

use tenure_device::{DeviceError, Exec, Lane, Lease, Load, LoadError, Memory, Stop, WeightPlace, host_room};
use tenure_graph::{Plan, RopeAngles};
use tenure_tensor::{ByteSize, codec};

use crate::backend::Shared;
use crate::exchange::{COUNT_BYTES, SLOTS};
use crate::layout::{BlockLayout, KvLayout, WORD, weight_bytes};
use crate::lower::{NotLowered, Sites, lower, ropes};
use crate::raw::buffer::Buffer;
use crate::raw::exec::{Parts, VulkanExec, download};
use crate::raw::upload::Staging;
use crate::turns::turns;

pub(crate) struct VulkanLane {
    shared: Arc<Shared>,
}

/// Bytes of a file that are held at a time, at least one row.
const CHUNK: usize = 1 << 20;
/// Between looks at whether another load has ended.
const NAP: Duration = Duration::from_millis(2);

impl VulkanLane {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        VulkanLane { shared }
    }

    /// The staging, once no other load uses it; `None` where the host writes device memory itself.
    fn staging(&self, stop: &Stop) -> Result<Option<MutexGuard<'_, Staging>>, LoadError> {
        let Some(staging) = &self.shared.staging else { return Ok(None) };
        loop {
            match staging.try_lock() {
                Ok(staging) => return Ok(Some(staging)),
                Err(TryLockError::Poisoned(staging)) => return Ok(Some(staging.into_inner())),
                Err(TryLockError::WouldBlock) => {
                    stop.check()?;
                    std::thread::sleep(NAP);
                }
            }
        }
    }

    /// # Safety
    /// As for [`Lane::load`].
    unsafe fn bring_in(
        &self,
        load: &Load<'_>,
        staging: &mut Option<MutexGuard<'_, Staging>>,
        stop: &Stop,
    ) -> Result<(), LoadError> {
        let (mut file, mut laid) = (Vec::new(), Vec::new());
        for (index, item) in load.items.iter().enumerate() {
            let weight = item.weight;
            let (dtype, cols) = (weight.spec.dtype, weight.cols());
            let unsupported = || DeviceError::UnsupportedDtype {
                device: self.shared.gpu.name(),
                name: weight.spec.name.clone(),
                dtype,
            };
            let layout = BlockLayout::of(dtype).ok_or_else(unsupported)?;
            let file_row = dtype.row_bytes(cols).ok_or_else(unsupported)?;
            let bytes = weight_bytes(weight).ok_or_else(unsupported)?;
            let buffer = self.buffer(item.lease.raw(), item.offset, bytes, "weights")?;
            let row = bytes as usize / weight.rows().max(1);
            let step = (CHUNK / file_row.max(row).max(1)).max(1);
            for first in (0..weight.rows()).step_by(step) {
                stop.check()?;
                let rows = step.min(weight.rows() - first);
                for (buffer, len) in [(&mut file, rows * file_row), (&mut laid, rows * row)] {
                    host_room(buffer, len)?;
                    buffer.resize(len, 0);
                }
                (load.read)(index, (first * file_row) as u64, &mut file)
                    .map_err(|error| LoadError::Source { name: weight.spec.name.clone(), error })?;
                if weight.is_vector() {
                    let mut values = vec![0.0; cols];
                    // The type was accepted when the plan was made.
                    codec::dequantize(dtype, &file, &mut values).map_err(|_| unsupported())?;
                    for (value, bytes) in values.iter().zip(laid.as_chunks_mut().0) {
                        *bytes = value.to_le_bytes();
                    }
                } else {
                    for (file, laid) in file.chunks_exact(file_row).zip(laid.chunks_exact_mut(row)) {
                        layout.lay(file, laid);
                    }
                }
                let at = item.offset + (first * row) as u64;
                match staging {
                    // SAFETY: the caller's promise: nobody else uses the place.
                    Some(staging) => unsafe { staging.put(&buffer, at, &laid, stop)? },
                    // SAFETY: as above.
                    None => match unsafe { buffer.bytes(at, laid.len() as u64) } {
                        Some(bytes) => bytes.copy_from_slice(&laid),
                        None => return Err(self.unmapped().into()),
                    },
                }
                (load.progress)(ByteSize::of(file.len()));
            }
        }
        match staging {
            Some(staging) => staging.finish(stop),
            None => Ok(()),
        }
    }

    /// The buffer of a segment, if it holds `bytes` from `offset` on.
    fn buffer(
        &self,
        raw: tenure_device::RawSegment,
        offset: u64,
        bytes: u64,
        what: &'static str,
    ) -> Result<Arc<Buffer>, DeviceError> {
        let buffer = self.shared.segment(raw).ok_or(DeviceError::ForeignLease { what })?;
        let need = offset.saturating_add(bytes);
        if need > buffer.bytes {
            return Err(DeviceError::WrongMemory { what, got: ByteSize::new(buffer.bytes), need: ByteSize::new(need) });
        }
        Ok(buffer)
    }

    /// The buffer of memory that a plan may need, if it holds `need`. Nothing needs nothing: another stands in then.
    fn lent(
        &self,
        lease: Option<&Lease>,
        need: u64,
        what: &'static str,
        other: &Arc<Buffer>,
    ) -> Result<Arc<Buffer>, DeviceError> {
        match lease {
            _ if need == 0 => Ok(other.clone()),
            Some(lease) => self.buffer(lease.raw(), 0, need, what),
            None => Err(DeviceError::WrongMemory { what, got: ByteSize::ZERO, need: ByteSize::new(need) }),
        }
    }

    fn unmapped(&self) -> DeviceError {
        DeviceError::Failed { device: self.shared.gpu.name(), why: "mapped memory is out of reach".to_owned() }
    }
}

impl Lane for VulkanLane {
    unsafe fn load(&mut self, load: &Load<'_>, stop: &Stop) -> Result<(), LoadError> {
        self.shared.alive()?;
        let mut staging = self.staging(stop)?;
        let begun = staging.as_mut().map_or(Ok(()), |staging| staging.begin(stop));
        // SAFETY: the caller's promise.
        let result = begun.and_then(|()| unsafe { self.bring_in(load, &mut staging, stop) });
        if let (Err(_), Some(staging)) = (&result, &mut staging) {
            staging.abort();
        }
        result
    }

    unsafe fn bind(&mut self, plan: Arc<Plan>, memory: &Memory) -> Result<Box<dyn Exec>, DeviceError> {
        self.shared.alive()?;
        let shared = &self.shared;
        let mut buffers = Buffers::default();
        let mut weights = Vec::with_capacity(plan.weights().len());
        for (weight, place) in plan.weights().iter().zip(&memory.weights) {
            let bytes = weight_bytes(weight).ok_or_else(|| DeviceError::UnsupportedDtype {
                device: shared.gpu.name(),
                name: weight.spec.name.clone(),
                dtype: weight.spec.dtype,
            })?;
            match place {
                WeightPlace::Resident { lease, offset } => {
                    weights.push((buffers.place(self.buffer(lease.raw(), *offset, bytes, "weights")?), *offset));
                }
                // Weights are laid out anew for the device, which is why none is mappable.
                WeightPlace::Mapped(_) => return Err(DeviceError::ForeignLease { what: "mapped weights" }),
            }
        }
        let count = (ByteSize::of(weights.len()), ByteSize::of(plan.weights().len()));
        if count.0 < count.1 {
            return Err(DeviceError::WrongMemory { what: "weights", got: count.0, need: count.1 });
        }
        let arena = self.buffer(memory.arena.raw(), 0, plan.arena().get(), "arena")?;
        let (kv_type, kv_blocks) = (memory.kv.kv, memory.kv.blocks);
        let (mut layers, mut end) = (Vec::new(), ByteSize::ZERO);
        for &layer in plan.kv_layers() {
            let layout = KvLayout::of(layer, kv_type)
                .ok_or(DeviceError::UnsupportedKv { kv: kv_type, head_dim: layer.head_dim })?;
            layers.push(end.get());
            end += layout.block_bytes().times(kv_blocks as u64);
        }
        let kv = self.lent(memory.kv.lease.as_ref(), end.get(), "kv cache", &arena)?;
        let exchange = shared.exchange(&plan);
        let exchange_buffer = self.lent(memory.exchange.as_ref(), exchange.bytes, "exchange", &arena)?;
        let need = shared.scratch_bytes(&plan);
        let scratch = self.lent(memory.scratch.as_ref(), need, "scratch", &arena)?;
        for slot in 0..SLOTS {
            let (bytes, most) = (exchange.inputs(slot).1, shared.gpu.limits.range);
            if bytes > most {
                let (what, bytes, most) =
                    ("the inputs of a step".to_owned(), ByteSize::new(bytes), ByteSize::new(most));
                return Err(NotLowered::TooLarge { what, bytes, most }.on(shared.gpu.name()));
            }
        }

        let mut magnitudes = Vec::new();
        for (rope, &at) in ropes(&plan).into_iter().zip(&exchange.turns) {
            let factors = rope.factors.map(|factors| {
                let (buffer, offset) = weights[factors.index()];
                let (from, bytes) = ((&*buffers.0[buffer], offset), plan.weight(factors).cols() as u64 * WORD);
                // SAFETY: the caller promised that nobody writes weights or touches the exchange; the factors, one for
                // each pair, are half as long as the turns.
                unsafe { download(&shared.gpu, from, (&exchange_buffer, at), bytes) }
            });
            let factors = factors.transpose().map_err(|error| error.of_device(&shared.gpu))?;
            let factors: Option<Vec<f32>> = factors.map(|words| words.into_iter().map(f32::from_bits).collect());
            let angles = RopeAngles::new(rope, factors.as_deref());
            let turns = turns(&angles);
            // SAFETY: as above, and nothing is under way.
            match unsafe { exchange_buffer.words(at, turns.len() as u64) } {
                Some(words) => words.copy_from_slice(&turns),
                None => return Err(self.unmapped()),
            }
            magnitudes.push(angles.magnitude);
        }
        let sites = Sites {
            weights,
            kv: buffers.place(kv),
            layers,
            kv_type,
            kv_blocks: Some(kv_blocks),
            arena: buffers.place(arena),
            exchange: buffers.place(exchange_buffer.clone()),
            scratch: buffers.place(scratch),
            turns: exchange.turns.clone(),
            magnitudes,
            inputs: exchange.given.clone(),
            outputs: exchange.outputs.clone(),
            tops: exchange.tops,
        };
        let dispatches = lower(&plan, &sites, shared.bounds()).map_err(|error| error.on(shared.gpu.name()))?;
        if dispatches.len() as u64 > exchange.dispatches {
            let counts = |dispatches: u64| ByteSize::new(COUNT_BYTES).times(dispatches);
            let (got, need) = (counts(exchange.dispatches), counts(dispatches.len() as u64));
            return Err(DeviceError::WrongMemory { what: "exchange", got, need });
        }
        let parts = Parts {
            gpu: shared.gpu.clone(),
            pipelines: shared.pipelines.clone(),
            plan,
            dispatches,
            buffers: buffers.0,
            exchange_buffer,
            exchange,
            kv_blocks,
        };
        // SAFETY: the caller's promise.
        Ok(Box::new(unsafe { VulkanExec::new(parts)? }))
    }
}

/// The buffers a plan uses, each once.
#[derive(Default)]
struct Buffers(Vec<Arc<Buffer>>);

impl Buffers {
    fn place(&mut self, buffer: Arc<Buffer>) -> usize {
        let known = self.0.iter().position(|known| Arc::ptr_eq(known, &buffer));
        known.unwrap_or_else(|| {
            self.0.push(buffer);
            self.0.len() - 1
        })
    }
}
