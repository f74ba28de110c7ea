//! A conversation in the terminal. Ctrl+C stops the answer; twice, it ends the program.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tenure::{Cancel, Deadline, ErrorKind, FinishReason, GenerateOptions, Message, Prompt, TextSession};
use tenure_examples::cli::{ModelArgs, Refusal, SamplerArgs, note, parsed, run};
use tenure_examples::interrupt::{Current, install};

/// A conversation with a language model.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// What the model is told before the conversation.
    #[arg(long)]
    system: Option<String>,
}

fn main() -> ExitCode {
    parsed(|arguments: Arguments| run(false, || chat(&arguments).map(|()| None)))
}

/// A token that takes longer than this will not come.
const PATIENCE: Duration = Duration::from_secs(600);

fn chat(arguments: &Arguments) -> Result<(), Refusal> {
    let engine = arguments.model.engine()?;
    let current = Current::default();
    let loading = Cancel::new();
    current.set(&loading);
    install(current.clone())?;
    let (model, _) = arguments.model.load(&engine, &arguments.model.options(1, 1), &loading)?;
    // A model that cannot chat is refused before anybody has typed a question.
    model.tokens(&Prompt::Chat(vec![Message::user("?")]))?;
    let mut session = model.session()?;
    let begins: Vec<Message> = arguments.system.iter().map(Message::system).collect();
    let mut messages = begins.clone();
    let context = model.context();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        note(format_args!("> "));
        let Some(line) = lines.next() else { return Ok(()) };
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message::user(&line));
        let mut outcome = answer(&mut session, &messages, arguments, &current)?;
        if let (Answer::TooLong(_), true) = (&outcome, messages.len() > begins.len() + 1) {
            note(format_args!("[the conversation has reached the context of {context} tokens; a new one begins]\n"));
            messages.clone_from(&begins);
            messages.push(Message::user(&line));
            outcome = answer(&mut session, &messages, arguments, &current)?;
        }
        match outcome {
            Answer::Whole(said) => messages.push(Message::assistant(said)),
            Answer::CutOff => {
                note(format_args!("[the context of {context} tokens is full; a new conversation begins]\n"));
                messages.clone_from(&begins);
            }
            Answer::TooLong(why) => {
                note(format_args!("[not answered: {why}]\n"));
                messages.clone_from(&begins);
            }
        }
    }
}

/// How the model answered.
enum Answer {
    /// With this, to its end or to where the user stopped it.
    Whole(String),
    /// Until the context was full.
    CutOff,
    /// Not at all: the conversation is longer than the context.
    TooLong(String),
}

fn answer(
    session: &mut TextSession,
    messages: &[Message],
    arguments: &Arguments,
    current: &Current,
) -> Result<Answer, Refusal> {
    let cancel = Cancel::new();
    current.set(&cancel);
    let options = GenerateOptions { sampler: arguments.sampler.params(), cancel, ..GenerateOptions::default() };
    let mut answer = match session.generate_with(Prompt::Chat(messages.to_vec()), options) {
        Err(error) if error.kind() == ErrorKind::PromptTooLong => return Ok(Answer::TooLong(error.to_string())),
        answer => answer?,
    };
    let mut said = String::new();
    let mut out = std::io::stdout().lock();
    loop {
        match answer.next(Deadline::after(PATIENCE)) {
            Ok(Some(piece)) => {
                said.push_str(piece.text);
                write!(out, "{}", piece.text)?;
                out.flush()?;
            }
            Ok(None) => break,
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                write!(out, " [stopped]")?;
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    writeln!(out)?;
    Ok(match answer.finish_reason() {
        Some(FinishReason::ContextFull) => Answer::CutOff,
        _ => Answer::Whole(said),
    })
}
