//! Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random
//! numbers: as easy as 1, 2, 3" (SC'11).
//!
//! A block is a pure function of (seed, stream, step): nothing is carried from one draw to the
//! next, so neither threads nor the order of a batch can change a number.

/// The random numbers of one (seed, stream).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Philox {
    seed: u64,
    stream: u64,
}

impl Philox {
    /// The numbers of this seed and stream.
    pub fn new(seed: u64, stream: u64) -> Self {
        Philox { seed, stream }
    }

    /// The 128 bits of one step: the seed is the key; step (low) and stream (high) the counter.
    pub fn block(&self, step: u64) -> [u32; 4] {
        let (step, stream) = (halves(step), halves(self.stream));
        philox4x32_10([step[0], step[1], stream[0], stream[1]], halves(self.seed))
    }

    /// Two independent uniform numbers of one step, each in [0, 1) with 53 random bits.
    pub fn uniforms(&self, step: u64) -> [f64; 2] {
        let [a, b, c, d] = self.block(step);
        [uniform(a, b), uniform(c, d)]
    }
}

/// One Philox4x32 block of ten rounds.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let [mut x0, mut x1, mut x2, mut x3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let [low0, high0] = halves(u64::from(MULTIPLIERS[0]) * u64::from(x0));
        let [low1, high1] = halves(u64::from(MULTIPLIERS[1]) * u64::from(x2));
        (x0, x1, x2, x3) = (high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [x0, x1, x2, x3]
}

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

fn uniform(low: u32, high: u32) -> f64 {
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three philox4x32-10 lines of Random123's known-answer file.
    #[test]
    fn known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, want) in cases {
            assert_eq!(philox4x32_10(counter, key), want);
        }
    }

    #[test]
    fn seed_stream_and_step_each_change_the_block() {
        let base = Philox::new(0, 0).block(0);
        for other in [
            Philox::new(1, 0).block(0),
            Philox::new(1 << 32, 0).block(0),
            Philox::new(u64::MAX, 0).block(0),
            Philox::new(0, 1).block(0),
            Philox::new(0, 1 << 32).block(0),
            Philox::new(0, 0).block(1),
            Philox::new(0, 0).block(1 << 32),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn uniforms_stay_below_one_and_average_a_half() {
        assert_eq!(uniform(0, 0), 0.0);
        assert!(uniform(u32::MAX, u32::MAX) < 1.0);
        let philox = Philox::new(u64::MAX, 3);
        let n = 20_000;
        let sums = (0..n).fold([0.0, 0.0], |sums, step| {
            let [a, b] = philox.uniforms(step);
            [sums[0] + a, sums[1] + b]
        });
        for sum in sums {
            // Standard deviation of the mean: 0.2887 / sqrt(20000) = 0.002.
            assert!((sum / n as f64 - 0.5).abs() < 0.01, "{sum}");
        }
    }
}
