//! XTC, "exclude top choices": with a given chance per step, every candidate whose probability
//! reaches the threshold is removed, except the least probable of those.

use crate::candidates::Candidates;

/// `chance` is this step's random number in [0, 1).
///
/// Nothing is removed if fewer than `min_keep` candidates would be left.
pub(crate) fn xtc(
    candidates: &mut Candidates,
    row: &[f32],
    probability: f32,
    threshold: f32,
    min_keep: usize,
    chance: f64,
) {
    // `chance` never reaches 1, so a probability of 1 removes at every step.
    if chance >= f64::from(probability) {
        return;
    }
    candidates.materialise(row);
    if candidates.list.len() < 2 {
        return;
    }
    candidates.sort();
    candidates.softmax();
    let top = candidates.list.iter().take_while(|c| c.p >= threshold).count();
    let removed = top.saturating_sub(1);
    if candidates.list.len() - removed >= min_keep {
        candidates.list.drain(..removed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(probability: f32, threshold: f32, min_keep: usize, chance: f64) -> Vec<u32> {
        // Probabilities 0.4, 0.3, 0.2, 0.1 under ids 1, 3, 0, 2.
        let row = [0.2f32.ln(), 0.4f32.ln(), 0.1f32.ln(), 0.3f32.ln()];
        let mut candidates = Candidates::with_room(4);
        xtc(&mut candidates, &row, probability, threshold, min_keep, chance);
        candidates.materialise(&row);
        candidates.sort();
        candidates.ids()
    }

    #[test]
    fn by_hand() {
        assert_eq!(left(1.0, 0.35, 0, 0.0), [1, 3, 0, 2]);
        assert_eq!(left(1.0, 0.25, 0, 0.0), [3, 0, 2]);
        assert_eq!(left(1.0, 0.15, 0, 0.0), [0, 2]);
        assert_eq!(left(1.0, 0.05, 0, 0.0), [2]);
        assert_eq!(left(1.0, 0.0, 0, 0.0), [2]);
    }

    #[test]
    fn chance_decides() {
        assert_eq!(left(0.3, 0.15, 0, 0.29), [0, 2]);
        assert_eq!(left(0.3, 0.15, 0, 0.31), [1, 3, 0, 2]);
        assert_eq!(left(1.0, 0.15, 0, 0.999_999), [0, 2]);
    }

    #[test]
    fn min_keep_is_all_or_nothing() {
        assert_eq!(left(1.0, 0.15, 2, 0.0), [0, 2]);
        assert_eq!(left(1.0, 0.15, 3, 0.0), [1, 3, 0, 2]);
    }

    #[test]
    fn a_single_candidate_stays() {
        let mut candidates = Candidates::from_row(&[1.0]);
        xtc(&mut candidates, &[], 1.0, 0.0, 0, 0.0);
        assert_eq!(candidates.ids(), [0]);
    }
}
