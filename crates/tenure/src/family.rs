//! Typed handles: a model of one family cannot be taken for one of another.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tenure_device::{Deadline, Stop};
use tenure_tensor::ByteSize;

use crate::engine::{Engine, LoadOptions, Reservation, Share};
use crate::error::Error;

/// A family of models: [`crate::Text`] or [`crate::Image`]. Sealed; the families are Tenure's.
pub trait Family: sealed::Family {}

impl<F: sealed::Family> Family for F {}

pub(crate) mod sealed {
    use super::*;

    /// What the engine needs to know of a family.
    pub trait Family: Sized + 'static {
        /// Where its weights are.
        type Source;
        /// What the caller may choose.
        type Options;
        /// Everything needed to load, worked out.
        type Plan;
        /// A loaded model.
        type Loaded: Send + Sync;

        /// Works out what loading takes.
        fn plan(engine: &Engine, source: &Arc<Self::Source>, options: &Self::Options) -> Result<Self::Plan, Error>;
        /// Who holds the memory, for reports.
        fn label(plan: &Self::Plan) -> &str;
        /// What loading takes of each device.
        fn shares(plan: &Self::Plan) -> &[Share];
        /// What to change when it does not fit.
        fn advice(plan: &Self::Plan, engine: &Engine) -> String;
        /// Loads.
        fn load(plan: Self::Plan, reservation: Reservation, options: &LoadOptions) -> Result<Self::Loaded, Error>;
        /// What the model holds of the budget.
        fn held(loaded: &Self::Loaded) -> ByteSize;
        /// Waits for what stopped work left under way on its devices; says whether nothing is any more.
        fn settle(loaded: &mut Self::Loaded, stop: &Stop) -> bool;
    }
}

/// A loaded model of one family. Clones share it.
///
/// ```compile_fail,E0277
/// enum Mine {}
/// let _: Option<tenure::ModelHandle<Mine>> = None;
/// ```
pub struct ModelHandle<F: Family>(pub(crate) Arc<F::Loaded>);

impl<F: Family> ModelHandle<F> {
    pub(crate) fn new(loaded: F::Loaded) -> Self {
        ModelHandle(Arc::new(loaded))
    }

    /// What the model holds of the budget.
    pub fn memory(&self) -> ByteSize {
        F::held(&self.0)
    }

    pub(crate) fn release(self, deadline: Deadline) -> Result<Released, StillInUse<F>> {
        let bytes = self.memory();
        let mut held = self.0;
        loop {
            match Arc::try_unwrap(held) {
                Ok(mut loaded) => {
                    // A device at work on its memory would have the drop wait.
                    if !F::settle(&mut loaded, &Stop::by(deadline)) {
                        return Err(StillInUse { handle: ModelHandle::new(loaded), users: 0 });
                    }
                    drop(loaded);
                    return Ok(Released { bytes });
                }
                Err(shared) => held = shared,
            }
            let Some(left) = deadline.remaining() else {
                let users = Arc::strong_count(&held).saturating_sub(1);
                return Err(StillInUse { handle: ModelHandle(held), users });
            };
            std::thread::sleep(left.min(Duration::from_millis(1)));
        }
    }
}

impl<F: Family> Clone for ModelHandle<F> {
    fn clone(&self) -> Self {
        ModelHandle(self.0.clone())
    }
}

impl<F: Family> fmt::Debug for ModelHandle<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelHandle({} held)", self.memory())
    }
}

/// A model was unloaded; its bytes are back in the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// How many.
    pub bytes: ByteSize,
}

/// A model could not be unloaded.
#[derive(Debug, thiserror::Error)]
#[error("{}", by_whom(*.users))]
pub struct StillInUse<F: Family> {
    /// The model, as it was.
    pub handle: ModelHandle<F>,
    /// How many sessions and handles hold it; none if a device is still at work on what was stopped.
    pub users: usize,
}

fn by_whom(users: usize) -> String {
    match users {
        0 => "a device still works with the model".to_owned(),
        1 => "a session or handle still uses the model".to_owned(),
        _ => format!("{users} sessions or handles still use the model"),
    }
}
