//! Norms: root mean square, of a layer, of groups of channels.

use crate::simd::Isa;
use crate::simd::float::lanes::{Kernel, Lanes, dispatch};

/// Partial sums of squares kept side by side.
const SUMS: usize = 16;

/// `out = x / sqrt(mean(x^2) + eps) * weight` for one group of columns.
///
/// The squares are summed in f64, in an order that only the length determines: no x overflows.
pub fn rms_norm(isa: Isa, x: &[f32], weight: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    assert!(x.len() == out.len() && weight.is_none_or(|weight| weight.len() == x.len()));
    dispatch(isa, RmsNorm { x, weight, eps, out });
}

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias` for one row. Mean and variance are taken in f64, one after
/// the other, in an order that only the length determines.
pub fn layer_norm(isa: Isa, x: &[f32], weight: Option<&[f32]>, bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    assert!(x.len() == out.len());
    assert!([weight, bias].into_iter().flatten().all(|vector| vector.len() == x.len()));
    dispatch(isa, LayerNorm { x, weight, bias, eps, out });
}

/// Adds the columns of a row and their squares to the sums of their groups.
pub fn group_sums(isa: Isa, x: &[f32], sums: &mut [[f64; 2]]) {
    assert!(!sums.is_empty() && x.len().is_multiple_of(sums.len()));
    dispatch(isa, GroupSums { x, sums });
}

/// What a group norm multiplies each column with and adds to it, given the sums of each group's `count` elements.
pub fn group_factors(
    sums: &[[f64; 2]],
    count: usize,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    factors: &mut [f32],
    terms: &mut [f32],
) {
    let each = weight.len() / sums.len().max(1);
    for (column, (weight, bias)) in weight.iter().zip(bias).enumerate() {
        let [sum, squares] = sums[column / each];
        let mean = sum / count as f64;
        let variance = (squares / count as f64 - mean * mean).max(0.0);
        let factor = f64::from(*weight) / (variance + f64::from(eps)).sqrt();
        factors[column] = factor as f32;
        terms[column] = (f64::from(*bias) - mean * factor) as f32;
    }
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Result = ();

    // As for `RmsNorm`.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let LayerNorm { x, weight, bias, eps, out } = self;
        let mean = sum_of(x, |x| x) / x.len() as f64;
        let variance = sum_of(x, |x| (x - mean) * (x - mean)) / x.len() as f64;
        let factor = (1.0 / (variance + f64::from(eps)).sqrt()) as f32;
        let mean = mean as f32;
        for (out, x) in out.iter_mut().zip(x) {
            *out = (x - mean) * factor;
        }
        if let Some(weight) = weight {
            for (out, weight) in out.iter_mut().zip(weight) {
                *out *= weight;
            }
        }
        if let Some(bias) = bias {
            for (out, bias) in out.iter_mut().zip(bias) {
                *out += bias;
            }
        }
    }
}

/// The sum of a function of each element.
#[inline(always)]
fn sum_of(x: &[f32], of: impl Fn(f64) -> f64) -> f64 {
    let mut sums = [0f64; SUMS];
    let runs = x.chunks_exact(SUMS);
    let rest = runs.remainder();
    for run in runs {
        for i in 0..SUMS {
            sums[i] += of(f64::from(run[i]));
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += of(f64::from(x));
    }
    let mut half = SUMS / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

struct GroupSums<'a> {
    x: &'a [f32],
    sums: &'a mut [[f64; 2]],
}

impl Kernel for GroupSums<'_> {
    type Result = ();

    // As for `RmsNorm`.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let each = self.x.len() / self.sums.len();
        for (group, [sum, squares]) in self.x.chunks_exact(each).zip(self.sums) {
            let (mut own, mut own_squares) = (0f64, 0f64);
            for &x in group {
                own += f64::from(x);
                own_squares += f64::from(x) * f64::from(x);
            }
            *sum += own;
            *squares += own_squares;
        }
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Result = ();

    // Plain loops: the compiler turns them into vectors of the instruction set this is inlined for.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let RmsNorm { x, weight, eps, out } = self;
        // A square is exact in f64, so fusing it with the addition would change nothing.
        let squares = sum_of(x, |x| x * x);
        let factor = (1.0 / (squares / x.len() as f64 + f64::from(eps)).sqrt()) as f32;
        match weight {
            Some(weight) => {
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * factor * weight;
                }
            }
            None => {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = x * factor;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::float::testing::{Random, assert_close};

    fn naive(x: &[f32], weight: Option<&[f32]>, eps: f32) -> Vec<f64> {
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        x.iter().enumerate().map(|(i, &x)| f64::from(x) * scale * weight.map_or(1.0, |w| f64::from(w[i]))).collect()
    }

    #[test]
    fn matches_the_definition() {
        let mut random = Random::new(1);
        for isa in Isa::available() {
            for len in [1, 2, 15, 16, 17, 63, 64, 65, 576, 2049] {
                for magnitude in [1.0, 1e-20, 1e-38, 1e30, 3e38] {
                    let x = random.floats(len, magnitude);
                    let weight = random.floats(len, 1.0);
                    let mut out = vec![f32::NAN; len];
                    for weight in [None, Some(&weight[..])] {
                        // With the smallest values only the quotient is of interest, so nothing is added.
                        let eps = if magnitude < 1.0 { 0.0 } else { 1e-5 };
                        rms_norm(isa, &x, weight, eps, &mut out);
                        assert_close(&out, &naive(&x, weight, eps), 1e-6, 1e-38, &format!("{isa:?} {len} {magnitude}"));
                    }
                }
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_one_huge_value_does_not_hide_the_rest() {
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; 40];
            rms_norm(isa, &[0.0; 40], None, 1e-6, &mut out);
            assert!(out.iter().all(|&x| x == 0.0));
            let mut x = vec![1e-3f32; 40];
            x[39] = 1e25;
            rms_norm(isa, &x, None, 1e-6, &mut out);
            assert_close(&out, &naive(&x, None, 1e-6), 1e-6, 0.0, "one huge value");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let mut random = Random::new(2);
        for len in [1, 31, 576, 577] {
            let (x, weight) = (random.floats(len, 3.0), random.floats(len, 1.0));
            let results = Isa::available().into_iter().map(|isa| {
                let mut out = vec![0.0; len];
                rms_norm(isa, &x, Some(&weight), 1e-5, &mut out);
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            });
            let results: Vec<_> = results.collect();
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
        }
    }
}
