//! The pieces of words and how probable they are.

use crate::error::{FileFault, TokenizerError, shown, try_vec};

/// The pieces, so that all that begin a text are found at once.
#[derive(Debug)]
pub(super) struct Pieces {
    /// All texts, one behind the other, sorted.
    arena: Vec<u8>,
    /// By text.
    pieces: Vec<Piece>,
    pub(super) unk: u32,
    /// The score of a character that is no piece.
    pub(super) unk_score: f64,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    start: u32,
    len: u32,
    id: u32,
    score: f64,
}

/// The longest piece, so that a file cannot make looking for pieces slow. T5's longest has 20 bytes.
const LONGEST: usize = 256;

/// How much less probable a character that is no piece is than the least probable piece.
const UNKNOWN_PENALTY: f64 = 10.0;

impl Pieces {
    /// Of these texts and scores by number, of which `unk` is the one that stands for the unknown.
    pub(super) fn new(file: &'static str, list: &[(String, f64)], unk: u32) -> Result<Self, TokenizerError> {
        if unk as usize >= list.len() {
            let (key, tokens) = ("unk_id", list.len());
            return Err(TokenizerError::BadSpecialToken { key, id: i64::from(unk), tokens });
        }
        let mut sorted = try_vec(list.len(), "the order of the pieces")?;
        for (id, (text, score)) in (0..).zip(list) {
            if !score.is_finite() {
                return Err(TokenizerError::BadScore { id });
            }
            if text.len() > LONGEST {
                return Err(FileFault::LongToken { id, bytes: text.len(), most: LONGEST }.of(file));
            }
            sorted.push((text.as_str(), id, *score));
        }
        sorted.sort_unstable_by_key(|&(text, ..)| text);
        let mut arena: Vec<u8> = try_vec(list.iter().map(|(text, _)| text.len()).sum(), "the texts of the pieces")?;
        let mut pieces: Vec<Piece> = try_vec(list.len(), "the pieces")?;
        let mut before = None;
        for (text, id, score) in sorted {
            if before == Some(text) {
                return Err(FileFault::Doubled { token: shown(text), id }.of(file));
            }
            before = Some(text);
            // The texts come from files of 16 MiB.
            pieces.push(Piece { start: arena.len() as u32, len: text.len() as u32, id, score });
            arena.extend_from_slice(text.as_bytes());
        }
        let least = list.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
        Ok(Pieces { arena, pieces, unk, unk_score: least - UNKNOWN_PENALTY })
    }

    /// The number of the piece with this text.
    pub(super) fn find(&self, text: &str) -> Option<u32> {
        let at = self.pieces.binary_search_by(|piece| self.text(piece).cmp(text.as_bytes())).ok()?;
        self.pieces.get(at).map(|piece| piece.id)
    }

    /// The pieces that `text` begins with, shortest first: length, number, score.
    pub(super) fn beginning(&self, text: &[u8], mut found: impl FnMut(usize, u32, f64)) {
        // Those that begin as `text` does up to here lie side by side.
        let mut range = self.pieces.as_slice();
        for (at, &byte) in text.iter().enumerate() {
            let byte_of = |piece: &Piece| self.text(piece).get(at).copied();
            let first = range.partition_point(|piece| byte_of(piece) < Some(byte));
            let rest = range.get(first..).unwrap_or_default();
            let end = rest.partition_point(|piece| byte_of(piece) <= Some(byte));
            range = rest.get(..end).unwrap_or_default();
            match range.first() {
                Some(piece) if piece.len as usize == at + 1 => found(at + 1, piece.id, piece.score),
                Some(_) => {}
                None => return,
            }
        }
    }

    fn text(&self, piece: &Piece) -> &[u8] {
        self.arena.get(piece.start as usize..).and_then(|rest| rest.get(..piece.len as usize)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(texts: &[&str]) -> Pieces {
        let list: Vec<(String, f64)> =
            texts.iter().zip(0..).map(|(text, i)| (text.to_string(), -f64::from(i))).collect();
        Pieces::new("test", &list, 0).unwrap()
    }

    #[test]
    fn all_beginnings_are_found() {
        let pieces = pieces(&["?", "abc", "a", "b", "ab", "abd", "", "é", "abcde"]);
        let beginnings = |text: &str| {
            let mut found = Vec::new();
            pieces.beginning(text.as_bytes(), |len, id, score| found.push((len, id, score)));
            found
        };
        assert_eq!(beginnings("abcd"), [(1, 2, -2.0), (2, 4, -4.0), (3, 1, -1.0)]);
        assert_eq!(beginnings("éa"), [(2, 7, -7.0)]);
        assert_eq!(beginnings("c"), []);
        assert_eq!(beginnings(""), []);
        assert_eq!((pieces.find("abd"), pieces.find("abcd")), (Some(5), None));
    }

    #[test]
    fn doubled_and_long_pieces_are_refused() {
        let list = |texts: &[&str]| texts.iter().map(|text| (text.to_string(), 0.0)).collect::<Vec<_>>();
        let doubled = FileFault::Doubled { token: "a".to_owned(), id: 2 }.of("f");
        let other = FileFault::Doubled { token: "a".to_owned(), id: 0 }.of("f");
        let error = Pieces::new("f", &list(&["a", "b", "a"]), 0).unwrap_err();
        assert!(error == doubled || error == other, "{error}");
        let long = FileFault::LongToken { id: 1, bytes: 257, most: 256 }.of("f");
        assert_eq!(Pieces::new("f", &list(&["a", &"b".repeat(257)]), 0).unwrap_err(), long);
        assert!(Pieces::new("f", &list(&["a"]), 1).is_err());
        assert!(Pieces::new("f", &[("a".to_owned(), f64::NAN)], 0).is_err());
    }
}
