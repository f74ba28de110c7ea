//! The tokenizer of T5's text encoders.

mod charsmap;
mod files;
mod lattice;
mod pieces;

use std::path::Path;

use crate::added::{Added, AddedTokens};
use crate::data;
use crate::error::{FileFault, TokenizerError, check_text};
use crate::files as limits;
use crate::vocab::SPACE;

use charsmap::Charsmap;
use lattice::Lattice;
use pieces::Pieces;

/// Text to T5's tokens: of all ways to divide a word into pieces, the most probable (SentencePiece's unigram model).
///
/// The tokens are those of `T5TokenizerFast`. SentencePiece itself gives the same but in rare texts: it replaces
/// characters by the longest match wherever it begins, this by clusters of characters.
///
/// The texts of special tokens, such as `</s>`, are these tokens. Encoding takes time proportional to the length of the
/// text, and panics on none.
///
/// ```
/// use tenure_tokenizer::T5Tokenizer;
///
/// let t5 = T5Tokenizer::built_in()?;
/// assert_eq!(t5.encode("a horse on mars")?, [3, 9, 4952, 30, 8113]);
/// assert_eq!((t5.end(), t5.pad()), (1, 0));
/// # Ok::<(), tenure_tokenizer::TokenizerError>(())
/// ```
#[derive(Debug)]
pub struct T5Tokenizer {
    charsmap: Option<Charsmap>,
    spaces: Spaces,
    pieces: Pieces,
    added: AddedTokens,
    end: u32,
    pad: u32,
    vocabulary: usize,
}

/// What becomes of white space. Runs of spaces are one space in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spaces {
    /// A space at the end of a text stays, as a piece of its own.
    Kept,
    /// White space at the end of a text is cut off.
    CutAtEnd,
    /// All white space, not only spaces, divides words and is nothing else.
    Divide,
}

/// What a tokenizer is made of.
struct Parts {
    charsmap: Option<Charsmap>,
    spaces: Spaces,
    /// Texts and scores by number.
    pieces: Vec<(String, f64)>,
    unk: u32,
    added: Vec<Added>,
}

const END: &str = "</s>";
const PAD: &str = "<pad>";

impl T5Tokenizer {
    /// The vocabulary of T5 v1.1, which SD3 and Flux have: 32,000 pieces and 100 sentinels.
    ///
    /// As with the `tokenizer.json` that these models are published with, a space at the end of a text is a token.
    ///
    /// # Errors
    /// When the host has no memory for the tables.
    pub fn built_in() -> Result<Self, TokenizerError> {
        let model = limits::inflate(files::PIECES, data::T5_PIECES)?;
        Self::new(files::PIECES, files::from_pieces(&model, Spaces::Kept)?)
    }

    /// The tokenizer in a `tokenizer_2` or `tokenizer_3` folder of a diffusers model: its `tokenizer.json`, or else its
    /// `spiece.model`. None if there is neither.
    ///
    /// # Errors
    /// When a file cannot be read, is larger than 16 MiB, breaks a rule of its format, or describes another kind of
    /// tokenizer.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>, TokenizerError> {
        if let Some(json) = limits::read(folder, files::JSON)? {
            return Self::from_json(&json).map(Some);
        }
        limits::read(folder, files::PIECES)?.map(|model| Self::from_sentencepiece(&model)).transpose()
    }

    /// From the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// As [`from_folder`](Self::from_folder).
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        Self::new(files::JSON, files::from_json(json)?)
    }

    /// From the contents of a `spiece.model`, to which 100 sentinels are added.
    ///
    /// # Errors
    /// As [`from_folder`](Self::from_folder).
    pub fn from_sentencepiece(model: &[u8]) -> Result<Self, TokenizerError> {
        Self::new(files::PIECES, files::from_pieces(model, Spaces::CutAtEnd)?)
    }

    fn new(file: &'static str, parts: Parts) -> Result<Self, TokenizerError> {
        let Parts { charsmap, spaces, pieces, unk, added } = parts;
        let largest = added.iter().map(|token| token.id as usize + 1).max().unwrap_or(0);
        let vocabulary = pieces.len().max(largest);
        let pieces = Pieces::new(file, &pieces, unk)?;
        let special = |text: &str| {
            let own = added.iter().find(|token| token.text == text).map(|token| token.id);
            let fault = || FileFault::NoToken { token: text.to_owned() }.of(file);
            own.or_else(|| pieces.find(text)).ok_or_else(fault)
        };
        let (end, pad) = (special(END)?, special(PAD)?);
        let added = AddedTokens::new(&added, |text| normalized(charsmap.as_ref(), spaces, text))?;
        Ok(T5Tokenizer { charsmap, spaces, pieces, added, end, pad, vocabulary })
    }

    /// The tokens of a text, without end and padding.
    ///
    /// # Errors
    /// When the text has more than 2^31 bytes, or the host has no memory for the work.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        check_text(text)?;
        let mut out = Vec::new();
        let mut lattice = Lattice::default();
        let mut word = String::new();
        let normalize = |part: &str| normalized(self.charsmap.as_ref(), self.spaces, part);
        self.added.encode(text, normalize, &mut out, |part, out| {
            let mut run = |run: &str, out: &mut Vec<u32>| {
                word.clear();
                let bytes = run.len().saturating_mul(SPACE.len()) + SPACE.len();
                word.try_reserve(bytes).map_err(|_| TokenizerError::HostOutOfMemory { what: "a text", bytes })?;
                if !run.starts_with([' ', '\u{2581}']) {
                    word.push_str(SPACE);
                }
                run.chars().for_each(|c| word.push(if c == ' ' { '\u{2581}' } else { c }));
                self.encode_marked(&mut lattice, &word, out)
            };
            match self.spaces {
                Spaces::Kept | Spaces::CutAtEnd => run(part, out),
                Spaces::Divide => part.split_whitespace().try_for_each(|part| run(part, out)),
            }
        })?;
        Ok(out)
    }

    /// Appends the tokens of a text with U+2581 for its spaces, before each of which a word begins.
    fn encode_marked(&self, lattice: &mut Lattice, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let mut start = 0;
        for (at, _) in text.match_indices(SPACE).filter(|(at, _)| *at > 0) {
            lattice.encode(&self.pieces, text.get(start..at).unwrap_or_default(), out)?;
            start = at;
        }
        lattice.encode(&self.pieces, text.get(start..).unwrap_or_default(), out)
    }

    /// The token that every sequence ends with.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The token behind the end.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// One more than the largest token: the least number of rows that an embedding for this tokenizer has.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }
}

/// `text` with characters replaced and runs of spaces made one.
fn normalized(charsmap: Option<&Charsmap>, spaces: Spaces, text: &str) -> Result<String, TokenizerError> {
    let mut replaced = String::new();
    let memory = |bytes| move |_| TokenizerError::HostOutOfMemory { what: "a text", bytes };
    replaced.try_reserve(text.len()).map_err(memory(text.len()))?;
    match charsmap {
        Some(charsmap) => charsmap.replace(text, &mut replaced),
        None => replaced.push_str(text),
    }
    let mut end = replaced.len();
    match spaces {
        Spaces::CutAtEnd => end = replaced.trim_end().len(),
        Spaces::Divide => return Ok(replaced),
        Spaces::Kept => {}
    }
    replaced.truncate(end);
    let mut after_space = false;
    replaced.retain(|c| !std::mem::replace(&mut after_space, c == ' ') || c != ' ');
    Ok(replaced)
}
