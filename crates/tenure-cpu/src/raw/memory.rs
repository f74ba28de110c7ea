//! Host memory for segments: anonymous mappings, zeroed, in huge pages where the system offers them.

use tenure_device::{AllocError, RawSegment};
use tenure_tensor::ByteSize;

/// Segments are whole pages.
pub(crate) const PAGE: u64 = 4096;

/// Allocates `bytes` (a multiple of [`PAGE`]) of zeroed memory.
pub(crate) fn alloc(bytes: ByteSize) -> Result<RawSegment, AllocError> {
    let refused = || AllocError::OutOfMemory { device: "cpu".to_owned(), bytes };
    let len = bytes.to_usize().filter(|&len| len > 0 && len <= isize::MAX as usize).ok_or_else(refused)?;
    let base = os::map(len).ok_or_else(refused)?;
    Ok(RawSegment { token: base as usize as u64, bytes })
}

/// Frees a segment.
///
/// # Safety
/// `segment` came from [`alloc`], was not freed before, and nothing uses it any more.
pub(crate) unsafe fn free(segment: RawSegment) {
    // SAFETY: the token is the address `alloc` was given for that many bytes; the caller upholds the rest.
    unsafe { os::unmap(segment.token as usize as *mut u8, segment.bytes.get() as usize) };
}

/// Fills a segment with a word.
///
/// # Safety
/// `segment` came from [`alloc`], was not freed, and nothing uses it meanwhile.
pub(crate) unsafe fn fill(segment: RawSegment, word: u32) {
    let words = segment.bytes.get() as usize / size_of::<u32>();
    // SAFETY: segments are whole pages, so aligned and a multiple of four bytes; the caller upholds the rest.
    unsafe { std::slice::from_raw_parts_mut(segment.token as usize as *mut u32, words) }.fill(word);
}

#[cfg(unix)]
mod os {
    /// Below this a segment is not worth a huge page.
    const HUGE: usize = 4 << 20;

    pub(super) fn map(len: usize) -> Option<*mut u8> {
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        #[cfg(target_os = "linux")]
        if len >= HUGE {
            // SAFETY: the range is the mapping just made. A refusal changes nothing but speed.
            unsafe { libc::madvise(base, len, libc::MADV_HUGEPAGE) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = HUGE;
        Some(base.cast())
    }

    /// # Safety
    /// The range was returned by [`map`] and is used no more.
    pub(super) unsafe fn unmap(base: *mut u8, len: usize) {
        // SAFETY: the caller gives a whole mapping of ours.
        unsafe { libc::munmap(base.cast(), len) };
    }
}

#[cfg(not(unix))]
mod os {
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    pub(super) fn map(len: usize) -> Option<*mut u8> {
        let layout = Layout::from_size_align(len, super::PAGE as usize).ok()?;
        // SAFETY: the layout's size is not zero (checked by the caller).
        let base = unsafe { alloc_zeroed(layout) };
        (!base.is_null()).then_some(base)
    }

    /// # Safety
    /// The range was returned by [`map`] and is used no more.
    pub(super) unsafe fn unmap(base: *mut u8, len: usize) {
        if let Ok(layout) = Layout::from_size_align(len, super::PAGE as usize) {
            // SAFETY: the caller gives a whole allocation of ours, made with this layout.
            unsafe { dealloc(base, layout) };
        }
    }
}

/// The machine's memory.
pub(crate) fn physical() -> ByteSize {
    #[cfg(unix)]
    {
        // SAFETY: `sysconf` reads a number; it has no preconditions.
        let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        if let (Ok(pages), Ok(size)) = (u64::try_from(pages), u64::try_from(size)) {
            return ByteSize::new(size).times(pages);
        }
    }
    ByteSize::new(u64::MAX)
}
