//! Tokenizers from GGUF vocabularies, incremental detokenisation and chat templates.
#![forbid(unsafe_code)]

mod classes;
mod detokenize;
mod error;
mod merge;
mod names;
mod pre;
mod source;
mod special;
mod split;
mod table;
mod tokenizer;
mod vocab;

pub use detokenize::{DecodeOptions, Detokenizer};
pub use error::{ByteTokenFault, TokenizerError};
pub use source::{SpecialIds, VocabSource};
pub use tokenizer::{EncodeOptions, Tokenizer};
pub use vocab::TokenKind;
