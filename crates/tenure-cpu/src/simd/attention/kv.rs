//! How a block of the cache lies in memory, for one KV head.
//!
//! Keys, then values. Keys are transposed (`[head_dim][position]`), so that one vector holds a dimension of several
//! positions; values are not (`[position][head_dim]`). With `Q8_0` each of the two is its 8-bit numbers in that order,
//! then its scales (f16, one for 32 dimensions of a position), for keys `[head_dim / 32][position]`, for values
//! `[position][head_dim / 32]`.

use half::f16;
use tenure_graph::{KV_BLOCK, KvType};

use crate::simd::float::element::{Element, F16};
use crate::simd::float::lanes::Lanes;
use crate::simd::float::lanes_portable::from_f16;

/// Dimensions that share a scale.
const GROUP: usize = 32;

/// Bytes of one block of one KV head, keys and values; `None` when heads of that size cannot be held.
pub fn block_bytes(kv: KvType, head_dim: usize) -> Option<usize> {
    let fits = match kv {
        KvType::F32 | KvType::F16 => head_dim > 0,
        KvType::Q8_0 => head_dim > 0 && head_dim.is_multiple_of(GROUP),
    };
    fits.then(|| 2 * half_bytes(kv, head_dim))
}

/// Bytes of a block's keys, after which its values come.
pub(super) const fn half_bytes(kv: KvType, head_dim: usize) -> usize {
    match kv {
        KvType::F32 => KV_BLOCK * head_dim * 4,
        KvType::F16 => KV_BLOCK * head_dim * 2,
        KvType::Q8_0 => KV_BLOCK * (head_dim + head_dim / GROUP * 2),
    }
}

/// Writes one position's key and value of one KV head.
///
/// # Safety
/// `block` is valid for [`block_bytes`] bytes, and nobody else touches this position's elements meanwhile (they may
/// touch other positions').
pub unsafe fn store(kv: KvType, block: *mut u8, slot: usize, k: &[f32], v: &[f32]) {
    let head_dim = k.len();
    assert!(slot < KV_BLOCK && v.len() == head_dim && block_bytes(kv, head_dim).is_some());
    // SAFETY: all offsets lie inside the block's halves, as `half_bytes` lays them out; the caller upholds the rest.
    unsafe {
        let values = block.add(half_bytes(kv, head_dim));
        match kv {
            KvType::F32 => {
                for (d, (k, v)) in k.iter().zip(v).enumerate() {
                    block.cast::<f32>().add(d * KV_BLOCK + slot).write_unaligned(*k);
                    values.cast::<f32>().add(slot * head_dim + d).write_unaligned(*v);
                }
            }
            KvType::F16 => {
                for (d, (k, v)) in k.iter().zip(v).enumerate() {
                    block.cast::<f16>().add(d * KV_BLOCK + slot).write_unaligned(f16::from_f32(*k));
                    values.cast::<f16>().add(slot * head_dim + d).write_unaligned(f16::from_f32(*v));
                }
            }
            KvType::Q8_0 => {
                let k_scales = block.add(KV_BLOCK * head_dim).cast::<f16>();
                let v_scales = values.add(KV_BLOCK * head_dim).cast::<f16>();
                for (group, (k, v)) in k.chunks_exact(GROUP).zip(v.chunks_exact(GROUP)).enumerate() {
                    let (scale, quants) = quantize(k);
                    k_scales.add(group * KV_BLOCK + slot).write_unaligned(scale);
                    for (i, quant) in quants.into_iter().enumerate() {
                        block.cast::<i8>().add((group * GROUP + i) * KV_BLOCK + slot).write(quant);
                    }
                    let (scale, quants) = quantize(v);
                    v_scales.add(slot * (head_dim / GROUP) + group).write_unaligned(scale);
                    for (i, quant) in quants.into_iter().enumerate() {
                        values.cast::<i8>().add(slot * head_dim + group * GROUP + i).write(quant);
                    }
                }
            }
        }
    }
}

/// Numbers from -127 to 127 and their scale. What is not finite makes the scale NaN, so that it is not lost.
fn quantize(x: &[f32]) -> (f16, [i8; GROUP]) {
    let mut quants = [0; GROUP];
    if !x.iter().all(|x| x.is_finite()) {
        return (f16::NAN, quants);
    }
    let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let scale = f16::from_f32((largest / 127.0).min(f16::MAX.to_f32()));
    if scale > f16::ZERO {
        let scale = scale.to_f32();
        for (quant, x) in quants.iter_mut().zip(x) {
            *quant = (x / scale).round().clamp(-127.0, 127.0) as i8;
        }
    }
    (scale, quants)
}

/// Keys of a block as `f32`, in the same order.
///
/// # Safety
/// `keys` is valid for [`half_bytes`] bytes, `to` for `KV_BLOCK * head_dim` floats; the processor has the instruction
/// set of `V`.
#[inline(always)]
pub(super) unsafe fn load_keys<V: Lanes>(kv: KvType, keys: *const u8, head_dim: usize, to: *mut f32) {
    // SAFETY: offsets as `half_bytes` lays them out; `V::N` divides `KV_BLOCK`.
    unsafe {
        match kv {
            KvType::F32 => std::ptr::copy_nonoverlapping(keys, to.cast::<u8>(), half_bytes(kv, head_dim)),
            KvType::F16 => widen::<V>(keys, KV_BLOCK * head_dim, to),
            KvType::Q8_0 => {
                let scales = keys.add(KV_BLOCK * head_dim).cast::<u16>();
                for group in 0..head_dim / GROUP {
                    let mut at = 0;
                    while at < KV_BLOCK {
                        let scale = V::load_f16(scales.add(group * KV_BLOCK + at));
                        for d in group * GROUP..(group + 1) * GROUP {
                            let place = d * KV_BLOCK + at;
                            V::load_i8(keys.cast::<i8>().add(place)).mul(scale).store(to.add(place));
                        }
                        at += V::N;
                    }
                }
            }
        }
    }
}

/// Values of a block as `f32`, in the same order.
///
/// # Safety
/// As for [`load_keys`].
#[inline(always)]
pub(super) unsafe fn load_values<V: Lanes>(kv: KvType, values: *const u8, head_dim: usize, to: *mut f32) {
    // SAFETY: offsets as `half_bytes` lays them out; `V::N` divides `GROUP`.
    unsafe {
        match kv {
            KvType::F32 => std::ptr::copy_nonoverlapping(values, to.cast::<u8>(), half_bytes(kv, head_dim)),
            KvType::F16 => widen::<V>(values, KV_BLOCK * head_dim, to),
            KvType::Q8_0 => {
                let scales = values.add(KV_BLOCK * head_dim).cast::<u16>();
                // One after the other, for both lie that way: position by position, group by group.
                for group in 0..KV_BLOCK * (head_dim / GROUP) {
                    let scale = V::splat(from_f16(scales.add(group).read_unaligned()));
                    let mut i = group * GROUP;
                    while i < (group + 1) * GROUP {
                        V::load_i8(values.cast::<i8>().add(i)).mul(scale).store(to.add(i));
                        i += V::N;
                    }
                }
            }
        }
    }
}

/// # Safety
/// As for [`load_keys`]; `V::N` divides `count`.
#[inline(always)]
unsafe fn widen<V: Lanes>(from: *const u8, count: usize, to: *mut f32) {
    let mut i = 0;
    while i < count {
        // SAFETY: below `count`.
        unsafe { F16::load::<V>(from.add(i * F16::BYTES)).store(to.add(i)) };
        i += V::N;
    }
}
