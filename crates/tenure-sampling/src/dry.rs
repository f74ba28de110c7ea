//! DRY, "don't repeat yourself": a token that would extend a sequence already seen is penalised by
//! `multiplier * base^(length - allowed)`, where length is how many tokens at the end of the text
//! already repeat. Sequence breakers limit how far back a repeat may reach.

use crate::candidates::Candidates;
use crate::history::History;

/// The strings llama.cpp uses as sequence breakers by default.
pub const DEFAULT_DRY_BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

/// Turns one breaker string into the token sequences that spell it.
///
/// `pieces` gives every token with its bytes; `tokenize` splits bytes into tokens. A token whose
/// bytes contain the breaker is a sequence of its own; a token that ends with the beginning of the
/// breaker starts one, followed by at most 20 tokens of the rest. Runs over the vocabulary once:
/// meant for building a sampler, not for a step. An empty breaker has no sequences.
///
/// ```
/// let pieces: [(u32, &[u8]); 3] = [(0, b"a"), (1, b".\n"), (2, b"x<")];
/// let sequences = tenure_sampling::breaker_sequences(b"\n", pieces, |_| vec![]);
/// assert_eq!(sequences, [[1]]);
/// let sequences = tenure_sampling::breaker_sequences(b"<b>", pieces, |rest| {
///     rest.iter().map(|b| u32::from(*b)).collect()
/// });
/// assert_eq!(sequences, [[2, u32::from(b'b'), u32::from(b'>')]]);
/// ```
pub fn breaker_sequences<'a>(
    breaker: &[u8],
    pieces: impl IntoIterator<Item = (u32, &'a [u8])>,
    mut tokenize: impl FnMut(&[u8]) -> Vec<u32>,
) -> Vec<Vec<u32>> {
    const LONGEST_TAIL: usize = 20;
    let mut sequences = Vec::new();
    if breaker.is_empty() {
        return sequences;
    }
    for (token, piece) in pieces {
        if piece.windows(breaker.len()).any(|w| w == breaker) {
            sequences.push(vec![token]);
            continue;
        }
        let first = sequences.len();
        for overlap in 1..breaker.len() {
            let (start, rest) = breaker.split_at(overlap);
            if piece.ends_with(start) {
                let mut sequence = vec![token];
                sequence.extend(tokenize(rest).into_iter().take(LONGEST_TAIL));
                if !sequences.iter().skip(first).any(|s| *s == sequence) {
                    sequences.push(sequence);
                }
            }
        }
    }
    sequences
}

/// DRY over one sequence, with all its scratch.
#[derive(Debug, Clone)]
pub(crate) struct Dry {
    window: usize,
    multiplier: f32,
    base: f32,
    allowed: usize,
    breakers: Breakers,
    /// By distance from the newest token: how many tokens ending there equal the newest ones.
    matches: Vec<u32>,
    /// By token: one more than the longest repeat it would extend; zero between passes.
    extends: Vec<u32>,
}

impl Dry {
    pub(crate) fn new(
        vocab: usize,
        window: usize,
        multiplier: f32,
        base: f32,
        allowed: usize,
        breakers: &[Vec<u32>],
    ) -> Self {
        Dry {
            window,
            multiplier,
            base,
            allowed,
            breakers: Breakers::new(vocab, breakers),
            matches: vec![0; window],
            extends: vec![0; vocab],
        }
    }

    /// Penalises a dense row; says whether there was anything to penalise.
    pub(crate) fn apply_row(&mut self, row: &mut [f32], history: &History) -> bool {
        let n = self.find_repeats(history);
        let mut changed = false;
        for back in 0..n {
            let Some(token) = history.recent(back) else {
                continue;
            };
            let Some(slot) = self.extends.get_mut(token as usize) else {
                continue;
            };
            let repeat = std::mem::take(slot);
            if repeat > 0
                && let Some(logit) = row.get_mut(token as usize)
            {
                *logit = self.penalised(*logit, repeat);
                changed = true;
            }
        }
        changed
    }

    /// Penalises a list of candidates.
    pub(crate) fn apply_list(&mut self, candidates: &mut Candidates, history: &History) {
        let n = self.find_repeats(history);
        for c in &mut candidates.list {
            let repeat = self.extends.get(c.id as usize).copied().unwrap_or(0);
            if repeat > 0 {
                c.logit = self.penalised(c.logit, repeat);
                candidates.sorted = false;
            }
        }
        for back in 0..n {
            let slot = history.recent(back).and_then(|t| self.extends.get_mut(t as usize));
            if let Some(slot) = slot {
                *slot = 0;
            }
        }
    }

    /// Fills `extends` and returns how many of the newest tokens may have an entry there.
    fn find_repeats(&mut self, history: &History) -> usize {
        let n = self.window.min(history.len());
        if n <= self.allowed {
            return 0;
        }
        let limit = self.breakers.unbroken(history, n);
        if limit < self.allowed {
            return 0;
        }
        self.match_suffixes(history, n);
        for back in 1..n {
            let length = self.matches.get(back).map_or(0, |m| *m as usize).min(limit);
            if length < self.allowed {
                continue;
            }
            // The text `length` long that ends `back` tokens ago was followed by this token.
            let Some(token) = history.recent(back - 1) else {
                continue;
            };
            if self.breakers.is_single(token) {
                continue;
            }
            if let Some(slot) = self.extends.get_mut(token as usize) {
                *slot = (*slot).max(length as u32 + 1);
            }
        }
        n
    }

    /// The Z-algorithm on the newest `n` tokens, read backwards: `matches[back]` is the length of
    /// the longest common prefix of that reading and itself from `back` on. Linear, because the
    /// right end of the furthest match only ever grows.
    fn match_suffixes(&mut self, history: &History, n: usize) {
        let (mut left, mut right) = (0, 0); // the furthest match covers left..right
        for back in 1..n {
            let mut length = 0;
            if back < right {
                let mirrored = self.matches.get(back - left).map_or(0, |m| *m as usize);
                length = mirrored.min(right - back);
            }
            while back + length < n && history.recent(length) == history.recent(back + length) {
                length += 1;
            }
            if back + length > right {
                (left, right) = (back, back + length);
            }
            if let Some(slot) = self.matches.get_mut(back) {
                *slot = length as u32;
            }
        }
    }

    /// `repeat` as stored: one more than the length.
    fn penalised(&self, logit: f32, repeat: u32) -> f32 {
        if logit == f32::NEG_INFINITY {
            return logit;
        }
        let mut exponent = (repeat as usize - 1 - self.allowed) as f32;
        if self.base > 1.000_001 {
            // The largest power of the base that is still a float.
            exponent = exponent.min((f32::MAX.ln() / self.base.ln()).trunc());
        }
        let penalty = (self.multiplier * self.base.powf(exponent)).min(f32::MAX);
        (logit - penalty).max(f32::MIN)
    }
}

/// Breaker sequences, found by their first token.
#[derive(Debug, Clone)]
struct Breakers {
    /// Sorted, so that the sequences with one first token are neighbours.
    sequences: Vec<Vec<u32>>,
    /// Bit per token: starts a sequence.
    heads: Vec<u64>,
}

impl Breakers {
    fn new(vocab: usize, sequences: &[Vec<u32>]) -> Self {
        let mut sequences = sequences.to_vec();
        sequences.sort_unstable();
        sequences.dedup();
        let mut heads = vec![0u64; if sequences.is_empty() { 0 } else { vocab.div_ceil(64) }];
        for head in sequences.iter().filter_map(|s| s.first()) {
            if let Some(word) = heads.get_mut(*head as usize / 64) {
                *word |= 1 << (head % 64);
            }
        }
        Breakers { sequences, heads }
    }

    /// How many of the newest `n` tokens come after the last breaker.
    fn unbroken(&self, history: &History, n: usize) -> usize {
        for back in 0..n {
            let Some(head) = history.recent(back) else {
                break;
            };
            if !self.is_head(head) {
                continue;
            }
            let longest = self
                .with_head(head)
                .filter_map(|s| s.get(1..))
                .filter(|tail| {
                    // The tail runs towards the newest token and must end by it.
                    tail.len() <= back && tail.iter().enumerate().all(|(i, t)| history.recent(back - 1 - i) == Some(*t))
                })
                .map(<[u32]>::len)
                .max();
            if let Some(tail) = longest {
                return back - tail;
            }
        }
        n
    }

    /// Whether the token alone is a breaker.
    fn is_single(&self, token: u32) -> bool {
        // A sequence of one sorts before the longer ones with the same head.
        self.is_head(token) && self.with_head(token).next().is_some_and(|s| s.len() == 1)
    }

    fn is_head(&self, token: u32) -> bool {
        self.heads.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
    }

    fn with_head(&self, head: u32) -> impl Iterator<Item = &Vec<u32>> {
        let start = self.sequences.partition_point(|s| s.first().is_some_and(|h| *h < head));
        self.sequences.iter().skip(start).take_while(move |s| s.first() == Some(&head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn history(tokens: &[u32]) -> History {
        let mut h = History::new(64);
        tokens.iter().for_each(|t| h.push(*t));
        h
    }

    /// Penalties by token of a row of zeros, negated.
    fn penalties(dry: &mut Dry, tokens: &[u32]) -> Vec<f32> {
        let mut row = vec![0.0; dry.extends.len()];
        let history = history(tokens);
        dry.apply_row(&mut row, &history);
        let mut list = Candidates::from_row(&vec![0.0; row.len()]);
        dry.apply_list(&mut list, &history);
        let listed: Vec<f32> = list.list.iter().map(|c| c.logit).collect();
        assert_eq!(row, listed);
        assert!(dry.extends.iter().all(|x| *x == 0), "scratch left dirty");
        row.into_iter().map(|x| -x + 0.0).collect()
    }

    #[test]
    fn by_hand() {
        // a b c a b: the repeat "a b" is followed by c, so c gets 2 * 3^(2-1).
        let mut dry = Dry::new(5, 64, 2.0, 3.0, 1, &[]);
        assert_eq!(penalties(&mut dry, &[0, 1, 2, 0, 1]), [0.0, 0.0, 6.0, 0.0, 0.0]);
        // Allowed length 2: exponent 0. Allowed 3: nothing.
        dry.allowed = 2;
        assert_eq!(penalties(&mut dry, &[0, 1, 2, 0, 1]), [0.0, 0.0, 2.0, 0.0, 0.0]);
        dry.allowed = 3;
        assert_eq!(penalties(&mut dry, &[0, 1, 2, 0, 1]), [0.0; 5]);
        // Two continuations, the longer repeat of each counts: "c" ends "b c"->y and "c"->c.
        dry.allowed = 1;
        // a b c c b c y a b c over ids a=0 b=1 c=2 y=3: c: 3, b: 1, y: 2.
        assert_eq!(penalties(&mut dry, &[0, 1, 2, 2, 1, 2, 3, 0, 1, 2]), [0.0, 2.0, 18.0, 6.0, 0.0]);
    }

    #[test]
    fn breakers_limit_the_repeat() {
        let text = [0, 1, 2, 3, 0, 1, 2];
        // Without: a b c -> d with length 3.
        let mut dry = Dry::new(5, 64, 1.0, 2.0, 1, &[]);
        assert_eq!(penalties(&mut dry, &text), [0.0, 0.0, 0.0, 4.0, 0.0]);
        // b is a breaker: only the c after it counts.
        let mut dry = Dry::new(5, 64, 1.0, 2.0, 1, &[vec![1]]);
        assert_eq!(penalties(&mut dry, &text), [0.0, 0.0, 0.0, 1.0, 0.0]);
        // "b c" is one: nothing is left of the text, which is below the allowed length.
        let mut dry = Dry::new(5, 64, 1.0, 2.0, 1, &[vec![1, 2], vec![1, 2, 4]]);
        assert_eq!(penalties(&mut dry, &text), [0.0; 5]);
        // d itself is one: never penalised.
        let mut dry = Dry::new(5, 64, 1.0, 2.0, 1, &[vec![3, 4], vec![3]]);
        assert_eq!(penalties(&mut dry, &text), [0.0; 5]);
    }

    #[test]
    fn the_window_forgets() {
        let mut dry = Dry::new(5, 4, 1.0, 2.0, 1, &[]);
        assert_eq!(penalties(&mut dry, &[0, 1, 2, 3, 0, 1, 2]), [0.0; 5]);
    }

    #[test]
    fn a_huge_exponent_stays_finite() {
        let mut dry = Dry::new(2, 64, 1.0, 1e9, 0, &[]);
        let mut row = [0.0, f32::NEG_INFINITY];
        dry.apply_row(&mut row, &history(&[0; 60]));
        assert!(row[0].is_finite() && row[0] < -1e30);
        assert_eq!(row[1], f32::NEG_INFINITY);
    }

    #[test]
    fn a_long_run_of_one_token_is_linear() {
        // 200 000 equal tokens would take 2 * 10^10 comparisons in a quadratic search.
        let n = 200_000;
        let mut h = History::new(n);
        (0..n).for_each(|_| h.push(0));
        let mut dry = Dry::new(1, n, 1.0, 1.0, 2, &[]);
        dry.match_suffixes(&h, n);
        assert_eq!(dry.matches[1], n as u32 - 1);
        assert_eq!(dry.matches[n - 1], 1);
    }

    /// Straight from the definition, in f64.
    fn naive(tokens: &[u32], vocab: u32, window: usize, allowed: usize, breakers: &[Vec<u32>]) -> Vec<f64> {
        let text = &tokens[tokens.len().saturating_sub(window)..];
        let n = text.len();
        let mut out = vec![0.0; vocab as usize];
        if n <= allowed {
            return out;
        }
        let mut limit = n;
        for start in (0..n).rev() {
            let longest = breakers.iter().filter(|b| text[start..].starts_with(b)).map(|b| b.len()).max();
            if let Some(len) = longest {
                limit = n - start - len;
                break;
            }
        }
        for token in 0..vocab {
            if breakers.contains(&vec![token]) {
                continue;
            }
            let mut best: Option<usize> = None;
            for at in (1..n).filter(|at| text[*at] == token) {
                let common = (0..at).take_while(|i| text[at - 1 - i] == text[n - 1 - i]).count();
                best = best.max(Some(common.min(limit)));
            }
            if let Some(len) = best.filter(|len| *len >= allowed && limit >= allowed) {
                out[token as usize] = 1.5 * 1.25f64.powi((len - allowed) as i32);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn equals_the_definition(
            tokens in prop::collection::vec(0u32..4, 0..60),
            window in 0usize..64,
            allowed in 0usize..5,
            breakers in prop::collection::vec(prop::collection::vec(0u32..6, 1..4), 0..3),
        ) {
            let mut dry = Dry::new(6, window, 1.5, 1.25, allowed, &breakers);
            let got = penalties(&mut dry, &tokens);
            let want = naive(&tokens, 6, window, allowed, &breakers);
            for (got, want) in got.iter().zip(&want) {
                prop_assert!((f64::from(*got) - want).abs() <= 1e-5 * want.abs(), "{got} {want}");
            }
        }
    }

    #[test]
    fn sequences_of_a_breaker() {
        let pieces: [(u32, &[u8]); 5] = [(0, b"ab"), (1, b"xaba"), (2, b"a"), (3, b"b"), (4, b"aa")];
        let spell = |rest: &[u8]| rest.iter().map(|b| 100 + u32::from(b - b'a')).collect();
        // "aba": token 1 contains it; 0 ends with "ab"; 2 and 4 end with "a".
        let got = breaker_sequences(b"aba", pieces, spell);
        assert_eq!(got, [vec![0, 100], vec![1], vec![2, 101, 100], vec![4, 101, 100]]);
        assert!(breaker_sequences(b"", pieces, spell).is_empty());
        let long = breaker_sequences(&[b'a'; 50], [(7, &b"a"[..])], spell);
        assert_eq!(long.len(), 1);
        assert_eq!(long[0].len(), 21);
    }
}
