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
    /// What the driver says can still be allocated, where it tells; others may use the device too.
    pub available: Option<ByteSize>,
    /// Who holds the allocated bytes, by label and kind.
    pub holders: Vec<Holder>,
    /// Who holds the reserved bytes, by label.
    pub pending: Vec<(String, ByteSize)>,
}

impl Report {
    /// What is neither reserved nor allocated, and there to be had.
    pub fn free(&self) -> ByteSize {
        room(self.budget, self.reserved, self.allocated, self.available)
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
    #[error(
        "{label:?} needs {needed}, the budget leaves {budget} for models: raise it by {} bytes",
        .needed.get() - .budget.get()
    )]
    TooLarge {
        /// Who asked.
        label: String,
        /// For how much.
        needed: ByteSize,
        /// The budget, less what the backend takes for itself.
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

    pub(crate) fn report(&self, available: Option<ByteSize>) -> Report {
        let state = self.lock();
        Report {
            budget: state.budget,
            reserved: state.reserved,
            allocated: state.allocated,
            peak: state.peak,
            available,
            holders: state.holders(),
            pending: state.pending(),
        }
    }

    pub(crate) fn set_budget(&self, budget: ByteSize) {
        self.lock().budget = budget;
        self.freed.notify_all();
    }

    /// Waits until `needed` bytes are free, and takes them. `available`: what the driver says can still be allocated.
    pub(crate) fn reserve(
        &self,
        label: &Arc<str>,
        needed: ByteSize,
        available: impl Fn() -> Option<ByteSize>,
        stop: &Stop,
    ) -> Result<(), BudgetError> {
        let mut state = self.lock();
        loop {
            if needed > state.budget {
                return Err(BudgetError::TooLarge { label: label.to_string(), needed, budget: state.budget });
            }
            // Asked anew each time: what others hold comes and goes. It waits for nobody, so the lock may be held.
            let free = room(state.budget, state.reserved, state.allocated, available());
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
        state.freed(label, kind, bytes);
        drop(state);
        self.freed.notify_all();
    }

    /// Turns allocated bytes whose memory has been freed back into reserved ones.
    pub(crate) fn free_to_reserved(&self, label: &Arc<str>, kind: SegmentKind, bytes: ByteSize) {
        let mut state = self.lock();
        state.freed(label, kind, bytes);
        state.reserved += bytes;
        *state.pending.entry(label.clone()).or_default() += bytes;
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

    /// Takes bytes off what is allocated.
    fn freed(&mut self, label: &Arc<str>, kind: SegmentKind, bytes: ByteSize) {
        self.allocated = self.allocated.saturating_sub(bytes);
        let key = (label.clone(), kind);
        if let Some(held) = self.holders.get_mut(&key) {
            *held = held.saturating_sub(bytes);
            if *held == ByteSize::ZERO {
                self.holders.remove(&key);
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

/// What is free of a budget, and of what the driver says can still be allocated: what is reserved is not yet among what
/// the driver knows to be taken.
fn room(budget: ByteSize, reserved: ByteSize, allocated: ByteSize, available: Option<ByteSize>) -> ByteSize {
    let of_budget = budget.saturating_sub(reserved + allocated);
    available.map_or(of_budget, |available| of_budget.min(available.saturating_sub(reserved)))
}

fn list(holders: &[Holder], pending: &[(String, ByteSize)]) -> String {
    let allocated = holders.iter().map(|h| format!("{:?} {} {}", h.label, h.kind, h.bytes));
    let reserved = pending.iter().map(|(label, bytes)| format!("{label:?} reserved {bytes}"));
    allocated.chain(reserved).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_budget_and_driver_both_have() {
        let bytes = ByteSize::new;
        let room = |budget, reserved, allocated, available: Option<u64>| {
            room(bytes(budget), bytes(reserved), bytes(allocated), available.map(bytes)).get()
        };
        assert_eq!(room(100, 10, 20, None), 70);
        // The driver does not know of what is only reserved, and knows of what is allocated.
        assert_eq!(room(100, 10, 20, Some(60)), 50);
        assert_eq!(room(100, 10, 20, Some(1000)), 70);
        assert_eq!(room(100, 10, 20, Some(5)), 0);
        assert_eq!(room(100, 70, 60, Some(1000)), 0);
    }

    #[test]
    fn a_reservation_waits_for_what_others_hold_of_the_device() {
        let ledger = Ledger::new(ByteSize::new(100));
        let label: Arc<str> = "one".into();
        let asked = std::cell::Cell::new(0);
        // Others let go between the second look and the third.
        let available = || {
            asked.set(asked.get() + 1);
            Some(ByteSize::new(if asked.get() < 3 { 10 } else { 60 }))
        };
        let stop = |millis| Stop::by(crate::Deadline::after(std::time::Duration::from_millis(millis)));
        ledger.reserve(&label, ByteSize::new(50), available, &stop(60_000)).expect("comes free");
        assert_eq!(asked.get(), 3);
        let error = ledger.reserve(&label, ByteSize::new(50), || Some(ByteSize::new(60)), &stop(1));
        let BudgetError::NoRoom { free, .. } = error.expect_err("10 are left") else { panic!("waiting could help") };
        assert_eq!(free, ByteSize::new(10));
        ledger.reserve(&label, ByteSize::new(10), || Some(ByteSize::new(60)), &stop(1)).expect("fits");
    }
}
