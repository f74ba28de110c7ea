//! What loading a model would take, to the byte, without loading it.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};
use tenure::Cancel;
use tenure_examples::cli::{ModelArgs, Refusal, parsed, run, unused};

/// What loading a model would take.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// Sequences that can be open at a time.
    #[arg(long, default_value_t = 1)]
    sequences: usize,
    /// Also list the steps.
    #[arg(long)]
    steps: bool,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    parsed(|arguments: Arguments| run(arguments.json, || plan(&arguments).map(Some)))
}

fn plan(arguments: &Arguments) -> Result<Value, Refusal> {
    let engine = arguments.model.engine()?;
    let plan = arguments.model.plan(&engine, &arguments.model.options(arguments.sequences, 1), &Cancel::new())?;
    let planned = plan.footprint().total();
    // Not the model's, but taken off the budget as long as the engine lives.
    let staging = engine.device().backend().overhead();
    let total = planned + staging;
    let report = engine.report();
    let budget = arguments.model.budget.unwrap_or(report.budget + staging);
    let fits = total <= budget;
    let advice = (!fits).then(|| plan.advice(engine.device()));
    if !arguments.json {
        let mut out = BufWriter::new(std::io::stdout().lock());
        if arguments.steps {
            write!(out, "{}", plan.step())?;
        }
        for part in plan.components() {
            let note = if part.in_budget { "" } else { "  (the file's own pages, beside the budget)" };
            writeln!(out, "{:16} {:>15}  {}{note}", part.name, part.bytes.get(), part.bytes)?;
        }
        writeln!(out, "{:16} {:>15}  {staging}  (for reading, once for all models)", "staging", staging.get())?;
        writeln!(out, "{:16} {:>15}  {total}", "total", total.get())?;
        writeln!(out, "{:16} {:>15}  {budget}", "budget", budget.get())?;
        let (context, sequences) = (plan.context(), arguments.sequences);
        if let Some(warning) = unused(&plan) {
            writeln!(out, "{warning}")?;
        }
        match &advice {
            None => writeln!(out, "fits, with a context of {context} for each of {sequences} sequences")?,
            Some(advice) => writeln!(out, "does not fit: {advice}")?,
        }
        out.flush()?;
    }
    let mut components: Vec<Value> = plan
        .components()
        .iter()
        .map(|part| json!({"name": part.name, "bytes": part.bytes.get(), "in_budget": part.in_budget}))
        .collect();
    components.push(json!({"name": "staging", "bytes": staging.get(), "in_budget": true}));
    Ok(json!({
        "components": components,
        "planned_bytes": planned.get(),
        "staging_bytes": staging.get(),
        "total_bytes": total.get(),
        "budget_bytes": budget.get(),
        "free_bytes": report.free().get(),
        "unused_tensors": plan.unused_tensors().count(),
        "context": plan.context(),
        "sequences": arguments.sequences,
        "fits": fits,
        "advice": advice,
    }))
}
