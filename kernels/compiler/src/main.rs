//! `tenure-kernel-compiler SOURCES OUT`: compiles each `SOURCES/*.comp` to `OUT/*.spv`, for Vulkan 1.1; and, of a source
//! with a line `#pragma variants(NAME)`, another binary with NAME defined: `OUT/*.name.spv`.
//!
//! Run by `cargo xtask kernels`.

#![forbid(unsafe_code)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use glslang::{
    Compiler, CompilerOptions, ShaderInput, ShaderMessage, ShaderSource, ShaderStage, SourceLanguage, SpirvVersion,
    Target, VulkanVersion,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(sources), Some(out), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("usage: tenure-kernel-compiler SOURCES OUT");
        return ExitCode::from(2);
    };
    match compile_all(&sources, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compile_all(sources: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let compiler = Compiler::acquire().ok_or("glslang did not start")?;
    std::fs::create_dir_all(out)?;
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(sources)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "comp"));
    files.sort();
    for file in files {
        let text = with_includes(&file)?;
        let stem = file.file_stem().and_then(|stem| stem.to_str()).ok_or("a source without a name")?;
        for variant in std::iter::once(None).chain(variants(&text).map(Some)) {
            let words = compile(compiler, &text, variant).map_err(|error| format!("{}: {error}", file.display()))?;
            let bytes: Vec<u8> = without_names(&words).into_iter().flat_map(u32::to_le_bytes).collect();
            let name = variant.map_or_else(String::new, |name| format!(".{}", name.to_lowercase()));
            std::fs::write(out.join(format!("{stem}{name}.spv")), bytes)?;
        }
    }
    Ok(())
}

/// The source with the text of the files it includes in their place, each followed by where the source goes on.
fn with_includes(file: &Path) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    for (at, line) in std::fs::read_to_string(file)?.lines().enumerate() {
        if let Some(name) = line.strip_prefix("#include ") {
            let included = file.with_file_name(name.trim().trim_matches('"'));
            let body =
                std::fs::read_to_string(&included).map_err(|error| format!("{}: {error}", included.display()))?;
            text.push_str(&format!("#line 1\n{body}#line {}\n", at + 2));
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

/// What a source asks to be compiled with, each by itself.
fn variants(text: &str) -> impl Iterator<Item = &str> {
    let names = |line| str::strip_suffix(str::strip_prefix(line, "#pragma variants(")?, ")");
    text.lines().filter_map(names).flat_map(str::split_whitespace)
}

fn compile(compiler: &Compiler, text: &str, variant: Option<&str>) -> Result<Vec<u32>, Box<dyn Error>> {
    let options = CompilerOptions {
        source_language: SourceLanguage::GLSL,
        target: Target::Vulkan { version: VulkanVersion::Vulkan1_1, spirv_version: SpirvVersion::SPIRV1_3 },
        version_profile: None,
        messages: ShaderMessage::DEFAULT,
    };
    let defines: Vec<(&str, Option<&str>)> = variant.map(|name| (name, None)).into_iter().collect();
    let source = ShaderSource::from(text);
    let input = ShaderInput::new(&source, ShaderStage::Compute, &options, Some(defines.as_slice()), None)?;
    Ok(compiler.create_shader(input)?.compile()?)
}

/// The module without the instructions that only name things: OpSourceContinued, OpSource, OpSourceExtension, OpName,
/// OpMemberName, OpString, OpLine, OpNoLine and OpModuleProcessed (SPIR-V 1.3, section 3.32).
fn without_names(words: &[u32]) -> Vec<u32> {
    const NAMING: [u32; 9] = [2, 3, 4, 5, 6, 7, 8, 317, 330];
    const HEADER: usize = 5;
    let (header, mut rest) = words.split_at(words.len().min(HEADER));
    let mut kept = header.to_vec();
    while let Some(&first) = rest.first() {
        let length = ((first >> 16) as usize).clamp(1, rest.len());
        let (instruction, after) = rest.split_at(length);
        if !NAMING.contains(&(first & 0xffff)) {
            kept.extend_from_slice(instruction);
        }
        rest = after;
    }
    kept
}
