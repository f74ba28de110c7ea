//! What CLIP does to a text before it makes words of it.

use unicode_normalization::UnicodeNormalization;

use crate::classes::{self, Classes, Kinds};
use crate::error::TokenizerError;

/// Normal forms as the `tokenizers` library has them: those of Unicode 9, whatever has been added since.
#[derive(Debug)]
pub(super) struct Normalizer {
    /// The first and last characters of the ranges that Unicode 9 has.
    known: Vec<(usize, usize)>,
}

impl Normalizer {
    pub(super) fn new() -> Self {
        Normalizer { known: classes::ranges(r"\p{Age:9.0}") }
    }

    /// `text` in NFC, with one space for each run of white space, in lower case.
    pub(super) fn normalized(&self, classes: &Classes, text: &str) -> Result<String, TokenizerError> {
        let mut out = String::new();
        // Few texts grow; those that do grow by little.
        out.try_reserve(text.len())
            .map_err(|_| TokenizerError::HostOutOfMemory { what: "a text in lower case", bytes: text.len() })?;
        let mut after_space = false;
        let mut push = |c: char| {
            let space = classes.of(c).is(Kinds::SPACE);
            if !space {
                out.extend(c.to_lowercase());
            } else if !after_space {
                out.push(' ');
            }
            after_space = space;
        };
        // A character that is not known has no parts, joins with none, and none passes it.
        for part in text.split_inclusive(|c| !self.knows(c)) {
            let unknown = part.chars().next_back().filter(|&c| !self.knows(c));
            let known = part.get(..part.len() - unknown.map_or(0, char::len_utf8)).unwrap_or_default();
            known.nfc().chain(unknown).for_each(&mut push);
        }
        Ok(out)
    }

    fn knows(&self, c: char) -> bool {
        let c = c as usize;
        // All of ASCII is in the first range or so.
        c < 0x80 || {
            let after = self.known.partition_point(|&(first, _)| first <= c);
            after.checked_sub(1).and_then(|i| self.known.get(i)).is_some_and(|&(_, last)| c <= last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composed_lower_case_and_one_space() {
        let (classes, normalizer) = (Classes::new(), Normalizer::new());
        let normalized = |text: &str| normalizer.normalized(&classes, text).unwrap();
        assert_eq!(normalized("E\u{301}A \t\u{3000}Σ"), "éa σ");
        assert_eq!(normalized("\u{212b}\u{1100}\u{1161}\u{11a8}"), "å각");
        // Of two marks the one further below comes first, unless one of them is newer than Unicode 9.
        assert_eq!(normalized("x\u{301}\u{323}"), "x\u{323}\u{301}");
        assert_eq!(normalized("x\u{301}\u{1ac3}"), "x\u{301}\u{1ac3}");
    }
}
