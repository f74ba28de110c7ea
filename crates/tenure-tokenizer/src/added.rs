//! Tokens that are found in a text before a tokenizer makes words of the rest, as `added_tokens` describes them.

use std::ops::Range;

use serde_json::Value;

use crate::error::{FileFault, TokenizerError, shown};
use crate::files;
use crate::special::SpecialTokens;

/// The longest such token, so that a file cannot make looking for them slow.
const LONGEST: usize = 256;

/// One such token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Added {
    pub(crate) text: String,
    pub(crate) id: u32,
    /// It is looked for after the text is normalised, not before.
    pub(crate) normalized: bool,
    /// White space before it belongs to it.
    pub(crate) strip_left: bool,
    /// White space after it belongs to it.
    pub(crate) strip_right: bool,
}

impl Added {
    /// A token that is found in the text as it is, or else as it is normalised.
    pub(crate) fn new(text: &str, id: u32, normalized: bool) -> Self {
        Added { text: text.to_owned(), id, normalized, strip_left: false, strip_right: false }
    }

    /// An entry of `added_tokens`, or of a special token that has no number of its own.
    pub(crate) fn from_json(file: &'static str, entry: &Value, id: Option<u32>) -> Result<Self, TokenizerError> {
        let missing = |what| FileFault::Missing { what }.of(file);
        let text = entry.get("content").and_then(Value::as_str).filter(|text| !text.is_empty());
        let text = text.ok_or_else(|| missing("content of an added token"))?;
        let flag = |key: &str| match entry.get(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| missing("flag of an added token")),
        };
        if flag("single_word")? {
            return Err(FileFault::Unsupported { what: "single_word", got: "true".to_owned() }.of(file));
        }
        let id = match (id, entry.get("id")) {
            (Some(id), _) => id,
            (None, Some(id)) => files::id(file, text, id)?,
            (None, None) => return Err(FileFault::NoToken { token: shown(text) }.of(file)),
        };
        if text.len() > LONGEST {
            return Err(FileFault::LongToken { id, bytes: text.len(), most: LONGEST }.of(file));
        }
        let (strip_left, strip_right) = (flag("lstrip")?, flag("rstrip")?);
        Ok(Added { text: text.to_owned(), id, normalized: flag("normalized")?, strip_left, strip_right })
    }
}

/// The added tokens of a tokenizer. The longest are found first.
#[derive(Debug)]
pub(crate) struct AddedTokens {
    before: Stage,
    after: Stage,
}

/// The tokens that are looked for before a text is normalised, or those that are looked for after.
#[derive(Debug)]
struct Stage {
    tokens: SpecialTokens,
    /// Those with white space of theirs, sorted: number, before, after.
    strips: Vec<(u32, bool, bool)>,
}

impl AddedTokens {
    /// `normalize` is what is done to texts before the second stage.
    pub(crate) fn new(
        added: &[Added],
        normalize: impl Fn(&str) -> Result<String, TokenizerError>,
    ) -> Result<Self, TokenizerError> {
        let stage = |normalized: bool| -> Result<Stage, TokenizerError> {
            let mut of = Vec::new();
            for token in added.iter().filter(|token| token.normalized == normalized) {
                let text = if normalized { normalize(&token.text)? } else { token.text.clone() };
                of.push((token, text));
            }
            let mut strips: Vec<(u32, bool, bool)> = of
                .iter()
                .filter(|(token, _)| token.strip_left || token.strip_right)
                .map(|(token, _)| (token.id, token.strip_left, token.strip_right))
                .collect();
            strips.sort_unstable();
            let tokens = SpecialTokens::new(of.iter().map(|(token, text)| (token.id, text.as_str(), false)))?;
            Ok(Stage { tokens, strips })
        };
        Ok(AddedTokens { before: stage(false)?, after: stage(true)? })
    }

    /// Appends the tokens of `text`: added ones, and what `encode` appends for the normalised texts between.
    pub(crate) fn encode(
        &self,
        text: &str,
        normalize: impl Fn(&str) -> Result<String, TokenizerError>,
        out: &mut Vec<u32>,
        mut encode: impl FnMut(&str, &mut Vec<u32>) -> Result<(), TokenizerError>,
    ) -> Result<(), TokenizerError> {
        self.before.split(text, out, |part, out| {
            let part = normalize(part)?;
            self.after.split(&part, out, &mut encode)
        })
    }
}

impl Stage {
    /// Appends the tokens found in `text`, and what `rest` appends for the texts between.
    fn split(
        &self,
        text: &str,
        out: &mut Vec<u32>,
        mut rest: impl FnMut(&str, &mut Vec<u32>) -> Result<(), TokenizerError>,
    ) -> Result<(), TokenizerError> {
        let mut gap = 0;
        for (token, range) in self.tokens.in_text(text, false) {
            let Range { start, end } = self.stripped(text, token, range);
            if let Some(before) = text.get(gap..start).filter(|before| !before.is_empty()) {
                rest(before, out)?;
            }
            out.push(token);
            gap = end;
        }
        match text.get(gap..) {
            Some(after) if !after.is_empty() => rest(after, out),
            _ => Ok(()),
        }
    }

    /// Where a token is with the white space that belongs to it.
    fn stripped(&self, text: &str, token: u32, range: Range<usize>) -> Range<usize> {
        let strip = self.strips.binary_search_by_key(&token, |strip| strip.0).ok().and_then(|i| self.strips.get(i));
        let Some(&(_, left, right)) = strip else { return range };
        let (before, after) = (text.get(..range.start).unwrap_or_default(), text.get(range.end..).unwrap_or_default());
        let start = if left { before.trim_end().len() } else { range.start };
        let end = if right { text.len() - after.trim_start().len() } else { range.end };
        start..end
    }
}
