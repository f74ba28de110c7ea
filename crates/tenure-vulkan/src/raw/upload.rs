//! Bringing bytes into device memory.

use std::sync::Arc;
use std::time::Duration;

use ash::vk;
use tenure_device::{Deadline, LoadError, Stop};

use crate::raw::buffer::{Buffer, Home};
use crate::raw::command::Commands;
use crate::raw::device::{Gpu, GpuError};
use crate::raw::ticks::{Tick, Ticks};

/// A buffer the host writes and the device copies from: one half fills while the other is copied.
pub(crate) struct Staging {
    gpu: Arc<Gpu>,
    commands: Commands,
    ticks: Ticks,
    buffer: Buffer,
    halves: [Half; 2],
    /// Bytes of a half.
    half: u64,
    /// The half that fills.
    filling: usize,
}

struct Half {
    commands: vk::CommandBuffer,
    /// The submission that copies from it.
    tick: Option<Tick>,
    used: u64,
    copies: Vec<Copy>,
}

struct Copy {
    from: u64,
    to: Arc<Buffer>,
    at: u64,
    bytes: u64,
}

/// What is copied begins at a multiple of so many bytes.
const COPY_ALIGN: u64 = 16;
/// Bytes of both halves, where the device allocates as many.
const STAGING: u64 = 8 << 20;
/// Between looks at a stop.
const SLICE: Duration = Duration::from_millis(10);
/// How long a load that was stopped waits for its last copies. They take less where nothing is wrong with the device.
const GRACE: Duration = Duration::from_secs(1);

impl Staging {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Self, GpuError> {
        let half_bytes = (STAGING.min(gpu.limits.allocation) / 2).max(COPY_ALIGN) / COPY_ALIGN * COPY_ALIGN;
        let buffer = Buffer::new(gpu, 2 * half_bytes, Home::Host)?;
        let mut commands = Commands::new(gpu)?;
        let mut half = || {
            let commands = commands.buffer()?;
            Ok(Half { commands, tick: None, used: 0, copies: Vec::new() })
        };
        let halves = [half()?, half()?];
        Ok(Staging {
            ticks: Ticks::new(gpu)?,
            gpu: gpu.clone(),
            commands,
            buffer,
            halves,
            half: half_bytes,
            filling: 0,
        })
    }

    /// Bytes of its memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.buffer.bytes
    }

    /// Waits until nothing of an earlier load is under way.
    pub(crate) fn begin(&mut self, stop: &Stop) -> Result<(), LoadError> {
        self.reclaim(0, stop)?;
        self.reclaim(1, stop)
    }

    /// Has bytes copied into a buffer. They are there once [`finish`](Self::finish) has returned.
    ///
    /// # Safety
    /// Nobody else touches that part of the buffer before then.
    pub(crate) unsafe fn put(
        &mut self,
        to: &Arc<Buffer>,
        mut at: u64,
        mut bytes: &[u8],
        stop: &Stop,
    ) -> Result<(), LoadError> {
        let half_bytes = self.half;
        while !bytes.is_empty() {
            if self.halves[self.filling].used == half_bytes {
                self.flush()?;
                self.filling = 1 - self.filling;
                self.reclaim(self.filling, stop)?;
            }
            let half = &mut self.halves[self.filling];
            let len = (half_bytes - half.used).min(bytes.len() as u64);
            let (now, later) = bytes.split_at(len as usize);
            let from = self.filling as u64 * half_bytes + half.used;
            // SAFETY: this half's submission has ended, so only this writes it.
            if let Some(staged) = unsafe { self.buffer.bytes(from, len) } {
                staged.copy_from_slice(now);
            }
            half.copies.push(Copy { from, to: to.clone(), at, bytes: len });
            half.used = (half.used + len).next_multiple_of(COPY_ALIGN).min(half_bytes);
            at += len;
            bytes = later;
        }
        Ok(())
    }

    /// Waits until everything put is where it belongs.
    pub(crate) fn finish(&mut self, stop: &Stop) -> Result<(), LoadError> {
        self.flush()?;
        self.begin(stop)
    }

    /// Gives up what is not under way, and waits a little for what is. What has not ended by then keeps the memory that
    /// it is copied to, until the next load, which waits for it.
    pub(crate) fn abort(&mut self) {
        // What was put and not submitted is dropped.
        for half in self.halves.iter_mut().filter(|half| half.tick.is_none()) {
            half.used = 0;
            half.copies.clear();
        }
        let grace = Stop::by(Deadline::after(GRACE));
        for half in 0..self.halves.len() {
            match self.reclaim(half, &grace) {
                Ok(()) | Err(LoadError::Stopped(_)) => {}
                // What no wait saw end is not known to have ended.
                Err(_) => break,
            }
        }
        if self.gpu.is_lost() {
            // Nothing runs any more, or the device was given up and what was made on it is leaked.
            let _: Result<(), GpuError> = self.ticks.settle();
            for half in &mut self.halves {
                (half.used, half.tick) = (0, None);
                half.copies.clear();
            }
        }
    }

    /// Submits what was put into the half that fills.
    fn flush(&mut self) -> Result<(), LoadError> {
        let half = &mut self.halves[self.filling];
        if half.copies.is_empty() {
            return Ok(());
        }
        let (staging, copies) = (&self.buffer, &half.copies);
        // SAFETY: the half's earlier submission has ended; the ranges lie inside the buffers (checked by the lane
        // before it puts anything), which the copies and `self` hold until the submission has ended.
        let submitted = unsafe {
            let recorded = self.commands.record(half.commands, |recording| {
                for copy in copies {
                    recording.copy((staging, copy.from), (&copy.to, copy.at), copy.bytes);
                }
                recording.barrier();
            });
            recorded.and_then(|()| self.ticks.submit(half.commands))
        };
        half.tick = Some(submitted.map_err(|error| error.of_device(&self.gpu))?);
        Ok(())
    }

    /// Waits until a half may be filled again.
    fn reclaim(&mut self, half: usize, stop: &Stop) -> Result<(), LoadError> {
        while let Some(tick) = self.halves[half].tick {
            if self.ticks.wait(tick, SLICE).map_err(|error| error.of_device(&self.gpu))? {
                self.halves[half].tick = None;
            } else {
                stop.check()?;
            }
        }
        self.halves[half].used = 0;
        self.halves[half].copies.clear();
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What the copies use may go afterwards, or is leaked with the device.
        let _: Result<(), GpuError> = self.ticks.settle();
    }
}
