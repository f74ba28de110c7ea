//! The most probable way to divide a word into pieces.

use super::pieces::Pieces;
use crate::error::TokenizerError;

/// The best way to each place in a word: the buffers of Viterbi's algorithm.
#[derive(Debug, Default)]
pub(super) struct Lattice {
    nodes: Vec<Option<Node>>,
    path: Vec<u32>,
}

/// How the best way to a place ends.
#[derive(Debug, Clone, Copy)]
struct Node {
    /// Of the whole way.
    score: f64,
    /// Of the last piece.
    len: u32,
    id: u32,
}

impl Lattice {
    /// Appends the most probable tokens of `text`. Neighbours that are no pieces are one unknown token.
    pub(super) fn encode(&mut self, pieces: &Pieces, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let bytes = (text.len() + 1).saturating_mul(size_of::<Option<Node>>());
        self.nodes.clear();
        self.nodes
            .try_reserve(text.len() + 1)
            .map_err(|_| TokenizerError::HostOutOfMemory { what: "the ways through a text", bytes })?;
        self.nodes.resize(text.len() + 1, None);
        for (at, c) in text.char_indices() {
            let till_here = self.nodes.get(at).copied().flatten().map_or(0.0, |node| node.score);
            let mut single = false;
            let rest = text.as_bytes().get(at..).unwrap_or_default();
            let mut enter = |len: usize, id, score: f64| {
                let score = score + till_here;
                let Some(node) = self.nodes.get_mut(at + len) else { return };
                if node.is_none_or(|best| score > best.score) {
                    *node = Some(Node { score, len: len as u32, id });
                }
            };
            pieces.beginning(rest, |len, id, score| {
                single |= len == c.len_utf8();
                enter(len, id, score);
            });
            if !single {
                enter(c.len_utf8(), pieces.unk, pieces.unk_score);
            }
        }
        self.path.clear();
        let mut at = text.len();
        while let Some(node) = self.nodes.get(at).copied().flatten() {
            if node.id != pieces.unk || self.path.last() != Some(&node.id) {
                self.path.push(node.id);
            }
            at -= (node.len as usize).min(at);
        }
        out.extend(self.path.iter().rev());
        Ok(())
    }
}
