//! Products with weights in BF16 in [words](super::words), a pair of columns in the place of a float of
//! [`matmul`](super::matmul).

// Tiles of registers are walked by index, several arrays at once, with bounds known when compiling.
#![allow(clippy::needless_range_loop)]

use std::sync::atomic::AtomicU8;

use crate::simd::Isa;
use crate::simd::float::element::Float;
use crate::simd::float::lanes_portable::Plain;
#[cfg(target_arch = "x86_64")]
use crate::simd::float::lanes_x86::Avx512;
use crate::simd::float::matmul::{AHEAD, CONVERT_FROM, Column, Dots, Out, Product, Source, converted, streams};
use crate::simd::float::words::{LANES, Line, PAIRS, Words, exponent, exponents_of, lines_of, powers, width};

/// [`matmul`](super::matmul::matmul) of weights in BF16 with rows [in words](super::words::to_words), of `cols` columns
/// each. Plain code where this processor lacks `isa`. `exponents`, [so many](super::words::exponents_of) for each
/// feature, are 0 at first, and then kept for these weights.
///
/// # Safety
/// As for [`matmul`](super::matmul::matmul).
pub unsafe fn matmul_words(isa: Isa, w: &[u8], exponents: &[AtomicU8], x: &[Line], cols: usize, out: Out) {
    if cols == 0 {
        return;
    }
    let (row_bytes, lines) = (2 * cols, lines_of(cols));
    assert!(cols.is_multiple_of(2 * LANES) && w.len() == row_bytes * out.features && x.len().is_multiple_of(lines));
    assert!(exponents.len() == out.features * exponents_of(cols));
    let (w, rows, cols) = (w.as_ptr(), x.len() / lines, cols / 2);
    let source = Source::Rows { x: x.as_ptr().cast(), stride: lines * LANES };
    let product = Product {
        float: Float::Bf16,
        w,
        row_bytes,
        features: out.features,
        source,
        rows,
        cols,
        taps: 1,
        exponents,
        out,
    };
    // SAFETY: the product is as it was checked; the instruction set was just detected, and plain vectors run everywhere.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni if isa.is_available() => match product.rows {
                CONVERT_FROM.. => many_words_avx512(&product),
                _ => few_words_avx512(&product),
            },
            Isa::Avx512Vnni | Isa::Avx2 | Isa::Portable => words_portable(&product),
        }
    }
}

/// By itself, as [`few_words_avx512`].
///
/// # Safety
/// As for [`matmul`](super::matmul::matmul).
#[inline(never)]
unsafe fn words_portable(product: &Product) {
    // SAFETY: this function's own contract; plain vectors run everywhere.
    unsafe {
        match product.rows {
            CONVERT_FROM.. => converted::<Plain<LANES>, Pairs>(product),
            _ => streams::<(Plain<LANES>, Pairs)>(product),
        }
    }
}

/// # Safety
/// As for [`matmul`](super::matmul::matmul); the processor has AVX2, FMA, F16C and AVX-512 F, BW, VL, DQ and VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn many_words_avx512(product: &Product) {
    // SAFETY: this function's own contract.
    unsafe { converted::<Avx512, Pairs>(product) }
}

/// By itself, for it has no use for the room of [`converted`], each page of which would be touched.
///
/// # Safety
/// As for [`many_words_avx512`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn few_words_avx512(product: &Product) {
    // SAFETY: this function's own contract.
    unsafe { streams::<(Avx512, Pairs)>(product) }
}

/// Two columns, as words.
struct Pairs;

impl<V: Words> Column<V> for Pairs {
    const COLS: usize = PAIRS;
    const GROUP: usize = 16;
    const CARRIED: bool = false;

    #[inline(always)]
    unsafe fn convert(product: &Product, feature: usize, col: usize, cols: usize, to: *mut f32) -> f32 {
        // SAFETY: the caller's contract; a pair takes four bytes, and pieces are whole vectors.
        unsafe {
            let (from, [scale, inverse]) = piece_of::<V>(product, feature, col, cols);
            let scale = V::splat(scale);
            for line in 0..cols / LANES {
                V::words_of_bf16(from.add(64 * line), scale).store(to.add(LANES * line));
            }
            inverse
        }
    }

    #[inline(always)]
    unsafe fn add_product(w: V, x: V, sum: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { w.add_words(x, sum) }
    }

    #[inline(always)]
    unsafe fn add_piece(piece: V, scale: f32, before: V) -> V {
        // SAFETY: the caller's contract.
        unsafe { piece.as_floats().fma(V::splat(scale), before) }
    }
}

/// Where a piece of a feature's weights begins, what brings it to integers, and what undoes that.
///
/// # Safety
/// The piece, `cols` pairs from `col` on, is one of the product's; the processor has the instruction set of `V`.
#[inline(always)]
unsafe fn piece_of<V: Words>(product: &Product, feature: usize, col: usize, cols: usize) -> (*const u8, [f32; 2]) {
    let width = width(product.cols);
    // SAFETY: inside the weights, and every piece has an exponent.
    unsafe {
        let from = product.weight(feature).add(4 * col);
        let known = product.exponents.get_unchecked(feature * product.cols.div_ceil(width) + col / width);
        (from, powers(exponent::<V>(known, from, cols / LANES)))
    }
}

impl<V: Words> Dots for (V, Pairs) {
    #[inline(always)]
    unsafe fn dots<const R: usize, const T: usize>(product: &Product, features: [usize; R], row: usize) {
        // SAFETY: offsets stay below the row's length, except those of prefetches, which may point anywhere; the units of
        // pieces lie behind a row's words.
        unsafe {
            let (x, stride) = product.x(row);
            let width = width(product.cols);
            let mut sums = [[V::splat(0.0); T]; R];
            for (piece, col) in (0..product.cols).step_by(width).enumerate() {
                let cols = width.min(product.cols - col);
                let (mut w, mut scales, mut inverses) = ([product.w; R], [V::splat(0.0); R], [0.0; R]);
                for r in 0..R {
                    let (from, [scale, inverse]) = piece_of::<V>(product, features[r], col, cols);
                    (w[r], scales[r], inverses[r]) = (from, V::splat(scale), inverse);
                }
                let mut products = [[V::splat(0.0); T]; R];
                for i in (0..cols).step_by(LANES) {
                    for r in 0..R {
                        // Twice as far as where floats are read, for a line is done with sooner.
                        V::prefetch(w[r].wrapping_add(4 * i + 2 * AHEAD));
                        let words = V::words_of_bf16(w[r].add(4 * i), scales[r]);
                        for t in 0..T {
                            let x = V::load(x.add(t * stride + col + i));
                            products[r][t] = words.add_words(x, products[r][t]);
                        }
                    }
                }
                for t in 0..T {
                    let unit = x.add(t * stride + product.cols + piece).read();
                    for r in 0..R {
                        sums[r][t] = Pairs::add_piece(products[r][t], inverses[r] * unit, sums[r][t]);
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
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use tenure_tensor::DType;

    use super::*;
    use crate::simd::float::testing::{Random, encode};
    use crate::simd::float::words::to_words;

    fn product(isa: Isa, w: &[u8], x: &[f32], cols: usize, features: usize) -> Vec<f32> {
        let (rows, stride) = (x.len() / cols, features + 3);
        let mut lines = vec![Line::zeroed(); rows * lines_of(cols)];
        for (x, lines) in x.chunks(cols).zip(lines.chunks_mut(lines_of(cols))) {
            to_words(isa, x, lines);
        }
        let exponents: Vec<AtomicU8> = (0..features * exponents_of(cols)).map(|_| AtomicU8::new(0)).collect();
        let mut out = vec![-7.0; rows * stride];
        // The second time the exponents are known.
        for _ in 0..2 {
            out.fill(-7.0);
            // SAFETY: the vector has room for all rows.
            unsafe { matmul_words(isa, w, &exponents, &lines, cols, Out { base: out.as_mut_ptr(), stride, features }) };
        }
        let (kept, beside): (Vec<_>, Vec<_>) = out.chunks(stride).map(|row| row.split_at(features)).unzip();
        assert!(beside.concat().iter().all(|&x| x == -7.0), "elements beside the product stay");
        kept.concat()
    }

    /// Numbers of many sizes, of which products have errors of their own.
    fn floats(random: &mut Random, len: usize) -> Vec<f32> {
        (0..len).map(|_| random.float() * 2f32.powi((random.bits() % 8) as i32 - 6)).collect()
    }

    /// Each with what it is rounded to: a multiple of a piece's unit.
    fn rounded(x: &[f32], width: usize, unit: impl Fn(f64) -> f64) -> Vec<f64> {
        x.chunks(width)
            .flat_map(|piece| {
                let unit = unit(piece.iter().fold(0.0, |most, x| most.max(f64::from(x.abs()))));
                piece.iter().map(move |&x| (f64::from(x) / unit).round_ties_even() * unit)
            })
            .collect()
    }

    #[test]
    fn products_are_those_of_numbers_in_14_and_13_bits() {
        let mut random = Random::new(17);
        for isa in Isa::available() {
            for cols in [32, 64, 576, 640, 672, 1280, 1312, 3072] {
                for (features, rows) in [(1, 1), (3, 2), (4, 3), (5, 5), (13, 6), (21, 7), (9, 13), (17, 49), (8, 200)]
                {
                    if rows * features * cols > 300_000 {
                        continue;
                    }
                    let (w, exact) = encode(DType::BF16, &floats(&mut random, features * cols));
                    let x = floats(&mut random, rows * cols);
                    let got = product(isa, &w, &x, cols, features);
                    let width = 2 * width(cols / 2);
                    let x: Vec<_> = x.chunks(cols).flat_map(|x| rounded(x, width, |most| most / 8191.0)).collect();
                    let power = |most: f64| 2f64.powf(most.log2().floor() - 11.0);
                    let w: Vec<_> = exact.chunks(cols).flat_map(|w| rounded(w, width, power)).collect();
                    for (i, &got) in got.iter().enumerate() {
                        let (w, x) = (&w[i % features * cols..][..cols], &x[i / features * cols..][..cols]);
                        let products = w.iter().zip(x).map(|(w, x)| w * x);
                        let (want, size) = products.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                        let most = |x: &[f64]| x.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
                        let error = (f64::from(got) - want).abs();
                        // Of an activation that lies between two, the last bit of its unit decides.
                        let bound = 2e-6 * size + most(w) * most(x) / 8191.0;
                        assert!(error <= bound, "{isa:?} {cols} {features} {rows}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_largest_products_fit() {
        for isa in Isa::available() {
            for cols in [640, 1280] {
                let (w, _) = encode(DType::BF16, &vec![-1.992_187_5; cols]);
                for rows in [1, 7] {
                    let got = product(isa, &w, &vec![3.0; rows * cols], cols, 1);
                    let want = -1.992_187_5 * 3.0 * cols as f32;
                    assert!(got.iter().all(|got| (got / want - 1.0).abs() < 1e-6), "{isa:?} {got:?} {want}");
                }
            }
        }
    }

    #[test]
    fn a_result_does_not_depend_on_its_neighbours() {
        let mut random = Random::new(18);
        for isa in Isa::available() {
            for (cols, rows) in [(32, 53), (576, 53), (1312, 53), (2624, 197)] {
                let features = 21;
                let (w, _) = encode(DType::BF16, &floats(&mut random, features * cols));
                let x = floats(&mut random, rows * cols);
                let whole = product(isa, &w, &x, cols, features);
                for (first, count) in [(0, 1), (3, 9), (4, 17)] {
                    let w = &w[first * 2 * cols..(first + count) * 2 * cols];
                    for together in [1, 2, 3, 5, 6, 11, 48] {
                        let parts = x.chunks(together * cols).flat_map(|x| product(isa, w, x, cols, count));
                        let want = whole.chunks(features).flat_map(|row| &row[first..first + count]);
                        assert!(parts.map(f32::to_bits).eq(want.map(|x| x.to_bits())), "{isa:?} {cols} {together}");
                    }
                }
            }
        }
    }

    #[test]
    fn not_a_number_stays_in_its_row_and_feature_and_any_size_is_taken() {
        for (isa, none) in Isa::available().into_iter().flat_map(|isa| [(isa, f32::NAN), (isa, f32::INFINITY)]) {
            for rows in [1, 3, 7] {
                let (cols, features) = (64, 6);
                let mut w = vec![1.0; features * cols];
                w[2 * cols + 63] = none;
                w[3 * cols..4 * cols].fill(0.0);
                w[4 * cols..5 * cols].fill(1e-30);
                w[5 * cols..].fill(1e30);
                let mut x = vec![2.0; rows * cols];
                x[5] = none;
                if rows > 2 {
                    x[cols..2 * cols].fill(0.0);
                    x[2 * cols..3 * cols].fill(-1e5);
                }
                let (w, exact) = encode(DType::BF16, &w);
                let got = product(isa, &w, &x, cols, features);
                for (i, &got) in got.iter().enumerate() {
                    let want = exact[i % features * cols] * x[i / features * cols] * cols as f32;
                    match (i / features, i % features) {
                        (0, _) | (_, 2) => assert!(got.is_nan()),
                        _ => assert!((got - want).abs() <= 1e-6 * want.abs(), "{isa:?} {i}: {got} {want}"),
                    }
                }
            }
        }
    }
}
