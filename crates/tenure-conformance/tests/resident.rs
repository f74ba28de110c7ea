//! What the process really holds is what the plans say and at most 40 MB more.

use std::sync::Arc;
use std::time::Duration;

use tenure::{Deadline, Engine, GenerateOptions, LoadOptions, Prompt, Text, TextOptions, WeightStore};
use tenure_conformance::fixture;

const OURS: u64 = 40_000_000;

/// The most memory this process ever held, in bytes, where the system tells (proc_pid_status(5)).
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

// Without the test harness: the process is this test's alone.
fn main() {
    if peak().is_none() {
        println!("this system does not tell the peak of a process: skipped");
        return;
    }
    let engine = Engine::auto().expect("cpu");
    let mut counted = 0;
    for context in [4096, 65_536] {
        let options = TextOptions { context: Some(context), ..TextOptions::default() };
        for file in ["llama-blocks.gguf", "gemma3-f32.gguf", "qwen3-k.gguf"] {
            let store = Arc::new(WeightStore::open(fixture(file)).expect("opens"));
            let plan = engine.plan::<Text>(&store, &options).expect("plans");
            let bytes: u64 = plan.components().iter().map(|component| component.bytes.get()).sum();
            counted = counted.max(bytes);
            let model = engine.load_text_with(fixture(file), &options, &LoadOptions::default()).expect("loads");
            let mut session = model.session().expect("free");
            let prompt = Prompt::Tokens((0..3000).map(|i| i % 250).collect());
            let answer = GenerateOptions { max_tokens: Some(64), ignore_eos: true, ..GenerateOptions::default() };
            let mut generation = session.generate_with(prompt, answer).expect("begins");
            while generation.next(Deadline::after(Duration::from_secs(60))).expect("runs").is_some() {}
            let peak = peak().expect("told before");
            assert!(peak <= counted + OURS, "{file} at {context}: {peak} bytes held, {counted} planned");
        }
    }
    println!("peak {} bytes, {counted} of them planned: ok", peak().expect("told before"));
}
