//! Tokens that vocabularies have under well-known names, whether or not the file says what they are.

use crate::vocab::{TokenKind, Vocab};

/// End a turn; the first of these is a vocabulary's end of turn if the file names none.
const TURN: [&str; 11] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "<end_of_utterance>",
];
const MESSAGE: &str = "<|eom_id|>";
/// End a generation, beside those of `TURN`.
const GENERATION: [&str; 11] = [
    MESSAGE,
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
];
/// Lists of names of which the first that exists fills a middle in, and whether it ends a generation.
const FILL_IN: [(&[&str], bool); 6] = [
    (
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<\u{ff5c}fim\u{2581}begin\u{ff5c}>",
            "<PRE>",
            "\u{2581}<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        false,
    ),
    (
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<\u{ff5c}fim\u{2581}hole\u{ff5c}>",
            "<SUF>",
            "\u{2581}<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        false,
    ),
    (
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<\u{ff5c}fim\u{2581}end\u{ff5c}>",
            "<MID>",
            "\u{2581}<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        false,
    ),
    (&["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"], true),
    (&["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"], true),
    (&["<|file_sep|>"], true),
];
/// Shown in an answer although they are control tokens.
const SHOWN: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// What the names say.
pub(crate) struct Ends {
    pub(crate) eot: Option<u32>,
    pub(crate) eom: Option<u32>,
    pub(crate) generation: Vec<u32>,
}

/// Finds them, and gives them the kinds they ought to have: files often call them normal.
pub(crate) fn find(
    vocab: &mut Vocab,
    by_name: impl Fn(&Vocab, &str) -> Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
) -> Ends {
    let mut generation = Vec::new();
    for name in TURN.iter().chain(&GENERATION) {
        if let Some(token) = by_name(vocab, name) {
            generation.push(token);
            vocab.set_kind(token, TokenKind::Control);
        }
    }
    let eot = eot.or_else(|| TURN.iter().find_map(|name| by_name(vocab, name)));
    let eom = eom.or_else(|| by_name(vocab, MESSAGE));
    for (names, ends) in FILL_IN {
        if let Some(token) = names.iter().find_map(|name| by_name(vocab, name)) {
            vocab.set_kind(token, TokenKind::Control);
            generation.extend(ends.then_some(token));
        }
    }
    for name in SHOWN {
        if let Some(token) = by_name(vocab, name) {
            vocab.set_kind(token, TokenKind::UserDefined);
        }
    }
    // Where a tool call or an answer has an end of its own, these two only separate its parts.
    let has = &by_name;
    let harmony = has(vocab, "<|return|>").is_some() && has(vocab, "<|call|>").or(has(vocab, "<|calls|>")).is_some();
    let solar = has(vocab, "<|flush|>").is_some() && has(vocab, "<|call|>").or(has(vocab, "<|calls|>")).is_some();
    let not_the_end: [(&str, bool, TokenKind); 2] = [
        ("<|end|>", harmony || solar, TokenKind::UserDefined),
        ("</s>", has(vocab, "<|tool_response>").is_some(), TokenKind::Normal),
    ];
    for (name, _, kind) in not_the_end.into_iter().filter(|(_, is_so, _)| *is_so) {
        if let Some(token) = by_name(vocab, name) {
            generation.retain(|&end| end != token);
            vocab.set_kind(token, kind);
        }
    }
    Ends { eot, eom, generation }
}
