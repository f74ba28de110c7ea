//! Samplers of diffusion models: schedules, solvers, guidance, noise.
//!
//! What it is: the arithmetic around a denoiser, over plain slices of latents. Where diffusers defines a sampler or a
//! schedule, the numbers are its numbers; seeds can stand for torch's random numbers, so that a seed known from another
//! program gives its latents.
//!
//! What it is not: it never calls a model and knows no image. A batch of any shape is one slice, image after image.
//!
//! The three types to know:
//! - [`Process`], what the model was trained to undo: a [`NoiseSchedule`] and a [`Prediction`], or a [`FlowSchedule`];
//! - [`DiffusionSampler`], one run: it says what to ask the model and takes the answer;
//! - [`Noise`], the batch's random numbers, a stream for each image.

mod beta_quantile;
mod brownian;
mod dpm;
mod flow;
mod guidance;
mod method;
mod names;
mod noise;
mod noise_schedule;
mod one_step;
mod points;
mod preset;
mod process;
mod region;
mod sampler;
mod schedule;
mod seed_sequence;
mod torch_cpu;
mod torch_cuda;
mod unipc;

pub use brownian::BrownianTree;
pub use flow::{FlowSchedule, FlowShift, dynamic_mu};
pub use guidance::{Guidance, Passes, SkipLayers};
pub use method::{DpmCorrection, DpmOptions, FlowForm, Method, SdeNoise, UniPcVariant};
pub use noise::{Noise, NoiseKind};
pub use noise_schedule::{BetaSchedule, NoiseSchedule};
pub use preset::{Advice, LightningSteps, Preset, Variant};
pub use process::{NoiseLevel, Prediction, Process};
pub use region::{add_noise, keep_region};
pub use sampler::{DiffusionSampler, Evaluation, Progress};
pub use schedule::{AlignYourSteps, FinalSigma, ScheduleSettings, ScheduleStep, SigmaRule, Spacing, schedule};
