//! One sequence of a loaded model.

use std::cell::Cell;
use std::marker::PhantomData;

use tenure_device::{Stop, Wanted};
use tenure_models::TextConfig;
use tenure_tensor::ByteSize;
use tenure_tokenizer::{EncodeOptions, Tokenizer};

use crate::error::{Cause, Error};
use crate::family::ModelHandle;
use crate::text::generation::Generation;
use crate::text::load::Text;
use crate::text::options::{GenerateOptions, Prompt};
use crate::text::stepper::{Buffers, Lent};

/// One sequence of a loaded model. It keeps the cache of what was computed last, not a conversation: each call of
/// [`TextSession::generate`] gets the whole prompt ([`Prompt::Chat`] takes all messages so far), and what that shares
/// with the last one is not computed again. `Send`, not `Sync`: it may move to another thread, and one thread at a time uses
/// it. Sessions of one model may be used on several threads at once; their rows share passes over the weights.
///
/// The compiler holds this:
///
/// ```compile_fail,E0277
/// fn shared<T: Sync>() {}
/// shared::<tenure::TextSession>();
/// ```
///
/// ```compile_fail,E0499
/// # fn main() -> Result<(), tenure::Error> {
/// let model = tenure::Engine::auto()?.load_text("model.gguf")?;
/// let mut session = model.session()?;
/// let first = session.generate("one")?;
/// let second = session.generate("two")?;
/// drop((first, second));
/// # Ok(())
/// # }
/// ```
pub struct TextSession {
    model: ModelHandle<Text>,
    slot: usize,
    buffers: Buffers,
    /// The sequence is this session's. Before, it may hold another's tokens, which only a prompt may begin with.
    begun: bool,
    _not_sync: PhantomData<Cell<()>>,
}

impl ModelHandle<Text> {
    /// Opens a session.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`] when all sequences of the model are in use.
    pub fn session(&self) -> Result<TextSession, Error> {
        let sequences = self.0.sequences;
        let slot = self.0.stepper.open().ok_or(Cause::NoFreeSequence { sequences })?;
        Ok(TextSession { model: self.clone(), slot, buffers: Buffers::default(), begun: false, _not_sync: PhantomData })
    }

    /// The model's hyperparameters.
    pub fn config(&self) -> &TextConfig {
        &self.0.config
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// Positions of one sequence.
    pub fn context(&self) -> usize {
        self.0.context
    }

    /// Sequences open now.
    pub fn open_sessions(&self) -> usize {
        self.0.stepper.open_count()
    }

    /// Weights used from the mapping of the file, beside the budget.
    pub fn mapped_weights(&self) -> ByteSize {
        self.0.mapped()
    }

    /// Bytes of weights that a step multiplies with, as the file has them: what decoding must read for each token.
    pub fn weight_bytes_per_step(&self) -> ByteSize {
        self.0.read_per_step
    }

    /// The tokens of a prompt, as [`TextSession::generate`] would take it.
    ///
    /// # Errors
    /// When the template cannot be rendered.
    pub fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
        let loaded = &*self.0;
        let raw = EncodeOptions { add_special: true, parse_special: true };
        let encode = |text: &str| loaded.tokenizer.encode(text, raw).map_err(Error::from);
        // Some templates write the model's first token themselves and some leave it to the tokenizer: it is there once.
        let rendered = |text: &str| {
            let first = loaded.tokenizer.bos().filter(|_| loaded.tokenizer.adds_bos());
            let first = first.map_or(&[][..], |bos| loaded.tokenizer.piece_bytes(bos));
            encode(text.as_bytes().strip_prefix(first).and_then(|rest| str::from_utf8(rest).ok()).unwrap_or(text))
        };
        match prompt {
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
            Prompt::Raw(text) => encode(text),
            Prompt::User(text) => match self.render(&[crate::Message::user(text)])? {
                Some(text) => rendered(&text),
                None => encode(text),
            },
            Prompt::Chat(messages) => {
                let text = self.render(messages)?.ok_or(Cause::NoChatTemplate)?;
                rendered(&text)
            }
        }
    }

    fn render(&self, messages: &[crate::Message]) -> Result<Option<String>, Error> {
        let loaded = &*self.0;
        let Some(template) = &loaded.template else { return Ok(None) };
        let failed = |error| Cause::Template { path: loaded.path().to_owned(), source: error };
        let template = template.as_ref().map_err(|error| failed(error.clone()))?;
        Ok(Some(template.render_chat(messages, &loaded.tokenizer).map_err(failed)?))
    }
}

impl TextSession {
    /// The model.
    pub fn model(&self) -> &ModelHandle<Text> {
        &self.model
    }

    /// Tokens whose keys and values are cached.
    pub fn cached(&self) -> usize {
        if self.begun { self.model.0.stepper.len(self.slot) } else { 0 }
    }

    /// Answers with default options.
    ///
    /// # Errors
    /// As [`TextSession::generate_with`].
    pub fn generate(&mut self, prompt: impl Into<Prompt>) -> Result<Generation<'_>, Error> {
        self.generate_with(prompt, GenerateOptions::default())
    }

    /// Begins an answer. Nothing is computed before the first [`Generation::next`]; dropping the generation ends it.
    ///
    /// What the prompt shares with the sequence's tokens, or with another sequence's, is not computed again.
    ///
    /// # Errors
    /// When the prompt is empty or does not fit, or an option is out of bounds.
    pub fn generate_with(
        &mut self,
        prompt: impl Into<Prompt>,
        options: GenerateOptions,
    ) -> Result<Generation<'_>, Error> {
        let tokens = self.model.tokens(&prompt.into())?;
        self.check(&tokens)?;
        Generation::new(self, tokens, options)
    }

    /// Computes `tokens` as the whole sequence so far and returns the logits after the last of them. Low-level: no
    /// template, no sampling.
    ///
    /// # Errors
    /// When the tokens do not fit, or the step fails or is stopped.
    pub fn evaluate(&mut self, tokens: &[u32], stop: &Stop) -> Result<&[f32], Error> {
        self.check(tokens)?;
        self.prefill(tokens, Wanted::Row, stop)?;
        Ok(&self.buffers.logits)
    }

    /// Computes `tokens` as the whole sequence and hands the logits after each of the last `rows` of them to `each`
    /// (position, logits), in order.
    ///
    /// # Errors
    /// As [`TextSession::evaluate`].
    pub fn evaluate_each(
        &mut self,
        tokens: &[u32],
        rows: usize,
        stop: &Stop,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        self.check(tokens)?;
        let model = self.model.clone();
        let (stepper, vocab) = (&model.0.stepper, model.0.config.vocab);
        self.begun = true;
        stepper.truncate(self.slot, 0);
        let first = tokens.len().saturating_sub(rows);
        self.advance(&tokens[..first], 0, Wanted::Row, stop)?;
        let mut done = first;
        for chunk in tokens[first..].chunks(stepper.capacity().min(stepper.outs())) {
            self.advance(chunk, chunk.len(), Wanted::Row, stop)?;
            for (row, logits) in self.buffers.logits.chunks_exact(vocab).enumerate() {
                each(done + row, logits);
            }
            done += chunk.len();
        }
        // The room of many rows is not kept.
        let logits = &mut self.buffers.logits;
        logits.drain(..logits.len().saturating_sub(vocab));
        logits.shrink_to_fit();
        Ok(())
    }

    /// Appends one token to each of several sequences of one model in a single pass over the weights; afterwards
    /// [`TextSession::last_logits`] of each has the logits after it.
    ///
    /// # Errors
    /// When the sessions are of different models, a sequence is full, or the step fails or is stopped; each sequence
    /// then holds about what it held before, and never its token.
    pub fn append_together(sessions: &mut [TextSession], tokens: &[u32], stop: &Stop) -> Result<(), Error> {
        let Some(model) = sessions.first().map(|session| session.model.clone()) else { return Ok(()) };
        let bad = |field, value: usize, possible| {
            Error::from(Cause::BadParameter { field, value: value.to_string(), possible })
        };
        if tokens.len() != sessions.len() {
            return Err(bad("number of tokens", tokens.len(), format!("there are {} sessions", sessions.len())));
        }
        let mut lent = Vec::with_capacity(sessions.len());
        let mut held = Vec::with_capacity(sessions.len());
        for (session, &token) in sessions.iter_mut().zip(tokens) {
            if !std::sync::Arc::ptr_eq(&session.model.0, &model.0) {
                return Err(bad("session", lent.len(), "it must be of the first one's model".to_owned()));
            }
            session.check_more(&[token])?;
            held.push((session.slot, session.cached()));
            session.buffers.tokens.clear();
            session.buffers.tokens.push(token);
            lent.push(Lent { slot: session.slot, buffers: &mut session.buffers, outs: 1, wanted: Wanted::Row });
        }
        let result = model.0.stepper.run(&mut lent, stop);
        if result.is_err() {
            held.into_iter().for_each(|(slot, len)| model.0.stepper.truncate(slot, len));
        }
        Ok(result?)
    }

    /// Appends tokens to the sequence and returns the logits after the last of them.
    ///
    /// # Errors
    /// When they do not fit, or the step fails or is stopped; the sequence then holds about what it held before
    /// ([`TextSession::cached`] says), and never part of `tokens`.
    pub fn append(&mut self, tokens: &[u32], stop: &Stop) -> Result<&[f32], Error> {
        self.check_more(tokens)?;
        let held = self.cached();
        if let Err(error) = self.advance(tokens, 1, Wanted::Row, stop) {
            self.truncate(held);
            return Err(error);
        }
        Ok(&self.buffers.logits)
    }

    /// Forgets all but about the first `len` tokens of the sequence; returns how many are left.
    pub fn truncate(&mut self, len: usize) -> usize {
        if self.begun {
            self.model.0.stepper.truncate(self.slot, len);
        }
        self.cached()
    }

    /// The logits the last step left. None after a step of a [`Generation`] that chooses among the largest alone (greedy,
    /// or with top-k as the first stage that does anything, and without log-probabilities): the others stay on the
    /// device.
    pub fn last_logits(&self) -> &[f32] {
        &self.buffers.logits
    }

    /// The largest logits of the last step, where only these were wanted.
    pub(crate) fn last_top(&self) -> &[(u32, f32)] {
        &self.buffers.top
    }

    /// Computes what of `tokens` is not cached; leaves what is wanted of the last row's logits.
    pub(crate) fn prefill(&mut self, tokens: &[u32], wanted: Wanted, stop: &Stop) -> Result<usize, Error> {
        let reused = self.model.0.stepper.reuse(self.slot, tokens);
        self.begun = true;
        self.advance(&tokens[reused..], 1, wanted, stop)?;
        Ok(reused)
    }

    /// Appends tokens to the sequence, step by step; leaves what is wanted of the logits of the last `outs` rows of the
    /// last step.
    pub(crate) fn advance(&mut self, tokens: &[u32], outs: usize, wanted: Wanted, stop: &Stop) -> Result<(), Error> {
        let model = self.model.clone();
        let stepper = &model.0.stepper;
        let mut rest = tokens;
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rest.len().min(stepper.capacity()));
            rest = after;
            let buffers = &mut self.buffers;
            buffers.tokens.clear();
            buffers.tokens.extend_from_slice(chunk);
            let outs = if rest.is_empty() { outs } else { 0 };
            stepper.run(&mut [Lent { slot: self.slot, buffers, outs, wanted }], stop)?;
        }
        Ok(())
    }

    /// Makes the sequence this session's, and checks tokens that are to follow it.
    fn check_more(&mut self, tokens: &[u32]) -> Result<(), Error> {
        if !self.begun {
            self.begun = true;
            self.truncate(0);
        }
        self.check_after(self.cached(), tokens)
    }

    /// Checks tokens that are to be the whole sequence.
    fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        self.check_after(0, tokens)
    }

    fn check_after(&self, held: usize, tokens: &[u32]) -> Result<(), Error> {
        let (context, vocab) = (self.model.context(), self.model.config().vocab);
        if tokens.is_empty() {
            return Err(Cause::EmptyPrompt.into());
        }
        if tokens.len() > context - held {
            return Err(Cause::PromptTooLong { tokens: held + tokens.len(), context }.into());
        }
        match tokens.iter().find(|&&token| token as usize >= vocab) {
            Some(&token) => Err(Cause::TokenOutOfRange { token, vocab }.into()),
            None => Ok(()),
        }
    }
}

impl Drop for TextSession {
    fn drop(&mut self) {
        self.model.0.stepper.close(self.slot);
    }
}
