//! Rows and weights in BF16 as 16-bit integers, pairs of which a processor may multiply twice as fast as floats (AVX-512
//! VNNI).
//!
//! Rows have 14 bits and a unit for each piece of up to 640 columns, weights 13 bits and a power of two for each piece:
//! those down to a 16th of the power of two below the largest lose nothing. A piece's products are exact in 32 bits.
//!
//! What is infinite, among a piece's weights or in a row, makes its products NaN.

use std::sync::atomic::{AtomicU8, Ordering};

use bytemuck::{Pod, Zeroable};

use crate::simd::Isa;
use crate::simd::float::lanes::Lanes;
use crate::simd::float::lanes_portable::Plain;
use crate::simd::float::matmul::piece_width;
use crate::simd::panels;

/// Lanes of the vectors here; each holds two columns.
pub(super) const LANES: usize = 16;
/// The most pairs of columns of a piece: what surely fits, of products of 13 and 12 bits without their signs.
pub(super) const PAIRS: usize = 320;

/// A line of a row: 32 columns in order, or, behind the last of these, units of 16 pieces.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Line([u32; LANES]);

/// Whether an instruction set takes rows of so many columns in words.
pub fn takes_words(isa: Isa, cols: usize) -> bool {
    isa == Isa::Avx512Vnni && cols > 0 && cols.is_multiple_of(2 * LANES)
}

/// How many [`Line`]s a row of `cols` columns takes.
pub const fn lines_of(cols: usize) -> usize {
    cols / (2 * LANES) + exponents_of(cols).div_ceil(LANES)
}

/// Pairs of each piece of a row of `pairs` pairs, but for the last.
pub(super) const fn width(pairs: usize) -> usize {
    piece_width(pairs, PAIRS)
}

/// Brings a row whose columns are a multiple of 32 to 14 bits. Plain code where this processor lacks `isa`.
pub fn to_words(isa: Isa, x: &[f32], lines: &mut [Line]) {
    assert!(x.len().is_multiple_of(2 * LANES) && lines.len() == lines_of(x.len()));
    let (words, units) = lines.split_at_mut(x.len() / (2 * LANES));
    let units: &mut [f32] = bytemuck::cast_slice_mut(units);
    let width = 2 * width((x.len() / 2).max(1));
    for ((x, words), unit) in x.chunks(width).zip(words.chunks_mut(width / (2 * LANES))).zip(units) {
        *unit = match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: just detected.
            Isa::Avx512Vnni if isa.is_available() => unsafe { avx512::piece_to_words(x, words) },
            Isa::Avx512Vnni | Isa::Avx2 | Isa::Portable => piece_to_words(x, words),
        };
    }
}

/// Returns the unit.
fn piece_to_words(x: &[f32], lines: &mut [Line]) -> f32 {
    let largest = x.iter().fold(0.0f32, |m, &x| m.max(x.abs()));
    // NaN makes the whole unit NaN, and with it every product.
    let (unit, inverse) = panels::unit(if x.iter().any(|x| x.is_nan()) { f32::NAN } else { largest });
    let words: &mut [i16] = bytemuck::cast_slice_mut(lines);
    for (&x, word) in x.iter().zip(words) {
        *word = (x * inverse).round_ties_even() as i16;
    }
    unit
}

/// How many exponents go with a row of weights of `cols` columns.
pub const fn exponents_of(cols: usize) -> usize {
    let pairs = cols / 2;
    if pairs == 0 { 0 } else { pairs.div_ceil(width(pairs)) }
}

/// The exponent of a piece of so many times 32 weights at `p`, as [`powers`] takes it: from `known`, unless that is 0.
///
/// # Safety
/// `p` is valid for the piece; the processor has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn exponent<V: Words>(known: &AtomicU8, p: *const u8, lines: usize) -> u8 {
    match known.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: the caller's contract.
            let largest = unsafe { V::largest_bf16(p, lines) };
            // Both powers stay normal. Of weights below 2^-115 little is left then.
            let exponent = ((largest >> 7) as u8).max(12);
            // Whoever else finds it finds the same.
            known.store(exponent, Ordering::Relaxed);
            exponent
        }
        exponent => exponent,
    }
}

/// What brings weights of an exponent, the biased one of the largest, to 13 bits, and what undoes it. NaN where that is no
/// number, or infinite.
#[inline(always)]
pub(super) fn powers(exponent: u8) -> [f32; 2] {
    let exponent = u32::from(exponent);
    if exponent == 255 {
        return [0.0, f32::NAN];
    }
    [f32::from_bits((265 - exponent) << 23), f32::from_bits((exponent - 11) << 23)]
}

/// Vectors of [`LANES`] that hold pairs of 16-bit integers, or 32-bit integers, in place of floats.
pub(super) trait Words: Lanes {
    /// The largest bits, without the sign, of so many times 32 BF16.
    ///
    /// # Safety
    /// `p` is valid for them, at any address. As for [`Lanes`].
    unsafe fn largest_bf16(p: *const u8, lines: usize) -> u16;
    /// 32 BF16, times `scale`, to the nearest integers.
    ///
    /// # Safety
    /// As for [`Words::largest_bf16`], and [`powers`] gave the scale.
    unsafe fn words_of_bf16(p: *const u8, scale: Self) -> Self;
    /// `sum`, of 32-bit integers, and in each lane the products of both pairs' integers.
    ///
    /// # Safety
    /// As for [`Lanes`].
    unsafe fn add_words(self, other: Self, sum: Self) -> Self;
    /// 32-bit integers as floats.
    ///
    /// # Safety
    /// As for [`Lanes`].
    unsafe fn as_floats(self) -> Self;
}

// SAFETY of all blocks below: the callers of the trait vouch for the pointers.
impl Words for Plain<LANES> {
    unsafe fn largest_bf16(p: *const u8, lines: usize) -> u16 {
        // SAFETY: see above.
        let bits = (0..32 * lines).map(|at| unsafe { p.cast::<u16>().add(at).read_unaligned() } & 0x7fff);
        bits.max().unwrap_or(0)
    }

    unsafe fn words_of_bf16(p: *const u8, scale: Self) -> Self {
        // SAFETY: see above.
        let pairs = unsafe { p.cast::<[[u16; 2]; LANES]>().read_unaligned() };
        scale.with(pairs, |scale, pair| {
            let words =
                pair.map(|bits| (f32::from_bits(u32::from(bits) << 16) * scale).round_ties_even() as i16 as u16);
            f32::from_bits(u32::from(words[0]) | u32::from(words[1]) << 16)
        })
    }

    unsafe fn add_words(self, other: Self, sum: Self) -> Self {
        let words = |x: f32| [x.to_bits() as u16 as i16, (x.to_bits() >> 16) as u16 as i16].map(i32::from);
        let products = self.zip(other, |a, b| {
            let (a, b) = (words(a), words(b));
            f32::from_bits(a[0].wrapping_mul(b[0]).wrapping_add(a[1].wrapping_mul(b[1])) as u32)
        });
        sum.zip(products, |a, b| f32::from_bits(a.to_bits().wrapping_add(b.to_bits())))
    }

    unsafe fn as_floats(self) -> Self {
        self.map(|x| x.to_bits() as i32 as f32)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{Line, Words};
    use crate::simd::float::lanes_x86::Avx512;
    use crate::simd::panels::{self, add_products};

    // SAFETY of all blocks below: the callers of the trait vouch for the pointers and the instruction set.
    impl Words for Avx512 {
        #[inline(always)]
        unsafe fn largest_bf16(p: *const u8, lines: usize) -> u16 {
            // SAFETY: see above.
            unsafe {
                let size = _mm512_set1_epi16(0x7fff);
                let mut largest = _mm512_setzero_si512();
                for line in 0..lines {
                    let bits = _mm512_loadu_si512(p.add(64 * line).cast());
                    largest = _mm512_max_epu16(largest, _mm512_and_si512(bits, size));
                }
                let low = _mm512_and_si512(largest, _mm512_set1_epi32(0xffff));
                _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_srli_epi32::<16>(largest), low)) as u16
            }
        }

        #[inline(always)]
        unsafe fn words_of_bf16(p: *const u8, scale: Self) -> Self {
            // SAFETY: see above.
            unsafe {
                let bits = _mm512_loadu_si512(p.cast());
                let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits));
                let odd = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(!0xffff)));
                // Leaves a sum no bits for a fraction: its last sixteen are the integer's.
                let whole = _mm512_set1_ps(12_582_912.0);
                let even = _mm512_castps_si512(_mm512_fmadd_ps(even, scale.0, whole));
                let odd = _mm512_slli_epi32::<16>(_mm512_castps_si512(_mm512_fmadd_ps(odd, scale.0, whole)));
                Avx512(_mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaa_aaaa, even, odd)))
            }
        }

        #[inline(always)]
        unsafe fn add_words(self, other: Self, sum: Self) -> Self {
            // SAFETY: see above.
            unsafe {
                let (a, b) = (_mm512_castps_si512(self.0), _mm512_castps_si512(other.0));
                Avx512(_mm512_castsi512_ps(add_products(_mm512_castps_si512(sum.0), a, b)))
            }
        }

        #[inline(always)]
        unsafe fn as_floats(self) -> Self {
            // SAFETY: see above.
            unsafe { Avx512(_mm512_cvtepi32_ps(_mm512_castps_si512(self.0))) }
        }
    }

    /// As [`super::piece_to_words`].
    ///
    /// # Safety
    /// The processor has AVX-512 F and BW.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn piece_to_words(x: &[f32], lines: &mut [Line]) -> f32 {
        let halves = x.as_chunks::<16>().0;
        let (mut most, mut numbers) = (_mm512_setzero_ps(), !0);
        for half in halves {
            // SAFETY: 16 floats.
            let x = unsafe { _mm512_loadu_ps(half.as_ptr()) };
            most = _mm512_max_ps(most, _mm512_abs_ps(x));
            numbers &= _mm512_cmp_ps_mask::<_CMP_ORD_Q>(x, x);
        }
        let most = if numbers == !0 { _mm512_reduce_max_ps(most) } else { f32::NAN };
        let (unit, inverse) = panels::unit(most);
        let words: &mut [i16] = bytemuck::cast_slice_mut(lines);
        for (half, words) in halves.iter().zip(words.as_chunks_mut::<16>().0) {
            // SAFETY: 16 floats are read, 16 words written.
            unsafe {
                let x = _mm512_mul_ps(_mm512_loadu_ps(half.as_ptr()), _mm512_set1_ps(inverse));
                _mm256_storeu_si256(words.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)));
            }
        }
        unit
    }
}
