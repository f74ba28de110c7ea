//! Answers from the largest logits alone are those from whole rows, on every backend; and less is read back.

use std::sync::Arc;
use std::time::Duration;

use tenure::vulkan::Caps;
use tenure::{
    ByteSize, Deadline, Device, Engine, GenerateOptions, KvType, LoadOptions, ModelHandle, Prompt, SamplerParams,
    Stage, Stop, Text, TextOptions, TextSession, Wanted, WeightStore,
};
use tenure_conformance::{Gpu, Poisoned, fixture, goldens};
use tenure_cpu::simd::Isa;
use tenure_cpu::{Cpu, CpuOptions};
use tenure_device::Backend;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(300))
}

fn engine(backend: Arc<dyn Backend>) -> Engine {
    Engine::on(Device::new(backend, ByteSize::new(1 << 31)))
}

/// Samplers that need the largest logits alone.
fn samplers() -> Vec<SamplerParams> {
    let defaults = |seed| SamplerParams { seed, ..SamplerParams::default() };
    vec![
        SamplerParams::greedy(),
        defaults(1),
        defaults(2),
        SamplerParams { temperature: 3.0, top_k: 128, min_p: 0.0, top_p: 1.0, ..defaults(3) },
        SamplerParams { top_k: 5, penalty_repeat: 1.5, stages: vec![Stage::TopK, Stage::Penalties], ..defaults(4) },
    ]
}

/// Tokens, and the probabilities they had, bit for bit.
type Answer = Vec<(Option<u32>, u32)>;

/// Whole rows are read where log-probabilities are asked for.
fn answer(session: &mut TextSession, prompt: &[u32], sampler: &SamplerParams, whole: bool) -> Answer {
    let options = GenerateOptions {
        sampler: sampler.clone(),
        max_tokens: Some(12),
        ignore_eos: true,
        logprobs: whole.then_some(0),
        ..GenerateOptions::default()
    };
    let mut generation = session.generate_with(Prompt::Tokens(prompt.to_vec()), options).expect("begins");
    let mut pieces = Vec::new();
    while let Some(piece) = generation.next(soon()).expect("runs") {
        assert_eq!(piece.logprobs.len(), usize::from(whole && piece.token.is_some()));
        pieces.push((piece.token, piece.probability.to_bits()));
    }
    drop(generation);
    assert_eq!(session.last_logits().is_empty(), !whole, "{sampler:?}");
    pieces
}

fn both_ways_agree(engine: &Engine, names: &[&str]) {
    let mut found = 0;
    for (name, golden) in goldens().expect("fixtures") {
        if !names.is_empty() && !names.contains(&name.as_str()) {
            continue;
        }
        found += 1;
        let options = TextOptions { kv: KvType::F32, batch: 16, ..TextOptions::default() };
        let model = engine.load_text_with(fixture(&golden.model), &options, &LoadOptions::default()).expect("loads");
        let mut session = model.session().expect("free");
        let prompt = &golden.cases[0].tokens;
        let want = session.evaluate(prompt, &Stop::by(soon())).expect("evaluates").to_vec();
        for sampler in samplers() {
            // Not from the cache: what is computed in another chunk may be rounded otherwise on a GPU.
            session.truncate(0);
            let short = answer(&mut session, prompt, &sampler, false);
            session.truncate(0);
            assert_eq!(short, answer(&mut session, prompt, &sampler, true), "{name} {sampler:?}");
        }
        // The logits after the prompt can be had beside.
        session.truncate(0);
        let options = GenerateOptions { prompt_top_logits: 200, max_tokens: Some(2), ..GenerateOptions::default() };
        let mut generation = session.generate_with(Prompt::Tokens(prompt.clone()), options).expect("begins");
        generation.next(soon()).expect("runs");
        let mut all: Vec<(u32, f32)> = (0..).zip(want.iter().copied()).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(200);
        assert_eq!(generation.prompt_top_logits(), all, "{name}");
        generation.next(soon()).expect("runs");
        drop(generation);
        assert!(session.last_logits().is_empty(), "only the prompt's are read whole");
        assert_eq!(session.append(&[1], &Stop::by(soon())).expect("appends").len(), want.len());
    }
    assert!(found > 0, "no model of {names:?}");
}

#[test]
fn tokens_are_those_of_whole_rows_on_the_processor() {
    for isa in Isa::available() {
        let options = CpuOptions { threads: Some(2), isa: Some(isa), ..CpuOptions::default() };
        both_ways_agree(&engine(Arc::new(Poisoned::new(Arc::new(Cpu::new(&options).expect("is there"))))), &[]);
    }
}

#[test]
fn tokens_are_those_of_whole_rows_on_vulkan() {
    let lesser = Caps {
        no_timeline_semaphores: true,
        no_mapped_memory: true,
        binding: Some(ByteSize::new(256 << 10)),
        allocation: None,
        ..Caps::default()
    };
    for (caps, names) in [(Caps::default(), &[][..]), (lesser, &["llama-blocks"])] {
        let Some(gpu) = Gpu::open(caps) else { return };
        both_ways_agree(&engine(Arc::new(Poisoned::new(gpu.backend.clone()))), names);
        gpu.close();
    }
}

/// Two sessions on threads of their own share steps; one wants whole rows.
#[test]
fn sessions_that_want_other_things_share_steps() {
    let engine = engine(Arc::new(Cpu::new(&CpuOptions::default()).expect("cpu")));
    let options = TextOptions { kv: KvType::F32, sequences: 2, ..TextOptions::default() };
    let model: ModelHandle<Text> =
        engine.load_text_with(fixture("llama-blocks.gguf"), &options, &LoadOptions::default()).expect("loads");
    let prompts: [Vec<u32>; 2] = [(1..40).collect(), (60..71).collect()];
    for sampler in samplers() {
        let run = |at: usize, whole| {
            let mut session = model.session().expect("free");
            session.truncate(0);
            answer(&mut session, &prompts[at], &sampler, whole)
        };
        let alone = [run(0, false), run(1, true)];
        let together = std::thread::scope(|scope| {
            let other = scope.spawn(|| run(1, true));
            let own = run(0, false);
            [own, other.join().expect("runs")]
        });
        let tokens = |answers: &[Answer; 2]| answers.clone().map(|answer| answer.into_iter().map(|(t, _)| t).collect());
        let (alone, together): ([Vec<_>; 2], [Vec<_>; 2]) = (tokens(&alone), tokens(&together));
        assert_eq!(alone, together, "{sampler:?}");
    }
}

/// What a step on a GPU is made of, by what is wanted.
#[test]
fn less_is_read_back() {
    let Some(gpu) = Gpu::open(Caps::default()) else { return };
    let on_gpu = engine(gpu.backend.clone());
    let store = Arc::new(WeightStore::open(fixture("llama-blocks.gguf")).expect("a sound file"));
    let plan = on_gpu.plan::<Text>(&store, &TextOptions { logit_rows: 3, ..TextOptions::default() }).expect("plans");
    let (_, step) = plan.steps().next().expect("one part");
    let row = step.vocab().expect("it embeds tokens") as u64 * 4;
    let explain = |wanted: &[Wanted]| gpu.backend.explain(step, (KvType::F16, 4), 3, wanted).expect("fits");
    for (wanted, bytes, copies, tops) in [
        (&[Wanted::Row; 3][..], 3 * row, 1, 0),
        (&[Wanted::Top(1)], 8, 0, 2),
        (&[Wanted::Top(40); 3], 3 * 40 * 8, 0, 2),
        (&[Wanted::Top(2), Wanted::Row], 16 + row, 1, 2),
    ] {
        let counts = explain(wanted);
        let of = |kernel| counts.dispatches.get(kernel).copied().unwrap_or(0);
        assert_eq!((of("copy"), of("top_k")), (copies, tops), "{wanted:?}");
        assert_eq!(counts.read_back_bytes, bytes, "{wanted:?}");
    }
    drop((plan, on_gpu));
    gpu.close();
}
