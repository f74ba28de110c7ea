//! A diffusers folder: which component is which part.

use std::path::Path;
use std::sync::Arc;

use tenure_weights::diffusers::{Pipeline, PipelineComponent, Settings};
use tenure_weights::{Shown, WeightStore};

use crate::error::ModelError;
use crate::image::locate::{Found, Slot, parts_of};

/// Classes of denoisers that are known.
const DENOISERS: [&str; 2] = ["UNet2DConditionModel", "SD3Transformer2DModel"];

/// The parts of a folder, and its scheduler's settings.
pub(crate) fn open(folder: &Path, variant: Option<&str>) -> Result<(Vec<Found>, Option<Settings>), ModelError> {
    let pipeline = Pipeline::open(folder)?;
    if let Some(component) = pipeline.find("controlnet") {
        return Err(ModelError::UnsupportedFamily { path: folder.to_owned(), name: component.class.clone() });
    }
    let parts: Vec<(&PipelineComponent, &[Slot])> =
        pipeline.components.iter().filter_map(|component| Some((component, slots_of(&component.name)?))).collect();
    let has = |component: &PipelineComponent| component.variant(variant).is_some();
    if let Some(name) = variant.filter(|_| !parts.iter().any(|(component, _)| has(component))) {
        return Err(ModelError::NoVariant { path: folder.to_owned(), variant: Shown::new(name) });
    }
    let mut found = Vec::new();
    for (component, slots) in parts {
        if slots.contains(&Slot::Denoiser) && !DENOISERS.contains(&component.class.as_str()) {
            let name = component.class.chars().take(64).collect();
            return Err(ModelError::UnsupportedFamily { path: folder.to_owned(), name });
        }
        // A part without the variant comes in the plain one, as it does in diffusers; and in whichever there is, if that
        // is all there is.
        let only = match component.weights.as_slice() {
            [one] if variant.is_none() => Some(one.path.as_path()),
            _ => None,
        };
        let Some(path) = component.variant(variant).or_else(|| component.variant(None)).or(only) else { continue };
        let store = Arc::new(WeightStore::open(path)?);
        let settings = Settings::open(component.folder.join("config.json"))?;
        for mut part in parts_of(&store, settings.as_ref()) {
            // Encoders in a folder are told apart by the component, not by their names.
            match (part.slot, slots.first()) {
                (Slot::FirstClip, Some(&first @ (Slot::FirstClip | Slot::SecondClip))) => part.slot = first,
                (slot, _) if slots.contains(&slot) => {}
                _ => continue,
            }
            found.push(part);
        }
    }
    let scheduler = match pipeline.find("scheduler") {
        Some(component) => Settings::open(component.folder.join("scheduler_config.json"))?,
        None => None,
    };
    Ok((found, scheduler))
}

/// What a component of that name may be.
fn slots_of(component: &str) -> Option<&'static [Slot]> {
    Some(match component {
        "unet" | "transformer" => &[Slot::Denoiser],
        "vae" => &[Slot::Vae, Slot::Taesd],
        "text_encoder" => &[Slot::FirstClip],
        "text_encoder_2" => &[Slot::SecondClip],
        "text_encoder_3" => &[Slot::T5],
        _ => return None,
    })
}
