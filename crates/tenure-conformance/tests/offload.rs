//! A model shared out to two devices: the same results, memory to the byte on each, and as many layers as fit.

use std::sync::Arc;
use std::time::Duration;

use tenure::vulkan::Caps;
use tenure::{
    ByteSize, Cpu, CpuOptions, Deadline, Device, Engine, ErrorKind, KvType, LoadOptions, ModelHandle, Offload, Text,
    TextOptions, WeightAccess, WeightStore,
};
use tenure_conformance::checks::{load, same_bits, soon};
use tenure_conformance::{Fault, Faulty, Gpu, Operation, Poisoned, checks, fixture, goldens, products};
use tenure_device::Backend;

fn cpu() -> Arc<dyn Backend> {
    Arc::new(Cpu::new(&CpuOptions { threads: Some(1), ..CpuOptions::default() }).expect("cpu"))
}

fn large(backend: Arc<dyn Backend>) -> Device {
    Device::new(backend, ByteSize::new(1 << 31))
}

fn options(offload: Offload) -> TextOptions {
    TextOptions { offload, kv: KvType::F32, batch: 16, ..TextOptions::default() }
}

fn logits(model: &ModelHandle<Text>, tokens: &[u32]) -> Vec<f32> {
    let mut session = model.session().expect("free");
    session.truncate(0);
    session.evaluate(tokens, &soon()).expect("evaluates").to_vec()
}

/// Where both devices compute alike, where a model is cut changes no bit.
#[test]
fn every_cut_gives_the_same_bits() {
    let engine = Engine::on(large(cpu())).with_host(large(cpu()));
    for (name, golden) in goldens().expect("fixtures") {
        let whole = load(&engine, &golden, &options(Offload::All));
        let layers = whole.config().layers;
        let want = logits(&whole, &golden.longest().tokens);
        for count in 0..=layers + 1 {
            for check_activations in [false, true] {
                let options = TextOptions { check_activations, ..options(Offload::Layers(count)) };
                let model = load(&engine, &golden, &options);
                let got = logits(&model, &golden.longest().tokens);
                assert!(same_bits(&got, &want), "{name} with {count} of {layers} layers");
            }
        }
    }
}

/// What is planned is what each device holds, and unloading gives both back.
#[test]
fn each_device_holds_what_was_planned_for_it() {
    let engine = Engine::on(large(cpu())).with_host(large(cpu()));
    let host = engine.host().expect("there is one").clone();
    for (name, golden) in goldens().expect("fixtures") {
        let store = Arc::new(WeightStore::open(fixture(&golden.model)).expect("opens"));
        for count in [0, 1, usize::MAX] {
            for access in [WeightAccess::Mapped, WeightAccess::Staged] {
                let options = TextOptions { access, ..options(Offload::Layers(count)) };
                let plan = engine.plan::<Text>(&store, &options).expect("plans");
                let planned = plan.shares().to_vec();
                let on = |device: &Device| -> ByteSize {
                    let of_device = planned.iter().filter(|share| share.device.is(device));
                    of_device.map(|share| share.footprint.total()).sum()
                };
                assert_eq!(plan.bytes(), on(&host) + on(engine.device()));
                let parts = plan.components();
                let in_budget: ByteSize = parts.iter().filter(|part| part.in_budget).map(|part| part.bytes).sum();
                assert_eq!(in_budget, plan.bytes(), "{name}");
                let layers: usize = plan.layers().map(|(_, layers)| layers).sum();
                assert_eq!(layers, plan.config().layers, "{name}");
                assert_eq!(on(engine.device()) == ByteSize::ZERO, count == 0, "{name}");

                let reservation = engine.reserve(&plan, &soon()).expect("fits");
                assert_eq!(reservation.remaining(), plan.bytes());
                let model = engine.load(plan, reservation, &LoadOptions::default()).expect("loads");
                logits(&model, &golden.longest().tokens);
                assert_eq!(host.report().allocated, on(&host), "{name} {count}");
                assert_eq!(engine.report().allocated, on(engine.device()), "{name} {count}");
                assert_eq!(model.memory(), on(&host) + on(engine.device()));
                engine.unload(model, Deadline::after(Duration::from_secs(5))).expect("nobody else holds it");
                assert_eq!((host.report().allocated, engine.report().allocated), Default::default());
            }
        }
    }
}

/// `auto` takes as many layers as fit to the byte, and one fewer where a byte is missing.
#[test]
fn auto_fills_the_budget() {
    for (name, golden) in goldens().expect("fixtures") {
        let store = Arc::new(WeightStore::open(fixture(&golden.model)).expect("opens"));
        let device = large(cpu());
        let engine = Engine::on(device.clone()).with_host(large(cpu()));
        let overhead = device.backend().overhead();
        let share = |offload| {
            let plan = engine.plan::<Text>(&store, &options(offload)).expect("plans");
            let mine = plan.shares().iter().find(|share| share.device.is(&device));
            let layers = plan.layers().find(|(other, _)| other.is(&device)).map_or(0, |(_, layers)| layers);
            (layers, plan.shares().len(), mine.map_or(ByteSize::ZERO, |share| share.footprint.total()))
        };
        let (layers, _, whole) = share(Offload::All);
        device.set_budget(whole + overhead);
        assert_eq!(share(Offload::Auto), (layers, 1, whole), "{name}");
        for count in 1..=layers {
            device.set_budget(ByteSize::new(1 << 31));
            let (_, _, bytes) = share(Offload::Layers(count));
            // What is less than all must not take more.
            assert!(bytes <= whole, "{name}: {bytes} for {count} of {layers} layers, {whole} for all");
            device.set_budget(bytes + overhead);
            // Where the host's table of embeddings saves nothing, everything is taken.
            let parts = if count == layers && bytes == whole { 1 } else { 2 };
            assert_eq!(share(Offload::Auto), (count, parts, bytes), "{name}");
            device.set_budget(ByteSize::new((bytes + overhead).get() - 1));
            assert_eq!(share(Offload::Auto).0, count - 1, "{name}");
        }
        device.set_budget(overhead);
        let (_, parts, bytes) = share(Offload::Auto);
        assert_eq!((parts, bytes), (1, ByteSize::ZERO), "{name}");
    }
}

#[test]
fn an_engine_without_a_host_says_so() {
    let engine = Engine::on(large(cpu()));
    let (_, golden) = goldens().expect("fixtures").swap_remove(0);
    let load =
        |offload| engine.load_text_with(fixture(&golden.model), &options(offload), &LoadOptions::default()).map(|_| ());
    let error = load(Offload::Layers(1)).expect_err("nobody would compute the rest");
    assert_eq!(error.kind(), ErrorKind::BadParameter, "{error}");
    assert!(error.to_string().contains("host"), "{error}");
    load(Offload::Auto).expect("everything fits");
}

#[test]
fn a_share_that_does_not_fit_says_what_would() {
    let (_, golden) = goldens().expect("fixtures").into_iter().find(|(name, _)| name.contains("f32")).expect("one");
    let device = large(cpu());
    let engine = Engine::on(device.clone()).with_host(large(cpu()));
    let store = Arc::new(WeightStore::open(fixture(&golden.model)).expect("opens"));
    let staged = |offload| TextOptions { access: WeightAccess::Staged, ..options(offload) };
    let one = engine.plan::<Text>(&store, &staged(Offload::Layers(1))).expect("plans");
    let bytes = one.shares().last().expect("two").footprint.total();
    device.set_budget(bytes + device.backend().overhead());
    let error = engine
        .load_text_with(fixture(&golden.model), &staged(Offload::All), &LoadOptions::default())
        .expect_err("only one layer fits");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.to_string().contains("1 of "), "{error}");
    assert_eq!(engine.host().expect("there").report().reserved, ByteSize::ZERO, "the other share is given back");
}

/// Whatever allocation fails on whichever device, nothing stays behind, and the same call then gives the same bits.
#[test]
fn faults_of_either_device_leave_nothing_behind() {
    let (name, golden) = goldens().expect("fixtures").swap_remove(0);
    let want = {
        let engine = Engine::on(large(cpu())).with_host(large(cpu()));
        logits(&load(&engine, &golden, &options(Offload::Layers(1))), &golden.longest().tokens)
    };
    for faulty_host in [false, true] {
        let faulty = Arc::new(Faulty::new(cpu()));
        let (bad, good) = (large(faulty.clone()), large(cpu()));
        let (device, host) = if faulty_host { (good, bad) } else { (bad, good) };
        let engine = Engine::on(device.clone()).with_host(host.clone());
        for operation in Operation::ALL {
            for nth in 1.. {
                faulty.arm(Fault { operation, nth, sticky: false });
                let outcome = engine
                    .load_text_with(fixture(&golden.model), &options(Offload::Layers(1)), &LoadOptions::default())
                    .and_then(|model| Ok(model.session()?.evaluate(&golden.longest().tokens, &soon())?.to_vec()));
                let struck = faulty.fired();
                faulty.disarm();
                for report in [device.report(), host.report()] {
                    let left = (report.allocated, report.reserved);
                    assert_eq!(left, Default::default(), "{name} {operation:?} {nth}");
                }
                if !struck {
                    assert_eq!(outcome.expect("the fault never struck"), want);
                    break;
                }
                outcome.expect_err("the fault struck");
                let model = load(&engine, &golden, &options(Offload::Layers(1)));
                assert_eq!(logits(&model, &golden.longest().tokens), want, "{name} {operation:?} {nth}");
            }
        }
    }
}

/// A device and the processor round differently; [`checks::agrees`] says how far tokens must be the same all the same.
#[test]
fn every_cut_on_vulkan_agrees_with_the_truth() {
    for caps in products().into_iter().chain([Caps::default()]) {
        let Some(gpu) = Gpu::open(caps) else { return };
        every_cut(gpu);
    }
}

fn every_cut(gpu: Gpu) {
    let engine = Engine::on(large(Arc::new(Poisoned::new(gpu.backend.clone()))));
    let engine = engine.with_host(large(Arc::new(Poisoned::new(cpu()))));
    for (name, golden) in goldens().expect("fixtures") {
        let layers = load(&engine, &golden, &options(Offload::All)).config().layers;
        for count in 0..=layers {
            let model = load(&engine, &golden, &options(Offload::Layers(count)));
            // Each cut with a prompt of its own.
            let case = &golden.cases[count % golden.cases.len()];
            checks::agrees(&model, case, 1e-5, &format!("{name} with {count} of {layers} layers"));
        }
    }
    drop(engine);
    gpu.close();
}
