//! Layouts other than one file with the original names: diffusers folders, parts beside each other, GGUF.

use tenure_graph::{Activation, WeightCatalog};
use tenure_models::ModelError;
use tenure_models::image::{
    ClipConfig, ClipTaken, DenoiserConfig, ImageFamily, ImageModel, ImagePaths, LatentScale, Part, PartWeights,
    Prediction, UnetConfig, record_taesd_decoder, record_taesd_encoder,
};
use tenure_tensor::{DType, codec};
use tenure_weights::TrustFile;
use tenure_weights::gguf::KvValue;

use crate::files::{Folder, Tensor};
use crate::layouts::{Fixture, Form, Model, fixture, model};
use crate::published::check;
use crate::rules::Spoilt;

/// The parts of a model as diffusers names them, as a fixture of what their files hold.
fn in_diffusers(kind: Model, prefix: impl Fn(Part) -> &'static str) -> Vec<(Part, Fixture)> {
    let (_, mut parts) = model(kind);
    for (part, fixture) in &mut parts {
        fixture.prefix = prefix(*part).to_owned();
        fixture.sources = fixture.targets.iter().map(|target| (target.name.clone(), target.shape.clone())).collect();
        fixture.unused.clear();
        for (at, target) in fixture.targets.iter_mut().enumerate() {
            (target.source, target.form) = (at, Form::All);
        }
    }
    parts
}

/// Nothing before the names, but what transformers has before those of encoders.
fn plain(part: Part) -> &'static str {
    match part {
        Part::ClipL | Part::ClipG | Part::ClipH => "text_model.",
        Part::T5 | Part::Denoiser | Part::Vae | Part::Taesd => "",
    }
}

/// Writes a diffusers folder; `file`: a component's files from its tensors.
fn folder_of(kind: Model, file: impl Fn(&Folder, &str, &[Tensor])) -> (Folder, Vec<Tensor>, Vec<(Part, Fixture)>) {
    let (folder, parts) = (Folder::new(), in_diffusers(kind, plain));
    let transformer = matches!(kind, Model::Sd3 | Model::Sd35);
    let mut components = vec!["\"_class_name\":\"Some\"".to_owned(), "\"feature_extractor\":[null,null]".to_owned()];
    let mut all = Vec::new();
    for (part, fixture) in &parts {
        let (name, class) = match part {
            Part::ClipL | Part::ClipH => ("text_encoder", "CLIPTextModel"),
            Part::ClipG => ("text_encoder_2", "CLIPTextModelWithProjection"),
            Part::T5 => ("text_encoder_3", "T5EncoderModel"),
            Part::Denoiser if transformer => ("transformer", "SD3Transformer2DModel"),
            Part::Denoiser => ("unet", "UNet2DConditionModel"),
            Part::Vae => ("vae", "AutoencoderKL"),
            Part::Taesd => continue,
        };
        components.push(format!("\"{name}\":[\"x\",\"{class}\"]"));
        let mut tensors = fixture.tensors(&fixture.prefix);
        // Projections stand outside the encoder.
        for tensor in &mut tensors {
            tensor.name = tensor.name.replace("text_model.text_projection", "text_projection");
        }
        file(&folder, name, &tensors);
        all.extend(tensors);
    }
    components.push("\"scheduler\":[\"x\",\"PNDMScheduler\"]".to_owned());
    folder.write("model_index.json", format!("{{{}}}", components.join(",")));
    (folder, all, parts)
}

fn stem(component: &str) -> &'static str {
    if component.starts_with("text_encoder") { "model" } else { "diffusion_pytorch_model" }
}

fn one_file(folder: &Folder, component: &str, tensors: &[Tensor]) {
    folder.safetensors(&format!("{component}/{}.safetensors", stem(component)), tensors);
}

#[test]
fn diffusers_folders_are_found_whole() {
    for kind in [Model::Sd1, Model::Sd2, Model::Sdxl, Model::Sd3, Model::Sd35] {
        let (folder, _, parts) = folder_of(kind, one_file);
        let opened = ImageModel::open(&ImagePaths::new(folder.path())).expect("sound");
        assert_eq!(opened.parts().len(), parts.len());
        for (part, fixture) in &parts {
            let weights = opened.require(*part).expect("there is one");
            let got: Vec<_> = weights.tensors().map(|spec| (spec.name.clone(), spec.shape.dims().to_vec())).collect();
            let mut want = fixture.sources.clone();
            want.sort();
            assert_eq!(got, want, "{part}");
        }
        assert_eq!(opened.unknown_tensors().count(), 0);
    }
}

#[test]
fn a_folders_settings_count() {
    let (folder, ..) = folder_of(Model::Sd2, one_file);
    let open = || ImageModel::open(&ImagePaths::new(folder.path()));
    let config = open().expect("sound").config().clone();
    assert_eq!(config.denoiser, DenoiserConfig::Unet(UnetConfig { heads: vec![1, 1], guidance: None }));

    folder.write("unet/config.json", r#"{"attention_head_dim":[4,8],"num_attention_heads":null}"#);
    folder.write("text_encoder/config.json", r#"{"num_attention_heads":4,"hidden_act":"gelu"}"#);
    folder.write("vae/config.json", r#"{"scaling_factor":0.5,"shift_factor":0.25,"latents_mean":null}"#);
    let scheduler = r#"{"_class_name":"DDIMScheduler","prediction_type":"v_prediction","set_alpha_to_one":false,
        "timestep_spacing":"leading","steps_offset":1,"beta_start":0.00085,"rescale_betas_zero_snr":true}"#;
    folder.write("scheduler/scheduler_config.json", scheduler);
    let config = open().expect("sound").config().clone();
    assert_eq!(config.prediction, Prediction::V);
    assert_eq!(config.denoiser, DenoiserConfig::Unet(UnetConfig { heads: vec![4, 8], guidance: None }));
    assert_eq!(config.latent_scale, LatentScale { scale: 0.5, shift: 0.25 });
    let clip = ClipConfig { heads: 4, activation: Activation::Gelu, taken: ClipTaken::Last };
    assert_eq!(config.clip(Part::ClipH), Some(&clip));
    let schedule = config.schedule;
    assert_eq!(schedule.class.as_deref(), Some("DDIMScheduler"));
    assert_eq!((schedule.set_alpha_to_one, schedule.zero_terminal_snr), (Some(false), Some(true)));
    assert_eq!(schedule.steps_offset, Some(1));
    assert_eq!((schedule.beta_start, schedule.beta_end, schedule.shift), (Some(0.00085), None, None));

    let refused = |file: &str, text: &str| {
        let old = std::fs::read(folder.path().join(file)).expect("written above");
        folder.write(file, text);
        let error = open().expect_err("must be refused");
        folder.write(file, old);
        error
    };
    for text in [r#"{"attention_head_dim":0}"#, r#"{"attention_head_dim":7}"#, r#"{"attention_head_dim":[1,2,3]}"#] {
        let error = refused("unet/config.json", text);
        assert!(matches!(error, ModelError::BadHyperparameter { .. }), "{text}: {error:?}");
    }
    for text in [r#"{"attention_head_dim":"x"}"#, r#"{"attention_head_dim":-1}"#, "{", "[]"] {
        let error = refused("unet/config.json", text);
        assert!(matches!(error, ModelError::Weights(_)), "{text}: {error:?}");
    }
    for (file, text) in [
        ("scheduler/scheduler_config.json", r#"{"prediction_type":"other"}"#),
        ("text_encoder/config.json", r#"{"hidden_act":"tanh"}"#),
        ("vae/config.json", r#"{"latents_mean":[0.0]}"#),
    ] {
        let error = refused(file, text);
        assert!(matches!(error, ModelError::UnsupportedFeature { .. }), "{text}: {error:?}");
    }
    let error = refused("vae/config.json", r#"{"scaling_factor":0}"#);
    assert!(matches!(error, ModelError::BadHyperparameter { .. }), "{error:?}");
}

#[test]
fn a_folders_variants_and_shards_are_found() {
    // The U-Net in two sets, the autoencoder in the variant only, the encoder plain and in shards.
    let (folder, ..) = folder_of(Model::Sd1, |folder, component, tensors| match component {
        "unet" => {
            one_file(folder, component, tensors);
            folder.safetensors("unet/diffusion_pytorch_model.fp16.safetensors", tensors);
        }
        "vae" => drop(folder.safetensors("vae/diffusion_pytorch_model.fp16.safetensors", tensors)),
        _ => {
            let mut map = Vec::new();
            for (i, half) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
                let shard = format!("model-{:05}-of-00002.safetensors", i + 1);
                folder.safetensors(&format!("{component}/{shard}"), half);
                map.extend(half.iter().map(|tensor| format!("\"{}\":\"{shard}\"", tensor.name)));
            }
            let index = format!("{{\"weight_map\":{{{}}}}}", map.join(","));
            folder.write(&format!("{component}/model.safetensors.index.json"), index);
        }
    });
    let open = |variant: Option<&str>| {
        let variant = variant.map(str::to_owned);
        ImageModel::open(&ImagePaths { variant, ..ImagePaths::new(folder.path()) })
    };
    let file = |opened: &ImageModel, part| {
        let path = opened.require(part).expect("there is one").path();
        path.file_name().expect("a file").to_str().expect("plain").to_owned()
    };
    for (variant, want) in
        [(None, "diffusion_pytorch_model.safetensors"), (Some("fp16"), "diffusion_pytorch_model.fp16.safetensors")]
    {
        let opened = open(variant).expect("sound");
        assert_eq!(file(&opened, Part::Denoiser), want);
        assert_eq!(file(&opened, Part::Vae), "diffusion_pytorch_model.fp16.safetensors");
        assert_eq!(opened.require(Part::ClipL).expect("there is one").files().len(), 2);
        assert_eq!(opened.unknown_tensors().count(), 0);
    }
    assert!(matches!(open(Some("int8")), Err(ModelError::NoVariant { .. })));
    // The components' folders by themselves.
    let beside = |variant: Option<&str>| {
        let component = |name: &str| Some(folder.path().join(name));
        ImageModel::open(&ImagePaths {
            model: folder.path().join("unet"),
            vae: component("vae"),
            clip_l: component("text_encoder"),
            variant: variant.map(str::to_owned),
            ..ImagePaths::default()
        })
    };
    assert_eq!(file(&beside(None).expect("sound"), Part::Denoiser), "diffusion_pytorch_model.safetensors");
    assert_eq!(file(&beside(Some("fp16")).expect("sound"), Part::Denoiser), "diffusion_pytorch_model.fp16.safetensors");
    assert!(matches!(beside(Some("int8")), Err(ModelError::NoVariant { .. })));
    let (other, ..) = folder_of(Model::Sd1, one_file);
    let index = std::fs::read_to_string(other.path().join("model_index.json")).expect("written above");
    other.write("model_index.json", index.replace("UNet2DConditionModel", "FluxTransformer2DModel"));
    match ImageModel::open(&ImagePaths::new(other.path())) {
        Err(ModelError::UnsupportedFamily { name, .. }) => assert_eq!(name, "FluxTransformer2DModel"),
        other => panic!("{other:?}"),
    }
    let one = Spoilt::new(Model::Sd1);
    let path = one.folder.safetensors("m.safetensors", &one.tensors);
    let paths = ImagePaths { variant: Some("fp16".into()), ..ImagePaths::new(path) };
    assert!(matches!(ImageModel::open(&paths), Err(ModelError::NoVariant { .. })));
}

#[test]
fn parts_beside_each_other_are_found_whole() {
    for denoiser in ["", "model.diffusion_model."] {
        let (_, mut parts) = model(Model::Sdxl);
        let mut tensors = Vec::new();
        let folder = Folder::new();
        let mut paths = ImagePaths::default();
        for (part, fixture) in &mut parts {
            fixture.prefix = if *part == Part::Denoiser { denoiser } else { "" }.to_owned();
            let of_part = fixture.tensors(&fixture.prefix);
            let file = folder.safetensors(&format!("{part:?}.safetensors"), &of_part);
            match part {
                Part::Denoiser => paths.model = file,
                Part::Vae => paths.vae = Some(file),
                Part::ClipL => paths.clip_l = Some(file),
                Part::ClipG => paths.clip_g = Some(file),
                Part::ClipH | Part::T5 | Part::Taesd => {}
            }
            // Names are compared part by part.
            tensors.push(of_part);
        }
        let opened = ImageModel::open(&paths).expect("sound");
        for (one, of_part) in parts.chunks(1).zip(&tensors) {
            let (part, fixture) = &one[0];
            let used: Vec<&str> = opened.require(*part).expect("given").sources().collect();
            let want = fixture.sources.len() - fixture.unused.len();
            assert_eq!(used.len(), want, "{part}");
            assert!(used.iter().all(|name| of_part.iter().any(|tensor| tensor.name == *name)));
        }
        assert_eq!(opened.unknown_tensors().count(), 0);
    }
}

#[test]
fn diffusers_names_are_found_in_files_by_themselves() {
    let parts = in_diffusers(Model::Sd1, plain);
    let folder = Folder::new();
    let file = |part: Part| {
        let (_, fixture) = parts.iter().find(|(other, _)| *other == part).expect("there is one");
        folder.safetensors(&format!("{part:?}.safetensors"), &fixture.tensors(&fixture.prefix))
    };
    let paths = ImagePaths {
        vae: Some(file(Part::Vae)),
        clip_l: Some(file(Part::ClipL)),
        ..ImagePaths::new(file(Part::Denoiser))
    };
    let opened = ImageModel::open(&paths).expect("sound");
    for (part, fixture) in &parts {
        assert_eq!(opened.require(*part).expect("given").tensors().len(), fixture.targets.len(), "{part}");
    }
    assert_eq!(opened.unknown_tensors().count(), 0);
}

#[test]
fn older_names_are_found() {
    // CLIP before it was wrapped once more, and an autoencoder of diffusers before 0.17.
    let mut model = Spoilt::new(Model::Sd1);
    for tensor in &mut model.tensors {
        tensor.name = tensor.name.replace("transformer.text_model.", "transformer.");
    }
    let mut vae = fixture("vae-4").in_diffusers("");
    let old = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
    for tensor in &mut vae {
        for (new, old) in old {
            tensor.name = tensor.name.replace(&format!("attentions.0.{new}."), &format!("attentions.0.{old}."));
        }
    }
    assert!(vae.iter().any(|tensor| tensor.name.contains("proj_attn")));
    model.paths.vae = model.beside("vae.safetensors", &vae);
    let opened = model.open().expect("sound");
    let names = |name: &str| fixture(name).targets.into_iter().map(|target| target.name).collect::<Vec<_>>();
    let of =
        |part| opened.require(part).expect("there is one").tensors().map(|spec| spec.name.clone()).collect::<Vec<_>>();
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(of(Part::ClipL), sorted(names("clip-l-sd1")));
    assert_eq!(of(Part::Vae), sorted(names("vae-4")));
    assert_eq!(opened.unknown_tensors().count(), 0);
}

/// What stable-diffusion.cpp writes: OpenCLIP's encoders under transformers' names, their fused matrix divided, their
/// projection as it was, and projections of transformers as kernels of one pixel.
#[test]
fn names_of_stable_diffusion_cpp_are_found() {
    let (tensors, parts) = model(Model::Sdxl);
    let (_, g) = parts.iter().find(|(part, _)| *part == Part::ClipG).expect("there is one");
    let mut renamed: Vec<Tensor> = Vec::new();
    for tensor in tensors.into_iter().filter(|tensor| !tensor.shape.is_empty()) {
        let name = tensor.name.replace("conditioner.embedders.0.", "cond_stage_model.");
        if name.starts_with("conditioner.embedders.1.") {
            continue;
        }
        let square = name.starts_with("model.diffusion_model.")
            && (name.ends_with(".proj_in.weight") || name.ends_with(".proj_out.weight"));
        let shape = if square { [tensor.shape.as_slice(), &[1, 1]].concat() } else { tensor.shape.clone() };
        renamed.push(Tensor { name, shape, ..tensor });
    }
    for target in &g.targets {
        let name = match target.name.as_str() {
            "text_projection.weight" => "text_projection",
            name => name,
        };
        let name = format!("cond_stage_model.1.transformer.text_model.{name}");
        renamed.push(Tensor::counted(&name, DType::F32, &target.shape));
    }
    let folder = Folder::new();
    let opened = ImageModel::open(&ImagePaths::new(folder.gguf("m.gguf", &[], &renamed))).expect("sound");
    assert_eq!(opened.config().family, ImageFamily::Sdxl);
    let clip = opened.require(Part::ClipG).expect("there is one");
    assert_eq!(clip.tensors().len(), g.targets.len());
    let source = renamed.last_of("text_projection");
    assert_eq!(bytes_of(clip, "text_projection.weight"), Form::Transposed.of(source));
    assert_eq!(clip.map("text_projection.weight", TrustFile).expect("mappable").map(|bytes| bytes.len()), None);
    assert_eq!(opened.unknown_tensors().count(), 0);
    // The recorders take a kernel of one pixel for a matrix.
    let DenoiserConfig::Unet(unet) = &opened.config().denoiser else { panic!("not a U-Net") };
    let grid = tenure_graph::Grid { images: 1, height: 16, width: 8 };
    let denoiser = opened.require(Part::Denoiser).expect("there is one");
    tenure_models::image::record_unet(denoiser, unet, grid, 77).expect("complete");
}

/// The same of SD 2: all layers that OpenCLIP has, of which the last is not used.
#[test]
fn the_last_layer_of_sd2s_encoder_is_left_out_under_either_name() {
    let h = fixture("clip-h-sd2");
    let published = h.targets.iter().map(|target| (target.name.clone(), target.shape.clone())).collect::<Vec<_>>();
    let mut renamed = published.clone();
    for (name, shape) in &published {
        if name.starts_with("encoder.layers.22.") {
            renamed.push((name.replace("layers.22.", "layers.23."), shape.clone()));
        }
    }
    renamed.push(("text_projection".to_owned(), vec![32, 32]));
    for (names, last) in [(renamed, true), (published, false)] {
        let tensors = names.iter().map(|(name, shape)| {
            Tensor::counted(&format!("cond_stage_model.transformer.text_model.{name}"), DType::F32, shape)
        });
        let model = Spoilt::new(Model::Sd2).without("cond_stage_model.").with_all(tensors.collect());
        let opened = model.open().expect("sound");
        let clip = opened.require(Part::ClipH).expect("there is one");
        let mut want: Vec<_> = h.targets.iter().map(|target| target.name.as_str()).collect();
        want.sort_unstable();
        assert_eq!(clip.tensors().map(|spec| spec.name.as_str()).collect::<Vec<_>>(), want, "{last}");
        assert_eq!(opened.unknown_tensors().count(), 0, "{last}");
    }
}

trait Last {
    fn last_of(&self, end: &str) -> &Tensor;
}

impl Last for Vec<Tensor> {
    fn last_of(&self, end: &str) -> &Tensor {
        self.iter().rfind(|tensor| tensor.name.ends_with(end)).expect("there is one")
    }
}

fn bytes_of(weights: &PartWeights, name: &str) -> Vec<u8> {
    let mut bytes = vec![0; weights.find(name).expect("there is one").bytes().expect("small").get() as usize];
    weights.read_at(name, 0, &mut bytes).expect("readable");
    bytes
}

#[test]
fn quantised_rows_are_divided() {
    let (tensors, parts) = model(Model::Sd35);
    let quantised = |tensor: Tensor| {
        let matrix = tensor.shape.len() == 2 && tensor.shape[1].is_multiple_of(32) && !tensor.name.ends_with("embed");
        if matrix { Tensor::counted(&tensor.name, DType::Q8_0, &tensor.shape) } else { tensor }
    };
    let tensors: Vec<Tensor> = tensors.into_iter().map(quantised).collect();
    let folder = Folder::new();
    let opened = ImageModel::open(&ImagePaths::new(folder.gguf("m.gguf", &[], &tensors))).expect("sound");
    let spec = opened.require(Part::Denoiser).expect("there is one").find("transformer_blocks.1.attn2.to_v.weight");
    assert_eq!(spec.map(|spec| spec.dtype), Some(DType::Q8_0));
    check(&opened, &tensors, &parts);
}

#[test]
fn a_table_of_positions_may_lack_its_outer_one() {
    let mut model = Spoilt::new(Model::Sd3);
    for tensor in &mut model.tensors {
        if tensor.name.ends_with("pos_embed") {
            tensor.shape = vec![144, 64];
        }
    }
    let path = model.folder.gguf("m.gguf", &[], &model.tensors);
    let opened = ImageModel::open(&ImagePaths::new(path)).expect("sound");
    let spec = opened.require(Part::Denoiser).expect("there is one").find("pos_embed.pos_embed").expect("there is one");
    assert_eq!(spec.shape.dims(), [1, 144, 64]);
}

/// ComfyUI-GGUF lays kernels and narrow matrices out in rows of 256, and writes their shapes down.
#[test]
fn elements_in_other_rows_are_found() {
    let written = |name: &str, shape: &[usize]| {
        let dims = shape.iter().map(|&dim| KvValue::I32(dim as i32)).collect();
        (format!("comfy.gguf.orig_shape.{name}"), KvValue::Array(tenure_weights::gguf::ValueType::I32, dims))
    };
    let (kernel, matrix, square) = (
        "middle_block.0.in_layers.2.weight",
        "middle_block.1.transformer_blocks.0.ff.net.2.weight",
        "input_blocks.1.1.proj_in.weight",
    );
    let (mut pairs, mut tensors) = (vec![("general.architecture".to_owned(), KvValue::Str("sd1".into()))], Vec::new());
    for tensor in fixture("unet-sd1").tensors("") {
        let dtype = match tensor.name.as_str() {
            name if name == kernel => DType::Q4K,
            name if name == matrix => DType::Q6K,
            name if name == square => DType::Q4_0,
            _ => {
                tensors.push(tensor);
                continue;
            }
        };
        let rows = tensor.shape.iter().product::<usize>() / 256;
        pairs.push(written(&tensor.name, &tensor.shape));
        tensors.push(Tensor::counted(&tensor.name, dtype, &[rows, 256]));
    }
    let folder = Folder::new();
    let pairs: Vec<(&str, KvValue)> = pairs.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    let open = |pairs: &[(&str, KvValue)]| {
        let paths = ImagePaths {
            vae: Some(folder.safetensors("vae.safetensors", &fixture("vae-4").tensors(""))),
            clip_l: Some(folder.safetensors("clip.safetensors", &fixture("clip-l-sd1").tensors(""))),
            ..ImagePaths::new(folder.gguf("m.gguf", pairs, &tensors))
        };
        ImageModel::open(&paths)
    };
    let opened = open(&pairs).expect("sound");
    assert_eq!(opened.config().family, ImageFamily::Sd1);
    let unet = opened.require(Part::Denoiser).expect("there is one");
    let decoded = |name: &str| {
        let stored = tensors.last_of(name);
        let mut values = vec![0.0; stored.shape.iter().product()];
        codec::dequantize(stored.dtype, &stored.bytes, &mut values).expect("has a codec");
        let mut bytes = Vec::new();
        codec::quantize(DType::F16, &values, &mut bytes).expect("plain");
        bytes
    };
    for (name, source, shape) in [
        ("mid_block.resnets.0.conv1.weight", kernel, vec![64, 64, 3, 3]),
        // 256 columns are whole blocks, which stay as they are.
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight", matrix, vec![64, 256]),
        ("down_blocks.0.attentions.0.proj_in.weight", square, vec![32, 32]),
    ] {
        let spec = unet.find(name).expect("there is one");
        assert_eq!(spec.shape.dims(), shape, "{name}");
        let want = match spec.dtype {
            DType::F16 => decoded(source),
            DType::Q6K | DType::Q4_0 => tensors.last_of(source).bytes.clone(),
            other => panic!("{other}"),
        };
        assert_eq!(spec.dtype == DType::F16, name.contains("conv1"), "{name}");
        assert!(bytes_of(unet, name) == want, "{name}");
        for (start, len) in [(0, 1), (1, 3), (want.len() / 2 + 1, 77), (want.len() - 5, 5)] {
            let mut got = vec![0; len];
            unet.read_at(name, start as u64, &mut got).expect("readable");
            assert!(got == want[start..start + len], "{name} from {start}, {len} bytes");
        }
    }
    // A shape of another number of elements.
    let wrong = pairs.iter().cloned().map(|(key, value)| match value {
        KvValue::Array(ty, mut dims) => {
            dims.push(KvValue::I32(2));
            (key, KvValue::Array(ty, dims))
        }
        other => (key, other),
    });
    let error = open(&wrong.collect::<Vec<_>>()).expect_err("must be refused");
    assert!(matches!(error, ModelError::BadPartTensor { part: Part::Denoiser, .. }), "{error:?}");
}

/// stable-diffusion.cpp quantises whatever has rows of whole blocks: norms, the projection that is turned over, and the
/// table of T5's biases too.
#[test]
fn blocks_are_decoded_where_they_cannot_stay() {
    let values = |tensor: &Tensor| {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        codec::dequantize(tensor.dtype, &tensor.bytes, &mut values).expect("has a codec");
        values
    };
    let coded = |dtype: DType, values: &[f32]| {
        let mut bytes = Vec::new();
        codec::quantize(dtype, values, &mut bytes).expect("plain");
        bytes
    };
    let folder = Folder::new();
    for dtype in [DType::Q8_0, DType::Q4_1, DType::BF16, DType::F16] {
        let mut tensors = model(Model::Sdxl).0;
        tensors.retain(|tensor| !tensor.shape.is_empty());
        for tensor in &mut tensors {
            if tensor.shape.last().is_some_and(|cols| cols % 32 == 0) {
                *tensor = Tensor::counted(&tensor.name, dtype, &tensor.shape);
            }
        }
        let opened = ImageModel::open(&ImagePaths::new(folder.gguf("m.gguf", &[], &tensors))).expect("sound");
        let clip = opened.require(Part::ClipG).expect("there is one");
        let source = tensors.last_of("embedders.1.model.text_projection");
        let (rows, cols) = (source.shape[0], source.shape[1]);
        let (plain, turned) = (values(source), clip.find("text_projection.weight").expect("there is one"));
        let columns = (0..rows * cols).map(|at| plain[at % rows * cols + at / rows]);
        assert_eq!(turned.dtype, if dtype.is_block() { DType::F16 } else { dtype });
        assert_eq!(turned.shape.dims(), [cols, rows]);
        let want = coded(turned.dtype, &columns.collect::<Vec<_>>());
        assert!(bytes_of(clip, "text_projection.weight") == want, "{dtype}");
        let mut some = vec![0; 77];
        clip.read_at("text_projection.weight", 99, &mut some).expect("readable");
        assert!(some == want[99..99 + 77], "{dtype}");

        let norm = clip.find("final_layer_norm.weight").expect("there is one");
        assert_eq!(norm.dtype, if dtype.is_block() { DType::F32 } else { dtype });
        let want = coded(norm.dtype, &values(tensors.last_of("embedders.1.model.ln_final.weight")));
        assert!(bytes_of(clip, "final_layer_norm.weight") == want, "{dtype}");
        assert_eq!(clip.is_contiguous("final_layer_norm.weight"), !dtype.is_block());
    }
    // The keys' biases of T5 are numbers, in rows of 32.
    let mut model = Spoilt::new(Model::Sd35).without("text_encoders.t5xxl.");
    let mut tensors = fixture("t5-gguf").tensors("");
    let name = "enc.blk.0.attn_rel_b.weight";
    for tensor in &mut tensors {
        if tensor.name == name {
            *tensor = Tensor::counted(name, DType::Q8_0, &[32, 32]);
        }
    }
    model.paths.t5 = Some(model.folder.gguf("t5.gguf", &[], &tensors));
    let opened = model.open().expect("sound");
    let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let got = bytes_of(opened.require(Part::T5).expect("given"), bias);
    assert!(got == coded(DType::F32, &values(tensors.last_of(name))));
}

#[test]
fn t5_is_found_in_llama_cpps_names_and_under_either_name_of_its_table() {
    let gguf = fixture("t5-gguf");
    let mut model = Spoilt::new(Model::Sd35).without("text_encoders.t5xxl.");
    let tensors = gguf.tensors("");
    model.paths.t5 = Some(model.folder.gguf("t5.gguf", &[], &tensors));
    let opened = model.open().expect("sound");
    let t5 = opened.require(Part::T5).expect("given");
    assert_eq!(t5.tensors().len(), gguf.targets.len());
    for target in &gguf.targets {
        let source = &tensors[target.source];
        assert_eq!(t5.find(&target.name).expect("there is one").shape.dims(), target.shape);
        assert!(bytes_of(t5, &target.name) == source.bytes, "{}", target.name);
    }

    for (names, want) in [
        (vec!["shared.weight", "encoder.embed_tokens.weight"], "shared.weight"),
        (vec!["encoder.embed_tokens.weight"], "encoder.embed_tokens.weight"),
    ] {
        let mut tensors = fixture("t5-sd3").tensors("");
        tensors.retain(|tensor| tensor.name != "shared.weight");
        tensors.extend(names.iter().map(|name| Tensor::counted(name, DType::F32, &[100, 64])));
        model.paths.t5 = model.beside("t5.safetensors", &tensors);
        let opened = model.open().expect("sound");
        let t5 = opened.require(Part::T5).expect("given");
        assert!(t5.sources().any(|name| name == want));
        assert_eq!(bytes_of(t5, "shared.weight"), tensors.last_of(want).bytes);
        assert_eq!(opened.unknown_tensors().count(), 0);
    }
}

/// The layers of a tiny autoencoder with one block a level, as its author counts them: the decoder's clamp, first kernel
/// and its function come before the first block.
fn taesd(decoder: &str, encoder: &str, clamp: usize, latents: usize) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    let mut layer = |name: String, shape: [usize; 4], bias: bool| {
        tensors.push(Tensor::counted(&format!("{name}.weight"), DType::F32, &shape));
        if bias {
            tensors.push(Tensor::counted(&format!("{name}.bias"), DType::F32, &shape[..1]));
        }
    };
    let d = |at: usize, part: &str| format!("{decoder}{}{part}", at - 1 + clamp);
    layer(d(1, ""), [16, latents, 3, 3], true);
    for level in 0..4 {
        let at = 3 + level * 3;
        for i in [0, 2, 4] {
            layer(d(at, &format!(".conv.{i}")), [16, 16, 3, 3], true);
        }
        if level < 3 {
            layer(d(at + 2, ""), [16, 16, 3, 3], false);
        } else {
            layer(d(at + 1, ""), [3, 16, 3, 3], true);
        }
    }
    let e = |at: usize, part: &str| format!("{encoder}{at}{part}");
    layer(e(0, ""), [16, 3, 3, 3], true);
    for level in 0..4 {
        let at = 1 + level * 2;
        for i in [0, 2, 4] {
            layer(e(at, &format!(".conv.{i}")), [16, 16, 3, 3], true);
        }
        let (shape, bias) = if level < 3 { ([16, 16, 3, 3], false) } else { ([latents, 16, 3, 3], true) };
        layer(e(at + 1, ""), shape, bias);
    }
    tensors
}

#[test]
fn tiny_autoencoders_are_found_beside_and_instead() {
    let numbered = taesd("decoder.", "encoder.", 1, 4);
    let diffusers = taesd("decoder.layers.", "encoder.layers.", 0, 4);
    let mut model = Spoilt::new(Model::Sd1);
    for tensors in [&numbered, &diffusers] {
        model.paths.taesd = model.beside("taesd.safetensors", tensors);
        let opened = model.open().expect("sound");
        assert!(opened.part(Part::Vae).is_some());
        let tiny = opened.require(Part::Taesd).expect("given");
        let mut want: Vec<_> = diffusers.iter().map(|tensor| tensor.name.as_str()).collect();
        want.sort_unstable();
        assert_eq!(tiny.tensors().map(|spec| spec.name.as_str()).collect::<Vec<_>>(), want);
        assert_eq!(bytes_of(tiny, "decoder.layers.0.weight"), tensors[0].bytes);
        let grid = |height, width| tenure_graph::Grid { images: 1, height, width };
        let plan = record_taesd_decoder(tiny, grid(8, 8)).expect("complete");
        let read = plan.weights().len() + record_taesd_encoder(tiny, grid(64, 64)).expect("complete").weights().len();
        assert_eq!(read, want.len());
        assert_eq!(opened.unknown_tensors().count(), 0);
    }
    // Its author publishes the decoder by itself, too.
    let decoder = numbered.iter().filter(|tensor| tensor.name.starts_with("decoder."));
    let decoder = decoder.map(|tensor| Tensor { name: tensor.name.replace("decoder.", ""), ..tensor.clone() });
    model.paths.taesd = model.beside("taesd_decoder.safetensors", &decoder.collect::<Vec<_>>());
    let opened = model.open().expect("sound");
    let tiny = opened.require(Part::Taesd).expect("given");
    record_taesd_decoder(tiny, tenure_graph::Grid { images: 1, height: 8, width: 8 }).expect("complete");
    assert_eq!(opened.unknown_tensors().count(), 0);

    let alone = model.without("first_stage_model.");
    assert!(alone.open().expect("sound").part(Part::Vae).is_none());
    let mut other = Spoilt::new(Model::Sd3);
    other.paths.taesd = other.beside("taesd.safetensors", &numbered);
    match other.open() {
        Err(ModelError::PartsDisagree { part: Part::Taesd, got: 4, want: 16, .. }) => {}
        other => panic!("{other:?}"),
    }
}
