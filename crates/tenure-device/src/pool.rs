//! Reserved bytes that segments take by turns.

use std::sync::{Arc, Mutex, PoisonError};

use tenure_tensor::ByteSize;

use crate::device::{CarveError, Device, Reservation};
use crate::ledger::Ledger;
use crate::segment::{Lease, SegmentKind};

/// What was reserved for one purpose, used by one segment after the other: a segment's bytes come back to the pool when
/// its last lease goes, not to the budget. Dropping the pool gives the budget what no segment has.
#[derive(Debug)]
pub struct Pool {
    device: Device,
    shared: Arc<Shared>,
}

/// What the pool and its segments know of each other.
#[derive(Debug)]
pub(crate) struct Shared {
    label: Arc<str>,
    /// Bytes that no segment has; none once the pool is gone.
    rest: Mutex<Option<ByteSize>>,
}

impl Reservation {
    /// Makes a pool of what is reserved and not yet carved.
    pub fn into_pool(mut self) -> Pool {
        let (device, label, rest) = self.take_all();
        Pool { device, shared: Arc::new(Shared { label, rest: Mutex::new(Some(rest)) }) }
    }
}

impl Pool {
    /// The device it is for.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes that no segment has.
    pub fn rest(&self) -> ByteSize {
        self.shared.rest.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(ByteSize::ZERO)
    }

    /// Allocates a segment of `bytes`, rounded up as the device wants it.
    ///
    /// # Errors
    /// [`CarveError`] when the pool has no more so many, or the device refuses. The pool is then as it was.
    pub fn carve(&self, kind: SegmentKind, bytes: ByteSize) -> Result<Lease, CarveError> {
        let bytes = self.device.backend().round_up(bytes);
        let Shared { label, rest } = &*self.shared;
        let mut rest = rest.lock().unwrap_or_else(PoisonError::into_inner);
        let left = rest.unwrap_or(ByteSize::ZERO);
        if bytes > left {
            return Err(CarveError::PoolExhausted { label: label.to_string(), kind, needed: bytes, left });
        }
        let lease = self.device.allocate(label, kind, bytes, Some(self.shared.clone()))?;
        *rest = Some(left.saturating_sub(bytes));
        Ok(lease)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let rest = self.shared.rest.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.device.ledger().refund(&self.shared.label, rest.unwrap_or(ByteSize::ZERO));
    }
}

impl Shared {
    /// A segment of the pool's was freed.
    pub(crate) fn give_back(&self, ledger: &Ledger, kind: SegmentKind, bytes: ByteSize) {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *rest {
            Some(rest) => {
                ledger.free_to_reserved(&self.label, kind, bytes);
                *rest += bytes;
            }
            None => ledger.free(&self.label, kind, bytes),
        }
    }
}
