//! AVX2: a line of 64 bytes is two vectors of 8 rows.
//!
//! `vpmaddubsw` multiplies unsigned codes with signed activations and adds pairs to 16 bits; sums of the 8 groups of a
//! block are kept in 16 bits. They wrap on the way, which does no harm as long as the final sum fits: the code of zero
//! value is taken off first (as a multiple of the activations' sums), so with `b` bits a lane's 16 products are at most
//! `16 * 2^(b-1) * 127` = 32512 for 5 bits; 6-bit codes have scales for each half, so only 8 products. Codes of 8 bits are split
//! into nibbles, which are summed each for itself.
//!
//! One token reads the panel as it is; more tokens have a stretch of it decoded to bytes and floats first.

// Registers are walked by index, several arrays at once, with bounds known when compiling.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use tenure_tensor::DType;

use super::layout::{self, FP4, Format, IQ4, LINE, SUPER};
use super::{Out, ROWS};
use crate::simd::act8::{self, Act8, BLOCK, BLOCK_BYTES};

/// Tokens computed side by side.
const SIDE: usize = 4;
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
    ($group:ident from $half:expr => $body:block) => {
        if $half == 0 { groups!(@ $group $body 0 1 2 3) } else { groups!(@ $group $body 4 5 6 7) }
    };
    (@ $group:ident $body:block $($at:literal)*) => {
        { $({ const $group: usize = $at; $body })* }
    };
}

/// How to decode codes; see [`layout::Codes`].
trait Codes {
    /// Bytes of a block.
    const BYTES: usize;
    /// The codes need 8 bits.
    const SPLIT: bool = false;

    /// The codes of group `G` of 8 rows.
    ///
    /// # Safety
    /// `at` is the planes of a block, moved on by 32 bytes for the last 8 rows; the processor has AVX2.
    unsafe fn group<const G: usize>(at: *const u8) -> __m256i;

    /// Their low and high nibbles.
    ///
    /// # Safety
    /// As for [`Codes::group`].
    #[inline(always)]
    unsafe fn split<const G: usize>(at: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let code = Self::group::<G>(at);
            [low(code), low(_mm256_srli_epi16::<4>(code))]
        }
    }
}

/// How to read scales; see [`layout::Scales`]. All functions get the scales of a superblock (or block) and which block
/// of it is meant.
trait Scales {
    /// What is kept.
    const KIND: layout::Scales;

    /// What the integer sums of rows `8 h` on are multiplied with.
    ///
    /// # Safety
    /// `unit` is [`layout::Scales::bytes`] long; the processor has AVX2 and F16C.
    unsafe fn scale(unit: *const u8, b: usize, h: usize) -> __m256;

    /// What the activations' offset factor is multiplied with; with scales for halves, what the sums of minima are.
    ///
    /// # Safety
    /// As for [`Scales::scale`].
    #[inline(always)]
    unsafe fn min(_unit: *const u8, _b: usize, _h: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_setzero_ps() }
    }

    /// The integer scale of a half block, twice for each row as 16 bits.
    ///
    /// # Safety
    /// As for [`Scales::scale`].
    #[inline(always)]
    unsafe fn half(_unit: *const u8, _b: usize, _half: usize, _h: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_set1_epi16(1) }
    }

    /// The integer minimum of a half block, twice for each row as 16 bits.
    ///
    /// # Safety
    /// As for [`Scales::scale`].
    #[inline(always)]
    unsafe fn half_min(_unit: *const u8, _b: usize, _half: usize, _h: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_setzero_si256() }
    }
}

/// A weight format.
trait Weights {
    type Codes: Codes;
    type Scales: Scales;
    /// The code taken for zero while summing in 16 bits.
    const ZERO: i16;
    /// Whether it is put back afterwards, since the format counts codes from 0.
    const BACK: bool;
}

macro_rules! weights {
    ($($dtype:ident: $codes:ident, $scales:ident, $zero:literal, $back:literal;)*) => {
        $(
            #[allow(non_camel_case_types)]
            struct $dtype;
            impl Weights for $dtype {
                type Codes = $codes;
                type Scales = $scales;
                const ZERO: i16 = $zero;
                const BACK: bool = $back;
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

// Codes of 8 bits: the zero is that of the high nibble, 128 / 16.
weights! {
    Q4_0: Four, Block, 8, false;
    Q4_1: Four, BlockMin, 0, false;
    Q5_0: Five, Block, 16, false;
    Q5_1: Five, BlockMin, 16, true;
    Q8_0: Eight, Block, 8, false;
    Q2K: Two, HalfMin, 0, false;
    Q3K: Three, Half, 4, false;
    Q4K: Four, SuperMin, 0, false;
    Q5K: Five, SuperMin, 16, true;
    Q6K: Six, Half, 32, false;
    IQ4NL: Iq4, Block, 8, false;
    IQ4XS: Iq4, Super, 8, false;
    MXFP4: Fp4, Exponent, 16, false;
}

/// # Safety
/// As for [`super::matmul`]; lengths were checked.
unsafe fn product<W: Weights>(format: Format, panels: &[u8], acts: Act8<'_>, out: Out) {
    let count = out.features.div_ceil(ROWS);
    let bytes = panels.len() / count;
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
    /// Codes need 8 bits.
    const SPLIT: bool;
    /// What the scales are.
    const KIND: layout::Scales;
    /// Whether the code taken for zero is put back.
    const BACK: bool;
    /// The code taken for zero.
    fn zero(&self) -> i16;
    /// Where four groups of decoded codes lie, two vectors each: of half `half` of the block, rows `8 h` on if split.
    fn decoded(&self, h: usize, half: usize) -> Option<*const u8>;
    /// # Safety
    /// The block is whole; the processor has AVX2 (this and all below).
    unsafe fn group<const G: usize>(&self, h: usize) -> __m256i;
    /// # Safety
    /// As above.
    unsafe fn split<const G: usize>(&self, h: usize) -> [__m256i; 2];
    /// # Safety
    /// As above.
    unsafe fn scale(&self, h: usize) -> __m256;
    /// # Safety
    /// As above.
    unsafe fn min(&self, h: usize) -> __m256;
    /// # Safety
    /// As above.
    unsafe fn half(&self, half: usize, h: usize) -> __m256i;
    /// # Safety
    /// As above.
    unsafe fn half_min(&self, half: usize, h: usize) -> __m256i;
}

/// A block as it lies in a panel.
struct Packed<W> {
    planes: *const u8,
    unit: *const u8,
    b: usize,
    weights: std::marker::PhantomData<W>,
}

impl<W: Weights> Source for Packed<W> {
    const SPLIT: bool = <W::Codes as Codes>::SPLIT;
    const KIND: layout::Scales = <W::Scales as Scales>::KIND;
    const BACK: bool = W::BACK;
    #[inline(always)]
    fn zero(&self) -> i16 {
        W::ZERO
    }
    #[inline(always)]
    fn decoded(&self, _h: usize, _half: usize) -> Option<*const u8> {
        None
    }
    #[inline(always)]
    unsafe fn group<const G: usize>(&self, h: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { W::Codes::group::<G>(self.planes.add(32 * h)) }
    }
    #[inline(always)]
    unsafe fn split<const G: usize>(&self, h: usize) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe { W::Codes::split::<G>(self.planes.add(32 * h)) }
    }
    #[inline(always)]
    unsafe fn scale(&self, h: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { W::Scales::scale(self.unit, self.b, h) }
    }
    #[inline(always)]
    unsafe fn min(&self, h: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { W::Scales::min(self.unit, self.b, h) }
    }
    #[inline(always)]
    unsafe fn half(&self, half: usize, h: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { W::Scales::half(self.unit, self.b, half, h) }
    }
    #[inline(always)]
    unsafe fn half_min(&self, half: usize, h: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { W::Scales::half_min(self.unit, self.b, half, h) }
    }
}

/// A decoded block, in the order in which it is read.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Decoded<const LINES: usize> {
    /// For each group, 8 rows twice; codes of 8 bits: for each 8 rows and each group, low and high nibbles.
    codes: [[u8; 32]; LINES],
    halves: [[[u8; 32]; 2]; 2],
    half_mins: [[[u8; 32]; 2]; 2],
    scales: [[f32; 8]; 2],
    mins: [[f32; 8]; 2],
}

/// A decoded block of weights of kind `K` (see [`kind`]).
struct View<'b, const LINES: usize, const K: usize> {
    block: &'b Decoded<LINES>,
    zero: i16,
}

/// The kinds of blocks that differ once decoded. The first two with minima count codes from 0; 4 is [`Weights::BACK`].
const KINDS: [layout::Scales; 5] = [
    layout::Scales::Block,
    layout::Scales::BlockMin,
    layout::Scales::Half,
    layout::Scales::HalfMin,
    layout::Scales::BlockMin,
];

impl<const LINES: usize, const K: usize> Source for View<'_, LINES, K> {
    const SPLIT: bool = LINES == 32;
    const KIND: layout::Scales = KINDS[K];
    const BACK: bool = K == 4;
    #[inline(always)]
    fn zero(&self) -> i16 {
        if K == 1 || K == 3 { 0 } else { self.zero }
    }
    #[inline(always)]
    fn decoded(&self, h: usize, half: usize) -> Option<*const u8> {
        Some(self.block.codes[16 * h + 8 * half..].as_ptr().cast())
    }
    #[inline(always)]
    unsafe fn group<const G: usize>(&self, h: usize) -> __m256i {
        // SAFETY: 32 bytes; the caller's promise.
        unsafe { _mm256_load_si256(self.block.codes[2 * G + h].as_ptr().cast()) }
    }
    #[inline(always)]
    unsafe fn split<const G: usize>(&self, h: usize) -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe {
            let at = 16 * h + 2 * G;
            [
                _mm256_load_si256(self.block.codes[at].as_ptr().cast()),
                _mm256_load_si256(self.block.codes[at + 1].as_ptr().cast()),
            ]
        }
    }
    #[inline(always)]
    unsafe fn scale(&self, h: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_load_ps(self.block.scales[h].as_ptr()) }
    }
    #[inline(always)]
    unsafe fn min(&self, h: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_load_ps(self.block.mins[h].as_ptr()) }
    }
    #[inline(always)]
    unsafe fn half(&self, half: usize, h: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_load_si256(self.block.halves[half][h].as_ptr().cast()) }
    }
    #[inline(always)]
    unsafe fn half_min(&self, half: usize, h: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_load_si256(self.block.half_mins[half][h].as_ptr().cast()) }
    }
}

/// One token and one panel.
///
/// # Safety
/// `panel` and `act` are whole; `out` as for [`super::matmul`]; the processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn one<W: Weights>(shape: Shape, panel: *const u8, act: *const u8, out: Out, feature: usize) {
    let (kind, bytes) = (<W::Scales as Scales>::KIND, <W::Codes as Codes>::BYTES);
    let mut total = [[_mm256_setzero_ps(); 2]; 1];
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
/// As for [`Out::put`]; the processor has AVX2.
#[inline(always)]
unsafe fn put(out: Out, token: usize, feature: usize, total: [__m256; 2]) {
    let mut results = [0.0; ROWS];
    // SAFETY: 16 floats; the caller's promise.
    unsafe {
        _mm256_storeu_ps(results.as_mut_ptr(), total[0]);
        _mm256_storeu_ps(results.as_mut_ptr().add(8), total[1]);
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
        match (<W::Codes as Codes>::SPLIT, <W::Scales as Scales>::KIND) {
            (true, _) => stretches::<W, 32, 0>(shape, panel, acts, first, tokens, out, feature),
            (false, layout::Scales::Block | layout::Scales::Exponent | layout::Scales::Super) => {
                stretches::<W, 16, 0>(shape, panel, acts, first, tokens, out, feature);
            }
            (false, layout::Scales::BlockMin | layout::Scales::SuperMin) if W::BACK => {
                stretches::<W, 16, 4>(shape, panel, acts, first, tokens, out, feature);
            }
            (false, layout::Scales::BlockMin | layout::Scales::SuperMin) => {
                stretches::<W, 16, 1>(shape, panel, acts, first, tokens, out, feature);
            }
            (false, layout::Scales::Half) => stretches::<W, 16, 2>(shape, panel, acts, first, tokens, out, feature),
            (false, layout::Scales::HalfMin) => stretches::<W, 16, 3>(shape, panel, acts, first, tokens, out, feature),
        }
    }
}

/// # Safety
/// As for [`many`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn stretches<W: Weights, const LINES: usize, const K: usize>(
    shape: Shape,
    panel: *const u8,
    acts: *const u8,
    first: usize,
    tokens: usize,
    out: Out,
    feature: usize,
) {
    let kind = <W::Scales as Scales>::KIND;
    let mut totals = [[_mm256_setzero_ps(); 2]; TOKENS];
    let mut room = std::mem::MaybeUninit::<[Decoded<LINES>; STRETCH]>::uninit();
    let decoded: *mut Decoded<LINES> = room.as_mut_ptr().cast();
    let mut at = 0;
    // SAFETY: blocks of the panel and of the tokens; `count` decoded blocks are written before they are read, in those
    // fields that kind `K` reads.
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
                token += match tokens - token {
                    1 => tile::<1, LINES, K>(decoded, count, W::ZERO, act, shape.stride, total),
                    2 => tile::<2, LINES, K>(decoded, count, W::ZERO, act, shape.stride, total),
                    3 => tile::<3, LINES, K>(decoded, count, W::ZERO, act, shape.stride, total),
                    _ => tile::<SIDE, LINES, K>(decoded, count, W::ZERO, act, shape.stride, total),
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
/// `source` is a whole block, `to` is valid for writing; the processor has AVX2 and F16C.
#[inline(always)]
unsafe fn decode<W: Weights, const LINES: usize>(source: &Packed<W>, to: *mut Decoded<LINES>) {
    let kind = <W::Scales as Scales>::KIND;
    // SAFETY: the caller's promise; fields are large enough for what is stored.
    unsafe {
        let codes: *mut __m256i = (&raw mut (*to).codes).cast();
        for h in 0..2 {
            groups!(G => {
                if LINES == 32 {
                    let [low, high] = source.split::<G>(h);
                    _mm256_store_si256(codes.add(16 * h + 2 * G), low);
                    _mm256_store_si256(codes.add(16 * h + 2 * G + 1), high);
                } else {
                    _mm256_store_si256(codes.add(2 * G + h), source.group::<G>(h));
                }
            });
            let scales: *mut f32 = (&raw mut (*to).scales).cast();
            _mm256_store_ps(scales.add(8 * h), source.scale(h));
            let mins: *mut f32 = (&raw mut (*to).mins).cast();
            if !matches!(kind, layout::Scales::Block | layout::Scales::Exponent | layout::Scales::Super) {
                _mm256_store_ps(mins.add(8 * h), source.min(h));
            }
            if kind.by_half() {
                let halves: *mut __m256i = (&raw mut (*to).halves).cast();
                let half_mins: *mut __m256i = (&raw mut (*to).half_mins).cast();
                for half in 0..2 {
                    _mm256_store_si256(halves.add(2 * half + h), source.half(half, h));
                    _mm256_store_si256(half_mins.add(2 * half + h), source.half_min(half, h));
                }
            }
        }
    }
}

/// `N` tokens, `stride` bytes apart, and a stretch of decoded blocks. Returns `N`.
///
/// # Safety
/// `blocks` are `count` decoded blocks, `acts` as many of `N` tokens, `totals` is valid for `N` results; the processor
/// has AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
unsafe fn tile<const N: usize, const LINES: usize, const K: usize>(
    blocks: *const Decoded<LINES>,
    count: usize,
    zero: i16,
    acts: *const u8,
    stride: usize,
    totals: *mut [__m256; 2],
) -> usize {
    // SAFETY: the caller's promise; block `i` of each.
    unsafe {
        let totals = totals.cast::<[[__m256; 2]; N]>();
        // A copy, of which the compiler knows that nothing else points to it.
        let mut total = *totals;
        for i in 0..count {
            let source = View::<LINES, K> { block: &*blocks.add(i), zero };
            let mut side = [acts; N];
            for t in 0..N {
                side[t] = acts.add(t * stride + i * BLOCK_BYTES);
            }
            add_block(&source, side, &mut total);
        }
        *totals = total;
    }
    N
}

/// Adds the products of a block of 16 rows with `N` tokens to `total`.
///
/// # Safety
/// `source` is a whole block, each of `acts` a block of activations; the processor has AVX2 and FMA.
#[inline(always)]
unsafe fn add_block<X: Source, const N: usize>(source: &X, acts: [*const u8; N], total: &mut [[__m256; 2]; N]) {
    // SAFETY: the caller's promise; a block of activations has what is read at these offsets.
    unsafe {
        let zero = source.zero();
        let ones = _mm256_set1_epi16(1);
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        if X::SPLIT {
            for h in 0..2 {
                // For each token, sums of products with low and with high nibbles.
                let mut pairs = [[_mm256_setzero_si256(); 2]; N];
                for t in 0..N {
                    pairs[t][1] = start(both(acts[t]), zero);
                }
                multiply::<X, N>(source, h, 0, acts, &mut pairs);
                multiply::<X, N>(source, h, 1, acts, &mut pairs);
                for t in 0..N {
                    let high = _mm256_madd_epi16(pairs[t][1], _mm256_set1_epi16(16));
                    sums[t][h] = _mm256_add_epi32(_mm256_madd_epi16(pairs[t][0], ones), high);
                }
            }
        } else if X::KIND.by_half() {
            for half in 0..2 {
                // For each token, sums of the first and of the last 8 rows.
                let mut pairs = [[_mm256_setzero_si256(); 2]; N];
                for t in 0..N {
                    pairs[t] = [start(word(acts[t], act8::SUMS + 4 * half), zero); 2];
                }
                multiply::<X, N>(source, 0, half, acts, &mut pairs);
                for h in 0..2 {
                    let scale = source.half(half, h);
                    for t in 0..N {
                        sums[t][h] = _mm256_add_epi32(sums[t][h], _mm256_madd_epi16(pairs[t][h], scale));
                    }
                }
            }
        } else {
            let mut pairs = [[_mm256_setzero_si256(); 2]; N];
            for t in 0..N {
                if zero != 0 {
                    pairs[t] = [start(both(acts[t]), zero); 2];
                }
            }
            multiply::<X, N>(source, 0, 0, acts, &mut pairs);
            multiply::<X, N>(source, 0, 1, acts, &mut pairs);
            for t in 0..N {
                for h in 0..2 {
                    sums[t][h] = _mm256_madd_epi16(pairs[t][h], ones);
                    if X::BACK {
                        let back = _mm256_madd_epi16(both(acts[t]), _mm256_set1_epi16(zero));
                        sums[t][h] = _mm256_add_epi32(sums[t][h], back);
                    }
                }
            }
        }
        for h in 0..2 {
            let scale = source.scale(h);
            for t in 0..N {
                let d = float(acts[t], act8::SCALE);
                total[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[t][h]), _mm256_mul_ps(scale, d), total[t][h]);
                match X::KIND {
                    layout::Scales::Block | layout::Scales::Exponent | layout::Scales::Super | layout::Scales::Half => {
                    }
                    layout::Scales::BlockMin | layout::Scales::SuperMin => {
                        total[t][h] = _mm256_fmadd_ps(source.min(h), float(acts[t], act8::OFFSET), total[t][h]);
                    }
                    layout::Scales::HalfMin => {
                        let first = _mm256_madd_epi16(source.half_min(0, h), word(acts[t], act8::SUMS));
                        let last = _mm256_madd_epi16(source.half_min(1, h), word(acts[t], act8::SUMS + 4));
                        let min = _mm256_cvtepi32_ps(_mm256_add_epi32(first, last));
                        total[t][h] = _mm256_fmadd_ps(min, _mm256_mul_ps(source.min(h), d), total[t][h]);
                    }
                }
            }
        }
    }
}

/// Adds to `pairs` the products of half `half` of a block: of its 16 rows, or of the low and high nibbles of rows `8 h`
/// on.
///
/// # Safety
/// As for [`add_block`].
#[inline(always)]
unsafe fn multiply<X: Source, const N: usize>(
    source: &X,
    h: usize,
    half: usize,
    acts: [*const u8; N],
    pairs: &mut [[__m256i; 2]; N],
) {
    // SAFETY: the caller's promise; a decoded block has four groups of two vectors here.
    unsafe {
        if let (Some(codes), Ok(pairs)) =
            (source.decoded(h, half), <&mut [[__m256i; 2]; SIDE]>::try_from(&mut pairs[..]))
        {
            let act = |t: usize| acts[t].add(16 * half);
            return multiply_side(codes, [act(0), act(1), act(2), act(3)], pairs);
        }
        groups!(G from half => {
            let w = if X::SPLIT { source.split::<G>(h) } else { [source.group::<G>(0), source.group::<G>(1)] };
            for t in 0..N {
                let act = word(acts[t], 4 * G);
                for i in 0..2 {
                    pairs[t][i] = _mm256_add_epi16(pairs[t][i], _mm256_maddubs_epi16(w[i], act));
                }
            }
        });
    }
}

/// Four groups of two vectors of codes with [`SIDE`] tokens, in an order of instructions that needs no more registers
/// than there are.
///
/// # Safety
/// `codes` is valid for 256 bytes and aligned to 32, each of `acts` valid for 16 bytes; the processor has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn multiply_side(codes: *const u8, acts: [*const u8; SIDE], pairs: &mut [[__m256i; 2]; SIDE]) {
    macro_rules! token {
        ($act:literal, $group:literal, $first:literal, $last:literal) => {
            concat!(
                "vpbroadcastd ymm10, [{",
                $act,
                "} + 4 * ",
                $group,
                "]\n",
                "vpmaddubsw ymm11, ymm8, ymm10\n",
                "vpmaddubsw ymm12, ymm9, ymm10\n",
                "vpaddw ",
                $first,
                ", ",
                $first,
                ", ymm11\n",
                "vpaddw ",
                $last,
                ", ",
                $last,
                ", ymm12",
            )
        };
    }
    macro_rules! group {
        ($group:literal) => {
            concat!(
                "vmovdqa ymm8, [{codes} + 64 * ",
                $group,
                "]\n",
                "vmovdqa ymm9, [{codes} + 64 * ",
                $group,
                " + 32]\n",
                token!("a0", $group, "ymm0", "ymm1"),
                "\n",
                token!("a1", $group, "ymm2", "ymm3"),
                "\n",
                token!("a2", $group, "ymm4", "ymm5"),
                "\n",
                token!("a3", $group, "ymm6", "ymm7"),
            )
        };
    }
    let [p0, p1, p2, p3] = pairs;
    // SAFETY: reads what the caller promised; every register is declared.
    unsafe {
        std::arch::asm!(
            group!(0), group!(1), group!(2), group!(3),
            codes = in(reg) codes,
            a0 = in(reg) acts[0], a1 = in(reg) acts[1], a2 = in(reg) acts[2], a3 = in(reg) acts[3],
            inout("ymm0") p0[0], inout("ymm1") p0[1], inout("ymm2") p1[0], inout("ymm3") p1[1],
            inout("ymm4") p2[0], inout("ymm5") p2[1], inout("ymm6") p3[0], inout("ymm7") p3[1],
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
}

/// Four bytes of a block of activations in every lane.
///
/// # Safety
/// `act` is a block, `at` one of its words; the processor has AVX2 (as for all below).
#[inline(always)]
unsafe fn word(act: *const u8, at: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_set1_epi32(act.add(at).cast::<i32>().read_unaligned()) }
}

/// # Safety
/// As for [`word`].
#[inline(always)]
unsafe fn float(act: *const u8, at: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_set1_ps(act.add(at).cast::<f32>().read_unaligned()) }
}

/// The sums of a block of activations, by place in a pair of products.
///
/// # Safety
/// As for [`word`].
#[inline(always)]
unsafe fn both(act: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_add_epi16(word(act, act8::SUMS), word(act, act8::SUMS + 4)) }
}

/// What summing starts with: the zero's share, taken off.
///
/// # Safety
/// See [`low`].
#[inline(always)]
unsafe fn start(sums: __m256i, zero: i16) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_mullo_epi16(sums, _mm256_set1_epi16(-zero)) }
}

/// The low nibbles.
///
/// # Safety
/// The processor has AVX2 (as for all below).
#[inline(always)]
unsafe fn low(x: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_and_si256(x, _mm256_set1_epi8(15)) }
}

/// # Safety
/// `at` is valid for 32 bytes.
#[inline(always)]
unsafe fn load(at: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(at.cast()) }
}

/// Moves each 16 bits right by `BY`, or left by `-BY`.
///
/// # Safety
/// See [`low`].
#[inline(always)]
unsafe fn shift(x: __m256i, by: i32) -> __m256i {
    // SAFETY: the caller's promise. `by` is known when compiling; the count becomes an immediate.
    unsafe {
        if by >= 0 { _mm256_srl_epi16(x, _mm_cvtsi32_si128(by)) } else { _mm256_sll_epi16(x, _mm_cvtsi32_si128(-by)) }
    }
}

/// Group `G` of a 4-bit plane.
///
/// # Safety
/// `at` is the plane.
#[inline(always)]
unsafe fn four<const G: usize>(at: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { low(shift(load(at.add(LINE * (G % 4))), 4 * (G as i32 / 4))) }
}

/// Group `G` of a 2-bit plane, moved left by `up`.
///
/// # Safety
/// `at` is the plane.
#[inline(always)]
unsafe fn two<const G: usize>(at: *const u8, up: i32) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = shift(load(at.add(LINE * (G % 2))), 2 * (G as i32 / 2) - up);
        _mm256_and_si256(bits, _mm256_set1_epi8(3 << up))
    }
}

/// Group `G` of a 1-bit plane, moved left by `up`.
///
/// # Safety
/// `at` is the plane.
#[inline(always)]
unsafe fn one_bit<const G: usize>(at: *const u8, up: i32) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_and_si256(shift(load(at), G as i32 - up), _mm256_set1_epi8(1 << up)) }
}

macro_rules! codes {
    ($($name:ident, $layout:ident, $split:literal, $at:ident => $group:expr;)*) => {
        $(
            struct $name;
            impl Codes for $name {
                const BYTES: usize = layout::Codes::$layout.bytes();
                const SPLIT: bool = $split;
                #[inline(always)]
                unsafe fn group<const G: usize>($at: *const u8) -> __m256i {
                    // SAFETY: the caller's promise: all lines of the block.
                    unsafe { $group }
                }
            }
        )*
    };
}

codes! {
    Two, Two, false, at => two::<G>(at, 0);
    Three, Three, false, at => _mm256_or_si256(two::<G>(at, 0), one_bit::<G>(at.add(2 * LINE), 2));
    Four, Four, false, at => four::<G>(at);
    Five, Five, false, at => _mm256_or_si256(four::<G>(at), one_bit::<G>(at.add(4 * LINE), 4));
    Six, Six, false, at => _mm256_or_si256(four::<G>(at), two::<G>(at.add(4 * LINE), 4));
    Eight, Eight, true, at => load(at.add(LINE * G));
    Iq4, Iq4, true, at => look_up(&IQ4, four::<G>(at));
    Fp4, Fp4, false, at => look_up(&FP4, four::<G>(at));
}

/// # Safety
/// See [`low`].
#[inline(always)]
unsafe fn look_up(table: &[u8; 16], at: __m256i) -> __m256i {
    // SAFETY: 16 bytes; the caller's promise.
    unsafe { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), at) }
}

/// Eight f16 of list number `slot`.
///
/// # Safety
/// The list is in the unit; the processor has F16C.
#[inline(always)]
unsafe fn halves(unit: *const u8, slot: usize, h: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(unit.add(2 * ROWS * slot + 16 * h).cast())) }
}

/// Eight bytes of list number `i` behind `floats` lists of f16.
///
/// # Safety
/// The list is in the unit.
#[inline(always)]
unsafe fn bytes(unit: *const u8, floats: usize, i: usize, h: usize) -> __m128i {
    // SAFETY: the caller's promise.
    unsafe { _mm_loadl_epi64(unit.add(2 * ROWS * floats + ROWS * i + 8 * h).cast()) }
}

/// Eight 16-bit numbers, each twice.
///
/// # Safety
/// See [`low`].
#[inline(always)]
unsafe fn twice(x: __m128i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_set_m128i(_mm_unpackhi_epi16(x, x), _mm_unpacklo_epi16(x, x)) }
}

macro_rules! scales {
    ($($name:ident, |$unit:ident, $b:ident, $h:ident| $scale:expr, $min:expr;)*) => {
        $(
            struct $name;
            impl Scales for $name {
                const KIND: layout::Scales = layout::Scales::$name;
                #[inline(always)]
                unsafe fn scale($unit: *const u8, $b: usize, $h: usize) -> __m256 {
                    let _ = $b;
                    // SAFETY: the caller's promise.
                    unsafe { $scale }
                }
                #[inline(always)]
                unsafe fn min($unit: *const u8, $b: usize, $h: usize) -> __m256 {
                    let _ = ($unit, $b, $h);
                    // SAFETY: the caller's promise.
                    unsafe { $min }
                }
            }
        )*
    };
}

scales! {
    Block, |unit, b, h| halves(unit, 0, h), _mm256_setzero_ps();
    BlockMin, |unit, b, h| halves(unit, 0, h), halves(unit, 1, h);
    Exponent, |unit, b, h| exponents(_mm_loadl_epi64(unit.add(8 * h).cast())), _mm256_setzero_ps();
    Super, |unit, b, h| _mm256_mul_ps(
        halves(unit, 0, h),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(unit, 1, b, h))),
    ), _mm256_setzero_ps();
    SuperMin, |unit, b, h| _mm256_mul_ps(
        halves(unit, 0, h),
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes(unit, 2, b, h))),
    ), negative(_mm256_mul_ps(
        halves(unit, 1, h),
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes(unit, 2, SUPER + b, h))),
    ));
}

/// Eight times 2^(e - 128); see [`layout::exponent`].
///
/// # Safety
/// See [`low`].
#[inline(always)]
unsafe fn exponents(e: __m128i) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let e = _mm256_cvtepu8_epi32(e);
        let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
        let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
        let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
        _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, is_small))
    }
}

/// # Safety
/// See [`low`].
#[inline(always)]
unsafe fn negative(x: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_xor_ps(x, _mm256_set1_ps(-0.0)) }
}

struct Half;
impl Scales for Half {
    const KIND: layout::Scales = layout::Scales::Half;
    #[inline(always)]
    unsafe fn scale(unit: *const u8, _b: usize, h: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { halves(unit, 0, h) }
    }
    #[inline(always)]
    unsafe fn half(unit: *const u8, b: usize, half: usize, h: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { twice(_mm_cvtepi8_epi16(bytes(unit, 1, 2 * b + half, h))) }
    }
}

struct HalfMin;
impl Scales for HalfMin {
    const KIND: layout::Scales = layout::Scales::HalfMin;
    #[inline(always)]
    unsafe fn scale(unit: *const u8, _b: usize, h: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { halves(unit, 0, h) }
    }
    #[inline(always)]
    unsafe fn min(unit: *const u8, _b: usize, h: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { negative(halves(unit, 1, h)) }
    }
    #[inline(always)]
    unsafe fn half(unit: *const u8, b: usize, half: usize, h: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let both = bytes(unit, 2, 2 * b + half, h);
            twice(_mm_cvtepu8_epi16(_mm_and_si128(both, _mm_set1_epi8(15))))
        }
    }
    #[inline(always)]
    unsafe fn half_min(unit: *const u8, b: usize, half: usize, h: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { twice(_mm_srli_epi16::<4>(_mm_cvtepu8_epi16(bytes(unit, 2, 2 * b + half, h)))) }
    }
}
