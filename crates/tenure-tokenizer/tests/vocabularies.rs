//! Malformed vocabularies, and texts that are hard on tokenizers.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use tenure_tokenizer::{
    ByteTokenFault, DecodeOptions, EncodeOptions, SpecialIds, TokenKind, Tokenizer, TokenizerError, VocabSource,
};
use tenure_weights::gguf::{Gguf, GgufWriter};

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const PARSED: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

/// The characters that spell the bytes, in the order of the bytes.
fn byte_symbols() -> Vec<String> {
    let mut next = 0x100;
    let mut other = || {
        next += 1;
        char::from_u32(next - 1).unwrap()
    };
    (0..=255u8)
        .map(|byte| match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte).to_string(),
            _ => other().to_string(),
        })
        .collect()
}

/// A byte-level vocabulary: all bytes, then these merges' tokens, then the special ones.
struct ByRank {
    tokens: Vec<String>,
    types: Vec<i32>,
    merges: Vec<String>,
}

impl ByRank {
    fn new(merges: &[&str], special: &[(&str, i32)]) -> ByRank {
        let mut tokens = byte_symbols();
        tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
        let mut types = vec![1; tokens.len()];
        tokens.extend(special.iter().map(|(token, _)| (*token).to_owned()));
        types.extend(special.iter().map(|(_, kind)| kind));
        ByRank { tokens, types, merges: merges.iter().map(|merge| (*merge).to_owned()).collect() }
    }

    fn source(&self) -> VocabSource<'_> {
        VocabSource {
            model: "gpt2",
            pre: Some("gpt-2"),
            tokens: self.tokens.iter().map(String::as_str).collect(),
            token_types: Some(self.types.clone()),
            merges: self.merges.iter().map(String::as_str).collect(),
            ..VocabSource::default()
        }
    }
}

/// A vocabulary merged by score: `<unk>`, `<s>`, `</s>`, all bytes, then these pieces from best to worst.
struct ByScore {
    tokens: Vec<String>,
    types: Vec<i32>,
}

impl ByScore {
    fn new(pieces: &[&str]) -> ByScore {
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
        tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
        tokens.extend(pieces.iter().map(|piece| (*piece).to_owned()));
        let mut types = vec![2, 3, 3];
        types.extend([6; 256]);
        types.extend(vec![1; pieces.len()]);
        ByScore { tokens, types }
    }

    fn source(&self) -> VocabSource<'_> {
        VocabSource {
            model: "llama",
            tokens: self.tokens.iter().map(String::as_str).collect(),
            scores: Some((0..self.tokens.len()).map(|i| -(i as f32)).collect()),
            token_types: Some(self.types.clone()),
            special: SpecialIds { bos: Some(1), eos: Some(2), unk: Some(0), ..SpecialIds::default() },
            ..VocabSource::default()
        }
    }
}

fn refusal(source: &VocabSource<'_>) -> TokenizerError {
    Tokenizer::new(source).err().unwrap()
}

fn from_file(writer: GgufWriter) -> Result<Tokenizer, TokenizerError> {
    let file = writer.finish().unwrap();
    Tokenizer::from_gguf(Gguf::from_bytes(&file).unwrap().metadata())
}

fn file() -> GgufWriter {
    GgufWriter::new().kv("tokenizer.ggml.model", "llama")
}

#[test]
fn keys_of_another_type_are_refused() {
    let wrong = |writer: GgufWriter, key: &str, want: &str, got: &str| match from_file(writer) {
        Err(TokenizerError::WrongType { key: k, want: w, got: g }) => assert_eq!((k, w, g.as_str()), (key, want, got)),
        other => panic!("{other:?}"),
    };
    let tokens = "tokenizer.ggml.tokens";
    wrong(file().kv(tokens, [1u32, 2]), tokens, "array of string", "array of u32");
    wrong(file().kv(tokens, "a"), tokens, "array of string", "string");
    let scores = "tokenizer.ggml.scores";
    wrong(file().kv(tokens, ["a"]).kv(scores, [1u8]), scores, "array of f32", "array of u8");
    let types = "tokenizer.ggml.token_type";
    wrong(file().kv(tokens, ["a"]).kv(types, [1u32]), types, "array of i32", "array of u32");
    let bos = "tokenizer.ggml.bos_token_id";
    wrong(file().kv(tokens, ["a"]).kv(bos, "a"), bos, "integer", "string");
    let add = "tokenizer.ggml.add_bos_token";
    wrong(file().kv(tokens, ["a"]).kv(add, 1u32), add, "bool", "u32");
    let model = "tokenizer.ggml.model";
    wrong(GgufWriter::new().kv(model, 1u32), model, "string", "u32");
}

#[test]
fn keys_that_are_missing_are_named() {
    let missing = |writer, key| assert_eq!(from_file(writer).err(), Some(TokenizerError::MissingKey { key }));
    missing(GgufWriter::new(), "tokenizer.ggml.model");
    missing(file(), "tokenizer.ggml.tokens");
    let gpt2 = GgufWriter::new().kv("tokenizer.ggml.model", "gpt2").kv("tokenizer.ggml.tokens", ["a"]);
    missing(gpt2, "tokenizer.ggml.merges");
}

#[test]
fn a_file_is_read_as_its_parts_are() {
    let by_score = ByScore::new(&["a", "\u{2581}a"]);
    let source = by_score.source();
    let file = file()
        .kv("tokenizer.ggml.tokens", by_score.tokens.clone())
        .kv("tokenizer.ggml.token_type", by_score.types.clone())
        .kv("tokenizer.ggml.scores", source.scores.clone().unwrap())
        .kv("tokenizer.ggml.bos_token_id", 1u32)
        .kv("tokenizer.ggml.eos_token_id", 2u32)
        .kv("tokenizer.ggml.add_eos_token", true);
    let tokenizer = from_file(file).unwrap();
    assert_eq!(tokenizer.encode("a", PARSED), Ok(vec![1, 260, 2]));
    assert_eq!(tokenizer.vocab_size(), 261);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.unk()), (Some(1), Some(2), None));
    assert!(tokenizer.adds_bos() && tokenizer.adds_eos() && tokenizer.adds_space());
}

#[test]
fn lists_of_other_lengths_are_refused() {
    let by_score = ByScore::new(&["a"]);
    let mut source = by_score.source();
    source.token_types.as_mut().unwrap().pop();
    let key = "tokenizer.ggml.token_type";
    assert_eq!(refusal(&source), TokenizerError::LengthMismatch { key, want: 260, got: 259 });
    let mut source = by_score.source();
    source.scores.as_mut().unwrap().push(0.0);
    let key = "tokenizer.ggml.scores";
    assert_eq!(refusal(&source), TokenizerError::LengthMismatch { key, want: 260, got: 261 });
    let empty = VocabSource { model: "llama", ..VocabSource::default() };
    assert_eq!(refusal(&empty), TokenizerError::EmptyVocabulary);
}

#[test]
fn other_kinds_are_named() {
    let by_rank = ByRank::new(&[], &[]);
    let source = VocabSource { model: "wordpiece", ..by_rank.source() };
    assert_eq!(refusal(&source), TokenizerError::UnsupportedModel { model: "wordpiece".into() });
    let source = VocabSource { pre: Some("no\nsuch"), ..by_rank.source() };
    assert_eq!(refusal(&source), TokenizerError::UnknownPreTokenizer { pre: "no\\nsuch".into() });
    // Without a name it is llama.cpp's default, which takes three digits at a time.
    assert!(Tokenizer::new(&VocabSource { pre: None, ..by_rank.source() }).is_ok());
}

#[test]
fn scores_are_numbers() {
    let by_score = ByScore::new(&["a"]);
    let mut source = by_score.source();
    source.scores.as_mut().unwrap()[7] = f32::NAN;
    assert_eq!(refusal(&source), TokenizerError::BadScore { id: 7 });
}

#[test]
fn byte_tokens_name_each_byte_once() {
    for bad in ["<0x-1>", "<0xZZ>", "<0x100>", "<0x1>", "a", ""] {
        let mut by_score = ByScore::new(&[]);
        by_score.tokens[3 + 65] = bad.into();
        let fault = ByteTokenFault::NotAByte;
        assert_eq!(refusal(&by_score.source()), TokenizerError::BadByteToken { id: 68, fault }, "{bad}");
    }
    let mut by_score = ByScore::new(&[]);
    by_score.tokens[3 + 65] = "<0x42>".into();
    let fault = ByteTokenFault::Missing(65);
    assert_eq!(refusal(&by_score.source()), TokenizerError::BadByteToken { id: 3, fault });
    // The character itself will do as well.
    by_score.tokens.push("A".into());
    by_score.types.push(1);
    assert!(Tokenizer::new(&by_score.source()).is_ok());
}

#[test]
fn merges_join_tokens_to_tokens() {
    for bad in ["ab", "", " ", "a ", " b", "a zz", "zz a", "a c", "a  b", "a b c", "中 a"] {
        let by_rank = ByRank::new(&["a b"], &[]);
        let mut source = by_rank.source();
        source.merges.push(bad);
        assert_eq!(refusal(&source), TokenizerError::BadMerge { index: 1 }, "{bad:?}");
    }
    // In any order, twice, and each needing the other: a merge only ever makes a longer token.
    let by_rank = ByRank::new(&["ab c", "a b", "a bc", "b c", "a b"], &[]);
    let tokenizer = Tokenizer::new(&by_rank.source()).unwrap();
    assert_eq!(tokenizer.encode("abc", PLAIN), Ok(vec![256]));
}

#[test]
fn a_million_merges_load_in_linear_time() {
    let symbols: Vec<char> = byte_symbols().iter().map(|s| s.chars().next().unwrap()).collect();
    // Pairs of bytes, and pairs of pairs.
    let of = |i: usize| -> String { [symbols[i / 256], symbols[i % 256]].iter().collect() };
    let mut tokens = byte_symbols();
    let mut merges = Vec::new();
    for i in 0..1 << 16 {
        tokens.push(of(i));
        merges.push(format!("{} {}", symbols[i / 256], symbols[i % 256]));
    }
    for i in 0..940_000 {
        let (left, right) = (of(i % (1 << 16)), of(i / (1 << 16) * 7 + 3));
        tokens.push(format!("{left}{right}"));
        merges.push(format!("{left} {right}"));
    }
    let source = VocabSource {
        model: "gpt2",
        tokens: tokens.iter().map(String::as_str).collect(),
        merges: merges.iter().map(String::as_str).collect(),
        ..VocabSource::default()
    };
    let start = Instant::now();
    let tokenizer = Tokenizer::new(&source).unwrap();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(tokenizer.vocab_size(), tokens.len());
}

type Field = fn(&mut SpecialIds) -> &mut Option<i64>;

#[test]
fn special_ids_are_tokens() {
    let by_score = ByScore::new(&[]);
    let cases: [(&str, Field); 6] = [
        ("tokenizer.ggml.bos_token_id", |ids| &mut ids.bos),
        ("tokenizer.ggml.eos_token_id", |ids| &mut ids.eos),
        ("tokenizer.ggml.eot_token_id", |ids| &mut ids.eot),
        ("tokenizer.ggml.eom_token_id", |ids| &mut ids.eom),
        ("tokenizer.ggml.unknown_token_id", |ids| &mut ids.unk),
        ("tokenizer.ggml.padding_token_id", |ids| &mut ids.pad),
    ];
    for (key, field) in cases {
        for id in [-1, 259, i64::from(u32::MAX), i64::MAX, i64::MIN] {
            let mut source = by_score.source();
            *field(&mut source.special) = Some(id);
            assert_eq!(refusal(&source), TokenizerError::BadSpecialToken { key, id, tokens: 259 });
        }
    }
    let minus_one = file().kv("tokenizer.ggml.tokens", ["a"]).kv("tokenizer.ggml.bos_token_id", -1i32);
    assert!(matches!(from_file(minus_one), Err(TokenizerError::BadSpecialToken { id: -1, .. })));
    let last = file().kv("tokenizer.ggml.tokens", ["a"]).kv("tokenizer.ggml.bos_token_id", u32::MAX);
    assert!(matches!(from_file(last), Err(TokenizerError::BadSpecialToken { id: 4_294_967_295, .. })));
}

#[test]
fn odd_tokens_are_borne() {
    let long = "a".repeat(1 << 20);
    let mut by_score = ByScore::new(&["x", "x", "", "aa", "aaaa", "\u{2581}"]);
    by_score.tokens.push(long.clone());
    by_score.types.push(1);
    let tokenizer = Tokenizer::new(&by_score.source()).unwrap();
    // The first of two stands for the text; an empty token is never found.
    assert_eq!(tokenizer.token_id("x"), Some(259));
    assert_eq!(tokenizer.token_id(""), None);
    assert_eq!(tokenizer.piece_bytes(261), b"");
    assert_eq!(tokenizer.piece_bytes(265).len(), 1 << 20);
    assert_eq!(tokenizer.piece_bytes(u32::MAX), b"");
    assert_eq!(tokenizer.decode(&[265, u32::MAX, 265]).len(), 2 << 20);
    assert!(tokenizer.decode(&tokenizer.encode(&long, PLAIN).unwrap()) == long);
    assert_eq!(tokenizer.token_kind(4), Some(TokenKind::Byte));
    assert_eq!(tokenizer.token_kind(u32::MAX), None);
}

/// Every pair of these is a token, and pairs of pairs, so that long runs merge far.
fn far_merging() -> (ByRank, ByScore) {
    let rank = ByRank::new(
        &["a a", "aa aa", "aaaa aaaa", "Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "ð Ł", "ðŁ ĺ", "ðŁĺ Ģ", "Ì ģ", "1 1"],
        &[("<|im_start|>", 3), ("<|im_end|>", 3), ("<|x", 4)],
    );
    let score = ByScore::new(&[
        "aaaaaaaa",
        "aaaa",
        "aa",
        "\u{2581}\u{2581}\u{2581}\u{2581}",
        "\u{2581}\u{2581}",
        "😀😀",
        "a",
        "\u{2581}",
        "😀",
    ]);
    (rank, score)
}

#[test]
fn long_runs_take_linear_time() {
    let (rank, score) = far_merging();
    let texts = [
        "a".repeat(1 << 20),
        "😀".repeat(1 << 18),
        " ".repeat(1 << 20),
        " ".repeat(1 << 20) + "x",
        "\n".repeat(1 << 20),
        "\n ".repeat(1 << 19) + "x",
        "\u{301}".repeat(100_000),
        "é".to_owned() + &"A".repeat(1 << 20),
        "éA".repeat(1 << 18),
        "'".repeat(1 << 20),
        "1".repeat(1 << 20),
        "<|".repeat(1 << 19),
        "<|im_start|".repeat(1 << 16),
        "\0\u{fffd}".repeat(1 << 18),
        "\u{5e9}\u{5dc}\u{5d5}\u{5dd} 👨\u{200d}👩\u{200d}👧 ".repeat(20_000),
        "\u{2581}".repeat(1 << 18),
    ];
    let pres = ["default", "llama-bpe", "smollm", "gpt-2", "qwen2", "qwen35", "tekken", "gpt-4o", "falcon", "bloom"];
    let more = ["deepseek-llm", "deepseek-coder", "deepseek-v3", "viking", "seed-coder", "minicpm5", "laguna"];
    let mut tokenizers: Vec<(&str, Tokenizer)> = pres
        .into_iter()
        .chain(more)
        .map(|pre| (pre, Tokenizer::new(&VocabSource { pre: Some(pre), ..rank.source() }).unwrap()))
        .collect();
    tokenizers.push(("score", Tokenizer::new(&score.source()).unwrap()));
    for text in &texts {
        for (name, tokenizer) in &tokenizers {
            // All of it for two; a quadratic scan shows in an eighth also.
            let whole = matches!(*name, "llama-bpe" | "score");
            let text = if whole { text } else { &text[..text.floor_char_boundary(text.len() / 8)] };
            let start = Instant::now();
            let tokens = tokenizer.encode(text, PLAIN).unwrap();
            let took = start.elapsed();
            // 2 s is the promise of a release build; a quadratic scan takes minutes in any.
            let shown: String = text.chars().take(12).collect();
            assert!(took < Duration::from_secs(8), "{name}, {shown:?}: {took:?}");
            let same = if *name == "score" { text.replace('\u{2581}', " ") } else { text.to_owned() };
            assert!(tokenizer.decode(&tokens) == same, "{name}, {shown:?}");
        }
    }
}

#[test]
fn special_tokens_are_found_where_they_are_asked_for() {
    let (rank, _) = far_merging();
    let mut source = rank.source();
    source.special.bos = Some(267);
    source.add_bos = Some(true);
    let tokenizer = Tokenizer::new(&source).unwrap();
    let text = "<|im_start|>a<|x<|im_end|>";
    assert_eq!(tokenizer.encode(text, PARSED), Ok(vec![267, 267, 97, 269, 268]));
    let plain = tokenizer.encode(text, PLAIN).unwrap();
    assert!(plain.contains(&269) && !plain.contains(&267) && !plain.contains(&268));
    assert_eq!(tokenizer.decode(&plain), text);
    assert_eq!(tokenizer.decode(&[267, 97, 268]), "a");
    let shown = DecodeOptions { skip_special: false, at_start: true };
    assert_eq!(tokenizer.decode_with(&[267, 97, 268], shown), "<|im_start|>a<|im_end|>");
    assert!(tokenizer.is_end_of_generation(268) && !tokenizer.is_end_of_generation(267));
    assert_eq!(tokenizer.eot(), Some(268));
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(268));
    assert_eq!(tokenizer.token_id("ĠĠ"), Some(259));
}

#[test]
fn a_text_begins_with_a_space_only_inside() {
    let (_, score) = far_merging();
    let tokenizer = Tokenizer::new(&score.source()).unwrap();
    let tokens = tokenizer.encode("a", PARSED).unwrap();
    assert_eq!(tokens, [1, 266, 265]);
    assert_eq!(tokenizer.decode(&tokens), "a");
    let inside = DecodeOptions { skip_special: true, at_start: false };
    assert_eq!(tokenizer.decode_with(&tokens, inside), " a");
    assert_eq!(tokenizer.encode("", PARSED), Ok(vec![1]));
    assert_eq!(tokenizer.encode("", PLAIN), Ok(vec![]));
}

#[test]
fn half_a_character_is_held_back() {
    let (rank, _) = far_merging();
    let tokenizer = Tokenizer::new(&rank.source()).unwrap();
    let mut detokenizer = tokenizer.detokenizer(DecodeOptions::default());
    let pushed: Vec<String> = [0xf0, 0x9f, 0x98, 0x80].map(|b| detokenizer.push(b).to_owned()).into();
    assert_eq!(pushed, ["", "", "", "😀"]);
    // A byte that cannot go on shows that the ones before were wrong.
    assert_eq!(detokenizer.push(0xf0), "");
    assert_eq!(detokenizer.push(0x9f), "");
    assert_eq!(detokenizer.push(u32::from(b'a')), "\u{fffd}a");
    assert_eq!(detokenizer.push(0x80), "\u{fffd}");
    assert_eq!(detokenizer.push(0xc3), "");
    assert_eq!(detokenizer.finish(), "\u{fffd}");
    assert_eq!(detokenizer.finish(), "");
    assert_eq!(detokenizer.push(u32::from(b'b')), "b");
}

fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => any::<char>().prop_map(String::from),
        2 => "[ -~]{1,6}",
        2 => prop::sample::select(vec![" ", "  ", "\n", "\r\n", "\t", "\u{a0}", "\u{3000}", "\u{301}", "\u{200d}"]).prop_map(String::from),
        1 => prop::sample::select(vec!["<|im_start|>", "<|im_end|>", "<|x", "<|", "😀", "aaaa", "'ll", "'RE", "123"]).prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn byte_level_tokens_decode_to_their_text(text in text(), pre in 0usize..8, special: bool) {
        let (rank, _) = far_merging();
        let pre = ["default", "llama-bpe", "smollm", "gpt-2", "qwen2", "tekken", "deepseek-llm", "deepseek-v3"][pre];
        let tokenizer = Tokenizer::new(&VocabSource { pre: Some(pre), ..rank.source() }).unwrap();
        let options = EncodeOptions { add_special: false, parse_special: special };
        let tokens = tokenizer.encode(&text, options).unwrap();
        let shown = DecodeOptions { skip_special: false, at_start: true };
        prop_assert_eq!(tokenizer.decode_with(&tokens, shown), text);
    }

    #[test]
    fn tokens_merged_by_score_decode_to_their_text(text in text()) {
        let (_, score) = far_merging();
        let tokenizer = Tokenizer::new(&score.source()).unwrap();
        let tokens = tokenizer.encode(&text, PLAIN).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokens), text.replace('\u{2581}', " "));
    }

    #[test]
    fn tokens_one_by_one_give_the_whole(tokens in prop::collection::vec(0u32..280, 0..40), skip_special: bool, at_start: bool) {
        let (rank, score) = far_merging();
        let options = DecodeOptions { skip_special, at_start };
        for source in [rank.source(), score.source()] {
            let tokenizer = Tokenizer::new(&source).unwrap();
            let mut bytes: Vec<u8> = tokens
                .iter()
                .filter(|&&token| !(skip_special && tokenizer.is_special(token)))
                .flat_map(|&token| tokenizer.piece_bytes(token).iter().copied())
                .collect();
            if at_start && tokenizer.adds_space() && bytes.first() == Some(&b' ') {
                bytes.remove(0);
            }
            let mut detokenizer = tokenizer.detokenizer(options);
            let mut one_by_one = String::new();
            for &token in &tokens {
                one_by_one.push_str(detokenizer.push(token));
            }
            one_by_one.push_str(detokenizer.finish());
            prop_assert_eq!(&one_by_one, &String::from_utf8_lossy(&bytes));
            prop_assert_eq!(tokenizer.decode_with(&tokens, options), one_by_one);
        }
    }
}
