//! How weights and the KV cache lie in this backend's memory: the host's side of `kernels/vulkan/quant.glsl`.
//!
//! Everything is made of 32-bit words, so that a device without 8 and 16 bit storage can read it. A row of a weight is
//! the *bodies* of its blocks, each whole words, and then a *tail* with the one small field that would break them: the
//! scale of blocks of 18, 22, 34, 110 and 210 bytes, the exponent of those of 17.

use tenure_graph::{KV_BLOCK, KvLayer, KvType, WeightUse};
use tenure_tensor::{ByteSize, DType, uncomputable};

/// Bytes of a word.
pub(crate) const WORD: u64 = 4;
/// A row of a weight begins at a multiple of so many bytes, for loads of four words.
const ROW_ALIGN: u64 = 16;

/// Where the parts of a file's block go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockLayout {
    /// Elements of a block.
    pub(crate) elements: usize,
    /// Bytes of a block in the file.
    pub(crate) file: usize,
    /// The first byte of the body, and its length.
    pub(crate) body: (usize, usize),
    /// The first byte of what goes into the tail, and its length.
    pub(crate) tail: (usize, usize),
}

impl BlockLayout {
    /// The layout of a type, if the kernels know it.
    pub(crate) const fn of(dtype: DType) -> Option<BlockLayout> {
        let (elements, file) = (dtype.block_len(), dtype.block_bytes());
        let (body, tail) = match dtype {
            DType::F32
            | DType::F16
            | DType::BF16
            | DType::Q4_1
            | DType::Q5_1
            | DType::Q2K
            | DType::Q4K
            | DType::Q5K
            | DType::IQ4XS => ((0, file), (0, 0)),
            DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4NL => ((2, file - 2), (0, 2)),
            DType::Q3K | DType::Q6K => ((0, file - 2), (file - 2, 2)),
            DType::MXFP4 => ((1, file - 1), (0, 1)),
            DType::F8E4M3 | DType::F8E5M2 | uncomputable!() => return None,
        };
        Some(BlockLayout { elements, file, body, tail })
    }

    /// Bytes of a row on the device.
    pub(crate) const fn row_bytes(self, cols: usize) -> u64 {
        let blocks = (cols / self.elements) as u64;
        let bytes = (blocks * self.body.1 as u64).next_multiple_of(WORD) + blocks * self.tail.1 as u64;
        bytes.next_multiple_of(ROW_ALIGN)
    }

    /// Lays one row of the file out for the device. `row` is zero where nothing is written.
    pub(crate) fn lay(self, file: &[u8], row: &mut [u8]) {
        let (body, tail) = (self.body, self.tail);
        if tail.1 == 0 {
            row[..file.len()].copy_from_slice(file);
            row[file.len()..].fill(0);
            return;
        }
        let (bodies, tails) = row.split_at_mut(file.len() / self.file * body.1);
        let mut used = 0;
        for (at, block) in file.chunks_exact(self.file).enumerate() {
            bodies[at * body.1..][..body.1].copy_from_slice(&block[body.0..body.0 + body.1]);
            tails[used..used + tail.1].copy_from_slice(&block[tail.0..tail.0 + tail.1]);
            used += tail.1;
        }
        tails[used..].fill(0);
    }
}

/// The size of a weight on the device; `None` when its type has no kernel, or it overflows.
pub(crate) fn weight_bytes(weight: &WeightUse) -> Option<u64> {
    if weight.is_vector() {
        return (weight.cols() as u64).checked_mul(WORD);
    }
    BlockLayout::of(weight.spec.dtype)?.row_bytes(weight.cols()).checked_mul(weight.rows() as u64)
}

/// How the cache of one layer lies: for each head the keys of all blocks, then the values; position after position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvLayout {
    /// Words of one position of one head's keys, or values.
    pub(crate) position_words: u64,
    /// Heads.
    pub(crate) heads: u64,
}

impl KvLayout {
    /// The layout of a layer; `None` when it cannot be held in that type.
    pub(crate) fn of(layer: KvLayer, kv: KvType) -> Option<KvLayout> {
        let dim = layer.head_dim as u64;
        let position_words = match kv {
            KvType::F32 => dim,
            KvType::F16 => dim.div_ceil(2),
            KvType::Q8_0 if layer.head_dim.is_multiple_of(GROUP) => dim / 4 + (dim / GROUP as u64).div_ceil(2),
            KvType::Q8_0 => return None,
        };
        (dim > 0).then_some(KvLayout { position_words, heads: layer.heads as u64 })
    }

    /// Bytes of one block of one head, keys and values.
    const fn head_block_bytes(self) -> u64 {
        2 * KV_BLOCK as u64 * self.position_words * WORD
    }

    /// Bytes of one block.
    pub(crate) fn block_bytes(self) -> ByteSize {
        ByteSize::new(self.head_block_bytes()).times(self.heads)
    }

    /// Bytes of one head's cache.
    pub(crate) fn head_bytes(self, blocks: usize) -> u64 {
        self.head_block_bytes().saturating_mul(blocks as u64)
    }
}

/// Elements that share a scale in a q8_0 cache.
const GROUP: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_whole_words_and_nothing_of_a_block_is_lost() {
        for (dtype, layout) in DType::ALL.into_iter().filter_map(|dtype| Some((dtype, BlockLayout::of(dtype)?))) {
            if dtype.is_block() {
                assert_eq!(layout.body.1 % 4, 0, "{dtype}");
            }
            assert_eq!(layout.body.1 + layout.tail.1, layout.file, "{dtype}");
            let blocks = 3;
            let file: Vec<u8> = (0..layout.file * blocks).map(|i| (i % 251 + 1) as u8).collect();
            let mut row = vec![0xff; layout.row_bytes(layout.elements * blocks) as usize];
            layout.lay(&file, &mut row);
            for (block, bytes) in file.chunks_exact(layout.file).enumerate() {
                let body = &row[block * layout.body.1..][..layout.body.1];
                assert_eq!(body, &bytes[layout.body.0..][..layout.body.1], "{dtype}");
                let tail = &row[blocks * layout.body.1 + block * layout.tail.1..][..layout.tail.1];
                assert_eq!(tail, &bytes[layout.tail.0..][..layout.tail.1], "{dtype}");
            }
            assert!(row[file.len()..].iter().all(|&byte| byte == 0), "{dtype}: the end is zero");
        }
    }

    #[test]
    fn every_type_that_files_of_text_models_have_has_a_layout() {
        for dtype in DType::ALL {
            let wanted = dtype.is_computable() && dtype.ggml_id().is_some();
            assert_eq!(BlockLayout::of(dtype).is_some(), wanted, "{dtype}");
        }
    }

    #[test]
    fn a_cache_position_is_whole_words() {
        let words = |head_dim, kv| KvLayout::of(KvLayer { heads: 1, head_dim }, kv).map(|layout| layout.position_words);
        assert_eq!(words(33, KvType::F32), Some(33));
        assert_eq!(words(33, KvType::F16), Some(17));
        assert_eq!(words(33, KvType::Q8_0), None);
        assert_eq!(words(64, KvType::Q8_0), Some(17));
        assert_eq!(words(96, KvType::Q8_0), Some(26));
    }
}
