//! A plan ready to run, together with the memory it runs in.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use tenure_graph::{OutputId, Plan};

use crate::backend::{Exec, RunError, StepInputs};
use crate::deadline::{Stop, check_all};
use crate::segment::InUse;

/// An executable and every lease baked into it, made by [`DeviceLane::bind`](crate::DeviceLane::bind). `Send`, not
/// `Sync`: one thread at a time runs it.
pub struct Program {
    // Dropped before the leases, so that nothing runs over freed memory.
    exec: Box<dyn Exec>,
    _held: Vec<InUse>,
    plan: Arc<Plan>,
    _not_sync: PhantomData<Cell<()>>,
}

impl Program {
    pub(crate) fn new(exec: Box<dyn Exec>, held: Vec<InUse>, plan: Arc<Plan>) -> Self {
        Program { exec, _held: held, plan, _not_sync: PhantomData }
    }

    /// The plan it runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs one step, until any of `stops` is due. See [`Exec::run`].
    ///
    /// # Errors
    /// [`RunError`].
    pub fn run(&mut self, step: &StepInputs<'_>, stops: &[Stop]) -> Result<(), RunError> {
        check_all(stops)?;
        self.exec.run(step, stops)
    }

    /// Copies rows of an output of the last step. See [`Exec::read`].
    ///
    /// # Errors
    /// [`RunError`].
    pub fn read(&mut self, output: OutputId, row: usize, into: &mut [f32]) -> Result<(), RunError> {
        self.exec.read(output, row, into)
    }

    /// Copies the largest logits of one output of the last step. See [`Exec::read_top`].
    ///
    /// # Errors
    /// [`RunError`].
    pub fn read_top(&mut self, row: usize, into: &mut [(u32, f32)]) -> Result<(), RunError> {
        self.exec.read_top(row, into)
    }

    /// Waits until nothing of a step that was stopped is under way any more. See [`Exec::settle`].
    ///
    /// # Errors
    /// [`RunError`].
    pub fn settle(&mut self, stop: &Stop) -> Result<(), RunError> {
        self.exec.settle(stop)
    }
}
