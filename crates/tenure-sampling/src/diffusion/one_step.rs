//! Samplers without a memory: Euler, ancestral Euler, Heun, DDIM, LCM.

use crate::diffusion::sampler::combine;
use crate::diffusion::{DiffusionSampler, Noise, NoiseLevel, Process, ScheduleStep};
use crate::error::SamplingError;

impl DiffusionSampler {
    pub(crate) fn euler(&mut self, step: &ScheduleStep, x: &mut [f32]) -> bool {
        let ratio = step.to.noise / step.from.noise;
        combine(x, ratio, &[(1.0 - ratio, self.denoised())]);
        true
    }

    pub(crate) fn euler_ancestral(
        &mut self,
        step: &ScheduleStep,
        eta: f64,
        x: &mut [f32],
        noise: &mut Noise,
    ) -> Result<bool, SamplingError> {
        let (from, to) = (step.from.noise, step.to.noise);
        // Where to go without noise, then what to scale by, and how much noise to add.
        let (down, signal, up) = match self.process {
            Process::Discrete { .. } => {
                let (down, up) = ancestral(from, to, eta);
                (down, 1.0, up)
            }
            Process::Flow(_) => {
                let down = to * (1.0 + (to / from - 1.0) * eta);
                let signal = step.to.signal / (1.0 - down);
                (down, signal, (to * to - down * down * signal * signal).max(0.0).sqrt())
            }
        };
        let ratio = down / from;
        self.renoise(x, signal * ratio, signal * (1.0 - ratio), up, noise)
    }

    pub(crate) fn heun(&mut self, step: &ScheduleStep, x: &mut [f32]) -> bool {
        let (from, to) = (step.from.noise, step.to.noise);
        if self.part == 0 {
            self.saved.copy_from_slice(x);
            self.euler(step, x);
            return to == 0.0;
        }
        let half = 0.5 * (to - from);
        if let [second, first] = self.denoised.as_slice() {
            let terms: [(f64, &[f32]); 3] =
                [(1.0 + half / from, &self.saved), (-half / from, first), (-half / to, second)];
            combine(x, half / to, &terms);
        }
        true
    }

    pub(crate) fn ddim(
        &mut self,
        step: &ScheduleStep,
        eta: f64,
        x: &mut [f32],
        noise: &mut Noise,
    ) -> Result<bool, SamplingError> {
        let (from, to) = (step.from, step.to);
        let kept = (from.signal / to.signal).powi(2);
        let deviation = eta * (to.noise / from.noise) * (1.0 - kept).max(0.0).sqrt();
        let direction = (to.noise * to.noise - deviation * deviation).max(0.0).sqrt() / from.noise;
        let of_image = to.signal - direction * from.signal;
        self.renoise(x, direction, of_image, deviation, noise)
    }

    pub(crate) fn lcm(
        &mut self,
        step: &ScheduleStep,
        timestep_scaling: f64,
        x: &mut [f32],
        noise: &mut Noise,
    ) -> Result<bool, SamplingError> {
        if let (Process::Discrete { .. }, Some(image)) = (&self.process, self.denoised.first_mut()) {
            // The boundary condition: at timestep 0 the model's answer is its input. 0.5 is the data's deviation.
            let scaled = f64::from(step.timestep) * timestep_scaling;
            let norm = scaled * scaled + 0.25;
            combine(image, scaled / norm.sqrt(), &[(0.25 / norm, x)]);
        }
        let NoiseLevel { signal, noise: level } = step.to;
        self.renoise(x, 0.0, signal, level, noise)
    }

    /// `x = kept x + image D + deviation noise`, where no deviation draws no noise; the step has ended.
    fn renoise(
        &mut self,
        x: &mut [f32],
        kept: f64,
        of_image: f64,
        deviation: f64,
        noise: &mut Noise,
    ) -> Result<bool, SamplingError> {
        if deviation > 0.0 {
            noise.fill(&mut self.normals)?;
            combine(x, kept, &[(of_image, self.denoised()), (deviation, &self.normals)]);
        } else {
            combine(x, kept, &[(of_image, self.denoised())]);
        }
        Ok(true)
    }
}

/// Where an ancestral step goes without noise, and how much noise it adds there.
pub(crate) fn ancestral(from: f64, to: f64, eta: f64) -> (f64, f64) {
    let up = to.min(eta * (to * to * (from * from - to * to) / (from * from)).max(0.0).sqrt());
    ((to * to - up * up).max(0.0).sqrt(), up)
}
