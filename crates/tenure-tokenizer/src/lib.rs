//! Tokenizers from GGUF vocabularies, incremental detokenisation and chat templates; CLIP's and T5's tokenizers and the
//! prompts of image models.
//!
//! What it is: the two kinds of vocabulary that language models in GGUF files mostly have, byte-level merges by rank
//! (`gpt2`) and merges by score (`llama`), with the tokens that llama.cpp gives, loaded in milliseconds and safe on any
//! text; the templates that make a text of a conversation; and, built in or from a model's folder, the two tokenizers
//! of image models, with the emphasis and the chunks of their prompts. What it is not: a trainer, a reader of any other
//! `tokenizer.json`, or a general template engine.
//!
//! Three types to know: [`Tokenizer`], [`Detokenizer`], [`ChatTemplate`]; for images [`ClipTokenizer`],
//! [`T5Tokenizer`], [`Prompt`].
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

mod added;
mod classes;
mod clip;
mod data;
mod detokenize;
mod error;
mod files;
mod merge;
mod names;
mod pre;
mod prompt;
mod source;
mod special;
mod split;
mod t5;
mod table;
mod template;
mod tokenizer;
mod vocab;
mod wire;

pub use clip::{ClipPadding, ClipTokenizer};
pub use detokenize::{DecodeOptions, Detokenizer};
pub use error::{ByteTokenFault, FileFault, TokenizerError};
pub use prompt::{ChunkOptions, ClipPrompt, Emphasis, Prompt, PromptPart, T5Length, T5Prompt, TokenChunk};
pub use source::{SpecialIds, VocabSource};
pub use t5::T5Tokenizer;
pub use template::{BudgetLimit, ChatTemplate, Conversation, Message, TemplateError};
pub use tokenizer::{EncodeOptions, Tokenizer};
pub use vocab::TokenKind;
