//! An answer, token by token.

use std::time::{Duration, Instant};

use tenure_device::{Cancel, Deadline, MOST_TOP, Stop, Wanted};
use tenure_sampling::{
    DEFAULT_DRY_BREAKERS, Need, Sampler, StopMatcher, TokenLogprob, breaker_sequences, logprob, top_logprobs,
};
use tenure_tokenizer::EncodeOptions;

use crate::error::Error;
use crate::text::options::GenerateOptions;
use crate::text::session::TextSession;

/// An answer being made. It borrows its session; dropping it ends it.
pub struct Generation<'s> {
    session: &'s mut TextSession,
    prompt: Vec<u32>,
    sampler: Sampler,
    matcher: StopMatcher,
    text: String,
    cancel: Cancel,
    ignore_eos: bool,
    logprobs: Option<usize>,
    alternatives: Vec<TokenLogprob>,
    row: Vec<f32>,
    /// What of the logits of each token.
    wanted: Wanted,
    prompt_top_logits: usize,
    prompt_logits: Vec<(u32, f32)>,
    limit: usize,
    made: usize,
    last: Option<u32>,
    /// The logits to choose from are there.
    computed: bool,
    finished: Option<FinishReason>,
    reused: usize,
    prefill_time: Duration,
}

/// One token of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece<'g> {
    /// The token; `None` for the text held back until the end.
    pub token: Option<u32>,
    /// What it adds to the text: whole characters only, and nothing that may become a stop string.
    pub text: &'g str,
    /// The token's probability among the candidates it was drawn from.
    pub probability: f32,
    /// With [`GenerateOptions::logprobs`]: the token's own log-probability first, then the most likely tokens'.
    pub logprobs: &'g [TokenLogprob],
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model ended it.
    EndOfGeneration,
    /// A stop string appeared; its place in the list.
    Stop(usize),
    /// [`GenerateOptions::max_tokens`] were made.
    MaxTokens,
    /// The context is full.
    ContextFull,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The text.
    pub text: String,
    /// Its tokens, the one that ended it included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
}

impl<'s> Generation<'s> {
    pub(crate) fn new(session: &'s mut TextSession, prompt: Vec<u32>, options: GenerateOptions) -> Result<Self, Error> {
        let model = session.model().clone();
        let (vocab, context) = (model.config().vocab, model.context());
        let mut params = options.sampler;
        if params.dry_multiplier > 0.0 && params.dry_breakers.is_empty() {
            params.dry_breakers = breakers(&model, options.dry_breakers.as_deref());
        }
        let mut sampler = Sampler::new(params, vocab, context)?;
        for &token in &prompt {
            sampler.accept(token)?;
        }
        let wanted = match sampler.need() {
            Need::Top(k) if k <= MOST_TOP && options.logprobs.is_none() => Wanted::Top(k),
            Need::Top(_) | Need::Row => Wanted::Row,
        };
        let alternatives = options.logprobs.map_or(0, |k| k.min(vocab) + 1);
        Ok(Generation {
            matcher: StopMatcher::new(&options.stop)?,
            // Room for any token's text, so that decoding allocates nothing.
            text: String::with_capacity(1024),
            cancel: options.cancel,
            ignore_eos: options.ignore_eos,
            logprobs: options.logprobs.map(|k| k.min(vocab)),
            alternatives: Vec::with_capacity(alternatives),
            row: Vec::with_capacity(if wanted == Wanted::Row { vocab } else { 0 }),
            wanted,
            prompt_top_logits: options.prompt_top_logits.min(vocab),
            prompt_logits: Vec::new(),
            limit: options.max_tokens.unwrap_or(usize::MAX),
            made: 0,
            last: None,
            computed: false,
            finished: None,
            reused: 0,
            prefill_time: Duration::ZERO,
            session,
            prompt,
            sampler,
        })
    }

    /// The next token, or `None` at the end. The first call computes the prompt.
    ///
    /// # Errors
    /// When the deadline comes, somebody cancels, the step fails, or the logits are no numbers. The call may be
    /// repeated; no token is lost or made twice. A step that a deadline ended is computed again from its beginning, so
    /// deadlines should be longer than a step ([`TextOptions::batch`](crate::TextOptions::batch) rows of a prompt).
    pub fn next(&mut self, deadline: Deadline) -> Result<Option<Piece<'_>>, Error> {
        if self.finished.is_some() {
            return Ok(None);
        }
        let stop = Stop { deadline, cancel: self.cancel.clone() };
        match self.last {
            _ if self.computed => stop.check()?,
            // Also where no token is wanted: the prompt's logits may be, and the next prompt may begin with this one.
            None => self.compute_prompt(&stop)?,
            Some(_) if self.made >= self.limit => {}
            Some(_) if self.prompt.len() + self.made > self.session.model().context() => {
                return Ok(self.end(FinishReason::ContextFull));
            }
            Some(token) => {
                stop.check()?;
                self.session.advance(&[token], 1, self.wanted, &stop)?;
            }
        }
        self.computed = true;
        if self.made >= self.limit {
            return Ok(self.end(FinishReason::MaxTokens));
        }
        self.choose()
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// As [`Generation::next`].
    pub fn finish(mut self, deadline: Deadline) -> Result<Generated, Error> {
        let (mut text, mut tokens) = (String::new(), Vec::new());
        while let Some(piece) = self.next(deadline)? {
            text.push_str(piece.text);
            tokens.extend(piece.token);
        }
        let finish = self.finished.unwrap_or(FinishReason::MaxTokens);
        Ok(Generated { text, tokens, finish })
    }

    /// Runs to the end and returns the text.
    ///
    /// # Errors
    /// As [`Generation::next`], with a deadline an hour away.
    pub fn text(self) -> Result<String, Error> {
        Ok(self.finish(Deadline::after(Duration::from_secs(60 * 60)))?.text)
    }

    /// Why the answer ended, once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finished
    }

    /// The prompt's tokens.
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.prompt
    }

    /// Tokens of the prompt that were cached already.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// How long the prompt took.
    pub fn prefill_time(&self) -> Duration {
        self.prefill_time
    }

    /// The largest logits after the prompt, largest first, lowest id first among equals; as many as
    /// [`GenerateOptions::prompt_top_logits`].
    pub fn prompt_top_logits(&self) -> &[(u32, f32)] {
        &self.prompt_logits
    }

    fn compute_prompt(&mut self, stop: &Stop) -> Result<(), Error> {
        let begun = Instant::now();
        let wanted = if self.prompt_top_logits > 0 { Wanted::Row } else { self.wanted };
        self.reused = self.session.prefill(&self.prompt, wanted, stop)?;
        self.prefill_time = begun.elapsed();
        if self.prompt_top_logits > 0 {
            let logits = self.session.last_logits();
            let mut order: Vec<u32> = (0..logits.len() as u32).collect();
            order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
            order.truncate(self.prompt_top_logits);
            self.prompt_logits = order.into_iter().map(|id| (id, logits[id as usize])).collect();
        }
        Ok(())
    }

    fn choose(&mut self) -> Result<Option<Piece<'_>>, Error> {
        self.alternatives.clear();
        let (logits, top) = (self.session.last_logits(), self.session.last_top());
        let sampled = if top.is_empty() {
            // Sampling overwrites its row; the session's stays as the model gave it.
            self.row.clear();
            self.row.extend_from_slice(logits);
            self.sampler.sample(&mut self.row)?
        } else {
            self.sampler.sample_top(top)?
        };
        // Logits that are no numbers have no probabilities; the caller asked for a token all the same.
        if let Some(k) = self.logprobs.filter(|_| !sampled.finite_fallback) {
            top_logprobs(logits, k, &mut self.alternatives)?;
            let own = TokenLogprob { token: sampled.token, logprob: logprob(logits, sampled.token)? };
            self.alternatives.insert(0, own);
        }
        self.sampler.accept(sampled.token)?;
        self.made += 1;
        self.last = Some(sampled.token);
        self.computed = false;
        self.text.clear();
        let tokenizer = &self.session.model().0.tokenizer;
        if !self.ignore_eos && tokenizer.is_end_of_generation(sampled.token) {
            self.text.push_str(self.matcher.finish());
            self.finished = Some(FinishReason::EndOfGeneration);
        } else {
            let chunk = self.matcher.push(tokenizer.piece_bytes(sampled.token));
            self.text.push_str(chunk.text);
            self.finished = chunk.stopped.map(FinishReason::Stop);
        }
        Ok(Some(Piece {
            token: Some(sampled.token),
            text: &self.text,
            probability: sampled.probability,
            logprobs: &self.alternatives,
        }))
    }

    /// Ends the answer; what was held back comes out.
    fn end(&mut self, reason: FinishReason) -> Option<Piece<'_>> {
        self.finished = Some(reason);
        self.text.clear();
        self.text.push_str(self.matcher.finish());
        (!self.text.is_empty()).then_some(Piece { token: None, text: &self.text, probability: 1.0, logprobs: &[] })
    }
}

fn breakers(model: &crate::ModelHandle<crate::Text>, wanted: Option<&[String]>) -> Vec<Vec<u32>> {
    let tokenizer = model.tokenizer();
    let options = EncodeOptions { add_special: false, parse_special: false };
    let of = |breaker: &str| {
        let pieces = (0..tokenizer.vocab_size() as u32).map(|id| (id, tokenizer.piece_bytes(id)));
        breaker_sequences(breaker.as_bytes(), pieces, |bytes| {
            std::str::from_utf8(bytes).ok().and_then(|text| tokenizer.encode(text, options).ok()).unwrap_or_default()
        })
    };
    match wanted {
        Some(breakers) => breakers.iter().flat_map(|breaker| of(breaker)).collect(),
        None => DEFAULT_DRY_BREAKERS.iter().flat_map(|breaker| of(breaker)).collect(),
    }
}
