//! Images, step by step.

mod denoise;
mod start;

use std::cell::Cell;
use std::time::{Duration, Instant};

use tenure_device::{Deadline, Stop};
use tenure_graph::Grid;
use tenure_models::image::{DenoiserConfig, Part};
use tenure_sampling::diffusion::{
    Advice, DiffusionSampler, FinalSigma, FlowSchedule, FlowShift, Guidance, Method, Noise, Process, ScheduleStep,
};
use tenure_tensor::ByteSize;
use tenure_tokenizer::Prompt;

use crate::error::{Cause, Error};
use crate::image::autoencoder::Autoencoder;
use crate::image::bench::{Spent, Taken};
use crate::image::colours::Colours;
use crate::image::conditioning::Conditioning;
use crate::image::drawing::start::Start;
use crate::image::latents::{channels_last, to_picture};
use crate::image::load::{LoadedImage, check_size, in_bounds};
use crate::image::options::{ImageRequest, Init};
use crate::image::picture::{LATENT, Picture};
use crate::image::work::Work;

/// Images being drawn. It borrows its session; dropping it ends it.
pub struct Drawing<'s> {
    loaded: &'s LoadedImage,
    request: ImageRequest,
    /// In latents.
    width: usize,
    height: usize,
    sampler: DiffusionSampler,
    noise: Noise,
    guidance: Guidance,
    next: Next,
    prompt: Conditioning,
    negative: Conditioning,
    /// `[images, channels, height, width]`.
    latents: Vec<f32>,
    start: Option<Start>,
    /// Answers to the prompt, to the negative one, and to the prompt without some blocks.
    answers: [Vec<f32>; 3],
    /// How many answers are computed together.
    together: usize,
    pictures: Vec<Picture>,
    warnings: Vec<Warning>,
    timings: [(Phase, Duration); 5],
    operations: [(Phase, u64); 5],
    memory: [(Phase, ByteSize); 5],
    /// What the step in hand has spent.
    spent: Cell<Spent>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Prompts,
    Image,
    Step,
    Picture(usize),
    Nothing,
}

/// A part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Networks are brought into memory, where not all stay there.
    Load,
    /// Prompts are encoded; before that, the colours of latents are found where previews need them.
    Prompt,
    /// The image to begin with is encoded.
    Image,
    /// Noise is taken away.
    Denoise,
    /// Latents become pixels.
    Decode,
}

/// What has been done.
#[derive(Clone, Debug)]
pub struct Progress {
    /// In which part of the work.
    pub phase: Phase,
    /// Steps of it that are done.
    pub step: usize,
    /// Steps it has.
    pub steps: usize,
    /// What the images look like so far, if that was asked for.
    pub previews: Vec<Picture>,
}

/// What speaks against a request; images are drawn all the same.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// A setting that the family does not like.
    Setting(Advice),
    /// So many tokens of the prompt found no room in T5's sequence.
    PromptCut {
        /// How many.
        tokens: usize,
    },
    /// The model has no T5 encoder: long prompts are followed less.
    NoT5,
}

/// Images that were drawn.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// One for each seed.
    pub pictures: Vec<Picture>,
    /// What they were decoded from, as the denoiser has them: `[images, channels, height / 8, width / 8]`.
    pub latents: Vec<f32>,
    /// Channels of the latents.
    pub channels: usize,
    /// The steps of the schedule; of an image that was begun with, the last ones were taken.
    pub steps: Vec<ScheduleStep>,
    /// How strongly the prompt led.
    pub guidance: f32,
    /// The sampler's name.
    pub method: &'static str,
    /// What speaks against the request.
    pub warnings: Vec<Warning>,
    /// How long each part of the work took.
    pub timings: [(Phase, Duration); 5],
    /// Floating-point operations of the networks in each, as [`tenure_graph::Plan::operations`] counts them.
    pub operations: [(Phase, u64); 5],
    /// The most memory in bytes that a network of each had of the model's: weights that are not mapped, and what its steps
    /// take. With all networks in memory, all weights are among it.
    pub memory: [(Phase, ByteSize); 5],
}

const PHASES: [Phase; 5] = [Phase::Load, Phase::Prompt, Phase::Image, Phase::Denoise, Phase::Decode];

/// The most steps.
const MOST_STEPS: usize = 1000;

impl<'s> Drawing<'s> {
    pub(crate) fn new(loaded: &'s LoadedImage, request: ImageRequest) -> Result<Self, Error> {
        let preset = &loaded.kind.preset;
        let of_init = request.init.as_ref().map(|init| (init.picture.width(), init.picture.height()));
        let (width, height) = request.size.or(of_init).unwrap_or((preset.width, preset.height));
        check(loaded, &request, (width, height))?;

        let method = request.method.unwrap_or(preset.method);
        let mut settings = preset.schedule_for(method);
        if let (Method::Ddim { .. }, Some(to_one)) = (method, loaded.model.config().schedule.set_alpha_to_one) {
            settings.final_sigma = if to_one { FinalSigma::Zero } else { FinalSigma::SigmaMin };
        }
        settings.steps = request.steps.unwrap_or(settings.steps);
        settings.spacing = request.spacing.unwrap_or(settings.spacing);
        settings.rule = request.sigmas.clone().unwrap_or(settings.rule);
        in_bounds("steps", settings.steps, 1, MOST_STEPS)?;
        let process = match (&loaded.kind.process, request.shift) {
            (Process::Flow(flow), Some(shift)) => {
                Process::Flow(FlowSchedule::new(FlowShift::Static(shift), flow.train_timesteps())?)
            }
            (Process::Discrete { .. }, Some(shift)) => {
                let possible = "only the schedules of flow models have one".to_owned();
                return Err(Cause::BadParameter { field: "shift", value: shift.to_string(), possible }.into());
            }
            (process, None) => process.clone(),
        };
        let guidance = request.guidance.clone().unwrap_or_else(|| preset.guidance.clone());
        guidance.check()?;
        let skipped = guidance.skip_layers.as_ref().map_or(&[][..], |skip| &skip.layers);
        match &loaded.model.config().denoiser {
            DenoiserConfig::Unet(_) if guidance.skip_layers.is_some() => {
                let possible = "only transformers have layers to skip".to_owned();
                return Err(Cause::BadParameter { field: "skip_layers", value: "given".to_owned(), possible }.into());
            }
            DenoiserConfig::Unet(_) => {}
            DenoiserConfig::Mmdit(mmdit) => skipped
                .iter()
                .try_for_each(|&layer| in_bounds("layer to skip", layer, 0, mmdit.blocks.saturating_sub(1)))?,
        }

        let (width, height) = (width / LATENT, height / LATENT);
        // What does not fit is refused before anything of its size is allocated.
        let grid = Grid { images: 1, height: height as u32, width: width as u32 };
        loaded.bench.limits().plan(&Work::Denoise { grid, tokens: 1, without: Vec::new() })?;
        let elements = loaded.model.config().latent_channels * width * height;
        let images = request.seeds.len();
        let mut sampler = DiffusionSampler::new(&process, method, &settings, elements * images)?;
        if let Some(init) = &request.init {
            sampler.begin(sampler.first_step(init.strength)?)?;
        }
        if let Some(noise) = &request.noise_latents
            && noise.len() != elements * images
        {
            let possible = format!("{images} images of this size take {}", elements * images);
            return Err(Cause::BadParameter { field: "noise_latents", value: noise.len().to_string(), possible }.into());
        }
        let noise = Noise::new(request.noise, &request.seeds, elements)?;
        let mut warnings: Vec<Warning> =
            preset.advice(guidance.scale, settings.steps).into_iter().map(Warning::Setting).collect();
        if loaded.model.config().family.is_mmdit() && loaded.model.part(Part::T5).is_none() {
            warnings.push(Warning::NoT5);
        }
        Ok(Drawing {
            loaded,
            width,
            height,
            sampler,
            noise,
            guidance,
            next: Next::Prompts,
            prompt: Conditioning::default(),
            negative: Conditioning::default(),
            latents: vec![0.0; elements * images],
            start: None,
            answers: [vec![0.0; elements * images], Vec::new(), Vec::new()],
            together: 0,
            pictures: Vec::new(),
            warnings,
            timings: PHASES.map(|phase| (phase, Duration::ZERO)),
            operations: PHASES.map(|phase| (phase, 0)),
            memory: PHASES.map(|phase| (phase, ByteSize::ZERO)),
            spent: Cell::new(Spent::default()),
            request,
        })
    }

    /// Does the next part of the work, waiting no longer than until `deadline`; `None` when all is done. After an error
    /// the same part can be done again.
    ///
    /// # Errors
    /// When the deadline comes, somebody cancels, or the device or the model fails.
    // Progress is not all there is to get: an iterator cannot take a deadline.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self, deadline: Deadline) -> Result<Option<Progress>, Error> {
        let stop = Stop { deadline, cancel: self.request.cancel.clone() };
        stop.check()?;
        let begun = Instant::now();
        let (next, phase, step, steps, previews) = match self.next {
            Next::Prompts => {
                self.encode_prompts(&stop)?;
                (if self.request.init.is_some() { Next::Image } else { Next::Step }, Phase::Prompt, 1, 1, Vec::new())
            }
            Next::Image => {
                self.begin_from_image(&stop)?;
                (Next::Step, Phase::Image, 1, 1, Vec::new())
            }
            Next::Step => {
                let (step, steps) = self.step(&stop)?;
                let next = if step == steps { Next::Picture(0) } else { Next::Step };
                (next, Phase::Denoise, step, steps, self.previews(step, steps, &stop)?)
            }
            Next::Picture(image) => {
                let picture = self.decode(image, &stop)?;
                self.pictures.push(picture);
                let (step, steps) = (image + 1, self.request.seeds.len());
                let next = if step == steps { Next::Nothing } else { Next::Picture(step) };
                (next, Phase::Decode, step, steps, Vec::new())
            }
            Next::Nothing => return Ok(None),
        };
        self.next = next;
        let Spent { brought, operations, most } = self.spent.take();
        if let Some(count) = entry(&mut self.operations, phase) {
            *count += operations;
        }
        if let Some(bytes) = entry(&mut self.memory, phase) {
            *bytes = most.max(*bytes);
        }
        for (of, time) in [(Phase::Load, brought), (phase, begun.elapsed().saturating_sub(brought))] {
            if let Some(spent) = entry(&mut self.timings, of) {
                *spent += time;
            }
        }
        Ok(Some(Progress { phase, step, steps, previews }))
    }

    /// The images.
    ///
    /// # Errors
    /// When [`Drawing::next`] has not come to the end.
    pub fn finish(self) -> Result<Drawn, Error> {
        if self.next != Next::Nothing {
            return Err(Cause::NotDrawn { done: self.pictures.len(), images: self.request.seeds.len() }.into());
        }
        Ok(Drawn {
            pictures: self.pictures,
            latents: self.latents,
            channels: self.loaded.model.config().latent_channels,
            steps: self.sampler.steps().to_vec(),
            guidance: self.guidance.scale,
            method: self.sampler.method().label(),
            warnings: self.warnings,
            timings: self.timings,
            operations: self.operations,
            memory: self.memory,
        })
    }

    /// What speaks against the request, as far as is known.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Waits until nobody else computes.
    fn tools(&self, stop: &Stop) -> Result<Taken<'s>, Error> {
        self.loaded.bench.take(self.request.loading.as_ref(), stop)
    }

    /// Gives the tools back, and notes what bringing networks in took.
    fn took(&self, tools: Taken<'_>) {
        self.spent.set(self.spent.get().and(tools.spent()));
    }

    fn encode_prompts(&mut self, stop: &Stop) -> Result<(), Error> {
        let LoadedImage { tokenizers, model, .. } = self.loaded;
        if self.request.preview_every.is_some() {
            self.find_colours(stop)?;
        }
        let mut tools = self.tools(stop)?;
        let mut encode = |text: &str| tokenizers.encode(&mut tools, model, text, self.request.emphasis, stop);
        let prompt = encode(&self.request.prompt)?;
        let steps = self.sampler.steps().len();
        let negative = if (0..steps).any(|step| self.passes(step, steps).negative) {
            encode(&self.request.negative)?
        } else {
            Conditioning::default()
        };
        let tokens = prompt.cut.max(negative.cut);
        if tokens > 0 {
            self.warnings.push(Warning::PromptCut { tokens });
        }
        (self.prompt, self.negative) = (prompt, negative);
        self.took(tools);
        if self.request.init.is_none() {
            self.draw_noise()?;
            self.latents.copy_from_slice(&self.answers[0]);
            self.sampler.initial_noise(&mut self.latents);
        }
        Ok(())
    }

    /// The noise to begin with, into the answers' room.
    fn draw_noise(&mut self) -> Result<(), Error> {
        match &self.request.noise_latents {
            Some(given) => self.answers[0].copy_from_slice(given),
            None => self.noise.fill(&mut self.answers[0])?,
        }
        Ok(())
    }

    fn previews(&self, step: usize, steps: usize, stop: &Stop) -> Result<Vec<Picture>, Error> {
        match self.request.preview_every {
            Some(every) if step.is_multiple_of(every) && step < steps => {
                let (estimates, images) = (self.sampler.denoised(), self.request.seeds.len());
                let len = estimates.len() / images;
                let preview = |image: usize| match self.loaded.colours.get() {
                    Some(colours) => colours.picture(&estimates[image * len..][..len], self.width, self.height),
                    None => self.pixels(estimates, image, Part::Taesd, stop),
                };
                (0..images).map(preview).collect()
            }
            Some(_) | None => Ok(Vec::new()),
        }
    }

    /// Finds what colours latents have, where previews need it.
    fn find_colours(&self, stop: &Stop) -> Result<(), Error> {
        let LoadedImage { model, colours, .. } = self.loaded;
        if model.part(Part::Taesd).is_some() || colours.get().is_some() {
            return Ok(());
        }
        let mut tools = self.tools(stop)?;
        let part = self.loaded.autoencoder;
        let mut autoencoder = Autoencoder { tools: &mut tools, model, part, tile: Some(usize::MAX), stop };
        let found = Colours::of(&mut autoencoder, model.config().latent_channels);
        self.took(tools);
        // Another session may have found the same meanwhile.
        let _: Result<(), Colours> = colours.set(found?);
        Ok(())
    }

    fn decode(&self, image: usize, stop: &Stop) -> Result<Picture, Error> {
        let mut picture = self.pixels(&self.latents, image, self.loaded.autoencoder, stop)?;
        if let Some(Init { picture: original, mask: Some(mask), .. }) = &self.request.init {
            picture.keep(original, mask);
        }
        Ok(picture)
    }

    /// One image of a batch of latents.
    fn pixels(&self, latents: &[f32], image: usize, part: Part, stop: &Stop) -> Result<Picture, Error> {
        let LoadedImage { model, tile, .. } = self.loaded;
        let len = latents.len() / self.request.seeds.len();
        let mut rows = vec![0.0; len];
        channels_last(&latents[image * len..][..len], 1, model.config().latent_channels, &mut rows, 0);
        let mut tools = self.tools(stop)?;
        let mut autoencoder = Autoencoder { tools: &mut tools, model, part, tile: *tile, stop };
        let pixels = autoencoder.decode(rows, self.width, self.height);
        self.took(tools);
        let pixels = pixels?;
        if !pixels.iter().all(|x| x.is_finite()) {
            return Err(Cause::NonFinitePixels.into());
        }
        to_picture(self.width * LATENT, self.height * LATENT, &pixels)
    }
}

fn entry<T>(of_phases: &mut [(Phase, T)], phase: Phase) -> Option<&mut T> {
    of_phases.iter_mut().find(|(of, _)| *of == phase).map(|(_, entry)| entry)
}

/// Whether a request can be met, as far as its numbers go.
fn check(loaded: &LoadedImage, request: &ImageRequest, (width, height): (usize, usize)) -> Result<(), Error> {
    check_size(&loaded.model, (width, height))?;
    in_bounds("number of seeds", request.seeds.len(), 1, ImageRequest::MOST_IMAGES)?;
    in_bounds("preview_every", request.preview_every.unwrap_or(1), 1, MOST_STEPS)?;
    Prompt::parse(&request.prompt)?;
    Prompt::parse(&request.negative)?;
    let bad = |field, value: String, possible: &str| {
        Err(Cause::BadParameter { field, value, possible: possible.to_owned() }.into())
    };
    let Some(init) = &request.init else {
        if loaded.model.config().inpainting {
            return bad("init", "missing".to_owned(), "this model changes images: give one, and a mask");
        }
        return Ok(());
    };
    if !loaded.from_images {
        return bad("init", "given".to_owned(), "the model was loaded without its encoder");
    }
    let wanted = format!("the images to be drawn have {width}x{height}");
    let size = |width: usize, height: usize| format!("{width}x{height}");
    let (picture, mask) = (&init.picture, init.mask.as_ref());
    if (picture.width(), picture.height()) != (width, height) {
        return bad("size of the image to begin with", size(picture.width(), picture.height()), &wanted);
    }
    if let Some(mask) = mask.filter(|mask| (mask.width(), mask.height()) != (width, height)) {
        return bad("size of the mask", size(mask.width(), mask.height()), &wanted);
    }
    Ok(())
}
