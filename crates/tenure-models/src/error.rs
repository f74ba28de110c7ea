//! What can be wrong with a model file.

use std::path::PathBuf;

use tenure_graph::PlanError;
use tenure_tensor::{DType, Shape};
use tenure_weights::{Shown, WeightsError};

use crate::image::{ImageFamily, Part};

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
    /// Neither a denoiser nor any other part of an image model is in the file.
    #[error("{}: no image model", path.display())]
    NotAnImageModel {
        /// The file or folder.
        path: PathBuf,
    },
    /// A language model where an image model is wanted.
    #[error("{}: a language model ({architecture:?}), not an image model", path.display())]
    TextModel {
        /// The file.
        path: PathBuf,
        /// Its `general.architecture`, shortened; empty where it does not say.
        architecture: String,
    },
    /// A model of a family that is known and not supported.
    #[error("{}: {name} is not supported", path.display())]
    UnsupportedFamily {
        /// The file or folder.
        path: PathBuf,
        /// What it is.
        name: String,
    },
    /// A part is nowhere.
    #[error("{}: no {part}{}", path.display(), needed_by(*family))]
    MissingPart {
        /// The part.
        part: Part,
        /// Where it was looked for: the model, or the file given for the part.
        path: PathBuf,
        /// The family that needs it, where that is known.
        family: Option<ImageFamily>,
    },
    /// A part is in a file twice.
    #[error("{}: two of {part}: {first} and {second}", path.display())]
    DoubledPart {
        /// The part.
        part: Part,
        /// The file.
        path: PathBuf,
        /// A tensor's name, or what names begin with.
        first: Shown,
        /// Another.
        second: Shown,
    },
    /// Two files are given for one part.
    #[error("{part} given twice: {} and {}", first.display(), second.display())]
    PartGivenTwice {
        /// The part.
        part: Part,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A file is given for a part that the family does not have.
    #[error("{}: {family} has no {part}", path.display())]
    PartNotUsed {
        /// The part.
        part: Part,
        /// The file.
        path: PathBuf,
        /// The model's family.
        family: ImageFamily,
    },
    /// Parts that cannot be of one model.
    #[error("{}: {part} for {family}: {got} {what}, must be {want}", path.display())]
    PartsDisagree {
        /// The part that does not fit the denoiser.
        part: Part,
        /// Its file.
        path: PathBuf,
        /// The model's family.
        family: ImageFamily,
        /// What is counted.
        what: &'static str,
        /// What the parts give.
        got: usize,
        /// What the denoiser takes.
        want: usize,
    },
    /// A part lacks a tensor.
    #[error("{}: {part}: tensor {tensor:?} is missing", path.display())]
    MissingPartTensor {
        /// The part.
        part: Part,
        /// Its file.
        path: PathBuf,
        /// The tensor's name in diffusers or transformers.
        tensor: String,
    },
    /// A tensor's shape cannot be.
    #[error("{}: {part}: tensor {tensor} has the shape {shape}", path.display())]
    BadPartTensor {
        /// The part.
        part: Part,
        /// Its file.
        path: PathBuf,
        /// The tensor's name.
        tensor: Shown,
        /// Its shape.
        shape: Shape,
    },
    /// A tensor is stored in blocks where it would have to be turned over or taken apart.
    #[error("{}: {part}: tensor {tensor} is {dtype} and would have to be rearranged; it must be of plain numbers", path.display())]
    BlocksApart {
        /// The part.
        part: Part,
        /// Its file.
        path: PathBuf,
        /// The tensor's name.
        tensor: Shown,
        /// Its type.
        dtype: DType,
    },
    /// Weights are to be multiplied with numbers that stand beside them, as in files of scaled 8-bit floats.
    #[error(
        "{}: weights are scaled by tensors beside them ({tensor}), which is not supported; take a file without such scales",
        path.display()
    )]
    ScaledWeights {
        /// The file.
        path: PathBuf,
        /// The first such tensor.
        tensor: Shown,
    },
    /// No part of a folder comes in the variant asked for.
    #[error("{}: no weights of the variant {variant}", path.display())]
    NoVariant {
        /// The folder.
        path: PathBuf,
        /// The variant asked for.
        variant: Shown,
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

fn needed_by(family: Option<ImageFamily>) -> String {
    family.map_or_else(String::new, |family| format!(", which {family} needs"))
}
