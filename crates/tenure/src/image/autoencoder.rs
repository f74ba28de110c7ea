//! Latents to pixels and back, at once or in tiles.

use tenure_device::{StepInputs, Stop};
use tenure_graph::{Grid, InputId, OutputId};
use tenure_models::image::{ImageModel, Part};

use crate::error::Error;
use crate::image::bench::Tools;
use crate::image::picture::LATENT;
use crate::image::work::Work;

/// A step of numbers alone.
pub(crate) const NUMBERS: StepInputs<'static> =
    StepInputs { tokens: &[], positions: &[], tables: &[], blocks: &[], outputs: &[], wanted: &[], given: &[] };

/// Latents of a tile's side, the largest first.
pub(crate) const SIDES: [usize; 7] = [256, 128, 96, 64, 48, 32, 16];

/// An autoencoder being used on images of a size.
pub(crate) struct Autoencoder<'t> {
    pub(crate) tools: &'t mut Tools,
    pub(crate) model: &'t ImageModel,
    /// The autoencoder, or the tiny one.
    pub(crate) part: Part,
    /// Latents of a tile's side, where it is fixed.
    pub(crate) tile: Option<usize>,
    pub(crate) stop: &'t Stop,
}

/// Images as rows of some columns, channels last.
struct Rows {
    width: usize,
    height: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Autoencoder<'_> {
    /// Latents of one image (`[height, width, channels]`, as the denoiser has them) -> pixels from 0 to 1.
    pub(crate) fn decode(&mut self, latents: Vec<f32>, width: usize, height: usize) -> Result<Vec<f32>, Error> {
        let scale = self.model.config().latent_scale;
        let mut rows = Rows { width, height, cols: latents.len() / (width * height), values: latents };
        if self.part != Part::Taesd {
            rows.values.iter_mut().for_each(|z| *z = *z / scale.scale + scale.shift);
        }
        let part = self.part;
        let mut pixels = self.by_tiles(&rows, (1, LATENT), |grid| Work::Decode { part, grid })?.values;
        if self.part != Part::Taesd {
            pixels.iter_mut().for_each(|x| *x = (*x + 1.0) / 2.0);
        }
        Ok(pixels)
    }

    /// Pixels of one image from 0 to 1 -> means and, but for the tiny autoencoder, logarithms of variances of its latents
    /// as the autoencoder has them: `[height, width, channels]`.
    pub(crate) fn encode(&mut self, mut pixels: Vec<f32>, width: usize, height: usize) -> Result<Vec<f32>, Error> {
        if self.part != Part::Taesd {
            pixels.iter_mut().for_each(|x| *x = *x * 2.0 - 1.0);
        }
        let (rows, part) = (Rows { width, height, cols: 3, values: pixels }, self.part);
        Ok(self.by_tiles(&rows, (LATENT, 1), |grid| Work::Encode { part, grid })?.values)
    }

    /// Runs a network over an image whose sides are multiples of `from`, and `to / from` times as long in the result.
    fn by_tiles(&mut self, x: &Rows, (from, to): (usize, usize), work: impl Fn(Grid) -> Work) -> Result<Rows, Error> {
        let (width, height) = (x.width / from, x.height / from);
        let work = |width: usize, height: usize| {
            work(Grid { images: 1, height: (height * from) as u32, width: (width * from) as u32 })
        };
        let side = match self.tile {
            Some(side) => side,
            None => self.largest(width, height, &work)?,
        };
        let (across, down) = (places(width, side), places(height, side));
        let (tile_width, tile_height) = (width.min(side), height.min(side));
        let work = work(tile_width, tile_height);
        let (mut result, mut weights) = (None, Vec::new());
        for &top in &down {
            for &left in &across {
                let tile = x.cut(left * from, top * from, tile_width * from, tile_height * from);
                let tile = Rows { width: tile_width * to, height: tile_height * to, ..self.run(&work, tile)? };
                if across.len() * down.len() == 1 {
                    return Ok(tile);
                }
                let result = result.get_or_insert_with(|| {
                    weights = vec![0.0; width * height * to * to];
                    let values = vec![0.0; width * height * to * to * tile.cols];
                    Rows { width: width * to, height: height * to, cols: tile.cols, values }
                });
                let ends = [left > 0, left + tile_width < width, top > 0, top + tile_height < height];
                result.blend(&tile, (left * to, top * to), ends, side / 4 * to, &mut weights);
            }
        }
        let mut result = result.unwrap_or(Rows { width: 0, height: 0, cols: 1, values: Vec::new() });
        for (row, weight) in result.values.chunks_exact_mut(result.cols).zip(&weights) {
            row.iter_mut().for_each(|x| *x /= weight);
        }
        Ok(result)
    }

    /// The side of the largest tiles there is room for.
    fn largest(&self, width: usize, height: usize, work: &dyn Fn(usize, usize) -> Work) -> Result<usize, Error> {
        let whole = width.max(height);
        for side in std::iter::once(whole).chain(SIDES.into_iter().filter(|&side| side < whole)) {
            if self.tools.limits().has_room_for(&work(width.min(side), height.min(side)))? {
                return Ok(side);
            }
        }
        // Binding it says how much is missing.
        Ok(SIDES[SIDES.len() - 1])
    }

    fn run(&mut self, work: &Work, tile: Vec<f32>) -> Result<Rows, Error> {
        let program = self.tools.program(work, self.stop)?;
        let given = [(InputId::Sample, &tile[..])];
        program.run(&StepInputs { given: &given, ..NUMBERS }, std::slice::from_ref(self.stop))?;
        let value = program.plan().output(OutputId::Sample).map(|val| program.plan().value(val));
        let (rows, cols) = value.map_or((0, 1), |value| (NUMBERS.rows().of(value.rows), value.cols));
        let mut values = vec![0.0; rows * cols];
        program.read(OutputId::Sample, 0, &mut values)?;
        Ok(Rows { width: 0, height: 0, cols, values })
    }
}

impl Rows {
    /// A part of it.
    fn cut(&self, left: usize, top: usize, width: usize, height: usize) -> Vec<f32> {
        let rows = self.values.chunks_exact(self.width * self.cols).skip(top).take(height);
        rows.flat_map(|row| &row[left * self.cols..(left + width) * self.cols]).copied().collect()
    }

    /// Adds a tile, weighted less and less over `overlap` pixels towards those of its sides (left, right, top, bottom) at
    /// which another tile follows.
    fn blend(
        &mut self,
        tile: &Rows,
        (left, top): (usize, usize),
        ends: [bool; 4],
        overlap: usize,
        weights: &mut [f32],
    ) {
        let ramp = |at: usize, len: usize, before: bool, after: bool| {
            let rise = |at: usize| ((at as f32 + 0.5) / overlap.max(1) as f32).min(1.0);
            (if before { rise(at) } else { 1.0 }) * (if after { rise(len - 1 - at) } else { 1.0 })
        };
        for y in 0..tile.height {
            let down = ramp(y, tile.height, ends[2], ends[3]);
            for x in 0..tile.width {
                let weight = down * ramp(x, tile.width, ends[0], ends[1]);
                let (at, from) = ((top + y) * self.width + left + x, y * tile.width + x);
                weights[at] += weight;
                for channel in 0..self.cols {
                    self.values[at * self.cols + channel] += weight * tile.values[from * self.cols + channel];
                }
            }
        }
    }
}

/// Where tiles of `side` begin that cover `len` and overlap by a quarter at least.
fn places(len: usize, side: usize) -> Vec<usize> {
    if len <= side {
        return vec![0];
    }
    let step = (side - side / 4).max(1);
    let count = (len - side).div_ceil(step) + 1;
    (0..count).map(|i| (i * (len - side)).div_ceil(count - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_everything_and_overlap() {
        for len in 1..300 {
            for side in [16, 32, 64] {
                let places = places(len, side);
                assert_eq!(places[0], 0);
                assert_eq!(places[places.len() - 1] + side.min(len), len);
                assert!(places.windows(2).all(|pair| pair[1] > pair[0] && pair[1] - pair[0] <= side - side / 4));
            }
        }
    }

    #[test]
    fn blended_tiles_of_one_image_are_the_image() {
        let (width, height, side, overlap) = (50, 37, 16, 4);
        let image: Vec<f32> = (0..width * height * 2).map(|i| (i as f32 * 0.37).sin()).collect();
        let whole = Rows { width, height, cols: 2, values: image.clone() };
        let mut blended =
            Rows { values: vec![0.0; image.len()], ..Rows { width, height, cols: 2, values: Vec::new() } };
        let mut weights = vec![0.0; width * height];
        for top in places(height, side) {
            for left in places(width, side) {
                let tile = Rows { width: side, height: side, cols: 2, values: whole.cut(left, top, side, side) };
                let ends = [left > 0, left + side < width, top > 0, top + side < height];
                blended.blend(&tile, (left, top), ends, overlap, &mut weights);
            }
        }
        for ((got, weight), want) in blended.values.iter().zip(weights.iter().flat_map(|w| [w, w])).zip(&image) {
            assert!((got / weight - want).abs() < 1e-5);
        }
    }
}
