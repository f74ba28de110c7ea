//! The largest entries of a row, in one pass over it.

/// Fills `into`, which is no longer than `row`, with the ids and values of its largest entries, in the order of
/// [`Wanted::Top`](tenure_device::Wanted::Top).
pub(crate) fn top(row: &[f32], into: &mut [(u32, f32)]) {
    let Some(last) = into.len().checked_sub(1) else { return };
    let mut held = 0;
    for (at, chunk) in row.chunks(CHUNK).enumerate() {
        if held > last {
            // Nearly every chunk ends here. Only what comes before the last one held can enter: what equals it has a
            // higher id.
            let (_, bar) = into[last];
            if !chunk.iter().fold(false, |any, x| any | (*x > bar) | x.is_nan()) {
                continue;
            }
        }
        for (id, &x) in (at * CHUNK..).zip(chunk) {
            if held > last && !is_before(x, into[last].1) {
                continue;
            }
            let place = into[..held].partition_point(|&(_, other)| !is_before(x, other));
            held = (held + 1).min(into.len());
            into.copy_within(place..held - 1, place + 1);
            into[place] = (id as u32, x);
        }
    }
}

/// Entries that are looked at together.
const CHUNK: usize = 64;

/// Whether a value comes before another whatever their ids.
fn is_before(x: f32, other: f32) -> bool {
    !other.is_nan() && (x.is_nan() || x > other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(row: &[f32], k: usize) -> Vec<(u32, f32)> {
        let mut into = vec![(u32::MAX, 0.5); k.min(row.len())];
        top(row, &mut into);
        into
    }

    #[test]
    fn by_hand() {
        let inf = f32::INFINITY;
        assert_eq!(of(&[1.0, 3.0, 2.0, 3.0], 3), [(1, 3.0), (3, 3.0), (2, 2.0)]);
        assert_eq!(of(&[-0.0, 0.0, -inf], 9), [(0, -0.0), (1, 0.0), (2, -inf)]);
        let odd = of(&[5.0, f32::NAN, inf, -f32::NAN], 3);
        assert_eq!(odd.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 3, 2]);
        assert!(odd[0].1.is_nan() && odd[1].1.is_nan() && odd[2].1 == inf);
        assert_eq!(of(&[1.0], 0), []);
        assert_eq!(of(&[], 3), []);
    }

    #[test]
    fn rows_of_many_chunks() {
        let up: Vec<f32> = (0..1000).map(|x| x as f32).collect();
        let want: Vec<(u32, f32)> = (0..100).map(|at| (999 - at, (999 - at) as f32)).collect();
        assert_eq!(of(&up, 100), want);
        let down: Vec<f32> = up.iter().map(|x| -x).collect();
        assert_eq!(of(&down, 2), [(0, 0.0), (1, -1.0)]);
        let flat = vec![2.5f32; 1000];
        assert_eq!(of(&flat, 70), (0..70).map(|id| (id, 2.5)).collect::<Vec<_>>());
        for place in [0, 63, 64, 500, 999] {
            let mut row = flat.clone();
            row[place] = f32::NAN;
            assert!(of(&row, 1)[0].1.is_nan(), "{place}");
        }
    }
}
