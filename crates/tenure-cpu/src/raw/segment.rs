//! Bytes of a lease.

use std::marker::PhantomData;

use tenure_device::Lease;

use crate::raw::interpreter::Base;

/// The bytes of a lease of this backend, to be written in disjoint ranges.
pub(crate) struct SegmentBytes<'l> {
    base: Base,
    len: usize,
    _lease: PhantomData<&'l Lease>,
}

impl<'l> SegmentBytes<'l> {
    pub(crate) fn new(lease: &'l Lease) -> Self {
        SegmentBytes { base: Base::of(lease, 0), len: lease.bytes().get() as usize, _lease: PhantomData }
    }

    /// # Safety
    /// Nobody else touches the range while the result lives.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn range(&self, offset: usize, len: usize) -> &mut [u8] {
        assert!(offset <= self.len && len <= self.len - offset, "range beyond the segment");
        // SAFETY: inside the segment, which lives as long as the lease this borrows; the caller upholds the rest.
        unsafe { std::slice::from_raw_parts_mut(self.base.0.add(offset), len) }
    }
}

impl Base {
    /// The address `offset` bytes into a lease of this backend.
    pub(crate) fn of(lease: &Lease, offset: u64) -> Base {
        let address = lease.raw().token as usize as *mut u8;
        // The caller compares the offset with the lease's size before anything is touched.
        Base(address.wrapping_add(offset as usize))
    }
}
