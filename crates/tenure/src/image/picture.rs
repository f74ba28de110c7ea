//! Images and masks in memory.

use crate::error::{Cause, Error};

/// An image of 8 bits a channel.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    /// An image from red, green and blue of each pixel, row after row.
    ///
    /// # Errors
    /// When there are not 3 bytes for each pixel, or no pixels.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self, Error> {
        check_len("bytes of an image", width, height, 3, rgb.len())?;
        Ok(Picture { width, height, rgb })
    }

    /// Pixels across.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels down.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Red, green and blue of each pixel, row after row.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The bytes of [`Picture::rgb`].
    pub fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }

    /// The image with its pixels put back to `original` where `mask` does not say otherwise.
    pub(crate) fn keep(&mut self, original: &Picture, mask: &Mask) {
        for ((new, old), m) in self.rgb.chunks_exact_mut(3).zip(original.rgb.chunks_exact(3)).zip(&mask.values) {
            for (x, &z) in new.iter_mut().zip(old) {
                *x = (f32::from(z) + (f32::from(*x) - f32::from(z)) * m).round() as u8;
            }
        }
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({}x{})", self.width, self.height)
    }
}

/// Where an image is drawn anew: 1, and where it is kept: 0. Between, both are mixed.
#[derive(Clone, PartialEq)]
pub struct Mask {
    width: usize,
    height: usize,
    values: Vec<f32>,
}

impl Mask {
    /// A mask from one value for each pixel, row after row.
    ///
    /// # Errors
    /// When there is not one value for each pixel, or one is outside 0..=1.
    pub fn new(width: usize, height: usize, values: Vec<f32>) -> Result<Self, Error> {
        check_len("values of a mask", width, height, 1, values.len())?;
        if let Some(value) = values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            let possible = "0 to 1 are possible".to_owned();
            return Err(Cause::BadParameter { field: "mask", value: value.to_string(), possible }.into());
        }
        Ok(Mask { width, height, values })
    }

    /// A mask from one byte for each pixel, 255 where the image is drawn anew.
    ///
    /// # Errors
    /// When there is not one byte for each pixel.
    pub fn from_bytes(width: usize, height: usize, bytes: &[u8]) -> Result<Self, Error> {
        Mask::new(width, height, bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect())
    }

    /// Pixels across.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels down.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Draws anew what was kept, and keeps what was drawn anew.
    pub fn inverted(mut self) -> Self {
        self.values.iter_mut().for_each(|value| *value = 1.0 - *value);
        self
    }

    /// Each pixel takes the largest value within `pixels` of it, across and down.
    pub fn grown(self, pixels: usize) -> Self {
        self.by_lines(|line, at| {
            let end = at.saturating_add(pixels).saturating_add(1).min(line.len());
            line[at.saturating_sub(pixels)..end].iter().copied().fold(0.0, f32::max)
        })
    }

    /// Blurred by a Gaussian of that standard deviation in pixels, at most 1000.
    pub fn blurred(self, deviation: f32) -> Self {
        if deviation.is_nan() || deviation <= 0.0 {
            return self;
        }
        let deviation = deviation.min(1000.0);
        let reach = (3.0 * deviation).ceil() as usize;
        let bell: Vec<f32> = (0..=reach).map(|d| (-0.5 * (d as f32 / deviation).powi(2)).exp()).collect();
        self.by_lines(|line, at| {
            let end = at.saturating_add(reach).saturating_add(1).min(line.len());
            let (mut sum, mut weight) = (0.0, 0.0);
            for (i, value) in line.iter().enumerate().take(end).skip(at.saturating_sub(reach)) {
                let w = bell.get(i.abs_diff(at)).copied().unwrap_or(0.0);
                sum += w * value;
                weight += w;
            }
            (sum / weight).clamp(0.0, 1.0)
        })
    }

    /// A function of a line and a place in it, of every row and then of every column.
    fn by_lines(mut self, value: impl Fn(&[f32], usize) -> f32) -> Self {
        for row in self.values.chunks_exact_mut(self.width) {
            let line = row.to_vec();
            row.iter_mut().enumerate().for_each(|(at, x)| *x = value(&line, at));
        }
        for column in 0..self.width {
            let line: Vec<f32> = self.values.iter().skip(column).step_by(self.width).copied().collect();
            let places = self.values.iter_mut().skip(column).step_by(self.width);
            places.enumerate().for_each(|(at, x)| *x = value(&line, at));
        }
        self
    }

    /// The first pixel of each square of 8 by 8, 0 or 1: what diffusers tells denoisers that were made for masks.
    pub(crate) fn first_pixels(&self) -> Vec<f32> {
        let rows = self.values.chunks_exact(self.width).step_by(LATENT);
        rows.flat_map(|row| row.iter().step_by(LATENT)).map(|&value| if value < 0.5 { 0.0 } else { 1.0 }).collect()
    }

    /// The mean of each square of 8 by 8 pixels.
    pub(crate) fn of_latents(&self) -> Vec<f32> {
        let (width, height) = (self.width / LATENT, self.height / LATENT);
        let mut means = vec![0.0; width * height];
        for (y, row) in self.values.chunks_exact(self.width).enumerate() {
            for (x, value) in row.iter().enumerate() {
                if let Some(mean) = means.get_mut(y / LATENT * width + x / LATENT) {
                    *mean += value / (LATENT * LATENT) as f32;
                }
            }
        }
        // The sum of many parts of 1 may be a little more.
        means.iter_mut().for_each(|mean| *mean = mean.min(1.0));
        means
    }
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({}x{})", self.width, self.height)
    }
}

/// Pixels of a latent, across and down.
pub(crate) const LATENT: usize = 8;

fn check_len(field: &'static str, width: usize, height: usize, each: usize, got: usize) -> Result<(), Error> {
    let want = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(each)).filter(|&want| want > 0);
    if want == Some(got) {
        return Ok(());
    }
    let want = want.map_or_else(|| "no such image is possible".to_owned(), |want| want.to_string());
    let possible = format!("{width}x{height} pixels take {want}");
    Err(Cause::BadParameter { field, value: got.to_string(), possible }.into())
}
