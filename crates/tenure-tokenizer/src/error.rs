//! What can be wrong with a vocabulary or a text.

/// Why a vocabulary was refused, or a text could not be encoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TokenizerError {
    /// A key that every vocabulary of this model has is not in the file.
    #[error("no {key}")]
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// A key has a value of another type.
    #[error("{key} is {got}, not {want}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// The type it must have.
        want: &'static str,
        /// The type it has.
        got: String,
    },
    /// A list that goes with the tokens has another length.
    #[error("{key} has {got} entries for {want} tokens")]
    LengthMismatch {
        /// The key.
        key: &'static str,
        /// The number of tokens.
        want: usize,
        /// The length of the list.
        got: usize,
    },
    /// `tokenizer.ggml.model` is a kind of vocabulary that this crate does not read.
    #[error("vocabularies of model {model:?} are not supported")]
    UnsupportedModel {
        /// The model.
        model: String,
    },
    /// `tokenizer.ggml.pre` is a way to split text that this crate does not know.
    #[error("unknown pre-tokenizer {pre:?}")]
    UnknownPreTokenizer {
        /// The pre-tokenizer.
        pre: String,
    },
    /// The vocabulary has no tokens.
    #[error("the vocabulary is empty")]
    EmptyVocabulary,
    /// Tokens or merges, or their bytes, are more than 32-bit numbers count.
    #[error("the vocabulary is too large")]
    VocabularyTooLarge,
    /// A score-merging vocabulary's score is not a number.
    #[error("the score of token {id} is not a number")]
    BadScore {
        /// The token.
        id: u32,
    },
    /// A byte token does not name one byte, or the byte tokens do not cover all bytes.
    #[error("byte token {id}: {fault}")]
    BadByteToken {
        /// The token; for a missing byte the vocabulary's first byte token.
        id: u32,
        /// What is wrong with it.
        fault: ByteTokenFault,
    },
    /// A merge is not two tokens with one space between, or what it makes is not a token.
    #[error("merge {index} does not join two tokens to a third")]
    BadMerge {
        /// The place in the list of merges.
        index: usize,
    },
    /// A special token is outside the vocabulary.
    #[error("{key} is {id}, the vocabulary has {tokens} tokens")]
    BadSpecialToken {
        /// The key.
        key: &'static str,
        /// The number at the key.
        id: i64,
        /// The number of tokens.
        tokens: usize,
    },
    /// The vocabulary's tables need memory that the host does not have.
    #[error("the host has no {bytes} bytes left for {what}")]
    HostOutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// The bytes asked for.
        bytes: usize,
    },
    /// Texts have at most 2^31 bytes.
    #[error("a text of {bytes} bytes is too long")]
    TextTooLong {
        /// The text's length.
        bytes: usize,
    },
}

/// What is wrong with a byte token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ByteTokenFault {
    /// Its text is not `<0x00>` to `<0xFF>`.
    #[error("its text names no byte")]
    NotAByte,
    /// No token stands for this byte, though there are byte tokens.
    #[error("no token stands for byte {0:#04x}")]
    Missing(u8),
}

/// An empty list with room for `len` elements.
pub(crate) fn try_vec<T>(len: usize, what: &'static str) -> Result<Vec<T>, TokenizerError> {
    let mut vec = Vec::new();
    let bytes = len.saturating_mul(size_of::<T>());
    vec.try_reserve_exact(len).map_err(|_| TokenizerError::HostOutOfMemory { what, bytes })?;
    Ok(vec)
}
