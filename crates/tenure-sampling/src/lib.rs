//! Sampling: an explicit chain of stages over logits, and the samplers of diffusion models.
//!
//! What it is: the arithmetic between a row of logits and one token id, with the stages, their
//! order and their default values people know from llama.cpp; the matcher that ends a text at a
//! stop string; log-probabilities of raw logits; and the counter-based random numbers they use.
//!
//! What it is not: it knows no tokenizer (DRY breakers and biases are token ids), no model and no
//! thread. Samplers of diffusion models are in [`diffusion`].
//!
//! The three types to know:
//! - [`SamplerParams`], plain data: what to do, in which order, with which seed;
//! - [`Sampler`], one sequence's state: history, mirostat, step; allocates when it is built and
//!   never again;
//! - [`StopMatcher`], which turns pieces of bytes into text that can no longer become a stop.
//!
//! ```
//! use tenure_sampling::{Sampler, SamplerParams};
//!
//! # fn main() -> Result<(), tenure_sampling::SamplingError> {
//! let params = SamplerParams { seed: 7, ..SamplerParams::default() };
//! let mut sampler = Sampler::new(params, 4, 2048)?;
//! let mut logits = [0.1, 9.0, -3.0, 0.2];
//! let sampled = sampler.sample(&mut logits)?;
//! sampler.accept(sampled.token)?;
//! assert_eq!(sampled.token, 1);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod diffusion;

mod candidates;
mod dry;
mod error;
mod history;
mod logprobs;
mod mirostat;
mod need;
mod params;
mod penalties;
mod philox;
mod sampler;
mod scan;
mod select;
mod stop;
mod temperature;
mod truncation;
mod xtc;

pub use dry::{DEFAULT_DRY_BREAKERS, breaker_sequences};
pub use error::SamplingError;
pub use logprobs::{TokenLogprob, logprob, top_logprobs};
pub use need::Need;
pub use params::{Mirostat, NonFinite, SamplerParams, Stage};
pub use philox::{Philox, philox4x32_10};
pub use sampler::{Sampled, Sampler};
pub use scan::argmax;
pub use stop::{StopChunk, StopMatcher};
