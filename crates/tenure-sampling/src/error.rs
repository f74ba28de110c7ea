//! The errors of this crate: values, not prose.

use crate::need::Need;
use crate::params::Stage;

/// What sampling, its parameters or a stop list can refuse.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A parameter is outside its range.
    #[error("sampling parameter {field} = {value} is out of range")]
    BadSampling {
        /// The field of [`crate::SamplerParams`] (or argument of [`crate::Sampler::new`]).
        field: &'static str,
        /// The value that was refused; a token id where the id itself is the fault.
        value: f64,
    },
    /// A stage is listed twice.
    #[error("sampling stage {stage:?} is listed twice")]
    DuplicateStage {
        /// The repeated stage.
        stage: Stage,
    },
    /// The logits hold NaN or +inf, or nothing but -inf.
    #[error("logits are not finite: {nan} NaN, {pos_inf} +inf, {neg_inf} -inf of {seen}")]
    NonFiniteLogits {
        /// How many are NaN.
        nan: usize,
        /// How many are +inf.
        pos_inf: usize,
        /// How many are -inf (allowed, unless all are).
        neg_inf: usize,
        /// How many logits were looked at: a row, or the largest of one ([`crate::Sampler::sample_top`]).
        seen: usize,
    },
    /// Biases of -inf left no token to choose from.
    #[error("the logit biases ban every token that the logits allow (vocabulary of {vocab})")]
    AllBanned {
        /// The vocabulary's size.
        vocab: usize,
    },
    /// The row of logits has another length than the vocabulary.
    #[error("{got} logits given, the vocabulary has {want}")]
    LogitsLength {
        /// Logits given.
        got: usize,
        /// Logits expected.
        want: usize,
    },
    /// The largest logits of a row do not make up for the row: fewer were given than the sampler needs, or it needs all
    /// ([`crate::Sampler::need`]).
    #[error("{got} of the largest logits given, the sampler needs {need:?}")]
    TooFewLogits {
        /// Logits given.
        got: usize,
        /// What is needed.
        need: Need,
    },
    /// A token id is not in the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// The vocabulary's size.
        vocab: usize,
    },
    /// A stop string is empty: it would end every text before its first byte.
    #[error("stop string {index} is empty")]
    EmptyStop {
        /// Its place in the list.
        index: usize,
    },
}
