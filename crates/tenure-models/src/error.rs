//! What can be wrong with a model file.

use tenure_graph::PlanError;
use tenure_weights::WeightsError;

/// Names from files are shown up to this many characters.
const SHOWN: usize = 64;

/// Why a file is no model Tenure can run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file holds tensors but no hyperparameters.
    #[error("the file has no metadata to read hyperparameters from; a GGUF file is needed")]
    NoMetadata,
    /// Nothing is known of the architecture.
    #[error("architecture {name:?} is not supported")]
    UnsupportedArchitecture {
        /// What the file says, shortened.
        name: String,
    },
    /// The architecture is known, this variation is not.
    #[error("{what} ({value}) is not supported")]
    UnsupportedFeature {
        /// Which variation.
        what: &'static str,
        /// Its value in the file.
        value: String,
    },
    /// A hyperparameter is out of bounds.
    #[error("hyperparameter {key:?} is {value}")]
    BadHyperparameter {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// The vocabulary and the embedding table disagree.
    #[error("the vocabulary has {tokens} tokens, the embedding table {rows} rows")]
    VocabMismatch {
        /// Entries of `tokenizer.ggml.tokens`.
        tokens: usize,
        /// Rows of `token_embd.weight`.
        rows: usize,
    },
    /// A tensor is missing.
    #[error("tensor {name:?} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// Metadata could not be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The model's step could not be recorded.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl ModelError {
    pub(crate) fn unsupported_architecture(name: &str) -> Self {
        ModelError::UnsupportedArchitecture { name: name.chars().take(SHOWN).collect() }
    }
}
