//! What diffusion sampling promises beside its numbers: typed refusals, batches whose images do not know of each other,
//! runs that repeat, starts in the middle, guidance.

use proptest::prelude::*;
use tenure_sampling::SamplingError;
use tenure_sampling::diffusion::*;

const METHODS: [Method; 9] = [
    Method::Euler,
    Method::EulerAncestral { eta: 1.0 },
    Method::Heun,
    Method::DPMPP_2M,
    Method::DPMPP_2M_SDE,
    Method::DPMPP_SDE,
    Method::Ddim { eta: 0.5 },
    Method::LCM,
    Method::UNIPC,
];

fn epsilon() -> Process {
    let schedule = NoiseSchedule::new(BetaSchedule::STABLE_DIFFUSION, 1000, false).unwrap();
    Process::Discrete { schedule, prediction: Prediction::Epsilon }
}

fn flow() -> Process {
    Process::Flow(FlowSchedule::new(FlowShift::Static(3.0), 1000).unwrap())
}

fn on_flow(method: Method) -> bool {
    !matches!(method, Method::Ddim { .. } | Method::DpmppSde { .. })
}

fn steps(steps: usize) -> ScheduleSettings {
    ScheduleSettings { steps, spacing: Spacing::Linspace, ..ScheduleSettings::default() }
}

/// The answer of a model that knows the image: what it would predict at a level.
fn perfect(process: &Process, image: &[f32], latents: &[f32], evaluation: &Evaluation) -> Vec<f32> {
    let NoiseLevel { signal, noise } = evaluation.level;
    let answer = |(x, z): (&f32, &f32)| {
        let (x, z) = (f64::from(*x), f64::from(*z));
        let epsilon = (x - signal * z) / noise;
        (match process {
            Process::Flow(_) => epsilon - z,
            Process::Discrete { prediction: Prediction::Epsilon, .. } => epsilon,
            Process::Discrete { prediction: Prediction::V, .. } => {
                let norm = signal.hypot(noise);
                (signal * epsilon - noise * z) / norm
            }
            Process::Discrete { prediction: Prediction::Sample, .. } => z,
        }) as f32
    };
    latents.iter().zip(image).map(answer).collect()
}

/// Runs to the end against a wavy model; gives the latents after each step.
fn run(process: &Process, method: Method, settings: &ScheduleSettings, seeds: &[u64], size: usize) -> Vec<Vec<f32>> {
    let mut sampler = DiffusionSampler::new(process, method, settings, size * seeds.len()).unwrap();
    let mut noise = Noise::new(NoiseKind::Philox, seeds, size).unwrap();
    finish(&mut sampler, &mut noise, size)
}

fn finish(sampler: &mut DiffusionSampler, noise: &mut Noise, size: usize) -> Vec<Vec<f32>> {
    let mut latents = vec![0.0; noise.len()];
    noise.fill(&mut latents).unwrap();
    sampler.initial_noise(&mut latents);
    let mut seen = Vec::new();
    while let Some(evaluation) = sampler.evaluation() {
        let answer = |(i, x): (usize, &f32)| (x * evaluation.input_scale + (i % size) as f32).sin();
        let output: Vec<f32> = latents.iter().enumerate().map(answer).collect();
        if sampler.advance(&mut latents, &output, noise).unwrap() != Progress::WithinStep {
            seen.push(latents.clone());
        }
    }
    seen
}

#[test]
fn a_perfect_model_gives_its_image_with_every_sampler() {
    let image: Vec<f32> = (0..48).map(|i| (i as f32 * 0.7).sin()).collect();
    let v = match epsilon() {
        Process::Discrete { schedule, .. } => Process::Discrete { schedule, prediction: Prediction::V },
        Process::Flow(_) => unreachable!(),
    };
    for process in [epsilon(), v, flow()] {
        for method in METHODS {
            if matches!(process, Process::Flow(_)) && !on_flow(method) {
                continue;
            }
            for rule in
                [SigmaRule::Spaced, SigmaRule::KARRAS, SigmaRule::BETA, SigmaRule::SgmUniform, SigmaRule::Simple]
            {
                let name = format!("{method:?} {rule:?}");
                let settings = ScheduleSettings { rule, ..steps(9) };
                let mut sampler = DiffusionSampler::new(&process, method, &settings, 48).unwrap();
                let mut noise = Noise::new(NoiseKind::Philox, &[1, 2, 3], 16).unwrap();
                let mut latents = vec![0.0; 48];
                noise.fill(&mut latents).unwrap();
                sampler.initial_noise(&mut latents);
                let mut evaluations = 0;
                while let Some(evaluation) = sampler.evaluation() {
                    let output = perfect(&process, &image, &latents, &evaluation);
                    sampler.advance(&mut latents, &output, &mut noise).unwrap();
                    evaluations += 1;
                    // LCM's boundary condition mixes a little of the latents in.
                    let slack = if matches!(method, Method::Lcm { .. }) { 0.1 } else { 3e-4 };
                    for (got, want) in sampler.denoised().iter().zip(&image) {
                        assert!((got - want).abs() < slack, "{name}: {got} {want}");
                    }
                }
                let once = usize::from(method.evaluations() == 2);
                assert_eq!(evaluations, 9 * method.evaluations() - once, "{name}");
                assert_eq!(sampler.level(), NoiseLevel::CLEAN);
                for (got, want) in latents.iter().zip(&image) {
                    let slack = if matches!(method, Method::Lcm { .. }) { 0.1 } else { 3e-4 };
                    assert!((got - want).abs() < slack, "{name}: {got} {want}");
                }
                let done = sampler.advance(&mut latents, &image, &mut noise);
                assert_eq!(done, Err(SamplingError::NoStepLeft { steps: 9 }), "{name}");
            }
        }
    }
}

#[test]
fn an_images_numbers_depend_on_its_own_seed_alone() {
    for process in [epsilon(), flow()] {
        for method in METHODS {
            if matches!(process, Process::Flow(_)) && !on_flow(method) {
                continue;
            }
            let together = run(&process, method, &steps(6), &[10, 11, 12], 8);
            for (i, seed) in [10, 11, 12].into_iter().enumerate() {
                let alone = run(&process, method, &steps(6), &[seed], 8);
                for (all, one) in together.iter().zip(&alone) {
                    assert_eq!(all[i * 8..(i + 1) * 8], one[..], "{method:?}");
                }
            }
        }
    }
}

#[test]
fn a_run_begun_again_repeats_bit_for_bit() {
    for kind in [NoiseKind::Philox, NoiseKind::TorchCpu, NoiseKind::TorchCuda { resident_threads: 2048 }] {
        for method in METHODS {
            let mut sampler = DiffusionSampler::new(&epsilon(), method, &steps(5), 40).unwrap();
            let mut noise = Noise::new(kind, &[7, 8], 20).unwrap();
            let first = finish(&mut sampler, &mut noise, 20);
            for _ in 0..2 {
                sampler.begin(0).unwrap();
                noise.reset();
                assert_eq!(finish(&mut sampler, &mut noise, 20), first, "{method:?}");
            }
        }
    }
}

#[test]
fn an_image_is_changed_from_the_step_that_its_strength_says() {
    let sampler = |process: &Process, n| DiffusionSampler::new(process, Method::Euler, &steps(n), 4).unwrap();
    // Rounded down in steps taken, or in steps left out.
    for (n, strength, of_discrete, of_flow) in
        [(5, 0.6, 2, 2), (5, 0.7, 2, 1), (50, 0.75, 13, 12), (20, 1.0, 0, 0), (100, 0.29, 72, 71), (3, 0.34, 2, 1)]
    {
        assert_eq!(sampler(&epsilon(), n).first_step(strength), Ok(of_discrete), "{n} {strength}");
        assert_eq!(sampler(&flow(), n).first_step(strength), Ok(of_flow), "{n} {strength}");
    }
    for strength in [0.0, -0.5, 1.01, f64::NAN, f64::INFINITY, 0.1] {
        let refused = sampler(&epsilon(), 5).first_step(strength);
        assert!(
            matches!(refused, Err(SamplingError::BadDiffusion { field: "strength", .. })),
            "{strength}: {refused:?}"
        );
    }
    let mut sampler = sampler(&epsilon(), 5);
    assert_eq!(sampler.begin(5), Err(SamplingError::NoStepLeft { steps: 5 }));
    sampler.begin(3).unwrap();
    assert_eq!(sampler.evaluation().unwrap().step, 3);
    assert_eq!(sampler.level(), sampler.steps()[3].from);
}

#[test]
fn the_kept_region_ends_as_the_image_itself() {
    for method in METHODS {
        let mut sampler = DiffusionSampler::new(&epsilon(), method, &steps(6), 32).unwrap();
        let mut noise = Noise::new(NoiseKind::Philox, &[4], 32).unwrap();
        let mut normals = vec![0.0; 32];
        noise.fill(&mut normals).unwrap();
        let image: Vec<f32> = (0..32).map(|i| i as f32 / 10.0).collect();
        // Two channels of 16: the first half of each is kept, one place is soft.
        let mut mask = [0.0f32; 16];
        mask[8..].fill(1.0);
        mask[8] = 0.25;
        let mut latents = normals.clone();
        sampler.initial_noise(&mut latents);
        while let Some(evaluation) = sampler.evaluation() {
            let output: Vec<f32> = latents.iter().map(|x| (x * evaluation.input_scale).cos()).collect();
            let progress = sampler.advance(&mut latents, &output, &mut noise).unwrap();
            if progress != Progress::WithinStep {
                let before = latents.clone();
                keep_region(&mut latents, &image, &normals, &mask, sampler.level()).unwrap();
                let level = sampler.level();
                for i in 0..32 {
                    let m = f64::from(mask[i % 16]);
                    let kept = level.signal * f64::from(image[i]) + level.noise * f64::from(normals[i]);
                    let want = (1.0 - m) * kept + m * f64::from(before[i]);
                    assert!((f64::from(latents[i]) - want).abs() < 1e-5 * want.abs().max(1.0), "{method:?} {i}");
                }
            }
        }
        assert_eq!(latents[..8], image[..8]);
        assert_eq!(latents[16..24], image[16..24]);
        assert_ne!(latents[24..], image[24..]);
    }
    let refused = keep_region(&mut [0.0; 8], &[0.0; 8], &[0.0; 8], &[0.0; 3], NoiseLevel::CLEAN);
    assert_eq!(refused, Err(SamplingError::LatentLength { what: "mask", got: 3, want: 8 }));
}

#[test]
fn absurd_settings_are_refused_with_the_numbers() {
    let make = |process: &Process, method, settings: &ScheduleSettings| {
        DiffusionSampler::new(process, method, settings, 4).map(|_| ()).unwrap_err()
    };
    let bad = |field, value| SamplingError::BadDiffusion { field, value };
    let rule = |rule| ScheduleSettings { rule, ..steps(4) };
    assert_eq!(make(&epsilon(), Method::Euler, &steps(0)), bad("steps", 0.0));
    assert_eq!(make(&flow(), Method::Euler, &steps(0)), bad("steps", 0.0));
    let too_many = SamplingError::TooManySteps { steps: 1001, limit: 1000 };
    assert_eq!(make(&epsilon(), Method::Euler, &steps(1001)), too_many);
    assert_eq!(make(&epsilon(), Method::LCM, &steps(51)), SamplingError::TooManySteps { steps: 51, limit: 50 });
    let lcm = Method::Lcm { original_steps: 2000, timestep_scaling: 10.0 };
    assert_eq!(make(&epsilon(), lcm, &steps(4)), SamplingError::TooManySteps { steps: 2000, limit: 1000 });
    assert_eq!(make(&epsilon(), Method::Ddim { eta: 1.5 }, &steps(4)), bad("eta", 1.5));
    assert_eq!(make(&epsilon(), Method::UniPc { order: 4, variant: UniPcVariant::Bh2 }, &steps(4)), bad("order", 4.0));
    assert_eq!(make(&epsilon(), Method::UniPc { order: 0, variant: UniPcVariant::Bh2 }, &steps(4)), bad("order", 0.0));
    assert_eq!(make(&epsilon(), Method::Euler, &rule(SigmaRule::Karras { rho: 0.0 })), bad("rho", 0.0));
    assert_eq!(make(&epsilon(), Method::Euler, &rule(SigmaRule::Sigmas(vec![1.0]))), bad("number of sigmas", 1.0));
    assert_eq!(make(&epsilon(), Method::Euler, &rule(SigmaRule::Sigmas(vec![1.0, -2.0]))), bad("sigma", -2.0));
    assert_eq!(make(&epsilon(), Method::Euler, &rule(SigmaRule::Timesteps(vec![1000.0]))), bad("timestep", 1000.0));
    assert_eq!(make(&flow(), Method::Euler, &rule(SigmaRule::Sigmas(vec![1.5, 0.0]))), bad("sigma", 1.5));
    assert_eq!(make(&epsilon(), Method::Euler, &rule(SigmaRule::Sigmas(vec![1.0, 0.0, 0.0]))), bad("sigma", 0.0));
    let unsorted = SamplingError::UnsortedSigmas { index: 2, previous: 1.0, sigma: 1.5 };
    assert_eq!(make(&epsilon(), Method::Euler, &rule(SigmaRule::Sigmas(vec![2.0, 1.0, 1.5, 0.0]))), unsorted);
    for nan in [f32::NAN, f32::INFINITY] {
        let refused = make(&epsilon(), Method::Euler, &rule(SigmaRule::Sigmas(vec![nan, 0.0])));
        assert!(matches!(refused, SamplingError::BadDiffusion { field: "sigma", .. }));
    }
    let method = Method::DPMPP_SDE;
    assert_eq!(make(&flow(), method, &steps(4)), SamplingError::MethodNeedsNoiseSchedule { method });
    let leading = ScheduleSettings { spacing: Spacing::Leading, ..steps(4) };
    assert!(matches!(make(&flow(), Method::Euler, &leading), SamplingError::RuleNotDefined { .. }));
    // Rounded to whole timesteps, so many are the same.
    assert!(matches!(make(&epsilon(), Method::DPMPP_2M, &steps(1000)), SamplingError::UnsortedSigmas { .. }));
    let zero_snr = NoiseSchedule::new(BetaSchedule::STABLE_DIFFUSION, 1000, true).unwrap();
    let process = Process::Discrete { schedule: zero_snr, prediction: Prediction::Epsilon };
    let trailing = ScheduleSettings { spacing: Spacing::Trailing, ..steps(4) };
    assert_eq!(make(&process, Method::Ddim { eta: 0.0 }, &trailing), bad("signal of the first step", 0.0));
    let none = DiffusionSampler::new(&epsilon(), Method::Euler, &steps(4), 0).unwrap_err();
    assert_eq!(none, bad("elements", 0.0));
    for (start, end) in [(0.0, 0.5), (f64::NAN, 0.5), (0.5, 0.1), (0.1, 1.0)] {
        assert!(NoiseSchedule::new(BetaSchedule::Linear { start, end }, 1000, false).is_err(), "{start} {end}");
    }
    assert!(NoiseSchedule::new(BetaSchedule::STABLE_DIFFUSION, 1, false).is_err());
    for shift in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(FlowSchedule::new(FlowShift::Static(shift), 1000).is_err(), "{shift}");
    }
    assert!(FlowSchedule::new(FlowShift::Dynamic { mu: f64::NAN }, 1000).is_err());
    assert!(Noise::new(NoiseKind::Philox, &[], 4).is_err());
    assert!(Noise::new(NoiseKind::Philox, &[1], 0).is_err());
    assert!(BrownianTree::new(NoiseKind::Philox, 1, (1.0, 1.0), 4).is_err());
}

#[test]
fn a_faulty_answer_changes_nothing() {
    for method in METHODS {
        let mut sampler = DiffusionSampler::new(&epsilon(), method, &steps(4), 8).unwrap();
        let mut noise = Noise::new(NoiseKind::Philox, &[1], 8).unwrap();
        let mut latents = vec![0.5; 8];
        let good = vec![0.25; 8];
        sampler.advance(&mut latents, &good, &mut noise).unwrap();
        let (before, evaluation, preview) = (latents.clone(), sampler.evaluation(), sampler.denoised().to_vec());
        let mut faulty = good.clone();
        faulty[3] = f32::NAN;
        faulty[5] = f32::INFINITY;
        let step = evaluation.unwrap().step;
        let refused = sampler.advance(&mut latents, &faulty, &mut noise);
        assert_eq!(refused, Err(SamplingError::NonFiniteOutput { step, count: 2, of: 8 }));
        let short = sampler.advance(&mut latents, &good[..7], &mut noise);
        assert_eq!(short, Err(SamplingError::LatentLength { what: "output", got: 7, want: 8 }));
        assert_eq!((latents, sampler.evaluation()), (before, evaluation));
        assert_eq!(sampler.denoised(), preview);
    }
}

#[test]
fn guidance_combines_one_to_three_answers() {
    let guidance =
        Guidance { scale: 4.0, skip_layers: Some(SkipLayers::sd35_medium()), interval: (0.0, 0.5), ..Guidance::OFF };
    guidance.check().unwrap();
    let on = |step| {
        let passes = guidance.passes(step, 50);
        (passes.negative, passes.skip_layers)
    };
    // Beyond 1 % and before 20 % of the steps; guidance in the first half.
    assert_eq!([on(0), on(1), on(9), on(10), on(24), on(25)].map(|(n, _)| n), [true, true, true, true, true, false]);
    assert_eq!([on(0), on(1), on(9), on(10), on(24), on(25)].map(|(_, s)| s), [false, true, true, false, false, false]);
    let mut answer = [1.0, 2.0, 3.0, -1.0];
    let (negative, skipped) = ([0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 3.5, 0.0]);
    guidance.combine(guidance.passes(1, 50), &mut answer, Some(&negative), Some(&skipped), 1).unwrap();
    assert_eq!(answer, [2.5 + 2.5, 6.5 + 2.5, 10.5 - 1.25, -5.5 - 2.5]);
    let missing = guidance.combine(guidance.passes(1, 50), &mut answer, Some(&negative), None, 1);
    assert_eq!(missing, Err(SamplingError::LatentLength { what: "answer without layers", got: 0, want: 4 }));
    for scale in [0.0, 1.0] {
        assert!(!Guidance::of(scale).passes(0, 10).negative, "{scale}");
    }
    assert!(Guidance::of(0.5).passes(0, 10).negative);
    for scale in [-1.0, f32::NAN, f32::INFINITY] {
        assert!(Guidance::of(scale).check().is_err(), "{scale}");
    }
    assert!(Guidance { interval: (0.6, 0.5), ..Guidance::of(7.0) }.check().is_err());
    assert!(Guidance { rescale: 1.5, ..Guidance::of(7.0) }.check().is_err());
}

#[test]
fn rescaled_guidance_keeps_each_images_deviation() {
    let deviation = |x: &[f32]| {
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        (x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / x.len() as f32).sqrt()
    };
    let positive: Vec<f32> = (0..20).map(|i| (i as f32).sin() * if i < 10 { 1.0 } else { 3.0 }).collect();
    let negative: Vec<f32> = (0..20).map(|i| (i as f32 * 1.3).cos()).collect();
    let plain = Guidance::of(7.5);
    let mut unscaled = positive.clone();
    plain.combine(plain.passes(0, 10), &mut unscaled, Some(&negative), None, 2).unwrap();
    for rescale in [0.7, 1.0] {
        let guidance = Guidance { rescale, ..plain.clone() };
        let mut answer = positive.clone();
        guidance.combine(guidance.passes(0, 10), &mut answer, Some(&negative), None, 2).unwrap();
        for image in 0..2 {
            let part = image * 10..(image + 1) * 10;
            let (own, guided) = (deviation(&positive[part.clone()]), deviation(&unscaled[part.clone()]));
            let want = rescale * own + (1.0 - rescale) * guided;
            assert!((deviation(&answer[part.clone()]) / want - 1.0).abs() < 1e-5);
            let ratio = answer[part.start] / unscaled[part.start];
            assert!(part.clone().all(|i| (answer[i] / unscaled[i] / ratio - 1.0).abs() < 1e-5));
        }
    }
}

#[test]
fn presets_make_samplers_and_know_what_does_not_suit_them() {
    let variants = [
        Variant::Sd1,
        Variant::Sd2Base,
        Variant::Sd2V,
        Variant::Sdxl,
        Variant::SdTurbo,
        Variant::SdxlTurbo,
        Variant::SdxlLightning(LightningSteps::Two),
        Variant::SdxlLightning(LightningSteps::Four),
        Variant::SdxlLightning(LightningSteps::Eight),
        Variant::Sd1Lcm,
        Variant::SdxlLcm,
        Variant::Sd3Medium,
        Variant::Sd35Medium,
        Variant::Sd35Large,
        Variant::Sd35LargeTurbo,
    ];
    for variant in variants {
        let preset = variant.preset();
        let process = variant.process().unwrap();
        let sampler = DiffusionSampler::new(&process, preset.method, &preset.schedule, 16).unwrap();
        assert_eq!(sampler.steps().len(), preset.schedule.steps, "{variant:?}");
        preset.guidance.check().unwrap();
        assert_eq!(preset.advice(preset.guidance.scale, preset.schedule.steps), [], "{variant:?}");
        for method in METHODS {
            if on_flow(method) || matches!(process, Process::Discrete { .. }) {
                DiffusionSampler::new(&process, method, &preset.schedule_for(method), 16).unwrap();
            }
        }
        if preset.guidance.scale == 1.0 {
            let most = preset.scale_range.1;
            assert_eq!(
                preset.advice(7.0, preset.schedule.steps),
                [Advice::GuidanceTooStrong { scale: 7.0, most }],
                "{variant:?}"
            );
        }
    }
    let turbo = Variant::SdxlTurbo.preset();
    assert_eq!(turbo.advice(0.0, 50), [Advice::TooManySteps { steps: 50, most: 4 }]);
    assert_eq!(Variant::Sd1.preset().advice(1.0, 2).len(), 2);
    for (family, name, want) in [
        (Variant::Sdxl, "sdxl_lightning_4step.safetensors", Variant::SdxlLightning(LightningSteps::Four)),
        (Variant::Sdxl, "SDXL-Lightning-8steps-unet", Variant::SdxlLightning(LightningSteps::Eight)),
        (Variant::Sdxl, "juggernautXL_lightning_2-step", Variant::SdxlLightning(LightningSteps::Two)),
        (Variant::Sdxl, "sd_xl_turbo_1.0_fp16", Variant::SdxlTurbo),
        (Variant::Sdxl, "sd_xl_base_1.0", Variant::Sdxl),
        (Variant::Sd1, "LCM_Dreamshaper_v7", Variant::Sd1Lcm),
        (Variant::Sd2Base, "sd_turbo", Variant::SdTurbo),
        (Variant::Sd35Large, "sd3.5_large_turbo", Variant::Sd35LargeTurbo),
        (Variant::Sd35Medium, "sd3.5_medium", Variant::Sd35Medium),
    ] {
        assert_eq!(family.named(name), want, "{name}");
    }
}

#[test]
fn flow_shift_by_size_is_that_of_flux() {
    assert!((dynamic_mu(256) - 0.5).abs() < 1e-12);
    assert!((dynamic_mu(4096) - 1.15).abs() < 1e-12);
}

#[test]
fn our_own_numbers_are_normal_and_unrelated() {
    let mut noise = Noise::new(NoiseKind::Philox, &[0, 1, u64::MAX], 40_000).unwrap();
    let mut numbers = vec![0.0; noise.len()];
    noise.fill(&mut numbers).unwrap();
    let images: Vec<&[f32]> = numbers.chunks(40_000).collect();
    for image in &images {
        let n = image.len() as f64;
        let moment = |k: i32| image.iter().map(|x| f64::from(*x).powi(k)).sum::<f64>() / n;
        // Five standard deviations of each estimate.
        assert!(moment(1).abs() < 0.025, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.036, "{}", moment(2));
        assert!(moment(3).abs() < 0.1, "{}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.25, "{}", moment(4));
        let next: f64 = image.windows(2).map(|w| f64::from(w[0] * w[1])).sum::<f64>() / n;
        assert!(next.abs() < 0.025, "{next}");
    }
    let shared: f64 = images[0].iter().zip(images[1]).map(|(a, b)| f64::from(a * b)).sum::<f64>() / 40_000.0;
    assert!(shared.abs() < 0.025, "{shared}");
    let mut again = vec![0.0; noise.len()];
    noise.fill(&mut again).unwrap();
    assert_ne!(numbers, again);
}

fn any_method() -> impl Strategy<Value = Method> {
    let noise = prop_oneof![Just(SdeNoise::Independent), Just(SdeNoise::BrownianTree)];
    let options =
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(heun, lower_order_final, euler_at_final)| {
            let correction = if heun { DpmCorrection::Heun } else { DpmCorrection::Midpoint };
            DpmOptions { correction, lower_order_final, euler_at_final }
        });
    let flow = prop_oneof![Just(FlowForm::LogSigma), Just(FlowForm::LogSnr)];
    let variant = prop_oneof![Just(UniPcVariant::Bh1), Just(UniPcVariant::Bh2)];
    prop_oneof![
        Just(Method::Euler),
        (0.0..1.2).prop_map(|eta| Method::EulerAncestral { eta }),
        Just(Method::Heun),
        (options.clone(), flow).prop_map(|(options, flow)| Method::Dpmpp2m { options, flow }),
        (options, noise.clone()).prop_map(|(options, noise)| Method::Dpmpp2mSde { options, noise }),
        noise.prop_map(|noise| Method::DpmppSde { noise }),
        (0.0..1.2).prop_map(|eta| Method::Ddim { eta }),
        (0usize..120).prop_map(|original_steps| Method::Lcm { original_steps, timestep_scaling: 10.0 }),
        (0usize..5, variant).prop_map(|(order, variant)| Method::UniPc { order, variant }),
    ]
}

fn any_rule() -> impl Strategy<Value = SigmaRule> {
    let model = prop_oneof![
        Just(AlignYourSteps::StableDiffusion1),
        Just(AlignYourSteps::StableDiffusionXl),
        Just(AlignYourSteps::StableVideoDiffusion)
    ];
    prop_oneof![
        3 => Just(SigmaRule::Spaced),
        1 => (0.05f64..20.0).prop_map(|rho| SigmaRule::Karras { rho }),
        1 => Just(SigmaRule::Exponential),
        1 => (0.005f64..5.0, 0.005f64..5.0).prop_map(|(alpha, beta)| SigmaRule::Beta { alpha, beta }),
        1 => Just(SigmaRule::SgmUniform),
        1 => Just(SigmaRule::Simple),
        1 => model.prop_map(SigmaRule::AlignYourSteps),
        1 => falling(0.0..20.0).prop_map(SigmaRule::Sigmas),
        1 => falling(0.0..1001.0).prop_map(SigmaRule::Timesteps),
    ]
}

fn falling(range: std::ops::Range<f32>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(range, 0..8).prop_map(|mut list| {
        list.sort_by(|a, b| b.total_cmp(a));
        list
    })
}

proptest! {
    /// Any settings are refused or run to finite latents: a bounded model gives no infinity.
    #[test]
    fn any_settings_are_refused_or_run(
        method in any_method(),
        rule in any_rule(),
        kind in 0..5,
        steps in prop_oneof![0usize..25, 900usize..1100],
        steps_offset in 0usize..30,
        spacing in prop_oneof![Just(Spacing::Leading), Just(Spacing::Trailing), Just(Spacing::Linspace)],
        final_sigma in prop_oneof![Just(FinalSigma::Zero), Just(FinalSigma::SigmaMin)],
    ) {
        let discrete = |zero_snr, prediction| {
            let schedule = NoiseSchedule::new(BetaSchedule::STABLE_DIFFUSION, 1000, zero_snr).unwrap();
            Process::Discrete { schedule, prediction }
        };
        let process = match kind {
            0 => discrete(false, Prediction::Epsilon),
            1 => discrete(true, Prediction::V),
            2 => discrete(false, Prediction::Sample),
            3 => flow(),
            _ => Process::Flow(FlowSchedule::new(FlowShift::Dynamic { mu: 0.7 }, 1000).unwrap()),
        };
        let settings = ScheduleSettings { steps, spacing, steps_offset, rule, final_sigma };
        if let Ok(mut sampler) = DiffusionSampler::new(&process, method, &settings, 4) {
            let mut noise = Noise::new(NoiseKind::Philox, &[steps as u64], 4).unwrap();
            let mut latents = vec![0.5, -0.25, 1.5, 0.0];
            sampler.initial_noise(&mut latents);
            let mut evaluations = 0;
            while let Some(evaluation) = sampler.evaluation() {
                prop_assert!(evaluation.timestep.is_finite() && evaluation.input_scale.is_finite());
                let output: Vec<f32> = latents.iter().map(|x| (x * evaluation.input_scale).sin()).collect();
                sampler.advance(&mut latents, &output, &mut noise).unwrap();
                evaluations += 1;
                prop_assert!(latents.iter().all(|x| x.is_finite()), "{evaluation:?} {latents:?}");
            }
            prop_assert!(evaluations <= 2 * sampler.steps().len());
        }
    }
}
