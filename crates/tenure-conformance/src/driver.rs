//! A Vulkan driver that fails on purpose.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tenure_vulkan::testing::{Driver, Injected};

/// Which calls of the driver fail, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverFault {
    /// The call's name; `None`: any that can fail.
    pub call: Option<&'static str>,
    /// The first that fails, counted from 1 since the fault was armed.
    pub nth: usize,
    /// Whether all later ones fail too.
    pub sticky: bool,
    /// What it returns.
    pub injected: Injected,
}

/// Has calls of a driver fail. Clones are the same; devices opened with its [`Driver`] obey it.
#[derive(Clone, Debug, Default)]
pub struct DriverFaults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    fault: Option<DriverFault>,
    /// Calls since the fault was armed that it could have struck.
    matching: usize,
    /// The call it struck first.
    struck: Option<&'static str>,
    /// All calls since the last count, by name.
    calls: BTreeMap<&'static str, usize>,
}

impl DriverFaults {
    /// Nothing fails until a fault is armed.
    pub fn new() -> Self {
        DriverFaults::default()
    }

    /// What to open a device with.
    pub fn driver(&self, linger: Option<Duration>) -> Driver {
        let faults = self.clone();
        Driver { interpose: Some(Arc::new(move |call| faults.note(call))), linger }
    }

    /// Arms a fault; counting starts anew.
    pub fn arm(&self, fault: DriverFault) {
        let mut state = self.lock();
        (state.fault, state.matching, state.struck) = (Some(fault), 0, None);
    }

    /// Nothing fails any more.
    pub fn disarm(&self) {
        self.lock().fault = None;
    }

    /// The call that the armed fault struck first.
    pub fn struck(&self) -> Option<&'static str> {
        self.lock().struck
    }

    /// Calls by name since this was last asked.
    pub fn take_calls(&self) -> BTreeMap<&'static str, usize> {
        std::mem::take(&mut self.lock().calls)
    }

    fn note(&self, call: &'static str) -> Option<Injected> {
        let mut state = self.lock();
        *state.calls.entry(call).or_default() += 1;
        let fault = state.fault.filter(|fault| fault.call.is_none_or(|name| name == call))?;
        state.matching += 1;
        let strikes = state.matching == fault.nth || (fault.sticky && state.matching > fault.nth);
        strikes.then(|| {
            state.struck.get_or_insert(call);
            fault.injected
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
