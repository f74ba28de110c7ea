//! Whatever fails, whenever it fails: a typed error, the ledger as before, and the same call succeeds afterwards with
//! the same bits.

use std::sync::Arc;
use std::time::Duration;

use tenure::{
    ByteSize, Cpu, CpuOptions, Deadline, Device, Engine, ErrorKind, LoadOptions, Stop, Text, TextOptions, WeightStore,
};
use tenure_conformance::checks::{PROMPT, same_bits, soon, whole_life};
use tenure_conformance::{Fault, Faulty, Operation, Poisoned, checks, fixture};

fn cpu() -> Arc<Cpu> {
    Arc::new(Cpu::new(&CpuOptions { threads: Some(2), ..CpuOptions::default() }).expect("cpu"))
}

#[test]
fn the_nth_failure_of_every_kind_leaves_nothing_behind() {
    let faulty = Arc::new(Faulty::new(cpu()));
    let engine = Engine::on(Device::new(faulty.clone(), ByteSize::new(1 << 30)));
    checks::nth_failures(&engine, &faulty, whole_life, |nth| nth + 1, || {});
}

/// Others use the device too: what its driver says is free bounds what is reserved, whatever the budget allows.
#[test]
fn what_others_hold_of_the_device_cannot_be_reserved() {
    let faulty = Arc::new(Faulty::new(cpu()));
    let engine = Engine::on(Device::new(faulty.clone(), ByteSize::new(1 << 30)));
    let store = Arc::new(WeightStore::open(fixture("llama-blocks.gguf")).expect("a sound file"));
    let plan = |context| {
        let options = TextOptions { context: Some(context), ..TextOptions::default() };
        engine.plan::<Text>(&store, &options).expect("plans")
    };
    let need = plan(256).bytes();
    faulty.say_available(Some(need));
    assert_eq!(engine.report().free(), need);
    let held = engine.reserve(&plan(256), &soon()).expect("just fits");
    assert_eq!(engine.report().free(), ByteSize::ZERO, "what is reserved is as good as taken");
    drop(held);
    faulty.say_available(Some(need.saturating_sub(ByteSize::new(1))));
    let error = engine.reserve(&plan(256), &Stop::by(Deadline::after(Duration::from_millis(30)))).map(drop);
    let error = error.expect_err("a byte is missing");
    assert_eq!((error.kind(), error.class().as_str()), (ErrorKind::OutOfMemory, "NoRoom"), "{error}");
    assert!(error.to_string().contains("a context of "), "says what would fit: {error}");
    // Somebody lets go while it is waited for.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| engine.reserve(&plan(256), &soon()).map(drop));
        std::thread::sleep(Duration::from_millis(40));
        faulty.say_available(Some(need));
        waiting.join().expect("no panic").expect("came free in time");
    });
    faulty.say_available(None);
    engine.reserve(&plan(256), &soon()).expect("the budget alone counts");
}

#[test]
fn a_step_that_failed_can_be_repeated_in_the_same_session() {
    let faulty = Arc::new(Faulty::new(cpu()));
    let engine = Engine::on(Device::new(faulty.clone(), ByteSize::new(1 << 30)));
    let options = TextOptions { batch: 16, ..TextOptions::default() };
    let model = engine.load_text_with(fixture("llama-blocks.gguf"), &options, &LoadOptions::default()).expect("loads");
    let mut session = model.session().expect("free");
    let golden = session.evaluate(&PROMPT, &soon()).expect("evaluates").to_vec();
    for operation in [Operation::Run, Operation::RunLate, Operation::Read] {
        for nth in 1..=3 {
            session.truncate(0);
            faulty.arm(Fault { operation, nth, sticky: false });
            let failed = session.evaluate(&PROMPT, &soon()).map(<[f32]>::to_vec);
            let struck = faulty.fired();
            faulty.disarm();
            assert_eq!(failed.is_err(), struck, "{operation:?} {nth}");
            let again = session.evaluate(&PROMPT, &soon()).expect("works again");
            assert!(same_bits(again, &golden), "{operation:?} {nth}");
        }
    }
}

#[test]
fn poisoned_memory_changes_nothing() {
    let clean = whole_life(&Engine::on(Device::new(cpu(), ByteSize::new(1 << 30)))).expect("runs");
    let poisoned = Engine::on(Device::new(Arc::new(Poisoned::new(cpu())), ByteSize::new(1 << 30)));
    assert_eq!(whole_life(&poisoned).expect("runs"), clean);
}
