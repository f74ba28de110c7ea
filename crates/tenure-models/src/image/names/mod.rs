//! Names of tensors: one table for each layout that parts of image models come in.

mod beside;
mod clip;
mod rule;
mod sd3;
mod t5;
mod taesd;
mod unet;
mod vae;

pub(crate) use beside::is_beside;
pub(crate) use rule::Take;

/// A layout that a part comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    UnetLdm,
    UnetDiffusers,
    Sd3Original,
    Sd3Diffusers,
    VaeLdm,
    VaeDiffusers,
    /// transformers' names, with or without `text_model.`.
    Clip,
    /// transformers' names that stable-diffusion.cpp gave an OpenCLIP model.
    ClipRenamed,
    OpenClip,
    T5,
    T5Gguf,
    TaesdNumbered,
    TaesdDiffusers,
}

/// What a layout makes of names, with what must be known of all of them.
#[derive(Clone, Debug)]
pub(crate) enum Names {
    UnetLdm(unet::Levels),
    UnetDiffusers,
    Sd3Original { last: Option<usize> },
    Sd3Diffusers,
    VaeLdm { levels: usize },
    VaeDiffusers,
    Clip { renamed: bool },
    OpenClip,
    T5 { shared: bool },
    T5Gguf,
    TaesdNumbered,
    TaesdDiffusers,
}

impl Layout {
    /// What names that begin like this, behind the part's prefix, show of the layout.
    #[rustfmt::skip]
    pub(crate) const fn marks(self) -> &'static [&'static str] {
        match self {
            Layout::UnetLdm => &["input_blocks.", "middle_block.", "output_blocks."],
            Layout::UnetDiffusers => &["down_blocks.", "mid_block.", "up_blocks."],
            Layout::Sd3Original => &["joint_blocks."],
            Layout::Sd3Diffusers => &["transformer_blocks."],
            Layout::VaeLdm => &["decoder.mid.", "decoder.up.", "encoder.mid.", "encoder.down."],
            Layout::VaeDiffusers => &["decoder.mid_block.", "decoder.up_blocks.", "encoder.mid_block.", "encoder.down_blocks."],
            Layout::Clip | Layout::ClipRenamed => &[
                "text_model.encoder.layers.", "text_model.embeddings.token_embedding.",
                "encoder.layers.0.self_attn.", "encoder.layers.0.mlp.", "embeddings.token_embedding.",
            ],
            Layout::OpenClip => &["transformer.resblocks.", "token_embedding."],
            Layout::T5 => &["encoder.block.", "shared."],
            Layout::T5Gguf => &["enc.blk."],
            Layout::TaesdNumbered => &["decoder.1.", "decoder.3.conv.", "encoder.0.", "encoder.1.conv."],
            Layout::TaesdDiffusers => &["decoder.layers.0.weight", "decoder.layers.2.conv.", "encoder.layers.0.weight", "encoder.layers.1.conv."],
        }
    }

    /// Looks through all names of a part, without its prefix.
    pub(crate) fn names<'n>(self, mut names: impl Iterator<Item = &'n str>) -> Names {
        match self {
            Layout::UnetLdm => Names::UnetLdm(unet::Levels::of(names)),
            Layout::UnetDiffusers => Names::UnetDiffusers,
            Layout::Sd3Original => Names::Sd3Original { last: sd3::last(names) },
            Layout::Sd3Diffusers => Names::Sd3Diffusers,
            Layout::VaeLdm => Names::VaeLdm { levels: vae::levels(names) },
            Layout::VaeDiffusers => Names::VaeDiffusers,
            Layout::Clip => Names::Clip { renamed: false },
            Layout::ClipRenamed => Names::Clip { renamed: true },
            Layout::OpenClip => Names::OpenClip,
            Layout::T5 => Names::T5 { shared: names.any(|name| name == t5::SHARED) },
            Layout::T5Gguf => Names::T5Gguf,
            Layout::TaesdNumbered => Names::TaesdNumbered,
            Layout::TaesdDiffusers => Names::TaesdDiffusers,
        }
    }
}

impl Names {
    /// What the tensor called `name`, without the part's prefix, becomes: nothing where the part has no such tensor.
    pub(crate) fn map(&self, name: &str) -> Vec<(String, Take)> {
        match self {
            Names::UnetLdm(levels) => levels.map(name),
            Names::UnetDiffusers => unet::diffusers(name),
            Names::Sd3Original { last } => sd3::original(name, *last),
            Names::Sd3Diffusers => sd3::diffusers(name),
            Names::VaeLdm { levels } => vae::ldm(name, *levels),
            Names::VaeDiffusers => vae::diffusers(name),
            Names::Clip { renamed } => {
                let name = name.strip_prefix("text_model.").unwrap_or(name);
                let projection = if *renamed { rule::apply(clip::RENAMED_PROJECTION, name) } else { Vec::new() };
                if projection.is_empty() { rule::apply(clip::TRANSFORMERS, name) } else { projection }
            }
            Names::OpenClip => rule::apply(clip::OPEN_CLIP, name),
            Names::T5 { shared } => match t5::EMBED.apply(name) {
                Some(table) if !shared => vec![(table, t5::EMBED.take)],
                Some(_) => Vec::new(),
                None => rule::apply(t5::TRANSFORMERS, name),
            },
            Names::T5Gguf => rule::apply(t5::GGUF, name),
            Names::TaesdNumbered => taesd::numbered(name),
            Names::TaesdDiffusers => taesd::diffusers(name),
        }
    }
}
