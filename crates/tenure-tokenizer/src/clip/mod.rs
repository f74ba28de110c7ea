//! The tokenizer of CLIP's text encoders.

mod files;
mod normalize;

use std::path::Path;

use crate::added::{Added, AddedTokens};
use crate::classes::{Classes, Kinds};
use crate::data;
use crate::error::{TokenizerError, check_text};
use crate::files as limits;
use crate::merge::{Merger, Merges};
use crate::pre::{self, Pass};
use crate::split::split;
use crate::table::PairTable;

use normalize::Normalizer;

/// What a CLIP text encoder's sequences are filled up with behind their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClipPadding {
    /// The end token again: OpenAI's CLIP-L, in SD1, SDXL and SD3.
    End,
    /// Token 0: OpenCLIP's H in SD2 and bigG in SDXL and SD3.
    Zero,
}

/// Text to CLIP's tokens: byte-level merges by rank, in which the last byte of a word is another symbol than the same
/// byte within one.
///
/// The tokens are those of `CLIPTokenizerFast`, which published pipelines run: NFC, lower case without a special final
/// sigma, no repair of broken encodings. `CLIPTokenizer` before transformers 5 and open_clip's `SimpleTokenizer` clean
/// a text with `ftfy` first where that is installed, and so differ on curly quotes, on broken encodings and the like.
///
/// The texts of the start and the end token are these tokens, in any case. Encoding takes time proportional to n log n
/// for a text of n bytes, and panics on none.
///
/// ```
/// use tenure_tokenizer::{ClipPadding, ClipTokenizer};
///
/// let clip = ClipTokenizer::built_in(ClipPadding::End)?;
/// assert_eq!(clip.encode("A photo of an astronaut")?, [320, 1125, 539, 550, 18376]);
/// assert_eq!((clip.start(), clip.end(), clip.pad()), (49406, 49407, 49407));
/// # Ok::<(), tenure_tokenizer::TokenizerError>(())
/// ```
#[derive(Debug)]
pub struct ClipTokenizer {
    classes: Classes,
    normalizer: Normalizer,
    words: [Pass; 1],
    pairs: PairTable,
    symbols: Symbols,
    added: AddedTokens,
    start: u32,
    end: u32,
    pad: u32,
    comma: Option<u32>,
    vocabulary: usize,
}

/// The tokens of single bytes.
#[derive(Debug)]
struct Symbols {
    /// In a word, before its last byte.
    within: Box<[Option<u32>; 256]>,
    /// At the end of a word.
    last: Box<[Option<u32>; 256]>,
    unk: Option<u32>,
}

/// What a tokenizer is made of.
struct Parts {
    pairs: PairTable,
    symbols: Symbols,
    added: Vec<Added>,
    start: u32,
    end: u32,
    pad: u32,
    comma: Option<u32>,
    vocabulary: usize,
}

/// Behind each word while it is merged, so that its last symbol is told from the others. No UTF-8 has this byte.
const WORD_END: u8 = 0xff;

impl ClipTokenizer {
    /// OpenAI's vocabulary of 49,408 tokens, which all published models have.
    ///
    /// With [`ClipPadding::Zero`] the text `!` is the token 256 as in open_clip, which trained these models. A folder
    /// whose files call `!` the padding token makes it token 0 everywhere, as transformers does; see
    /// [`from_folder`](Self::from_folder).
    ///
    /// # Errors
    /// When the host has no memory for the tables.
    pub fn built_in(padding: ClipPadding) -> Result<Self, TokenizerError> {
        let merges = limits::inflate(files::MERGES, data::CLIP_MERGES)?;
        Self::new(files::from_merges(limits::utf8(files::MERGES, &merges)?, padding)?)
    }

    /// The tokenizer in a `tokenizer` or `tokenizer_2` folder of a diffusers model: its `tokenizer.json`, or else its
    /// `vocab.json` and `merges.txt`, and what `tokenizer_config.json` and `special_tokens_map.json` say of special
    /// tokens. None if there is neither.
    ///
    /// # Errors
    /// When a file cannot be read, is larger than 16 MiB, breaks a rule of its format, or describes another kind of
    /// tokenizer.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>, TokenizerError> {
        let special = files::Special::in_folder(folder)?;
        if let Some(json) = limits::read(folder, files::JSON)? {
            return Self::new(files::from_json(&json, &special)?).map(Some);
        }
        let Some(vocab) = limits::read(folder, files::VOCAB)? else { return Ok(None) };
        let Some(merges) = limits::read(folder, files::MERGES)? else { return Ok(None) };
        Self::new(files::from_vocab(&vocab, &merges, &special)?).map(Some)
    }

    /// From the contents of a `tokenizer.json`; the padding is the end token.
    ///
    /// # Errors
    /// As [`from_folder`](Self::from_folder).
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        Self::new(files::from_json(json, &files::Special::default())?)
    }

    /// From the contents of a `vocab.json` and a `merges.txt`; the padding is the end token.
    ///
    /// # Errors
    /// As [`from_folder`](Self::from_folder).
    pub fn from_vocab(vocab: &[u8], merges: &[u8]) -> Result<Self, TokenizerError> {
        Self::new(files::from_vocab(vocab, merges, &files::Special::default())?)
    }

    fn new(parts: Parts) -> Result<Self, TokenizerError> {
        let Parts { pairs, symbols, added, start, end, pad, comma, vocabulary } = parts;
        let (classes, normalizer) = (Classes::new(), Normalizer::new());
        let added = AddedTokens::new(&added, |text| normalizer.normalized(&classes, text))?;
        let words = [Pass::Words(pre::clip())];
        Ok(ClipTokenizer { classes, normalizer, words, pairs, symbols, added, start, end, pad, comma, vocabulary })
    }

    /// The tokens of a text, without start, end and padding.
    ///
    /// # Errors
    /// When the text has more than 2^31 bytes, or the host has no memory for the work.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        check_text(text)?;
        let mut out = Vec::new();
        let mut merger = Merger::default();
        let mut word = Vec::new();
        let normalize = |part: &str| self.normalizer.normalized(&self.classes, part);
        self.added.encode(text, normalize, &mut out, |part, out| {
            let mut result = Ok(());
            for run in part.split(|c| self.classes.of(c).is(Kinds::SPACE)).filter(|run| !run.is_empty()) {
                split(&self.classes, &self.words, run, &mut |range| {
                    let bytes = run.as_bytes().get(range).unwrap_or_default();
                    if result.is_ok() {
                        result = self.encode_word(&mut merger, bytes, &mut word, out);
                    }
                });
            }
            result
        })?;
        Ok(out)
    }

    fn encode_word(
        &self,
        merger: &mut Merger,
        bytes: &[u8],
        word: &mut Vec<u8>,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        word.clear();
        word.try_reserve(bytes.len() + 1)
            .map_err(|_| TokenizerError::HostOutOfMemory { what: "a word", bytes: bytes.len() + 1 })?;
        word.extend_from_slice(bytes);
        word.push(WORD_END);
        let last = bytes.len().saturating_sub(1);
        let merges = ToWordEnd { symbols: &self.symbols, pairs: &self.pairs };
        merger.encode(&merges, word, (0..bytes.len()).map(|i| if i == last { 2 } else { 1 }), out)
    }

    /// The token that every sequence begins with.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// The token that every sequence ends with; the pooled embedding is taken where it is first.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The token behind the end.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The token of a comma that is a word.
    pub(crate) fn comma(&self) -> Option<u32> {
        self.comma
    }

    /// One more than the largest token: the least number of rows that an embedding for this tokenizer has.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }
}

impl Symbols {
    /// By what `find` gives for the texts of tokens.
    fn new(find: impl Fn(&str) -> Option<u32>, unk: Option<u32>) -> Self {
        let mut symbols = Symbols { within: Box::new([None; 256]), last: Box::new([None; 256]), unk };
        for (byte, (within, last)) in (0..=255).zip(symbols.within.iter_mut().zip(symbols.last.iter_mut())) {
            let text = String::from(crate::vocab::char_of(byte));
            *within = find(&text);
            *last = find(&(text + files::SUFFIX));
        }
        symbols
    }
}

/// Merges by rank, from single bytes of which the last is followed by [`WORD_END`].
struct ToWordEnd<'a> {
    symbols: &'a Symbols,
    pairs: &'a PairTable,
}

impl Merges for ToWordEnd<'_> {
    fn merged(&self, left: Option<u32>, right: Option<u32>, _: &[u8]) -> Option<(u32, u32)> {
        self.pairs.find(left?, right?).map(|merge| (merge.rank, merge.token))
    }

    fn first(&self, bytes: &[u8]) -> Option<u32> {
        let (tokens, byte) = match *bytes {
            [byte] => (&self.symbols.within, byte),
            [byte, WORD_END] => (&self.symbols.last, byte),
            _ => return None,
        };
        tokens.get(usize::from(byte)).copied().flatten()
    }

    fn rest(&self, _: &[u8], out: &mut Vec<u32>) {
        out.extend(self.symbols.unk);
    }
}
