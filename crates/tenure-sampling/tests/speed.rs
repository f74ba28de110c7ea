//! Timings on large vocabularies. Run with
//! `cargo test --release -p tenure-sampling --test speed -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use tenure_sampling::{Mirostat, Philox, Sampler, SamplerParams, top_logprobs};

/// Roughly normal logits, as a model gives them.
fn row(vocab: usize) -> Vec<f32> {
    let philox = Philox::new(5, 0);
    (0..vocab as u64)
        .map(|i| {
            let sum: u64 = philox.block(i).iter().map(|x| u64::from(*x)).sum();
            (sum as f32 / u32::MAX as f32 - 2.0) * 5.0
        })
        .collect()
}

/// The median over runs; each gets a fresh copy of the row, outside the clock.
fn median(row: &[f32], mut run: impl FnMut(&mut [f32])) -> Duration {
    let mut scratch = row.to_vec();
    let mut times: Vec<Duration> = (0..201)
        .map(|_| {
            scratch.copy_from_slice(row);
            let start = Instant::now();
            run(&mut scratch);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn sampling(params: SamplerParams, row: &[f32]) -> Duration {
    let mut sampler = Sampler::new(params, row.len(), 4096).unwrap();
    median(row, |logits| {
        let sampled = sampler.sample(logits).unwrap();
        sampler.accept(sampled.token).unwrap();
    })
}

#[test]
#[ignore = "a measurement: meaningful in release on a quiet machine"]
fn large_vocabularies() {
    let (large, middle) = (row(262_144), row(151_936));
    let ascending: Vec<f32> = (0..151_936).map(|i| i as f32 * 1e-4).collect();
    let default = SamplerParams::default;
    let greedy = sampling(SamplerParams::greedy(), &large);
    let chain = sampling(default(), &middle);
    println!("greedy, 262144:          {greedy:?}");
    println!("default chain, 151936:   {chain:?}");
    println!("default chain, 262144:   {:?}", sampling(default(), &large));
    println!("default, ascending row:  {:?}", sampling(default(), &ascending));
    let penalised = SamplerParams { penalty_repeat: 1.1, dry_multiplier: 0.8, ..default() };
    println!("with penalties and DRY:  {:?}", sampling(penalised, &middle));
    let open = SamplerParams { top_k: 0, ..default() };
    println!("without top-k:           {:?}", sampling(open, &middle));
    // A row as a trained model gives it: a few hundred tokens hold nearly all the mass.
    let peaked: Vec<f32> = middle.iter().map(|x| x * 3.0).collect();
    let open = SamplerParams { top_k: 0, ..default() };
    println!("without top-k, peaked:   {:?}", sampling(open, &peaked));
    let mirostat = SamplerParams { mirostat: Mirostat::V2, ..default() };
    println!("mirostat:                {:?}", sampling(mirostat, &middle));
    let mut out = Vec::new();
    let logprobs = median(&middle, |row| top_logprobs(row, 20, &mut out).unwrap());
    println!("top-20 log-probabilities: {logprobs:?}");
    assert!(greedy < Duration::from_micros(100), "{greedy:?}");
    assert!(chain < Duration::from_micros(400), "{chain:?}");
}
