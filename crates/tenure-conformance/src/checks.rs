//! What holds on every backend: whole models against their truth, memory to the byte, and faults that leave nothing behind.
//!
//! Each check takes an engine and what is particular to its backend, and panics where something does not hold.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tenure::{
    ByteSize, Component, Deadline, Engine, Error, ErrorKind, KvType, LoadOptions, ModelHandle, Stop, Text, TextOptions,
    WeightAccess, WeightStore,
};

use crate::faulty::{Fault, Faulty, Operation};
use crate::fixtures::{Golden, GoldenCase, fixture, goldens};

/// A deadline that only what hangs misses.
pub fn soon() -> Stop {
    Stop::by(Deadline::after(Duration::from_secs(300)))
}

/// Normalised mean square error, as ggml's tests define it.
pub fn nmse(got: &[f32], want: &[f32]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    error / want.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()
}

/// Whether two rows are the same, bit for bit.
pub fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// A small model on an engine.
///
/// # Panics
/// When it cannot be loaded.
pub fn load(engine: &Engine, golden: &Golden, options: &TextOptions) -> ModelHandle<Text> {
    engine.load_text_with(fixture(&golden.model), options, &LoadOptions::default()).expect("a sound file")
}

/// Logits and greedy tokens of every small model agree with an independent implementation in 64-bit floats. `bound`: the
/// largest [`nmse`] of a model's logits, by its name.
///
/// # Panics
/// When they do not.
pub fn truth(engine: &Engine, bound: impl Fn(&str) -> f64) {
    let all = goldens().expect("fixtures");
    assert!(all.len() >= 8, "found {} models", all.len());
    for (name, golden) in &all {
        let options = TextOptions { kv: KvType::F32, batch: 64, ..TextOptions::default() };
        let model = load(engine, golden, &options);
        for case in &golden.cases {
            agrees(&model, case, bound(name), name);
        }
    }
}

/// The logits of a prompt agree with the truth, and its greedy tokens wherever the second is further behind than twice
/// the largest error of a logit puts it.
///
/// # Panics
/// When they do not.
pub fn agrees(model: &ModelHandle<Text>, case: &GoldenCase, bound: f64, what: &str) {
    let mut session = model.session().expect("free");
    let logits = session.evaluate(&case.tokens, &soon()).expect("evaluates");
    let error = nmse(logits, &case.last_logits);
    assert!(error <= bound, "{what} {}: nmse {error:e}", case.name);
    let largest = logits.iter().zip(&case.last_logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let mut tokens = case.tokens.clone();
    for (&want, &margin) in case.greedy.iter().zip(&case.greedy_margin) {
        let logits = session.evaluate(&tokens, &soon()).expect("evaluates");
        let got = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
        // Below twice the error, either of the two may be first.
        if margin > 4.0 * largest.max(1e-4) {
            assert_eq!(got, Some(want as usize), "{what} {} at {}", case.name, tokens.len());
        }
        tokens.push(want);
    }
}

/// Caches of other types change results by their own rounding only.
///
/// # Panics
/// When they change more.
pub fn kv_types(engine: &Engine) {
    for (name, golden) in goldens().expect("fixtures") {
        let case = golden.longest();
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
}

/// What is planned is what the ledger holds, and what the backend has allocated: `allocated` asks it, its own overhead
/// taken off. Returns the most segments that a plan had.
///
/// # Panics
/// When a byte is missing or too many.
pub fn planned_bytes(engine: &Engine, allocated: impl Fn() -> ByteSize) -> usize {
    let mut segments = 0;
    for (name, golden) in goldens().expect("fixtures") {
        let store = Arc::new(WeightStore::open(fixture(&golden.model)).expect("a sound file"));
        for (kv, access, sequences, batch, context) in [
            (KvType::F32, WeightAccess::Mapped, 1, 64, 128),
            (KvType::F16, WeightAccess::Staged, 3, 5, 33),
            (KvType::Q8_0, WeightAccess::Mapped, 2, 512, 1),
            (KvType::F16, WeightAccess::Mapped, 1, 1, 200),
        ] {
            let options = TextOptions {
                context: Some(context),
                sequences,
                kv,
                batch,
                logit_rows: 4,
                access,
                ..TextOptions::default()
            };
            let plan = match engine.plan::<Text>(&store, &options) {
                Ok(plan) => plan,
                Err(error) => {
                    assert_eq!(error.class(), "UnsupportedKv", "{name}: {error}");
                    continue;
                }
            };
            let planned = plan.bytes();
            let in_budget = |part: &Component| part.in_budget.then_some(part.bytes);
            assert_eq!(plan.components().iter().filter_map(in_budget).sum::<ByteSize>(), planned);
            segments = segments.max(plan.shares()[0].footprint.segments().len());
            let most = engine.device().backend().largest_segment();
            let too_large = plan.shares()[0].footprint.segments().iter().any(|&(_, bytes)| bytes > most);
            assert_eq!(
                (engine.report().allocated, allocated()),
                (ByteSize::ZERO, ByteSize::ZERO),
                "planning allocates"
            );
            let reservation = engine.reserve(&plan, &soon()).expect("fits");
            assert_eq!(engine.report().reserved, planned);
            let loaded = engine.load(plan, reservation, &LoadOptions::default());
            if too_large {
                // One tensor, or the cache, is larger than an allocation may be: typed, and nothing is left.
                let error = loaded.expect_err("too large");
                assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
                assert_eq!((engine.report().allocated, allocated()), (ByteSize::ZERO, ByteSize::ZERO));
                continue;
            }
            let model = loaded.expect("loads");
            let report = engine.report();
            assert_eq!((report.allocated, report.reserved), (planned, ByteSize::ZERO), "{name} {options:?}");
            assert_eq!(report.holders.iter().map(|holder| holder.bytes).sum::<ByteSize>(), planned);
            assert_eq!((model.memory(), allocated()), (planned, planned), "{name} {options:?}");
            let mut session = model.session().expect("free");
            let tokens: Vec<u32> = golden.cases[0].tokens.iter().copied().take(context).collect();
            session.evaluate(&tokens, &soon()).expect("evaluates");
            assert_eq!((engine.report().allocated, allocated()), (planned, planned), "running allocates");
            drop(session);
            let released = engine.unload(model, Deadline::after(Duration::from_secs(60))).expect("nobody uses it");
            assert_eq!(released.bytes, planned);
            assert_eq!((engine.report().allocated, allocated()), (ByteSize::ZERO, ByteSize::ZERO), "held after unload");
        }
    }
    segments
}

/// The prompt of [`whole_life`].
pub const PROMPT: [u32; 40] = [7; 40];

/// Loads, computes a prompt in chunks, decodes a few tokens, unloads; returns the bits of the last logits.
///
/// # Errors
/// Whatever fails.
pub fn whole_life(engine: &Engine) -> Result<Vec<u32>, Error> {
    let options = TextOptions { batch: 16, access: WeightAccess::Staged, ..TextOptions::default() };
    let model = engine.load_text_with(fixture("llama-blocks.gguf"), &options, &LoadOptions::default())?;
    let mut session = model.session()?;
    session.evaluate(&PROMPT, &soon())?;
    let mut last = Vec::new();
    for token in 0..4 {
        last = session.append(&[token], &soon())?.iter().map(|x| x.to_bits()).collect();
    }
    Ok(last)
}

/// Whatever fails, whenever it fails: a typed error, nothing held afterwards, and the same life with the same bits once
/// nothing fails any more. `engine` runs over `faulty`; `at_rest` looks at what the backend holds.
///
/// # Panics
/// When a failure panics, leaves something behind, or changes a later result.
pub fn nth_failures(engine: &Engine, faulty: &Faulty, at_rest: impl Fn()) {
    let golden = whole_life(engine).expect("nothing armed");
    let mut fired = 0;
    for operation in Operation::ALL {
        for sticky in [false, true] {
            for nth in 1.. {
                faulty.arm(Fault { operation, nth, sticky });
                let outcome = catch_unwind(AssertUnwindSafe(|| whole_life(engine)));
                let struck = faulty.fired();
                faulty.disarm();
                let outcome = outcome.unwrap_or_else(|_| panic!("{operation:?} {nth} panicked"));
                let report = engine.report();
                assert_eq!(
                    (report.allocated, report.reserved),
                    (ByteSize::ZERO, ByteSize::ZERO),
                    "{operation:?} {nth}"
                );
                at_rest();
                if !struck {
                    assert_eq!(outcome.expect("the fault never struck"), golden);
                    break;
                }
                fired += 1;
                let error = outcome.expect_err("the fault struck");
                let kinds = [ErrorKind::OutOfMemory, ErrorKind::Device, ErrorKind::Io];
                assert!(kinds.contains(&error.kind()), "{operation:?} {nth}: {error:?}");
                // Once for each kind of failure shows as much where a life takes long.
                if nth <= 2 {
                    assert_eq!(whole_life(engine).expect("works again"), golden, "{operation:?} {nth}");
                }
            }
        }
        assert_eq!(whole_life(engine).expect("works again"), golden, "{operation:?}");
    }
    assert!(fired > 30, "only {fired} faults struck");
}
