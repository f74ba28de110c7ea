//! Pictures and masks in files.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use image::ImageReader;
use tenure::{Mask, Picture};

use crate::cli::Refusal;

/// Writes a picture, with the parameters it was made with in a text chunk, where AUTOMATIC1111's web UI looks for them.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, picture: &Picture, parameters: &str) -> Result<(), Refusal> {
    let fail = |error: &dyn std::fmt::Display| Refusal::new("Io", format!("{}: {error}", path.display()));
    let side = |side: usize| u32::try_from(side).map_err(|error| fail(&error));
    let file = BufWriter::new(File::create(path).map_err(|error| fail(&error))?);
    let mut encoder = png::Encoder::new(file, side(picture.width())?, side(picture.height())?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // The older kind of chunk has no other letters.
    let text = ("parameters".to_owned(), parameters.to_owned());
    if parameters.chars().all(|c| u32::from(c) < 256) {
        encoder.add_text_chunk(text.0, text.1)
    } else {
        encoder.add_itxt_chunk(text.0, text.1)
    }
    .map_err(|error| fail(&error))?;
    let mut writer = encoder.write_header().map_err(|error| fail(&error))?;
    writer.write_image_data(picture.rgb()).map_err(|error| fail(&error))?;
    writer.finish().map_err(|error| fail(&error))
}

/// Reads a picture (PNG, JPEG) and brings it to a size, if one is given.
///
/// # Errors
/// When the file cannot be read.
pub fn read(path: &Path, size: Option<(usize, usize)>) -> Result<Picture, Refusal> {
    let mut image = open(path)?;
    if let Some((width, height)) = size.filter(|&(w, h)| (w as u32, h as u32) != (image.width(), image.height())) {
        image = image.resize_to_fill(width as u32, height as u32, image::imageops::FilterType::Lanczos3);
    }
    let rgb = image.into_rgb8();
    Ok(Picture::new(rgb.width() as usize, rgb.height() as usize, rgb.into_raw())?)
}

/// Reads a mask: white where the picture is drawn anew.
///
/// # Errors
/// When the file cannot be read.
pub fn read_mask(path: &Path) -> Result<Mask, Refusal> {
    let grey = open(path)?.into_luma8();
    Ok(Mask::from_bytes(grey.width() as usize, grey.height() as usize, grey.as_raw())?)
}

fn open(path: &Path) -> Result<image::DynamicImage, Refusal> {
    let io = |error: std::io::Error| Refusal::new("Io", format!("{}: {error}", path.display()));
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(io)?;
    reader.decode().map_err(|error| Refusal::new("BadImage", format!("{}: {error}", path.display())))
}
