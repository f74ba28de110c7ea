//! Language models.

mod generation;
mod load;
mod options;
mod session;
mod slots;
mod stepper;

pub use generation::{FinishReason, Generated, Generation, Piece};
pub(crate) use load::carve_all;
pub use load::{Component, Text};
pub use options::{GenerateOptions, Message, Offload, Prompt, TextOptions};
pub use session::TextSession;
