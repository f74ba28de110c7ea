//! What is read of a step's results.

use tenure_graph::{OutputId, Plan, Rows};

use crate::backend::{RunError, StepInputs, StepRows};

/// The most logits of a row that can be asked for with [`Wanted::Top`].
pub const MOST_TOP: usize = 128;

/// What is read of the logits of one wanted row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of them ([`Exec::read`](crate::Exec::read)).
    Row,
    /// The so many largest, from 1 to [`MOST_TOP`] ([`Exec::read_top`](crate::Exec::read_top)). First those that are no
    /// numbers, so that nobody overlooks them; then larger before smaller, and of equals the one with the lower id. Zeros
    /// of either sign are equal.
    Top(usize),
}

/// The last step of an executable, as far as what may be read of it goes.
#[derive(Debug)]
pub struct LastStep {
    /// Its rows, if it ended well.
    rows: Option<StepRows>,
    /// What was wanted of each of its outputs.
    wanted: Vec<Wanted>,
}

impl LastStep {
    /// No step yet. Allocates what any step of `plan` takes.
    pub fn new(plan: &Plan) -> Self {
        LastStep { rows: None, wanted: Vec::with_capacity(plan.shape().outs) }
    }

    /// A step begins: nothing can be read until one has ended.
    pub fn begin(&mut self) {
        self.rows = None;
    }

    /// A step ended well.
    pub fn end(&mut self, step: &StepInputs<'_>) {
        self.rows = Some(step.rows());
        self.wanted.clear();
        self.wanted.extend_from_slice(step.wanted);
    }

    /// Whether rows of an output, from `row` on, may be read into `len` floats; the output's place among
    /// [`Plan::outputs`].
    ///
    /// # Errors
    /// [`RunError::BadInput`] when there is no such output or row, the length is not one of whole rows, or the step was
    /// told that only the largest logits were wanted.
    pub fn check_read(&self, plan: &Plan, output: OutputId, row: usize, len: usize) -> Result<usize, RunError> {
        let (place, cols, is_top) = self.find(plan, output, row)?;
        if is_top.is_some() {
            return Err(bad("whole row of an output whose top was wanted", row, 0));
        }
        let count = len / cols;
        if count == 0 || count * cols != len {
            return Err(bad("output length", len, cols));
        }
        for row in row + 1..row + count {
            if self.find(plan, output, row)?.2.is_some() {
                return Err(bad("whole row of an output whose top was wanted", row, 0));
            }
        }
        Ok(place)
    }

    /// Whether the largest logits of a row may be read into `len` places; the place of the logits among
    /// [`Plan::outputs`].
    ///
    /// # Errors
    /// [`RunError::BadInput`] when there is no such row, the step was told that all of it was wanted, or `len` is not
    /// [`top_len`] of what was wanted.
    pub fn check_read_top(&self, plan: &Plan, row: usize, len: usize) -> Result<usize, RunError> {
        let (place, cols, is_top) = self.find(plan, OutputId::Logits, row)?;
        let Some(k) = is_top else { return Err(bad("top of a row that was wanted whole", row, 0)) };
        let most = top_len(k, cols);
        if len != most {
            return Err(bad("top length", len, most));
        }
        Ok(place)
    }

    /// The place of an output, its columns, and how many of the row are wanted if not all.
    fn find(&self, plan: &Plan, output: OutputId, row: usize) -> Result<(usize, usize, Option<usize>), RunError> {
        let place = plan.outputs().iter().position(|&(other, _)| other == output).ok_or_else(|| bad("output", 0, 0))?;
        let value = plan.value(plan.outputs()[place].1);
        let rows = self.rows.map_or(0, |rows| rows.of(value.rows));
        if row >= rows {
            return Err(bad("output row", row, rows));
        }
        let top = match (output, value.rows, self.wanted.get(row)) {
            (OutputId::Logits, Rows::Out, Some(&Wanted::Top(k))) => Some(k),
            (
                OutputId::Logits | OutputId::Hidden | OutputId::Layer(_) | OutputId::Sample | OutputId::Context,
                Rows::Step | Rows::Out | Rows::Fixed(_),
                _,
            ) => None,
        };
        Ok((place, value.cols, top))
    }
}

/// How many logits of a row of `cols` the top `k` are.
pub const fn top_len(k: usize, cols: usize) -> usize {
    if k < cols { k } else { cols }
}

/// Whether a step of `plan` may want that of its outputs.
pub(crate) fn check_wanted(plan: &Plan, step: &StepInputs<'_>) -> Result<(), RunError> {
    if step.wanted.len() != step.outputs.len() {
        return Err(bad("wanted", step.wanted.len(), step.outputs.len()));
    }
    let tops = || step.wanted.iter().filter_map(|wanted| if let Wanted::Top(k) = wanted { Some(*k) } else { None });
    if let Some(k) = tops().find(|k| !(1..=MOST_TOP).contains(k)) {
        return Err(bad("top", k, MOST_TOP));
    }
    // Logits of every row of the step are no outputs of the step; a plan without any gives none either way.
    let by_output = plan.output(OutputId::Logits).is_none_or(|logits| plan.value(logits).rows == Rows::Out);
    match tops().next() {
        Some(k) if !by_output => Err(bad("top of logits of all rows", k, 0)),
        Some(_) | None => Ok(()),
    }
}

fn bad(what: &'static str, got: usize, bound: usize) -> RunError {
    RunError::BadInput { what, got: got as u64, bound: bound as u64 }
}
