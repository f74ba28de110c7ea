//! What is planned is what is held, to the byte, and nothing is held longer than it is used.

use std::sync::Arc;
use std::time::Duration;

use tenure::{ByteSize, CpuOptions, Deadline, Engine, ErrorKind, LoadOptions, Stop, Text, TextOptions, WeightStore};
use tenure_conformance::checks::{self, soon};
use tenure_conformance::fixture;

#[test]
fn planned_bytes_are_allocated_bytes() {
    let engine = Engine::auto().expect("cpu");
    checks::planned_bytes(&engine, || engine.report().allocated);
}

#[test]
fn a_model_in_use_is_not_unloaded() {
    let engine = Engine::auto().expect("cpu");
    let model = engine.load_text(fixture("llama-f32.gguf")).expect("loads");
    let session = model.session().expect("free");
    let refused = engine.unload(model, Deadline::after(Duration::from_millis(20))).expect_err("a session uses it");
    assert_eq!(refused.users, 1);
    drop(session);
    engine.unload(refused.handle, Deadline::after(Duration::from_secs(5))).expect("nobody uses it now");
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers_and_a_way_out() {
    let store = Arc::new(WeightStore::open(fixture("llama-f32.gguf")).expect("a sound file"));
    let whole = Engine::auto().expect("cpu");
    let options = |context| TextOptions { context: Some(context), batch: 16, ..TextOptions::default() };
    let small = whole.plan::<Text>(&store, &options(64)).expect("plans").bytes();
    let large = whole.plan::<Text>(&store, &options(100_000)).expect("plans").bytes();
    let overhead = whole.device().backend().overhead();
    let budget = ByteSize::new((small.get() + large.get()) / 2) + overhead;
    let engine = Engine::cpu(CpuOptions { budget: Some(budget), ..CpuOptions::default() }).expect("cpu");
    let plan = engine.plan::<Text>(&store, &options(100_000)).expect("plans");
    let error = engine.reserve(&plan, &soon()).expect_err("does not fit");
    assert_eq!((error.kind(), error.class().as_str()), (ErrorKind::OutOfMemory, "TooLarge"));
    let text = error.to_string();
    let fits: usize = text
        .split("a context of ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("names a context that fits: {text}"));
    // The advice holds, and one more does not fit.
    let plan = engine.plan::<Text>(&store, &options(fits)).expect("plans");
    engine.reserve(&plan, &soon()).expect("the context advised fits");
    let plan = engine.plan::<Text>(&store, &options(fits + 1)).expect("plans");
    engine.reserve(&plan, &soon()).expect_err("the advice was the largest");
}

#[test]
fn a_reservation_waits_for_memory_until_its_deadline() {
    let store = Arc::new(WeightStore::open(fixture("llama-f32.gguf")).expect("a sound file"));
    let probe = Engine::auto().expect("cpu");
    let need = probe.plan::<Text>(&store, &TextOptions::default()).expect("plans").bytes();
    let budget = need + probe.device().backend().overhead();
    let engine = Engine::cpu(CpuOptions { budget: Some(budget), ..CpuOptions::default() }).expect("cpu");
    let plan = || engine.plan::<Text>(&store, &TextOptions::default()).expect("plans");
    let first = engine.reserve(&plan(), &soon()).expect("fits");
    let model = engine.load(plan(), first, &LoadOptions::default()).expect("loads");
    let error = engine.reserve(&plan(), &Stop::by(Deadline::after(Duration::from_millis(30)))).expect_err("no room");
    assert_eq!(error.class(), "NoRoom");
    assert!(error.to_string().contains("llama-f32.gguf"), "says who holds it: {error}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| engine.reserve(&plan(), &soon()).map(drop));
        std::thread::sleep(Duration::from_millis(50));
        engine.unload(model, Deadline::after(Duration::from_secs(5))).expect("nobody uses it");
        waiting.join().expect("no panic").expect("the memory came back in time");
    });
    assert_eq!(engine.report().reserved, ByteSize::ZERO, "dropping a reservation gives it back");
}
