//! Ctrl+C.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tenure::Cancel;

use crate::cli::Refusal;

/// Ctrl+C raises `cancel`; a second one ends the program.
///
/// # Errors
/// When the system takes no handler.
pub fn cancel_on_interrupt(cancel: &Cancel) -> Result<(), Refusal> {
    let current = Current::default();
    current.set(cancel);
    install(current)
}

/// What Ctrl+C cancels right now.
#[derive(Clone, Default)]
pub struct Current(Arc<(Mutex<Cancel>, AtomicUsize)>);

impl Current {
    /// From now on Ctrl+C raises `cancel`.
    pub fn set(&self, cancel: &Cancel) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = cancel.clone();
        self.0.1.store(0, Ordering::Relaxed);
    }
}

/// Makes Ctrl+C raise what is current, and end the program when that was raised before.
///
/// # Errors
/// When the system takes no handler.
pub fn install(current: Current) -> Result<(), Refusal> {
    ctrlc::set_handler(move || {
        if current.0.1.fetch_add(1, Ordering::Relaxed) > 0 {
            // 128 + SIGINT, as shells report it.
            std::process::exit(130);
        }
        current.0.0.lock().unwrap_or_else(PoisonError::into_inner).cancel();
    })
    .map_err(|error| Refusal::new("Io", error))
}
