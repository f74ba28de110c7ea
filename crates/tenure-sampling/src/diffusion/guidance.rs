//! Classifier-free guidance and what goes with it: from one to three answers of the model to one.

use crate::error::SamplingError;

/// How strongly the prompt leads.
#[derive(Debug, Clone, PartialEq)]
pub struct Guidance {
    /// The weight of the prompt's answer against the negative prompt's (Ho and Salimans,
    /// <https://arxiv.org/abs/2207.12598>). 1 asks the model once a step; so does 0, which published recipes for
    /// distilled models write for "off".
    pub scale: f32,
    /// How much of the prompt's own deviation is given back, 0..=1 (Lin et al., <https://arxiv.org/abs/2305.08891>,
    /// section 3.4).
    pub rescale: f32,
    /// From and to which share of the steps it is on, 0 and 1 for all (Kynkäänniemi et al.,
    /// <https://arxiv.org/abs/2404.07724>, in steps instead of sigmas).
    pub interval: (f64, f64),
    /// Guidance away from what the model says without some of its layers.
    pub skip_layers: Option<SkipLayers>,
}

impl Guidance {
    /// The prompt's answer alone.
    pub const OFF: Guidance = Guidance { scale: 1.0, rescale: 0.0, interval: (0.0, 1.0), skip_layers: None };

    /// Plain guidance of a scale.
    pub const fn of(scale: f32) -> Guidance {
        Guidance { scale, ..Guidance::OFF }
    }

    /// Whether the fields are in their ranges.
    ///
    /// # Errors
    /// [`SamplingError::BadDiffusion`] with the field that is not.
    pub fn check(&self) -> Result<(), SamplingError> {
        let bad = |field, value: f64| Err(SamplingError::BadDiffusion { field, value });
        let (start, end) = self.interval;
        if !(0.0..=1000.0).contains(&self.scale) {
            return bad("guidance scale", f64::from(self.scale));
        }
        if !(0.0..=1.0).contains(&self.rescale) {
            return bad("guidance rescale", f64::from(self.rescale));
        }
        if !(0.0..=1.0).contains(&start) {
            return bad("start of the guidance interval", start);
        }
        if !(end >= start && end <= 1.0) {
            return bad("end of the guidance interval", end);
        }
        self.skip_layers.as_ref().map_or(Ok(()), SkipLayers::check)
    }

    /// What the model must be asked for a step of so many.
    pub fn passes(&self, step: usize, steps: usize) -> Passes {
        let at = step as f64;
        let (start, end) = self.interval;
        let on = self.scale != 1.0 && self.scale != 0.0 && at >= start * steps as f64 && at < end * steps as f64;
        let skip = self.skip_layers.as_ref().is_some_and(|skip| skip.is_on(step, steps));
        Passes { negative: on, skip_layers: skip }
    }

    /// Combines the model's answers into the one that the sampler takes, in place of the prompt's: for a step's `passes`
    /// (see [`Guidance::passes`]) the negative prompt's answer and the prompt's without layers must be there. `images` is
    /// how many images the batch has; rescaling measures each alone.
    ///
    /// # Errors
    /// [`SamplingError::LatentLength`] if a needed answer is missing or of another length, or images do not divide it.
    pub fn combine(
        &self,
        passes: Passes,
        positive: &mut [f32],
        negative: Option<&[f32]>,
        without_layers: Option<&[f32]>,
        images: usize,
    ) -> Result<(), SamplingError> {
        let want = positive.len();
        let needed = |what, numbers: Option<&[f32]>| match numbers.map_or(0, <[f32]>::len) {
            got if got == want => Ok(()),
            got => Err(SamplingError::LatentLength { what, got, want }),
        };
        if passes.negative {
            needed("answer to the negative prompt", negative)?;
        }
        if passes.skip_layers {
            needed("answer without layers", without_layers)?;
        }
        if images == 0 || want == 0 || !want.is_multiple_of(images) {
            return Err(SamplingError::LatentLength { what: "batch of answers", got: want, want: images });
        }
        let negative = negative.filter(|_| passes.negative);
        let skipped = self.skip_layers.as_ref().zip(without_layers).filter(|_| passes.skip_layers);
        let size = want / images;
        for (i, image) in positive.chunks_mut(size).enumerate() {
            let rescaled = self.rescale > 0.0 && negative.is_some();
            let deviation_before = if rescaled { deviation(image) } else { 0.0 };
            for (x, at) in image.iter_mut().zip(i * size..) {
                let own = f64::from(*x);
                let mut sum = own;
                if let Some(n) = negative.and_then(|numbers| numbers.get(at)) {
                    sum = f64::from(*n) + f64::from(self.scale) * (own - f64::from(*n));
                }
                if let Some((skip, s)) = skipped.and_then(|(skip, numbers)| Some((skip, numbers.get(at)?))) {
                    sum += f64::from(skip.scale) * (own - f64::from(*s));
                }
                *x = sum as f32;
            }
            if deviation_before > 0.0 {
                give_back(image, deviation_before, f64::from(self.rescale));
            }
        }
        Ok(())
    }
}

/// Which answers a step needs beside the prompt's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Passes {
    /// The negative prompt's.
    pub negative: bool,
    /// The prompt's from a model without some layers.
    pub skip_layers: bool,
}

/// Skip-layer guidance: adds `scale * (prompt's answer - the same without the layers)` on some of the steps.
#[derive(Debug, Clone, PartialEq)]
pub struct SkipLayers {
    /// The blocks to leave out, from 0.
    pub layers: Vec<usize>,
    /// Its weight.
    pub scale: f32,
    /// On for steps beyond this share of them.
    pub start: f64,
    /// On for steps before this share of them.
    pub end: f64,
}

impl SkipLayers {
    /// What Stability publishes for Stable Diffusion 3.5 Medium.
    pub fn sd35_medium() -> Self {
        SkipLayers { layers: vec![7, 8, 9], scale: 2.5, start: 0.01, end: 0.2 }
    }

    fn is_on(&self, step: usize, steps: usize) -> bool {
        let at = step as f64;
        self.scale != 0.0 && !self.layers.is_empty() && at > self.start * steps as f64 && at < self.end * steps as f64
    }

    fn check(&self) -> Result<(), SamplingError> {
        let bad = |field, value: f64| Err(SamplingError::BadDiffusion { field, value });
        if !(-1000.0..=1000.0).contains(&self.scale) {
            return bad("skip-layer scale", f64::from(self.scale));
        }
        if !(0.0..=1.0).contains(&self.start) {
            return bad("start of skip-layer guidance", self.start);
        }
        if !(self.end >= self.start && self.end <= 1.0) {
            return bad("end of skip-layer guidance", self.end);
        }
        Ok(())
    }
}

/// The standard deviation over one image.
fn deviation(numbers: &[f32]) -> f64 {
    let n = numbers.len() as f64;
    let mean = numbers.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    (numbers.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// Moves an image's deviation towards the one before guidance.
fn give_back(numbers: &mut [f32], before: f64, share: f64) {
    let after = deviation(numbers);
    if after > 0.0 {
        let factor = share * (before / after) + (1.0 - share);
        for x in numbers {
            *x = (f64::from(*x) * factor) as f32;
        }
    }
}
