//! Activations in 14 bits, with AVX2.

use std::arch::x86_64::*;

use super::super::{Act, BLOCK, SUPER, unit};

/// As [`quantize`](super::super::quantize).
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::simd::panels) unsafe fn quantize_avx2(x: &[f32], acts: &mut [Act]) {
    // Words of a group of four in the order 0, 2, 1, 3.
    let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    let ones = _mm256_set1_epi16(1);
    for (x, acts) in x.chunks(SUPER * BLOCK).zip(acts.chunks_mut(SUPER)) {
        let (unit, inverse) = unit(largest_avx2(x));
        let inverse = _mm256_set1_ps(inverse);
        for (x, act) in x.chunks_exact(BLOCK).zip(acts) {
            act.unit = unit;
            let mut sums = [_mm256_setzero_si256(); 2];
            for (half, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 16 of 32 floats are read, 16 of 32 words written.
                unsafe {
                    let x = x.as_ptr().add(16 * half);
                    let low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
                    let high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x.add(8)), inverse));
                    // Packing works within 128 bits.
                    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
                    let words = _mm256_shuffle_epi8(words, order);
                    _mm256_storeu_si256(act.words.as_mut_ptr().add(16 * half).cast(), words);
                    *sum = _mm256_madd_epi16(words, ones);
                }
            }
            let sums = _mm256_hadd_epi32(sums[0], sums[1]);
            let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let sums = _mm_hadd_epi32(sums, sums);
            act.set_sums(bytemuck::cast(_mm_cvtsi128_si64(sums)));
        }
    }
}

/// The largest magnitude of whole blocks; NaN if there is one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn largest_avx2(x: &[f32]) -> f32 {
    let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
    let (mut largest, mut nan) = ([_mm256_setzero_ps(); 2], _mm256_setzero_ps());
    for x in x.chunks_exact(16) {
        // SAFETY: 16 floats are read.
        let (a, b) = unsafe { (_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) };
        nan = _mm256_or_ps(nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, b));
        largest[0] = _mm256_max_ps(largest[0], _mm256_and_ps(a, magnitude));
        largest[1] = _mm256_max_ps(largest[1], _mm256_and_ps(b, magnitude));
    }
    if _mm256_movemask_ps(nan) != 0 {
        return f32::NAN;
    }
    let eight = _mm256_max_ps(largest[0], largest[1]);
    let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}
