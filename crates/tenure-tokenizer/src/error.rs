//! What can be wrong with a vocabulary or a text.

use std::path::PathBuf;

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
    /// A file of a tokenizer breaks a rule of its format, or asks for what this crate does not do.
    #[error("{file}: {fault}")]
    BadFile {
        /// What the file is called where such files lie.
        file: &'static str,
        /// What is wrong with it.
        fault: FileFault,
    },
    /// A file of a tokenizer could not be read.
    #[error("{path}: {kind}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        kind: std::io::ErrorKind,
    },
    /// A prompt has more bytes than a prompt may have.
    #[error("a prompt of {bytes} bytes, {most} at most")]
    PromptTooLong {
        /// The prompt's length.
        bytes: usize,
        /// The longest.
        most: usize,
    },
    /// Brackets of one kind stand in each other deeper than they may.
    #[error("more than {most} brackets are open at byte {at} of the prompt")]
    TooManyBrackets {
        /// The bracket that is one too many.
        at: usize,
        /// The most of one kind that may be open.
        most: usize,
    },
    /// The brackets around a part of a prompt give it a weight that no picture can be made with.
    #[error("the prompt gives {text:?} the weight {weight}, {most} at most")]
    WeightTooLarge {
        /// The beginning of the part.
        text: String,
        /// Its weight.
        weight: f64,
        /// The largest, of either sign.
        most: f64,
    },
    /// A prompt has more tokens than there are chunks for.
    #[error("the prompt takes more than {most} chunks")]
    TooManyChunks {
        /// The most chunks that were allowed.
        most: usize,
    },
    /// A length that tokens are to fit into has no room for those that every sequence has.
    #[error("{what} is {got}, at least {least}")]
    TooShort {
        /// The length.
        what: &'static str,
        /// What it is.
        got: usize,
        /// What it must be.
        least: usize,
    },
    /// Weights, tokens and embeddings do not belong together.
    #[error("{values} values for {tokens} tokens of {width}")]
    ShapeMismatch {
        /// The number of values.
        values: usize,
        /// The number of tokens.
        tokens: usize,
        /// The values for each token.
        width: usize,
    },
    /// Texts have at most 2^31 bytes.
    #[error("a text of {bytes} bytes is too long")]
    TextTooLong {
        /// The text's length.
        bytes: usize,
    },
}

/// What is wrong with a file of a tokenizer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FileFault {
    /// The file is larger than any such file is.
    #[error("{bytes} bytes, {most} at most")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The most read.
        most: u64,
    },
    /// The file is not UTF-8.
    #[error("not UTF-8 at byte {at}")]
    NotUtf8 {
        /// The first byte that is not.
        at: usize,
    },
    /// The file is not JSON.
    #[error("not JSON at line {line}, column {column}")]
    NotJson {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// The file is not compressed as it should be.
    #[error("not zlib data")]
    NotZlib,
    /// A protocol buffer ends inside a field, or its field is of another type.
    #[error("field {field} of a message is malformed")]
    BadField {
        /// The field's number; 0: the number itself could not be read.
        field: u64,
    },
    /// Something that every such file has is not there, or is of another type.
    #[error("no valid {what}")]
    Missing {
        /// What it is.
        what: &'static str,
    },
    /// A setting has a value that this crate does not do.
    #[error("{what} is {got}")]
    Unsupported {
        /// The setting.
        what: &'static str,
        /// The beginning of its value.
        got: String,
    },
    /// Two tokens have one text, or one number.
    #[error("token {token:?} ({id}) is there twice")]
    Doubled {
        /// The token.
        token: String,
        /// Its number.
        id: u32,
    },
    /// A token has a number that no vocabulary is large enough for.
    #[error("token {token:?} has number {id}")]
    BadId {
        /// The token.
        token: String,
        /// Its number.
        id: i64,
    },
    /// A token that the file speaks of is not in its vocabulary.
    #[error("no token {token:?}")]
    NoToken {
        /// The token.
        token: String,
    },
    /// A token is longer than any token is.
    #[error("token {id} has {bytes} bytes, {most} at most")]
    LongToken {
        /// The token.
        id: u32,
        /// Its length.
        bytes: usize,
        /// The longest.
        most: usize,
    },
    /// The table of replaced characters is malformed.
    #[error("the table of replaced characters is malformed")]
    BadCharsmap,
}

impl FileFault {
    /// The error about the file called `file`.
    pub(crate) fn of(self, file: &'static str) -> TokenizerError {
        TokenizerError::BadFile { file, fault: self }
    }
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

/// The longest text, so that places in it are 32-bit numbers, also with longer spaces.
const LONGEST_TEXT: usize = 1 << 31;

/// Refuses a text that is too long.
pub(crate) fn check_text(text: &str) -> Result<(), TokenizerError> {
    if text.len() > LONGEST_TEXT {
        return Err(TokenizerError::TextTooLong { bytes: text.len() });
    }
    Ok(())
}

/// An empty list with room for `len` elements.
pub(crate) fn try_vec<T>(len: usize, what: &'static str) -> Result<Vec<T>, TokenizerError> {
    let mut vec = Vec::new();
    let bytes = len.saturating_mul(size_of::<T>());
    vec.try_reserve_exact(len).map_err(|_| TokenizerError::HostOutOfMemory { what, bytes })?;
    Ok(vec)
}

/// A text out of a file or a prompt, cut to what an error message can bear.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}
