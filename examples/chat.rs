//! A conversation in the terminal. Ctrl+C stops the answer; twice, it ends the program.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tenure::{Cancel, Deadline, ErrorKind, GenerateOptions, Message, Prompt};
use tenure_examples::cli::{ModelArgs, Refusal, SamplerArgs, run};
use tenure_examples::interrupt::{Current, install};

/// A conversation with a language model.
#[derive(Parser)]
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
    let arguments = Arguments::parse();
    run(false, || chat(&arguments).map(|()| None))
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
    let mut session = model.session()?;
    let mut messages: Vec<Message> = arguments.system.iter().map(Message::system).collect();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        eprint!("> ");
        std::io::stderr().flush()?;
        let Some(line) = lines.next() else { return Ok(()) };
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message::user(line));
        let cancel = Cancel::new();
        current.set(&cancel);
        let options = GenerateOptions { sampler: arguments.sampler.params(), cancel, ..GenerateOptions::default() };
        let mut said = String::new();
        let mut answer = session.generate_with(Prompt::Chat(messages.clone()), options)?;
        loop {
            match answer.next(Deadline::after(PATIENCE)) {
                Ok(Some(piece)) => {
                    said.push_str(piece.text);
                    print!("{}", piece.text);
                    std::io::stdout().flush()?;
                }
                Ok(None) => break,
                Err(error) if error.kind() == ErrorKind::Cancelled => {
                    print!(" [stopped]");
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        println!();
        messages.push(Message::assistant(said));
    }
}
