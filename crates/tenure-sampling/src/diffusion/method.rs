//! The samplers there are, and their options.

use crate::error::SamplingError;

/// How one step goes from a noise level to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// Euler's method on the probability-flow ODE (Karras et al., <https://arxiv.org/abs/2206.00364>,
    /// algorithm 2 without churn); on flow models the flow-match Euler sampler.
    Euler,
    /// Euler steps that go too far and put noise back, as k-diffusion has them.
    EulerAncestral {
        /// The share of the noise that is drawn anew, 0..=1; 1 is usual.
        eta: f64,
    },
    /// Heun's second-order method: two evaluations a step, one in a last step to sigma 0.
    Heun,
    /// DPM-Solver++ of second order, multistep (Lu et al., <https://arxiv.org/abs/2211.01095>).
    Dpmpp2m {
        /// Its order at the ends, and its correction.
        options: DpmOptions,
        /// How it takes a flow model.
        flow: FlowForm,
    },
    /// The same for the reverse SDE; flow models as [`FlowForm::LogSnr`] says.
    Dpmpp2mSde {
        /// Its order at the ends, and its correction.
        options: DpmOptions,
        /// Where its noise comes from.
        noise: SdeNoise,
    },
    /// DPM-Solver++ of second order for the reverse SDE, single step: two evaluations a step, one in a
    /// last step to sigma 0; discrete models only.
    DpmppSde {
        /// Where its noise comes from.
        noise: SdeNoise,
    },
    /// Song et al., <https://arxiv.org/abs/2010.02502>; discrete models only.
    Ddim {
        /// 0 draws no noise, 1 is DDPM.
        eta: f64,
    },
    /// Latent consistency models (Luo et al., <https://arxiv.org/abs/2310.04378>).
    Lcm {
        /// The steps of the schedule it was distilled on (50); a sampler takes some of them.
        original_steps: usize,
        /// What timesteps are multiplied with in the boundary condition (10).
        timestep_scaling: f64,
    },
    /// Unified predictor-corrector (Zhao et al., <https://arxiv.org/abs/2302.04867>); its last steps are
    /// of lower order.
    UniPc {
        /// 1..=3; 2 is usual under guidance.
        order: usize,
        /// The function B(h).
        variant: UniPcVariant,
    },
}

impl Method {
    /// DPM++ 2M with the defaults of diffusers on discrete models, of Stable Diffusion 3's published code on
    /// flow models.
    pub const DPMPP_2M: Method = Method::Dpmpp2m { options: DpmOptions::USUAL, flow: FlowForm::LogSigma };
    /// DPM++ 2M SDE as diffusers has it.
    pub const DPMPP_2M_SDE: Method = Method::Dpmpp2mSde { options: DpmOptions::USUAL, noise: SdeNoise::Independent };
    /// DPM++ SDE as k-diffusion and diffusers have it.
    pub const DPMPP_SDE: Method = Method::DpmppSde { noise: SdeNoise::BrownianTree };
    /// LCM as published.
    pub const LCM: Method = Method::Lcm { original_steps: 50, timestep_scaling: 10.0 };
    /// UniPC as diffusers has it.
    pub const UNIPC: Method = Method::UniPc { order: 2, variant: UniPcVariant::Bh2 };

    /// How often the model is asked in each step, but for a last one that ends at sigma 0.
    pub fn evaluations(&self) -> usize {
        match self {
            Method::Heun | Method::DpmppSde { .. } => 2,
            Method::Euler
            | Method::EulerAncestral { .. }
            | Method::Dpmpp2m { .. }
            | Method::Dpmpp2mSde { .. }
            | Method::Ddim { .. }
            | Method::Lcm { .. }
            | Method::UniPc { .. } => 1,
        }
    }

    /// Whether its latents on a discrete model are `image + sigma * noise`, their variance growing without bound.
    pub(crate) fn explodes(&self) -> bool {
        match self {
            Method::Euler | Method::EulerAncestral { .. } | Method::Heun | Method::DpmppSde { .. } => true,
            Method::Dpmpp2m { .. }
            | Method::Dpmpp2mSde { .. }
            | Method::Ddim { .. }
            | Method::Lcm { .. }
            | Method::UniPc { .. } => false,
        }
    }

    pub(crate) fn check(&self) -> Result<(), SamplingError> {
        let bad = |field, value| Err(SamplingError::BadDiffusion { field, value });
        match *self {
            Method::EulerAncestral { eta } | Method::Ddim { eta } if !(0.0..=1.0).contains(&eta) => bad("eta", eta),
            Method::Lcm { original_steps: 0, .. } => bad("original_steps", 0.0),
            Method::Lcm { timestep_scaling, .. } if !(timestep_scaling > 0.0 && timestep_scaling.is_finite()) => {
                bad("timestep_scaling", timestep_scaling)
            }
            Method::UniPc { order, .. } if !(1..=3).contains(&order) => bad("order", order as f64),
            Method::Euler
            | Method::EulerAncestral { .. }
            | Method::Heun
            | Method::Dpmpp2m { .. }
            | Method::Dpmpp2mSde { .. }
            | Method::DpmppSde { .. }
            | Method::Ddim { .. }
            | Method::Lcm { .. }
            | Method::UniPc { .. } => Ok(()),
        }
    }
}

/// Options of the multistep DPM-Solver++.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DpmOptions {
    /// How the second order is reached.
    pub correction: DpmCorrection,
    /// Whether the last of fewer than 15 steps is of first order. A last step to sigma 0 always is.
    pub lower_order_final: bool,
    /// Whether the last step is of first order, however many there are.
    pub euler_at_final: bool,
}

impl DpmOptions {
    /// The defaults of diffusers.
    pub const USUAL: DpmOptions =
        DpmOptions { correction: DpmCorrection::Midpoint, lower_order_final: true, euler_at_final: false };
}

impl Default for DpmOptions {
    fn default() -> Self {
        DpmOptions::USUAL
    }
}

/// The two second-order corrections of the DPM-Solver papers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DpmCorrection {
    /// Half of the first-order weight.
    Midpoint,
    /// The exact integral of the linear term.
    Heun,
}

/// How DPM++ 2M takes a flow model. On discrete models both are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlowForm {
    /// Steps in log(sigma), on the sigmas of flow-match Euler: what Stable Diffusion 3's published
    /// sampler does.
    LogSigma,
    /// Steps in log((1 - sigma) / sigma), on sigmas and whole timesteps of its own: what diffusers
    /// does with `use_flow_sigmas`.
    LogSnr,
}

/// Where the noise of a sampler for the reverse SDE comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SdeNoise {
    /// Drawn anew for each step.
    Independent,
    /// Increments of one Brownian path over sigma, the same path for any number of steps
    /// ([`crate::diffusion::BrownianTree`]).
    BrownianTree,
}

/// B(h) of UniPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UniPcVariant {
    /// B(h) = h.
    Bh1,
    /// B(h) = e^h - 1.
    Bh2,
}
