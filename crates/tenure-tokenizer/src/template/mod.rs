//! Chat templates: a conversation as the text that a model was trained on.

mod budget;
mod clock;
mod functions;
mod json;
mod scan;

use std::sync::Arc;
use std::time::SystemTime;

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, eval, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};

use crate::tokenizer::Tokenizer;
use budget::{Meter, Refusal};

/// Why a template cannot be used, or did not give a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Rendering takes more steps or makes more text than a conversation needs.
    #[error("the chat template exceeds {0}")]
    TemplateBudget(BudgetLimit),
    /// Blocks, parentheses, calls or chains of operators are nested too deep.
    #[error("the chat template is nested too deep")]
    TemplateTooDeep,
    /// The template is not well-formed, or asks for something that there is not.
    #[error("line {line} of the chat template: {message}")]
    TemplateError {
        /// Where, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The template refused the conversation, by `raise_exception`.
    #[error("the chat template refuses the conversation: {message}")]
    TemplateRaised {
        /// What it says.
        message: String,
    },
    /// The system gave no thread to render in.
    #[error("no thread to render a chat template in")]
    NoThread,
}

/// What a template has used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BudgetLimit {
    /// Instructions, or numbers of a range.
    #[error("{0} steps")]
    Steps(u64),
    /// Bytes of text, finished or on the way.
    #[error("{0} bytes")]
    Bytes(u64),
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
    /// What else templates look at, such as `tool_calls` or `name`.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into(), extra: serde_json::Map::new() }
    }

    /// What the model is to be.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What a person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model has said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

/// What a template is given.
#[derive(Debug, Clone)]
pub struct Conversation<'a> {
    /// The messages.
    pub messages: &'a [Message],
    /// End with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// The text of the token that begins a text; empty if there is none.
    pub bos_token: &'a str,
    /// The text of the token that ends a text; empty if there is none.
    pub eos_token: &'a str,
    /// More variables, such as `tools` or `enable_thinking`.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// What `strftime_now` takes for now, in UTC.
    pub now: SystemTime,
}

/// A chat template: Jinja, as `tokenizer.chat_template` has it.
///
/// Blocks are trimmed as the `transformers` library trims them, and `raise_exception`, `strftime_now`, `tojson`,
/// `namespace`, `range` and the methods of Python's strings, lists and dictionaries are there. Nothing else is: no files,
/// no other templates, no attributes but those of the values given. A template may take 200,000 steps and make 16 MiB of
/// text beside 16 times what it is given; it needs no more than a small stack of its caller.
///
/// ```
/// use tenure_tokenizer::{ChatTemplate, Conversation, Message};
///
/// let template = ChatTemplate::new("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")?;
/// let messages = [Message::user("hello")];
/// let text = template.render(&Conversation {
///     messages: &messages,
///     add_generation_prompt: true,
///     bos_token: "<s>",
///     eos_token: "</s>",
///     extra: Default::default(),
///     now: std::time::SystemTime::now(),
/// })?;
/// assert_eq!(text, "<user>hello");
/// # Ok::<(), tenure_tokenizer::TemplateError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
}

const MAX_STEPS: u64 = 200_000;
/// Text of a template itself that may be copied into variables, at worst.
const MAX_RAW: u64 = 512 << 20;
const MAX_BYTES: u64 = 16 << 20;
/// The parser and the interpreter recurse as deep as their own limits let them, and values are dropped recursively; both
/// are measured in tests.
const STACK: usize = 128 << 20;
const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Checks a template.
    ///
    /// # Errors
    /// When it is too long or too deep, or not well-formed.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        let source = scan::prepare(source)?;
        on_own_stack(|| compile(&source).map(|_| ()))?;
        Ok(ChatTemplate { source: source.into() })
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// When the template refuses the conversation, uses what there is not, or takes more than it may.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, TemplateError> {
        on_own_stack(|| render(&self.source, conversation))
    }

    /// The text of messages for a model to answer, with a vocabulary's special tokens.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_chat(&self, messages: &[Message], tokenizer: &Tokenizer) -> Result<String, TemplateError> {
        let text = |token: Option<u32>| {
            token.and_then(|token| std::str::from_utf8(tokenizer.piece_bytes(token)).ok()).unwrap_or_default()
        };
        self.render(&Conversation {
            messages,
            add_generation_prompt: true,
            bos_token: text(tokenizer.bos()),
            eos_token: text(tokenizer.eos()),
            extra: serde_json::Map::new(),
            now: SystemTime::now(),
        })
    }
}

/// A template's instructions, with what may make long strings taken out.
type Compiled<'s> = (Instructions<'s>, std::collections::BTreeMap<&'s str, Instructions<'s>>);

fn compile(source: &str) -> Result<Compiled<'_>, TemplateError> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(of_jinja)?;
    let tree = parse(source, NAME, syntax).map_err(of_jinja)?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&tree);
    let (mut instructions, mut blocks) = generator.finish();
    for part in std::iter::once(&mut instructions).chain(blocks.values_mut()) {
        let mut at = 0;
        while let Some(instruction) = part.get_mut(at) {
            if let Some((function, arguments)) = functions::in_place_of(instruction) {
                *instruction = Instruction::CallFunction(function, Some(arguments));
            }
            at += 1;
        }
    }
    Ok((instructions, blocks))
}

fn render(source: &str, conversation: &Conversation<'_>) -> Result<String, TemplateError> {
    let (instructions, blocks) = compile(source)?;
    let given: usize = conversation.messages.iter().map(|m| m.content.len() + m.role.len()).sum();
    let meter = Meter::new(MAX_BYTES + 16 * given as u64);
    let mut environment = Environment::new();
    // Text of the template itself is not metered; this bounds it.
    environment.set_fuel(Some(MAX_STEPS.min(MAX_RAW / scan::longest_text(source).max(1))));
    functions::install(&mut environment, &meter, conversation.now);
    let mut root: std::collections::BTreeMap<&str, Value> =
        conversation.extra.iter().map(|(name, value)| (name.as_str(), value_of(value))).collect();
    root.insert("messages", conversation.messages.iter().map(value_of_message).collect());
    root.insert("add_generation_prompt", Value::from(conversation.add_generation_prompt));
    root.insert("bos_token", Value::from(conversation.bos_token));
    root.insert("eos_token", Value::from(conversation.eos_token));
    let mut text = String::new();
    let mut output = make_string_output(&mut text);
    let root = Value::from(root);
    eval(&environment, &instructions, root, &blocks, &mut output, AutoEscape::None).map_err(of_jinja)?;
    drop(output);
    Ok(text)
}

fn value_of_message(message: &Message) -> Value {
    let own = [("role", Value::from(&*message.role)), ("content", Value::from(&*message.content))];
    let extra = message.extra.iter().map(|(name, value)| (name.as_str(), value_of(value)));
    Value::from_pairs(own.into_iter().chain(extra))
}

/// The interpreter's value of a JSON value.
///
/// Not by way of serde: where another crate of the program turns on `serde_json/arbitrary_precision`, numbers serialise
/// as maps.
fn value_of(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(yes) => Value::from(*yes),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Value::from(whole),
            (None, Some(whole)) => Value::from(whole),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(value_of).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, value)| (name.as_str(), value_of(value))))
        }
    }
}

/// This crate's error for one of the interpreter's.
fn of_jinja(error: minijinja::Error) -> TemplateError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    let mut line = error.line();
    while let Some(cause) = source {
        if let Some(refusal) = cause.downcast_ref::<Refusal>() {
            return match refusal {
                Refusal::Budget(limit) => TemplateError::TemplateBudget(*limit),
                Refusal::Raised(message) => TemplateError::TemplateRaised { message: message.clone() },
            };
        }
        if let Some(inner) = cause.downcast_ref::<minijinja::Error>() {
            line = line.or(inner.line());
            if inner.kind() == ErrorKind::OutOfFuel {
                return TemplateError::TemplateBudget(BudgetLimit::Steps(MAX_STEPS));
            }
            if inner.detail().is_some_and(|detail| detail.contains("recursion limit")) {
                return TemplateError::TemplateTooDeep;
            }
        }
        source = cause.source();
    }
    let message = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    TemplateError::TemplateError { line: line.unwrap_or(1), message }
}

/// Does `work` in a thread with room for its recursion, whatever room the caller has.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T, TemplateError> + Send) -> Result<T, TemplateError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK);
        let thread = thread.spawn_scoped(scope, work).map_err(|_| TemplateError::NoThread)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
