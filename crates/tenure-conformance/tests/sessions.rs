//! Sessions: again and again, side by side, cut short.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tenure::{
    ByteSize, Cpu, CpuOptions, Deadline, Device, Engine, ErrorKind, FinishReason, GenerateOptions, LoadOptions,
    ModelHandle, Prompt, SamplerParams, Stop, Text, TextOptions, TextSession,
};
use tenure_conformance::{Fault, Faulty, Operation, Temporary, fixture};

fn soon() -> Stop {
    Stop::by(Deadline::after(Duration::from_secs(60)))
}

fn model(sequences: usize) -> ModelHandle<Text> {
    let options = TextOptions { sequences, batch: 24, context: Some(256), ..TextOptions::default() };
    let engine = Engine::auto().expect("cpu");
    engine.load_text_with(fixture("qwen3-k.gguf"), &options, &LoadOptions::default()).expect("loads")
}

fn bits(logits: &[f32]) -> Vec<u32> {
    assert!(!logits.is_empty());
    logits.iter().map(|x| x.to_bits()).collect()
}

fn tokens(seed: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 37 + seed * 101) % 290) as u32).collect()
}

fn answer(session: &mut TextSession, prompt: &[u32], seed: u64, count: usize) -> Vec<u32> {
    let options = GenerateOptions {
        sampler: SamplerParams { seed, ..SamplerParams::default() },
        max_tokens: Some(count),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let generation = session.generate_with(Prompt::Tokens(prompt.to_vec()), options).expect("begins");
    generation.finish(soon().deadline).expect("ends").tokens
}

#[test]
fn a_b_a_gives_a_twice() {
    let model = model(1);
    let mut session = model.session().expect("free");
    let (a, b) = (tokens(1, 77), tokens(2, 154));
    let first = answer(&mut session, &a, 5, 20);
    let between = answer(&mut session, &b, 5, 20);
    assert_eq!(answer(&mut session, &a, 5, 20), first);
    assert_eq!(answer(&mut session, &b, 5, 20), between);
    assert_ne!(first, between);
}

#[test]
fn a_thousand_generations_of_varied_length_change_nothing() {
    let model = model(1);
    let mut session = model.session().expect("free");
    let first = answer(&mut session, &tokens(3, 60), 9, 8);
    let memory = model.memory();
    for i in 0..1000 {
        let made = answer(&mut session, &tokens(i, 1 + i * 7 % 60), i as u64, 1 + i % 3);
        assert_eq!(made.len(), 1 + i % 3);
    }
    assert_eq!(model.memory(), memory);
    assert_eq!(answer(&mut session, &tokens(3, 60), 9, 8), first);
}

#[test]
fn two_sessions_on_two_threads_answer_as_they_would_alone() {
    let model = model(4);
    let alone: Vec<Vec<u32>> =
        (0..4).map(|i| answer(&mut model.session().expect("free"), &tokens(i, 50 + i), 3, 24)).collect();
    for _ in 0..3 {
        let together: Vec<Vec<u32>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|i| {
                    let mut session = model.session().expect("free");
                    scope.spawn(move || answer(&mut session, &tokens(i, 50 + i), 3, 24))
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
        });
        assert_eq!(together, alone);
    }
}

#[test]
fn sequences_stepped_together_get_the_bits_they_get_alone() {
    let model = model(3);
    let mut sessions: Vec<TextSession> = (0..3).map(|_| model.session().expect("free")).collect();
    let mut alone = Vec::new();
    for (i, session) in sessions.iter_mut().enumerate() {
        session.evaluate(&tokens(i, 30 + 20 * i), &soon()).expect("evaluates");
        alone.push(session.append(&[i as u32], &soon()).expect("appends").to_vec());
        session.evaluate(&tokens(i, 30 + 20 * i), &soon()).expect("evaluates");
    }
    TextSession::append_together(&mut sessions, &[0, 1, 2], &soon()).expect("steps");
    for (session, alone) in sessions.iter().zip(&alone) {
        assert!(session.last_logits().iter().zip(alone).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}

#[test]
fn the_sequences_of_a_model_are_limited_and_come_back() {
    let model = model(2);
    let (a, _b) = (model.session().expect("free"), model.session().expect("free"));
    let error = model.session().err().expect("both are taken");
    assert_eq!((error.kind(), error.class().as_str()), (ErrorKind::Busy, "NoFreeSequence"));
    drop(a);
    model.session().expect("one came back");
}

#[test]
fn prompts_that_do_not_fit_are_refused_with_the_numbers() {
    let model = model(1);
    let mut session = model.session().expect("free");
    let error = session.generate(Prompt::Tokens(tokens(0, 257))).err().expect("too long");
    assert_eq!(error.kind(), ErrorKind::PromptTooLong);
    assert!(error.to_string().contains("257") && error.to_string().contains("256"), "{error}");
    assert_eq!(session.generate(Prompt::Tokens(Vec::new())).err().expect("empty").class(), "EmptyPrompt");
    assert_eq!(session.generate(Prompt::Tokens(vec![1 << 20])).err().expect("no token").class(), "TokenOutOfRange");
    // A prompt as long as the context leaves room for the one token after it.
    let mut generation = session.generate(Prompt::Tokens(tokens(0, 256))).expect("fits");
    let mut made = 0;
    while let Some(piece) = generation.next(soon().deadline).expect("runs") {
        made += usize::from(piece.token.is_some());
    }
    let reason = generation.finish_reason();
    assert!(made == 1 && matches!(reason, Some(FinishReason::ContextFull | FinishReason::EndOfGeneration)));
}

#[test]
fn cancellation_and_deadlines_end_work_and_harm_nothing() {
    let model = model(1);
    let mut session = model.session().expect("free");
    let prompt = tokens(4, 200);
    let golden = bits(session.evaluate(&prompt, &soon()).expect("evaluates"));
    session.truncate(0);
    let cancelled = soon();
    cancelled.cancel.cancel();
    assert_eq!(session.evaluate(&prompt, &cancelled).expect_err("cancelled").kind(), ErrorKind::Cancelled);
    let late = Stop::by(Deadline::after(Duration::ZERO));
    assert_eq!(session.evaluate(&prompt, &late).expect_err("late").kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(bits(session.evaluate(&prompt, &soon()).expect("works again")), golden);
    let begun = Instant::now();
    let mut generation = session.generate(Prompt::Tokens(prompt)).expect("begins");
    assert!(generation.next(Deadline::after(Duration::ZERO)).is_err());
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(generation.next(soon().deadline).expect("goes on").is_some(), "a deadline that passed loses nothing");
}

#[test]
fn cancellation_ends_a_step_in_its_middle() {
    let engine = Engine::auto().expect("cpu");
    let options = TextOptions { batch: 4096, context: Some(4096), ..TextOptions::default() };
    let model = engine.load_text_with(fixture("qwen3-k.gguf"), &options, &LoadOptions::default()).expect("loads");
    let mut session = model.session().expect("free");
    let prompt = tokens(6, 4096);
    let begun = Instant::now();
    let golden = bits(session.evaluate(&prompt, &soon()).expect("evaluates"));
    let whole = begun.elapsed();
    for part in [8, 4, 2] {
        // On a busy machine the one that cancels may come too late; in the end it comes before the step begins.
        let ended = (0..32).find_map(|attempt| {
            session.truncate(0);
            let stop = soon();
            let cancel = stop.cancel.clone();
            let result = std::thread::scope(|scope| {
                scope.spawn(move || {
                    std::thread::sleep(whole / part / 2u32.pow(attempt.min(20)));
                    cancel.cancel();
                });
                session.evaluate(&prompt, &stop).map(|_| ())
            });
            result.err()
        });
        assert_eq!(ended.expect("cancelled before its end").kind(), ErrorKind::Cancelled);
        assert_eq!(session.cached(), 0);
    }
    assert_eq!(bits(session.evaluate(&prompt, &soon()).expect("works again")), golden);
}

/// A model on a backend whose steps can be made to stall.
fn stalling(sequences: usize) -> (Arc<Faulty>, ModelHandle<Text>) {
    let cpu = Arc::new(Cpu::new(&CpuOptions { threads: Some(2), ..CpuOptions::default() }).expect("cpu"));
    let faulty = Arc::new(Faulty::new(cpu));
    let engine = Engine::on(Device::new(faulty.clone(), ByteSize::new(1 << 30)));
    let options = TextOptions { sequences, batch: 24, context: Some(256), ..TextOptions::default() };
    let model = engine.load_text_with(fixture("qwen3-k.gguf"), &options, &LoadOptions::default()).expect("loads");
    (faulty, model)
}

#[test]
fn a_stop_ends_a_shared_step_for_its_own_session_only() {
    let (faulty, model) = stalling(3);
    let mut sessions: Vec<TextSession> = (0..3).map(|_| model.session().expect("free")).collect();
    for session in &mut sessions {
        session.evaluate(&tokens(1, 30), &soon()).expect("evaluates");
    }
    let golden = bits(sessions[1].append(&[2], &soon()).expect("appends"));
    assert_eq!(sessions[1].truncate(30), 30);
    let [a, b, c] = &mut sessions[..] else { panic!("three") };
    faulty.arm(Fault { operation: Operation::Stall, nth: 1, sticky: true });
    let (stop_a, stop_b, stop_c) = (soon(), soon(), Stop::by(Deadline::after(Duration::from_millis(400))));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let (cancel_a, pause) = (stop_a.cancel.clone(), || std::thread::sleep(Duration::from_millis(100)));
        // The first stalls alone; the others wait, and then share a step that stalls too.
        let first = scope.spawn(move || a.append(&[2], &stop_a).map(|_| ()).map_err(|error| error.kind()));
        pause();
        let second = scope.spawn(move || b.append(&[2], &stop_b).map(bits).map_err(|error| error.kind()));
        let third = scope.spawn(move || c.append(&[2], &stop_c).map(|_| ()).map_err(|error| error.kind()));
        pause();
        cancel_a.cancel();
        assert_eq!(first.join().expect("no panic"), Err(ErrorKind::Cancelled));
        pause();
        faulty.disarm();
        assert_eq!(third.join().expect("no panic"), Err(ErrorKind::DeadlineExceeded));
        assert_eq!(second.join().expect("no panic"), Ok(golden), "the other goes on as if alone");
    });
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(sessions.iter().map(TextSession::cached).collect::<Vec<_>>(), [30, 31, 30]);
}

#[test]
fn a_request_that_waits_is_taken_back_when_its_time_comes() {
    let (faulty, model) = stalling(2);
    let (mut a, mut b) = (model.session().expect("free"), model.session().expect("free"));
    faulty.arm(Fault { operation: Operation::Stall, nth: 1, sticky: true });
    let stop_a = soon();
    std::thread::scope(|scope| {
        let cancel = stop_a.cancel.clone();
        let first = scope.spawn(|| a.append(&[2], &stop_a).map(|_| ()).map_err(|error| error.kind()));
        std::thread::sleep(Duration::from_millis(100));
        let late = Stop::by(Deadline::after(Duration::from_millis(50)));
        assert_eq!(b.append(&[2], &late).expect_err("late").kind(), ErrorKind::DeadlineExceeded);
        cancel.cancel();
        assert_eq!(first.join().expect("no panic"), Err(ErrorKind::Cancelled));
    });
}

#[test]
fn a_new_session_begins_empty() {
    let model = model(1);
    let mut first = model.session().expect("free");
    let golden = bits(first.append(&[5], &soon()).expect("appends"));
    first.evaluate(&tokens(1, 60), &soon()).expect("evaluates");
    drop(first);
    let mut second = model.session().expect("free");
    assert_eq!(second.cached(), 0);
    assert_eq!(bits(second.append(&[5], &soon()).expect("appends")), golden);
    assert_eq!(second.cached(), 1);
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_before_it_reaches_a_step() {
    let model = model(2);
    let mut session = model.session().expect("free");
    let vocab = model.config().vocab as u32;
    for result in [session.append(&[vocab], &soon()).map(|_| ()), session.evaluate(&[1, u32::MAX], &soon()).map(|_| ())]
    {
        let error = result.expect_err("refused");
        assert_eq!((error.kind(), error.class().as_str()), (ErrorKind::BadParameter, "TokenOutOfRange"));
    }
    let mut sessions = [session, model.session().expect("free")];
    let error = TextSession::append_together(&mut sessions, &[1, vocab], &soon()).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::BadParameter);
}

#[test]
fn an_answer_of_no_tokens_computes_the_prompt() {
    let model = model(1);
    let mut session = model.session().expect("free");
    let options = GenerateOptions { max_tokens: Some(0), prompt_top_logits: 5, ..GenerateOptions::default() };
    let mut generation = session.generate_with(Prompt::Tokens(tokens(1, 20)), options).expect("begins");
    assert_eq!(generation.next(soon().deadline).expect("ends"), None);
    assert_eq!(generation.prompt_top_logits().len(), 5);
    assert_eq!(generation.finish_reason(), Some(FinishReason::MaxTokens));
}

#[test]
fn a_chat_prompt_begins_with_the_first_token_once() {
    let file = std::fs::read(fixture("llama-blocks.gguf")).expect("a fixture");
    let value = |key: &str| {
        let place = file.windows(key.len()).position(|part| part == key.as_bytes());
        place.expect("the key") + key.len() + size_of::<u32>()
    };
    let engine = Engine::auto().expect("cpu");
    let prompt = Prompt::User("hello".to_owned());
    let plain = engine.load_text(fixture("llama-blocks.gguf")).expect("loads").tokens(&prompt).expect("renders");
    // Its template begins with token 298. As the first token that is there already; token 5 is not.
    for (bos, wanted) in [(298u32, plain.clone()), (5, [&[5], &plain[..]].concat())] {
        let mut bytes = file.clone();
        bytes[value("tokenizer.ggml.add_bos_token")] = 1;
        bytes[value("tokenizer.ggml.bos_token_id")..][..4].copy_from_slice(&bos.to_le_bytes());
        let file = Temporary::new(&format!("first-token-{bos}.gguf"), &bytes).expect("writable");
        let model = engine.load_text(file.path()).expect("loads");
        assert!(model.tokenizer().adds_bos());
        assert_eq!(model.tokens(&prompt).expect("renders"), wanted);
    }
}
