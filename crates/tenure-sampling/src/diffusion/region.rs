//! The kept region of an inpainted image, for models without inputs of their own for it.

use crate::diffusion::NoiseLevel;
use crate::error::SamplingError;

/// Fills latents from an image and noise to a level: what changing an image starts from.
///
/// # Errors
/// [`SamplingError::LatentLength`] unless all three are of one length.
pub fn add_noise(latents: &mut [f32], image: &[f32], noise: &[f32], level: NoiseLevel) -> Result<(), SamplingError> {
    for (what, got) in [("image", image.len()), ("noise", noise.len())] {
        if got != latents.len() {
            return Err(SamplingError::LatentLength { what, got, want: latents.len() });
        }
    }
    for ((x, z), n) in latents.iter_mut().zip(image).zip(noise) {
        *x = at_level(*z, *n, level);
    }
    Ok(())
}

/// Puts the kept region back to the image, with the noise of the latents' level, after a step:
/// `x = (1 - m) (signal * image + noise * normal) + m x`. The mask is 1 where the image is drawn anew, between where it is
/// soft; it holds one plane, which every channel and image of the batch shares, or more, up to the whole batch.
///
/// # Errors
/// [`SamplingError::LatentLength`] if image or noise are of another length, or the mask does not divide it.
pub fn keep_region(
    latents: &mut [f32],
    image: &[f32],
    noise: &[f32],
    mask: &[f32],
    level: NoiseLevel,
) -> Result<(), SamplingError> {
    let want = latents.len();
    for (what, got) in [("image", image.len()), ("noise", noise.len())] {
        if got != want {
            return Err(SamplingError::LatentLength { what, got, want });
        }
    }
    if mask.is_empty() || !want.is_multiple_of(mask.len()) {
        return Err(SamplingError::LatentLength { what: "mask", got: mask.len(), want });
    }
    for (((x, z), n), m) in latents.iter_mut().zip(image).zip(noise).zip(mask.iter().cycle()) {
        *x = (1.0 - m) * at_level(*z, *n, level) + m * *x;
    }
    Ok(())
}

fn at_level(image: f32, noise: f32, level: NoiseLevel) -> f32 {
    (level.signal * f64::from(image) + level.noise * f64::from(noise)) as f32
}
