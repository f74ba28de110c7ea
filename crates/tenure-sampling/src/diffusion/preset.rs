//! What each published family of models wants: steps, guidance, sampler, schedule, size.

use crate::diffusion::{
    BetaSchedule, FinalSigma, FlowSchedule, FlowShift, Guidance, Method, NoiseSchedule, Prediction, Process,
    ScheduleSettings, SigmaRule, SkipLayers, Spacing,
};
use crate::error::SamplingError;

/// The published families, and what was distilled from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Stable Diffusion 1.x.
    Sd1,
    /// Stable Diffusion 2.x base, 512 pixels, predicting noise.
    Sd2Base,
    /// Stable Diffusion 2.x, 768 pixels, v-prediction.
    Sd2V,
    /// Stable Diffusion XL.
    Sdxl,
    /// SD-Turbo, of Stable Diffusion 2.1.
    SdTurbo,
    /// SDXL-Turbo.
    SdxlTurbo,
    /// SDXL-Lightning for a number of steps.
    SdxlLightning(LightningSteps),
    /// Latent consistency models of Stable Diffusion 1.x.
    Sd1Lcm,
    /// Latent consistency models of Stable Diffusion XL.
    SdxlLcm,
    /// Stable Diffusion 3 Medium.
    Sd3Medium,
    /// Stable Diffusion 3.5 Medium.
    Sd35Medium,
    /// Stable Diffusion 3.5 Large.
    Sd35Large,
    /// Stable Diffusion 3.5 Large Turbo.
    Sd35LargeTurbo,
}

/// The checkpoints of SDXL-Lightning that predict noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LightningSteps {
    /// Two steps.
    Two,
    /// Four steps.
    Four,
    /// Eight steps.
    Eight,
}

impl LightningSteps {
    /// The number.
    pub fn steps(self) -> usize {
        match self {
            LightningSteps::Two => 2,
            LightningSteps::Four => 4,
            LightningSteps::Eight => 8,
        }
    }
}

impl Variant {
    /// The distilled variant of a family that a file's name or its metadata speaks of ("sdxl_lightning_4step",
    /// "dreamshaper-lcm", "sd3.5_large_turbo"); the family itself if none is known.
    pub fn named(self, name: &str) -> Variant {
        let name = name.to_ascii_lowercase();
        let has = |word: &str| name.contains(word);
        match self {
            Variant::Sdxl if has("lightning") => {
                let steps = |n: char| ["step", "-step", "_step", " step"].iter().any(|word| has(&format!("{n}{word}")));
                Variant::SdxlLightning(match (steps('2'), steps('8')) {
                    (true, _) => LightningSteps::Two,
                    (false, true) => LightningSteps::Eight,
                    (false, false) => LightningSteps::Four,
                })
            }
            Variant::Sdxl if has("turbo") => Variant::SdxlTurbo,
            Variant::Sdxl if has("lcm") => Variant::SdxlLcm,
            Variant::Sd1 if has("lcm") => Variant::Sd1Lcm,
            Variant::Sd2Base | Variant::Sd2V if has("turbo") => Variant::SdTurbo,
            Variant::Sd35Large if has("turbo") => Variant::Sd35LargeTurbo,
            Variant::Sd1
            | Variant::Sd2Base
            | Variant::Sd2V
            | Variant::Sdxl
            | Variant::SdTurbo
            | Variant::SdxlTurbo
            | Variant::SdxlLightning(_)
            | Variant::Sd1Lcm
            | Variant::SdxlLcm
            | Variant::Sd3Medium
            | Variant::Sd35Medium
            | Variant::Sd35Large
            | Variant::Sd35LargeTurbo => self,
        }
    }

    /// What it wants.
    pub fn preset(self) -> Preset {
        let karras = (Method::DPMPP_2M, Spacing::Linspace, SigmaRule::KARRAS);
        let trailing = |method| (method, Spacing::Trailing, SigmaRule::Spaced);
        let flow = |method| (method, Spacing::Linspace, SigmaRule::Spaced);
        let ancestral = Method::EulerAncestral { eta: 1.0 };
        let guided = |scale| Guidance::of(scale);
        let off = Guidance::OFF;
        // Pixels, steps, guidance, (sampler, spacing, rule), steps and guidance that make sense.
        let (size, steps, guidance, (method, spacing, rule), (steps_range, scale_range)) = match self {
            Variant::Sd1 | Variant::Sd2Base => (512, 25, guided(7.5), karras, ((8, 150), (1.5, 20.0))),
            Variant::Sd2V => (768, 25, guided(7.5), karras, ((8, 150), (1.5, 20.0))),
            Variant::Sdxl => (1024, 30, guided(5.0), karras, ((8, 150), (1.5, 15.0))),
            Variant::SdTurbo | Variant::SdxlTurbo => (512, 1, off, trailing(ancestral), ((1, 4), (0.0, 1.0))),
            Variant::SdxlLightning(n) => {
                (1024, n.steps(), off, trailing(Method::Euler), ((n.steps(), n.steps()), (0.0, 1.0)))
            }
            Variant::Sd1Lcm => (512, 4, off, trailing(Method::LCM), ((1, 8), (0.0, 2.0))),
            Variant::SdxlLcm => (1024, 4, off, trailing(Method::LCM), ((1, 8), (0.0, 2.0))),
            Variant::Sd3Medium => (1024, 28, guided(7.0), flow(Method::Euler), ((8, 150), (1.5, 15.0))),
            Variant::Sd35Medium => (1024, 50, guided(5.0), flow(Method::DPMPP_2M), ((8, 150), (1.5, 10.0))),
            Variant::Sd35Large => (1024, 40, guided(4.5), flow(Method::DPMPP_2M), ((8, 150), (1.5, 10.0))),
            Variant::Sd35LargeTurbo => (1024, 4, off, flow(Method::Euler), ((2, 8), (0.0, 1.5))),
        };
        let schedule = ScheduleSettings { steps, spacing, steps_offset: 1, rule, final_sigma: FinalSigma::Zero };
        let with_skip_layers = matches!(self, Variant::Sd35Medium)
            .then(|| Guidance { skip_layers: Some(SkipLayers::sd35_medium()), ..guided(4.0) });
        let width = size;
        Preset {
            variant: self,
            width,
            height: size,
            guidance,
            with_skip_layers,
            method,
            schedule,
            steps_range,
            scale_range,
        }
    }

    /// The process it was trained on.
    ///
    /// # Errors
    /// None with the published values; those of [`NoiseSchedule::new`] and [`FlowSchedule::new`] by their type.
    pub fn process(self) -> Result<Process, SamplingError> {
        let discrete = |prediction| {
            let schedule = NoiseSchedule::new(BetaSchedule::STABLE_DIFFUSION, 1000, false)?;
            Ok(Process::Discrete { schedule, prediction })
        };
        match self {
            Variant::Sd1
            | Variant::Sd2Base
            | Variant::Sdxl
            | Variant::SdTurbo
            | Variant::SdxlTurbo
            | Variant::SdxlLightning(_)
            | Variant::Sd1Lcm
            | Variant::SdxlLcm => discrete(Prediction::Epsilon),
            Variant::Sd2V => discrete(Prediction::V),
            Variant::Sd3Medium | Variant::Sd35Medium | Variant::Sd35Large | Variant::Sd35LargeTurbo => {
                Ok(Process::Flow(FlowSchedule::new(FlowShift::Static(3.0), 1000)?))
            }
        }
    }
}

/// What a family of models wants; every field is the caller's to change.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// The family.
    pub variant: Variant,
    /// Pixels across it was trained for.
    pub width: usize,
    /// Pixels down it was trained for.
    pub height: usize,
    /// Guidance.
    pub guidance: Guidance,
    /// The guidance published for use with skipped layers, where there is one: instead of the plain one.
    pub with_skip_layers: Option<Guidance>,
    /// The sampler.
    pub method: Method,
    /// Steps and where they lie.
    pub schedule: ScheduleSettings,
    /// The least and most steps that make sense.
    pub steps_range: (usize, usize),
    /// The least and most guidance that makes sense.
    pub scale_range: (f32, f32),
}

impl Preset {
    /// For a latent consistency model that is told the guidance it is to answer with, and so is asked once a step (Luo et
    /// al., <https://arxiv.org/abs/2310.04378>): a scale in the middle of those it was distilled with, 3 to 15.
    pub fn told_guidance(self) -> Preset {
        let Preset { guidance, method, schedule, steps_range, .. } = Variant::Sd1Lcm.preset();
        let guidance = Guidance { scale: 8.0, ..guidance };
        Preset { guidance, with_skip_layers: None, method, schedule, steps_range, scale_range: (3.0, 15.0), ..self }
    }

    /// The schedule for another sampler on the same model: DDIM ends at the noise of timestep 0 on Stable Diffusion 1.x
    /// and 2.x, and takes leading timesteps.
    pub fn schedule_for(&self, method: Method) -> ScheduleSettings {
        let distilled = matches!(self.schedule.spacing, Spacing::Trailing);
        match (method, self.variant) {
            (Method::Ddim { .. }, variant) if !distilled => {
                let ends_noisy = matches!(variant, Variant::Sd1 | Variant::Sd2Base | Variant::Sd2V);
                ScheduleSettings {
                    spacing: Spacing::Leading,
                    rule: SigmaRule::Spaced,
                    final_sigma: if ends_noisy { FinalSigma::SigmaMin } else { FinalSigma::Zero },
                    ..self.schedule.clone()
                }
            }
            (Method::Lcm { .. }, _) => ScheduleSettings { rule: SigmaRule::Spaced, ..self.schedule.clone() },
            _ => self.schedule.clone(),
        }
    }

    /// What speaks against a caller's own guidance scale and number of steps: for the report, not an error.
    pub fn advice(&self, scale: f32, steps: usize) -> Vec<Advice> {
        let mut advice = Vec::new();
        let (least, most) = self.scale_range;
        if scale > most {
            advice.push(Advice::GuidanceTooStrong { scale, most });
        }
        if scale < least {
            advice.push(Advice::GuidanceTooWeak { scale, least });
        }
        let (least, most) = self.steps_range;
        if steps < least {
            advice.push(Advice::TooFewSteps { steps, least });
        }
        if steps > most {
            advice.push(Advice::TooManySteps { steps, most });
        }
        advice
    }
}

/// What speaks against a setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Advice {
    /// The picture will look burnt: distilled models have their guidance built in.
    GuidanceTooStrong {
        /// The caller's scale.
        scale: f32,
        /// The most that makes sense.
        most: f32,
    },
    /// The picture will hardly follow the prompt.
    GuidanceTooWeak {
        /// The caller's scale.
        scale: f32,
        /// The least that makes sense.
        least: f32,
    },
    /// The picture will be unfinished.
    TooFewSteps {
        /// The caller's steps.
        steps: usize,
        /// The least that makes sense.
        least: usize,
    },
    /// Distilled models get worse with more steps than they were made for; others only take longer.
    TooManySteps {
        /// The caller's steps.
        steps: usize,
        /// The most that makes sense.
        most: usize,
    },
}
