//! Image models as programs and people use them: previews, what they are told while networks come and go, long prompts, and
//! requests that cannot be met.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenure::diffusion::{Guidance, SigmaRule};
use tenure::{
    Deadline, Drawn, Engine, ErrorKind, Image, ImageOptions, ImagePaths, ImageRequest, Init, LoadOptions, Loading,
    Mask, Network, Part, Picture, Residency, Tiling,
};
use tenure_conformance::Temporary;
use tenure_conformance::checks::same_bits;
use tenure_conformance::paint::{draw, fixture, load, model, options, request};

/// The mean of each square of 8 by 8 pixels.
fn reduced(picture: &Picture) -> Vec<f64> {
    let (width, height) = (picture.width() / 8, picture.height() / 8);
    let mut means = vec![0.0; width * height * 3];
    for (at, x) in picture.rgb().iter().enumerate() {
        let (pixel, channel) = (at / 3, at % 3);
        let (column, row) = (pixel % picture.width() / 8, pixel / picture.width() / 8);
        means[(row * width + column) * 3 + channel] += f64::from(*x) / 64.0;
    }
    means
}

#[test]
fn previews_need_no_autoencoder_and_change_nothing() {
    let engine = Engine::auto().expect("cpu");
    for (residency, prompt, seed) in
        [(Residency::Keep, "a red circle", 1), (Residency::ByPhase, "a blue circle on a white background", 2)]
    {
        let model = load(&engine, &ImageOptions { residency, ..options(128, 96) });
        let held = engine.report();
        let mut session = model.session();
        let seeds = vec![seed, seed + 10];
        let wanted = || ImageRequest { seeds: seeds.clone(), ..request(prompt, (128, 96), 8) };
        let mut drawing = session.draw(ImageRequest { preview_every: Some(2), ..wanted() }).expect("can be met");
        let mut previews = Vec::new();
        while let Some(done) = drawing.next(Deadline::after(Duration::from_secs(600))).expect("draws") {
            assert_eq!(done.previews.len(), if [2, 4, 6].contains(&done.step) && done.steps == 8 { 2 } else { 0 });
            previews.push(done.previews);
        }
        let drawn = drawing.finish().expect("done");
        previews.retain(|of_step| !of_step.is_empty());
        let last = previews.last().expect("there were some");
        for (preview, picture) in last.iter().zip(&drawn.pictures) {
            assert_eq!((preview.width(), preview.height()), (16, 12));
            let want = reduced(picture);
            let spread = preview.rgb().iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).abs());
            let mean = spread.sum::<f64>() / want.len() as f64;
            assert!(mean < 16.0, "{prompt}: {mean} of 255");
        }
        let without = draw(&mut session, wanted()).expect("draws");
        assert!(same_bits(&without.latents, &drawn.latents) && without.pictures == drawn.pictures);
        let now = engine.report();
        assert_eq!((now.allocated + now.reserved, now.peak), (held.allocated + held.reserved, held.peak));
    }
}

#[test]
fn loading_by_phase_is_told() {
    let engine = Engine::auto().expect("cpu");
    for residency in [Residency::Keep, Residency::ByPhase] {
        let model = load(&engine, &ImageOptions { residency, ..options(64, 64) });
        let told: Arc<Mutex<BTreeMap<String, (u64, u64)>>> = Arc::default();
        let into = told.clone();
        let loading = Loading::new(move |network, done, total| {
            assert!(done <= total);
            let mut told = into.lock().expect("nobody panics");
            let most = told.entry(network.to_string()).or_insert((0, total.get()));
            most.0 = most.0.max(done.get());
        });
        let wanted = ImageRequest { loading: Some(loading), ..request("a red circle", (64, 64), 2) };
        draw(&mut model.session(), wanted).expect("draws");
        let told = told.lock().expect("nobody panics");
        let names: Vec<&str> = told.keys().map(String::as_str).collect();
        let [text, denoiser, decoder] =
            [Network::Text(Part::ClipL), Network::Denoiser, Network::Decoder(Part::Vae)].map(|n| n.to_string());
        match residency {
            Residency::ByPhase => {
                let mut want = [&*text, &*denoiser, &*decoder];
                want.sort_unstable();
                assert_eq!(names, want);
                assert!(told.values().all(|(most, total)| most == total && *total > 0), "{told:?}");
            }
            Residency::Keep | Residency::Auto => assert!(names.is_empty(), "{names:?}"),
        }
    }
}

#[test]
fn long_prompts_are_drawn_in_every_residency() {
    let engine = Engine::auto().expect("cpu");
    let long = "a red circle, ".repeat(170);
    let chunks = Image::chunks(&model(), &long).expect("a prompt");
    assert!(chunks > 6, "{chunks}");
    assert_eq!(Image::chunks(&model(), "").expect("a prompt"), 1);
    assert!(Image::chunks(&model(), &"word ".repeat(5000)).is_err());
    let wanted = || ImageRequest { negative: "a blue square".to_owned(), ..request(&long, (64, 64), 2) };
    let mut first: Option<Drawn> = None;
    for (residency, prompt_chunks) in [(Residency::Keep, 4), (Residency::ByPhase, 4), (Residency::ByPhase, chunks)] {
        let model = load(&engine, &ImageOptions { residency, prompt_chunks, ..options(64, 64) });
        let held = engine.report();
        let mut session = model.session();
        for _ in 0..if residency == Residency::Keep { 1 } else { 2 } {
            let drawn = draw(&mut session, wanted()).unwrap_or_else(|error| panic!("{residency:?}: {error}"));
            let first = first.get_or_insert_with(|| drawn.clone());
            assert!(same_bits(&first.latents, &drawn.latents), "{residency:?} {prompt_chunks}");
            draw(&mut session, request("a red circle", (64, 64), 1)).expect("draws");
        }
        let now = engine.report();
        assert_eq!((now.allocated + now.reserved, now.peak), (held.allocated + held.reserved, held.peak));
    }
    // Where the denoiser takes the most of all there is room for what was planned, and the refusal says how much that is.
    let narrow = |prompt_chunks| ImageOptions {
        residency: Residency::ByPhase,
        tiling: Tiling::Tiles(128),
        from_images: false,
        prompt_chunks,
        ..options(512, 512)
    };
    let longest =
        ImageRequest { prompt: "BREAK ".repeat(63), guidance: Some(Guidance::OFF), ..request("", (512, 512), 1) };
    let model = load(&engine, &narrow(1));
    let refused = draw(&mut model.session(), longest.clone()).expect_err("there is no room");
    assert_eq!(refused.class(), "ImageTooLarge", "{refused}");
    drop(model);
    draw(&mut load(&engine, &narrow(64)).session(), longest).expect("there is room");
    for prompt_chunks in [0, 65, usize::MAX] {
        let options = ImageOptions { prompt_chunks, ..options(64, 64) };
        let error = engine.plan::<Image>(&tenure_conformance::paint::model(), &options).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::BadParameter, "{error}");
    }
}

#[test]
fn hostile_requests_are_refused_or_drawn() {
    let engine = Engine::auto().expect("cpu");
    let model = load(&engine, &options(64, 64));
    let held = engine.report();
    let mut session = model.session();
    let good = || request("a red circle", (64, 64), 1);
    let guided = |guidance: Guidance| ImageRequest { guidance: Some(guidance), ..good() };
    let picture = || Picture::new(64, 64, vec![128; 64 * 64 * 3]).expect("sound");
    let init = |strength| ImageRequest { init: Some(Init { picture: picture(), strength, mask: None }), ..good() };
    let latents = |x: f32| ImageRequest { noise_latents: Some(vec![x; 4 * 8 * 8]), ..good() };
    let refused: [(ImageRequest, ErrorKind); 28] = [
        (ImageRequest { size: Some((0, 0)), ..good() }, ErrorKind::BadParameter),
        (ImageRequest { size: Some((100, 100)), ..good() }, ErrorKind::BadParameter),
        (ImageRequest { size: Some((usize::MAX, usize::MAX)), ..good() }, ErrorKind::BadParameter),
        (ImageRequest { size: Some((usize::MAX - 7, 64)), ..good() }, ErrorKind::BadParameter),
        (ImageRequest { size: Some((1 << 31, 1 << 31)), ..good() }, ErrorKind::BadParameter),
        // The largest there is, many times: refused before anything of that size is allocated.
        (ImageRequest { size: Some((16384, 16384)), seeds: vec![0; 256], ..good() }, ErrorKind::BadParameter),
        (ImageRequest { seeds: vec![0; 257], ..good() }, ErrorKind::BadParameter),
        (ImageRequest { seeds: Vec::new(), ..good() }, ErrorKind::BadParameter),
        (ImageRequest { steps: Some(0), ..good() }, ErrorKind::BadParameter),
        (ImageRequest { steps: Some(usize::MAX), ..good() }, ErrorKind::BadParameter),
        (ImageRequest { preview_every: Some(0), ..good() }, ErrorKind::BadParameter),
        (guided(Guidance::of(f32::NAN)), ErrorKind::BadParameter),
        (guided(Guidance::of(f32::INFINITY)), ErrorKind::BadParameter),
        (guided(Guidance::of(1e30)), ErrorKind::BadParameter),
        (guided(Guidance { rescale: f32::NAN, ..Guidance::of(5.0) }), ErrorKind::BadParameter),
        (guided(Guidance { rescale: 2.0, ..Guidance::of(5.0) }), ErrorKind::BadParameter),
        (guided(Guidance { interval: (f64::NAN, 1.0), ..Guidance::of(5.0) }), ErrorKind::BadParameter),
        (init(0.0), ErrorKind::BadParameter),
        (init(1.5), ErrorKind::BadParameter),
        (init(-1.0), ErrorKind::BadParameter),
        (init(f64::NAN), ErrorKind::BadParameter),
        (init(f64::INFINITY), ErrorKind::BadParameter),
        (ImageRequest { sigmas: Some(SigmaRule::Sigmas(vec![f32::NAN, 1.0])), ..good() }, ErrorKind::BadParameter),
        (ImageRequest { sigmas: Some(SigmaRule::Sigmas(Vec::new())), ..good() }, ErrorKind::BadParameter),
        (ImageRequest { prompt: "word ".repeat(5000), ..good() }, ErrorKind::BadParameter),
        (ImageRequest { prompt: "(".repeat(100_000), ..good() }, ErrorKind::BadParameter),
        (ImageRequest { prompt: "x".repeat(8 << 20), ..good() }, ErrorKind::BadParameter),
        (latents(f32::NAN), ErrorKind::NonFinite),
    ];
    for (at, (request, kind)) in refused.into_iter().enumerate() {
        let error = draw(&mut session, request).err().unwrap_or_else(|| panic!("request {at} was drawn"));
        assert_eq!(error.kind(), kind, "request {at}: {error}");
    }
    // Guidance and noise beyond all measure give pixels, or the answer that these are none.
    for request in [guided(Guidance::of(1e3)), latents(1e30), latents(1e38)] {
        if let Err(error) = draw(&mut session, request) {
            assert_eq!(error.kind(), ErrorKind::NonFinite, "{error}");
        }
    }
    // These are text, or nothing at all.
    for prompt in
        ["", " ", "\0", "\n\n", "(a:b)", "((", "))", "(x:1e99)", "(x:nan)", "(:)", "[[[]", "<lora:../../x:1>", "🔴"]
    {
        let drawn = draw(&mut session, ImageRequest { negative: prompt.to_owned(), ..request(prompt, (64, 64), 1) });
        drawn.unwrap_or_else(|error| panic!("{prompt:?}: {error}"));
    }
    for value in [f32::NAN, f32::INFINITY, -0.1] {
        assert!(Mask::new(1, 1, vec![value]).is_err());
    }
    let mask = || Mask::new(8, 8, (0..64).map(|i| f32::from(u8::from(i == 27))).collect()).expect("sound");
    assert!(mask().grown(usize::MAX).values().iter().all(|&x| x == 1.0));
    for deviation in [f32::NAN, -1.0, 0.0] {
        assert_eq!(mask().blurred(deviation), mask());
    }
    assert!(mask().blurred(f32::INFINITY).values().iter().all(|x| (0.0..=1.0).contains(x)));
    // Nothing of all this is left.
    let now = engine.report();
    assert_eq!((now.allocated + now.reserved, now.peak), (held.allocated + held.reserved, held.peak));
    let again = draw(&mut session, good()).expect("draws");
    let fresh = draw(&mut load(&engine, &options(64, 64)).session(), good()).expect("draws");
    assert!(same_bits(&again.latents, &fresh.latents));
}

/// A model's file, cut off anywhere, is refused when it is opened.
#[test]
fn files_cut_off_are_refused() {
    let whole = std::fs::read(fixture("paint.safetensors")).expect("a fixture");
    let len = whole.len();
    for end in [0, 1, 7, 8, 9, 100, 5_000, len / 2, len - 1] {
        let cut = Temporary::new("cut.safetensors", &whole[..end]).expect("writable");
        let error = Image::open(&ImagePaths::new(cut.path())).expect_err("must be refused");
        assert_eq!(error.kind(), ErrorKind::InvalidFile, "{end} bytes: {error}");
    }
}

/// What shrinks after it was planned is an error of the load, and nothing is left of it.
#[test]
fn a_file_that_shrinks_before_its_phase_is_an_error() {
    let engine = Engine::auto().expect("cpu");
    let whole = std::fs::read(fixture("paint.safetensors")).expect("a fixture");
    let file = Temporary::new("shrinks.safetensors", &whole).expect("writable");
    let options =
        ImageOptions { residency: Residency::ByPhase, access: tenure::WeightAccess::Staged, ..options(64, 64) };
    let paths = ImagePaths::new(file.path());
    let model = engine.load_image_with(&paths, &options, &LoadOptions::default()).expect("fits");
    let held = engine.report();
    let mut session = model.session();
    let first = draw(&mut session, request("a red circle", (64, 64), 1)).expect("draws");
    std::fs::write(file.path(), &whole[..whole.len() / 3]).expect("writable");
    let error = draw(&mut session, request("a red circle", (64, 64), 1)).expect_err("it is gone");
    assert!([ErrorKind::InvalidFile, ErrorKind::Io].contains(&error.kind()), "{error}");
    let now = engine.report();
    assert_eq!(now.allocated + now.reserved, held.allocated + held.reserved);
    assert!(first.pictures.len() == 1);
}
