//! Whatever fails, whenever it fails: a typed error, the ledger as before, and the same call succeeds afterwards with
//! the same bits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tenure::{ByteSize, Cpu, CpuOptions, Deadline, Device, Engine, Error, ErrorKind, LoadOptions, Stop, TextOptions};
use tenure_conformance::{Fault, Faulty, Operation, Poisoned, fixture};

const PROMPT: [u32; 40] = [7; 40];

fn soon() -> Stop {
    Stop::by(Deadline::after(Duration::from_secs(60)))
}

fn cpu() -> Arc<Cpu> {
    Arc::new(Cpu::new(&CpuOptions { threads: Some(2), ..CpuOptions::default() }).expect("cpu"))
}

/// Loads, computes a prompt in chunks, decodes a few tokens, unloads; returns the bits of the last logits.
fn whole_life(engine: &Engine) -> Result<Vec<u32>, Error> {
    let options = TextOptions { batch: 16, access: tenure::WeightAccess::Staged, ..TextOptions::default() };
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
    let faulty = Arc::new(Faulty::new(cpu()));
    let engine = Engine::on(Device::new(faulty.clone(), ByteSize::new(1 << 30)));
    let golden = whole_life(&engine).expect("nothing armed");
    let mut fired = 0;
    for operation in Operation::ALL {
        for sticky in [false, true] {
            for nth in 1.. {
                faulty.arm(Fault { operation, nth, sticky });
                let outcome = catch_unwind(AssertUnwindSafe(|| whole_life(&engine)));
                let struck = faulty.fired();
                faulty.disarm();
                let outcome = outcome.unwrap_or_else(|_| panic!("{operation:?} {nth} panicked"));
                let report = engine.report();
                assert_eq!(
                    (report.allocated, report.reserved),
                    (ByteSize::ZERO, ByteSize::ZERO),
                    "{operation:?} {nth}"
                );
                if !struck {
                    assert_eq!(outcome.expect("the fault never struck"), golden);
                    break;
                }
                fired += 1;
                let error = outcome.expect_err("the fault struck");
                let kinds = [ErrorKind::OutOfMemory, ErrorKind::Device, ErrorKind::Io];
                assert!(kinds.contains(&error.kind()), "{operation:?} {nth}: {error:?}");
                assert_eq!(whole_life(&engine).expect("works again"), golden, "{operation:?} {nth}");
            }
        }
    }
    assert!(fired > 30, "only {fired} faults struck");
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
            assert!(again.iter().zip(&golden).all(|(a, b)| a.to_bits() == b.to_bits()), "{operation:?} {nth}");
        }
    }
}

#[test]
fn poisoned_memory_changes_nothing() {
    let clean = whole_life(&Engine::on(Device::new(cpu(), ByteSize::new(1 << 30)))).expect("runs");
    let poisoned = Engine::on(Device::new(Arc::new(Poisoned::new(cpu())), ByteSize::new(1 << 30)));
    assert_eq!(whole_life(&poisoned).expect("runs"), clean);
}
