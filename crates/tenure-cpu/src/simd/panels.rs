//! Products with weights in blocks, repacked at load into panels of 16 rows.
//!
//! A panel holds 16 rows, block column after block column (32 columns; K formats: superblocks of 256). The quants of a
//! block column lie in bit planes, so that a panel takes no more room than the file's blocks: 64-byte lines in which
//! each row has 4 bytes. A *group* is 4 consecutive columns: the 4 bytes of a row.
//!
//! | plane | lines | group `g` of 8 |
//! | --- | --- | --- |
//! | 8 bits | 8 | line `g` |
//! | 4 bits | 4 | line `g % 4`, low nibble for `g < 4`, else high |
//! | 2 bits | 2 | line `g % 2`, bits `2 * (g / 2)` |
//! | 1 bit | 1 | bit `g` |
//!
//! Activations are quantised to 14 bits with one unit for 256 columns ([`Act`]), so that a model's logits are, but for
//! hundredths, those of activations in f32. Products are exact in integers within the columns that share a scale; a
//! format's integer scales within a superblock are part of that. These parts of an output are added in order of column,
//! whatever is computed beside it.

use half::f16;
use tenure_tensor::{DType, uncomputable};

use crate::simd::Isa;
use crate::simd::float::Out;

/// The types that are not held in panels, as a pattern.
macro_rules! without_panels {
    () => {
        DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E5M2 | uncomputable!()
    };
}

/// Rows of a panel.
pub const ROWS: usize = 16;
/// Panels that AVX-512's kernels take at once: each activation that is read meets two lines.
pub const TOGETHER: usize = 2;
/// Columns of a block column.
pub const BLOCK: usize = 32;
/// Columns that share a scale of weights where blocks of 32 have two.
const HALF: usize = BLOCK / 2;
/// Block columns of a superblock, and of the columns that share a unit of activations.
const SUPER: usize = 8;
/// The largest activation in units.
const LARGEST: f32 = 8191.0;

/// 32 activations in 14 bits.
///
/// What a large activation costs the 255 others of its unit is at most 1/16,382 of itself: an error beside what it adds
/// to a product on its own, but all there is of activations ten thousand times smaller.
#[repr(C, align(32))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Act {
    /// `round(x / unit)`; the four of a group in the order 0, 2, 1, 3, as the even and the odd bytes of weights meet them.
    words: [i16; BLOCK],
    /// The unit.
    unit: f32,
    /// Sum of the activations.
    total: f32,
    /// Sums of the halves.
    halves: [f32; 2],
    /// The same in units.
    sums: [i32; 2],
    _fill: [u32; 2],
}

impl Act {
    /// The activations it stands for.
    pub fn values(&self) -> impl Iterator<Item = f64> + use<> {
        let act = *self;
        (0..BLOCK).map(move |k| f64::from(act.word(k)) * f64::from(act.unit))
    }

    /// An activation in units.
    #[inline(always)]
    fn word(&self, k: usize) -> i16 {
        self.words[place(k)]
    }

    /// Puts what follows from the unit and the sums of the halves in units.
    #[inline(always)]
    fn set_sums(&mut self, sums: [i32; 2]) {
        self.sums = sums;
        self.halves = sums.map(|sum| sum as f32 * self.unit);
        self.total = (sums[0] + sums[1]) as f32 * self.unit;
    }
}

/// Where in [`Act::words`] a column is.
#[inline(always)]
const fn place(k: usize) -> usize {
    k & !3 | (k & 1) << 1 | (k & 2) >> 1
}

/// How a format's blocks are held in a panel.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Format {
    /// Planes, by their bits.
    eight: bool,
    four: bool,
    two: bool,
    one: bool,
    /// What the quants mean.
    values: Values,
    scales: Scales,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    /// Unsigned, less `1 << n` after the fact (none: 0).
    Less(u32),
    /// Unsigned as they are.
    Plain,
    /// Signed bytes.
    Signed,
    /// Signed bytes, from a table of 16.
    Table,
    /// From [`FP4`], a table of 16 small numbers.
    SmallTable,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scales {
    /// One f16 for each block.
    Block,
    /// One f16 scale and one f16 minimum for each block.
    BlockMin,
    /// One power of two for each block.
    Exponent,
    /// One f16 for each superblock, one signed byte for each half block.
    Halves,
    /// One f16 scale and minimum for each superblock, one byte of each for each half block.
    HalvesMin,
    /// One f16 for each superblock, one signed byte for each block.
    Blocks,
    /// One f16 scale and minimum for each superblock, one byte of each for each block.
    BlocksMin,
}

const fn format(dtype: DType) -> Option<Format> {
    const NONE: Format =
        Format { eight: false, four: false, two: false, one: false, values: Values::Plain, scales: Scales::Block };
    Some(match dtype {
        DType::Q4_0 => Format { four: true, values: Values::Less(3), ..NONE },
        DType::Q4_1 => Format { four: true, scales: Scales::BlockMin, ..NONE },
        DType::Q5_0 => Format { four: true, one: true, values: Values::Less(4), ..NONE },
        DType::Q5_1 => Format { four: true, one: true, scales: Scales::BlockMin, ..NONE },
        DType::Q8_0 => Format { eight: true, values: Values::Signed, ..NONE },
        DType::Q2K => Format { two: true, scales: Scales::HalvesMin, ..NONE },
        DType::Q3K => Format { two: true, one: true, values: Values::Less(2), scales: Scales::Halves, ..NONE },
        DType::Q4K => Format { four: true, scales: Scales::BlocksMin, ..NONE },
        DType::Q5K => Format { four: true, one: true, scales: Scales::BlocksMin, ..NONE },
        DType::Q6K => Format { four: true, two: true, values: Values::Less(5), scales: Scales::Halves, ..NONE },
        DType::IQ4NL => Format { four: true, values: Values::Table, ..NONE },
        DType::IQ4XS => Format { four: true, values: Values::Table, scales: Scales::Blocks, ..NONE },
        DType::MXFP4 => Format { four: true, values: Values::SmallTable, scales: Scales::Exponent, ..NONE },
        without_panels!() => return None,
    })
}

impl Format {
    /// Bits of a quant.
    const fn bits(self) -> usize {
        8 * self.eight as usize + 4 * self.four as usize + 2 * self.two as usize + self.one as usize
    }

    /// Bytes of the planes of one block column.
    const fn planes(self) -> usize {
        64 * self.bits()
    }

    /// Block columns that share one trailer of scales.
    const fn blocks(self) -> usize {
        match self.scales {
            Scales::Block | Scales::BlockMin | Scales::Exponent => 1,
            Scales::Halves | Scales::HalvesMin | Scales::Blocks | Scales::BlocksMin => SUPER,
        }
    }

    /// Bytes of the scales behind the planes.
    const fn trailer(self) -> usize {
        match self.scales {
            Scales::Block => 32,
            Scales::BlockMin => 64,
            Scales::Exponent => 16,
            Scales::Halves => 32 + 256,
            Scales::HalvesMin => 64 + 256,
            Scales::Blocks => 32 + 128,
            Scales::BlocksMin => 64 + 256,
        }
    }

    /// Whether something is added to every weight.
    const fn has_min(self) -> bool {
        matches!(self.scales, Scales::BlockMin | Scales::HalvesMin | Scales::BlocksMin)
    }

    /// The largest magnitude that a quant stands for.
    const fn largest_value(self) -> i64 {
        match self.values {
            Values::Less(n) => 1 << n,
            Values::Plain => (1 << self.bits()) - 1,
            Values::Signed | Values::Table => 128,
            Values::SmallTable => 12,
        }
    }

    /// The largest magnitude of an integer scale.
    const fn largest_scale(self) -> i64 {
        match self.scales {
            Scales::Block | Scales::BlockMin | Scales::Exponent => 1,
            Scales::Halves => 128,
            Scales::HalvesMin => 15,
            Scales::Blocks => 32,
            Scales::BlocksMin => 63,
        }
    }

    /// Block columns whose products, with their integer scales, are added in 32 bits: what surely fits, of a superblock.
    const fn together(self) -> usize {
        let one = self.largest_value() * self.largest_scale() * LARGEST as i64 * BLOCK as i64;
        let mut blocks = self.blocks();
        while blocks as i64 * one > i32::MAX as i64 {
            blocks /= 2;
        }
        assert!(blocks > 0, "the products of one block column must fit");
        blocks
    }

    /// Bytes from one (super)block column to the next.
    const fn stride(self) -> usize {
        self.blocks() * self.planes() + self.trailer()
    }
}

/// The values of IQ4_NL and IQ4_XS.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Twice the values of FP4 (E2M1).
const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `2^(e - 128)`: the scale of a block of [`FP4`] values (OCP Microscaling Formats 1.0, E8M0, halved).
fn exponent(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Bytes of a panel of 16 rows of `cols` columns, if blocks of `dtype` are held in panels.
pub fn panel_bytes(dtype: DType, cols: usize) -> Option<usize> {
    let format = format(dtype)?;
    let columns = BLOCK * format.blocks();
    if cols == 0 || !cols.is_multiple_of(columns) {
        return None;
    }
    (cols / columns).checked_mul(format.stride())
}

/// Repacks up to 16 rows, as the file has them one after the other, into a panel; missing rows become zeros.
pub fn pack(dtype: DType, cols: usize, rows: &[u8], panel: &mut [u8]) {
    let (Some(format), Some(row_bytes)) = (format(dtype), dtype.row_bytes(cols)) else { return };
    assert!(rows.len() <= ROWS * row_bytes && rows.len().is_multiple_of(row_bytes));
    assert!(Some(panel.len()) == panel_bytes(dtype, cols));
    let (blocks, planes) = (format.blocks(), format.planes());
    if rows.len() < ROWS * row_bytes {
        panel.fill(0);
    }
    let file_bytes = dtype.block_bytes() * (BLOCK * blocks / dtype.block_len());
    for (column, piece) in panel.chunks_exact_mut(format.stride()).enumerate() {
        for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
            let source = &row[column * file_bytes..(column + 1) * file_bytes];
            for b in 0..blocks {
                let planes = &mut piece[b * planes..(b + 1) * planes];
                put_planes(format, &quants(dtype, source, b), r, planes);
            }
            put_scales(dtype, source, r, &mut piece[blocks * planes..]);
        }
    }
}

/// The 8 groups of block `b` of a (super)block, as 4 bytes each.
#[inline(always)]
fn quants(dtype: DType, source: &[u8], b: usize) -> [u32; 8] {
    const LOW: u32 = 0x0f0f_0f0f;
    let word = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]])
    };
    let nibbles = |qs: &[u8]| -> [u32; 8] {
        std::array::from_fn(|g| if g < 4 { word(qs, g) & LOW } else { (word(qs, g - 4) >> 4) & LOW })
    };
    let fifth = |mut words: [u32; 8], bits: u32| {
        for (g, word) in words.iter_mut().enumerate() {
            for k in 0..4 {
                *word |= ((bits >> (4 * g + k)) & 1) << (8 * k + 4);
            }
        }
        words
    };
    match dtype {
        DType::Q4_0 | DType::IQ4NL => nibbles(&source[2..]),
        DType::Q4_1 => nibbles(&source[4..]),
        DType::MXFP4 => nibbles(&source[1..]),
        DType::Q5_0 => fifth(nibbles(&source[6..]), word(&source[2..], 0)),
        DType::Q5_1 => fifth(nibbles(&source[8..]), word(&source[4..], 0)),
        DType::Q8_0 => std::array::from_fn(|g| word(&source[2..], g)),
        DType::Q4K | DType::Q5K => {
            let qs = &source[if dtype == DType::Q4K { 16 } else { 48 } + 32 * (b / 2)..];
            let high =
                |g: usize| if dtype == DType::Q5K { ((word(&source[16..], g) >> b) & 0x0101_0101) << 4 } else { 0 };
            std::array::from_fn(|g| ((word(qs, g) >> (4 * (b % 2))) & LOW) | high(g))
        }
        DType::Q6K => {
            let (n, quarter) = (b / 4, b % 4);
            let ql = &source[64 * n + 32 * (quarter % 2)..];
            let qh = &source[128 + 32 * n..];
            std::array::from_fn(|g| {
                let low = (word(ql, g) >> (4 * (quarter / 2))) & LOW;
                low | ((word(qh, g) >> (2 * quarter)) & 0x0303_0303) << 4
            })
        }
        DType::Q2K => std::array::from_fn(|g| (word(&source[16 + 32 * (b / 4)..], g) >> (2 * (b % 4))) & 0x0303_0303),
        DType::Q3K => std::array::from_fn(|g| {
            let low = (word(&source[32 + 32 * (b / 4)..], g) >> (2 * (b % 4))) & 0x0303_0303;
            low | ((word(source, g) >> b) & 0x0101_0101) << 2
        }),
        DType::IQ4XS => nibbles(&source[8 + 16 * b..]),
        without_panels!() => [0; 8],
    }
}

/// Puts one row's groups into the planes of a block column.
#[inline(always)]
fn put_planes(format: Format, groups: &[u32; 8], row: usize, planes: &mut [u8]) {
    let mut at = 0;
    let mut put = |word: u32| {
        planes[at + 4 * row..at + 4 * row + 4].copy_from_slice(&word.to_le_bytes());
        at += 4 * ROWS;
    };
    if format.eight {
        groups.iter().for_each(|&group| put(group));
    }
    if format.four {
        (0..4).for_each(|g| put((groups[g] & 0x0f0f_0f0f) | (groups[g + 4] & 0x0f0f_0f0f) << 4));
    }
    let above = if format.four { 4 } else { 0 };
    if format.two {
        for line in 0..2 {
            put((0..4).map(|t| ((groups[line + 2 * t] >> above) & 0x0303_0303) << (2 * t)).sum());
        }
    }
    let above = if format.two { above + 2 } else { above };
    if format.one {
        put((0..8).map(|g| ((groups[g] >> above) & 0x0101_0101) << g).sum());
    }
}

/// Puts one row's scales into the trailer of a (super)block column.
fn put_scales(dtype: DType, source: &[u8], row: usize, trailer: &mut [u8]) {
    let mut half = |slot: usize, at: usize| {
        trailer[32 * slot + 2 * row..32 * slot + 2 * row + 2].copy_from_slice(&source[at..at + 2]);
    };
    match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4NL => half(0, 0),
        DType::Q4_1 | DType::Q5_1 => {
            half(0, 0);
            half(1, 2);
        }
        DType::MXFP4 => trailer[row] = source[0],
        DType::Q4K | DType::Q5K => {
            half(0, 0);
            half(1, 2);
            let s = &source[4..16];
            for b in 0..SUPER {
                let (scale, min) = if b < 4 {
                    (s[b] & 63, s[b + 4] & 63)
                } else {
                    ((s[b + 4] & 15) | (s[b - 4] >> 6) << 4, (s[b + 4] >> 4) | (s[b] >> 6) << 4)
                };
                trailer[64 + ROWS * b + row] = scale;
                trailer[64 + 128 + ROWS * b + row] = min;
            }
        }
        DType::Q2K => {
            half(0, 80);
            half(1, 82);
            (0..16).for_each(|i| trailer[64 + ROWS * i + row] = source[i]);
        }
        DType::Q3K => {
            half(0, 108);
            let s = &source[96..108];
            for i in 0..16 {
                let low = if i < 8 { s[i] & 15 } else { s[i - 8] >> 4 };
                let high = (s[8 + i % 4] >> (2 * (i / 4))) & 3;
                trailer[32 + ROWS * i + row] = (low | high << 4).wrapping_sub(32);
            }
        }
        DType::Q6K => {
            half(0, 208);
            (0..16).for_each(|i| trailer[32 + ROWS * i + row] = source[192 + i]);
        }
        DType::IQ4XS => {
            half(0, 0);
            let high = u16::from_le_bytes([source[2], source[3]]);
            for b in 0..SUPER {
                let low = (source[4 + b / 2] >> (4 * (b % 2))) & 15;
                trailer[32 + ROWS * b + row] = (low | ((high >> (2 * b)) as u8 & 3) << 4).wrapping_sub(32);
            }
        }
        without_panels!() => {}
    }
}

/// One row of a panel as f32, exactly as the scalar codec gives it.
pub fn dequantize_row(dtype: DType, panel: &[u8], row: usize, out: &mut [f32]) {
    let Some(format) = format(dtype) else { return };
    let planes = format.planes();
    for (piece, out) in panel.chunks_exact(format.stride()).zip(out.chunks_exact_mut(BLOCK * format.blocks())) {
        let trailer = &piece[format.blocks() * planes..];
        for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            for (k, out) in out.iter_mut().enumerate() {
                let scale = scale(format, trailer, row, b, k / HALF);
                let value = value(format, &piece[b * planes..], row, k) as f32;
                // Without a minimum nothing is added, for a zero keeps its sign.
                *out = if format.has_min() { value * scale.0 + scale.1 } else { value * scale.0 };
            }
        }
    }
}

/// The integer that a quant stands for.
#[inline(always)]
fn value(format: Format, planes: &[u8], row: usize, k: usize) -> i32 {
    let (g, byte) = (k / 4, 4 * row + k % 4);
    let line = |at: usize| u32::from(planes[at + byte]);
    let (mut code, mut at, mut above) = (0, 0, 0);
    if format.eight {
        code = line(64 * g);
    }
    if format.four {
        code = (line(64 * (g % 4)) >> (4 * (g / 4))) & 15;
        (at, above) = (256, 4);
    }
    if format.two {
        code |= ((line(at + 64 * (g % 2)) >> (2 * (g / 2))) & 3) << above;
        (at, above) = (at + 128, above + 2);
    }
    if format.one {
        code |= ((line(at) >> g) & 1) << above;
    }
    match format.values {
        Values::Plain => code as i32,
        Values::Less(n) => code as i32 - (1 << n),
        Values::Signed => i32::from(code as u8 as i8),
        Values::Table => i32::from(IQ4[code as usize & 15]),
        Values::SmallTable => i32::from(FP4[code as usize & 15]),
    }
}

/// Scale and minimum of one half of a block.
#[inline(always)]
fn scale(format: Format, trailer: &[u8], row: usize, b: usize, half: usize) -> (f32, f32) {
    let (steps, min) = (steps(format, trailer, row, b, half) as f32, min(format, trailer, row, b, half));
    (unit_scale(format, trailer, row) * steps, min)
}

/// The scale of a block or superblock.
#[inline(always)]
fn unit_scale(format: Format, trailer: &[u8], row: usize) -> f32 {
    match format.scales {
        Scales::Exponent => exponent(trailer[row]),
        Scales::Block | Scales::BlockMin | Scales::Halves | Scales::HalvesMin | Scales::Blocks | Scales::BlocksMin => {
            f16::from_le_bytes([trailer[2 * row], trailer[2 * row + 1]]).to_f32()
        }
    }
}

/// The integer scale of one half of a block in a superblock, in its scale; 1 where there is none.
#[inline(always)]
fn steps(format: Format, trailer: &[u8], row: usize, b: usize, half: usize) -> i32 {
    let byte = |at: usize, i: usize| trailer[at + ROWS * i + row];
    match format.scales {
        Scales::Block | Scales::BlockMin | Scales::Exponent => 1,
        Scales::Halves => i32::from(byte(32, 2 * b + half) as i8),
        Scales::HalvesMin => i32::from(byte(64, 2 * b + half) & 15),
        Scales::Blocks => i32::from(byte(32, b) as i8),
        Scales::BlocksMin => i32::from(byte(64, b)),
    }
}

/// What is added to every weight of one half of a block.
#[inline(always)]
fn min(format: Format, trailer: &[u8], row: usize, b: usize, half: usize) -> f32 {
    let float = || f16::from_le_bytes([trailer[32 + 2 * row], trailer[32 + 2 * row + 1]]).to_f32();
    let byte = |at: usize, i: usize| trailer[at + ROWS * i + row];
    match format.scales {
        Scales::Block | Scales::Exponent | Scales::Halves | Scales::Blocks => 0.0,
        Scales::BlockMin => float(),
        Scales::HalvesMin => -(float() * f32::from(byte(64, 2 * b + half) >> 4)),
        Scales::BlocksMin => -(float() * f32::from(byte(64 + 128, b))),
    }
}

/// Bytes of `rows` quantised rows of `cols` columns.
pub const fn act_bytes(rows: usize, cols: usize) -> usize {
    rows.saturating_mul(cols / BLOCK).saturating_mul(size_of::<Act>())
}

/// Quantises one row; `acts` has one [`Act`] for each 32 columns. Plain code where this processor lacks `isa`, as in
/// [`matmul`].
pub fn quantize(isa: Isa, x: &[f32], acts: &mut [Act]) {
    assert!(x.len() == acts.len() * BLOCK);
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: just detected.
        Isa::Avx2 | Isa::Avx512Vnni if isa.is_available() => unsafe { x86::quantize_avx2(x, acts) },
        Isa::Avx2 | Isa::Avx512Vnni | Isa::Portable => quantize_portable(x, acts),
    }
}

fn quantize_portable(x: &[f32], acts: &mut [Act]) {
    for (x, acts) in x.chunks(SUPER * BLOCK).zip(acts.chunks_mut(SUPER)) {
        let largest = x.iter().fold(0.0f32, |m, &x| m.max(x.abs()));
        // NaN makes the whole unit NaN, and with it every product.
        let largest = if x.iter().any(|x| x.is_nan()) { f32::NAN } else { largest };
        let (unit, inverse) = unit(largest);
        for (x, act) in x.chunks_exact(BLOCK).zip(acts) {
            act.unit = unit;
            let mut sums = [0; 2];
            for (k, &x) in x.iter().enumerate() {
                let word = (x * inverse).round_ties_even() as i16;
                act.words[place(k)] = word;
                sums[k / HALF] += i32::from(word);
            }
            act.set_sums(sums);
        }
    }
}

/// The unit of activations of which that is the largest, and by what they are multiplied. Activations of up to 1e-30
/// count as zero; not much below, the factor would overflow.
#[inline(always)]
pub(crate) fn unit(largest: f32) -> (f32, f32) {
    (largest * (1.0 / LARGEST), if largest > 1e-30 { LARGEST / largest } else { 0.0 })
}

/// Products of panels that lie one after the other with every row of `acts`, whose rows have `cols` columns.
///
/// # Safety
/// `out` is valid for every row of `acts`, and nobody else touches it meanwhile.
pub unsafe fn matmul(isa: Isa, dtype: DType, panels: &[u8], cols: usize, acts: &[Act], out: Out) {
    let Some(bytes) = panel_bytes(dtype, cols) else { return };
    assert!(panels.len() == out.features.div_ceil(ROWS) * bytes && acts.len().is_multiple_of(cols / BLOCK));
    let isa = if isa.is_available() { isa } else { Isa::Portable };
    let together = if isa == Isa::Avx512Vnni { TOGETHER } else { 1 };
    for (index, panel) in panels.chunks(together * bytes).enumerate() {
        let first = index * together * ROWS;
        // SAFETY: the panels' features lie inside `out`, the instruction set is there; the caller upholds the rest.
        unsafe {
            let out = Out { base: out.base.add(first), features: (together * ROWS).min(out.features - first), ..out };
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::avx2(dtype, panel, cols, acts, out),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni => x86::avx512(dtype, panel, bytes, cols, acts, out),
                #[cfg(not(target_arch = "x86_64"))]
                Isa::Avx2 | Isa::Avx512Vnni => {}
                Isa::Portable => portable(dtype, panel, cols, acts, out),
            }
        }
    }
}

/// # Safety
/// As for [`matmul`].
unsafe fn portable(dtype: DType, panel: &[u8], cols: usize, acts: &[Act], out: Out) {
    let Some(format) = format(dtype) else { return };
    let planes = format.planes();
    let rows = acts.len() / (cols / BLOCK);
    for row in 0..rows {
        // SAFETY: the features of a row; the caller upholds the rest.
        let result = unsafe { std::slice::from_raw_parts_mut(out.base.add(row * out.stride), out.features) };
        result.fill(0.0);
        let mut acts = acts[row * (cols / BLOCK)..(row + 1) * (cols / BLOCK)].chunks_exact(format.together());
        for piece in panel.chunks_exact(format.stride()) {
            let trailer = &piece[format.blocks() * planes..];
            for first in (0..format.blocks()).step_by(format.together()) {
                let Some(acts) = acts.next() else { return };
                for (r, result) in result.iter_mut().enumerate() {
                    let mut dot = 0;
                    for (b, act) in (first..).zip(acts) {
                        for half in 0..2 {
                            let columns = HALF * half..HALF * (half + 1);
                            let value = |k| value(format, &piece[b * planes..], r, k);
                            let part: i32 = columns.map(|k| value(k) * i32::from(act.word(k))).sum();
                            dot += part * steps(format, trailer, r, b, half);
                            *result += min(format, trailer, r, b, half) * act.halves[half];
                        }
                    }
                    *result += dot as f32 * (unit_scale(format, trailer, r) * acts[0].unit);
                }
            }
        }
    }
}

/// Whether there are kernels of an instruction set for panels of a type.
pub fn has_kernel(isa: Isa, dtype: DType) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512Vnni => x86::has_kernel(dtype),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512Vnni => false,
        Isa::Portable => format(dtype).is_some(),
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::add_products;

#[cfg(target_arch = "x86_64")]
mod x86;
