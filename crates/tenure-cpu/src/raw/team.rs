//! A team of worker threads that stays in one parallel region per step and meets at barriers.
//!
//! The calling thread takes part. Waiting spins briefly, then yields, then parks: a step's barriers are microseconds
//! apart, while a pause between two steps may last for hours.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use tenure_device::DeviceError;

/// Turns of the spin loop before a waiter yields.
const SPINS: u32 = 4_000;
/// Yields before a waiter parks.
const YIELDS: u32 = 200;

/// Threads that run the same function together.
pub(crate) struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One region at a time.
    region: Mutex<()>,
}

/// One member's view of a parallel region.
#[derive(Clone, Copy)]
pub(crate) struct Member<'t> {
    /// 0 is the calling thread.
    pub(crate) index: usize,
    /// Members of the team.
    pub(crate) count: usize,
    shared: &'t Shared,
}

/// A member of the team panicked; the region must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

type Job = dyn Fn(Member<'_>) + Sync;

struct Shared {
    count: usize,
    /// The region's number; a worker that sees a new one runs `job`.
    region: Signal,
    /// Members done with the region.
    done: Signal,
    job: Mutex<Option<&'static Job>>,
    finished: AtomicUsize,
    closing: AtomicBool,
    barrier: Signal,
    arrived: AtomicUsize,
    broken: AtomicBool,
}

impl Team {
    /// A team of `count` members, the caller included.
    pub(crate) fn new(count: usize) -> Result<Self, DeviceError> {
        let shared = Arc::new(Shared {
            count: count.max(1),
            region: Signal::default(),
            done: Signal::default(),
            job: Mutex::new(None),
            finished: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            barrier: Signal::default(),
            arrived: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        });
        let mut team = Team { shared, threads: Vec::new(), region: Mutex::new(()) };
        for index in 1..team.shared.count {
            let shared = team.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("tenure-cpu-{index}"))
                .spawn(move || shared.work(index))
                .map_err(|error| DeviceError::ThreadSpawn(error.to_string()))?;
            team.threads.push(thread);
        }
        Ok(team)
    }

    /// Members of the team.
    pub(crate) fn count(&self) -> usize {
        self.shared.count
    }

    /// Runs `job` on every member and returns when all are done.
    ///
    /// # Errors
    /// [`Broken`] when a member panicked (a defect of a kernel); the team can be used again.
    pub(crate) fn run(&self, job: &(dyn Fn(Member<'_>) + Sync)) -> Result<(), Broken> {
        let _region = self.region.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: the reference is taken back below, before this function returns, and no worker uses it after it has
        // counted itself into `finished`, for all of which this function waits.
        let erased: &'static Job = unsafe { std::mem::transmute::<&(dyn Fn(Member<'_>) + Sync), &'static Job>(job) };
        shared.finished.store(0, Ordering::Relaxed);
        shared.arrived.store(0, Ordering::Relaxed);
        shared.broken.store(false, Ordering::Relaxed);
        *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(erased);
        let before = shared.done.now();
        shared.region.raise();
        shared.member(0, erased);
        if shared.finished.fetch_add(1, Ordering::AcqRel) + 1 == shared.count {
            shared.done.raise();
        }
        shared.done.wait(before);
        *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if shared.broken.load(Ordering::Acquire) { Err(Broken) } else { Ok(()) }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.region.raise();
        for thread in self.threads.drain(..) {
            // A worker catches the panics of its jobs, so it ends in order.
            let _: Result<(), Box<dyn Any + Send>> = thread.join();
        }
    }
}

impl Member<'_> {
    /// Waits until every member is here.
    ///
    /// # Errors
    /// [`Broken`] when a member panicked and will not come.
    #[inline]
    pub(crate) fn barrier(&self) -> Result<(), Broken> {
        let shared = self.shared;
        let before = shared.barrier.now();
        if shared.broken.load(Ordering::Acquire) {
            return Err(Broken);
        }
        if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == shared.count {
            shared.arrived.store(0, Ordering::Relaxed);
            shared.barrier.raise();
        } else {
            shared.barrier.wait(before);
        }
        if shared.broken.load(Ordering::Acquire) { Err(Broken) } else { Ok(()) }
    }

    /// This member's share of `0..len`: contiguous, equal to within one.
    pub(crate) fn share(&self, len: usize) -> std::ops::Range<usize> {
        len * self.index / self.count..len * (self.index + 1) / self.count
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.region.wait(seen);
            seen = self.region.now();
            if self.closing.load(Ordering::Acquire) {
                return;
            }
            let job = *self.job.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(job) = job else { continue };
            self.member(index, job);
            if self.finished.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
                self.done.raise();
            }
        }
    }

    fn member(&self, index: usize, job: &Job) {
        let member = Member { index, count: self.count, shared: self };
        if catch_unwind(AssertUnwindSafe(|| job(member))).is_err() {
            self.broken.store(true, Ordering::Release);
            // Whoever waits at a barrier now must not wait for this member.
            self.barrier.raise();
        }
    }
}

/// A counter that members wait on.
#[derive(Default)]
struct Signal {
    value: AtomicU32,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Signal {
    fn now(&self) -> u32 {
        self.value.load(Ordering::Acquire)
    }

    fn raise(&self) {
        self.value.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.changed.notify_all();
        }
    }

    /// Returns once the value differs from `before`.
    fn wait(&self, before: u32) {
        for _ in 0..SPINS {
            if self.now() != before {
                return;
            }
            std::hint::spin_loop();
        }
        for _ in 0..YIELDS {
            if self.now() != before {
                return;
            }
            std::thread::yield_now();
        }
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.value.load(Ordering::SeqCst) == before {
            lock = self.changed.wait(lock).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_meet_at_every_barrier() {
        for count in [1, 2, 3, 8] {
            let team = Team::new(count).expect("threads");
            let phase: Vec<AtomicUsize> = (0..200).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..20 {
                phase.iter().for_each(|p| p.store(0, Ordering::Relaxed));
                team.run(&|member| {
                    for p in &phase {
                        p.fetch_add(1, Ordering::Relaxed);
                        member.barrier().expect("nobody panics");
                        assert_eq!(p.load(Ordering::Relaxed), count);
                    }
                })
                .expect("nobody panics");
            }
        }
    }

    #[test]
    fn a_panic_breaks_the_region_and_not_the_team() {
        let team = Team::new(3).expect("threads");
        let broken = team.run(&|member| {
            if member.index == 1 {
                std::panic::resume_unwind(Box::new("on purpose"));
            }
            while member.barrier().is_ok() {}
        });
        assert_eq!(broken, Err(Broken));
        let ran = AtomicUsize::new(0);
        team.run(&|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        })
        .expect("works again");
        assert_eq!(ran.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_worker_that_parked_wakes_for_the_next_region() {
        let team = Team::new(2).expect("threads");
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(30));
            let ran = AtomicUsize::new(0);
            team.run(&|_| {
                ran.fetch_add(1, Ordering::Relaxed);
            })
            .expect("nobody panics");
            assert_eq!(ran.load(Ordering::Relaxed), 2);
        }
    }

    #[test]
    fn shares_cover_everything_once() {
        let team = Team::new(3).expect("threads");
        let hits: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        team.run(&|member| member.share(100).for_each(|i| _ = hits[i].fetch_add(1, Ordering::Relaxed)))
            .expect("nobody panics");
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
    }
}
