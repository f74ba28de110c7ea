//! Memory that is held exactly as long as something uses it.

use std::fmt;
use std::sync::Arc;

use tenure_tensor::ByteSize;

use crate::backend::Backend;
use crate::ledger::Ledger;

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
}

impl fmt::Display for SegmentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SegmentKind::Weights => "weights",
            SegmentKind::Kv => "kv",
            SegmentKind::Arena => "arena",
            SegmentKind::Scratch => "scratch",
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
}

impl Lease {
    pub(crate) fn new(
        raw: RawSegment,
        kind: SegmentKind,
        label: Arc<str>,
        backend: Arc<dyn Backend>,
        ledger: Arc<Ledger>,
    ) -> Self {
        Lease(Arc::new(Segment { raw, kind, label, backend, ledger }))
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

    /// Whether `backend` allocated it.
    pub fn belongs_to(&self, backend: &dyn Backend) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.0.backend), backend)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: `raw` came from `alloc` of this very backend (see `Reservation::carve`, the only caller of
        // `Lease::new`), it is freed here alone, and whatever could still read it would hold a clone of the lease.
        unsafe { self.backend.free(self.raw) };
        // The budget gets its bytes back only now that the memory is really gone.
        self.ledger.free(&self.label, self.kind, self.raw.bytes);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} of {:?}, {})", self.0.kind, self.0.label, self.0.raw.bytes)
    }
}
