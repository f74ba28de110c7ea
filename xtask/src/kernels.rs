//! The kernels' sources, what was compiled from them, and the manifest that ties the two together.
//!
//! The manifest names each source with its SHA-256 and those of what was made from it; a file that sources include has
//! an entry of its own. Checking that needs no compiler; [`compile`] and [`recompile`] build the pinned one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::{read, sources};

/// Where the languages have their sources.
const LANGUAGES: [&str; 2] = ["cuda", "vulkan"];

/// Compiles all kernels and writes the manifest.
pub(crate) fn compile(folder: &Path) -> io::Result<()> {
    let compiled = compile_elsewhere(folder)?;
    let made = folder.join("prebuilt/vulkan");
    if made.is_dir() {
        std::fs::remove_dir_all(&made)?;
    }
    std::fs::create_dir_all(&made)?;
    for (name, bytes) in compiled {
        std::fs::write(made.join(name), bytes)?;
    }
    std::fs::write(folder.join("manifest.toml"), manifest(folder)?)
}

/// Compiles all kernels elsewhere and compares: what differs from what is checked in.
pub(crate) fn recompile(folder: &Path, faults: &mut Vec<String>) -> io::Result<()> {
    let (here, there) = (contents(&folder.join("prebuilt/vulkan"))?, compile_elsewhere(folder)?);
    for (name, bytes) in &there {
        match here.get(name) {
            Some(checked_in) if checked_in == bytes => {}
            Some(_) => faults.push(format!("kernels/prebuilt/vulkan/{name} is not what its source compiles to")),
            None => faults.push(format!("kernels/prebuilt/vulkan/{name} is missing")),
        }
    }
    let extra = here.keys().filter(|name| !there.contains_key(*name));
    faults.extend(extra.map(|name| format!("kernels/prebuilt/vulkan/{name} has no source")));
    if read(&folder.join("manifest.toml"), faults) != manifest(folder)? {
        faults.push("kernels/manifest.toml is not what cargo xtask kernels writes".to_owned());
    }
    Ok(())
}

/// Each file has its entry in the manifest with its SHA-256, and each entry its files.
pub(crate) fn check(folder: &Path, faults: &mut Vec<String>) {
    let mut listed = BTreeMap::new();
    for entry in entries(&read(&folder.join("manifest.toml"), faults)) {
        listed.extend(entry);
    }
    let mut files = Vec::new();
    for language in LANGUAGES {
        files.extend(sources(&folder.join(language)));
    }
    files.extend(sources(&folder.join("prebuilt")));
    for file in files {
        let name = file.strip_prefix(folder).map_or_else(|_| String::new(), |path| path.to_string_lossy().into_owned());
        match listed.remove(&name) {
            Some(known) if known == hash(&std::fs::read(&file).unwrap_or_default()) => {}
            Some(_) => faults.push(format!("kernels/{name} is not the file that the manifest lists")),
            None => faults.push(format!("kernels/{name} is not in the manifest")),
        }
    }
    faults.extend(listed.into_keys().map(|name| format!("kernels/{name} is in the manifest but not there")));
    for file in sources(&folder.join("vulkan")) {
        for name in includes(&read(&file, faults)) {
            if !file.with_file_name(&name).is_file() {
                faults.push(format!("{} includes {name}, which is not there", file.display()));
            }
        }
    }
}

/// The files and hashes of each entry.
fn entries(manifest: &str) -> Vec<Vec<(String, String)>> {
    let quoted = |value: &str| -> Vec<String> { value.split('"').skip(1).step_by(2).map(str::to_owned).collect() };
    let mut found = Vec::new();
    for entry in manifest.split("[[").skip(1) {
        let values = |key: &str| -> Vec<String> {
            let line = entry.lines().filter_map(|line| line.split_once('=')).find(|(name, _)| name.trim() == key);
            line.map_or_else(Vec::new, |(_, value)| quoted(value))
        };
        let names = values("source").into_iter().chain(values("outputs"));
        let hashes = values("sha256").into_iter().chain(values("outputs_sha256"));
        found.push(names.zip(hashes.chain(std::iter::repeat(String::new()))).collect());
    }
    found
}

/// What the manifest of the files that are there says.
fn manifest(folder: &Path) -> io::Result<String> {
    let mut text = String::from("# Written by cargo xtask kernels. Each source, and what was made from it.\n");
    let hash_of = |name: &str| std::fs::read(folder.join(name)).map(|bytes| hash(&bytes));
    for language in LANGUAGES {
        for file in sources(&folder.join(language)) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let source = format!("{language}/{name}");
            let text_of = std::fs::read_to_string(&file)?;
            let included: Vec<String> = includes(&text_of);
            let included: Vec<String> = included.iter().map(|name| format!("\"{language}/{name}\"")).collect();
            let kind = if name.ends_with(".glsl") { "include" } else { "kernel" };
            let _ = write!(text, "\n[[{kind}]]\nsource = \"{source}\"\nsha256 = \"{}\"\n", hash_of(&source)?);
            if let Some(stem) = name.strip_suffix(".comp") {
                let outputs = outputs(&text_of, &format!("prebuilt/{language}/{stem}"));
                let hashes = outputs.iter().map(|output| hash_of(output)).collect::<io::Result<Vec<_>>>()?;
                let list = |of: Vec<String>| of.iter().map(|one| format!("\"{one}\"")).collect::<Vec<_>>().join(", ");
                let _ = writeln!(text, "includes = [{}]", included.join(", "));
                let _ = writeln!(text, "outputs = [{}]\noutputs_sha256 = [{}]", list(outputs), list(hashes));
            }
        }
    }
    Ok(text)
}

/// What a source is compiled to: a binary, and one for each variant it names.
fn outputs(source: &str, stem: &str) -> Vec<String> {
    let named = |line| str::strip_suffix(str::strip_prefix(line, "#pragma variants(")?, ")");
    let names = source.lines().filter_map(named).flat_map(str::split_whitespace);
    let variants = names.map(|name| format!("{stem}.{}.spv", name.to_lowercase()));
    std::iter::once(format!("{stem}.spv")).chain(variants).collect()
}

/// The files that a source includes.
fn includes(source: &str) -> Vec<String> {
    source
        .lines()
        .filter_map(|line| line.strip_prefix("#include "))
        .map(|name| name.trim().trim_matches('"').to_owned())
        .collect()
}

/// Builds the pinned compiler, which takes minutes the first time, and runs it: what it made, by name.
fn compile_elsewhere(folder: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let elsewhere = std::env::temp_dir().join(format!("tenure-kernels-{}", std::process::id()));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--quiet", "--locked", "--manifest-path"])
        .arg(folder.join("compiler/Cargo.toml"))
        .arg("--")
        .arg(folder.join("vulkan"))
        .arg(&elsewhere)
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!("the kernel compiler: {status}")));
    }
    let made = contents(&elsewhere)?;
    std::fs::remove_dir_all(&elsewhere)?;
    Ok(made)
}

/// The files of a folder by name.
fn contents(folder: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let named = |file: PathBuf| -> io::Result<(String, Vec<u8>)> {
        let bytes = std::fs::read(&file)?;
        Ok((file.file_name().unwrap_or_default().to_string_lossy().into_owned(), bytes))
    };
    sources(folder).into_iter().map(named).collect()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
