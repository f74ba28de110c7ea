//! The project's own small models, with what an independent implementation computes for them.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A file under `fixtures/models`.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

/// A file in the temporary folder, gone when it is dropped.
pub struct Temporary(PathBuf);

impl Temporary {
    /// A file with these bytes; no other of this process has the name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(name: &str, bytes: &[u8]) -> std::io::Result<Self> {
        let file = Temporary(std::env::temp_dir().join(format!("tenure-{}-{name}", std::process::id())));
        std::fs::write(&file.0, bytes)?;
        Ok(file)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // A file left behind in the temporary folder harms nobody.
        let _: std::io::Result<()> = std::fs::remove_file(&self.0);
    }
}

/// A small model and its truth, computed in 64-bit floats from the architecture's definition by
/// `fixtures/models/make_tiny.py`.
#[derive(Debug, Deserialize)]
pub struct Golden {
    /// The model's file beside the truth.
    pub model: String,
    /// Prompts and answers.
    pub cases: Vec<GoldenCase>,
}

impl Golden {
    /// The case with the longest prompt.
    ///
    /// # Panics
    /// When there are none.
    pub fn longest(&self) -> &GoldenCase {
        self.cases.iter().max_by_key(|case| case.tokens.len()).expect("has cases")
    }
}

/// One prompt.
#[derive(Debug, Deserialize)]
pub struct GoldenCase {
    /// What it tries.
    pub name: String,
    /// The prompt, where it is text.
    pub text: Option<String>,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Logits after the last of them.
    pub last_logits: Vec<f32>,
    /// Logarithm of the sum of exponentials of the logits after each.
    pub position_logsumexp: Vec<f32>,
    /// The most likely continuation.
    pub greedy: Vec<u32>,
    /// How far the second most likely token was, at each step.
    pub greedy_margin: Vec<f32>,
}

/// Every small model with its truth, by name.
///
/// # Errors
/// When a file cannot be read.
pub fn goldens() -> std::io::Result<Vec<(String, Golden)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(fixture(""))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let golden = serde_json::from_slice(&std::fs::read(&path)?)?;
            let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
            found.push((name, golden));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}
