//! AVX-512 with VNNI: a line of 64 bytes is one vector of 16 rows.
//!
//! `vpdpbusd` multiplies unsigned codes with signed activations and adds four products to 32 bits, without saturation
//! for any code and activation here. The code of zero value is taken off by starting from the activations' sum times
//! its negative. Scales of half blocks are applied in floats, exactly: sums of a half are below 2^16 and scales at most
//! 2^7 in magnitude, so that both products of a block and their sum are below 2^24.
//!
//! As with AVX2, one token reads the panel as it is; more tokens have a stretch of it decoded first.

// Registers are walked by index, several arrays at once, with bounds known when compiling.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use tenure_tensor::DType;

use super::layout::{self, FP4, Format, IQ4, LINE, SUPER};
use super::{Out, ROWS};
use crate::simd::act8::{self, Act8, BLOCK, BLOCK_BYTES};

/// Tokens computed side by side.
const SIDE: usize = 8;
/// Tokens that a decoded stretch is used for.
const TOKENS: usize = 64;
/// Blocks decoded together.
const STRETCH: usize = 8;
/// Bytes between a read of the panel and the prefetch issued with it.
const AHEAD: usize = 2048;

/// Does `$body` with the constant `$group` from 0 to 7.
macro_rules! groups {
    ($group:ident => $body:block) => {
        groups!(@ $group $body 0 1 2 3 4 5 6 7)
    };
    (@ $group:ident $body:block $($at:literal)*) => {
        { $({ const $group: usize = $at; $body })* }
    };
}

/// How to decode codes; see [`layout::Codes`].
trait Codes {
    /// Bytes of a block.
    const BYTES: usize;

    /// The codes of group `G` of 16 rows.
    ///
    /// # Safety
    /// `at` is the planes of a block; the processor has AVX-512 F and BW.
    unsafe fn group<const G: usize>(at: *const u8) -> __m512i;
}

/// How to read scales; see [`layout::Scales`]. All functions get the scales of a superblock (or block) and which block
/// of it is meant.
trait Scales {
    /// What is kept.
    const KIND: layout::Scales;

    /// What the integer sums are multiplied with.
    ///
    /// # Safety
    /// `unit` is [`layout::Scales::bytes`] long; the processor has AVX-512 F and DQ.
    unsafe fn scale(unit: *const u8, b: usize) -> __m512;

    /// What the activations' offset factor is multiplied with; with scales for halves, what the sums of minima are.
    ///
    /// # Safety
    /// As for [`Scales::scale`].
    #[inline(always)]
    unsafe fn min(_unit: *const u8, _b: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_setzero_ps() }
    }

    /// The whole scale of a half block.
    ///
    /// # Safety
    /// As for [`Scales::scale`].
    #[inline(always)]
    unsafe fn half(_unit: *const u8, _b: usize, _half: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_set1_ps(1.0) }
    }

    /// The whole minimum of a half block.
    ///
    /// # Safety
    /// As for [`Scales::scale`].
    #[inline(always)]
    unsafe fn half_min(_unit: *const u8, _b: usize, _half: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_setzero_ps() }
    }
}

/// A weight format.
trait Weights {
    type Codes: Codes;
    type Scales: Scales;
    /// The code of zero value.
    const ZERO: i16;
}

macro_rules! weights {
    ($($dtype:ident: $codes:ident, $scales:ident, $zero:literal;)*) => {
        $(
            #[allow(non_camel_case_types)]
            struct $dtype;
            impl Weights for $dtype {
                type Codes = $codes;
                type Scales = $scales;
                const ZERO: i16 = $zero;
            }
        )*

        /// # Safety
        /// As for [`super::matmul`]; lengths were checked.
        pub(super) unsafe fn matmul(dtype: DType, format: Format, panels: &[u8], acts: Act8<'_>, out: Out) {
            // SAFETY: the caller's promise.
            unsafe {
                match dtype {
                    $(DType::$dtype => product::<$dtype>(format, panels, acts, out),)*
                    // `super::matmul` lets only the types above through.
                    _ => (),
                }
            }
        }
    };
}

weights! {
    Q4_0: Four, Block, 8;
    Q4_1: Four, BlockMin, 0;
    Q5_0: Five, Block, 16;
    Q5_1: Five, BlockMin, 0;
    Q8_0: Eight, Block, 128;
    Q2K: Two, HalfMin, 0;
    Q3K: Three, Half, 4;
    Q4K: Four, SuperMin, 0;
    Q5K: Five, SuperMin, 0;
    Q6K: Six, Half, 32;
    IQ4NL: Iq4, Block, 128;
    IQ4XS: Iq4, Super, 128;
    MXFP4: Fp4, Exponent, 16;
}

/// # Safety
/// As for [`super::matmul`]; lengths were checked.
unsafe fn product<W: Weights>(format: Format, panels: &[u8], acts: Act8<'_>, out: Out) {
    let bytes = panels.len() / out.features.div_ceil(ROWS);
    let shape =
        Shape { blocks: acts.cols() / BLOCK, scales: format.scales.region(acts.cols() / BLOCK), stride: acts.stride() };
    // SAFETY: the caller's promise; panel, token and features are inside their bounds.
    unsafe {
        if acts.rows() == 1 {
            for (i, panel) in panels.chunks_exact(bytes).enumerate() {
                one::<W>(shape, panel.as_ptr(), acts.row(0).as_ptr(), out, i * ROWS);
            }
            return;
        }
        // A group of tokens for all panels, so that its activations stay in the second-level cache.
        for first in (0..acts.rows()).step_by(TOKENS) {
            let tokens = TOKENS.min(acts.rows() - first);
            for (i, panel) in panels.chunks_exact(bytes).enumerate() {
                many::<W>(shape, panel.as_ptr(), acts.row(first).as_ptr(), first, tokens, out, i * ROWS);
            }
        }
    }
}

/// Sizes of a panel and of activations.
#[derive(Clone, Copy)]
struct Shape {
    /// Blocks of a row.
    blocks: usize,
    /// Bytes of scales before the planes.
    scales: usize,
    /// Bytes from one token to the next.
    stride: usize,
}

/// A block of 16 rows, packed or decoded.
trait Source {
    /// What the scales are.
    const KIND: layout::Scales;
    /// The code of zero value.
    fn zero(&self) -> i16;
    /// # Safety
    /// The block is whole; the processor has AVX-512 F, BW and DQ (this and all below).
    unsafe fn group<const G: usize>(&self) -> __m512i;
    /// # Safety
    /// As above.
    unsafe fn scale(&self) -> __m512;
    /// # Safety
    /// As above.
    unsafe fn min(&self) -> __m512;
    /// # Safety
    /// As above.
    unsafe fn half(&self, half: usize) -> __m512;
    /// # Safety
    /// As above.
    unsafe fn half_min(&self, half: usize) -> __m512;
}

/// A block as it lies in a panel.
struct Packed<W> {
    planes: *const u8,
    unit: *const u8,
    b: usize,
    weights: std::marker::PhantomData<W>,
}

impl<W: Weights> Source for Packed<W> {
    const KIND: layout::Scales = <W::Scales as Scales>::KIND;
    #[inline(always)]
    fn zero(&self) -> i16 {
        W::ZERO
    }
    #[inline(always)]
    unsafe fn group<const G: usize>(&self) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { W::Codes::group::<G>(self.planes) }
    }
    #[inline(always)]
    unsafe fn scale(&self) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { W::Scales::scale(self.unit, self.b) }
    }
    #[inline(always)]
    unsafe fn min(&self) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { W::Scales::min(self.unit, self.b) }
    }
    #[inline(always)]
    unsafe fn half(&self, half: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { W::Scales::half(self.unit, self.b, half) }
    }
    #[inline(always)]
    unsafe fn half_min(&self, half: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { W::Scales::half_min(self.unit, self.b, half) }
    }
}

/// A decoded block.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Decoded {
    codes: [[u8; LINE]; 8],
    scales: [f32; ROWS],
    mins: [f32; ROWS],
    halves: [[f32; ROWS]; 2],
    half_mins: [[f32; ROWS]; 2],
}

/// A decoded block of weights of kind `K`, an index into [`KINDS`].
struct View<'b, const K: usize> {
    block: &'b Decoded,
    zero: i16,
}

/// The kinds of scales that differ once decoded.
const KINDS: [layout::Scales; 4] =
    [layout::Scales::Block, layout::Scales::BlockMin, layout::Scales::Half, layout::Scales::HalfMin];

impl<const K: usize> Source for View<'_, K> {
    const KIND: layout::Scales = KINDS[K];
    #[inline(always)]
    fn zero(&self) -> i16 {
        // Weights with minima count codes from 0.
        if K == 1 || K == 3 { 0 } else { self.zero }
    }
    #[inline(always)]
    unsafe fn group<const G: usize>(&self) -> __m512i {
        // SAFETY: 64 bytes; the caller's promise.
        unsafe { _mm512_load_si512(self.block.codes[G].as_ptr().cast()) }
    }
    #[inline(always)]
    unsafe fn scale(&self) -> __m512 {
        // SAFETY: 16 floats; the caller's promise.
        unsafe { _mm512_load_ps(self.block.scales.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn min(&self) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_load_ps(self.block.mins.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn half(&self, half: usize) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_load_ps(self.block.halves[half].as_ptr()) }
    }
    #[inline(always)]
    unsafe fn half_min(&self, half: usize) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_load_ps(self.block.half_mins[half].as_ptr()) }
    }
}

/// One token and one panel.
///
/// # Safety
/// `panel` and `act` are whole; `out` as for [`super::matmul`]; the processor has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn one<W: Weights>(shape: Shape, panel: *const u8, act: *const u8, out: Out, feature: usize) {
    let (kind, bytes) = (<W::Scales as Scales>::KIND, <W::Codes as Codes>::BYTES);
    let mut total = [_mm512_setzero_ps()];
    // SAFETY: the blocks of the panel and of the token; prefetches may point anywhere.
    unsafe {
        let mut planes = panel.add(shape.scales);
        let mut unit = panel;
        let mut act = act;
        let units = shape.blocks / kind.blocks();
        for _ in 0..units {
            for line in 0..kind.bytes().div_ceil(LINE) {
                _mm_prefetch::<_MM_HINT_T0>(unit.wrapping_add(AHEAD + LINE * line).cast());
            }
            for b in 0..kind.blocks() {
                for line in 0..bytes / LINE {
                    _mm_prefetch::<_MM_HINT_T0>(planes.wrapping_add(AHEAD + LINE * line).cast());
                }
                let source = Packed::<W> { planes, unit, b, weights: std::marker::PhantomData };
                add_block(&source, [act], &mut total);
                planes = planes.add(bytes);
                act = act.add(BLOCK_BYTES);
            }
            unit = unit.add(kind.bytes());
        }
        put(out, 0, feature, total[0]);
    }
}

/// # Safety
/// As for [`Out::put`]; the processor has AVX-512 F.
#[inline(always)]
unsafe fn put(out: Out, token: usize, feature: usize, total: __m512) {
    let mut results = [0.0; ROWS];
    // SAFETY: 16 floats; the caller's promise.
    unsafe {
        _mm512_storeu_ps(results.as_mut_ptr(), total);
        out.put(token, feature, &results);
    }
}

/// `tokens` tokens, at most [`TOKENS`], and one panel; `acts` is the first of them, `first` its number.
///
/// # Safety
/// As for [`one`].
unsafe fn many<W: Weights>(
    shape: Shape,
    panel: *const u8,
    acts: *const u8,
    first: usize,
    tokens: usize,
    out: Out,
    feature: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match <W::Scales as Scales>::KIND {
            layout::Scales::Block | layout::Scales::Exponent | layout::Scales::Super => {
                stretches::<W, 0>(shape, panel, acts, first, tokens, out, feature);
            }
            layout::Scales::BlockMin | layout::Scales::SuperMin => {
                stretches::<W, 1>(shape, panel, acts, first, tokens, out, feature);
            }
            layout::Scales::Half => stretches::<W, 2>(shape, panel, acts, first, tokens, out, feature),
            layout::Scales::HalfMin => stretches::<W, 3>(shape, panel, acts, first, tokens, out, feature),
        }
    }
}

/// # Safety
/// As for [`many`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn stretches<W: Weights, const K: usize>(
    shape: Shape,
    panel: *const u8,
    acts: *const u8,
    first: usize,
    tokens: usize,
    out: Out,
    feature: usize,
) {
    let kind = <W::Scales as Scales>::KIND;
    let mut totals = [_mm512_setzero_ps(); TOKENS];
    let mut room = std::mem::MaybeUninit::<[Decoded; STRETCH]>::uninit();
    let decoded: *mut Decoded = room.as_mut_ptr().cast();
    let mut at = 0;
    // SAFETY: blocks of the panel and of the tokens; `count` decoded blocks are written whole before they are read.
    unsafe {
        while at < shape.blocks {
            let count = STRETCH.min(shape.blocks - at);
            for i in 0..count {
                let b = at + i;
                let planes = panel.add(shape.scales + b * <W::Codes as Codes>::BYTES);
                let unit = panel.add(b / kind.blocks() * kind.bytes());
                for line in 0..<W::Codes as Codes>::BYTES / LINE {
                    _mm_prefetch::<_MM_HINT_T0>(planes.wrapping_add(AHEAD + LINE * line).cast());
                }
                let source = Packed::<W> { planes, unit, b: b % kind.blocks(), weights: std::marker::PhantomData };
                decode(&source, decoded.add(i));
            }
            let mut token = 0;
            while token < tokens {
                let act = acts.add(token * shape.stride + at * BLOCK_BYTES);
                let total = totals.as_mut_ptr().add(token);
                let left = tokens - token;
                token += if left >= SIDE {
                    tile::<SIDE, K>(decoded, count, W::ZERO, act, shape.stride, total)
                } else if left >= 4 {
                    tile::<4, K>(decoded, count, W::ZERO, act, shape.stride, total)
                } else if left >= 2 {
                    tile::<2, K>(decoded, count, W::ZERO, act, shape.stride, total)
                } else {
                    tile::<1, K>(decoded, count, W::ZERO, act, shape.stride, total)
                };
            }
            at += count;
        }
        for (token, total) in totals[..tokens].iter().enumerate() {
            put(out, first + token, feature, *total);
        }
    }
}

/// # Safety
/// `source` is a whole block, `to` is valid for writing; the processor has AVX-512 F, BW and DQ.
#[inline(always)]
unsafe fn decode<W: Weights>(source: &Packed<W>, to: *mut Decoded) {
    // SAFETY: the caller's promise; fields are as large as what is stored, and aligned.
    unsafe {
        let codes: *mut __m512i = (&raw mut (*to).codes).cast();
        groups!(G => { _mm512_store_si512(codes.add(G), source.group::<G>()); });
        _mm512_store_ps((&raw mut (*to).scales).cast(), source.scale());
        _mm512_store_ps((&raw mut (*to).mins).cast(), source.min());
        for half in 0..2 {
            _mm512_store_ps((&raw mut (*to).halves[half]).cast(), source.half(half));
            _mm512_store_ps((&raw mut (*to).half_mins[half]).cast(), source.half_min(half));
        }
    }
}

/// `N` tokens, `stride` bytes apart, and a stretch of decoded blocks. Returns `N`.
///
/// # Safety
/// `blocks` are `count` decoded blocks, `acts` as many of `N` tokens, `totals` is valid for `N` vectors; the processor
/// has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
unsafe fn tile<const N: usize, const K: usize>(
    blocks: *const Decoded,
    count: usize,
    zero: i16,
    acts: *const u8,
    stride: usize,
    totals: *mut __m512,
) -> usize {
    // SAFETY: the caller's promise; block `i` of each.
    unsafe {
        let mut total = [_mm512_setzero_ps(); N];
        let mut side = [acts; N];
        for t in 0..N {
            total[t] = *totals.add(t);
            side[t] = acts.add(t * stride);
        }
        for i in 0..count {
            add_block(&View::<K> { block: &*blocks.add(i), zero }, side, &mut total);
            for act in &mut side {
                *act = act.wrapping_add(BLOCK_BYTES);
            }
        }
        for t in 0..N {
            *totals.add(t) = total[t];
        }
    }
    N
}

/// Adds the products of a block of 16 rows with `N` tokens to `total`.
///
/// # Safety
/// `source` is a whole block, each of `acts` a block of activations; the processor has the features.
#[inline(always)]
unsafe fn add_block<X: Source, const N: usize>(source: &X, acts: [*const u8; N], total: &mut [__m512; N]) {
    // SAFETY: the caller's promise; a block of activations has what is read at these offsets.
    unsafe {
        // For each token, the sums of both halves, which start with the zero's share, taken off.
        let mut sums = [[_mm512_setzero_si512(); 2]; N];
        if source.zero() != 0 {
            let negative = _mm512_set1_epi16(-source.zero());
            for t in 0..N {
                for half in 0..2 {
                    sums[t][half] = _mm512_madd_epi16(word(acts[t], act8::SUMS + 4 * half), negative);
                }
            }
        }
        groups!(G => {
            let codes = source.group::<G>();
            for t in 0..N {
                sums[t][G / 4] = _mm512_dpbusd_epi32(sums[t][G / 4], codes, word(acts[t], 4 * G));
            }
        });
        for t in 0..N {
            let d = float(acts[t], act8::SCALE);
            let sum = if X::KIND.by_half() {
                let first = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[t][0]), source.half(0));
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[t][1]), source.half(1), first)
            } else {
                _mm512_cvtepi32_ps(_mm512_add_epi32(sums[t][0], sums[t][1]))
            };
            total[t] = _mm512_fmadd_ps(sum, _mm512_mul_ps(source.scale(), d), total[t]);
            match X::KIND {
                layout::Scales::Block | layout::Scales::Exponent | layout::Scales::Super | layout::Scales::Half => {}
                layout::Scales::BlockMin | layout::Scales::SuperMin => {
                    total[t] = _mm512_fmadd_ps(source.min(), float(acts[t], act8::OFFSET), total[t]);
                }
                layout::Scales::HalfMin => {
                    let ones = _mm512_set1_epi16(1);
                    let first = _mm512_cvtepi32_ps(_mm512_madd_epi16(word(acts[t], act8::SUMS), ones));
                    let last = _mm512_cvtepi32_ps(_mm512_madd_epi16(word(acts[t], act8::SUMS + 4), ones));
                    let min = _mm512_mul_ps(first, source.half_min(0));
                    let min = _mm512_fmadd_ps(last, source.half_min(1), min);
                    total[t] = _mm512_fmadd_ps(min, _mm512_mul_ps(source.min(), d), total[t]);
                }
            }
        }
    }
}

/// Four bytes of a block of activations in every lane.
///
/// # Safety
/// `act` is a block, `at` one of its words; the processor has AVX-512 F and BW (as for all below).
#[inline(always)]
unsafe fn word(act: *const u8, at: usize) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_set1_epi32(act.add(at).cast::<i32>().read_unaligned()) }
}

/// # Safety
/// As for [`word`].
#[inline(always)]
unsafe fn float(act: *const u8, at: usize) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_set1_ps(act.add(at).cast::<f32>().read_unaligned()) }
}

/// # Safety
/// `at` is valid for 64 bytes.
#[inline(always)]
unsafe fn load(at: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(at.cast()) }
}

/// Moves each 16 bits right by `by`, or left by `-by`.
///
/// # Safety
/// See [`word`].
#[inline(always)]
unsafe fn shift(x: __m512i, by: i32) -> __m512i {
    // SAFETY: the caller's promise. `by` is known when compiling; the count becomes an immediate.
    unsafe {
        if by >= 0 { _mm512_srl_epi16(x, _mm_cvtsi32_si128(by)) } else { _mm512_sll_epi16(x, _mm_cvtsi32_si128(-by)) }
    }
}

/// # Safety
/// See [`word`].
#[inline(always)]
unsafe fn and(x: __m512i, mask: i8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_and_si512(x, _mm512_set1_epi8(mask)) }
}

/// Group `G` of a 4-bit plane.
///
/// # Safety
/// `at` is the plane.
#[inline(always)]
unsafe fn four<const G: usize>(at: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { and(shift(load(at.add(LINE * (G % 4))), 4 * (G as i32 / 4)), 15) }
}

/// Group `G` of a 2-bit plane, moved left by `up`.
///
/// # Safety
/// `at` is the plane.
#[inline(always)]
unsafe fn two<const G: usize>(at: *const u8, up: i32) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { and(shift(load(at.add(LINE * (G % 2))), 2 * (G as i32 / 2) - up), 3 << up) }
}

/// Group `G` of a 1-bit plane, moved left by `up`.
///
/// # Safety
/// `at` is the plane.
#[inline(always)]
unsafe fn one_bit<const G: usize>(at: *const u8, up: i32) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { and(shift(load(at), G as i32 - up), 1 << up) }
}

macro_rules! codes {
    ($($name:ident, $layout:ident, $at:ident => $group:expr;)*) => {
        $(
            struct $name;
            impl Codes for $name {
                const BYTES: usize = layout::Codes::$layout.bytes();
                #[inline(always)]
                unsafe fn group<const G: usize>($at: *const u8) -> __m512i {
                    // SAFETY: the caller's promise: all lines of the block.
                    unsafe { $group }
                }
            }
        )*
    };
}

codes! {
    Two, Two, at => two::<G>(at, 0);
    Three, Three, at => _mm512_or_si512(two::<G>(at, 0), one_bit::<G>(at.add(2 * LINE), 2));
    Four, Four, at => four::<G>(at);
    Five, Five, at => _mm512_or_si512(four::<G>(at), one_bit::<G>(at.add(4 * LINE), 4));
    Six, Six, at => _mm512_or_si512(four::<G>(at), two::<G>(at.add(4 * LINE), 4));
    Eight, Eight, at => load(at.add(LINE * G));
    Iq4, Iq4, at => look_up(&IQ4, four::<G>(at));
    Fp4, Fp4, at => look_up(&FP4, four::<G>(at));
}

/// # Safety
/// See [`word`].
#[inline(always)]
unsafe fn look_up(table: &[u8; 16], at: __m512i) -> __m512i {
    // SAFETY: 16 bytes; the caller's promise.
    unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), at) }
}

/// 16 f16 of list number `slot`.
///
/// # Safety
/// The list is in the unit.
#[inline(always)]
unsafe fn halves(unit: *const u8, slot: usize) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(unit.add(2 * ROWS * slot).cast())) }
}

/// 16 bytes of list number `i` behind `floats` lists of f16.
///
/// # Safety
/// The list is in the unit.
#[inline(always)]
unsafe fn bytes(unit: *const u8, floats: usize, i: usize) -> __m128i {
    // SAFETY: the caller's promise.
    unsafe { _mm_loadu_si128(unit.add(2 * ROWS * floats + ROWS * i).cast()) }
}

/// # Safety
/// See [`word`].
#[inline(always)]
unsafe fn unsigned(x: __m128i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x)) }
}

/// # Safety
/// See [`word`].
#[inline(always)]
unsafe fn signed(x: __m128i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)) }
}

/// # Safety
/// See [`word`]; the processor has AVX-512 DQ.
#[inline(always)]
unsafe fn negative(x: __m512) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_xor_ps(x, _mm512_set1_ps(-0.0)) }
}

/// 16 times 2^(e - 128); see [`layout::exponent`].
///
/// # Safety
/// See [`word`].
#[inline(always)]
unsafe fn exponents(e: __m128i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let e = _mm512_cvtepu8_epi32(e);
        let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
        let small = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), e);
        let is_small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
        _mm512_castsi512_ps(_mm512_mask_blend_epi32(is_small, normal, small))
    }
}

macro_rules! scales {
    ($($name:ident, |$unit:ident, $b:ident| $scale:expr, $min:expr;)*) => {
        $(
            struct $name;
            impl Scales for $name {
                const KIND: layout::Scales = layout::Scales::$name;
                #[inline(always)]
                unsafe fn scale($unit: *const u8, $b: usize) -> __m512 {
                    let _ = $b;
                    // SAFETY: the caller's promise.
                    unsafe { $scale }
                }
                #[inline(always)]
                unsafe fn min($unit: *const u8, $b: usize) -> __m512 {
                    let _ = ($unit, $b);
                    // SAFETY: the caller's promise.
                    unsafe { $min }
                }
            }
        )*
    };
}

scales! {
    Block, |unit, b| halves(unit, 0), _mm512_setzero_ps();
    BlockMin, |unit, b| halves(unit, 0), halves(unit, 1);
    Exponent, |unit, b| exponents(_mm_loadu_si128(unit.cast())), _mm512_setzero_ps();
    Super, |unit, b| _mm512_mul_ps(halves(unit, 0), signed(bytes(unit, 1, b))), _mm512_setzero_ps();
    SuperMin, |unit, b| _mm512_mul_ps(halves(unit, 0), unsigned(bytes(unit, 2, b))),
        negative(_mm512_mul_ps(halves(unit, 1), unsigned(bytes(unit, 2, SUPER + b))));
}

struct Half;
impl Scales for Half {
    const KIND: layout::Scales = layout::Scales::Half;
    #[inline(always)]
    unsafe fn scale(unit: *const u8, _b: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { halves(unit, 0) }
    }
    #[inline(always)]
    unsafe fn half(unit: *const u8, b: usize, half: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { signed(bytes(unit, 1, 2 * b + half)) }
    }
}

struct HalfMin;
impl Scales for HalfMin {
    const KIND: layout::Scales = layout::Scales::HalfMin;
    #[inline(always)]
    unsafe fn scale(unit: *const u8, _b: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { halves(unit, 0) }
    }
    #[inline(always)]
    unsafe fn min(unit: *const u8, _b: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { negative(halves(unit, 1)) }
    }
    #[inline(always)]
    unsafe fn half(unit: *const u8, b: usize, half: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { unsigned(_mm_and_si128(bytes(unit, 2, 2 * b + half), _mm_set1_epi8(15))) }
    }
    #[inline(always)]
    unsafe fn half_min(unit: *const u8, b: usize, half: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { unsigned(_mm_and_si128(_mm_srli_epi16::<4>(bytes(unit, 2, 2 * b + half)), _mm_set1_epi8(15))) }
    }
}
