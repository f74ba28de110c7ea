//! Temperature, fixed or dynamic.

use crate::candidates::Candidates;

/// Divides the logits by `t`; 0 keeps only the best candidate, the lowest id of equals.
pub(crate) fn temperature(candidates: &mut Candidates, row: &[f32], t: f32) {
    if t <= 0.0 {
        candidates.keep_top(row, 1);
        return;
    }
    candidates.materialise(row);
    let max = candidates.max_logit();
    // A tiny temperature overflows the quotient; relative to the best logit it cannot, and only
    // differences matter to the draw.
    let origin = if (max / t).is_finite() { 0.0 } else { max };
    for c in &mut candidates.list {
        c.logit = (c.logit - origin) / t;
    }
}

/// Dynamic temperature (<https://arxiv.org/abs/2309.02772>): from `t - range` (at least 0) for a
/// certain distribution to `t + range` for a uniform one, by the `exponent`-th power of the
/// entropy relative to that of the uniform distribution over the candidates.
///
/// One candidate alone is left as it is.
pub(crate) fn dynamic_temperature(candidates: &mut Candidates, row: &[f32], t: f32, range: f32, exponent: f32) {
    candidates.materialise(row);
    let n = candidates.list.len();
    if n <= 1 {
        return;
    }
    candidates.softmax();
    let entropy: f64 = candidates.list.iter().map(|c| f64::from(c.p)).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    let relative = (entropy / (n as f64).ln()).clamp(0.0, 1.0);
    let (t, range) = (f64::from(t), f64::from(range));
    let low = (t - range).max(0.0);
    let chosen = low + (t + range - low) * relative.powf(f64::from(exponent));
    temperature(candidates, row, chosen.min(f64::from(f32::MAX)) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(c: &Candidates) -> Vec<f32> {
        c.list.iter().map(|c| c.logit).collect()
    }

    #[test]
    fn divides() {
        let mut c = Candidates::from_row(&[1.0, -2.0, 4.0]);
        temperature(&mut c, &[], 0.5);
        assert_eq!(logits(&c), [2.0, -4.0, 8.0]);
    }

    #[test]
    fn zero_keeps_the_first_best() {
        let mut c = Candidates::from_row(&[1.0, 4.0, 4.0]);
        temperature(&mut c, &[], 0.0);
        assert_eq!(c.ids(), [1]);
    }

    #[test]
    fn a_tiny_temperature_does_not_overflow() {
        for row in [[5.0, 6.0, 6.0], [-900.0, -800.0, -800.0]] {
            let mut c = Candidates::from_row(&row);
            temperature(&mut c, &[], 1e-38);
            c.softmax();
            let p: Vec<f32> = c.list.iter().map(|c| c.p).collect();
            assert_eq!(p, [0.0, 0.5, 0.5]);
        }
    }

    #[test]
    fn dynamic_ends_of_the_range() {
        // Uniform: relative entropy 1, temperature 0.8 + 0.5.
        let mut c = Candidates::from_row(&[2.6, 2.6]);
        dynamic_temperature(&mut c, &[], 0.8, 0.5, 1.0);
        assert!((logits(&c)[0] - 2.0).abs() < 1e-5);
        // Certain: relative entropy 0, temperature 0.8 - 0.5.
        let mut c = Candidates::from_row(&[0.6, -1000.0]);
        dynamic_temperature(&mut c, &[], 0.8, 0.5, 1.0);
        assert!((logits(&c)[0] - 2.0).abs() < 1e-5);
        // A range beyond the temperature ends at 0, which is greedy.
        let mut c = Candidates::from_row(&[-1000.0, 0.6]);
        dynamic_temperature(&mut c, &[], 0.8, 2.0, 1.0);
        assert_eq!(c.ids(), [1]);
    }

    #[test]
    fn dynamic_by_hand() {
        // p = 0.75, 0.25: entropy 0.562335, relative 0.811278, squared 0.658172;
        // temperature 0.5 + 1.0 * 0.658172.
        let mut c = Candidates::from_row(&[3f32.ln(), 0.0]);
        dynamic_temperature(&mut c, &[], 1.0, 0.5, 2.0);
        assert!((logits(&c)[0] - 3f32.ln() / 1.158_172).abs() < 1e-5);
    }

    #[test]
    fn dynamic_leaves_one_candidate_alone() {
        let mut c = Candidates::from_row(&[3.0]);
        dynamic_temperature(&mut c, &[], 0.8, 0.5, 1.0);
        assert_eq!(logits(&c), [3.0]);
    }
}
