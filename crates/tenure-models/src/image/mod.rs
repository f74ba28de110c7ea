//! Parts of image models, each recorded as a plan of its own. Names of tensors are those of diffusers; a catalog maps them
//! to what its file calls them. Sizes come from the tensors themselves.
//!
//! [`ImageModel`] opens models as people have them, and is such a catalog for each of their parts.

mod clip;
mod config;
mod family;
mod folder;
mod layers;
mod locate;
mod mmdit;
mod model;
mod names;
mod part;
mod t5;
mod taesd;
mod unet;
mod vae;
mod view;

pub use clip::{ClipConfig, ClipTaken, record_clip};
pub use config::{DenoiserConfig, ImageConfig, LatentScale, MmditFacts, Prediction, ScheduleFacts, T5Facts};
pub use family::ImageFamily;
pub use mmdit::{MmditConfig, record_mmdit};
pub use model::{ImageModel, ImagePaths};
pub use part::{Part, PartWeights};
pub use t5::record_t5;
pub use taesd::{record_taesd_decoder, record_taesd_encoder};
pub use unet::{UnetConfig, record_unet};
pub use vae::{record_vae_decoder, record_vae_encoder};
