//! Image models.

mod autoencoder;
mod bench;
mod colours;
mod conditioning;
mod drawing;
mod latents;
mod load;
mod options;
mod picture;
mod session;
mod work;

pub use drawing::{Drawing, Drawn, Phase, Progress, Warning};
pub use load::{Image, NetworkMemory};
pub use options::{ImageOptions, ImageRequest, Init, Loading, Residency, Tiling};
pub use picture::{Mask, Picture};
pub use session::ImageSession;
pub use work::Network;
