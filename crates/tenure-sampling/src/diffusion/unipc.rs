//! UniPC: a multistep predictor, and a corrector that uses the next evaluation (Zhao et al.,
//! <https://arxiv.org/abs/2302.04867>), on estimates of the image.

use crate::diffusion::sampler::combine;
use crate::diffusion::{DiffusionSampler, ScheduleStep, UniPcVariant};

/// The highest order.
const MOST: usize = 3;

impl DiffusionSampler {
    pub(crate) fn unipc(&mut self, step: &ScheduleStep, order: usize, variant: UniPcVariant, x: &mut [f32]) -> bool {
        if self.known > 1
            && let Some(before) = self.step.checked_sub(1).and_then(|before| self.steps.get(before)).copied()
        {
            x.copy_from_slice(&self.saved);
            self.update(&before, Phase::Correct, self.order, variant, x);
        }
        self.order = order.min(self.steps.len() - self.step).min(self.known);
        self.saved.copy_from_slice(x);
        self.update(step, Phase::Predict, self.order, variant, x);
        true
    }

    /// One update over `step`, from the latents at its start.
    fn update(&self, step: &ScheduleStep, phase: Phase, order: usize, variant: UniPcVariant, x: &mut [f32]) {
        // The estimate at the step's start, which the corrector's own evaluation comes before.
        let (base, steps_back) = match phase {
            Phase::Predict => (0, self.step),
            Phase::Correct => (1, self.step - 1),
        };
        let lambda = step.from.lambda();
        let h = step.to.lambda() - lambda;
        let phi = (-h).exp_m1();
        let mut ratios = [1.0; MOST];
        for (i, ratio) in ratios.iter_mut().enumerate().take(order - 1) {
            let earlier = steps_back.checked_sub(i + 1).and_then(|at| self.steps.get(at));
            *ratio = earlier.map_or(1.0, |earlier| (earlier.from.lambda() - lambda) / h);
        }
        if let Some(last) = ratios.get_mut(order - 1) {
            *last = 1.0;
        }
        let weights = match phase {
            Phase::Predict if order == 1 => [0.0; MOST],
            Phase::Predict if order == 2 => [0.5, 0.0, 0.0],
            Phase::Predict => solve(&ratios, order - 1, h, variant),
            Phase::Correct if order == 1 => [0.5, 0.0, 0.0],
            Phase::Correct => solve(&ratios, order, h, variant),
        };
        let scale = match variant {
            UniPcVariant::Bh1 => -h,
            UniPcVariant::Bh2 => phi,
        };
        let numbers = |at: usize| self.denoised.get(at).map_or(&[][..], Vec::as_slice);
        let mut terms: [(f64, &[f32]); MOST + 1] = [(0.0, &[]); MOST + 1];
        let mut of_base = -step.to.signal * phi;
        let mut used = 1;
        for (i, (weight, ratio)) in weights.into_iter().zip(ratios).enumerate() {
            if weight == 0.0 {
                continue;
            }
            let newest = phase == Phase::Correct && i + 1 == order;
            let term = -step.to.signal * scale * weight / ratio;
            if let Some(place) = terms.get_mut(used) {
                *place = (term, if newest { numbers(0) } else { numbers(base + i + 1) });
                used += 1;
            }
            of_base -= term;
        }
        terms[0] = (of_base, numbers(base));
        combine(x, step.to.noise / step.from.noise, terms.get(..used).unwrap_or_default());
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Predict,
    Correct,
}

/// The weights under which the update is exact for polynomials: sum over k of weight_k ratio_k^i = b_i.
fn solve(ratios: &[f64; MOST], n: usize, h: f64, variant: UniPcVariant) -> [f64; MOST] {
    let hh = -h;
    let scale = match variant {
        UniPcVariant::Bh1 => hh,
        UniPcVariant::Bh2 => hh.exp_m1(),
    };
    // Rows of the system, the right-hand side last.
    let mut rows = [[0.0; MOST + 1]; MOST];
    let mut phi = hh.exp_m1() / hh - 1.0;
    let mut factorial = 1.0;
    for (i, row) in rows.iter_mut().enumerate().take(n) {
        for (place, ratio) in row.iter_mut().zip(ratios).take(n) {
            *place = ratio.powi(i as i32);
        }
        row[MOST] = phi * factorial / scale;
        factorial *= (i + 2) as f64;
        phi = phi / hh - 1.0 / factorial;
    }
    for pivot in 0..n {
        let best = (pivot..n).max_by(|&a, &b| rows[a][pivot].abs().total_cmp(&rows[b][pivot].abs())).unwrap_or(pivot);
        rows.swap(pivot, best);
        let head = rows[pivot];
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != pivot).take(n) {
            let factor = row[pivot] / head[pivot];
            for (place, top) in row.iter_mut().zip(head) {
                *place -= factor * top;
            }
        }
    }
    let mut weights = [0.0; MOST];
    for (i, weight) in weights.iter_mut().enumerate().take(n) {
        *weight = rows[i][MOST] / rows[i][i];
    }
    weights
}
