//! Log-probabilities of raw logits, before any stage.

use crate::error::SamplingError;
use crate::scan;
use crate::select::{Ranked, top};

/// A token and its natural-log probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// The token id.
    pub token: u32,
    /// ln p, at most 0.
    pub logprob: f32,
}

/// Replaces `out` by the `k` most probable tokens under softmax(logits), best first, the lower id
/// first among equals. Fewer if fewer logits are above -inf.
///
/// Refuses logits as [`crate::Sampler::sample`] does. Allocates only if `out` is short of room.
pub fn top_logprobs(logits: &[f32], k: usize, out: &mut Vec<TokenLogprob>) -> Result<(), SamplingError> {
    out.clear();
    let norm = Norm::of(logits)?;
    if k == 0 {
        return Ok(());
    }
    top(logits, k, out);
    for entry in out.iter_mut() {
        entry.logprob = norm.logprob(entry.logprob);
    }
    Ok(())
}

/// ln p of one token under softmax(logits); -inf if its logit is.
pub fn logprob(logits: &[f32], token: u32) -> Result<f32, SamplingError> {
    let Some(logit) = logits.get(token as usize) else {
        return Err(SamplingError::TokenOutOfRange { token, vocab: logits.len() });
    };
    Ok(Norm::of(logits)?.logprob(*logit))
}

/// ln(sum(exp(logits))), kept in two parts: relative to the largest logit no exponent overflows,
/// and no large logit swallows the logarithm of the sum.
struct Norm {
    max: f32,
    log_sum: f64,
}

impl Norm {
    fn of(logits: &[f32]) -> Result<Norm, SamplingError> {
        let max = scan::peak(logits)?.logit;
        let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
        Ok(Norm { max, log_sum: sum.ln() })
    }

    fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - self.log_sum).min(0.0) as f32
    }
}

/// While ranking, the field holds the logit.
impl Ranked for TokenLogprob {
    fn new(id: u32, score: f32) -> Self {
        TokenLogprob { token: id, logprob: score }
    }

    fn id(&self) -> u32 {
        self.token
    }

    fn score(&self) -> f32 {
        self.logprob
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        let row = [2f32.ln(), 5f32.ln(), 1f32.ln(), f32::NEG_INFINITY];
        let mut out = Vec::new();
        top_logprobs(&row, 10, &mut out).unwrap();
        let tokens: Vec<u32> = out.iter().map(|e| e.token).collect();
        assert_eq!(tokens, [1, 0, 2]);
        for (entry, p) in out.iter().zip([5.0f32 / 8.0, 2.0 / 8.0, 1.0 / 8.0]) {
            assert!((entry.logprob - p.ln()).abs() < 1e-6);
        }
        assert_eq!(logprob(&row, 3), Ok(f32::NEG_INFINITY));
        assert!((logprob(&row, 1).unwrap() - (5.0f32 / 8.0).ln()).abs() < 1e-6);
        assert_eq!(logprob(&row, 4), Err(SamplingError::TokenOutOfRange { token: 4, vocab: 4 }));
        top_logprobs(&row, 0, &mut out).unwrap();
        assert!(out.is_empty());
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut out = Vec::new();
        top_logprobs(&[f32::MAX, f32::MIN, f32::MAX], 3, &mut out).unwrap();
        assert_eq!(out[0].token, 0);
        assert!((out[0].logprob - 0.5f32.ln()).abs() < 1e-6);
        assert!(out[2].logprob < -1e38);
        top_logprobs(&[-1e30], 3, &mut out).unwrap();
        assert_eq!(out[0].logprob, 0.0);
        assert!(top_logprobs(&[f32::NAN, 1.0], 1, &mut out).is_err());
        assert!(top_logprobs(&[f32::NEG_INFINITY], 1, &mut out).is_err());
    }

    proptest! {
        #[test]
        fn equals_f64(row in prop::collection::vec(-30f32..30.0, 1..800), k in 1usize..50) {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            let mut want: Vec<(usize, f64)> =
                row.iter().map(|x| f64::from(*x) - sum.ln()).enumerate().collect();
            want.sort_by(|a, b| b.1.total_cmp(&a.1));
            let mut out = Vec::new();
            top_logprobs(&row, k, &mut out).unwrap();
            prop_assert_eq!(out.len(), k.min(row.len()));
            for (got, want) in out.iter().zip(&want) {
                prop_assert_eq!(got.token as usize, want.0);
                prop_assert!((f64::from(got.logprob) - want.1).abs() < 1e-5);
            }
        }
    }
}
