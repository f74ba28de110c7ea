//! Activations in 8 bits, with AVX2.

use std::arch::x86_64::*;

use super::super::{Act, BLOCK, QUARTER, STEPS, Words};

/// As [`quantize`](super::super::quantize), with the same bits on every processor that is not portable.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::simd::panels) unsafe fn quantize_avx2(x: &[f32], acts: &mut [Act], words: &mut [Words]) {
    let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
    for (x, (act, words)) in x.chunks_exact(BLOCK).zip(acts.iter_mut().zip(words)) {
        // SAFETY: 32 floats are read, 32 bytes and 32 words written.
        unsafe {
            let from = x.as_ptr();
            let x = [
                _mm256_loadu_ps(from),
                _mm256_loadu_ps(from.add(QUARTER)),
                _mm256_loadu_ps(from.add(2 * QUARTER)),
                _mm256_loadu_ps(from.add(3 * QUARTER)),
            ];
            // The largest of each quarter, in the end one to a lane of 32 bits.
            let mut pairs = [_mm256_setzero_ps(); 2];
            let mut nan = _mm256_setzero_ps();
            for i in 0..2 {
                let (a, b) = (x[2 * i], x[2 * i + 1]);
                nan = _mm256_or_ps(nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, b));
                let (a, b) = (_mm256_and_ps(a, magnitude), _mm256_and_ps(b, magnitude));
                pairs[i] = _mm256_max_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            }
            let low = _mm256_shuffle_ps::<0b10_00_10_00>(pairs[0], pairs[1]);
            let high = _mm256_shuffle_ps::<0b11_01_11_01>(pairs[0], pairs[1]);
            let both = _mm256_max_ps(low, high);
            let both = _mm256_max_ps(both, _mm256_shuffle_ps::<0b10_11_00_01>(both, both));
            // Lanes 0 and 2 of each half: quarters 0, 2 and 1, 3.
            let (even, odd) = (_mm256_castps256_ps128(both), _mm256_extractf128_ps::<1>(both));
            let largest = _mm_blend_ps::<0b1010>(even, odd);
            let two = _mm_max_ps(largest, _mm_movehl_ps(largest, largest));
            let all = _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
            let all = if _mm256_movemask_ps(nan) == 0 { all } else { f32::NAN };
            act.unit = all * (1.0 / (127.0 * STEPS));
            let steps = _mm_ceil_ps(_mm_mul_ps(largest, _mm_set1_ps(STEPS / all)));
            let steps = _mm_max_ps(_mm_min_ps(steps, _mm_set1_ps(STEPS)), _mm_set1_ps(1.0));
            let inverse = _mm_div_ps(_mm_set1_ps(1.0), _mm_mul_ps(steps, _mm_set1_ps(act.unit)));
            let inverse = if all > 0.0 { inverse } else { _mm_setzero_ps() };
            let steps = _mm_cvtps_epi32(steps);
            let steps = _mm_or_si128(steps, _mm_slli_epi32::<16>(steps));
            act.steps = bytemuck::cast(steps);
            let spread = _mm256_set_m128(inverse, inverse);
            let whole = [
                _mm256_cvtps_epi32(_mm256_mul_ps(x[0], _mm256_permute_ps::<0b00_00_00_00>(spread))),
                _mm256_cvtps_epi32(_mm256_mul_ps(x[1], _mm256_permute_ps::<0b01_01_01_01>(spread))),
                _mm256_cvtps_epi32(_mm256_mul_ps(x[2], _mm256_permute_ps::<0b10_10_10_10>(spread))),
                _mm256_cvtps_epi32(_mm256_mul_ps(x[3], _mm256_permute_ps::<0b11_11_11_11>(spread))),
            ];
            // Packing works within 128 bits: 4 numbers of each quarter, put in order afterwards.
            let low = _mm256_packs_epi32(whole[0], whole[1]);
            let high = _mm256_packs_epi32(whole[2], whole[3]);
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let q = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
            _mm256_storeu_si256(act.q.as_mut_ptr().cast(), q);
            // Each step twice in 32 bits: 8 of them are a quarter's.
            let low =
                _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(steps), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
            let high =
                _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(steps), _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3));
            let low = _mm256_mullo_epi16(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(q)), low);
            let high = _mm256_mullo_epi16(_mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(q)), high);
            _mm256_storeu_si256(words.0.as_mut_ptr().cast(), low);
            _mm256_storeu_si256(words.0.as_mut_ptr().add(16).cast(), high);
            let ones = _mm256_set1_epi16(1);
            let sums = _mm256_hadd_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
            let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let sums = _mm_hadd_epi32(sums, sums);
            let [low, high] = bytemuck::cast(_mm_cvtsi128_si64(sums));
            act.set_sums([low, high]);
        }
    }
}
