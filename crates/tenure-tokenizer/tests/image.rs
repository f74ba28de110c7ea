//! CLIP's and T5's tokenizers give the tokens that transformers gives, and prompts the chunks that users know;
//! `fixtures/image-tokenizer/make.py` makes both.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tenure_tokenizer::{
    ChunkOptions, ClipPadding, ClipPrompt, ClipTokenizer, FileFault, Prompt, PromptPart, T5Length, T5Prompt,
    T5Tokenizer, TokenizerError,
};

#[derive(Deserialize)]
struct Text {
    text: String,
    clip: Vec<u32>,
    t5: Vec<u32>,
}

#[derive(Deserialize)]
struct Chunked {
    prompt: String,
    chunks: Vec<Chunk>,
}

#[derive(Deserialize)]
struct Chunk {
    tokens: Vec<u32>,
    weights: Vec<f32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/image-tokenizer").join(name)
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

fn clip() -> ClipTokenizer {
    ClipTokenizer::built_in(ClipPadding::End).unwrap()
}

fn t5() -> T5Tokenizer {
    T5Tokenizer::built_in().unwrap()
}

#[test]
fn the_built_in_vocabularies_give_the_tokens_of_transformers() {
    let (clip, t5) = (clip(), t5());
    let texts: Vec<Text> = read("texts.json");
    assert!(texts.len() > 400);
    for text in texts {
        assert_eq!(clip.encode(&text.text).unwrap(), text.clip, "CLIP, {:?}", text.text);
        assert_eq!(t5.encode(&text.text).unwrap(), text.t5, "T5, {:?}", text.text);
    }
    assert_eq!((clip.start(), clip.end(), clip.pad(), clip.vocabulary()), (49406, 49407, 49407, 49408));
    assert_eq!((t5.end(), t5.pad(), t5.vocabulary()), (1, 0, 32100));
    let open = ClipTokenizer::built_in(ClipPadding::Zero).unwrap();
    assert_eq!((open.end(), open.pad()), (49407, 0));
    assert_eq!(open.encode("hi!").unwrap(), [1883, 256]);
}

#[test]
fn a_folders_own_files_give_their_own_tokens() {
    let texts: Vec<String> = read("small.json");
    for name in ["clip-end", "clip-zero", "clip-json"] {
        let tokenizer = ClipTokenizer::from_folder(&fixture(name)).unwrap().unwrap();
        let expected: Vec<Vec<u32>> = read(&format!("{name}/expected.json"));
        for (text, expected) in texts.iter().zip(&expected) {
            assert_eq!(&tokenizer.encode(text).unwrap(), expected, "{name}, {text:?}");
        }
        // The one file does not say what pads; it makes `!` a token of its own all the same.
        let pad = if name == "clip-zero" { 0 } else { tokenizer.end() };
        assert_eq!(tokenizer.pad(), pad, "{name}");
        assert_eq!(tokenizer.start() + 1, tokenizer.end());
    }
    for name in ["t5-kept", "t5-cut", "t5-divided", "t5-pieces"] {
        let tokenizer = T5Tokenizer::from_folder(&fixture(name)).unwrap().unwrap();
        let expected: Vec<Vec<u32>> = read(&format!("{name}/expected.json"));
        for (text, expected) in texts.iter().zip(&expected) {
            assert_eq!(&tokenizer.encode(text).unwrap(), expected, "{name}, {text:?}");
        }
        assert_eq!((tokenizer.end(), tokenizer.pad()), (1, 0), "{name}");
    }
    assert!(ClipTokenizer::from_folder(&fixture("t5-pieces")).unwrap().is_none());
    assert!(T5Tokenizer::from_folder(&fixture("clip-end")).unwrap().is_none());
    assert!(T5Tokenizer::from_folder(&fixture("nowhere")).unwrap().is_none());
}

#[test]
fn chunks_are_those_of_the_web_ui() {
    let clip = clip();
    let prompts: Vec<Chunked> = read("prompts.json");
    let mut longest = 0;
    for Chunked { prompt, chunks } in prompts {
        let parsed = Prompt::parse(&prompt).unwrap();
        let made = ClipPrompt::new(&clip, &parsed, ChunkOptions::default()).unwrap();
        assert_eq!(made.chunks().len(), chunks.len(), "{prompt:?}");
        for (made, want) in made.chunks().iter().zip(&chunks) {
            assert_eq!(made.tokens, want.tokens, "{prompt:?}");
            assert_eq!(made.weights, want.weights, "{prompt:?}");
            assert_eq!(want.tokens.iter().position(|&token| token == 49407), Some(made.end), "{prompt:?}");
        }
        longest = longest.max(chunks.len());
    }
    assert!(longest >= 3);
}

#[test]
fn any_number_of_tokens_is_cut_into_chunks() {
    let clip = clip();
    let open = ClipTokenizer::built_in(ClipPadding::Zero).unwrap();
    for tokens in [0, 1, 74, 75, 76, 77, 78, 150, 154, 155, 231, 232, 308, 1000] {
        let prompt = Prompt::parse(&"cat ".repeat(tokens)).unwrap();
        for tokenizer in [&clip, &open] {
            let made = ClipPrompt::new(tokenizer, &prompt, ChunkOptions::default()).unwrap();
            assert_eq!(made.chunks().len(), tokens.div_ceil(75).max(1), "{tokens}");
            let cats = made.chunks().iter().flat_map(|chunk| &chunk.tokens).filter(|&&token| token == 2368).count();
            assert_eq!(cats, tokens);
            for chunk in made.chunks() {
                assert_eq!((chunk.tokens.len(), chunk.weights.len()), (77, 77));
                assert_eq!((chunk.tokens[0], chunk.tokens[chunk.end]), (49406, 49407));
                assert!(chunk.tokens[chunk.end + 1..].iter().all(|&token| token == tokenizer.pad()));
            }
        }
    }
    let most = ChunkOptions { most: 2, ..ChunkOptions::default() };
    let prompt = Prompt::plain(&"cat ".repeat(151)).unwrap();
    assert_eq!(ClipPrompt::new(&clip, &prompt, most).unwrap_err(), TokenizerError::TooManyChunks { most: 2 });
    let none = ChunkOptions { length: 0, ..ChunkOptions::default() };
    assert!(matches!(ClipPrompt::new(&clip, &prompt, none), Err(TokenizerError::TooShort { got: 0, .. })));
}

#[test]
fn prompts_of_other_lengths_are_padded_to_one() {
    let clip = clip();
    let made = |text: &str| ClipPrompt::new(&clip, &Prompt::parse(text).unwrap(), ChunkOptions::default()).unwrap();
    let (long, mut short) = (made(&"cat ".repeat(160)), made("blurry"));
    short.pad_to(long.chunks().len());
    assert_eq!(short.chunks().len(), 3);
    assert_eq!(short.chunks()[1..], [made("").chunks()[0].clone(), made("").chunks()[0].clone()]);
    short.pad_to(1);
    assert_eq!(short.chunks().len(), 3);

    let t5 = t5();
    let mut sequence = T5Prompt::new(&t5, &Prompt::parse("blurry").unwrap(), T5Length::default()).unwrap();
    sequence.pad_to(300);
    assert_eq!((sequence.sequence().tokens.len(), sequence.sequence().weights.len()), (300, 300));
}

#[test]
fn t5_takes_a_prompt_whole() {
    let t5 = t5();
    let made = |text: &str, least, most| T5Prompt::new(&t5, &Prompt::parse(text).unwrap(), T5Length { least, most });
    for (tokens, len, cut) in [(0, 256, 0), (255, 256, 0), (256, 257, 0), (511, 512, 0), (512, 512, 1), (900, 512, 389)]
    {
        let made = made("cat ".repeat(tokens).trim_end(), 256, 512).unwrap();
        let sequence = made.sequence();
        assert_eq!((sequence.tokens.len(), made.cut()), (len, cut), "{tokens}");
        assert_eq!(sequence.end, tokens.min(511), "{tokens}");
        assert_eq!(sequence.tokens[sequence.end], 1);
        assert!(sequence.tokens[sequence.end + 1..].iter().all(|&token| token == 0));
    }
    assert!(matches!(made("a", 0, 0), Err(TokenizerError::TooShort { got: 0, least: 1, .. })));
    assert!(matches!(made("a", 256, 255), Err(TokenizerError::TooShort { got: 255, least: 256, .. })));

    // Emphasis leaves the tokens as they are.
    let plain = made("a red cat, on mars", 16, 16).unwrap();
    let weighted = made("a (red:1.5) (cat, on:0.5) BREAK mars", 16, 16).unwrap();
    assert_eq!(plain.sequence().tokens, weighted.sequence().tokens);
    let weights: Vec<f32> = weighted.sequence().weights.clone();
    // a: 3 9; red: 1131; cat, on: 1712 6 30; mars: 3 1635 7
    let tokens = [t5.encode("a").unwrap().len(), t5.encode("red").unwrap().len(), t5.encode("cat, on").unwrap().len()];
    let expected = [(1.0, tokens[0]), (1.5, tokens[1]), (0.5, tokens[2])];
    let expected: Vec<f32> = expected.iter().flat_map(|&(weight, count)| vec![weight; count]).collect();
    assert_eq!(weights[..expected.len()], expected);
    assert!(weights[expected.len()..].iter().all(|&weight| weight == 1.0));
}

#[test]
fn a_plain_prompt_has_no_syntax() {
    let text = "(a:1.2) [b] BREAK \\(";
    let prompt = Prompt::plain(text).unwrap();
    assert_eq!(prompt.parts(), [PromptPart::Text { text: text.to_owned(), weight: 1.0 }]);
    let long = "a".repeat((1 << 18) + 1);
    let error = TokenizerError::PromptTooLong { bytes: (1 << 18) + 1, most: 1 << 18 };
    assert_eq!(Prompt::plain(&long).unwrap_err(), error);
    assert_eq!(Prompt::parse(&long).unwrap_err(), error);
    assert!(Prompt::parse(&long[1..]).is_ok());
}

/// A tokenizer's JSON with the value at `path` replaced, or taken away.
fn changed(file: &str, path: &str, value: Option<serde_json::Value>) -> Vec<u8> {
    let mut json: serde_json::Value = read(file);
    let (parent, key) = path.rsplit_once('/').unwrap();
    match value {
        Some(value) => *json.pointer_mut(path).unwrap() = value,
        None => {
            json.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key).unwrap();
        }
    }
    serde_json::to_vec(&json).unwrap()
}

#[test]
fn clip_files_that_break_a_rule_are_typed_errors() {
    let error =
        |path: &str, value| ClipTokenizer::from_json(&changed("clip-json/tokenizer.json", path, value)).unwrap_err();
    let fault = |path: &str, value| match error(path, value) {
        TokenizerError::BadFile { file: "tokenizer.json", fault } => fault,
        other => panic!("{path}: {other}"),
    };
    let json = |text: &str| Some(serde_json::from_str::<serde_json::Value>(text).unwrap());
    assert!(matches!(fault("/model", None), FileFault::Missing { what: "model" }));
    assert!(matches!(fault("/model/merges", None), FileFault::Missing { what: "merges" }));
    assert!(matches!(fault("/model/vocab", json("[1]")), FileFault::Missing { what: "vocabulary" }));
    assert!(matches!(fault("/model/vocab/!", json("-1")), FileFault::BadId { id: -1, .. }));
    assert!(matches!(fault("/model/vocab/!", json("99999999999")), FileFault::BadId { id: 99_999_999_999, .. }));
    assert!(matches!(fault("/model/vocab/!", json("1.5")), FileFault::Missing { .. }));
    assert!(matches!(fault("/model/vocab/!", json("1")), FileFault::Doubled { id: 1, .. }));
    assert!(matches!(fault("/model/end_of_word_suffix", json("\"@@\"")), FileFault::Unsupported { .. }));
    assert!(matches!(fault("/model/byte_fallback", json("true")), FileFault::Unsupported { .. }));
    assert!(matches!(fault("/model/type", json("\"WordPiece\"")), FileFault::Unsupported { .. }));
    assert!(matches!(fault("/normalizer/normalizers/0/type", json("\"NFD\"")), FileFault::Unsupported { .. }));
    assert!(matches!(fault("/normalizer", json("null")), FileFault::Unsupported { .. }));
    assert!(matches!(fault("/pre_tokenizer/pretokenizers/0/invert", json("false")), FileFault::Unsupported { .. }));
    assert!(matches!(fault("/added_tokens/0/single_word", json("true")), FileFault::Unsupported { .. }));
    assert!(matches!(fault("/added_tokens/0/content", json("\"\"")), FileFault::Missing { .. }));
    assert!(matches!(fault("/model/unk_token", json("\"nothing\"")), FileFault::NoToken { .. }));
    for merges in ["[\"ab\"]", "[[\"a\",\"b\",\"c\"]]", "[[\"a\",\"no such\"]]", "[7]"] {
        assert_eq!(error("/model/merges", json(merges)), TokenizerError::BadMerge { index: 0 }, "{merges}");
    }
    let fault = |json: &[u8]| match ClipTokenizer::from_json(json) {
        Err(TokenizerError::BadFile { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(b"{\n \"a\": }"), FileFault::NotJson { line: 2, column: 7 });
    assert!(matches!(fault("[".repeat(100_000).as_bytes()), FileFault::NotJson { .. }));
    assert_eq!(fault(&vec![b' '; (16 << 20) + 1]), FileFault::TooLarge { bytes: (16 << 20) + 1, most: 16 << 20 });
    let vocab = std::fs::read(fixture("clip-end/vocab.json")).unwrap();
    assert_eq!(
        ClipTokenizer::from_vocab(&vocab, b"#version: 0.2\na b\nlonely\n").unwrap_err(),
        TokenizerError::BadMerge { index: 1 }
    );
    assert_eq!(
        ClipTokenizer::from_vocab(&vocab, b"i n\n\xff").unwrap_err(),
        TokenizerError::BadFile { file: "merges.txt", fault: FileFault::NotUtf8 { at: 4 } }
    );
    assert!(ClipTokenizer::from_vocab(b"{}", b"").is_err());
}

#[test]
fn t5_files_that_break_a_rule_are_typed_errors() {
    let error =
        |path: &str, value| T5Tokenizer::from_json(&changed("t5-kept/tokenizer.json", path, value)).unwrap_err();
    let fault = |path: &str, value| match error(path, value) {
        TokenizerError::BadFile { file: "tokenizer.json", fault } => fault,
        other => panic!("{path}: {other}"),
    };
    let json = |text: &str| Some(serde_json::from_str::<serde_json::Value>(text).unwrap());
    assert!(matches!(fault("/model/vocab", None), FileFault::Missing { .. }));
    assert!(matches!(fault("/model/vocab/5", json("[\"a\"]")), FileFault::Missing { .. }));
    assert!(matches!(fault("/model/vocab/5", json("[\"</s>\", 0]")), FileFault::Doubled { .. }));
    assert!(matches!(fault("/model/unk_id", json("null")), FileFault::Missing { .. }));
    assert!(matches!(
        error("/model/unk_id", json("410")),
        TokenizerError::BadSpecialToken { id: 410, tokens: 410, .. }
    ));
    assert!(matches!(fault("/model/type", json("\"BPE\"")), FileFault::Unsupported { .. }));
    assert!(matches!(fault("/model/byte_fallback", json("true")), FileFault::Unsupported { .. }));
    assert!(matches!(fault("/pre_tokenizer/add_prefix_space", json("false")), FileFault::Unsupported { .. }));
    assert!(matches!(fault("/normalizer/normalizers/0/content", json("\"x\"")), FileFault::Unsupported { .. }));
    let precompiled = json("{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAA\"}");
    assert_eq!(fault("/normalizer/normalizers/0", precompiled), FileFault::BadCharsmap);

    let model = std::fs::read(fixture("t5-pieces/spiece.model")).unwrap();
    assert!(T5Tokenizer::from_sentencepiece(&model).is_ok());
    let field = |bytes: &[u8]| match T5Tokenizer::from_sentencepiece(&[&model[..], bytes].concat()) {
        Err(TokenizerError::BadFile { file: "spiece.model", fault }) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&[0x12, 0x05, 0x18]), FileFault::BadField { field: 2 });
    // Byte-pair encoding, byte fallback, no dummy prefix, a table of three bytes, a second unknown token.
    let unsupported = |what, got: &str| FileFault::Unsupported { what, got: got.to_owned() };
    assert_eq!(field(&[0x12, 2, 0x18, 2]), unsupported("model_type", "2"));
    assert_eq!(field(&[0x12, 3, 0x98, 0x02, 1]), unsupported("byte_fallback", "1"));
    assert_eq!(field(&[0x1a, 2, 0x18, 0]), unsupported("add_dummy_prefix", "false"));
    assert_eq!(field(&[0x1a, 5, 0x12, 3, 1, 2, 3]), FileFault::BadCharsmap);
    assert_eq!(field(&[0x0a, 5, 0x0a, 1, b'@', 0x18, 2]), FileFault::Doubled { token: "@".to_owned(), id: 400 });
    assert!(T5Tokenizer::from_sentencepiece(b"").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever a byte of a file becomes, the tokenizer is refused or gives tokens of its vocabulary.
    #[test]
    fn damaged_files_are_refused_or_work(at in any::<prop::sample::Index>(), bit in 0..8u8, text in "\\PC{0,20}") {
        for name in ["t5-pieces/spiece.model", "t5-cut/tokenizer.json", "clip-json/tokenizer.json"] {
            let mut bytes = std::fs::read(fixture(name)).unwrap();
            *at.get_mut(&mut bytes) ^= 1u8 << bit;
            let (tokens, vocabulary) = if name.starts_with("clip") {
                let Ok(tokenizer) = ClipTokenizer::from_json(&bytes) else { continue };
                (tokenizer.encode(&text).unwrap(), tokenizer.vocabulary())
            } else {
                let model = name.ends_with("model");
                let tokenizer = if model { T5Tokenizer::from_sentencepiece(&bytes) } else { T5Tokenizer::from_json(&bytes) };
                let Ok(tokenizer) = tokenizer else { continue };
                (tokenizer.encode(&text).unwrap(), tokenizer.vocabulary())
            };
            prop_assert!(tokens.iter().all(|&token| (token as usize) < vocabulary));
        }
    }

    /// Prompts of brackets and anything else are parts that together hold all of the text that is not syntax.
    #[test]
    fn any_prompt_is_parts_or_a_typed_error(text in "([a-c(\\[\\])\\\\: ]|BREAK|:1\\.5\\)|\\PC){0,60}") {
        match Prompt::parse(&text) {
            Ok(prompt) => {
                let letters = |text: &str| text.chars().filter(|c| matches!(c, 'a'..='c')).count();
                let kept: usize = prompt.parts().iter().map(|part| match part {
                    PromptPart::Text { text, weight } => {
                        assert!(weight.abs() <= 1000.0);
                        letters(text)
                    }
                    PromptPart::Break => 0,
                }).sum();
                prop_assert_eq!(kept, letters(&text));
            }
            Err(TokenizerError::TooManyBrackets { .. } | TokenizerError::WeightTooLarge { .. }) => {}
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
    }
}
