//! Memory that is held exactly as long as something uses it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tenure_tensor::ByteSize;

use crate::backend::Backend;
use crate::ledger::Ledger;
use crate::pool::Shared;

/// What a segment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SegmentKind {
    /// Weights, in the layout the backend computes with.
    Weights,
    /// Keys and values of past positions.
    Kv,
    /// Values within one step.
    Arena,
    /// What the backend needs beside the arena while a step runs.
    Scratch,
    /// What host and device exchange in a step, where they do not share memory.
    Exchange,
}

impl fmt::Display for SegmentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SegmentKind::Weights => "weights",
            SegmentKind::Kv => "kv",
            SegmentKind::Arena => "arena",
            SegmentKind::Scratch => "scratch",
            SegmentKind::Exchange => "exchange",
        })
    }
}

/// A backend's name for one allocation: an address or a handle, and its length. Backends alone give it a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawSegment {
    /// Address or handle.
    pub token: u64,
    /// Bytes allocated.
    pub bytes: ByteSize,
}

/// A share of one live allocation. Clones share it; the last one to go frees the memory and gives its bytes back to
/// the budget. It hands out no address: only a backend can turn it into one, and a program that uses it holds a clone.
#[derive(Clone)]
pub struct Lease(Arc<Segment>);

struct Segment {
    raw: RawSegment,
    kind: SegmentKind,
    label: Arc<str>,
    backend: Arc<dyn Backend>,
    ledger: Arc<Ledger>,
    /// Where its bytes go when it is freed, if not back to the budget.
    pool: Option<Arc<Shared>>,
    /// How many read it, or [`WRITTEN`].
    users: AtomicU32,
}

const WRITTEN: u32 = u32::MAX;

/// The right to read a lease's memory, shared, or to write it, alone.
pub(crate) struct InUse {
    lease: Lease,
    writes: bool,
}

impl Drop for InUse {
    fn drop(&mut self) {
        if self.writes {
            self.lease.0.users.store(0, Ordering::Release);
        } else {
            self.lease.0.users.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Lease {
    pub(crate) fn new(
        raw: RawSegment,
        kind: SegmentKind,
        label: Arc<str>,
        backend: Arc<dyn Backend>,
        ledger: Arc<Ledger>,
        pool: Option<Arc<Shared>>,
    ) -> Self {
        Lease(Arc::new(Segment { raw, kind, label, backend, ledger, pool, users: AtomicU32::new(0) }))
    }

    /// What the memory is for.
    pub fn kind(&self) -> SegmentKind {
        self.0.kind
    }

    /// Who holds it.
    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// Its size.
    pub fn bytes(&self) -> ByteSize {
        self.0.raw.bytes
    }

    /// The backend's own name for it; of use to that backend only.
    pub fn raw(&self) -> RawSegment {
        self.0.raw
    }

    /// Takes the memory for reading, if nobody writes it.
    pub(crate) fn read(&self) -> Option<InUse> {
        let more = |users: u32| users.checked_add(1).filter(|&users| users != WRITTEN);
        self.0.users.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()?;
        Some(InUse { lease: self.clone(), writes: false })
    }

    /// Takes the memory for writing, if nobody uses it.
    pub(crate) fn write(&self) -> Option<InUse> {
        self.0.users.compare_exchange(0, WRITTEN, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(InUse { lease: self.clone(), writes: true })
    }

    /// The same for clones, different for other leases.
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Whether `backend` allocated it.
    pub fn belongs_to(&self, backend: &dyn Backend) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.0.backend), backend)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: `raw` came from `alloc` of this very backend (see `Device::allocate`, the only caller of
        // `Lease::new`), it is freed here alone, and whatever could still read it would hold a clone of the lease.
        unsafe { self.backend.free(self.raw) };
        // The budget gets its bytes back only now that the memory is really gone.
        match &self.pool {
            Some(pool) => pool.give_back(&self.ledger, self.kind, self.raw.bytes),
            None => self.ledger.free(&self.label, self.kind, self.raw.bytes),
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} of {:?}, {})", self.0.kind, self.0.label, self.0.raw.bytes)
    }
}
