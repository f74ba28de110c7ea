//! Whole models on Vulkan: the truth, memory to the byte, faults, stops, and nothing for the validation layer to say.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tenure::vulkan::Caps;
use tenure::{
    ByteSize, Cancel, Deadline, Device, Engine, Error, ErrorKind, KvType, LoadOptions, ModelHandle, Stop, Text,
    TextOptions, WeightStore,
};
use tenure_conformance::{Fault, Faulty, Golden, Gpu, Operation, Poisoned, fixture, goldens};
use tenure_device::Backend;

fn soon() -> Stop {
    Stop::by(Deadline::after(Duration::from_secs(300)))
}

fn engine(backend: Arc<dyn Backend>) -> Engine {
    Engine::on(Device::new(backend, ByteSize::new(1 << 31)))
}

fn load(engine: &Engine, golden: &Golden, options: &TextOptions) -> ModelHandle<Text> {
    engine.load_text_with(fixture(&golden.model), options, &LoadOptions::default()).expect("a sound file")
}

/// A device that lacks what a device may lack, whose bindings are small.
fn lesser() -> Caps {
    Caps {
        no_timeline_semaphores: true,
        no_mapped_memory: true,
        binding: Some(ByteSize::new(256 << 10)),
        ..Caps::default()
    }
}

/// Normalised mean square error, as ggml's tests define it.
fn nmse(got: &[f32], want: &[f32]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    error / want.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()
}

/// Nothing is quantised but the weights themselves, whose blocks the truth has too, so only rounding is left.
#[test]
fn logits_and_greedy_tokens_agree_with_the_truth() {
    for caps in [Caps::default(), lesser()] {
        let Some(gpu) = Gpu::open(caps) else { return };
        let engine = engine(Arc::new(Poisoned::new(gpu.backend.clone())));
        for (name, golden) in goldens().expect("fixtures") {
            let options = TextOptions { kv: KvType::F32, batch: 64, ..TextOptions::default() };
            let model = load(&engine, &golden, &options);
            for case in &golden.cases {
                let mut session = model.session().expect("free");
                let logits = session.evaluate(&case.tokens, &soon()).expect("evaluates");
                let error = nmse(logits, &case.last_logits);
                assert!(error <= 1e-9, "{name} {}: nmse {error:e}", case.name);
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
        drop(engine);
        gpu.close();
    }
}

/// The same work gives the same bits; other chunks, other caches and other company change no more than rounding.
#[test]
fn results_depend_on_nothing_but_the_prompt() {
    let Some(gpu) = Gpu::open(Caps::default()) else { return };
    let engine = engine(gpu.backend.clone());
    for (name, golden) in goldens().expect("fixtures") {
        let mut cases: Vec<_> = golden.cases.iter().collect();
        cases.sort_by_key(|case| std::cmp::Reverse(case.tokens.len()));
        let (case, other) = (cases[0], cases[1]);
        let mut first: Option<Vec<f32>> = None;
        for batch in [64, 7, 1] {
            let options = TextOptions { batch, sequences: 2, kv: KvType::F32, ..TextOptions::default() };
            let model = load(&engine, &golden, &options);
            let evaluate = |tokens: &[u32]| {
                let mut session = model.session().expect("free");
                session.truncate(0);
                session.evaluate(tokens, &soon()).expect("evaluates").to_vec()
            };
            let (a, _b) = (evaluate(&case.tokens), evaluate(&other.tokens));
            let mut session = model.session().expect("free");
            let cached = session.evaluate(&case.tokens, &soon()).expect("evaluates").to_vec();
            let mut beside = model.session().expect("free");
            beside.evaluate(&other.tokens, &soon()).expect("evaluates");
            session.truncate(0);
            let again = session.evaluate(&case.tokens, &soon()).expect("evaluates").to_vec();
            assert!(again.iter().zip(&a).all(|(x, y)| x.to_bits() == y.to_bits()), "{name}, batch {batch}");
            let first = first.get_or_insert_with(|| a.clone());
            for got in [&a, &cached] {
                assert!(nmse(got, first) < 1e-9, "{name}, batch {batch}: {:e}", nmse(got, first));
            }
        }
    }
    drop(engine);
    gpu.close();
}

#[test]
fn kv_types_differ_by_their_own_rounding_only() {
    let Some(gpu) = Gpu::open(Caps::default()) else { return };
    let engine = engine(gpu.backend.clone());
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
    drop(engine);
    gpu.close();
}

/// What is planned is what the ledger holds, and with the backend's own overhead what the driver allocated.
#[test]
fn planned_bytes_are_the_drivers_bytes() {
    let small = Caps { allocation: Some(ByteSize::new(96 << 10)), ..lesser() };
    for caps in [Caps::default(), lesser(), small] {
        let Some(gpu) = Gpu::open(caps) else { return };
        let overhead = gpu.backend.overhead();
        assert_eq!(overhead > ByteSize::ZERO, caps.no_mapped_memory, "staging is the only overhead");
        assert_eq!(gpu.backend.allocated(), overhead);
        let engine = engine(gpu.backend.clone());
        let mut segments = 0;
        for (name, golden) in goldens().expect("fixtures") {
            let store = Arc::new(WeightStore::open(fixture(&golden.model)).expect("a sound file"));
            for (kv, sequences, batch, context) in
                [(KvType::F32, 1, 64, 128), (KvType::F16, 3, 5, 33), (KvType::Q8_0, 2, 512, 1)]
            {
                let options = TextOptions {
                    context: Some(context),
                    sequences,
                    kv,
                    batch,
                    logit_rows: 4,
                    ..TextOptions::default()
                };
                let plan = match engine.plan::<Text>(&store, &options) {
                    Ok(plan) => plan,
                    Err(error) => {
                        assert_eq!(error.class(), "UnsupportedKv", "{name}: {error}");
                        continue;
                    }
                };
                let planned = plan.footprint().total();
                segments = segments.max(plan.footprint().segments().len());
                if plan.footprint().segments().iter().any(|&(_, bytes)| bytes > gpu.backend.largest_segment()) {
                    // One tensor, or the cache, is larger than an allocation may be: typed, and nothing is left.
                    let reservation = engine.reserve(&plan, &soon()).expect("fits");
                    let error = engine.load(plan, reservation, &LoadOptions::default()).expect_err("too large");
                    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
                    assert_eq!(gpu.backend.allocated(), overhead);
                    continue;
                }
                let reservation = engine.reserve(&plan, &soon()).expect("fits");
                let model = engine.load(plan, reservation, &LoadOptions::default()).expect("loads");
                assert_eq!(engine.report().allocated, planned, "{name} {options:?}");
                assert_eq!(gpu.backend.allocated(), planned + overhead, "{name} {options:?}");
                let mut session = model.session().expect("free");
                let tokens: Vec<u32> = golden.cases[0].tokens.iter().copied().take(context).collect();
                session.evaluate(&tokens, &soon()).expect("evaluates");
                assert_eq!(gpu.backend.allocated(), planned + overhead, "running allocates nothing");
                drop(session);
                engine.unload(model, Deadline::after(Duration::from_secs(5))).expect("nobody uses it");
                assert_eq!(gpu.backend.allocated(), overhead, "unload returns after the memory is free");
            }
        }
        assert_eq!(segments > 4, caps.allocation.is_some(), "weights are in several segments where one is too small");
        drop(engine);
        gpu.close();
    }
}

const PROMPT: [u32; 40] = [7; 40];

/// Loads, computes a prompt in chunks, decodes a few tokens, unloads; returns the bits of the last logits.
fn whole_life(engine: &Engine) -> Result<Vec<u32>, Error> {
    let options = TextOptions { batch: 16, ..TextOptions::default() };
    let model = engine.load_text_with(fixture("llama-blocks.gguf"), &options, &LoadOptions::default())?;
    let mut session = model.session()?;
    session.evaluate(&PROMPT, &soon())?;
    let mut last = Vec::new();
    for token in 0..4 {
        last = session.append(&[token], &soon())?.iter().map(|x| x.to_bits()).collect();
    }
    Ok(last)
}

#[test]
fn the_nth_failure_of_every_kind_leaves_nothing_behind() {
    let Some(gpu) = Gpu::open(Caps::default()) else { return };
    let faulty = Arc::new(Faulty::new(gpu.backend.clone()));
    let engine = engine(faulty.clone());
    let golden = whole_life(&engine).expect("nothing armed");
    let mut fired = 0;
    for operation in Operation::ALL {
        for nth in 1.. {
            faulty.arm(Fault { operation, nth, sticky: false });
            let outcome = catch_unwind(AssertUnwindSafe(|| whole_life(&engine)));
            let struck = faulty.fired();
            faulty.disarm();
            let outcome = outcome.unwrap_or_else(|_| panic!("{operation:?} {nth} panicked"));
            assert_eq!(engine.report().allocated, ByteSize::ZERO, "{operation:?} {nth}");
            assert_eq!(gpu.backend.allocated(), gpu.backend.overhead(), "{operation:?} {nth}");
            if !struck {
                assert_eq!(outcome.expect("the fault never struck"), golden);
                break;
            }
            fired += 1;
            let error = outcome.expect_err("the fault struck");
            let kinds = [ErrorKind::OutOfMemory, ErrorKind::Device, ErrorKind::Io];
            assert!(kinds.contains(&error.kind()), "{operation:?} {nth}: {error:?}");
        }
        assert_eq!(whole_life(&engine).expect("works again"), golden, "{operation:?}");
    }
    assert!(fired > 15, "only {fired} faults struck");
    drop((engine, faulty));
    gpu.close();
}

#[test]
fn a_load_can_be_cancelled_at_any_point() {
    for caps in [Caps::default(), lesser()] {
        let Some(gpu) = Gpu::open(caps) else { return };
        let engine = engine(gpu.backend.clone());
        let mut cancelled = 0;
        for after in 0.. {
            let cancel = Cancel::new();
            let seen = std::sync::atomic::AtomicUsize::new(0);
            let raise = cancel.clone();
            let progress = move |_, _| {
                if seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == after {
                    raise.cancel();
                }
            };
            let options = LoadOptions { cancel, progress: Some(Arc::new(progress)), ..LoadOptions::default() };
            let loaded = engine.load_text_with(fixture("llama-blocks.gguf"), &TextOptions::default(), &options);
            match loaded {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}"),
            }
            assert_eq!(gpu.backend.allocated(), gpu.backend.overhead());
            cancelled += 1;
        }
        assert!(cancelled > 10, "cancelled {cancelled} times");
        whole_life(&engine).expect("works");
        drop(engine);
        gpu.close();
    }
}

/// A step that is stopped may go on on the device; the next waits for it, and so does freeing its memory.
#[test]
fn a_stopped_step_spoils_nothing() {
    let Some(gpu) = Gpu::open(Caps::default()) else { return };
    let engine = engine(gpu.backend.clone());
    let options = TextOptions { batch: 40, ..TextOptions::default() };
    let mut stopped = 0;
    for micros in [0, 50, 100, 200, 400, 800, 1600, 3200] {
        let model =
            engine.load_text_with(fixture("llama-blocks.gguf"), &options, &LoadOptions::default()).expect("loads");
        let mut session = model.session().expect("free");
        let golden = session.evaluate(&PROMPT, &soon()).expect("evaluates").to_vec();
        for _ in 0..3 {
            session.truncate(0);
            let stop = Stop::by(Deadline::after(Duration::from_micros(micros)));
            match session.evaluate(&PROMPT, &stop) {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
                    stopped += 1;
                }
            }
        }
        session.truncate(0);
        let again = session.evaluate(&PROMPT, &soon()).expect("works again");
        assert!(again.iter().zip(&golden).all(|(a, b)| a.to_bits() == b.to_bits()), "after {micros} us");
        // And with a step under way, gone.
        session.truncate(0);
        let _: Result<_, _> =
            session.evaluate(&PROMPT, &Stop::by(Deadline::after(Duration::from_micros(micros)))).map(drop);
        drop(session);
        engine.unload(model, Deadline::after(Duration::from_secs(60))).expect("nobody uses it");
        assert_eq!(gpu.backend.allocated(), gpu.backend.overhead());
    }
    assert!(stopped > 0, "no step was stopped");
    drop(engine);
    gpu.close();
}

/// A device that is not there is a typed error, whatever the machine has.
#[test]
fn a_device_that_is_not_there_is_said_to_be_missing() {
    let options = tenure::VulkanOptions {
        device: tenure::vulkan::DeviceSelector::Index(1000),
        ..tenure::VulkanOptions::default()
    };
    let error = Engine::vulkan(options).expect_err("nobody has so many");
    let known = ["NoLoader", "NoDriver", "NoDevice", "UnknownDevice"];
    assert!(known.contains(&error.class().as_str()), "{error:?}");
    assert!([ErrorKind::Device, ErrorKind::BadParameter].contains(&error.kind()), "{error:?}");
}
