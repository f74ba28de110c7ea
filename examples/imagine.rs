//! Draws pictures.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tenure::diffusion::{Guidance, Method, NoiseKind, SigmaRule, SkipLayers, Spacing};
use tenure::{Cancel, Deadline, Drawn, Image, ImageRequest, Init, Loading, Mask, Phase, Picture, Warning, WeightStore};
use tenure_examples::cli::{Refusal, memory, note, parsed, run};
use tenure_examples::image::{ImageArgs, ResidencyArg, networks};
use tenure_examples::{png, progress};

/// Draws pictures from a prompt, or changes one.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    model: ImageArgs,
    /// What is to be seen.
    #[arg(short = 'p', long, default_value = "a red circle", allow_hyphen_values = true)]
    prompt: String,
    /// What is not.
    #[arg(short = 'n', long, default_value = "", allow_hyphen_values = true)]
    negative: String,
    /// Steps [default: as the model wants, and so with all that follow].
    #[arg(long)]
    steps: Option<usize>,
    /// How strongly the prompt leads; 1: not beyond itself.
    #[arg(long, allow_negative_numbers = true)]
    cfg_scale: Option<f32>,
    /// Shares of the steps from and to which it leads more strongly, such as 0.2,0.8.
    #[arg(long, value_parser = interval)]
    cfg_interval: Option<(f64, f64)>,
    /// How much of the prompt's own deviation is given back, 0 to 1.
    #[arg(long, allow_negative_numbers = true)]
    cfg_rescale: Option<f32>,
    /// Blocks to leave out for skip-layer guidance (SD 3.5), such as 7,8,9.
    #[arg(long, value_delimiter = ',')]
    skip_layers: Option<Vec<usize>>,
    /// The sampler: euler, euler_a, heun, dpm++2m, dpm++2m_sde, dpm++sde, ddim, lcm, unipc.
    #[arg(long, value_parser = method)]
    sampler: Option<Method>,
    /// The sigmas: normal, karras, exponential, beta, sgm_uniform, simple, ays, ays_xl.
    #[arg(long, value_parser = rule)]
    schedule: Option<SigmaRule>,
    /// These sigmas, falling, the last of which ends the last step.
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["schedule", "steps"])]
    sigmas: Option<Vec<f32>>,
    /// Where the timesteps lie.
    #[arg(long, value_enum)]
    spacing: Option<SpacingArg>,
    /// The shift of a flow model's schedule.
    #[arg(long)]
    shift: Option<f64>,
    /// The first picture's seed; the others follow [default: of the moment].
    #[arg(long)]
    seed: Option<u64>,
    /// Whose random numbers a seed stands for.
    #[arg(long, value_enum, default_value = "cpu")]
    rng: RngArg,
    /// Pictures.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// A picture to begin with.
    #[arg(long)]
    init_img: Option<PathBuf>,
    /// How much of it is drawn anew, above 0 and up to 1.
    #[arg(long, default_value_t = 0.75, allow_negative_numbers = true, requires = "init_img")]
    strength: f64,
    /// Where it is drawn anew: a picture that is white there.
    #[arg(long, requires = "init_img")]
    mask: Option<PathBuf>,
    /// Blurs the mask by so many pixels, at most 1000.
    #[arg(long, default_value_t = 0.0, requires = "mask", value_parser = blur)]
    mask_blur: f32,
    /// Grows the mask by so many pixels.
    #[arg(long, default_value_t = 0, requires = "mask")]
    mask_grow: usize,
    /// Draws anew where the mask is black.
    #[arg(long, requires = "mask")]
    mask_invert: bool,
    /// The noise to begin with, in place of the seed's: `latents` of a safetensors file, `[batch, channels, height / 8,
    /// width / 8]` standard normal numbers.
    #[arg(long)]
    init_latents: Option<PathBuf>,
    /// Where the finished latents go, from which the pictures were decoded, as `latents` of a safetensors file.
    #[arg(long)]
    latents_out: Option<PathBuf>,
    /// Writes a preview after every so many steps, as OUT.preview.png: by --taesd, or else an eighth of the size.
    #[arg(long)]
    preview: Option<usize>,
    /// Where the picture goes; several have their number behind the name.
    #[arg(short = 'o', long, default_value = "out.png")]
    output: PathBuf,
    /// Seconds after which to give up.
    #[arg(long, default_value_t = 86_400)]
    timeout: u64,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum SpacingArg {
    Leading,
    Trailing,
    Linspace,
}

#[derive(Clone, Copy, ValueEnum)]
enum RngArg {
    /// torch on a CPU.
    Cpu,
    /// torch on a CUDA device.
    Cuda,
    /// Tenure's own.
    Philox,
}

fn main() -> ExitCode {
    parsed(|arguments: Arguments| run(arguments.json, || imagine(arguments).map(Some)))
}

fn imagine(mut arguments: Arguments) -> Result<Value, Refusal> {
    // One request uses each network once: to keep them would gain nothing.
    arguments.model.parts.residency.get_or_insert(ResidencyArg::Phase);
    let arguments = &arguments;
    let begun = Instant::now();
    let cancel = Cancel::new();
    tenure_examples::interrupt::cancel_on_interrupt(&cancel)?;
    check_outputs(arguments)?;
    let model = arguments.model.open()?;
    let engine = arguments.model.engine(&model)?;
    let preset = Image::preset(&model)?;
    let picture = arguments.init_img.as_deref().map(png::read).transpose()?;
    // A picture's own size, cut to what every family can draw.
    let cut = |side: usize| (side / 16 * 16).max(64);
    let of_picture = picture.as_ref().map(|picture| (cut(picture.width()), cut(picture.height())));
    let size = arguments.model.parts.size(Some(of_picture.unwrap_or((preset.width, preset.height))))?;

    let mut options = arguments.model.options(size, picture.is_some());
    let chunks = |prompt| Image::chunks(&model, prompt);
    options.prompt_chunks = chunks(&arguments.prompt)?.max(chunks(&arguments.negative)?).max(options.prompt_chunks);
    let plan = engine.plan::<Image>(&model, &options)?;
    // Only now is the size known to be possible.
    let size = plan.size();
    let init = picture.map(|picture| init(arguments, picture, size)).transpose()?;
    let (planned, networks) = (plan.bytes(), networks(&plan));
    let handle = ImageArgs::load(&engine, plan, &cancel)?;
    let load = begun.elapsed();

    let mut request = request(arguments, init, size, &preset.guidance, cancel)?;
    if let Some(path) = &arguments.init_latents {
        let shape = [request.seeds.len(), model.config().latent_channels, size.1 / 8, size.0 / 8];
        request.noise_latents = Some(read_latents(path, shape)?);
    }
    let (seeds, negative) = (request.seeds.clone(), request.negative.clone());
    let deadline = Deadline::after(Duration::from_secs(arguments.timeout));
    let mut session = handle.session();
    let mut drawing = session.draw(request)?;
    let warn = |warnings: &[Warning]| warnings.iter().for_each(|it| note(format_args!("warning: {}\n", told(it))));
    warn(drawing.warnings());
    let warned = drawing.warnings().len();
    let bar = progress::steps("drawing");
    while let Some(done) = drawing.next(deadline)? {
        if done.phase == Phase::Denoise {
            bar.set_length(done.steps as u64);
            bar.set_position(done.step as u64);
        }
        for (i, preview) in done.previews.iter().enumerate() {
            let path = numbered(&arguments.output.with_extension("preview.png"), i, done.previews.len());
            png::write(&path, preview, "")?;
        }
    }
    bar.finish_and_clear();
    let drawn = drawing.finish()?;
    // Of prompts, which were not read before.
    warn(drawn.warnings.get(warned..).unwrap_or_default());

    let mut files = Vec::new();
    for (i, (picture, seed)) in drawn.pictures.iter().zip(&seeds).enumerate() {
        let path = numbered(&arguments.output, i, drawn.pictures.len());
        png::write(&path, picture, &parameters(arguments, &drawn, picture, &negative, *seed))?;
        files.push(path.display().to_string());
    }
    if let Some(path) = &arguments.latents_out {
        write_latents(path, &drawn)?;
    }
    let took = |wanted| {
        let spent = drawn.timings.iter().find(|(phase, _)| *phase == wanted);
        let before = if wanted == Phase::Load { load } else { Duration::ZERO };
        (before + spent.map_or(Duration::ZERO, |(_, spent)| *spent)).as_secs_f64() * 1e3
    };
    if !arguments.json {
        let mut out = std::io::stdout().lock();
        for file in &files {
            writeln!(out, "{file}")?;
        }
    }
    note(format_args!(
        "loaded in {:.0} ms; prompt {:.0} ms, steps {:.0} ms, decoding {:.0} ms\n",
        took(Phase::Load),
        took(Phase::Prompt),
        took(Phase::Denoise),
        took(Phase::Decode),
    ));
    let (mut memory, mut timings) = (memory(&engine, planned), json!({}));
    for &(phase, peak) in &drawn.memory {
        timings[format!("{}_ms", name(phase))] = json!(took(phase));
        // Networks are loaded in the phases they are for.
        if phase != Phase::Load {
            memory["phases"][name(phase)] = json!({"peak_bytes": peak.get()});
        }
    }
    Ok(json!({
        "files": files,
        "seeds": seeds,
        "size": size,
        "steps": drawn.steps.len(),
        "sigmas": drawn.steps.iter().map(|step| step.sigma).collect::<Vec<_>>(),
        "sampler": drawn.method,
        "cfg_scale": drawn.guidance,
        "warnings": drawn.warnings.iter().map(told).collect::<Vec<_>>(),
        "timings": timings,
        "memory": memory,
        "networks": networks,
    }))
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Load => "load",
        Phase::Prompt => "prompt",
        Phase::Image => "image",
        Phase::Denoise => "denoise",
        Phase::Decode => "decode",
    }
}

/// What the arguments ask for.
fn request(
    arguments: &Arguments,
    init: Option<Init>,
    size: (usize, usize),
    usual: &Guidance,
    cancel: Cancel,
) -> Result<ImageRequest, Refusal> {
    let mut guidance = Guidance { scale: arguments.cfg_scale.unwrap_or(usual.scale), ..usual.clone() };
    guidance.rescale = arguments.cfg_rescale.unwrap_or(guidance.rescale);
    guidance.interval = arguments.cfg_interval.unwrap_or(guidance.interval);
    if let Some(layers) = &arguments.skip_layers {
        guidance.skip_layers = Some(SkipLayers { layers: layers.clone(), ..SkipLayers::sd35_medium() });
    }
    let seed = arguments.seed.unwrap_or_else(|| {
        let moment = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        moment.map_or(0, |moment| u64::from(moment.subsec_nanos()) ^ moment.as_secs() << 8) & u64::from(u32::MAX)
    });
    let batch = match arguments.batch {
        batch @ 1..=ImageRequest::MOST_IMAGES => batch as u64,
        other => {
            let message = format!("a batch of {other} pictures; 1 to {} are possible", ImageRequest::MOST_IMAGES);
            return Err(Refusal::new("BadParameter", message));
        }
    };
    Ok(ImageRequest {
        negative: arguments.negative.clone(),
        size: Some(size),
        steps: arguments.steps,
        guidance: Some(guidance),
        method: arguments.sampler,
        spacing: arguments.spacing.map(|spacing| match spacing {
            SpacingArg::Leading => Spacing::Leading,
            SpacingArg::Trailing => Spacing::Trailing,
            SpacingArg::Linspace => Spacing::Linspace,
        }),
        sigmas: arguments.sigmas.clone().map(SigmaRule::Sigmas).or(arguments.schedule.clone()),
        shift: arguments.shift,
        seeds: (0..batch).map(|i| seed.wrapping_add(i)).collect(),
        noise: match arguments.rng {
            RngArg::Cpu => NoiseKind::TorchCpu,
            RngArg::Cuda => NoiseKind::TorchCuda { resident_threads: u32::MAX },
            RngArg::Philox => NoiseKind::Philox,
        },
        init,
        preview_every: arguments.preview,
        loading: Some(shown_loading()),
        cancel,
        ..ImageRequest::new(arguments.prompt.clone())
    })
}

/// A bar for each network that is brought in while pictures are drawn.
fn shown_loading() -> Loading {
    let bar = progress::bytes("loading");
    Loading::new(move |network, done, total| {
        if done == total {
            return bar.finish_and_clear();
        }
        if bar.is_finished() {
            bar.reset();
        }
        bar.set_message(format!("loading the {network}"));
        bar.set_length(total.get());
        bar.set_position(done.get());
    })
}

/// The picture to begin with, brought to a size.
fn init(arguments: &Arguments, picture: Picture, (width, height): (usize, usize)) -> Result<Init, Refusal> {
    let own = (picture.width(), picture.height());
    let picture = png::fitted(picture, (width, height))?;
    let mask = arguments.mask.as_deref().map(|path| mask(arguments, path, own, (width, height))).transpose()?;
    Ok(Init { picture, strength: arguments.strength, mask })
}

/// The mask of a picture of that size of its own, brought to the size that is drawn.
fn mask(
    arguments: &Arguments,
    path: &Path,
    own: (usize, usize),
    (width, height): (usize, usize),
) -> Result<Mask, Refusal> {
    let mut mask = png::read_mask(path)?;
    if (mask.width(), mask.height()) == own {
        mask = png::fitted_mask(mask, (width, height))?;
    }
    // Before it is grown, which takes its time for a large one.
    if (mask.width(), mask.height()) != (width, height) {
        let (own_width, own_height) = (mask.width(), mask.height());
        let message = format!("the mask has {own_width}x{own_height} pixels, the picture {width}x{height}");
        return Err(Refusal::new("BadParameter", message));
    }
    if arguments.mask_invert {
        mask = mask.inverted();
    }
    if arguments.mask_grow > 0 {
        mask = mask.grown(arguments.mask_grow);
    }
    Ok(mask.blurred(arguments.mask_blur))
}

/// What made a picture, as AUTOMATIC1111's web UI writes it.
fn parameters(arguments: &Arguments, drawn: &Drawn, picture: &Picture, negative: &str, seed: u64) -> String {
    let mut text = arguments.prompt.clone();
    if !negative.is_empty() {
        text += &format!("\nNegative prompt: {negative}");
    }
    text += &format!(
        "\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {seed}, Size: {}x{}",
        drawn.steps.len(),
        drawn.method,
        drawn.guidance,
        picture.width(),
        picture.height(),
    );
    if let Some(rule) = &arguments.schedule {
        text += &format!(", Schedule type: {}", rule.label());
    }
    if let Some(sigmas) = &arguments.sigmas {
        let sigmas: Vec<String> = sigmas.iter().map(f32::to_string).collect();
        text += &format!(", Sigmas: {}", sigmas.join(" "));
    }
    if let Some(rescale) = arguments.cfg_rescale {
        text += &format!(", CFG Rescale: {rescale}");
    }
    if let Some(rng) = arguments.rng.to_possible_value().filter(|rng| rng.get_name() != "cpu") {
        text += &format!(", RNG: {}", rng.get_name());
    }
    if arguments.init_img.is_some() {
        text += &format!(", Denoising strength: {}", arguments.strength);
    }
    if arguments.mask_blur > 0.0 {
        text += &format!(", Mask blur: {}", arguments.mask_blur);
    }
    let name = arguments.model.model.as_deref().and_then(|model| Path::new(model).file_stem());
    text += &format!(", Model: {}", name.map_or("paint".into(), |name| name.to_string_lossy()));
    text + concat!(", Version: Tenure ", env!("CARGO_PKG_VERSION"))
}

/// A warning for a person.
fn told(warning: &Warning) -> String {
    use tenure::diffusion::Advice;
    match warning {
        Warning::Setting(Advice::GuidanceTooStrong { scale, most }) => {
            format!("a guidance of {scale} burns this model's pictures; {most} is the most that makes sense")
        }
        Warning::Setting(Advice::GuidanceTooWeak { scale, least }) => {
            format!(
                "with a guidance of {scale} pictures hardly follow the prompt; {least} is the least that makes sense"
            )
        }
        Warning::Setting(Advice::TooFewSteps { steps, least }) => {
            format!("{steps} steps leave pictures unfinished; {least} are the least that make sense")
        }
        Warning::Setting(Advice::TooManySteps { steps, most }) => {
            format!("{steps} steps are more than this model wants; {most} are the most that make sense")
        }
        Warning::PromptCut { tokens } => format!("{tokens} tokens of the prompt found no room in T5's sequence"),
        Warning::NoT5 => "there is no T5 text encoder: long prompts are followed less".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Refuses places that nothing could be written to, before anything is drawn for them.
fn check_outputs(arguments: &Arguments) -> Result<(), Refusal> {
    let refuse = |path: &Path, what: &str| Err(Refusal::new("Io", format!("{}: {what}", path.display())));
    for path in [Some(&arguments.output), arguments.latents_out.as_ref()].into_iter().flatten() {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return refuse(path, "there is no such folder");
        }
        if path.is_dir() || path.file_name().is_none() {
            return refuse(path, "it is a folder");
        }
        if path.metadata().is_ok_and(|file| file.permissions().readonly()) {
            return refuse(path, "it cannot be written to");
        }
    }
    if !arguments.output.extension().is_some_and(|end| end.eq_ignore_ascii_case("png")) {
        return refuse(&arguments.output, "pictures are written as PNG; a name that ends in .png is needed");
    }
    match &arguments.latents_out {
        Some(latents) if *latents == arguments.output => refuse(latents, "it is also where the picture goes"),
        _ => Ok(()),
    }
}

/// `OUT.png`, or `OUT-2.png` for one of several.
fn numbered(path: &Path, i: usize, of: usize) -> PathBuf {
    if of == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let end = path.extension().map_or_else(String::new, |end| format!(".{}", end.to_string_lossy()));
    path.with_file_name(format!("{stem}-{}{end}", i + 1))
}

fn write_latents(path: &Path, drawn: &Drawn) -> Result<(), Refusal> {
    let images = drawn.pictures.len();
    let (width, height) = drawn.pictures.first().map_or((0, 0), |picture| (picture.width() / 8, picture.height() / 8));
    let bytes: Vec<u8> = drawn.latents.iter().flat_map(|x| x.to_le_bytes()).collect();
    let fail = |error: &dyn std::fmt::Display| Refusal::new("Io", format!("{}: {error}", path.display()));
    let shape = vec![images, drawn.channels, height, width];
    let view = TensorView::new(Dtype::F32, shape, &bytes).map_err(|error| fail(&error))?;
    safetensors::serialize_to_file([("latents", view)], None, path).map_err(|error| fail(&error))
}

/// Latents of a file, which must have that shape.
fn read_latents(path: &Path, shape: [usize; 4]) -> Result<Vec<f32>, Refusal> {
    let store = WeightStore::open(path)?;
    let bad = |what: String| Refusal::new("BadParameter", format!("{}: {what}", path.display()));
    let tensor = store.find("latents").ok_or_else(|| {
        Refusal::new("MissingTensor", format!("{}: there is no tensor called latents", path.display()))
    })?;
    let spec = tensor.spec();
    if spec.dtype != tenure::DType::F32 {
        return Err(bad(format!("latents are {}, F32 is wanted", spec.dtype)));
    }
    if spec.shape.dims() != shape {
        return Err(bad(format!("latents have the shape {}, {shape:?} is wanted", spec.shape)));
    }
    let mut bytes = vec![0; tensor.bytes().get() as usize];
    store.read_at(tensor, 0, &mut bytes)?;
    let latents: Vec<f32> = bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
    match latents.iter().find(|x| !x.is_finite()) {
        Some(x) => Err(bad(format!("{x} is among the latents"))),
        None => Ok(latents),
    }
}

fn blur(text: &str) -> Result<f32, String> {
    let pixels: f32 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=1000.0).contains(&pixels) { Ok(pixels) } else { Err("0 to 1000 pixels are possible".to_owned()) }
}

fn method(name: &str) -> Result<Method, String> {
    Method::named(name).ok_or_else(|| known(Method::NAMED.map(|(name, ..)| name)))
}

fn rule(name: &str) -> Result<SigmaRule, String> {
    SigmaRule::named(name).ok_or_else(|| known(SigmaRule::NAMED.map(|(name, ..)| name)))
}

fn interval(text: &str) -> Result<(f64, f64), String> {
    let (from, to) = text.split_once(',').ok_or("expected FROM,TO")?;
    let share = |text: &str| text.parse::<f64>().map_err(|error| format!("{text}: {error}"));
    Ok((share(from)?, share(to)?))
}

fn known<const N: usize>(names: [&str; N]) -> String {
    format!("known are {}", names.join(", "))
}
