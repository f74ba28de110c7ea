//! Vectors of 8 (AVX2) and 16 (AVX-512) floats.

use std::arch::x86_64::*;

use crate::simd::float::lanes::Lanes;

/// 8 floats; AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256);

/// 16 floats; AVX-512 F and DQ beside what [`Avx2`] needs.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(super) __m512);

/// One method: its body needs the instruction set, for which the caller vouches.
macro_rules! lanes_method {
    ($name:ident($self:ident $(, $arg:ident: $type:ty)*) -> $result:ty = $body:expr) => {
        #[inline(always)]
        unsafe fn $name($self $(, $arg: $type)*) -> $result {
            // SAFETY: the trait's contract: the instruction set is there.
            unsafe { $body }
        }
    };
    ($name:ident($($arg:ident: $type:ty),*) -> $result:ty = $body:expr) => {
        #[inline(always)]
        unsafe fn $name($($arg: $type),*) -> $result {
            // SAFETY: the trait's contract: the instruction set is there, and pointers are valid.
            unsafe { $body }
        }
    };
}

impl Lanes for Avx2 {
    const N: usize = 8;

    lanes_method!(splat(x: f32) -> Self = Avx2(_mm256_set1_ps(x)));
    lanes_method!(load(p: *const f32) -> Self = Avx2(_mm256_loadu_ps(p)));
    lanes_method!(load_f16(p: *const u16) -> Self = Avx2(_mm256_cvtph_ps(_mm_loadu_si128(p.cast()))));
    lanes_method!(load_bf16(p: *const u16) -> Self = {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        Avx2(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
    });
    lanes_method!(load_f8_e4m3(p: *const u8) -> Self = {
        // As an `f16` the bits are 2^-8 of the number, except those of NaN.
        let wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(p.cast()));
        let size = _mm_and_si128(wide, _mm_set1_epi16(0x7f));
        let none = _mm_cmpeq_epi16(size, _mm_set1_epi16(0x7f));
        let sign = _mm_slli_epi16::<8>(_mm_sub_epi16(wide, size));
        let bits = _mm_or_si128(_mm_or_si128(_mm_slli_epi16::<7>(size), sign), none);
        Avx2(_mm256_mul_ps(_mm256_cvtph_ps(bits), _mm256_set1_ps(256.0)))
    });
    lanes_method!(load_f8_e5m2(p: *const u8) -> Self = {
        // The upper half of an `f16`.
        Avx2(_mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), _mm_loadl_epi64(p.cast()))))
    });
    lanes_method!(load_i8(p: *const i8) -> Self = {
        Avx2(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))))
    });
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }
    lanes_method!(add(self, other: Self) -> Self = Avx2(_mm256_add_ps(self.0, other.0)));
    lanes_method!(sub(self, other: Self) -> Self = Avx2(_mm256_sub_ps(self.0, other.0)));
    lanes_method!(mul(self, other: Self) -> Self = Avx2(_mm256_mul_ps(self.0, other.0)));
    lanes_method!(div(self, other: Self) -> Self = Avx2(_mm256_div_ps(self.0, other.0)));
    lanes_method!(fma(self, factor: Self, term: Self) -> Self = Avx2(_mm256_fmadd_ps(self.0, factor.0, term.0)));
    lanes_method!(max(self, other: Self) -> Self = Avx2(_mm256_max_ps(self.0, other.0)));
    lanes_method!(min(self, other: Self) -> Self = Avx2(_mm256_min_ps(self.0, other.0)));
    lanes_method!(as_exponent(self) -> Self = {
        Avx2(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(self.0))))
    });
    lanes_method!(abs(self) -> Self = Avx2(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)));
    lanes_method!(copysign(self, sign: Self) -> Self = {
        let bit = _mm256_set1_ps(-0.0);
        Avx2(_mm256_or_ps(_mm256_andnot_ps(bit, self.0), _mm256_and_ps(bit, sign.0)))
    });
    lanes_method!(if_negative(self, yes: Self, no: Self) -> Self = Avx2(_mm256_blendv_ps(no.0, yes.0, self.0)));
    lanes_method!(sum(self) -> f32 = {
        let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    });
    lanes_method!(store_sums(eight: [Self; 8], p: *mut f32) -> () = {
        // The pairs that `sum` adds, for two, four and eight vectors at a time.
        let [a, b, c, d, e, f, g, h] = eight;
        let ab = halves_added(a, b);
        let cd = halves_added(c, d);
        let ef = halves_added(e, f);
        let gh = halves_added(g, h);
        let abcd = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
        let efgh = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ef, gh), _mm256_shuffle_ps::<0xee>(ef, gh));
        let all = _mm256_add_ps(_mm256_shuffle_ps::<0x88>(abcd, efgh), _mm256_shuffle_ps::<0xdd>(abcd, efgh));
        // a c e g b d f h
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_ps(p, _mm256_permutevar8x32_ps(all, order));
    });
    lanes_method!(transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) -> () = {
        // Rows i and i + 4 share a register, the lower half of one and then of the other; likewise the upper halves.
        let half = |row: usize, at: usize| _mm_loadu_ps(from.add(row * from_stride + at));
        for at in [0, 4] {
            let pair = |row: usize| _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(half(row, at)), half(row + 4, at));
            let (a, b, c, d) = (pair(0), pair(1), pair(2), pair(3));
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            _mm256_storeu_ps(to.add(at * to_stride), _mm256_shuffle_ps::<0x44>(ab, cd));
            _mm256_storeu_ps(to.add((at + 1) * to_stride), _mm256_shuffle_ps::<0xee>(ab, cd));
            let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            _mm256_storeu_ps(to.add((at + 2) * to_stride), _mm256_shuffle_ps::<0x44>(ab, cd));
            _mm256_storeu_ps(to.add((at + 3) * to_stride), _mm256_shuffle_ps::<0xee>(ab, cd));
        }
    });
    lanes_method!(largest(self) -> f32 = {
        let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    });
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

impl Lanes for Avx512 {
    const N: usize = 16;

    lanes_method!(splat(x: f32) -> Self = Avx512(_mm512_set1_ps(x)));
    lanes_method!(load(p: *const f32) -> Self = Avx512(_mm512_loadu_ps(p)));
    lanes_method!(load_f16(p: *const u16) -> Self = Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))));
    lanes_method!(load_bf16(p: *const u16) -> Self = {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
    });
    lanes_method!(load_f8_e4m3(p: *const u8) -> Self = {
        let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()));
        let size = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
        let none = _mm256_cmpeq_epi16(size, _mm256_set1_epi16(0x7f));
        let sign = _mm256_slli_epi16::<8>(_mm256_sub_epi16(wide, size));
        let bits = _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16::<7>(size), sign), none);
        Avx512(_mm512_mul_ps(_mm512_cvtph_ps(bits), _mm512_set1_ps(256.0)))
    });
    lanes_method!(load_f8_e5m2(p: *const u8) -> Self = {
        Avx512(_mm512_cvtph_ps(_mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast())))))
    });
    lanes_method!(load_i8(p: *const i8) -> Self = {
        Avx512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))))
    });
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    lanes_method!(add(self, other: Self) -> Self = Avx512(_mm512_add_ps(self.0, other.0)));
    lanes_method!(sub(self, other: Self) -> Self = Avx512(_mm512_sub_ps(self.0, other.0)));
    lanes_method!(mul(self, other: Self) -> Self = Avx512(_mm512_mul_ps(self.0, other.0)));
    lanes_method!(div(self, other: Self) -> Self = Avx512(_mm512_div_ps(self.0, other.0)));
    lanes_method!(fma(self, factor: Self, term: Self) -> Self = Avx512(_mm512_fmadd_ps(self.0, factor.0, term.0)));
    lanes_method!(max(self, other: Self) -> Self = Avx512(_mm512_max_ps(self.0, other.0)));
    lanes_method!(min(self, other: Self) -> Self = Avx512(_mm512_min_ps(self.0, other.0)));
    lanes_method!(as_exponent(self) -> Self = {
        Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self.0))))
    });
    lanes_method!(abs(self) -> Self = Avx512(_mm512_abs_ps(self.0)));
    lanes_method!(copysign(self, sign: Self) -> Self = {
        let bit = _mm512_set1_ps(-0.0);
        Avx512(_mm512_or_ps(_mm512_andnot_ps(bit, self.0), _mm512_and_ps(bit, sign.0)))
    });
    lanes_method!(if_negative(self, yes: Self, no: Self) -> Self = {
        let negative = _mm512_movepi32_mask(_mm512_castps_si512(self.0));
        Avx512(_mm512_mask_blend_ps(negative, no.0, yes.0))
    });
    lanes_method!(sum(self) -> f32 = folded(self).sum());
    lanes_method!(store_sums(eight: [Self; 8], p: *mut f32) -> () = {
        // The pairs that `sum` adds, for two, four and eight vectors at a time, each with its quarters, then elements.
        let halves = |a: Self, b: Self| {
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a.0, b.0), _mm512_shuffle_f32x4::<0xee>(a.0, b.0))
        };
        let quarters =
            |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let [a, b, c, d, e, f, g, h] = eight;
        let (abcd, efgh) = (quarters(halves(a, b), halves(c, d)), quarters(halves(e, f), halves(g, h)));
        let pairs = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(abcd, efgh), _mm512_shuffle_ps::<0xee>(abcd, efgh));
        let all = _mm512_add_ps(pairs, _mm512_shuffle_ps::<0xb1>(pairs, pairs));
        // a - e - b - f - c - g - d - h -
        let order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
        _mm256_storeu_ps(p, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, all)));
    });
    lanes_method!(transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) -> () = {
        Avx2::transpose8(from, from_stride, to, to_stride)
    });
    lanes_method!(largest(self) -> f32 = {
        let high = _mm512_extractf32x8_ps::<1>(self.0);
        Avx2(_mm256_max_ps(_mm512_castps512_ps256(self.0), high)).largest()
    });
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// The lower half of `a` plus its upper, then the same of `b`.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn halves_added(a: Avx2, b: Avx2) -> __m256 {
    // SAFETY: the caller vouches for the instruction set.
    unsafe { _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a.0, b.0), _mm256_permute2f128_ps::<0x31>(a.0, b.0)) }
}

/// The lower half plus the upper.
///
/// # Safety
/// The processor has AVX-512 F and DQ.
#[inline(always)]
unsafe fn folded(x: Avx512) -> Avx2 {
    // SAFETY: the caller vouches for the instruction set.
    unsafe { Avx2(_mm256_add_ps(_mm512_castps512_ps256(x.0), _mm512_extractf32x8_ps::<1>(x.0))) }
}
