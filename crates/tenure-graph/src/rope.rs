//! How fast each pair of a rope turns, worked out once when a plan is bound.

use crate::op::{RopeSpec, Yarn};

/// A rope's angles per position, and the factor on cosine and sine: what a backend computes a [`RopeSpec`] from.
#[derive(Debug, Clone)]
pub struct RopeAngles {
    /// Pair `i` turns by `position * per_position[i]`.
    pub per_position: Vec<f64>,
    /// Factor on cosine and sine.
    pub magnitude: f32,
}

impl RopeAngles {
    /// `factors`: the divisors named by the spec, if any.
    pub fn new(spec: &RopeSpec, factors: Option<&[f32]>) -> Self {
        let pairs = spec.dims / 2;
        let plain = |i: usize| {
            let divisor = factors.and_then(|f| f.get(i)).map_or(1.0, |&f| f64::from(f));
            f64::from(spec.base).powf(-2.0 * i as f64 / spec.dims as f64) / divisor
        };
        let scale = f64::from(spec.freq_scale);
        let Some(yarn) = spec.yarn else {
            return RopeAngles { per_position: (0..pairs).map(|i| plain(i) * scale).collect(), magnitude: 1.0 };
        };
        let (low, high) = correction_range(spec, &yarn);
        let per_position = (0..pairs)
            .map(|i| {
                let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                let extrapolated = (1.0 - ramp) * f64::from(yarn.ext_factor);
                plain(i) * (scale * (1.0 - extrapolated) + extrapolated)
            })
            .collect();
        let magnitude = f64::from(yarn.attn_factor) * (1.0 + 0.1 * (1.0 / scale).ln());
        RopeAngles { per_position, magnitude: magnitude as f32 }
    }
}

/// The pairs between which YaRN goes over from extrapolation to interpolation.
fn correction_range(spec: &RopeSpec, yarn: &Yarn) -> (f64, f64) {
    let dims = spec.dims as f64;
    let pair_of = |rotations: f32| {
        let turns = yarn.original_context as f64 / (f64::from(rotations) * std::f64::consts::TAU);
        dims * turns.ln() / (2.0 * f64::from(spec.base).ln())
    };
    (pair_of(yarn.beta_fast).floor().max(0.0), pair_of(yarn.beta_slow).ceil().min(dims - 1.0))
}
