//! From prompts to what conditions a denoiser.

use std::path::Path;

use tenure_device::{StepInputs, Stop};
use tenure_graph::OutputId;
use tenure_models::image::{ImageFamily, ImageModel, Part};
use tenure_tokenizer::{
    ChunkOptions, ClipPadding, ClipPrompt, ClipTokenizer, Emphasis, Prompt, T5Length, T5Prompt, T5Tokenizer, TokenChunk,
};

use crate::error::{Cause, Error};
use crate::image::bench::Tools;
use crate::image::work::Work;

/// The tokenizers of a model.
pub(crate) struct Tokenizers {
    /// With the part each is for.
    clip: Vec<(Part, ClipTokenizer)>,
    t5: Option<T5Tokenizer>,
}

/// A prompt, encoded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditioning {
    /// `[tokens, width]`.
    pub(crate) context: Vec<f32>,
    pub(crate) tokens: usize,
    /// What stands for the whole prompt; empty where the denoiser takes no such.
    pub(crate) pooled: Vec<f32>,
    /// Tokens of the prompt that found no room in T5's sequence.
    pub(crate) cut: usize,
}

/// Tokens of T5's part where there is no T5.
const NO_T5: usize = 256;

impl Tokenizers {
    /// Those of a model: its folder's own, or those built in.
    pub(crate) fn open(model: &ImageModel) -> Result<Self, Error> {
        let fail = |source| Cause::Tokenizer { path: model.path().to_owned(), source };
        let mut clip = Vec::new();
        for part in [Part::ClipL, Part::ClipG, Part::ClipH] {
            if model.part(part).is_none() {
                continue;
            }
            let own = own_folder(model, part).map(|folder| ClipTokenizer::from_folder(&folder));
            let tokenizer = match own.transpose().map_err(fail)?.flatten() {
                Some(own) => own,
                None => {
                    let padding = if part == Part::ClipL { ClipPadding::End } else { ClipPadding::Zero };
                    ClipTokenizer::built_in(padding).map_err(fail)?
                }
            };
            clip.push((part, tokenizer));
        }
        let t5 = match model.part(Part::T5) {
            None => None,
            Some(_) => {
                let own = own_folder(model, Part::T5).map(|folder| T5Tokenizer::from_folder(&folder));
                let own = own.transpose().map_err(fail)?.flatten();
                Some(own.map_or_else(T5Tokenizer::built_in, Ok).map_err(fail)?)
            }
        };
        Ok(Tokenizers { clip, t5 })
    }

    /// The chunks of a prompt.
    pub(crate) fn chunks(&self, text: &str) -> Result<usize, Error> {
        let prompt = Prompt::parse(text)?;
        let mut most = 1;
        for (_, tokenizer) in &self.clip {
            most = most.max(ClipPrompt::new(tokenizer, &prompt, ChunkOptions::default())?.chunks().len());
        }
        Ok(most)
    }

    /// Encodes a prompt.
    pub(crate) fn encode(
        &self,
        tools: &mut Tools,
        model: &ImageModel,
        text: &str,
        emphasis: Emphasis,
        stop: &Stop,
    ) -> Result<Conditioning, Error> {
        let prompt = Prompt::parse(text)?;
        let family = model.config().family;
        let mut encoded = Vec::new();
        for (part, tokenizer) in &self.clip {
            let tokens = ClipPrompt::new(tokenizer, &prompt, ChunkOptions::default())?;
            encoded.push(clip(tools, *part, tokens.chunks(), emphasis, stop)?);
        }
        // Where there are two, their tokens are the same but for the padding, and stand side by side.
        let tokens = encoded.first().map_or(0, |first| first.tokens);
        let context = side_by_side(&encoded, tokens);
        let joined = || encoded.iter().flat_map(|clip| clip.pooled.iter().copied()).collect();
        let pooled = match family {
            ImageFamily::Sd1 | ImageFamily::Sd2 => Vec::new(),
            // The larger encoder's alone.
            ImageFamily::Sdxl => encoded.pop().map_or_else(Vec::new, |last| last.pooled),
            ImageFamily::Sd3Medium | ImageFamily::Sd35Medium | ImageFamily::Sd35Large => joined(),
        };
        if !family.is_mmdit() {
            return Ok(Conditioning { context, tokens, pooled, cut: 0 });
        }
        let t5 = match &self.t5 {
            Some(tokenizer) => {
                let prompt = T5Prompt::new(tokenizer, &prompt, T5Length::default())?;
                let mut encoded = t5(tools, prompt.sequence(), emphasis, stop)?;
                encoded.cut = prompt.cut();
                encoded
            }
            None => {
                let width = tools.prompt_width();
                Conditioning { context: vec![0.0; NO_T5 * width], tokens: NO_T5, ..Conditioning::default() }
            }
        };
        // CLIP's rows are as wide as T5's, with zeros behind.
        let (own, width) = (context.len() / tokens.max(1), t5.context.len() / t5.tokens.max(1));
        let mut rows = vec![0.0; tokens * width];
        for (wide, row) in rows.chunks_exact_mut(width.max(1)).zip(context.chunks_exact(own.max(1))) {
            let both = own.min(width);
            wide[..both].copy_from_slice(&row[..both]);
        }
        rows.extend_from_slice(&t5.context);
        Ok(Conditioning { context: rows, tokens: tokens + t5.tokens, pooled, cut: t5.cut })
    }
}

/// A tokenizer's folder beside the part's weights, as diffusers has it.
fn own_folder(model: &ImageModel, part: Part) -> Option<std::path::PathBuf> {
    let pipeline: &Path = model.path();
    let name = match part {
        Part::ClipL | Part::ClipH => "tokenizer",
        Part::ClipG => "tokenizer_2",
        Part::T5 => "tokenizer_3",
        Part::Denoiser | Part::Vae | Part::Taesd => return None,
    };
    Some(pipeline.join(name)).filter(|folder| pipeline.join("model_index.json").is_file() && folder.is_dir())
}

/// Encodes chunks one by one.
fn clip(
    tools: &mut Tools,
    part: Part,
    chunks: &[TokenChunk],
    emphasis: Emphasis,
    stop: &Stop,
) -> Result<Conditioning, Error> {
    let mut encoded = Conditioning::default();
    for (i, chunk) in chunks.iter().enumerate() {
        let (mut context, pooled) = run(tools, &Work::Clip(part), chunk, stop)?;
        emphasis.apply(&mut context, &chunk.weights)?;
        encoded.context.extend_from_slice(&context);
        encoded.tokens += chunk.tokens.len();
        if i == 0 {
            encoded.pooled = pooled;
        }
    }
    Ok(encoded)
}

fn t5(tools: &mut Tools, sequence: &TokenChunk, emphasis: Emphasis, stop: &Stop) -> Result<Conditioning, Error> {
    let tokens = sequence.tokens.len();
    let (mut context, _) = run(tools, &Work::T5 { tokens }, sequence, stop)?;
    emphasis.apply(&mut context, &sequence.weights)?;
    Ok(Conditioning { context, tokens, ..Conditioning::default() })
}

/// The rows of all tokens, and of the pooled prompt where the network gives one.
fn run(tools: &mut Tools, work: &Work, chunk: &TokenChunk, stop: &Stop) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let positions: Vec<u32> = (0..chunk.tokens.len() as u32).collect();
    let tables = vec![0; chunk.tokens.len()];
    let inputs = StepInputs {
        tokens: &chunk.tokens,
        positions: &positions,
        tables: &tables,
        blocks: &[],
        outputs: &[],
        wanted: &[],
        given: &[],
    };
    let program = tools.program(work, stop)?;
    program.run(&inputs, std::slice::from_ref(stop))?;
    let cols = |id| program.plan().output(id).map_or(0, |val| program.plan().value(val).cols);
    let (mut context, mut pooled) =
        (vec![0.0; cols(OutputId::Context) * chunk.tokens.len()], vec![0.0; cols(OutputId::Hidden)]);
    program.read(OutputId::Context, 0, &mut context)?;
    if !pooled.is_empty() {
        program.read(OutputId::Hidden, chunk.end, &mut pooled)?;
    }
    Ok((context, pooled))
}

/// The columns of all encoders, token by token.
fn side_by_side(encoded: &[Conditioning], tokens: usize) -> Vec<f32> {
    let mut context = Vec::with_capacity(encoded.iter().map(|one| one.context.len()).sum());
    for token in 0..tokens {
        for one in encoded {
            let width = one.context.len() / one.tokens.max(1);
            context.extend_from_slice(one.context.get(token * width..(token + 1) * width).unwrap_or_default());
        }
    }
    context
}

/// The ids of an image's size that SDXL is told behind the pooled prompt: height and width of the original, what was cut
/// off above and to the left, height and width wanted.
pub(crate) fn size_ids(width: usize, height: usize) -> [f32; 6] {
    [height as f32, width as f32, 0.0, 0.0, height as f32, width as f32]
}
