//! A prompt for CLIP: any number of chunks, whose embeddings are joined along the token axis.

use super::{Prompt, PromptPart, TokenChunk};
use crate::clip::ClipTokenizer;
use crate::error::TokenizerError;

/// How a prompt is cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkOptions {
    /// The prompt's tokens in each chunk; a start and an end token come to them. 75: published models take 77.
    pub length: usize,
    /// A full chunk is cut behind its last comma, if no more than so many tokens follow that. 0: it never is.
    pub backtrack: usize,
    /// The most chunks.
    pub most: usize,
}

impl Default for ChunkOptions {
    fn default() -> Self {
        ChunkOptions { length: 75, backtrack: 20, most: 64 }
    }
}

/// A prompt's tokens for one CLIP text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipPrompt {
    chunks: Vec<TokenChunk>,
    empty: TokenChunk,
}

impl ClipPrompt {
    /// Cuts a prompt into chunks, as AUTOMATIC1111's web UI does: of `length` tokens, at commas and at `BREAK`.
    ///
    /// An empty prompt is one chunk. Each begins with the start token and ends with the end token, and is filled up with
    /// the tokenizer's padding. Parts are made tokens of one by one, so that a word ends where its weight does.
    ///
    /// # Errors
    /// When the prompt takes more than [`most`](ChunkOptions::most) chunks, these have no tokens, or the host has no
    /// memory for the work.
    pub fn new(tokenizer: &ClipTokenizer, prompt: &Prompt, options: ChunkOptions) -> Result<Self, TokenizerError> {
        if options.length == 0 {
            return Err(TokenizerError::TooShort { what: "the length of a chunk", got: 0, least: 1 });
        }
        let mut cutter = Cutter { tokenizer, options, open: Vec::new(), comma: None, chunks: Vec::new() };
        for part in prompt.parts() {
            match part {
                PromptPart::Text { text, weight } => {
                    for token in tokenizer.encode(text)? {
                        cutter.push(token, *weight)?;
                    }
                }
                PromptPart::Break => cutter.close(Vec::new())?,
            }
        }
        if !cutter.open.is_empty() || cutter.chunks.is_empty() {
            cutter.close(Vec::new())?;
        }
        let empty = framed(tokenizer, options.length, &[]);
        Ok(ClipPrompt { chunks: cutter.chunks, empty })
    }

    /// The chunks; one at least. All have `length` + 2 tokens.
    pub fn chunks(&self) -> &[TokenChunk] {
        &self.chunks
    }

    /// Appends empty chunks until there are `chunks`, so that a prompt and a negative prompt are of one length.
    pub fn pad_to(&mut self, chunks: usize) {
        let missing = chunks.saturating_sub(self.chunks.len());
        self.chunks.extend(std::iter::repeat_n(self.empty.clone(), missing));
    }
}

/// Fills one chunk after the other.
struct Cutter<'a> {
    tokenizer: &'a ClipTokenizer,
    options: ChunkOptions,
    /// The tokens and weights of the chunk that is not full yet.
    open: Vec<(u32, f32)>,
    /// How many of them there were before the last comma.
    comma: Option<usize>,
    chunks: Vec<TokenChunk>,
}

impl Cutter<'_> {
    fn push(&mut self, token: u32, weight: f32) -> Result<(), TokenizerError> {
        let full = self.open.len() == self.options.length;
        let is_comma = self.tokenizer.comma() == Some(token);
        if full {
            // A comma itself stays near enough to where it belongs.
            let near = |comma: &usize| !is_comma && self.open.len() - comma <= self.options.backtrack;
            let next = match self.comma.filter(near) {
                Some(comma) => self.open.split_off(comma + 1),
                None => Vec::new(),
            };
            self.close(next)?;
        }
        // A comma that begins a chunk says nothing of where to cut it.
        if is_comma && !full {
            self.comma = Some(self.open.len());
        }
        self.open.push((token, weight));
        Ok(())
    }

    /// Ends the chunk, and begins the next with these.
    fn close(&mut self, next: Vec<(u32, f32)>) -> Result<(), TokenizerError> {
        if self.chunks.len() == self.options.most {
            return Err(TokenizerError::TooManyChunks { most: self.options.most });
        }
        self.chunks.push(framed(self.tokenizer, self.options.length, &self.open));
        self.open = next;
        self.comma = None;
        Ok(())
    }
}

/// A chunk of these tokens, with start, end and padding.
fn framed(tokenizer: &ClipTokenizer, length: usize, inner: &[(u32, f32)]) -> TokenChunk {
    let start = std::iter::once((tokenizer.start(), 1.0));
    let end = std::iter::once((tokenizer.end(), 1.0));
    let padding = std::iter::repeat_n((tokenizer.pad(), 1.0), length.saturating_sub(inner.len()));
    let (tokens, weights): (Vec<u32>, Vec<f32>) = start.chain(inner.iter().copied()).chain(end).chain(padding).unzip();
    let end = tokens.iter().position(|&token| token == tokenizer.end()).unwrap_or(inner.len() + 1);
    TokenChunk { tokens, weights, end }
}
