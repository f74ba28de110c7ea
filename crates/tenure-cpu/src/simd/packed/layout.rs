//! Where things lie in a panel, and what the bits mean.

use half::f16;
use tenure_tensor::DType;

use super::ROWS;
use crate::simd::act8::BLOCK;

/// Blocks of 32 columns in a superblock of the K formats.
pub(super) const SUPER: usize = 8;
/// Bytes of a line: 4 bytes for each row.
pub(super) const LINE: usize = 64;

/// How the codes of a block of 32 columns lie: planes of whole bytes or of some of their bits, in lines of [`LINE`]
/// bytes in which each row has four. A group is 4 columns, so there are 8 groups in a block.
///
/// | plane | lines | where group `g` is |
/// | --- | --- | --- |
/// | 8 bits | 8 | line `g` |
/// | 4 bits | 4 | line `g % 4`, low nibble for `g < 4`, else the high one |
/// | 2 bits | 2 | line `g % 2`, bits `2 (g / 2)` and the next |
/// | 1 bit | 1 | bit `g` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codes {
    /// A plane of 2 bits.
    Two,
    /// A plane of 2 bits, then one of the third bit.
    Three,
    /// A plane of 4 bits.
    Four,
    /// A plane of 4 bits, then one of the fifth bit.
    Five,
    /// A plane of 4 bits, then one of the upper 2 bits.
    Six,
    /// A plane of bytes: the signed byte of the file plus 128.
    Eight,
    /// A plane of 4 bits that index [`IQ4`].
    Iq4,
    /// A plane of 4 bits that index [`FP4`].
    Fp4,
}

/// How the scales of 16 rows lie; one for each row where not said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scales {
    /// Each block: `d: f16`.
    Block,
    /// Each block: `d: f16`, `m: f16`.
    BlockMin,
    /// Each block: a power of two (E8M0) as a byte.
    Exponent,
    /// Each superblock: `d: f16`, then for each block a signed byte.
    Super,
    /// Each superblock: `d: f16`, `dmin: f16`, then for each block a byte of scale, then for each a byte of minimum.
    SuperMin,
    /// Each superblock: `d: f16`, then for each half block a signed byte.
    Half,
    /// Each superblock: `d: f16`, `dmin: f16`, then for each half block a byte: scale low, minimum high.
    HalfMin,
}

/// A weight format, as a panel holds it: value = scale * (code - zero) + minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) codes: Codes,
    pub(super) scales: Scales,
    /// What a code of zero value is.
    pub(super) zero: i32,
}

/// What the codes of IQ4_NL and IQ4_XS stand for, plus 128.
#[rustfmt::skip]
pub(super) const IQ4: [u8; 16] =
    [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];
/// Twice what the codes of MXFP4 stand for, plus 16.
pub(super) const FP4: [u8; 16] = [16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4];

impl Format {
    /// The format of panels of `dtype`, if there is one.
    pub(super) const fn of(dtype: DType) -> Option<Format> {
        let (codes, scales, zero) = match dtype {
            DType::Q4_0 => (Codes::Four, Scales::Block, 8),
            DType::Q4_1 => (Codes::Four, Scales::BlockMin, 0),
            DType::Q5_0 => (Codes::Five, Scales::Block, 16),
            DType::Q5_1 => (Codes::Five, Scales::BlockMin, 0),
            DType::Q8_0 => (Codes::Eight, Scales::Block, 128),
            DType::Q2K => (Codes::Two, Scales::HalfMin, 0),
            DType::Q3K => (Codes::Three, Scales::Half, 4),
            DType::Q4K => (Codes::Four, Scales::SuperMin, 0),
            DType::Q5K => (Codes::Five, Scales::SuperMin, 0),
            DType::Q6K => (Codes::Six, Scales::Half, 32),
            DType::IQ4NL => (Codes::Iq4, Scales::Block, 128),
            DType::IQ4XS => (Codes::Iq4, Scales::Super, 128),
            DType::MXFP4 => (Codes::Fp4, Scales::Exponent, 16),
            DType::F64
            | DType::F32
            | DType::F16
            | DType::BF16
            | DType::F8E4M3
            | DType::F8E5M2
            | DType::I64
            | DType::I32
            | DType::I16
            | DType::I8
            | DType::U64
            | DType::U32
            | DType::U16
            | DType::U8
            | DType::Bool
            | DType::Q8_1
            | DType::Q8K
            | DType::IQ1S
            | DType::IQ1M
            | DType::IQ2XXS
            | DType::IQ2XS
            | DType::IQ2S
            | DType::IQ3XXS
            | DType::IQ3S
            | DType::TQ1_0
            | DType::TQ2_0
            | DType::NVFP4
            | DType::Q1_0
            | DType::Q2_0 => return None,
        };
        Some(Format { codes, scales, zero })
    }

    /// Bytes of a panel of `cols` columns, if they are whole blocks.
    pub(super) const fn panel_bytes(self, cols: usize) -> Option<usize> {
        if cols == 0 || !cols.is_multiple_of(BLOCK * self.scales.blocks()) {
            return None;
        }
        let Some(planes) = (cols / BLOCK).checked_mul(self.codes.bytes()) else { return None };
        planes.checked_add(self.scales.region(cols / BLOCK))
    }

    /// The scales and the codes of a panel: first the scales of all blocks, filled up to a whole line, then the codes.
    pub(super) fn parts(self, panel: &[u8], cols: usize) -> (&[u8], &[u8]) {
        panel.split_at(self.scales.region(cols / BLOCK))
    }

    /// Scale and minimum of row `r` in half `half` of block `block`.
    pub(super) fn scale(self, scales: &[u8], r: usize, block: usize, half: usize) -> (f32, f32) {
        let unit = &scales[block / self.scales.blocks() * self.scales.bytes()..];
        let b = block % self.scales.blocks();
        let float = |slot: usize| {
            let at = 2 * (slot * ROWS + r);
            f16::from_le_bytes([unit[at], unit[at + 1]]).to_f32()
        };
        let byte = |floats: usize, i: usize| unit[2 * ROWS * floats + ROWS * i + r];
        match self.scales {
            Scales::Block => (float(0), 0.0),
            Scales::BlockMin => (float(0), float(1)),
            Scales::Exponent => (exponent(unit[r]), 0.0),
            Scales::Super => (float(0) * f32::from(byte(1, b) as i8), 0.0),
            Scales::SuperMin => (float(0) * f32::from(byte(2, b)), -(float(1) * f32::from(byte(2, SUPER + b)))),
            Scales::Half => (float(0) * f32::from(byte(1, 2 * b + half) as i8), 0.0),
            Scales::HalfMin => {
                let both = byte(2, 2 * b + half);
                (float(0) * f32::from(both & 15), -(float(1) * f32::from(both >> 4)))
            }
        }
    }
}

impl Codes {
    /// Bytes of the planes of a block.
    pub(super) const fn bytes(self) -> usize {
        LINE * match self {
            Codes::Two => 2,
            Codes::Three => 3,
            Codes::Four | Codes::Iq4 | Codes::Fp4 => 4,
            Codes::Five => 5,
            Codes::Six => 6,
            Codes::Eight => 8,
        }
    }

    /// The code of row `r` in column `k` of a block.
    pub(super) fn at(self, planes: &[u8], r: usize, k: usize) -> u8 {
        let g = k / 4;
        let line = |line: usize| planes[LINE * line + 4 * r + k % 4];
        let four = || line(g % 4) >> (4 * (g / 4)) & 15;
        let two = |first: usize| line(first + g % 2) >> (2 * (g / 2)) & 3;
        let one = |at: usize| line(at) >> g & 1;
        match self {
            Codes::Two => two(0),
            Codes::Three => two(0) | one(2) << 2,
            Codes::Four => four(),
            Codes::Five => four() | one(4) << 4,
            Codes::Six => four() | two(4) << 4,
            Codes::Eight => line(g),
            Codes::Iq4 => IQ4[usize::from(four())],
            Codes::Fp4 => FP4[usize::from(four())],
        }
    }
}

impl Scales {
    /// Blocks whose scales lie together.
    pub(super) const fn blocks(self) -> usize {
        match self {
            Scales::Block | Scales::BlockMin | Scales::Exponent => 1,
            Scales::Super | Scales::SuperMin | Scales::Half | Scales::HalfMin => SUPER,
        }
    }

    /// Bytes of the scales of as many blocks.
    pub(super) const fn bytes(self) -> usize {
        ROWS * match self {
            Scales::Exponent => 1,
            Scales::Block => 2,
            Scales::BlockMin => 4,
            Scales::Super => 2 + SUPER,
            Scales::SuperMin => 4 + 2 * SUPER,
            Scales::Half => 2 + 2 * SUPER,
            Scales::HalfMin => 4 + 2 * SUPER,
        }
    }

    /// Bytes of the scales of `blocks` blocks, in whole lines.
    pub(super) const fn region(self, blocks: usize) -> usize {
        (blocks / self.blocks() * self.bytes()).next_multiple_of(LINE)
    }

    /// Whether there are minima.
    pub(super) const fn with_min(self) -> bool {
        matches!(self, Scales::BlockMin | Scales::SuperMin | Scales::HalfMin)
    }

    /// Whether the halves of a block have scales of their own.
    pub(super) const fn by_half(self) -> bool {
        matches!(self, Scales::Half | Scales::HalfMin)
    }
}

/// 2^(e - 128), the least two of which are subnormal: a scale of MXFP4, halved since [`FP4`] is doubled.
pub(super) fn exponent(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}
