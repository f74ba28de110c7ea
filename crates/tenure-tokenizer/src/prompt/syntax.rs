//! Reads brackets, weights and breaks, in one pass without recursion.

use super::PromptPart;
use crate::error::{TokenizerError, shown};

/// The weight of round brackets, and the inverse of that of square ones.
const BRACKET: f64 = 1.1;

/// The most brackets of one kind that may be open at once: 1.1^64 is 445.
const MOST_OPEN: usize = 64;

/// The largest weight. Pictures fall apart at 2 or 3.
const LARGEST_WEIGHT: f64 = 1000.0;

/// A part whose brackets may still be open.
enum Piece {
    Text { text: String, weight: f64 },
    Break,
}

/// The parts of a prompt.
pub(super) fn parse(text: &str) -> Result<Vec<PromptPart>, TokenizerError> {
    let mut scan = Scan { text, at: 0, pieces: Vec::new() };
    // Where the brackets begin that are open, by pieces. The two kinds need not nest in each other.
    let (mut round, mut square) = (Vec::new(), Vec::new());
    while let Some((plain, special)) = scan.up_to_special() {
        scan.push_text(plain);
        let Some(special) = special else { continue };
        let at = scan.at;
        scan.at += special.len_utf8();
        match special {
            '\\' => {
                let next = scan.rest().chars().next().filter(|c| matches!(c, '(' | ')' | '[' | ']' | '\\'));
                scan.at += next.map_or(0, char::len_utf8);
                // Even nothing keeps what is before and after it apart.
                scan.push(&String::from_iter(next));
            }
            '(' => open(&mut round, at, scan.pieces.len())?,
            '[' => open(&mut square, at, scan.pieces.len())?,
            ')' => match round.pop() {
                Some(start) => scan.multiply(start, BRACKET),
                None => scan.push(")"),
            },
            ']' => match square.pop() {
                Some(start) => scan.multiply(start, 1.0 / BRACKET),
                None => scan.push("]"),
            },
            // A colon: the only one left.
            _ => match (weight(scan.rest()), round.last().copied()) {
                (Some((weight, len)), Some(start)) => {
                    round.pop();
                    scan.at += len;
                    scan.multiply(start, weight);
                }
                // So that the bracket behind a number closes nothing.
                (Some((_, len)), None) => {
                    let behind = scan.at + len;
                    scan.push(text.get(at..behind).unwrap_or_default());
                    scan.at = behind;
                }
                (None, _) => scan.push(":"),
            },
        }
    }
    round.into_iter().for_each(|start| scan.multiply(start, BRACKET));
    square.into_iter().for_each(|start| scan.multiply(start, 1.0 / BRACKET));
    joined(scan.pieces)
}

/// Notes a bracket that opens at byte `at`, before the piece `next`.
fn open(stack: &mut Vec<usize>, at: usize, next: usize) -> Result<(), TokenizerError> {
    if stack.len() == MOST_OPEN {
        return Err(TokenizerError::TooManyBrackets { at, most: MOST_OPEN });
    }
    stack.push(next);
    Ok(())
}

/// `1.3)` behind a colon, with white space around the number: the number, and the length of all.
fn weight(text: &str) -> Option<(f64, usize)> {
    let number = text.trim_start();
    let after = number.strip_prefix(['+', '-']).unwrap_or(number);
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let value = number.get(..number.len() - after.len())?.parse().ok()?;
    let rest = after.trim_start().strip_prefix(')')?;
    Some((value, text.len() - rest.len()))
}

/// Neighbours of one weight joined, and the weights checked.
fn joined(pieces: Vec<Piece>) -> Result<Vec<PromptPart>, TokenizerError> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (joined.last_mut(), piece) {
            (Some(Piece::Text { text, weight }), Piece::Text { text: more, weight: same }) if *weight == same => {
                text.push_str(&more);
            }
            (_, piece) => joined.push(piece),
        }
    }
    if joined.is_empty() {
        joined.push(Piece::Text { text: String::new(), weight: 1.0 });
    }
    let part = |piece| match piece {
        Piece::Break => Ok(PromptPart::Break),
        Piece::Text { text, weight } if weight.abs() <= LARGEST_WEIGHT => {
            Ok(PromptPart::Text { text, weight: weight as f32 })
        }
        Piece::Text { text, weight } => {
            Err(TokenizerError::WeightTooLarge { text: shown(&text), weight, most: LARGEST_WEIGHT })
        }
    };
    joined.into_iter().map(part).collect()
}

/// A place in a prompt, and the pieces before it.
struct Scan<'a> {
    text: &'a str,
    at: usize,
    pieces: Vec<Piece>,
}

impl<'a> Scan<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Goes to the next character that means something: what was before it, and itself. None at the end.
    fn up_to_special(&mut self) -> Option<(&'a str, Option<char>)> {
        let rest = self.rest();
        if rest.is_empty() {
            return None;
        }
        let len = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
        self.at += len;
        Some((rest.get(..len)?, rest.get(len..)?.chars().next()))
    }

    fn push(&mut self, text: &str) {
        self.pieces.push(Piece::Text { text: text.to_owned(), weight: 1.0 });
    }

    /// A text in which `BREAK` may stand, with white space around it that belongs to it.
    fn push_text(&mut self, text: &str) {
        const WORD: &str = "BREAK";
        let in_word = |c: char| c.is_alphanumeric() || c == '_';
        let mut gap = 0;
        for (at, word) in text.match_indices(WORD) {
            let (before, after) = (text.get(..at).unwrap_or_default(), text.get(at + word.len()..).unwrap_or_default());
            if before.ends_with(in_word) || after.starts_with(in_word) {
                continue;
            }
            let before = text.get(gap..at).unwrap_or_default();
            let before = if gap > 0 { before.trim() } else { before.trim_end() };
            if !before.is_empty() {
                self.push(before);
            }
            self.pieces.push(Piece::Break);
            gap = at + word.len();
        }
        let after = text.get(gap..).unwrap_or_default();
        let after = if gap > 0 { after.trim_start() } else { after };
        if !after.is_empty() {
            self.push(after);
        }
    }

    /// Multiplies the weights of all pieces from `start` on.
    fn multiply(&mut self, start: usize, by: f64) {
        for piece in self.pieces.iter_mut().skip(start) {
            match piece {
                Piece::Text { weight, .. } => *weight *= by,
                Piece::Break => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(prompt: &str) -> Vec<(String, f32)> {
        parse(prompt)
            .unwrap()
            .into_iter()
            .map(|part| match part {
                PromptPart::Text { text, weight } => (text, weight),
                PromptPart::Break => ("BREAK".to_owned(), f32::INFINITY),
            })
            .collect()
    }

    #[track_caller]
    fn means(prompt: &str, parts: &[(&str, f32)]) {
        let read = read(prompt);
        let near = read.len() == parts.len()
            && read
                .iter()
                .zip(parts)
                .all(|((text, weight), (want, of))| text == want && (weight == of || (weight - of).abs() < 1e-5));
        assert!(near, "{prompt:?}: {read:?}, not {parts:?}");
    }

    #[test]
    fn brackets_and_weights_multiply() {
        means("normal text", &[("normal text", 1.0)]);
        means("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        means("(unbalanced", &[("unbalanced", 1.1)]);
        means("\\(literal\\]", &[("(literal]", 1.0)]);
        means("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        means("((x)) [y] [[z]]", &[("x", 1.21), (" ", 1.0), ("y", 0.909_091), (" ", 1.0), ("z", 0.826_446)]);
        means("(a (b:2) c:1.5)", &[("a ", 1.5), ("b", 3.0), (" c", 1.5)]);
        means("(a:-0.5)(b: +.5 )(c:0)", &[("a", -0.5), ("b", 0.5), ("c", 0.0)]);
        means("(a [b) c]", &[("a ", 1.1), ("b", 1.0), (" c", 1.0 / 1.1)]);
        means("a (b [c", &[("a ", 1.0), ("b ", 1.1), ("c", 1.0)]);
    }

    #[test]
    fn what_is_malformed_is_text() {
        means("", &[("", 1.0)]);
        means("()", &[("", 1.0)]);
        means("a) b]", &[("a) b]", 1.0)]);
        means("a:1.3) b", &[("a:1.3) b", 1.0)]);
        means("(a:b)", &[("a:b", 1.1)]);
        means("(a:1e99)", &[("a:1e99", 1.1)]);
        means("(a:1.2.3)", &[("a:1.2.3", 1.1)]);
        means("(a:)", &[("a:", 1.1)]);
        means("(a:1.2 b)", &[("a:1.2 b", 1.1)]);
        means("[a:1.2]", &[("a:1.2", 1.0 / 1.1)]);
        means("a\\b \\", &[("ab ", 1.0)]);
        means("\\\\(a\\:1)", &[("\\a", 1.0)]);
        // Nothing, but of weight 1, so that what is around it is not joined.
        means("(a)\\(:b)\\z(c)", &[("a", 1.1), ("(:b)z", 1.0), ("c", 1.1)]);
        means("(a)\\ (b)", &[("a", 1.1), (" ", 1.0), ("b", 1.1)]);
    }

    #[test]
    fn breaks_are_words() {
        let cut = ("BREAK", f32::INFINITY);
        means("a BREAK b", &[("a", 1.0), cut, ("b", 1.0)]);
        means("BREAK", &[cut]);
        means("a BREAK  BREAK\n(b BREAK c:2)", &[("a", 1.0), cut, cut, ("b", 2.0), cut, ("c", 2.0)]);
        means("BREAKS aBREAK BREAK_ break", &[("BREAKS aBREAK BREAK_ break", 1.0)]);
        means("a,BREAK,b", &[("a,", 1.0), cut, (",b", 1.0)]);
    }

    #[test]
    fn what_no_picture_can_be_made_with_is_an_error() {
        assert!(parse(&"(".repeat(64)).is_ok());
        let error = parse(&"[".repeat(70)).unwrap_err();
        assert_eq!(error, TokenizerError::TooManyBrackets { at: 64, most: 64 });
        assert!(matches!(parse("(a:1001)"), Err(TokenizerError::WeightTooLarge { weight: 1001.0, .. })));
        assert!(matches!(parse("((a:100):100)"), Err(TokenizerError::WeightTooLarge { .. })));
        let infinite = format!("(a:-{})", "9".repeat(400));
        assert!(matches!(parse(&infinite), Err(TokenizerError::WeightTooLarge { weight: f64::NEG_INFINITY, .. })));
        // Nothing times infinity.
        let nan = format!("((a:{}):0)", "9".repeat(400));
        assert!(matches!(parse(&nan), Err(TokenizerError::WeightTooLarge { .. })));
    }
}
