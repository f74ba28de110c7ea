//! Prompts of image models: emphasis, and tokens in the shapes that text encoders take.

mod chunks;
mod emphasis;
mod syntax;
mod whole;

pub use chunks::{ChunkOptions, ClipPrompt};
pub use emphasis::Emphasis;
pub use whole::{T5Length, T5Prompt};

use crate::error::TokenizerError;

/// A prompt in parts of equal weight.
///
/// The syntax is that of AUTOMATIC1111's web UI:
///
/// | written | means |
/// | --- | --- |
/// | `(word)`, `((word))` | weight 1.1, 1.21 |
/// | `(word:1.3)` | weight 1.3 |
/// | `[word]` | weight 1/1.1 |
/// | `\(`, `\)`, `\[`, `\]`, `\\` | the character itself |
/// | `BREAK` as a word of its own | the rest begins in a new chunk |
///
/// Brackets nest, and weights multiply. One that is never closed reaches to the end; one that was never opened is text,
/// and so is a weight outside round brackets or one that is no decimal number, such as `(a:b)` and `(x:1e9)`. A
/// backslash before any other character is left out. Unlike there, `BREAK` within brackets is one too.
///
/// ```
/// use tenure_tokenizer::{ChunkOptions, ClipPadding, ClipPrompt, ClipTokenizer, Prompt, PromptPart};
///
/// let prompt = Prompt::parse("a (red:1.5) circle")?;
/// assert_eq!(prompt.parts()[1], PromptPart::Text { text: "red".to_owned(), weight: 1.5 });
///
/// let clip = ClipTokenizer::built_in(ClipPadding::End)?;
/// let tokens = ClipPrompt::new(&clip, &prompt, ChunkOptions::default())?;
/// assert_eq!(tokens.chunks().len(), 1);
/// assert_eq!(tokens.chunks()[0].tokens[..5], [49406, 320, 736, 7117, 49407]);
/// assert_eq!(tokens.chunks()[0].weights[..5], [1.0, 1.0, 1.5, 1.0, 1.0]);
/// # Ok::<(), tenure_tokenizer::TokenizerError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    parts: Vec<PromptPart>,
}

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptPart {
    /// A text, of which each token has this weight.
    Text {
        /// The text, without the syntax around it.
        text: String,
        /// 1 where nothing is emphasised; 1000 at most, of either sign.
        weight: f32,
    },
    /// A new chunk begins.
    Break,
}

/// Tokens that a text encoder takes at once, each with a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenChunk {
    /// The tokens, special ones and padding included.
    pub tokens: Vec<u32>,
    /// The weight of each token; 1 for special ones and padding.
    pub weights: Vec<f32>,
    /// The place of the first end token, where a pooled embedding is taken.
    pub end: usize,
}

/// The longest prompt in bytes.
const LONGEST_PROMPT: usize = 1 << 18;

impl Prompt {
    /// Reads the syntax above.
    ///
    /// # Errors
    /// When the text has more than 262,144 bytes, more than 64 brackets of one kind are open at once, or a weight is
    /// larger than 1000.
    pub fn parse(text: &str) -> Result<Self, TokenizerError> {
        check_length(text)?;
        Ok(Prompt { parts: syntax::parse(text)? })
    }

    /// A text in which brackets are brackets: one part of weight 1.
    ///
    /// # Errors
    /// When the text has more than 262,144 bytes.
    pub fn plain(text: &str) -> Result<Self, TokenizerError> {
        check_length(text)?;
        Ok(Prompt { parts: vec![PromptPart::Text { text: text.to_owned(), weight: 1.0 }] })
    }

    /// The parts in order; one at least.
    pub fn parts(&self) -> &[PromptPart] {
        &self.parts
    }
}

fn check_length(text: &str) -> Result<(), TokenizerError> {
    if text.len() > LONGEST_PROMPT {
        return Err(TokenizerError::PromptTooLong { bytes: text.len(), most: LONGEST_PROMPT });
    }
    Ok(())
}
