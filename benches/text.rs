//! Load, prefill and decode of the small models, and of the model named by `TENURE_BENCH_MODEL`.

use std::path::PathBuf;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tenure::{Deadline, Engine, LoadOptions, Stop, TextOptions};
use tenure_conformance::fixture;

fn text(c: &mut Criterion) {
    let mut models = vec![fixture("llama-blocks.gguf"), fixture("qwen3-k.gguf")];
    models.extend(std::env::var_os("TENURE_BENCH_MODEL").map(PathBuf::from));
    let stop = Stop::by(Deadline::after(Duration::from_secs(24 * 60 * 60)));
    for path in models {
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let engine = Engine::auto().expect("cpu");
        let options = TextOptions { context: Some(256), ..TextOptions::default() };
        let load = || engine.load_text_with(&path, &options, &LoadOptions::default()).expect("loads");
        let mut group = c.benchmark_group(name);
        group.bench_function("load", |b| b.iter(load));
        let model = load();
        let mut session = model.session().expect("free");
        let tokens: Vec<u32> = (0..128).collect();
        group.throughput(Throughput::Elements(128));
        group.bench_function("prefill 128", |b| {
            b.iter(|| {
                session.truncate(0);
                session.append(&tokens, &stop).map(<[f32]>::len).expect("steps")
            });
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function("decode at 128", |b| {
            b.iter(|| {
                session.truncate(128);
                session.append(&[1], &stop).map(<[f32]>::len).expect("steps")
            });
        });
        group.finish();
    }
}

criterion_group!(benches, text);
criterion_main!(benches);
