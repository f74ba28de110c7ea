//! No heap allocation per sampled token, proven by a counting allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use tenure_sampling::diffusion::{
    BetaSchedule, DiffusionSampler, Guidance, Method, Noise, NoiseKind, NoiseSchedule, Prediction, Process,
    ScheduleSettings,
};
use tenure_sampling::{Mirostat, Sampler, SamplerParams, Stage, StopMatcher, top_logprobs};

struct Counting;

// Per thread, so that the test runner's own threads do not count.
thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // The slot may be gone while a thread ends; nothing is measured there.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

// SAFETY: every call is passed on unchanged to the system allocator, which upholds the contract;
// counting touches a plain thread-local cell and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are those of `System::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the pointer came from `System` with this layout; the size is the caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(run: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    run();
    ALLOCATIONS.with(Cell::get) - before
}

const VOCAB: usize = 20_000;

fn fill(row: &mut [f32], salt: u32) {
    for (i, x) in row.iter_mut().enumerate() {
        let hash = (i as u32 ^ salt.wrapping_mul(0x9E37_79B9)).wrapping_mul(0x85EB_CA6B);
        *x = ((hash ^ hash >> 15) % 4096) as f32 / 256.0;
    }
}

fn every_stage(stages: Vec<Stage>) -> SamplerParams {
    SamplerParams {
        typical_p: 0.97,
        top_n_sigma: 2.0,
        xtc_probability: 0.5,
        dynatemp_range: 0.3,
        penalty_last_n: 100,
        penalty_repeat: 1.1,
        penalty_freq: 0.1,
        dry_multiplier: 0.8,
        dry_breakers: vec![vec![3], vec![4, 5]],
        logit_bias: vec![(7, 1.0)],
        min_keep: 3,
        stages,
        ..SamplerParams::default()
    }
}

#[test]
fn sampling_does_not_allocate() {
    let mut reversed = Stage::DEFAULT_ORDER.to_vec();
    reversed.reverse();
    let defaults = SamplerParams::default;
    let cases = [
        ("default", defaults()),
        ("greedy", SamplerParams::greedy()),
        ("everything", every_stage(Stage::DEFAULT_ORDER.to_vec())),
        ("everything, backwards", every_stage(reversed)),
        ("nothing but the draw", SamplerParams { stages: vec![], ..defaults() }),
        ("top-p alone", SamplerParams { stages: vec![Stage::TopP], ..defaults() }),
        ("large top-k", SamplerParams { top_k: 15_000, ..defaults() }),
        ("mirostat", SamplerParams { mirostat: Mirostat::V2, ..defaults() }),
        (
            "greedy with penalties",
            SamplerParams { penalty_repeat: 1.2, dry_multiplier: 1.0, ..SamplerParams::greedy() },
        ),
    ];
    let mut row = vec![0.0; VOCAB];
    for (name, params) in cases {
        let mut sampler = Sampler::new(params, VOCAB, 4096).unwrap();
        let n = allocations(|| {
            for step in 0..20 {
                fill(&mut row, step % 3);
                let sampled = sampler.sample(&mut row).unwrap();
                sampler.accept(sampled.token).unwrap();
            }
            sampler.reset();
            sampler.sample(&mut row).unwrap();
        });
        assert_eq!(n, 0, "{name}");
    }
}

#[test]
fn an_ascending_row_does_not_allocate_either() {
    // Every entry beats the ones before it: the worst case of the selection.
    let mut sampler = Sampler::new(SamplerParams::default(), VOCAB, 4096).unwrap();
    let mut row: Vec<f32> = (0..VOCAB).map(|i| i as f32).collect();
    assert_eq!(allocations(|| drop(sampler.sample(&mut row))), 0);
}

#[test]
fn sampling_from_the_largest_does_not_allocate() {
    let mut row = vec![0.0; VOCAB];
    fill(&mut row, 1);
    let mut top: Vec<(u32, f32)> = (0..).zip(row).collect();
    top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let penalised = SamplerParams {
        penalty_repeat: 1.2,
        stages: vec![Stage::TopK, Stage::Penalties, Stage::TopP, Stage::Temperature],
        ..SamplerParams::default()
    };
    for params in [SamplerParams::default(), SamplerParams::greedy(), penalised] {
        let mut sampler = Sampler::new(params, VOCAB, 4096).unwrap();
        let n = allocations(|| {
            for _ in 0..20 {
                let sampled = sampler.sample_top(&top[..128]).unwrap();
                sampler.accept(sampled.token).unwrap();
            }
        });
        assert_eq!(n, 0);
    }
}

#[test]
fn stop_matching_and_logprobs_do_not_allocate_once_warm() {
    let mut stop = StopMatcher::new(["</s>", "\n\nUser:"]).unwrap();
    let mut row = vec![0.0; VOCAB];
    let mut out = Vec::new();
    fill(&mut row, 1);
    top_logprobs(&row, 20, &mut out).unwrap();
    let n = allocations(|| {
        for _ in 0..1000 {
            stop.push("wörd </".as_bytes());
            stop.push(b"\n\nUse");
        }
        top_logprobs(&row, 20, &mut out).unwrap();
    });
    assert_eq!(n, 0);
}

#[test]
fn diffusion_steps_do_not_allocate() {
    let schedule = NoiseSchedule::new(BetaSchedule::STABLE_DIFFUSION, 1000, false).unwrap();
    let process = Process::Discrete { schedule, prediction: Prediction::Epsilon };
    let settings = ScheduleSettings { steps: 8, ..ScheduleSettings::default() };
    let guidance = Guidance { rescale: 0.7, ..Guidance::of(5.0) };
    let methods = [
        (Method::Euler, false),
        (Method::EulerAncestral { eta: 1.0 }, false),
        (Method::Heun, false),
        (Method::DPMPP_2M, false),
        (Method::DPMPP_2M_SDE, false),
        (Method::Ddim { eta: 1.0 }, false),
        (Method::LCM, false),
        (Method::UNIPC, false),
        // Its Brownian paths grow in the first run.
        (Method::DPMPP_SDE, true),
    ];
    for kind in [NoiseKind::Philox, NoiseKind::TorchCpu, NoiseKind::TorchCuda { resident_threads: u32::MAX }] {
        for (method, first_grows) in methods {
            let mut sampler = DiffusionSampler::new(&process, method, &settings, 128).unwrap();
            let mut noise = Noise::new(kind, &[1, 2], 64).unwrap();
            let (mut latents, mut output, negative) = (vec![0.0; 128], vec![0.0; 128], vec![0.1; 128]);
            for run in 0..2 {
                let n = allocations(|| {
                    sampler.begin(0).unwrap();
                    noise.reset();
                    noise.fill(&mut latents).unwrap();
                    sampler.initial_noise(&mut latents);
                    while let Some(evaluation) = sampler.evaluation() {
                        for (y, x) in output.iter_mut().zip(&latents) {
                            *y = x * evaluation.input_scale;
                        }
                        let passes = guidance.passes(evaluation.step, evaluation.steps);
                        guidance.combine(passes, &mut output, Some(&negative), None, 2).unwrap();
                        sampler.advance(&mut latents, &output, &mut noise).unwrap();
                    }
                });
                assert!(n == 0 || run == 0 && first_grows, "{kind:?} {method:?}, run {run}: {n}");
            }
        }
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(vec![1u8; 100])), 1);
}
