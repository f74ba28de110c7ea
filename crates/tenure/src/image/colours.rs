//! Colours of latents without an autoencoder: one linear map, which shows what an image becomes.
//!
//! An autoencoder's latents are nearly colours: the mean colour of the 8 by 8 pixels of one follows from its channels by a
//! linear map with little error. That map is found by least squares from what the model's own decoder makes of random
//! latents, once for each loaded model that is asked for previews.

use tenure_sampling::diffusion::{Noise, NoiseKind};

use crate::error::{Cause, Error};
use crate::image::autoencoder::Autoencoder;
use crate::image::latents::{channels_last, to_picture};
use crate::image::picture::{LATENT, Picture};
use crate::image::work::Work;

/// From latents, as the denoiser has them, to colours.
pub(crate) struct Colours {
    /// For each channel, and last for 1, how much of red, green and blue from 0 to 1.
    rows: Vec<[f64; 3]>,
}

/// The side of what is decoded, in latents, where there is room; and of its squares, each of which is of one latent: a
/// decoder is used to such that are like their neighbours.
const SIDES: [usize; 2] = [16, 8];
const SQUARE: usize = 4;
/// Squares for each number that is looked for.
const SQUARES: usize = 4;
/// What is added to each channel's squares, for each latent: colours hardly depend on it, and are defined.
const RIDGE: f64 = 1e-3;

impl Colours {
    /// Finds the map of a model of so many channels.
    pub(crate) fn of(autoencoder: &mut Autoencoder<'_>, channels: usize) -> Result<Self, Error> {
        let part = autoencoder.part;
        let mut side = SIDES[SIDES.len() - 1];
        for larger in SIDES {
            if autoencoder.tools.limits().has_room_for(&Work::decode(part, larger, larger))? {
                side = larger;
                break;
            }
        }
        let unknown = channels + 1;
        let across = side / SQUARE;
        let mut system = Normal::new(unknown);
        for draw in 0..(SQUARES * unknown).div_ceil(across * across) {
            let mut squares = vec![0.0; across * across * channels];
            Noise::new(NoiseKind::Philox, &[draw as u64], squares.len())?.fill(&mut squares)?;
            let mut latents = Vec::with_capacity(side * side * channels);
            for at in 0..side * side {
                let square = at / side / SQUARE * across + at % side / SQUARE;
                latents.extend_from_slice(&squares[square * channels..][..channels]);
            }
            let pixels = autoencoder.decode(latents.clone(), side, side)?;
            for (at, latent) in latents.chunks_exact(channels).enumerate() {
                system.add(latent, mean(&pixels, side * LATENT, at % side * LATENT, at / side * LATENT));
            }
        }
        system.solve().map(|rows| Colours { rows }).ok_or_else(|| Cause::NonFinitePixels.into())
    }

    /// One pixel for each latent of an image, `[channels, height, width]`.
    pub(crate) fn picture(&self, latents: &[f32], width: usize, height: usize) -> Result<Picture, Error> {
        let channels = self.rows.len() - 1;
        let mut rows = vec![0.0; latents.len()];
        channels_last(latents, 1, channels, &mut rows, 0);
        let colour = |latent: &[f32]| {
            [0, 1, 2].map(|c| {
                let of_channels = latent.iter().zip(&self.rows).map(|(&x, row)| f64::from(x) * row[c]);
                (of_channels.sum::<f64>() + self.rows[channels][c]) as f32
            })
        };
        let unit: Vec<f32> = rows.chunks_exact(channels).flat_map(colour).collect();
        to_picture(width, height, &unit)
    }
}

/// The mean colour of a latent's pixels.
fn mean(pixels: &[f32], width: usize, left: usize, top: usize) -> [f64; 3] {
    let mut sum = [0.0; 3];
    for row in pixels.chunks_exact(width * 3).skip(top).take(LATENT) {
        for pixel in row.chunks_exact(3).skip(left).take(LATENT) {
            sum.iter_mut().zip(pixel).for_each(|(sum, &x)| *sum += f64::from(x));
        }
    }
    sum.map(|sum| sum / (LATENT * LATENT) as f64)
}

/// The normal equations of a least squares fit.
struct Normal {
    unknown: usize,
    /// `[unknown, unknown]`, symmetric.
    left: Vec<f64>,
    right: Vec<[f64; 3]>,
    count: usize,
}

impl Normal {
    fn new(unknown: usize) -> Self {
        Normal { unknown, left: vec![0.0; unknown * unknown], right: vec![[0.0; 3]; unknown], count: 0 }
    }

    /// One latent and its colour.
    fn add(&mut self, latent: &[f32], colour: [f64; 3]) {
        let with_one: Vec<f64> = latent.iter().map(|&x| f64::from(x)).chain([1.0]).collect();
        for (i, x) in with_one.iter().enumerate() {
            for (j, y) in with_one.iter().enumerate() {
                self.left[i * self.unknown + j] += x * y;
            }
            self.right[i].iter_mut().zip(colour).for_each(|(sum, colour)| *sum += x * colour);
        }
        self.count += 1;
    }

    /// The map, by elimination; `None` where a colour is no number.
    fn solve(mut self) -> Option<Vec<[f64; 3]>> {
        let n = self.unknown;
        for i in 0..n - 1 {
            self.left[i * n + i] += RIDGE * self.count as f64;
        }
        // The matrix is positive definite: no row needs to be exchanged.
        for i in 0..n {
            let pivot = self.left[i * n + i];
            for below in i + 1..n {
                let factor = self.left[below * n + i] / pivot;
                for column in i..n {
                    self.left[below * n + column] -= factor * self.left[i * n + column];
                }
                let upper = self.right[i];
                self.right[below].iter_mut().zip(upper).for_each(|(x, upper)| *x -= factor * upper);
            }
        }
        for i in (0..n).rev() {
            for column in i + 1..n {
                let (factor, known) = (self.left[i * n + column], self.right[column]);
                self.right[i].iter_mut().zip(known).for_each(|(x, known)| *x -= factor * known);
            }
            let pivot = self.left[i * n + i];
            self.right[i].iter_mut().for_each(|x| *x /= pivot);
        }
        self.right.iter().flatten().all(|x| x.is_finite()).then_some(self.right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_map_is_found_again() {
        for channels in [4, 16] {
            let want: Vec<[f64; 3]> =
                (0..=channels).map(|i| [0, 1, 2].map(|c| ((i * 3 + c) as f64 * 0.7).sin() / 4.0)).collect();
            let (count, mut noise) = (64, vec![0.0; 64 * channels]);
            Noise::new(NoiseKind::Philox, &[5], noise.len()).expect("sound").fill(&mut noise).expect("fits");
            let mut system = Normal::new(channels + 1);
            for latent in noise.chunks_exact(channels) {
                let of = |c: usize| latent.iter().zip(&want).map(|(&x, row)| f64::from(x) * row[c]).sum::<f64>();
                system.add(latent, [0, 1, 2].map(|c| of(c) + want[channels][c]));
            }
            assert_eq!(system.count, count);
            let got = system.solve().expect("numbers");
            for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                assert!((got - want).abs() < 0.01, "{got}, not {want}");
            }
        }
        let mut broken = Normal::new(2);
        broken.add(&[1.0], [f64::NAN; 3]);
        assert!(broken.solve().is_none());
    }
}
