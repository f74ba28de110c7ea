//! Angles of a rope as fractions of a turn.
//!
//! A position times a fraction of a turn with 64 bits keeps 32 good bits of the angle whatever the position, in integer
//! arithmetic that every device has; the sine of a driver may be wrong in its eleventh bit.

use tenure_graph::RopeAngles;

/// For each pair the upper and lower half of the fraction of a turn, times 2^64, that one position turns it by.
pub(crate) fn turns(angles: &RopeAngles) -> Vec<u32> {
    let fraction = |&radians: &f64| {
        let turns = radians / std::f64::consts::TAU;
        // Whole turns change nothing, for positions are whole too.
        let fraction = turns - turns.floor();
        // A float of 53 bits times 2^64 is whole; 1.0 (rounded up) is a whole turn again.
        (fraction * (u64::MAX as f64 + 1.0)) as u128 as u64
    };
    angles.per_position.iter().map(fraction).flat_map(|turn| [(turn >> 32) as u32, turn as u32]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_keep_their_precision_at_large_positions() {
        let per_position = vec![1.0, 0.1, 1e-3, 1.234e-5, 7.5, 0.0];
        let angles = RopeAngles { per_position: per_position.clone(), magnitude: 1.0 };
        for (radians, turn) in per_position.iter().zip(turns(&angles).chunks_exact(2)) {
            for position in [0u32, 1, 17, 4095, 131_071, 1_048_575] {
                // As the kernel does it.
                let low = (u64::from(turn[1]) * u64::from(position)) >> 32;
                let phase = turn[0].wrapping_mul(position).wrapping_add(low as u32);
                let got = f64::from(phase) / 2f64.powi(32) * std::f64::consts::TAU;
                let want = f64::from(position) * radians;
                assert!((got.cos() - want.cos()).abs() < 2e-9, "{radians} at {position}");
                assert!((got.sin() - want.sin()).abs() < 2e-9, "{radians} at {position}");
            }
        }
    }
}
