//! Arguments and answers that the binaries have in common.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, CommandFactory, Parser, ValueEnum};
use serde_json::{Value, json};
use tenure::{
    ByteSize, Cancel, Cpu, CpuOptions, Device, Engine, KvType, LoadOptions, LoadPlan, Mirostat, ModelHandle, Offload,
    SamplerParams, Stop, Text, TextOptions, Vulkan, WeightAccess, WeightStore,
};

use crate::device::{DeviceArg, OffloadArg, list_devices};
use crate::fetch::FetchError;

/// Why a binary ended early.
#[derive(Debug)]
pub enum Refusal {
    /// It could not do what it was asked.
    Refused {
        /// The class of the error.
        kind: String,
        /// What a person reads.
        message: String,
    },
    /// Whoever read its output has seen enough, such as `head`.
    ReaderGone,
}

impl Refusal {
    /// A refusal of the binary's own.
    pub fn new(kind: &str, message: impl ToString) -> Self {
        Refusal::Refused { kind: kind.to_owned(), message: message.to_string() }
    }
}

impl From<tenure::Error> for Refusal {
    fn from(error: tenure::Error) -> Self {
        Refusal::Refused { kind: error.class(), message: error.to_string() }
    }
}

impl From<tenure::WeightsError> for Refusal {
    fn from(error: tenure::WeightsError) -> Self {
        tenure::Error::from(error).into()
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Refusal::ReaderGone,
            _ => Refusal::new("Io", error),
        }
    }
}

/// Begins a binary with its arguments. Refused ones end it with code 2, and with the error as JSON where `--json` is
/// among them. `--list-devices` is answered here, whatever else is missing.
pub fn parsed<A: Parser + CommandFactory>(then: impl FnOnce(A) -> ExitCode) -> ExitCode {
    let knows = |name| A::command().get_arguments().any(|argument| argument.get_long() == Some(name));
    if given("--list-devices") && knows("list-devices") {
        let json = given("--json") && knows("json");
        return run(json, || list_devices(json).map(Some));
    }
    let error = match A::try_parse_from(arguments()) {
        Ok(arguments) => return then(arguments),
        Err(error) => error,
    };
    let printed = error.print();
    if !error.use_stderr() {
        // The help or the version, which was asked for.
        return match printed.map_err(Refusal::from) {
            Ok(()) | Err(Refusal::ReaderGone) => ExitCode::SUCCESS,
            Err(Refusal::Refused { .. }) => ExitCode::from(2),
        };
    }
    if given("--json") {
        // What follows the first empty line is how to call the binary.
        let text = error.to_string();
        let message = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ").trim_end();
        tell("BadParameter", message);
    }
    ExitCode::from(2)
}

/// This program's arguments. `-ngl`, which people write with one dash, is no cluster of short flags.
fn arguments() -> impl Iterator<Item = OsString> {
    let mut flags = true;
    std::env::args_os().map(move |argument| {
        flags &= argument != "--";
        if flags && argument == "-ngl" { "--ngl".into() } else { argument }
    })
}

/// Whether a flag is among the arguments.
fn given(flag: &str) -> bool {
    let arguments = std::env::args_os().skip(1);
    arguments.take_while(|argument| argument != "--").any(|argument| argument == OsStr::new(flag))
}

/// Runs a binary: what it returns goes to stdout (as JSON if asked), a refusal ends it with code 2.
pub fn run(json: bool, body: impl FnOnce() -> Result<Option<Value>, Refusal>) -> ExitCode {
    let shown = body().and_then(|answer| match answer {
        Some(answer) if json => {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{answer}")?;
            Ok(out.flush()?)
        }
        Some(_) | None => Ok(()),
    });
    match shown {
        Ok(()) | Err(Refusal::ReaderGone) => ExitCode::SUCCESS,
        Err(Refusal::Refused { kind, message }) => {
            note(format_args!("error: {message}\n"));
            if json {
                tell(&kind, &message);
            }
            ExitCode::from(2)
        }
    }
}

/// Refuses the first option that was given and means nothing for a kind of model.
///
/// # Errors
/// For that option.
pub fn refuse_alien(given: &[(&str, bool)], model: &str) -> Result<(), Refusal> {
    match given.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(Refusal::new("BadParameter", format!("{name} means nothing for {model}"))),
        None => Ok(()),
    }
}

/// Writes to stderr. That nobody reads it ends nothing: the answer is on stdout.
pub fn note(text: fmt::Arguments<'_>) {
    let _: std::io::Result<()> = std::io::stderr().lock().write_fmt(text);
}

/// An error as JSON on stdout. If it cannot be written, the exit code tells all the same.
fn tell(kind: &str, message: &str) {
    let mut out = std::io::stdout().lock();
    let error = json!({"error": {"kind": kind, "message": message}});
    let _: std::io::Result<()> = writeln!(out, "{error}").and_then(|()| out.flush());
}

/// Which model, and where.
#[derive(Args, Clone)]
pub struct ModelArgs {
    /// A GGUF file, or `ORG/NAME:FILE` in the Hugging Face cache. Without it: a small model, fetched once.
    #[arg(short = 'm', long = "model")]
    pub model: Option<String>,
    /// Positions of one sequence [default: what the model was trained for, at most 4096].
    #[arg(short = 'c', long = "ctx")]
    pub context: Option<usize>,
    /// Where it is computed: `cpu`, `vulkan` (the best GPU), `vulkan:0` (by number), `vulkan:NAME` (by part of its name),
    /// or `auto` (a discrete GPU if there is one, or else the processor).
    #[arg(long, default_value = "cpu")]
    pub device: DeviceArg,
    /// Layers that the GPU computes, the last ones and the head: a number, `all`, or `auto` for as many as fit into its
    /// memory; the processor computes the others. Also `-ngl`.
    #[arg(long, alias = "n-gpu-layers", alias = "gpu-layers", default_value = "all")]
    pub ngl: OffloadArg,
    /// Show the GPUs that can be used, and end.
    #[arg(long)]
    pub list_devices: bool,
    /// Threads that compute [default: physical cores].
    #[arg(short = 't', long)]
    pub threads: Option<usize>,
    /// Element type of the KV cache.
    #[arg(long, value_enum, default_value = "f16")]
    pub kv: KvArg,
    /// Tokens of one step of a prompt.
    #[arg(long, default_value_t = TextOptions::default().batch)]
    pub batch: usize,
    /// Bytes the model may take of the device [default: its memory]; K, M, G are binary.
    #[arg(long, value_parser = bytes)]
    pub budget: Option<ByteSize>,
    /// Read all weights instead of mapping those that need no repacking.
    #[arg(long)]
    pub no_mmap: bool,
    /// Check what every layer gives, and name the first that gives an infinity or no number.
    #[arg(long)]
    pub check_activations: bool,
}

/// Element types of the KV cache.
#[derive(Clone, Copy, ValueEnum)]
#[allow(missing_docs)]
#[value(rename_all = "snake_case")]
pub enum KvArg {
    #[value(name = "f16")]
    F16,
    #[value(name = "f32")]
    F32,
    #[value(name = "q8_0")]
    Q8_0,
}

impl ModelArgs {
    /// The model's file, fetched if none was named.
    ///
    /// # Errors
    /// When it is not there and cannot be fetched.
    pub fn path(&self, cancel: &Cancel) -> Result<PathBuf, Refusal> {
        match &self.model {
            Some(name) => crate::hub::resolve(name).map_err(|error| Refusal::new("NotFound", error)),
            None => crate::fetch::default_model(cancel).map_err(|error| match error {
                FetchError::Cancelled => Refusal::new("Cancelled", error),
                FetchError::Failed(_) => Refusal::new("Fetch", error),
            }),
        }
    }

    /// The options these arguments stand for.
    pub fn options(&self, sequences: usize, logit_rows: usize) -> TextOptions {
        TextOptions {
            context: self.context,
            sequences,
            kv: match self.kv {
                KvArg::F16 => KvType::F16,
                KvArg::F32 => KvType::F32,
                KvArg::Q8_0 => KvType::Q8_0,
            },
            batch: self.batch,
            logit_rows,
            offload: self.ngl.0,
            access: access(self.no_mmap),
            check_activations: self.check_activations,
        }
    }

    /// An engine as these arguments want it.
    ///
    /// # Errors
    /// When threads cannot be started, or there is no such device.
    pub fn engine(&self) -> Result<Engine, Refusal> {
        Ok(match self.vulkan()? {
            None => match self.ngl.0 {
                Offload::Layers(layers) if layers > 0 => {
                    let why = format!("-ngl {layers} is for a GPU, and none is used: name one, as --device vulkan");
                    return Err(Refusal::new("BadParameter", why));
                }
                Offload::All | Offload::Auto | Offload::Layers(_) => {
                    Engine::cpu(CpuOptions { budget: self.budget, ..self.cpu() })?
                }
            },
            Some(vulkan) => {
                let budget = vulkan.budget();
                let engine = Engine::on(Device::new(Arc::new(vulkan), budget));
                match self.ngl.0 {
                    Offload::All => engine,
                    Offload::Layers(_) | Offload::Auto => engine.with_host(Engine::cpu(self.cpu())?.device().clone()),
                }
            }
        })
    }

    fn cpu(&self) -> CpuOptions {
        CpuOptions { threads: self.threads, ..CpuOptions::default() }
    }

    /// The GPU these arguments mean, if they mean one.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn vulkan(&self) -> Result<Option<Vulkan>, Refusal> {
        self.device.open(self.budget)
    }

    /// Whether these arguments mean the processor.
    pub fn is_cpu(&self) -> bool {
        self.device.resolve().is_none()
    }

    /// Threads these arguments mean.
    ///
    /// # Errors
    /// When the processor cannot be used.
    pub fn threads(&self) -> Result<usize, Refusal> {
        Ok(Cpu::new(&self.cpu()).map_err(tenure::Error::from)?.threads())
    }

    /// Plans.
    ///
    /// # Errors
    /// When the file is no model, or an option is out of bounds.
    pub fn plan(&self, engine: &Engine, options: &TextOptions, cancel: &Cancel) -> Result<LoadPlan<Text>, Refusal> {
        let store = Arc::new(WeightStore::open(self.path(cancel)?)?);
        Ok(engine.plan(&store, options)?)
    }

    /// Plans and loads, with a progress bar on stderr if that is a terminal.
    ///
    /// # Errors
    /// When it does not fit, or loading fails.
    pub fn load(
        &self,
        engine: &Engine,
        options: &TextOptions,
        cancel: &Cancel,
    ) -> Result<(ModelHandle<Text>, ByteSize), Refusal> {
        let plan = self.plan(engine, options, cancel)?;
        let planned = plan.bytes();
        if let Some(shared) = shared_out(engine, &plan) {
            note(format_args!("{shared}\n"));
        }
        if let Some(warning) = unused(&plan) {
            note(format_args!("{warning}\n"));
        }
        let mut load = LoadOptions { cancel: cancel.clone(), ..LoadOptions::default() };
        let bar = crate::progress::bytes("loading");
        let shown = bar.clone();
        load.progress = Some(Arc::new(move |done, total| {
            shown.set_length(total.get());
            shown.set_position(done.get());
        }));
        let reserved = engine.reserve(&plan, &Stop { deadline: load.deadline, cancel: cancel.clone() });
        let reservation = reserved.map_err(|error| {
            let hint = error.kind() == tenure::ErrorKind::OutOfMemory && !self.is_cpu() && self.ngl.0 == Offload::All;
            match Refusal::from(error) {
                Refusal::Refused { kind, message } if hint => {
                    Refusal::new(&kind, format!("{message}; -ngl auto has the processor compute what does not fit"))
                }
                refusal => refusal,
            }
        })?;
        let model = engine.load(plan, reservation, &load)?;
        bar.finish_and_clear();
        Ok((model, planned))
    }
}

/// How weights are reached, with `--no-mmap` or without.
pub fn access(no_mmap: bool) -> WeightAccess {
    if no_mmap { WeightAccess::Staged } else { WeightAccess::Mapped }
}

/// A warning of the tensors that a model does not use, if there are any.
pub fn unused(plan: &LoadPlan<Text>) -> Option<String> {
    let mut names = plan.unused_tensors().map(|spec| spec.name.escape_debug().to_string());
    let shown: Vec<String> = names.by_ref().take(3).collect();
    let more = names.count();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!shown.is_empty()).then(|| format!("warning: the model does not use {}{rest} of its file", shown.join(", ")))
}

/// Which device computes how many layers, where there are several to choose from.
pub fn shared_out(engine: &Engine, plan: &LoadPlan<Text>) -> Option<String> {
    let parts: Vec<String> =
        plan.layers().map(|(device, layers)| format!("{layers} on {}", device.backend().name())).collect();
    (parts.len() > 1 || engine.host().is_some()).then(|| format!("layers: {}", parts.join(", ")))
}

/// What the engine's memory is used for, as JSON.
pub fn memory(engine: &Engine, planned: ByteSize) -> Value {
    let reports = || std::iter::once(engine.report()).chain(engine.host().map(Device::report));
    json!({
        "planned_bytes": planned.get(),
        "allocated_bytes": reports().map(|report| report.allocated).sum::<ByteSize>().get(),
        "peak_bytes": reports().map(|report| report.peak).sum::<ByteSize>().get(),
    })
}

/// How tokens are chosen; the defaults are llama.cpp's.
#[derive(Args, Clone)]
#[allow(missing_docs)] // Each is the field of `SamplerParams` of that name.
pub struct SamplerArgs {
    /// 0: always the most likely token.
    #[arg(long, default_value_t = SamplerParams::default().temperature, allow_negative_numbers = true)]
    pub temp: f32,
    #[arg(long, default_value_t = SamplerParams::default().top_k, allow_negative_numbers = true)]
    pub top_k: i32,
    #[arg(long, default_value_t = SamplerParams::default().top_p, allow_negative_numbers = true)]
    pub top_p: f32,
    #[arg(long, default_value_t = SamplerParams::default().min_p, allow_negative_numbers = true)]
    pub min_p: f32,
    #[arg(long, default_value_t = SamplerParams::default().typical_p, allow_negative_numbers = true)]
    pub typical: f32,
    #[arg(long, default_value_t = SamplerParams::default().top_n_sigma, allow_negative_numbers = true)]
    pub top_n_sigma: f32,
    #[arg(long, default_value_t = SamplerParams::default().xtc_probability, allow_negative_numbers = true)]
    pub xtc_probability: f32,
    #[arg(long, default_value_t = SamplerParams::default().xtc_threshold, allow_negative_numbers = true)]
    pub xtc_threshold: f32,
    #[arg(long, default_value_t = SamplerParams::default().dynatemp_range, allow_negative_numbers = true)]
    pub dynatemp_range: f32,
    #[arg(long, default_value_t = SamplerParams::default().dynatemp_exponent, allow_negative_numbers = true)]
    pub dynatemp_exp: f32,
    #[arg(long, default_value_t = SamplerParams::default().penalty_last_n, allow_negative_numbers = true)]
    pub repeat_last_n: i32,
    #[arg(long, default_value_t = SamplerParams::default().penalty_repeat, allow_negative_numbers = true)]
    pub repeat_penalty: f32,
    #[arg(long, default_value_t = SamplerParams::default().penalty_freq, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    #[arg(long, default_value_t = SamplerParams::default().penalty_present, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    #[arg(long, default_value_t = SamplerParams::default().dry_multiplier, allow_negative_numbers = true)]
    pub dry_multiplier: f32,
    #[arg(long, default_value_t = SamplerParams::default().dry_base, allow_negative_numbers = true)]
    pub dry_base: f32,
    #[arg(long, default_value_t = SamplerParams::default().dry_allowed_length)]
    pub dry_allowed_length: u32,
    #[arg(long, default_value_t = SamplerParams::default().dry_penalty_last_n, allow_negative_numbers = true)]
    pub dry_penalty_last_n: i32,
    /// 0: off; 2: Mirostat 2.
    #[arg(long, default_value = "0", value_parser = ["0", "2"])]
    pub mirostat: String,
    /// Mirostat's target surprise.
    #[arg(long, default_value_t = SamplerParams::default().mirostat_tau, allow_negative_numbers = true)]
    pub mirostat_ent: f32,
    /// Mirostat's learning rate.
    #[arg(long, default_value_t = SamplerParams::default().mirostat_eta, allow_negative_numbers = true)]
    pub mirostat_lr: f32,
    /// TOKEN=BIAS, added to that token's logit; may be given several times.
    #[arg(long, value_parser = bias, allow_hyphen_values = true)]
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text [default: of the moment].
    #[arg(long)]
    pub seed: Option<u64>,
}

impl SamplerArgs {
    /// The parameters these arguments stand for.
    pub fn params(&self) -> SamplerParams {
        SamplerParams {
            seed: self.seed.unwrap_or_else(of_the_moment),
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical,
            top_n_sigma: self.top_n_sigma,
            xtc_probability: self.xtc_probability,
            xtc_threshold: self.xtc_threshold,
            dynatemp_range: self.dynatemp_range,
            dynatemp_exponent: self.dynatemp_exp,
            penalty_last_n: self.repeat_last_n,
            penalty_repeat: self.repeat_penalty,
            penalty_freq: self.frequency_penalty,
            penalty_present: self.presence_penalty,
            dry_multiplier: self.dry_multiplier,
            dry_base: self.dry_base,
            dry_allowed_length: self.dry_allowed_length,
            dry_penalty_last_n: self.dry_penalty_last_n,
            mirostat: if self.mirostat == "2" { Mirostat::V2 } else { Mirostat::Off },
            mirostat_tau: self.mirostat_ent,
            mirostat_eta: self.mirostat_lr,
            logit_bias: self.logit_bias.clone(),
            ..SamplerParams::default()
        }
    }
}

fn of_the_moment() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let (token, bias) = text.split_once('=').ok_or("expected TOKEN=BIAS")?;
    let token = token.parse().map_err(|error| format!("{token}: {error}"))?;
    Ok((token, bias.parse().map_err(|error| format!("{bias}: {error}"))?))
}

pub(crate) fn bytes(text: &str) -> Result<ByteSize, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{text}: {error}"))?;
    number.checked_mul(1 << shift).map(ByteSize::new).ok_or_else(|| format!("{text} is too large"))
}
