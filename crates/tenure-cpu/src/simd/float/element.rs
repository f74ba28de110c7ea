//! Float types in memory, at any address.

use tenure_tensor::{DType, uncomputable};

use crate::simd::float::lanes::Lanes;

/// Float types that weights may have.
#[derive(Clone, Copy)]
pub(crate) enum Float {
    F32,
    F16,
    Bf16,
    F8E4M3,
    F8E5M2,
}

impl Float {
    #[rustfmt::skip]
    pub(crate) fn of(dtype: DType) -> Option<Float> {
        match dtype {
            DType::F32 => Some(Float::F32),
            DType::F16 => Some(Float::F16),
            DType::BF16 => Some(Float::Bf16),
            DType::F8E4M3 => Some(Float::F8E4M3),
            DType::F8E5M2 => Some(Float::F8E5M2),
            DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 | DType::Q2K | DType::Q3K | DType::Q4K
            | DType::Q5K | DType::Q6K | DType::IQ4NL | DType::IQ4XS | DType::MXFP4 | uncomputable!() => None,
        }
    }
}

/// `with_element!(float, E => body)`: the body, in which `E` is the [`Element`] of a [`Float`].
macro_rules! with_element {
    ($float:expr, $element:ident => $body:expr) => {
        with_element!($float, $element => $body, F32, F16, Bf16, F8E4M3, F8E5M2)
    };
    ($float:expr, $element:ident => $body:expr, $($each:ident),*) => {
        match $float {
            $($crate::simd::float::element::Float::$each => {
                type $element = $crate::simd::float::element::$each;
                $body
            })*
        }
    };
}
pub(crate) use with_element;

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
pub(crate) struct F8E4M3;
pub(crate) struct F8E5M2;

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

impl Element for F8E4M3 {
    const BYTES: usize = 1;
    #[inline(always)]
    unsafe fn load<V: Lanes>(p: *const u8) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::load_f8_e4m3(p) }
    }
}

impl Element for F8E5M2 {
    const BYTES: usize = 1;
    #[inline(always)]
    unsafe fn load<V: Lanes>(p: *const u8) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::load_f8_e5m2(p) }
    }
}
