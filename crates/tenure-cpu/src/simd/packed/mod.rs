//! Products with quantised weights, repacked at load into panels of 16 rows.
//!
//! A panel ([`pack_panel`]) keeps the density of the file's blocks, but puts the codes of 16 rows side by side, so that
//! every lane of a vector works on a row of its own and no sum crosses lanes. Scales are kept as the file has them;
//! nothing is rounded. Activations are [`act8`](super::act8) for every format.
//!
//! A result is the sum over blocks of 32 columns, in order of columns, of
//! `fma(integer sum, scale * d, total)`, and then, for formats with a minimum, `fma(minimum, s, total)`; integer sums are
//! exact. Neither the number of tokens nor that of panels in a call changes a result. The portable kernel rounds
//! products that the others fuse.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod layout;
mod pack;
mod portable;
#[cfg(test)]
mod tests;

use tenure_tensor::DType;

use crate::simd::Isa;
use crate::simd::act8::{Act8, BLOCK};
use layout::Format;
pub use pack::pack_panel;

/// Rows of a panel.
pub const ROWS: usize = 16;

/// Where a product's results go.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// The first feature of the first token.
    pub base: *mut f32,
    /// Floats from one token to the next.
    pub stride: usize,
    /// Features written: rows of the weights.
    pub features: usize,
    /// Whether to add to what is there.
    pub add: bool,
}

/// Bytes of a panel of 16 rows of `cols` columns; `None` for types that are not packed and columns that are not whole
/// blocks. At most 6 % more than the file's blocks take in
/// rows of any length but the shortest: the 6-bit scales of some K formats become bytes, and scales fill whole lines.
pub const fn panel_bytes(dtype: DType, cols: usize) -> Option<usize> {
    match Format::of(dtype) {
        Some(format) => match format.panel_bytes(cols) {
            Some(bytes) if bytes.checked_mul(ROWS).is_some() => Some(bytes),
            _ => None,
        },
        None => None,
    }
}

/// Row `row` of a panel as floats, exactly as [`tenure_tensor::codec::dequantize`] has them.
///
/// # Panics
/// If the panel is not one of this type and `out.len()` columns, or has no such row.
pub fn dequantize_row(dtype: DType, panel: &[u8], row: usize, out: &mut [f32]) {
    let cols = out.len();
    assert!(panel_bytes(dtype, cols) == Some(panel.len()) && row < ROWS, "shape of a panel");
    let Some(format) = Format::of(dtype) else { return };
    let (scales, planes) = format.parts(panel, cols);
    for (b, planes) in planes.chunks_exact(format.codes.bytes()).enumerate() {
        for half in 0..2 {
            let (scale, min) = format.scale(scales, row, b, half);
            for k in 16 * half..16 * half + 16 {
                let code = i32::from(format.codes.at(planes, row, k)) - format.zero;
                let value = scale * code as f32;
                // Zero has a sign, which adding nothing would take away.
                out[b * BLOCK + k] = if format.scales.with_min() { value + min } else { value };
            }
        }
    }
}

/// `out[token][feature] = dot(weights[feature], acts[token])` for consecutive panels of a matrix: as many as hold
/// `out.features` rows, of `acts.cols()` columns.
///
/// # Panics
/// If `panels` is not as many panels of this type and shape.
///
/// # Safety
/// `out` is valid for `out.features` floats of each of the `acts.rows()` tokens, and nobody else touches them meanwhile;
/// the processor has `isa`.
pub unsafe fn matmul(isa: Isa, dtype: DType, panels: &[u8], acts: Act8<'_>, out: Out) {
    let (Some(bytes), Some(format)) = (panel_bytes(dtype, acts.cols()), Format::of(dtype)) else {
        panic!("{dtype} of {} columns has no panels", acts.cols())
    };
    assert!(panels.len() == out.features.div_ceil(ROWS) * bytes, "panels of a product");
    if panels.is_empty() || acts.rows() == 0 {
        return;
    }
    // SAFETY: lengths were checked above; the caller upholds the rest.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512::matmul(dtype, format, panels, acts, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::matmul(dtype, format, panels, acts, out),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512Vnni | Isa::Avx2 => portable::matmul(format, panels, acts, out),
            Isa::Portable => portable::matmul(format, panels, acts, out),
        }
    }
}

impl Out {
    /// Writes one token's results for the panel whose first row is `feature`.
    ///
    /// # Safety
    /// As for [`matmul`]: the token is one of its tokens, the feature one of its features.
    #[inline(always)]
    unsafe fn put(self, token: usize, feature: usize, results: &[f32; ROWS]) {
        // SAFETY: the caller's promise; rows beyond the features are left out.
        let out = unsafe {
            let base = self.base.add(token * self.stride + feature);
            std::slice::from_raw_parts_mut(base, (self.features - feature).min(ROWS))
        };
        if let Ok(out) = <&mut [f32; ROWS]>::try_from(&mut *out) {
            // The usual case, with its length known.
            for i in 0..ROWS {
                out[i] = if self.add { out[i] + results[i] } else { results[i] };
            }
        } else {
            for (out, result) in out.iter_mut().zip(results) {
                *out = if self.add { *out + result } else { *result };
            }
        }
    }
}
