//! What the project's own tests need of this backend: a driver that fails as it is told to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Looks at each call of the driver that can fail, by its name, before it is made, and may have it fail.
pub type Interpose = dyn Fn(&'static str) -> Option<Injected> + Send + Sync;

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// There is no memory.
    OutOfDeviceMemory,
    /// The device is gone: this call and all later ones say so.
    Lost,
    /// The time a wait may take passes without its end.
    Hang,
}

/// What a test makes of a driver.
#[derive(Clone, Default)]
pub struct Driver {
    /// Has calls fail.
    pub interpose: Option<Arc<Interpose>>,
    /// How long work that was stopped is waited for before the device is given up, where that is not 10 seconds.
    pub linger: Option<Duration>,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Driver {{ linger: {:?}, .. }}", self.linger)
    }
}
