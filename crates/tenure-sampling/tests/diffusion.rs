//! Schedules, samplers and noise give the numbers of diffusers, torch and torchsde; `fixtures/diffusion/make.py` asked
//! them.

use std::path::Path;

use serde_json::Value;
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
        "euler_a" => Method::EulerAncestral { eta: case["eta"].as_f64().unwrap_or(1.0) },
        "heun" => Method::Heun,
        "dpmpp_2m" => {
            let flow = if case["flow"] == "log_snr" { FlowForm::LogSnr } else { FlowForm::LogSigma };
            Method::Dpmpp2m { options, flow }
        }
        "dpmpp_2m_sde" if case["noise"] == "brownian" => Method::Dpmpp2mSde { options, noise: SdeNoise::BrownianTree },
        "dpmpp_2m_sde" => Method::Dpmpp2mSde { options, noise: SdeNoise::Independent },
        "dpmpp_sde" if case["noise"] == "brownian" => Method::DPMPP_SDE,
        "dpmpp_sde" => Method::DpmppSde { noise: SdeNoise::Independent },
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
    got.iter()
        .zip(want)
        .map(|(a, b)| if a.is_finite() { (a - b).abs() / scale } else { f64::INFINITY })
        .fold(0.0, f64::max)
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
    for (of_trace, of_schedule, label) in worst.iter().take(5) {
        println!("{of_trace:.1e} {of_schedule:.1e} {label}");
    }
    assert!(worst.len() > 300, "{} traces", worst.len());
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), worst.len(), faults.join("\n"));
}

#[test]
fn the_noise_of_training_is_that_of_diffusers() {
    for case in read("schedules.json")["betas"].as_array().unwrap() {
        let zero_snr = case["zero_snr"].as_bool().unwrap();
        let schedule = NoiseSchedule::new(betas(case), 1000, zero_snr).unwrap();
        let at: Vec<usize> = floats(&case["at"]).into_iter().map(|t| t as usize).collect();
        let got: Vec<f64> = at.iter().map(|&t| f64::from(schedule.alphas_cumprod()[t])).collect();
        let want = floats(&case["alphas_cumprod"]);
        for ((t, got), want) in at.iter().zip(got).zip(want) {
            // Rescaling subtracts 32-bit numbers that are nearly the same.
            let allowed = if zero_snr { 2e-6 * want + 1e-9 } else { 1.2e-7 * want };
            assert!((got - want).abs() <= allowed, "{case} at {t}: {got} {want}");
        }
        assert_eq!(schedule.alphas_cumprod()[999] == 0.0, zero_snr, "{case}");
        for t in [0.0, 0.5, 17.25, 500.0, 998.9] {
            let back = schedule.timestep(schedule.sigma_log_linear(t));
            assert!((back - t).abs() < 1e-2, "{case}: {t} came back as {back}");
            assert!(schedule.sigma(t) < schedule.sigma(t + 0.1));
        }
    }
}

#[test]
fn rules_without_a_counterpart_in_diffusers_follow_their_definitions() {
    let cases = read("schedules.json");
    let cases = cases["steps"].as_array().unwrap();
    assert_eq!(cases.len(), 35);
    for case in cases {
        for method in [Method::Euler, Method::DPMPP_2M] {
            let mut without_list = case.clone();
            without_list.as_object_mut().unwrap().remove("sigmas");
            let steps = schedule(&process(case), method, &settings(&without_list)).unwrap();
            let mut sigmas: Vec<f64> = steps.iter().map(|step| step.sigma).collect();
            sigmas.push(steps.last().unwrap().to.noise);
            assert!(relative(&sigmas, &floats(&case["sigmas"])) < 1e-6, "{case}: {sigmas:?}");
        }
    }
}

#[test]
fn seeds_stand_for_torchs_numbers() {
    let noise = read("noise.json");
    for (kind, cases) in [("torch_cpu", &noise["torch_cpu"]), ("torch_cuda", &noise["torch_cuda"])] {
        for case in cases.as_array().unwrap() {
            let seed = case["seed"].as_u64().unwrap();
            // One stream whose draws are of changing size.
            let kind = match kind {
                "torch_cpu" => NoiseKind::TorchCpu,
                _ => NoiseKind::TorchCuda { resident_threads: case["resident"].as_u64().unwrap() as u32 },
            };
            for (i, draw) in case["draws"].as_array().unwrap().iter().enumerate() {
                let size = draw["size"].as_u64().unwrap() as usize;
                let mut numbers = vec![0.0; size];
                let before = case["draws"].as_array().unwrap().iter().take(i);
                let before: Vec<usize> = before.map(|draw| draw["size"].as_u64().unwrap() as usize).collect();
                draw_after(kind, seed, &before, &mut numbers);
                let numbers: Vec<f64> = numbers.into_iter().map(f64::from).collect();
                let name = format!("{kind:?} {seed} {size}");
                let (first, last) = (floats(&draw["first"]), floats(&draw["last"]));
                assert!(distance(&numbers[..first.len()], &first) < 1e-6, "{name}");
                assert!(distance(&numbers[size - last.len()..], &last) < 1e-6, "{name}");
                let sum: f64 = numbers.iter().sum();
                assert!((sum - draw["sum"].as_f64().unwrap()).abs() < 1e-6 * size as f64, "{name}");
            }
        }
    }
}

/// What a stream gives after draws of other sizes: batches of one image cannot change their size, so the stream is
/// reached through batches of the sizes before, each a stream in the state that those left.
fn draw_after(kind: NoiseKind, seed: u64, before: &[usize], out: &mut [f32]) {
    let mut noise = Noise::new(kind, &[seed], 1).unwrap();
    for &size in before {
        noise = noise.resized(size).unwrap();
        noise.fill(&mut vec![0.0; size]).unwrap();
    }
    noise = noise.resized(out.len()).unwrap();
    noise.fill(out).unwrap();
}

/// `torch.manual_seed(0)`, then `torch.randn` of 64, 64 and 8 numbers on a CUDA device: the first draw, and the sum
/// of the three with weights 1, 0.5 and 1 (repeated) where it is positive, as its owner printed them.
#[test]
fn a_cuda_device_has_given_these_numbers() {
    let mut noise = Noise::new(NoiseKind::TorchCuda { resident_threads: u32::MAX }, &[0], 64).unwrap();
    let (mut x, mut y, mut bias) = (vec![0.0; 64], vec![0.0; 64], vec![0.0; 8]);
    noise.fill(&mut x).unwrap();
    noise.fill(&mut y).unwrap();
    let mut noise = noise.resized(8).unwrap();
    noise.fill(&mut bias).unwrap();
    let printed = [
        -0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284, -1.0745, -0.3631, -1.6711, 2.2655,
        0.3117, -0.1842, 1.2866, 1.1820, -0.1271, 1.2169, 1.4353, 1.0605, -0.4941, -1.4244, -0.7244, -1.2973,
    ];
    for (got, want) in x.iter().zip(printed) {
        assert!((got - want).abs() < 6e-5f32, "{got} {want}");
    }
    let sums = [
        1.7098, 0.0, 0.0, 0.0, 0.67049, 0.0, 0.34424, 0.011223, 1.875, 0.0, 0.0, 2.2105, 0.66808, 0.0, 1.8445, 1.9246,
        2.2614, 1.3964, 0.51802, 2.0114, 0.0, 0.0, 0.27715, 0.0, 2.475, 0.0, 1.9079, 0.54869, 0.37923, 0.0, 3.1791,
        0.66843,
    ];
    for (i, want) in sums.into_iter().enumerate() {
        let got = (x[i] + 0.5 * y[i] + bias[i % 8]).max(0.0);
        assert!((got - want).abs() < 6e-5f32, "{i}: {got} {want}");
    }
}

#[test]
fn brownian_paths_are_those_of_torchsde() {
    for case in read("noise.json")["brownian"].as_array().unwrap() {
        let range = floats(&case["range"]);
        let seed = case["seed"].as_u64().unwrap();
        let mut tree = BrownianTree::new(NoiseKind::TorchCpu, seed, (range[0], range[1]), IMAGE).unwrap();
        let queries = case["queries"].as_array().unwrap();
        // Backwards too: what was asked before must not matter.
        for query in queries.iter().chain(queries.iter().rev()) {
            let (from, to) = (query["from"].as_f64().unwrap(), query["to"].as_f64().unwrap());
            let mut out = [0.0; IMAGE];
            tree.increment(from, to, &mut out).unwrap();
            let got: Vec<f64> = out.iter().map(|x| f64::from(*x)).collect();
            let error = distance(&got, &floats(&query["increment"]));
            assert!(error < 3e-5, "{seed} {range:?} {from} {to}: {error:.1e}");
            tree.increment(to, from, &mut out).unwrap();
            assert!(out.iter().zip(&got).all(|(back, x)| f64::from(*back) == -x));
        }
    }
}
