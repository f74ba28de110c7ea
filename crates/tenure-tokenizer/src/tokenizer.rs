//! A vocabulary ready for use.

use tenure_weights::gguf::Metadata;

use crate::classes::Classes;
use crate::detokenize::{DecodeOptions, Detokenizer};
use crate::error::{TokenizerError, check_text, shown};
use crate::merge::{ByRank, ByScore, Merger};
use crate::names;
use crate::pre::{self, Pre};
use crate::source::VocabSource;
use crate::special::SpecialTokens;
use crate::split::split;
use crate::table::{Merge, PairTable};
use crate::vocab::{SPACE, Spelling, TokenKind, Vocab, spell};

/// How a text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EncodeOptions {
    /// Begin and end the text with the tokens that the vocabulary says it begins and ends with.
    pub add_special: bool,
    /// Take the texts of control tokens for these tokens. User-defined tokens are found in any case.
    pub parse_special: bool,
}

/// A vocabulary: text to tokens and back, as llama.cpp does it.
///
/// Everything is checked when it is made; encoding takes time proportional to n log n for a text of n bytes, whatever
/// the text is, and panics on none.
///
/// A byte that no token of a byte-level vocabulary stands for is left out; all vocabularies that know no such byte
/// were trained so. Of several tokens with one text the first is found. Empty tokens are allowed and never found. The keys
/// `add_space_prefix` and `scores` concern only vocabularies merged by score; `remove_extra_whitespaces` does not
/// concern either kind.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    algorithm: Algorithm,
    specials: SpecialTokens,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    /// Sorted.
    ends_generation: Vec<u32>,
}

#[derive(Debug)]
enum Algorithm {
    /// Byte-level: words are merged by the rank of pairs.
    Rank { pre: Pre, classes: Classes, pairs: PairTable },
    /// The whole text is merged by the score of the tokens it makes.
    Score { scores: Vec<f32>, add_space: bool },
}

impl Tokenizer {
    /// Reads the vocabulary of a GGUF file.
    ///
    /// # Errors
    /// When keys are missing or of another type, and as [`new`](Self::new).
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        Self::new(&VocabSource::from_gguf(metadata)?)
    }

    /// Checks and indexes a vocabulary.
    ///
    /// # Errors
    /// When the lists do not fit together, a token, merge or score is malformed, a special id is no token, or the
    /// model or pre-tokenizer is not known.
    pub fn new(source: &VocabSource<'_>) -> Result<Self, TokenizerError> {
        match source.model {
            "gpt2" => Self::by_rank(source),
            "llama" => Self::by_score(source),
            other => Err(TokenizerError::UnsupportedModel { model: shown(other) }),
        }
    }

    fn by_rank(source: &VocabSource<'_>) -> Result<Self, TokenizerError> {
        let name = source.pre.unwrap_or(pre::DEFAULT);
        let pre = Pre::by_name(name).ok_or_else(|| TokenizerError::UnknownPreTokenizer { pre: shown(name) })?;
        let vocab = Vocab::new(source, Spelling::ByteLevel)?;
        let mut pairs = PairTable::new(source.merges.len())?;
        let mut joined = Vec::new();
        for (index, merge) in source.merges.iter().enumerate() {
            let bad = || TokenizerError::BadMerge { index };
            let (left, right) = merge.split_once(' ').ok_or_else(bad)?;
            joined.clear();
            let spelt = spell(Spelling::ByteLevel, left, &mut joined);
            let middle = joined.len();
            if !spelt || !spell(Spelling::ByteLevel, right, &mut joined) {
                return Err(bad());
            }
            let (first, second) = joined.split_at(middle);
            let token = |bytes| vocab.find(bytes).ok_or_else(bad);
            let rank = u32::try_from(index).ok().filter(|&rank| rank < u32::MAX);
            let merge = Merge { rank: rank.ok_or(TokenizerError::VocabularyTooLarge)?, token: token(&joined)? };
            pairs.insert(token(first)?, token(second)?, merge);
        }
        let add_bos = pre.add_bos;
        Self::finish(source, vocab, Algorithm::Rank { pre, classes: Classes::new(), pairs }, add_bos)
    }

    fn by_score(source: &VocabSource<'_>) -> Result<Self, TokenizerError> {
        let vocab = Vocab::new(source, Spelling::Pieces)?;
        let scores = match &source.scores {
            Some(scores) if scores.len() != vocab.len() => {
                let (want, got) = (vocab.len(), scores.len());
                return Err(TokenizerError::LengthMismatch { key: "tokenizer.ggml.scores", want, got });
            }
            Some(scores) => scores.clone(),
            None => vec![0.0; vocab.len()],
        };
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(TokenizerError::BadScore { id: id as u32 });
        }
        let add_space = source.add_space_prefix.unwrap_or(true);
        Self::finish(source, vocab, Algorithm::Score { scores, add_space }, true)
    }

    fn finish(
        source: &VocabSource<'_>,
        mut vocab: Vocab,
        algorithm: Algorithm,
        add_bos: bool,
    ) -> Result<Self, TokenizerError> {
        let tokens = vocab.len();
        let id = |key, id: Option<i64>| match id {
            None => Ok(None),
            Some(id) => match u32::try_from(id) {
                Ok(token) if (token as usize) < tokens => Ok(Some(token)),
                _ => Err(TokenizerError::BadSpecialToken { key, id, tokens }),
            },
        };
        let special = &source.special;
        let bos = id("tokenizer.ggml.bos_token_id", special.bos)?;
        let eos = id("tokenizer.ggml.eos_token_id", special.eos)?;
        let eot = id("tokenizer.ggml.eot_token_id", special.eot)?;
        let eom = id("tokenizer.ggml.eom_token_id", special.eom)?;
        let unk = id("tokenizer.ggml.unknown_token_id", special.unk)?;
        let pad = id("tokenizer.ggml.padding_token_id", special.pad)?;

        // The only well-known names that byte-level vocabularies do not spell byte by byte.
        let wide: Vec<(u32, &str)> = match &algorithm {
            Algorithm::Rank { .. } => {
                let tokens = source.tokens.iter().zip(0u32..);
                tokens.filter(|(text, _)| text.starts_with("<\u{ff5c}")).map(|(&text, i)| (i, text)).collect()
            }
            Algorithm::Score { .. } => Vec::new(),
        };
        let by_name = |vocab: &Vocab, name: &str| {
            vocab.find_text(name).or_else(|| wide.iter().find(|(_, text)| *text == name).map(|&(token, _)| token))
        };
        let ends = names::find(&mut vocab, by_name, eot, eom);
        let mut ends_generation = ends.generation;
        ends_generation.extend([eos, ends.eot, ends.eom].into_iter().flatten());
        ends_generation.sort_unstable();
        ends_generation.dedup();

        let specials = SpecialTokens::new(source.tokens.iter().enumerate().filter_map(|(i, &text)| {
            let kind = vocab.kind(i as u32)?;
            (kind.is_special() || kind == TokenKind::UserDefined).then(|| (i as u32, text, kind.is_special()))
        }))?;
        Ok(Tokenizer {
            specials,
            bos,
            eos,
            eot: ends.eot,
            eom: ends.eom,
            unk,
            pad,
            add_bos: source.add_bos.unwrap_or(add_bos),
            add_eos: source.add_eos.unwrap_or(false),
            ends_generation,
            vocab,
            algorithm,
        })
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// When the text has more than 2^31 bytes, or the host has no memory for the work.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        check_text(text)?;
        let mut out = Vec::new();
        if options.add_special && self.add_bos {
            out.extend(self.bos);
        }
        let mut merger = Merger::default();
        let mut gap = 0;
        for (token, range) in self.specials.in_text(text, options.parse_special) {
            if let Some(before) = text.get(gap..range.start).filter(|before| !before.is_empty()) {
                self.encode_part(&mut merger, before, &mut out)?;
            }
            out.push(token);
            gap = range.end;
        }
        if let Some(rest) = text.get(gap..).filter(|rest| !rest.is_empty()) {
            self.encode_part(&mut merger, rest, &mut out)?;
        }
        if options.add_special && self.add_eos {
            out.extend(self.eos);
        }
        Ok(out)
    }

    /// The tokens of a text between special tokens.
    fn encode_part(&self, merger: &mut Merger, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let (vocab, unk) = (&self.vocab, self.unk);
        match &self.algorithm {
            Algorithm::Rank { pre, classes, pairs } => {
                let merges = ByRank { vocab, pairs };
                let mut result = Ok(());
                split(classes, &pre.passes, text, &mut |word| {
                    let word = text.as_bytes().get(word).unwrap_or_default();
                    if result.is_err() {
                        return;
                    }
                    if pre.ignore_merges
                        && let Some(token) = vocab.find(word)
                    {
                        out.push(token);
                        return;
                    }
                    result = merger.encode(&merges, word, word.iter().map(|_| 1), out);
                });
                result
            }
            Algorithm::Score { scores, add_space } => {
                let mut spaced = String::new();
                spaced
                    .try_reserve(text.len() + 1)
                    .map_err(|_| TokenizerError::HostOutOfMemory { what: "a text", bytes: text.len() + 1 })?;
                if *add_space {
                    spaced.push(' ');
                }
                for part in text.split_inclusive(SPACE) {
                    match part.strip_suffix(SPACE) {
                        Some(part) => {
                            spaced.push_str(part);
                            spaced.push(' ');
                        }
                        None => spaced.push_str(part),
                    }
                }
                let merges = ByScore { vocab, scores, unk };
                merger.encode(&merges, spaced.as_bytes(), spaced.chars().map(char::len_utf8), out)
            }
        }
    }

    /// The text of tokens from its start, without special ones; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.decode_with(tokens, DecodeOptions::default())
    }

    /// The text of tokens; bytes that are not UTF-8 become U+FFFD.
    pub fn decode_with(&self, tokens: &[u32], options: DecodeOptions) -> String {
        let mut detokenizer = self.detokenizer(options);
        let mut text = String::new();
        for &token in tokens {
            text.push_str(detokenizer.push(token));
        }
        text.push_str(detokenizer.finish());
        text
    }

    /// Makes text of tokens as they come.
    pub fn detokenizer(&self, options: DecodeOptions) -> Detokenizer<'_> {
        Detokenizer::new(self, options)
    }

    /// The bytes a token adds to a text; a special token's are its name. None for a number that is no token.
    pub fn piece_bytes(&self, token: u32) -> &[u8] {
        self.vocab.piece(token)
    }

    /// What a token is for.
    pub fn token_kind(&self, token: u32) -> Option<TokenKind> {
        self.vocab.kind(token)
    }

    /// Whether a token is a control token or the token for the unknown.
    pub fn is_special(&self, token: u32) -> bool {
        self.vocab.kind(token).is_some_and(TokenKind::is_special)
    }

    /// The token with this text, as the file spells it.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.specials.find(text).or_else(|| self.vocab.find_text(text))
    }

    /// The number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// Whether the model ends its answer with this token.
    pub fn is_end_of_generation(&self, token: u32) -> bool {
        self.ends_generation.binary_search(&token).is_ok()
    }

    /// The tokens with which a model ends its answer, in order.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.ends_generation
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that ends a turn: as the file says, or by its name.
    pub fn eot(&self) -> Option<u32> {
        self.eot
    }

    /// The token that ends a message that waits for a tool: as the file says, or by its name.
    pub fn eom(&self) -> Option<u32> {
        self.eom
    }

    /// The token for the unknown.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// The token that fills up.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Whether [`EncodeOptions::add_special`] begins a text with [`bos`](Self::bos).
    pub fn adds_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }

    /// Whether [`EncodeOptions::add_special`] ends a text with [`eos`](Self::eos).
    pub fn adds_eos(&self) -> bool {
        self.add_eos && self.eos.is_some()
    }

    /// Whether encoding puts a space before a text, and before what follows a special token.
    pub fn adds_space(&self) -> bool {
        match self.algorithm {
            Algorithm::Rank { .. } => false,
            Algorithm::Score { add_space, .. } => add_space,
        }
    }
}
