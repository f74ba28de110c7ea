//! Products with weights that a file holds as floats, read as they lie there.
//!
//! The order of every dot product: vector by vector along the row into one accumulator of the instruction set's
//! width, the last vector padded with zeros, then the accumulator's lanes by halves. All kernels here keep to it, so
//! a result does not depend on how many rows or features a call has.

// Tiles of registers are walked by index, several arrays at once, with bounds known when compiling.
#![allow(clippy::needless_range_loop)]

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::AtomicU8;

use tenure_graph::{Grid, Slide};
use tenure_tensor::DType;

use crate::simd::Isa;
use crate::simd::float::element::{Element, Float, with_element};
use crate::simd::float::lanes::{Kernel, Lanes, dispatch};

/// Where a product's results go: `features` columns of each row, rows `stride` floats apart.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// The first feature of the first row.
    pub base: *mut f32,
    /// Floats from one row to the next.
    pub stride: usize,
    /// Columns written.
    pub features: usize,
}

/// `out[row][feature] = dot(w[feature], x[row])`: `w` holds `out.features` rows of `cols` elements of F32, F16,
/// BF16 or a float of 8 bits, at any address; `x` any number of rows of `cols` floats. Every other type, and a call with nothing to do,
/// leaves `out` as it is.
///
/// # Safety
/// `out` is valid for every row of `x`, and nobody else touches those elements meanwhile.
pub unsafe fn matmul(isa: Isa, dtype: DType, w: &[u8], x: &[f32], cols: usize, out: Out) {
    let Some(row_bytes) = dtype.row_bytes(cols).filter(|&bytes| bytes > 0) else { return };
    assert!(w.len() == row_bytes * out.features && x.len().is_multiple_of(cols));
    let Some(float) = Float::of(dtype) else { return };
    let (w, rows) = (w.as_ptr(), x.len() / cols);
    let source = Source::Rows { x: x.as_ptr(), stride: cols };
    let product =
        Product { float, w, row_bytes, features: out.features, source, rows, cols, taps: 1, exponents: &[], out };
    // Kernels of their own: few rows have no use for the room that many need, each page of which would be touched.
    match rows {
        CONVERT_FROM.. => dispatch(isa, Many(product)),
        _ => dispatch(isa, Few(product)),
    }
}

/// Whether [`matmul`] takes weights of a type.
pub fn has_kernel(dtype: DType) -> bool {
    Float::of(dtype).is_some()
}

/// Rows `rows` of a kernel slid over images (channels last): `w` holds `out.features` results of `size * size * channels`
/// elements, place by place, of a type that [`has_kernel`] says yes to. `zeros` are as many as there are channels, for what lies outside.
/// The kernel is no larger than [`MOST_SIZE`].
///
/// # Safety
/// `out` is valid for so many rows, the first of which is `rows.start`, and nobody else touches them meanwhile.
#[allow(clippy::too_many_arguments)] // Images, kernel, and which part.
pub unsafe fn conv2d(
    isa: Isa,
    dtype: DType,
    w: &[u8],
    x: &[f32],
    slide: &Slide,
    zeros: &[f32],
    rows: Range<usize>,
    out: Out,
) {
    let (channels, size) = (zeros.len(), slide.size as usize);
    let Some(result) = slide.result() else { return };
    let Some(row_bytes) = dtype.row_bytes(size * size * channels).filter(|&bytes| bytes > 0) else { return };
    assert!(size <= MOST_SIZE && rows.end <= result.rows());
    assert!(w.len() == row_bytes * out.features && x.len() == slide.grid.rows() * channels);
    let Some(float) = Float::of(dtype) else { return };
    let source = Source::Slide { x: x.as_ptr(), zeros: zeros.as_ptr(), slide, result, first: rows.start };
    let (rows, features) = (rows.len(), out.features);
    let product = Product {
        float,
        w: w.as_ptr(),
        row_bytes,
        features,
        source,
        rows,
        cols: channels,
        taps: size * size,
        exponents: &[],
        out,
    };
    dispatch(isa, Many(product));
}

/// The largest kernel's height and width.
pub const MOST_SIZE: usize = 3;

/// Rows from which on weights are converted once for all of them.
pub(super) const CONVERT_FROM: usize = 6;
/// The most rows that a converted piece of the weights is used for; they and the piece stay in the second-level cache.
/// Processors with narrow vectors have half as much of it, and get half as many.
const ROWS: usize = 192;
/// The most features whose weights are converted together.
const FEATURES: usize = 16;
/// Columns converted together, where they are floats.
const COLS: usize = 640;
/// Features computed side by side.
const SIDE: usize = 4;
/// Bytes between a read of the weights and the prefetch issued with it.
pub(super) const AHEAD: usize = 1024;

/// What the columns of rows and of converted weights are.
pub(super) trait Column<V: Lanes> {
    /// Columns converted together.
    const COLS: usize;
    /// Features whose converted weights stay in the first-level cache while all rows pass.
    const GROUP: usize;
    /// Whether products of a piece are sums of the whole row's kind, to which the next piece's are added.
    const CARRIED: bool;

    /// Converts `cols` columns of a feature's weights from column `col` on, padded with zeros to whole vectors. Returns
    /// what products with them are multiplied with.
    ///
    /// # Safety
    /// They are a piece of the product, `to` is valid for `COLS`. The processor has the instruction set.
    unsafe fn convert(product: &Product, feature: usize, col: usize, cols: usize, to: *mut f32) -> f32;

    /// `sum` and a product in each lane.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn add_product(w: V, x: V, sum: V) -> V;

    /// The sums of a row so far and of the next piece, where products are not carried.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn add_piece(piece: V, scale: f32, before: V) -> V;
}

struct Floats;

impl<V: Lanes> Column<V> for Floats {
    const COLS: usize = COLS;
    const GROUP: usize = 8;
    const CARRIED: bool = true;

    #[inline(always)]
    unsafe fn convert(product: &Product, feature: usize, col: usize, cols: usize, to: *mut f32) -> f32 {
        // SAFETY: the caller's contract.
        unsafe { with_element!(product.float, E => convert::<V, E>(product.weight(feature), col, cols, to)) };
        1.0
    }

    #[inline(always)]
    unsafe fn add_product(w: V, x: V, sum: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { w.fma(x, sum) }
    }

    #[inline(always)]
    unsafe fn add_piece(piece: V, _: f32, _: V) -> V {
        piece
    }
}

pub(super) struct Product<'s> {
    pub(super) float: Float,
    pub(super) w: *const u8,
    pub(super) row_bytes: usize,
    pub(super) features: usize,
    pub(super) source: Source<'s>,
    pub(super) rows: usize,
    /// Of a row that lie together; a row of the weights has as many for each tap.
    pub(super) cols: usize,
    pub(super) taps: usize,
    /// Of each feature's pieces, where they are multiplied in words.
    pub(super) exponents: &'s [AtomicU8],
    pub(super) out: Out,
}

/// Where the rows are that weights are multiplied with.
#[derive(Clone, Copy)]
pub(super) enum Source<'s> {
    /// One after the other.
    Rows { x: *const f32, stride: usize },
    /// Of places of a kernel, tap by tap.
    Slide { x: *const f32, zeros: *const f32, slide: &'s Slide, result: Grid, first: usize },
}

impl Product<'_> {
    /// # Safety
    /// `feature < self.features`.
    #[inline(always)]
    pub(super) unsafe fn weight(&self, feature: usize) -> *const u8 {
        // SAFETY: inside `w`.
        unsafe { self.w.add(feature * self.row_bytes) }
    }

    /// # Safety
    /// `row < self.rows`; the rows are one after the other.
    #[inline(always)]
    pub(super) unsafe fn x(&self, row: usize) -> (*const f32, usize) {
        match self.source {
            // SAFETY: inside `x`.
            Source::Rows { x, stride } => (unsafe { x.add(row * stride) }, stride),
            Source::Slide { zeros, .. } => (zeros, 0),
        }
    }

    /// Puts where so many rows are, for each tap.
    ///
    /// # Safety
    /// `first + count <= self.rows` and `count <= ROWS`; `table` is valid for [`ROWS`] pointers for each tap.
    #[inline(always)]
    unsafe fn places(&self, first: usize, count: usize, table: *mut *const f32) {
        match self.source {
            Source::Rows { x, stride } => {
                for t in 0..count {
                    // SAFETY: the caller's contract.
                    unsafe { table.add(t).write(x.add((first + t) * stride)) };
                }
            }
            Source::Slide { x, zeros, slide, result, first: begin } => {
                let (width, height) = (result.width as usize, result.height as usize);
                let (grid, size) = (slide.grid, slide.size as usize);
                for t in 0..count {
                    let row = begin + first + t;
                    let (image, at) = (row / (width * height), row % (width * height));
                    let (top, left) = (at / width * slide.stride as usize, at % width * slide.stride as usize);
                    for tap in 0..size * size {
                        let (y, x_at) = (top + tap / size, left + tap % size);
                        let before = slide.before as usize;
                        let inside = y >= before
                            && x_at >= before
                            && y - before < grid.height as usize
                            && x_at - before < grid.width as usize;
                        // SAFETY: a pixel of the grid; the caller's contract.
                        unsafe {
                            let place = if inside {
                                let pixel = image * grid.pixels() + (y - before) * grid.width as usize + x_at - before;
                                x.add(pixel * self.cols)
                            } else {
                                zeros
                            };
                            table.add(tap * ROWS + t).write(place);
                        }
                    }
                }
            }
        }
    }

    /// # Safety
    /// Both are inside the product.
    #[inline(always)]
    pub(super) unsafe fn place(&self, row: usize, feature: usize) -> *mut f32 {
        // SAFETY: the caller of `matmul` vouches for `out`.
        unsafe { self.out.base.add(row * self.out.stride + feature) }
    }
}

/// A product of many rows, or with a kernel slid over images.
struct Many<'s>(Product<'s>);

impl Kernel for Many<'_> {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // SAFETY: the product is as `matmul` checked it; the caller vouches for the instruction set.
        unsafe { converted::<V, Floats>(&self.0) }
    }
}

/// A product of few rows.
struct Few<'s>(Product<'s>);

impl Kernel for Few<'_> {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // SAFETY: as for `Many`.
        unsafe { with_element!(self.0.float, E => streams::<(V, E)>(&self.0)) }
    }
}

/// Dot products of a few rows.
pub(super) trait Dots {
    /// Of `R` features with the `T` rows from `row` on.
    ///
    /// # Safety
    /// The features and rows lie inside the product; the processor has the instruction set.
    unsafe fn dots<const R: usize, const T: usize>(product: &Product, features: [usize; R], row: usize);
}

/// Vectors, and elements that are converted to floats.
impl<V: Lanes, E: Element> Dots for (V, E) {
    #[inline(always)]
    unsafe fn dots<const R: usize, const T: usize>(product: &Product, features: [usize; R], row: usize) {
        // SAFETY: the caller's contract.
        unsafe { dots::<V, E, R, T>(product, features, row) }
    }
}

/// All features for a few rows.
///
/// # Safety
/// As for [`matmul`].
#[inline(always)]
pub(super) unsafe fn streams<D: Dots>(product: &Product) {
    let mut row = 0;
    while row < product.rows {
        let count = (product.rows - row).min(3);
        // SAFETY: so many rows are left.
        unsafe {
            match count {
                1 => stream::<D, 1>(product, row),
                2 => stream::<D, 2>(product, row),
                _ => stream::<D, 3>(product, row),
            }
        }
        row += count;
    }
}

/// All features for `T` rows: the weights are read in `SIDE` streams, each through its own part of the features.
///
/// # Safety
/// `row + T <= product.rows`.
#[inline(always)]
unsafe fn stream<D: Dots, const T: usize>(product: &Product, row: usize) {
    let part = product.features / SIDE;
    // SAFETY: every feature is below `product.features`, every row below `product.rows`.
    unsafe {
        for i in 0..part {
            D::dots::<SIDE, T>(product, [i, part + i, 2 * part + i, 3 * part + i], row);
        }
        for feature in SIDE * part..product.features {
            D::dots::<1, T>(product, [feature], row);
        }
    }
}

/// # Safety
/// The features and rows lie inside the product.
#[inline(always)]
unsafe fn dots<V: Lanes, E: Element, const R: usize, const T: usize>(
    product: &Product,
    features: [usize; R],
    row: usize,
) {
    // SAFETY: offsets stay below the row's length, except those of prefetches, which may point anywhere.
    unsafe {
        let mut w = [product.w; R];
        for r in 0..R {
            w[r] = product.weight(features[r]);
        }
        let (x, stride) = product.x(row);
        let mut sums = [[V::splat(0.0); T]; R];
        let line = 64 / E::BYTES;
        let mut i = 0;
        while i + line <= product.cols {
            for w in w {
                V::prefetch(w.wrapping_add(i * E::BYTES + AHEAD));
            }
            let end = i + line;
            while i < end {
                dots_step::<V, E, R, T>(&mut sums, w, x, i, stride);
                i += V::N;
            }
        }
        while i + V::N <= product.cols {
            dots_step::<V, E, R, T>(&mut sums, w, x, i, stride);
            i += V::N;
        }
        if i < product.cols {
            let left = product.cols - i;
            let mut vectors = [V::splat(0.0); R];
            for r in 0..R {
                vectors[r] = E::load_part(w[r].add(i * E::BYTES), left);
            }
            for t in 0..T {
                let x = V::load_part(x.add(i + t * stride), left);
                for r in 0..R {
                    sums[r][t] = vectors[r].fma(x, sums[r][t]);
                }
            }
        }
        for r in 0..R {
            for t in 0..T {
                product.place(row + t, features[r]).write(sums[r][t].sum());
            }
        }
    }
}

/// # Safety
/// The rows of `w`, and `x` and the `T - 1` rows `stride` apart behind it, are valid for `i + V::N` elements.
#[inline(always)]
unsafe fn dots_step<V: Lanes, E: Element, const R: usize, const T: usize>(
    sums: &mut [[V; T]; R],
    w: [*const u8; R],
    x: *const f32,
    i: usize,
    stride: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut vectors = [V::splat(0.0); T];
        for t in 0..T {
            vectors[t] = V::load(x.add(t * stride + i));
        }
        for r in 0..R {
            let w: V = E::load(w[r].add(i * E::BYTES));
            for t in 0..T {
                sums[r][t] = w.fma(vectors[t], sums[r][t]);
            }
        }
    }
}

/// A piece of the weights as `f32`, where the rows are that it is multiplied with, and the accumulators of all products:
/// 150 to 250 KiB of the stack, of which narrow vectors leave a third alone.
#[repr(C, align(64))]
struct Room<V> {
    w: MaybeUninit<[[f32; COLS]; FEATURES]>,
    scales: MaybeUninit<[f32; FEATURES]>,
    places: MaybeUninit<[[*const f32; ROWS]; MOST_SIZE * MOST_SIZE]>,
    sums: MaybeUninit<[[V; FEATURES]; ROWS]>,
}

/// Columns of each piece of `cols` but the last, of no more than `most`. They are alike: a narrow one would spend its time
/// on loading and storing accumulators.
pub(super) const fn piece_width(cols: usize, most: usize) -> usize {
    cols.div_ceil(cols.div_ceil(most)).next_multiple_of(16)
}

/// All features for all rows, each piece of the weights converted once for up to `ROWS` rows.
///
/// # Safety
/// As for [`matmul`].
#[inline(always)]
pub(super) unsafe fn converted<V: Lanes, C: Column<V>>(product: &Product) {
    let mut room = Room::<V> {
        w: MaybeUninit::uninit(),
        scales: MaybeUninit::uninit(),
        places: MaybeUninit::uninit(),
        sums: MaybeUninit::uninit(),
    };
    let (w, sums) = (room.w.as_mut_ptr().cast::<f32>(), room.sums.as_mut_ptr().cast::<V>());
    let scales = room.scales.as_mut_ptr().cast::<f32>();
    let places = room.places.as_mut_ptr().cast::<*const f32>();
    let width = piece_width(product.cols, C::COLS);
    let col_bytes = product.row_bytes / (product.taps * product.cols);
    // Taps of which a piece has all columns.
    let side_by_side = (C::COLS / width).clamp(1, product.taps);
    // Long rows do not stay in the cache as a whole: each piece of them is used for more features then.
    let together = if product.cols > 2 * C::COLS { FEATURES } else { C::GROUP };
    let most = if V::WIDE { ROWS } else { ROWS / 2 };
    // Equal shares, in whole tiles.
    let share = product.rows.div_ceil(product.rows.div_ceil(most).max(1)).next_multiple_of(6);
    let mut row = 0;
    while row < product.rows {
        let rows = share.min(product.rows - row);
        // SAFETY: so many rows are left, and there are no more taps than there is room for.
        unsafe { product.places(row, rows, places) };
        let mut feature = 0;
        while feature < product.features {
            let features = together.min(product.features - feature);
            let (mut tap, mut col) = (0, 0);
            while tap < product.taps {
                let cols = width.min(product.cols - col);
                let taps = side_by_side.min(product.taps - tap);
                // SAFETY: the piece lies inside the product and fits the room; the tiles read what was converted, and
                // accumulators only from the second piece on; they write results inside the product.
                unsafe {
                    let last = tap + taps == product.taps && col + cols == product.cols;
                    for f in 0..features {
                        for i in 0..taps {
                            let at = (tap + i) * product.cols + col;
                            // About where the next piece begins: of the next features, or of these. Of several taps
                            // a piece has all columns.
                            let ahead = if last {
                                features * product.row_bytes + i * product.cols * col_bytes
                            } else {
                                (at + taps * cols) * col_bytes
                            };
                            let next = product.weight(feature + f).wrapping_add(ahead);
                            for byte in (0..cols * col_bytes).step_by(64) {
                                V::prefetch(next.wrapping_add(byte));
                            }
                            let to = w.add(f * C::COLS + i * width);
                            scales.add(f).write(C::convert(product, feature + f, at, cols, to));
                        }
                    }
                    let x = places.add(tap * ROWS);
                    let first = tap == 0 && col == 0;
                    let (out, out_stride) = (product.place(row, feature), product.out.stride);
                    // Where there are units, pieces are of one tap.
                    let unit = product.cols + col / width;
                    let piece =
                        Piece { w, scales, x, unit, taps, width, col, cols, sums, first, last, out, out_stride };
                    let mut first = 0;
                    while first < features {
                        rows_of_tiles::<V, C>(&piece, first..features.min(first + C::GROUP), rows);
                        first += C::GROUP;
                    }
                }
                col += cols;
                if col == product.cols {
                    (tap, col) = (tap + taps, 0);
                }
            }
            feature += features;
        }
        row += rows;
    }
}

/// Converts `cols` elements of a row from element `col` on, padded with zeros to whole vectors.
///
/// # Safety
/// The row is valid for `col + cols` elements, `to` for `COLS`; `cols <= COLS`.
#[inline(always)]
unsafe fn convert<V: Lanes, E: Element>(row: *const u8, col: usize, cols: usize, to: *mut f32) {
    let mut i = 0;
    // SAFETY: below `cols`; the padding ends at a multiple of the vector's size, which divides `COLS`.
    unsafe {
        let from = row.add(col * E::BYTES);
        while i + V::N <= cols {
            E::load::<V>(from.add(i * E::BYTES)).store(to.add(i));
            i += V::N;
        }
        if i < cols {
            E::load_part::<V>(from.add(i * E::BYTES), cols - i).store(to.add(i));
        }
    }
}

/// Converted weights, the rows they are multiplied with, and the accumulators of their products.
struct Piece<V> {
    w: *const f32,
    /// What products with each feature are multiplied with, and where in a row what they are multiplied with for it is;
    /// where they are not carried from piece to piece.
    scales: *const f32,
    unit: usize,
    /// The rows' places, tap by tap.
    x: *const *const f32,
    taps: usize,
    /// Floats from one tap's weights to the next.
    width: usize,
    /// The first column of each tap, and how many.
    col: usize,
    cols: usize,
    sums: *mut V,
    /// Nothing was accumulated yet.
    first: bool,
    /// Nothing is accumulated after it: the results are due.
    last: bool,
    /// The first row's result of the first feature.
    out: *mut f32,
    out_stride: usize,
}

/// # Safety
/// `piece.x` has `rows <= ROWS` rows; the features are below `FEATURES` and converted.
#[inline(always)]
unsafe fn rows_of_tiles<V: Lanes, C: Column<V>>(piece: &Piece<V>, features: Range<usize>, rows: usize) {
    let side = if V::WIDE { 6 } else { 3 };
    let mut t = 0;
    while t < rows {
        let count = (rows - t).min(side);
        // SAFETY: so many rows are left.
        unsafe {
            match count {
                1 => tiles::<V, C, 1>(piece, features.clone(), t),
                2 => tiles::<V, C, 2>(piece, features.clone(), t),
                3 => tiles::<V, C, 3>(piece, features.clone(), t),
                4 if V::WIDE => tiles::<V, C, 4>(piece, features.clone(), t),
                5 if V::WIDE => tiles::<V, C, 5>(piece, features.clone(), t),
                _ if V::WIDE => tiles::<V, C, 6>(piece, features.clone(), t),
                _ => {}
            }
        }
        t += count;
    }
}

/// # Safety
/// As for [`rows_of_tiles`]; rows `row` to `row + T` are among them.
#[inline(always)]
unsafe fn tiles<V: Lanes, C: Column<V>, const T: usize>(piece: &Piece<V>, features: Range<usize>, row: usize) {
    let mut f = features.start;
    // SAFETY: the caller's contract.
    unsafe {
        while f + SIDE <= features.end {
            tile::<V, C, SIDE, T>(piece, f, row);
            f += SIDE;
        }
        while f < features.end {
            tile::<V, C, 1, T>(piece, f, row);
            f += 1;
        }
    }
}

/// # Safety
/// As for [`tiles`], for the `R` features from `feature` on.
#[inline(always)]
unsafe fn tile<V: Lanes, C: Column<V>, const R: usize, const T: usize>(piece: &Piece<V>, feature: usize, row: usize) {
    // SAFETY: the caller's contract; the accumulator of row `t` and feature `f` is the one at `t * FEATURES + f`.
    unsafe {
        let w = piece.w.add(feature * C::COLS);
        let kept = piece.sums.add(row * FEATURES + feature);
        let mut sums = [[V::splat(0.0); T]; R];
        if C::CARRIED && !piece.first {
            for r in 0..R {
                for t in 0..T {
                    sums[r][t] = kept.add(t * FEATURES + r).read();
                }
            }
        }
        for tap in 0..piece.taps {
            let w = w.add(tap * piece.width);
            let mut rows = [std::ptr::null(); T];
            for t in 0..T {
                rows[t] = piece.x.add(tap * ROWS + row + t).read().add(piece.col);
            }
            let mut i = 0;
            while i + V::N <= piece.cols {
                let mut x = [V::splat(0.0); T];
                for t in 0..T {
                    x[t] = V::load(rows[t].add(i));
                }
                for r in 0..R {
                    let w = V::load(w.add(r * C::COLS + i));
                    for t in 0..T {
                        sums[r][t] = C::add_product(w, x[t], sums[r][t]);
                    }
                }
                i += V::N;
            }
            if i < piece.cols {
                for t in 0..T {
                    let x = V::load_part(rows[t].add(i), piece.cols - i);
                    for r in 0..R {
                        sums[r][t] = C::add_product(V::load(w.add(r * C::COLS + i)), x, sums[r][t]);
                    }
                }
            }
        }
        if !C::CARRIED {
            for t in 0..T {
                let unit = piece.x.add(row + t).read().add(piece.unit).read();
                for r in 0..R {
                    let before = if piece.first { V::splat(0.0) } else { kept.add(t * FEATURES + r).read() };
                    let scale = piece.scales.add(feature + r).read() * unit;
                    sums[r][t] = C::add_piece(sums[r][t], scale, before);
                }
            }
        }
        if !piece.last {
            for r in 0..R {
                for t in 0..T {
                    kept.add(t * FEATURES + r).write(sums[r][t]);
                }
            }
            return;
        }
        let out = piece.out.add(row * piece.out_stride + feature);
        for first in (0..R * T).step_by(8) {
            let mut eight = [V::splat(0.0); 8];
            for at in first..(first + 8).min(R * T) {
                eight[at - first] = sums[at % R][at / R];
            }
            let mut results = [0.0; 8];
            V::store_sums(eight, results.as_mut_ptr());
            for at in first..(first + 8).min(R * T) {
                out.add(at / R * piece.out_stride + at % R).write(results[at - first]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::float::lanes_portable::Plain;
    use crate::simd::float::testing::{Random, assert_same_bits, encode};

    const TYPES: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];

    fn product(isa: Isa, dtype: DType, w: &[u8], x: &[f32], cols: usize, features: usize) -> Vec<f32> {
        let rows = x.len() / cols;
        let stride = features + 3;
        let mut out = vec![-7.0; rows * stride];
        // SAFETY: the vector has room for all rows.
        unsafe { matmul(isa, dtype, w, x, cols, Out { base: out.as_mut_ptr(), stride, features }) };
        let (kept, beside): (Vec<_>, Vec<_>) = out.chunks(stride).map(|row| row.split_at(features)).unzip();
        assert!(beside.concat().iter().all(|&x| x == -7.0), "elements beside the product stay");
        kept.concat()
    }

    #[test]
    fn matches_the_definition() {
        let mut random = Random::new(7);
        for isa in Isa::available() {
            for dtype in TYPES {
                for cols in [1, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 511, 512, 513, 1030, 1536] {
                    for features in [1, 3, 4, 5, 8, 13] {
                        for rows in [1, 2, 3, 4, 5, 6, 7, 49] {
                            if rows * features * cols > 200_000 {
                                continue;
                            }
                            let (w, exact) = encode(dtype, &random.floats(features * cols, 1.0));
                            let x = random.floats(rows * cols, 1.0);
                            let got = product(isa, dtype, &w, &x, cols, features);
                            for row in 0..rows {
                                for feature in 0..features {
                                    let pairs = exact[feature * cols..][..cols].iter().zip(&x[row * cols..]);
                                    let (mut want, mut size) = (0.0, 0.0);
                                    for (&w, &x) in pairs {
                                        want += f64::from(w) * f64::from(x);
                                        size += (f64::from(w) * f64::from(x)).abs();
                                    }
                                    let got = got[row * features + feature];
                                    assert!(
                                        (f64::from(got) - want).abs() <= 2e-6 * size,
                                        "{isa:?} {dtype:?} {cols} {features} {rows}: {got} {want}"
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_result_does_not_depend_on_its_neighbours() {
        let mut random = Random::new(8);
        for isa in Isa::available() {
            for dtype in TYPES {
                for (cols, rows) in [(5, 53), (64, 53), (515, 53), (1100, 53), (1300, 197)] {
                    if rows > 53 && dtype != DType::F16 {
                        continue;
                    }
                    let features = 21;
                    let (w, _) = encode(dtype, &random.floats(features * cols, 1.0));
                    let x = random.floats(rows * cols, 1.0);
                    let whole = product(isa, dtype, &w, &x, cols, features);
                    let row_bytes = w.len() / features;
                    for (first, count) in [(0, 1), (20, 1), (3, 9), (4, 17)] {
                        let w = &w[first * row_bytes..(first + count) * row_bytes];
                        for together in [1, 2, 3, 5, 6, 11, 48] {
                            let mut row = 0;
                            for x in x.chunks(together * cols) {
                                let part = product(isa, dtype, w, x, cols, count);
                                for part in part.chunks(count) {
                                    let want = &whole[row * features + first..][..count];
                                    assert_same_bits(part, want, &format!("{isa:?} {dtype:?} {cols} {together}"));
                                    row += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn not_a_number_stays_in_its_row_and_feature() {
        for isa in Isa::available() {
            for rows in [1, 3, 7] {
                let (cols, features) = (19, 6);
                let mut w = vec![1.0; features * cols];
                w[2 * cols + 18] = f32::NAN;
                let mut x = vec![1.0; rows * cols];
                x[0] = f32::INFINITY;
                let (w, _) = encode(DType::F16, &w);
                let got = product(isa, DType::F16, &w, &x, cols, features);
                for (i, &value) in got.iter().enumerate() {
                    match (i / features, i % features) {
                        (_, 2) => assert!(value.is_nan()),
                        (0, _) => assert_eq!(value, f32::INFINITY),
                        _ => assert_eq!(value, 19.0),
                    }
                }
            }
        }
    }

    #[test]
    fn odd_addresses_are_read() {
        let (cols, features) = (70, 9);
        let mut random = Random::new(9);
        let (w, _) = encode(DType::F32, &random.floats(features * cols, 1.0));
        let x = random.floats(8 * cols, 1.0);
        let shifted: Vec<u8> = std::iter::once(0).chain(w.iter().copied()).collect();
        for isa in Isa::available() {
            let want = product(isa, DType::F32, &w, &x, cols, features);
            assert_same_bits(&product(isa, DType::F32, &shifted[1..], &x, cols, features), &want, "shifted by a byte");
        }
    }

    #[test]
    fn a_kernel_slid_over_images_matches_the_definition() {
        let mut random = Random::new(12);
        let slides = [
            (1, (5, 7), 3, 1, 1, 1),
            (2, (9, 6), 3, 2, 0, 1),
            (1, (8, 8), 3, 2, 1, 1),
            (3, (4, 4), 2, 2, 0, 0),
            (1, (1, 1), 3, 1, 1, 1),
            (1, (40, 30), 3, 1, 1, 1),
        ];
        for isa in Isa::available() {
            for (images, (height, width), size, stride, before, after) in slides {
                for (channels, features, dtype) in
                    [(1, 1, DType::F32), (4, 9, DType::F16), (33, 5, DType::BF16), (700, 3, DType::F8E4M3)]
                {
                    if channels * height * width > 40_000 {
                        continue;
                    }
                    let slide = Slide {
                        grid: Grid { images, height: height as u32, width: width as u32 },
                        size: size as u32,
                        stride: stride as u32,
                        before,
                        after,
                    };
                    let result = slide.result().expect("fits");
                    let (w, exact) = encode(dtype, &random.floats(features * size * size * channels, 1.0));
                    let x = random.floats(slide.grid.rows() * channels, 1.0);
                    let (zeros, mut got) = (vec![0.0; channels], vec![f32::NAN; result.rows() * features]);
                    // In two calls, as members of a team would.
                    for rows in [0..result.rows() / 2, result.rows() / 2..result.rows()] {
                        // SAFETY: the vector has room for all rows.
                        unsafe {
                            let base = got.as_mut_ptr().add(rows.start * features);
                            conv2d(isa, dtype, &w, &x, &slide, &zeros, rows, Out { base, stride: features, features });
                        }
                    }
                    for row in 0..result.rows() {
                        let pixels = result.pixels();
                        let (image, y, x_at) =
                            (row / pixels, row % pixels / result.width as usize, row % result.width as usize);
                        for feature in 0..features {
                            let (mut want, mut total) = (0.0, 0.0);
                            for tap in 0..size * size {
                                let y = (y * stride + tap / size) as i64 - i64::from(before);
                                let x_at = (x_at * stride + tap % size) as i64 - i64::from(before);
                                if y < 0 || x_at < 0 || y >= height as i64 || x_at >= width as i64 {
                                    continue;
                                }
                                let pixel = image * height * width + y as usize * width + x_at as usize;
                                for channel in 0..channels {
                                    let w = exact[(feature * size * size + tap) * channels + channel];
                                    let part = f64::from(w) * f64::from(x[pixel * channels + channel]);
                                    want += part;
                                    total += part.abs();
                                }
                            }
                            let got = f64::from(got[row * features + feature]);
                            assert!(
                                (got - want).abs() <= 2e-6 * total,
                                "{isa:?} {slide:?} {channels} {features} {row}: {got} {want}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Sixteen lanes in plain Rust: what AVX-512 computes, but for the fused rounding.
    #[test]
    fn sixteen_lanes_agree_with_eight_on_whole_numbers() {
        let mut random = Random::new(10);
        for (cols, features, rows) in [(33, 5, 1), (70, 9, 3), (600, 17, 5), (600, 17, 59), (1040, 8, 13)] {
            let mut whole = |len: usize| -> Vec<f32> { (0..len).map(|_| (random.bits() % 17) as f32 - 8.0).collect() };
            let (x, (w, _)) = (whole(rows * cols), encode(DType::F16, &whole(features * cols)));
            let want = product(Isa::Portable, DType::F16, &w, &x, cols, features);
            let mut got = vec![0.0; rows * features];
            let out = Out { base: got.as_mut_ptr(), stride: features, features };
            let row_bytes = cols * 2;
            let source = Source::Rows { x: x.as_ptr(), stride: cols };
            let product = Product {
                float: Float::F16,
                w: w.as_ptr(),
                row_bytes,
                features,
                source,
                rows,
                cols,
                taps: 1,
                exponents: &[],
                out,
            };
            // SAFETY: plain vectors run everywhere, and the product is as `matmul` makes it.
            unsafe {
                match rows {
                    CONVERT_FROM.. => Many(product).run::<Plain<16>>(),
                    _ => Few(product).run::<Plain<16>>(),
                }
            }
            assert_same_bits(&got, &want, "16 lanes");
        }
    }
}
