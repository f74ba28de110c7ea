//! Hyperparameters of a text model, read from a file and validated before anything is built on them.

use tenure_graph::{RopeSpec, RopeStyle, Yarn};
use tenure_weights::WeightStore;
use tenure_weights::gguf::{Metadata, Value};

use crate::error::ModelError;

/// Layers above this are taken for a damaged file.
const MAX_LAYERS: usize = 512;
/// Heads, widths and vocabularies above this are taken for a damaged file.
const MAX_WIDTH: usize = 1 << 24;

/// The text architectures Tenure knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TextArchitecture {
    /// Llama 1 to 3, Mistral, SmolLM2 and others in the same layout.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3 (dense).
    Qwen3,
    /// Gemma 3 (text).
    Gemma3,
}

impl TextArchitecture {
    /// The name in `general.architecture`.
    pub const fn name(self) -> &'static str {
        match self {
            TextArchitecture::Llama => "llama",
            TextArchitecture::Qwen2 => "qwen2",
            TextArchitecture::Qwen3 => "qwen3",
            TextArchitecture::Gemma3 => "gemma3",
        }
    }

    /// Every architecture.
    pub const ALL: [TextArchitecture; 4] =
        [TextArchitecture::Llama, TextArchitecture::Qwen2, TextArchitecture::Qwen3, TextArchitecture::Gemma3];
}

/// What a file says of its text model.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// The architecture.
    pub architecture: TextArchitecture,
    /// Tokens: rows of the embedding table.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads of each layer.
    pub kv_heads: Vec<usize>,
    /// Elements of a head.
    pub head_dim: usize,
    /// Inner width of the feed-forward block of each layer.
    pub ffn: Vec<usize>,
    /// Epsilon of the norms.
    pub rms_eps: f32,
    /// Positions the model was trained for.
    pub context: usize,
    /// Rotary embedding (of the layers without a window, where the two differ).
    pub rope: RopeSpec,
    /// Sliding window, where the architecture has one.
    pub sliding: Option<Sliding>,
    /// Bound of the logits.
    pub logit_softcap: Option<f32>,
}

/// Sliding-window attention of some layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Sliding {
    /// Positions seen, the own included.
    pub window: usize,
    /// Every `period`-th layer sees everything.
    pub period: usize,
    /// Rotary embedding of the layers with a window.
    pub rope: RopeSpec,
}

impl Sliding {
    /// Whether that layer has the window.
    pub const fn covers(&self, layer: usize) -> bool {
        !(layer + 1).is_multiple_of(self.period)
    }
}

impl TextConfig {
    /// Reads the hyperparameters of a GGUF file.
    ///
    /// # Errors
    /// [`ModelError`] naming the key that is missing, of another type, or out of bounds.
    pub fn from_gguf(store: &WeightStore) -> Result<Self, ModelError> {
        let meta = store.metadata().ok_or(ModelError::NoMetadata)?;
        let name = meta.str("general.architecture")?;
        let architecture = TextArchitecture::ALL
            .into_iter()
            .find(|known| known.name() == name)
            .ok_or_else(|| ModelError::unsupported_architecture(name))?;
        let keys = Keys { meta, prefix: architecture.name() };
        keys.refuse_experts()?;

        let layers = keys.size("block_count", MAX_LAYERS)?;
        let width = keys.size("embedding_length", MAX_WIDTH)?;
        let heads = keys.size("attention.head_count", MAX_WIDTH)?;
        let kv_heads = keys.per_layer("attention.head_count_kv", layers, Some(heads))?;
        for &kv in &kv_heads {
            if kv > heads || !heads.is_multiple_of(kv) {
                return Err(keys.bad("attention.head_count_kv", kv));
            }
        }
        let head_dim = match keys.opt_size("attention.key_length", MAX_WIDTH)? {
            Some(head_dim) => head_dim,
            None if width.is_multiple_of(heads) => width / heads,
            None => return Err(keys.bad("embedding_length", width)),
        };
        if let Some(value_dim) = keys.opt_size("attention.value_length", MAX_WIDTH)?
            && value_dim != head_dim
        {
            return Err(keys.bad("attention.value_length", value_dim));
        }
        let ffn = keys.per_layer("feed_forward_length", layers, None)?;
        let rms_eps = keys.positive("attention.layer_norm_rms_epsilon")?;
        let context = keys.size("context_length", u32::MAX as usize - 1)?;
        let vocab = vocabulary(store, meta)?;
        let rope = keys.rope(architecture, head_dim, context)?;
        let sliding = match architecture {
            TextArchitecture::Gemma3 => keys.sliding(&rope)?,
            TextArchitecture::Llama | TextArchitecture::Qwen2 | TextArchitecture::Qwen3 => None,
        };
        let logit_softcap = keys.opt_f32("final_logit_softcapping")?;
        if logit_softcap.is_some_and(|cap| !cap.is_finite() || cap < 0.0) {
            return Err(keys.bad("final_logit_softcapping", logit_softcap.unwrap_or_default()));
        }
        Ok(TextConfig {
            architecture,
            vocab,
            width,
            layers,
            heads,
            kv_heads,
            head_dim,
            ffn,
            rms_eps,
            context,
            rope,
            sliding,
            logit_softcap: logit_softcap.filter(|&cap| cap > 0.0),
        })
    }
}

impl TextConfig {
    /// Weights that one token of a prompt is multiplied with: all but embedding and head.
    pub fn parameters_per_token(&self) -> usize {
        let attention = |kv: usize| self.width * self.head_dim * 2 * (self.heads + kv);
        self.kv_heads.iter().zip(&self.ffn).map(|(&kv, &ffn)| attention(kv) + 3 * self.width * ffn).sum()
    }
}

/// Rows of the embedding table, which must agree with the vocabulary.
fn vocabulary(store: &WeightStore, meta: &Metadata) -> Result<usize, ModelError> {
    let table = "token_embd.weight";
    let spec = store.find(table).ok_or_else(|| ModelError::MissingTensor { name: table.to_owned() })?;
    let rows = spec.spec().shape.rows().unwrap_or(0);
    match meta.value("tokenizer.ggml.tokens") {
        Some(Value::Array(tokens)) if tokens.len() != rows => {
            Err(ModelError::VocabMismatch { tokens: tokens.len(), rows })
        }
        _ if rows == 0 || rows > MAX_WIDTH => Err(ModelError::VocabMismatch { tokens: 0, rows }),
        _ => Ok(rows),
    }
}

/// Reads `<architecture>.<key>`.
struct Keys<'a> {
    meta: &'a Metadata,
    prefix: &'static str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn bad(&self, key: &str, value: impl ToString) -> ModelError {
        ModelError::BadHyperparameter { key: self.key(key), value: value.to_string() }
    }

    fn size(&self, key: &str, max: usize) -> Result<usize, ModelError> {
        self.in_bounds(key, self.meta.u32(&self.key(key))? as usize, max)
    }

    fn opt_size(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        match self.meta.opt_u32(&self.key(key))? {
            Some(value) => self.in_bounds(key, value as usize, max).map(Some),
            None => Ok(None),
        }
    }

    fn in_bounds(&self, key: &str, value: usize, max: usize) -> Result<usize, ModelError> {
        if value == 0 || value > max { Err(self.bad(key, value)) } else { Ok(value) }
    }

    /// One number for all layers, or an array with one for each.
    fn per_layer(&self, key: &str, layers: usize, default: Option<usize>) -> Result<Vec<usize>, ModelError> {
        let values = match self.meta.value(&self.key(key)) {
            Some(Value::Array(array)) => {
                let values: Vec<usize> = match array.u32s() {
                    Ok(values) => values.map(|v| v as usize).collect(),
                    Err(_) => array.i32s()?.map(|v| usize::try_from(v).unwrap_or(0)).collect(),
                };
                if values.len() != layers {
                    return Err(self.bad(key, format!("an array of {}", values.len())));
                }
                values
            }
            Some(_) => vec![self.size(key, MAX_WIDTH)?; layers],
            None => match default {
                Some(value) => vec![value; layers],
                None => return Err(self.size(key, MAX_WIDTH).err().unwrap_or_else(|| self.bad(key, "missing"))),
            },
        };
        values.iter().try_for_each(|&value| self.in_bounds(key, value, MAX_WIDTH).map(drop))?;
        Ok(values)
    }

    fn opt_f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        Ok(self.meta.opt_f32(&self.key(key))?)
    }

    fn positive(&self, key: &str) -> Result<f32, ModelError> {
        let value = self.meta.f32(&self.key(key))?;
        if value.is_finite() && value > 0.0 { Ok(value) } else { Err(self.bad(key, value)) }
    }

    fn positive_or(&self, key: &str, default: f32) -> Result<f32, ModelError> {
        if self.opt_f32(key)?.is_some() { self.positive(key) } else { Ok(default) }
    }

    /// Mixtures of experts share these architectures' names; they are not computed yet.
    fn refuse_experts(&self) -> Result<(), ModelError> {
        let count = self.meta.opt_u32(&self.key("expert_count"))?.unwrap_or(0);
        let used = self.meta.opt_u32(&self.key("expert_used_count"))?.unwrap_or(0);
        if used > count {
            return Err(self.bad("expert_used_count", used));
        }
        if count > 0 {
            return Err(ModelError::UnsupportedFeature { what: "mixture of experts", value: count.to_string() });
        }
        Ok(())
    }

    fn rope(&self, architecture: TextArchitecture, head_dim: usize, context: usize) -> Result<RopeSpec, ModelError> {
        let dims = self.opt_size("rope.dimension_count", MAX_WIDTH)?.unwrap_or(head_dim);
        if !dims.is_multiple_of(2) || dims > head_dim {
            return Err(self.bad("rope.dimension_count", dims));
        }
        let base = self.positive_or("rope.freq_base", 10_000.0)?;
        // Older files give the factor under another name. A factor without a type is linear.
        let factor_key = match (self.opt_f32("rope.scaling.factor")?, self.opt_f32("rope.scale_linear")?) {
            (None, Some(_)) => "rope.scale_linear",
            (Some(_), _) | (None, None) => "rope.scaling.factor",
        };
        let scaling = self.meta.opt_str(&self.key("rope.scaling.type"))?;
        let freq_scale = match scaling {
            Some("none") => 1.0,
            Some("linear" | "yarn") => 1.0 / self.positive(factor_key)?,
            None => 1.0 / self.positive_or(factor_key, 1.0)?,
            Some(other) => {
                return Err(ModelError::UnsupportedFeature { what: "rope scaling", value: other.to_owned() });
            }
        };
        let yarn = match scaling {
            Some("yarn") => Some(Yarn {
                original_context: self
                    .opt_size("rope.scaling.original_context_length", u32::MAX as usize)?
                    .unwrap_or(context),
                ext_factor: 1.0,
                attn_factor: self.positive_or("rope.scaling.attn_factor", 1.0)?,
                beta_fast: self.positive_or("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: self.positive_or("rope.scaling.yarn_beta_slow", 1.0)?,
            }),
            Some(_) | None => None,
        };
        if !freq_scale.is_finite() || freq_scale <= 0.0 {
            return Err(self.bad(factor_key, 1.0 / freq_scale));
        }
        let style = match architecture {
            TextArchitecture::Llama => RopeStyle::Adjacent,
            TextArchitecture::Qwen2 | TextArchitecture::Qwen3 | TextArchitecture::Gemma3 => RopeStyle::Halves,
        };
        Ok(RopeSpec { style, dims, base, freq_scale, factors: None, yarn })
    }

    fn sliding(&self, rope: &RopeSpec) -> Result<Option<Sliding>, ModelError> {
        // 0 says that there is none.
        let window = self.meta.opt_u32(&self.key("attention.sliding_window"))?;
        let Some(window) = window.filter(|&window| window > 0) else { return Ok(None) };
        let period = self.opt_size("attention.sliding_window_pattern", MAX_LAYERS)?.unwrap_or(6);
        let base = self.positive_or("rope.freq_base_swa", 10_000.0)?;
        let rope = RopeSpec { base, freq_scale: 1.0, yarn: None, ..rope.clone() };
        Ok(Some(Sliding { window: window as usize, period, rope }))
    }
}
