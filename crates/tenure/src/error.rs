//! The facade's one error.

use std::fmt;
use std::path::PathBuf;

use tenure_device::{BudgetError, CarveError, DeviceError, LoadError, RunError, Stopped};
use tenure_graph::PlanError;
use tenure_models::ModelError;
use tenure_sampling::SamplingError;
use tenure_tokenizer::{TemplateError, TokenizerError};
use tenure_weights::{ErrorKind as FileError, WeightsError};

/// What went wrong, in words for a person and a kind for a program. The cause is reachable by
/// [`std::error::Error::source`].
pub struct Error(Box<Cause>);

/// What a program can react to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file could not be found or read.
    Io,
    /// The file is damaged, or breaks its format's rules.
    InvalidFile,
    /// The file is in order, but Tenure does not know the model, or a part of it.
    UnsupportedModel,
    /// It does not fit into the budget, or the device has no memory.
    OutOfMemory,
    /// An option or input is out of bounds.
    BadParameter,
    /// The prompt does not fit into the context.
    PromptTooLong,
    /// The model gave numbers that are none.
    NonFinite,
    /// Every sequence of the model is in use.
    Busy,
    /// Somebody cancelled.
    Cancelled,
    /// The deadline came.
    DeadlineExceeded,
    /// The device failed.
    Device,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("{path}: {error}")]
    Model { path: PathBuf, error: ModelError },
    #[error("{path}: {error}")]
    Tokenizer { path: PathBuf, error: TokenizerError },
    #[error("{path}: {error}")]
    Template { path: PathBuf, error: TemplateError },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Encode(#[from] TokenizerError),
    #[error(transparent)]
    Budget(#[from] BudgetError),
    #[error(transparent)]
    Carve(#[from] CarveError),
    #[error("{error}; {advice}")]
    DoesNotFit { error: BudgetError, advice: String },
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("{path}: {error}")]
    Load { path: PathBuf, error: LoadError },
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("the prompt has {tokens} tokens, the context holds {context}")]
    PromptTooLong { tokens: usize, context: usize },
    #[error("the prompt is empty, and this model begins with no token of its own")]
    EmptyPrompt,
    #[error("token {token} is outside the vocabulary of {vocab}")]
    TokenOutOfRange { token: u32, vocab: usize },
    #[error("option {field} is {value}")]
    BadParameter { field: &'static str, value: String },
    #[error("all {sequences} sequences of the model are in use")]
    NoFreeSequence { sequences: usize },
    #[error("the model's file has no chat template")]
    NoChatTemplate,
    #[error("the reservation is for {reserved}, the plan needs {needed}")]
    WrongReservation { reserved: tenure_tensor::ByteSize, needed: tenure_tensor::ByteSize },
}

impl Error {
    /// What a program can react to.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Cause::Weights(error) if matches!(error.kind(), FileError::Io { .. } | FileError::NotAFile { .. }) => {
                ErrorKind::Io
            }
            Cause::Weights(_) | Cause::Plan(_) | Cause::Tokenizer { .. } | Cause::Template { .. } => {
                ErrorKind::InvalidFile
            }
            Cause::Model { error, .. } => match error {
                ModelError::UnsupportedArchitecture { .. }
                | ModelError::UnsupportedFeature { .. }
                | ModelError::NoMetadata => ErrorKind::UnsupportedModel,
                _ => ErrorKind::InvalidFile,
            },
            Cause::Budget(BudgetError::Stopped(stopped)) | Cause::Stopped(stopped) => of_stopped(*stopped),
            Cause::Run(RunError::Stopped(stopped)) | Cause::Load { error: LoadError::Stopped(stopped), .. } => {
                of_stopped(*stopped)
            }
            Cause::Budget(_) | Cause::Carve(_) | Cause::DoesNotFit { .. } => ErrorKind::OutOfMemory,
            Cause::Device(DeviceError::HostOutOfMemory { .. }) => ErrorKind::OutOfMemory,
            Cause::Device(DeviceError::UnsupportedDtype { .. } | DeviceError::UnsupportedKv { .. }) => {
                ErrorKind::UnsupportedModel
            }
            Cause::Load { error: LoadError::Source { .. }, .. } => ErrorKind::Io,
            Cause::Device(_) | Cause::Load { .. } | Cause::Run(_) => ErrorKind::Device,
            Cause::Sampling(SamplingError::NonFiniteLogits { .. }) => ErrorKind::NonFinite,
            Cause::Sampling(_)
            | Cause::Encode(_)
            | Cause::EmptyPrompt
            | Cause::TokenOutOfRange { .. }
            | Cause::BadParameter { .. }
            | Cause::NoChatTemplate
            | Cause::WrongReservation { .. } => ErrorKind::BadParameter,
            Cause::PromptTooLong { .. } => ErrorKind::PromptTooLong,
            Cause::NoFreeSequence { .. } => ErrorKind::Busy,
        }
    }

    /// The exact class of the innermost error, such as `BadMagic` or `PromptTooLong`.
    pub fn class(&self) -> String {
        match &*self.0 {
            Cause::Weights(error) => variant(error.kind()),
            Cause::Model { error: ModelError::Weights(error), .. } => variant(error.kind()),
            Cause::Model { error: ModelError::Plan(error), .. } => variant(error),
            Cause::Model { error, .. } => variant(error),
            Cause::Plan(error) => variant(error),
            Cause::Tokenizer { error, .. } | Cause::Encode(error) => variant(error),
            Cause::Template { error, .. } => variant(error),
            Cause::Budget(error) | Cause::DoesNotFit { error, .. } => variant(error),
            Cause::Carve(error) => variant(error),
            Cause::Device(error) => variant(error),
            Cause::Load { error: LoadError::Source { error, .. }, .. } => {
                error.downcast_ref::<WeightsError>().map_or_else(|| "Io".to_owned(), |error| variant(error.kind()))
            }
            Cause::Load { error, .. } => variant(error),
            Cause::Run(RunError::Stopped(stopped)) | Cause::Stopped(stopped) => variant(stopped),
            Cause::Run(error) => variant(error),
            Cause::Sampling(error) => variant(error),
            cause @ (Cause::PromptTooLong { .. }
            | Cause::EmptyPrompt
            | Cause::TokenOutOfRange { .. }
            | Cause::BadParameter { .. }
            | Cause::NoFreeSequence { .. }
            | Cause::NoChatTemplate
            | Cause::WrongReservation { .. }) => variant(cause),
        }
    }
}

fn of_stopped(stopped: Stopped) -> ErrorKind {
    match stopped {
        Stopped::Cancelled => ErrorKind::Cancelled,
        Stopped::DeadlineExceeded => ErrorKind::DeadlineExceeded,
    }
}

/// The name of an enum's variant, which derived `Debug` begins with.
fn variant(error: &dyn fmt::Debug) -> String {
    format!("{error:?}").chars().take_while(|c| c.is_ascii_alphanumeric()).collect()
}

impl<C: Into<Cause>> From<C> for Error {
    fn from(cause: C) -> Self {
        Error(Box::new(cause.into()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind(), self.0)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
