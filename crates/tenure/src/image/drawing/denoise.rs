//! Steps of the schedule: what the denoiser is asked, how many answers are computed together, and what comes of them.

use tenure_device::{StepInputs, Stop};
use tenure_graph::{Grid, InputId, OutputId};
use tenure_sampling::diffusion::{DiffusionSampler, Evaluation, Passes, keep_region};

use crate::error::Error;
use crate::image::autoencoder::NUMBERS;
use crate::image::bench::Tools;
use crate::image::conditioning::{Conditioning, size_ids};
use crate::image::drawing::Drawing;
use crate::image::drawing::start::Start;
use crate::image::latents::{channels_first, channels_last, sinusoids, sinusoids_of_guidance};
use crate::image::picture::LATENT;
use crate::image::work::{Work, columns};

/// The most answers computed together.
const TOGETHER: usize = 8;

impl Drawing<'_> {
    /// Takes one step of the schedule: how many are taken now, and of how many.
    pub(super) fn step(&mut self, stop: &Stop) -> Result<(usize, usize), Error> {
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
    pub(super) fn passes(&self, step: usize, steps: usize) -> Passes {
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
        let mut tools = self.tools(stop)?;
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
        let channels = self.loaded.model.config().latent_channels;
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
}

/// One answer that is wanted of the denoiser.
struct Job<'p> {
    answer: usize,
    image: usize,
    prompt: &'p Conditioning,
    without: Vec<usize>,
}
