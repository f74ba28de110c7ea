//! Where parts of image models lie in files.

use std::sync::Arc;

use tenure_weights::WeightStore;
use tenure_weights::diffusers::Settings;

use crate::image::names::Layout;

/// What a part is before the denoiser tells the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Denoiser,
    Vae,
    /// The first text encoder, or the only one.
    FirstClip,
    SecondClip,
    T5,
    Taesd,
}

/// A part found in a file.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) slot: Slot,
    pub(crate) store: Arc<WeightStore>,
    /// What the part's names begin with.
    pub(crate) prefix: &'static str,
    pub(crate) layout: Layout,
    /// The part's `config.json`.
    pub(crate) settings: Option<Settings>,
}

/// A place for a part: what its names begin with, and in which layouts it is found there.
struct Place {
    slot: Slot,
    prefix: &'static str,
    layouts: &'static [Layout],
}

const DENOISERS: &[Layout] = &[Layout::UnetLdm, Layout::UnetDiffusers, Layout::Sd3Original, Layout::Sd3Diffusers];
const VAES: &[Layout] = &[Layout::VaeLdm, Layout::VaeDiffusers];
const TAESDS: &[Layout] = &[Layout::TaesdNumbered, Layout::TaesdDiffusers];
const T5S: &[Layout] = &[Layout::T5, Layout::T5Gguf];

const fn place(slot: Slot, prefix: &'static str, layouts: &'static [Layout]) -> Place {
    Place { slot, prefix, layouts }
}

/// Every place. The first of two layouts that a place shows is taken.
const PLACES: &[Place] = &[
    place(Slot::Denoiser, "model.diffusion_model.", DENOISERS),
    place(Slot::Denoiser, "diffusion_model.", DENOISERS),
    place(Slot::Denoiser, "unet.", DENOISERS),
    place(Slot::Denoiser, "", DENOISERS),
    place(Slot::Vae, "first_stage_model.", VAES),
    place(Slot::Vae, "vae.", VAES),
    place(Slot::Vae, "", VAES),
    // SD 1, and what stable-diffusion.cpp makes of SD 2 and SDXL.
    place(Slot::FirstClip, "cond_stage_model.transformer.", &[Layout::ClipRenamed]),
    // SD 2.
    place(Slot::FirstClip, "cond_stage_model.model.", &[Layout::OpenClip]),
    // SDXL.
    place(Slot::FirstClip, "conditioner.embedders.0.transformer.", &[Layout::Clip]),
    place(Slot::FirstClip, "conditioner.embedders.0.model.", &[Layout::OpenClip]),
    place(Slot::SecondClip, "conditioner.embedders.1.model.", &[Layout::OpenClip]),
    place(Slot::SecondClip, "conditioner.embedders.1.transformer.", &[Layout::Clip]),
    place(Slot::SecondClip, "cond_stage_model.1.transformer.", &[Layout::ClipRenamed]),
    // SD 3.
    place(Slot::FirstClip, "text_encoders.clip_l.transformer.", &[Layout::Clip]),
    place(Slot::FirstClip, "text_encoders.clip_l.", &[Layout::Clip]),
    place(Slot::SecondClip, "text_encoders.clip_g.transformer.", &[Layout::Clip]),
    place(Slot::SecondClip, "text_encoders.clip_g.", &[Layout::Clip, Layout::OpenClip]),
    place(Slot::T5, "text_encoders.t5xxl.transformer.", T5S),
    place(Slot::T5, "text_encoders.t5xxl.", T5S),
    // A text encoder by itself.
    place(Slot::FirstClip, "clip_l.transformer.", &[Layout::Clip]),
    place(Slot::SecondClip, "clip_g.transformer.", &[Layout::Clip]),
    place(Slot::T5, "t5xxl.transformer.", T5S),
    place(Slot::FirstClip, "", &[Layout::Clip, Layout::OpenClip]),
    place(Slot::T5, "", T5S),
    place(Slot::Taesd, "taesd.", TAESDS),
    place(Slot::Taesd, "tae.", TAESDS),
    place(Slot::Taesd, "", TAESDS),
];

/// The parts in a file, by whatever name they are known.
pub(crate) fn parts_of(store: &Arc<WeightStore>, settings: Option<&Settings>) -> Vec<Found> {
    let shows = |prefix: &str, layout: Layout| {
        store.tensors().any(|tensor| {
            let name = tensor.spec().name.strip_prefix(prefix);
            name.is_some_and(|name| layout.marks().iter().any(|mark| name.starts_with(mark)))
        })
    };
    let found = PLACES.iter().filter_map(|place| {
        let layout = *place.layouts.iter().find(|&&layout| shows(place.prefix, layout))?;
        let (slot, prefix) = (place.slot, place.prefix);
        // Settings are of the model that is a file's only one.
        let settings = if prefix.is_empty() { settings.cloned() } else { None };
        Some(Found { slot, store: store.clone(), prefix, layout, settings })
    });
    found.collect()
}
