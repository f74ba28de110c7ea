//! Vectors of `f32` that the float kernels are written over: one source for every instruction set.

use crate::simd::Isa;
use crate::simd::float::lanes_portable::Plain;
#[cfg(target_arch = "x86_64")]
use crate::simd::float::lanes_x86::{Avx2, Avx512};

/// `N` floats side by side.
///
/// # Safety
/// Every method needs a processor with the instruction set of the implementing type; [`dispatch`] sees to that.
/// Pointers need no alignment, but must be valid for `N` elements.
pub(crate) trait Lanes: Copy {
    /// How many floats.
    const N: usize;
    /// Sixteen floats, and registers for twice as many accumulators. Code behind it is compiled for such vectors only.
    const WIDE: bool = Self::N == 16;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_f16(p: *const u16) -> Self;
    unsafe fn load_bf16(p: *const u16) -> Self;
    unsafe fn load_f8_e4m3(p: *const u8) -> Self;
    unsafe fn load_f8_e5m2(p: *const u8) -> Self;
    unsafe fn load_i8(p: *const i8) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + term`; rounded once where the instruction set can.
    unsafe fn fma(self, factor: Self, term: Self) -> Self;
    /// The larger; `other` when either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` when either is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// The float without sign or fraction whose exponent is in the last eight bits of `self`.
    unsafe fn as_exponent(self) -> Self;
    unsafe fn abs(self) -> Self;
    /// With the sign of `sign`.
    unsafe fn copysign(self, sign: Self) -> Self;
    /// `yes` where the sign bit of `self` is set, else `no`.
    unsafe fn if_negative(self, yes: Self, no: Self) -> Self;
    /// Sum of the lanes: halves are added until one is left.
    unsafe fn sum(self) -> f32;
    /// Maximum of the lanes.
    unsafe fn largest(self) -> f32;
    /// Hints that the cache line at `p` is wanted soon; `p` may point anywhere.
    unsafe fn prefetch(p: *const u8);

    /// Stores [`Lanes::sum`] of eight vectors, the same bits.
    ///
    /// # Safety
    /// `p` is valid for eight floats.
    #[inline(always)]
    unsafe fn store_sums(eight: [Self; 8], p: *mut f32) {
        for (i, vector) in eight.into_iter().enumerate() {
            // SAFETY: the caller's contract.
            unsafe { p.add(i).write(vector.sum()) };
        }
    }

    /// Turns eight rows of eight floats over: element `i` of row `j` becomes element `j` of row `i`.
    ///
    /// # Safety
    /// `from` is valid for eight rows `from_stride` floats apart, `to` for as many `to_stride` apart; they do not overlap.
    #[inline(always)]
    unsafe fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..8 {
            for j in 0..8 {
                // SAFETY: the caller's contract.
                unsafe { to.add(i * to_stride + j).write(from.add(j * from_stride + i).read()) };
            }
        }
    }

    /// The first `count < N` elements, the rest zero.
    ///
    /// # Safety
    /// `p` is valid for `count` elements.
    #[inline(always)]
    unsafe fn load_part(p: *const f32, count: usize) -> Self {
        let mut part = [0f32; 16];
        // SAFETY: `count < N <= 16`, and the caller vouches for the source.
        unsafe {
            std::ptr::copy_nonoverlapping(p, part.as_mut_ptr(), count.min(16));
            Self::load(part.as_ptr())
        }
    }

    /// Stores the first `count < N` elements.
    ///
    /// # Safety
    /// `p` is valid for `count` elements.
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, count: usize) {
        let mut part = [0f32; 16];
        // SAFETY: `count < N <= 16`, and the caller vouches for the target.
        unsafe {
            self.store(part.as_mut_ptr());
            std::ptr::copy_nonoverlapping(part.as_ptr(), p, count.min(16));
        }
    }

    /// e^self within about one unit in the last place, for what is not above 0; below all normal numbers it may be 0.
    #[inline(always)]
    unsafe fn exp_of_negative(self) -> Self {
        // SAFETY: arithmetic only; the caller vouches for the instruction set.
        unsafe {
            // Below this bound the result is 0; NaN passes.
            let x = Self::splat(-88.0).max(self);
            let (n, power) = x.octaves();
            x.reduced(n).expm1_near_zero().add(Self::splat(1.0)).mul(power)
        }
    }

    /// The integer `n` nearest to `self / ln 2`, and `2^n`; for `n` from -127, whose power becomes 0, to 127.
    #[inline(always)]
    unsafe fn octaves(self) -> (Self, Self) {
        // Leaves a sum no bits for a fraction, and in its last bits the exponent of the power.
        const SHIFT: f32 = 12_582_912.0 + 127.0;
        // SAFETY: arithmetic only; the caller vouches for the instruction set.
        unsafe {
            let exponent = self.fma(Self::splat(std::f32::consts::LOG2_E), Self::splat(SHIFT));
            (exponent.sub(Self::splat(SHIFT)), exponent.as_exponent())
        }
    }

    /// `self - n * ln 2`, with ln 2 in two parts of which the first times any `n` here is exact.
    #[inline(always)]
    unsafe fn reduced(self, n: Self) -> Self {
        const HIGH: f32 = 355.0 / 512.0;
        const LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
        // SAFETY: arithmetic only; the caller vouches for the instruction set.
        unsafe { n.fma(Self::splat(-LOW), n.fma(Self::splat(-HIGH), self)) }
    }

    /// e^self - 1 for |self| <= ln 2 / 2: the series up to the 7th power (the 8th is below 6e-9).
    #[inline(always)]
    unsafe fn expm1_near_zero(self) -> Self {
        // SAFETY: arithmetic only; the caller vouches for the instruction set.
        unsafe {
            let p = Self::splat(1.0 / 5040.0);
            let p = p.fma(self, Self::splat(1.0 / 720.0));
            let p = p.fma(self, Self::splat(1.0 / 120.0));
            let p = p.fma(self, Self::splat(1.0 / 24.0));
            let p = p.fma(self, Self::splat(1.0 / 6.0));
            let p = p.fma(self, Self::splat(0.5));
            p.mul(self).fma(self, self)
        }
    }

    /// 1 / (1 + e^-self), relatively accurate on both sides.
    #[inline(always)]
    unsafe fn sigmoid(self) -> Self {
        // SAFETY: arithmetic only; the caller vouches for the instruction set.
        unsafe {
            let one = Self::splat(1.0);
            let z = Self::splat(0.0).sub(self.abs()).exp_of_negative();
            self.if_negative(z, one).div(one.add(z))
        }
    }

    /// The hyperbolic tangent, relatively accurate near 0.
    #[inline(always)]
    unsafe fn tanh(self) -> Self {
        // SAFETY: arithmetic only; the caller vouches for the instruction set.
        unsafe {
            // From 10 on the result rounds to 1.
            let x = Self::splat(20.0).min(self.abs().add(self.abs()));
            let (n, power) = x.octaves();
            // e^x - 1 = 2^n (e^r - 1) + (2^n - 1)
            let expm1 = power.fma(x.reduced(n).expm1_near_zero(), power.sub(Self::splat(1.0)));
            expm1.div(expm1.add(Self::splat(2.0))).copysign(self)
        }
    }
}

/// Work written once over [`Lanes`].
pub(crate) trait Kernel {
    type Result;

    /// Implementations and everything they call are `#[inline(always)]`: only what is inlined into the function that
    /// [`dispatch`] chooses is compiled for its instruction set.
    ///
    /// # Safety
    /// The processor has the instruction set of `V`.
    unsafe fn run<V: Lanes>(self) -> Self::Result;
}

/// Runs the kernel with the vectors of `isa`; plain ones when this processor lacks it.
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Result {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: just detected.
        Isa::Avx512Vnni if isa.is_available() => unsafe { run_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: just detected.
        Isa::Avx2 if isa.is_available() => unsafe { run_avx2(kernel) },
        // SAFETY: plain vectors run everywhere.
        Isa::Avx512Vnni | Isa::Avx2 | Isa::Portable => unsafe { kernel.run::<Plain<8>>() },
    }
}

/// Like [`dispatch`], for rows whose length is a multiple of `lanes` (16, 8 or anything) and is not to be padded.
#[inline]
pub(crate) fn dispatch_narrow<K: Kernel>(isa: Isa, lanes: usize, kernel: K) -> K::Result {
    match (isa, lanes) {
        (Isa::Avx512Vnni, 16) | (Isa::Avx2 | Isa::Portable, 8 | 16) => dispatch(isa, kernel),
        (Isa::Avx512Vnni, 8) => dispatch(Isa::Avx2, kernel),
        // SAFETY: plain vectors run everywhere.
        _ => unsafe { kernel.run::<Plain<1>>() },
    }
}

/// # Safety
/// The processor has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Result {
    // SAFETY: this function's own contract.
    unsafe { kernel.run::<Avx2>() }
}

/// # Safety
/// The processor has AVX2, FMA, F16C and AVX-512 F, BW, VL and DQ.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Result {
    // SAFETY: this function's own contract.
    unsafe { kernel.run::<Avx512>() }
}
