//! A plan ready to run, together with the memory it runs in.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use tenure_graph::{OutputId, Plan};

use crate::backend::{Backend, DeviceError, Exec, Lane, Memory, RunError, StepInputs, WeightPlace};
use crate::deadline::Stop;
use crate::segment::Lease;

/// An executable and every lease baked into it. `Send`, not `Sync`: one thread at a time runs it.
pub struct Program {
    // Dropped before the leases, so that nothing runs over freed memory.
    exec: Box<dyn Exec>,
    _held: Vec<Lease>,
    plan: Arc<Plan>,
    _not_sync: PhantomData<Cell<()>>,
}

impl Program {
    /// Binds `plan` to `memory` on `lane`.
    ///
    /// # Errors
    /// [`DeviceError`] when a lease is missing, too small, or another backend's.
    pub fn bind(
        backend: &dyn Backend,
        lane: &mut dyn Lane,
        plan: Arc<Plan>,
        memory: &Memory,
    ) -> Result<Self, DeviceError> {
        let mut held = vec![memory.kv.lease.clone(), memory.arena.clone(), memory.scratch.clone()];
        for place in &memory.weights {
            match place {
                WeightPlace::Resident { lease, .. } => held.push(lease.clone()),
                WeightPlace::Mapped(_) => {}
            }
        }
        if held.iter().any(|lease| !lease.belongs_to(backend)) {
            return Err(DeviceError::ForeignLease { what: "a lease of the program" });
        }
        let exec = lane.bind(plan.clone(), memory)?;
        Ok(Program { exec, _held: held, plan, _not_sync: PhantomData })
    }

    /// The plan it runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs one step. See [`Exec::run`].
    ///
    /// # Errors
    /// [`RunError`].
    pub fn run(&mut self, step: &StepInputs<'_>, stop: &Stop) -> Result<(), RunError> {
        stop.check()?;
        self.exec.run(step, stop)
    }

    /// Copies one row of an output of the last step. See [`Exec::read`].
    ///
    /// # Errors
    /// [`RunError`].
    pub fn read(&mut self, output: OutputId, row: usize, into: &mut [f32]) -> Result<(), RunError> {
        self.exec.read(output, row, into)
    }
}
