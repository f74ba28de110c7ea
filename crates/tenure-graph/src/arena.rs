//! Where each value lives: a static arena in which values with disjoint lifetimes share bytes.

use tenure_tensor::ByteSize;

use crate::error::PlanError;
use crate::plan::{Span, Step};
use crate::value::Val;

/// Alignment of every value, in bytes: a cache line, and the widest vector register.
pub const ALIGN: u64 = 64;

/// Gives each value its span; returns the spans and the size of the arena.
///
/// Values are placed in the order of their size, largest first, at the lowest offset free for their whole lifetime
/// (greedy by size: Pisarchyk & Lee 2020, arXiv:2001.03288). A value that may take over the memory of an input that
/// nothing reads later shares that input's span.
pub(crate) fn place(sizes: &[u64], steps: &[Step], kept: &[Val]) -> Result<(Vec<Span>, ByteSize), PlanError> {
    let lifetimes = lifetimes(sizes.len(), steps, kept);
    let mut chains = chains(sizes, steps, &lifetimes);
    chains.sort_by_key(|chain| (std::cmp::Reverse(chain.bytes), chain.first));

    let mut spans = vec![Span::default(); sizes.len()];
    let mut placed: Vec<(Chain, u64)> = Vec::with_capacity(chains.len());
    let mut end = 0u64;
    for chain in chains {
        let mut neighbours: Vec<(u64, u64)> = placed
            .iter()
            .filter(|(other, _)| other.first <= chain.last && chain.first <= other.last)
            .map(|(other, at)| (*at, at + other.bytes))
            .collect();
        neighbours.sort_unstable();
        let mut at = 0u64;
        for (from, to) in neighbours {
            if at + chain.bytes <= from {
                break;
            }
            at = at.max(to);
        }
        end = end.max(at.checked_add(chain.bytes).ok_or(PlanError::TooLarge)?);
        for &val in &chain.members {
            spans[val] = Span { offset: at, bytes: sizes[val] };
        }
        placed.push((chain, at));
    }
    Ok((spans, ByteSize::new(end)))
}

/// Values that share one span, one after the other.
struct Chain {
    members: Vec<usize>,
    bytes: u64,
    first: usize,
    last: usize,
}

/// The step that writes each value and the last step that reads it.
fn lifetimes(values: usize, steps: &[Step], kept: &[Val]) -> Vec<(usize, usize)> {
    let mut lifetimes = vec![(usize::MAX, 0); values];
    for (at, step) in steps.iter().enumerate() {
        if let Some(out) = step.out {
            lifetimes[out.index()] = (at, at);
        }
        for input in step.op.inputs() {
            lifetimes[input.index()].1 = at;
        }
    }
    for val in kept {
        lifetimes[val.index()].1 = steps.len();
    }
    lifetimes
}

fn chains(sizes: &[u64], steps: &[Step], lifetimes: &[(usize, usize)]) -> Vec<Chain> {
    let mut chain_of: Vec<Option<usize>> = vec![None; sizes.len()];
    let mut chains: Vec<Chain> = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let Some(out) = step.out else { continue };
        let (first, last) = lifetimes[out.index()];
        let donor = step.op.in_place().filter(|donor| {
            lifetimes[donor.index()].1 == at
                && sizes[donor.index()] == sizes[out.index()]
                && step.op.inputs().filter(|input| input == donor).count() == 1
        });
        let chain = match donor.and_then(|donor| chain_of[donor.index()]) {
            Some(chain) => chain,
            None => {
                chains.push(Chain { members: Vec::new(), bytes: 0, first, last });
                chains.len() - 1
            }
        };
        chains[chain].members.push(out.index());
        chains[chain].bytes = chains[chain].bytes.max(sizes[out.index()].next_multiple_of(ALIGN));
        chains[chain].last = chains[chain].last.max(last);
        chain_of[out.index()] = Some(chain);
    }
    chains
}
