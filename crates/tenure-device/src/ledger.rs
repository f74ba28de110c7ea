//! The budget: who holds how much, and who may have more.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tenure_tensor::ByteSize;

use crate::deadline::{Stop, Stopped};
use crate::segment::SegmentKind;

/// The account of one device's memory.
#[derive(Debug)]
pub(crate) struct Ledger {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    budget: ByteSize,
    reserved: ByteSize,
    allocated: ByteSize,
    peak: ByteSize,
    holders: BTreeMap<(Arc<str>, SegmentKind), ByteSize>,
    /// Reserved and not yet allocated, by label.
    pending: BTreeMap<Arc<str>, ByteSize>,
}

/// What a device's memory is used for right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What may be used in all.
    pub budget: ByteSize,
    /// Promised to reservations, not yet allocated.
    pub reserved: ByteSize,
    /// Allocated.
    pub allocated: ByteSize,
    /// The most that was ever reserved and allocated together.
    pub peak: ByteSize,
    /// Who holds the allocated bytes, by label and kind.
    pub holders: Vec<Holder>,
    /// Who holds the reserved bytes, by label.
    pub pending: Vec<(String, ByteSize)>,
}

impl Report {
    /// What is neither reserved nor allocated.
    pub fn free(&self) -> ByteSize {
        self.budget.saturating_sub(self.reserved + self.allocated)
    }
}

/// One line of a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The label given when the memory was reserved.
    pub label: String,
    /// What for.
    pub kind: SegmentKind,
    /// How much.
    pub bytes: ByteSize,
}

/// Why a reservation was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// More than the whole budget: waiting cannot help.
    #[error("{label:?} needs {needed}, more than the budget of {budget} ({} bytes over)", .needed.get() - .budget.get())]
    TooLarge {
        /// Who asked.
        label: String,
        /// For how much.
        needed: ByteSize,
        /// The budget.
        budget: ByteSize,
    },
    /// The bytes did not come free in time.
    #[error("{label:?} needs {needed}, {free} of {budget} are free; held by {}", list(.holders, .pending))]
    NoRoom {
        /// Who asked.
        label: String,
        /// For how much.
        needed: ByteSize,
        /// What was free when the deadline came.
        free: ByteSize,
        /// The budget.
        budget: ByteSize,
        /// Who has allocated how much.
        holders: Vec<Holder>,
        /// Who has reserved how much more.
        pending: Vec<(String, ByteSize)>,
    },
    /// The wait was cancelled.
    #[error("{0}")]
    Stopped(#[from] Stopped),
}

impl Ledger {
    pub(crate) fn new(budget: ByteSize) -> Self {
        let state = State {
            budget,
            reserved: ByteSize::ZERO,
            allocated: ByteSize::ZERO,
            peak: ByteSize::ZERO,
            holders: BTreeMap::new(),
            pending: BTreeMap::new(),
        };
        Ledger { state: Mutex::new(state), freed: Condvar::new() }
    }

    pub(crate) fn report(&self) -> Report {
        let state = self.lock();
        Report {
            budget: state.budget,
            reserved: state.reserved,
            allocated: state.allocated,
            peak: state.peak,
            holders: state.holders(),
            pending: state.pending(),
        }
    }

    pub(crate) fn set_budget(&self, budget: ByteSize) {
        self.lock().budget = budget;
        self.freed.notify_all();
    }

    /// Waits until `needed` bytes are free, and takes them.
    pub(crate) fn reserve(&self, label: &Arc<str>, needed: ByteSize, stop: &Stop) -> Result<(), BudgetError> {
        let mut state = self.lock();
        loop {
            if needed > state.budget {
                return Err(BudgetError::TooLarge { label: label.to_string(), needed, budget: state.budget });
            }
            let free = state.budget.saturating_sub(state.reserved + state.allocated);
            if needed <= free {
                state.reserved += needed;
                *state.pending.entry(label.clone()).or_default() += needed;
                state.peak = state.peak.max(state.reserved + state.allocated);
                return Ok(());
            }
            match (stop.check(), stop.deadline.remaining()) {
                (Err(Stopped::Cancelled), _) => return Err(Stopped::Cancelled.into()),
                (Ok(()), Some(left)) => {
                    // Cancellation has no way to wake this wait, so it looks up now and then.
                    let nap = left.min(std::time::Duration::from_millis(20));
                    state = self.freed.wait_timeout(state, nap).unwrap_or_else(PoisonError::into_inner).0;
                }
                (Err(Stopped::DeadlineExceeded), _) | (Ok(()), None) => {
                    return Err(BudgetError::NoRoom {
                        label: label.to_string(),
                        needed,
                        free,
                        budget: state.budget,
                        holders: state.holders(),
                        pending: state.pending(),
                    });
                }
            }
        }
    }

    /// Gives back reserved bytes that were never allocated.
    pub(crate) fn refund(&self, label: &Arc<str>, bytes: ByteSize) {
        let mut state = self.lock();
        state.settle(label, bytes);
        drop(state);
        self.freed.notify_all();
    }

    /// Turns `reserved` bytes into those really `allocated`.
    pub(crate) fn allocate(&self, label: &Arc<str>, kind: SegmentKind, reserved: ByteSize, allocated: ByteSize) {
        let mut state = self.lock();
        state.settle(label, reserved);
        state.allocated += allocated;
        *state.holders.entry((label.clone(), kind)).or_default() += allocated;
    }

    /// Gives back allocated bytes whose memory has been freed.
    pub(crate) fn free(&self, label: &Arc<str>, kind: SegmentKind, bytes: ByteSize) {
        let mut state = self.lock();
        state.allocated = state.allocated.saturating_sub(bytes);
        let key = (label.clone(), kind);
        if let Some(held) = state.holders.get_mut(&key) {
            *held = held.saturating_sub(bytes);
            if *held == ByteSize::ZERO {
                state.holders.remove(&key);
            }
        }
        drop(state);
        self.freed.notify_all();
    }

    /// The account is whole after every call, so a panic elsewhere while it was locked does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes bytes off what is reserved.
    fn settle(&mut self, label: &Arc<str>, bytes: ByteSize) {
        self.reserved = self.reserved.saturating_sub(bytes);
        if let Some(pending) = self.pending.get_mut(label) {
            *pending = pending.saturating_sub(bytes);
            if *pending == ByteSize::ZERO {
                self.pending.remove(label);
            }
        }
    }

    fn pending(&self) -> Vec<(String, ByteSize)> {
        self.pending.iter().map(|(label, &bytes)| (label.to_string(), bytes)).collect()
    }

    fn holders(&self) -> Vec<Holder> {
        self.holders
            .iter()
            .map(|((label, kind), &bytes)| Holder { label: label.to_string(), kind: *kind, bytes })
            .collect()
    }
}

fn list(holders: &[Holder], pending: &[(String, ByteSize)]) -> String {
    let allocated = holders.iter().map(|h| format!("{:?} {} {}", h.label, h.kind, h.bytes));
    let reserved = pending.iter().map(|(label, bytes)| format!("{label:?} reserved {bytes}"));
    allocated.chain(reserved).collect::<Vec<_>>().join(", ")
}
