//! Tokenizers from GGUF vocabularies, incremental detokenisation and chat templates.
#![forbid(unsafe_code)]
