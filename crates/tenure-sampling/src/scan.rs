//! One pass over a row of logits: its largest entry, and the proof that it is a sane row.

use crate::error::SamplingError;

/// The id of the largest logit, the lowest id of equals.
///
/// Refuses NaN and +inf, and a row that is empty or all -inf.
pub fn argmax(logits: &[f32]) -> Result<u32, SamplingError> {
    peak(logits).map(|peak| peak.token)
}

/// The largest logit of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Peak {
    pub(crate) token: u32,
    pub(crate) logit: f32,
}

/// Finds the peak in one pass; the pass also proves that there is no NaN and no +inf.
pub(crate) fn peak(logits: &[f32]) -> Result<Peak, SamplingError> {
    // Remembering the block of the maximum leaves only one block to search for its id.
    const BLOCK: usize = 2048;
    let mut max = f32::NEG_INFINITY;
    let mut max_block = 0;
    let mut sane = true;
    for (i, block) in logits.chunks(BLOCK).enumerate() {
        let (block_max, block_sane) = block_peak(block);
        sane &= block_sane;
        if block_max > max {
            max = block_max;
            max_block = i;
        }
    }
    let start = max_block * BLOCK;
    let place = logits.iter().skip(start).take(BLOCK).position(|x| *x == max);
    match place {
        Some(place) if sane && max > f32::NEG_INFINITY => Ok(Peak { token: (start + place) as u32, logit: max }),
        _ => Err(census(logits.iter().copied())),
    }
}

/// The peak of a row of which these are the largest, in the order of [`crate::Sampler::sample_top`]: a NaN or +inf of
/// the row is among them.
pub(crate) fn peak_of_top(top: &[(u32, f32)]) -> Result<Peak, SamplingError> {
    let sane = top.iter().all(|(_, logit)| below_infinity(*logit));
    match top.first() {
        Some(&(token, logit)) if sane && logit > f32::NEG_INFINITY => Ok(Peak { token, logit }),
        _ => Err(census(top.iter().map(|(_, logit)| *logit))),
    }
}

/// The largest entry of a row that is known to be sane; -inf when it is empty.
pub(crate) fn max(row: &[f32]) -> f32 {
    block_peak(row).0
}

/// The largest finite logit, ignoring everything else.
pub(crate) fn finite_peak(logits: &[f32]) -> Option<Peak> {
    let mut best: Option<Peak> = None;
    for (token, &logit) in logits.iter().enumerate() {
        if logit.is_finite() && best.is_none_or(|b| logit > b.logit) {
            best = Some(Peak { token: token as u32, logit });
        }
    }
    best
}

fn block_peak(block: &[f32]) -> (f32, bool) {
    const LANES: usize = 16;
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut faults = [0u32; LANES];
    let mut chunks = block.chunks_exact(LANES);
    for chunk in &mut chunks {
        for ((max, fault), &x) in max.iter_mut().zip(&mut faults).zip(chunk) {
            *max = if x > *max { x } else { *max };
            *fault |= u32::from(!below_infinity(x));
        }
    }
    for ((max, fault), &x) in max.iter_mut().zip(&mut faults).zip(chunks.remainder()) {
        *max = if x > *max { x } else { *max };
        *fault |= u32::from(!below_infinity(x));
    }
    let top = max.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    (top, faults.iter().all(|f| *f == 0))
}

/// False for NaN as well as for +inf.
fn below_infinity(x: f32) -> bool {
    x < f32::INFINITY
}

fn census(logits: impl ExactSizeIterator<Item = f32> + Clone) -> SamplingError {
    let count = |test: fn(f32) -> bool| logits.clone().filter(|x| test(*x)).count();
    SamplingError::NonFiniteLogits {
        nan: count(f32::is_nan),
        pos_inf: count(|x| x == f32::INFINITY),
        neg_inf: count(|x| x == f32::NEG_INFINITY),
        seen: logits.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_id_of_equals_wins() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), Ok(1));
        assert_eq!(argmax(&[0.5; 5000]), Ok(0));
        assert_eq!(argmax(&[-0.0, 0.0]), Ok(0));
        assert_eq!(argmax(&[f32::NEG_INFINITY, f32::MIN]), Ok(1));
        assert_eq!(argmax(&[1e-45, 3e-45, -1e-45]), Ok(1));
    }

    #[test]
    fn every_place_of_a_long_row_is_seen() {
        for len in [1, 15, 16, 17, 2047, 2048, 2049, 6000] {
            for place in [0, len / 2, len - 1] {
                let mut row = vec![-1.0f32; len];
                row[place] = 2.0;
                assert_eq!(argmax(&row), Ok(place as u32), "{len} {place}");
                for fault in [f32::NAN, f32::INFINITY] {
                    row[place] = fault;
                    assert!(argmax(&row).is_err(), "{len} {place} {fault}");
                }
            }
        }
    }

    #[test]
    fn faults_are_counted() {
        let inf = f32::INFINITY;
        assert_eq!(
            argmax(&[f32::NAN, 1.0, inf, -inf, inf]),
            Err(SamplingError::NonFiniteLogits { nan: 1, pos_inf: 2, neg_inf: 1, seen: 5 })
        );
        assert_eq!(argmax(&[-inf; 3]), Err(SamplingError::NonFiniteLogits { nan: 0, pos_inf: 0, neg_inf: 3, seen: 3 }));
        assert!(argmax(&[]).is_err());
    }
}
