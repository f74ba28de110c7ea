//! Record a model once: operations, graph builder, shape rules, arena planner and verifier, giving a [`Plan`].
//!
//! What it is: the recorder that model code runs against, and the immutable plan it gives: a list of operations from
//! the closed enum [`Op`] over spans of one static arena. What it is not: an executor; a backend binds the plan to
//! memory and runs it.
//!
//! Three types to know: [`Graph`], [`Plan`], [`Op`].
//!
//! ```
//! use tenure_graph::{Graph, OutputId, StepShape};
//! use tenure_tensor::{DType, Shape, TensorSpec};
//!
//! let spec = |name: &str, shape| TensorSpec { name: name.into(), dtype: DType::F32, shape };
//! let file = vec![spec("embd", Shape::from([256, 64])), spec("norm", Shape::from([64]))];
//!
//! let g = Graph::new(&file, StepShape { rows: 8, outs: 1, context: 64 });
//! let x = g.embed(g.table("embd", 256, 64), 1.0);
//! let x = g.rms_norm(x, g.vector("norm", 64), 1e-5);
//! let logits = g.matmul(g.take_rows(x), g.matrix("embd", 256, 64), None);
//! let plan = g.finish(&[(OutputId::Logits, logits)])?;
//! assert_eq!(plan.weights().len(), 2);
//! assert_eq!(plan.steps().len(), 4);
//! # Ok::<(), tenure_graph::PlanError>(())
//! ```
#![forbid(unsafe_code)]

mod arena;
mod error;
mod graph;
mod op;
mod plan;
mod rope;
mod value;
mod verify;

pub use arena::ALIGN;
pub use error::PlanError;
pub use graph::Graph;
pub use op::{Activation, Beside, Buckets, Effect, Index, Op, RelativeBias, RopeSpec, RopeStyle, Slide, Yarn, centre};
pub use plan::{Plan, Span, Step, Value};
pub use rope::RopeAngles;
pub use value::{
    Grid, InputId, KV_BLOCK, KvLayer, KvLayerId, KvType, OutputId, Rows, StepShape, Val, WeightCatalog, WeightId,
    WeightUse,
};
pub use verify::verify;
