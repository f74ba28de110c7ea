//! Noise schedules of discrete diffusion models: betas, their cumulative product, and the sigmas
//! of the variance-exploding view (Ho et al., <https://arxiv.org/abs/2006.11239>; Karras et al.,
//! <https://arxiv.org/abs/2206.00364>).

use crate::error::SamplingError;

/// How the variance added by each training step grows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BetaSchedule {
    /// The square of an even walk from sqrt(start) to sqrt(end): latent diffusion models.
    ScaledLinear {
        /// The first beta.
        start: f64,
        /// The last beta.
        end: f64,
    },
    /// An even walk.
    Linear {
        /// The first beta.
        start: f64,
        /// The last beta.
        end: f64,
    },
    /// Squared cosine, betas capped at 0.999 (Nichol and Dhariwal, <https://arxiv.org/abs/2102.09672>).
    SquaredCosine,
}

impl BetaSchedule {
    /// What every Stable Diffusion 1.x, 2.x and XL was trained with.
    pub const STABLE_DIFFUSION: BetaSchedule = BetaSchedule::ScaledLinear { start: 0.00085, end: 0.012 };
}

/// The noise levels of a model's training timesteps, in 32-bit floats as they were in training.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f32>,
    sigmas: Vec<f32>,
    log_sigmas: Vec<f32>,
}

impl NoiseSchedule {
    /// The schedule of `train_timesteps` steps (1000 for published models; 2..=100000).
    ///
    /// `zero_terminal_snr` moves the last timestep to pure noise (Lin et al.,
    /// <https://arxiv.org/abs/2305.08891>, algorithm 1); its sigma is then 4096 instead of infinite.
    ///
    /// # Errors
    /// [`SamplingError::BadDiffusion`] for a length or betas outside 0..1, or falling betas.
    pub fn new(betas: BetaSchedule, train_timesteps: usize, zero_terminal_snr: bool) -> Result<Self, SamplingError> {
        if !(2..=100_000).contains(&train_timesteps) {
            return Err(SamplingError::BadDiffusion { field: "train_timesteps", value: train_timesteps as f64 });
        }
        if let BetaSchedule::ScaledLinear { start, end } | BetaSchedule::Linear { start, end } = betas {
            if !(start > 0.0 && start < 1.0) {
                return Err(SamplingError::BadDiffusion { field: "beta_start", value: start });
            }
            if !(end >= start && end < 1.0) {
                return Err(SamplingError::BadDiffusion { field: "beta_end", value: end });
            }
        }
        let mut betas = list_betas(betas, train_timesteps);
        if zero_terminal_snr {
            rescale_to_zero_snr(&mut betas);
        }
        let alphas_cumprod = cumulative_alphas(&betas);
        let last = train_timesteps - 1;
        let sigmas: Vec<f32> = alphas_cumprod
            .iter()
            .enumerate()
            .map(|(t, &alpha)| if zero_terminal_snr && t == last { 2f32.powi(-24) } else { alpha })
            .map(|alpha| ((1.0 - alpha) / alpha).sqrt())
            .collect();
        let log_sigmas = sigmas.iter().map(|sigma| sigma.ln()).collect();
        let schedule = NoiseSchedule { alphas_cumprod, sigmas, log_sigmas };
        match schedule.sigmas.iter().find(|sigma| !sigma.is_finite()) {
            Some(&sigma) => Err(SamplingError::BadDiffusion { field: "sigma of a timestep", value: f64::from(sigma) }),
            None => Ok(schedule),
        }
    }

    /// How many timesteps the model was trained with.
    pub fn len(&self) -> usize {
        self.sigmas.len()
    }

    /// Never: a schedule has at least two timesteps.
    pub fn is_empty(&self) -> bool {
        self.sigmas.is_empty()
    }

    /// The share of signal variance left at each timestep, falling; 0 at the end of a schedule
    /// with zero terminal SNR.
    pub fn alphas_cumprod(&self) -> &[f32] {
        &self.alphas_cumprod
    }

    /// sqrt((1 - a) / a) of each timestep, rising.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// The sigma at a timestep, whole or not: linear between neighbours, held at the ends.
    pub fn sigma(&self, timestep: f64) -> f64 {
        interpolate(&self.sigmas, timestep)
    }

    /// The same with the logarithm of sigma linear between neighbours, as k-diffusion has it.
    pub fn sigma_log_linear(&self, timestep: f64) -> f64 {
        interpolate(&self.log_sigmas, timestep).exp()
    }

    /// The timestep of a sigma: linear in its logarithm between neighbours, held at the ends.
    pub fn timestep(&self, sigma: f64) -> f64 {
        let log_sigma = sigma.max(1e-10).ln();
        let above = self.log_sigmas.partition_point(|&log| f64::from(log) <= log_sigma);
        let low = above.saturating_sub(1).min(self.len().saturating_sub(2));
        let (Some(&a), Some(&b)) = (self.log_sigmas.get(low), self.log_sigmas.get(low + 1)) else { return 0.0 };
        let w = ((f64::from(a) - log_sigma) / f64::from(a - b)).clamp(0.0, 1.0);
        (1.0 - w) * low as f64 + w * (low + 1) as f64
    }

    /// The signal variance at a timestep, rounded to a whole one within the schedule.
    pub(crate) fn alpha_cumprod(&self, timestep: f64) -> f64 {
        let at = (timestep.max(0.0).round() as usize).min(self.len() - 1);
        self.alphas_cumprod.get(at).map_or(0.0, |&alpha| f64::from(alpha))
    }

    /// The smallest and largest sigma.
    pub(crate) fn sigma_range(&self) -> (f64, f64) {
        let ends = (self.sigmas.first(), self.sigmas.last());
        (ends.0.map_or(0.0, |&sigma| f64::from(sigma)), ends.1.map_or(0.0, |&sigma| f64::from(sigma)))
    }
}

fn list_betas(betas: BetaSchedule, n: usize) -> Vec<f32> {
    match betas {
        BetaSchedule::ScaledLinear { start, end } => {
            let roots = linspace(start.sqrt() as f32, end.sqrt() as f32, n);
            roots.into_iter().map(|root| root * root).collect()
        }
        BetaSchedule::Linear { start, end } => linspace(start as f32, end as f32, n),
        BetaSchedule::SquaredCosine => {
            let kept = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            let at = |i: usize| kept(i as f64 / n as f64);
            (0..n).map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32).collect()
        }
    }
}

/// In 32 bits from both ends towards the middle, as torch walks: training saw these roundings.
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    let step = (end - start) / (n - 1) as f32;
    (0..n).map(|i| if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 }).collect()
}

fn cumulative_alphas(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0f64;
    betas
        .iter()
        .map(|beta| {
            product *= f64::from(1.0 - beta);
            product as f32
        })
        .collect()
}

/// Moves the last signal level to zero and keeps the first, in the order of arithmetic of the
/// published code, whose roundings reach the last timesteps.
fn rescale_to_zero_snr(betas: &mut [f32]) {
    let mut roots: Vec<f32> = cumulative_alphas(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return };
    for root in &mut roots {
        *root = (*root - last) * (first / (first - last));
    }
    let mut before = 1.0;
    for (beta, root) in betas.iter_mut().zip(&roots) {
        let kept = root * root;
        *beta = 1.0 - kept / before;
        before = kept;
    }
}

fn interpolate(values: &[f32], at: f64) -> f64 {
    let last = values.len().saturating_sub(1);
    let at = at.clamp(0.0, last as f64);
    let low = (at.floor() as usize).min(last);
    let a = values.get(low).map_or(0.0, |&value| f64::from(value));
    let b = values.get(low + 1).map_or(a, |&value| f64::from(value));
    a + (b - a) * (at - low as f64)
}
