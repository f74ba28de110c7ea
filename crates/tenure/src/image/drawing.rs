//! Images, step by step.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tenure_device::{Deadline, StepInputs, Stop};
use tenure_graph::{Grid, InputId, OutputId};
use tenure_models::image::Part;
use tenure_sampling::diffusion::{
    Advice, DiffusionSampler, Evaluation, FinalSigma, FlowSchedule, FlowShift, Guidance, Method, Noise, Passes,
    Process, ScheduleStep, add_noise, keep_region,
};
use tenure_tokenizer::Prompt;

use crate::error::{Cause, Error};
use crate::image::autoencoder::{Autoencoder, NUMBERS};
use crate::image::bench::{Spent, Taken, Tools};
use crate::image::colours::Colours;
use crate::image::conditioning::{Conditioning, size_ids};
use crate::image::latents::{
    channels_first, channels_last, from_picture, sinusoids, sinusoids_of_guidance, to_picture,
};
use crate::image::load::{LoadedImage, check_size, in_bounds};
use crate::image::options::{ImageRequest, Init};
use crate::image::picture::{LATENT, Mask, Picture};
use crate::image::work::{Work, columns};

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

/// What an image that is given has become.
struct Start {
    /// Latents as the denoiser has them, of all images of the batch; empty where only noise counts.
    latents: Vec<f32>,
    noise: Vec<f32>,
    /// Of one image's latents.
    mask: Option<Vec<f32>>,
    /// What a denoiser made for it is told of what is kept: mask and masked latents, `[height * width, 1 + channels]` of
    /// each image.
    told: Vec<f32>,
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
    /// The steps that were taken.
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
}

const PHASES: [Phase; 5] = [Phase::Load, Phase::Prompt, Phase::Image, Phase::Denoise, Phase::Decode];

/// The most answers computed together, the most steps.
const TOGETHER: usize = 8;
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
        if guidance.skip_layers.is_some() && !loaded.model.config().family.is_mmdit() {
            let possible = "only transformers have layers to skip".to_owned();
            return Err(Cause::BadParameter { field: "skip_layers", value: "given".to_owned(), possible }.into());
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
        let Spent { brought, operations } = self.spent.take();
        if let Some((_, count)) = self.operations.iter_mut().find(|(of, _)| *of == phase) {
            *count += operations;
        }
        for (of, time) in [(Phase::Load, brought), (phase, begun.elapsed().saturating_sub(brought))] {
            if let Some((_, spent)) = self.timings.iter_mut().find(|(other, _)| *other == of) {
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
        })
    }

    /// What speaks against the request, as far as is known.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Gives the tools back, and notes what bringing networks in took.
    fn took(&self, tools: Taken<'_>) {
        let (mut all, more) = (self.spent.get(), tools.spent());
        all.brought += more.brought;
        all.operations += more.operations;
        self.spent.set(all);
    }

    fn encode_prompts(&mut self, stop: &Stop) -> Result<(), Error> {
        let LoadedImage { bench, tokenizers, model, .. } = self.loaded;
        if self.request.preview_every.is_some() {
            self.find_colours(stop)?;
        }
        let mut tools = bench.take(self.request.loading.as_ref(), stop)?;
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

    /// Encodes the image to begin with and adds noise. Random numbers are drawn in the order in which diffusers draws
    /// them: for the image's latents, for the noise, for the masked image's latents.
    fn begin_from_image(&mut self, stop: &Stop) -> Result<(), Error> {
        let Some(Init { picture, strength, mask }) = self.request.init.clone() else { return Ok(()) };
        let config = self.loaded.model.config();
        let (inpainting, channels, pixels) = (config.inpainting, config.latent_channels, self.width * self.height);
        self.noise.reset();
        let anew = mask.is_some() && strength >= 1.0;
        let whole = if anew && inpainting { None } else { Some(self.encode(from_picture(&picture), stop)?) };
        let latents = whole.map(|moments| self.sampled(&moments)).transpose()?.unwrap_or_default();
        self.draw_noise()?;
        let noise = self.answers[0].clone();
        let mut told = Vec::new();
        if inpainting {
            let mask = mask.clone().unwrap_or(Mask::new(
                picture.width(),
                picture.height(),
                vec![1.0; picture.width() * picture.height()],
            )?);
            let masked = self.encode(masked(&picture, &mask), stop)?;
            let masked = self.sampled(&masked)?;
            let plane = mask.first_pixels();
            let images = self.request.seeds.len();
            told = vec![0.0; images * pixels * (1 + channels)];
            channels_last(&plane.repeat(images), images, 1, &mut told, 0);
            channels_last(&masked, images, channels, &mut told, 1);
        } else if mask.is_some() && self.loaded.autoencoder != Part::Taesd {
            // Nobody is told the masked image, and it is drawn all the same.
            let mut unused = vec![0.0; self.latents.len()];
            self.noise.fill(&mut unused)?;
        }
        if anew {
            self.latents.copy_from_slice(&noise);
            self.sampler.initial_noise(&mut self.latents);
        } else {
            add_noise(&mut self.latents, &latents, &noise, self.sampler.level())?;
        }
        let mask = mask.filter(|_| !inpainting).map(|mask| mask.of_latents());
        self.start = Some(Start { latents, noise, mask, told });
        Ok(())
    }

    /// Means, and logarithms of variances where the autoencoder gives such, of one image of pixels from 0 to 1:
    /// `[pixels, channels]`.
    fn encode(&self, pixels: Vec<f32>, stop: &Stop) -> Result<Vec<f32>, Error> {
        let LoadedImage { bench, model, tile, autoencoder: part, .. } = self.loaded;
        let (mut tools, part) = (bench.take(self.request.loading.as_ref(), stop)?, *part);
        let mut autoencoder = Autoencoder { tools: &mut tools, model, part, tile: *tile, stop };
        let encoded = autoencoder.encode(pixels, self.width * LATENT, self.height * LATENT);
        self.took(tools);
        encoded
    }

    /// Latents of each image of the batch, as the denoiser has them, drawn from what the encoder gave.
    fn sampled(&mut self, moments: &[f32]) -> Result<Vec<f32>, Error> {
        let (config, pixels) = (self.loaded.model.config(), self.width * self.height);
        let (channels, cols) = (config.latent_channels, moments.len() / pixels);
        let mut planes = vec![0.0; moments.len()];
        channels_first(moments, cols, &mut planes);
        let mean = &planes[..channels * pixels];
        let images = self.request.seeds.len();
        if cols == channels {
            // The tiny autoencoder's are what the denoiser has.
            return Ok(mean.repeat(images));
        }
        let mut latents = vec![0.0; images * channels * pixels];
        self.noise.fill(&mut latents)?;
        let scale = config.latent_scale;
        let spread = &planes[channels * pixels..];
        for image in latents.chunks_exact_mut(channels * pixels) {
            for ((x, mean), spread) in image.iter_mut().zip(mean).zip(spread) {
                let deviation = (0.5 * spread.clamp(-30.0, 20.0)).exp();
                *x = (mean + deviation * *x - scale.shift) * scale.scale;
            }
        }
        Ok(latents)
    }

    /// Takes one step of the schedule: how many are taken now, and of how many.
    fn step(&mut self, stop: &Stop) -> Result<(usize, usize), Error> {
        let done = |sampler: &DiffusionSampler| sampler.evaluation().map(|next| (next.step, next.part));
        while let Some(evaluation) = self.sampler.evaluation() {
            self.answer(&evaluation, stop)?;
            let Drawing { answers: [answer, ..], latents, sampler, noise, .. } = self;
            sampler.advance(latents, answer, noise)?;
            if let Some(Start { latents: image, noise, mask: Some(mask), .. }) = &self.start {
                keep_region(&mut self.latents, image, noise, mask, self.sampler.level())?;
            }
            match done(&self.sampler) {
                Some((step, 0)) => return Ok((step, evaluation.steps)),
                Some(_) => {}
                None => break,
            }
        }
        let steps = self.sampler.steps().len();
        Ok((steps, steps))
    }

    /// What the denoiser is asked in a step: one that is told the guidance needs no answer to the negative prompt.
    fn passes(&self, step: usize, steps: usize) -> Passes {
        let passes = self.guidance.passes(step, steps);
        Passes { negative: passes.negative && !self.loaded.model.config().is_told_guidance(), ..passes }
    }

    /// The guidance that a denoiser is told in a step: 1 where there is none.
    fn told_guidance(&self, step: usize, steps: usize) -> f32 {
        if self.guidance.passes(step, steps).negative { self.guidance.scale } else { 1.0 }
    }

    /// Asks the denoiser, and combines its answers into the first.
    fn answer(&mut self, evaluation: &Evaluation, stop: &Stop) -> Result<(), Error> {
        let passes = self.passes(evaluation.step, evaluation.steps);
        let images = self.request.seeds.len();
        let without = || self.guidance.skip_layers.as_ref().map_or_else(Vec::new, |skip| skip.layers.clone());
        // Which answer, from which prompt, without which blocks.
        let mut wanted = vec![(0, &self.prompt, Vec::new())];
        if passes.negative {
            wanted.push((1, &self.negative, Vec::new()));
        }
        if passes.skip_layers {
            wanted.push((2, &self.prompt, without()));
        }
        let len = self.latents.len();
        for &(answer, ..) in &wanted {
            self.answers[answer].resize(len, 0.0);
        }
        let jobs: Vec<Job<'_>> = wanted
            .into_iter()
            .flat_map(|(answer, prompt, without)| {
                (0..images).map(move |image| Job { answer, image, prompt, without: without.clone() })
            })
            .collect();
        let LoadedImage { bench, model, .. } = self.loaded;
        let mut tools = bench.take(self.request.loading.as_ref(), stop)?;
        let grid = |images: usize| Grid { images: images as u32, height: self.height as u32, width: self.width as u32 };
        if self.together == 0 {
            // As many as there is room for; one must do.
            self.together = 1;
            for count in (2..=TOGETHER.min(jobs.len())).rev() {
                let tokens = self.prompt.tokens.max(self.negative.tokens);
                let work = Work::Denoise { grid: grid(count), tokens, without: Vec::new() };
                if tools.limits().has_room_for(&work)? {
                    self.together = count;
                    break;
                }
            }
        }
        let channels = model.config().latent_channels;
        let mut answers = std::mem::take(&mut self.answers);
        let mut rest = &jobs[..];
        let result = loop {
            let Some(first) = rest.first() else { break Ok(()) };
            let alike = |job: &&Job<'_>| job.prompt.tokens == first.prompt.tokens && job.without == first.without;
            let (now, later) = rest.split_at(rest.iter().take_while(alike).count().min(self.together));
            rest = later;
            let (tokens, without) = (first.prompt.tokens, first.without.clone());
            let work = Work::Denoise { grid: grid(now.len()), tokens, without };
            if let Err(error) = self.evaluate(&mut tools, &work, now, evaluation, channels, &mut answers, stop) {
                break Err(error);
            }
        };
        self.answers = answers;
        self.took(tools);
        result?;
        let [answer, negative, without] = &mut self.answers;
        let given = |wanted: bool, numbers| if wanted { Some(numbers) } else { None };
        self.guidance.combine(
            passes,
            answer,
            given(passes.negative, negative.as_slice()),
            given(passes.skip_layers, without.as_slice()),
            images,
        )?;
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // A step, what is asked in it, and where the answers go.
    fn evaluate(
        &self,
        tools: &mut Tools,
        work: &Work,
        jobs: &[Job<'_>],
        evaluation: &Evaluation,
        channels: usize,
        answers: &mut [Vec<f32>; 3],
        stop: &Stop,
    ) -> Result<(), Error> {
        let (pixels, count) = (self.width * self.height, jobs.len());
        let program = tools.program(work, stop)?;
        let plan = program.plan();
        let cols = columns(plan, InputId::Sample);
        let (mut sample, mut scaled) = (vec![0.0; count * pixels * cols], vec![0.0; channels * pixels]);
        for (job, rows) in jobs.iter().zip(sample.chunks_exact_mut(pixels * cols)) {
            let own = job.image * channels * pixels;
            for (to, x) in scaled.iter_mut().zip(&self.latents[own..]) {
                *to = x * evaluation.input_scale;
            }
            channels_last(&scaled, 1, channels, rows, 0);
            if let Some(Start { told, .. }) = self.start.as_ref().filter(|_| cols > channels) {
                let told = told.chunks_exact(cols - channels).skip(job.image * pixels);
                for (row, told) in rows.chunks_exact_mut(cols).zip(told) {
                    row[channels..].copy_from_slice(told);
                }
            }
        }
        let mut time = vec![0.0; columns(plan, InputId::Timestep)];
        sinusoids(evaluation.timestep, &mut time);
        let time = time.repeat(count);
        let mut guidance = vec![0.0; columns(plan, InputId::Guidance)];
        sinusoids_of_guidance(self.told_guidance(evaluation.step, evaluation.steps), &mut guidance);
        let guidance = guidance.repeat(count);
        let context: Vec<f32> = jobs.iter().flat_map(|job| &job.prompt.context).copied().collect();
        let pooled: Vec<f32> =
            jobs.iter().flat_map(|job| self.pooled(job.prompt, columns(plan, InputId::Pooled))).collect();
        let given = [
            (InputId::Sample, &sample[..]),
            (InputId::Timestep, &time[..]),
            (InputId::Guidance, &guidance[..]),
            (InputId::Context, &context[..]),
            (InputId::Pooled, &pooled[..]),
        ];
        program.run(&StepInputs { given: &given, ..NUMBERS }, std::slice::from_ref(stop))?;
        let mut rows = vec![0.0; pixels * channels];
        for (i, job) in jobs.iter().enumerate() {
            program.read(OutputId::Sample, i * pixels, &mut rows)?;
            let own = job.image * channels * pixels;
            channels_first(&rows, channels, &mut answers[job.answer][own..own + channels * pixels]);
        }
        Ok(())
    }

    /// What stands for the whole prompt in `cols` columns: with the image's size behind it, where that has room.
    fn pooled(&self, prompt: &Conditioning, cols: usize) -> Vec<f32> {
        let mut pooled = prompt.pooled.clone();
        let ids = size_ids(self.width * LATENT, self.height * LATENT);
        let room = cols.saturating_sub(pooled.len()) / ids.len();
        for id in ids {
            let at = pooled.len();
            pooled.resize(at + room, 0.0);
            sinusoids(id, &mut pooled[at..]);
        }
        pooled
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
        let LoadedImage { bench, model, colours, .. } = self.loaded;
        if model.part(Part::Taesd).is_some() || colours.get().is_some() {
            return Ok(());
        }
        let mut tools = bench.take(self.request.loading.as_ref(), stop)?;
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
        let LoadedImage { bench, model, tile, .. } = self.loaded;
        let len = latents.len() / self.request.seeds.len();
        let mut rows = vec![0.0; len];
        channels_last(&latents[image * len..][..len], 1, model.config().latent_channels, &mut rows, 0);
        let mut tools = bench.take(self.request.loading.as_ref(), stop)?;
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

/// One answer that is wanted of the denoiser.
struct Job<'p> {
    answer: usize,
    image: usize,
    prompt: &'p Conditioning,
    without: Vec<usize>,
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

/// Pixels from 0 to 1 of the image without what is drawn anew, which is halfway between.
fn masked(picture: &Picture, mask: &Mask) -> Vec<f32> {
    let mut pixels = from_picture(picture);
    for (pixel, &m) in pixels.chunks_exact_mut(3).zip(mask.values()) {
        if m >= 0.5 {
            pixel.fill(0.5);
        }
    }
    pixels
}
