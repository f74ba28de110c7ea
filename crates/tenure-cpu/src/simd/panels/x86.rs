//! The kernels of x86-64.
//!
//! A line of 64 bytes is two sides of 8 rows for AVX2, one register for AVX-512. Weights are brought to 16 bits, those in
//! the even bytes of a group apart from those in the odd, and multiplied with activations two at a time; what a format
//! takes off its quants is taken off by the sum of the activations, or as they are unpacked.

mod avx2;
mod avx2_wide;
mod avx512;
mod quantize;

use tenure_tensor::DType;

pub(crate) use avx512::add_products;
pub(super) use quantize::quantize_avx2;

use super::{Act, FP4, Format, IQ4, Scales, Values, format};
use crate::simd::float::Out;

/// One block format, known when the kernel is compiled.
trait Kind {
    const FORMAT: Format;
    const TABLE: [i8; 16];
}

macro_rules! kinds {
    ($($name:ident => $dtype:expr, $table:expr;)*) => {
        $(
            struct $name;
            impl Kind for $name {
                const FORMAT: Format = match format($dtype) {
                    Some(format) => format,
                    None => panic!("not a panel format"),
                };
                const TABLE: [i8; 16] = $table;
            }
        )*

        /// Whether both instruction sets have a kernel for a type.
        pub(super) fn has_kernel(dtype: DType) -> bool {
            [$($dtype),*].contains(&dtype)
        }

        /// # Safety
        /// As for [`super::matmul`]; the processor has AVX2, FMA and F16C.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) unsafe fn avx2(dtype: DType, panel: &[u8], cols: usize, acts: &[Act], out: Out) {
            // SAFETY: the caller's promise.
            unsafe {
                $(if dtype == $dtype { return avx2::avx2_panel::<$name>(panel, cols, acts, out); })*
            }
        }

        /// Up to [`TOGETHER`](super::TOGETHER) panels of `bytes` each, one behind the other.
        ///
        /// # Safety
        /// As for [`super::matmul`]; the processor has AVX-512 F, BW, VL, DQ and VNNI.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        pub(super) unsafe fn avx512(dtype: DType, panels: &[u8], bytes: usize, cols: usize, acts: &[Act], out: Out) {
            // SAFETY: the caller's promise.
            unsafe {
                $(if dtype == $dtype { return avx512::avx512_panels::<$name>(panels, bytes, cols, acts, out); })*
            }
        }
    };
}

kinds! {
    Q4_0 => DType::Q4_0, IQ4;
    Q4_1 => DType::Q4_1, IQ4;
    Q5_0 => DType::Q5_0, IQ4;
    Q5_1 => DType::Q5_1, IQ4;
    Q8_0 => DType::Q8_0, IQ4;
    Q2K => DType::Q2K, IQ4;
    Q3K => DType::Q3K, IQ4;
    Q4K => DType::Q4K, IQ4;
    Q5K => DType::Q5K, IQ4;
    Q6K => DType::Q6K, IQ4;
    Iq4Nl => DType::IQ4NL, IQ4;
    Iq4Xs => DType::IQ4XS, IQ4;
    Mxfp4 => DType::MXFP4, FP4;
}

/// How many bytes ahead of its use a panel is asked for: what was fastest, on the whole (`stream` in `benches/ops.rs`).
const fn ahead(f: Format) -> usize {
    if f.blocks() == 1 { 2048 } else { 4096 }
}

/// Parts of a block column with scales of weights of their own.
const fn parts(f: Format) -> usize {
    match f.scales {
        Scales::Halves | Scales::HalvesMin => 2,
        Scales::Block | Scales::BlockMin | Scales::Exponent | Scales::Blocks | Scales::BlocksMin => 1,
    }
}

/// Whether blocks have integer scales.
const fn has_steps(f: Format) -> bool {
    f.blocks() > 1
}

/// What is taken off a quant.
const fn less(f: Format) -> i16 {
    match f.values {
        Values::Less(shift) => 1 << shift,
        Values::Plain | Values::Signed | Values::Table | Values::SmallTable => 0,
    }
}

/// Whether a weight's byte has a sign.
const fn signed(f: Format) -> bool {
    matches!(f.values, Values::Signed | Values::Table | Values::SmallTable)
}

/// The sum of the activations of a part.
#[inline(always)]
fn sum(f: Format, act: &Act, part: usize) -> f32 {
    if parts(f) == 1 { act.total } else { act.halves[part] }
}

/// The same in units.
#[inline(always)]
fn sum_in_units(f: Format, act: &Act, part: usize) -> i32 {
    if parts(f) == 1 { act.sums[0] + act.sums[1] } else { act.sums[part] }
}
