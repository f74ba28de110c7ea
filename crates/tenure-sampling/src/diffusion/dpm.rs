//! DPM-Solver++ of second order: multistep, multistep for the SDE, single step for the SDE.

use crate::diffusion::one_step::ancestral;
use crate::diffusion::sampler::combine;
use crate::diffusion::{DiffusionSampler, DpmCorrection, DpmOptions, FlowForm, Noise, Process, ScheduleStep, SdeNoise};
use crate::error::SamplingError;

impl DiffusionSampler {
    pub(crate) fn dpmpp_2m(&mut self, step: &ScheduleStep, options: DpmOptions, flow: FlowForm, x: &mut [f32]) -> bool {
        let by_sigma = matches!(self.process, Process::Flow(_)) && flow == FlowForm::LogSigma;
        let length = |step: &ScheduleStep| {
            if by_sigma { (step.from.noise / step.to.noise).ln() } else { step.to.lambda() - step.from.lambda() }
        };
        let h = length(step);
        let scale = step.to.noise / step.from.noise;
        let signal = if by_sigma { 1.0 } else { step.to.signal };
        let of_image = -signal * (-h).exp_m1();
        let of_change = match options.correction {
            DpmCorrection::Midpoint => 0.5 * of_image,
            DpmCorrection::Heun => signal - of_image / h,
        };
        let before = self.before(step, options).map(|before| h / length(&before));
        self.second_order(x, scale, (of_image, of_change), before, 0.0);
        true
    }

    pub(crate) fn dpmpp_2m_sde(
        &mut self,
        step: &ScheduleStep,
        options: DpmOptions,
        source: SdeNoise,
        x: &mut [f32],
        noise: &mut Noise,
    ) -> Result<bool, SamplingError> {
        let length = |step: &ScheduleStep| step.to.lambda() - step.from.lambda();
        let h = length(step);
        let scale = step.to.noise / step.from.noise * (-h).exp();
        let of_image = -step.to.signal * (-2.0 * h).exp_m1();
        let of_change = match options.correction {
            DpmCorrection::Midpoint => 0.5 * of_image,
            DpmCorrection::Heun => step.to.signal - of_image / (2.0 * h),
        };
        let of_noise = step.to.noise * (-(-2.0 * h).exp_m1()).max(0.0).sqrt();
        if of_noise > 0.0 {
            self.draw(source, step.sigma, self.end_sigma(step), noise)?;
        }
        let before = self.before(step, options).map(|before| h / length(&before));
        self.second_order(x, scale, (of_image, of_change), before, of_noise);
        Ok(true)
    }

    /// The step before, if the one in hand is to be of second order.
    fn before(&self, step: &ScheduleStep, options: DpmOptions) -> Option<ScheduleStep> {
        let last = self.step + 1 == self.steps.len();
        let few = options.lower_order_final && self.steps.len() < 15;
        if self.known < 2 || last && (options.euler_at_final || few || step.to.noise == 0.0) {
            return None;
        }
        self.step.checked_sub(1).and_then(|before| self.steps.get(before)).copied()
    }

    /// `scale x + image D + change (D - D before) ratio + noise`; first order without a step before.
    fn second_order(
        &mut self,
        x: &mut [f32],
        scale: f64,
        (of_image, of_change): (f64, f64),
        ratio: Option<f64>,
        of_noise: f64,
    ) {
        let [newest, older] = self.denoised.as_slice() else { return };
        // A step from where no signal is left was infinitely long: the ratio to it is 0.
        let change = ratio.map_or(0.0, |ratio| of_change * ratio);
        match (change != 0.0, of_noise > 0.0) {
            (false, false) => combine(x, scale, &[(of_image, newest)]),
            (false, true) => combine(x, scale, &[(of_image, newest), (of_noise, &self.normals)]),
            (true, false) => combine(x, scale, &[(of_image + change, newest), (-change, older)]),
            (true, true) => {
                combine(x, scale, &[(of_image + change, newest), (-change, older), (of_noise, &self.normals)]);
            }
        }
    }

    pub(crate) fn dpmpp_sde(
        &mut self,
        step: &ScheduleStep,
        source: SdeNoise,
        x: &mut [f32],
        noise: &mut Noise,
    ) -> Result<bool, SamplingError> {
        if step.to.noise == 0.0 {
            return Ok(self.euler(step, x));
        }
        let [start, middle, end] = log_sigmas(step).map(sigma_of);
        let to = if self.part == 0 { middle } else { end };
        let (down, up) = ancestral(start, to, 1.0);
        let ratio = down / start;
        self.draw(source, start, to, noise)?;
        if self.part == 0 {
            self.saved.copy_from_slice(x);
        } else {
            x.copy_from_slice(&self.saved);
        }
        combine(x, ratio, &[(1.0 - ratio, self.denoised()), (up, &self.normals)]);
        Ok(self.part == 1)
    }

    /// The timestep and sigma between the two evaluations of a step of DPM++ SDE.
    pub(crate) fn middle_evaluation(&self, step: &ScheduleStep) -> (f32, f64) {
        let [_, middle, _] = log_sigmas(step).map(sigma_of);
        (self.process.timestep(middle) as f32, middle)
    }
}

/// -log(sigma) at the start, in the middle and at the end of a step, rounded to 32 bits as in torch: a Brownian path
/// is rough enough to show the difference.
fn log_sigmas(step: &ScheduleStep) -> [f32; 3] {
    let log = |sigma: f64| -(sigma.ln() as f32);
    let (start, end) = (log(step.from.noise), log(step.to.noise));
    [start, start + (end - start) * 0.5, end]
}

fn sigma_of(t: f32) -> f64 {
    f64::from((-f64::from(t)).exp() as f32)
}
