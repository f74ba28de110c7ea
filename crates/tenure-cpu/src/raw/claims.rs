//! How the members of a team share out the units of a phase: each has a run of its own, and who is done takes over half
//! of what the slowest has left.
//!
//! A member's units follow each other in memory, so what it asks memory for ahead of its use is what it uses.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// The units of one phase that nobody has claimed yet.
pub(crate) struct Claims(Vec<Run>);

/// Units a member has left: the first in the low half, the end in the high half. A cache line of its own, as its member
/// writes it all the time.
#[repr(align(64))]
#[derive(Default)]
struct Run(AtomicU64);

impl Claims {
    /// For so many members; there is nothing to claim.
    pub(crate) fn new(members: usize) -> Self {
        Claims((0..members).map(|_| Run::default()).collect())
    }

    /// Gives a member its run of `units`, at most `u32::MAX`, which are shared out equally. Nobody claims meanwhile.
    pub(crate) fn share(&self, member: usize, units: usize) {
        debug_assert!(u32::try_from(units).is_ok());
        let at = |index: usize| (units as u64 * index as u64 / self.0.len() as u64) as u32;
        self.0[member].0.store(pack(at(member), at(member + 1)), Ordering::Relaxed);
    }

    /// At most `most` units for a member, until there are none.
    pub(crate) fn claim(&self, member: usize, most: usize) -> Option<Range<usize>> {
        let own = &self.0[member].0;
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let taken = own.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |run| {
            let (first, end) = unpack(run);
            (first < end).then(|| pack(end.min(first.saturating_add(most)), end))
        });
        let (first, end) = match taken {
            Ok(run) => unpack(run),
            Err(_) => {
                let (first, end) = self.take_over()?;
                // What is left of it can be taken over again. The member's run is empty, so nobody else writes it.
                own.store(pack(end.min(first.saturating_add(most)), end), Ordering::Relaxed);
                (first, end)
            }
        };
        Some(first as usize..end.min(first.saturating_add(most)) as usize)
    }

    /// The second half of what the member has left who has most.
    fn take_over(&self) -> Option<(u32, u32)> {
        loop {
            let left = |run: u64| unpack(run).1.saturating_sub(unpack(run).0);
            let runs = self.0.iter().map(|run| (run, run.0.load(Ordering::Relaxed)));
            let (run, seen) = runs.max_by_key(|&(_, seen)| left(seen))?;
            if left(seen) == 0 {
                return None;
            }
            let (first, end) = unpack(seen);
            let middle = first + (end - first) / 2;
            // The units of a run are in its word and nowhere else, so whoever changes the word has them.
            if run.0.compare_exchange(seen, pack(first, middle), Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Some((middle, end));
            }
        }
    }
}

const fn pack(first: u32, end: u32) -> u64 {
    first as u64 | (end as u64) << 32
}

const fn unpack(run: u64) -> (u32, u32) {
    (run as u32, (run >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_alone_gets_everything_in_order_of_runs() {
        let claims = Claims::new(3);
        (0..3).for_each(|member| claims.share(member, 10));
        let mut seen = Vec::new();
        while let Some(units) = claims.claim(1, 2) {
            assert!(!units.is_empty() && units.len() <= 2);
            seen.extend(units);
        }
        assert_eq!(seen[..3], [3, 4, 5], "its own first");
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        assert_eq!(claims.claim(0, 2), None);
    }

    #[test]
    fn every_unit_is_claimed_once_whoever_is_fast() {
        for members in [1, 2, 5] {
            let claims = Claims::new(members);
            for units in [0, 1, 4, 1000] {
                (0..members).for_each(|member| claims.share(member, units));
                let claimed: Vec<AtomicU64> = (0..units).map(|_| AtomicU64::new(0)).collect();
                std::thread::scope(|scope| {
                    for member in 0..members {
                        let (claims, claimed) = (&claims, &claimed);
                        scope.spawn(move || {
                            while let Some(units) = claims.claim(member, 1 + member) {
                                for unit in units {
                                    claimed[unit].fetch_add(1, Ordering::Relaxed);
                                    (0..member * 20).for_each(|_| std::hint::spin_loop());
                                }
                            }
                        });
                    }
                });
                assert!(claimed.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{members} share {units}");
            }
        }
    }
}
