//! Answers one prompt.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};
use tenure::{Cancel, Deadline, GenerateOptions, Prompt};
use tenure_examples::cli::{ModelArgs, Refusal, SamplerArgs, memory, note, parsed, run};

/// Answers one prompt with a language model.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// The prompt [default: a question about the sky].
    #[arg(short = 'p', long, conflicts_with_all = ["prompt_file", "tokens"])]
    prompt: Option<String>,
    /// A file with the prompt; `-` is standard input.
    #[arg(long, conflicts_with = "tokens")]
    prompt_file: Option<PathBuf>,
    /// The prompt as token ids.
    #[arg(long, value_delimiter = ',')]
    tokens: Option<Vec<u32>>,
    /// Tokens to make at most [default: until the model ends].
    #[arg(short = 'n', long)]
    n_predict: Option<usize>,
    /// A string that ends the answer; may be given several times.
    #[arg(long)]
    stop: Vec<String>,
    /// Go on when the model ends the answer.
    #[arg(long)]
    ignore_eos: bool,
    /// Apply no chat template.
    #[arg(long)]
    raw: bool,
    /// With `--json`, so many of the largest logits after the prompt.
    #[arg(long, default_value_t = 0)]
    logits_top: usize,
    /// Seconds after which to give up.
    #[arg(long, default_value_t = 3600)]
    timeout: u64,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let begun = Instant::now();
    parsed(|arguments: Arguments| run(arguments.json, || generate(&arguments, begun).map(Some)))
}

fn generate(arguments: &Arguments, begun: Instant) -> Result<Value, Refusal> {
    let prompt = prompt(arguments)?;
    let engine = arguments.model.engine()?;
    let cancel = Cancel::new();
    tenure_examples::interrupt::cancel_on_interrupt(&cancel)?;
    let (model, planned) = arguments.model.load(&engine, &arguments.model.options(1, 1), &cancel)?;
    let load = begun.elapsed();

    let mut session = model.session()?;
    let options = GenerateOptions {
        sampler: arguments.sampler.params(),
        max_tokens: arguments.n_predict,
        stop: arguments.stop.clone(),
        ignore_eos: arguments.ignore_eos,
        prompt_top_logits: arguments.logits_top,
        cancel,
        ..GenerateOptions::default()
    };
    let deadline = Deadline::after(Duration::from_secs(arguments.timeout));
    let mut answer = session.generate_with(prompt, options)?;
    let (mut tokens, mut text) = (Vec::new(), String::new());
    let mut out = std::io::stdout().lock();
    let (mut first, mut decode) = (None, Duration::ZERO);
    loop {
        let step = Instant::now();
        let Some(piece) = answer.next(deadline)? else { break };
        match first {
            None => first = Some(begun.elapsed()),
            Some(_) => decode += step.elapsed(),
        }
        tokens.extend(piece.token);
        text.push_str(piece.text);
        if !arguments.json {
            write!(out, "{}", piece.text)?;
            out.flush()?;
        }
    }
    if !arguments.json {
        writeln!(out)?;
    }
    let prefill = answer.prefill_time().as_secs_f64();
    let per_second = |count: usize, seconds: f64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let prefill_speed = per_second(answer.prompt_tokens().len(), prefill);
    let decode_speed = per_second(tokens.len().saturating_sub(1), decode.as_secs_f64());
    let first_ms = first.map_or(0.0, |first: Duration| first.as_secs_f64() * 1e3);
    note(format_args!(
        "loaded in {:.0} ms, first token after {first_ms:.0} ms; {prefill_speed:.1} prompt tokens/s, {decode_speed:.1} tokens/s\n",
        load.as_secs_f64() * 1e3,
    ));
    Ok(json!({
        "prompt_tokens": answer.prompt_tokens(),
        "tokens": tokens,
        "text": text,
        "finish": answer.finish_reason().map(|reason| format!("{reason:?}")),
        "last_logits_top": answer.prompt_top_logits(),
        "timings": {
            "load_ms": load.as_secs_f64() * 1e3,
            "first_token_ms": first_ms,
            "prefill_tokens_per_s": prefill_speed,
            "decode_tokens_per_s": decode_speed,
        },
        "memory": memory(&engine, planned),
    }))
}

fn prompt(arguments: &Arguments) -> Result<Prompt, Refusal> {
    if let Some(tokens) = &arguments.tokens {
        return Ok(Prompt::Tokens(tokens.clone()));
    }
    let text = match (&arguments.prompt, &arguments.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => {
            let mut bytes = Vec::new();
            if path.as_os_str() == "-" {
                std::io::stdin().read_to_end(&mut bytes)?;
            } else {
                bytes =
                    std::fs::read(path).map_err(|error| Refusal::new("Io", format!("{}: {error}", path.display())))?;
            }
            String::from_utf8(bytes).map_err(|error| Refusal::new("BadPrompt", error))?
        }
        (None, None) => "Why is the sky blue?".to_owned(),
    };
    Ok(if arguments.raw { Prompt::Raw(text) } else { Prompt::User(text) })
}
