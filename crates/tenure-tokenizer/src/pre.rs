//! The pre-tokenizers by name.

use crate::classes::Kinds;

/// One pass over what earlier passes left in one piece: its matches become pieces, and so do the gaps between them.
#[derive(Debug)]
pub(crate) enum Pass {
    /// The alternation that most pre-tokenizers end with.
    Words(Words),
    /// `\p{N}{1,most}`
    Numbers { most: usize },
    /// `[0-9][0-9][0-9]`
    ThreeDigits,
    /// `[^\n]+|[\n]+`
    Lines,
    /// `[\r\n]`
    Breaks,
    /// `[\p{P}…]+` with these symbols
    Punctuation { symbols: &'static str },
    /// `\s?[…]+`, or without the space
    Ranges { space: bool, ranges: &'static [(char, char)] },
    /// `\s?\p{…}+`
    Kinds { space: bool, kinds: Kinds },
    /// `\s+$`
    Trailing,
    /// ` ?[^\s…]+`
    Except { stops: &'static str },
}

/// What words are made of.
#[derive(Debug)]
pub(crate) struct Words {
    /// `'s|'t|'re|'ve|'m|'ll|'d` first, and whether in any case.
    pub(crate) contractions: Option<bool>,
    /// `[!-/:-@\[-`{-~][A-Za-z]+`
    pub(crate) punctuated_letters: bool,
    pub(crate) letters: Letters,
    /// Numbers in one word; 0: a number is none of the alternatives.
    pub(crate) numbers: usize,
    /// ` ?\p{N}` rather than `\p{N}`
    pub(crate) space_before_numbers: bool,
    /// ` ?[…]+`
    pub(crate) others: Others,
    /// Which characters may follow `others` in the same word.
    pub(crate) after_others: &'static str,
    /// `\s*[\r\n]+`
    pub(crate) breaks: bool,
}

/// How letters make a word.
#[derive(Debug)]
pub(crate) enum Letters {
    /// ` ?\p{L}+`
    AfterSpace,
    /// `[^\r\n…]?[…]+`: letters of these kinds, after one character not of those.
    AfterOne { of: Kinds, not_after: Kinds },
    /// As [`AfterOne`](Self::AfterOne), split where an upper-case letter follows a lower-case one.
    Cased { contractions: bool },
}

/// The characters that are neither letters nor numbers nor white space.
#[derive(Debug)]
pub(crate) enum Others {
    /// All but these kinds, and no line breaks if `breaks` is false.
    Not { kinds: Kinds, breaks: bool },
    /// Only these kinds.
    Only(Kinds),
}

impl Others {
    pub(crate) fn has(&self, c: char, kinds: Kinds) -> bool {
        match self {
            Others::Not { kinds: not, breaks } => !kinds.is(*not) && (*breaks || !matches!(c, '\r' | '\n')),
            Others::Only(only) => kinds.is(*only),
        }
    }
}

/// A way to split text, with what else its name decides.
#[derive(Debug)]
pub(crate) struct Pre {
    pub(crate) passes: Vec<Pass>,
    /// A word that is a token stays whole, whatever the merges would make of it.
    pub(crate) ignore_merges: bool,
    /// Whether a text begins with the first token, if the file does not say.
    pub(crate) add_bos: bool,
}

/// What llama.cpp takes where the file names none.
pub(crate) const DEFAULT: &str = "default";

impl Pre {
    /// The pre-tokenizer called `name` in `tokenizer.ggml.pre`.
    #[rustfmt::skip]
    pub(crate) fn by_name(name: &str) -> Option<Pre> {
        let (passes, ignore_merges, add_bos) = match name {
            "default" => (vec![
                Pass::Punctuation { symbols: "$+<=>^~|" },
                Pass::Words(gpt2()),
                Pass::Numbers { most: usize::MAX },
                Pass::ThreeDigits,
            ], false, false),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
            | "jina-v5-nano" => (vec![Pass::Words(llama3(3))], true, true),
            "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => (vec![Pass::Words(llama3(3))], false, false),
            "minicpm5" => (vec![Pass::Numbers { most: 3 }, Pass::Words(llama3(usize::MAX))], true, false),
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan" | "solar-open"
            | "grok-2" => (vec![Pass::Words(llama3(1))], false, false),
            "qwen35" => (vec![Pass::Words(qwen35())], false, false),
            // Here `\s*[\r\n]` takes as much as `\s*[\r\n]+`: `\s` has the line breaks.
            "bailingmoe" | "bailingmoe2" | "llada-moe" => (vec![Pass::Words(llama3(1))], false, false),
            "seed-coder" => (vec![Pass::Words(seed_coder())], false, false),
            "laguna" => (vec![Pass::Lines, Pass::Words(llama3(1))], false, false),
            "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" =>
                (vec![Pass::Numbers { most: 1 }, Pass::Words(gpt2())], false, false),
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de" | "a.x-4.0" | "mellum"
            | "modern-bert" | "exaone4" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" =>
                (vec![Pass::Words(gpt2())], false, false),
            "falcon" => (vec![
                Pass::Punctuation { symbols: "$+<=>^~|`" },
                Pass::Words(gpt2()),
                Pass::ThreeDigits,
            ], false, false),
            "tekken" => (vec![Pass::Words(cased(false, 1))], true, true),
            "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => (vec![Pass::Words(cased(true, 3))], false, false),
            "deepseek-llm" => (vec![
                Pass::Breaks,
                Pass::Ranges { space: true, ranges: CASED_LETTERS },
                Pass::Ranges { space: true, ranges: PUNCTUATION },
                Pass::Trailing,
                Pass::Ranges { space: false, ranges: IDEOGRAPHS },
                Pass::Numbers { most: usize::MAX },
            ], false, false),
            "deepseek-coder" => (vec![
                Pass::Breaks,
                Pass::Kinds { space: true, kinds: Kinds::LETTER },
                Pass::Kinds { space: true, kinds: Kinds::PUNCTUATION },
                Pass::Ranges { space: false, ranges: IDEOGRAPHS },
                Pass::Numbers { most: 1 },
            ], false, false),
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => (vec![
                Pass::Numbers { most: 3 },
                Pass::Ranges { space: false, ranges: IDEOGRAPHS_KANA },
                Pass::Words(deepseek_v3()),
            ], false, false),
            "poro-chat" | "bloom" | "gpt3-finnish" => (vec![Pass::Except { stops: NO_WORD }], false, false),
            "viking" => (vec![Pass::Except { stops: NO_WORD }, Pass::Numbers { most: 1 }], false, false),
            _ => return None,
        };
        Some(Pre { passes, ignore_merges, add_bos })
    }
}

const LETTER_NUMBER: Kinds = Kinds::LETTER.or(Kinds::NUMBER);
const WORD: Kinds = LETTER_NUMBER.or(Kinds::SPACE);

fn gpt2() -> Words {
    Words {
        contractions: Some(false),
        punctuated_letters: false,
        letters: Letters::AfterSpace,
        numbers: usize::MAX,
        space_before_numbers: true,
        others: Others::Not { kinds: WORD, breaks: true },
        after_others: "",
        breaks: false,
    }
}

/// How CLIP makes words of what is between white space.
pub(crate) fn clip() -> Words {
    Words { numbers: 1, space_before_numbers: false, ..gpt2() }
}

fn llama3(numbers: usize) -> Words {
    Words {
        contractions: Some(true),
        punctuated_letters: false,
        letters: Letters::AfterOne { of: Kinds::LETTER, not_after: LETTER_NUMBER },
        numbers,
        space_before_numbers: false,
        others: Others::Not { kinds: WORD, breaks: true },
        after_others: "\r\n",
        breaks: true,
    }
}

fn qwen35() -> Words {
    Words {
        letters: Letters::AfterOne { of: Kinds::LETTER.or(Kinds::MARK), not_after: LETTER_NUMBER },
        others: Others::Not { kinds: WORD.or(Kinds::MARK), breaks: true },
        ..llama3(1)
    }
}

fn seed_coder() -> Words {
    Words { others: Others::Not { kinds: WORD, breaks: false }, after_others: "", ..llama3(1) }
}

fn cased(contractions: bool, numbers: usize) -> Words {
    Words { contractions: None, letters: Letters::Cased { contractions }, after_others: "\r\n/", ..llama3(numbers) }
}

fn deepseek_v3() -> Words {
    const SIGN: Kinds = Kinds::PUNCTUATION.or(Kinds::SYMBOL);
    Words {
        contractions: None,
        punctuated_letters: true,
        letters: Letters::AfterOne { of: Kinds::LETTER.or(Kinds::MARK), not_after: Kinds::LETTER.or(SIGN) },
        numbers: 0,
        space_before_numbers: false,
        others: Others::Only(SIGN),
        after_others: "\r\n",
        breaks: true,
    }
}

/// The punctuation at which Bloom's words end.
const NO_WORD: &str = "(|.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c})";
const PUNCTUATION: &[(char, char)] = &[
    ('!', '/'),
    (':', '~'),
    ('\u{ff01}', '\u{ff0f}'),
    ('\u{ff1a}', '\u{ff5e}'),
    ('\u{2018}', '\u{201f}'),
    ('\u{3000}', '\u{3002}'),
];
const IDEOGRAPHS: &[(char, char)] = &[('\u{4e00}', '\u{9fa5}'), ('\u{800}', '\u{4e00}'), ('\u{ac00}', '\u{d7ff}')];
const IDEOGRAPHS_KANA: &[(char, char)] =
    &[('\u{4e00}', '\u{9fa5}'), ('\u{3040}', '\u{309f}'), ('\u{30a0}', '\u{30ff}')];
/// The letters with case that DeepSeek's first vocabularies were trained with.
#[rustfmt::skip]
const CASED_LETTERS: &[(char, char)] = &[
    ('\u{41}', '\u{5a}'), ('\u{61}', '\u{7a}'), ('\u{b5}', '\u{b5}'), ('\u{c0}', '\u{d6}'), ('\u{d8}', '\u{f6}'),
    ('\u{f8}', '\u{1ba}'), ('\u{1bc}', '\u{1bf}'), ('\u{1c4}', '\u{293}'), ('\u{295}', '\u{2af}'),
    ('\u{370}', '\u{373}'), ('\u{376}', '\u{377}'), ('\u{37b}', '\u{37d}'), ('\u{37f}', '\u{37f}'),
    ('\u{386}', '\u{386}'), ('\u{388}', '\u{38a}'), ('\u{38c}', '\u{38c}'), ('\u{38e}', '\u{3a1}'),
    ('\u{3a3}', '\u{3f5}'), ('\u{3f7}', '\u{481}'), ('\u{48a}', '\u{52f}'), ('\u{531}', '\u{556}'),
    ('\u{10a0}', '\u{10c5}'), ('\u{13a0}', '\u{13f5}'), ('\u{13f8}', '\u{13fd}'), ('\u{1c90}', '\u{1cba}'),
    ('\u{1cbd}', '\u{1cbf}'), ('\u{1d00}', '\u{1d2b}'), ('\u{1d6b}', '\u{1d77}'), ('\u{1d79}', '\u{1d9a}'),
    ('\u{1e00}', '\u{1f15}'), ('\u{1f18}', '\u{1f1d}'), ('\u{1f20}', '\u{1f45}'), ('\u{1f48}', '\u{1f4d}'),
    ('\u{1f50}', '\u{1f57}'), ('\u{1f59}', '\u{1f59}'), ('\u{1f5b}', '\u{1f5b}'), ('\u{1f5d}', '\u{1f5d}'),
    ('\u{1f5f}', '\u{1f7d}'), ('\u{1f80}', '\u{1fb4}'), ('\u{1fb6}', '\u{1fbc}'), ('\u{1fbe}', '\u{1fbe}'),
    ('\u{1fc2}', '\u{1fc4}'), ('\u{1fc6}', '\u{1fcc}'), ('\u{1fd0}', '\u{1fd3}'), ('\u{1fd6}', '\u{1fdb}'),
    ('\u{1fe0}', '\u{1fec}'), ('\u{1ff2}', '\u{1ff4}'), ('\u{1ff6}', '\u{1ffc}'), ('\u{2102}', '\u{2102}'),
    ('\u{2107}', '\u{2107}'), ('\u{210a}', '\u{2113}'), ('\u{2115}', '\u{2115}'), ('\u{2119}', '\u{211d}'),
    ('\u{2124}', '\u{2124}'), ('\u{2126}', '\u{2126}'), ('\u{2128}', '\u{2128}'), ('\u{212a}', '\u{212d}'),
    ('\u{212f}', '\u{2134}'), ('\u{2139}', '\u{2139}'), ('\u{213c}', '\u{213f}'), ('\u{2145}', '\u{2149}'),
    ('\u{214e}', '\u{214e}'), ('\u{2183}', '\u{2184}'), ('\u{2c00}', '\u{2c7b}'), ('\u{2c7e}', '\u{2ce4}'),
    ('\u{2ceb}', '\u{2cee}'), ('\u{2cf2}', '\u{2cf3}'), ('\u{a640}', '\u{a66d}'), ('\u{a680}', '\u{a69b}'),
    ('\u{a722}', '\u{a76f}'), ('\u{a771}', '\u{a787}'), ('\u{a78b}', '\u{a78e}'), ('\u{ab70}', '\u{abbf}'),
    ('\u{fb00}', '\u{fb06}'), ('\u{fb13}', '\u{fb17}'), ('\u{ff21}', '\u{ff3a}'), ('\u{ff41}', '\u{ff5a}'),
    ('\u{10400}', '\u{1044f}'), ('\u{104b0}', '\u{104d3}'), ('\u{104d8}', '\u{104fb}'), ('\u{10c80}', '\u{10cb2}'),
    ('\u{10cc0}', '\u{10cf2}'), ('\u{118a0}', '\u{118df}'), ('\u{1e900}', '\u{1e943}'),
];
