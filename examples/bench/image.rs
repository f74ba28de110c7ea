//! The phases of image models: prompts, steps of the denoiser, decoding.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use serde_json::{Value, json};
use tenure::diffusion::Guidance;
use tenure::{Cancel, Deadline, Image, ImageModel, ImageRequest, Phase};
use tenure_examples::cli::{Refusal, access, memory};
use tenure_examples::image::{ImageArgs, networks};

use crate::{Arguments, PATIENCE, summary};

/// The measured phases, and what they are called.
const PHASES: [(Phase, &str); 3] = [(Phase::Prompt, "prompt"), (Phase::Denoise, "step"), (Phase::Decode, "decode")];

/// Measures an image model's speed: seconds of encoding a prompt, of a step without a negative prompt, and of decoding.
pub(crate) fn bench(arguments: &Arguments, model: &Arc<ImageModel>) -> Result<Value, Refusal> {
    let engine = arguments.model.engine()?;
    let options = arguments.image.options(arguments.image.size(None)?, false, access(arguments.model.no_mmap));
    let plan = engine.plan::<Image>(model, &options)?;
    let (planned, networks, (width, height)) = (plan.bytes(), networks(&plan), plan.size());
    let handle = ImageArgs::load(&engine, plan, &Cancel::new())?;
    let threads = arguments.model.threads()?;
    let mut bounds = tenure_examples::bounds::measure(threads);
    let mut session = handle.session();
    let (mut seconds, mut operations) = (BTreeMap::<&str, Vec<f64>>::new(), BTreeMap::new());
    // The first round warms caches up and is not counted.
    for repetition in 0..=arguments.repetitions {
        let request = ImageRequest {
            size: Some((width, height)),
            steps: Some(arguments.steps.unwrap_or(2)),
            guidance: Some(Guidance::of(1.0)),
            seeds: vec![repetition as u64],
            ..ImageRequest::new("a photo of a red circle")
        };
        let drawn = session.draw_all(request, Deadline::after(PATIENCE))?;
        for (phase, name) in PHASES {
            // A step's share of all steps.
            let parts = if phase == Phase::Denoise { drawn.steps.len().max(1) as f64 } else { 1.0 };
            let of = |what: &[(Phase, f64)]| what.iter().find(|(of, _)| *of == phase).map_or(0.0, |(_, x)| x / parts);
            operations.insert(name, of(&drawn.operations.map(|(phase, count)| (phase, count as f64))));
            if repetition > 0 {
                let spent = of(&drawn.timings.map(|(phase, spent)| (phase, spent.as_secs_f64())));
                seconds.entry(name).or_default().push(spent);
            }
        }
        bounds = bounds.max(tenure_examples::bounds::measure(threads));
    }
    let mut phases = serde_json::Map::new();
    for (name, spent) in &seconds {
        let count = operations[name];
        let mut phase = summary(spent, Some(|median| count / median / bounds.f32_ops_per_s));
        phase["operations"] = json!(count);
        phases.insert((*name).to_owned(), phase);
    }
    if !arguments.json {
        let mut out = std::io::stdout().lock();
        for (_, name) in PHASES {
            let (median, fraction) = (&phases[name]["median"], &phases[name]["bound_fraction"]);
            let (median, fraction) = (median.as_f64().unwrap_or(0.0), fraction.as_f64().unwrap_or(0.0));
            writeln!(
                out,
                "{name:8} {median:8.3} s  {:.0} % of the multiply-adds that {threads} threads can do",
                fraction * 100.0
            )?;
        }
    }
    Ok(json!({
        "device": engine.device().backend().name(),
        "size": [width, height],
        "seconds": phases,
        "bounds": { "f32_ops_per_s": bounds.f32_ops_per_s },
        "memory": memory(&engine, planned),
        "networks": networks,
    }))
}
