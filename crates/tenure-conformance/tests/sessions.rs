//! Sessions: again and again, side by side, cut short.

use std::time::{Duration, Instant};

use tenure::{
    Cancel, Deadline, Engine, ErrorKind, FinishReason, GenerateOptions, LoadOptions, ModelHandle, Prompt,
    SamplerParams, Stop, Text, TextOptions, TextSession,
};
use tenure_conformance::fixture;

fn soon() -> Stop {
    Stop::by(Deadline::after(Duration::from_secs(60)))
}

fn model(sequences: usize) -> ModelHandle<Text> {
    let options = TextOptions { sequences, batch: 24, context: Some(256), ..TextOptions::default() };
    let engine = Engine::auto().expect("cpu");
    engine.load_text_with(fixture("qwen3-k.gguf"), &options, &LoadOptions::default()).expect("loads")
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
    let golden = session.evaluate(&prompt, &soon()).expect("evaluates").to_vec();
    session.truncate(0);
    let cancelled = soon();
    cancelled.cancel.cancel();
    assert_eq!(session.evaluate(&prompt, &cancelled).expect_err("cancelled").kind(), ErrorKind::Cancelled);
    let late = Stop::by(Deadline::after(Duration::ZERO));
    assert_eq!(session.evaluate(&prompt, &late).expect_err("late").kind(), ErrorKind::DeadlineExceeded);
    // From another thread, in the middle.
    for wait in [0, 1, 2, 5] {
        session.truncate(0);
        let stop = soon();
        let cancel: Cancel = stop.cancel.clone();
        let result = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(wait));
                cancel.cancel();
            });
            session.evaluate(&prompt, &stop).map(|_| ())
        });
        assert!(result.map_or_else(|error| error.kind() == ErrorKind::Cancelled, |()| true));
        let again = session.evaluate(&prompt, &soon()).expect("works again");
        assert!(again.iter().zip(&golden).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
    let begun = Instant::now();
    let mut generation = session.generate(Prompt::Tokens(prompt)).expect("begins");
    assert!(generation.next(Deadline::after(Duration::ZERO)).is_err());
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(generation.next(soon().deadline).expect("goes on").is_some(), "a deadline that passed loses nothing");
}
