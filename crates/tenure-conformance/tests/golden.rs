//! Small models against an independent implementation in 64-bit floats.

use std::time::Duration;

use tenure::cpu::Isa;
use tenure::{
    CpuOptions, Deadline, Engine, KvType, LoadOptions, ModelHandle, Prompt, Stop, Text, TextOptions, WeightAccess,
};
use tenure_conformance::{Golden, fixture, goldens};

fn soon() -> Stop {
    Stop::by(Deadline::after(Duration::from_secs(120)))
}

fn load(engine: &Engine, golden: &Golden, options: &TextOptions) -> ModelHandle<Text> {
    engine.load_text_with(fixture(&golden.model), options, &LoadOptions::default()).expect("a sound file")
}

/// Normalised mean square error, as ggml's tests define it.
fn nmse(got: &[f32], want: &[f32]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    error / want.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()
}

/// Plain weights and an f32 cache leave only rounding; activations in 14 bits leave their own error.
fn bound(name: &str) -> f64 {
    if name.ends_with("-f32") || name.ends_with("-f16") || name.ends_with("-bf16") { 1e-9 } else { 1e-5 }
}

#[test]
fn logits_and_greedy_tokens_agree_with_the_truth() {
    let all = goldens().expect("fixtures");
    assert!(all.len() >= 8, "found {} models", all.len());
    for isa in Isa::available() {
        let engine =
            Engine::cpu(CpuOptions { isa: Some(isa), threads: Some(2), ..CpuOptions::default() }).expect("cpu");
        for (name, golden) in &all {
            let options = TextOptions { kv: KvType::F32, batch: 64, ..TextOptions::default() };
            let model = load(&engine, golden, &options);
            for case in &golden.cases {
                let mut session = model.session().expect("free");
                let logits = session.evaluate(&case.tokens, &soon()).expect("evaluates");
                let error = nmse(logits, &case.last_logits);
                assert!(error <= bound(name), "{name} {} on {isa:?}: nmse {error:e}", case.name);
                let largest = logits.iter().zip(&case.last_logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let mut tokens = case.tokens.clone();
                for (&want, &margin) in case.greedy.iter().zip(&case.greedy_margin) {
                    let logits = session.evaluate(&tokens, &soon()).expect("evaluates");
                    let got = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
                    // Below twice the error, either of the two may be first.
                    if margin > 4.0 * largest.max(1e-4) {
                        assert_eq!(got, Some(want as usize), "{name} {} at {}", case.name, tokens.len());
                    }
                    tokens.push(want);
                }
            }
        }
    }
}

#[test]
fn every_position_of_a_prompt_has_its_logits() {
    let engine = Engine::auto().expect("cpu");
    for (name, golden) in goldens().expect("fixtures") {
        let options = TextOptions { kv: KvType::F32, batch: 16, logit_rows: 8, ..TextOptions::default() };
        let model = load(&engine, &golden, &options);
        for case in &golden.cases {
            let mut session = model.session().expect("free");
            let mut seen = 0;
            session
                .evaluate_each(&case.tokens, case.tokens.len(), &soon(), |position, logits| {
                    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
                    let error = (sum.ln() - f64::from(case.position_logsumexp[position])).abs();
                    let bound = if bound(&name) < 1e-6 { 1e-3 } else { 1e-2 };
                    assert!(error < bound, "{name} {} at {position}: {error}", case.name);
                    assert_eq!(position, seen);
                    seen += 1;
                })
                .expect("evaluates");
            assert_eq!(seen, case.tokens.len());
        }
    }
}

#[test]
fn prompts_are_tokenised_as_recorded() {
    let engine = Engine::auto().expect("cpu");
    let mut texts = 0;
    for (name, golden) in goldens().expect("fixtures") {
        let model = load(&engine, &golden, &TextOptions::default());
        for case in &golden.cases {
            if let Some(text) = &case.text {
                let tokens = model.tokens(&Prompt::Raw(text.clone())).expect("encodes");
                assert_eq!(tokens, case.tokens, "{name} {}", case.name);
                texts += 1;
            }
        }
    }
    assert!(texts > 8);
}

/// One truth, whatever the chunking, the threads, the access, or the sequences beside it: the same bits.
#[test]
fn results_are_the_same_bits_however_they_are_computed() {
    for (name, golden) in goldens().expect("fixtures") {
        let case = golden.cases.iter().max_by_key(|case| case.tokens.len()).expect("has cases");
        let mut reference: Option<Vec<f32>> = None;
        for threads in [1, 2, 3, 8] {
            let engine = Engine::cpu(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).expect("cpu");
            for (batch, access) in [(1, WeightAccess::Mapped), (7, WeightAccess::Staged), (64, WeightAccess::Mapped)] {
                let options = TextOptions { batch, access, sequences: 2, ..TextOptions::default() };
                let model = load(&engine, &golden, &options);
                let mut session = model.session().expect("free");
                let whole = session.evaluate(&case.tokens, &soon()).expect("evaluates").to_vec();
                // Again, from what is cached, and from another sequence's cache.
                let again = session.evaluate(&case.tokens, &soon()).expect("evaluates").to_vec();
                let mut other = model.session().expect("free");
                let shared = other.evaluate(&case.tokens, &soon()).expect("evaluates").to_vec();
                let reference = reference.get_or_insert_with(|| whole.clone());
                for got in [&whole, &again, &shared] {
                    let equal = got.iter().zip(&*reference).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(equal, "{name}, {threads} threads, batch {batch}");
                }
            }
        }
    }
}

#[test]
fn kv_types_differ_by_their_own_rounding_only() {
    let engine = Engine::auto().expect("cpu");
    for (name, golden) in goldens().expect("fixtures") {
        let case = golden.cases.iter().max_by_key(|case| case.tokens.len()).expect("has cases");
        let logits = |kv| {
            let options = TextOptions { kv, ..TextOptions::default() };
            let result = engine.load_text_with(fixture(&golden.model), &options, &LoadOptions::default());
            result.map(|model| {
                let mut session = model.session().expect("free");
                session.evaluate(&case.tokens, &soon()).expect("evaluates").to_vec()
            })
        };
        let exact = logits(KvType::F32).expect("f32 suits every model");
        let half = logits(KvType::F16).expect("f16 suits every model");
        assert!(nmse(&half, &exact) < 2e-3, "{name}: {:e}", nmse(&half, &exact));
        match logits(KvType::Q8_0) {
            Ok(eighth) => assert!(nmse(&eighth, &exact) < 1e-2, "{name}: {:e}", nmse(&eighth, &exact)),
            Err(error) => assert_eq!(error.class(), "UnsupportedKv", "{name}: {error}"),
        }
    }
}
