//! Repetition, frequency and presence penalties over the last tokens.
//!
//! The logit of a seen token is divided by `repeat` if it is positive and multiplied by it
//! otherwise (so that it never rises for a factor above 1); then `count * freq + present` is
//! subtracted.

use crate::candidates::Candidates;
use crate::history::History;

/// The penalties and how often each token was seen in their window.
#[derive(Debug, Clone)]
pub(crate) struct Penalties {
    window: usize,
    repeat: f32,
    freq: f32,
    present: f32,
    /// By token. The top bit marks a token that the running pass has dealt with.
    counts: Vec<u32>,
}

const DONE: u32 = 1 << 31;

impl Penalties {
    pub(crate) fn new(vocab: usize, window: usize, repeat: f32, freq: f32, present: f32) -> Self {
        Penalties { window, repeat, freq, present, counts: vec![0; vocab] }
    }

    /// Notes a token that is about to enter `history`.
    pub(crate) fn accept(&mut self, token: u32, history: &History) {
        if self.window == 0 {
            return;
        }
        let leaving = history.recent(self.window - 1);
        if let Some(count) = leaving.and_then(|old| self.counts.get_mut(old as usize)) {
            *count = count.saturating_sub(1);
        }
        if let Some(count) = self.counts.get_mut(token as usize) {
            *count += 1;
        }
    }

    pub(crate) fn reset(&mut self) {
        self.counts.fill(0);
    }

    /// Penalises a dense row; says whether there was anything to penalise.
    pub(crate) fn apply_row(&mut self, row: &mut [f32], history: &History) -> bool {
        let seen = self.window.min(history.len());
        for i in 0..seen {
            let Some(token) = history.recent(i) else {
                continue;
            };
            let Some(count) = self.counts.get(token as usize).copied() else {
                continue;
            };
            if count & DONE == 0 {
                if let Some(logit) = row.get_mut(token as usize) {
                    *logit = self.penalised(*logit, count);
                }
                if let Some(count) = self.counts.get_mut(token as usize) {
                    *count |= DONE;
                }
            }
        }
        for i in 0..seen {
            let slot = history.recent(i).and_then(|t| self.counts.get_mut(t as usize));
            if let Some(count) = slot {
                *count &= !DONE;
            }
        }
        seen > 0
    }

    /// Penalises a list of candidates.
    pub(crate) fn apply_list(&self, candidates: &mut Candidates) {
        for c in &mut candidates.list {
            let count = self.counts.get(c.id as usize).copied().unwrap_or(0);
            if count > 0 {
                c.logit = self.penalised(c.logit, count);
                candidates.sorted = false;
            }
        }
    }

    fn penalised(&self, logit: f32, count: u32) -> f32 {
        if logit == f32::NEG_INFINITY {
            return logit;
        }
        let scaled = if logit <= 0.0 { logit * self.repeat } else { logit / self.repeat };
        // Extreme factors overflow; a finite logit must stay one, or the row loses its sanity.
        let scaled = scaled.clamp(f32::MIN, f32::MAX);
        let minus = (count as f32 * self.freq + self.present).clamp(f32::MIN, f32::MAX);
        (scaled - minus).clamp(f32::MIN, f32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(penalties: &mut Penalties, tokens: &[u32]) -> History {
        let mut history = History::new(16);
        for &t in tokens {
            penalties.accept(t, &history);
            history.push(t);
        }
        history
    }

    #[test]
    fn by_hand() {
        let mut penalties = Penalties::new(4, 8, 2.0, 0.5, 0.25);
        let history = fed(&mut penalties, &[0, 1, 1, 1]);
        let mut row = [4.0, -1.0, 3.0, 0.0];
        assert!(penalties.apply_row(&mut row, &history));
        // 4/2 - 0.5 - 0.25; -1*2 - 1.5 - 0.25.
        assert_eq!(row, [1.25, -3.75, 3.0, 0.0]);
        let mut list = Candidates::from_row(&[4.0, -1.0, 3.0, 0.0]);
        penalties.apply_list(&mut list);
        let logits: Vec<f32> = list.list.iter().map(|c| c.logit).collect();
        assert_eq!(logits, row);
    }

    #[test]
    fn tokens_leave_the_window() {
        let mut penalties = Penalties::new(4, 2, 1.0, 1.0, 0.0);
        let history = fed(&mut penalties, &[3, 0, 1, 0]);
        let mut row = [0.0; 4];
        penalties.apply_row(&mut row, &history);
        assert_eq!(row, [-1.0, -1.0, 0.0, 0.0]);
        // The same again: a pass leaves no mark behind.
        let mut row = [0.0; 4];
        penalties.apply_row(&mut row, &history);
        assert_eq!(row, [-1.0, -1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_zero_logit_is_not_penalised_by_the_factor() {
        let mut penalties = Penalties::new(1, 8, 1.5, 0.0, 0.0);
        let history = fed(&mut penalties, &[0]);
        let mut row = [0.0];
        penalties.apply_row(&mut row, &history);
        assert_eq!(row, [0.0]);
    }

    #[test]
    fn finite_logits_stay_finite_and_bans_stay_bans() {
        let mut penalties = Penalties::new(3, 8, f32::MIN_POSITIVE, f32::MIN, f32::MIN);
        let history = fed(&mut penalties, &[0, 0, 1, 2]);
        let mut row = [f32::MAX, f32::MIN, f32::NEG_INFINITY];
        penalties.apply_row(&mut row, &history);
        assert!(row[0].is_finite() && row[1].is_finite());
        assert_eq!(row[2], f32::NEG_INFINITY);
    }

    #[test]
    fn reset_forgets() {
        let mut penalties = Penalties::new(2, 8, 1.0, 1.0, 1.0);
        let mut history = fed(&mut penalties, &[0]);
        penalties.reset();
        history.clear();
        let mut row = [1.0, 1.0];
        assert!(!penalties.apply_row(&mut row, &history));
        assert_eq!(row, [1.0, 1.0]);
    }
}
