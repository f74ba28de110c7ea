//! Mirostat 2.0 (Basu et al., <https://arxiv.org/abs/2007.14966>): keeps the surprise of the
//! chosen tokens near a target by moving a ceiling on the surprise of the candidates.

use crate::candidates::Candidates;

/// The state of mirostat 2.0 over one sequence.
#[derive(Debug, Clone)]
pub(crate) struct MirostatState {
    tau: f32,
    eta: f32,
    /// The ceiling, in bits.
    mu: f32,
}

impl MirostatState {
    pub(crate) fn new(tau: f32, eta: f32) -> Self {
        let mut state = MirostatState { tau, eta, mu: 0.0 };
        state.reset();
        state
    }

    pub(crate) fn reset(&mut self) {
        self.mu = 2.0 * self.tau;
    }

    /// Draws at `u` from the candidates whose surprise is at most the ceiling, or from the best
    /// one if there is none, then moves the ceiling by the error of the surprise observed among
    /// those.
    pub(crate) fn draw(&mut self, candidates: &mut Candidates, u: f64) -> Option<(u32, f32)> {
        candidates.softmax();
        // A surprise of at most mu bits is a probability of at least 2^-mu.
        let least = (-self.mu).exp2();
        if candidates.list.iter().any(|c| c.p >= least) {
            candidates.list.retain(|c| c.p >= least);
        } else {
            candidates.keep_top(&[], 1);
        }
        candidates.sort();
        let (token, p) = candidates.draw(u)?;
        let observed = -p.log2();
        self.mu -= self.eta * (observed - self.tau);
        Some((token, p))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Surprises 1, 2, 3, 3 bits.
    fn row() -> [f32; 4] {
        [0.25f32.ln(), 0.5f32.ln(), 0.125f32.ln(), 0.125f32.ln()]
    }

    #[test]
    fn the_ceiling_cuts_and_moves_by_hand() {
        let mut state = MirostatState::new(1.25, 0.5);
        assert_eq!(state.mu, 2.5);
        let mut c = Candidates::from_row(&row());
        // Left: ids 1 and 0 with 2/3 and 1/3. At 0.9 the draw is id 0: log2(3) = 1.585 bits.
        let (token, p) = state.draw(&mut c, 0.9).unwrap();
        assert_eq!(c.ids(), [1, 0]);
        assert_eq!(token, 0);
        assert!((p - 1.0 / 3.0).abs() < 1e-6);
        assert!((state.mu - (2.5 - 0.5 * (3f32.log2() - 1.25))).abs() < 1e-5);
        state.reset();
        assert_eq!(state.mu, 2.5);
    }

    #[test]
    fn a_ceiling_below_every_surprise_leaves_the_best() {
        let mut state = MirostatState::new(0.25, 0.1);
        let mut c = Candidates::from_row(&row());
        assert_eq!(state.draw(&mut c, 0.99), Some((1, 1.0)));
        assert!((state.mu - (0.5 + 0.1 * 0.25)).abs() < 1e-6);
    }

    #[test]
    fn the_mean_surprise_settles_at_tau() {
        // 1024 tokens with p proportional to 1 / (1 + i).
        let row: Vec<f32> = (0..1024).map(|i| -((1 + i) as f32).ln()).collect();
        let mut state = MirostatState::new(3.0, 0.1);
        let philox = crate::Philox::new(1, 0);
        let mut sum = 0.0;
        let n = 4000;
        for step in 0..n {
            let mut c = Candidates::from_row(&row);
            let (_, p) = state.draw(&mut c, philox.uniforms(step)[0]).unwrap();
            if step >= n / 2 {
                sum -= p.log2();
            }
        }
        let mean = sum / (n / 2) as f32;
        assert!((mean - 3.0).abs() < 0.1, "{mean}");
    }
}
