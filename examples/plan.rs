//! What loading a model would take, to the byte, without loading it.

use std::io::{BufWriter, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use serde_json::{Value, json};
use tenure::{ByteSize, Cancel, Device, Engine, Image, ImageModel, LoadPlan, Offload, Text, TextOptions};
use tenure_examples::cli::{KvArg, ModelArgs, Refusal, access, parsed, refuse_alien, run, unused};
use tenure_examples::image::{ImageParts, networks};

/// What loading a model would take.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    image: ImageParts,
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
    let text = &arguments.model;
    if let Some(model) = arguments.image.model_of(text)? {
        let given = [
            ("--ctx", text.context.is_some()),
            ("--ngl", text.ngl.0 != Offload::All),
            ("--kv", !matches!(text.kv, KvArg::F16)),
            ("--batch", text.batch != TextOptions::default().batch),
            ("--check-activations", text.check_activations),
            ("--sequences", arguments.sequences != 1),
        ];
        refuse_alien(&given, "an image model")?;
        return image(arguments, &engine, &model);
    }
    let plan = arguments.model.plan(&engine, &arguments.model.options(arguments.sequences, 1), &Cancel::new())?;
    let planned = plan.bytes();
    let mut shares = vec![DeviceShare::of(&plan, engine.device(), arguments.model.budget)];
    shares.extend(engine.host().map(|host| DeviceShare::of(&plan, host, None)));
    let fits = shares.iter().all(|share| share.total <= share.budget);
    let advice = (!fits).then(|| plan.advice(&engine));
    if !arguments.json {
        let mut out = BufWriter::new(std::io::stdout().lock());
        if arguments.steps {
            plan.steps().try_for_each(|(_, step)| write!(out, "{step}"))?;
        }
        for share in &shares {
            if shares.len() > 1 {
                writeln!(out, "{}: {} layers", share.name, share.layers)?;
            }
            for part in plan.components().iter().filter(|part| part.device == share.name) {
                let note = if part.in_budget { "" } else { "  (the file's own pages, beside the budget)" };
                writeln!(out, "{:16} {:>15}  {}{note}", part.name, part.bytes.get(), part.bytes)?;
            }
            let DeviceShare { staging, total, budget, .. } = share;
            writeln!(out, "{:16} {:>15}  {staging}  (for reading, once for all models)", "staging", staging.get())?;
            writeln!(out, "{:16} {:>15}  {total}", "total", total.get())?;
            writeln!(out, "{:16} {:>15}  {budget}", "budget", budget.get())?;
        }
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
        .map(|part| {
            let (name, device, bytes, in_budget) = (part.name, &part.device, part.bytes.get(), part.in_budget);
            json!({"name": name, "device": device, "bytes": bytes, "in_budget": in_budget})
        })
        .collect();
    components.extend(shares.iter().map(
        |share| json!({"name": "staging", "device": share.name, "bytes": share.staging.get(), "in_budget": true}),
    ));
    let sum = |of: fn(&DeviceShare) -> ByteSize| shares.iter().map(of).sum::<ByteSize>().get();
    let devices: Vec<Value> = shares.iter().map(DeviceShare::json).collect();
    Ok(json!({
        "components": components,
        "devices": devices,
        "planned_bytes": planned.get(),
        "staging_bytes": sum(|share| share.staging),
        "total_bytes": sum(|share| share.total),
        "budget_bytes": sum(|share| share.budget),
        "free_bytes": sum(|share| share.free),
        "unused_tensors": plan.unused_tensors().count(),
        "context": plan.context(),
        "sequences": arguments.sequences,
        "fits": fits,
        "advice": advice,
    }))
}

/// What loading an image model would take.
fn image(arguments: &Arguments, engine: &Engine, model: &Arc<ImageModel>) -> Result<Value, Refusal> {
    let options = arguments.image.options(arguments.image.size(None)?, true, access(arguments.model.no_mmap));
    let plan = engine.plan::<Image>(model, &options)?;
    let (staging, report) = (engine.device().backend().overhead(), engine.report());
    let (total, budget) = (plan.bytes() + staging, asked_of(report.budget + staging, arguments.model.budget));
    let fits = total <= budget;
    let advice = (!fits).then(|| plan.advice(engine));
    let (width, height) = plan.size();
    if !arguments.json {
        let mut out = BufWriter::new(std::io::stdout().lock());
        if arguments.steps {
            plan.steps().try_for_each(|(network, step)| writeln!(out, "{network}: {step}"))?;
        }
        writeln!(out, "{}", model.config().family)?;
        writeln!(out, "{:32} {:>15} {:>15} {:>15}", "network", "weights", "mapped", "step")?;
        for network in plan.networks() {
            let (name, of) = (network.network.to_string(), [network.weights, network.mapped, network.step]);
            writeln!(out, "{name:32} {:>15} {:>15} {:>15}", of[0].get(), of[1].get(), of[2].get())?;
        }
        for (name, bytes) in [("staging", staging), ("total", total), ("budget", budget)] {
            writeln!(out, "{name:16} {:>15}  {bytes}", bytes.get())?;
        }
        if !plan.keeps_all() {
            writeln!(out, "one network is in memory at a time")?;
        }
        if let Some(tile) = plan.tile() {
            writeln!(out, "pixels are computed in tiles of {tile}x{tile}")?;
        }
        let unknown = model.unknown_tensors().count();
        if unknown > 0 {
            writeln!(out, "warning: {unknown} tensors of the files are of no part of the model")?;
        }
        match &advice {
            None => writeln!(out, "fits, for images of up to {width}x{height} pixels")?,
            Some(advice) => writeln!(out, "does not fit: {advice}")?,
        }
        out.flush()?;
    }
    Ok(json!({
        "family": model.config().family.to_string(),
        "networks": networks(&plan),
        "planned_bytes": plan.bytes().get(),
        "staging_bytes": staging.get(),
        "total_bytes": total.get(),
        "budget_bytes": budget.get(),
        "free_bytes": report.free().get(),
        "width": width,
        "height": height,
        "keeps_all": plan.keeps_all(),
        "tile": plan.tile(),
        "unused_tensors": model.unknown_tensors().count(),
        "fits": fits,
        "advice": advice,
    }))
}

/// What the plan takes of a device, and what that has.
struct DeviceShare {
    name: String,
    layers: usize,
    /// Not the model's, but taken off the budget as long as the engine lives.
    staging: ByteSize,
    total: ByteSize,
    budget: ByteSize,
    free: ByteSize,
}

/// What was asked for, which may be less than what the device takes for itself, or else all that it has; never more.
fn asked_of(all: ByteSize, asked: Option<ByteSize>) -> ByteSize {
    asked.map_or(all, |asked| asked.min(all))
}

impl DeviceShare {
    fn of(plan: &LoadPlan<Text>, device: &Device, budget: Option<ByteSize>) -> Self {
        let share = plan.shares().iter().find(|share| share.device.is(device));
        let layers = plan.layers().find(|(other, _)| other.is(device));
        let (staging, report) = (device.backend().overhead(), device.report());
        DeviceShare {
            name: device.backend().name(),
            layers: layers.map_or(0, |(_, layers)| layers),
            staging,
            total: share.map_or(ByteSize::ZERO, |share| share.footprint.total()) + staging,
            budget: asked_of(report.budget + staging, budget),
            free: report.free(),
        }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "layers": self.layers,
            "total_bytes": self.total.get(),
            "budget_bytes": self.budget.get(),
            "free_bytes": self.free.get(),
        })
    }
}
