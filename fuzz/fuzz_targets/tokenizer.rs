//! Any bytes as a GGUF file with a vocabulary, and the rest of them as text: what is encoded can be decoded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenure_tokenizer::{EncodeOptions, Tokenizer};
use tenure_weights::gguf::Gguf;

fuzz_target!(|input: (Vec<u8>, String)| {
    let (bytes, text) = input;
    let Ok(file) = Gguf::from_bytes(&bytes) else { return };
    let Ok(tokenizer) = Tokenizer::from_gguf(file.metadata()) else { return };
    if let Ok(tokens) = tokenizer.encode(&text, EncodeOptions::default()) {
        assert!(tokens.iter().all(|&token| (token as usize) < tokenizer.vocab_size()));
        tokenizer.decode(&tokens);
    }
});
