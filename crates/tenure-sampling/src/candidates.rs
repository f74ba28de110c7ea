//! The tokens still in play during one step.
//!
//! A step begins on the dense row of logits. The first stage that removes tokens builds the list
//! from that row, so a chain that starts with top-k never holds the whole vocabulary. A token with
//! logit -inf is no candidate.

use crate::select::{Ranked, best_first, each_at_least, keep_top, top};

/// One token in play.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    pub(crate) logit: f32,
    /// Valid after [`Candidates::softmax`]; stages use it as their own scratch.
    pub(crate) p: f32,
}

impl Ranked for Candidate {
    fn new(id: u32, score: f32) -> Self {
        Candidate { id, logit: score, p: 0.0 }
    }

    fn id(&self) -> u32 {
        self.id
    }

    fn score(&self) -> f32 {
        self.logit
    }
}

/// The list, or the dense row while no list exists yet.
#[derive(Debug, Clone)]
pub(crate) struct Candidates {
    pub(crate) list: Vec<Candidate>,
    /// Best first over the whole list.
    pub(crate) sorted: bool,
    /// The list, not the row, says what is in play.
    listed: bool,
}

impl Candidates {
    pub(crate) fn with_room(room: usize) -> Self {
        Candidates { list: Vec::with_capacity(room), sorted: false, listed: false }
    }

    /// A new step: the row is in play.
    pub(crate) fn begin(&mut self) {
        self.list.clear();
        self.sorted = false;
        self.listed = false;
    }

    /// A new step: of the first `k` of these, best first, those above -inf are in play.
    pub(crate) fn begin_with(&mut self, top: &[(u32, f32)], k: usize) {
        let in_play = top.iter().take_while(|(_, logit)| *logit > f32::NEG_INFINITY);
        self.list.clear();
        self.list.extend(in_play.take(k).map(|&(id, logit)| Candidate::new(id, logit)));
        self.sorted = true;
        self.listed = true;
    }

    pub(crate) fn is_listed(&self) -> bool {
        self.listed
    }

    /// Builds the list, if there is none yet, from all of the row.
    pub(crate) fn materialise(&mut self, row: &[f32]) {
        self.keep_at_least_from_row(row, f32::NEG_INFINITY);
    }

    /// The `k` best, sorted.
    pub(crate) fn keep_top(&mut self, row: &[f32], k: usize) {
        if !self.listed {
            top(row, k, &mut self.list);
            self.listed = true;
        } else {
            if self.sorted {
                self.list.truncate(k);
                return;
            }
            keep_top(&mut self.list, k);
            self.list.sort_unstable_by(best_first);
        }
        self.sorted = true;
    }

    /// Those with at least this logit, in the order they had.
    pub(crate) fn keep_at_least(&mut self, row: &[f32], bar: f32) {
        if self.listed {
            self.list.retain(|c| c.logit >= bar);
        } else {
            self.keep_at_least_from_row(row, bar);
        }
    }

    pub(crate) fn sort(&mut self) {
        if !self.sorted {
            self.list.sort_unstable_by(best_first);
            self.sorted = true;
        }
    }

    /// The best candidate's logit in the list; -inf when it is empty.
    pub(crate) fn max_logit(&self) -> f32 {
        if self.sorted {
            return self.list.first().map_or(f32::NEG_INFINITY, |c| c.logit);
        }
        self.list.iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.logit))
    }

    /// Sets every `p` of the list.
    pub(crate) fn softmax(&mut self) {
        let sum = self.exponentials();
        for c in &mut self.list {
            c.p = (f64::from(c.p) / sum) as f32;
        }
    }

    /// Draws one candidate of the list at `u` in [0, 1): its id and its probability.
    pub(crate) fn draw(&mut self, u: f64) -> Option<(u32, f32)> {
        let sum = self.exponentials();
        let target = u * sum;
        let mut passed = 0.0;
        let mut chosen = None;
        for c in &self.list {
            if c.p > 0.0 {
                // Also the answer if rounding lets the running sum end below the target.
                chosen = Some((c.id, (f64::from(c.p) / sum) as f32));
                passed += f64::from(c.p);
                if passed > target {
                    break;
                }
            }
        }
        chosen
    }

    /// Sets every `p` to exp(logit - max) and returns their sum.
    fn exponentials(&mut self) -> f64 {
        let max = self.max_logit();
        let mut sum = 0.0;
        for c in &mut self.list {
            c.p = (c.logit - max).exp();
            sum += f64::from(c.p);
        }
        sum
    }

    fn keep_at_least_from_row(&mut self, row: &[f32], bar: f32) {
        if self.listed {
            return;
        }
        self.list.clear();
        each_at_least(row, bar, |id, logit| {
            self.list.push(Candidate::new(id, logit));
        });
        self.listed = true;
        self.sorted = false;
    }
}

#[cfg(test)]
impl Candidates {
    pub(crate) fn from_row(row: &[f32]) -> Self {
        let mut candidates = Candidates::with_room(row.len());
        candidates.materialise(row);
        candidates
    }

    pub(crate) fn ids(&self) -> Vec<u32> {
        self.list.iter().map(|c| c.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_by_hand() {
        let mut c = Candidates::from_row(&[4f32.ln(), 0.0, f32::NEG_INFINITY, 3f32.ln()]);
        c.softmax();
        assert_eq!(c.ids(), [0, 1, 3]);
        let p: Vec<f32> = c.list.iter().map(|c| c.p).collect();
        for (got, want) in p.iter().zip([0.5, 0.125, 0.375]) {
            assert!((got - want).abs() < 1e-6);
        }
    }

    #[test]
    fn draw_follows_the_cumulative_sum() {
        let row = [1f32.ln(), 2f32.ln(), 1f32.ln()];
        let mut c = Candidates::from_row(&row);
        for (u, want) in [(0.0, 0), (0.249, 0), (0.251, 1), (0.749, 1), (0.751, 2), (1.0, 2)] {
            assert_eq!(c.draw(u).map(|d| d.0), Some(want), "{u}");
        }
        c.list.clear();
        assert_eq!(c.draw(0.5), None);
    }

    #[test]
    fn a_candidate_of_no_probability_is_never_drawn() {
        let mut c = Candidates::from_row(&[-1e30, 0.0, -1e30]);
        assert_eq!(c.draw(0.0), Some((1, 1.0)));
        assert_eq!(c.draw(1.0), Some((1, 1.0)));
    }
}
