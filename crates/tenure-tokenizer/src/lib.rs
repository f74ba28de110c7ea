//! Tokenizers from GGUF vocabularies, incremental detokenisation and chat templates.
//!
//! What it is: the two kinds of vocabulary that language models in GGUF files mostly have, byte-level merges by rank
//! (`gpt2`) and merges by score (`llama`), with the tokens that llama.cpp gives, loaded in milliseconds and safe on any
//! text; and the templates that make a text of a conversation. What it is not: a trainer, a reader of
//! `tokenizer.json`, or a general template engine.
//!
//! Three types to know: [`Tokenizer`], [`Detokenizer`], [`ChatTemplate`].
//!
//! ```
//! use tenure_tokenizer::{DecodeOptions, EncodeOptions, SpecialIds, Tokenizer, VocabSource};
//!
//! let tokenizer = Tokenizer::new(&VocabSource {
//!     model: "llama",
//!     tokens: vec!["<unk>", "<s>", "</s>", "\u{2581}", "h", "i", "hi", "\u{2581}hi"],
//!     token_types: Some(vec![2, 3, 3, 1, 1, 1, 1, 1]),
//!     scores: Some(vec![0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -1.0, -2.0]),
//!     special: SpecialIds { bos: Some(1), eos: Some(2), unk: Some(0), ..Default::default() },
//!     ..Default::default()
//! })?;
//! let tokens = tokenizer.encode("hi hi</s>", EncodeOptions { add_special: true, parse_special: true })?;
//! assert_eq!(tokens, [1, 7, 7, 2]);
//! assert!(tokenizer.is_end_of_generation(2));
//!
//! let mut text = String::new();
//! let mut detokenizer = tokenizer.detokenizer(DecodeOptions::default());
//! for token in tokens {
//!     text.push_str(detokenizer.push(token));
//! }
//! text.push_str(detokenizer.finish());
//! assert_eq!(text, "hi hi");
//! # Ok::<(), tenure_tokenizer::TokenizerError>(())
//! ```
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
mod template;
mod tokenizer;
mod vocab;

pub use detokenize::{DecodeOptions, Detokenizer};
pub use error::{ByteTokenFault, TokenizerError};
pub use source::{SpecialIds, VocabSource};
pub use template::{BudgetLimit, ChatTemplate, Conversation, Message, TemplateError};
pub use tokenizer::{EncodeOptions, Tokenizer};
pub use vocab::TokenKind;
