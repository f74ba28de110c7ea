//! The facade's one error.

use std::fmt;
use std::path::PathBuf;

use tenure_device::{AllocError, BudgetError, CarveError, DeviceError, LoadError, RunError, Stopped};
use tenure_graph::PlanError;
use tenure_models::ModelError;
use tenure_sampling::SamplingError;
use tenure_tokenizer::{TemplateError, TokenizerError};
use tenure_vulkan::VulkanError;
use tenure_weights::{ErrorKind as FileError, WeightsError};

/// What went wrong, in words for a person and a kind for a program. The error it came from, such as a
/// [`BudgetError`] with all holders, is its [`source`](std::error::Error::source).
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
    /// The device is gone, with everything on it: [`crate::Engine::reopen`] opens it anew.
    DeviceLost,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error("{0}")]
    Weights(#[from] WeightsError),
    #[error("{path}: {source}")]
    Model { path: PathBuf, source: ModelError },
    /// One that names its file itself.
    #[error("{0}")]
    ImageModel(ModelError),
    #[error("{path}: {source}")]
    Tokenizer { path: PathBuf, source: TokenizerError },
    #[error("{path}: {source}")]
    Template { path: PathBuf, source: TemplateError },
    #[error("{0}")]
    Plan(#[from] PlanError),
    #[error("{0}")]
    Encode(#[from] TokenizerError),
    #[error("{0}")]
    Budget(#[from] BudgetError),
    #[error("{0}")]
    Carve(#[from] CarveError),
    #[error("{source}; {advice}")]
    DoesNotFit { source: BudgetError, advice: String },
    #[error("{0}")]
    Device(#[from] DeviceError),
    #[error("{0}")]
    Vulkan(#[from] VulkanError),
    #[error("{path}: {source}")]
    Load { path: PathBuf, source: LoadError },
    #[error("{0}")]
    Run(#[from] RunError),
    #[error("{0}")]
    Sampling(#[from] SamplingError),
    #[error("{0}")]
    Stopped(#[from] Stopped),
    #[error("the prompt has {tokens} tokens, the context holds {context}")]
    PromptTooLong { tokens: usize, context: usize },
    #[error("the prompt is empty, and this model begins with no token of its own")]
    EmptyPrompt,
    #[error("token {token} is outside the vocabulary of {vocab}")]
    TokenOutOfRange { token: u32, vocab: usize },
    #[error("{field} is {value}; {possible}")]
    BadParameter { field: &'static str, value: String, possible: String },
    #[error("all {sequences} sequences of the model are in use")]
    NoFreeSequence { sequences: usize },
    #[error("the model's file has no chat template")]
    NoChatTemplate,
    #[error(
        "the {network} takes {needed} for an image and a prompt of this size, the model was loaded with {held} for it: load it for \
         larger images or longer prompts"
    )]
    ImageTooLarge { network: String, needed: tenure_tensor::ByteSize, held: tenure_tensor::ByteSize },
    #[error("{done} of {images} images are drawn")]
    NotDrawn { done: usize, images: usize },
    #[error("the autoencoder gave pixels that are no numbers")]
    NonFinitePixels,
    #[error("the reservation is for {reserved} of its engine's device, the plan needs {needed} of this engine's")]
    WrongReservation { reserved: tenure_tensor::ByteSize, needed: tenure_tensor::ByteSize },
}

impl Error {
    /// What a program can react to.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Cause::Weights(error) => of_weights(error),
            Cause::Plan(error) => of_plan(error),
            Cause::Tokenizer { source, .. } => match source {
                TokenizerError::UnsupportedModel { .. } | TokenizerError::UnknownPreTokenizer { .. } => {
                    ErrorKind::UnsupportedModel
                }
                _ => ErrorKind::InvalidFile,
            },
            // What a template refuses to render is what the caller gave it.
            Cause::Template { source: TemplateError::TemplateRaised { .. }, .. } => ErrorKind::BadParameter,
            Cause::Template { .. } => ErrorKind::InvalidFile,
            Cause::Model { source, .. } | Cause::ImageModel(source) => match source {
                ModelError::UnsupportedArchitecture { .. }
                | ModelError::UnsupportedFeature { .. }
                | ModelError::UnsupportedFamily { .. }
                | ModelError::NotAnImageModel { .. }
                | ModelError::TextModel { .. }
                | ModelError::NoMetadata => ErrorKind::UnsupportedModel,
                ModelError::NoVariant { .. } | ModelError::PartGivenTwice { .. } | ModelError::PartNotUsed { .. } => {
                    ErrorKind::BadParameter
                }
                ModelError::Weights(error) => of_weights(error),
                ModelError::Plan(error) => of_plan(error),
                _ => ErrorKind::InvalidFile,
            },
            Cause::Budget(BudgetError::Stopped(stopped))
            | Cause::DoesNotFit { source: BudgetError::Stopped(stopped), .. }
            | Cause::Stopped(stopped)
            | Cause::Run(RunError::Stopped(stopped))
            | Cause::Load { source: LoadError::Stopped(stopped), .. } => of_stopped(*stopped),
            Cause::Carve(CarveError::Alloc { error: AllocError::Lost { .. }, .. })
            | Cause::Run(RunError::Lost { .. }) => ErrorKind::DeviceLost,
            Cause::Budget(_)
            | Cause::Carve(_)
            | Cause::DoesNotFit { .. }
            | Cause::Run(RunError::OutOfMemory { .. }) => ErrorKind::OutOfMemory,
            Cause::Device(error) | Cause::Load { source: LoadError::Device(error), .. } => of_device(error),
            Cause::Load { source: LoadError::Source { error, .. }, .. } => {
                read_fault(error).map_or(ErrorKind::Io, of_weights)
            }
            Cause::Run(RunError::BadInput { .. }) | Cause::Vulkan(VulkanError::UnknownDevice { .. }) => {
                ErrorKind::BadParameter
            }
            Cause::Run(RunError::NonFiniteActivation { .. })
            | Cause::Sampling(SamplingError::NonFiniteLogits { .. } | SamplingError::NonFiniteOutput { .. })
            | Cause::NonFinitePixels => ErrorKind::NonFinite,
            Cause::Load { .. } | Cause::Run(_) | Cause::Vulkan(_) => ErrorKind::Device,
            Cause::Sampling(_)
            | Cause::Encode(_)
            | Cause::EmptyPrompt
            | Cause::TokenOutOfRange { .. }
            | Cause::BadParameter { .. }
            | Cause::NoChatTemplate
            | Cause::ImageTooLarge { .. }
            | Cause::NotDrawn { .. }
            | Cause::WrongReservation { .. } => ErrorKind::BadParameter,
            Cause::PromptTooLong { .. } => ErrorKind::PromptTooLong,
            Cause::NoFreeSequence { .. } => ErrorKind::Busy,
        }
    }

    /// The exact class of the innermost error, such as `BadMagic` or `PromptTooLong`.
    pub fn class(&self) -> String {
        match &*self.0 {
            Cause::Weights(error) => variant(error.kind()),
            Cause::Model { source: ModelError::Weights(error), .. } => variant(error.kind()),
            Cause::Model { source: ModelError::Plan(error), .. } => variant(error),
            Cause::ImageModel(ModelError::Weights(error)) => variant(error.kind()),
            Cause::Model { source, .. } | Cause::ImageModel(source) => variant(source),
            Cause::Plan(error) => variant(error),
            Cause::Tokenizer { source: error, .. } | Cause::Encode(error) => variant(error),
            Cause::Template { source, .. } => variant(source),
            Cause::Budget(BudgetError::Stopped(stopped))
            | Cause::DoesNotFit { source: BudgetError::Stopped(stopped), .. }
            | Cause::Load { source: LoadError::Stopped(stopped), .. }
            | Cause::Run(RunError::Stopped(stopped))
            | Cause::Stopped(stopped) => variant(stopped),
            Cause::Budget(error) | Cause::DoesNotFit { source: error, .. } => variant(error),
            Cause::Carve(CarveError::Alloc { error: error @ AllocError::Lost { .. }, .. }) => variant(error),
            Cause::Carve(error) => variant(error),
            Cause::Device(error) | Cause::Load { source: LoadError::Device(error), .. } => variant(error),
            Cause::Load { source: LoadError::Source { error, .. }, .. } => {
                read_fault(error).map_or_else(|| "Io".to_owned(), |error| variant(error.kind()))
            }
            Cause::Load { source, .. } => variant(source),
            Cause::Run(error) => variant(error),
            Cause::Vulkan(error) => variant(error),
            Cause::Sampling(error) => variant(error),
            cause @ (Cause::PromptTooLong { .. }
            | Cause::EmptyPrompt
            | Cause::TokenOutOfRange { .. }
            | Cause::BadParameter { .. }
            | Cause::NoFreeSequence { .. }
            | Cause::NoChatTemplate
            | Cause::ImageTooLarge { .. }
            | Cause::NotDrawn { .. }
            | Cause::NonFinitePixels
            | Cause::WrongReservation { .. }) => variant(cause),
        }
    }
}

/// What was wrong with a file that weights were read from, by whichever way.
fn read_fault(error: &tenure_device::SourceError) -> Option<&WeightsError> {
    match error.downcast_ref::<ModelError>() {
        Some(ModelError::Weights(error)) => Some(error),
        _ => error.downcast_ref(),
    }
}

fn of_weights(error: &WeightsError) -> ErrorKind {
    match error.kind() {
        FileError::Io { .. } | FileError::NotAFile { .. } => ErrorKind::Io,
        FileError::HostOutOfMemory { .. } => ErrorKind::OutOfMemory,
        _ => ErrorKind::InvalidFile,
    }
}

fn of_plan(error: &PlanError) -> ErrorKind {
    match error {
        PlanError::Unsupported { .. } => ErrorKind::UnsupportedModel,
        _ => ErrorKind::InvalidFile,
    }
}

fn of_device(error: &DeviceError) -> ErrorKind {
    match error {
        DeviceError::HostOutOfMemory { .. } | DeviceError::OutOfMemory { .. } | DeviceError::TooLarge { .. } => {
            ErrorKind::OutOfMemory
        }
        DeviceError::Lost { .. } => ErrorKind::DeviceLost,
        DeviceError::UnsupportedDtype { .. }
        | DeviceError::UnsupportedKv { .. }
        | DeviceError::UnsupportedOp { .. } => ErrorKind::UnsupportedModel,
        DeviceError::BadThreads { .. } | DeviceError::UnsupportedIsa { .. } => ErrorKind::BadParameter,
        _ => ErrorKind::Device,
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
