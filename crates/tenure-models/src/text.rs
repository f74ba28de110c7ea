//! From a file to a recorded step.

use std::cell::RefCell;
use std::ops::Range;

use tenure_graph::{Graph, OutputId, Plan, StepShape, WeightCatalog};
use tenure_tensor::TensorSpec;
use tenure_weights::WeightStore;

use crate::config::{TextArchitecture, TextConfig};
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::{gemma3, llama, qwen2, qwen3};

/// What a recorded step hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// [`OutputId::Logits`], or [`OutputId::Hidden`] of a part without the head.
    Logits,
    /// And what each layer gives ([`OutputId::Layer`]), for checks; the arena then holds all of it at once.
    LogitsAndLayers,
}

/// What of a model a plan is of: parts that run one after the other may be on different devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The embedding, and the layers before that one, counted from 0; it hands out [`OutputId::Hidden`].
    Before(usize),
    /// The layers from that one on, and the head; it takes what the part before hands out.
    From(usize),
}

impl Part {
    /// Its layers, of a model of so many.
    pub fn layers(self, of: usize) -> Range<usize> {
        match self {
            Part::Whole => 0..of,
            Part::Before(end) => 0..end.min(of),
            Part::From(first) => first.min(of)..of,
        }
    }
}

/// Records one step of the model in `store`, or of a part of it.
///
/// Two recordings of one file and part list the same weights in the same order, whatever their shape.
///
/// # Errors
/// [`ModelError`] naming the tensor that is missing, misshapen, or of a type not computed with.
pub fn record(
    store: &WeightStore,
    config: &TextConfig,
    part: Part,
    shape: StepShape,
    outputs: Outputs,
) -> Result<Plan, ModelError> {
    let catalog = Tensors(store);
    let g = Graph::new(&catalog, shape);
    let decoder = Decoder { g: &g, config, part, given: RefCell::default() };
    let result = match config.architecture {
        TextArchitecture::Llama => llama::record(&decoder),
        TextArchitecture::Qwen2 => qwen2::record(&decoder),
        TextArchitecture::Qwen3 => qwen3::record(&decoder),
        TextArchitecture::Gemma3 => gemma3::record(&decoder),
    };
    let given = decoder.given.take();
    let mut handed_out = match part {
        Part::Whole | Part::From(_) => vec![(OutputId::Logits, result)],
        Part::Before(_) => vec![(OutputId::Hidden, result)],
    };
    if outputs == Outputs::LogitsAndLayers {
        handed_out.extend(decoder.layers().map(|layer| OutputId::Layer(layer as u32)).zip(given));
    }
    Ok(g.finish(&handed_out)?)
}

struct Tensors<'s>(&'s WeightStore);

impl WeightCatalog for Tensors<'_> {
    fn find(&self, name: &str) -> Option<&TensorSpec> {
        self.0.find(name).map(|tensor| tensor.spec())
    }
}
