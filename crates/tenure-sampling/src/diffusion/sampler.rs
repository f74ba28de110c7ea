//! A run of a sampler: what the model is asked next, and what becomes of the latents.

use crate::diffusion::{
    Method, Noise, NoiseLevel, Prediction, Process, ScheduleSettings, ScheduleStep, SdeNoise, Spacing, schedule,
};
use crate::error::SamplingError;

/// A sampler over one batch of latents. It never calls the model: [`DiffusionSampler::evaluation`] says what to ask it,
/// [`DiffusionSampler::advance`] takes its answer. Everything is allocated when it is built, but for the Brownian paths of
/// [`SdeNoise::BrownianTree`], which grow in the first run.
///
/// ```
/// use tenure_sampling::diffusion::*;
///
/// # fn main() -> Result<(), tenure_sampling::SamplingError> {
/// let noise_schedule = NoiseSchedule::new(BetaSchedule::STABLE_DIFFUSION, 1000, false)?;
/// let process = Process::Discrete { schedule: noise_schedule, prediction: Prediction::Epsilon };
/// let settings = ScheduleSettings { steps: 4, ..ScheduleSettings::default() };
/// let mut sampler = DiffusionSampler::new(&process, Method::DPMPP_2M, &settings, 64)?;
/// let mut noise = Noise::new(NoiseKind::TorchCpu, &[42], 64)?;
/// let mut latents = vec![0.0; 64];
/// noise.fill(&mut latents)?;
/// sampler.initial_noise(&mut latents);
/// while let Some(evaluation) = sampler.evaluation() {
///     // A model would be given `latents * evaluation.input_scale` and `evaluation.timestep`.
///     let output: Vec<f32> = latents.iter().map(|x| x * evaluation.input_scale * 0.5).collect();
///     sampler.advance(&mut latents, &output, &mut noise)?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct DiffusionSampler {
    pub(crate) process: Process,
    pub(crate) method: Method,
    pub(crate) steps: Vec<ScheduleStep>,
    initial_scale: f32,
    /// The step in hand, and which of its evaluations comes next.
    pub(crate) step: usize,
    pub(crate) part: usize,
    /// Estimates of the image of this run, the newest first; `known` of them are.
    pub(crate) denoised: Vec<Vec<f32>>,
    pub(crate) known: usize,
    /// The latents a step of two evaluations, or UniPC's corrector, started from.
    pub(crate) saved: Vec<f32>,
    /// The order UniPC predicted the latents with.
    pub(crate) order: usize,
    pub(crate) normals: Vec<f32>,
    elements: usize,
}

/// What the model is to be asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// The step, from 0.
    pub step: usize,
    /// How many steps the schedule has.
    pub steps: usize,
    /// Which evaluation of the step, from 0.
    pub part: usize,
    /// What the latents are multiplied with before the model sees them.
    pub input_scale: f32,
    /// What the model is told.
    pub timestep: f32,
    /// Noise over signal for discrete models, the share of noise for flow models.
    pub sigma: f64,
    /// The latents' noise level.
    pub level: NoiseLevel,
}

/// What an answer of the model has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Progress {
    /// The step needs another evaluation; the latents are on the way.
    WithinStep,
    /// A step is done.
    Step,
    /// The last step is done; the latents are the image.
    Done,
}

impl DiffusionSampler {
    /// A sampler for batches of `elements` numbers in all, at its first step.
    ///
    /// # Errors
    /// Those of [`schedule`]; [`SamplingError::BadDiffusion`] for no elements, or for a model that predicts noise on a
    /// schedule whose first step has no signal.
    pub fn new(
        process: &Process,
        method: Method,
        settings: &ScheduleSettings,
        elements: usize,
    ) -> Result<Self, SamplingError> {
        if elements == 0 {
            return Err(SamplingError::BadDiffusion { field: "elements", value: 0.0 });
        }
        let steps = schedule(process, method, settings)?;
        let first = steps.first().map_or(NoiseLevel::CLEAN, |step| step.from);
        if first.signal == 0.0 && matches!(process, Process::Discrete { prediction: Prediction::Epsilon, .. }) {
            return Err(SamplingError::BadDiffusion { field: "signal of the first step", value: 0.0 });
        }
        let buffers = Buffers::of(method);
        let room = |wanted| if wanted { vec![0.0; elements] } else { Vec::new() };
        Ok(DiffusionSampler {
            process: process.clone(),
            method,
            steps,
            initial_scale: initial_scale(process, method, first, settings.spacing),
            step: 0,
            part: 0,
            denoised: vec![vec![0.0; elements]; buffers.denoised],
            known: 0,
            saved: room(buffers.saved),
            order: 0,
            normals: room(buffers.normals),
            elements,
        })
    }

    /// The schedule.
    pub fn steps(&self) -> &[ScheduleStep] {
        &self.steps
    }

    /// The sampler's method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Goes to a step, forgetting the run so far: 0 for a new image, [`DiffusionSampler::first_step`] for one that starts
    /// from another.
    ///
    /// # Errors
    /// [`SamplingError::NoStepLeft`] for a step that the schedule has not.
    pub fn begin(&mut self, step: usize) -> Result<(), SamplingError> {
        if step >= self.steps.len() {
            return Err(SamplingError::NoStepLeft { steps: self.steps.len() });
        }
        (self.step, self.part, self.known, self.order) = (step, 0, 0, 0);
        Ok(())
    }

    /// The first step to take when an image is changed with a strength, 0 (not at all) to 1 (drawn anew); rounded as
    /// diffusers rounds it for each kind of model.
    ///
    /// # Errors
    /// [`SamplingError::BadDiffusion`] for a strength outside 0..=1, or so small that no step is left.
    pub fn first_step(&self, strength: f64) -> Result<usize, SamplingError> {
        let steps = self.steps.len();
        let taken = steps as f64 * strength;
        let first = match self.process {
            Process::Discrete { .. } => steps - (taken as usize).min(steps),
            Process::Flow(_) => (steps as f64 - taken) as usize,
        };
        if !(0.0..=1.0).contains(&strength) || first >= steps {
            return Err(SamplingError::BadDiffusion { field: "strength", value: strength });
        }
        Ok(first)
    }

    /// Scales standard normal numbers to what a new image's first step starts from. Samplers of the variance-exploding
    /// kind start from sigma, or from sqrt(sigma^2 + 1) with leading spacing, as diffusers does.
    pub fn initial_noise(&self, latents: &mut [f32]) {
        for x in latents {
            *x *= self.initial_scale;
        }
    }

    /// What the model is to be asked next; none when all steps are taken.
    pub fn evaluation(&self) -> Option<Evaluation> {
        let step = self.steps.get(self.step)?;
        let level = self.level();
        let (timestep, sigma) = match (self.part, self.method) {
            (0, _) => (step.timestep, step.sigma),
            (_, Method::DpmppSde { .. }) => self.middle_evaluation(step),
            (_, _) => match self.steps.get(self.step + 1) {
                Some(next) => (next.timestep, next.sigma),
                None => (self.process.timestep(self.end_sigma(step)) as f32, self.end_sigma(step)),
            },
        };
        let input_scale = match self.process {
            Process::Discrete { .. } if self.method.explodes() => (1.0 / level.noise.hypot(1.0)) as f32,
            Process::Discrete { .. } | Process::Flow(_) => 1.0,
        };
        let steps = self.steps.len();
        Some(Evaluation { step: self.step, steps, part: self.part, input_scale, timestep, sigma, level })
    }

    /// The noise level of the latents now: the image's own when all steps are taken. The kept region of an inpainted image
    /// is put to this level after each step ([`crate::diffusion::keep_region`]).
    pub fn level(&self) -> NoiseLevel {
        match (self.steps.get(self.step), self.part, self.method) {
            (None, ..) => NoiseLevel::CLEAN,
            (Some(step), 0, _) => step.from,
            (Some(step), _, Method::DpmppSde { .. }) => NoiseLevel::exploding(self.middle_evaluation(step).1),
            (Some(step), _, _) => step.to,
        }
    }

    /// The newest estimate of the image, for previews: zeros before the first evaluation.
    pub fn denoised(&self) -> &[f32] {
        self.denoised.first().map_or(&[], Vec::as_slice)
    }

    /// Takes the model's answer to [`DiffusionSampler::evaluation`] and moves the latents on; under guidance, what
    /// [`crate::diffusion::Guidance::combine`] has made of its answers.
    ///
    /// # Errors
    /// [`SamplingError::NoStepLeft`], [`SamplingError::LatentLength`], [`SamplingError::NonFiniteOutput`]: latents and
    /// sampler are then as they were.
    pub fn advance(
        &mut self,
        latents: &mut [f32],
        output: &[f32],
        noise: &mut Noise,
    ) -> Result<Progress, SamplingError> {
        let Some(step) = self.steps.get(self.step).copied() else {
            return Err(SamplingError::NoStepLeft { steps: self.steps.len() });
        };
        for (what, got) in [("latents", latents.len()), ("output", output.len()), ("noise", noise.len())] {
            if got != self.elements {
                return Err(SamplingError::LatentLength { what, got, want: self.elements });
            }
        }
        let count = output.iter().filter(|x| !x.is_finite()).count();
        if count > 0 {
            return Err(SamplingError::NonFiniteOutput { step: self.step, count, of: output.len() });
        }
        self.estimate(latents, output);
        let done = match self.method {
            Method::Euler => self.euler(&step, latents),
            Method::EulerAncestral { eta } => self.euler_ancestral(&step, eta, latents, noise)?,
            Method::Heun => self.heun(&step, latents),
            Method::Dpmpp2m { options, flow } => self.dpmpp_2m(&step, options, flow, latents),
            Method::Dpmpp2mSde { options, noise: source } => {
                self.dpmpp_2m_sde(&step, options, source, latents, noise)?
            }
            Method::DpmppSde { noise: source } => self.dpmpp_sde(&step, source, latents, noise)?,
            Method::Ddim { eta } => self.ddim(&step, eta, latents, noise)?,
            Method::Lcm { timestep_scaling, .. } => self.lcm(&step, timestep_scaling, latents, noise)?,
            Method::UniPc { order, variant } => self.unipc(&step, order, variant, latents),
        };
        if !done {
            self.part += 1;
            return Ok(Progress::WithinStep);
        }
        (self.part, self.step) = (0, self.step + 1);
        Ok(if self.step < self.steps.len() { Progress::Step } else { Progress::Done })
    }

    /// Puts the estimate of the image before those known.
    fn estimate(&mut self, latents: &[f32], output: &[f32]) {
        let (of_x, of_output) = self.process.denoise(self.level());
        self.denoised.rotate_right(1);
        self.known += 1;
        if let Some(newest) = self.denoised.first_mut() {
            for ((d, x), y) in newest.iter_mut().zip(latents).zip(output) {
                *d = (of_x * f64::from(*x) + of_output * f64::from(*y)) as f32;
            }
        }
    }

    /// The sigma at a step's end.
    pub(crate) fn end_sigma(&self, step: &ScheduleStep) -> f64 {
        match self.process {
            Process::Discrete { .. } => f64::from((step.to.noise / step.to.signal) as f32),
            Process::Flow(_) => step.to.noise,
        }
    }

    /// Normal numbers for a step between two sigmas, into `normals`.
    pub(crate) fn draw(
        &mut self,
        source: SdeNoise,
        from: f64,
        to: f64,
        noise: &mut Noise,
    ) -> Result<(), SamplingError> {
        match source {
            SdeNoise::Independent => noise.fill(&mut self.normals),
            SdeNoise::BrownianTree => {
                let ends = (self.steps.first(), self.steps.last());
                let max = ends.0.map_or(0.0, |step| step.sigma);
                let least = ends.1.map_or(0.0, |step| match self.end_sigma(step) {
                    end if end > 0.0 => end,
                    _ => step.sigma,
                });
                noise.fill_increments((least, max), (from, to), &mut self.normals)
            }
        }
    }
}

/// `x = scale * x + sum of weights * numbers`.
pub(crate) fn combine(x: &mut [f32], scale: f64, terms: &[(f64, &[f32])]) {
    if let [(weight, only)] = terms {
        for (x, y) in x.iter_mut().zip(*only) {
            *x = (scale * f64::from(*x) + weight * f64::from(*y)) as f32;
        }
        return;
    }
    for (i, x) in x.iter_mut().enumerate() {
        let mut sum = scale * f64::from(*x);
        for (weight, numbers) in terms {
            sum += weight * f64::from(numbers.get(i).copied().unwrap_or(0.0));
        }
        *x = sum as f32;
    }
}

/// Which buffers a method needs.
struct Buffers {
    denoised: usize,
    saved: bool,
    normals: bool,
}

impl Buffers {
    fn of(method: Method) -> Self {
        let (denoised, saved, normals) = match method {
            Method::Euler => (1, false, false),
            Method::EulerAncestral { .. } | Method::Ddim { .. } | Method::Lcm { .. } => (1, false, true),
            Method::Heun => (2, true, false),
            Method::Dpmpp2m { .. } => (2, false, false),
            Method::Dpmpp2mSde { .. } => (2, false, true),
            Method::DpmppSde { .. } => (1, true, true),
            Method::UniPc { order, .. } => (order + 1, true, false),
        };
        Buffers { denoised, saved, normals }
    }
}

fn initial_scale(process: &Process, method: Method, first: NoiseLevel, spacing: Spacing) -> f32 {
    match (process, spacing) {
        (Process::Flow(_), _) => 1.0,
        (Process::Discrete { .. }, _) if !method.explodes() => 1.0,
        (Process::Discrete { .. }, Spacing::Leading) => first.noise.hypot(1.0) as f32,
        (Process::Discrete { .. }, Spacing::Trailing | Spacing::Linspace) => first.noise as f32,
    }
}
