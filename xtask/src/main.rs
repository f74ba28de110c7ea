//! Checks and chores of the Tenure workspace: `cargo xtask check`, `cargo xtask kernels`, `cargo xtask support`.

mod kernels;
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What each crate may use, and where it may be unsafe: nowhere, or below these paths.
const CRATES: [(&str, &[&str], &[&str]); 10] = [
    ("tenure-tensor", &[], &[]),
    ("tenure-weights", &["tenure-tensor"], &["src/file.rs", "src/store.rs"]),
    ("tenure-graph", &["tenure-tensor"], &[]),
    ("tenure-device", &["tenure-tensor", "tenure-graph"], &["src/backend.rs", "src/lane.rs", "src/segment.rs"]),
    (
        "tenure-cpu",
        &["tenure-tensor", "tenure-graph", "tenure-device"],
        &["src/simd/", "src/raw/", "src/backend.rs", "src/lane.rs"],
    ),
    (
        "tenure-vulkan",
        &["tenure-tensor", "tenure-graph", "tenure-device"],
        &["src/raw/", "src/backend.rs", "src/lane.rs"],
    ),
    ("tenure-models", &["tenure-tensor", "tenure-weights", "tenure-graph"], &[]),
    ("tenure-tokenizer", &["tenure-tensor", "tenure-weights"], &[]),
    ("tenure-sampling", &[], &[]),
    (
        "tenure",
        &[
            "tenure-tensor",
            "tenure-weights",
            "tenure-graph",
            "tenure-device",
            "tenure-cpu",
            "tenure-vulkan",
            "tenure-models",
            "tenure-tokenizer",
            "tenure-sampling",
        ],
        &[],
    ),
];

/// A file with more lines than this holds a second concept.
const LONG: usize = 700;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["check"] => check(),
        ["kernels"] => compile_kernels(false),
        ["kernels", "--check"] => compile_kernels(true),
        ["support"] => write_support(),
        _ => {
            eprintln!("usage: cargo xtask check | kernels [--check] | support");
            ExitCode::from(2)
        }
    }
}

/// Compiles the kernels, or compiles them elsewhere and compares.
fn compile_kernels(only_compare: bool) -> ExitCode {
    let folder = root().join("kernels");
    let mut faults = Vec::new();
    let done = if only_compare { kernels::recompile(&folder, &mut faults) } else { kernels::compile(&folder) };
    faults.extend(done.err().map(|error| error.to_string()));
    report(&faults, if only_compare { "kernels: what their sources compile to" } else { "kernels: compiled" })
}

/// Writes down what runs where.
fn write_support() -> ExitCode {
    let file = root().join(support::FILE);
    let written = support::document().and_then(|text| std::fs::write(&file, text).map_err(|error| error.to_string()));
    let faults: Vec<String> = written.err().into_iter().collect();
    report(&faults, "support: written")
}

fn report(faults: &[String], well: &str) -> ExitCode {
    for fault in faults {
        eprintln!("fault: {fault}");
    }
    if faults.is_empty() {
        println!("{well}");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn check() -> ExitCode {
    let root = root();
    let mut faults = Vec::new();
    for (name, allowed, unsafe_paths) in CRATES {
        let folder = root.join("crates").join(name);
        arrows(&folder, name, allowed, &mut faults);
        unsafety(&folder, name, unsafe_paths, &mut faults);
    }
    kernels::check(&root.join("kernels"), &mut faults);
    support::check(&read(&root.join(support::FILE), &mut faults), &mut faults);
    tracked(&root, &mut faults);
    report(&faults, "layering, unsafety, kernels, what runs where and tracked files: as they should be")
}

/// Dependencies on crates of the workspace point downward only.
fn arrows(folder: &Path, name: &str, allowed: &[&str], faults: &mut Vec<String>) {
    let manifest = read(&folder.join("Cargo.toml"), faults);
    let mut in_dependencies = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_dependencies =
                line == "[dependencies]" || line.starts_with("[target.") && line.ends_with("dependencies]");
        }
        let used = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if in_dependencies && used.starts_with("tenure") && !allowed.contains(&used) {
            faults.push(format!("{name} uses {used}"));
        }
    }
}

/// Unsafe code is where the crate says, and the others forbid it.
fn unsafety(folder: &Path, name: &str, allowed: &[&str], faults: &mut Vec<String>) {
    let lib = read(&folder.join("src/lib.rs"), faults);
    if allowed.is_empty() && !lib.contains("#![forbid(unsafe_code)]") {
        faults.push(format!("{name} does not forbid unsafe code"));
    }
    for file in sources(&folder.join("src")) {
        let text = read(&file, faults);
        let inside =
            file.strip_prefix(folder).map_or_else(|_| String::new(), |path| path.to_string_lossy().into_owned());
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let is_unsafe = code
            .clone()
            .any(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe"));
        if is_unsafe && !allowed.iter().any(|path| inside.starts_with(path)) {
            faults.push(format!("{name}/{inside} has unsafe code"));
        }
        let lines = text.lines().count();
        if lines > LONG {
            println!("note: {name}/{inside} has {lines} lines");
        }
    }
}

/// Tracked text files name no machine's folders and no package registry.
fn tracked(root: &Path, faults: &mut Vec<String>) {
    let listed = Command::new("git").args(["ls-files"]).current_dir(root).output();
    let Ok(listed) = listed else {
        // A source archive without git has nothing to check here.
        return;
    };
    let marks = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("pypi", ".org"),
        concat!("pythonhosted", ".org"),
        concat!("static.crates", ".io"),
    ];
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for name in String::from_utf8_lossy(&listed.stdout).lines() {
        let Ok(text) = std::fs::read_to_string(root.join(name)) else { continue };
        for (at, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                found.entry(name.to_owned()).or_insert(at + 1);
            }
        }
    }
    faults
        .extend(found.into_iter().map(|(name, line)| format!("{name}:{line} names a machine's folder or a registry")));
}

/// Every file below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

fn read(path: &Path, faults: &mut Vec<String>) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| {
        faults.push(format!("{}: {error}", path.display()));
        String::new()
    })
}
