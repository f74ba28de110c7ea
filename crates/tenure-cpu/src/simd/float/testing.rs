//! What the tests of the float and attention kernels share.

use tenure_tensor::{DType, codec};

/// Numbers that look random and are the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Between -1 and 1.
    pub(crate) fn float(&mut self) -> f32 {
        (f64::from(self.bits()) / f64::from(1u32 << 31) - 1.0) as f32
    }

    pub(crate) fn floats(&mut self, len: usize, magnitude: f32) -> Vec<f32> {
        (0..len).map(|_| self.float() * magnitude).collect()
    }
}

/// The bytes of weights of a float type, and what these hold.
pub(crate) fn encode(dtype: DType, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut held) = (Vec::new(), vec![0.0; values.len()]);
    codec::quantize(dtype, values, &mut bytes).expect("a float type");
    codec::dequantize(dtype, &bytes, &mut held).expect("just made");
    (bytes, held)
}

/// Every element lies within `relative` of the wanted one, or within `absolute`.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], want: &[f64], relative: f64, absolute: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= absolute + relative * want.abs(), "{what}: element {i} is {got}, not {want}");
    }
}

/// Both hold the same bits.
#[track_caller]
pub(crate) fn assert_same_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(got.to_bits() == want.to_bits(), "{what}: element {i} is {got:e}, not {want:e}");
    }
}
