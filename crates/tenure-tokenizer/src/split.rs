//! How byte-level vocabularies split a text into words, within which alone they merge.
//!
//! The published splits are regular expressions with a look-ahead, `\s+(?!\S)`, that regular expression engines
//! backtrack on. Here each is a few scans from left to right over [`Kinds`]; together they look at every character a
//! bounded number of times. The passes follow llama.cpp, where it departs from the published expressions also.

use std::ops::Range;

use crate::classes::{Classes, Kinds};
use crate::pre::{Letters, Pass, Words};

/// Splits `text` by all `passes`, one after the other, and hands the words on in order.
pub(crate) fn split(classes: &Classes, passes: &[Pass], text: &str, word: &mut dyn FnMut(Range<usize>)) {
    split_within(classes, passes, text, 0..text.len(), word);
}

/// `passes` is as deep as this recursion goes: six at most.
fn split_within(
    classes: &Classes,
    passes: &[Pass],
    text: &str,
    within: Range<usize>,
    word: &mut dyn FnMut(Range<usize>),
) {
    let Some((pass, later)) = passes.split_first() else {
        if !within.is_empty() {
            word(within);
        }
        return;
    };
    let scan = Scan::new(classes, text.get(..within.end).unwrap_or_default());
    let (mut at, mut gap) = (within.start, within.start);
    while at < within.end {
        let end = scan.matched(pass, at);
        if end > at {
            split_within(classes, later, text, gap..at, word);
            split_within(classes, later, text, at..end, word);
            (at, gap) = (end, end);
        } else {
            at = scan.after(at);
        }
    }
    split_within(classes, later, text, gap..within.end, word);
}

/// A text to its end, with the classes of its characters.
struct Scan<'a> {
    classes: &'a Classes,
    text: &'a str,
}

impl<'a> Scan<'a> {
    fn new(classes: &'a Classes, text: &'a str) -> Self {
        Scan { classes, text }
    }

    /// Where the match of `pass` at `at` ends; `at` itself if there is none.
    fn matched(&self, pass: &Pass, at: usize) -> usize {
        match pass {
            Pass::Words(words) => self.words(words, at),
            Pass::Numbers { most } => self.run(at, *most, |_, kinds| kinds.is(Kinds::NUMBER)),
            Pass::ThreeDigits => {
                let end = self.run(at, 3, |c, _| c.is_ascii_digit());
                if end - at == 3 { end } else { at }
            }
            Pass::Lines => {
                let newline = self.char(at) == Some('\n');
                self.run(at, usize::MAX, |c, _| (c == '\n') == newline)
            }
            Pass::Breaks => self.run(at, 1, |c, _| matches!(c, '\r' | '\n')),
            Pass::Punctuation { symbols } => {
                self.run(at, usize::MAX, |c, kinds| kinds.is(Kinds::PUNCTUATION) || symbols.contains(c))
            }
            Pass::Ranges { space, ranges } => {
                // White space beyond ASCII is `\s` and nothing else.
                let of = |c: char, kinds: Kinds| {
                    (c.is_ascii() || !kinds.is(Kinds::SPACE))
                        && ranges.iter().any(|&(first, last)| (first..=last).contains(&c))
                };
                self.with_space(at, *space, of)
            }
            Pass::Kinds { space, kinds } => self.with_space(at, *space, |_, of| of.is(*kinds)),
            Pass::Trailing => {
                // Only the last white space can match: anything else is left to the gap, without a look at each of
                // its characters.
                let rest = self.text.get(at..).unwrap_or_default();
                if rest.chars().next_back().is_some_and(char::is_whitespace) && rest.trim_end().is_empty() {
                    self.text.len()
                } else {
                    at
                }
            }
            Pass::Except { stops } => {
                let first = if self.char(at) == Some(' ') { at + 1 } else { at };
                let end = self.run(first, usize::MAX, |c, kinds| !kinds.is(Kinds::SPACE) && !stops.contains(c));
                if end > first { end } else { at }
            }
        }
    }

    /// `\s?` if `space`, and one or more characters of the class.
    fn with_space(&self, at: usize, space: bool, of: impl Fn(char, Kinds) -> bool + Copy) -> usize {
        if space && self.kinds(at).is(Kinds::SPACE) {
            let first = self.after(at);
            let end = self.run(first, usize::MAX, of);
            if end > first {
                return end;
            }
        }
        self.run(at, usize::MAX, of)
    }

    /// The alternatives in the order of the expressions.
    fn words(&self, words: &Words, at: usize) -> usize {
        let Some(c) = self.char(at) else { return at };
        let kinds = self.classes.of(c);
        if let Some(any_case) = words.contractions {
            let end = self.contraction(at, any_case);
            if end > at {
                return end;
            }
        }
        if words.punctuated_letters && c.is_ascii_punctuation() {
            let end = self.run(at + 1, usize::MAX, |c, _| c.is_ascii_alphabetic());
            if end > at + 1 {
                return end;
            }
        }
        let end = self.letters(words, at, c, kinds);
        if end > at {
            return end;
        }
        let first = if words.space_before_numbers && c == ' ' { at + 1 } else { at };
        if words.numbers > 0 {
            let end = self.run(first, words.numbers, |_, kinds| kinds.is(Kinds::NUMBER));
            if end > first {
                return end;
            }
        }
        let first = if c == ' ' { at + 1 } else { at };
        let end = self.run(first, usize::MAX, |c, kinds| words.others.has(c, kinds));
        if end > first {
            return self.run(end, usize::MAX, |c, _| words.after_others.contains(c));
        }
        if kinds.is(Kinds::SPACE) { self.spaces(words, at) } else { at }
    }

    /// `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll`, `'d`.
    fn contraction(&self, at: usize, any_case: bool) -> usize {
        let mut after = self.text.as_bytes().get(at..).unwrap_or_default().iter().copied();
        if after.next() != Some(b'\'') {
            return at;
        }
        let mut lower = || after.next().map(|b| if any_case { b.to_ascii_lowercase() } else { b });
        match lower() {
            Some(b's' | b't' | b'm' | b'd') => at + 2,
            Some(b'r' | b'v') if lower() == Some(b'e') => at + 3,
            Some(b'l') if lower() == Some(b'l') => at + 3,
            _ => at,
        }
    }

    fn letters(&self, words: &Words, at: usize, c: char, kinds: Kinds) -> usize {
        match words.letters {
            Letters::AfterSpace => {
                let first = if c == ' ' { at + 1 } else { at };
                let end = self.run(first, usize::MAX, |_, kinds| kinds.is(Kinds::LETTER));
                if end > first { end } else { at }
            }
            Letters::AfterOne { of, not_after } => {
                // The one before may be a letter itself; then it is the run's first.
                let first = if matches!(c, '\r' | '\n') || kinds.is(not_after) { at } else { self.after(at) };
                let first = if kinds.is(of) { at } else { first };
                let end = self.run(first, usize::MAX, |_, kinds| kinds.is(of));
                if end > first { end } else { at }
            }
            Letters::Cased { contractions } => {
                let skip = !matches!(c, '\r' | '\n') && !kinds.is(Kinds::LETTER.or(Kinds::NUMBER));
                let first = if skip { self.after(at) } else { at };
                let end = self.cased(first);
                match (end > first, contractions) {
                    (false, _) => at,
                    (true, false) => end,
                    (true, true) => self.contraction(end, true),
                }
            }
        }
    }

    /// Upper-case letters and then lower-case ones, where all but ASCII letters are both: `U*L+|U+L*`.
    fn cased(&self, at: usize) -> usize {
        let letter = |kinds: Kinds| kinds.is(Kinds::LETTER);
        let upper = self.run(at, usize::MAX, |c, kinds| letter(kinds) && !c.is_ascii_lowercase());
        let lower = self.run(upper, usize::MAX, |c, kinds| letter(kinds) && !c.is_ascii_uppercase());
        if lower > upper {
            return lower;
        }
        // No lower-case letter follows: the last that is both has to be it.
        let both = self.text.get(at..upper).unwrap_or_default().char_indices().rfind(|(_, c)| !c.is_ascii());
        both.map_or(upper, |(i, c)| at + i + c.len_utf8())
    }

    /// White space: to its last line break if it has one, else all but the last character, else all.
    fn spaces(&self, words: &Words, at: usize) -> usize {
        let (mut end, mut before_last, mut after_break) = (at, at, at);
        while let Some(c) = self.char(end).filter(|&c| self.classes.of(c).is(Kinds::SPACE)) {
            before_last = end;
            end += c.len_utf8();
            if matches!(c, '\r' | '\n') {
                after_break = end;
            }
        }
        if words.breaks && after_break > at {
            after_break
        } else if end < self.text.len() && before_last > at {
            before_last
        } else {
            end
        }
    }

    /// The end of a run of at most `most` characters from `at`.
    fn run(&self, at: usize, most: usize, of: impl Fn(char, Kinds) -> bool) -> usize {
        let rest = self.text.get(at..).unwrap_or_default();
        let length: usize =
            rest.chars().take(most).take_while(|&c| of(c, self.classes.of(c))).map(char::len_utf8).sum();
        at + length
    }

    fn char(&self, at: usize) -> Option<char> {
        self.text.get(at..)?.chars().next()
    }

    fn kinds(&self, at: usize) -> Kinds {
        self.char(at).map(|c| self.classes.of(c)).unwrap_or_default()
    }

    fn after(&self, at: usize) -> usize {
        at + self.char(at).map_or(1, char::len_utf8)
    }
}
