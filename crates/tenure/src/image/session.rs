//! Drawing with a loaded model.

use tenure_device::Deadline;

use crate::error::Error;
use crate::family::ModelHandle;
use crate::image::drawing::{Drawing, Drawn};
use crate::image::load::Image;
use crate::image::options::ImageRequest;

/// Draws images with a model, one request at a time. Sessions on threads of their own share the model's memory: they take
/// turns step by step.
///
/// ```compile_fail,E0499
/// # fn two(session: &mut tenure::ImageSession) -> Result<(), tenure::Error> {
/// let a = session.draw(tenure::ImageRequest::new("a red circle"))?;
/// let b = session.draw(tenure::ImageRequest::new("a blue square"))?;
/// drop((a, b));
/// # Ok(())
/// # }
/// ```
pub struct ImageSession {
    model: ModelHandle<Image>,
}

impl ModelHandle<Image> {
    /// A session. There may be any number of them; they hold nothing of the budget.
    pub fn session(&self) -> ImageSession {
        ImageSession { model: self.clone() }
    }

    /// The files and what was recognised of them.
    pub fn model(&self) -> &tenure_models::image::ImageModel {
        &self.0.model
    }
}

impl ImageSession {
    /// Begins to draw.
    ///
    /// # Errors
    /// When the request cannot be met: nothing was computed then.
    pub fn draw(&mut self, request: ImageRequest) -> Result<Drawing<'_>, Error> {
        Drawing::new(&self.model.0, request)
    }

    /// Draws to the end, waiting no longer than until `deadline`.
    ///
    /// # Errors
    /// As [`Drawing::next`].
    pub fn draw_all(&mut self, request: ImageRequest, deadline: Deadline) -> Result<Drawn, Error> {
        let mut drawing = self.draw(request)?;
        while drawing.next(deadline)?.is_some() {}
        drawing.finish()
    }
}
