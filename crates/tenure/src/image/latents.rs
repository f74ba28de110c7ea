//! Numbers between what samplers, autoencoders and pictures have: channel after channel, channels last, bytes.

use crate::error::Error;
use crate::image::picture::Picture;

/// `[images, channels, pixels]` to `[images, pixels, channels]`, into columns of rows of `into.len() / (images * pixels)`,
/// from column `first` on.
pub(crate) fn channels_last(planes: &[f32], images: usize, channels: usize, into: &mut [f32], first: usize) {
    let pixels = planes.len() / (images * channels).max(1);
    let cols = into.len() / (images * pixels).max(1);
    for (image, planes) in planes.chunks_exact(channels * pixels).enumerate() {
        for (channel, plane) in planes.chunks_exact(pixels).enumerate() {
            for (pixel, &x) in plane.iter().enumerate() {
                into[(image * pixels + pixel) * cols + first + channel] = x;
            }
        }
    }
}

/// `[pixels, channels]` to `[channels, pixels]`.
pub(crate) fn channels_first(rows: &[f32], channels: usize, into: &mut [f32]) {
    let pixels = into.len() / channels.max(1);
    for (channel, plane) in into.chunks_exact_mut(pixels.max(1)).enumerate() {
        for (x, row) in plane.iter_mut().zip(rows.chunks_exact(channels)) {
            *x = row[channel];
        }
    }
}

/// Pixels of 3 channels from 0 to 1, with what is beyond cut off, to bytes.
pub(crate) fn to_picture(width: usize, height: usize, unit: &[f32]) -> Result<Picture, Error> {
    Picture::new(width, height, unit.iter().map(|x| (x.clamp(0.0, 1.0) * 255.0).round() as u8).collect())
}

/// Bytes to pixels of 3 channels from 0 to 1.
pub(crate) fn from_picture(picture: &Picture) -> Vec<f32> {
    picture.rgb().iter().map(|&x| f32::from(x) / 255.0).collect()
}

/// The sinusoids of a number that U-Nets and transformers are told a timestep by, cosines first (Vaswani et al. 2017,
/// arXiv:1706.03762; Ho et al. 2020, arXiv:2006.11239), in 32-bit floats as diffusers computes them: models were trained
/// with these roundings.
pub(crate) fn sinusoids(number: f32, into: &mut [f32]) {
    let half = into.len() / 2;
    for i in 0..half {
        let angle = number * (-(10000f64.ln()) as f32 * i as f32 / half as f32).exp();
        (into[i], into[half + i]) = (angle.cos(), angle.sin());
    }
}

/// The sinusoids of a guidance scale that latent consistency models are told it by: sines first, of a thousand times what
/// is above 1, the last at a ten-thousandth of the first's frequency (Luo et al. 2023, arXiv:2310.04378), in 32-bit floats
/// as diffusers computes them.
pub(crate) fn sinusoids_of_guidance(scale: f32, into: &mut [f32]) {
    let half = into.len() / 2;
    let slower = 10000f32.ln() / half.saturating_sub(1).max(1) as f32;
    let number = (scale - 1.0) * 1000.0;
    for i in 0..half {
        let angle = number * (-slower * i as f32).exp();
        (into[i], into[half + i]) = (angle.sin(), angle.cos());
    }
}
