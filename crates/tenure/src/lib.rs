//! Tenure: language and image models in one process under one memory budget.
//!
//! What it is: the facade over the workspace's crates. An [`Engine`] has a device and a budget; a plan says to the
//! byte what a model takes; a [`ModelHandle`] is a loaded model; a [`TextSession`] computes one sequence of a language
//! model, an [`ImageSession`] draws with an image model. What it is not: a server, or a downloader.
//!
//! Three types to know: [`Engine`], [`ModelHandle`], [`TextSession`] or [`ImageSession`].
//!
//! ```no_run
//! # fn main() -> Result<(), tenure::Error> {
//! let model = tenure::Engine::auto()?.load_text("model.gguf")?;
//! println!("{}", model.session()?.generate("Why is the sky blue?")?.text()?);
//! # Ok(())
//! # }
//! ```
//!
//! ```no_run
//! use std::time::Duration;
//! use tenure::{Deadline, Engine, ImageRequest, Init};
//!
//! # fn main() -> Result<(), tenure::Error> {
//! let model = Engine::auto()?.load_image("model.safetensors")?;
//! let mut session = model.session();
//! let mut drawing = session.draw(ImageRequest { seeds: vec![42], ..ImageRequest::new("a red circle") })?;
//! while let Some(done) = drawing.next(Deadline::after(Duration::from_secs(60)))? {
//!     println!("{:?} {} of {}", done.phase, done.step, done.steps);
//! }
//! let picture = drawing.finish()?.pictures.remove(0);
//! // The same again, changed.
//! let init = Some(Init { picture, strength: 0.6, mask: None });
//! let request = ImageRequest { init, ..ImageRequest::new("a blue circle") };
//! session.draw_all(request, Deadline::after(Duration::from_secs(600)))?;
//! # Ok(())
//! # }
//! ```
//!
//! The long path shows what is taken, and takes nothing else:
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//! use tenure::{Deadline, Engine, GenerateOptions, LoadOptions, Stop, Text, TextOptions, WeightStore};
//!
//! # fn main() -> Result<(), tenure::Error> {
//! let engine = Engine::auto()?;
//! let store = Arc::new(WeightStore::open("model.gguf")?);
//! let plan = engine.plan::<Text>(&store, &TextOptions { context: Some(8192), ..TextOptions::default() })?;
//! println!("{} needed, {} free", plan.bytes(), engine.report().free());
//! let reservation = engine.reserve(&plan, &Stop::by(Deadline::after(Duration::from_secs(5))))?;
//! let model = engine.load(plan, reservation, &LoadOptions::default())?;
//! let mut session = model.session()?;
//! let mut answer = session.generate_with("Why is the sky blue?", GenerateOptions::default())?;
//! while let Some(piece) = answer.next(Deadline::after(Duration::from_secs(10)))? {
//!     print!("{}", piece.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A model may be larger than a GPU's memory: as many of its last layers as fit are computed there, the rest here.
//!
//! ```no_run
//! use tenure::{CpuOptions, Engine, LoadOptions, Offload, TextOptions, VulkanOptions};
//!
//! # fn main() -> Result<(), tenure::Error> {
//! let engine = Engine::vulkan(VulkanOptions::default())?.with_host(Engine::cpu(CpuOptions::default())?.device().clone());
//! let options = TextOptions { offload: Offload::Auto, ..TextOptions::default() };
//! let model = engine.load_text_with("model.gguf", &options, &LoadOptions::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! Sessions of one model run on threads of their own and share its passes over the weights; an answer can be cancelled
//! from anywhere:
//!
//! ```no_run
//! use std::time::Duration;
//! use tenure::{Cancel, Deadline, Engine, ErrorKind, GenerateOptions, LoadOptions, TextOptions};
//!
//! # fn main() -> Result<(), tenure::Error> {
//! let options = TextOptions { sequences: 2, ..TextOptions::default() };
//! let model = Engine::auto()?.load_text_with("model.gguf", &options, &LoadOptions::default())?;
//! let cancel = Cancel::new();
//! std::thread::scope(|scope| {
//!     let answers = ["Why is the sky blue?", "Why is grass green?"].map(|question| {
//!         let options = GenerateOptions { cancel: cancel.clone(), ..GenerateOptions::default() };
//!         let model = &model;
//!         scope.spawn(move || {
//!             let mut session = model.session()?;
//!             let mut answer = session.generate_with(question, options)?;
//!             loop {
//!                 match answer.next(Deadline::after(Duration::from_secs(10))) {
//!                     Ok(Some(piece)) => print!("{}", piece.text),
//!                     Ok(None) => return Ok(()),
//!                     Err(error) if error.kind() == ErrorKind::Cancelled => return Ok(()),
//!                     Err(error) => return Err(error),
//!                 }
//!             }
//!         })
//!     });
//!     std::thread::sleep(Duration::from_secs(1));
//!     cancel.cancel();
//!     answers.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
//! })
//! # }
//! ```
#![forbid(unsafe_code)]

mod engine;
mod error;
mod family;
mod image;
mod text;
mod weights;

/// What the CPU backend has beside the backend itself.
pub mod cpu {
    pub use tenure_cpu::simd::Isa;
    pub use tenure_cpu::simd::bounds::{f32_peak, int8_peak, read_bandwidth};
}

/// What the Vulkan backend has beside the backend itself.
pub mod vulkan {
    pub use tenure_vulkan::{
        Caps, DeviceInfo, DeviceKind, DeviceSelector, Explanation, Features, KernelSet, ValidationLog, VulkanError,
        devices,
    };
}

pub use engine::{Engine, LoadOptions, LoadPlan, Reservation, Share};
pub use error::{Error, ErrorKind};
pub use family::{Family, ModelHandle, Released, StillInUse};
pub use image::{
    Drawing, Drawn, Image, ImageOptions, ImageRequest, ImageSession, Init, Loading, Mask, Network, NetworkMemory,
    Phase, Picture, Progress, Residency, Tiling, Warning,
};
pub use tenure_cpu::{Cpu, CpuOptions};
pub use tenure_device::{BudgetError, Cancel, Deadline, Device, Footprint, Holder, Report, SegmentKind, Stop, Wanted};
pub use tenure_graph::KvType;
pub use tenure_models::image::{ImageConfig, ImageFamily, ImageModel, ImagePaths, Part};
pub use tenure_models::{TextArchitecture, TextConfig};
pub use tenure_sampling::diffusion;
pub use tenure_sampling::{Mirostat, NonFinite, SamplerParams, Stage, TokenLogprob};
pub use tenure_tensor::{ByteSize, DType, Shape, TensorSpec};
pub use tenure_tokenizer::Emphasis;
pub use tenure_tokenizer::{ChatTemplate, EncodeOptions, Tokenizer};
pub use tenure_vulkan::{Vulkan, VulkanOptions};
pub use tenure_weights::{WeightStore, WeightsError};
pub use text::{
    Component, FinishReason, GenerateOptions, Generated, Generation, Message, Offload, Piece, Prompt, Text,
    TextOptions, TextSession,
};
pub use weights::WeightAccess;
