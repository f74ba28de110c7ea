//! From a file to a recorded step.

use std::cell::RefCell;

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
    /// [`OutputId::Logits`].
    Logits,
    /// And what each layer gives ([`OutputId::Layer`]), for checks; the arena then holds all of it at once.
    LogitsAndLayers,
}

/// Records one step of the model in `store`.
///
/// Two recordings of one file list the same weights in the same order, whatever their shape.
///
/// # Errors
/// [`ModelError`] naming the tensor that is missing, misshapen, or of a type not computed with.
pub fn record(
    store: &WeightStore,
    config: &TextConfig,
    shape: StepShape,
    outputs: Outputs,
) -> Result<Plan, ModelError> {
    let catalog = Tensors(store);
    let g = Graph::new(&catalog, shape);
    let decoder = Decoder { g: &g, config, layers: RefCell::default() };
    let logits = match config.architecture {
        TextArchitecture::Llama => llama::record(&decoder),
        TextArchitecture::Qwen2 => qwen2::record(&decoder),
        TextArchitecture::Qwen3 => qwen3::record(&decoder),
        TextArchitecture::Gemma3 => gemma3::record(&decoder),
    };
    let layers = decoder.layers.take();
    let mut handed_out = vec![(OutputId::Logits, logits)];
    if outputs == Outputs::LogitsAndLayers {
        handed_out.extend((0..).map(OutputId::Layer).zip(layers));
    }
    Ok(g.finish(&handed_out)?)
}

struct Tensors<'s>(&'s WeightStore);

impl WeightCatalog for Tensors<'_> {
    fn find(&self, name: &str) -> Option<&TensorSpec> {
        self.0.find(name).map(|tensor| tensor.spec())
    }
}
