//! Flow matching: a straight path between image and noise, x = (1 - sigma) image + sigma noise
//! (Lipman et al., <https://arxiv.org/abs/2210.02747>; Esser et al., <https://arxiv.org/abs/2403.03206>).

use crate::error::SamplingError;

/// How the even walk from noise to image is moved towards noise, for larger images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FlowShift {
    /// s' = shift s / (1 + (shift - 1) s): 1 leaves the walk even, Stable Diffusion 3 has 3.
    Static(f64),
    /// s' = e^mu / (e^mu + 1/s - 1): what [`dynamic_mu`] makes of an image's size, as Flux has it.
    Dynamic {
        /// The logarithm of the shift.
        mu: f64,
    },
}

/// A flow-matching model's path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlowSchedule {
    shift: FlowShift,
    train_timesteps: usize,
}

impl FlowSchedule {
    /// The path with a shift; the model is told sigma * `train_timesteps` (1000 for published
    /// models; 2..=100000).
    ///
    /// # Errors
    /// [`SamplingError::BadDiffusion`] for a shift outside 10^-6..=10^6, or a mu beyond 20.
    pub fn new(shift: FlowShift, train_timesteps: usize) -> Result<Self, SamplingError> {
        if !(2..=100_000).contains(&train_timesteps) {
            return Err(SamplingError::BadDiffusion { field: "train_timesteps", value: train_timesteps as f64 });
        }
        let (field, value, range) = match shift {
            FlowShift::Static(shift) => ("shift", shift, 1e-6..=1e6),
            FlowShift::Dynamic { mu } => ("mu", mu, -20.0..=20.0),
        };
        if !range.contains(&value) {
            return Err(SamplingError::BadDiffusion { field, value });
        }
        Ok(FlowSchedule { shift, train_timesteps })
    }

    /// The shift.
    pub fn shift(&self) -> FlowShift {
        self.shift
    }

    /// What sigma is multiplied with to make a timestep.
    pub fn train_timesteps(&self) -> usize {
        self.train_timesteps
    }

    /// A sigma of 0..=1 of the even walk, moved.
    pub fn shifted(&self, sigma: f64) -> f64 {
        match self.shift {
            FlowShift::Static(shift) => shift * sigma / (1.0 + (shift - 1.0) * sigma),
            FlowShift::Dynamic { .. } if sigma <= 0.0 => 0.0,
            FlowShift::Dynamic { mu } => mu.exp() / (mu.exp() + (1.0 / sigma - 1.0)),
        }
    }

    /// The timestep that a model is told at a sigma.
    pub fn timestep(&self, sigma: f64) -> f64 {
        f64::from(sigma as f32 * self.train_timesteps as f32)
    }

    /// The least sigma of training. A static shift has moved it, in 32 bits; a dynamic one has not.
    pub(crate) fn sigma_min(&self) -> f64 {
        let least = 1.0 / self.train_timesteps as f32;
        f64::from(match self.shift {
            FlowShift::Static(shift) => shift as f32 * least / (1.0 + (shift - 1.0) as f32 * least),
            FlowShift::Dynamic { .. } => least,
        })
    }
}

/// The mu of an image of `tokens` patches: linear through 0.5 at 256 tokens and 1.15 at 4096, as
/// published for Flux.1-dev.
pub fn dynamic_mu(tokens: usize) -> f64 {
    let slope = (1.15 - 0.5) / (4096.0 - 256.0);
    tokens as f64 * slope + (0.5 - slope * 256.0)
}
