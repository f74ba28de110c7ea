//! Float types in memory, at any address.

use crate::simd::float::lanes::Lanes;

/// How an element is stored.
pub(crate) trait Element {
    const BYTES: usize;

    /// # Safety
    /// `p` is valid for `V::N` elements, and the processor has the instruction set of `V`.
    unsafe fn load<V: Lanes>(p: *const u8) -> V;

    /// The first `count < V::N` elements, the rest zero.
    ///
    /// # Safety
    /// `p` is valid for `count` elements, and the processor has the instruction set of `V`.
    #[inline(always)]
    unsafe fn load_part<V: Lanes>(p: *const u8, count: usize) -> V {
        let mut part = [0u8; 64];
        // SAFETY: `count < V::N <= 16` elements of at most 4 bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(p, part.as_mut_ptr(), (count * Self::BYTES).min(64));
            Self::load(part.as_ptr())
        }
    }
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<V: Lanes>(p: *const u8) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::load(p.cast()) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Lanes>(p: *const u8) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::load_f16(p.cast()) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Lanes>(p: *const u8) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::load_bf16(p.cast()) }
    }
}
