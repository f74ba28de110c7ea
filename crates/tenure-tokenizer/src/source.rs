//! A vocabulary as a file has it.

use tenure_weights::gguf::{Metadata, Value, ValueType};

use crate::error::TokenizerError;

/// A vocabulary as a file has it, borrowed: what [`Tokenizer::new`](crate::Tokenizer::new) checks and indexes.
///
/// The fields are the keys of the GGUF specification under `tokenizer.ggml.`.
#[derive(Debug, Clone, Default)]
pub struct VocabSource<'a> {
    /// `model`: `gpt2` (byte-level merges) or `llama` (merges by score).
    pub model: &'a str,
    /// `pre`: how byte-level vocabularies split text; without it as llama.cpp's `default`.
    pub pre: Option<&'a str>,
    /// `tokens`, by id.
    pub tokens: Vec<&'a str>,
    /// `scores`: which of several merges a `llama` vocabulary prefers.
    pub scores: Option<Vec<f32>>,
    /// `token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; without it all are normal.
    pub token_types: Option<Vec<i32>>,
    /// `merges` of a `gpt2` vocabulary, the most important first: two tokens with a space between.
    pub merges: Vec<&'a str>,
    /// The ids of tokens with a meaning, as the file has them.
    pub special: SpecialIds,
    /// `add_bos_token`
    pub add_bos: Option<bool>,
    /// `add_eos_token`
    pub add_eos: Option<bool>,
    /// `add_space_prefix` of a `llama` vocabulary.
    pub add_space_prefix: Option<bool>,
}

/// The ids of tokens with a meaning, unchecked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begins a text.
    pub bos: Option<i64>,
    /// Ends a text.
    pub eos: Option<i64>,
    /// Ends a turn.
    pub eot: Option<i64>,
    /// Ends a message.
    pub eom: Option<i64>,
    /// Stands for what no token stands for.
    pub unk: Option<i64>,
    /// Fills up.
    pub pad: Option<i64>,
}

impl<'a> VocabSource<'a> {
    /// Reads the `tokenizer.ggml.` keys.
    ///
    /// # Errors
    /// When `model` or `tokens`, or the `merges` of a `gpt2` vocabulary, are missing, or a key has another type.
    pub fn from_gguf(metadata: &'a Metadata) -> Result<Self, TokenizerError> {
        let keys = Keys(metadata);
        let model =
            keys.str("tokenizer.ggml.model")?.ok_or(TokenizerError::MissingKey { key: "tokenizer.ggml.model" })?;
        let merges = keys.strs("tokenizer.ggml.merges")?;
        if model == "gpt2" && merges.is_none() {
            return Err(TokenizerError::MissingKey { key: "tokenizer.ggml.merges" });
        }
        Ok(VocabSource {
            model,
            pre: keys.str("tokenizer.ggml.pre")?,
            tokens: keys
                .strs("tokenizer.ggml.tokens")?
                .ok_or(TokenizerError::MissingKey { key: "tokenizer.ggml.tokens" })?,
            scores: keys.f32s("tokenizer.ggml.scores")?,
            token_types: keys.i32s("tokenizer.ggml.token_type")?,
            merges: merges.unwrap_or_default(),
            special: SpecialIds {
                bos: keys.id("tokenizer.ggml.bos_token_id")?,
                eos: keys.id("tokenizer.ggml.eos_token_id")?,
                eot: keys.id("tokenizer.ggml.eot_token_id")?,
                eom: keys.id("tokenizer.ggml.eom_token_id")?,
                unk: keys.id("tokenizer.ggml.unknown_token_id")?,
                pad: keys.id("tokenizer.ggml.padding_token_id")?,
            },
            add_bos: keys.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: keys.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: keys.bool("tokenizer.ggml.add_space_prefix")?,
        })
    }
}

/// Typed getters that give this crate's errors.
struct Keys<'a>(&'a Metadata);

impl<'a> Keys<'a> {
    fn str(&self, key: &'static str) -> Result<Option<&'a str>, TokenizerError> {
        self.typed(key, "string", |value| if let Value::Str(s) = value { Some(s) } else { None })
    }

    fn bool(&self, key: &'static str) -> Result<Option<bool>, TokenizerError> {
        self.typed(key, "bool", |value| if let Value::Bool(b) = value { Some(b) } else { None })
    }

    fn strs(&self, key: &'static str) -> Result<Option<Vec<&'a str>>, TokenizerError> {
        self.typed(key, "array of string", |value| match value {
            Value::Array(array) => Some(array.strs().ok()?.collect()),
            _ => None,
        })
    }

    fn f32s(&self, key: &'static str) -> Result<Option<Vec<f32>>, TokenizerError> {
        self.typed(key, "array of f32", |value| match value {
            Value::Array(array) => Some(array.f32s().ok()?.collect()),
            _ => None,
        })
    }

    fn i32s(&self, key: &'static str) -> Result<Option<Vec<i32>>, TokenizerError> {
        self.typed(key, "array of i32", |value| match value {
            Value::Array(array) => Some(array.i32s().ok()?.collect()),
            _ => None,
        })
    }

    /// Any integer, so that a -1 is told from a number that is too large.
    fn id(&self, key: &'static str) -> Result<Option<i64>, TokenizerError> {
        self.typed(key, "integer", |value| match value {
            Value::U8(n) => Some(n.into()),
            Value::I8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::I16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::I32(n) => Some(n.into()),
            Value::U64(n) => Some(i64::try_from(n).unwrap_or(i64::MAX)),
            Value::I64(n) => Some(n),
            Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::Str(_) | Value::Array(_) => None,
        })
    }

    fn typed<T>(
        &self,
        key: &'static str,
        want: &'static str,
        pick: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, TokenizerError> {
        let Some(value) = self.0.value(key) else { return Ok(None) };
        let got = match value {
            Value::Array(array) => format!("array of {}", array.element_type()),
            other => ValueType::to_string(&other.value_type()),
        };
        pick(value).map(Some).ok_or(TokenizerError::WrongType { key, want, got })
    }
}
