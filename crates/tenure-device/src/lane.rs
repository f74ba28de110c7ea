//! Loading and binding with leases that are checked first.

use std::sync::Arc;

use tenure_graph::{Plan, WeightUse};
use tenure_tensor::ByteSize;

use crate::backend::{DeviceError, Lane, Load, LoadError, Memory, WeightPlace};
use crate::deadline::Stop;
use crate::device::Device;
use crate::program::Program;
use crate::segment::{InUse, Lease};

/// What the place of a weight in its lease is a multiple of, in bytes: a cache line, and the widest vector register.
pub const WEIGHT_ALIGN: u64 = 64;

/// A queue of work on a device. It sees to it that memory is the device's own, that what is written is used by nobody
/// else, and that what is read is not written meanwhile.
pub struct DeviceLane {
    lane: Box<dyn Lane>,
    device: Device,
}

impl Device {
    /// Opens a queue of work.
    ///
    /// # Errors
    /// [`DeviceError`] when the device cannot give one.
    pub fn open_lane(&self) -> Result<DeviceLane, DeviceError> {
        Ok(DeviceLane { lane: self.backend().open_lane()?, device: self.clone() })
    }
}

impl DeviceLane {
    /// The device whose queue it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Brings weights from their files into their leases, in the backend's layout.
    ///
    /// # Errors
    /// [`LoadError`]; the leases then hold garbage. [`DeviceError::InUse`] when two places overlap, or a program uses one.
    pub fn load(&mut self, load: &Load<'_>, stop: &Stop) -> Result<(), LoadError> {
        let mut places = Vec::with_capacity(load.items.len());
        for item in load.items {
            self.own(item.lease, "weights")?;
            aligned(item.weight, item.offset)?;
            let end = ByteSize::new(item.offset) + self.device.backend().weight_layout(item.weight).bytes;
            places.push((item.lease.id(), item.offset, end.get(), item.lease));
        }
        places.sort_by_key(|&(lease, from, ..)| (lease, from));
        let overlap = places.windows(2).any(|pair| pair[0].0 == pair[1].0 && pair[1].1 < pair[0].2);
        if overlap {
            return Err(DeviceError::InUse { what: "weights" }.into());
        }
        places.dedup_by_key(|&mut (lease, ..)| lease);
        let taken: Result<Vec<InUse>, DeviceError> =
            places.into_iter().map(|(.., lease)| lease.write().ok_or(DeviceError::InUse { what: "weights" })).collect();
        let _taken = taken?;
        // SAFETY: the leases are this backend's, written by nobody else while `_taken` lives, and the places disjoint.
        unsafe { self.lane.load(load, stop) }
    }

    /// Makes `plan` ready to run over the given memory.
    ///
    /// # Errors
    /// [`DeviceError`] when memory and plan do not fit each other, or another program writes the memory.
    pub fn bind(&mut self, plan: Arc<Plan>, memory: &Memory) -> Result<Program, DeviceError> {
        let mut held = Vec::with_capacity(memory.weights.len() + 4);
        let own = [
            (memory.kv.lease.as_ref(), "kv cache"),
            (Some(&memory.arena), "arena"),
            (memory.scratch.as_ref(), "scratch"),
            (memory.exchange.as_ref(), "exchange"),
        ];
        for (lease, what) in own.into_iter().filter_map(|(lease, what)| Some((lease?, what))) {
            self.own(lease, what)?;
            held.push(lease.write().ok_or(DeviceError::InUse { what })?);
        }
        for (weight, place) in plan.weights().iter().zip(&memory.weights) {
            match place {
                WeightPlace::Resident { lease, offset } => {
                    self.own(lease, "weights")?;
                    aligned(weight, *offset)?;
                    held.push(lease.read().ok_or(DeviceError::InUse { what: "weights" })?);
                }
                WeightPlace::Mapped(_) if self.device.backend().weight_layout(weight).mappable => {}
                WeightPlace::Mapped(_) => return Err(DeviceError::WrongLayout { name: weight.spec.name.clone() }),
            }
        }
        // SAFETY: the leases are this backend's; `held` keeps what is written to this program alone, and what is read
        // from being written, for as long as the program lives.
        let exec = unsafe { self.lane.bind(plan.clone(), memory)? };
        Ok(Program::new(exec, held, plan))
    }

    fn own(&self, lease: &Lease, what: &'static str) -> Result<(), DeviceError> {
        if lease.belongs_to(self.device.backend()) { Ok(()) } else { Err(DeviceError::ForeignLease { what }) }
    }
}

fn aligned(weight: &WeightUse, offset: u64) -> Result<(), DeviceError> {
    if offset.is_multiple_of(WEIGHT_ALIGN) {
        Ok(())
    } else {
        Err(DeviceError::WrongLayout { name: weight.spec.name.clone() })
    }
}
