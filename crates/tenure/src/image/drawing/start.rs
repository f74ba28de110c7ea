//! The image that a drawing begins with: its latents, noise over them, and what a mask keeps of it.

use tenure_device::Stop;
use tenure_models::image::Part;
use tenure_sampling::diffusion::add_noise;

use crate::error::Error;
use crate::image::autoencoder::Autoencoder;
use crate::image::drawing::Drawing;
use crate::image::latents::{channels_first, channels_last, from_picture};
use crate::image::load::LoadedImage;
use crate::image::options::Init;
use crate::image::picture::{LATENT, Mask, Picture};

/// What an image that is given has become.
pub(super) struct Start {
    /// Latents as the denoiser has them, of all images of the batch; empty where only noise counts.
    pub(super) latents: Vec<f32>,
    pub(super) noise: Vec<f32>,
    /// Of one image's latents.
    pub(super) mask: Option<Vec<f32>>,
    /// What a denoiser made for it is told of what is kept: mask and masked latents, `[height * width, 1 + channels]` of
    /// each image.
    pub(super) told: Vec<f32>,
}

impl Drawing<'_> {
    /// Encodes the image to begin with and adds noise. Random numbers are drawn in the order in which diffusers draws
    /// them: for the image's latents, for the noise, for the masked image's latents.
    pub(super) fn begin_from_image(&mut self, stop: &Stop) -> Result<(), Error> {
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
        let LoadedImage { model, tile, autoencoder: part, .. } = self.loaded;
        let mut tools = self.tools(stop)?;
        let mut autoencoder = Autoencoder { tools: &mut tools, model, part: *part, tile: *tile, stop };
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
