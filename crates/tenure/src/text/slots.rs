//! Sequences and their KV blocks: who holds which block, and what is cached in it.

use tenure_device::{DeviceError, host_room};
use tenure_graph::KV_BLOCK;

/// The KV blocks of a model, shared out to a fixed number of sequences.
///
/// There are as many blocks as all sequences could fill, so a sequence that is open can always grow to the context's
/// length. A sequence that was closed keeps its blocks as a cache of its tokens until it is opened for others. Full
/// blocks may be shared by sequences that begin alike; a shared block is never written.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    /// How many tables name each block.
    references: Vec<u32>,
    free: Vec<u32>,
    /// The tables of all slots, one after the other, as a step wants them.
    tables: Vec<u32>,
    table_len: usize,
    clock: u64,
}

#[derive(Debug)]
struct Slot {
    open: bool,
    /// Tokens whose keys and values are in the blocks.
    tokens: Vec<u32>,
    /// Blocks named by this slot's table.
    blocks: usize,
    last_used: u64,
}

impl Slots {
    /// `count` sequences of up to `context` tokens; no allocation happens afterwards.
    pub(crate) fn new(count: usize, context: usize) -> Result<Self, DeviceError> {
        let table_len = context.div_ceil(KV_BLOCK);
        let blocks = count * table_len;
        let zeros = || {
            let mut zeros = room(blocks)?;
            zeros.resize(blocks, 0);
            Ok(zeros)
        };
        let (references, tables) = (zeros()?, zeros()?);
        let mut free = room(blocks)?;
        free.extend((0..blocks as u32).rev());
        let slot = |_| Ok(Slot { open: false, tokens: room(context)?, blocks: 0, last_used: 0 });
        let slots = (0..count).map(slot).collect::<Result<_, DeviceError>>()?;
        Ok(Slots { slots, references, free, tables, table_len, clock: 0 })
    }

    /// Opens a sequence, the least recently used of those closed.
    pub(crate) fn open(&mut self) -> Option<usize> {
        let slot = (0..self.slots.len()).filter(|&i| !self.slots[i].open).min_by_key(|&i| self.slots[i].last_used)?;
        self.slots[slot].open = true;
        Some(slot)
    }

    /// Closes a sequence; its tokens stay cached until it is opened for others.
    pub(crate) fn close(&mut self, slot: usize) {
        self.slots[slot].open = false;
        self.touch(slot);
    }

    /// Tokens cached for a sequence.
    pub(crate) fn tokens(&self, slot: usize) -> &[u32] {
        &self.slots[slot].tokens
    }

    /// All block tables, one after the other.
    pub(crate) fn tables(&self) -> &[u32] {
        &self.tables
    }

    /// Sequences that are open.
    pub(crate) fn open_count(&self) -> usize {
        self.slots.iter().filter(|slot| slot.open).count()
    }

    /// Makes the sequence hold the longest cached beginning of `prompt`, its own or another sequence's, and returns
    /// that beginning's length. At least the prompt's last token is left to be computed.
    pub(crate) fn reuse(&mut self, slot: usize, prompt: &[u32]) -> usize {
        let reusable = prompt.len().saturating_sub(1);
        let own = common(&self.slots[slot].tokens, prompt).min(reusable);
        let other = (0..self.slots.len())
            .filter(|&i| i != slot)
            .map(|i| (common(&self.slots[i].tokens, prompt).min(reusable) / KV_BLOCK, i))
            .max();
        match other {
            Some((blocks, from)) if blocks * KV_BLOCK > own => {
                self.truncate(slot, 0);
                for at in 0..blocks {
                    let block = self.tables[from * self.table_len + at];
                    self.references[block as usize] += 1;
                    self.tables[slot * self.table_len + at] = block;
                }
                self.slots[slot].blocks = blocks;
                self.slots[slot].tokens.extend_from_slice(&prompt[..blocks * KV_BLOCK]);
                self.touch(from);
            }
            _ => self.truncate(slot, own),
        }
        self.slots[slot].tokens.len()
    }

    /// Forgets what comes after the first `len` tokens (fewer, where the last block is shared).
    pub(crate) fn truncate(&mut self, slot: usize, len: usize) {
        let mut len = len.min(self.slots[slot].tokens.len());
        let at = len / KV_BLOCK;
        if !len.is_multiple_of(KV_BLOCK) {
            let block = self.tables[slot * self.table_len + at];
            if self.references[block as usize] > 1 {
                len = at * KV_BLOCK;
            }
        }
        let keep = len.div_ceil(KV_BLOCK);
        for at in keep..self.slots[slot].blocks {
            let block = self.tables[slot * self.table_len + at];
            self.references[block as usize] -= 1;
            if self.references[block as usize] == 0 {
                self.free.push(block);
            }
        }
        let slot = &mut self.slots[slot];
        slot.blocks = slot.blocks.min(keep);
        slot.tokens.truncate(len);
    }

    /// Provides blocks for `len` tokens in all. `len` is at most the context's length.
    pub(crate) fn grow(&mut self, slot: usize, len: usize) {
        self.touch(slot);
        let need = len.div_ceil(KV_BLOCK).min(self.table_len);
        while self.slots[slot].blocks < need {
            // There is one: each of the other sequences names at most its share, and this one fewer.
            let Some(block) = self.free.pop() else { return };
            self.references[block as usize] = 1;
            let at = self.slots[slot].blocks;
            self.tables[slot * self.table_len + at] = block;
            self.slots[slot].blocks += 1;
        }
    }

    /// Notes that the keys and values of `tokens` have been written after those already there.
    pub(crate) fn commit(&mut self, slot: usize, tokens: &[u32]) {
        self.slots[slot].tokens.extend_from_slice(tokens);
    }

    fn touch(&mut self, slot: usize) {
        self.clock += 1;
        self.slots[slot].last_used = self.clock;
    }
}

/// An empty list with room for `len` elements.
pub(crate) fn room<T>(len: usize) -> Result<Vec<T>, DeviceError> {
    let mut list = Vec::new();
    host_room(&mut list, len)?;
    Ok(list)
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(slots: &mut Slots, slot: usize, tokens: &[u32]) {
        slots.grow(slot, tokens.len());
        slots.commit(slot, tokens);
    }

    /// Every block is free or named by exactly as many tables as it counts.
    fn check(slots: &Slots) {
        let mut counted = vec![0u32; slots.references.len()];
        for (i, slot) in slots.slots.iter().enumerate() {
            for at in 0..slot.blocks {
                counted[slots.tables[i * slots.table_len + at] as usize] += 1;
            }
            assert!(slot.tokens.len() <= slot.blocks * KV_BLOCK);
        }
        assert_eq!(counted, slots.references);
        assert_eq!(slots.free.len(), counted.iter().filter(|&&n| n == 0).count());
    }

    #[test]
    fn a_sequence_keeps_the_beginning_it_shares_with_its_next_prompt() {
        let mut slots = Slots::new(1, 128).expect("room");
        let slot = slots.open().expect("free");
        let first: Vec<u32> = (0..100).collect();
        fill(&mut slots, slot, &first);
        let mut second = first[..70].to_vec();
        second.push(999);
        assert_eq!(slots.reuse(slot, &second), 70);
        assert_eq!(slots.reuse(slot, &second[..70]), 69, "the last token must be computed");
        check(&slots);
    }

    #[test]
    fn a_second_sequence_shares_full_blocks_and_never_writes_them() {
        let mut slots = Slots::new(2, 128).expect("room");
        let (a, b) = (slots.open().expect("free"), slots.open().expect("free"));
        let prompt: Vec<u32> = (0..100).collect();
        fill(&mut slots, a, &prompt);
        assert_eq!(slots.reuse(b, &prompt), 96);
        assert_eq!(slots.tables[slots.table_len * b], slots.tables[slots.table_len * a]);
        check(&slots);
        // Cutting into a shared block gives the block up.
        slots.truncate(b, 40);
        assert_eq!(slots.tokens(b).len(), 32);
        slots.grow(b, 64);
        assert_ne!(slots.tables[slots.table_len * b + 1], slots.tables[slots.table_len * a + 1]);
        check(&slots);
    }

    #[test]
    fn closed_sequences_give_way_to_open_ones() {
        let mut slots = Slots::new(2, 64).expect("room");
        let a = slots.open().expect("free");
        fill(&mut slots, a, &(0..64).collect::<Vec<_>>());
        slots.close(a);
        let b = slots.open().expect("free");
        assert_ne!(a, b, "the sequence that was never used goes first");
        fill(&mut slots, b, &(100..164).collect::<Vec<_>>());
        let c = slots.open().expect("free");
        assert_eq!(slots.open(), None);
        assert_eq!(slots.reuse(c, &(0..65).collect::<Vec<_>>()), 64, "its cache survived");
        slots.truncate(c, 0);
        fill(&mut slots, c, &(200..264).collect::<Vec<_>>());
        check(&slots);
    }
}
