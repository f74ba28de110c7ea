//! Where a run's timesteps and sigmas lie, with the roundings of diffusers for each sampler.

use crate::diffusion::beta_quantile::beta_quantile;
use crate::diffusion::{
    AlignYourSteps, FinalSigma, FlowForm, FlowSchedule, Method, NoiseSchedule, ScheduleSettings, SigmaRule, Spacing,
};
use crate::error::SamplingError;

/// The starts of the steps, and the sigma where the last one ends. Sigmas are exact in 32 bits.
pub(crate) struct Points {
    pub(crate) timesteps: Vec<f64>,
    pub(crate) sigmas: Vec<f64>,
    pub(crate) last: f64,
}

/// Which timesteps a sampler can be at.
#[derive(Clone, Copy, PartialEq)]
enum Grid {
    /// Any, also between two of training.
    Continuous,
    /// Whole ones, without the one where the last step ends.
    Multistep,
    /// Whole ones.
    Whole,
    /// Those it was distilled on.
    Distilled { original_steps: usize },
}

impl Grid {
    fn of(method: Method) -> Grid {
        match method {
            Method::Euler | Method::EulerAncestral { .. } | Method::Heun | Method::DpmppSde { .. } => Grid::Continuous,
            Method::Dpmpp2m { .. } | Method::Dpmpp2mSde { .. } | Method::UniPc { .. } => Grid::Multistep,
            Method::Ddim { .. } => Grid::Whole,
            Method::Lcm { original_steps, .. } => Grid::Distilled { original_steps },
        }
    }
}

/// The points of a discrete model.
pub(crate) fn discrete(
    schedule: &NoiseSchedule,
    method: Method,
    settings: &ScheduleSettings,
) -> Result<Points, SamplingError> {
    let grid = Grid::of(method);
    let (n, train) = (settings.steps, schedule.len());
    if !matches!(settings.rule, SigmaRule::Sigmas(_) | SigmaRule::Timesteps(_)) {
        check_steps(n, train)?;
    }
    let mut last = match settings.final_sigma {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => schedule.sigma_range().0,
    };
    let by_sigma = |sigmas: Vec<f64>| {
        let timesteps = sigmas.iter().map(|&sigma| schedule.timestep(sigma)).collect();
        (timesteps, sigmas)
    };
    let by_timestep = |timesteps: Vec<f64>| {
        let sigmas = timesteps.iter().map(|&timestep| schedule.sigma(timestep)).collect();
        (timesteps, sigmas)
    };
    let ends = || -> Result<(f64, f64), SamplingError> {
        let (min, max) = schedule.sigma_range();
        Ok(match grid {
            Grid::Continuous => {
                let taken = spaced(grid, settings, train)?;
                let sigma = |timestep: Option<&f64>| timestep.map(|&t| schedule.sigma(t));
                (sigma(taken.first()).unwrap_or(max), sigma(taken.last()).unwrap_or(min))
            }
            Grid::Multistep | Grid::Whole | Grid::Distilled { .. } => (max, min),
        })
    };
    let (mut timesteps, sigmas) = match &settings.rule {
        SigmaRule::Spaced => by_timestep(spaced(grid, settings, train)?),
        SigmaRule::Karras { rho } => by_sigma(karras(ends()?, *rho, n)),
        SigmaRule::Exponential => by_sigma(exponential(ends()?, n)),
        SigmaRule::Beta { alpha, beta } => by_sigma(beta_spaced(ends()?, (*alpha, *beta), n)),
        SigmaRule::SgmUniform => {
            let mut timesteps = linspace((train - 1) as f64, 0.0, n + 1);
            timesteps.pop();
            let sigmas = timesteps.iter().map(|&timestep| schedule.sigma_log_linear(timestep)).collect();
            (timesteps, sigmas)
        }
        SigmaRule::Simple => {
            let stride = train as f64 / n as f64;
            by_timestep((0..n).map(|i| (train - 1) as f64 - (i as f64 * stride).floor()).collect())
        }
        SigmaRule::AlignYourSteps(model) => by_sigma(aligned(*model, n)),
        SigmaRule::Sigmas(list) => {
            let mut sigmas: Vec<f64> = list.iter().map(|&sigma| f64::from(sigma)).collect();
            last = sigmas.pop().unwrap_or(0.0);
            by_sigma(sigmas)
        }
        SigmaRule::Timesteps(list) => {
            if let Some(&high) = list.iter().find(|timestep| **timestep > (train - 1) as f32) {
                return Err(SamplingError::BadDiffusion { field: "timestep", value: f64::from(high) });
            }
            let whole = |timestep: f64| if grid == Grid::Multistep { timestep.trunc() } else { timestep };
            by_timestep(list.iter().map(|&timestep| whole(f64::from(timestep))).collect())
        }
    };
    if grid == Grid::Multistep {
        for timestep in &mut timesteps {
            *timestep = match settings.rule {
                SigmaRule::Karras { .. } => timestep.round_ties_even(),
                SigmaRule::Exponential | SigmaRule::Beta { .. } => timestep.trunc(),
                SigmaRule::Spaced
                | SigmaRule::Timesteps(_)
                | SigmaRule::SgmUniform
                | SigmaRule::Simple
                | SigmaRule::AlignYourSteps(_)
                | SigmaRule::Sigmas(_) => *timestep,
            };
        }
    }
    Ok(Points { timesteps, sigmas: sigmas.into_iter().map(in_32_bits).collect(), last: in_32_bits(last) })
}

/// The points of a flow model.
pub(crate) fn flow(flow: &FlowSchedule, method: Method, settings: &ScheduleSettings) -> Result<Points, SamplingError> {
    let (n, train) = (settings.steps, flow.train_timesteps());
    if !matches!(settings.rule, SigmaRule::Sigmas(_) | SigmaRule::Timesteps(_)) {
        check_steps(n, train)?;
    }
    let mut last = match settings.final_sigma {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => flow.sigma_min(),
    };
    let not_defined = || SamplingError::RuleNotDefined { rule: settings.rule.clone(), method };
    let ends = || -> Result<(f64, f64), SamplingError> {
        let sigmas = flow_spaced(flow, method, settings).ok_or_else(not_defined)?;
        Ok((sigmas.first().copied().unwrap_or(1.0), sigmas.last().copied().unwrap_or(0.0)))
    };
    let mut sigmas = match &settings.rule {
        SigmaRule::Spaced => flow_spaced(flow, method, settings).ok_or_else(not_defined)?,
        SigmaRule::Karras { rho } => karras(ends()?, *rho, n),
        SigmaRule::Exponential => exponential(ends()?, n),
        SigmaRule::Beta { alpha, beta } => beta_spaced(ends()?, (*alpha, *beta), n),
        SigmaRule::SgmUniform => {
            let even = linspace(1.0, flow.sigma_min(), n + 1);
            even.into_iter().take(n).map(|sigma| flow.shifted(sigma)).collect()
        }
        SigmaRule::Simple => {
            let stride = train as f64 / n as f64;
            let whole = (0..n).map(|i| train as f64 - (i as f64 * stride).floor());
            whole.map(|timestep| flow.shifted(timestep / train as f64)).collect()
        }
        SigmaRule::AlignYourSteps(_) => return Err(not_defined()),
        SigmaRule::Sigmas(list) => {
            let mut sigmas: Vec<f64> = list.iter().map(|&sigma| f64::from(sigma)).collect();
            last = sigmas.pop().unwrap_or(0.0);
            sigmas
        }
        SigmaRule::Timesteps(list) => list.iter().map(|&timestep| f64::from(timestep) / train as f64).collect(),
    };
    let whole = match method {
        Method::UniPc { .. } => {
            // Its coefficients are not finite where no signal is left.
            if let Some(first) = sigmas.first_mut().filter(|first| (**first - 1.0).abs() < 1e-6) {
                *first -= 1e-6;
            }
            true
        }
        Method::Dpmpp2m { flow, .. } => flow == FlowForm::LogSnr,
        Method::Dpmpp2mSde { .. } => true,
        Method::Euler
        | Method::EulerAncestral { .. }
        | Method::Heun
        | Method::DpmppSde { .. }
        | Method::Ddim { .. }
        | Method::Lcm { .. } => false,
    };
    let timesteps = match &settings.rule {
        SigmaRule::Timesteps(list) => list.iter().map(|&timestep| f64::from(timestep)).collect(),
        _ if whole => sigmas.iter().map(|sigma| (sigma * train as f64).trunc()).collect(),
        _ => sigmas.iter().map(|&sigma| flow.timestep(sigma)).collect(),
    };
    Ok(Points { timesteps, sigmas: sigmas.into_iter().map(in_32_bits).collect(), last: in_32_bits(last) })
}

fn check_steps(steps: usize, limit: usize) -> Result<(), SamplingError> {
    match steps {
        0 => Err(SamplingError::BadDiffusion { field: "steps", value: 0.0 }),
        _ if steps > limit => Err(SamplingError::TooManySteps { steps, limit }),
        _ => Ok(()),
    }
}

/// The timesteps that a spacing takes, falling.
fn spaced(grid: Grid, settings: &ScheduleSettings, train: usize) -> Result<Vec<f64>, SamplingError> {
    let n = settings.steps;
    let end = (train - 1) as f64;
    if let Grid::Distilled { original_steps } = grid {
        return distilled(n, original_steps, train);
    }
    let multiples = |count: usize| -> Vec<f64> {
        let stride = train / count;
        let offset = settings.steps_offset as f64;
        (0..count).rev().take(n).map(move |i| (i * stride) as f64 + offset).collect()
    };
    let even = |count: usize| -> Vec<f64> {
        let whole = linspace(0.0, end, count).into_iter().map(f64::round_ties_even);
        whole.rev().take(n).collect()
    };
    Ok(match (settings.spacing, grid) {
        (Spacing::Trailing, _) => {
            // Diffusers' own list has one more for a few n (61, 103, ...), at timestep -1: a rounding of its length.
            let stride = (train as f64 - train as f64 / n as f64) - train as f64;
            (0..n).map(|i| (train as f64 + i as f64 * stride).round_ties_even() - 1.0).collect()
        }
        (Spacing::Leading, Grid::Multistep) => multiples(n + 1),
        (Spacing::Leading, Grid::Continuous | Grid::Whole | Grid::Distilled { .. }) => multiples(n),
        (Spacing::Linspace, Grid::Multistep) => even(n + 1),
        (Spacing::Linspace, Grid::Whole | Grid::Distilled { .. }) => even(n),
        (Spacing::Linspace, Grid::Continuous) => linspace(0.0, end, n).into_iter().rev().map(in_32_bits).collect(),
    })
}

fn distilled(n: usize, original_steps: usize, train: usize) -> Result<Vec<f64>, SamplingError> {
    if original_steps > train {
        return Err(SamplingError::TooManySteps { steps: original_steps, limit: train });
    }
    check_steps(n, original_steps)?;
    let stride = train / original_steps;
    let skip = original_steps as f64 / n as f64;
    let kept = (0..n).map(|i| original_steps - (i as f64 * skip).floor() as usize);
    Ok(kept.map(|i| (i * stride) as f64 - 1.0).collect())
}

/// The sigmas of a flow model's spacing; none where it is not defined.
fn flow_spaced(flow: &FlowSchedule, method: Method, settings: &ScheduleSettings) -> Option<Vec<f64>> {
    let n = settings.steps;
    let least = 1.0 / flow.train_timesteps() as f64;
    let even = match (settings.spacing, method) {
        (Spacing::Leading, _) => return None,
        (Spacing::Trailing, _) => linspace(1.0, 1.0 / n as f64, n),
        (Spacing::Linspace, Method::UniPc { .. }) => linspace(1.0, least, n + 1),
        (Spacing::Linspace, Method::Dpmpp2m { flow: FlowForm::LogSnr, .. } | Method::Dpmpp2mSde { .. }) => {
            linspace(1.0, least, n + 1).into_iter().rev().map(|signal| 1.0 - signal).collect()
        }
        (Spacing::Linspace, _) => linspace(1.0, flow.sigma_min(), n),
    };
    Some(even.into_iter().take(n).map(|sigma| flow.shifted(sigma)).collect())
}

fn karras((max, min): (f64, f64), rho: f64, n: usize) -> Vec<f64> {
    let (max, min) = (max.powf(1.0 / rho), min.powf(1.0 / rho));
    linspace(0.0, 1.0, n).into_iter().map(|ramp| (max + ramp * (min - max)).powf(rho)).collect()
}

fn exponential((max, min): (f64, f64), n: usize) -> Vec<f64> {
    linspace(max.ln(), min.ln(), n).into_iter().map(f64::exp).collect()
}

fn beta_spaced((max, min): (f64, f64), (alpha, beta): (f64, f64), n: usize) -> Vec<f64> {
    let quantiles = linspace(0.0, 1.0, n).into_iter().map(|p| beta_quantile(1.0 - p, alpha, beta));
    quantiles.map(|quantile| min + quantile * (max - min)).collect()
}

/// The starts of n steps through a published table, whose last sigma stands for the end.
fn aligned(model: AlignYourSteps, n: usize) -> Vec<f64> {
    let table = match model {
        AlignYourSteps::StableDiffusion1 => {
            [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
        }
        AlignYourSteps::StableDiffusionXl => {
            [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029]
        }
        AlignYourSteps::StableVideoDiffusion => {
            [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002]
        }
    };
    let at = |i: usize| table.get(i).copied().unwrap_or(0.0f64);
    let intervals = table.len() - 1;
    let interpolated = (0..n).map(|i| {
        // Whole numbers, so that the table's own points come out as they stand.
        let (low, rest) = (i * intervals / n, i * intervals % n);
        let w = rest as f64 / n as f64;
        if rest == 0 { at(low) } else { (at(low).ln() * (1.0 - w) + at(low + 1).ln() * w).exp() }
    });
    interpolated.collect()
}

/// n numbers evenly from start to end; one is the start.
fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = if n > 1 { (end - start) / (n - 1) as f64 } else { 0.0 };
    (0..n).map(|i| if i > 0 && i + 1 == n { end } else { start + i as f64 * step }).collect()
}

fn in_32_bits(x: f64) -> f64 {
    f64::from(x as f32)
}
