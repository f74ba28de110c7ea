//! What loading a model would take, to the byte, without loading it.

use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};
use tenure_examples::cli::{ModelArgs, Refusal, run};

/// What loading a model would take.
#[derive(Parser)]
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
    let arguments = Arguments::parse();
    run(arguments.json, || plan(&arguments).map(Some))
}

fn plan(arguments: &Arguments) -> Result<Value, Refusal> {
    let engine = arguments.model.engine()?;
    let plan = arguments.model.plan(&engine, &arguments.model.options(arguments.sequences, 1))?;
    let total = plan.footprint().total();
    let report = engine.report();
    let fits = total <= report.free();
    let advice = (!fits).then(|| plan.advice(engine.device()));
    if !arguments.json {
        if arguments.steps {
            print!("{}", plan.step());
        }
        for part in plan.components() {
            let note = if part.in_budget { "" } else { "  (the file's own pages, beside the budget)" };
            println!("{:16} {:>15}  {}{note}", part.name, part.bytes.get(), part.bytes);
        }
        println!("{:16} {:>15}  {total}", "total", total.get());
        println!("{:16} {:>15}  {}", "free", report.free().get(), report.free());
        match &advice {
            None => {
                println!("fits, with a context of {} for each of {} sequences", plan.context(), arguments.sequences)
            }
            Some(advice) => println!("does not fit: {advice}"),
        }
    }
    let components: Vec<Value> = plan
        .components()
        .iter()
        .map(|part| json!({"name": part.name, "bytes": part.bytes.get(), "in_budget": part.in_budget}))
        .collect();
    Ok(json!({
        "components": components,
        "planned_bytes": total.get(),
        "budget_bytes": report.budget.get(),
        "free_bytes": report.free().get(),
        "context": plan.context(),
        "sequences": arguments.sequences,
        "fits": fits,
        "advice": advice,
    }))
}
