//! Flat hash tables with open addressing, as large as the list they are made for.

use std::hash::{BuildHasher, RandomState};

use crate::error::{TokenizerError, try_vec};

/// Finds numbers by byte strings that the caller keeps.
#[derive(Debug)]
pub(crate) struct ByteTable {
    seed: u64,
    mask: usize,
    /// The upper half of the hash, and the number plus one; 0: free.
    slots: Vec<u64>,
}

impl ByteTable {
    /// A table for at most `len` entries.
    pub(crate) fn new(len: usize) -> Result<Self, TokenizerError> {
        let capacity = capacity(len);
        let mut slots = try_vec(capacity, "the token table")?;
        slots.resize(capacity, 0);
        Ok(ByteTable { seed: seed(), mask: capacity - 1, slots })
    }

    /// The number whose string is `bytes`; `string` gives the string of a number.
    pub(crate) fn find<'s>(&self, bytes: &[u8], string: impl Fn(u32) -> &'s [u8]) -> Option<u32> {
        let hash = hash_bytes(self.seed, bytes);
        let mut at = hash as usize & self.mask;
        loop {
            let slot = *self.slots.get(at)?;
            let number = (slot as u32).checked_sub(1)?;
            if slot >> 32 == hash >> 32 && string(number) == bytes {
                return Some(number);
            }
            at = (at + 1) & self.mask;
        }
    }

    /// Enters `number` under `bytes`, unless another number is there already.
    pub(crate) fn insert<'s>(&mut self, bytes: &[u8], number: u32, string: impl Fn(u32) -> &'s [u8]) {
        let hash = hash_bytes(self.seed, bytes);
        let mut at = hash as usize & self.mask;
        while let Some(slot) = self.slots.get_mut(at) {
            match (*slot as u32).checked_sub(1) {
                None => {
                    *slot = hash >> 32 << 32 | (u64::from(number) + 1);
                    return;
                }
                Some(other) if *slot >> 32 == hash >> 32 && string(other) == bytes => return,
                Some(_) => at = (at + 1) & self.mask,
            }
        }
    }
}

/// Which token a pair of tokens makes, and how early.
#[derive(Debug)]
pub(crate) struct PairTable {
    seed: u64,
    mask: usize,
    slots: Vec<PairSlot>,
}

#[derive(Debug, Clone, Copy)]
struct PairSlot {
    left: u32,
    right: u32,
    merge: Merge,
}

/// A merge: the lower the rank, the earlier it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) rank: u32,
    pub(crate) token: u32,
}

const FREE: PairSlot = PairSlot { left: u32::MAX, right: u32::MAX, merge: Merge { rank: u32::MAX, token: u32::MAX } };

impl PairTable {
    /// A table for at most `len` pairs.
    pub(crate) fn new(len: usize) -> Result<Self, TokenizerError> {
        let capacity = capacity(len);
        let mut slots = try_vec(capacity, "the merge table")?;
        slots.resize(capacity, FREE);
        Ok(PairTable { seed: seed(), mask: capacity - 1, slots })
    }

    /// The merge of `left` and `right`.
    pub(crate) fn find(&self, left: u32, right: u32) -> Option<Merge> {
        let mut at = hash_pair(self.seed, left, right) as usize & self.mask;
        loop {
            let slot = self.slots.get(at)?;
            if slot.left == left && slot.right == right {
                return (slot.merge.rank != u32::MAX).then_some(slot.merge);
            }
            if slot.merge.rank == u32::MAX {
                return None;
            }
            at = (at + 1) & self.mask;
        }
    }

    /// Enters the merge of `left` and `right`, unless there is an earlier one.
    pub(crate) fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        let mut at = hash_pair(self.seed, left, right) as usize & self.mask;
        while let Some(slot) = self.slots.get_mut(at) {
            if slot.merge.rank == u32::MAX {
                *slot = PairSlot { left, right, merge };
                return;
            }
            if slot.left == left && slot.right == right {
                return;
            }
            at = (at + 1) & self.mask;
        }
    }
}

/// A power of two that leaves at least a quarter of the table free, so that every probe ends.
fn capacity(len: usize) -> usize {
    (len + len / 3 + 8).next_power_of_two()
}

/// Each table has its own seed, so that no file can be made whose tokens all collide.
fn seed() -> u64 {
    RandomState::new().hash_one(0u8) | 1
}

fn hash_pair(seed: u64, left: u32, right: u32) -> u64 {
    fold(seed ^ (u64::from(left) << 32 | u64::from(right)), 0x9e37_79b9_7f4a_7c15 ^ seed.rotate_left(17))
}

fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = seed ^ bytes.len() as u64;
    for word in words {
        hash = fold(hash ^ u64::from_le_bytes(*word), 0x9e37_79b9_7f4a_7c15);
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    fold(hash ^ u64::from_le_bytes(last), 0xd6e8_feb8_6659_fd93 ^ seed.rotate_left(29))
}

/// The two halves of the product, mixed.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_found_and_the_first_of_two_equal_ones_stays() {
        let strings: Vec<Vec<u8>> = (0..5000u32).map(|i| format!("token {}", i % 4000).into_bytes()).collect();
        let string = |i: u32| strings[i as usize].as_slice();
        let mut table = ByteTable::new(strings.len()).unwrap();
        for i in 0..5000 {
            table.insert(string(i), i, string);
        }
        for i in 0..5000 {
            assert_eq!(table.find(string(i), string), Some(i % 4000));
        }
        assert_eq!(table.find(b"token", string), None);
        assert_eq!(table.find(b"", string), None);
    }

    #[test]
    fn pairs_are_found_and_the_first_of_two_equal_ones_stays() {
        let mut table = PairTable::new(3000).unwrap();
        for i in 0..3000u32 {
            table.insert(i % 2000, 7, Merge { rank: i, token: i });
        }
        for i in 0..2000 {
            assert_eq!(table.find(i, 7), Some(Merge { rank: i, token: i }));
            assert_eq!(table.find(7, i), (i == 7).then_some(Merge { rank: 7, token: 7 }));
        }
        assert_eq!(PairTable::new(0).unwrap().find(u32::MAX, u32::MAX), None);
    }
}
