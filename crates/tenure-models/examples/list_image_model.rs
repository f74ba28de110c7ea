//! Says what an image model is made of: `list_image_model MODEL [--vae FILE] [--clip-l FILE] [--clip-g FILE] [--t5 FILE]
//! [--taesd FILE] [--variant NAME]`.

use std::error::Error;

use tenure_graph::Grid;
use tenure_models::image::{
    DenoiserConfig, ImageModel, ImagePaths, Part, record_clip, record_taesd_decoder, record_taesd_encoder, record_unet,
    record_vae_decoder, record_vae_encoder,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut paths = ImagePaths::new(args.next().ok_or("which model?")?);
    while let Some(option) = args.next() {
        let value = args.next().ok_or("an option without a value")?;
        match option.as_str() {
            "--vae" => paths.vae = Some(value.into()),
            "--clip-l" => paths.clip_l = Some(value.into()),
            "--clip-g" => paths.clip_g = Some(value.into()),
            "--t5" => paths.t5 = Some(value.into()),
            "--taesd" => paths.taesd = Some(value.into()),
            "--variant" => paths.variant = Some(value),
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let model = ImageModel::open(&paths)?;
    let config = model.config();
    println!("{config:#?}");
    let (latents, pixels) = (grid(16, 8), grid(64, 64));
    for weights in model.parts() {
        let part = weights.part();
        let plans = match (part, &config.denoiser) {
            (Part::ClipL | Part::ClipG | Part::ClipH, _) => match config.clip(part) {
                Some(clip) => vec![record_clip(weights, clip, 1)?],
                None => Vec::new(),
            },
            (Part::Denoiser, DenoiserConfig::Unet(unet)) => vec![record_unet(weights, unet, latents, 77)?],
            (Part::Vae, _) => vec![record_vae_decoder(weights, latents)?, record_vae_encoder(weights, pixels)?],
            (Part::Taesd, _) => vec![record_taesd_decoder(weights, latents)?, record_taesd_encoder(weights, pixels)?],
            (Part::T5, _) | (Part::Denoiser, DenoiserConfig::Mmdit(_)) => Vec::new(),
        };
        let steps: usize = plans.iter().map(|plan| plan.steps().len()).sum();
        println!("{part}: {} tensors of {}, {steps} steps", weights.tensors().len(), weights.path().display());
    }
    for (path, spec) in model.unknown_tensors() {
        println!("unknown: {} {} of {}", spec.name, spec.shape, path.display());
    }
    Ok(())
}

fn grid(height: u32, width: u32) -> Grid {
    Grid { images: 1, height, width }
}
