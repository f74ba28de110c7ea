//! The errors of this crate: values, not prose.

use crate::diffusion::{Method, SigmaRule};
use crate::need::Need;
use crate::params::Stage;

/// What sampling, its parameters, a stop list or a diffusion schedule can refuse.
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
    /// A parameter of diffusion sampling is outside its range.
    #[error("diffusion parameter {field} = {value} is out of range")]
    BadDiffusion {
        /// The field or argument.
        field: &'static str,
        /// The value that was refused.
        value: f64,
    },
    /// A schedule's noise levels do not fall from each step to the next.
    #[error("sigma {sigma} at {index} of the schedule is not below the one before it, {previous}")]
    UnsortedSigmas {
        /// Which of the schedule's sigmas, from 0.
        index: usize,
        /// The sigma before it.
        previous: f64,
        /// The sigma.
        sigma: f64,
    },
    /// A schedule has more steps than the model's noise schedule can tell apart.
    #[error("{steps} steps, the schedule has room for {limit}")]
    TooManySteps {
        /// Steps asked for.
        steps: usize,
        /// The most there can be.
        limit: usize,
    },
    /// A sampler is not defined for models that predict the velocity of a flow.
    #[error("sampler {} is not defined for flow-matching models", .method.label())]
    MethodNeedsNoiseSchedule {
        /// The sampler.
        method: Method,
    },
    /// A rule for sigmas is not defined for the model or the sampler.
    #[error("schedule {} is not defined for this model and sampler {}", .rule.label(), .method.label())]
    RuleNotDefined {
        /// The rule.
        rule: SigmaRule,
        /// The sampler.
        method: Method,
    },
    /// A buffer has another length than the latents.
    #[error("{what} holds {got} numbers, {want} are needed")]
    LatentLength {
        /// Which buffer.
        what: &'static str,
        /// Numbers given.
        got: usize,
        /// Numbers expected.
        want: usize,
    },
    /// The model's output holds NaN or infinity.
    #[error("{count} of {of} numbers are not finite in the model's output of step {step}")]
    NonFiniteOutput {
        /// The step, from 0.
        step: usize,
        /// How many are NaN or infinite.
        count: usize,
        /// How many numbers there are.
        of: usize,
    },
    /// Every step was taken already.
    #[error("all {steps} steps were taken")]
    NoStepLeft {
        /// The schedule's steps.
        steps: usize,
    },
}
