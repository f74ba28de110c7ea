//! Parts of image models, each recorded as a plan of its own. Names of tensors are those of diffusers; a catalog maps them
//! to what its file calls them. Sizes come from the tensors themselves.

mod clip;
mod layers;
mod mmdit;
mod t5;
mod taesd;
mod unet;
mod vae;

pub use clip::{ClipConfig, ClipTaken, record_clip};
pub use mmdit::{MmditConfig, record_mmdit};
pub use t5::record_t5;
pub use taesd::{record_taesd_decoder, record_taesd_encoder};
pub use unet::{UnetConfig, record_unet};
pub use vae::{record_vae_decoder, record_vae_encoder};
