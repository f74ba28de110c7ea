//! Element and block types of tensors, with their sizes.

use std::fmt;

/// The types that Tenure does not compute with, as a pattern: those that are not
/// [`DType::is_computable`](crate::DType::is_computable). For matches that name every type.
#[macro_export]
macro_rules! uncomputable {
    () => {
        $crate::DType::F64
            | $crate::DType::I64
            | $crate::DType::I32
            | $crate::DType::I16
            | $crate::DType::I8
            | $crate::DType::U64
            | $crate::DType::U32
            | $crate::DType::U16
            | $crate::DType::U8
            | $crate::DType::Bool
            | $crate::DType::Q8_1
            | $crate::DType::Q8K
            | $crate::DType::IQ1S
            | $crate::DType::IQ1M
            | $crate::DType::IQ2XXS
            | $crate::DType::IQ2XS
            | $crate::DType::IQ2S
            | $crate::DType::IQ3XXS
            | $crate::DType::IQ3S
            | $crate::DType::TQ1_0
            | $crate::DType::TQ2_0
            | $crate::DType::NVFP4
            | $crate::DType::Q1_0
            | $crate::DType::Q2_0
    };
}

/// The type of a tensor's elements: plain numbers, or blocks of quantised weights.
///
/// Block layouts are those of GGML (`ggml-common.h`); plain types are those of GGUF and safetensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // The names are the field's own.
#[rustfmt::skip]
pub enum DType {
    F64, F32, F16, BF16, F8E4M3, F8E5M2,
    I64, I32, I16, I8, U64, U32, U16, U8, Bool,
    Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1,
    Q2K, Q3K, Q4K, Q5K, Q6K, Q8K,
    IQ1S, IQ1M, IQ2XXS, IQ2XS, IQ2S, IQ3XXS, IQ3S, IQ4NL, IQ4XS,
    TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0,
}

impl DType {
    /// Every type, in declaration order.
    #[rustfmt::skip]
    pub const ALL: [DType; 42] = [
        DType::F64, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2,
        DType::I64, DType::I32, DType::I16, DType::I8, DType::U64, DType::U32, DType::U16, DType::U8, DType::Bool,
        DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0, DType::Q8_1,
        DType::Q2K, DType::Q3K, DType::Q4K, DType::Q5K, DType::Q6K, DType::Q8K,
        DType::IQ1S, DType::IQ1M, DType::IQ2XXS, DType::IQ2XS, DType::IQ2S, DType::IQ3XXS, DType::IQ3S,
        DType::IQ4NL, DType::IQ4XS, DType::TQ1_0, DType::TQ2_0, DType::MXFP4, DType::NVFP4, DType::Q1_0, DType::Q2_0,
    ];

    /// Elements per block: 1 for plain types.
    #[rustfmt::skip]
    pub const fn block_len(self) -> usize {
        match self {
            DType::F64 | DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E5M2
            | DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U64 | DType::U32 | DType::U16 | DType::U8
            | DType::Bool => 1,
            DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 | DType::Q8_1 | DType::IQ4NL
            | DType::MXFP4 => 32,
            DType::NVFP4 | DType::Q2_0 => 64,
            DType::Q1_0 => 128,
            DType::Q2K | DType::Q3K | DType::Q4K | DType::Q5K | DType::Q6K | DType::Q8K | DType::IQ1S | DType::IQ1M
            | DType::IQ2XXS | DType::IQ2XS | DType::IQ2S | DType::IQ3XXS | DType::IQ3S | DType::IQ4XS | DType::TQ1_0
            | DType::TQ2_0 => 256,
        }
    }

    /// Bytes of one block (one element for plain types).
    #[rustfmt::skip]
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::F64 | DType::I64 | DType::U64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => 2,
            DType::F8E4M3 | DType::F8E5M2 | DType::I8 | DType::U8 | DType::Bool => 1,
            DType::Q4_0 | DType::IQ4NL | DType::Q1_0 | DType::Q2_0 => 18,
            DType::Q4_1 => 20,
            DType::Q5_0 => 22,
            DType::Q5_1 => 24,
            DType::Q8_0 => 34,
            DType::Q8_1 | DType::NVFP4 => 36,
            DType::MXFP4 => 17,
            DType::Q2K => 84,
            DType::Q3K | DType::IQ3S => 110,
            DType::Q4K => 144,
            DType::Q5K => 176,
            DType::Q6K => 210,
            DType::Q8K => 292,
            DType::IQ1S => 50,
            DType::IQ1M => 56,
            DType::IQ2XXS => 66,
            DType::IQ2XS => 74,
            DType::IQ2S => 82,
            DType::IQ3XXS => 98,
            DType::IQ4XS => 136,
            DType::TQ1_0 => 54,
            DType::TQ2_0 => 66,
        }
    }

    /// Whether the type stores quantised blocks.
    pub const fn is_block(self) -> bool {
        self.block_len() > 1
    }

    /// Whether Tenure computes with weights of this type.
    #[rustfmt::skip]
    pub const fn is_computable(self) -> bool {
        match self {
            DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E5M2 | DType::Q4_0 | DType::Q4_1
            | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 | DType::Q2K | DType::Q3K | DType::Q4K | DType::Q5K | DType::Q6K
            | DType::IQ4NL | DType::IQ4XS | DType::MXFP4 => true,
            uncomputable!() => false,
        }
    }

    /// Bytes of one row of `cols` elements, or `None` when `cols` is not whole blocks or the size overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// The type with GGML's number `id` (`enum ggml_type`), if that number is in use.
    #[rustfmt::skip]
    pub const fn from_ggml(id: u32) -> Option<DType> {
        Some(match id {
            0 => DType::F32, 1 => DType::F16, 2 => DType::Q4_0, 3 => DType::Q4_1, 6 => DType::Q5_0, 7 => DType::Q5_1,
            8 => DType::Q8_0, 9 => DType::Q8_1, 10 => DType::Q2K, 11 => DType::Q3K, 12 => DType::Q4K, 13 => DType::Q5K,
            14 => DType::Q6K, 15 => DType::Q8K, 16 => DType::IQ2XXS, 17 => DType::IQ2XS, 18 => DType::IQ3XXS,
            19 => DType::IQ1S, 20 => DType::IQ4NL, 21 => DType::IQ3S, 22 => DType::IQ2S, 23 => DType::IQ4XS,
            24 => DType::I8, 25 => DType::I16, 26 => DType::I32, 27 => DType::I64, 28 => DType::F64, 29 => DType::IQ1M,
            30 => DType::BF16, 34 => DType::TQ1_0, 35 => DType::TQ2_0, 39 => DType::MXFP4, 40 => DType::NVFP4,
            41 => DType::Q1_0, 42 => DType::Q2_0,
            _ => return None,
        })
    }

    /// The type's number in GGML and GGUF, if it has one.
    #[rustfmt::skip]
    pub const fn ggml_id(self) -> Option<u32> {
        Some(match self {
            DType::F32 => 0, DType::F16 => 1, DType::Q4_0 => 2, DType::Q4_1 => 3, DType::Q5_0 => 6, DType::Q5_1 => 7,
            DType::Q8_0 => 8, DType::Q8_1 => 9, DType::Q2K => 10, DType::Q3K => 11, DType::Q4K => 12, DType::Q5K => 13,
            DType::Q6K => 14, DType::Q8K => 15, DType::IQ2XXS => 16, DType::IQ2XS => 17, DType::IQ3XXS => 18,
            DType::IQ1S => 19, DType::IQ4NL => 20, DType::IQ3S => 21, DType::IQ2S => 22, DType::IQ4XS => 23,
            DType::I8 => 24, DType::I16 => 25, DType::I32 => 26, DType::I64 => 27, DType::F64 => 28, DType::IQ1M => 29,
            DType::BF16 => 30, DType::TQ1_0 => 34, DType::TQ2_0 => 35, DType::MXFP4 => 39, DType::NVFP4 => 40,
            DType::Q1_0 => 41, DType::Q2_0 => 42,
            DType::F8E4M3 | DType::F8E5M2 | DType::U64 | DType::U32 | DType::U16 | DType::U8 | DType::Bool => return None,
        })
    }

    /// The type's customary name, such as `Q4_K`.
    #[rustfmt::skip]
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "F64", DType::F32 => "F32", DType::F16 => "F16", DType::BF16 => "BF16",
            DType::F8E4M3 => "F8_E4M3", DType::F8E5M2 => "F8_E5M2", DType::I64 => "I64", DType::I32 => "I32",
            DType::I16 => "I16", DType::I8 => "I8", DType::U64 => "U64", DType::U32 => "U32", DType::U16 => "U16",
            DType::U8 => "U8", DType::Bool => "BOOL", DType::Q4_0 => "Q4_0", DType::Q4_1 => "Q4_1",
            DType::Q5_0 => "Q5_0", DType::Q5_1 => "Q5_1", DType::Q8_0 => "Q8_0", DType::Q8_1 => "Q8_1",
            DType::Q2K => "Q2_K", DType::Q3K => "Q3_K", DType::Q4K => "Q4_K", DType::Q5K => "Q5_K",
            DType::Q6K => "Q6_K", DType::Q8K => "Q8_K", DType::IQ1S => "IQ1_S", DType::IQ1M => "IQ1_M",
            DType::IQ2XXS => "IQ2_XXS", DType::IQ2XS => "IQ2_XS", DType::IQ2S => "IQ2_S", DType::IQ3XXS => "IQ3_XXS",
            DType::IQ3S => "IQ3_S", DType::IQ4NL => "IQ4_NL", DType::IQ4XS => "IQ4_XS", DType::TQ1_0 => "TQ1_0",
            DType::TQ2_0 => "TQ2_0", DType::MXFP4 => "MXFP4", DType::NVFP4 => "NVFP4", DType::Q1_0 => "Q1_0",
            DType::Q2_0 => "Q2_0",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ggml_numbers_go_both_ways() {
        let known: Vec<u32> = (0..200).filter(|&id| DType::from_ggml(id).is_some()).collect();
        assert_eq!(known.len(), 35);
        for id in known {
            assert_eq!(DType::from_ggml(id).and_then(DType::ggml_id), Some(id));
        }
        assert_eq!(DType::ALL.iter().filter(|d| d.ggml_id().is_some()).count(), 35);
    }
}
