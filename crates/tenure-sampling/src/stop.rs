//! Ends a text at the first stop string, whatever borders its tokens have.

use crate::error::SamplingError;

/// Turns pieces of bytes into text and watches for stop strings.
///
/// Text is held back while it may be the beginning of a stop string or of a character, and no
/// longer. The stop that is complete first ends the text; of several that end with the same byte
/// the longest. So the result depends on the bytes alone, not on how they came in pieces. Neither
/// the stop string nor anything behind it is ever handed out.
///
/// Bytes that are not UTF-8 come out as U+FFFD.
///
/// ```
/// use tenure_sampling::StopMatcher;
///
/// # fn main() -> Result<(), tenure_sampling::SamplingError> {
/// let mut stop = StopMatcher::new(["</s>"])?;
/// assert_eq!(stop.push(b"one <").text, "one ");
/// assert_eq!(stop.push(b"b> two</").text, "<b> two");
/// let last = stop.push(b"s> three");
/// assert_eq!((last.text, last.stopped), ("", Some(0)));
/// assert_eq!(stop.finish(), "");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<StopString>,
    /// Bytes not handed out yet.
    held: Vec<u8>,
    /// What the last call handed out.
    text: String,
    stopped: Option<usize>,
}

/// What one piece added to the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopChunk<'a> {
    /// Text that can no longer become part of a stop string; may be empty.
    pub text: &'a str,
    /// The index of the stop string that ended the text, from this piece on.
    pub stopped: Option<usize>,
}

impl StopMatcher {
    /// Watches for these strings; none is fine. An empty string is refused.
    pub fn new<S: AsRef<str>>(stops: impl IntoIterator<Item = S>) -> Result<StopMatcher, SamplingError> {
        let mut matcher = StopMatcher { stops: Vec::new(), held: Vec::new(), text: String::new(), stopped: None };
        let mut longest = 0;
        for (index, stop) in stops.into_iter().enumerate() {
            let bytes = stop.as_ref().as_bytes();
            if bytes.is_empty() {
                return Err(SamplingError::EmptyStop { index });
            }
            longest = longest.max(bytes.len());
            matcher.stops.push(StopString::new(bytes));
        }
        // Room for what can be held plus a long token, so that a step seldom grows them.
        matcher.held.reserve(longest + 256);
        matcher.text.reserve(longest + 256);
        Ok(matcher)
    }

    /// Takes the bytes of the next token. After a stop it takes nothing more.
    pub fn push(&mut self, piece: &[u8]) -> StopChunk<'_> {
        self.text.clear();
        if self.stopped.is_none() {
            for &byte in piece {
                self.held.push(byte);
                if let Some((index, len)) = advance(&mut self.stops, byte) {
                    self.stopped = Some(index);
                    self.held.truncate(self.held.len() - len);
                    self.hand_out(self.held.len(), true);
                    self.held.clear();
                    break;
                }
            }
        }
        if self.stopped.is_none() {
            let begun = self.stops.iter().map(|s| s.matched).max().unwrap_or(0);
            self.hand_out(self.held.len() - begun, false);
        }
        StopChunk { text: &self.text, stopped: self.stopped }
    }

    /// The text has ended without a stop string: hands out what was held back. Empty after a stop.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        self.hand_out(self.held.len(), true);
        for stop in &mut self.stops {
            stop.matched = 0;
        }
        &self.text
    }

    /// The index of the stop string that ended the text.
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }

    /// Begins a new text.
    pub fn reset(&mut self) {
        self.held.clear();
        self.text.clear();
        self.stopped = None;
        for stop in &mut self.stops {
            stop.matched = 0;
        }
    }

    /// Moves the first `len` held bytes to `text`, except, unless the text ends here, the
    /// beginning of a character at their end.
    fn hand_out(&mut self, len: usize, ends: bool) {
        let mut done = 0;
        while let Some(rest) = self.held.get(done..len).filter(|rest| !rest.is_empty()) {
            let Some(chunk) = rest.utf8_chunks().next() else {
                break;
            };
            self.text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if !ends && is_char_start(invalid) && done + invalid.len() == len {
                break;
            }
            self.text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.held.drain(..done);
    }
}

/// A stop string with the automaton of Knuth, Morris and Pratt.
#[derive(Debug, Clone)]
struct StopString {
    bytes: Vec<u8>,
    /// By length of a matched beginning: the longest shorter beginning that also ends there.
    shorter: Vec<usize>,
    /// How many bytes of the string the text ends with.
    matched: usize,
}

impl StopString {
    fn new(bytes: &[u8]) -> Self {
        let mut stop = StopString { bytes: bytes.to_vec(), shorter: vec![0; bytes.len() + 1], matched: 0 };
        // Running the string without its first byte through its own automaton yields the table.
        let mut matched = 0;
        for (i, &byte) in bytes.iter().enumerate().skip(1) {
            matched = stop.after(matched, byte);
            if let Some(slot) = stop.shorter.get_mut(i + 1) {
                *slot = matched;
            }
        }
        stop
    }

    fn after(&self, mut matched: usize, byte: u8) -> usize {
        loop {
            if self.bytes.get(matched) == Some(&byte) {
                return matched + 1;
            }
            if matched == 0 {
                return 0;
            }
            matched = self.shorter.get(matched).copied().unwrap_or(0);
        }
    }
}

/// Feeds every automaton; the longest string that this byte completes, and its length.
fn advance(stops: &mut [StopString], byte: u8) -> Option<(usize, usize)> {
    let mut complete: Option<(usize, usize)> = None;
    for (index, stop) in stops.iter_mut().enumerate() {
        stop.matched = stop.after(stop.matched, byte);
        let len = stop.bytes.len();
        if stop.matched == len && complete.is_none_or(|(_, longest)| len > longest) {
            complete = Some((index, len));
        }
    }
    complete
}

/// Whether the bytes begin a character that more bytes could complete.
fn is_char_start(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, Option<usize>) {
        let mut matcher = StopMatcher::new(stops).unwrap();
        let mut out = Vec::new();
        for piece in pieces {
            out.push(matcher.push(piece).text.to_string());
        }
        out.push(matcher.finish().to_string());
        (out, matcher.stopped())
    }

    #[test]
    fn a_stop_across_pieces() {
        let (out, stopped) = run(&["STOP"], &[b"ab S", b"T", b"OP cd", b"ef"]);
        assert_eq!(out, ["ab ", "", "", "", ""]);
        assert_eq!(stopped, Some(0));
    }

    #[test]
    fn a_false_start_is_released() {
        let (out, stopped) = run(&["STOP"], &[b"ST", b"AR", b"ST", b"O"]);
        assert_eq!(out, ["", "STAR", "", "", "STO"]);
        assert_eq!(stopped, None);
    }

    #[test]
    fn overlapping_beginnings() {
        assert_eq!(run(&["aab"], &[b"a", b"a", b"a", b"b"]).0.concat(), "a");
        assert_eq!(run(&["aab"], &[b"aaab"]).0.concat(), "a");
        assert_eq!(
            run(&["abab"], &[b"aba", b"abab", b"x"]),
            (vec!["".into(), "aba".into(), "".into(), "".into()], Some(0))
        );
    }

    #[test]
    fn a_stop_longer_than_the_text() {
        let (out, stopped) = run(&["a very long stop string"], &[b"a very", b" long"]);
        assert_eq!(out, ["", "", "a very long"]);
        assert_eq!(stopped, None);
    }

    #[test]
    fn the_first_complete_stop_wins() {
        assert_eq!(run(&["end", "\n"], &[b"one\ntwo end"]), (vec!["one".into(), "".into()], Some(1)));
        // Both end with the same byte: the longer one.
        assert_eq!(run(&["b", "aab"], &[b"xaab"]), (vec!["x".into(), "".into()], Some(1)));
        // "bc" is complete before "abcd" is, in one piece as in four.
        for pieces in [&[&b"abcd"[..]][..], &[&b"a"[..], &b"b"[..], &b"c"[..], &b"d"[..]][..]] {
            let (out, stopped) = run(&["abcd", "bc"], pieces);
            assert_eq!((out.concat().as_str(), stopped), ("a", Some(1)));
        }
    }

    #[test]
    fn characters_are_never_split() {
        let text = "a€b😀".as_bytes();
        let pieces: Vec<&[u8]> = text.chunks(1).collect();
        let (out, _) = run(&[], &pieces);
        assert_eq!(out, ["a", "", "", "€", "b", "", "", "", "😀", ""]);
    }

    #[test]
    fn a_stop_inside_split_characters() {
        // "é" is C3 A9, "è" is C3 A8.
        let (out, stopped) = run(&["é"], &[b"x\xC3", b"\xA8y\xC3", b"\xA9z"]);
        assert_eq!(out, ["x", "èy", "", ""]);
        assert_eq!(stopped, Some(0));
    }

    #[test]
    fn bytes_that_are_not_text_are_replaced() {
        let (out, _) = run(&[], &[b"a\xFFb", b"\xE2\x82", b"c", b"\xF0\x9F"]);
        assert_eq!(out, ["a\u{FFFD}b", "", "\u{FFFD}c", "", "\u{FFFD}"]);
        // An unfinished character before a stop is not text either.
        let (out, stopped) = run(&["|"], &[b"a\xE2\x82", b"|"]);
        assert_eq!(out, ["a", "\u{FFFD}", ""]);
        assert_eq!(stopped, Some(0));
    }

    #[test]
    fn an_empty_stop_is_refused() {
        assert_eq!(StopMatcher::new(["a", ""]).map(|_| ()), Err(SamplingError::EmptyStop { index: 1 }));
    }

    #[test]
    fn nothing_after_a_stop_until_reset() {
        let mut matcher = StopMatcher::new(["."]).unwrap();
        assert_eq!(matcher.push(b"a.b").stopped, Some(0));
        assert_eq!(matcher.push(b"c"), StopChunk { text: "", stopped: Some(0) });
        assert_eq!(matcher.finish(), "");
        matcher.reset();
        assert_eq!(matcher.push(b"d"), StopChunk { text: "d", stopped: None });
    }

    /// Straight from the documentation: the first end of any stop, the longest stop there.
    fn naive(text: &[u8], stops: &[String]) -> (String, Option<usize>) {
        for end in 1..=text.len() {
            let hit = (0..stops.len())
                .filter(|i| text[..end].ends_with(stops[*i].as_bytes()))
                .min_by_key(|i| (usize::MAX - stops[*i].len(), *i));
            if let Some(i) = hit {
                let kept = &text[..end - stops[i].len()];
                return (String::from_utf8_lossy(kept).into_owned(), Some(i));
            }
        }
        (String::from_utf8_lossy(text).into_owned(), None)
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_text(
            text in prop::collection::vec(prop::sample::select(vec![b'a', b'b', 0xC3, 0xA9, 0xE2, 0x82, 0xAC, b'\n']), 0..40),
            stops in prop::collection::vec("[ab\né€]{1,4}", 0..4),
            cuts in prop::collection::vec(1usize..6, 40),
        ) {
            let mut matcher = StopMatcher::new(&stops).unwrap();
            let mut got = String::new();
            let mut rest = &text[..];
            for cut in cuts {
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                got.push_str(matcher.push(piece).text);
                rest = tail;
            }
            got.push_str(matcher.finish());
            let (want, index) = naive(&text, &stops);
            prop_assert_eq!(got, want);
            prop_assert_eq!(matcher.stopped(), index);
        }

        #[test]
        fn no_more_is_held_than_needed(
            text in "[abé€]{0,30}",
            stops in prop::collection::vec("[ab€]{1,4}", 0..4),
        ) {
            let mut matcher = StopMatcher::new(&stops).unwrap();
            let mut out = String::new();
            for (i, byte) in text.bytes().enumerate() {
                let chunk = matcher.push(&[byte]);
                out.push_str(chunk.text);
                if chunk.stopped.is_some() {
                    break;
                }
                let seen = &text.as_bytes()[..i + 1];
                let begun = (0..=seen.len())
                    .filter(|n| stops.iter().any(|s| s.len() > *n && s.as_bytes().starts_with(&seen[seen.len() - n..])))
                    .max()
                    .unwrap_or(0);
                let mut free = seen.len() - begun;
                while !text.is_char_boundary(free) {
                    free -= 1;
                }
                prop_assert_eq!(out.len(), free);
            }
        }
    }
}
