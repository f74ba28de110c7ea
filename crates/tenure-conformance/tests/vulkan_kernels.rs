//! What the Vulkan kernels say about layouts is what `tenure-tensor` and `tenure-graph` say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tenure_graph::KV_BLOCK;
use tenure_tensor::{DType, codec};

fn source(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/vulkan").join(name);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The numbers that a source defines.
fn numbers(source: &str) -> BTreeMap<&str, usize> {
    let define = |line| -> Option<(&str, usize)> {
        let (name, value) = str::strip_prefix(line, "#define ")?.split_once(' ')?;
        Some((name, value.strip_suffix('u')?.parse().ok()?))
    };
    source.lines().filter_map(define).collect()
}

#[test]
fn block_layouts_are_the_codecs() {
    let text = source("quant.glsl");
    let mut numbers = numbers(&text);
    let known = |dtype: &DType| dtype.is_computable() && dtype.ggml_id().is_some();
    for dtype in DType::ALL.into_iter().filter(known) {
        let mut take = |suffix: &str| numbers.remove(format!("{}{suffix}", dtype.name()).as_str());
        assert_eq!(take("").map(|id| id as u32), dtype.ggml_id(), "{dtype}");
        if dtype.is_block() {
            let (words, tail) = (take("_WORDS").expect("has a body"), take("_TAIL").expect("says its tail"));
            assert_eq!(take("_LEN"), Some(dtype.block_len()), "{dtype}");
            assert_eq!(4 * words + tail, dtype.block_bytes(), "{dtype}");
            // Blocks that are no whole words have a tail, and only those.
            assert_eq!(tail > 0, !dtype.block_bytes().is_multiple_of(4), "{dtype}");
        }
    }
    assert_eq!(numbers, BTreeMap::new(), "types that nobody computes with");
}

#[test]
fn kv_blocks_are_the_graphs() {
    let line = format!("const uint KV_BLOCK = {KV_BLOCK}u;");
    assert!(source("common.glsl").lines().any(|found| found == line), "{line}");
}

/// A block whose elements are all codes, in order.
fn table_of(dtype: DType, header: &[u8]) -> Vec<f32> {
    let mut block = header.to_vec();
    block.extend((0..16).map(|code: u8| code | code << 4));
    let mut values = vec![0.0; 32];
    codec::dequantize(dtype, &block, &mut values).expect("one block");
    assert_eq!(values[..16], values[16..]);
    values.truncate(16);
    values
}

fn listed(text: &str, name: &str) -> Vec<f32> {
    let (_, after) = text.split_once(&format!("const int {name}[16] = int[](")).expect("is there");
    let (list, _) = after.split_once(')').expect("ends");
    list.split(',').map(|value| value.trim().parse().expect("a number")).collect()
}

#[test]
fn tables_of_values_are_the_codecs() {
    let text = source("quant.glsl");
    // Scales of one: f16 1.0, and the exponent of 2^0 that the doubled values go with.
    assert_eq!(listed(&text, "UNEVEN"), table_of(DType::IQ4NL, &[0x00, 0x3c]));
    assert_eq!(listed(&text, "E2M1"), table_of(DType::MXFP4, &[128]));
}

/// Every source is a kernel that the backend has, or included by one.
#[test]
fn no_source_is_left_over() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/vulkan");
    let kernels = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tenure-vulkan/src/kernel.rs"));
    let kernels = kernels.expect("is there");
    let mut included = BTreeSet::new();
    let mut includes = BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("is there") {
        let name = entry.expect("is readable").file_name().to_string_lossy().into_owned();
        let text = source(&name);
        included.extend(
            text.lines()
                .filter_map(|line| line.strip_prefix("#include ").map(|name| name.trim_matches('"').to_owned())),
        );
        match name.strip_suffix(".comp") {
            Some(stem) => {
                let named = |line| str::strip_suffix(str::strip_prefix(line, "#pragma variants(")?, ")");
                let names = text.lines().filter_map(named).flat_map(str::split_whitespace);
                let variants = names.map(|name| format!(".{}", name.to_lowercase()));
                for variant in std::iter::once(String::new()).chain(variants) {
                    let binary = format!("prebuilt/vulkan/{stem}{variant}.spv");
                    assert!(kernels.contains(&binary), "nobody uses {binary}");
                }
            }
            None => {
                includes.insert(name);
            }
        }
    }
    assert_eq!(includes, included);
}
