//! From tokens to text, as they come.

use crate::tokenizer::Tokenizer;

/// How tokens become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecodeOptions {
    /// Leave out control tokens and the token for the unknown.
    pub skip_special: bool,
    /// The tokens begin a text. Where encoding puts a space before a text ([`Tokenizer::adds_space`]), the first
    /// token's space is taken away again.
    pub at_start: bool,
}

impl Default for DecodeOptions {
    /// A text from its start, without special tokens.
    fn default() -> Self {
        DecodeOptions { skip_special: true, at_start: true }
    }
}

/// Turns tokens into text one by one, and never hands out a part of a character.
///
/// Bytes that are not UTF-8 come out as U+FFFD, as soon as it is sure that they are not.
///
/// What the calls of [`push`](Self::push) and the last one of [`finish`](Self::finish) give is together what
/// [`Tokenizer::decode`] gives.
#[derive(Debug, Clone)]
pub struct Detokenizer<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    /// The next token's first space is not part of the text.
    drop_space: bool,
    /// The beginning of a character.
    held: Vec<u8>,
    text: String,
}

impl<'t> Detokenizer<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer, options: DecodeOptions) -> Self {
        Detokenizer {
            tokenizer,
            skip_special: options.skip_special,
            drop_space: options.at_start && tokenizer.adds_space(),
            held: Vec::new(),
            text: String::new(),
        }
    }

    /// What one more token adds to the text; often nothing, or more than its own characters.
    pub fn push(&mut self, token: u32) -> &str {
        self.text.clear();
        if self.skip_special && self.tokenizer.is_special(token) {
            return &self.text;
        }
        let mut piece = self.tokenizer.piece_bytes(token);
        if !piece.is_empty() && std::mem::take(&mut self.drop_space) {
            piece = piece.strip_prefix(b" ").unwrap_or(piece);
        }
        self.held.extend_from_slice(piece);
        let mut done = 0;
        for chunk in self.held.utf8_chunks() {
            self.text.push_str(chunk.valid());
            done += chunk.valid().len();
            let at_end = done + chunk.invalid().len() == self.held.len();
            if chunk.invalid().is_empty() || at_end && is_beginning(chunk.invalid()) {
                break;
            }
            self.text.push(char::REPLACEMENT_CHARACTER);
            done += chunk.invalid().len();
        }
        self.held.drain(..done);
        &self.text
    }

    /// The end of the text: U+FFFD if a character is not complete. Afterwards the next token begins a character.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.held.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.held.clear();
        }
        &self.text
    }
}

/// Whether more bytes can make a character of these.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}
