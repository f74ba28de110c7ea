//! What of a row of logits a sampler looks at.

use crate::params::{Mirostat, NonFinite, SamplerParams, Stage};

/// What of a row of logits a sampler needs to choose the token it would choose from the whole row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// All of it, in order of token id ([`crate::Sampler::sample`]).
    Row,
    /// The so many largest, at least 1, or all where there are no more ([`crate::Sampler::sample_top`]).
    Top(usize),
}

impl Need {
    /// For a chain of these stages, of which all change something at these parameters.
    ///
    /// The largest are enough where the first stage to run keeps only these: what comes later sees no others. Whatever
    /// changes logits before, or measures all of them, needs all; so does the choice of the largest finite logit, since
    /// any number of others may be larger.
    pub(crate) fn of(params: &SamplerParams, active: &[Stage], is_greedy: bool) -> Need {
        let refuses = match params.non_finite {
            NonFinite::Refuse => true,
            NonFinite::ArgmaxFinite => false,
        };
        if !params.logit_bias.is_empty() || !refuses {
            return Need::Row;
        }
        let coldest = params.temperature == 0.0 && params.dynatemp_range == 0.0;
        match params.mirostat {
            // Only the plain temperature comes before it.
            Mirostat::V2 if params.temperature == 0.0 => return Need::Top(1),
            Mirostat::V2 => return Need::Row,
            Mirostat::Off => {}
        }
        if is_greedy && !active.iter().any(|stage| matches!(stage, Stage::Penalties | Stage::Dry)) {
            return Need::Top(1);
        }
        match active.first() {
            Some(Stage::TopK) => Need::Top(usize::try_from(params.top_k).unwrap_or(usize::MAX)),
            Some(Stage::Temperature) if coldest => Need::Top(1),
            Some(
                Stage::Penalties
                | Stage::Dry
                | Stage::TopNSigma
                | Stage::TypicalP
                | Stage::TopP
                | Stage::MinP
                | Stage::Xtc
                | Stage::Temperature,
            )
            | None => Need::Row,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Sampler;

    use super::*;

    type Edit = fn(&mut SamplerParams);

    fn need(edit: Edit) -> Need {
        let mut params = SamplerParams::default();
        edit(&mut params);
        Sampler::new(params, 1000, 64).expect("sound parameters").need()
    }

    #[test]
    fn chains_that_look_at_the_largest_alone() {
        assert_eq!(need(|_| ()), Need::Top(40));
        assert_eq!(need(|p| p.top_k = 1), Need::Top(1));
        assert_eq!(need(|p| p.top_k = 5000), Need::Top(5000));
        assert_eq!(need(|p| p.temperature = 0.0), Need::Top(1));
        assert_eq!(need(|p| p.xtc_probability = 0.5), Need::Top(40), "after top-k");
        assert_eq!(need(|p| p.typical_p = 0.5), Need::Top(40), "after top-k");
        assert_eq!(need(|p| p.dynatemp_range = 0.5), Need::Top(40), "after top-k");
        assert_eq!(need(|p| (p.temperature, p.top_n_sigma) = (0.0, 1.0)), Need::Top(1), "keeps the largest");
        assert_eq!(need(|p| (p.temperature, p.mirostat) = (0.0, Mirostat::V2)), Need::Top(1));
        let coldest_first: Edit = |p| {
            (p.temperature, p.typical_p) = (0.0, 0.5);
            p.stages = vec![Stage::Temperature, Stage::TypicalP];
        };
        assert_eq!(need(coldest_first), Need::Top(1));
        let penalised_after: Edit = |p| {
            p.penalty_repeat = 1.5;
            p.stages.reverse();
            p.stages.retain(|&stage| stage != Stage::Temperature && stage != Stage::MinP && stage != Stage::TopP);
        };
        assert_eq!(need(penalised_after), Need::Top(40));
    }

    #[test]
    fn chains_that_look_at_all() {
        let all: [Edit; 14] = [
            |p| p.top_k = 0,
            |p| p.top_n_sigma = 1.0,
            |p| p.penalty_repeat = 1.1,
            |p| p.penalty_freq = 0.1,
            |p| p.penalty_present = 0.1,
            |p| p.dry_multiplier = 0.8,
            |p| p.logit_bias = vec![(3, 0.0)],
            |p| (p.temperature, p.penalty_repeat) = (0.0, 1.1),
            |p| (p.temperature, p.logit_bias) = (0.0, vec![(3, 1.0)]),
            |p| (p.temperature, p.non_finite) = (0.0, NonFinite::ArgmaxFinite),
            |p| p.non_finite = NonFinite::ArgmaxFinite,
            |p| p.mirostat = Mirostat::V2,
            |p| p.stages = vec![Stage::Temperature, Stage::TopK],
            |p| p.stages = Vec::new(),
        ];
        for (at, edit) in all.into_iter().enumerate() {
            assert_eq!(need(edit), Need::Row, "{at}");
        }
    }
}
