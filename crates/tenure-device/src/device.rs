//! A backend with its budget.

use std::sync::Arc;

use tenure_tensor::ByteSize;

use crate::backend::{AllocError, Backend, DeviceError};
use crate::deadline::Stop;
use crate::ledger::{BudgetError, Ledger, Report};
use crate::pool::Shared;
use crate::segment::{Lease, SegmentKind};

/// One device: a backend, and the account of its memory. Clones share both.
#[derive(Clone, Debug)]
pub struct Device {
    backend: Arc<dyn Backend>,
    ledger: Arc<Ledger>,
}

/// The exact bytes something needs, segment by segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    segments: Vec<(SegmentKind, ByteSize)>,
}

impl Footprint {
    /// Adds a segment; its size is what the backend will allocate.
    pub fn add(&mut self, device: &Device, kind: SegmentKind, bytes: ByteSize) {
        if bytes > ByteSize::ZERO {
            self.segments.push((kind, device.backend.round_up(bytes)));
        }
    }

    /// The segments, in the order they were added.
    pub fn segments(&self) -> &[(SegmentKind, ByteSize)] {
        &self.segments
    }

    /// All of it.
    pub fn total(&self) -> ByteSize {
        self.segments.iter().map(|&(_, bytes)| bytes).sum()
    }

    /// The part for one purpose.
    pub fn of(&self, kind: SegmentKind) -> ByteSize {
        self.segments.iter().filter(|(other, _)| *other == kind).map(|&(_, bytes)| bytes).sum()
    }
}

impl Device {
    /// Whether both are the same device under the same budget.
    pub fn is(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.ledger, &other.ledger)
    }

    /// A device that may use `budget` bytes, of which the backend's own overhead is taken off.
    pub fn new(backend: Arc<dyn Backend>, budget: ByteSize) -> Self {
        let budget = budget.saturating_sub(backend.overhead());
        Device { backend, ledger: Arc::new(Ledger::new(budget)) }
    }

    /// The backend.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The same device opened anew under the same budget, with nothing on it. What is held of this one stays held of
    /// this one.
    ///
    /// # Errors
    /// [`DeviceError`] when it cannot be opened.
    pub fn reopen(&self) -> Result<Device, DeviceError> {
        let backend = self.backend.reopen()?;
        let budget = self.report().budget + self.backend.overhead();
        Ok(Device::new(backend, budget))
    }

    /// Sets aside the bytes of `footprint`, waiting for them until `stop`. They must be free in the budget, and on the
    /// device where its driver tells.
    ///
    /// # Errors
    /// [`BudgetError`] with the bytes needed, free, and who holds the rest.
    pub fn reserve(&self, label: &str, footprint: &Footprint, stop: &Stop) -> Result<Reservation, BudgetError> {
        let label: Arc<str> = label.into();
        self.ledger.reserve(&label, footprint.total(), || self.backend.available(), stop)?;
        Ok(Reservation { device: self.clone(), label, pending: footprint.segments.clone() })
    }

    /// Turns reserved bytes into a segment.
    pub(crate) fn allocate(
        &self,
        label: &Arc<str>,
        kind: SegmentKind,
        bytes: ByteSize,
        pool: Option<Arc<Shared>>,
    ) -> Result<Lease, CarveError> {
        let alloc = self.backend.alloc(kind, bytes);
        let raw = alloc.map_err(|error| CarveError::Alloc { label: label.to_string(), kind, error })?;
        self.ledger.allocate(label, kind, bytes, raw.bytes);
        let Device { backend, ledger } = self.clone();
        Ok(Lease::new(raw, kind, label.clone(), backend, ledger, pool))
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Who holds what.
    pub fn report(&self) -> Report {
        self.ledger.report(self.backend.available())
    }

    /// Changes the budget. What is held stays held; the next reservation is judged by the new figure.
    pub fn set_budget(&self, budget: ByteSize) {
        self.ledger.set_budget(budget.saturating_sub(self.backend.overhead()));
    }
}

/// The right to allocate the segments of one footprint. Not `Clone`; dropping it gives back what was not carved.
#[derive(Debug)]
pub struct Reservation {
    device: Device,
    label: Arc<str>,
    pending: Vec<(SegmentKind, ByteSize)>,
}

/// Why a segment could not be carved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CarveError {
    /// The reservation holds no (more) segment of that kind.
    #[error("{label:?} has no {kind} segment left to carve")]
    NotReserved {
        /// Who reserved.
        label: String,
        /// What was asked for.
        kind: SegmentKind,
    },
    /// The pool has not so much left.
    #[error("{label:?} has {left} left for {kind}, which take {needed}")]
    PoolExhausted {
        /// Who reserved.
        label: String,
        /// What for.
        kind: SegmentKind,
        /// How much was asked for.
        needed: ByteSize,
        /// How much no segment has.
        left: ByteSize,
    },
    /// The device refused, though the budget allowed it.
    #[error("{label:?}, {kind}: {error}")]
    Alloc {
        /// Who reserved.
        label: String,
        /// What for.
        kind: SegmentKind,
        /// What the backend said.
        error: AllocError,
    },
}

impl Reservation {
    /// The device it is for.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What is reserved and not yet carved.
    pub fn remaining(&self) -> ByteSize {
        self.pending.iter().map(|&(_, bytes)| bytes).sum()
    }

    /// Segments of a kind that are reserved and not yet carved.
    pub fn pending(&self, kind: SegmentKind) -> usize {
        self.pending.iter().filter(|(other, _)| *other == kind).count()
    }

    /// Allocates the first pending segment of that kind.
    ///
    /// # Errors
    /// [`CarveError`]; the reservation then still holds the segment's bytes.
    pub fn carve(&mut self, kind: SegmentKind) -> Result<Lease, CarveError> {
        let at = self.pending.iter().position(|(other, _)| *other == kind);
        let Some(at) = at else {
            return Err(CarveError::NotReserved { label: self.label.to_string(), kind });
        };
        let lease = self.device.allocate(&self.label, kind, self.pending[at].1, None)?;
        self.pending.remove(at);
        Ok(lease)
    }

    /// What is reserved and not yet carved, and nothing is left.
    pub(crate) fn take_all(&mut self) -> (Device, Arc<str>, ByteSize) {
        let rest = self.remaining();
        self.pending.clear();
        (self.device.clone(), self.label.clone(), rest)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.device.ledger.refund(&self.label, self.remaining());
    }
}
