//! The whole chain against a naive reference in f64, written from the stages' definitions.

use std::collections::HashMap;

use proptest::prelude::*;
use tenure_sampling::{Mirostat, NonFinite, Philox, Sampler, SamplerParams, SamplingError, Stage};

/// A candidate: id and logit.
type Token = (usize, f64);

/// What the reference found: the candidates left, in their order, and whether some comparison was
/// so close that f32 may decide otherwise.
struct Naive {
    left: Vec<Token>,
    close: bool,
}

fn softmax(list: &[Token]) -> Vec<f64> {
    let max = list.iter().fold(f64::NEG_INFINITY, |m, t| m.max(t.1));
    let sum: f64 = list.iter().map(|t| (t.1 - max).exp()).sum();
    list.iter().map(|t| (t.1 - max).exp() / sum).collect()
}

fn sort(list: &mut [Token]) {
    list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-4 * (1.0 + a.abs())
}

/// Sorted logits that a cut could confuse: distinct, but too close.
fn ambiguous(list: &[Token]) -> bool {
    list.windows(2).any(|w| w[0].1 != w[1].1 && near(w[0].1, w[1].1))
}

fn penalise(list: &mut [Token], params: &SamplerParams, text: &[u32]) {
    let start = text.len().saturating_sub(params.penalty_last_n as usize);
    let mut counts = HashMap::new();
    for t in &text[start..] {
        *counts.entry(*t as usize).or_insert(0u32) += 1;
    }
    for (id, logit) in list {
        if let Some(count) = counts.get(id) {
            let factor = f64::from(params.penalty_repeat);
            *logit = if *logit <= 0.0 { *logit * factor } else { *logit / factor };
            *logit -= f64::from(*count) * f64::from(params.penalty_freq) + f64::from(params.penalty_present);
        }
    }
}

fn dry(list: &mut [Token], params: &SamplerParams, text: &[u32]) {
    let n = text.len();
    let allowed = params.dry_allowed_length as usize;
    for (id, logit) in list {
        let longest = (1..n)
            .filter(|at| text[*at] as usize == *id)
            .map(|at| (0..at).take_while(|i| text[at - 1 - i] == text[n - 1 - i]).count())
            .max();
        if let Some(length) = longest.filter(|l| *l >= allowed && n > allowed) {
            *logit -= f64::from(params.dry_multiplier) * f64::from(params.dry_base).powi((length - allowed) as i32);
        }
    }
}

fn naive(row: &[f32], params: &SamplerParams, text: &[u32], chance: f64) -> Naive {
    let mut list: Vec<Token> = row.iter().map(|x| f64::from(*x)).enumerate().collect();
    let mut close = false;
    for (token, bias) in &params.logit_bias {
        list[*token as usize].1 += f64::from(*bias);
    }
    for stage in &params.stages {
        list.retain(|t| t.1 > f64::NEG_INFINITY);
        let keep = params.min_keep;
        match stage {
            Stage::Penalties => penalise(&mut list, params, text),
            Stage::Dry if params.dry_multiplier > 0.0 => dry(&mut list, params, text),
            Stage::Dry => {}
            Stage::TopNSigma if params.top_n_sigma > 0.0 && list.len() > 1 => {
                let n = list.len() as f64;
                let mean = list.iter().map(|t| t.1).sum::<f64>() / n;
                let var = list.iter().map(|t| (t.1 - mean).powi(2)).sum::<f64>() / n;
                let max = list.iter().fold(f64::NEG_INFINITY, |m, t| m.max(t.1));
                let bar = max - f64::from(params.top_n_sigma) * var.sqrt();
                close |= list.iter().any(|t| t.1 != max && near(t.1, bar));
                list.retain(|t| t.1 >= bar || t.1 == max);
            }
            Stage::TopNSigma => {}
            Stage::TopK => {
                sort(&mut list);
                close |= ambiguous(&list);
                if params.top_k > 0 {
                    list.truncate(params.top_k as usize);
                }
            }
            Stage::TypicalP if params.typical_p < 1.0 => {
                let p = softmax(&list);
                let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
                let mut order: Vec<usize> = (0..list.len()).collect();
                let score = |i: usize| (-p[i].ln() - entropy).abs();
                order.sort_by(|a, b| score(*a).total_cmp(&score(*b)).then(list[*a].0.cmp(&list[*b].0)));
                close |= order.windows(2).any(|w| list[w[0]].1 != list[w[1]].1 && near(score(w[0]), score(w[1])));
                let mut mass = 0.0;
                let mut left = Vec::new();
                for i in order {
                    mass += p[i];
                    left.push(list[i]);
                    close |= near(mass, f64::from(params.typical_p));
                    if mass > f64::from(params.typical_p) && left.len() >= keep {
                        break;
                    }
                }
                list = left;
            }
            Stage::TypicalP => {}
            Stage::TopP if params.top_p < 1.0 => {
                sort(&mut list);
                close |= ambiguous(&list);
                let mut mass = 0.0;
                let mut n = 0;
                for p in softmax(&list) {
                    mass += p;
                    n += 1;
                    close |= near(mass, f64::from(params.top_p));
                    if mass >= f64::from(params.top_p) && n >= keep {
                        break;
                    }
                }
                list.truncate(n);
            }
            Stage::TopP => {}
            Stage::MinP if params.min_p > 0.0 => {
                let max = list.iter().fold(f64::NEG_INFINITY, |m, t| m.max(t.1));
                let bar = max + f64::from(params.min_p).ln();
                close |= list.iter().any(|t| t.1 != max && near(t.1, bar));
                let mut left: Vec<Token> = list.iter().copied().filter(|t| t.1 >= bar || t.1 == max).collect();
                if left.len() < keep {
                    sort(&mut list);
                    close |= ambiguous(&list);
                    left = list.iter().copied().take(keep).collect();
                }
                list = left;
            }
            Stage::MinP => {}
            Stage::Xtc if params.xtc_probability > 0.0 && params.xtc_threshold <= 0.5 => {
                if chance < f64::from(params.xtc_probability) && list.len() > 1 {
                    sort(&mut list);
                    close |= ambiguous(&list);
                    let p = softmax(&list);
                    let bar = f64::from(params.xtc_threshold);
                    close |= p.iter().any(|p| near(*p, bar));
                    let top = p.iter().filter(|p| **p >= bar).count().max(1);
                    if list.len() - (top - 1) >= keep {
                        list.drain(..top - 1);
                    }
                }
            }
            Stage::Xtc => {}
            Stage::Temperature if params.dynatemp_range > 0.0 && list.len() > 1 => {
                let p = softmax(&list);
                let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
                let low = f64::from(params.temperature - params.dynatemp_range).max(0.0);
                let high = f64::from(params.temperature + params.dynatemp_range);
                let t =
                    low + (high - low) * (entropy / (list.len() as f64).ln()).powf(f64::from(params.dynatemp_exponent));
                // Near 0 the division magnifies the rounding of f32 beyond comparison.
                close |= t < 0.02;
                list.iter_mut().for_each(|l| l.1 /= t);
            }
            Stage::Temperature if params.dynatemp_range > 0.0 => {}
            Stage::Temperature if params.temperature == 0.0 => {
                sort(&mut list);
                close |= ambiguous(&list);
                list.truncate(1);
            }
            Stage::Temperature => {
                list.iter_mut().for_each(|l| l.1 /= f64::from(params.temperature));
            }
        }
    }
    Naive { left: list, close }
}

fn params() -> impl Strategy<Value = SamplerParams> {
    let cuts = (
        prop_oneof![Just(0i32), 1..60],
        prop_oneof![Just(1.0f32), 0.0..1f32],
        prop_oneof![Just(0.0f32), 0.0..1f32],
        prop_oneof![Just(1.0f32), 0.0..1f32],
        prop_oneof![Just(-1.0f32), 0.1..3f32],
        0usize..5,
    );
    let moves = (
        prop_oneof![Just(0.0f32), 0.2..2f32],
        prop_oneof![Just(0.0f32), 0.1..1.5f32],
        prop_oneof![Just(1.0f32), 0.6..1.6f32],
        -1f32..1.0,
        -1f32..1.0,
        prop_oneof![Just(0.0f32), 0.1..2f32],
        0u32..3,
    );
    let chance = (prop_oneof![Just(0.0f32), 0.0..=1f32], 0.0..0.7f32, any::<u64>());
    let order = Just(Stage::DEFAULT_ORDER.to_vec()).prop_shuffle();
    let order = prop_oneof![Just(Stage::DEFAULT_ORDER.to_vec()), order];
    let bias = prop::collection::vec((0u32..40, -3f32..3.0), 0..4);
    (cuts, moves, chance, order, bias).prop_map(|(cuts, moves, chance, stages, logit_bias)| SamplerParams {
        top_k: cuts.0,
        top_p: cuts.1,
        min_p: cuts.2,
        typical_p: cuts.3,
        top_n_sigma: cuts.4,
        min_keep: cuts.5,
        temperature: moves.0,
        dynatemp_range: moves.1,
        penalty_last_n: 8,
        penalty_repeat: moves.2,
        penalty_freq: moves.3,
        penalty_present: moves.4,
        dry_multiplier: moves.5,
        dry_allowed_length: moves.6,
        xtc_probability: chance.0,
        xtc_threshold: chance.1,
        seed: chance.2,
        stages,
        logit_bias,
        ..SamplerParams::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, max_global_rejects: 100_000, ..ProptestConfig::default() })]

    /// The token drawn is among those the reference leaves over, and its probability is the
    /// reference's.
    #[test]
    fn chain_equals_the_reference(
        params in params(),
        // Halves: ties are common; every tenth is out of play.
        row in prop::collection::vec(prop_oneof![9 => (-40i32..40).prop_map(|x| x as f32 * 0.25), 1 => Just(f32::NEG_INFINITY)], 40..80),
        text in prop::collection::vec(0u32..12, 0..20),
    ) {
        prop_assume!(row.iter().any(|x| x.is_finite()));
        let [_, chance] = Philox::new(params.seed, 0).uniforms(0);
        let want = naive(&row, &params, &text, chance);
        prop_assume!(!want.close);
        let mut sampler = Sampler::new(params.clone(), row.len(), 4096).unwrap();
        text.iter().for_each(|t| sampler.accept(*t).unwrap());
        let got = sampler.sample(&mut row.clone()).unwrap();
        let p = softmax(&want.left);
        let place = want.left.iter().position(|t| t.0 == got.token as usize);
        prop_assert!(place.is_some(), "{got:?} is not in {:?}", want.left);
        let p = p[place.unwrap()];
        prop_assert!((p - f64::from(got.probability)).abs() < 2e-3 * p + 1e-6, "{got:?} against {p} of {:?}", want.left);
    }
}

fn draws(params: SamplerParams, row: &[f32], n: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(params, row.len(), 4096).unwrap();
    (0..n)
        .map(|_| {
            let token = sampler.sample(&mut row.to_vec()).unwrap().token;
            sampler.accept(token).unwrap();
            token
        })
        .collect()
}

/// Pearson's statistic of the draws against probabilities by token; those of 0 must not occur.
fn chi_square(draws: &[u32], p: &[f64]) -> f64 {
    let mut counts = vec![0.0; p.len()];
    draws.iter().for_each(|t| counts[*t as usize] += 1.0);
    p.iter()
        .zip(&counts)
        .map(|(p, count)| {
            let expected = p * draws.len() as f64;
            if expected == 0.0 {
                assert_eq!(*count, 0.0);
                return 0.0;
            }
            (count - expected).powi(2) / expected
        })
        .sum()
}

#[test]
fn draws_follow_the_distribution() {
    let row: Vec<f32> = (0..12).map(|i| (i as f32 * 0.7).sin() * 2.0).collect();
    let plain = SamplerParams { stages: vec![], seed: 11, ..SamplerParams::default() };
    let list: Vec<Token> = row.iter().map(|x| f64::from(*x)).enumerate().collect();
    // 99.9 % of the chi-square distribution with 11 degrees of freedom lie below 31.3.
    let statistic = chi_square(&draws(plain.clone(), &row, 40_000), &softmax(&list));
    assert!(statistic < 31.3, "{statistic}");

    // Top-4 at temperature 0.8: 3 degrees of freedom, 16.3.
    let cut = SamplerParams { stages: vec![Stage::TopK, Stage::Temperature], top_k: 4, ..plain };
    let mut left = list;
    sort(&mut left);
    left.truncate(4);
    left.iter_mut().for_each(|t| t.1 /= 0.8);
    let mut p = vec![0.0; 12];
    for (t, q) in left.iter().zip(softmax(&left)) {
        p[t.0] = q;
    }
    let statistic = chi_square(&draws(cut, &row, 40_000), &p);
    assert!(statistic < 16.3, "{statistic}");
}

#[test]
fn streams_are_independent_of_each_other() {
    // Pairs (stream 0, stream 1) over 4 equal tokens: 16 cells, 15 degrees of freedom, 37.7.
    let stream = |stream| {
        let params = SamplerParams { stream, stages: vec![], ..SamplerParams::default() };
        draws(params, &[0.0; 4], 20_000)
    };
    let pairs: Vec<u32> = stream(0).iter().zip(stream(1)).map(|(a, b)| a * 4 + b).collect();
    let statistic = chi_square(&pairs, &[1.0 / 16.0; 16]);
    assert!(statistic < 37.7, "{statistic}");
}

#[test]
fn xtc_triggers_as_often_as_asked() {
    // Token 0 has 0.6, token 1 has 0.4: when XTC triggers, only token 1 is left.
    let params = SamplerParams { stages: vec![Stage::Xtc], xtc_probability: 0.25, ..SamplerParams::default() };
    let row = [0.6f32.ln(), 0.4f32.ln()];
    let p = [0.75 * 0.6, 0.75 * 0.4 + 0.25];
    let statistic = chi_square(&draws(params, &row, 40_000), &p);
    assert!(statistic < 10.8, "{statistic}");
}

#[test]
fn the_same_seed_gives_the_same_tokens() {
    let row: Vec<f32> = (0..500).map(|i| ((i * 37) % 101) as f32 / 20.0).collect();
    for seed in [0, 1, u64::MAX] {
        let params = SamplerParams {
            seed,
            penalty_repeat: 1.3,
            dry_multiplier: 0.5,
            xtc_probability: 0.3,
            ..SamplerParams::default()
        };
        let first = draws(params.clone(), &row, 200);
        assert_eq!(first, draws(params.clone(), &row, 200));
        // On four threads at once.
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (params, row) = (params.clone(), row.clone());
                std::thread::spawn(move || draws(params, &row, 200))
            })
            .collect();
        for thread in threads {
            assert_eq!(first, thread.join().unwrap());
        }
        let other = SamplerParams { seed: seed ^ 1, ..params };
        assert_ne!(first, draws(other, &row, 200));
    }
}

#[test]
fn interleaving_sequences_changes_nothing() {
    let row: Vec<f32> = (0..300).map(|i| ((i * 17) % 61) as f32 / 10.0).collect();
    let params = |stream| SamplerParams { stream, ..SamplerParams::default() };
    let single: Vec<Vec<u32>> = (0..4).map(|s| draws(params(s), &row, 50)).collect();
    let mut samplers: Vec<Sampler> = (0..4).map(|s| Sampler::new(params(s), row.len(), 4096).unwrap()).collect();
    let mut batched = vec![Vec::new(); 4];
    for step in 0..50 {
        for i in 0..4 {
            let s = (i + step) % 4;
            let token = samplers[s].sample(&mut row.clone()).unwrap().token;
            samplers[s].accept(token).unwrap();
            batched[s].push(token);
        }
    }
    assert_eq!(single, batched);
    assert_ne!(single[0], single[1]);
}

#[test]
fn reset_repeats_the_text() {
    let row: Vec<f32> = (0..300).map(|i| ((i * 17) % 61) as f32 / 10.0).collect();
    for mirostat in [Mirostat::Off, Mirostat::V2] {
        let params = SamplerParams { mirostat, penalty_freq: 0.5, dry_multiplier: 1.0, ..SamplerParams::default() };
        let mut sampler = Sampler::new(params, row.len(), 4096).unwrap();
        let mut run = || {
            sampler.reset();
            (0..60)
                .map(|_| {
                    let token = sampler.sample(&mut row.clone()).unwrap().token;
                    sampler.accept(token).unwrap();
                    token
                })
                .collect::<Vec<u32>>()
        };
        assert_eq!(run(), run());
    }
}

fn one(params: SamplerParams, row: &[f32]) -> Result<u32, SamplingError> {
    let mut sampler = Sampler::new(params, row.len(), 4096)?;
    Ok(sampler.sample(&mut row.to_vec())?.token)
}

fn every_mode() -> Vec<SamplerParams> {
    let mut all = vec![
        SamplerParams::default(),
        SamplerParams::greedy(),
        SamplerParams { mirostat: Mirostat::V2, ..SamplerParams::default() },
        SamplerParams { mirostat: Mirostat::V2, temperature: 0.0, ..SamplerParams::default() },
        SamplerParams { temperature: 1e-38, ..SamplerParams::default() },
    ];
    for stage in Stage::DEFAULT_ORDER {
        all.push(SamplerParams {
            stages: vec![stage],
            typical_p: 0.5,
            top_n_sigma: 1.0,
            xtc_probability: 1.0,
            dynatemp_range: 0.5,
            penalty_repeat: 1.5,
            dry_multiplier: 1.0,
            ..SamplerParams::default()
        });
    }
    all
}

#[test]
fn logits_that_are_not_finite_are_refused() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for params in every_mode() {
        for (row, want) in [
            ([nan, 1.0, 2.0], (1, 0, 0)),
            ([nan, nan, nan], (3, 0, 0)),
            ([0.0, inf, 2.0], (0, 1, 0)),
            ([inf, inf, -inf], (0, 2, 1)),
            ([-inf, -inf, -inf], (0, 0, 3)),
        ] {
            let (nan, pos_inf, neg_inf) = want;
            assert_eq!(
                one(params.clone(), &row),
                Err(SamplingError::NonFiniteLogits { nan, pos_inf, neg_inf, seen: 3 })
            );
        }
    }
}

#[test]
fn on_request_the_largest_finite_logit_is_taken_and_flagged() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for params in every_mode() {
        let params =
            SamplerParams { non_finite: NonFinite::ArgmaxFinite, logit_bias: vec![(3, -inf), (0, 5.0)], ..params };
        let mut sampler = Sampler::new(params.clone(), 4, 4096).unwrap();
        let got = sampler.sample(&mut [nan, 1.0, inf, 9.0]).unwrap();
        assert_eq!((got.token, got.finite_fallback), (1, true));
        let got = sampler.sample(&mut [-inf, 1.0, -inf, -inf]).unwrap();
        assert_eq!((got.token, got.finite_fallback), (1, false));
        assert!(matches!(sampler.sample(&mut [nan, -inf, inf, 9.0]), Err(SamplingError::NonFiniteLogits { .. })));
    }
}

#[test]
fn rows_at_the_edge_are_sampled() {
    for params in every_mode() {
        for row in [
            vec![3.0],
            vec![0.0; 7],
            vec![1e-45, -1e-45, 0.0],
            vec![f32::MAX, f32::MIN, f32::MAX],
            vec![f32::NEG_INFINITY, -1e38, f32::NEG_INFINITY],
        ] {
            let mut sampler = Sampler::new(params.clone(), row.len(), 4096).unwrap();
            for _ in 0..5 {
                let got = sampler.sample(&mut row.clone()).unwrap();
                assert!(row[got.token as usize] > f32::NEG_INFINITY, "{row:?} {got:?}");
                assert!(got.probability > 0.0 && got.probability <= 1.0, "{got:?}");
                sampler.accept(got.token).unwrap();
            }
        }
    }
}

#[test]
fn banning_every_token_is_an_error() {
    for params in every_mode() {
        let params = SamplerParams { logit_bias: vec![(0, f32::NEG_INFINITY), (2, f32::NEG_INFINITY)], ..params };
        assert_eq!(one(params.clone(), &[1.0, 0.0, 1.0]), Ok(1));
        assert_eq!(one(params, &[1.0, f32::NEG_INFINITY, 1.0]), Err(SamplingError::AllBanned { vocab: 3 }));
    }
}

#[test]
fn greedy_takes_the_lowest_id_of_equals_after_penalties() {
    let greedy = SamplerParams::greedy;
    assert_eq!(one(greedy(), &[1.0, 5.0, 5.0]), Ok(1));
    let params = SamplerParams { penalty_present: 1.0, ..greedy() };
    assert_eq!(draws(params, &[1.0, 5.0, 5.0, 4.5], 4), [1, 2, 3, 1]);
    let params = SamplerParams { logit_bias: vec![(0, 4.5)], ..greedy() };
    assert_eq!(one(params, &[1.0, 5.0, 5.0]), Ok(0));
    // The short way and the long way agree: typical sampling at 0.999 forces the latter.
    let row: Vec<f32> = (0..900).map(|i| ((i * 7919) % 1009) as f32 / 50.0).collect();
    let long = SamplerParams { top_k: 900, typical_p: 0.999_999, top_p: 1.0, penalty_freq: 3.0, ..greedy() };
    let short = SamplerParams { typical_p: 1.0, ..long.clone() };
    assert_eq!(draws(long, &row, 100), draws(short, &row, 100));
}

#[test]
fn a_refused_row_does_not_advance() {
    let row: Vec<f32> = (0..100).map(|i| (i % 9) as f32 / 3.0).collect();
    let clean = draws(SamplerParams::default(), &row, 20);
    let mut sampler = Sampler::new(SamplerParams::default(), 100, 4096).unwrap();
    for want in clean {
        assert!(sampler.sample(&mut [f32::NAN; 100]).is_err());
        assert_eq!(sampler.sample(&mut [0.0; 99]), Err(SamplingError::LogitsLength { got: 99, want: 100 }));
        assert_eq!(sampler.sample(&mut row.clone()).unwrap().token, want);
    }
    assert_eq!(sampler.step(), 20);
    assert_eq!(sampler.accept(100), Err(SamplingError::TokenOutOfRange { token: 100, vocab: 100 }));
}

#[test]
fn windows_are_bounded_by_the_context() {
    // i32::MAX tokens of history would be 8 GiB if the context did not bound it.
    let params = SamplerParams {
        penalty_last_n: i32::MAX,
        penalty_present: 1.0,
        dry_multiplier: 1.0,
        dry_penalty_last_n: i32::MAX,
        ..SamplerParams::greedy()
    };
    let mut sampler = Sampler::new(params, 3, 2).unwrap();
    for token in [0, 1, 1] {
        sampler.accept(token).unwrap();
    }
    // Token 0 has left the window of 2.
    let got = sampler.sample(&mut [0.5, 1.2, 0.4]).unwrap();
    assert_eq!(got.token, 0);
}
