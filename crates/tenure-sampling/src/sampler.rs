//! The sampler of one sequence: runs the chain and draws.

use crate::candidates::Candidates;
use crate::dry::Dry;
use crate::error::SamplingError;
use crate::history::History;
use crate::mirostat::MirostatState;
use crate::need::Need;
use crate::params::{Mirostat, NonFinite, SamplerParams, Stage};
use crate::penalties::Penalties;
use crate::philox::Philox;
use crate::scan::{self, Peak};
use crate::select::top_room;
use crate::temperature::{dynamic_temperature, temperature};
use crate::truncation::{min_p, top_k, top_n_sigma, top_p, typical_p};
use crate::xtc::xtc;

/// The sampling state of one sequence.
///
/// The n-th token depends on the parameters, the logits, the accepted tokens and n, and on nothing
/// else. No memory is allocated after [`Sampler::new`].
///
/// Two readings differ from llama.cpp: a token with logit -inf is no candidate at all (there it
/// counts for `min_keep` and for the largest entropy of the dynamic temperature), and the random
/// numbers come from another generator, so a seed gives another text than there.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplerParams,
    vocab: usize,
    need: Need,
    mode: Mode,
    /// The listed stages that change anything, in order.
    active: Vec<Stage>,
    candidates: Candidates,
    history: History,
    penalties: Option<Penalties>,
    dry: Option<Dry>,
    philox: Philox,
    step: u64,
}

/// A sampled token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The token id.
    pub token: u32,
    /// Its probability among what the chain left over: 1 for a greedy choice. The model's own
    /// probability is [`crate::logprob`] of the logits before they were sampled.
    pub probability: f32,
    /// The logits held NaN or +inf and this is the largest finite one
    /// ([`NonFinite::ArgmaxFinite`]).
    pub finite_fallback: bool,
}

#[derive(Debug, Clone)]
enum Mode {
    /// The chain can only end at the largest penalised logit: no list is needed.
    Greedy,
    Chain,
    Mirostat(MirostatState),
}

impl Sampler {
    /// Checks the parameters and allocates all that sampling will need.
    ///
    /// `context_size` in tokens bounds the windows of the penalties and DRY, and is what -1 means
    /// there.
    pub fn new(params: SamplerParams, vocab_size: usize, context_size: usize) -> Result<Sampler, SamplingError> {
        params.validate(vocab_size)?;
        let (mode, active) = match params.mirostat {
            Mirostat::V2 => {
                let state = MirostatState::new(params.mirostat_tau, params.mirostat_eta);
                (Mode::Mirostat(state), Vec::new())
            }
            Mirostat::Off => {
                let mut active = params.stages.clone();
                active.retain(|stage| params.is_active(*stage));
                let mode = if is_greedy(&params, &active) { Mode::Greedy } else { Mode::Chain };
                (mode, active)
            }
        };
        let penalties = active.contains(&Stage::Penalties).then(|| {
            Penalties::new(
                vocab_size,
                window(params.penalty_last_n, context_size),
                params.penalty_repeat,
                params.penalty_freq,
                params.penalty_present,
            )
        });
        let dry = active.contains(&Stage::Dry).then(|| {
            Dry::new(
                vocab_size,
                window(params.dry_penalty_last_n, context_size),
                params.dry_multiplier,
                params.dry_base,
                params.dry_allowed_length as usize,
                &params.dry_breakers,
            )
        });
        let remembered =
            [penalties.as_ref().map(|_| params.penalty_last_n), dry.as_ref().map(|_| params.dry_penalty_last_n)];
        let remembered = remembered.into_iter().flatten();
        let remembered = remembered.map(|n| window(n, context_size)).max();
        let need = Need::of(&params, &active, matches!(mode, Mode::Greedy));
        let room = list_room(&params, &mode, &active, vocab_size);
        Ok(Sampler {
            philox: Philox::new(params.seed, params.stream),
            params,
            vocab: vocab_size,
            need,
            mode,
            active,
            candidates: Candidates::with_room(room),
            history: History::new(remembered.unwrap_or(0)),
            penalties,
            dry,
            step: 0,
        })
    }

    /// Chooses the next token and advances by one step.
    ///
    /// `logits` is one row in order of token id; it is used as scratch and left in no particular
    /// state. On an error the step is not advanced.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<Sampled, SamplingError> {
        if logits.len() != self.vocab {
            return Err(SamplingError::LogitsLength { got: logits.len(), want: self.vocab });
        }
        let raw_peak = scan::peak(logits);
        self.add_biases(logits);
        self.candidates.begin();
        let (token, probability, finite_fallback) = match raw_peak {
            Ok(peak) => {
                let drawn = self.run(logits, peak);
                let vocab = self.vocab;
                let (token, p) = drawn.ok_or(SamplingError::AllBanned { vocab })?;
                (token, p, false)
            }
            Err(error) => match self.params.non_finite {
                NonFinite::Refuse => return Err(error),
                NonFinite::ArgmaxFinite => {
                    let peak = scan::finite_peak(logits).ok_or(error)?;
                    (peak.token, 1.0, true)
                }
            },
        };
        self.step = self.step.wrapping_add(1);
        Ok(Sampled { token, probability, finite_fallback })
    }

    /// What of a row [`Sampler::sample`] looks at. Fixed by the parameters.
    pub fn need(&self) -> Need {
        self.need
    }

    /// Chooses the next token from the largest logits of a row, with their ids, and advances by one step: the token,
    /// the probability and the random numbers are those that [`Sampler::sample`] would come to with the whole row.
    ///
    /// `top` has as many as [`Sampler::need`] says, or more, or all of the row, in this order: NaN first, so that it is
    /// noticed wherever in the row it stands; then larger before smaller, and of equals the one with the lower id.
    ///
    /// # Errors
    /// [`SamplingError::TooFewLogits`] when more are needed, [`SamplingError::TokenOutOfRange`] for an id that is none, and
    /// whatever [`Sampler::sample`] refuses, which is counted among the logits given. The step is then not advanced.
    pub fn sample_top(&mut self, top: &[(u32, f32)]) -> Result<Sampled, SamplingError> {
        let (vocab, need) = (self.vocab, self.need);
        let k = match need {
            Need::Top(k) if top.len() >= k.min(vocab) => k,
            Need::Top(_) | Need::Row => return Err(SamplingError::TooFewLogits { got: top.len(), need }),
        };
        if let Some(&(token, _)) = top.iter().find(|&&(token, _)| token as usize >= vocab) {
            return Err(SamplingError::TokenOutOfRange { token, vocab });
        }
        let peak = scan::peak_of_top(top)?;
        self.candidates.begin_with(top, k);
        let (token, probability) = self.run(&mut [], peak).ok_or(SamplingError::AllBanned { vocab })?;
        self.step = self.step.wrapping_add(1);
        Ok(Sampled { token, probability, finite_fallback: false })
    }

    /// Notes a token of the text, of the prompt as well as sampled, for the penalties and DRY.
    pub fn accept(&mut self, token: u32) -> Result<(), SamplingError> {
        if token as usize >= self.vocab {
            return Err(SamplingError::TokenOutOfRange { token, vocab: self.vocab });
        }
        if let Some(penalties) = &mut self.penalties {
            penalties.accept(token, &self.history);
        }
        self.history.push(token);
        Ok(())
    }

    /// Back to the state after [`Sampler::new`]: the same text again.
    pub fn reset(&mut self) {
        self.step = 0;
        self.history.clear();
        if let Some(penalties) = &mut self.penalties {
            penalties.reset();
        }
        if let Mode::Mirostat(state) = &mut self.mode {
            state.reset();
        }
    }

    /// The parameters it was built with.
    pub fn params(&self) -> &SamplerParams {
        &self.params
    }

    /// How many tokens were sampled since it was built or reset.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Adds the biases to a row; +inf and NaN stay what they are, finite logits stay finite.
    fn add_biases(&self, logits: &mut [f32]) {
        for &(token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                if bias == f32::NEG_INFINITY {
                    *logit = bias;
                } else if logit.is_finite() {
                    *logit = (*logit + bias).clamp(f32::MIN, f32::MAX);
                }
            }
        }
    }

    /// The token and its probability; none if nothing is left to choose from.
    fn run(&mut self, logits: &mut [f32], raw_peak: Peak) -> Option<(u32, f32)> {
        let [u, chance] = self.philox.uniforms(self.step);
        if matches!(self.mode, Mode::Greedy) {
            return self.run_greedy(logits, raw_peak);
        }
        for i in 0..self.active.len() {
            if let Some(stage) = self.active.get(i).copied() {
                self.run_stage(stage, logits, chance);
            }
        }
        match &mut self.mode {
            Mode::Mirostat(state) => {
                temperature(&mut self.candidates, logits, self.params.temperature);
                state.draw(&mut self.candidates, u)
            }
            Mode::Greedy | Mode::Chain => {
                self.candidates.materialise(logits);
                self.candidates.draw(u)
            }
        }
    }

    fn run_greedy(&mut self, logits: &mut [f32], raw_peak: Peak) -> Option<(u32, f32)> {
        let mut changed = !self.params.logit_bias.is_empty();
        for stage in &self.active {
            changed |= match stage {
                Stage::Penalties => self.penalties.as_mut().is_some_and(|p| p.apply_row(logits, &self.history)),
                Stage::Dry => self.dry.as_mut().is_some_and(|d| d.apply_row(logits, &self.history)),
                // Stages that keep the largest logit wherever they stand.
                Stage::TopNSigma
                | Stage::TopK
                | Stage::TypicalP
                | Stage::TopP
                | Stage::MinP
                | Stage::Xtc
                | Stage::Temperature => false,
            };
        }
        let peak = if changed { scan::peak(logits).ok()? } else { raw_peak };
        Some((peak.token, 1.0))
    }

    fn run_stage(&mut self, stage: Stage, row: &mut [f32], chance: f64) {
        let c = &mut self.candidates;
        let p = &self.params;
        match stage {
            Stage::Penalties => {
                if let Some(penalties) = &mut self.penalties {
                    if c.is_listed() {
                        penalties.apply_list(c);
                    } else {
                        penalties.apply_row(row, &self.history);
                    }
                }
            }
            Stage::Dry => {
                if let Some(dry) = &mut self.dry {
                    if c.is_listed() {
                        dry.apply_list(c, &self.history);
                    } else {
                        dry.apply_row(row, &self.history);
                    }
                }
            }
            Stage::TopNSigma => top_n_sigma(c, row, p.top_n_sigma),
            Stage::TopK => top_k(c, row, usize::try_from(p.top_k).unwrap_or(usize::MAX)),
            Stage::TypicalP => typical_p(c, row, p.typical_p, p.min_keep),
            Stage::TopP => top_p(c, row, p.top_p, p.min_keep),
            Stage::MinP => min_p(c, row, p.min_p, p.min_keep),
            Stage::Xtc => xtc(c, row, p.xtc_probability, p.xtc_threshold, p.min_keep, chance),
            Stage::Temperature => {
                if p.dynatemp_range > 0.0 {
                    dynamic_temperature(c, row, p.temperature, p.dynatemp_range, p.dynatemp_exponent);
                } else {
                    temperature(c, row, p.temperature);
                }
            }
        }
    }
}

/// Whether the chain must end at the largest logit after penalties and DRY: temperature 0 is
/// there, and no stage can remove the largest logit or move logits after others were removed.
fn is_greedy(params: &SamplerParams, active: &[Stage]) -> bool {
    let zero = params.temperature == 0.0 && params.dynatemp_range == 0.0;
    let mut cut = false;
    let mut possible = true;
    for stage in active {
        match stage {
            Stage::Penalties | Stage::Dry => possible &= !cut,
            Stage::TopNSigma | Stage::TopK | Stage::TopP | Stage::MinP | Stage::Temperature => {
                cut = true;
            }
            Stage::TypicalP | Stage::Xtc => possible = false,
        }
    }
    zero && possible && active.contains(&Stage::Temperature)
}

/// How many candidates the list may have to hold.
fn list_room(params: &SamplerParams, mode: &Mode, active: &[Stage], vocab: usize) -> usize {
    let first_cut = active.iter().find(|stage| !matches!(stage, Stage::Penalties | Stage::Dry));
    match (mode, first_cut) {
        // One that is given alone is listed.
        (Mode::Greedy, _) => 1,
        (Mode::Chain, Some(Stage::TopK)) => top_room(usize::try_from(params.top_k).unwrap_or(usize::MAX), vocab),
        (Mode::Chain, _) => vocab,
        (Mode::Mirostat(_), _) if params.temperature == 0.0 => top_room(1, vocab),
        (Mode::Mirostat(_), _) => vocab,
    }
}

/// A window of the last n tokens; -1 is the context, and none is longer.
fn window(last_n: i32, context_size: usize) -> usize {
    usize::try_from(last_n).map_or(context_size, |n| n.min(context_size))
}
