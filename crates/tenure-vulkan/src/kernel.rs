//! The kernels: `kernels/vulkan/*.comp`, compiled and checked in under `kernels/prebuilt/vulkan`.

use std::fmt;

use crate::devices::Features;

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    Embed,
    RmsNorm,
    /// Products of few rows.
    MatVec,
    /// Products of many rows.
    MatMul,
    /// The same by cooperative matrices.
    MatMulCooperative,
    Rope,
    KvStore,
    /// Row by row.
    Attention,
    /// Joins parts of rows' positions.
    AttentionJoin,
    /// Several rows of a head at a time, which share what they read of the cache.
    AttentionRows,
    Glu,
    Add,
    Scale,
    Softcap,
    TakeRows,
    Copy,
    /// The largest logits of a part of a row, or of all its parts.
    TopK,
}

/// Which variants of the kernels a device runs. Every kernel has a plain one; the fastest that is there is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KernelSet {
    /// Those that every device with Vulkan 1.1 can run.
    Plain,
    /// Sums and maxima of workgroups by arithmetic across subgroups, of whatever size.
    Subgroup,
    /// Those, and products of many rows by cooperative matrices.
    Cooperative,
}

impl KernelSet {
    /// The fastest set that a device with these features can run.
    pub(crate) const fn of(features: &Features) -> KernelSet {
        match (features.subgroup_arithmetic, features.cooperative_matrix) {
            (true, Some(_)) => KernelSet::Cooperative,
            (true, None) => KernelSet::Subgroup,
            (false, _) => KernelSet::Plain,
        }
    }
}

impl fmt::Display for KernelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            KernelSet::Plain => "plain",
            KernelSet::Subgroup => "subgroup",
            KernelSet::Cooperative => "cooperative",
        })
    }
}

/// What one workgroup covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Along the columns (features, heads, groups).
    pub(crate) columns: u32,
    /// Along the rows.
    pub(crate) rows: u32,
}

/// Push constants before a kernel's own: the beginning of each binding, and which rows.
pub(crate) const COMMON_WORDS: usize = 7;
/// Words of push constants: what every device has.
pub(crate) const PUSH_WORDS: usize = 32;
/// The largest head of [`Kernel::Attention`], whose query lies in shared memory.
pub(crate) const MOST_HEAD: usize = 2048;
/// The largest head of [`Kernel::AttentionRows`], whose queries of eight rows lie there, beside 5184 bytes.
pub(crate) const MOST_HEAD_OF_ROWS: usize = (16_384 - 5184) / (8 * size_of::<f32>());
/// Bindings a kernel has at most, so that every device can bind them together with the step's inputs.
pub(crate) const MOST_BINDINGS: usize = 4;

impl Kernel {
    /// Every kernel.
    #[cfg(test)]
    pub(crate) const ALL: [Kernel; 17] = [
        Kernel::Embed,
        Kernel::RmsNorm,
        Kernel::MatVec,
        Kernel::MatMul,
        Kernel::MatMulCooperative,
        Kernel::Rope,
        Kernel::KvStore,
        Kernel::Attention,
        Kernel::AttentionJoin,
        Kernel::AttentionRows,
        Kernel::Glu,
        Kernel::Add,
        Kernel::Scale,
        Kernel::Softcap,
        Kernel::TakeRows,
        Kernel::Copy,
        Kernel::TopK,
    ];

    /// Its name: the stem of its file.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kernel::Embed => "embed",
            Kernel::RmsNorm => "rms_norm",
            Kernel::MatVec => "matvec",
            Kernel::MatMul => "matmul",
            Kernel::MatMulCooperative => "matmul_cooperative",
            Kernel::Rope => "rope",
            Kernel::KvStore => "kv_store",
            Kernel::Attention => "attention",
            Kernel::AttentionJoin => "attention_join",
            Kernel::AttentionRows => "attention_rows",
            Kernel::Glu => "glu",
            Kernel::Add => "add",
            Kernel::Scale => "scale",
            Kernel::Softcap => "softcap",
            Kernel::TakeRows => "take_rows",
            Kernel::Copy => "copy",
            Kernel::TopK => "top_k",
        }
    }

    /// Its SPIR-V: of the fastest variant there is of it among those.
    pub(crate) const fn code(self, kernels: KernelSet) -> &'static [u8] {
        match kernels {
            KernelSet::Cooperative | KernelSet::Subgroup => self.with_subgroups(),
            KernelSet::Plain => self.plain(),
        }
    }

    const fn with_subgroups(self) -> &'static [u8] {
        match self {
            Kernel::RmsNorm => include_bytes!("../../../kernels/prebuilt/vulkan/rms_norm.subgroup.spv"),
            Kernel::MatVec => include_bytes!("../../../kernels/prebuilt/vulkan/matvec.subgroup.spv"),
            Kernel::Attention => include_bytes!("../../../kernels/prebuilt/vulkan/attention.subgroup.spv"),
            Kernel::AttentionRows => include_bytes!("../../../kernels/prebuilt/vulkan/attention_rows.subgroup.spv"),
            Kernel::Embed
            | Kernel::MatMul
            | Kernel::MatMulCooperative
            | Kernel::Rope
            | Kernel::KvStore
            | Kernel::AttentionJoin
            | Kernel::Glu
            | Kernel::Add
            | Kernel::Scale
            | Kernel::Softcap
            | Kernel::TakeRows
            | Kernel::Copy
            | Kernel::TopK => self.plain(),
        }
    }

    const fn plain(self) -> &'static [u8] {
        match self {
            Kernel::Embed => include_bytes!("../../../kernels/prebuilt/vulkan/embed.spv"),
            Kernel::RmsNorm => include_bytes!("../../../kernels/prebuilt/vulkan/rms_norm.spv"),
            Kernel::MatVec => include_bytes!("../../../kernels/prebuilt/vulkan/matvec.spv"),
            Kernel::MatMul => include_bytes!("../../../kernels/prebuilt/vulkan/matmul.spv"),
            Kernel::MatMulCooperative => include_bytes!("../../../kernels/prebuilt/vulkan/matmul_cooperative.spv"),
            Kernel::Rope => include_bytes!("../../../kernels/prebuilt/vulkan/rope.spv"),
            Kernel::KvStore => include_bytes!("../../../kernels/prebuilt/vulkan/kv_store.spv"),
            Kernel::Attention => include_bytes!("../../../kernels/prebuilt/vulkan/attention.spv"),
            Kernel::AttentionJoin => include_bytes!("../../../kernels/prebuilt/vulkan/attention_join.spv"),
            Kernel::AttentionRows => include_bytes!("../../../kernels/prebuilt/vulkan/attention_rows.spv"),
            Kernel::Glu => include_bytes!("../../../kernels/prebuilt/vulkan/glu.spv"),
            Kernel::Add => include_bytes!("../../../kernels/prebuilt/vulkan/add.spv"),
            Kernel::Scale => include_bytes!("../../../kernels/prebuilt/vulkan/scale.spv"),
            Kernel::Softcap => include_bytes!("../../../kernels/prebuilt/vulkan/softcap.spv"),
            Kernel::TakeRows => include_bytes!("../../../kernels/prebuilt/vulkan/take_rows.spv"),
            Kernel::Copy => include_bytes!("../../../kernels/prebuilt/vulkan/copy.spv"),
            Kernel::TopK => include_bytes!("../../../kernels/prebuilt/vulkan/top_k.spv"),
        }
    }

    /// Its storage buffers.
    pub(crate) const fn bindings(self) -> usize {
        match self {
            Kernel::MatVec | Kernel::MatMul | Kernel::MatMulCooperative => 4,
            Kernel::RmsNorm
            | Kernel::Rope
            | Kernel::KvStore
            | Kernel::Attention
            | Kernel::AttentionRows
            | Kernel::Glu
            | Kernel::Add => 3,
            Kernel::Embed
            | Kernel::AttentionJoin
            | Kernel::Scale
            | Kernel::Softcap
            | Kernel::TakeRows
            | Kernel::Copy
            | Kernel::TopK => 2,
        }
    }

    /// Whether it reads tokens, positions, block tables, output rows or what is wanted of them.
    pub(crate) const fn reads_inputs(self) -> bool {
        match self {
            Kernel::Embed
            | Kernel::Rope
            | Kernel::KvStore
            | Kernel::Attention
            | Kernel::AttentionJoin
            | Kernel::AttentionRows
            | Kernel::TakeRows
            | Kernel::Copy
            | Kernel::TopK => true,
            Kernel::RmsNorm
            | Kernel::MatVec
            | Kernel::MatMul
            | Kernel::MatMulCooperative
            | Kernel::Glu
            | Kernel::Add
            | Kernel::Scale
            | Kernel::Softcap => false,
        }
    }

    /// What one workgroup covers.
    pub(crate) const fn tile(self) -> Tile {
        match self {
            Kernel::MatVec => Tile { columns: 8, rows: 4 },
            Kernel::MatMul => Tile { columns: 64, rows: 32 },
            Kernel::MatMulCooperative => Tile { columns: 64, rows: 128 },
            Kernel::RmsNorm | Kernel::Attention | Kernel::AttentionJoin | Kernel::TopK => Tile { columns: 1, rows: 1 },
            Kernel::AttentionRows => Tile { columns: 1, rows: 8 },
            Kernel::Rope | Kernel::KvStore => Tile { columns: 128, rows: 1 },
            Kernel::Embed
            | Kernel::Glu
            | Kernel::Add
            | Kernel::Scale
            | Kernel::Softcap
            | Kernel::TakeRows
            | Kernel::Copy => Tile { columns: 512, rows: 1 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // SPIR-V's numbers of capabilities.
    const SHADER: u32 = 1;
    const GROUP_NON_UNIFORM: u32 = 61;
    const GROUP_NON_UNIFORM_ARITHMETIC: u32 = 63;
    const FLOAT16: u32 = 9;
    const VULKAN_MEMORY_MODEL: u32 = 5345;
    const COOPERATIVE_MATRIX: u32 = 6022;

    /// The operands of OpCapability, which come before all other instructions.
    fn capabilities(words: &[u32]) -> Vec<u32> {
        const OP_CAPABILITY: u32 = 2 << 16 | 17;
        words[5..].chunks(2).take_while(|pair| pair[0] == OP_CAPABILITY).map(|pair| pair[1]).collect()
    }

    #[test]
    fn every_kernel_is_spir_v_for_vulkan_1_1_and_binds_what_every_device_can() {
        for kernel in Kernel::ALL {
            for kernels in [KernelSet::Plain, KernelSet::Subgroup] {
                let code = kernel.code(kernels).as_chunks().0;
                let words: Vec<u32> = code.iter().map(|&word| u32::from_le_bytes(word)).collect();
                assert_eq!(words[0], 0x0723_0203, "{kernel:?} is no SPIR-V");
                assert!(words[1] <= 0x0001_0300, "{kernel:?} is SPIR-V {:#x}", words[1]);
                let asked = capabilities(&words);
                let allowed: &[u32] = match (kernel, kernels) {
                    // In the set of its name only.
                    (Kernel::MatMulCooperative, _) => &[
                        SHADER,
                        FLOAT16,
                        GROUP_NON_UNIFORM,
                        GROUP_NON_UNIFORM_ARITHMETIC,
                        VULKAN_MEMORY_MODEL,
                        COOPERATIVE_MATRIX,
                    ],
                    (_, KernelSet::Plain) => &[SHADER],
                    (_, KernelSet::Subgroup | KernelSet::Cooperative) => {
                        &[SHADER, GROUP_NON_UNIFORM, GROUP_NON_UNIFORM_ARITHMETIC]
                    }
                };
                assert!(asked.iter().all(|one| allowed.contains(one)), "{kernel:?} asks for {asked:?}");
            }
            assert!(kernel.bindings() + usize::from(kernel.reads_inputs()) <= MOST_BINDINGS, "{kernel:?}");
        }
    }
}
