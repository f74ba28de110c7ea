//! Activations as 8-bit integers: what every quantised weight format is multiplied with.
//!
//! A row of `cols` values is `cols / 32` blocks of 48 bytes: 32 quants `q` as `i8`, the scale `d: f32`, the offset
//! factor `s = d * sum(q): f32`, and four sums of eight quants as `i16` ([`SUMS`]). A value is `d * q`.
//!
//! `d` is the largest magnitude of the block over 127. A block that holds an infinity or NaN gets `d = s = NaN`, so that
//! whatever is computed from it says so.

use crate::simd::Isa;

/// Values of a block.
pub const BLOCK: usize = 32;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 48;
/// Where a block's scale lies.
pub(crate) const SCALE: usize = 32;
/// Where a block's offset factor lies.
pub(crate) const OFFSET: usize = 36;
/// Where a block's sums lie: of values 0-15 those whose index is 0 or 1 modulo 4, those whose index is 2 or 3; the same
/// of values 16-31.
pub(crate) const SUMS: usize = 40;

/// Scales below this count as zero: their inverse may not exist.
const LEAST: f32 = 1e-30;

/// The bytes of `rows` rows of `cols` values; `cols` is a multiple of [`BLOCK`].
pub const fn bytes(rows: usize, cols: usize) -> usize {
    rows * (cols / BLOCK) * BLOCK_BYTES
}

/// Quantised rows.
#[derive(Clone, Copy, Debug)]
pub struct Act8<'a> {
    bytes: &'a [u8],
    rows: usize,
    cols: usize,
}

impl<'a> Act8<'a> {
    /// `rows` rows of `cols` values as [`quantize`] left them, one after another.
    ///
    /// # Panics
    /// If `cols` is not a multiple of [`BLOCK`] or the bytes are not those of as many rows.
    pub fn new(bytes: &'a [u8], rows: usize, cols: usize) -> Self {
        assert!(cols.is_multiple_of(BLOCK) && bytes.len() == self::bytes(rows, cols), "shape of quantised rows");
        Act8 { bytes, rows, cols }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of each row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.cols / BLOCK * BLOCK_BYTES
    }

    /// The blocks of one row.
    pub(crate) fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride()..][..self.stride()]
    }

    /// The values that a row stands for.
    pub fn dequantize(&self, row: usize, out: &mut [f32]) {
        for (block, out) in self.row(row).chunks_exact(BLOCK_BYTES).zip(out.chunks_exact_mut(BLOCK)) {
            let d = float(block, SCALE);
            for (out, &q) in out.iter_mut().zip(block) {
                *out = d * f32::from(q as i8);
            }
        }
    }
}

/// The float at `at` of a block.
pub(crate) fn float(block: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Sum number `i` of a block.
pub(crate) fn sum(block: &[u8], i: usize) -> i32 {
    i32::from(i16::from_le_bytes([block[SUMS + 2 * i], block[SUMS + 2 * i + 1]]))
}

/// Quantises one row. The result is the same on every instruction set.
///
/// # Panics
/// If `x` is not whole blocks or `out` is not [`bytes`] long.
pub fn quantize(isa: Isa, x: &[f32], out: &mut [u8]) {
    assert!(x.len().is_multiple_of(BLOCK) && out.len() == bytes(1, x.len()), "shape of a row to quantise");
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BLOCK_BYTES>().0);
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` other than `Portable` is used only where the processor has it.
        Isa::Avx2 | Isa::Avx512Vnni => blocks.for_each(|(x, out)| unsafe { x86::quantize(x, out) }),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512Vnni => blocks.for_each(|(x, out)| quantize_portable(x, out)),
        Isa::Portable => blocks.for_each(|(x, out)| quantize_portable(x, out)),
    }
}

fn quantize_portable(x: &[f32; BLOCK], out: &mut [u8; BLOCK_BYTES]) {
    // Magnitudes compare as integers, NaN above all.
    let most = x.iter().fold(0, |most: u32, x| most.max(x.to_bits() & 0x7fff_ffff));
    let (d, inverse) = scale(f32::from_bits(most));
    let mut sums = [0i16; 4];
    for (i, x) in x.iter().enumerate() {
        let q = (x * inverse).round_ties_even() as i8;
        sums[i / 16 * 2 + i % 4 / 2] += i16::from(q);
        out[i] = q as u8;
    }
    put_tail(out, d, sums);
}

/// The scale for a largest magnitude, and what to multiply values with.
#[inline(always)]
fn scale(most: f32) -> (f32, f32) {
    if !most.is_finite() {
        (f32::NAN, 0.0)
    } else if most < LEAST {
        (0.0, 0.0)
    } else {
        (most / 127.0, 127.0 / most)
    }
}

#[inline(always)]
fn put_tail(out: &mut [u8; BLOCK_BYTES], d: f32, sums: [i16; 4]) {
    let sum: i32 = sums.iter().map(|&sum| i32::from(sum)).sum();
    out[SCALE..SCALE + 4].copy_from_slice(&d.to_le_bytes());
    out[OFFSET..OFFSET + 4].copy_from_slice(&(d * sum as f32).to_le_bytes());
    for (i, sum) in sums.iter().enumerate() {
        out[SUMS + 2 * i..SUMS + 2 * i + 2].copy_from_slice(&sum.to_le_bytes());
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, BLOCK_BYTES, put_tail, scale};

    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn quantize(x: &[f32; BLOCK], out: &mut [u8; BLOCK_BYTES]) {
        // SAFETY: loads and stores stay inside the two arrays.
        unsafe {
            let x = [0, 8, 16, 24].map(|i| _mm256_loadu_ps(x.as_ptr().add(i)));
            let magnitude = |x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fff_ffff));
            let most = _mm256_max_epi32(
                _mm256_max_epi32(magnitude(x[0]), magnitude(x[1])),
                _mm256_max_epi32(magnitude(x[2]), magnitude(x[3])),
            );
            let most = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
            let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
            let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b10_11_00_01>(most));
            let (d, inverse) = scale(f32::from_bits(_mm_cvtsi128_si32(most) as u32));
            if inverse == 0.0 {
                // Products with an infinity or NaN would not be zero.
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_setzero_si256());
                put_tail(out, d, [0; 4]);
                return;
            }
            let q = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(inverse))));
            // The packs work within 128-bit lanes: 32-bit words come out as 0 4 8 12 / 16 20 ... of each lane.
            let q = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
            let q = _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), q);
            // Pairs of neighbours, then the four groups of each half.
            let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
            let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b01_00_11_10>(pairs));
            let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b10_11_00_01>(pairs));
            let first = _mm256_extract_epi32::<0>(pairs);
            let last = _mm256_extract_epi32::<4>(pairs);
            put_tail(out, d, [first as i16, (first >> 16) as i16, last as i16, (last >> 16) as i16]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<[f32; BLOCK]> {
        let wave = std::array::from_fn(|i| ((i * 37 % 61) as f32 - 30.0) * 0.37);
        let halves = std::array::from_fn(|i| if i == 0 { 127.0 } else { i as f32 - 15.5 });
        let mut hole = wave;
        hole[17] = f32::NAN;
        let mut peak = wave;
        peak[3] = f32::NEG_INFINITY;
        vec![wave, halves, [0.0; BLOCK], [-3.0; BLOCK], [f32::MAX; BLOCK], [1e-38; BLOCK], hole, peak]
    }

    #[test]
    fn every_instruction_set_gives_the_same_bytes() {
        for x in rows() {
            let mut want = [0; BLOCK_BYTES];
            quantize(Isa::Portable, &x, &mut want);
            for isa in Isa::available() {
                let mut got = [0xaa; BLOCK_BYTES];
                quantize(isa, &x, &mut got);
                assert_eq!(got, want, "{isa:?} {x:?}");
            }
        }
    }

    #[test]
    fn a_block_holds_its_scale_and_sums() {
        for x in rows() {
            let mut block = [0; BLOCK_BYTES];
            quantize(Isa::best(), &x, &mut block);
            let q: Vec<i32> = block[..BLOCK].iter().map(|&q| i32::from(q as i8)).collect();
            for i in 0..4 {
                let of = |k: &usize| k / 16 == i / 2 && k % 4 / 2 == i % 2;
                assert_eq!(sum(&block, i), (0..BLOCK).filter(of).map(|k| q[k]).sum::<i32>());
            }
            let d = float(&block, SCALE);
            if x.iter().all(|x| x.is_finite()) {
                assert_eq!(float(&block, OFFSET), d * q.iter().sum::<i32>() as f32);
                assert!(x.iter().zip(&q).all(
                    |(&x, &q)| (f64::from(x) - f64::from(d) * f64::from(q)).abs() <= 0.5001 * f64::from(d) + 1e-30
                ));
            } else {
                assert!(d.is_nan() && float(&block, OFFSET).is_nan() && q.iter().all(|&q| q == 0));
            }
        }
    }
}
