//! What a model was trained to undo, and what it predicts.

use crate::diffusion::{FlowSchedule, NoiseSchedule};

/// A share of signal and a share of noise: latents are `signal * image + noise * normal`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLevel {
    /// What the image is multiplied with.
    pub signal: f64,
    /// What standard normal noise is multiplied with.
    pub noise: f64,
}

impl NoiseLevel {
    /// The image itself.
    pub const CLEAN: NoiseLevel = NoiseLevel { signal: 1.0, noise: 0.0 };

    /// Variance exploding: the image is never scaled.
    pub(crate) fn exploding(sigma: f64) -> Self {
        NoiseLevel { signal: 1.0, noise: sigma }
    }

    /// Variance preserving, by the ratio of noise to signal.
    pub(crate) fn preserving(sigma: f64) -> Self {
        let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
        NoiseLevel { signal, noise: sigma * signal }
    }

    /// Variance preserving, by the signal's variance.
    pub(crate) fn of_alpha(alpha_cumprod: f64) -> Self {
        NoiseLevel { signal: alpha_cumprod.sqrt(), noise: (1.0 - alpha_cumprod).sqrt() }
    }

    /// The straight path of flow matching.
    pub(crate) fn flow(sigma: f64) -> Self {
        NoiseLevel { signal: 1.0 - sigma, noise: sigma }
    }

    /// The logarithm of signal over noise: half the log-SNR, lambda of the DPM-Solver papers.
    pub(crate) fn lambda(self) -> f64 {
        self.signal.ln() - self.noise.ln()
    }
}

/// What a model of a discrete diffusion process predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// signal * noise - noise level * image (Salimans and Ho, <https://arxiv.org/abs/2202.00512>).
    V,
    /// The image.
    Sample,
}

/// A model's training process.
#[derive(Debug, Clone, PartialEq)]
pub enum Process {
    /// Noise added in discrete steps.
    Discrete {
        /// The noise of each timestep.
        schedule: NoiseSchedule,
        /// What the model predicts.
        prediction: Prediction,
    },
    /// Flow matching; the model predicts the velocity noise - image.
    Flow(FlowSchedule),
}

impl Process {
    /// The timestep a model is told at a sigma, whole or not.
    pub fn timestep(&self, sigma: f64) -> f64 {
        match self {
            Process::Discrete { schedule, .. } => schedule.timestep(sigma),
            Process::Flow(flow) => flow.timestep(sigma),
        }
    }

    /// The coefficients (of x, of the model's output) of the estimate of the image at a level.
    pub(crate) fn denoise(&self, level: NoiseLevel) -> (f64, f64) {
        let NoiseLevel { signal, noise } = level;
        match self {
            Process::Flow(_) => (1.0, -noise),
            Process::Discrete { prediction: Prediction::Epsilon, .. } => (1.0 / signal, -noise / signal),
            Process::Discrete { prediction: Prediction::Sample, .. } => (0.0, 1.0),
            Process::Discrete { prediction: Prediction::V, .. } => {
                let variance = signal * signal + noise * noise;
                (signal / variance, -noise / variance.sqrt())
            }
        }
    }
}
