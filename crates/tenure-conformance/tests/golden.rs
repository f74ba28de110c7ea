//! Small models against an independent implementation in 64-bit floats.

use tenure::cpu::Isa;
use tenure::{CpuOptions, Engine, KvType, Prompt, TextOptions, WeightAccess};
use tenure_conformance::checks::{load, same_bits, soon};
use tenure_conformance::{checks, goldens};

/// Plain weights and an f32 cache leave only rounding; activations in 14 bits leave their own error.
fn bound(isa: Isa, name: &str) -> f64 {
    let plain = name.ends_with("-f32") || name.ends_with("-f16");
    let in_words = isa == Isa::Avx512Vnni;
    if plain || (name.ends_with("-bf16") && !in_words) { 1e-9 } else { 1e-5 }
}

#[test]
fn logits_and_greedy_tokens_agree_with_the_truth() {
    for isa in Isa::available() {
        let options = CpuOptions { isa: Some(isa), threads: Some(2), ..CpuOptions::default() };
        checks::truth(&Engine::cpu(options).expect("cpu"), |name| bound(isa, name));
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
                    let bound = if bound(Isa::best(), &name) < 1e-6 { 1e-3 } else { 1e-2 };
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
        let case = golden.longest();
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
                    assert!(same_bits(got, reference), "{name}, {threads} threads, batch {batch}");
                }
            }
        }
    }
}

#[test]
fn kv_types_differ_by_their_own_rounding_only() {
    checks::kv_types(&Engine::auto().expect("cpu"));
}
