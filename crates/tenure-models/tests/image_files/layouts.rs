//! What `fixtures/image-layouts/layouts.txt` says, and models put together of its parts.

use tenure_models::image::Part;
use tenure_tensor::DType;

use crate::files::Tensor;

/// A part in the layout of one-file checkpoints.
#[derive(Clone)]
pub(crate) struct Fixture {
    pub(crate) prefix: String,
    /// Names without the prefix, and shapes.
    pub(crate) sources: Vec<(String, Vec<usize>)>,
    pub(crate) targets: Vec<Target>,
    pub(crate) unused: Vec<String>,
}

/// A tensor as diffusers has it.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) source: usize,
    pub(crate) form: Form,
}

#[derive(Clone)]
pub(crate) enum Form {
    All,
    Transposed,
    Rows(Vec<(usize, usize)>),
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Model {
    Sd1,
    Sd2,
    Sdxl,
    Sd3,
    Sd35,
}

impl Form {
    /// The bytes of `source` in this form.
    pub(crate) fn of(&self, source: &Tensor) -> Vec<u8> {
        match self {
            Form::All => source.bytes.clone(),
            Form::Rows(ranges) => {
                let row = source.bytes.len() / source.shape[0];
                ranges.iter().flat_map(|&(a, b)| source.bytes[a * row..b * row].to_vec()).collect()
            }
            Form::Transposed => {
                let (rows, cols) = (source.shape[0], source.shape[1]);
                let size = source.dtype.block_bytes();
                let at = |r: usize, c: usize| &source.bytes[(r * cols + c) * size..][..size];
                (0..cols).flat_map(|c| (0..rows).flat_map(move |r| at(r, c).to_vec())).collect()
            }
        }
    }
}

/// The part called `name`.
pub(crate) fn fixture(name: &str) -> Fixture {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/image-layouts/layouts.txt");
    let text = std::fs::read_to_string(path).expect("the fixture is there");
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("part {name} ")));
    let prefix = lines.next().expect("there is such a part").rsplit(' ').next().expect("a prefix");
    let prefix = if prefix == "-" { "" } else { prefix }.to_owned();
    let mut fixture = Fixture { prefix, sources: Vec::new(), targets: Vec::new(), unused: Vec::new() };
    for line in lines.take_while(|line| !line.starts_with("part ")) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["s", name, shape] => fixture.sources.push((name.to_owned(), dims(shape))),
            ["c", name, shape, source, form] => {
                let source = source.parse().expect("a number");
                fixture.targets.push(Target { name: name.to_owned(), shape: dims(shape), source, form: form_of(form) });
            }
            [unused] => fixture.unused.push(unused.strip_prefix('-').expect("an unused tensor").to_owned()),
            _ => panic!("{line}"),
        }
    }
    fixture
}

/// All tensors of a model as one file has them, and its parts.
pub(crate) fn model(kind: Model) -> (Vec<Tensor>, Vec<(Part, Fixture)>) {
    let parts: &[(Part, &str)] = match kind {
        Model::Sd1 => &[(Part::Denoiser, "unet-sd1"), (Part::Vae, "vae-4"), (Part::ClipL, "clip-l-sd1")],
        Model::Sd2 => &[(Part::Denoiser, "unet-sd2"), (Part::Vae, "vae-4"), (Part::ClipH, "clip-h-sd2")],
        Model::Sdxl => &[
            (Part::Denoiser, "unet-sdxl"),
            (Part::Vae, "vae-4"),
            (Part::ClipL, "clip-l-sdxl"),
            (Part::ClipG, "clip-g-sdxl"),
        ],
        Model::Sd3 => &[
            (Part::Denoiser, "sd3-medium"),
            (Part::Vae, "vae-16"),
            (Part::ClipL, "clip-l-sd3"),
            (Part::ClipG, "clip-g-sd3"),
            (Part::T5, "t5-sd3"),
        ],
        Model::Sd35 => &[
            (Part::Denoiser, "sd35-medium"),
            (Part::Vae, "vae-16"),
            (Part::ClipL, "clip-l-sd3"),
            (Part::ClipG, "clip-g-sd3"),
            (Part::T5, "t5-sd3"),
        ],
    };
    let parts: Vec<(Part, Fixture)> = parts.iter().map(|&(part, name)| (part, fixture(name))).collect();
    let tensors = parts.iter().flat_map(|(_, part)| part.tensors(&part.prefix)).collect();
    (tensors, parts)
}

impl Fixture {
    /// The part's tensors, with another prefix.
    pub(crate) fn tensors(&self, prefix: &str) -> Vec<Tensor> {
        let named = |(name, shape): &(String, Vec<usize>)| {
            let dtype = if name.ends_with("position_ids") { DType::I64 } else { DType::F32 };
            Tensor::counted(&format!("{prefix}{name}"), dtype, shape)
        };
        self.sources.iter().map(named).collect()
    }

    /// The part's tensors as diffusers has them, with a prefix.
    pub(crate) fn in_diffusers(&self, prefix: &str) -> Vec<Tensor> {
        self.targets.iter().map(|t| Tensor::counted(&format!("{prefix}{}", t.name), DType::F32, &t.shape)).collect()
    }
}

fn dims(text: &str) -> Vec<usize> {
    if text == "-" { Vec::new() } else { text.split('x').map(|n| n.parse().expect("a number")).collect() }
}

fn form_of(text: &str) -> Form {
    let range = |text: &str| {
        let (a, b) = text.split_once(':').expect("a range");
        (a.parse().expect("a number"), b.parse().expect("a number"))
    };
    match text {
        "all" => Form::All,
        "t" => Form::Transposed,
        ranges => Form::Rows(ranges.split(',').map(range).collect()),
    }
}
