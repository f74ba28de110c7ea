//! What can be wrong with a recording.

use tenure_tensor::{ByteSize, DType, Shape};

use crate::value::{KvLayerId, Val};

/// Why a recording is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The file lacks a tensor the architecture needs.
    #[error("tensor {name:?} is missing")]
    MissingTensor {
        /// The tensor's name.
        name: String,
    },
    /// A tensor's shape is not what the hyperparameters say.
    #[error("tensor {name:?} has shape {got}, expected {want}")]
    WrongShape {
        /// The tensor's name.
        name: String,
        /// What the model needs, outermost first.
        want: Shape,
        /// What the file has.
        got: Shape,
    },
    /// A tensor that must hold plain numbers holds something else.
    #[error("tensor {name:?} has type {got}, expected plain numbers")]
    WrongDtype {
        /// The tensor's name.
        name: String,
        /// What the file has.
        got: DType,
    },
    /// A tensor's type is known but not computed with.
    #[error("tensor {name:?} has type {dtype}, which Tenure does not compute with")]
    Unsupported {
        /// The tensor's name.
        name: String,
        /// Its type.
        dtype: DType,
    },
    /// An operation got values whose shapes do not fit.
    #[error("{op}: {left} does not fit {right}")]
    ShapeMismatch {
        /// The operation.
        op: &'static str,
        /// One side.
        left: String,
        /// The other side.
        right: String,
    },
    /// A size is zero or does not divide what it must divide.
    #[error("{op}: {what} is {value}")]
    BadParameter {
        /// The operation.
        op: &'static str,
        /// Which parameter.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// The arena would be larger than the address space.
    #[error("the arena overflows the address space")]
    TooLarge,
    /// The plan has no steps or no outputs.
    #[error("the plan is empty")]
    Empty,
    /// The verifier found a read of bytes that do not hold the value read.
    #[error("step {step} reads {value} at {at}, which does not hold it")]
    Stale {
        /// The step's place in the plan.
        step: usize,
        /// The value read.
        value: Val,
        /// Offset of the first such byte.
        at: ByteSize,
    },
    /// The verifier found attention over a cache that the plan did not write before.
    #[error("step {step} reads {layer} before this plan wrote it")]
    KvBeforeWrite {
        /// The step's place in the plan.
        step: usize,
        /// The layer.
        layer: KvLayerId,
    },
    /// The verifier found a result that overlaps an input it must not overlap.
    #[error("step {step} writes over its input {value}")]
    Overlap {
        /// The step's place in the plan.
        step: usize,
        /// The input.
        value: Val,
    },
}
