//! Measures a model's speed, and the machine's own bounds beside it.

mod image;
mod text;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use tenure_examples::cli::{ModelArgs, Refusal, parsed, refuse_alien, run};
use tenure_examples::image::ImageParts;

/// Measures a model's speed: prefill and decode of a language model, the phases of an image model.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt tokens of a language model [default: 512].
    #[arg(short = 'p', long)]
    prompt: Option<usize>,
    /// Tokens to decode [default: 128].
    #[arg(short = 'n', long)]
    decode: Option<usize>,
    /// Repetitions.
    #[arg(short = 'r', long, default_value_t = 5)]
    repetitions: usize,
    /// Sequences decoded together [default: 1].
    #[arg(long)]
    sequences: Option<usize>,
    /// Tokens cached before the measured ones [default: 0].
    #[arg(short = 'd', long)]
    depth: Option<usize>,
    /// Show what a step on a GPU is made of, on stderr, before anything is measured.
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    image: ImageParts,
    /// Steps of an image [default: 2].
    #[arg(long)]
    steps: Option<usize>,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

/// Longer than any measurement that makes sense.
const PATIENCE: Duration = Duration::from_secs(6 * 60 * 60);

fn main() -> ExitCode {
    parsed(|arguments: Arguments| run(arguments.json, || bench(&arguments).map(Some)))
}

fn bench(arguments: &Arguments) -> Result<Value, Refusal> {
    if arguments.repetitions == 0 || arguments.sequences == Some(0) {
        return Err(Refusal::new("BadParameter", "at least one repetition and one sequence are needed"));
    }
    if let Some(model) = arguments.image.model_of(&arguments.model)? {
        let given = [
            ("--prompt", arguments.prompt.is_some()),
            ("--decode", arguments.decode.is_some()),
            ("--sequences", arguments.sequences.is_some()),
            ("--depth", arguments.depth.is_some()),
            ("--explain", arguments.explain),
        ];
        refuse_alien(&given, "an image model")?;
        return image::bench(arguments, &model);
    }
    let image = &arguments.image;
    let given = [
        ("--steps", arguments.steps.is_some()),
        ("--width", image.width.is_some()),
        ("--height", image.height.is_some()),
        ("--taesd", image.taesd.is_some()),
        ("--residency", image.residency.is_some()),
    ];
    refuse_alien(&given, "a language model")?;
    text::bench(arguments)
}

/// The middle, the least and the most of what was measured, and which part of a bound the middle is.
fn summary(measured: &[f64], fraction: Option<impl Fn(f64) -> f64>) -> Value {
    let mut sorted = measured.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some((&min, &max)) = sorted.first().zip(sorted.last()) else { return Value::Null };
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    json!({"median": median, "min": min, "max": max, "bound_fraction": fraction.map(|of| of(median))})
}
