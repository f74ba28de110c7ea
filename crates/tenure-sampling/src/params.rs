//! What a sampler should do: plain data with llama.cpp's default values.

use crate::error::SamplingError;

/// One stage of the chain. [`SamplerParams::stages`] lists them in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Repetition, frequency and presence penalties over the last tokens.
    Penalties,
    /// DRY: penalises a token that would extend a repeated sequence.
    Dry,
    /// Keeps the tokens within n standard deviations of the largest logit.
    TopNSigma,
    /// Keeps the k most probable tokens.
    TopK,
    /// Locally typical sampling (<https://arxiv.org/abs/2202.00666>).
    TypicalP,
    /// Nucleus sampling (<https://arxiv.org/abs/1904.09751>).
    TopP,
    /// Keeps tokens at least `min_p` times as probable as the most probable one.
    MinP,
    /// Exclude top choices: by chance removes all probable tokens but the least of them.
    Xtc,
    /// Temperature, fixed or dynamic.
    Temperature,
}

impl Stage {
    /// llama.cpp's default order.
    pub const DEFAULT_ORDER: [Stage; 9] = [
        Stage::Penalties,
        Stage::Dry,
        Stage::TopNSigma,
        Stage::TopK,
        Stage::TypicalP,
        Stage::TopP,
        Stage::MinP,
        Stage::Xtc,
        Stage::Temperature,
    ];
}

/// Whether mirostat replaces the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mirostat {
    /// The chain of stages decides.
    #[default]
    Off,
    /// Mirostat 2.0 (<https://arxiv.org/abs/2007.14966>): as in llama.cpp the stages are then not
    /// run; only the logit biases and the plain temperature come before it.
    V2,
}

/// What to do with logits that hold NaN or +inf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NonFinite {
    /// Refuse with [`SamplingError::NonFiniteLogits`].
    #[default]
    Refuse,
    /// Take the largest finite logit and set [`crate::Sampled::finite_fallback`]. Refused all the
    /// same when no logit is finite.
    ArgmaxFinite,
}

/// The parameters of one sampler. [`Default`] gives llama.cpp's defaults.
///
/// Logit biases are added first, then the [`stages`](Self::stages) run in order, then one token
/// is drawn from what is left. A stage at its neutral value does nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerParams {
    /// Seed of the random numbers; every value is an ordinary seed. No entropy is drawn here: who
    /// wants another text each time passes another seed. Default 0.
    pub seed: u64,
    /// Which of several independent draws with the same seed, e.g. the n-th answer to one prompt.
    /// Default 0.
    pub stream: u64,
    /// Divides the logits; 0 keeps only the most probable token. At least 0. Default 0.8.
    pub temperature: f32,
    /// Half the width of the dynamic temperature's range; 0 turns it off. Default 0.
    pub dynatemp_range: f32,
    /// How the normalised entropy maps to the dynamic temperature. Default 1.
    pub dynatemp_exponent: f32,
    /// Tokens to keep; 0 and below keep all, as does any number from the vocabulary's size up.
    /// Default 40.
    pub top_k: i32,
    /// Probability mass to keep, 0 to 1; 1 turns it off. Default 0.95.
    pub top_p: f32,
    /// Least probability relative to the most probable token, 0 to 1; 0 turns it off.
    /// Default 0.05.
    pub min_p: f32,
    /// Mass of locally typical tokens to keep, 0 to 1; 1 turns it off. Default 1.
    pub typical_p: f32,
    /// Standard deviations below the largest logit to keep; 0 and below turn it off. Default -1.
    pub top_n_sigma: f32,
    /// Chance that XTC removes the top choices of a step, 0 to 1; 0 turns it off. Default 0.
    pub xtc_probability: f32,
    /// Probability from which XTC counts a token as a top choice, 0 to 1; above 0.5 turns it off.
    /// Default 0.1.
    pub xtc_threshold: f32,
    /// Tokens that top-p, min-p, typical and XTC must leave over. Default 0.
    pub min_keep: usize,
    /// How many of the last tokens the penalties look at; 0 turns them off, -1 is the context.
    /// Default 64.
    pub penalty_last_n: i32,
    /// Positive logits of seen tokens are divided by it, others multiplied; 1 turns it off.
    /// Above 0. Default 1.
    pub penalty_repeat: f32,
    /// Subtracted once for each time a token was seen. Default 0.
    pub penalty_freq: f32,
    /// Subtracted from tokens that were seen. Default 0.
    pub penalty_present: f32,
    /// Scale of the DRY penalty `multiplier * base^(repeat - allowed)`; 0 turns DRY off. At least
    /// 0. Default 0.
    pub dry_multiplier: f32,
    /// Growth of the DRY penalty; below 1 turns DRY off. Default 1.75.
    pub dry_base: f32,
    /// Repeats shorter than this are free. Default 2.
    pub dry_allowed_length: u32,
    /// How many of the last tokens DRY looks at; 0 turns it off, -1 is the context. Default -1.
    pub dry_penalty_last_n: i32,
    /// Token sequences across which DRY sees no repeat. Default none: strings become token
    /// sequences through [`crate::breaker_sequences`], llama.cpp's strings are
    /// [`crate::DEFAULT_DRY_BREAKERS`].
    pub dry_breakers: Vec<Vec<u32>>,
    /// Whether mirostat replaces the chain. Default off.
    pub mirostat: Mirostat,
    /// Mirostat's target surprise in bits. Above 0. Default 5.
    pub mirostat_tau: f32,
    /// Mirostat's learning rate. At least 0. Default 0.1.
    pub mirostat_eta: f32,
    /// Added to the logits of single tokens; `f32::NEG_INFINITY` bans one. Default none.
    pub logit_bias: Vec<(u32, f32)>,
    /// The stages in order, each at most once. Default [`Stage::DEFAULT_ORDER`].
    pub stages: Vec<Stage>,
    /// What to do with NaN and +inf. Default refuse.
    pub non_finite: NonFinite,
}

impl Default for SamplerParams {
    fn default() -> Self {
        SamplerParams {
            seed: 0,
            stream: 0,
            temperature: 0.8,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: -1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            min_keep: 0,
            penalty_last_n: 64,
            penalty_repeat: 1.0,
            penalty_freq: 0.0,
            penalty_present: 0.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: -1,
            dry_breakers: Vec::new(),
            mirostat: Mirostat::Off,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            logit_bias: Vec::new(),
            stages: Stage::DEFAULT_ORDER.to_vec(),
            non_finite: NonFinite::Refuse,
        }
    }
}

impl SamplerParams {
    /// The defaults at temperature 0: always the most probable token, the lowest id of equals.
    pub fn greedy() -> Self {
        SamplerParams { temperature: 0.0, ..SamplerParams::default() }
    }

    /// Refuses the first field that is out of its range, whether or not its stage is listed.
    pub fn validate(&self, vocab_size: usize) -> Result<(), SamplingError> {
        if vocab_size == 0 || u32::try_from(vocab_size).is_err() {
            return Err(bad("vocab_size", vocab_size as f64));
        }
        let unit = 0.0..=1.0;
        let ranged = [
            ("temperature", self.temperature, 0.0..=f32::MAX),
            ("dynatemp_range", self.dynatemp_range, 0.0..=f32::MAX),
            ("dynatemp_exponent", self.dynatemp_exponent, 0.0..=f32::MAX),
            ("top_p", self.top_p, unit.clone()),
            ("min_p", self.min_p, unit.clone()),
            ("typical_p", self.typical_p, unit.clone()),
            ("top_n_sigma", self.top_n_sigma, f32::MIN..=f32::MAX),
            ("xtc_probability", self.xtc_probability, unit.clone()),
            ("xtc_threshold", self.xtc_threshold, unit),
            ("penalty_repeat", self.penalty_repeat, f32::MIN_POSITIVE..=f32::MAX),
            ("penalty_freq", self.penalty_freq, f32::MIN..=f32::MAX),
            ("penalty_present", self.penalty_present, f32::MIN..=f32::MAX),
            ("dry_multiplier", self.dry_multiplier, 0.0..=f32::MAX),
            ("dry_base", self.dry_base, 0.0..=f32::MAX),
            ("mirostat_tau", self.mirostat_tau, f32::MIN_POSITIVE..=f32::MAX),
            ("mirostat_eta", self.mirostat_eta, 0.0..=f32::MAX),
        ];
        for (field, value, range) in ranged {
            // NaN is in no range.
            if !range.contains(&value) {
                return Err(bad(field, f64::from(value)));
            }
        }
        for (field, value) in [("penalty_last_n", self.penalty_last_n), ("dry_penalty_last_n", self.dry_penalty_last_n)]
        {
            if value < -1 {
                return Err(bad(field, f64::from(value)));
            }
        }
        self.validate_tokens(vocab_size)?;
        for (i, stage) in self.stages.iter().enumerate() {
            if self.stages.iter().take(i).any(|earlier| earlier == stage) {
                return Err(SamplingError::DuplicateStage { stage: *stage });
            }
        }
        Ok(())
    }

    fn validate_tokens(&self, vocab_size: usize) -> Result<(), SamplingError> {
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocab_size {
                return Err(bad("logit_bias", f64::from(token)));
            }
            if bias.is_nan() || bias == f32::INFINITY {
                return Err(bad("logit_bias", f64::from(bias)));
            }
        }
        for (i, breaker) in self.dry_breakers.iter().enumerate() {
            if breaker.is_empty() {
                return Err(bad("dry_breakers", i as f64));
            }
            if let Some(token) = breaker.iter().find(|t| **t as usize >= vocab_size) {
                return Err(bad("dry_breakers", f64::from(*token)));
            }
        }
        Ok(())
    }

    /// Whether the stage changes anything at these values.
    pub(crate) fn is_active(&self, stage: Stage) -> bool {
        match stage {
            Stage::Penalties => {
                self.penalty_last_n != 0
                    && (self.penalty_repeat != 1.0 || self.penalty_freq != 0.0 || self.penalty_present != 0.0)
            }
            Stage::Dry => self.dry_multiplier != 0.0 && self.dry_base >= 1.0 && self.dry_penalty_last_n != 0,
            Stage::TopNSigma => self.top_n_sigma > 0.0,
            Stage::TopK => self.top_k > 0,
            Stage::TypicalP => self.typical_p < 1.0,
            Stage::TopP => self.top_p < 1.0,
            Stage::MinP => self.min_p > 0.0,
            Stage::Xtc => self.xtc_probability > 0.0 && self.xtc_threshold <= 0.5,
            Stage::Temperature => self.temperature != 1.0 || self.dynatemp_range > 0.0,
        }
    }
}

fn bad(field: &'static str, value: f64) -> SamplingError {
    SamplingError::BadSampling { field, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Edit = fn(&mut SamplerParams);

    fn refused_field(edit: Edit) -> Option<&'static str> {
        let mut params = SamplerParams::default();
        edit(&mut params);
        match params.validate(100) {
            Ok(()) => None,
            Err(SamplingError::BadSampling { field, .. }) => Some(field),
            Err(other) => panic!("unexpected {other:?}"),
        }
    }

    #[test]
    fn values_in_range_are_accepted() {
        let good: [Edit; 18] = [
            |_| (),
            |p| p.temperature = 0.0,
            |p| p.temperature = 1e-38,
            |p| p.temperature = 1e30,
            |p| p.top_k = 0,
            |p| p.top_k = -1,
            |p| p.top_k = i32::MIN,
            |p| p.top_k = 1_000_000,
            |p| p.top_p = 0.0,
            |p| p.top_p = 1.0,
            |p| p.min_p = 1.0,
            |p| p.top_n_sigma = 0.0,
            |p| p.penalty_last_n = -1,
            |p| p.penalty_freq = -2.0,
            |p| p.min_keep = usize::MAX,
            |p| p.logit_bias = vec![(99, f32::NEG_INFINITY)],
            |p| p.seed = u64::MAX,
            |p| p.dry_breakers = vec![vec![99, 0]],
        ];
        for edit in good {
            assert_eq!(refused_field(edit), None);
        }
    }

    #[test]
    fn values_out_of_range_name_their_field() {
        let refused: [(&str, Edit); 32] = [
            ("temperature", |p| p.temperature = f32::NAN),
            ("temperature", |p| p.temperature = f32::INFINITY),
            ("temperature", |p| p.temperature = -1.0),
            ("dynatemp_range", |p| p.dynatemp_range = -0.1),
            ("dynatemp_exponent", |p| p.dynatemp_exponent = f32::NAN),
            ("top_p", |p| p.top_p = 1.1),
            ("top_p", |p| p.top_p = -0.1),
            ("top_p", |p| p.top_p = f32::NAN),
            ("min_p", |p| p.min_p = 1.1),
            ("min_p", |p| p.min_p = f32::NAN),
            ("typical_p", |p| p.typical_p = f32::NAN),
            ("typical_p", |p| p.typical_p = 2.0),
            ("top_n_sigma", |p| p.top_n_sigma = f32::NAN),
            ("top_n_sigma", |p| p.top_n_sigma = f32::INFINITY),
            ("xtc_probability", |p| p.xtc_probability = 1.5),
            ("xtc_threshold", |p| p.xtc_threshold = -0.5),
            ("penalty_repeat", |p| p.penalty_repeat = f32::NAN),
            ("penalty_repeat", |p| p.penalty_repeat = 0.0),
            ("penalty_freq", |p| p.penalty_freq = f32::NAN),
            ("penalty_present", |p| p.penalty_present = f32::INFINITY),
            ("penalty_last_n", |p| p.penalty_last_n = -2),
            ("dry_multiplier", |p| p.dry_multiplier = f32::NAN),
            ("dry_base", |p| p.dry_base = f32::NEG_INFINITY),
            ("dry_penalty_last_n", |p| p.dry_penalty_last_n = i32::MIN),
            ("dry_breakers", |p| p.dry_breakers = vec![vec![]]),
            ("dry_breakers", |p| p.dry_breakers = vec![vec![1, 100]]),
            ("mirostat_tau", |p| p.mirostat_tau = 0.0),
            ("mirostat_tau", |p| p.mirostat_tau = f32::NAN),
            ("mirostat_eta", |p| p.mirostat_eta = -1.0),
            ("logit_bias", |p| p.logit_bias = vec![(100, 1.0)]),
            ("logit_bias", |p| p.logit_bias = vec![(1, f32::NAN)]),
            ("logit_bias", |p| p.logit_bias = vec![(1, f32::INFINITY)]),
        ];
        for (field, edit) in refused {
            assert_eq!(refused_field(edit), Some(field));
        }
    }

    #[test]
    fn error_carries_the_value() {
        let params = SamplerParams { top_p: 1.5, ..SamplerParams::default() };
        assert_eq!(params.validate(10), Err(SamplingError::BadSampling { field: "top_p", value: 1.5 }));
        assert_eq!(
            SamplerParams::default().validate(0),
            Err(SamplingError::BadSampling { field: "vocab_size", value: 0.0 })
        );
    }

    #[test]
    fn a_stage_listed_twice_is_refused() {
        let params = SamplerParams { stages: vec![Stage::TopK, Stage::TopP, Stage::TopK], ..SamplerParams::default() };
        assert_eq!(params.validate(10), Err(SamplingError::DuplicateStage { stage: Stage::TopK }));
    }

    #[test]
    fn only_the_documented_stages_run_by_default() {
        let params = SamplerParams::default();
        let active: Vec<Stage> = params.stages.iter().copied().filter(|s| params.is_active(*s)).collect();
        assert_eq!(active, [Stage::TopK, Stage::TopP, Stage::MinP, Stage::Temperature]);
    }
}
