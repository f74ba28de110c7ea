//! A Vulkan device that is lost, hangs, or has no memory, at every call where it can: typed errors in time, nothing freed
//! under the device, and the same results afterwards. The driver is a real one whose calls are had to fail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tenure::vulkan::Caps;
use tenure::{
    ByteSize, Cancel, Deadline, Device, Engine, Error, ErrorKind, KvType, LoadOptions, ModelHandle, Stop, Text,
    TextOptions,
};
use tenure_conformance::checks::{PROMPT, load, same_bits, soon};
use tenure_conformance::{DriverFault, DriverFaults, Gpu, fixture, goldens};
use tenure_vulkan::testing::{Driver, Injected};

/// As a discrete device without timeline semaphores.
const LESSER: Caps = Caps {
    no_timeline_semaphores: true,
    no_mapped_memory: true,
    binding: None,
    allocation: None,
    work: None,
    no_subgroup_arithmetic: false,
    integer_dot: None,
    cooperative_matrix: None,
};
/// What is more than any wait here needs on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

fn engine(gpu: &Gpu) -> Engine {
    Engine::on(Device::new(gpu.backend.clone(), ByteSize::new(1 << 31)))
}

/// Loads, computes a prompt, decodes a token, unloads: short, for a device opened anew compiles its kernels anew.
fn short_life(engine: &Engine) -> Result<Vec<u32>, Error> {
    let model = engine.load_text_with(fixture("llama-f32.gguf"), &TextOptions::default(), &LoadOptions::default())?;
    let mut session = model.session()?;
    session.evaluate(&[1, 2, 3], &soon())?;
    Ok(session.append(&[4], &soon())?.iter().map(|x| x.to_bits()).collect())
}

fn blocks(engine: &Engine, options: &TextOptions) -> ModelHandle<Text> {
    engine.load_text_with(fixture("llama-f32.gguf"), options, &LoadOptions::default()).expect("loads")
}

fn within(limit: Duration) -> Stop {
    Stop::by(Deadline::after(limit))
}

fn waits(caps: Caps) -> &'static str {
    if caps.no_timeline_semaphores { "vkWaitForFences" } else { "vkWaitSemaphores" }
}

/// Lost at every submission and every wait of a life: the life ends with it, so does at once whatever is tried later,
/// nothing is held, and the device opened anew gives the same bits.
#[test]
fn a_device_lost_at_any_moment_is_told_and_opened_anew() {
    for caps in [Caps::default(), LESSER] {
        let faults = DriverFaults::new();
        let Some(gpu) = Gpu::open_failing(caps, faults.driver(None)) else { return };
        let mut engine = engine(&gpu);
        let golden = short_life(&engine).expect("nothing armed");
        let mut struck = 0;
        for call in ["vkQueueSubmit", waits(caps), "vkAllocateMemory", "vkBindBufferMemory"] {
            for nth in 1.. {
                faults.arm(DriverFault { call: Some(call), nth, sticky: false, injected: Injected::Lost });
                let outcome = short_life(&engine);
                let fired = faults.struck().is_some();
                faults.disarm();
                if !fired {
                    assert_eq!(outcome.expect("the fault never struck"), golden);
                    break;
                }
                struck += 1;
                let error = outcome.expect_err("the device is gone");
                let what = format!("{call} {nth}: {error:?}");
                assert_eq!((error.kind(), error.class().as_str()), (ErrorKind::DeviceLost, "Lost"), "{what}");
                let began = Instant::now();
                let error = short_life(&engine).expect_err("still gone");
                assert_eq!((error.kind(), error.class().as_str()), (ErrorKind::DeviceLost, "Lost"), "{what}");
                assert!(began.elapsed() < SLACK, "{what}");
                assert_eq!(engine.report().allocated, ByteSize::ZERO, "{what}");
                engine = engine.reopen().expect("the device is there");
                // Each moment once more would take minutes; the first of each kind shows as much.
                if nth == 1 {
                    assert_eq!(short_life(&engine).expect("a new device"), golden, "{what}");
                }
            }
        }
        assert!(struck > 10, "lost {struck} times");
        assert_eq!(short_life(&engine).expect("a new device"), golden);
        drop(engine);
        gpu.close();
    }
}

/// Everybody on a lost device is told, at once; what is on the device opened anew is not.
#[test]
fn everybody_on_a_lost_device_is_told() {
    let faults = DriverFaults::new();
    let Some(gpu) = Gpu::open_failing(Caps::default(), faults.driver(None)) else { return };
    let old = engine(&gpu);
    let options = TextOptions { batch: 16, sequences: 2, ..TextOptions::default() };
    let (model, other) = (blocks(&old, &options), blocks(&old, &options));
    let mut sessions = [model.session().expect("free"), model.session().expect("free"), other.session().expect("free")];
    let golden = sessions[0].evaluate(&PROMPT, &soon()).expect("evaluates").to_vec();
    for session in &mut sessions {
        session.evaluate(&PROMPT, &soon()).expect("evaluates");
    }
    faults.arm(DriverFault { call: Some("vkQueueSubmit"), nth: 1, sticky: false, injected: Injected::Lost });
    for session in &mut sessions {
        let began = Instant::now();
        let error = session.append(&[3], &soon()).map(drop).expect_err("gone");
        assert_eq!(error.kind(), ErrorKind::DeviceLost, "{error:?}");
        assert_eq!(session.cached(), PROMPT.len(), "nothing was appended");
        let error = session.evaluate(&PROMPT[..20], &soon()).map(drop).expect_err("still gone");
        assert_eq!(error.kind(), ErrorKind::DeviceLost, "{error:?}");
        assert!(began.elapsed() < SLACK);
    }
    faults.disarm();
    let error = old.load_text(fixture("llama-f32.gguf")).map(drop).expect_err("nothing can be loaded either");
    assert_eq!(error.kind(), ErrorKind::DeviceLost, "{error:?}");
    // The new device works while there are still models of the old one.
    let new = old.reopen().expect("the device is there");
    assert_eq!(new.report().budget, old.report().budget);
    let fresh = blocks(&new, &options);
    let mut session = fresh.session().expect("free");
    let again = session.evaluate(&PROMPT, &soon()).expect("evaluates");
    assert!(same_bits(again, &golden));
    let error = sessions[0].append(&[3], &soon()).map(drop).expect_err("of the old device");
    assert_eq!(error.kind(), ErrorKind::DeviceLost, "{error:?}");
    drop((sessions, session));
    for (engine, model) in [(&old, model), (&old, other), (&new, fresh)] {
        engine.unload(model, Deadline::after(SLACK)).expect("nobody uses it");
    }
    assert_eq!((old.report().allocated, gpu.allocated()), (ByteSize::ZERO, ByteSize::ZERO));
    drop((old, new));
    gpu.close();
}

/// A step that never ends gives its deadline's error in time; its memory is leaked rather than freed under the device,
/// which is given up; the device opened anew works.
#[test]
fn a_device_that_hangs_is_given_up() {
    for caps in [Caps::default(), LESSER] {
        let faults = DriverFaults::new();
        let linger = Duration::from_millis(200);
        let Some(gpu) = Gpu::open_failing(caps, faults.driver(Some(linger))) else { return };
        let engine = engine(&gpu);
        let golden = short_life(&engine).expect("nothing armed");
        let model = blocks(&engine, &TextOptions { batch: 16, ..TextOptions::default() });
        let mut session = model.session().expect("free");
        faults.arm(DriverFault { call: Some(waits(caps)), nth: 1, sticky: true, injected: Injected::Hang });
        for _ in 0..2 {
            let (began, limit) = (Instant::now(), Duration::from_millis(150));
            let error = session.evaluate(&PROMPT, &within(limit)).map(drop).expect_err("never ends");
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error:?}");
            assert!(began.elapsed() >= limit && began.elapsed() < limit + SLACK, "{:?}", began.elapsed());
        }
        let held = gpu.allocated();
        assert!(held > ByteSize::ZERO);
        drop(session);
        let began = Instant::now();
        engine.unload(model, Deadline::after(SLACK)).expect("nobody uses it");
        assert!(began.elapsed() >= linger && began.elapsed() < linger + SLACK, "{:?}", began.elapsed());
        assert_eq!(gpu.allocated(), held, "freed under the device");
        let error = short_life(&engine).expect_err("given up");
        assert_eq!(error.kind(), ErrorKind::DeviceLost, "{error:?}");
        faults.disarm();
        let error = short_life(&engine).expect_err("given up for good");
        assert_eq!(error.kind(), ErrorKind::DeviceLost, "{error:?}");
        let new = engine.reopen().expect("the device is there");
        assert_eq!(short_life(&new).expect("a new device"), golden);
        drop((engine, new));
        gpu.close();
    }
}

/// A load whose copies do not end gives its deadline's error; what is copied to is freed when they have ended, not before.
#[test]
fn memory_under_a_copy_outlives_its_load() {
    let faults = DriverFaults::new();
    let Some(gpu) = Gpu::open_failing(LESSER, faults.driver(None)) else { return };
    let engine = engine(&gpu);
    let golden = short_life(&engine).expect("nothing armed");
    faults.arm(DriverFault { call: Some(waits(LESSER)), nth: 1, sticky: true, injected: Injected::Hang });
    let (began, limit) = (Instant::now(), Duration::from_millis(150));
    let options = LoadOptions { deadline: Deadline::after(limit), ..LoadOptions::default() };
    let loaded = engine.load_text_with(fixture("llama-f32.gguf"), &TextOptions::default(), &options);
    let error = loaded.map(drop).expect_err("never ends");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error:?}");
    assert!(began.elapsed() < limit + Duration::from_secs(1) + SLACK, "{:?}", began.elapsed());
    assert!(gpu.allocated() > ByteSize::ZERO, "freed under the copy");
    // The next load waits for the last one's copies, and has the same deadline.
    let options = LoadOptions { deadline: Deadline::after(limit), ..LoadOptions::default() };
    let loaded = engine.load_text_with(fixture("llama-f32.gguf"), &TextOptions::default(), &options);
    assert_eq!(loaded.map(drop).expect_err("never ends").kind(), ErrorKind::DeadlineExceeded);
    faults.disarm();
    assert_eq!(short_life(&engine).expect("the copies have ended"), golden);
    assert_eq!(gpu.allocated(), ByteSize::ZERO, "freed once they had ended");
    drop(engine);
    gpu.close();
}

/// A model with a step under way that somebody stopped, on a device whose waits do not end.
fn stopped(engine: &Engine, faults: &DriverFaults, caps: Caps) -> ModelHandle<Text> {
    let model = blocks(engine, &TextOptions { batch: 40, ..TextOptions::default() });
    let mut session = model.session().expect("free");
    faults.arm(DriverFault { call: Some(waits(caps)), nth: 1, sticky: true, injected: Injected::Hang });
    let error = session.evaluate(&PROMPT, &within(Duration::from_millis(20))).map(drop).expect_err("never ends");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error:?}");
    drop(session);
    model
}

/// What a stopped step uses is freed when the device is done with it, not before; who unloads is told so in time, and
/// keeps the model.
#[test]
fn memory_under_a_step_outlives_its_program() {
    for caps in [Caps::default(), LESSER] {
        let faults = DriverFaults::new();
        let Some(gpu) = Gpu::open_failing(caps, faults.driver(None)) else { return };
        let engine = engine(&gpu);
        let model = stopped(&engine, &faults, caps);
        let held = gpu.allocated();
        let (began, limit) = (Instant::now(), Duration::from_millis(100));
        let refused = engine.unload(model, Deadline::after(limit)).expect_err("the device is at work");
        assert!(began.elapsed() < limit + SLACK, "{:?}", began.elapsed());
        assert_eq!((refused.users, refused.to_string().as_str()), (0, "a device still works with the model"));
        let model = refused.handle;
        std::thread::scope(|scope| {
            let unload = scope.spawn(|| engine.unload(model, Deadline::after(SLACK)).expect("nobody uses it"));
            std::thread::sleep(Duration::from_millis(200));
            assert!(!unload.is_finished(), "returned while the device was at work");
            assert_eq!(
                (gpu.allocated(), engine.report().allocated),
                (held, held),
                "freed while the device was at work"
            );
            faults.disarm();
            unload.join().expect("no panic");
        });
        assert_eq!((gpu.allocated(), engine.report().allocated), (ByteSize::ZERO, ByteSize::ZERO));
        drop(engine);
        gpu.close();
    }
}

/// A device lost while a program is dropped whose step was stopped: everything is freed all the same.
#[test]
fn a_device_lost_while_something_is_dropped_frees_it() {
    for caps in [Caps::default(), LESSER] {
        let faults = DriverFaults::new();
        let Some(gpu) = Gpu::open_failing(caps, faults.driver(None)) else { return };
        let engine = engine(&gpu);
        let model = stopped(&engine, &faults, caps);
        faults.arm(DriverFault { call: Some(waits(caps)), nth: 1, sticky: false, injected: Injected::Lost });
        engine.unload(model, Deadline::after(SLACK)).expect("nobody uses it");
        assert_eq!(faults.struck(), Some(waits(caps)));
        assert_eq!((gpu.allocated(), engine.report().allocated), (ByteSize::ZERO, ByteSize::ZERO));
        faults.disarm();
        let error = short_life(&engine).expect_err("gone");
        assert_eq!(error.kind(), ErrorKind::DeviceLost, "{error:?}");
        drop(engine);
        gpu.close();
    }
}

/// No memory, at every call of the driver that can say so: a typed error, nothing held, and the same life with the same
/// bits on the same engine.
#[test]
fn no_memory_at_any_call_leaves_the_engine_usable() {
    for caps in [Caps::default(), LESSER] {
        let faults = DriverFaults::new();
        let Some(gpu) = Gpu::open_failing(caps, faults.driver(None)) else { return };
        let engine = engine(&gpu);
        // The first life makes the kernels' pipelines too.
        faults.take_calls();
        let golden = short_life(&engine).expect("nothing armed");
        let mut names: Vec<&'static str> = faults.take_calls().into_keys().collect();
        names.retain(|&name| name != waits(caps));
        assert!(names.len() > 8, "{names:?}");
        let mut struck = 0;
        for call in names {
            // All of few, and fewer and fewer of many.
            let mut nth = 1;
            loop {
                faults.arm(DriverFault { call: Some(call), nth, sticky: false, injected: Injected::OutOfDeviceMemory });
                let outcome = short_life(&engine);
                let fired = faults.struck().is_some();
                faults.disarm();
                assert_eq!(
                    (gpu.allocated(), engine.report().allocated),
                    (ByteSize::ZERO, ByteSize::ZERO),
                    "{call} {nth}"
                );
                if !fired {
                    assert_eq!(outcome.expect("the fault never struck"), golden);
                    break;
                }
                struck += 1;
                let error = outcome.expect_err("the fault struck");
                assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{call} {nth}: {error:?}");
                nth += 1 + nth / 2;
            }
            assert_eq!(short_life(&engine).expect("works again"), golden, "{call}");
        }
        assert!(struck > 20, "{struck} calls failed");
        drop(engine);
        gpu.close();
    }
}

/// A pipeline that cannot be made is made when it is asked for again.
#[test]
fn no_memory_for_a_kernel_leaves_the_engine_usable() {
    let faults = DriverFaults::new();
    let Some(gpu) = Gpu::open_failing(Caps::default(), faults.driver(None)) else { return };
    let engine = engine(&gpu);
    for call in ["vkCreatePipelineLayout", "vkCreateShaderModule", "vkCreateComputePipelines"] {
        faults.arm(DriverFault { call: Some(call), nth: 2, sticky: false, injected: Injected::OutOfDeviceMemory });
        let error = short_life(&engine).expect_err("the fault struck");
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{call}: {error:?}");
        assert_eq!(faults.struck(), Some(call));
        assert_eq!(gpu.allocated(), ByteSize::ZERO);
    }
    faults.disarm();
    let first = short_life(&engine).expect("works");
    assert_eq!(short_life(&engine).expect("works"), first);
    drop(engine);
    gpu.close();
}

/// A step in many submissions gives the bits of the step in one.
#[test]
fn many_submissions_give_the_bits_of_one() {
    let (faults, small) = (DriverFaults::new(), Caps { work: Some(100_000), ..Caps::default() });
    let Some(gpu) = Gpu::open_failing(Caps::default(), faults.driver(None)) else { return };
    let Some(divided) = Gpu::open_failing(small, faults.driver(None)) else { return };
    let engines = [engine(&gpu), engine(&divided)];
    for (name, golden) in goldens().expect("fixtures") {
        let case = golden.longest();
        let options = TextOptions { kv: KvType::F32, batch: 64, ..TextOptions::default() };
        let [(one, whole), (many, parts)] = [&engines[0], &engines[1]].map(|engine| {
            let model = load(engine, &golden, &options);
            let mut session = model.session().expect("free");
            faults.take_calls();
            let mut logits = session.evaluate(&case.tokens, &soon()).expect("evaluates").to_vec();
            logits.extend_from_slice(session.append(&[1], &soon()).expect("appends"));
            (faults.take_calls()["vkQueueSubmit"], logits)
        });
        assert_eq!(one, case.tokens.len().div_ceil(64) + 1, "{name}");
        assert!(many > 10 * one, "{name}: {many} submissions");
        assert!(same_bits(&whole, &parts), "{name}: {many} submissions");
    }
    drop(engines);
    gpu.close();
    divided.close();
}

/// A step is stopped between its submissions: no more than were ahead already follow.
#[test]
fn a_step_is_stopped_between_its_submissions() {
    let cancel: Arc<std::sync::Mutex<(Cancel, usize)>> = Arc::default();
    let seen = cancel.clone();
    let interpose = move |call: &'static str| {
        let mut seen = seen.lock().expect("nobody panicked");
        if call == "vkQueueSubmit" {
            seen.1 += 1;
            if seen.1 == 5 {
                seen.0.cancel();
            }
        }
        None
    };
    let caps = Caps { work: Some(100_000), ..Caps::default() };
    let driver = Driver { interpose: Some(Arc::new(interpose)), linger: None };
    let Some(gpu) = Gpu::open_failing(caps, driver) else { return };
    let engine = engine(&gpu);
    let model = blocks(&engine, &TextOptions { batch: 64, ..TextOptions::default() });
    let mut session = model.session().expect("free");
    let submitted = || std::mem::take(&mut cancel.lock().expect("nobody panicked").1);
    submitted();
    let golden = session.evaluate(&PROMPT, &soon()).expect("evaluates").to_vec();
    let whole = submitted();
    assert!(whole > 20, "{whole} submissions");
    session.truncate(0);
    let stop = Stop { deadline: soon().deadline, cancel: Cancel::new() };
    cancel.lock().expect("nobody panicked").0 = stop.cancel.clone();
    let error = session.evaluate(&PROMPT, &stop).map(drop).expect_err("cancelled");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
    assert_eq!(submitted(), 5, "submissions after the cancellation");
    session.truncate(0);
    assert!(same_bits(session.evaluate(&PROMPT, &soon()).expect("works again"), &golden));
    drop((session, model, engine));
    gpu.close();
}
