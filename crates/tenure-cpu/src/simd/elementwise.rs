//! Norms, activations and other operations on one row.
//!
//! Written as loops over arrays of lanes, which the compiler turns into vector code for each instruction set; the
//! order of every sum is that of the source, so a row's result does not depend on the instruction set's width.

use tenure_graph::{Activation, RopeStyle};

use crate::rope::RopeAngles;
use crate::simd::Isa;

/// Partial sums kept side by side.
const LANES: usize = 32;

/// Compiles `$body` once for each instruction set and calls the one for `$isa`.
macro_rules! for_isa {
    ($isa:expr, $body:ident ( $($arg:ident : $ty:ty),* )) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2($($arg: $ty),*) {
            $body::<true>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
        fn avx512($($arg: $ty),*) {
            $body::<true>($($arg),*)
        }
        match $isa {
            // SAFETY: an `Isa` other than `Portable` is used only where the processor has it; see `Cpu::new`.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => unsafe { avx512($($arg),*) },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512Vnni => $body::<false>($($arg),*),
            Isa::Portable => $body::<false>($($arg),*),
        }
    }};
}

/// `x / sqrt(mean(x^2) + eps) * weight`.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len());
    for_isa!(isa, rms_norm_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]));
}

#[inline(always)]
fn rms_norm_body<const FMA: bool>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mut sums = [0.0f32; LANES];
    let lines = x.chunks_exact(LANES);
    let rest = lines.remainder();
    for line in lines {
        for i in 0..LANES {
            sums[i] = fused::<FMA>(line[i], line[i], sums[i]);
        }
    }
    for (sum, &v) in sums.iter_mut().zip(rest) {
        *sum = fused::<FMA>(v, v, *sum);
    }
    let scale = 1.0 / (tree(sums) / x.len() as f32 + eps).sqrt();
    for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}

/// Fills `table` with the cosine and sine of each pair at `position`: all cosines, then all sines.
pub(crate) fn rope_table(position: u32, angles: &RopeAngles, table: &mut [f32]) {
    let (cosines, sines) = table.split_at_mut(angles.per_position.len());
    for ((cosine, sine), &per_position) in cosines.iter_mut().zip(sines).zip(&angles.per_position) {
        let (s, c) = (f64::from(position) * per_position).sin_cos();
        (*cosine, *sine) = (c as f32 * angles.magnitude, s as f32 * angles.magnitude);
    }
}

/// Turns the pairs of one head in place by a [`rope_table`]; elements beyond the table's pairs stay.
pub fn rope(style: RopeStyle, head: &mut [f32], table: &[f32]) {
    let pairs = table.len() / 2;
    let (cosines, sines) = table.split_at(pairs);
    let turn = |a: f32, b: f32, i: usize| (a * cosines[i] - b * sines[i], a * sines[i] + b * cosines[i]);
    match style {
        RopeStyle::Adjacent => {
            for (i, pair) in head.chunks_exact_mut(2).take(pairs).enumerate() {
                (pair[0], pair[1]) = turn(pair[0], pair[1], i);
            }
        }
        RopeStyle::Halves => {
            let (low, high) = head.split_at_mut(pairs);
            for (i, (a, b)) in low.iter_mut().zip(high).enumerate() {
                (*a, *b) = turn(*a, *b, i);
            }
        }
    }
}

/// `gate = activation(gate) * up`.
pub fn glu(isa: Isa, activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => for_isa!(isa, silu_body(gate: &mut [f32], up: &[f32])),
        Activation::GeluTanh => for_isa!(isa, gelu_body(gate: &mut [f32], up: &[f32])),
    }
}

#[inline(always)]
fn silu_body<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp::<FMA>(-*gate)) * up;
    }
}

#[inline(always)]
fn gelu_body<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    const ROOT_2_OVER_PI: f32 = 0.797_884_6;
    for (gate, &up) in gate.iter_mut().zip(up) {
        let x = *gate;
        // (1 + tanh(y)) / 2 is the logistic function of 2 y.
        let y = ROOT_2_OVER_PI * x * (1.0 + 0.044_715 * x * x);
        *gate = x / (1.0 + exp::<FMA>(-2.0 * y)) * up;
    }
}

/// `a += b`.
pub fn add(a: &mut [f32], b: &[f32]) {
    for (a, &b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

/// `x = cap * tanh(x / cap)`.
pub fn softcap(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * (*x / cap).tanh();
    }
}

/// `x = exp(x - peak)` for each element; returns the sum, in lanes of fixed order.
pub(crate) fn exp_sum(isa: Isa, x: &mut [f32], peak: f32) -> f32 {
    let mut sum = 0.0;
    {
        let sum = &mut sum;
        for_isa!(isa, exp_sum_body(x: &mut [f32], peak: f32, sum: &mut f32));
    }
    sum
}

#[inline(always)]
fn exp_sum_body<const FMA: bool>(x: &mut [f32], peak: f32, sum: &mut f32) {
    let mut sums = [0.0f32; LANES];
    for line in x.chunks_mut(LANES) {
        for (x, sum) in line.iter_mut().zip(&mut sums) {
            *x = exp::<FMA>(*x - peak);
            *sum += *x;
        }
    }
    *sum = tree(sums);
}

/// `e^x` to about 1 ulp; 0 below -87.3, infinity above 88.7 (Cephes' range reduction and polynomial degree).
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that n * HIGH is exact.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
    let clamped = x.clamp(-87.336, 88.722);
    let n = fused::<FMA>(clamped, LOG2_E, ROUND) - ROUND;
    let r = fused::<FMA>(n, -LOW, fused::<FMA>(n, -HIGH, clamped));
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fused::<FMA>(p, r, c);
    }
    let y = fused::<FMA>(p * r, r, r) + 1.0;
    // 2^n in two factors, since 2^128 has no f32.
    let half = (n as i32) >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let result = y * power(half) * power(n as i32 - half);
    if x < -87.336 {
        0.0
    } else if x > 88.722 {
        f32::INFINITY
    } else if x.is_nan() {
        x
    } else {
        result
    }
}

#[inline(always)]
pub(crate) fn fused<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// The sum of lanes, halved again and again.
#[inline(always)]
pub(crate) fn tree<const N: usize>(mut sums: [f32; N]) -> f32 {
    let mut width = N;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0]
}

pub(crate) use for_isa;
