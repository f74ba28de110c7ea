//! How much text a template may make.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::BudgetLimit;

/// Why a function of ours stops a template.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("more than {0}")]
    Budget(BudgetLimit),
    #[error("{0}")]
    Raised(String),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::new(ErrorKind::InvalidOperation, refusal.to_string()).with_source(refusal)
    }
}

/// Counts the bytes of all strings and lists that are made while a template runs.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    spent: Arc<AtomicU64>,
    limit: u64,
}

/// What an element of a list takes.
const ELEMENT: u64 = 32;

impl Meter {
    pub(super) fn new(limit: u64) -> Self {
        Meter { spent: Arc::default(), limit }
    }

    /// Counts `bytes` before they are made.
    pub(super) fn charge(&self, bytes: u64) -> Result<(), Error> {
        // One thread renders; the atomic only makes the closures that share it `Send`.
        let spent = self.spent.load(Ordering::Relaxed).saturating_add(bytes);
        self.spent.store(spent, Ordering::Relaxed);
        if spent > self.limit {
            return Err(Refusal::Budget(BudgetLimit::Bytes(self.limit)).into());
        }
        Ok(())
    }

    /// Counts a list before it is made.
    pub(super) fn charge_list(&self, len: usize) -> Result<(), Error> {
        self.charge((len as u64).saturating_mul(ELEMENT))
    }

    /// Counts as much as a value holds itself.
    pub(super) fn charge_like(&self, value: &Value) -> Result<(), Error> {
        match value.as_str() {
            Some(text) => self.charge(text.len() as u64),
            None => self.charge_list(value.len().unwrap_or(1)),
        }
    }

    /// A value as Python's `str` would show it, counted.
    pub(super) fn text_of(&self, value: &Value) -> Result<String, Error> {
        let mut text = Text { meter: self, text: String::new(), refusal: None };
        match text.put(value) {
            Ok(()) => Ok(text.text),
            Err(fmt::Error) => {
                Err(text.refusal.unwrap_or_else(|| Error::new(ErrorKind::WriteFailure, "cannot show a value")))
            }
        }
    }
}

/// A string that stops when the budget is spent.
struct Text<'m> {
    meter: &'m Meter,
    text: String,
    refusal: Option<Error>,
}

impl Text<'_> {
    fn put(&mut self, value: &Value) -> fmt::Result {
        use fmt::Write;
        match value.kind() {
            ValueKind::Bool => self.write_str(if value.is_true() { "True" } else { "False" }),
            ValueKind::None => self.write_str("None"),
            _ => match value.as_str() {
                Some(text) => self.write_str(text),
                None => write!(self, "{value}"),
            },
        }
    }
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.meter.charge(text.len() as u64).map_err(|refusal| {
            self.refusal = Some(refusal);
            fmt::Error
        })?;
        self.text.push_str(text);
        Ok(())
    }
}
