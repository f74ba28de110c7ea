//! Perplexity of a text, as llama-perplexity defines it: the text's tokens in windows of the context's length, the
//! first token of each replaced by the one a text begins with, the second half of each window counted.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use tenure::{Cancel, Deadline, EncodeOptions, Stop};
use tenure_examples::cli::{ModelArgs, Refusal, note, parsed, run};

/// Perplexity of a text.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// The text.
    #[arg(short = 'f', long)]
    file: PathBuf,
    /// Windows at most [default: all of the text].
    #[arg(long)]
    chunks: Option<usize>,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    parsed(|arguments: Arguments| run(arguments.json, || perplexity(&arguments).map(Some)))
}

/// Longer than any measurement that makes sense.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

fn perplexity(arguments: &Arguments) -> Result<Value, Refusal> {
    let mut model_arguments = arguments.model.clone();
    let window = *model_arguments.context.get_or_insert(512);
    // Each token of the second half is predicted by the one before it.
    let first = window / 2;
    let scored = window.saturating_sub(first + 1);
    if scored == 0 {
        let message = format!("a context of {window} leaves 0 tokens to score in each window; the least is 3");
        return Err(Refusal::new("BadParameter", message));
    }
    if arguments.chunks == Some(0) {
        return Err(Refusal::new("BadParameter", "0 windows leave 0 tokens to score; the least is 1"));
    }
    let text = std::fs::read(&arguments.file)
        .map_err(|error| Refusal::new("Io", format!("{}: {error}", arguments.file.display())))?;
    let text = String::from_utf8(text).map_err(|error| Refusal::new("BadPrompt", error))?;
    let engine = model_arguments.engine()?;
    let (model, _) = model_arguments.load(&engine, &model_arguments.options(1, 64), &Cancel::new())?;

    let options = EncodeOptions { add_special: true, parse_special: false };
    let tokens = model.tokenizer().encode(&text, options).map_err(tenure::Error::from)?;
    let chunks = (tokens.len() / window).min(arguments.chunks.unwrap_or(usize::MAX));
    if chunks == 0 || tokens.len() / 2 < window {
        let message = format!("the text has {} tokens, two windows of {window} are needed", tokens.len());
        return Err(Refusal::new("TextTooShort", message));
    }
    let mut session = model.session()?;
    let stop = Stop::by(Deadline::after(PATIENCE));
    let begins_with = model.tokenizer().adds_bos().then(|| model.tokenizer().bos()).flatten();
    let (mut sum, mut squares, mut count) = (0.0f64, 0.0f64, 0usize);
    for (index, chunk) in tokens.chunks_exact(window).take(chunks).enumerate() {
        let mut input = chunk.to_vec();
        if let Some(bos) = begins_with {
            input[0] = bos;
        }
        // The logits after token i predict token i + 1; the last row predicts nothing.
        session.evaluate_each(&input, window - first, &stop, |position, logits| {
            if position + 1 < window {
                let loss = -log_probability(logits, chunk[position + 1]);
                sum += loss;
                squares += loss * loss;
                count += 1;
            }
        })?;
        let so_far = (sum / count as f64).exp();
        if !so_far.is_finite() {
            let message = format!("the perplexity is {so_far} after {count} tokens, whose losses add up to {sum}");
            return Err(Refusal::new("NonFinite", message));
        }
        note(format_args!("[{}/{chunks}] {so_far:.4}\n", index + 1));
    }
    let mean = sum / count as f64;
    let variance = (squares / count as f64 - mean * mean).max(0.0);
    let value = mean.exp();
    let error = value * (variance / (count.max(2) - 1) as f64).sqrt();
    if !(value.is_finite() && error.is_finite()) {
        return Err(Refusal::new("NonFinite", format!("the perplexity of {count} tokens is {value} +/- {error}")));
    }
    if !arguments.json {
        writeln!(std::io::stdout().lock(), "perplexity = {value:.4} +/- {error:.5}")?;
    }
    Ok(json!({"perplexity": value, "standard_error": error, "tokens": count, "chunks": chunks}))
}

fn log_probability(logits: &[f32], token: u32) -> f64 {
    let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - peak).exp()).sum();
    // A token the model does not know has no probability; that is reported as a number that is none.
    logits.get(token as usize).map_or(f64::NAN, |&logit| f64::from(logit - peak) - sum.ln())
}
