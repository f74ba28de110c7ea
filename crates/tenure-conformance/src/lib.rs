//! Operation cases over every backend, golden runs, and backends that inject faults and poison.
//!
//! What it is: what the tests of the workspace share. [`Faulty`] fails the N-th call of a kind; [`Poisoned`] fills
//! memory with NaN before anything may rely on it; [`DriverFaults`] fails calls of a Vulkan driver; [`checks`] are what holds on
//! every backend. What it is not: published.
//!
//! Three types to know: [`Faulty`], [`Poisoned`], [`Golden`].
//!
//! ```
//! use std::sync::Arc;
//! use tenure_conformance::{Fault, Faulty, Operation};
//! use tenure_cpu::{Cpu, CpuOptions};
//! use tenure_device::{Backend, SegmentKind};
//!
//! let cpu = Arc::new(Cpu::new(&CpuOptions::default())?);
//! let faulty = Faulty::new(cpu);
//! faulty.arm(Fault { operation: Operation::Alloc, nth: 1, sticky: false });
//! assert!(faulty.alloc(SegmentKind::Arena, faulty.round_up(tenure_tensor::ByteSize::new(1))).is_err());
//! assert!(faulty.fired());
//! # Ok::<(), tenure_device::DeviceError>(())
//! ```

mod bound;
pub mod checks;
mod driver;
mod faulty;
mod fixtures;
mod gpu;
pub mod numbers;
pub mod paint;
mod poisoned;

pub use bound::{Bound, NOTHING, bind, bind_with_cache, rows_of};
pub use driver::{DriverFault, DriverFaults};
pub use faulty::{Fault, Faulty, Operation};
pub use fixtures::{Golden, GoldenCase, Temporary, fixture, goldens};
pub use gpu::{Gpu, products};
pub use poisoned::{POISON, Poisoned};
