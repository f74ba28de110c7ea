//! The files that T5 tokenizers come in.

use serde_json::Value;

use super::charsmap::Charsmap;
use super::{Parts, Spaces};
use crate::added::Added;
use crate::error::{FileFault, TokenizerError, shown};
use crate::files::{self, LARGEST_VOCABULARY};
use crate::vocab::SPACE;
use crate::wire::{Field, Fields};

pub(super) const JSON: &str = "tokenizer.json";
pub(super) const PIECES: &str = "spiece.model";

/// What T5 adds to the pieces of a `spiece.model`, the last first.
const SENTINELS: usize = 100;

/// From a `spiece.model`: SentencePiece's `ModelProto`.
pub(super) fn from_pieces(model: &[u8], spaces: Spaces) -> Result<Parts, TokenizerError> {
    files::check_size(PIECES, model)?;
    let mut pieces = Vec::new();
    let mut added = Vec::new();
    let (mut unk, mut charsmap) = (None, None);
    for field in Fields::of(PIECES, model) {
        match field? {
            (1, Field::Bytes(piece)) => {
                let id = pieces.len() as u32;
                let Piece { text, score, kind } = Piece::read(piece)?;
                match kind {
                    Kind::Normal => {}
                    Kind::Unknown if unk.is_none() => {
                        unk = Some(id);
                        added.push(Added::new(text, id, false));
                    }
                    Kind::Unknown => return Err(FileFault::Doubled { token: shown(text), id }.of(PIECES)),
                    Kind::Found => added.push(Added::new(text, id, false)),
                }
                pieces.push((text.to_owned(), f64::from(score)));
                if pieces.len() + SENTINELS > LARGEST_VOCABULARY {
                    return Err(TokenizerError::VocabularyTooLarge);
                }
            }
            (2, Field::Bytes(trainer)) => check_trainer(trainer)?,
            (3, Field::Bytes(normalizer)) => charsmap = read_normalizer(normalizer)?,
            _ => {}
        }
    }
    let unk = unk.ok_or_else(|| FileFault::Missing { what: "unknown token" }.of(PIECES))?;
    for sentinel in (0..SENTINELS).rev() {
        let text = format!("<extra_id_{sentinel}>");
        added.push(Added::new(&text, pieces.len() as u32, false));
        pieces.push((text, 0.0));
    }
    Ok(Parts { charsmap, spaces, pieces, unk, added })
}

/// One entry of a `ModelProto`'s list.
struct Piece<'a> {
    text: &'a str,
    score: f32,
    kind: Kind,
}

/// What a piece is for.
enum Kind {
    Normal,
    Unknown,
    /// A control or user-defined piece, which is found before words are made.
    Found,
}

impl<'a> Piece<'a> {
    fn read(message: &'a [u8]) -> Result<Self, TokenizerError> {
        let (mut text, mut score, mut kind) = ("", 0.0, Kind::Normal);
        for field in Fields::of(PIECES, message) {
            match field? {
                (1, Field::Bytes(bytes)) => text = files::utf8(PIECES, bytes)?,
                (2, Field::Fixed32(bits)) => score = f32::from_bits(bits),
                (3, Field::Number(number)) => {
                    kind = match number {
                        1 => Kind::Normal,
                        2 => Kind::Unknown,
                        3 | 4 => Kind::Found,
                        other => {
                            let (what, got) = ("type of a piece", other.to_string());
                            return Err(FileFault::Unsupported { what, got }.of(PIECES));
                        }
                    };
                }
                _ => {}
            }
        }
        Ok(Piece { text, score, kind })
    }
}

/// Refuses models of another kind than unigram, and bytes as pieces.
fn check_trainer(message: &[u8]) -> Result<(), TokenizerError> {
    for field in Fields::of(PIECES, message) {
        let (what, number) = match field? {
            (3, Field::Number(kind)) if kind != 1 => ("model_type", kind),
            (24, Field::Number(suffix)) if suffix != 0 => ("treat_whitespace_as_suffix", suffix),
            (35, Field::Number(fallback)) if fallback != 0 => ("byte_fallback", fallback),
            _ => continue,
        };
        return Err(FileFault::Unsupported { what, got: number.to_string() }.of(PIECES));
    }
    Ok(())
}

/// The table of replaced characters, where white space is treated as T5 treats it.
fn read_normalizer(message: &[u8]) -> Result<Option<Charsmap>, TokenizerError> {
    let mut charsmap = None;
    for field in Fields::of(PIECES, message) {
        let what = match field? {
            (2, Field::Bytes([])) => continue,
            (2, Field::Bytes(bytes)) => {
                charsmap = Some(Charsmap::new(bytes).ok_or_else(|| FileFault::BadCharsmap.of(PIECES))?);
                continue;
            }
            (3, Field::Number(0)) => "add_dummy_prefix",
            (4, Field::Number(0)) => "remove_extra_whitespaces",
            (5, Field::Number(0)) => "escape_whitespaces",
            _ => continue,
        };
        return Err(FileFault::Unsupported { what, got: "false".to_owned() }.of(PIECES));
    }
    Ok(charsmap)
}

/// From `tokenizer.json`.
pub(super) fn from_json(json: &[u8]) -> Result<Parts, TokenizerError> {
    let json = files::json(JSON, json)?;
    let missing = |what| FileFault::Missing { what }.of(JSON);
    let at = |key: &str| json.get(key).unwrap_or(&Value::Null);
    let (charsmap, spaces) = read_steps(at("normalizer"), at("pre_tokenizer"))?;

    let model = at("model");
    if let Some(kind) = model.get("type").filter(|kind| kind.as_str() != Some("Unigram")) {
        return Err(files::unsupported(JSON, "type of model", kind));
    }
    if let Some(fallback) = model.get("byte_fallback").filter(|fallback| fallback.as_bool() != Some(false)) {
        return Err(files::unsupported(JSON, "byte_fallback", fallback));
    }
    let unk = model.get("unk_id").ok_or_else(|| missing("unk_id"))?;
    let unk = files::id(JSON, "unk_id", unk)?;
    let vocab = model.get("vocab").and_then(Value::as_array).ok_or_else(|| missing("vocab"))?;
    if vocab.len() > LARGEST_VOCABULARY {
        return Err(TokenizerError::VocabularyTooLarge);
    }
    let mut pieces = Vec::with_capacity(vocab.len());
    for entry in vocab {
        let (text, score) = match entry.as_array().map(Vec::as_slice) {
            Some([Value::String(text), Value::Number(score)]) => (text, score.as_f64()),
            _ => return Err(missing("piece in vocab")),
        };
        pieces.push((text.clone(), score.ok_or_else(|| missing("score in vocab"))?));
    }
    let added = match at("added_tokens") {
        Value::Null => Vec::new(),
        Value::Array(entries) => {
            let added: Result<_, _> = entries.iter().map(|entry| Added::from_json(JSON, entry, None)).collect();
            added?
        }
        _ => return Err(missing("added_tokens")),
    };
    Ok(Parts { charsmap, spaces, pieces, unk, added })
}

/// The steps before the model: one of the ways in which T5 tokenizers are published.
fn read_steps(normalizer: &Value, words: &Value) -> Result<(Option<Charsmap>, Spaces), TokenizerError> {
    let kind = |step: &Value, kind: &str| step.get("type").and_then(Value::as_str) == Some(kind);
    let text = |step: &Value, path: &str| step.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let flag = |step: &Value, key: &str| step.get(key).and_then(Value::as_bool);
    // Spaces become U+2581, a word begins before each, and the first has one in any case.
    let marks = |step: &Value| {
        let always = match text(step, "/prepend_scheme") {
            Some(scheme) => scheme == "always",
            None => flag(step, "add_prefix_space") == Some(true),
        };
        let split = flag(step, "split") != Some(false);
        kind(step, "Metaspace") && text(step, "/replacement").as_deref() == Some(SPACE) && always && split
    };
    let divides = match words.get("pretokenizers").and_then(Value::as_array).map(Vec::as_slice) {
        Some([divide, mark]) if kind(divide, "WhitespaceSplit") && marks(mark) => true,
        None if marks(words) => false,
        _ => return Err(files::unsupported(JSON, "pre_tokenizer", words)),
    };

    let one = if normalizer.is_null() { &[] } else { std::slice::from_ref(normalizer) };
    let mut steps = normalizer.get("normalizers").and_then(Value::as_array).map_or(one, Vec::as_slice);
    let mut charsmap = None;
    if let Some((first, rest)) = steps.split_first().filter(|(first, _)| kind(first, "Precompiled")) {
        let table = text(first, "/precompiled_charsmap").and_then(|text| base64(&text));
        charsmap = Some(table.and_then(|table| Charsmap::new(&table)).ok_or_else(|| FileFault::BadCharsmap.of(JSON))?);
        steps = rest;
    }
    let cut = |step: &Value| {
        kind(step, "Strip") && (flag(step, "strip_left"), flag(step, "strip_right")) == (Some(false), Some(true))
    };
    // A space and U+2581 are the same by the time words are made.
    let squeeze = |step: &Value| {
        kind(step, "Replace")
            && text(step, "/pattern/Regex").as_deref() == Some(" {2,}")
            && matches!(text(step, "/content").as_deref(), Some(" " | SPACE))
    };
    let spaces = match (steps, divides) {
        ([], true) => Spaces::Divide,
        ([one], false) if squeeze(one) => Spaces::Kept,
        ([first, second], false) if cut(first) && squeeze(second) => Spaces::CutAtEnd,
        _ => return Err(files::unsupported(JSON, "normalizer", normalizer)),
    };
    Ok((charsmap, spaces))
}

/// The bytes that standard base64 with padding spells.
fn base64(text: &str) -> Option<Vec<u8>> {
    let (groups, []) = text.as_bytes().as_chunks::<4>() else { return None };
    let mut out = Vec::with_capacity(groups.len() * 3);
    for (i, group) in groups.iter().enumerate() {
        let padding = match group {
            [.., b'=', b'='] => 2,
            [.., b'='] => 1,
            _ => 0,
        };
        if padding > 0 && i + 1 != groups.len() {
            return None;
        }
        let mut bits = 0u32;
        for &byte in group.iter().take(4 - padding) {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * padding;
        out.extend(bits.to_be_bytes().into_iter().skip(1).take(3 - padding));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_strictly() {
        assert_eq!(base64("").as_deref(), Some(&b""[..]));
        assert_eq!(base64("Zg==").as_deref(), Some(&b"f"[..]));
        assert_eq!(base64("Zm8=").as_deref(), Some(&b"fo"[..]));
        assert_eq!(base64("Zm9v+/8A").as_deref(), Some(&b"foo\xfb\xff\0"[..]));
        for bad in ["Zg", "Zg=", "Zg==Zg==", "Z===", "Zm9*", "Zm9v\n", "Zm=v"] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }
}
