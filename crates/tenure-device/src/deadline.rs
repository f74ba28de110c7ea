//! Bounds on waiting: deadlines and cancellation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The moment by which a wait must have ended, on the monotonic clock. There is no deadline that never comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The longest wait there is: a day.
    pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

    /// `wait` from now, at most [`Deadline::LONGEST`].
    pub fn after(wait: Duration) -> Self {
        Deadline(Instant::now() + wait.min(Self::LONGEST))
    }

    /// At `moment`.
    pub const fn at(moment: Instant) -> Self {
        Deadline(moment)
    }

    /// The time left, or `None` when there is none.
    pub fn remaining(self) -> Option<Duration> {
        self.0.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Whether it has come.
    pub fn passed(self) -> bool {
        self.remaining().is_none()
    }
}

/// Asks work to end early. Clones share one flag; once cancelled it stays so.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag not yet raised.
    pub fn new() -> Self {
        Cancel::default()
    }

    /// Raises the flag.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the flag is raised.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// When work must end: whichever of deadline and cancellation comes first.
#[derive(Clone, Debug)]
pub struct Stop {
    /// The deadline.
    pub deadline: Deadline,
    /// The flag.
    pub cancel: Cancel,
}

impl Stop {
    /// A deadline, and a flag nobody raises.
    pub fn by(deadline: Deadline) -> Self {
        Stop { deadline, cancel: Cancel::new() }
    }

    /// Whether work may go on.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.cancel.is_cancelled() {
            Err(Stopped::Cancelled)
        } else if self.deadline.passed() {
            Err(Stopped::DeadlineExceeded)
        } else {
            Ok(())
        }
    }
}

/// Whether work for several may go on.
///
/// # Errors
/// Why it may not, of the first that says so.
pub fn check_all(stops: &[Stop]) -> Result<(), Stopped> {
    stops.iter().try_for_each(Stop::check)
}

/// Why work ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Stopped {
    /// [`Cancel::cancel`] was called.
    #[error("cancelled")]
    Cancelled,
    /// The deadline came.
    #[error("the deadline has passed")]
    DeadlineExceeded,
}
