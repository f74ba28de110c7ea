//! The kernels: `kernels/vulkan/*.comp`, compiled and checked in under `kernels/prebuilt/vulkan`.

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    Embed,
    RmsNorm,
    /// Products of few rows.
    MatVec,
    /// Products of many rows.
    MatMul,
    Rope,
    KvStore,
    /// Row by row.
    Attention,
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
/// The largest head of [`Kernel::AttentionRows`].
pub(crate) const MOST_HEAD_OF_ROWS: u32 = 352;
/// Bindings a kernel has at most, so that every device can bind them together with the step's inputs.
pub(crate) const MOST_BINDINGS: usize = 4;

impl Kernel {
    /// Every kernel.
    #[cfg(test)]
    pub(crate) const ALL: [Kernel; 15] = [
        Kernel::Embed,
        Kernel::RmsNorm,
        Kernel::MatVec,
        Kernel::MatMul,
        Kernel::Rope,
        Kernel::KvStore,
        Kernel::Attention,
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
            Kernel::Rope => "rope",
            Kernel::KvStore => "kv_store",
            Kernel::Attention => "attention",
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

    /// Its SPIR-V.
    pub(crate) const fn code(self) -> &'static [u8] {
        match self {
            Kernel::Embed => include_bytes!("../../../kernels/prebuilt/vulkan/embed.spv"),
            Kernel::RmsNorm => include_bytes!("../../../kernels/prebuilt/vulkan/rms_norm.spv"),
            Kernel::MatVec => include_bytes!("../../../kernels/prebuilt/vulkan/matvec.spv"),
            Kernel::MatMul => include_bytes!("../../../kernels/prebuilt/vulkan/matmul.spv"),
            Kernel::Rope => include_bytes!("../../../kernels/prebuilt/vulkan/rope.spv"),
            Kernel::KvStore => include_bytes!("../../../kernels/prebuilt/vulkan/kv_store.spv"),
            Kernel::Attention => include_bytes!("../../../kernels/prebuilt/vulkan/attention.spv"),
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
            Kernel::MatVec | Kernel::MatMul => 4,
            Kernel::RmsNorm
            | Kernel::Rope
            | Kernel::KvStore
            | Kernel::Attention
            | Kernel::AttentionRows
            | Kernel::Glu
            | Kernel::Add => 3,
            Kernel::Embed | Kernel::Scale | Kernel::Softcap | Kernel::TakeRows | Kernel::Copy | Kernel::TopK => 2,
        }
    }

    /// Whether it reads tokens, positions, block tables, output rows or what is wanted of them.
    pub(crate) const fn reads_inputs(self) -> bool {
        match self {
            Kernel::Embed
            | Kernel::Rope
            | Kernel::KvStore
            | Kernel::Attention
            | Kernel::AttentionRows
            | Kernel::TakeRows
            | Kernel::Copy
            | Kernel::TopK => true,
            Kernel::RmsNorm
            | Kernel::MatVec
            | Kernel::MatMul
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
            Kernel::RmsNorm | Kernel::Attention | Kernel::TopK => Tile { columns: 1, rows: 1 },
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

    #[test]
    fn every_kernel_is_spir_v_for_vulkan_1_1_and_binds_what_every_device_can() {
        for kernel in Kernel::ALL {
            let words: Vec<u32> = kernel.code().as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
            assert_eq!(words[0], 0x0723_0203, "{kernel:?} is no SPIR-V");
            assert!(words[1] <= 0x0001_0300, "{kernel:?} is SPIR-V {:#x}", words[1]);
            assert!(kernel.bindings() + usize::from(kernel.reads_inputs()) <= MOST_BINDINGS, "{kernel:?}");
        }
    }
}
