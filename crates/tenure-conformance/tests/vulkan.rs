//! Whole models on Vulkan: the truth, memory to the byte, faults, stops, and nothing for the validation layer to say.

use std::sync::Arc;
use std::time::Duration;

use tenure::vulkan::Caps;
use tenure::{
    ByteSize, Cancel, Deadline, Device, Engine, ErrorKind, KvType, LoadOptions, Stop, Text, TextOptions, Wanted,
    WeightStore,
};
use tenure_conformance::checks::{PROMPT, load, nmse, same_bits, soon, whole_life};
use tenure_conformance::{Faulty, Gpu, Poisoned, checks, fixture, goldens, products};
use tenure_device::Backend;

fn engine(backend: Arc<dyn Backend>) -> Engine {
    Engine::on(Device::new(backend, ByteSize::new(1 << 31)))
}

/// A device that lacks what a device may lack, whose bindings are small, and which runs the plain kernels.
fn lesser() -> Caps {
    Caps {
        no_timeline_semaphores: true,
        no_mapped_memory: true,
        no_subgroup_arithmetic: true,
        binding: Some(ByteSize::new(256 << 10)),
        ..Caps::default()
    }
}

/// Nothing is quantised but the weights themselves, whose blocks the truth has too, so only rounding is left; to f16, of
/// what cooperative matrices multiply, and to 16 bits, of what integer dot products do.
#[test]
fn logits_and_greedy_tokens_agree_with_the_truth() {
    for caps in [Caps::default(), lesser()].into_iter().chain(products()) {
        let Some(gpu) = Gpu::open(caps) else { return };
        let engine = engine(Arc::new(Poisoned::new(gpu.backend.clone())));
        let bound = gpu.rounding();
        checks::truth(&engine, |_| bound);
        drop(engine);
        gpu.close();
    }
}

/// The same work gives the same bits; other chunks, other caches and other company change no more than rounding, to f16
/// where cooperative matrices multiply the chunks that have many rows, to 16 bits where integer dot products do.
#[test]
fn results_depend_on_nothing_but_the_prompt() {
    for caps in std::iter::once(Caps::default()).chain(products()) {
        let Some(gpu) = Gpu::open(caps) else { return };
        let bound = gpu.rounding();
        nothing_but_the_prompt(gpu, bound);
    }
}

fn nothing_but_the_prompt(gpu: Gpu, bound: f64) {
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
            assert!(same_bits(&again, &a), "{name}, batch {batch}");
            let first = first.get_or_insert_with(|| a.clone());
            for got in [&a, &cached] {
                assert!(nmse(got, first) < bound, "{name}, batch {batch}: {:e}", nmse(got, first));
            }
        }
    }
    drop(engine);
    gpu.close();
}

/// Weights and caches larger than a binding are divided, and allocations are as small as they can be: the same bits.
#[test]
fn what_is_larger_than_a_binding_gives_the_same_bits() {
    let small = Caps { binding: Some(ByteSize::new(14 << 10)), allocation: Some(ByteSize::new(112 << 10)), ..lesser() };
    let Some(gpu) = Gpu::open(Caps { allocation: None, binding: None, ..small }) else { return };
    let Some(divided) = Gpu::open(small) else { return };
    let gpus = [&gpu, &divided];
    let engines = gpus.map(|gpu| engine(gpu.backend.clone()));
    let (mut tables, mut caches, mut segments, mut indivisible) = (0, 0, 0, 0);
    for (name, golden) in goldens().expect("fixtures") {
        let case = golden.longest();
        let tokens = &case.tokens[..60];
        let options = TextOptions { kv: KvType::F32, context: Some(64), batch: 40, ..TextOptions::default() };
        let store = Arc::new(WeightStore::open(fixture(&golden.model)).expect("a sound file"));
        let counts = [0, 1].map(|at| {
            let plan = engines[at].plan::<Text>(&store, &options).expect("plans");
            let (_, step) = plan.steps().next()?;
            let cache = (KvType::F32, step.shape().table_len());
            let explained = gpus[at].backend.explain(step, cache, 40, &[Wanted::Row]).ok()?;
            let held = plan.shares()[0].footprint.segments().len();
            Some((explained.dispatches["embed"], explained.dispatches["kv_store"], held))
        });
        let [Some(whole), Some(parts)] = counts else {
            // One head's cache is larger than a binding.
            indivisible += 1;
            continue;
        };
        tables += usize::from(parts.0 > whole.0);
        caches += usize::from(parts.1 > whole.1);
        segments += usize::from(parts.2 > whole.2);
        let [whole, parts] = [0, 1].map(|at| {
            let model = load(&engines[at], &golden, &options);
            let mut session = model.session().expect("free");
            let mut logits = session.evaluate(tokens, &soon()).expect("evaluates").to_vec();
            logits.extend_from_slice(session.append(&[1], &soon()).expect("appends"));
            logits
        });
        assert!(same_bits(&whole, &parts), "{name}");
    }
    assert!(tables >= 8 && caches >= 2 && segments >= 4, "divided: {tables} tables, {caches} caches, {segments} files");
    assert!(indivisible <= 1, "{indivisible} models were not tried");
    drop(engines);
    gpu.close();
    divided.close();
}

#[test]
fn kv_types_differ_by_their_own_rounding_only() {
    let Some(gpu) = Gpu::open(Caps::default()) else { return };
    let engine = engine(gpu.backend.clone());
    checks::kv_types(&engine);
    drop(engine);
    gpu.close();
}

/// What is planned is what the ledger holds, and with the backend's own overhead what the driver allocated.
#[test]
fn planned_bytes_are_the_drivers_bytes() {
    let small = Caps { allocation: Some(ByteSize::new(96 << 10)), ..lesser() };
    for caps in [Caps::default(), lesser(), small].into_iter().chain(products()) {
        let Some(gpu) = Gpu::open(caps) else { return };
        let overhead = gpu.backend.overhead();
        assert_eq!(overhead > ByteSize::ZERO, caps.no_mapped_memory, "staging is the only overhead");
        assert_eq!(gpu.backend.allocated(), overhead);
        let engine = engine(gpu.backend.clone());
        let segments = checks::planned_bytes(&engine, || gpu.allocated());
        assert_eq!(segments > 5, caps.allocation.is_some(), "weights are in several segments where one is too small");
        drop(engine);
        gpu.close();
    }
}

#[test]
fn the_nth_failure_of_every_kind_leaves_nothing_behind() {
    // With as much memory as there may be.
    let caps = products().pop().unwrap_or_default();
    let Some(gpu) = Gpu::open(caps) else { return };
    let faulty = Arc::new(Faulty::new(gpu.backend.clone()));
    let engine = engine(faulty.clone());
    checks::nth_failures(
        &engine,
        &faulty,
        whole_life,
        |nth| nth + 1,
        || {
            assert_eq!(gpu.allocated(), ByteSize::ZERO);
        },
    );
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
            assert_eq!(gpu.allocated(), ByteSize::ZERO);
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
        assert!(same_bits(again, &golden), "after {micros} us");
        // And with a step under way, gone.
        session.truncate(0);
        let _: Result<_, _> =
            session.evaluate(&PROMPT, &Stop::by(Deadline::after(Duration::from_micros(micros)))).map(drop);
        drop(session);
        engine.unload(model, Deadline::after(Duration::from_secs(60))).expect("nobody uses it");
        assert_eq!(gpu.allocated(), ByteSize::ZERO);
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
