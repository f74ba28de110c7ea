//! Submissions in order, and waiting for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ash::vk;
use tenure_device::Stop;

use crate::raw::device::{Gpu, GpuError};

/// The number of a submission of one [`Ticks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u64);

/// Counts the submissions of one owner: with a timeline semaphore, or with fences where there is none.
pub(crate) struct Ticks {
    gpu: Arc<Gpu>,
    means: Means,
    /// The last submission.
    last: u64,
    /// The last known to have ended.
    ended: u64,
}

enum Means {
    Timeline(vk::Semaphore),
    /// Fence `tick % FENCES` belongs to that tick.
    Fences([vk::Fence; FENCES]),
}

/// Between looks at the clock.
const SLICE: Duration = Duration::from_millis(10);
/// Between waits that fail at once.
const NAP: Duration = Duration::from_millis(1);
/// Most submissions under way at once.
pub(crate) const FENCES: usize = 4;

impl Ticks {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Self, GpuError> {
        let means = match gpu.timeline {
            Some(_) => {
                let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
                let info = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
                // SAFETY: the device is alive and the feature on.
                Means::Timeline(gpu.call("vkCreateSemaphore", || unsafe { gpu.raw.create_semaphore(&info, None) })?)
            }
            None => Means::Fences([vk::Fence::null(); FENCES]),
        };
        let mut ticks = Ticks { gpu: gpu.clone(), means, last: 0, ended: 0 };
        if let Means::Fences(fences) = &mut ticks.means {
            for fence in fences {
                // SAFETY: the device is alive.
                let made = || unsafe { gpu.raw.create_fence(&vk::FenceCreateInfo::default(), None) };
                *fence = gpu.call("vkCreateFence", made)?;
            }
        }
        Ok(ticks)
    }

    /// Submits a command buffer. At most [`FENCES`] may be under way.
    ///
    /// # Safety
    /// The buffer was recorded completely, is not under way already, and what it uses lives until the tick has ended.
    pub(crate) unsafe fn submit(&mut self, commands: vk::CommandBuffer) -> Result<Tick, GpuError> {
        let next = self.last + 1;
        let buffers = [commands];
        let info = vk::SubmitInfo::default().command_buffers(&buffers);
        let device = &self.gpu.raw;
        let submit = || match &self.means {
            Means::Timeline(semaphore) => {
                let (semaphores, values) = ([*semaphore], [next]);
                let mut timeline = vk::TimelineSemaphoreSubmitInfo::default().signal_semaphore_values(&values);
                let info = [info.signal_semaphores(&semaphores).push_next(&mut timeline)];
                // SAFETY: the queue is locked; the caller upholds the rest.
                unsafe { device.queue_submit(*self.gpu.queue(), &info, vk::Fence::null()) }
            }
            Means::Fences(fences) => {
                let fence = fences[(next % FENCES as u64) as usize];
                // SAFETY: the fence's earlier submission has ended, for at most so many are under way; the queue is
                // locked; the caller upholds the rest.
                unsafe {
                    let reset = device.reset_fences(&[fence]);
                    reset.and_then(|()| device.queue_submit(*self.gpu.queue(), &[info], fence))
                }
            }
        };
        self.gpu.call("vkQueueSubmit", submit)?;
        self.last = next;
        Ok(Tick(next))
    }

    /// The last submission.
    pub(crate) fn last(&self) -> Tick {
        Tick(self.last)
    }

    /// Waits until `tick` has ended, at most `patience`; says whether it has.
    pub(crate) fn wait(&mut self, tick: Tick, patience: Duration) -> Result<bool, GpuError> {
        if tick.0 <= self.ended {
            return Ok(true);
        }
        let call = match &self.means {
            Means::Timeline(_) => "vkWaitSemaphores",
            Means::Fences(_) => "vkWaitForFences",
        };
        let result = self.gpu.call(call, || self.wait_for(tick, patience));
        match result {
            Ok(()) => {
                self.ended = self.ended.max(tick.0);
                Ok(true)
            }
            Err(GpuError { result: vk::Result::TIMEOUT, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until nothing is under way. Work that does not end is given up together with the device, so that what it
    /// may touch is never freed.
    ///
    /// # Errors
    /// When the device is gone, with or without what ran on it.
    pub(crate) fn settle(&mut self) -> Result<(), GpuError> {
        self.settle_before(None).map(drop)
    }

    /// The same, unless a stop is due before: says whether nothing is under way.
    ///
    /// # Errors
    /// As [`Ticks::settle`].
    pub(crate) fn settle_before(&mut self, stop: Option<&Stop>) -> Result<bool, GpuError> {
        let last = Tick(self.last);
        let given_up = Instant::now() + self.gpu.linger;
        loop {
            match self.wait(last, SLICE) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) if error.is_loss() => match self.gpu.is_stuck() {
                    true => return Err(error),
                    // Once a wait has returned that the device is gone, it uses nothing any more.
                    false => match self.wait_for(last, SLICE) {
                        Ok(()) | Err(vk::Result::ERROR_DEVICE_LOST) => return Err(error),
                        Err(_) => {}
                    },
                },
                // The device runs on although the wait failed.
                Err(_) => std::thread::sleep(NAP),
            }
            if stop.is_some_and(|stop| stop.check().is_err()) {
                return Ok(false);
            }
            if Instant::now() >= given_up {
                self.gpu.abandon();
                return Err(GpuError { call: "a wait for work to end", result: vk::Result::ERROR_DEVICE_LOST });
            }
        }
    }

    /// Has the driver wait.
    fn wait_for(&self, tick: Tick, patience: Duration) -> Result<(), vk::Result> {
        let nanos = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        match (&self.means, &self.gpu.timeline) {
            (Means::Timeline(semaphore), Some(calls)) => {
                let (semaphores, values) = ([*semaphore], [tick.0]);
                let info = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
                // SAFETY: the semaphore is ours and alive.
                unsafe { calls.wait_semaphores(&info, nanos) }
            }
            (Means::Timeline(_), None) => Err(vk::Result::ERROR_FEATURE_NOT_PRESENT),
            (Means::Fences(fences), _) => {
                let fence = fences[(tick.0 % FENCES as u64) as usize];
                // SAFETY: the fence is ours and alive. If it belongs to a later submission by now, `tick` has ended.
                unsafe { self.gpu.raw.wait_for_fences(&[fence], true, nanos) }
            }
        }
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        if self.gpu.is_stuck() {
            return;
        }
        // SAFETY: ours alone; the owner waited for its submissions, or leaks the ticks with them.
        unsafe {
            match &self.means {
                Means::Timeline(semaphore) => self.gpu.raw.destroy_semaphore(*semaphore, None),
                Means::Fences(fences) => fences.iter().for_each(|&fence| self.gpu.raw.destroy_fence(fence, None)),
            }
        }
    }
}
