//! The small model that draws coloured shapes (`fixtures/paint`), and what tests ask of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tenure::diffusion::{Guidance, Method, SigmaRule, Spacing};
use tenure::{
    Deadline, Drawn, Engine, Error, Image, ImageModel, ImageOptions, ImagePaths, ImageRequest, ImageSession,
    LoadOptions, ModelHandle,
};

/// A file of its folder.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/paint").join(name)
}

/// Where the model is.
pub fn paths() -> ImagePaths {
    ImagePaths::new(fixture("paint.safetensors"))
}

/// The model.
///
/// # Panics
/// When the fixture is damaged.
pub fn model() -> Arc<ImageModel> {
    Image::open(&paths()).expect("a sound file")
}

/// For images of up to so many pixels.
pub fn options(width: usize, height: usize) -> ImageOptions {
    ImageOptions { size: Some((width, height)), ..ImageOptions::default() }
}

/// The model, loaded.
///
/// # Panics
/// When it does not fit.
pub fn load(engine: &Engine, options: &ImageOptions) -> ModelHandle<Image> {
    engine.load_image_with(&paths(), options, &LoadOptions::default()).expect("fits")
}

/// An image, with every setting that has a default fixed.
pub fn request(prompt: &str, size: (usize, usize), steps: usize) -> ImageRequest {
    ImageRequest {
        size: Some(size),
        steps: Some(steps),
        guidance: Some(Guidance::of(5.0)),
        method: Some(Method::Euler),
        spacing: Some(Spacing::Leading),
        sigmas: Some(SigmaRule::Spaced),
        ..ImageRequest::new(prompt)
    }
}

/// Draws it.
///
/// # Errors
/// As the session has them.
pub fn draw(session: &mut ImageSession, request: ImageRequest) -> Result<Drawn, Error> {
    session.draw_all(request, Deadline::after(Duration::from_secs(600)))
}
