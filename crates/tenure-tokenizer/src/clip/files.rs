//! The files that CLIP tokenizers come in.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::{ClipPadding, Parts, Symbols};
use crate::added::Added;
use crate::error::{FileFault, TokenizerError, shown};
use crate::files::{self, LARGEST_VOCABULARY};
use crate::table::{Merge, PairTable};
use crate::vocab::char_of;

pub(super) const JSON: &str = "tokenizer.json";
pub(super) const VOCAB: &str = "vocab.json";
pub(super) const MERGES: &str = "merges.txt";

/// What the last symbol of a word ends with in texts of tokens.
pub(super) const SUFFIX: &str = "</w>";

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// The expressions by which `tokenizer.json` says how to make words. The second names the special tokens too, which
/// are found before in any case.
const SPLITS: [&str; 2] = [
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
];

/// What the smaller files of a folder say of special tokens.
#[derive(Debug, Default)]
pub(super) struct Special {
    start: Option<SpecialToken>,
    end: Option<SpecialToken>,
    unk: Option<SpecialToken>,
    pad: Option<SpecialToken>,
}

/// A special token, and the file that names it.
#[derive(Debug, Clone)]
struct SpecialToken {
    file: &'static str,
    /// A string, or an object like those of `added_tokens`.
    value: Value,
}

impl Special {
    /// What comes first counts: `tokenizer_config.json`, then `special_tokens_map.json`.
    pub(super) fn in_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let mut special = Special::default();
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let Some(bytes) = files::read(folder, file)? else { continue };
            let Value::Object(mut keys) = files::json(file, &bytes)? else {
                return Err(FileFault::Missing { what: "object" }.of(file));
            };
            let Special { start, end, unk, pad } = &mut special;
            for (key, token) in [("bos_token", start), ("eos_token", end), ("unk_token", unk), ("pad_token", pad)] {
                let value = keys.remove(key).filter(|value| !value.is_null());
                if let (None, Some(value)) = (&token, value) {
                    *token = Some(SpecialToken { file, value });
                }
            }
        }
        Ok(special)
    }
}

impl SpecialToken {
    fn text(&self) -> Result<&str, TokenizerError> {
        let text = self.value.get("content").unwrap_or(&self.value).as_str();
        text.ok_or_else(|| FileFault::Missing { what: "content of a special token" }.of(self.file))
    }

    /// `normalized` counts where the file gives no more than the text.
    fn added(&self, id: u32, normalized: bool) -> Result<Added, TokenizerError> {
        match &self.value {
            Value::String(text) => Ok(Added::new(text, id, normalized)),
            value => Added::from_json(self.file, value, Some(id)),
        }
    }
}

/// The tokens by their texts, and the merges in their order.
struct Tables<'a> {
    file: &'static str,
    ids: HashMap<&'a str, u32>,
    merges: Vec<(&'a str, &'a str)>,
}

/// From merges alone: the symbols first, then what each merge makes, then the start and the end token.
pub(super) fn from_merges(merges: &str, padding: ClipPadding) -> Result<Parts, TokenizerError> {
    // In the order of the characters that spell them.
    let mut characters: Vec<char> = (0..=255).map(char_of).collect();
    characters.sort_unstable();
    let symbols = characters.iter().map(char::to_string).chain(characters.iter().map(|c| format!("{c}{SUFFIX}")));
    let merges = merges_in(merges)?;
    let made = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let texts: Vec<String> = symbols.chain(made).chain([START, END].map(str::to_owned)).collect();
    let ids = texts.iter().zip(0..).map(|(text, id)| (text.as_str(), id)).collect();
    let tables = Tables { file: MERGES, ids, merges };
    let pad = match padding {
        ClipPadding::End => None,
        ClipPadding::Zero => Some(0),
    };
    tables.parts(&Special::default(), Vec::new(), Some(END), pad)
}

/// From `vocab.json` and `merges.txt`.
pub(super) fn from_vocab(vocab: &[u8], merges: &[u8], special: &Special) -> Result<Parts, TokenizerError> {
    let vocab = files::json(VOCAB, vocab)?;
    let merges = merges_in(files::utf8(MERGES, merges)?)?;
    let tables = Tables { file: VOCAB, ids: ids_in(VOCAB, &vocab)?, merges };
    let unk = special.unk.as_ref().map(SpecialToken::text).transpose()?.unwrap_or(END);
    tables.parts(special, Vec::new(), Some(unk), None)
}

/// From `tokenizer.json`.
pub(super) fn from_json(json: &[u8], special: &Special) -> Result<Parts, TokenizerError> {
    let json = files::json(JSON, json)?;
    check_steps(&json)?;
    let model = json.get("model").ok_or_else(|| FileFault::Missing { what: "model" }.of(JSON))?;
    check_model(model)?;
    let vocab = model.get("vocab").unwrap_or(&Value::Null);
    let list = model.get("merges").and_then(Value::as_array);
    let list = list.ok_or_else(|| FileFault::Missing { what: "merges" }.of(JSON))?;
    let mut merges = Vec::with_capacity(list.len());
    for (index, merge) in list.iter().enumerate() {
        let pair = match merge {
            Value::String(merge) => merge.split_once(' '),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        merges.push(pair.ok_or(TokenizerError::BadMerge { index })?);
    }
    let entries = match json.get("added_tokens") {
        None | Some(Value::Null) => &[],
        Some(entries) => {
            let entries = entries.as_array().ok_or_else(|| FileFault::Missing { what: "added_tokens" }.of(JSON))?;
            entries.as_slice()
        }
    };
    let added: Result<Vec<Added>, _> = entries.iter().map(|entry| Added::from_json(JSON, entry, None)).collect();
    let tables = Tables { file: JSON, ids: ids_in(JSON, vocab)?, merges };
    tables.parts(special, added?, model.get("unk_token").and_then(Value::as_str), None)
}

impl Tables<'_> {
    /// `added` and `unk` are the file's own; `pad` is the padding that no text spells.
    fn parts(
        self,
        special: &Special,
        mut added: Vec<Added>,
        unk: Option<&str>,
        pad: Option<u32>,
    ) -> Result<Parts, TokenizerError> {
        let Tables { file, ids, merges } = self;
        let mut pairs = PairTable::new(merges.len())?;
        let mut joined = String::new();
        for (rank, (left, right)) in (0..).zip(&merges) {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let id = |text: &str| ids.get(text).copied().ok_or(TokenizerError::BadMerge { index: rank as usize });
            pairs.insert(id(left)?, id(right)?, Merge { rank, token: id(&joined)? });
        }
        let find = |text: &str| {
            let own = added.iter().find(|token| token.text == text).map(|token| token.id);
            own.or_else(|| ids.get(text).copied()).ok_or_else(|| FileFault::NoToken { token: shown(text) }.of(file))
        };
        let named = |token: &Option<SpecialToken>, default| {
            let text = token.as_ref().map(SpecialToken::text).transpose()?;
            find(text.unwrap_or(default))
        };
        let start = named(&special.start, START)?;
        let end = named(&special.end, END)?;
        let unk = unk.map(find).transpose()?;
        let pad = match (pad, &special.pad) {
            (Some(pad), _) => pad,
            (None, Some(token)) => find(token.text()?)?,
            (None, None) => end,
        };
        // What the other files say of a special token counts only where the file itself says nothing.
        let ours = [(&special.start, start, Some(START)), (&special.end, end, Some(END)), (&special.pad, pad, None)];
        for (token, id, default) in ours {
            if added.iter().any(|added| added.id == id) {
                continue;
            }
            match (token, default) {
                // The start and the end are found in any case, a padding token only as it is.
                (Some(token), default) => added.push(token.added(id, default.is_some())?),
                (None, Some(text)) => added.push(Added::new(text, id, true)),
                (None, None) => {}
            }
        }
        let largest = ids.values().copied().chain(added.iter().map(|token| token.id)).max().unwrap_or(0);
        let symbols = Symbols::new(|text| ids.get(text).copied(), unk);
        let comma = ids.get(format!(",{SUFFIX}").as_str()).copied();
        Ok(Parts { pairs, symbols, added, start, end, pad, comma, vocabulary: largest as usize + 1 })
    }
}

/// The merges of a `merges.txt`, one a line.
fn merges_in(text: &str) -> Result<Vec<(&str, &str)>, TokenizerError> {
    let mut merges = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")) {
        let index = merges.len();
        let pair = line.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        merges.push(pair.ok_or(TokenizerError::BadMerge { index })?);
    }
    Ok(merges)
}

/// The tokens of a vocabulary by their texts, no two with one number.
fn ids_in<'a>(file: &'static str, vocab: &'a Value) -> Result<HashMap<&'a str, u32>, TokenizerError> {
    let vocab = vocab.as_object().ok_or_else(|| FileFault::Missing { what: "vocabulary" }.of(file))?;
    if vocab.len() > LARGEST_VOCABULARY {
        return Err(TokenizerError::VocabularyTooLarge);
    }
    let mut ids = HashMap::with_capacity(vocab.len());
    let mut taken = vec![false; LARGEST_VOCABULARY];
    for (text, value) in vocab {
        let id = files::id(file, text, value)?;
        match taken.get_mut(id as usize) {
            Some(taken) if !*taken => *taken = true,
            _ => return Err(FileFault::Doubled { token: shown(text), id }.of(file)),
        }
        ids.insert(text.as_str(), id);
    }
    Ok(ids)
}

/// A model of merges as CLIP has them, and nothing else.
fn check_model(model: &Value) -> Result<(), TokenizerError> {
    let at = |key: &str| model.get(key).unwrap_or(&Value::Null);
    let wrong = |what, key: &str| Err(files::unsupported(JSON, what, at(key)));
    if at("type").as_str().is_some_and(|model| model != "BPE") {
        return wrong("type of model", "type");
    }
    if at("end_of_word_suffix").as_str() != Some(SUFFIX) {
        return wrong("end_of_word_suffix", "end_of_word_suffix");
    }
    if at("continuing_subword_prefix").as_str().is_some_and(|prefix| !prefix.is_empty()) {
        return wrong("continuing_subword_prefix", "continuing_subword_prefix");
    }
    if at("dropout").as_f64().is_some_and(|dropout| dropout != 0.0) {
        return wrong("dropout", "dropout");
    }
    for key in ["fuse_unk", "byte_fallback", "ignore_merges"] {
        if at(key).as_bool() == Some(true) {
            return wrong("fuse_unk, byte_fallback or ignore_merges", key);
        }
    }
    Ok(())
}

/// The steps before the model as CLIP has them, and no others.
fn check_steps(json: &Value) -> Result<(), TokenizerError> {
    let at = |key: &str| json.get(key).unwrap_or(&Value::Null);
    let kind = |step: &Value, kind: &str| step.get("type").and_then(Value::as_str) == Some(kind);
    let normalizer = at("normalizer");
    let steps = normalizer.get("normalizers").and_then(Value::as_array).map(Vec::as_slice);
    let known = match steps {
        Some([nfc, replace, lower]) => {
            let pattern = replace.pointer("/pattern/Regex").and_then(Value::as_str);
            let content = replace.get("content").and_then(Value::as_str);
            kind(nfc, "NFC")
                && kind(replace, "Replace")
                && (pattern, content) == (Some(r"\s+"), Some(" "))
                && kind(lower, "Lowercase")
        }
        _ => false,
    };
    if !known {
        return Err(files::unsupported(JSON, "normalizer", normalizer));
    }
    let words = at("pre_tokenizer");
    let steps = words.get("pretokenizers").and_then(Value::as_array).map(Vec::as_slice);
    let known = match steps {
        Some([split, bytes]) => {
            let pattern = split.pointer("/pattern/Regex").and_then(Value::as_str);
            kind(split, "Split")
                && pattern.is_some_and(|pattern| SPLITS.contains(&pattern))
                && split.get("behavior").and_then(Value::as_str) == Some("Removed")
                && split.get("invert").and_then(Value::as_bool) == Some(true)
                && kind(bytes, "ByteLevel")
                && bytes.get("add_prefix_space").and_then(Value::as_bool) == Some(false)
        }
        _ => false,
    };
    if known { Ok(()) } else { Err(files::unsupported(JSON, "pre_tokenizer", words)) }
}
