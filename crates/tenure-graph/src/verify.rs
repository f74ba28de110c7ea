//! Proof that nothing stale is read: every byte a step reads was written earlier in the same plan, by the value that
//! the step means.

use tenure_tensor::ByteSize;

use crate::error::PlanError;
use crate::op::Effect;
use crate::plan::{Plan, Span};
use crate::value::Val;

/// Checks `plan` without trusting the planner that laid it out.
///
/// # Errors
/// [`PlanError::Stale`], [`PlanError::KvBeforeWrite`] or [`PlanError::Overlap`], naming the first step at fault.
pub fn verify(plan: &Plan) -> Result<(), PlanError> {
    let mut held = Held::default();
    let mut kv_written = vec![false; plan.kv_layers().len()];
    for (at, step) in plan.steps().iter().enumerate() {
        for input in step.op.inputs() {
            held.check(at, input, plan.span(input))?;
        }
        match step.op.effect() {
            Effect::None => {}
            Effect::WritesKv(layer) => kv_written[layer.index()] = true,
            Effect::ReadsKv(layer) if kv_written[layer.index()] => {}
            Effect::ReadsKv(layer) => return Err(PlanError::KvBeforeWrite { step: at, layer }),
        }
        let Some(out) = step.out else { continue };
        let span = plan.span(out);
        if span.offset + span.bytes > plan.arena().get() {
            return Err(PlanError::TooLarge);
        }
        for input in step.op.inputs() {
            let same_place = step.op.in_place() == Some(input) && plan.span(input) == span;
            if !same_place && plan.span(input).overlaps(span) {
                return Err(PlanError::Overlap { step: at, value: input });
            }
        }
        held.write(out, span);
    }
    for &(_, val) in plan.outputs() {
        held.check(plan.steps().len(), val, plan.span(val))?;
    }
    Ok(())
}

/// Which value each written range of the arena holds, sorted by offset, without overlaps.
#[derive(Default)]
struct Held(Vec<(u64, u64, Val)>);

impl Held {
    fn write(&mut self, val: Val, span: Span) {
        let (from, to) = (span.offset, span.offset + span.bytes);
        let mut kept = Vec::with_capacity(self.0.len() + 2);
        for &(a, b, owner) in &self.0 {
            if a < from {
                kept.push((a, b.min(from), owner));
            }
            if b > to {
                kept.push((a.max(to), b, owner));
            }
        }
        kept.retain(|&(a, b, _)| a < b);
        kept.push((from, to, val));
        kept.sort_unstable_by_key(|&(a, ..)| a);
        self.0 = kept;
    }

    fn check(&self, step: usize, val: Val, span: Span) -> Result<(), PlanError> {
        let (mut at, end) = (span.offset, span.offset + span.bytes);
        for &(a, b, owner) in &self.0 {
            if at >= end {
                break;
            }
            if b <= at {
                continue;
            }
            if a > at || owner != val {
                break;
            }
            at = b;
        }
        if at < end { Err(PlanError::Stale { step, value: val, at: ByteSize::new(at) }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_written_over_in_its_middle_no_longer_holds_its_value() {
        let mut held = Held::default();
        held.write(Val(0), Span { offset: 0, bytes: 64 });
        held.check(0, Val(0), Span { offset: 0, bytes: 64 }).expect("freshly written");
        held.write(Val(1), Span { offset: 16, bytes: 16 });
        let stale = held.check(7, Val(0), Span { offset: 0, bytes: 64 });
        assert_eq!(stale, Err(PlanError::Stale { step: 7, value: Val(0), at: ByteSize::new(16) }));
        held.check(0, Val(1), Span { offset: 16, bytes: 16 }).expect("the newer value");
        held.check(0, Val(0), Span { offset: 32, bytes: 32 }).expect("the rest");
    }
}
