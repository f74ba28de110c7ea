//! One token drawn from a row of logits as large as today's vocabularies.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use tenure_sampling::{Mirostat, Philox, Sampler, SamplerParams, top_logprobs};

/// Roughly normal logits.
fn row(vocab: usize) -> Vec<f32> {
    let philox = Philox::new(5, 0);
    (0..vocab as u64)
        .map(|i| {
            let sum: u64 = philox.block(i).iter().map(|x| u64::from(*x)).sum();
            (sum as f32 / u32::MAX as f32 - 2.0) * 5.0
        })
        .collect()
}

fn sampling(c: &mut Criterion) {
    let default = SamplerParams::default;
    let (middle, large) = (row(151_936), row(262_144));
    // As a trained model gives them: a few hundred tokens hold nearly all the mass.
    let peaked: Vec<f32> = middle.iter().map(|x| x * 3.0).collect();
    let ascending: Vec<f32> = (0..151_936).map(|i| i as f32 * 1e-4).collect();
    let open = SamplerParams { top_k: 0, ..default() };
    let penalised = SamplerParams { penalty_repeat: 1.1, dry_multiplier: 0.8, ..default() };
    let mirostat = SamplerParams { mirostat: Mirostat::V2, ..default() };
    let cases = [
        ("greedy, 262144", SamplerParams::greedy(), &large),
        ("default, 262144", default(), &large),
        ("default, 151936", default(), &middle),
        ("default, ascending", default(), &ascending),
        ("penalties and DRY", penalised, &middle),
        ("without top-k", open.clone(), &middle),
        ("without top-k, peaked", open, &peaked),
        ("mirostat", mirostat, &middle),
    ];
    let mut group = c.benchmark_group("sample");
    for (name, params, logits) in cases {
        let mut sampler = Sampler::new(params, logits.len(), 4096).expect("sound parameters");
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || logits.clone(),
                |logits| {
                    let sampled = sampler.sample(logits).expect("finite logits");
                    sampler.accept(sampled.token).expect("in the vocabulary");
                },
                BatchSize::LargeInput,
            );
        });
    }
    let mut out = Vec::new();
    group.bench_function("top-20 log-probabilities", |b| {
        b.iter(|| top_logprobs(&middle, 20, &mut out).expect("finite logits"));
    });
    group.finish();
}

criterion_group!(benches, sampling);
criterion_main!(benches);
