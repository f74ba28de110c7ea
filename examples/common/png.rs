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

/// Reads a picture (PNG, JPEG).
///
/// # Errors
/// When the file cannot be read, or has too many pixels.
pub fn read(path: &Path) -> Result<Picture, Refusal> {
    let rgb = open(path)?.into_rgb8();
    Ok(Picture::new(rgb.width() as usize, rgb.height() as usize, rgb.into_raw())?)
}

/// A picture brought to a size, whose middle it fills.
///
/// # Errors
/// When there is no such size.
pub fn fitted(picture: Picture, (width, height): (usize, usize)) -> Result<Picture, Refusal> {
    let own = (picture.width(), picture.height());
    if own == (width, height) {
        return Ok(picture);
    }
    let (own_width, own_height) = sides(own)?;
    let rgb = image::RgbImage::from_raw(own_width, own_height, picture.into_rgb()).ok_or_else(|| beyond(own))?;
    let rgb = middle(rgb.into(), (width, height))?.into_rgb8();
    Ok(Picture::new(width, height, rgb.into_raw())?)
}

/// A mask brought to a size as [`fitted`] brings a picture.
///
/// # Errors
/// When there is no such size.
pub fn fitted_mask(mask: Mask, (width, height): (usize, usize)) -> Result<Mask, Refusal> {
    let own = (mask.width(), mask.height());
    if own == (width, height) {
        return Ok(mask);
    }
    let (own_width, own_height) = sides(own)?;
    let bytes = mask.values().iter().map(|value| (value * 255.0).round() as u8).collect();
    let grey = image::GrayImage::from_raw(own_width, own_height, bytes).ok_or_else(|| beyond(own))?;
    let grey = middle(grey.into(), (width, height))?.into_luma8();
    Ok(Mask::from_bytes(width, height, grey.as_raw())?)
}

fn beyond((width, height): (usize, usize)) -> Refusal {
    Refusal::new("BadParameter", format!("{width}x{height} pixels are beyond what pictures have"))
}

fn sides((width, height): (usize, usize)) -> Result<(u32, u32), Refusal> {
    let side = |side: usize| u32::try_from(side).map_err(|_| beyond((width, height)));
    Ok((side(width)?, side(height)?))
}

/// The middle of an image, as wide for its height as a size, brought to that size.
fn middle(image: image::DynamicImage, size: (usize, usize)) -> Result<image::DynamicImage, Refusal> {
    let ((width, height), (own_width, own_height)) = (sides(size)?, (image.width(), image.height()));
    // What is not seen is cut off first: a picture a thousand times as wide as high would grow a thousandfold otherwise.
    let part = |own: u32, other: u32, along: u32, across: u32| -> u32 {
        let fits = u64::from(other) * u64::from(along) / u64::from(across).max(1);
        own.min(u32::try_from(fits).unwrap_or(own)).max(1)
    };
    let (cut_width, cut_height) =
        (part(own_width, own_height, width, height), part(own_height, own_width, height, width));
    let (left, top) = ((own_width - cut_width) / 2, (own_height - cut_height) / 2);
    let image = image.crop_imm(left, top, cut_width, cut_height);
    Ok(image.resize_exact(width, height, image::imageops::FilterType::Lanczos3))
}

/// Reads a mask: white where the picture is drawn anew.
///
/// # Errors
/// When the file cannot be read.
pub fn read_mask(path: &Path) -> Result<Mask, Refusal> {
    let grey = open(path)?.into_luma8();
    Ok(Mask::from_bytes(grey.width() as usize, grey.height() as usize, grey.as_raw())?)
}

/// The most pixels of a picture that is read.
const MOST_PIXELS: u64 = 100_000_000;

fn open(path: &Path) -> Result<image::DynamicImage, Refusal> {
    let io = |error: std::io::Error| Refusal::new("Io", format!("{}: {error}", path.display()));
    let bad = |error: image::ImageError| Refusal::new("BadImage", format!("{}: {error}", path.display()));
    // A pipe or device may have no end.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Refusal::new("NotAFile", format!("{}: it is no file", path.display())));
    }
    let reader = || ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(io);
    let (width, height) = reader()?.into_dimensions().map_err(bad)?;
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        let message = format!("{}: {width}x{height} pixels, {MOST_PIXELS} are the most", path.display());
        return Err(Refusal::new("ImageTooLarge", message));
    }
    reader()?.decode().map_err(bad)
}
