//! Schedules, samplers and noise give the numbers of diffusers, torch and torchsde; `fixtures/diffusion/make.py` asked
//! them.

use std::path::Path;

use serde_json::Value;
use tenure_sampling::SamplingError;
use tenure_sampling::diffusion::*;

const IMAGE: usize = 16;

fn read(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/diffusion").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn text<'a>(case: &'a Value, field: &str, otherwise: &'a str) -> &'a str {
    case[field].as_str().unwrap_or(otherwise)
}

fn betas(case: &Value) -> BetaSchedule {
    match text(case, "betas", "scaled_linear") {
        "scaled_linear" => BetaSchedule::STABLE_DIFFUSION,
        "linear" => BetaSchedule::Linear { start: 0.00085, end: 0.012 },
        "squaredcos_cap_v2" => BetaSchedule::SquaredCosine,
        other => panic!("{other}"),
    }
}

fn process(case: &Value) -> Process {
    if let Some(mu) = case["mu"].as_f64() {
        return Process::Flow(FlowSchedule::new(FlowShift::Dynamic { mu }, 1000).unwrap());
    }
    if let Some(shift) = case["shift"].as_f64() {
        return Process::Flow(FlowSchedule::new(FlowShift::Static(shift), 1000).unwrap());
    }
    let zero_snr = case["zero_snr"].as_bool().unwrap_or(false);
    let prediction = match text(case, "prediction", "epsilon") {
        "epsilon" => Prediction::Epsilon,
        "v_prediction" => Prediction::V,
        "sample" => Prediction::Sample,
        other => panic!("{other}"),
    };
    Process::Discrete { schedule: NoiseSchedule::new(betas(case), 1000, zero_snr).unwrap(), prediction }
}

fn method(case: &Value) -> Method {
    let options = DpmOptions {
        correction: if case["correction"] == "heun" { DpmCorrection::Heun } else { DpmCorrection::Midpoint },
        lower_order_final: case["lower_order_final"].as_bool().unwrap_or(true),
        euler_at_final: case["euler_at_final"].as_bool().unwrap_or(false),
    };
    match text(case, "method", "euler") {
        "euler" => Method::Euler,
        "euler_a" => Method::EulerAncestral { eta: 1.0 },
        "heun" => Method::Heun,
        "dpmpp_2m" => {
            let flow = if case["flow"] == "log_snr" { FlowForm::LogSnr } else { FlowForm::LogSigma };
            Method::Dpmpp2m { options, flow }
        }
        "dpmpp_2m_sde" => Method::Dpmpp2mSde { options, noise: SdeNoise::Independent },
        "dpmpp_sde" => Method::DPMPP_SDE,
        "ddim" => Method::Ddim { eta: case["eta"].as_f64().unwrap_or(0.0) },
        "lcm" => {
            let original_steps = case["original_steps"].as_u64().unwrap_or(50) as usize;
            Method::Lcm { original_steps, timestep_scaling: 10.0 }
        }
        "unipc" => {
            let variant = if case["variant"] == "bh1" { UniPcVariant::Bh1 } else { UniPcVariant::Bh2 };
            Method::UniPc { order: case["order"].as_u64().unwrap_or(2) as usize, variant }
        }
        other => panic!("{other}"),
    }
}

fn settings(case: &Value) -> ScheduleSettings {
    let list = |field: &str| floats(&case[field]).into_iter().map(|x| x as f32).collect();
    let rule = match text(case, "rule", "spaced") {
        "spaced" if !case["sigmas"].is_null() => SigmaRule::Sigmas(list("sigmas")),
        "spaced" if !case["timesteps"].is_null() => SigmaRule::Timesteps(list("timesteps")),
        "spaced" => SigmaRule::Spaced,
        "karras" => SigmaRule::KARRAS,
        "exponential" => SigmaRule::Exponential,
        "beta" => SigmaRule::BETA,
        "sgm_uniform" => SigmaRule::SgmUniform,
        "simple" => SigmaRule::Simple,
        "ays_sd1" => SigmaRule::AlignYourSteps(AlignYourSteps::StableDiffusion1),
        "ays_sdxl" => SigmaRule::AlignYourSteps(AlignYourSteps::StableDiffusionXl),
        "ays_svd" => SigmaRule::AlignYourSteps(AlignYourSteps::StableVideoDiffusion),
        other => panic!("{other}"),
    };
    ScheduleSettings {
        steps: case["steps"].as_u64().unwrap() as usize,
        spacing: match text(case, "spacing", "linspace") {
            "leading" => Spacing::Leading,
            "trailing" => Spacing::Trailing,
            "linspace" => Spacing::Linspace,
            other => panic!("{other}"),
        },
        steps_offset: case["offset"].as_u64().unwrap_or(1) as usize,
        rule,
        final_sigma: if case["final"] == "sigma_min" { FinalSigma::SigmaMin } else { FinalSigma::Zero },
    }
}

/// The toy model of `make.py`.
fn toy(latents: &[f32], evaluation: &Evaluation) -> Vec<f32> {
    let answer = |(i, x): (usize, &f32)| {
        let u = f64::from(x * evaluation.input_scale);
        let phase = 1.7 * u + 0.003 * f64::from(evaluation.timestep) + 0.37 * i as f64;
        (0.6 * phase.sin() + 0.3 * u) as f32
    };
    latents.iter().enumerate().map(answer).collect()
}

fn label(case: &Value) -> String {
    let mut case = case.clone();
    for long in ["expected_timesteps", "expected_sigmas", "latents"] {
        case.as_object_mut().unwrap().remove(long);
    }
    case.to_string()
}

/// The largest difference over the largest number wanted.
fn distance(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let scale = want.iter().fold(1e-30, |max: f64, x| max.max(x.abs()));
    got.iter().zip(want).map(|(a, b)| if a.is_finite() { (a - b).abs() / scale } else { f64::INFINITY }).fold(0.0, f64::max)
}

/// The largest difference over the number wanted itself.
fn relative(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    got.iter().zip(want).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() / b.abs().max(1e-12) }).fold(0.0, f64::max)
}

/// What a run gave.
struct Run {
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    latents: Vec<Vec<f64>>,
}

fn run(case: &Value, seeds: &[u64]) -> Run {
    let (process, method, settings) = (process(case), method(case), settings(case));
    let elements = IMAGE * seeds.len();
    let mut sampler = DiffusionSampler::new(&process, method, &settings, elements).unwrap();
    let mut noise = Noise::new(NoiseKind::TorchCpu, seeds, IMAGE).unwrap();
    let mut latents = vec![0.0; elements];
    noise.fill(&mut latents).unwrap();
    let first = case["begin"].as_u64().unwrap_or(0) as usize;
    sampler.begin(first).unwrap();
    if first > 0 {
        let image: Vec<f32> = (0..elements).map(|i| (i as f64).cos() as f32).collect();
        let normals = latents.clone();
        add_noise(&mut latents, &image, &normals, sampler.level()).unwrap();
    } else {
        sampler.initial_noise(&mut latents);
    }
    let mut run = Run { timesteps: Vec::new(), sigmas: Vec::new(), latents: Vec::new() };
    run.sigmas = sampler.steps().iter().map(|step| step.sigma).collect();
    let last = sampler.steps().last().unwrap().to;
    let flow = matches!(process, Process::Flow(_));
    run.sigmas.push(if flow { last.noise } else { last.noise / last.signal });
    while let Some(evaluation) = sampler.evaluation() {
        run.timesteps.push(f64::from(evaluation.timestep));
        let output = toy(&latents, &evaluation);
        sampler.advance(&mut latents, &output, &mut noise).unwrap();
        run.latents.push(latents.iter().map(|x| f64::from(*x)).collect());
    }
    run
}

#[test]
fn traces_are_those_of_diffusers() {
    let seeds: Vec<u64> = read("noise.json")["seeds"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap()).collect();
    let mut faults = Vec::new();
    let mut worst: Vec<(f64, f64, String)> = Vec::new();
    for case in read("traces.json").as_array().unwrap() {
        let label = label(case);
        let run = run(case, &seeds);
        let evaluations = run.timesteps.len();
        let timesteps = floats(&case["expected_timesteps"]);
        let begun = timesteps.len() - evaluations;
        let mut sigmas = floats(&case["expected_sigmas"]);
        sigmas.dedup();
        let mut of_schedule = relative(&run.timesteps, &timesteps[begun..]);
        if !sigmas.is_empty() {
            of_schedule = of_schedule.max(relative(&run.sigmas, &sigmas));
        }
        let mut of_trace = 0.0f64;
        for (at, want) in case["latents"].as_object().unwrap() {
            let got = &run.latents[at.parse::<usize>().unwrap()];
            of_trace = of_trace.max(distance(got, &floats(want)));
        }
        if of_schedule > 1e-5 || of_trace > 1e-4 {
            faults.push(format!("{label}: schedule {of_schedule:.1e}, trace {of_trace:.1e}"));
        }
        worst.push((of_trace, of_schedule, label));
    }
    worst.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("{} traces; largest schedule error {:.1e}", worst.len(), worst.iter().fold(0.0, |m: f64, w| m.max(w.1)));
    for (of_trace, of_schedule, label) in worst.iter().take(12) {
        println!("{of_trace:.1e} {of_schedule:.1e} {label}");
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), worst.len(), faults.join("\n"));
}
