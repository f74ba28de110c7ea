//! Picking entries out of a long row without building a list of the whole row.
//!
//! The order everywhere in this crate: larger score first, lower id first among equals.

use std::cmp::Ordering;

/// An entry with a score that can be ranked.
pub(crate) trait Ranked: Copy {
    fn new(id: u32, score: f32) -> Self;
    fn id(&self) -> u32;
    fn score(&self) -> f32;
}

/// Best first. Scores are never NaN here; rows are proven sane before anything is ranked.
pub(crate) fn best_first<T: Ranked>(a: &T, b: &T) -> Ordering {
    b.score().partial_cmp(&a.score()).unwrap_or(Ordering::Equal).then(a.id().cmp(&b.id()))
}

/// Entries that [`top`] needs room for.
pub(crate) fn top_room(k: usize, len: usize) -> usize {
    k.saturating_mul(4).max(512).min(len)
}

/// Replaces `list` by the `k` best entries of `row`, sorted; -inf is never an entry.
///
/// Grows `list` to at most [`top_room`] entries.
pub(crate) fn top<T: Ranked>(row: &[f32], k: usize, list: &mut Vec<T>) {
    list.clear();
    let room = top_room(k, row.len());
    list.reserve(room);
    // Only a score above the k-th best so far can enter: an equal one has a higher id.
    let mut bar = f32::NEG_INFINITY;
    const CHUNK: usize = 32;
    for (c, chunk) in row.chunks(CHUNK).enumerate() {
        if !chunk.iter().fold(false, |any, x| any | (*x > bar)) {
            continue;
        }
        for (i, &score) in chunk.iter().enumerate() {
            if score > bar {
                list.push(T::new((c * CHUNK + i) as u32, score));
                if list.len() == room && k < room {
                    keep_top(list, k);
                    bar = list.get(k.wrapping_sub(1)).map_or(bar, Ranked::score);
                }
            }
        }
    }
    keep_top(list, k);
    list.sort_unstable_by(best_first);
}

/// Truncates `list` to its `k` best entries, in no particular order but with the k-th best last.
pub(crate) fn keep_top<T: Ranked>(list: &mut Vec<T>, k: usize) {
    if k == 0 {
        list.clear();
    } else if k < list.len() {
        list.select_nth_unstable_by(k - 1, best_first);
        list.truncate(k);
    }
}

/// Sorts so that `list[..to]` holds its best entries in order, given that `list[..from]` does.
pub(crate) fn sort_prefix<T: Ranked>(list: &mut [T], from: usize, to: usize) {
    let Some(rest) = list.get_mut(from..) else {
        return;
    };
    let n = to.saturating_sub(from).min(rest.len());
    if n == 0 {
        return;
    }
    if n < rest.len() {
        rest.select_nth_unstable_by(n - 1, best_first);
    }
    if let Some(part) = rest.get_mut(..n) {
        part.sort_unstable_by(best_first);
    }
}

/// Calls `take` for every entry of `row` that is at least `bar` and above -inf, in order of id.
pub(crate) fn each_at_least(row: &[f32], bar: f32, mut take: impl FnMut(u32, f32)) {
    const CHUNK: usize = 32;
    for (c, chunk) in row.chunks(CHUNK).enumerate() {
        if !chunk.iter().fold(false, |any, x| any | (*x >= bar)) {
            continue;
        }
        for (i, &score) in chunk.iter().enumerate() {
            if score >= bar && score > f32::NEG_INFINITY {
                take((c * CHUNK + i) as u32, score);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Entry(u32, f32);

    impl Ranked for Entry {
        fn new(id: u32, score: f32) -> Self {
            Entry(id, score)
        }
        fn id(&self) -> u32 {
            self.0
        }
        fn score(&self) -> f32 {
            self.1
        }
    }

    fn sorted(row: &[f32]) -> Vec<Entry> {
        let mut all: Vec<Entry> =
            row.iter().enumerate().filter(|(_, x)| **x > f32::NEG_INFINITY).map(|(i, x)| Entry(i as u32, *x)).collect();
        all.sort_by(best_first);
        all
    }

    proptest! {
        #[test]
        fn top_equals_sorting_everything(
            // Few distinct values, so that ties are common.
            row in prop::collection::vec((-20i32..20).prop_map(|x| if x == -20 { f32::NEG_INFINITY } else { x as f32 }), 1..3000),
            k in 0usize..700,
        ) {
            let mut list: Vec<Entry> = Vec::new();
            top(&row, k, &mut list);
            let mut want = sorted(&row);
            want.truncate(k);
            prop_assert_eq!(list, want);
        }

        #[test]
        fn prefix_sort_grows_in_steps(
            row in prop::collection::vec(-50i32..50, 1..400),
            a in 0usize..200,
            b in 0usize..200,
        ) {
            let row: Vec<f32> = row.into_iter().map(|x| x as f32).collect();
            let want = sorted(&row);
            let mut list: Vec<Entry> = row.iter().enumerate().map(|(i, x)| Entry(i as u32, *x)).collect();
            let to = (a + b).min(list.len());
            sort_prefix(&mut list, 0, a);
            sort_prefix(&mut list, a, to);
            prop_assert_eq!(&list[..to], &want[..to]);
        }
    }

    #[test]
    fn ascending_and_descending_rows() {
        let up: Vec<f32> = (0..10_000).map(|x| x as f32).collect();
        let down: Vec<f32> = up.iter().map(|x| -x).collect();
        let mut list: Vec<Entry> = Vec::new();
        top(&up, 3, &mut list);
        assert_eq!(list, [Entry(9999, 9999.0), Entry(9998, 9998.0), Entry(9997, 9997.0)]);
        assert!(list.capacity() <= 512);
        top(&down, 2, &mut list);
        assert_eq!(list, [Entry(0, 0.0), Entry(1, -1.0)]);
    }

    #[test]
    fn at_least_skips_minus_infinity() {
        let mut seen = Vec::new();
        each_at_least(&[1.0, f32::NEG_INFINITY, 3.0, 2.0], 2.0, |i, x| seen.push((i, x)));
        assert_eq!(seen, [(2, 3.0), (3, 2.0)]);
        seen.clear();
        each_at_least(&[1.0, f32::NEG_INFINITY], f32::NEG_INFINITY, |i, x| seen.push((i, x)));
        assert_eq!(seen, [(0, 1.0)]);
    }
}
