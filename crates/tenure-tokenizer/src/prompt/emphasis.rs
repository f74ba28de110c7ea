//! What weights do to embeddings.

use crate::error::TokenizerError;

/// What becomes of a text encoder's embeddings where tokens have weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Emphasis {
    /// Each token's embedding is multiplied by its weight; then all are multiplied by what brings their mean back to
    /// what it was. So does AUTOMATIC1111's web UI ("Original").
    #[default]
    RestoreMean,
    /// Each token's embedding is multiplied by its weight ("No norm").
    Multiply,
    /// Weights do nothing ("Ignore").
    Ignore,
}

impl Emphasis {
    /// Applies the weights of one chunk to its embeddings, `[tokens, width]`. Where all weights are 1, or the mean is
    /// such that it cannot be brought back, it is left as it is.
    ///
    /// # Errors
    /// When the embeddings are not as many for each token.
    pub fn apply(self, embeddings: &mut [f32], weights: &[f32]) -> Result<(), TokenizerError> {
        let (values, tokens) = (embeddings.len(), weights.len());
        let width = values.checked_div(tokens).unwrap_or(0);
        if width * tokens != values {
            return Err(TokenizerError::ShapeMismatch { values, tokens, width });
        }
        let restore = match self {
            Emphasis::Ignore => return Ok(()),
            Emphasis::RestoreMean => true,
            Emphasis::Multiply => false,
        };
        if width == 0 || weights.iter().all(|&weight| weight == 1.0) {
            return Ok(());
        }
        // Sums of a few million numbers lose nothing in 64 bits, so that they stand for the means.
        let sum = |embeddings: &[f32]| embeddings.iter().map(|&value| f64::from(value)).sum::<f64>();
        let before = sum(embeddings);
        for (token, &weight) in embeddings.chunks_exact_mut(width).zip(weights) {
            token.iter_mut().for_each(|value| *value *= weight);
        }
        let ratio = (before / sum(embeddings)) as f32;
        if restore && ratio.is_finite() {
            embeddings.iter_mut().for_each(|value| *value *= ratio);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_multiply_and_the_mean_comes_back() {
        let original = [1.0, 2.0, 3.0, 4.0];
        let applied = |emphasis: Emphasis, weights: &[f32]| {
            let mut embeddings = original;
            emphasis.apply(&mut embeddings, weights).unwrap();
            embeddings
        };
        assert_eq!(applied(Emphasis::Multiply, &[1.0, 2.0]), [1.0, 2.0, 6.0, 8.0]);
        // The sum was 10 and becomes 17.
        let restored = applied(Emphasis::RestoreMean, &[1.0, 2.0]);
        assert!(restored.iter().zip([10.0, 20.0, 60.0, 80.0]).all(|(got, want)| (got - want / 17.0).abs() < 1e-6));
        assert_eq!(applied(Emphasis::Ignore, &[1.0, 2.0]), original);
        assert_eq!(applied(Emphasis::RestoreMean, &[1.0, 1.0]), original);
        assert_eq!(applied(Emphasis::RestoreMean, &[0.0, 0.0]), [0.0; 4]);
    }

    #[test]
    fn other_shapes_are_refused() {
        let error = Emphasis::Multiply.apply(&mut [0.0; 5], &[1.0, 2.0]).unwrap_err();
        assert_eq!(error, TokenizerError::ShapeMismatch { values: 5, tokens: 2, width: 2 });
        assert!(Emphasis::Multiply.apply(&mut [0.0; 5], &[]).is_err());
        assert!(Emphasis::Multiply.apply(&mut [], &[]).is_ok());
        assert!(Emphasis::Multiply.apply(&mut [], &[2.0]).is_ok());
    }
}
