//! Vectors in plain Rust, for any processor.

use crate::simd::float::lanes::Lanes;

/// `N` floats in an array; the compiler makes vectors of it where it can.
#[derive(Clone, Copy)]
pub(crate) struct Plain<const N: usize>([f32; N]);

impl<const N: usize> Plain<N> {
    #[inline(always)]
    pub(crate) fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Plain(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }

    #[inline(always)]
    pub(crate) fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Plain(self.0.map(f))
    }

    #[inline(always)]
    pub(crate) fn with<T: Copy>(self, other: [T; N], f: impl Fn(f32, T) -> f32) -> Self {
        Plain(std::array::from_fn(|i| f(self.0[i], other[i])))
    }

    #[inline(always)]
    fn halve(self, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = self.0;
        let mut half = N / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] = f(lanes[i], lanes[i + half]);
            }
            half /= 2;
        }
        lanes[0]
    }
}

/// The float with these 16 bits.
#[inline(always)]
pub(crate) fn from_f16(bits: u16) -> f32 {
    // As an f32 the shifted magnitude is 2^112 too small, subnormals too; the product is exact.
    let magnitude = u32::from(bits & 0x7fff);
    let finite = (f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000)).to_bits();
    let exponent = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(finite | exponent | (u32::from(bits & 0x8000) << 16))
}

// SAFETY of all blocks below: the callers of the trait vouch for the pointers.
impl<const N: usize> Lanes for Plain<N> {
    const N: usize = N;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Plain([x; N])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see above.
        Plain(unsafe { p.cast::<[f32; N]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: see above.
        Plain(unsafe { p.cast::<[u16; N]>().read_unaligned() }.map(from_f16))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: see above.
        Plain(unsafe { p.cast::<[u16; N]>().read_unaligned() }.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }
    #[inline(always)]
    unsafe fn load_f8_e4m3(p: *const u8) -> Self {
        // As an `f16` the bits are 2^-8 of the number, except those of NaN.
        let value = |code: u8| match u16::from(code & 0x7f) {
            0x7f => f32::NAN,
            size => from_f16(size << 7 | u16::from(code & 0x80) << 8) * 256.0,
        };
        // SAFETY: see above.
        Plain(unsafe { p.cast::<[u8; N]>().read_unaligned() }.map(value))
    }
    #[inline(always)]
    unsafe fn load_f8_e5m2(p: *const u8) -> Self {
        // The upper half of an `f16`. SAFETY: see above.
        Plain(unsafe { p.cast::<[u8; N]>().read_unaligned() }.map(|code| from_f16(u16::from(code) << 8)))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: see above.
        Plain(unsafe { p.cast::<[i8; N]>().read_unaligned() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see above.
        unsafe { p.cast::<[f32; N]>().write_unaligned(self.0) };
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, term: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i] * factor.0[i] + term.0[i]))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn as_exponent(self) -> Self {
        self.map(|x| f32::from_bits(x.to_bits() << 23))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        self.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn copysign(self, sign: Self) -> Self {
        self.zip(sign, f32::copysign)
    }
    #[inline(always)]
    unsafe fn if_negative(self, yes: Self, no: Self) -> Self {
        Plain(std::array::from_fn(|i| if self.0[i].is_sign_negative() { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.halve(|a, b| a + b)
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.halve(|a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_converted_exactly() {
        for bits in 0..=u16::MAX {
            let (got, want) = (from_f16(bits), half::f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{bits:#x}: {got} {want}");
        }
    }
}
