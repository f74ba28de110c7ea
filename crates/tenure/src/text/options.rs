//! What a caller may choose.

use tenure_device::Cancel;
use tenure_graph::KvType;
use tenure_sampling::SamplerParams;
pub use tenure_tokenizer::Message;

use crate::weights::WeightAccess;

/// How a text model is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct TextOptions {
    /// Positions of one sequence; `None`: what the model was trained for, at most 4096.
    pub context: Option<usize>,
    /// Sequences that can be open at a time.
    pub sequences: usize,
    /// Element type of the KV cache.
    pub kv: KvType,
    /// Rows of the largest step: prompts are computed in chunks of so many tokens.
    pub batch: usize,
    /// Rows of logits of the largest step; at least one for each sequence.
    pub logit_rows: usize,
    /// How weights are reached that the device can use as the file has them.
    pub access: WeightAccess,
    /// What of the model the engine's device computes; the host computes the rest.
    pub offload: Offload,
    /// Whether what the layers give is looked through in every step: an infinity, or what is no number, is then a
    /// `NonFiniteActivation` error with the first such layer, counted from 0. What is wrong with the embeddings shows in
    /// layer 0, what is wrong behind the last layer in the logits, which the sampler refuses. Takes memory for what all
    /// layers give, and some time.
    pub check_activations: bool,
}

impl Default for TextOptions {
    fn default() -> Self {
        TextOptions {
            context: None,
            sequences: 1,
            kv: KvType::F16,
            batch: 256,
            logit_rows: 1,
            access: WeightAccess::Mapped,
            offload: Offload::All,
            check_activations: false,
        }
    }
}

/// What of a model an engine's device computes, where the engine has a host beside it ([`crate::Engine::with_host`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// Everything.
    #[default]
    All,
    /// The last so many layers and the head; the host looks up embeddings and computes the layers before. As many as
    /// there are, or more: all layers, and the table of embeddings is the host's. 0: the host computes everything.
    Layers(usize),
    /// Everything, if it fits into what is free of the device's budget; or else as many layers as fit.
    Auto,
}

/// What to answer to.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A person's message: in the model's chat template, if it has one, else as it is.
    User(String),
    /// A conversation in the model's chat template.
    Chat(Vec<Message>),
    /// Text to be continued; special tokens in it count as such.
    Raw(String),
    /// Tokens to be continued; nothing is added.
    Tokens(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::User(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::User(text)
    }
}

impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Prompt::Chat(messages)
    }
}

/// How an answer is made.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampler: SamplerParams,
    /// Tokens at most; `None`: until the model ends, or the context is full.
    pub max_tokens: Option<usize>,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Strings after which DRY does not look for repetitions; `None`: llama.cpp's.
    pub dry_breakers: Option<Vec<String>>,
    /// Whether tokens that end a generation are taken for ordinary ones.
    pub ignore_eos: bool,
    /// Keep so many of the largest logits after the prompt.
    pub prompt_top_logits: usize,
    /// Give the log-probability of each token and of so many alternatives; `None`: of none.
    pub logprobs: Option<usize>,
    /// Ends the generation early.
    pub cancel: Cancel,
}
