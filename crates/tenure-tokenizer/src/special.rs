//! Finds special tokens in a text.
//!
//! As in llama.cpp the longest are found first, wherever they are, and then shorter ones in what is left; of two of one
//! length that overlap the one further left. Each is looked for only where its first two bytes are.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::TokenizerError;
use crate::table::ByteTable;

/// The tokens that are found before a text is split into words.
#[derive(Debug)]
pub(crate) struct SpecialTokens {
    tokens: Vec<Special>,
    /// All texts, one behind the other.
    texts: Vec<u8>,
    by_text: ByteTable,
    /// By the first two bytes: where in `lengths` the lengths of such tokens are; 0: there are none.
    by_prefix: Vec<u16>,
    /// Falling.
    lengths: Vec<Vec<u32>>,
}

#[derive(Debug, Clone, Copy)]
struct Special {
    token: u32,
    start: u32,
    len: u32,
    /// Found only if the caller asks for it.
    on_request: bool,
}

impl SpecialTokens {
    /// Of these tokens, texts, and whether they are found only on request. Of two with one text the first is found.
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = (u32, &'a str, bool)>) -> Result<Self, TokenizerError> {
        let (mut list, mut texts) = (Vec::new(), Vec::new());
        for (token, text, on_request) in tokens.filter(|(_, text, _)| !text.is_empty()) {
            list.push(Special { token, start: texts.len() as u32, len: text.len() as u32, on_request });
            texts.extend_from_slice(text.as_bytes());
        }
        let mut by_text = ByteTable::new(list.len())?;
        let mut by_prefix: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
        for (i, special) in list.iter().enumerate() {
            let text = text_of(&list, &texts, i as u32);
            by_text.insert(text, i as u32, |i| text_of(&list, &texts, i));
            // A text of one byte is where any byte follows it.
            let prefixes = match *text {
                [first] => u16::from_be_bytes([first, 0])..=u16::from_be_bytes([first, 255]),
                [first, second, ..] => {
                    let prefix = u16::from_be_bytes([first, second]);
                    prefix..=prefix
                }
                [] => continue,
            };
            for prefix in prefixes {
                let lengths = by_prefix.entry(prefix).or_default();
                if let Err(at) = lengths.binary_search_by(|len| special.len.cmp(len)) {
                    lengths.insert(at, special.len);
                }
            }
        }
        let mut found =
            SpecialTokens { tokens: list, texts, by_text, by_prefix: Vec::new(), lengths: vec![Vec::new()] };
        if !by_prefix.is_empty() {
            found.by_prefix = vec![0; 1 << 16];
        }
        for (prefix, lengths) in by_prefix {
            // At most 2^16 prefixes, of which two at least begin no UTF-8: the number fits.
            if let Some(place) = found.by_prefix.get_mut(usize::from(prefix)) {
                *place = found.lengths.len() as u16;
                found.lengths.push(lengths);
            }
        }
        Ok(found)
    }

    /// The token with exactly this text.
    pub(crate) fn find(&self, text: &str) -> Option<u32> {
        let i = self.by_text.find(text.as_bytes(), |i| text_of(&self.tokens, &self.texts, i))?;
        self.tokens.get(i as usize).map(|special| special.token)
    }

    /// The special tokens in `text` and where they are, in order.
    pub(crate) fn in_text(&self, text: &str, on_request: bool) -> Vec<(u32, Range<usize>)> {
        let bytes = text.as_bytes();
        if self.by_prefix.is_empty() {
            return Vec::new();
        }
        // By length: where the longest token at each place begins. A place whose longest is taken by a longer one
        // further right comes again under its next length.
        let mut by_length: BTreeMap<u32, Vec<(usize, u32)>> = BTreeMap::new();
        for at in 0..bytes.len() {
            if let Some((len, token)) = self.longest_at(bytes, at, u32::MAX, on_request) {
                by_length.entry(len).or_default().push((at, token));
            }
        }
        if by_length.is_empty() {
            return Vec::new();
        }
        let mut taken = vec![false; bytes.len()];
        let mut found = Vec::new();
        while let Some((len, mut places)) = by_length.pop_last() {
            places.sort_unstable();
            for (at, token) in places {
                let end = at + len as usize;
                let is_taken = |i: usize| taken.get(i).copied().unwrap_or(true);
                if is_taken(at) {
                    continue;
                }
                // All that are taken are as long at least, so one that overlaps covers an end.
                if is_taken(end - 1) {
                    if let Some((len, token)) = self.longest_at(bytes, at, len, on_request) {
                        by_length.entry(len).or_default().push((at, token));
                    }
                    continue;
                }
                taken.iter_mut().take(end).skip(at).for_each(|taken| *taken = true);
                found.push((token, at..end));
            }
        }
        found.sort_unstable_by_key(|(_, range)| range.start);
        found
    }

    /// The longest token at `at` that is shorter than `below`: its length and itself.
    fn longest_at(&self, bytes: &[u8], at: usize, below: u32, on_request: bool) -> Option<(u32, u32)> {
        let first = *bytes.get(at)?;
        let second = bytes.get(at + 1).copied().unwrap_or(0);
        let lengths = *self.by_prefix.get(usize::from(u16::from_be_bytes([first, second])))?;
        if lengths == 0 {
            return None;
        }
        self.lengths.get(usize::from(lengths))?.iter().filter(|&&len| len < below).find_map(|&len| {
            let text = bytes.get(at..at.checked_add(len as usize)?)?;
            let i = self.by_text.find(text, |i| text_of(&self.tokens, &self.texts, i))?;
            let special = self.tokens.get(i as usize)?;
            (on_request || !special.on_request).then_some((len, special.token))
        })
    }
}

fn text_of<'a>(tokens: &[Special], texts: &'a [u8], i: u32) -> &'a [u8] {
    let Some(special) = tokens.get(i as usize) else { return &[] };
    texts.get(special.start as usize..(special.start + special.len) as usize).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specials(texts: &[&'static str]) -> SpecialTokens {
        SpecialTokens::new(texts.iter().enumerate().map(|(i, &text)| (i as u32, text, text.starts_with('<')))).unwrap()
    }

    #[test]
    fn longer_ones_go_first_wherever_they_are() {
        let specials = specials(&["ab", "bcd", "a", "cde"]);
        assert_eq!(specials.in_text("xabcdx", true), [(2, 1..2), (1, 2..5)]);
        assert_eq!(specials.in_text("bcde", true), [(1, 0..3)]);
        assert_eq!(specials.in_text("aab", true), [(2, 0..1), (0, 1..3)]);
    }

    #[test]
    fn runs_are_cut_into_the_longest_from_the_left() {
        let specials = specials(&["\n", "\n\n", "\n\n\n\n"]);
        assert_eq!(specials.in_text("\n\n\n\n\n\n\nx\n", true), [(2, 0..4), (1, 4..6), (0, 6..7), (0, 8..9)]);
    }

    #[test]
    fn some_are_found_only_on_request() {
        let specials = specials(&["<s>", "<s", "  "]);
        assert_eq!(specials.in_text("<s>  ", false), [(2, 3..5)]);
        assert_eq!(specials.in_text("<s>  ", true), [(0, 0..3), (2, 3..5)]);
    }

    #[test]
    fn the_first_of_two_with_one_text_is_found() {
        let specials = specials(&["<s>", "<s>", ""]);
        assert_eq!(specials.find("<s>"), Some(0));
        assert_eq!(specials.find(""), None);
        assert_eq!(specials.in_text("", true), []);
    }
}
