//! Stages that cut the tail: top-k, top-p, min-p, typical, top-n-sigma.
//!
//! Each keeps at least one candidate. `min_keep` is the number that must be left over if there are
//! that many; top-k and top-n-sigma do not know it, as in llama.cpp.

use crate::candidates::{Candidate, Candidates};
use crate::scan;
use crate::select::{best_first, sort_prefix};

/// Keeps the `k` most probable candidates, the lower ids of equals.
pub(crate) fn top_k(candidates: &mut Candidates, row: &[f32], k: usize) {
    candidates.keep_top(row, k.max(1));
}

/// Keeps the smallest set of most probable candidates whose mass reaches `p`.
pub(crate) fn top_p(candidates: &mut Candidates, row: &[f32], p: f32, min_keep: usize) {
    candidates.materialise(row);
    candidates.softmax();
    let mut ordered = if candidates.sorted { candidates.list.len() } else { 0 };
    let mut mass = 0.0;
    let mut kept = 0;
    while kept < candidates.list.len() {
        if kept == ordered {
            // Nearly always a few hundred hold the mass; if not, sort no more than is needed.
            let next = if ordered < 2048 {
                (ordered * 8).max(256)
            } else {
                let missing = f64::from(p) - mass;
                mass_end(&mut candidates.list, ordered, missing).max(ordered + 256)
            };
            let next = next.max(min_keep).min(candidates.list.len());
            sort_prefix(&mut candidates.list, ordered, next);
            ordered = next;
        }
        mass += candidates.list.get(kept).map_or(0.0, |c| f64::from(c.p));
        kept += 1;
        if mass >= f64::from(p) && kept >= min_keep {
            break;
        }
    }
    candidates.list.truncate(kept);
    candidates.sorted = true;
}

/// Keeps candidates at least `p` times as probable as the best.
pub(crate) fn min_p(candidates: &mut Candidates, row: &[f32], p: f32, min_keep: usize) {
    let bar = peak_logit(candidates, row) + p.ln();
    if min_keep > 1 {
        let enough = if candidates.is_listed() {
            candidates.list.iter().filter(|c| c.logit >= bar).count()
        } else {
            row.iter().filter(|x| **x >= bar).count()
        };
        if enough < min_keep {
            candidates.keep_top(row, min_keep);
            return;
        }
    }
    candidates.keep_at_least(row, bar);
}

/// Keeps the candidates whose surprise is closest to the entropy until their mass exceeds `p`
/// (Meister et al., "Locally typical sampling"). Leaves them in order of that distance.
pub(crate) fn typical_p(candidates: &mut Candidates, row: &[f32], p: f32, min_keep: usize) {
    candidates.materialise(row);
    candidates.softmax();
    let max = candidates.max_logit();
    let mut entropy = 0.0;
    // -ln(p) of a candidate is `log_sum - (logit - max)`.
    let mut sum = 0.0;
    for c in &candidates.list {
        sum += f64::from((c.logit - max).exp());
        if c.p > 0.0 {
            entropy -= f64::from(c.p) * f64::from(c.p).ln();
        }
    }
    let log_sum = sum.ln();
    for c in &mut candidates.list {
        let surprise = log_sum - f64::from(c.logit - max);
        c.p = (surprise - entropy).abs() as f32;
    }
    candidates.list.sort_unstable_by(|a, b| a.p.total_cmp(&b.p).then(best_first(a, b)));
    candidates.sorted = false;
    let mut mass = 0.0;
    let mut kept = 0;
    for c in &candidates.list {
        mass += f64::from((c.logit - max).exp()) / sum;
        kept += 1;
        if mass > f64::from(p) && kept >= min_keep {
            break;
        }
    }
    candidates.list.truncate(kept);
}

/// Keeps candidates whose logit is at most `n` standard deviations below the largest
/// (Tang et al., "Top-n-sigma"). The deviation is that of the population of candidates.
pub(crate) fn top_n_sigma(candidates: &mut Candidates, row: &[f32], n: f32) {
    let (count, sum) = fold_logits(candidates, row, (0usize, 0.0), |(count, sum), x| (count + 1, sum + x));
    if count <= 1 {
        return;
    }
    let mean = sum / count as f64;
    let squares = fold_logits(candidates, row, 0.0, |acc, x| acc + (x - mean) * (x - mean));
    let sigma = (squares / count as f64).sqrt();
    let bar = f64::from(peak_logit(candidates, row)) - f64::from(n) * sigma;
    candidates.keep_at_least(row, bar as f32);
}

/// Moves better candidates before worse ones behind `from`, and returns where those that hold
/// `mass` end, at most a few hundred too far. Halves the part in question, so it is linear.
fn mass_end(list: &mut [Candidate], from: usize, mass: f64) -> usize {
    let (mut low, mut high, mut missing) = (from, list.len(), mass);
    while high - low > 256 {
        let half = (high - low) / 2;
        let Some(part) = list.get_mut(low..high) else {
            break;
        };
        part.select_nth_unstable_by(half, best_first);
        let held: f64 = part.iter().take(half).map(|c| f64::from(c.p)).sum();
        if held >= missing {
            high = low + half;
        } else {
            missing -= held;
            low += half;
        }
    }
    high
}

fn peak_logit(candidates: &Candidates, row: &[f32]) -> f32 {
    if candidates.is_listed() { candidates.max_logit() } else { scan::max(row) }
}

/// Folds the logits in play; -inf is not.
fn fold_logits<A>(candidates: &Candidates, row: &[f32], start: A, mut step: impl FnMut(A, f64) -> A) -> A {
    if candidates.is_listed() {
        candidates.list.iter().fold(start, |a, c| step(a, f64::from(c.logit)))
    } else {
        row.iter().filter(|x| **x > f32::NEG_INFINITY).fold(start, |a, x| step(a, f64::from(*x)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.5, 0.25, 0.15, 0.1 under ids 2, 0, 3, 1.
    fn row() -> [f32; 4] {
        [0.25f32.ln(), 0.1f32.ln(), 0.5f32.ln(), 0.15f32.ln()]
    }

    fn both(stage: impl Fn(&mut Candidates, &[f32])) -> Vec<u32> {
        let row = row();
        let mut dense = Candidates::with_room(4);
        dense.begin();
        stage(&mut dense, &row);
        let mut listed = Candidates::from_row(&row);
        stage(&mut listed, &row);
        let (mut a, mut b) = (dense.ids(), listed.ids());
        a.sort_unstable();
        b.sort_unstable();
        assert_eq!(a, b, "dense and listed differ");
        a
    }

    #[test]
    fn top_k_by_hand() {
        assert_eq!(both(|c, r| top_k(c, r, 1)), [2]);
        assert_eq!(both(|c, r| top_k(c, r, 2)), [0, 2]);
        assert_eq!(both(|c, r| top_k(c, r, 400)), [0, 1, 2, 3]);
        let mut c = Candidates::with_room(8);
        top_k(&mut c, &[1.0; 8], 3);
        assert_eq!(c.ids(), [0, 1, 2]);
        // A second, smaller cut of a sorted list.
        top_k(&mut c, &[], 2);
        assert_eq!(c.ids(), [0, 1]);
    }

    #[test]
    fn top_p_by_hand() {
        assert_eq!(both(|c, r| top_p(c, r, 0.0, 0)), [2]);
        assert_eq!(both(|c, r| top_p(c, r, 0.49, 0)), [2]);
        assert_eq!(both(|c, r| top_p(c, r, 0.51, 0)), [0, 2]);
        assert_eq!(both(|c, r| top_p(c, r, 0.76, 0)), [0, 2, 3]);
        assert_eq!(both(|c, r| top_p(c, r, 0.91, 0)), [0, 1, 2, 3]);
        assert_eq!(both(|c, r| top_p(c, r, 0.1, 3)), [0, 2, 3]);
        assert_eq!(both(|c, r| top_p(c, r, 0.1, 99)), [0, 1, 2, 3]);
    }

    #[test]
    fn top_p_of_a_flat_long_row_grows_its_sorted_prefix() {
        let flat = vec![0.0f32; 5000];
        let mut c = Candidates::from_row(&flat);
        top_p(&mut c, &flat, 0.5, 0);
        // 2500 entries of 1/5000; one more or less for the rounding of the sum.
        assert!((2499..=2501).contains(&c.list.len()), "{}", c.list.len());
        assert_eq!(c.ids()[..3], [0, 1, 2]);
    }

    #[test]
    fn top_p_of_long_rows_equals_sorting_everything() {
        let philox = crate::Philox::new(9, 0);
        for scale in [0.5, 3.0, 12.0] {
            let row: Vec<f32> =
                (0..20_000).map(|i| (philox.uniforms(i)[0] as f32 * 64.0).round() / 64.0 * scale).collect();
            for (p, min_keep) in [(0.0, 700), (0.3, 0), (0.9, 0), (0.999, 0), (0.5, 19_000)] {
                let mut naive = Candidates::from_row(&row);
                naive.sort();
                naive.softmax();
                let mut mass = 0.0;
                let mut kept = 0;
                while kept < row.len() && (mass < f64::from(p) || kept < min_keep) {
                    mass += f64::from(naive.list[kept].p);
                    kept += 1;
                }
                let mut c = Candidates::from_row(&row);
                top_p(&mut c, &row, p, min_keep);
                // One more or less: the softmax sums were taken in another order.
                assert!(c.list.len().abs_diff(kept) <= 1, "{scale} {p}");
                let n = kept.min(c.list.len());
                assert_eq!(c.ids()[..n], naive.ids()[..n], "{scale} {p}");
            }
        }
    }

    #[test]
    fn min_p_by_hand() {
        assert_eq!(both(|c, r| min_p(c, r, 1.0, 0)), [2]);
        assert_eq!(both(|c, r| min_p(c, r, 0.51, 0)), [2]);
        assert_eq!(both(|c, r| min_p(c, r, 0.49, 0)), [0, 2]);
        assert_eq!(both(|c, r| min_p(c, r, 0.29, 0)), [0, 2, 3]);
        assert_eq!(both(|c, r| min_p(c, r, 0.19, 0)), [0, 1, 2, 3]);
        assert_eq!(both(|c, r| min_p(c, r, 1.0, 3)), [0, 2, 3]);
        assert_eq!(both(|c, r| min_p(c, r, 0.29, 2)), [0, 2, 3]);
    }

    #[test]
    fn typical_by_hand() {
        // Entropy 1.2080; surprises 0.6931, 1.3863, 1.8971, 2.3026 of ids 2, 0, 3, 1; distances
        // 0.5149, 0.1783, 0.6891, 1.0946: the order is 0, 2, 3, 1.
        assert_eq!(both(|c, r| typical_p(c, r, 0.0, 0)), [0]);
        assert_eq!(both(|c, r| typical_p(c, r, 0.2, 0)), [0]);
        assert_eq!(both(|c, r| typical_p(c, r, 0.3, 0)), [0, 2]);
        assert_eq!(both(|c, r| typical_p(c, r, 0.8, 0)), [0, 2, 3]);
        assert_eq!(both(|c, r| typical_p(c, r, 0.2, 3)), [0, 2, 3]);
        let mut c = Candidates::from_row(&row());
        typical_p(&mut c, &[], 0.95, 0);
        assert_eq!(c.ids(), [0, 2, 3, 1]);
        assert!(!c.sorted);
    }

    #[test]
    fn top_n_sigma_by_hand() {
        // Mean 2, variance (4 + 1 + 1 + 4) / 5 + 0 = 2, sigma 1.4142.
        let row = [0.0, 1.0, 2.0, 3.0, 4.0, f32::NEG_INFINITY];
        for (n, want) in [(0.5, vec![4]), (1.0, vec![3, 4]), (1.5, vec![2, 3, 4]), (5.0, vec![0, 1, 2, 3, 4])] {
            let mut dense = Candidates::with_room(6);
            top_n_sigma(&mut dense, &row, n);
            assert_eq!(dense.ids(), want);
            let mut listed = Candidates::from_row(&row);
            top_n_sigma(&mut listed, &row, n);
            assert_eq!(listed.ids(), want);
        }
        let mut flat = Candidates::from_row(&[1.5; 7]);
        top_n_sigma(&mut flat, &[], 1.0);
        assert_eq!(flat.list.len(), 7);
    }

    #[test]
    fn one_candidate_survives_every_stage() {
        let row = [f32::NEG_INFINITY, -7.0];
        let stages: [fn(&mut Candidates, &[f32]); 5] = [
            |c, r| top_k(c, r, 1),
            |c, r| top_p(c, r, 0.0, 0),
            |c, r| min_p(c, r, 1.0, 0),
            |c, r| typical_p(c, r, 0.0, 0),
            |c, r| top_n_sigma(c, r, 1e-9),
        ];
        for stage in stages {
            let mut c = Candidates::with_room(2);
            stage(&mut c, &row);
            c.materialise(&row);
            assert_eq!(c.ids(), [1]);
        }
    }
}
