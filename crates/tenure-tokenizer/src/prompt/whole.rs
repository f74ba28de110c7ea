//! A prompt for T5: one sequence.

use super::{Prompt, PromptPart, TokenChunk};
use crate::error::TokenizerError;
use crate::t5::T5Tokenizer;

/// How long T5's sequence is, its end token included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct T5Length {
    /// Shorter ones are filled up with padding.
    pub least: usize,
    /// Longer ones are cut.
    pub most: usize,
}

impl Default for T5Length {
    /// 256 and 512: what fits into the 256 that pipelines take by default is as there, and more is not cut before the
    /// 512 that the models were trained with.
    fn default() -> Self {
        T5Length { least: 256, most: 512 }
    }
}

/// A prompt's tokens for a T5 text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Prompt {
    sequence: TokenChunk,
    cut: usize,
    pad: u32,
}

impl T5Prompt {
    /// Makes one sequence of a prompt: its tokens, the end token, padding.
    ///
    /// Parts are made tokens of one by one, without the white space at the end of all but the last: `a (b:1) c` has the
    /// tokens of `a b c`. `BREAK` is white space.
    ///
    /// # Errors
    /// When `most` has no room for the end token or is less than `least`, or the host has no memory for the work.
    pub fn new(tokenizer: &T5Tokenizer, prompt: &Prompt, length: T5Length) -> Result<Self, TokenizerError> {
        let least = length.least.max(1);
        if length.most < least {
            return Err(TokenizerError::TooShort { what: "the longest sequence", got: length.most, least });
        }
        let (mut tokens, mut weights) = (Vec::new(), Vec::new());
        let mut parts = prompt.parts().iter().peekable();
        while let Some(part) = parts.next() {
            let PromptPart::Text { text, weight } = part else { continue };
            let text = if parts.peek().is_some() { text.trim_end() } else { text };
            tokens.extend(tokenizer.encode(text)?);
            weights.resize(tokens.len(), *weight);
        }
        let cut = tokens.len().saturating_sub(length.most - 1);
        tokens.truncate(length.most - 1);
        weights.truncate(length.most - 1);
        tokens.push(tokenizer.end());
        weights.push(1.0);
        let end = tokens.iter().position(|&token| token == tokenizer.end()).unwrap_or(tokens.len() - 1);
        let mut sequence = T5Prompt { sequence: TokenChunk { tokens, weights, end }, cut, pad: tokenizer.pad() };
        sequence.pad_to(length.least);
        Ok(sequence)
    }

    /// The tokens, filled up to `least`.
    pub fn sequence(&self) -> &TokenChunk {
        &self.sequence
    }

    /// How many tokens of the prompt found no room.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// Appends padding until there are `tokens`, so that a prompt and a negative prompt are of one length.
    pub fn pad_to(&mut self, tokens: usize) {
        let TokenChunk { tokens: list, weights, .. } = &mut self.sequence;
        let len = tokens.max(list.len());
        list.resize(len, self.pad);
        weights.resize(len, 1.0);
    }
}
