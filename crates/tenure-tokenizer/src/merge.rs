//! The merge loop of both kinds of vocabulary: the best pair of neighbours becomes one token, until no pair does.
//!
//! Neighbours are a linked list in one vector, pairs wait in a heap: O(n log n) for a text of n symbols.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::error::TokenizerError;
use crate::table::PairTable;
use crate::vocab::{SPACE, Vocab};

/// What decides which pairs merge.
pub(crate) trait Merges {
    /// The token that two neighbours make, and its urgency: the lowest goes first. `bytes` are what both span.
    fn merged(&self, left: Option<u32>, right: Option<u32>, bytes: &[u8]) -> Option<(u32, u32)>;

    /// The token of a symbol before any merge.
    fn first(&self, bytes: &[u8]) -> Option<u32>;

    /// The tokens of a symbol that is none.
    fn rest(&self, bytes: &[u8], out: &mut Vec<u32>);
}

/// Merges by rank, from single bytes.
pub(crate) struct ByRank<'a> {
    pub(crate) vocab: &'a Vocab,
    pub(crate) pairs: &'a PairTable,
}

impl Merges for ByRank<'_> {
    fn merged(&self, left: Option<u32>, right: Option<u32>, _: &[u8]) -> Option<(u32, u32)> {
        self.pairs.find(left?, right?).map(|merge| (merge.rank, merge.token))
    }

    fn first(&self, bytes: &[u8]) -> Option<u32> {
        bytes.first().and_then(|&byte| self.vocab.byte(byte))
    }

    /// A byte without a token is lost: so it was in training, and so it is in llama.cpp.
    fn rest(&self, _: &[u8], _: &mut Vec<u32>) {}
}

/// Merges by score, from single characters.
pub(crate) struct ByScore<'a> {
    pub(crate) vocab: &'a Vocab,
    pub(crate) scores: &'a [f32],
    pub(crate) unk: Option<u32>,
}

impl Merges for ByScore<'_> {
    fn merged(&self, _: Option<u32>, _: Option<u32>, bytes: &[u8]) -> Option<(u32, u32)> {
        let token = self.vocab.find(bytes)?;
        Some((urgency(self.scores.get(token as usize).copied().unwrap_or(0.0)), token))
    }

    fn first(&self, bytes: &[u8]) -> Option<u32> {
        self.vocab.find(bytes)
    }

    fn rest(&self, bytes: &[u8], out: &mut Vec<u32>) {
        let bytes = if bytes == b" " { SPACE.as_bytes() } else { bytes };
        let before = out.len();
        out.extend(bytes.iter().filter_map(|&byte| self.vocab.byte(byte)));
        if out.len() == before {
            out.extend(self.unk);
        }
    }
}

/// A number that is the lower the higher the score.
fn urgency(score: f32) -> u32 {
    // A negative zero is no lower than zero.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { !(bits | 1 << 31) } else { bits }
}

/// The buffers of the merge loop.
#[derive(Debug, Default)]
pub(crate) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<u64>>,
}

/// A part of the text that is one token, or no token.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: u32,
    /// 0: merged into the one before.
    len: u32,
    before: u32,
    after: u32,
    token: Option<u32>,
    /// How urgent it is to merge it with the one after, and what that makes. Symbols only grow, so an entry of the
    /// queue is out of date exactly when it is not as urgent as this.
    urgency: u32,
    makes: Option<u32>,
}

const NONE: u32 = u32::MAX;

impl Merger {
    /// Appends the tokens of `text`, whose symbols have these lengths.
    pub(crate) fn encode(
        &mut self,
        merges: &impl Merges,
        text: &[u8],
        lengths: impl Iterator<Item = usize>,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        self.start(merges, text, lengths)?;
        for i in 1..self.symbols.len() {
            self.pair(merges, text, i as u32 - 1);
        }
        while let Some(Reverse(entry)) = self.queue.pop() {
            let (urgency, at) = ((entry >> 32) as u32, entry as u32);
            let Some(left) = self.symbols.get(at as usize).copied() else { continue };
            let (Some(token), true) = (left.makes, left.len > 0 && left.urgency == urgency) else { continue };
            let Some(right) = self.symbols.get(left.after as usize).copied() else { continue };
            if let Some(right) = self.symbols.get_mut(left.after as usize) {
                right.len = 0;
            }
            if let Some(left) = self.symbols.get_mut(at as usize) {
                *left = Symbol { len: left.len + right.len, after: right.after, token: Some(token), ..*left };
            }
            if let Some(after) = self.symbols.get_mut(right.after as usize) {
                after.before = at;
            }
            self.pair(merges, text, at);
            self.pair(merges, text, left.before);
        }
        for symbol in self.symbols.iter().filter(|symbol| symbol.len > 0) {
            match symbol.token {
                Some(token) => out.push(token),
                None => merges.rest(symbol.bytes(text), out),
            }
        }
        Ok(())
    }

    fn start(
        &mut self,
        merges: &impl Merges,
        text: &[u8],
        lengths: impl Iterator<Item = usize>,
    ) -> Result<(), TokenizerError> {
        self.queue.clear();
        self.symbols.clear();
        let memory = |what, len: usize, each| TokenizerError::HostOutOfMemory { what, bytes: len.saturating_mul(each) };
        let count = text.len();
        self.symbols.try_reserve(count).map_err(|_| memory("the symbols of a text", count, size_of::<Symbol>()))?;
        // Each merge takes a symbol away and adds two pairs.
        self.queue.try_reserve(count).map_err(|_| memory("the pairs of a text", count, 8))?;
        let mut start = 0;
        for len in lengths {
            let i = self.symbols.len() as u32;
            let symbol = Symbol {
                start,
                len: len as u32,
                before: i.checked_sub(1).unwrap_or(NONE),
                after: i + 1,
                token: None,
                urgency: NONE,
                makes: None,
            };
            self.symbols.push(Symbol { token: merges.first(symbol.bytes(text)), ..symbol });
            start += len as u32;
        }
        if let Some(last) = self.symbols.last_mut() {
            last.after = NONE;
        }
        Ok(())
    }

    /// Enters what the symbol at `at` and the one after it make, if anything.
    fn pair(&mut self, merges: &impl Merges, text: &[u8], at: u32) {
        let Some(left) = self.symbols.get(at as usize).copied() else { return };
        let right = self.symbols.get(left.after as usize).copied();
        let both = right.map(|right| (right, Symbol { len: left.len + right.len, ..left }));
        let merged = both.and_then(|(right, both)| merges.merged(left.token, right.token, both.bytes(text)));
        if let Some(left) = self.symbols.get_mut(at as usize) {
            left.makes = merged.map(|(_, token)| token);
            left.urgency = merged.map_or(NONE, |(urgency, _)| urgency);
        }
        if let Some((urgency, _)) = merged {
            self.queue.push(Reverse(u64::from(urgency) << 32 | u64::from(at)));
        }
    }
}

impl Symbol {
    fn bytes<'t>(&self, text: &'t [u8]) -> &'t [u8] {
        text.get(self.start as usize..).and_then(|rest| rest.get(..self.len as usize)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_scores_are_more_urgent() {
        let scores = [f32::INFINITY, 1e30, 1.0, 1e-40, 0.0, -1e-40, -1.0, -1e30, f32::NEG_INFINITY];
        assert!(scores.windows(2).all(|pair| urgency(pair[0]) < urgency(pair[1])));
        assert_eq!(urgency(0.0), urgency(-0.0));
    }
}
