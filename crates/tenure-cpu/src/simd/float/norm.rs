//! Root-mean-square norm.

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
        let mut sums = [0f64; SUMS];
        let runs = x.chunks_exact(SUMS);
        let rest = runs.remainder();
        for run in runs {
            for i in 0..SUMS {
                // Exact in f64, so fusing it with the addition would change nothing.
                let x = f64::from(run[i]);
                sums[i] += x * x;
            }
        }
        for (sum, &x) in sums.iter_mut().zip(rest) {
            *sum += f64::from(x) * f64::from(x);
        }
        let mut half = SUMS / 2;
        while half > 0 {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
            half /= 2;
        }
        let factor = (1.0 / (sums[0] / x.len() as f64 + f64::from(eps)).sqrt()) as f32;
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
