//! What is done to each element by itself.

use std::marker::PhantomData;

use tenure_graph::Activation;

use crate::simd::Isa;
use crate::simd::float::Out;
use crate::simd::float::lanes::{Kernel, Lanes, dispatch};

/// `x += y`; also adds a bias.
pub fn add(isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    dispatch(isa, Add { x, y });
}

/// Adds a bias to each of `rows` rows of `out`.
///
/// # Safety
/// `out` is valid for so many rows, and nobody else touches its features meanwhile.
pub unsafe fn add_to_rows(isa: Isa, out: Out, rows: usize, bias: &[f32]) {
    assert_eq!(out.features, bias.len());
    dispatch(isa, AddToRows { out, rows, bias });
}

/// `x *= factor`.
pub fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    dispatch(isa, Scale { x, factor });
}

/// `x = cap * tanh(x / cap)`.
pub fn softcap(isa: Isa, x: &mut [f32], cap: f32) {
    dispatch(isa, Softcap { x, cap });
}

/// `gate = activation(gate) * up`.
pub fn glu(isa: Isa, activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    match activation {
        Activation::Silu => dispatch(isa, Glu::<Silu> { gate, up, _gate: PhantomData }),
        Activation::GeluTanh => dispatch(isa, Glu::<GeluTanh> { gate, up, _gate: PhantomData }),
        Activation::Gelu => dispatch(isa, Glu::<Gelu> { gate, up, _gate: PhantomData }),
        Activation::QuickGelu => dispatch(isa, Glu::<QuickGelu> { gate, up, _gate: PhantomData }),
        Activation::Relu => dispatch(isa, Glu::<Relu> { gate, up, _gate: PhantomData }),
    }
}

/// `x = activation(x)`.
pub fn activate(isa: Isa, activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Silu => dispatch(isa, Activate::<Silu> { x, _gate: PhantomData }),
        Activation::GeluTanh => dispatch(isa, Activate::<GeluTanh> { x, _gate: PhantomData }),
        Activation::Gelu => dispatch(isa, Activate::<Gelu> { x, _gate: PhantomData }),
        Activation::QuickGelu => dispatch(isa, Activate::<QuickGelu> { x, _gate: PhantomData }),
        Activation::Relu => dispatch(isa, Activate::<Relu> { x, _gate: PhantomData }),
    }
}

/// `x = x * factor + term`, column by column.
pub fn scale_shift(isa: Isa, x: &mut [f32], factor: &[f32], term: &[f32]) {
    assert!(x.len() == factor.len() && x.len() == term.len());
    dispatch(isa, ScaleShift { x, factor, term });
}

/// `x = x * (1 + scale) + shift`, column by column.
pub fn modulate(isa: Isa, x: &mut [f32], scale: &[f32], shift: &[f32]) {
    assert!(x.len() == scale.len() && x.len() == shift.len());
    dispatch(isa, Modulate { x, scale, shift });
}

/// `x += gate * y`, column by column.
pub fn add_gated(isa: Isa, x: &mut [f32], y: &[f32], gate: &[f32]) {
    assert!(x.len() == y.len() && x.len() == gate.len());
    dispatch(isa, AddGated { x, y, gate });
}

struct Modulate<'a> {
    x: &'a mut [f32],
    scale: &'a [f32],
    shift: &'a [f32],
}

impl Kernel for Modulate<'_> {
    type Result = ();

    // As for `Add`.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for ((x, scale), shift) in self.x.iter_mut().zip(self.scale).zip(self.shift) {
            *x = *x * (1.0 + scale) + shift;
        }
    }
}

struct AddGated<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
    gate: &'a [f32],
}

impl Kernel for AddGated<'_> {
    type Result = ();

    // As for `Add`.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for ((x, y), gate) in self.x.iter_mut().zip(self.y).zip(self.gate) {
            *x += gate * y;
        }
    }
}

struct ScaleShift<'a> {
    x: &'a mut [f32],
    factor: &'a [f32],
    term: &'a [f32],
}

impl Kernel for ScaleShift<'_> {
    type Result = ();

    // As for `Add`.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for ((x, factor), term) in self.x.iter_mut().zip(self.factor).zip(self.term) {
            *x = *x * factor + term;
        }
    }
}

struct Add<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Kernel for Add<'_> {
    type Result = ();

    // A plain loop: the compiler turns it into vectors of the instruction set this is inlined for.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for (x, y) in self.x.iter_mut().zip(self.y) {
            *x += y;
        }
    }
}

struct AddToRows<'a> {
    out: Out,
    rows: usize,
    bias: &'a [f32],
}

impl Kernel for AddToRows<'_> {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for row in 0..self.rows {
            // SAFETY: the caller of `add_to_rows` vouches for the rows.
            let x =
                unsafe { std::slice::from_raw_parts_mut(self.out.base.add(row * self.out.stride), self.bias.len()) };
            for (x, y) in x.iter_mut().zip(self.bias) {
                *x += y;
            }
        }
    }
}

struct Scale<'a> {
    x: &'a mut [f32],
    factor: f32,
}

impl Kernel for Scale<'_> {
    type Result = ();

    // As for `Add`.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for x in self.x {
            *x *= self.factor;
        }
    }
}

struct Softcap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Kernel for Softcap<'_> {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let (len, x) = (self.x.len(), self.x.as_mut_ptr());
        let mut i = 0;
        // SAFETY: all accesses are below `len`; the caller vouches for the instruction set.
        unsafe {
            let cap = V::splat(self.cap);
            while i + V::N <= len {
                V::load(x.add(i)).div(cap).tanh().mul(cap).store(x.add(i));
                i += V::N;
            }
            if i < len {
                V::load_part(x.add(i), len - i).div(cap).tanh().mul(cap).store_part(x.add(i), len - i);
            }
        }
    }
}

/// The function of a gate, on vectors.
trait Gate {
    /// # Safety
    /// The processor has the instruction set of `V`.
    unsafe fn apply<V: Lanes>(x: V) -> V;
}

struct Silu;

impl Gate for Silu {
    #[inline(always)]
    unsafe fn apply<V: Lanes>(x: V) -> V {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { x.mul(x.sigmoid()) }
    }
}

struct GeluTanh;

impl Gate for GeluTanh {
    #[inline(always)]
    unsafe fn apply<V: Lanes>(x: V) -> V {
        // (1 + tanh u) / 2 is the sigmoid of 2 u, which does not cancel for negative u.
        const TWICE_ROOT: f32 = 2.0 * 0.797_884_6;
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let cubic = x.mul(x).fma(V::splat(0.044_715), V::splat(1.0));
            let twice_u = x.mul(V::splat(TWICE_ROOT)).mul(cubic);
            x.mul(twice_u.sigmoid())
        }
    }
}

struct Gelu;

impl Gate for Gelu {
    #[inline(always)]
    unsafe fn apply<V: Lanes>(x: V) -> V {
        /// `exp(z^2) erfc(z) / t` with `t = 1 / (1 + z / 2)`, from the highest power of `t` down; a least-squares fit over
        /// `0 < t <= 1` with a relative error below 2e-8.
        const FIT: [f32; 11] = [
            0.043_195_43,
            -0.234_733_6,
            0.493_694_93,
            -0.454_974,
            0.132_177_05,
            -0.059_211_36,
            0.093_462_44,
            0.175_315_98,
            0.246_884_58,
            0.282_093_76,
            0.282_094_8,
        ];
        // SAFETY: arithmetic only; the caller vouches for the instruction set.
        unsafe {
            let z = x.abs().mul(V::splat(std::f32::consts::FRAC_1_SQRT_2));
            let t = V::splat(1.0).div(z.fma(V::splat(0.5), V::splat(1.0)));
            let mut fit = V::splat(FIT[0]);
            for factor in &FIT[1..] {
                fit = fit.fma(t, V::splat(*factor));
            }
            let tail = fit.mul(t).mul(V::splat(0.0).sub(z.mul(z)).exp_of_negative()).mul(V::splat(0.5));
            // The probability of a normal number below x; neither side cancels.
            x.mul(x.if_negative(tail, V::splat(1.0).sub(tail)))
        }
    }
}

struct QuickGelu;

impl Gate for QuickGelu {
    #[inline(always)]
    unsafe fn apply<V: Lanes>(x: V) -> V {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { x.mul(x.mul(V::splat(1.702)).sigmoid()) }
    }
}

struct Relu;

impl Gate for Relu {
    #[inline(always)]
    unsafe fn apply<V: Lanes>(x: V) -> V {
        // SAFETY: the caller vouches for the instruction set. The second operand is what comes of NaN.
        unsafe { V::splat(0.0).max(x) }
    }
}

struct Glu<'a, G> {
    gate: &'a mut [f32],
    up: &'a [f32],
    _gate: PhantomData<G>,
}

impl<G: Gate> Kernel for Glu<'_, G> {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { glu_row::<V, G>(self.gate, self.up) }
    }
}

struct Activate<'a, G> {
    x: &'a mut [f32],
    _gate: PhantomData<G>,
}

impl<G: Gate> Kernel for Activate<'_, G> {
    type Result = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let (len, x) = (self.x.len(), self.x.as_mut_ptr());
        let mut i = 0;
        // SAFETY: all accesses are below `len`; the caller vouches for the instruction set.
        unsafe {
            while i + V::N <= len {
                G::apply(V::load(x.add(i))).store(x.add(i));
                i += V::N;
            }
            if i < len {
                G::apply(V::load_part(x.add(i), len - i)).store_part(x.add(i), len - i);
            }
        }
    }
}

/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn glu_row<V: Lanes, G: Gate>(gate: &mut [f32], up: &[f32]) {
    let len = gate.len().min(up.len());
    let (gate, up) = (gate.as_mut_ptr(), up.as_ptr());
    let mut i = 0;
    // SAFETY: all accesses are below the length of both; the caller vouches for the instruction set.
    unsafe {
        while i + V::N <= len {
            G::apply(V::load(gate.add(i))).mul(V::load(up.add(i))).store(gate.add(i));
            i += V::N;
        }
        if i < len {
            let left = len - i;
            let result = G::apply(V::load_part(gate.add(i), left)).mul(V::load_part(up.add(i), left));
            result.store_part(gate.add(i), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::float::lanes_portable::Plain;
    use crate::simd::float::testing::{Random, assert_close};

    const LENGTHS: [usize; 9] = [0, 1, 7, 8, 9, 31, 32, 33, 1537];

    fn silu(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    fn gelu(x: f64) -> f64 {
        let twice_u = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        x / (1.0 + (-twice_u).exp())
    }

    /// By the series of erf where it converges fast, by the continued fraction of erfc elsewhere.
    fn exact_gelu(x: f64) -> f64 {
        let z = x.abs() / std::f64::consts::SQRT_2;
        let tail = if z < 2.0 {
            let (mut term, mut sum) = (z, z);
            for n in 1..60 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            1.0 - sum * 2.0 / std::f64::consts::PI.sqrt()
        } else {
            let fraction = (1..200).rev().fold(z, |below, n| z + f64::from(n) / 2.0 / below);
            (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())
        };
        x * if x < 0.0 { tail / 2.0 } else { 1.0 - tail / 2.0 }
    }

    #[test]
    fn gated_units_match_the_definition() {
        let mut random = Random::new(4);
        for isa in Isa::available() {
            for len in LENGTHS {
                for magnitude in [1e-30, 1e-3, 1.0, 8.0, 60.0, 1e10, 1e38] {
                    let (gate, up) = (random.floats(len, magnitude), random.floats(len, 1.0));
                    for (activation, function) in [
                        (Activation::Silu, silu as fn(f64) -> f64),
                        (Activation::GeluTanh, gelu),
                        (Activation::Gelu, exact_gelu),
                        (Activation::QuickGelu, |x| x / (1.0 + (-1.702 * x).exp())),
                        (Activation::Relu, |x| x.max(0.0)),
                    ] {
                        let mut got = gate.clone();
                        activate(isa, activation, &mut got);
                        let want: Vec<f64> = gate.iter().map(|&x| function(f64::from(x))).collect();
                        assert_close(&got, &want, 1e-6, 1e-7, &format!("{isa:?} {activation:?} {len} {magnitude}"));
                        let mut got = gate.clone();
                        glu(isa, activation, &mut got, &up);
                        let want: Vec<f64> =
                            gate.iter().zip(&up).map(|(&g, &u)| function(f64::from(g)) * f64::from(u)).collect();
                        // Far out on the negative side an angle's rounding becomes a relative error of the result.
                        assert_close(&got, &want, 1e-6, 1e-7, &format!("{isa:?} {activation:?} {len} {magnitude}"));
                    }
                }
            }
        }
    }

    #[test]
    fn sums_products_and_caps_match_the_definition() {
        let mut random = Random::new(5);
        for isa in Isa::available() {
            for len in LENGTHS {
                for magnitude in [1e-40, 1e-6, 0.3, 1.0, 40.0, 1e30] {
                    let (x, y) = (random.floats(len, magnitude), random.floats(len, 1.0));
                    let on = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
                        x.iter().zip(&y).map(|(&x, &y)| f(f64::from(x), f64::from(y))).collect()
                    };
                    let mut got = x.clone();
                    add(isa, &mut got, &y);
                    assert_close(&got, &on(&|x, y| x + y), 6e-8, 1e-45, "add");
                    let mut got = x.clone();
                    scale(isa, &mut got, 0.3);
                    assert_close(&got, &on(&|x, _| x * f64::from(0.3f32)), 6e-8, 1e-45, "scale");
                    let mut got = x.clone();
                    modulate(isa, &mut got, &y, &x);
                    let by = |x: f64, y: f64| x * f64::from(1.0 + y as f32) + x;
                    assert_close(&got, &on(&by), 2.5e-7, 1e-44, "modulate");
                    let mut got = y.clone();
                    add_gated(isa, &mut got, &x, &y);
                    let scaled = x.iter().fold(0.0, |most, x| x.abs().max(most));
                    let error = 1.3e-7 * (1.0 + f64::from(scaled));
                    assert_close(&got, &on(&|x, y| y + x * y), 0.0, error, "add gated");
                    let mut got = x.clone();
                    softcap(isa, &mut got, 30.0);
                    let want = on(&|x, _| 30.0 * (x / 30.0).tanh());
                    assert_close(&got, &want, 1e-6, 1e-43, &format!("softcap {isa:?} {magnitude}"));
                }
            }
        }
    }

    #[test]
    fn special_values_pass_through() {
        for isa in Isa::available() {
            let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::MIN, 1e-45];
            let mut x = special;
            softcap(isa, &mut x, 50.0);
            assert!(x[0].is_nan());
            assert_eq!(x[1..], [50.0, -50.0, 0.0, -0.0, 50.0, -50.0, 0.0]);
            assert!(x[4].is_sign_negative());
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let mut x = special;
                glu(isa, activation, &mut x, &[1.0; 8]);
                assert!(x[0].is_nan() && x[1] == f32::INFINITY && x[3] == 0.0 && x[5] == f32::MAX && x[6] == 0.0);
            }
        }
    }

    #[test]
    fn an_element_does_not_depend_on_its_place() {
        let mut random = Random::new(6);
        let (gate, up) = (random.floats(100, 4.0), random.floats(100, 1.0));
        for isa in Isa::available() {
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let mut whole = gate.clone();
                glu(isa, activation, &mut whole, &up);
                let mut parts = gate.clone();
                for (gate, up) in parts.chunks_mut(7).zip(up.chunks(7)) {
                    glu(isa, activation, gate, up);
                }
                assert!(whole.iter().zip(&parts).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }

    struct Exp<'a>(&'a mut [f32]);

    impl Kernel for Exp<'_> {
        type Result = ();

        #[inline(always)]
        unsafe fn run<V: Lanes>(self) {
            for run in self.0.chunks_exact_mut(V::N) {
                // SAFETY: a run has `N` elements.
                unsafe { V::load(run.as_ptr()).exp_of_negative().store(run.as_mut_ptr()) }
            }
        }
    }

    fn check_exp(name: &str, exp: &dyn Fn(&mut [f32])) {
        let inputs: Vec<f32> = (-1_040_000..=0).map(|i| i as f32 * 1e-4).collect();
        let inputs = &inputs[..inputs.len() / 16 * 16];
        let mut got = inputs.to_vec();
        exp(&mut got);
        for (&x, &y) in inputs.iter().zip(&got) {
            let want = f64::from(x).exp();
            let error = (f64::from(y) - want).abs();
            let lost = y == 0.0 && want < f64::from(f32::MIN_POSITIVE);
            assert!(error <= want * 2e-7 || lost, "{name} {x} {y} {want}");
        }
        let mut special = [f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, f32::MIN, -1e-45, -88.1, -1.0].repeat(2);
        exp(&mut special);
        assert!(special[1].is_nan());
        special[1] = 7.0;
        assert_eq!(special[..7], [0.0, 7.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn the_exponential_is_accurate_below_0() {
        for isa in Isa::available() {
            check_exp(&format!("{isa:?}"), &|x| dispatch(isa, Exp(x)));
        }
        // SAFETY: plain vectors run everywhere.
        check_exp("plain 16", &|x| unsafe { Exp(x).run::<Plain<16>>() });
        // SAFETY: as above.
        check_exp("plain 1", &|x| unsafe { Exp(x).run::<Plain<1>>() });
    }
}
