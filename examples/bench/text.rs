//! Prefill and decode of language models.
//!
//! As llama-bench defines them: prefill is `-p` tokens into an empty cache, decode `-n` single tokens after `-d`
//! cached ones; a row of the vocabulary's tokens, nothing sampled.

use std::io::Write;
use std::time::Instant;

use serde_json::{Value, json};
use tenure::{ByteSize, Cancel, Deadline, Engine, ModelHandle, Stop, Text, TextOptions, TextSession, Wanted};
use tenure_examples::cli::{ModelArgs, Refusal, memory, note};

use crate::{Arguments, PATIENCE, summary};

/// How much is measured.
struct Asked {
    prompt: usize,
    decode: usize,
    sequences: usize,
    depth: usize,
}

/// Measures a language model's speed.
pub(crate) fn bench(arguments: &Arguments) -> Result<Value, Refusal> {
    let mut model_arguments = arguments.model.clone();
    let asked = Asked {
        prompt: arguments.prompt.unwrap_or(512),
        decode: arguments.decode.unwrap_or(128),
        sequences: arguments.sequences.unwrap_or(1),
        depth: arguments.depth.unwrap_or(0),
    };
    let (depth, more) = (asked.depth, asked.prompt.max(asked.decode).max(1));
    let room = depth
        .checked_add(more)
        .ok_or_else(|| Refusal::new("BadParameter", format!("{depth} cached tokens and {more} more are too many")))?;
    model_arguments.context = Some(model_arguments.context.unwrap_or(room).max(room));
    let engine = model_arguments.engine()?;
    let options = model_arguments.options(asked.sequences, 1);
    if arguments.explain {
        explain(&model_arguments, &engine, &options)?;
    }
    let (model, planned) = model_arguments.load(&engine, &options, &Cancel::new())?;
    let weights = bytes_per_token(&model);

    // What the processor can do bounds nothing but the processor.
    let threads = model_arguments.is_cpu().then(|| model_arguments.threads()).transpose()?;
    let mut bounds = threads.map(tenure_examples::bounds::measure);
    let mut sessions = Vec::new();
    for _ in 0..asked.sequences {
        sessions.push(model.session()?);
    }
    let stop = Stop::by(Deadline::after(PATIENCE));
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for repetition in 0..=arguments.repetitions {
        // The first round warms caches up and is not counted.
        let counted = repetition > 0;
        if asked.prompt > 0 {
            let speed = prefill_once(&mut sessions[0], &model, &asked, &stop)?;
            prefill.extend(counted.then_some(speed));
        }
        if asked.decode > 0 {
            let speed = decode_once(&mut sessions, &model, &asked, &stop)?;
            decode.extend(counted.then_some(speed));
        }
        bounds = bounds.zip(threads).map(|(bounds, threads)| bounds.max(tenure_examples::bounds::measure(threads)));
    }
    let operations = 2.0 * model.config().parameters_per_token() as f64;
    let prefill = summary(&prefill, bounds.map(|bounds| move |speed| speed * operations / bounds.int8_ops_per_s));
    // One pass over the weights makes a token for every sequence.
    let per_token = weights / asked.sequences as f64;
    let decode = summary(&decode, bounds.map(|bounds| move |speed| speed * per_token / bounds.read_bytes_per_s));
    if !arguments.json {
        let mut out = std::io::stdout().lock();
        for (name, speed) in [("prefill", &prefill), ("decode", &decode)] {
            if let Some(median) = speed["median"].as_f64() {
                writeln!(out, "{name} {median:.1} tokens/s")?;
            }
        }
    }
    Ok(json!({
        "device": engine.device().backend().name(),
        "prefill_tokens_per_s": prefill,
        "decode_tokens_per_s": decode,
        "bounds": {
            "read_bytes_per_s": bounds.map(|bounds| bounds.read_bytes_per_s),
            "int8_ops_per_s": bounds.map(|bounds| bounds.int8_ops_per_s),
            "weight_bytes_per_token": weights,
        },
        "memory": memory(&engine, planned),
    }))
}

/// Counts the commands of a step of one row, and of the largest step.
fn explain(model: &ModelArgs, engine: &Engine, options: &TextOptions) -> Result<(), Refusal> {
    let Some(vulkan) = model.vulkan()? else {
        return Err(Refusal::new("BadParameter", "the processor's steps have no commands to explain"));
    };
    let plan = model.plan(engine, options, &Cancel::new())?;
    let Some((_, plan)) = plan.steps().find(|(device, _)| device.is(engine.device())) else {
        return Err(Refusal::new("BadParameter", "no layer is computed on the GPU"));
    };
    let shape = plan.shape();
    note(format_args!("{} kernels\n", vulkan.kernels()));
    let cache = (options.kv, shape.table_len() * options.sequences);
    let needed: u64 =
        plan.weights().iter().filter(|w| w.as_matrix).filter_map(|w| w.spec.bytes()).map(ByteSize::get).sum();
    for rows in [1, shape.rows] {
        // All logits, as evaluation wants them; the largest, as greedy and default sampling do.
        let [counts, greedy, default] = [Wanted::Row, Wanted::Top(1), Wanted::Top(40)]
            .map(|wanted| vulkan.explain(plan, cache, rows, &[wanted]).map_err(tenure::Error::from));
        let (counts, greedy, default) = (counts?, greedy?, default?);
        let dispatches: usize = counts.dispatches.values().sum();
        note(format_args!("a step of {rows} rows, 1 out:\n"));
        for (kernel, count) in &counts.dispatches {
            note(format_args!("  {kernel:16} {count:>8}\n"));
        }
        for (what, count) in
            [("dispatches", dispatches), ("barriers", counts.barriers), ("submissions", counts.submissions)]
        {
            note(format_args!("  {what:16} {count:>8}\n"));
        }
        let (weights, values) = (counts.weight_bytes, counts.value_bytes);
        note(format_args!("  weight bytes read {weights}, of {needed} in the file; value bytes moved {values}\n"));
        let [all, one, some] = [&counts, &greedy, &default].map(|counts| counts.read_back_bytes);
        note(format_args!("  bytes read back {all}; {one} where the largest logit is wanted, {some} where 40 are\n"));
    }
    Ok(())
}

/// Token ids spread over the vocabulary.
fn token(model: &ModelHandle<Text>, at: usize) -> u32 {
    let vocab = model.config().vocab.max(1);
    ((at % vocab).wrapping_mul(7919) % vocab) as u32
}

fn prefill_once(
    session: &mut TextSession,
    model: &ModelHandle<Text>,
    asked: &Asked,
    stop: &Stop,
) -> Result<f64, Refusal> {
    let tokens: Vec<u32> = (0..asked.prompt).map(|at| token(model, at)).collect();
    fill(session, model, asked.depth, 0, stop)?;
    let begun = Instant::now();
    session.append(&tokens, stop)?;
    Ok(asked.prompt as f64 / begun.elapsed().as_secs_f64())
}

/// Leaves `depth` tokens in the sequence; they are computed once and kept.
fn fill(
    session: &mut TextSession,
    model: &ModelHandle<Text>,
    depth: usize,
    seed: usize,
    stop: &Stop,
) -> Result<(), Refusal> {
    if session.truncate(depth) != depth {
        session.truncate(0);
        let tokens: Vec<u32> = (0..depth).map(|i| token(model, i.wrapping_mul(31).wrapping_add(seed))).collect();
        session.append(&tokens, stop)?;
    }
    Ok(())
}

fn decode_once(
    sessions: &mut [TextSession],
    model: &ModelHandle<Text>,
    asked: &Asked,
    stop: &Stop,
) -> Result<f64, Refusal> {
    for (at, session) in sessions.iter_mut().enumerate() {
        fill(session, model, asked.depth, at, stop)?;
    }
    let begun = Instant::now();
    for at in 0..asked.decode {
        let tokens: Vec<u32> = (0..sessions.len()).map(|i| token(model, at + i)).collect();
        TextSession::append_together(sessions, &tokens, stop)?;
    }
    Ok(asked.decode as f64 * sessions.len() as f64 / begun.elapsed().as_secs_f64())
}

/// Bytes of weights that one pass reads, as the file has them: everything but rows that are only looked up.
fn bytes_per_token(model: &ModelHandle<Text>) -> f64 {
    model.weight_bytes_per_step().get() as f64
}
