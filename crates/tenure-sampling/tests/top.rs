//! The largest logits alone give the token, the probability and the draws that the whole row gives.

use proptest::prelude::*;
use tenure_sampling::{Mirostat, Need, NonFinite, Sampler, SamplerParams, SamplingError, Stage};

/// The `k` first in the order that [`Sampler::sample_top`] wants, from sorting everything.
fn top_of(row: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
    // Zeros of either sign are equal; a NaN of either sign comes first.
    let rank = |x: f32| if x.is_nan() { f32::NAN } else { x + 0.0 };
    all.sort_by(|a, b| rank(b.1).total_cmp(&rank(a.1)).then(a.0.cmp(&b.0)));
    all.truncate(k);
    all
}

/// Few distinct values, so that ties are common; zeros of both signs, and -inf.
fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => (-12i32..12).prop_map(|x| x as f32 / 2.0),
        4 => -30f32..30.0,
        1 => Just(f32::NEG_INFINITY),
        1 => Just(-0.0f32),
        1 => Just(1e-45f32),
    ]
}

fn params() -> impl Strategy<Value = SamplerParams> {
    let numbers = (
        prop_oneof![Just(0.0f32), Just(1.0), 0.05f32..3.0],
        prop_oneof![Just(0.0f32), 0.0f32..1.0],
        prop_oneof![1i32..140, 1i32..5, Just(40)],
        prop_oneof![Just(1.0f32), 0.0f32..1.0],
        prop_oneof![Just(0.0f32), 0.0f32..1.0],
        prop_oneof![Just(1.0f32), 0.0f32..1.0],
        prop_oneof![Just(-1.0f32), 0.1f32..3.0],
    );
    let more = (
        (prop_oneof![Just(0.0f32), 0.0f32..1.0], 0.0f32..0.5),
        prop_oneof![Just(1.0f32), 0.5f32..2.0],
        prop_oneof![Just(0.0f32), 0.1f32..2.0],
        0usize..6,
        any::<u64>(),
        Just(Stage::DEFAULT_ORDER.to_vec()).prop_shuffle(),
        prop_oneof![9 => Just(Mirostat::Off), 1 => Just(Mirostat::V2)],
    );
    (numbers, more, any::<bool>()).prop_map(|(numbers, more, ordered)| {
        let (temperature, dynatemp_range, top_k, top_p, min_p, typical_p, top_n_sigma) = numbers;
        let ((xtc_probability, xtc_threshold), penalty_repeat, dry_multiplier, min_keep, seed, mut stages, mirostat) =
            more;
        // Half of the chains begin with top-k, whatever follows.
        if ordered && let Some(at) = stages.iter().position(|&stage| stage == Stage::TopK) {
            stages.swap(0, at);
        }
        SamplerParams {
            temperature,
            dynatemp_range,
            top_k,
            top_p,
            min_p,
            typical_p,
            top_n_sigma,
            xtc_probability,
            xtc_threshold,
            penalty_repeat,
            dry_multiplier,
            min_keep,
            seed,
            stages,
            mirostat,
            ..SamplerParams::default()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_largest_give_what_the_row_gives(
        params in params(),
        rows in prop::collection::vec(prop::collection::vec(logit(), 150), 1..6),
        vocab in 1usize..150,
        more in 0usize..20,
        text in prop::collection::vec(0u32..150, 0..12),
    ) {
        let mut whole = Sampler::new(params, vocab, 4096).unwrap();
        let mut short = whole.clone();
        let Need::Top(k) = whole.need() else { return Ok(()) };
        for sampler in [&mut whole, &mut short] {
            text.iter().filter(|&&token| (token as usize) < vocab).for_each(|&token| sampler.accept(token).unwrap());
        }
        for row in rows {
            let row = &row[..vocab];
            let want = whole.sample(&mut row.to_vec());
            let got = short.sample_top(&top_of(row, k + more));
            match (&want, &got) {
                (Ok(want), Ok(got)) => {
                    prop_assert_eq!(want.token, got.token);
                    prop_assert_eq!(want.probability.to_bits(), got.probability.to_bits());
                    whole.accept(want.token).unwrap();
                    short.accept(want.token).unwrap();
                }
                // Nothing but -inf.
                (Err(SamplingError::NonFiniteLogits { .. }), Err(SamplingError::NonFiniteLogits { .. })) => {}
                _ => prop_assert!(false, "{want:?} {got:?}"),
            }
            prop_assert_eq!(whole.step(), short.step());
        }
    }
}

/// The test above says nothing of chains that need a row: about half must be others.
#[test]
fn many_of_the_chains_tried_need_the_largest_alone() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let tops = (0..500)
        .filter(|_| {
            let params = params().new_tree(&mut runner).unwrap().current();
            matches!(Sampler::new(params, 150, 64).unwrap().need(), Need::Top(_))
        })
        .count();
    assert!(tops > 200, "{tops} of 500");
}

#[test]
fn what_is_no_number_is_refused_wherever_it_stands() {
    for params in [SamplerParams::greedy(), SamplerParams::default()] {
        let mut sampler = Sampler::new(params, 500, 64).unwrap();
        let Need::Top(k) = sampler.need() else { panic!("needs {:?}", sampler.need()) };
        for fault in [f32::NAN, -f32::NAN, f32::INFINITY] {
            for place in [0, 77, 499] {
                let mut row = vec![9.0; 500];
                row[place] = fault;
                let error = sampler.sample_top(&top_of(&row, k)).unwrap_err();
                let (nan, pos_inf) = (usize::from(fault.is_nan()), usize::from(!fault.is_nan()));
                assert_eq!(error, SamplingError::NonFiniteLogits { nan, pos_inf, neg_inf: 0, seen: k });
            }
        }
        let error = sampler.sample_top(&top_of(&[f32::NEG_INFINITY; 500], k)).unwrap_err();
        assert_eq!(error, SamplingError::NonFiniteLogits { nan: 0, pos_inf: 0, neg_inf: k, seen: k });
        assert_eq!(sampler.step(), 0);
    }
}

#[test]
fn too_few_are_refused() {
    let mut sampler = Sampler::new(SamplerParams::default(), 100, 64).unwrap();
    let row: Vec<f32> = (0..100).map(|id| id as f32).collect();
    let need = Need::Top(40);
    assert_eq!(sampler.sample_top(&top_of(&row, 39)), Err(SamplingError::TooFewLogits { got: 39, need }));
    assert_eq!(sampler.sample_top(&[]), Err(SamplingError::TooFewLogits { got: 0, need }));
    let beyond = vec![(100, 1.0); 40];
    assert_eq!(sampler.sample_top(&beyond), Err(SamplingError::TokenOutOfRange { token: 100, vocab: 100 }));
    assert!(sampler.sample_top(&top_of(&row, 40)).is_ok());
    let params = SamplerParams { non_finite: NonFinite::ArgmaxFinite, ..SamplerParams::default() };
    let mut sampler = Sampler::new(params, 100, 64).unwrap();
    let error = SamplingError::TooFewLogits { got: 100, need: Need::Row };
    assert_eq!(sampler.sample_top(&top_of(&row, 100)), Err(error));
    // All there are make up for the row where there are fewer.
    let mut sampler = Sampler::new(SamplerParams::default(), 3, 64).unwrap();
    assert!(sampler.sample_top(&[(2, 1.0), (0, 0.5), (1, f32::NEG_INFINITY)]).is_ok());
}
