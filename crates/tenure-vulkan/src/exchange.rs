//! What host and device exchange: the inputs of a step, twice, the turns of ropes, rows of another part of a model, and
//! the outputs.

use tenure_device::{StepInputs, Wanted, top_len};
use tenure_graph::{OutputId, Plan};

use crate::kinds::{Many, Placed};
use crate::layout::WORD;
use crate::lower::{Dispatch, ropes, turns_bytes};
use crate::raw::device::MOST_ALIGN;
use crate::tops::Tops;

/// Parameter slots: while the device reads one, the host may write the other.
pub(crate) const SLOTS: usize = 2;
/// Bytes of the bounds of a step, which kernels see as a uniform block.
pub(crate) const BOUNDS_BYTES: u64 = 32;

/// Where things lie in the exchange segment. Everything begins where any device lets a binding begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exchange {
    /// The most dispatches.
    pub(crate) dispatches: u64,
    rows: u64,
    outs: u64,
    table_len: u64,
    /// Bytes of a slot.
    slot: u64,
    /// Offset of each distinct rope's turns.
    pub(crate) turns: Vec<u64>,
    /// Offset of the rows of each of the plan's inputs.
    pub(crate) given: Vec<u64>,
    /// Offset of each output.
    pub(crate) outputs: Vec<u64>,
    /// Offset of the largest logits.
    pub(crate) tops: u64,
    /// Logits of a row.
    logits: usize,
    /// All of it.
    pub(crate) bytes: u64,
}

impl Exchange {
    /// The layout for a plan of at most so many dispatches.
    pub(crate) fn new(plan: &Plan, dispatches: usize) -> Exchange {
        let shape = plan.shape();
        let (rows, outs, table_len) = (shape.rows as u64, shape.outs as u64, shape.table_len() as u64);
        let mut exchange = Exchange {
            dispatches: dispatches as u64,
            rows,
            outs,
            table_len,
            slot: 0,
            turns: Vec::new(),
            given: Vec::new(),
            outputs: Vec::new(),
            tops: 0,
            logits: plan.output(OutputId::Logits).map_or(0, |logits| plan.value(logits).cols),
            bytes: 0,
        };
        exchange.slot = (exchange.inputs(0).0 + exchange.inputs(0).1).next_multiple_of(MOST_ALIGN);
        let mut end = exchange.slot.saturating_mul(SLOTS as u64);
        let mut take = |bytes: u64| {
            let at = end;
            end = at.saturating_add(bytes).checked_next_multiple_of(MOST_ALIGN).unwrap_or(u64::MAX);
            at
        };
        exchange.turns = ropes(plan).into_iter().map(|rope| take(turns_bytes(rope))).collect();
        let mut room = |val| {
            let value = plan.value(val);
            take((shape.capacity(value.rows) as u64).saturating_mul(value.cols as u64 * WORD))
        };
        exchange.given = plan.inputs().iter().map(|&(_, val)| room(val)).collect();
        exchange.outputs = plan.outputs().iter().map(|&(_, val)| room(val)).collect();
        exchange.tops = take(Tops::of(plan).map_or(0, Tops::bytes));
        exchange.bytes = end;
        exchange
    }

    /// Offset of a slot's bounds.
    pub(crate) fn bounds(&self, slot: usize) -> u64 {
        self.slot * slot as u64
    }

    /// Offset of a slot's numbers of workgroups.
    pub(crate) fn counts(&self, slot: usize) -> u64 {
        self.bounds(slot) + MOST_ALIGN
    }

    /// Offset and bytes of a slot's tokens, positions, tables, output rows, what is wanted of these, and blocks.
    pub(crate) fn inputs(&self, slot: usize) -> (u64, u64) {
        let at = (self.counts(slot) + self.dispatches * COUNT_BYTES).next_multiple_of(MOST_ALIGN);
        (at, (3 * self.rows + 2 * self.outs).saturating_add(self.rows.saturating_mul(self.table_len)) * WORD)
    }

    /// Bytes of a slot.
    pub(crate) fn slot_bytes(&self) -> u64 {
        self.slot
    }
}

/// Bytes of the numbers of workgroups of one dispatch.
pub(crate) const COUNT_BYTES: u64 = 3 * WORD;

/// Writes the inputs of a step into a slot. What is written is allocated once, when the executable is made, or when
/// there are more block tables than ever before.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// The place of each block table among those written, plus one; 0 when it is not.
    places: Vec<u32>,
}

impl Writer {
    /// `slot`: the words of a slot. The step was checked against the plan.
    pub(crate) fn write(
        &mut self,
        exchange: &Exchange,
        dispatches: &[Dispatch],
        many: Many,
        step: &StepInputs<'_>,
        slot: &mut [u32],
    ) {
        let (rows, outs, table_len) = (step.tokens.len(), step.outputs.len(), exchange.table_len as usize);
        let words = |bytes: u64| (bytes / WORD) as usize;
        let (bounds, rest) = slot.split_at_mut(words(exchange.counts(0)));
        let (counts, inputs) = rest.split_at_mut(words(exchange.inputs(0).0) - words(exchange.counts(0)));

        let capacity = exchange.rows as usize;
        let places = [0, capacity, 2 * capacity, 3 * capacity, 3 * capacity + 2 * exchange.outs as usize];
        let [tokens, positions, tables, outputs, blocks] = places.map(|place| place as u32);
        let header = [rows as u32, outs as u32, table_len as u32, tokens, positions, tables, outputs, blocks];
        bounds[..header.len()].copy_from_slice(&header);

        let placed = Placed { tables: step.tables, positions: step.positions };
        let counts = dispatches.iter().zip(counts.as_chunks_mut().0);
        for (dispatch, counts) in counts.filter(|(dispatch, _)| dispatch.is_in(many)) {
            let rows = dispatch.rows(step.rows(), step.wanted);
            *counts = dispatch.groups(rows, placed);
        }

        inputs[places[0]..][..rows].copy_from_slice(step.tokens);
        inputs[places[1]..][..rows].copy_from_slice(step.positions);
        inputs[places[3]..][..outs].copy_from_slice(step.outputs);
        for (word, &wanted) in inputs[places[3] + outs..].iter_mut().zip(step.wanted) {
            *word = match wanted {
                Wanted::Row => 0,
                Wanted::Top(k) => top_len(k, exchange.logits) as u32,
            };
        }
        let (fixed, blocks) = inputs.split_at_mut(places[4]);
        let tables = &mut fixed[places[2]..][..rows];
        self.places.clear();
        self.places.resize(step.blocks.len().div_ceil(table_len.max(1)), 0);
        let mut written = 0;
        for (&table, to) in step.tables.iter().zip(tables) {
            let Some(place) = self.places.get_mut(table as usize) else { continue };
            if *place == 0 {
                // Each row brings at most one table, so there is room.
                let from = &step.blocks[table as usize * table_len..];
                let len = from.len().min(table_len);
                blocks[written * table_len..][..len].copy_from_slice(&from[..len]);
                written += 1;
                *place = written as u32;
            }
            *to = *place - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use tenure_graph::{Graph, OutputId, StepShape};
    use tenure_tensor::{DType, Shape, TensorSpec};

    use super::*;

    #[test]
    fn each_table_is_written_once_wherever_it_was() {
        let spec = TensorSpec { name: "embd".to_owned(), dtype: DType::F32, shape: Shape::from([9, 4]) };
        let file = vec![spec];
        let g = Graph::new(&file, StepShape { rows: 4, outs: 2, context: 70 });
        let x = g.take_rows(g.embed(g.table("embd", 9, 4), 1.0));
        let plan = g.finish(&[(OutputId::Logits, x)]).expect("a sound plan");
        let exchange = Exchange::new(&plan, 3);
        let mut slot = vec![u32::MAX; (exchange.slot_bytes() / WORD) as usize];
        let blocks: Vec<u32> = (100..121).collect();
        let step = StepInputs {
            tokens: &[1, 2, 3],
            positions: &[0, 64, 1],
            tables: &[6, 1, 6],
            blocks: &blocks,
            outputs: &[2],
            wanted: &[Wanted::Top(3)],
            given: &[],
        };
        let mut writer = Writer::default();
        for _ in 0..2 {
            writer.write(&exchange, &[], Many::ALL[0], &step, &mut slot);
            let [rows, outs, len, tokens, positions, tables, outputs, blocks] = std::array::from_fn(|at| slot[at]);
            assert_eq!((rows, outs, len), (3, 1, 3));
            let inputs = &slot[(exchange.inputs(0).0 / WORD) as usize..];
            let at = |offset: u32, len: usize| &inputs[offset as usize..][..len];
            assert_eq!(at(tokens, 3), [1, 2, 3]);
            assert_eq!(at(positions, 3), [0, 64, 1]);
            assert_eq!(at(outputs, 2), [2, 3], "the row, and how many of its logits");
            assert_eq!(at(tables, 3), [0, 1, 0]);
            assert_eq!(at(blocks, 6), [118, 119, 120, 103, 104, 105]);
        }
    }

    #[test]
    fn slots_and_outputs_do_not_overlap() {
        let spec = TensorSpec { name: "embd".to_owned(), dtype: DType::F32, shape: Shape::from([9, 4]) };
        let file = vec![spec];
        let g = Graph::new(&file, StepShape { rows: 4, outs: 2, context: 70 });
        let x = g.take_rows(g.embed(g.table("embd", 9, 4), 1.0));
        let plan = g.finish(&[(OutputId::Logits, x)]).expect("a sound plan");
        let exchange = Exchange::new(&plan, 100);
        for slot in 0..SLOTS {
            let (inputs, bytes) = exchange.inputs(slot);
            assert!(exchange.bounds(slot) + BOUNDS_BYTES <= exchange.counts(slot));
            assert!(exchange.counts(slot) + 100 * COUNT_BYTES <= inputs);
            assert!(inputs + bytes <= exchange.bounds(slot + 1));
        }
        assert!(exchange.bounds(SLOTS) <= exchange.outputs[0]);
        assert!(exchange.outputs[0] + 2 * 4 * WORD <= exchange.tops);
        assert_eq!(Tops::of(&plan).map(Tops::bytes), Some(2 * 4 * 2 * WORD), "no more than there are");
        assert!(exchange.tops + 2 * 4 * 2 * WORD <= exchange.bytes);
    }
}
