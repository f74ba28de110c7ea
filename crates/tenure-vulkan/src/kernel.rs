//! The kernels: `kernels/vulkan/*.comp`, compiled and checked in under `kernels/prebuilt/vulkan`.

use std::fmt;

use crate::devices::Features;
use crate::layout::WORD;

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    Embed,
    RmsNorm,
    /// The same, and what [`Kernel::RowsToI16`] makes of its result.
    RmsNormI16,
    /// Rows of activations as integers of 16 bits, for integer dot products.
    RowsToI16,
    /// Rows of activations in f16, for cooperative matrices.
    RowsToF16,
    /// Products of few rows.
    MatVec,
    /// The same by integer dot products.
    MatVecInteger,
    /// Products of many rows.
    MatMul,
    /// The same by integer dot products.
    MatMulInteger,
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
    /// The same, and what [`Kernel::RowsToI16`] makes of its result.
    GluI16,
    Add,
    Scale,
    Softcap,
    TakeRows,
    Copy,
    /// The largest logits of a part of a row, or of all its parts.
    TopK,
}

/// Which variants of the kernels a device runs beside those that every device with Vulkan 1.1 can. The fastest of those
/// that are there is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct KernelSet {
    /// Sums and maxima of workgroups by arithmetic across subgroups, of whatever size.
    pub subgroup: bool,
    /// Products of quantised weights by integer dot products; with `subgroup` only.
    pub integer: bool,
    /// Products of many rows by cooperative matrices; with `subgroup` only.
    pub cooperative: bool,
}

impl KernelSet {
    /// Those that every device can run.
    pub const PLAIN: KernelSet = KernelSet { subgroup: false, integer: false, cooperative: false };

    /// All that a device with these features can run.
    pub(crate) const fn of(features: &Features) -> KernelSet {
        let subgroup = features.subgroup_arithmetic;
        KernelSet {
            subgroup,
            integer: subgroup && features.integer_dot && features.storage_16bit && features.storage_8bit,
            cooperative: subgroup && features.cooperative_matrix.is_some() && features.storage_16bit,
        }
    }
}

impl fmt::Display for KernelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [(self.subgroup, "subgroup"), (self.integer, "integer"), (self.cooperative, "cooperative")];
        let names: Vec<&str> = named.iter().filter(|(has, _)| *has).map(|&(_, name)| name).collect();
        f.pad(&if names.is_empty() { "plain".to_owned() } else { names.join("+") })
    }
}

/// How a kernel for products reads activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowForm {
    /// As they are.
    F32,
    /// As [`Kernel::RowsToI16`] leaves them.
    I16,
    /// As [`Kernel::RowsToF16`] leaves them.
    F16,
}

impl RowForm {
    /// Bytes of a row of so many elements, of which blocks are whole.
    pub(crate) const fn row_bytes(self, cols: u64) -> u64 {
        WORD * match self {
            RowForm::F32 => cols,
            // For 16 elements two bytes each, a scale, a sum and two words that are not used.
            RowForm::I16 => cols / 16 * 12,
            // Four words before the elements, which end with a whole eight.
            RowForm::F16 => 4 + cols.div_ceil(8) * 4,
        }
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
    pub(crate) const ALL: [Kernel; 23] = [
        Kernel::Embed,
        Kernel::RmsNorm,
        Kernel::RmsNormI16,
        Kernel::RowsToI16,
        Kernel::RowsToF16,
        Kernel::MatVec,
        Kernel::MatVecInteger,
        Kernel::MatMul,
        Kernel::MatMulInteger,
        Kernel::MatMulCooperative,
        Kernel::Rope,
        Kernel::KvStore,
        Kernel::Attention,
        Kernel::AttentionJoin,
        Kernel::AttentionRows,
        Kernel::Glu,
        Kernel::GluI16,
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
            Kernel::RmsNormI16 => "rms_norm.i16",
            Kernel::RowsToI16 => "rows_to_i16",
            Kernel::RowsToF16 => "rows_to_f16",
            Kernel::MatVec => "matvec",
            Kernel::MatVecInteger => "matvec_integer",
            Kernel::MatMul => "matmul",
            Kernel::MatMulInteger => "matmul_integer",
            Kernel::MatMulCooperative => "matmul_cooperative",
            Kernel::Rope => "rope",
            Kernel::KvStore => "kv_store",
            Kernel::Attention => "attention",
            Kernel::AttentionJoin => "attention_join",
            Kernel::AttentionRows => "attention_rows",
            Kernel::Glu => "glu",
            Kernel::GluI16 => "glu.i16",
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
        if kernels.subgroup { self.with_subgroups() } else { self.plain() }
    }

    /// Whether it multiplies activations by a weight.
    pub(crate) const fn is_product(self) -> bool {
        matches!(
            self,
            Kernel::MatVec | Kernel::MatVecInteger | Kernel::MatMul | Kernel::MatMulInteger | Kernel::MatMulCooperative
        )
    }

    const fn with_subgroups(self) -> &'static [u8] {
        match self {
            Kernel::RmsNorm => include_bytes!("../../../kernels/prebuilt/vulkan/rms_norm.subgroup.spv"),
            Kernel::MatVec => include_bytes!("../../../kernels/prebuilt/vulkan/matvec.subgroup.spv"),
            Kernel::Attention => include_bytes!("../../../kernels/prebuilt/vulkan/attention.subgroup.spv"),
            Kernel::AttentionRows => include_bytes!("../../../kernels/prebuilt/vulkan/attention_rows.subgroup.spv"),
            Kernel::Embed
            | Kernel::RmsNormI16
            | Kernel::RowsToI16
            | Kernel::RowsToF16
            | Kernel::MatVecInteger
            | Kernel::MatMul
            | Kernel::MatMulInteger
            | Kernel::MatMulCooperative
            | Kernel::Rope
            | Kernel::KvStore
            | Kernel::AttentionJoin
            | Kernel::Glu
            | Kernel::GluI16
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
            Kernel::RmsNormI16 => include_bytes!("../../../kernels/prebuilt/vulkan/rms_norm.i16.spv"),
            Kernel::RowsToI16 => include_bytes!("../../../kernels/prebuilt/vulkan/rows_to_i16.spv"),
            Kernel::RowsToF16 => include_bytes!("../../../kernels/prebuilt/vulkan/rows_to_f16.spv"),
            Kernel::MatVec => include_bytes!("../../../kernels/prebuilt/vulkan/matvec.spv"),
            Kernel::MatVecInteger => include_bytes!("../../../kernels/prebuilt/vulkan/matvec_integer.spv"),
            Kernel::MatMul => include_bytes!("../../../kernels/prebuilt/vulkan/matmul.spv"),
            Kernel::MatMulInteger => include_bytes!("../../../kernels/prebuilt/vulkan/matmul_integer.spv"),
            Kernel::MatMulCooperative => include_bytes!("../../../kernels/prebuilt/vulkan/matmul_cooperative.spv"),
            Kernel::Rope => include_bytes!("../../../kernels/prebuilt/vulkan/rope.spv"),
            Kernel::KvStore => include_bytes!("../../../kernels/prebuilt/vulkan/kv_store.spv"),
            Kernel::Attention => include_bytes!("../../../kernels/prebuilt/vulkan/attention.spv"),
            Kernel::AttentionJoin => include_bytes!("../../../kernels/prebuilt/vulkan/attention_join.spv"),
            Kernel::AttentionRows => include_bytes!("../../../kernels/prebuilt/vulkan/attention_rows.spv"),
            Kernel::Glu => include_bytes!("../../../kernels/prebuilt/vulkan/glu.spv"),
            Kernel::GluI16 => include_bytes!("../../../kernels/prebuilt/vulkan/glu.i16.spv"),
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
            Kernel::RmsNormI16
            | Kernel::GluI16
            | Kernel::MatVec
            | Kernel::MatVecInteger
            | Kernel::MatMul
            | Kernel::MatMulInteger
            | Kernel::MatMulCooperative => 4,
            Kernel::RmsNorm
            | Kernel::Rope
            | Kernel::KvStore
            | Kernel::Attention
            | Kernel::AttentionRows
            | Kernel::Glu
            | Kernel::Add => 3,
            Kernel::Embed
            | Kernel::RowsToI16
            | Kernel::RowsToF16
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
            | Kernel::RmsNormI16
            | Kernel::RowsToI16
            | Kernel::RowsToF16
            | Kernel::MatVec
            | Kernel::MatVecInteger
            | Kernel::MatMul
            | Kernel::MatMulInteger
            | Kernel::MatMulCooperative
            | Kernel::Glu
            | Kernel::GluI16
            | Kernel::Add
            | Kernel::Scale
            | Kernel::Softcap => false,
        }
    }

    /// What one workgroup covers.
    pub(crate) const fn tile(self) -> Tile {
        match self {
            Kernel::MatVec | Kernel::MatVecInteger => Tile { columns: 8, rows: 4 },
            Kernel::MatMul => Tile { columns: 64, rows: 32 },
            Kernel::MatMulInteger => Tile { columns: 64, rows: 64 },
            Kernel::MatMulCooperative => Tile { columns: 64, rows: 128 },
            Kernel::RmsNorm
            | Kernel::RmsNormI16
            | Kernel::RowsToF16
            | Kernel::Attention
            | Kernel::AttentionJoin
            | Kernel::TopK => Tile { columns: 1, rows: 1 },
            Kernel::AttentionRows => Tile { columns: 1, rows: 8 },
            Kernel::Rope | Kernel::KvStore => Tile { columns: 128, rows: 1 },
            Kernel::Embed
            | Kernel::RowsToI16
            | Kernel::Glu
            | Kernel::GluI16
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
    use tenure_tensor::ByteSize;

    use super::*;
    use crate::backend::Caps;
    use crate::devices::{CooperativeMatrix, DeviceInfo, DeviceKind};

    // SPIR-V's numbers of capabilities.
    const SHADER: u32 = 1;
    const GROUP_NON_UNIFORM: u32 = 61;
    const ARITHMETIC: u32 = 63;
    const FLOAT16: u32 = 9;
    const STORAGE_16BIT: u32 = 4433;
    const STORAGE_8BIT: u32 = 4448;
    const PACKED_DOT: u32 = 6018;
    const DOT: u32 = 6019;
    const VULKAN_MEMORY_MODEL: u32 = 5345;
    const COOPERATIVE_MATRIX: u32 = 6022;

    /// The operands of OpCapability, which come before all other instructions.
    fn capabilities(words: &[u32]) -> Vec<u32> {
        const OP_CAPABILITY: u32 = 2 << 16 | 17;
        words[5..].chunks(2).take_while(|pair| pair[0] == OP_CAPABILITY).map(|pair| pair[1]).collect()
    }

    #[test]
    fn every_kernel_is_spir_v_for_vulkan_1_1_and_binds_what_every_device_can() {
        let subgroups = KernelSet { subgroup: true, ..KernelSet::PLAIN };
        for kernel in Kernel::ALL {
            for kernels in [KernelSet::PLAIN, subgroups] {
                let code = kernel.code(kernels).as_chunks().0;
                let words: Vec<u32> = code.iter().map(|&word| u32::from_le_bytes(word)).collect();
                assert_eq!(words[0], 0x0723_0203, "{kernel:?} is no SPIR-V");
                assert!(words[1] <= 0x0001_0300, "{kernel:?} is SPIR-V {:#x}", words[1]);
                let asked = capabilities(&words);
                let more: &[u32] = match (kernel, kernels.subgroup) {
                    // These are in sets with subgroups only.
                    (Kernel::MatMulCooperative, _) => {
                        &[ARITHMETIC, STORAGE_16BIT, FLOAT16, VULKAN_MEMORY_MODEL, COOPERATIVE_MATRIX]
                    }
                    (Kernel::RmsNormI16, _) => &[ARITHMETIC],
                    (Kernel::RowsToF16, _) => &[ARITHMETIC, STORAGE_16BIT, FLOAT16],
                    (Kernel::MatVecInteger, _) => &[ARITHMETIC, STORAGE_8BIT, STORAGE_16BIT, DOT, PACKED_DOT],
                    (Kernel::MatMulInteger, _) => &[STORAGE_8BIT, STORAGE_16BIT, DOT, PACKED_DOT],
                    (_, true) => &[ARITHMETIC],
                    (_, false) => &[],
                };
                let allowed = |one: &u32| {
                    *one == SHADER || more.contains(one) || (*one == GROUP_NON_UNIFORM && more.contains(&ARITHMETIC))
                };
                assert!(asked.iter().all(allowed), "{kernel:?} asks for {asked:?}");
            }
            assert!(kernel.bindings() + usize::from(kernel.reads_inputs()) <= MOST_BINDINGS, "{kernel:?}");
        }
    }

    fn all() -> DeviceInfo {
        DeviceInfo {
            index: 0,
            name: String::new(),
            driver: String::new(),
            api: "1.1.0".to_owned(),
            kind: DeviceKind::Discrete,
            memory: ByteSize::ZERO,
            free: None,
            features: Features {
                timeline_semaphores: true,
                memory_budget: true,
                storage_16bit: true,
                storage_8bit: true,
                float16: true,
                int8: true,
                integer_dot: true,
                integer_dot_accelerated: true,
                cooperative_matrix: Some(CooperativeMatrix { m: 16, n: 16, k: 16, subgroup_size: 32 }),
                subgroup_size: 32,
                subgroup_arithmetic: true,
            },
        }
    }

    #[test]
    fn sets_are_of_what_their_kernels_need() {
        let all = all().features;
        let name = |features| KernelSet::of(&features).to_string();
        assert_eq!(name(all), "subgroup+integer+cooperative");
        assert_eq!(name(Features { storage_8bit: false, ..all }), "subgroup+cooperative");
        assert_eq!(name(Features { integer_dot: false, ..all }), "subgroup+cooperative");
        assert_eq!(name(Features { cooperative_matrix: None, ..all }), "subgroup+integer");
        assert_eq!(name(Features { storage_16bit: false, ..all }), "subgroup");
        assert_eq!(name(Features { subgroup_arithmetic: false, ..all }), "plain");
    }

    #[test]
    fn what_is_not_said_to_be_fast_is_used_where_it_is_asked_for() {
        let gpu = all();
        let slow = Features { integer_dot_accelerated: false, ..gpu.features };
        let processor = DeviceInfo { kind: DeviceKind::Cpu, features: slow, ..gpu.clone() };
        let name = |caps: Caps, info: &DeviceInfo| caps.kernels(info).to_string();
        assert_eq!(name(Caps::default(), &gpu), "subgroup+integer+cooperative");
        assert_eq!(name(Caps::default(), &processor), "subgroup");
        let wanted = |integer_dot, cooperative_matrix| Caps { integer_dot, cooperative_matrix, ..Caps::default() };
        assert_eq!(name(wanted(Some(true), None), &processor), "subgroup+integer");
        assert_eq!(name(wanted(None, Some(true)), &processor), "subgroup+cooperative");
        assert_eq!(name(wanted(Some(false), None), &gpu), "subgroup+cooperative");
        assert_eq!(name(wanted(None, Some(false)), &gpu), "subgroup+integer");
        let plain = Caps { no_subgroup_arithmetic: true, ..wanted(Some(true), Some(true)) };
        assert_eq!(name(plain, &gpu), "plain");
    }
}
