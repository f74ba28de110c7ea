//! Backend and lane traits, the memory ledger, leases, programs and deadlines.
//!
//! What it is: the border between safe code that decides and backends that touch memory. A [`Device`] pairs a backend
//! with a budget; a [`Reservation`] is the only way to memory; a [`Lease`] is a share of live memory; a [`Program`]
//! owns everything baked into it. What it is not: a backend, or a scheduler.
//!
//! Three types to know: [`Device`], [`Lease`], [`Program`].
//!
//! ```
//! use std::time::Duration;
//! use tenure_device::{Deadline, Stop};
//!
//! let stop = Stop::by(Deadline::after(Duration::from_secs(5)));
//! assert!(stop.check().is_ok());
//! stop.cancel.cancel();
//! assert!(stop.check().is_err());
//! ```

mod backend;
mod deadline;
mod device;
mod lane;
mod ledger;
mod pool;
mod program;
mod results;
mod segment;

pub use backend::{
    AllocError, Backend, DeviceError, Exec, HostBytes, KvPlace, Lane, Load, LoadError, LoadItem, Memory, ReadFn,
    RunError, SourceError, StepInputs, StepRows, WeightLayout, WeightPlace, host_room,
};
pub use deadline::{Cancel, Deadline, Stop, Stopped, check_all};
pub use device::{CarveError, Device, Footprint, Reservation};
pub use lane::{DeviceLane, WEIGHT_ALIGN};
pub use ledger::{BudgetError, Holder, Report};
pub use pool::Pool;
pub use program::Program;
pub use results::{LastStep, MOST_TOP, Wanted, top_len};
pub use segment::{Lease, RawSegment, SegmentKind};
