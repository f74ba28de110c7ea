//! Where barriers must be, from what each dispatch reads and writes.
//!
//! Dispatches between two barriers may run in any order and at once. One must wait if it reads what was written since
//! the last barrier, or writes what was read or written since then.

/// A range of bytes of one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Which buffer.
    pub(crate) buffer: usize,
    /// The first byte.
    pub(crate) offset: u64,
    /// How many.
    pub(crate) bytes: u64,
}

impl Region {
    const fn overlaps(self, other: Region) -> bool {
        self.buffer == other.buffer
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }
}

/// What a dispatch does with a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// What was touched since the last barrier.
#[derive(Debug, Default)]
pub(crate) struct Hazards {
    touched: Vec<(Region, Access)>,
}

impl Hazards {
    /// Whether a barrier must come before a dispatch with these accesses. Takes note of them.
    pub(crate) fn must_wait(&mut self, accesses: impl Iterator<Item = (Region, Access)> + Clone) -> bool {
        let conflict = |(region, access): (Region, Access)| {
            self.touched.iter().any(|&(other, earlier)| {
                (access == Access::Write || earlier == Access::Write) && region.overlaps(other)
            })
        };
        let wait = accesses.clone().any(conflict);
        if wait {
            self.touched.clear();
        }
        self.touched.extend(accesses);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(buffer: usize, offset: u64, bytes: u64, access: Access) -> (Region, Access) {
        (Region { buffer, offset, bytes }, access)
    }

    fn read(offset: u64) -> (Region, Access) {
        at(0, offset, 16, Access::Read)
    }

    fn write(offset: u64) -> (Region, Access) {
        at(0, offset, 16, Access::Write)
    }

    /// Which of the dispatches wait.
    fn waits(dispatches: &[&[(Region, Access)]]) -> Vec<bool> {
        let mut hazards = Hazards::default();
        dispatches.iter().map(|accesses| hazards.must_wait(accesses.iter().copied())).collect()
    }

    #[test]
    fn reading_what_was_written_waits() {
        assert_eq!(waits(&[&[write(0)], &[read(0), write(16)]]), [false, true]);
        assert_eq!(waits(&[&[write(0)], &[read(15), write(32)]]), [false, true]);
        assert_eq!(waits(&[&[write(0)], &[read(16), write(32)]]), [false, false]);
    }

    #[test]
    fn writing_what_was_read_or_written_waits() {
        assert_eq!(waits(&[&[read(0)], &[write(0)]]), [false, true]);
        assert_eq!(waits(&[&[write(0)], &[write(0)]]), [false, true]);
        assert_eq!(waits(&[&[write(16)], &[write(0)]]), [false, false]);
    }

    #[test]
    fn in_place_dispatches_wait_for_each_other() {
        assert_eq!(waits(&[&[read(0), write(0)], &[read(0), write(0)]]), [false, true]);
    }

    #[test]
    fn reading_twice_waits_for_nothing() {
        assert_eq!(waits(&[&[read(0), write(16)], &[read(0), write(32)]]), [false, false]);
    }

    #[test]
    fn other_buffers_do_not_matter() {
        assert_eq!(waits(&[&[at(0, 0, 16, Access::Write)], &[at(1, 0, 16, Access::Read)]]), [false, false]);
    }

    #[test]
    fn a_barrier_settles_everything_before_it() {
        let plan: [&[(Region, Access)]; 4] = [&[write(0)], &[write(16)], &[read(0), write(32)], &[read(16), write(48)]];
        assert_eq!(waits(&plan), [false, false, true, false]);
    }
}
