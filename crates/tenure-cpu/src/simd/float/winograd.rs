//! Kernels of 3 x 3 slid over images by one pixel, with 36 multiplications for sixteen results where the definition has
//! 144 (Winograd's minimal filtering F(4 x 4, 3 x 3); Lavin and Gray 2015, arXiv:1509.09308).
//!
//! A tile is 4 x 4 pixels of the result, and comes from the 6 x 6 of the source around it. Tile and kernel are brought to
//! 36 points each; a result's point is the sum over the channels of their products, a matrix product for each point.
//!
//! Along a side, pixels and taps are the coefficients of polynomials, of which the points are the values at 0, at
//! plus and minus `NEAR`, at plus and minus `FAR` and at infinity. These values round half as much as those of the
//! usual 1 and 2 (Barabasz et al. 2020, arXiv:1803.10986): about 8e-7 of a result's size.
//!
//! The order of every sum: `CHANNELS` channels one after the other into an accumulator, such sums one after the other.
//! It depends neither on how many tiles or features a call has, nor on how callers divide them.

// Tiles of registers are walked by index, several arrays at once, with bounds known when compiling.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use tenure_graph::{Grid, Slide};
use tenure_tensor::DType;

use crate::simd::Isa;
use crate::simd::float::element::{Element, Float, with_element};
use crate::simd::float::lanes::{Kernel, Lanes, dispatch};
use crate::simd::float::tile::{self, Tiles};

/// Pixels of the result along a side of a tile.
const SIDE: usize = 4;
/// Pixels of the source, and points, along a side of a tile.
const REACH: usize = 6;
/// Points of a tile.
const POINTS: usize = REACH * REACH;
/// Where the polynomials are taken, beside 0 and infinity.
const NEAR: f32 = 0.625;
const FAR: f32 = 1.5;
const NEAR2: f32 = NEAR * NEAR;
const FAR2: f32 = FAR * FAR;
/// Taps of a kernel.
const TAPS: usize = 9;
/// Channels brought to points and multiplied together.
const CHANNELS: usize = 64;
/// Tiles that a piece of the kernel's points is used for.
const TILES: usize = 48;
/// The most products of tiles and features that are summed together.
const SUMS: usize = 6144;
/// Floats between what belongs to one point and to the next, beyond its own: all points at the same offset are written and
/// read one after the other, and distances of a power of two would put them into the same few places of the cache.
const APART: usize = 16;
/// Features computed together are a multiple of this: two vectors of the widest instruction set.
const FEATURES: usize = 32;

/// Whether [`slide`] takes a kernel slid so, over so many channels, of so many features.
pub fn takes(slide: &Slide, channels: usize, features: usize) -> bool {
    let around = slide.size == 3 && slide.stride == 1 && slide.before == 1 && slide.after == 1;
    around && channels > 0 && channels.is_multiple_of(FEATURES) && features > 0 && features.is_multiple_of(FEATURES)
}

/// How the tiles and features of a result are divided: each part is computed in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    tiles: usize,
    features: usize,
    /// Of one part.
    most_tiles: usize,
    most_features: usize,
}

impl Parts {
    /// For a result of `images` of `grid`'s height and width; in at least `wanted` parts where there is enough of it.
    pub fn new(grid: Grid, features: usize, wanted: usize) -> Parts {
        let tiles = tiles(grid);
        let runs = tiles.div_ceil(TILES).max(1);
        let most_tiles = tiles.div_ceil(runs).max(1);
        let room = SUMS / most_tiles / FEATURES * FEATURES;
        let spread = (features * runs).div_ceil(wanted.max(1)).next_multiple_of(FEATURES);
        Parts { tiles, features, most_tiles, most_features: room.min(spread).clamp(FEATURES, features.max(FEATURES)) }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.tiles.div_ceil(self.most_tiles) * self.blocks()
    }

    /// Tiles and features of a part.
    pub fn part(&self, index: usize) -> (Range<usize>, Range<usize>) {
        let (tile, feature) = (index / self.blocks() * self.most_tiles, index % self.blocks() * self.most_features);
        (tile..self.tiles.min(tile + self.most_tiles), feature..self.features.min(feature + self.most_features))
    }

    fn blocks(&self) -> usize {
        self.features.div_ceil(self.most_features)
    }
}

/// Floats of scratch that a part needs of a result of up to so many images of `grid`'s height and width.
pub fn scratch_floats(grid: Grid, features: usize) -> usize {
    let tiles = tiles(grid);
    let (of_tiles, panels) = (TILES.min(tiles) * CHANNELS, features.div_ceil(16));
    let points = POINTS * (of_tiles + SUMS.min(tiles * features) + (1 + panels) * APART);
    points + (REACH + TAPS) * (CHANNELS * FEATURES + APART) + 8 * CHANNELS
}

/// Tiles of a grid.
fn tiles(grid: Grid) -> usize {
    grid.images as usize * grid.height.div_ceil(SIDE as u32) as usize * grid.width.div_ceil(SIDE as u32) as usize
}

/// What is computed: a kernel, and what it is slid over.
#[derive(Clone, Copy, Debug)]
pub struct Slid<'s> {
    /// Images (channels last).
    pub x: &'s [f32],
    /// How many, and their sizes.
    pub grid: Grid,
    /// `features * 3 * 3 * channels` elements of a type that [`has_kernel`](super::has_kernel) says yes to, place by place.
    pub w: &'s [u8],
    /// Their type.
    pub dtype: DType,
    /// Added to each feature.
    pub bias: Option<&'s [f32]>,
    /// As many as there are channels, for what lies outside.
    pub zeros: &'s [f32],
    /// How many features there are.
    pub features: usize,
}

/// One of `parts` of the result of a kernel slid over images, `out` pointing at the first feature of the first pixel. For
/// kernels that [`takes`] says yes to.
///
/// # Safety
/// `out` is valid for all pixels and features, and nobody else touches this part's meanwhile.
pub unsafe fn slide(isa: Isa, slid: Slid, parts: Parts, index: usize, scratch: &mut [f32], out: *mut f32) {
    let (channels, features) = (slid.zeros.len(), slid.features);
    assert!(channels.is_multiple_of(FEATURES) && features.is_multiple_of(FEATURES) && features == parts.features);
    assert!(
        parts.tiles == tiles(slid.grid)
            && index < parts.count()
            && scratch.len() >= scratch_floats(slid.grid, slid.features)
    );
    assert!(slid.x.len() == slid.grid.rows() * channels && slid.bias.is_none_or(|bias| bias.len() == features));
    assert!(slid.dtype.row_bytes(features * TAPS * channels) == Some(slid.w.len()));
    let Some(float) = Float::of(slid.dtype) else { return };
    let (tiles, features) = parts.part(index);
    dispatch(isa, Part { slid, float, tiles, features, scratch: scratch.as_mut_ptr(), out });
}

struct Part<'s> {
    slid: Slid<'s>,
    float: Float,
    tiles: Range<usize>,
    features: Range<usize>,
    scratch: *mut f32,
    out: *mut f32,
}

impl Kernel for Part<'_> {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // SAFETY: the part is as `slide` checked it; the caller vouches for the instruction set.
        unsafe { with_element!(self.float, E => run::<V, E>(&self)) }
    }
}

/// # Safety
/// As for [`slide`].
#[inline(always)]
unsafe fn run<V: Lanes, E: Element>(part: &Part) {
    let (tiles, channels) = (part.tiles.len(), part.slid.zeros.len());
    let panels = part.features.len() / (2 * V::N);
    let tile_stride = tiles * CHANNELS + APART;
    let sum_stride = tiles * 2 * V::N + APART;
    // SAFETY: the scratch has room for all of them: panels are at most `FEATURES` wide.
    unsafe {
        let of_tiles = part.scratch;
        let of_kernel = of_tiles.add(POINTS * tile_stride);
        let taps = of_kernel.add(REACH * kernel_stride::<V>());
        let sums = taps.add(TAPS * kernel_stride::<V>() + 8 * CHANNELS);
        let mut channel = 0;
        while channel < channels {
            let some = channel..channels.min(channel + CHANNELS);
            tile_points::<V>(part, some.clone(), of_tiles, tile_stride);
            for panel in 0..panels {
                let first = part.features.start + panel * 2 * V::N;
                // What is wanted after this, of this part.
                let next = if panel + 1 < panels {
                    (first + 2 * V::N, some.start)
                } else {
                    (part.features.start, some.end % channels)
                };
                turned_taps::<V, E>(part, first, some.clone(), next, taps);
                for line in 0..REACH {
                    kernel_points::<V>(line, some.len(), taps, of_kernel);
                    for x in 0..REACH {
                        let point = line * REACH + x;
                        let product = Tiles {
                            x: of_tiles.add(point * tile_stride),
                            x_stride: CHANNELS,
                            w: of_kernel.add(x * kernel_stride::<V>()),
                            depth: some.len(),
                            out: sums.add((panel * POINTS + point) * sum_stride),
                            out_stride: 2 * V::N,
                            add: channel > 0,
                        };
                        tile::tiles::<V, 2>(&product, tiles);
                    }
                }
            }
            channel = some.end;
        }
        for panel in 0..panels {
            results::<V>(part, panel, sums.add(panel * POINTS * sum_stride), sum_stride);
        }
    }
}

/// Floats from one point of a panel's kernels to the next.
const fn kernel_stride<V: Lanes>() -> usize {
    CHANNELS * 2 * V::N + APART
}

/// The places of a tile's top left pixel: its image, line and column.
#[inline(always)]
fn place(grid: Grid, tile: usize) -> (usize, usize, usize) {
    let (high, wide) = (grid.height.div_ceil(SIDE as u32) as usize, grid.width.div_ceil(SIDE as u32) as usize);
    let at = tile % (high * wide);
    (tile / (high * wide), at / wide * SIDE, at % wide * SIDE)
}

/// The points of all tiles for some channels: `[point][tile][CHANNELS]`, points `stride` floats apart.
///
/// # Safety
/// `to` is valid for all of them; the channels are a multiple of the vector's size.
#[inline(always)]
unsafe fn tile_points<V: Lanes>(part: &Part, channels: Range<usize>, to: *mut f32, stride: usize) {
    let (grid, all) = (part.slid.grid, part.slid.zeros.len());
    let (height, width) = (grid.height as usize, grid.width as usize);
    for (t, tile) in part.tiles.clone().enumerate() {
        let (image, top, left) = place(grid, tile);
        let mut from = [part.slid.zeros.as_ptr(); POINTS];
        for y in 0..REACH {
            for x in 0..REACH {
                // A pixel above or left of the tile.
                let (line, column) = (top + y, left + x);
                if line >= 1 && line <= height && column >= 1 && column <= width {
                    let pixel = image * height * width + (line - 1) * width + column - 1;
                    // SAFETY: a pixel of the images.
                    from[y * REACH + x] = unsafe { part.slid.x.as_ptr().add(pixel * all) };
                }
            }
        }
        let mut c = 0;
        while c < channels.len() {
            // SAFETY: so many channels are left, in the source and in the room of this tile.
            unsafe {
                let mut lines = [V::splat(0.0); POINTS];
                for x in 0..REACH {
                    let mut column = [V::splat(0.0); REACH];
                    for y in 0..REACH {
                        column[y] = V::load(from[y * REACH + x].add(channels.start + c));
                    }
                    let column = brought(column);
                    for y in 0..REACH {
                        lines[y * REACH + x] = column[y];
                    }
                }
                for y in 0..REACH {
                    let mut line = [V::splat(0.0); REACH];
                    line.copy_from_slice(&lines[y * REACH..][..REACH]);
                    let line = brought(line);
                    for x in 0..REACH {
                        line[x].store(to.add((y * REACH + x) * stride + t * CHANNELS + c));
                    }
                }
            }
            c += V::N;
        }
    }
}

/// Six pixels side by side, brought to points.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn brought<V: Lanes>([a, b, c, d, e, f]: [V; REACH]) -> [V; REACH] {
    // SAFETY: the caller's contract.
    unsafe {
        let (product, sum) = (V::splat(NEAR2 * FAR2), V::splat(-NEAR2 - FAR2));
        let (even, odd) = (c.fma(V::splat(-FAR2), e), b.fma(V::splat(-FAR2), d));
        let (far_even, far_odd) = (c.fma(V::splat(-NEAR2), e), b.fma(V::splat(-NEAR2), d));
        [
            a.fma(product, c.fma(sum, e)),
            odd.fma(V::splat(NEAR), even),
            odd.fma(V::splat(-NEAR), even),
            far_odd.fma(V::splat(FAR), far_even),
            far_odd.fma(V::splat(-FAR), far_even),
            b.fma(product, d.fma(sum, f)),
        ]
    }
}

/// The taps of the kernels of `2 * V::N` features for some channels: `[tap][channel][2 * V::N]`, taps [`kernel_stride`]
/// apart. The taps of the feature and channel `next` and of those behind them are asked for: they lie a few lines here and
/// there, which no processor foresees.
///
/// # Safety
/// `to` is valid for all of them and `8 * CHANNELS` floats more; the features and channels are the part's, the channels a
/// multiple of 8 and of the vector's size.
#[inline(always)]
unsafe fn turned_taps<V: Lanes, E: Element>(
    part: &Part,
    first: usize,
    channels: Range<usize>,
    next: (usize, usize),
    to: *mut f32,
) {
    let all = part.slid.zeros.len();
    let row_bytes = TAPS * all * E::BYTES;
    let offset = |feature: usize, tap: usize, channel: usize| feature * row_bytes + (tap * all + channel) * E::BYTES;
    // SAFETY: the caller's contract.
    unsafe {
        let rows = to.add(TAPS * kernel_stride::<V>());
        for eight in (0..2 * V::N).step_by(8) {
            for tap in 0..TAPS {
                // Eight features side by side, channel by channel.
                for f in 0..8 {
                    let from = part.slid.w.as_ptr().add(offset(first + eight + f, tap, channels.start));
                    for c in (0..channels.len()).step_by(V::N) {
                        E::load::<V>(from.add(c * E::BYTES)).store(rows.add(f * CHANNELS + c));
                    }
                    let next = part.slid.w.as_ptr().wrapping_add(offset(next.0 + eight + f, tap, next.1));
                    for byte in (0..channels.len() * E::BYTES).step_by(64) {
                        V::prefetch(next.wrapping_add(byte));
                    }
                }
                let turned = to.add(tap * kernel_stride::<V>() + eight);
                for c in (0..channels.len()).step_by(8) {
                    V::transpose8(rows.add(c), CHANNELS, turned.add(c * 2 * V::N), 2 * V::N);
                }
            }
        }
    }
}

/// A line of the points of kernels whose taps are [`turned_taps`], for so many channels: `[x][channel][2 * V::N]`, points
/// [`kernel_stride`] apart.
///
/// # Safety
/// `to` is valid for all of them.
#[inline(always)]
unsafe fn kernel_points<V: Lanes>(line: usize, channels: usize, taps: *const f32, to: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        let factors = [V::splat(SPREAD[line][0]), V::splat(SPREAD[line][1]), V::splat(SPREAD[line][2])];
        for at in (0..channels * 2 * V::N).step_by(V::N) {
            let mut lines = [V::splat(0.0); 3];
            for x in 0..3 {
                let tap = |y: usize| V::load(taps.add((y * 3 + x) * kernel_stride::<V>() + at));
                lines[x] = tap(2).fma(factors[2], tap(1).fma(factors[1], tap(0).mul(factors[0])));
            }
            let points = spread(lines);
            for x in 0..REACH {
                points[x].store(to.add(x * kernel_stride::<V>() + at));
            }
        }
    }
}

/// Taps brought to points: what each is multiplied with for a point.
const SPREAD: [[f32; 3]; REACH] = [
    [ORIGIN, 0.0, 0.0],
    [AT_NEAR, NEAR * AT_NEAR, NEAR2 * AT_NEAR],
    [AT_NEAR, -NEAR * AT_NEAR, NEAR2 * AT_NEAR],
    [AT_FAR, FAR * AT_FAR, FAR2 * AT_FAR],
    [AT_FAR, -FAR * AT_FAR, FAR2 * AT_FAR],
    [0.0, 0.0, 1.0],
];
/// What a point's value is divided by: its distances from the others, multiplied.
const ORIGIN: f32 = 1.0 / (NEAR2 * FAR2);
const AT_NEAR: f32 = 1.0 / (2.0 * NEAR2 * (NEAR2 - FAR2));
const AT_FAR: f32 = 1.0 / (2.0 * FAR2 * (FAR2 - NEAR2));

/// Three taps side by side, brought to points.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn spread<V: Lanes>([a, b, c]: [V; 3]) -> [V; REACH] {
    // SAFETY: the caller's contract.
    unsafe {
        let [origin, near, minus_near, far, minus_far, _] = SPREAD;
        let even = c.fma(V::splat(near[2]), a.mul(V::splat(near[0])));
        let far_even = c.fma(V::splat(far[2]), a.mul(V::splat(far[0])));
        [
            a.mul(V::splat(origin[0])),
            b.fma(V::splat(near[1]), even),
            b.fma(V::splat(minus_near[1]), even),
            b.fma(V::splat(far[1]), far_even),
            b.fma(V::splat(minus_far[1]), far_even),
            c,
        ]
    }
}

/// The pixels of all tiles for the features of a panel, from the sums of their points, which are `stride` floats apart.
///
/// # Safety
/// The sums are complete, and `part.out` is as [`slide`] wants it.
#[inline(always)]
unsafe fn results<V: Lanes>(part: &Part, panel: usize, sums: *const f32, stride: usize) {
    let grid = part.slid.grid;
    let (height, width) = (grid.height as usize, grid.width as usize);
    for half in 0..2 {
        let feature = part.features.start + panel * 2 * V::N + half * V::N;
        // SAFETY: the features are the part's.
        unsafe {
            let bias = match part.slid.bias {
                Some(bias) => V::load(bias.as_ptr().add(feature)),
                None => V::splat(0.0),
            };
            for (t, tile) in part.tiles.clone().enumerate() {
                let (image, top, left) = place(grid, tile);
                let mut lines = [V::splat(0.0); SIDE * REACH];
                for x in 0..REACH {
                    let mut column = [V::splat(0.0); REACH];
                    for y in 0..REACH {
                        column[y] = V::load(sums.add((y * REACH + x) * stride + (2 * t + half) * V::N));
                    }
                    let column = gathered(column);
                    for y in 0..SIDE {
                        lines[y * REACH + x] = column[y];
                    }
                }
                for y in 0..SIDE.min(height - top) {
                    let mut line = [V::splat(0.0); REACH];
                    line.copy_from_slice(&lines[y * REACH..][..REACH]);
                    let line = gathered(line);
                    for x in 0..SIDE.min(width - left) {
                        let pixel = image * height * width + (top + y) * width + left + x;
                        line[x].add(bias).store(part.out.add(pixel * part.slid.features + feature));
                    }
                }
            }
        }
    }
}

/// Six points, brought back to four pixels side by side.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn gathered<V: Lanes>([a, b, c, d, e, f]: [V; REACH]) -> [V; SIDE] {
    // SAFETY: the caller's contract.
    unsafe {
        let (sum, difference, far_sum, far_difference) = (b.add(c), b.sub(c), d.add(e), d.sub(e));
        let (near, far) = (difference.mul(V::splat(NEAR)), sum.mul(V::splat(NEAR2)));
        [
            a.add(sum).add(far_sum),
            far_difference.fma(V::splat(FAR), near),
            far_sum.fma(V::splat(FAR2), far),
            far_difference.fma(V::splat(FAR * FAR2), difference.fma(V::splat(NEAR * NEAR2), f)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::float::testing::{Random, assert_same_bits, encode};

    fn around(grid: Grid) -> Slide {
        Slide { grid, size: 3, stride: 1, before: 1, after: 1 }
    }

    /// All parts of a result, divided into at least `wanted`.
    fn whole(isa: Isa, slid: Slid, wanted: usize) -> Vec<f32> {
        let parts = Parts::new(slid.grid, slid.features, wanted);
        let mut out = vec![f32::NAN; slid.grid.rows() * slid.features];
        for index in 0..parts.count() {
            // What another part left behind changes nothing, and nothing behind the scratch is written.
            let floats = scratch_floats(slid.grid, slid.features);
            let mut scratch = vec![f32::NAN; floats + 64];
            scratch[floats..].fill(-7.0);
            // SAFETY: the vector has room for all pixels and features.
            unsafe { slide(isa, slid, parts, index, &mut scratch, out.as_mut_ptr()) };
            assert!(scratch[floats..].iter().all(|&x| x == -7.0), "{isa:?} {parts:?}");
        }
        out
    }

    #[test]
    fn matches_the_definition() {
        let mut random = Random::new(31);
        let grids = [(1, 1, 1), (1, 2, 2), (2, 5, 7), (1, 8, 8), (3, 4, 6), (1, 20, 31)];
        for isa in Isa::available() {
            for (images, height, width) in grids {
                for (channels, features, dtype) in
                    [(32, 32, DType::F32), (96, 64, DType::F16), (64, 96, DType::BF16), (160, 32, DType::F8E4M3)]
                {
                    let grid = Grid { images, height, width };
                    assert!(takes(&around(grid), channels, features));
                    let (w, exact) = encode(dtype, &random.floats(features * TAPS * channels, 1.0));
                    let x = random.floats(grid.rows() * channels, 1.0);
                    let (zeros, bias) = (vec![0.0; channels], random.floats(features, 1.0));
                    let slid = Slid { x: &x, grid, w: &w, dtype, bias: Some(&bias), zeros: &zeros, features };
                    let got = whole(isa, slid, 1);
                    let mut plain = whole(isa, Slid { bias: None, ..slid }, 1);
                    plain.chunks_mut(features).for_each(|row| row.iter_mut().zip(&bias).for_each(|(x, b)| *x += b));
                    assert_same_bits(&plain, &got, "the bias is added last");
                    for wanted in [2, 7, 100] {
                        assert_same_bits(&whole(isa, slid, wanted), &got, "in parts");
                    }
                    let (height, width) = (height as usize, width as usize);
                    for (row, got) in got.chunks(features).enumerate() {
                        let (image, y, x_at) = (row / (height * width), row / width % height, row % width);
                        // A few of the features, for time.
                        for feature in (row % 5..features).step_by(5) {
                            let (mut want, mut total) = (f64::from(bias[feature]), 0.0);
                            for tap in 0..TAPS {
                                let (line, column) = (y + tap / 3, x_at + tap % 3);
                                if line < 1 || column < 1 || line > height || column > width {
                                    continue;
                                }
                                let pixel = image * height * width + (line - 1) * width + column - 1;
                                let w = &exact[(feature * TAPS + tap) * channels..][..channels];
                                for (w, x) in w.iter().zip(&x[pixel * channels..]) {
                                    want += f64::from(*w) * f64::from(*x);
                                    total += (f64::from(*w) * f64::from(*x)).abs();
                                }
                            }
                            let error = (f64::from(got[feature]) - want).abs();
                            assert!(
                                error <= 1e-6 * (total + 1.0),
                                "{isa:?} {grid:?} {channels} {features}: {error:e} of {total}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_tile_and_feature_is_in_one_part() {
        for (images, height, width) in [(1, 1, 1), (2, 8, 8), (1, 64, 64), (1, 45, 77), (4, 3, 200), (1, 512, 512)] {
            let grid = Grid { images, height, width };
            for features in [32, 64, 320, 1280] {
                for wanted in [1, 8, 64, 1000] {
                    let parts = Parts::new(grid, features, wanted);
                    let mut seen = vec![false; parts.tiles * features / FEATURES];
                    for index in 0..parts.count() {
                        let (tiles, some) = parts.part(index);
                        assert!(!tiles.is_empty() && tiles.len() <= TILES && some.start.is_multiple_of(FEATURES));
                        assert!(!some.is_empty() && tiles.len() * some.len() <= SUMS);
                        for (tile, block) in
                            tiles.flat_map(|tile| some.clone().step_by(FEATURES).map(move |f| (tile, f)))
                        {
                            let at = &mut seen[(tile * features + block) / FEATURES];
                            assert!(!std::mem::replace(at, true), "twice: {grid:?} {features} {wanted}");
                        }
                    }
                    assert!(seen.iter().all(|&seen| seen), "{grid:?} {features} {wanted}");
                }
            }
        }
    }

    #[test]
    fn other_kernels_are_not_taken() {
        let grid = Grid { images: 1, height: 8, width: 8 };
        let slide = around(grid);
        let others = [Slide { size: 1, ..slide }, Slide { stride: 2, ..slide }, Slide { before: 0, ..slide }];
        for other in others.into_iter().chain([Slide { after: 0, ..slide }]) {
            assert!(!takes(&other, 64, 64));
        }
        assert!(!takes(&slide, 4, 320) && !takes(&slide, 320, 4) && !takes(&slide, 48, 64));
    }
}
