//! Every layout against what diffusers' own converters make of it: `fixtures/image-layouts`.

use std::collections::{BTreeMap, BTreeSet};

use tenure_graph::{Grid, Plan, WeightCatalog};
use tenure_models::image::{
    DenoiserConfig, ImageFamily, ImageModel, ImagePaths, MmditConfig, Part, PartWeights, Prediction, record_clip,
    record_mmdit, record_t5, record_unet, record_vae_decoder, record_vae_encoder,
};
use tenure_tensor::DType;
use tenure_weights::TrustFile;

use crate::files::{Folder, Tensor};
use crate::layouts::{Fixture, Model, model};

#[test]
fn sd1_is_found_whole() {
    let opened = found_whole(Model::Sd1);
    let config = opened.config();
    assert_eq!((config.family, config.prediction, config.inpainting), (ImageFamily::Sd1, Prediction::Noise, false));
    assert_eq!(
        config.denoiser,
        DenoiserConfig::Unet(tenure_models::image::UnetConfig { heads: vec![8; 4], guidance: None })
    );
}

#[test]
fn sd2_is_found_whole() {
    let config = found_whole(Model::Sd2).config().clone();
    assert_eq!(config.family, ImageFamily::Sd2);
    assert_eq!(
        config.denoiser,
        DenoiserConfig::Unet(tenure_models::image::UnetConfig { heads: vec![1, 1], guidance: None })
    );
}

#[test]
fn sdxl_is_found_whole() {
    assert_eq!(found_whole(Model::Sdxl).config().family, ImageFamily::Sdxl);
}

#[test]
fn sd3_is_found_whole() {
    let config = found_whole(Model::Sd3).config().clone();
    assert_eq!(
        (config.family, config.prediction, config.latent_channels),
        (ImageFamily::Sd3Medium, Prediction::Flow, 16)
    );
}

#[test]
fn sd35_is_found_whole() {
    let config = found_whole(Model::Sd35).config().clone();
    assert_eq!((config.family, config.prediction), (ImageFamily::Sd35Medium, Prediction::Flow));
    let DenoiserConfig::Mmdit(facts) = config.denoiser else { panic!("not a transformer") };
    assert_eq!((facts.blocks, facts.dual_blocks, facts.width, facts.heads, facts.patch), (3, 2, 64, 4, 2));
    assert_eq!((facts.positions, facts.context, facts.pooled, facts.qk_norm), (12, 64, 96, true));
    let t5 = config.t5.expect("there is one");
    assert_eq!((t5.layers, t5.width, t5.heads, t5.vocab, t5.buckets), (2, 64, 4, 100, 32));
}

#[test]
fn gguf_files_with_original_names_are_found_whole() {
    for kind in [Model::Sd1, Model::Sdxl, Model::Sd35] {
        let folder = Folder::new();
        let (tensors, fixtures) = model(kind);
        // Scalars do not exist in GGUF.
        let tensors: Vec<Tensor> = tensors.into_iter().filter(|tensor| !tensor.shape.is_empty()).collect();
        let opened = ImageModel::open(&ImagePaths::new(folder.gguf("m.gguf", &[], &tensors))).expect("sound");
        check(&opened, &tensors, &fixtures);
    }
}

/// Opens the model as one safetensors file, and compares every tensor with what the converters say.
fn found_whole(kind: Model) -> ImageModel {
    let folder = Folder::new();
    let (mut tensors, fixtures) = model(kind);
    // What lies in such files beside the model.
    tensors.push(Tensor::counted("model_ema.decay", DType::F32, &[]));
    tensors.push(Tensor::counted("model_ema.diffusion_modelout2weight", DType::F32, &[4, 3]));
    tensors.push(Tensor::counted("alphas_cumprod", DType::F32, &[10]));
    let opened = ImageModel::open(&ImagePaths::new(folder.safetensors("m.safetensors", &tensors))).expect("sound");
    check(&opened, &tensors, &fixtures);
    opened
}

/// Whether the parts that the fixtures list are in `opened` as they are in `tensors`, and nothing is unknown.
pub(crate) fn check(opened: &ImageModel, tensors: &[Tensor], fixtures: &[(Part, Fixture)]) {
    let by_name: BTreeMap<&str, &Tensor> = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    assert_eq!(opened.parts().len(), fixtures.len());
    for (part, fixture) in fixtures {
        let weights = opened.part(*part).expect("there is one");
        let got: BTreeSet<(&str, &[usize])> =
            weights.tensors().map(|spec| (spec.name.as_str(), spec.shape.dims())).collect();
        let want: BTreeSet<_> = fixture.targets.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
        assert_eq!(got, want, "{part}");
        for target in &fixture.targets {
            let source = by_name[format!("{}{}", fixture.prefix, fixture.sources[target.source].0).as_str()];
            let want = target.form.of(source);
            let spec = weights.find(&target.name).expect("found above");
            assert_eq!(spec.bytes().expect("small").get(), want.len() as u64, "{}", target.name);
            reads_exactly(weights, &target.name, &want);
        }
        let used: BTreeSet<&str> = weights.sources().collect();
        for (name, _) in &fixture.sources {
            let full = format!("{}{name}", fixture.prefix);
            let want = by_name.contains_key(full.as_str()) && !fixture.unused.contains(name);
            assert_eq!(used.contains(full.as_str()), want, "{full}");
        }
        weights.verify_unchanged().expect("nobody wrote to it");
        record(opened, weights);
    }
    assert_eq!(opened.unknown_tensors().map(|(_, spec)| spec.name.as_str()).collect::<Vec<_>>(), [""; 0]);
}

/// Whole, in pieces that end nowhere in particular, and mapped where that can be.
fn reads_exactly(weights: &PartWeights, name: &str, want: &[u8]) {
    let mut got = vec![0xaa; want.len()];
    weights.read_at(name, 0, &mut got).expect("readable");
    assert!(got == want, "{name}");
    let mut seed = want.len() as u64;
    for _ in 0..4 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let start = (seed >> 33) as usize % want.len();
        let len = (seed >> 12) as usize % (want.len() - start + 1);
        let mut got = vec![0xaa; len];
        weights.read_at(name, start as u64, &mut got).expect("readable");
        assert!(got == want[start..start + len], "{name} from {start}, {len} bytes");
    }
    assert!(weights.read_at(name, want.len() as u64, &mut [0]).is_err(), "{name}");
    assert!(weights.read_at(name, u64::MAX, &mut [0]).is_err(), "{name}");
    if let Some(mapped) = weights.map(name, TrustFile).expect("mappable") {
        assert!(*mapped == *want, "{name}");
    }
}

/// The part's catalog is what the recorders want.
fn record(opened: &ImageModel, weights: &PartWeights) {
    let config = opened.config();
    let (latents, pixels) = (grid(16, 8), grid(64, 64));
    let plans: Vec<Plan> = match (weights.part(), &config.denoiser) {
        (part @ (Part::ClipL | Part::ClipG | Part::ClipH), _) => {
            vec![record_clip(weights, config.clip(part).expect("recognised"), 1).expect("complete")]
        }
        (Part::Denoiser, DenoiserConfig::Unet(unet)) => {
            vec![record_unet(weights, unet, latents, 77).expect("complete")]
        }
        (Part::Vae, _) => vec![
            record_vae_decoder(weights, latents).expect("complete"),
            record_vae_encoder(weights, pixels).expect("complete"),
        ],
        (Part::Denoiser, DenoiserConfig::Mmdit(facts)) => {
            let mmdit = MmditConfig { heads: facts.heads, skipped: Vec::new() };
            vec![record_mmdit(weights, &mmdit, latents, 77).expect("complete")]
        }
        (Part::T5, _) => vec![record_t5(weights, 77, 1).expect("complete")],
        (Part::Taesd, _) => return,
    };
    let read: BTreeSet<&str> =
        plans.iter().flat_map(|plan| plan.weights()).map(|weight| weight.spec.name.as_str()).collect();
    let unread: Vec<&str> =
        weights.tensors().map(|spec| spec.name.as_str()).filter(|name| !read.contains(name)).collect();
    assert_eq!(unread, [""; 0], "{}", weights.part());
}

fn grid(height: u32, width: u32) -> Grid {
    Grid { images: 1, height, width }
}
