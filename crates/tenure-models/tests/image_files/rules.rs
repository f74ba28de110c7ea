//! Which models are refused, and how; and which of several parts counts.

use std::path::PathBuf;

use tenure_models::ModelError;
use tenure_models::image::{DenoiserConfig, ImageFamily, ImageModel, ImagePaths, Part, Prediction};
use tenure_tensor::{DType, Shape};
use tenure_weights::gguf::KvValue;

use crate::files::{Folder, Tensor};
use crate::layouts::{Model, fixture, model};

/// A model to be spoilt.
pub(crate) struct Spoilt {
    pub(crate) folder: Folder,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) paths: ImagePaths,
    metadata: String,
}

impl Spoilt {
    pub(crate) fn new(kind: Model) -> Self {
        let (tensors, _) = model(kind);
        Spoilt { folder: Folder::new(), tensors, paths: ImagePaths::default(), metadata: String::new() }
    }

    /// Without the tensors whose names begin like this.
    pub(crate) fn without(mut self, prefix: &str) -> Self {
        let before = self.tensors.len();
        self.tensors.retain(|tensor| !tensor.name.starts_with(prefix));
        assert!(self.tensors.len() < before, "{prefix}");
        self
    }

    /// With a tensor, instead of one of that name.
    pub(crate) fn with(mut self, name: &str, dtype: DType, shape: &[usize]) -> Self {
        self.tensors.retain(|tensor| tensor.name != name);
        self.tensors.push(Tensor::counted(name, dtype, shape));
        self
    }

    pub(crate) fn with_all(mut self, tensors: Vec<Tensor>) -> Self {
        self.tensors.extend(tensors);
        self
    }

    fn metadata(mut self, text: &str) -> Self {
        self.metadata = text.to_owned();
        self
    }

    /// A file beside the model's.
    pub(crate) fn beside(&self, name: &str, tensors: &[Tensor]) -> Option<PathBuf> {
        Some(self.folder.safetensors(name, tensors))
    }

    pub(crate) fn open(&self) -> Result<ImageModel, ModelError> {
        let model = self.folder.safetensors_with("m.safetensors", &self.tensors, &self.metadata);
        ImageModel::open(&ImagePaths { model, ..self.paths.clone() })
    }

    #[track_caller]
    fn refused(&self) -> ModelError {
        self.open().expect_err("must be refused")
    }
}

#[track_caller]
fn missing(model: &Spoilt, want: Part, of: Option<ImageFamily>) {
    match model.refused() {
        ModelError::MissingPart { part, path, family } => {
            assert_eq!((part, family), (want, of));
            assert!(path.ends_with("m.safetensors"), "{}", path.display());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_part_that_is_nowhere_is_named() {
    use ImageFamily::*;
    let vae = "first_stage_model.";
    missing(&Spoilt::new(Model::Sd1).without(vae), Part::Vae, Some(Sd1));
    missing(&Spoilt::new(Model::Sdxl).without(vae), Part::Vae, Some(Sdxl));
    missing(&Spoilt::new(Model::Sd1).without("cond_stage_model."), Part::ClipL, Some(Sd1));
    missing(&Spoilt::new(Model::Sd2).without("cond_stage_model."), Part::ClipH, Some(Sd2));
    missing(&Spoilt::new(Model::Sdxl).without("conditioner.embedders.0."), Part::ClipL, Some(Sdxl));
    missing(&Spoilt::new(Model::Sdxl).without("conditioner.embedders.1."), Part::ClipG, Some(Sdxl));
    missing(&Spoilt::new(Model::Sd35).without("text_encoders.clip_g."), Part::ClipG, Some(Sd35Medium));
    missing(&Spoilt::new(Model::Sd1).without("model.diffusion_model."), Part::Denoiser, None);
    let text = Spoilt::new(Model::Sd1).without("first_").open().expect_err("must be refused").to_string();
    assert!(text.contains("no autoencoder, which Stable Diffusion 1 needs"), "{text}");
}

#[test]
fn sd3_does_without_t5() {
    let opened = Spoilt::new(Model::Sd3).without("text_encoders.t5xxl.").open().expect("sound");
    assert!(opened.part(Part::T5).is_none() && opened.config().t5.is_none());
    assert!(matches!(opened.require(Part::T5), Err(ModelError::MissingPart { part: Part::T5, .. })));
}

#[test]
fn a_file_given_for_a_part_must_hold_it() {
    let mut model = Spoilt::new(Model::Sd1);
    model.paths.vae = model.beside("vae.safetensors", &fixture("clip-l-sd1").tensors(""));
    match model.refused() {
        ModelError::MissingPart { part: Part::Vae, path, .. } => assert!(path.ends_with("vae.safetensors")),
        other => panic!("{other:?}"),
    }
    model.paths.vae = Some(model.folder.path().join("nothing.safetensors"));
    assert!(matches!(model.refused(), ModelError::Weights(_)));
}

#[test]
fn two_of_a_part_in_a_file_are_refused() {
    let second = fixture("vae-4").tensors("vae.");
    let mut model = Spoilt::new(Model::Sd1).with_all(second);
    match model.refused() {
        ModelError::DoubledPart { part: Part::Vae, first, second, .. } => {
            assert_eq!((first.as_str(), second.as_str()), ("first_stage_model.", "vae."));
        }
        other => panic!("{other:?}"),
    }
    // One that is given settles it.
    model.paths.vae = model.beside("vae.safetensors", &fixture("vae-4").tensors(""));
    model.open().expect("sound");

    let again = fixture("clip-l-sd1").tensors("cond_stage_model.transformer.");
    let again = again.into_iter().filter(|tensor| !tensor.name.ends_with("position_ids"));
    let plain = again.map(|tensor| Tensor { name: tensor.name.replace("text_model.", ""), ..tensor }).collect();
    match Spoilt::new(Model::Sd1).with_all(plain).refused() {
        ModelError::DoubledPart { part: Part::ClipL, first, second, .. } => assert_ne!(first, second),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_part_given_counts_and_the_models_own_is_not_unknown() {
    let mut model = Spoilt::new(Model::Sd1);
    model.paths.vae = model.beside("other.safetensors", &fixture("vae-4").tensors(""));
    model.paths.clip_l = model.beside("clip.safetensors", &fixture("clip-l-sd1").tensors(""));
    let opened = model.open().expect("sound");
    assert_eq!(opened.part(Part::Vae).map(|vae| vae.path().to_owned()), model.paths.vae);
    assert_eq!(opened.part(Part::ClipL).map(|clip| clip.path().to_owned()), model.paths.clip_l);
    assert_eq!(opened.unknown_tensors().count(), 0);
}

#[test]
fn one_part_given_twice_or_for_another_family_is_refused() {
    let mut model = Spoilt::new(Model::Sd2).without("cond_stage_model.");
    let clip = model.beside("clip.safetensors", &fixture("clip-h-sd2").tensors(""));
    for (l, g) in [(clip.clone(), None), (None, clip.clone())] {
        (model.paths.clip_l, model.paths.clip_g) = (l, g);
        let opened = model.open().expect("either names the only encoder");
        assert_eq!(opened.require(Part::ClipH).expect("given").count_layers(), 23);
    }
    (model.paths.clip_l, model.paths.clip_g) = (clip.clone(), clip.clone());
    assert!(matches!(model.refused(), ModelError::PartGivenTwice { part: Part::ClipH, .. }));

    let mut model = Spoilt::new(Model::Sd1);
    model.paths.t5 = clip.clone();
    assert!(matches!(model.refused(), ModelError::PartNotUsed { part: Part::T5, family: ImageFamily::Sd1, .. }));
    model.paths = ImagePaths { clip_g: clip, ..ImagePaths::default() };
    assert!(matches!(model.refused(), ModelError::PartNotUsed { part: Part::ClipG, .. }));
}

trait Layers {
    fn count_layers(&self) -> usize;
}

impl Layers for tenure_models::image::PartWeights {
    fn count_layers(&self) -> usize {
        self.tensors().filter(|spec| spec.name.ends_with(".mlp.fc1.weight")).count()
    }
}

#[test]
fn what_is_no_image_model_is_named() {
    let folder = Folder::new();
    let open = |path| ImageModel::open(&ImagePaths::new(path)).expect_err("must be refused");
    let other =
        |name: &str| match open(folder.safetensors("x.safetensors", &[Tensor::counted(name, DType::F32, &[4, 4])])) {
            ModelError::UnsupportedFamily { name, .. } => name,
            other => panic!("{name}: {other:?}"),
        };
    assert_eq!(other("double_blocks.0.img_attn.qkv.weight"), "Flux");
    assert_eq!(other("model.diffusion_model.double_blocks.0.img_attn.qkv.weight"), "Flux");
    assert_eq!(other("single_transformer_blocks.0.attn.to_q.weight"), "Flux");
    assert_eq!(other("control_model.input_blocks.0.0.weight"), "a ControlNet");
    assert_eq!(other("controlnet_cond_embedding.conv_in.weight"), "a ControlNet");
    assert_eq!(other("model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight"), "Stable Video Diffusion");
    assert_eq!(other("lora_unet_down_blocks_0.lora_down.weight"), "a LoRA");
    assert_eq!(other("emb_params"), "a textual inversion");

    let nothing = open(folder.safetensors("n.safetensors", &[Tensor::counted("w", DType::F32, &[2])]));
    assert!(matches!(nothing, ModelError::NotAnImageModel { .. }), "{nothing:?}");
    let nothing = open(folder.safetensors("e.safetensors", &[]));
    assert!(matches!(nothing, ModelError::NotAnImageModel { .. }), "{nothing:?}");
    let pairs = [("general.architecture", KvValue::Str("wan".into()))];
    let video = open(folder.gguf("v.gguf", &pairs, &[Tensor::counted("blocks.0.x.weight", DType::F32, &[4, 4])]));
    assert!(matches!(&video, ModelError::UnsupportedFamily { name, .. } if name == "wan"), "{video:?}");
    let pairs = [("general.architecture", KvValue::Str("llama".into()))];
    let text = open(folder.gguf("t.gguf", &pairs, &[Tensor::counted("blk.0.attn_q.weight", DType::F32, &[4, 4])]));
    assert!(matches!(&text, ModelError::TextModel { architecture, .. } if architecture == "llama"), "{text:?}");
}

#[test]
fn the_refiner_and_other_unets_are_named() {
    let context = "middle_block.1.transformer_blocks.0.attn2.to_k.weight";
    let refiner = Spoilt::new(Model::Sdxl)
        .with(&format!("model.diffusion_model.{context}"), DType::F16, &[64, 1280])
        .with("model.diffusion_model.label_emb.0.0.weight", DType::F16, &[128, 2560]);
    assert!(matches!(refiner.refused(), ModelError::UnsupportedFamily { name, .. } if name.contains("refiner")));
    let upscaler = Spoilt::new(Model::Sd2).with("model.diffusion_model.label_emb.weight", DType::F32, &[10, 32]);
    assert!(matches!(upscaler.refused(), ModelError::UnsupportedFamily { .. }));
}

#[test]
fn a_unet_that_is_told_the_guidance_is_known_by_its_matrix() {
    let told = |name: &str, shape: &[usize]| {
        Spoilt::new(Model::Sd1).with(&format!("model.diffusion_model.{name}"), DType::F32, shape)
    };
    assert!(!Spoilt::new(Model::Sd1).open().expect("sound").config().is_told_guidance());
    for name in ["time_embed.cond_proj.weight", "time_embedding.cond_proj.weight"] {
        let model = told(name, &[32, 256]).open().expect("sound");
        let DenoiserConfig::Unet(unet) = &model.config().denoiser else { panic!("a U-Net") };
        assert_eq!((unet.guidance, model.config().is_told_guidance()), (Some(256), true));
        assert_eq!(model.unknown_tensors().count(), 0);
    }
    let bad = told("time_embed.cond_proj.weight", &[32]).refused();
    assert!(matches!(&bad, ModelError::BadPartTensor { part: Part::Denoiser, .. }), "{bad:?}");
}

#[test]
fn parts_of_different_models_are_refused() {
    let disagrees = |model: &Spoilt| match model.refused() {
        ModelError::PartsDisagree { part, got, want, .. } => (part, got, want),
        other => panic!("{other:?}"),
    };
    let mut model = Spoilt::new(Model::Sd1);
    model.paths.vae = model.beside("vae.safetensors", &fixture("vae-16").tensors(""));
    assert_eq!(disagrees(&model), (Part::Vae, 16, 4));
    let mut model = Spoilt::new(Model::Sd1);
    model.paths.clip_l = model.beside("clip.safetensors", &fixture("clip-g-sd3").tensors(""));
    assert_eq!(disagrees(&model), (Part::ClipL, 64, 32));
    // SDXL's names over a U-Net of SD 1.
    let model = Spoilt::new(Model::Sdxl).with(
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        DType::F32,
        &[64, 32],
    );
    assert_eq!(disagrees(&model), (Part::ClipG, 96, 32));
    let mut model = Spoilt::new(Model::Sd3);
    model.paths.clip_l = model.beside("clip.safetensors", &fixture("clip-g-sd3").tensors(""));
    assert_eq!(disagrees(&model), (Part::ClipG, 128, 96));
}

#[test]
fn damaged_tensors_are_named() {
    let bad = |model: &Spoilt| match model.refused() {
        ModelError::BadPartTensor { part, tensor, shape, .. } => (part, tensor.as_str().to_owned(), shape),
        other => panic!("{other:?}"),
    };
    let qkv = "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight";
    let got = bad(&Spoilt::new(Model::Sd3).with(qkv, DType::F32, &[191, 64]));
    assert_eq!(got, (Part::Denoiser, qkv.to_owned(), Shape::from([191, 64])));
    let last = "model.diffusion_model.final_layer.adaLN_modulation.1.bias";
    assert_eq!(bad(&Spoilt::new(Model::Sd3).with(last, DType::F32, &[127])).1, last);
    let table = "model.diffusion_model.pos_embed";
    assert_eq!(bad(&Spoilt::new(Model::Sd3).with(table, DType::F32, &[64])).1, table);
    assert_eq!(bad(&Spoilt::new(Model::Sd3).with(table, DType::F32, &[1, 143, 64])).1, "pos_embed.pos_embed");
    let turned = "conditioner.embedders.1.model.text_projection";
    assert_eq!(bad(&Spoilt::new(Model::Sdxl).with(turned, DType::F32, &[64])).1, turned);
    let attention = "first_stage_model.decoder.mid.attn_1.q.weight";
    assert_eq!(bad(&Spoilt::new(Model::Sd1).with(attention, DType::F32, &[64, 64, 3, 3])).1, attention);
    let bias = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    assert_eq!(bad(&Spoilt::new(Model::Sd3).with(bias, DType::F32, &[32, 5])).0, Part::T5);

    let lost = Spoilt::new(Model::Sd1).without("model.diffusion_model.input_blocks.0.0.weight");
    match lost.refused() {
        ModelError::MissingPartTensor { part: Part::Denoiser, tensor, .. } => assert_eq!(tensor, "conv_in.weight"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn scales_beside_weights_are_not_ignored() {
    for name in ["model.diffusion_model.input_blocks.1.1.proj_in.scale_weight", "scaled_fp8"] {
        match Spoilt::new(Model::Sd1).with(name, DType::F32, &[1]).refused() {
            ModelError::ScaledWeights { tensor, .. } => assert!(tensor.to_string().contains(name), "{tensor}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn blocks_that_cannot_be_decoded_are_not_taken_apart() {
    let folder = Folder::new();
    let mut tensors = Spoilt::new(Model::Sdxl).tensors;
    tensors.retain(|tensor| !tensor.shape.is_empty());
    for tensor in &mut tensors {
        if tensor.name.ends_with("text_projection") {
            *tensor = Tensor::counted(&tensor.name, DType::IQ2S, &[256, 256]);
        }
    }
    match ImageModel::open(&ImagePaths::new(folder.gguf("m.gguf", &[], &tensors))).expect_err("must be refused") {
        ModelError::BlocksApart { part: Part::ClipG, dtype: DType::IQ2S, .. } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn input_channels_tell_inpainting() {
    let first = "model.diffusion_model.input_blocks.0.0.weight";
    let opened = Spoilt::new(Model::Sd1).with(first, DType::F32, &[32, 9, 3, 3]).open().expect("sound");
    assert!(opened.config().inpainting);
    assert_eq!(opened.config().latent_channels, 4);
    match Spoilt::new(Model::Sd1).with(first, DType::F32, &[32, 8, 3, 3]).refused() {
        ModelError::UnsupportedFeature { value, .. } => assert_eq!(value, "8"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_model_predicts_is_written_or_shows() {
    let predicts = |model: &Spoilt| model.open().expect("sound").config().prediction;
    let written = |text: &str| Spoilt::new(Model::Sdxl).metadata(&format!("\"modelspec.prediction_type\":\"{text}\""));
    assert_eq!(predicts(&written("v")), Prediction::V);
    assert_eq!(predicts(&written("epsilon")), Prediction::Noise);
    assert_eq!(predicts(&Spoilt::new(Model::Sdxl)), Prediction::Noise);
    let marked = Spoilt::new(Model::Sdxl).with("v_pred", DType::F32, &[0]).with("ztsnr", DType::F32, &[0]);
    let config = marked.open().expect("sound").config().clone();
    assert_eq!((config.prediction, config.schedule.zero_terminal_snr), (Prediction::V, Some(true)));

    // SD 2: the spread of a bias, which is 0.05 here and 0.2 there, around any mean.
    let spread = |by: f32| {
        let name = "model.diffusion_model.output_blocks.5.1.transformer_blocks.0.norm1.bias";
        let mut model = Spoilt::new(Model::Sd2);
        let tensor = model.tensors.iter_mut().find(|tensor| tensor.name == name).expect("there is one");
        let values = (0..tensor.shape[0]).flat_map(|i| (3.0 + if i % 2 == 0 { by } else { -by }).to_le_bytes());
        tensor.bytes = values.collect();
        model
    };
    assert_eq!(predicts(&spread(0.05)), Prediction::Noise);
    assert_eq!(predicts(&spread(0.2)), Prediction::V);
    // Models that inpaint predict the noise.
    let first = "model.diffusion_model.input_blocks.0.0.weight";
    assert_eq!(predicts(&spread(0.2).with(first, DType::F32, &[32, 9, 3, 3])), Prediction::Noise);
}

#[test]
fn a_tensor_nobody_knows_is_counted_and_does_no_harm() {
    let name = "model.diffusion_model.input_blocks.1.0.something.weight";
    let opened = Spoilt::new(Model::Sd1).with(name, DType::F32, &[2]).open().expect("sound");
    assert_eq!(opened.unknown_tensors().map(|(_, spec)| spec.name.as_str()).collect::<Vec<_>>(), [name]);
}

#[test]
fn a_file_that_changes_is_noticed() {
    let model = Spoilt::new(Model::Sd1);
    let opened = model.open().expect("sound");
    let clip = opened.require(Part::ClipL).expect("there is one");
    let file = std::fs::OpenOptions::new().write(true).open(opened.path()).expect("there");
    file.set_len(100).expect("writable");
    assert!(matches!(clip.verify_unchanged(), Err(ModelError::Weights(_))));
    let name = "embeddings.token_embedding.weight";
    assert!(matches!(clip.read_at(name, 0, &mut [0; 4]), Err(ModelError::Weights(_))));
    assert!(matches!(clip.read_at("no", 0, &mut []), Err(ModelError::MissingPartTensor { .. })));
}

#[test]
fn no_shape_does_harm() {
    let shapes: [&[usize]; 7] = [&[], &[0], &[1], &[3, 1], &[1, 1, 1, 1], &[2, 3, 0], &[1 << 40, 0]];
    for kind in [Model::Sd1, Model::Sdxl, Model::Sd35] {
        let model = Spoilt::new(kind);
        let step = model.tensors.len() / 20;
        for (i, at) in (0..model.tensors.len()).step_by(step.max(1)).enumerate() {
            let mut tensors = model.tensors.clone();
            let spoilt = &mut tensors[at];
            *spoilt = Tensor::counted(&spoilt.name.clone(), DType::F32, shapes[i % shapes.len()]);
            let path = model.folder.safetensors("m.safetensors", &tensors);
            let Ok(opened) = ImageModel::open(&ImagePaths::new(path)) else { continue };
            for weights in opened.parts() {
                for spec in weights.tensors() {
                    let mut bytes = vec![0; spec.bytes().expect("small").get().min(64) as usize];
                    weights.read_at(&spec.name, 0, &mut bytes).expect("readable");
                }
            }
        }
    }
}

#[test]
fn one_file_given_for_several_parts_is_no_riddle() {
    let mut model = Spoilt::new(Model::Sdxl);
    let whole = model.beside("whole.safetensors", &model.tensors);
    model.paths = ImagePaths { vae: whole.clone(), clip_l: whole.clone(), clip_g: whole.clone(), ..model.paths };
    let opened = model.open().expect("sound");
    assert_eq!(opened.require(Part::ClipG).expect("given").path(), whole.expect("written").as_path());
    assert_eq!(opened.unknown_tensors().count(), 0);
}
