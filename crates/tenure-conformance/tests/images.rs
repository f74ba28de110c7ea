//! Images from prompts, from images and under masks, with the small model that draws coloured shapes (`fixtures/paint`):
//! against diffusers, in memory to the byte, again and again, and when things fail.

use std::sync::Arc;
use std::time::Duration;

use tenure::diffusion::{Guidance, Method, SigmaRule, Spacing};
use tenure::{
    ByteSize, Cpu, CpuOptions, Deadline, Device, Engine, ErrorKind, Image, ImageOptions, ImageRequest, ImageSession,
    Init, LoadOptions, Mask, Picture, Residency, Tiling, WeightStore,
};
use tenure_conformance::checks::{nth_failures, same_bits, soon};
use tenure_conformance::paint::{draw, fixture, load, model, options, paths, request};
use tenure_conformance::{Faulty, Poisoned};

/// A tensor of what diffusers computed.
fn truth(name: &str) -> Vec<f32> {
    let store = WeightStore::open(fixture("reference.safetensors")).expect("a sound file");
    let tensor = store.find(name).unwrap_or_else(|| panic!("{name} is there"));
    let mut bytes = vec![0; tensor.bytes().get() as usize];
    store.read_at(tensor, 0, &mut bytes).expect("there");
    bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect()
}

/// The largest difference, against the largest number wanted.
fn far(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    got.iter().zip(want).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f32::max)
}

#[test]
fn images_agree_with_diffusers() {
    let engine = Engine::auto().expect("cpu");
    let model = load(&engine, &options(128, 128));
    let mut session = model.session();
    let runs = [
        ("euler", Method::Euler, Spacing::Leading, SigmaRule::Spaced),
        ("dpmpp_2m_karras", Method::DPMPP_2M, Spacing::Linspace, SigmaRule::KARRAS),
    ];
    for (name, method, spacing, sigmas) in runs {
        let request = ImageRequest {
            method: Some(method),
            spacing: Some(spacing),
            sigmas: Some(sigmas),
            noise_latents: Some(truth("noise")),
            ..request("a red circle", (128, 128), 8)
        };
        let drawn = draw(&mut session, request).expect("draws");
        let error = far(&drawn.latents, &truth(&format!("{name}.latents")));
        assert!(error < 1e-4, "{name}: {error:e}");
        if name == "euler" {
            // Channels first, from -1 to 1.
            let (want, pixels) = (truth("euler.image"), 128 * 128);
            for (at, rgb) in drawn.pictures[0].rgb().chunks_exact(3).enumerate() {
                for (channel, &got) in rgb.iter().enumerate() {
                    let want = (want[channel * pixels + at] / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0;
                    assert!((f32::from(got) - want).abs() < 0.6, "pixel {at}: {got}, not {want}");
                }
            }
        }
    }
}

/// The middle colour of what differs from the picture's ground, how much of the box around it that covers, and how much wider than high the box is.
fn seen(picture: &Picture) -> ([f32; 3], f32, f32) {
    let width = picture.width();
    let pixels = || picture.rgb().chunks_exact(3).map(|rgb| [0, 1, 2].map(|channel| f32::from(rgb[channel])));
    let ground = pixels().nth(width + 1).expect("has pixels");
    let differs = |rgb: &[f32; 3]| {
        let squares = rgb.iter().zip(&ground).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        squares.sqrt() > 60.0
    };
    let shape: Vec<(usize, [f32; 3])> = pixels().enumerate().filter(|(_, rgb)| differs(rgb)).collect();
    assert!(shape.len() > 100, "something is drawn");
    let colour = [0, 1, 2].map(|channel| shape.iter().map(|(_, rgb)| rgb[channel]).sum::<f32>() / shape.len() as f32);
    let span = |of: &dyn Fn(usize) -> usize| {
        let places = || shape.iter().map(|&(at, _)| of(at));
        places().max().unwrap_or(0) - places().min().unwrap_or(0) + 1
    };
    let (wide, high) = (span(&|at| at % width) as f32, span(&|at| at / width) as f32);
    (colour, shape.len() as f32 / (wide * high), wide / high)
}

#[test]
fn the_model_draws_what_it_is_asked_for() {
    let engine = Engine::auto().expect("cpu");
    let model = load(&engine, &options(128, 128));
    let mut session = model.session();
    // A disc fills pi / 4 of the box around it, a square all, a cross five ninths, the others less.
    for (prompt, main, fills) in [
        ("a red circle", 0, 0.66..0.83),
        ("a green circle", 1, 0.66..0.83),
        ("a blue square", 2, 0.86..1.01),
        ("a red square", 0, 0.86..1.01),
    ] {
        for seed in [1, 2] {
            let request = ImageRequest { seeds: vec![seed], ..request(prompt, (128, 128), 20) };
            let drawn = draw(&mut session, request).expect("draws");
            let (colour, filled, aspect) = seen(&drawn.pictures[0]);
            let others = (0..3).filter(|&other| other != main);
            let strongest = others.map(|other| colour[main] - colour[other]).fold(f32::INFINITY, f32::min);
            assert!(
                strongest > 60.0 && fills.contains(&filled) && (0.85..1.18).contains(&aspect),
                "{prompt}, seed {seed}: {colour:?}, {filled} of a box of {aspect}"
            );
        }
    }
}

#[test]
fn planned_bytes_are_held_in_every_residency() {
    let engine = Engine::auto().expect("cpu");
    let mut totals = Vec::new();
    for residency in [Residency::Keep, Residency::ByPhase] {
        for tiling in [Tiling::Whole, Tiling::Tiles(128)] {
            let options = ImageOptions { residency, tiling, ..options(256, 192) };
            let plan = engine.plan::<Image>(&model(), &options).expect("plans");
            let planned = plan.bytes();
            let reservation = engine.reserve(&plan, &soon()).expect("fits");
            let handle = engine.load(plan, reservation, &LoadOptions::default()).expect("loads");
            let held = || {
                let report = engine.report();
                (report.allocated + report.reserved, report.peak)
            };
            assert_eq!((held().0, handle.memory()), (planned, planned));
            draw(&mut handle.session(), request("a red circle", (256, 192), 2)).expect("draws");
            assert_eq!(held().0, planned, "{residency:?} {tiling:?}");
            engine.unload(handle, Deadline::after(Duration::from_secs(5))).expect("nobody uses it");
            assert_eq!(held().0, ByteSize::ZERO);
            totals.push(planned);
        }
    }
    // One phase takes less than all, tiles less than the whole.
    assert!(totals[2] < totals[0] && totals[1] < totals[0] && totals[3] < totals[1], "{totals:?}");
}

#[test]
fn what_fits_is_chosen_by_the_plan() {
    let (model, whole) = (model(), Engine::auto().expect("cpu"));
    let bytes = |residency, tiling| {
        let options = ImageOptions { residency, tiling, ..options(512, 512) };
        whole.plan::<Image>(&model, &options).expect("plans").bytes()
    };
    let engine = |budget: ByteSize| {
        let budget = Some(budget + whole.device().backend().overhead());
        Engine::cpu(CpuOptions { budget, ..CpuOptions::default() }).expect("cpu")
    };
    let plan = |engine: &Engine| engine.plan::<Image>(&model, &options(512, 512)).expect("plans");
    let (all, least) = (bytes(Residency::Keep, Tiling::Whole), bytes(Residency::ByPhase, Tiling::Tiles(128)));
    let roomy = plan(&engine(all));
    assert!(roomy.keeps_all() && roomy.tile().is_none());
    let less = plan(&engine(all.saturating_sub(ByteSize::new(1))));
    assert!(less.keeps_all() && less.tile().is_some(), "tiles come before leaving");
    let little = engine(least);
    let tight = plan(&little);
    assert!(!tight.keeps_all() && tight.bytes() <= least);
    let handle = little.load_image_with(&paths(), &options(512, 512), &LoadOptions::default());
    let drawn = draw(&mut handle.expect("loads").session(), request("a red circle", (512, 512), 1)).expect("draws");
    assert_eq!(drawn.pictures[0].width(), 512);
    let none = engine(ByteSize::new(100 << 10));
    let error = none.reserve(&plan(&none), &soon()).expect_err("does not fit");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
}

/// Latents do not depend on what was drawn before, on how many are computed together, or on what stays in memory.
#[test]
fn a_b_a_gives_a_twice() {
    let engine = Engine::auto().expect("cpu");
    let a = || request("a red circle", (128, 128), 3);
    let long = "a red circle, ".repeat(50);
    let mut first: Option<Vec<f32>> = None;
    for residency in [Residency::Keep, Residency::ByPhase] {
        let model = load(&engine, &ImageOptions { residency, ..options(192, 192) });
        let mut session = model.session();
        let mut same = |latents: Vec<f32>, what: &str| {
            let first = first.get_or_insert_with(|| latents.clone());
            assert!(same_bits(first, &latents), "{what}");
        };
        same(draw(&mut session, a()).expect("draws").latents, "A");
        for b in [
            ImageRequest { negative: long.clone(), ..request("a blue square", (192, 64), 2) },
            request(&long, (64, 128), 1),
            ImageRequest { guidance: Some(Guidance::OFF), ..request("", (72, 104), 2) },
        ] {
            draw(&mut session, b).expect("draws");
            same(draw(&mut session, a()).expect("draws").latents, "B, A");
        }
        // As the second of a batch.
        let seeds = vec![7, 0, 3];
        let batch = draw(&mut session, ImageRequest { seeds, ..a() }).expect("draws");
        let len = batch.latents.len() / 3;
        same(batch.latents[len..2 * len].to_vec(), "in a batch");
    }
}

#[test]
fn many_images_in_a_row_take_nothing_more() {
    let engine = Engine::auto().expect("cpu");
    let model = load(&engine, &options(96, 96));
    let (held, mut session) = (engine.report(), model.session());
    let circle = draw(&mut session, request("a red circle", (64, 64), 4)).expect("draws");
    let methods = Method::NAMED.map(|(.., method)| method);
    let mask = Mask::new(64, 64, (0..64 * 64).map(|i| f32::from(u8::from(i % 64 > 32))).collect()).expect("sound");
    for i in 0..200 {
        let init = (i % 3 > 0).then(|| Init {
            picture: circle.pictures[0].clone(),
            strength: 0.5 + f64::from(i % 4) / 8.0,
            mask: (i % 3 == 2).then(|| mask.clone()),
        });
        let size = if init.is_some() { (64, 64) } else { (64 + 8 * (i as usize % 5), 64 + 8 * (i as usize % 4)) };
        let request = ImageRequest {
            negative: "a blue square ".repeat(i as usize % 30),
            method: Some(methods[i as usize % methods.len()]),
            spacing: None,
            seeds: (0..1 + u64::from(i % 8 == 0)).collect(),
            init,
            ..request(&"a red circle ".repeat(1 + i as usize % 50), size, 2 - usize::from(i % 6 == 0))
        };
        let drawn = draw(&mut session, request).unwrap_or_else(|error| panic!("{i}: {error}"));
        assert_eq!((drawn.pictures[0].width(), drawn.pictures[0].height()), size);
        let report = engine.report();
        assert_eq!((report.allocated, report.reserved, report.peak), (held.allocated, held.reserved, held.peak));
    }
    let again = draw(&mut session, request("a red circle", (64, 64), 4)).expect("draws");
    assert!(same_bits(&circle.latents, &again.latents) && circle.pictures == again.pictures);
}

#[test]
fn what_a_mask_keeps_is_kept() {
    let engine = Engine::auto().expect("cpu");
    let model = load(&engine, &options(128, 128));
    let mut session = model.session();
    let circle = draw(&mut session, request("a red circle", (128, 128), 8)).expect("draws").pictures.remove(0);
    let right = |i: usize| i % 128 >= 64;
    let mask = Mask::new(128, 128, (0..128 * 128).map(|i| f32::from(u8::from(right(i)))).collect()).expect("sound");
    let drawn = |strength, mask, session: &mut ImageSession| {
        let init = Some(Init { picture: circle.clone(), strength, mask });
        draw(session, ImageRequest { init, seeds: vec![9], ..request("a blue square", (128, 128), 8) })
            .expect("draws")
            .pictures
            .remove(0)
    };
    let painted = drawn(1.0, Some(mask.clone()), &mut session);
    let pixels = || painted.rgb().chunks_exact(3).zip(circle.rgb().chunks_exact(3)).enumerate();
    assert!(pixels().filter(|(i, _)| !right(*i)).all(|(_, (new, old))| new == old), "the left is the circle's");
    assert!(pixels().any(|(i, (new, old))| right(i) && new != old), "the right is drawn anew");
    // Less strength stays nearer.
    let distance =
        |picture: &Picture| picture.rgb().iter().zip(circle.rgb()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
    let (little, much) = (drawn(0.25, None, &mut session), drawn(1.0, None, &mut session));
    assert!(distance(&little) < distance(&much));
    // A mask that draws nothing anew gives the image back.
    let nothing = Mask::new(128, 128, vec![0.0; 128 * 128]).expect("sound");
    assert_eq!(drawn(0.5, Some(nothing), &mut session), circle);
}

#[test]
fn tiles_are_seamless() {
    let engine = Engine::auto().expect("cpu");
    let pictures = [Tiling::Whole, Tiling::Tiles(128)].map(|tiling| {
        let model = load(&engine, &ImageOptions { tiling, ..options(256, 256) });
        draw(&mut model.session(), request("a red circle", (256, 256), 4)).expect("draws").pictures.remove(0)
    });
    let differences = pictures[0].rgb().iter().zip(pictures[1].rgb()).map(|(a, b)| f64::from(a.abs_diff(*b)));
    let mean = differences.sum::<f64>() / pictures[0].rgb().len() as f64;
    // Norms are over a tile where they were over the whole.
    assert!(mean < 12.0, "mean difference {mean}");
}

#[test]
fn requests_that_cannot_be_met_are_refused_with_the_numbers() {
    let engine = Engine::auto().expect("cpu");
    let model = load(&engine, &options(128, 128));
    let mut session = model.session();
    let mut refused = |request: ImageRequest, says: &str| {
        let error = draw(&mut session, request).expect_err(says);
        assert_eq!(error.kind(), ErrorKind::BadParameter, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    for (size, says) in [
        ((0, 0), "0x0"),
        ((100, 100), "100x100"),
        ((100_000, 100_000), "100000x100000"),
        ((128, 0), "128x0"),
        ((1024, 1024), "loaded with"),
    ] {
        refused(request("a red circle", size, 2), says);
    }
    refused(request("a red circle", (128, 128), 0), "steps is 0");
    refused(request("a red circle", (128, 128), 1_000_000), "1000000");
    let good = || request("a red circle", (128, 128), 2);
    refused(ImageRequest { seeds: Vec::new(), ..good() }, "number of seeds is 0");
    refused(ImageRequest { noise_latents: Some(vec![0.0; 5]), ..good() }, "noise_latents is 5");
    refused(ImageRequest { guidance: Some(Guidance::of(f32::NAN)), ..good() }, "guidance");
    refused(ImageRequest { shift: Some(3.0), ..good() }, "shift");
    refused(ImageRequest { preview_every: Some(0), ..good() }, "preview_every is 0");
    refused(ImageRequest { prompt: "(x:1e99)(y:99999)".to_owned(), ..good() }, "99999");
    let picture = |width, height| Picture::new(width, height, vec![128; width * height * 3]).expect("sound");
    let init = |strength, mask| Some(Init { picture: picture(128, 128), strength, mask });
    refused(ImageRequest { init: init(0.0, None), ..good() }, "strength");
    refused(ImageRequest { init: init(1.5, None), ..good() }, "strength");
    let mask = Mask::new(64, 64, vec![1.0; 64 * 64]).expect("sound");
    refused(ImageRequest { init: init(0.5, Some(mask)), ..good() }, "64x64");
    let other = Some(Init { picture: picture(64, 64), strength: 0.5, mask: None });
    refused(ImageRequest { init: other, ..good() }, "64x64");
    // What looks like emphasis and is none is text.
    for prompt in ["(a:b)", "((", "(x:1e99)", "\\", "]][[", "BREAK BREAK"] {
        draw(&mut session, request(prompt, (64, 64), 1)).expect("text");
    }
    assert!(Picture::new(2, 2, vec![0; 11]).is_err() && Picture::new(usize::MAX, 2, Vec::new()).is_err());
    assert!(Mask::new(1, 1, vec![1.5]).is_err() && Mask::new(0, 0, Vec::new()).is_err());
    let without = load(&engine, &ImageOptions { from_images: false, ..options(128, 128) });
    let error = draw(&mut without.session(), ImageRequest { init: init(0.5, None), ..good() }).expect_err("no encoder");
    assert_eq!(error.kind(), ErrorKind::BadParameter, "{error}");
}

#[test]
fn a_stopped_drawing_can_go_on_and_a_cancelled_one_ends() {
    let engine = Engine::auto().expect("cpu");
    let model = load(&engine, &options(128, 128));
    let mut session = model.session();
    let whole = draw(&mut session, request("a red circle", (128, 128), 3)).expect("draws");
    let mut drawing = session.draw(request("a red circle", (128, 128), 3)).expect("sound");
    let mut wait = Duration::ZERO;
    loop {
        match drawing.next(Deadline::after(wait)) {
            Ok(Some(_)) => wait = Duration::ZERO,
            Ok(None) => break,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
                wait = (wait * 2).max(Duration::from_micros(50));
            }
        }
    }
    assert!(same_bits(&drawing.finish().expect("done").latents, &whole.latents));

    let endless = request("a red circle", (128, 128), 900);
    let cancel = endless.cancel.clone();
    let mut drawing = session.draw(endless).expect("sound");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            cancel.cancel();
        });
        let error = loop {
            if let Err(error) = drawing.next(soon().deadline) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    });
    assert!(drawing.finish().is_err(), "it was not drawn");
}

#[test]
fn sessions_on_two_threads_draw_as_if_alone() {
    let engine = Engine::auto().expect("cpu");
    for residency in [Residency::Keep, Residency::ByPhase] {
        let model = load(&engine, &ImageOptions { residency, ..options(128, 128) });
        let requests = || [request("a red circle", (128, 128), 4), request("a blue square", (64, 96), 6)];
        let alone = requests().map(|request| draw(&mut model.session(), request).expect("draws").latents);
        let together = std::thread::scope(|scope| {
            requests()
                .map(|request| scope.spawn(|| draw(&mut model.session(), request).expect("draws").latents))
                .map(|thread| thread.join().expect("no panic"))
        });
        for (alone, together) in alone.iter().zip(&together) {
            assert!(same_bits(alone, together));
        }
    }
}

/// Nothing that a step reads was left there by another: memory begins as NaN.
#[test]
fn nothing_is_read_that_nobody_wrote() {
    let cpu = Arc::new(Cpu::new(&CpuOptions::default()).expect("cpu"));
    let poisoned = Engine::on(Device::new(Arc::new(Poisoned::new(cpu)), ByteSize::new(1 << 32)));
    let plain = Engine::auto().expect("cpu");
    let [a, b] = [&poisoned, &plain].map(|engine| {
        let model = load(engine, &options(128, 128));
        draw(&mut model.session(), request("a red circle", (104, 72), 2)).expect("draws")
    });
    assert!(same_bits(&a.latents, &b.latents) && a.pictures == b.pictures);
}

#[test]
fn the_nth_failure_of_every_kind_leaves_nothing_behind() {
    let cpu = Arc::new(Cpu::new(&CpuOptions { threads: Some(2), ..CpuOptions::default() }).expect("cpu"));
    let picture = Picture::new(64, 64, (0..64 * 64 * 3).map(|i| (i % 251) as u8).collect()).expect("sound");
    let mask = Mask::new(64, 64, (0..64 * 64).map(|i| (i % 64) as f32 / 64.0).collect()).expect("sound");
    let init = |mask| Some(Init { picture: picture.clone(), strength: 0.6, mask });
    let lives = [(Residency::Keep, None), (Residency::ByPhase, init(None)), (Residency::Keep, init(Some(mask)))];
    for (residency, init) in lives {
        let faulty = Arc::new(Faulty::new(cpu.clone()));
        let engine = Engine::on(Device::new(faulty.clone(), ByteSize::new(1 << 32)));
        let life = |engine: &Engine| {
            let paths = paths();
            let options = ImageOptions { residency, ..options(64, 64) };
            let model = engine.load_image_with(&paths, &options, &LoadOptions::default())?;
            let drawn = draw(&mut model.session(), ImageRequest { init: init.clone(), ..request("a", (64, 64), 2) })?;
            engine.unload(model, Deadline::after(Duration::from_secs(5))).expect("nobody uses it");
            Ok(drawn.pictures)
        };
        // There are hundreds of weights: not each of them.
        nth_failures(&engine, &faulty, life, |nth| nth + 1 + nth / 3, || {});
    }
}
