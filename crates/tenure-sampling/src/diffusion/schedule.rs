//! From settings to the list of a run's steps: timesteps, sigmas, noise levels.

use crate::diffusion::points::{self, Points};
use crate::diffusion::{Method, NoiseLevel, Process};
use crate::error::SamplingError;

/// How many steps, and where they lie.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleSettings {
    /// Steps, at least one. A rule that lists its sigmas or timesteps brings its own number.
    pub steps: usize,
    /// Which timesteps are taken, and between which ends the other rules lie. It also says how much noise
    /// the variance-exploding samplers start from: [`crate::diffusion::DiffusionSampler::initial_noise`].
    pub spacing: Spacing,
    /// Added to every timestep of leading spacing: 1 for Stable Diffusion.
    pub steps_offset: usize,
    /// Where the noise levels lie.
    pub rule: SigmaRule,
    /// Where the last step ends.
    pub final_sigma: FinalSigma,
}

impl Default for ScheduleSettings {
    fn default() -> Self {
        ScheduleSettings {
            steps: 20,
            spacing: Spacing::Leading,
            steps_offset: 1,
            rule: SigmaRule::Spaced,
            final_sigma: FinalSigma::Zero,
        }
    }
}

/// Which timesteps of training a run takes (Lin et al., <https://arxiv.org/abs/2305.08891>, table 2),
/// rounded as diffusers rounds them for each sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spacing {
    /// Multiples of a whole number, from 0 (plus the offset); not defined for flow models.
    Leading,
    /// Counted back from the last timestep.
    Trailing,
    /// Evenly from the last to the first.
    Linspace,
}

/// Where a run's noise levels lie.
#[derive(Debug, Clone, PartialEq)]
pub enum SigmaRule {
    /// At the timesteps that the spacing takes. LCM samplers take theirs from the schedule they were
    /// distilled on.
    Spaced,
    /// Evenly in sigma^(1/rho) (Karras et al., <https://arxiv.org/abs/2206.00364>, equation 5).
    Karras {
        /// 7 is usual.
        rho: f64,
    },
    /// Evenly in log(sigma).
    Exponential,
    /// By quantiles of a beta distribution (<https://arxiv.org/abs/2407.12173>).
    Beta {
        /// 0.6 is usual.
        alpha: f64,
        /// 0.6 is usual.
        beta: f64,
    },
    /// Evenly over the timesteps, the last one left out, as Stability's generative-models and k-diffusion
    /// wrappers have it.
    SgmUniform,
    /// Every so many of the model's own sigmas, counted back from the largest.
    Simple,
    /// "Align Your Steps" (Sabour et al., <https://arxiv.org/abs/2404.14507>): published tables,
    /// interpolated in log(sigma) for numbers of steps other than 10.
    AlignYourSteps(AlignYourSteps),
    /// These sigmas, falling, the last being where the last step ends (0 as a rule).
    Sigmas(Vec<f32>),
    /// These timesteps, falling.
    Timesteps(Vec<f32>),
}

impl SigmaRule {
    /// Karras with rho 7.
    pub const KARRAS: SigmaRule = SigmaRule::Karras { rho: 7.0 };
    /// Beta with 0.6 twice.
    pub const BETA: SigmaRule = SigmaRule::Beta { alpha: 0.6, beta: 0.6 };
}

/// The models that "Align Your Steps" has published tables for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AlignYourSteps {
    /// Stable Diffusion 1.5.
    StableDiffusion1,
    /// Stable Diffusion XL.
    StableDiffusionXl,
    /// Stable Video Diffusion, whose sigmas reach 700.
    StableVideoDiffusion,
}

/// Where a run's last step ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinalSigma {
    /// At the image.
    Zero,
    /// At the least noise of training: for DDIM on Stable Diffusion 1.x and 2.x (`set_alpha_to_one: false`).
    SigmaMin,
}

/// One step of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScheduleStep {
    /// What the model is told: 0..=999 for discrete models, sigma * 1000 for flow models.
    pub timestep: f32,
    /// Noise over signal for discrete models, the share of noise for flow models.
    pub sigma: f64,
    /// The level it starts from, in the sampler's scaling of the latents.
    pub from: NoiseLevel,
    /// The level it ends at. DDIM may end a step one timestep beside where the next one starts, as published.
    pub to: NoiseLevel,
}

/// The steps of a run.
///
/// # Errors
/// [`SamplingError`] where a value is out of range, the rule is not defined for the model, or there are more steps
/// than the model's noise schedule can tell apart.
pub fn schedule(
    process: &Process,
    method: Method,
    settings: &ScheduleSettings,
) -> Result<Vec<ScheduleStep>, SamplingError> {
    method.check()?;
    if matches!((process, method), (Process::Flow(_), Method::Ddim { .. } | Method::DpmppSde { .. })) {
        return Err(SamplingError::MethodNeedsNoiseSchedule { method });
    }
    check_rule(&settings.rule)?;
    let points = match process {
        Process::Discrete { schedule, .. } => points::discrete(schedule, method, settings)?,
        Process::Flow(flow) => points::flow(flow, method, settings)?,
    };
    check_falling(&points, process, method)?;
    Ok(list_steps(process, method, settings, &points))
}

fn check_rule(rule: &SigmaRule) -> Result<(), SamplingError> {
    let bad = |field, value| Err(SamplingError::BadDiffusion { field, value });
    match rule {
        SigmaRule::Karras { rho } if !(0.1..=1000.0).contains(rho) => bad("rho", *rho),
        SigmaRule::Beta { alpha, .. } if !(0.01..=100.0).contains(alpha) => bad("alpha", *alpha),
        SigmaRule::Beta { beta, .. } if !(0.01..=100.0).contains(beta) => bad("beta", *beta),
        SigmaRule::Sigmas(list) if list.len() < 2 => bad("number of sigmas", list.len() as f64),
        SigmaRule::Timesteps(list) if list.is_empty() => bad("number of timesteps", 0.0),
        SigmaRule::Sigmas(list) => match list.iter().find(|sigma| !(0.0..=1e6).contains(*sigma)) {
            Some(&sigma) => bad("sigma", f64::from(sigma)),
            None => Ok(()),
        },
        SigmaRule::Timesteps(list) => match list.iter().find(|timestep| !(0.0..=1e6).contains(*timestep)) {
            Some(&timestep) => bad("timestep", f64::from(timestep)),
            None => Ok(()),
        },
        SigmaRule::Spaced
        | SigmaRule::Karras { .. }
        | SigmaRule::Exponential
        | SigmaRule::Beta { .. }
        | SigmaRule::SgmUniform
        | SigmaRule::Simple
        | SigmaRule::AlignYourSteps(_) => Ok(()),
    }
}

/// Most solvers divide by the length of a step: none may be empty or backward. Those of one step that do not may
/// end where they are.
fn check_falling(points: &Points, process: &Process, method: Method) -> Result<(), SamplingError> {
    let may_stay = match method {
        Method::Euler | Method::EulerAncestral { .. } | Method::Heun | Method::Ddim { .. } => true,
        Method::Dpmpp2m { .. }
        | Method::Dpmpp2mSde { .. }
        | Method::DpmppSde { .. }
        | Method::Lcm { .. }
        | Method::UniPc { .. } => false,
    };
    let first = points.sigmas.first().copied().unwrap_or(0.0);
    if matches!(process, Process::Flow(_)) && first > 1.0 {
        return Err(SamplingError::BadDiffusion { field: "sigma", value: first });
    }
    // No step starts at the image: there would be nothing to divide by.
    if let Some(&none) = points.sigmas.iter().find(|sigma| !(1e-30..).contains(*sigma)) {
        return Err(SamplingError::BadDiffusion { field: "sigma", value: none });
    }
    let mut previous = f64::INFINITY;
    for (index, &sigma) in points.sigmas.iter().chain([&points.last]).enumerate() {
        let stays = sigma == previous && may_stay && index == points.sigmas.len();
        if !(sigma < previous || stays) {
            return Err(SamplingError::UnsortedSigmas { index, previous, sigma });
        }
        previous = sigma;
    }
    Ok(())
}

fn list_steps(process: &Process, method: Method, settings: &ScheduleSettings, points: &Points) -> Vec<ScheduleStep> {
    let levels: Vec<NoiseLevel> = points
        .timesteps
        .iter()
        .zip(&points.sigmas)
        .map(|(&timestep, &sigma)| level(process, method, &settings.rule, timestep, sigma))
        .collect();
    let ends = levels.iter().skip(1).copied().chain([last_level(process, method, settings, points.last)]);
    let stride = ddim_stride(process, method, settings);
    let mut steps = Vec::with_capacity(levels.len());
    for (i, (&from, next)) in levels.iter().zip(ends).enumerate() {
        let timestep = points.timesteps.get(i).copied().unwrap_or(0.0);
        let to = match (process, stride) {
            (Process::Discrete { schedule, .. }, Some(stride)) if timestep - stride >= 0.0 => {
                NoiseLevel::of_alpha(schedule.alpha_cumprod(timestep - stride))
            }
            (_, Some(_)) => last_level(process, method, settings, points.last),
            (_, None) => next,
        };
        let sigma = points.sigmas.get(i).copied().unwrap_or(0.0);
        steps.push(ScheduleStep { timestep: timestep as f32, sigma, from, to });
    }
    steps
}

/// DDIM's steps are all of one length, whatever the rounding of the timesteps.
fn ddim_stride(process: &Process, method: Method, settings: &ScheduleSettings) -> Option<f64> {
    match (process, method, &settings.rule) {
        (Process::Discrete { schedule, .. }, Method::Ddim { .. }, SigmaRule::Spaced) => {
            Some((schedule.len() / settings.steps.max(1)) as f64)
        }
        _ => None,
    }
}

fn level(process: &Process, method: Method, rule: &SigmaRule, timestep: f64, sigma: f64) -> NoiseLevel {
    let schedule = match process {
        Process::Flow(_) => return NoiseLevel::flow(sigma),
        Process::Discrete { schedule, .. } => schedule,
    };
    match method {
        Method::Euler | Method::EulerAncestral { .. } | Method::Heun | Method::DpmppSde { .. } => {
            NoiseLevel::exploding(sigma)
        }
        Method::Dpmpp2m { .. } | Method::Dpmpp2mSde { .. } | Method::UniPc { .. } => NoiseLevel::preserving(sigma),
        Method::Ddim { .. } | Method::Lcm { .. } => match rule {
            SigmaRule::Spaced => NoiseLevel::of_alpha(schedule.alpha_cumprod(timestep)),
            SigmaRule::Timesteps(_) if timestep.fract() == 0.0 => {
                NoiseLevel::of_alpha(schedule.alpha_cumprod(timestep))
            }
            SigmaRule::Timesteps(_)
            | SigmaRule::Karras { .. }
            | SigmaRule::Exponential
            | SigmaRule::Beta { .. }
            | SigmaRule::SgmUniform
            | SigmaRule::Simple
            | SigmaRule::AlignYourSteps(_)
            | SigmaRule::Sigmas(_) => NoiseLevel::preserving(sigma),
        },
    }
}

fn last_level(process: &Process, method: Method, settings: &ScheduleSettings, sigma: f64) -> NoiseLevel {
    let ddim_like = matches!(method, Method::Ddim { .. } | Method::Lcm { .. });
    match (process, settings.final_sigma, &settings.rule) {
        (_, _, SigmaRule::Sigmas(_)) | (Process::Flow(_), ..) => level(process, method, &settings.rule, 0.0, sigma),
        (Process::Discrete { schedule, .. }, FinalSigma::SigmaMin, _) if ddim_like => {
            NoiseLevel::of_alpha(schedule.alpha_cumprod(0.0))
        }
        (_, FinalSigma::SigmaMin, _) => level(process, method, &settings.rule, 0.0, sigma),
        (_, FinalSigma::Zero, _) => NoiseLevel::CLEAN,
    }
}
