//! Any bytes as the file of an image model's tokenizer, and any text as a prompt for it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenure_tokenizer::{ChunkOptions, ClipPrompt, ClipTokenizer, Prompt, T5Length, T5Prompt, T5Tokenizer};

fuzz_target!(|input: (Vec<u8>, String)| {
    let (bytes, text) = input;
    let Ok(prompt) = Prompt::parse(&text) else { return };
    if let Ok(clip) = ClipTokenizer::from_json(&bytes)
        && let Ok(made) = ClipPrompt::new(&clip, &prompt, ChunkOptions::default())
    {
        assert!(made.chunks().iter().all(|chunk| chunk.tokens.len() == 77 && chunk.weights.len() == 77));
        assert!(made.chunks().iter().flat_map(|chunk| &chunk.tokens).all(|&token| (token as usize) < clip.vocabulary()));
    }
    for t5 in [T5Tokenizer::from_json(&bytes), T5Tokenizer::from_sentencepiece(&bytes)].into_iter().flatten() {
        if let Ok(made) = T5Prompt::new(&t5, &prompt, T5Length::default()) {
            assert!((256..=512).contains(&made.sequence().tokens.len()));
            assert!(made.sequence().tokens.iter().all(|&token| (token as usize) < t5.vocabulary()));
        }
    }
});
