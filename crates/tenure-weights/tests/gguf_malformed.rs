//! Malformed GGUF files, each with the error it must give.

mod common;

use common::{Raw, array_head, str_bytes};
use tenure_weights::ErrorKind;
use tenure_weights::gguf::Gguf;

const F32: u32 = 0;
const U8: u32 = 0;
const U32: u32 = 4;
const STR: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;

/// One F32 tensor of eight values and one key.
fn good() -> Raw {
    Raw::new().kv("general.architecture", STR, str_bytes("llama")).info("t", &[8], F32, 0).data(32)
}

/// A file with one key-value pair.
fn pair(key: impl AsRef<[u8]>, ty: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    Raw::new().kv(key, ty, value).bytes()
}

/// A file that ends within its one pair, `bytes`.
fn raw_pair(bytes: impl Into<Vec<u8>>) -> Vec<u8> {
    Raw::new().raw_kv(bytes).bytes()
}

fn tensor(dims: &[u64], ty: u32) -> Vec<u8> {
    Raw::new().info("t", dims, ty, 0).data(64).bytes()
}

fn alignment(ty: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    pair("general.alignment", ty, value)
}

/// The name of the error's class, as the catalogue writes it.
fn class(kind: &ErrorKind) -> String {
    let debug = format!("{kind:?}");
    debug.split([' ', '{', '(']).next().unwrap().to_owned()
}

fn nested(depth: usize) -> Vec<u8> {
    let mut value = array_head(ARRAY, 1).repeat(depth);
    value.extend(array_head(U8, 0));
    value
}

#[rustfmt::skip]
fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let two = |a: u64, b: u64, gap: usize| {
        Raw::new().info("a", &[8], F32, a).info("b", &[8], F32, b).data(64 + gap).bytes()
    };
    let mut cases = vec![
        ("C00", good().bytes(), "OK"),
        ("C01", Raw::new().bytes(), "OK"),
        ("C02", pair("k", ARRAY, nested(1)), "OK"),
        ("H01", vec![], "Truncated"),
        ("H02", b"GGU".to_vec(), "Truncated"),
        ("H03", good().with(|f| f.magic = *b"GGML").bytes(), "BadMagic"),
        ("H04", b"GGUF".to_vec(), "Truncated"),
        ("H05", good().with(|f| f.version = 0).bytes(), "UnsupportedVersion"),
        ("H06", good().with(|f| f.version = 1).bytes(), "UnsupportedVersion"),
        ("H07", good().with(|f| f.version = 4).bytes(), "UnsupportedVersion"),
        ("H08", good().with(|f| f.version = 3u32.swap_bytes()).bytes(), "WrongEndian"),
        ("H09", good().with(|f| f.n_tensors = Some(u64::MAX)).bytes(), "CountTooLarge"),
        ("H10", good().with(|f| f.n_tensors = Some(1 << 61)).bytes(), "CountTooLarge"),
        ("H11", good().with(|f| f.n_tensors = Some(100_000_000)).bytes(), "CountExceedsFile"),
        ("H12", good().with(|f| f.n_kv = Some(u64::MAX)).bytes(), "CountTooLarge"),
        ("H13", good().with(|f| f.n_kv = Some(1 << 40)).bytes(), "CountExceedsFile"),
        ("H14", good().with(|f| f.n_tensors = Some(2)).bytes(), "Truncated"),
        ("H14 without tensors", Raw::new().with(|f| f.n_tensors = Some(1)).bytes(), "Truncated"),
        ("H15", good().with(|f| f.n_kv = Some(2)).bytes(), "BadKv"),
        ("K01", raw_pair(u64::MAX.to_le_bytes()), "StringTooLong"),
        ("K02", raw_pair((1u64 << 63).to_le_bytes()), "StringTooLong"),
        ("K03", raw_pair([&2u64.to_le_bytes()[..], b"a"].concat()), "Truncated"),
        ("K04", raw_pair([&(1u64 << 30).to_le_bytes()[..], b"key"].concat()), "Truncated"),
        ("K05", pair("", U8, [1]), "BadKey"),
        ("K06", pair("a\0b", U8, [1]), "BadKey"),
        ("K07", pair([0xff, 0xfe], U8, [1]), "BadKey"),
        ("K08", pair("k".repeat(65_536), U8, [1]), "BadKey"),
        ("K08 within", pair("k".repeat(65_535), U8, [1]), "OK"),
        ("K09", Raw::new().kv("a", U8, [1]).kv("b", U8, [1]).kv("a", U8, [2]).bytes(), "DuplicateKey"),
        ("K10", pair("k", 13, [0; 8]), "BadValueType"),
        ("K11", pair("k", u32::MAX, [0; 8]), "BadValueType"),
        ("K12", pair("k", STR, u64::MAX.to_le_bytes()), "StringTooLong"),
        ("K13", pair("k", ARRAY, array_head(99, 1)), "BadValueType"),
        ("K14", pair("k", ARRAY, nested(100_000)), "NestingTooDeep"),
        ("K14 within", pair("k", ARRAY, nested(7)), "OK"),
        ("K14 beyond", pair("k", ARRAY, nested(8)), "NestingTooDeep"),
        ("K15", pair("k", ARRAY, array_head(U8, u64::MAX)), "CountExceedsFile"),
        ("K16", pair("k", ARRAY, [array_head(U64, (1 << 61) + 1), vec![0; 8]].concat()), "CountExceedsFile"),
        ("K17", pair("k", ARRAY, array_head(STR, 1 << 30)), "CountExceedsFile"),
        ("K18", pair("k", ARRAY, array_head(ARRAY, 1_000_000_000)), "CountExceedsFile"),
        ("K19", pair("k", 7, [2]), "BadBool"),
        ("K19 in an array", pair("k", ARRAY, [array_head(7, 3), vec![0, 1, 2]].concat()), "BadBool"),
        ("K20", alignment(U32, 0u32.to_le_bytes()), "BadAlignment"),
        ("K21", alignment(U32, 3u32.to_le_bytes()), "BadAlignment"),
        ("K22", alignment(U32, (1u32 << 31).to_le_bytes()), "BadAlignment"),
        ("K23", alignment(STR, str_bytes("32")), "BadAlignment"),
        ("K24", alignment(U64, 64u64.to_le_bytes()), "BadAlignment"),
        ("K25", alignment(U32, 1u32.to_le_bytes()), "BadAlignment"),
        ("K25 of 8", alignment(U32, 8u32.to_le_bytes()), "OK"),
        ("K26", pair("k", STR, str_bytes([0xc3, 0x28])), "BadString"),
        ("K26 in an array", pair("k", ARRAY, [array_head(STR, 1), str_bytes([0xff])].concat()), "BadString"),
        ("T01", Raw::new().info("n".repeat(64), &[8], F32, 0).data(32).bytes(), "OK"),
        ("T02", Raw::new().info("", &[8], F32, 0).data(32).bytes(), "BadTensorName"),
        ("T03", Raw::new().info("a\0b", &[8], F32, 0).info("a", &[8], F32, 32).data(64).bytes(), "BadTensorName"),
        ("T04", Raw::new().info("a", &[8], F32, 0).info("a", &[8], F32, 32).data(64).bytes(), "DuplicateTensor"),
        ("T05", tensor(&[], F32), "BadRank"),
        ("T06", tensor(&[1; 5], F32), "BadRank"),
        ("T07", Raw::new().with(|f| {
            f.infos.push([str_bytes("t"), u32::MAX.to_le_bytes().to_vec(), vec![0; 64]].concat());
        }).bytes(), "BadRank"),
        ("T08", tensor(&[8, 0], F32), "BadShape"),
        ("T09", tensor(&[1 << 63], F32), "BadShape"),
        ("T10", tensor(&[1 << 62, 4], F32), "SizeOverflow"),
        ("T11", tensor(&[(1 << 62) + 1, 4], F32), "SizeOverflow"),
        ("T12", tensor(&[1 << 62, 2], 24), "SizeOverflow"),
        ("T13", tensor(&[8], 9999), "BadDtype"),
        ("T14", tensor(&[8], u32::MAX), "BadDtype"),
        ("T15", tensor(&[32], 4), "BadDtype"),
        ("T16", tensor(&[32], 31), "BadDtype"),
        ("T17", tensor(&[33], 2), "BadShape"),
        ("T18", tensor(&[16, 2], 2), "BadShape"),
        ("T19", tensor(&[1 << 61], 28), "SizeOverflow"),
        ("T20", tensor(&[(1 << 62) - 1], F32), "SizeOverflow"),
        ("T21", Raw::new().info("a", &[(1 << 62) - 1], F32, 0).info("b", &[8], F32, 0).data(32).bytes(), "SizeOverflow"),
        ("T22", Raw::new().info("t", &[8], F32, 1).data(64).bytes(), "BadOffset"),
        ("T23", Raw::new().info("t", &[8], F32, u64::MAX - 31).data(64).bytes(), "BadOffset"),
        ("T24", Raw::new().info("t", &[8], F32, 4096).data(64).bytes(), "BadOffset"),
        ("T25", two(0, 0, 0), "Overlap"),
        ("T26", two(0, 64, 32), "Gap"),
        ("T27", good().with(|f| { f.data.pop(); }).bytes(), "TensorOutOfFile"),
        ("T28", good().with(|f| f.data.clear()).bytes(), "TensorOutOfFile"),
        ("T29", tensor(&[10 << 30], F32), "TensorOutOfFile"),
        ("T30", Raw::new().info("a", &[1 << 61], F32, 0).info("b", &[1 << 61], F32, 1 << 63).data(32).bytes(), "SizeOverflow"),
        ("T30 below 2^63", Raw::new().info("a", &[1 << 60], F32, 0).info("b", &[1 << 60], F32, 1 << 62).data(32).bytes(), "SizeOverflow"),
        ("T32", two(32, 0, 0), "OK"),
        ("T33", good().data(32 + (1 << 20)).bytes(), "TrailingData"),
        ("T33 padding", Raw::new().info("t", &[5], F32, 0).data(32).bytes(), "OK"),
        ("T33 no tensors", Raw::new().data(64).bytes(), "TrailingData"),
        ("T34", Raw::new().info("t", &[4], 27, 0).data(32).bytes(), "OK"),
        ("V2", good().with(|f| f.version = 2).bytes(), "OK"),
    ];
    cases.extend([("K27", pair("k", ARRAY, [array_head(U8, 64 << 20), vec![7; 64 << 20]].concat()), "OK")]);
    cases
}

#[test]
fn each_gives_the_error_of_the_catalogue() {
    let mut wrong = Vec::new();
    for (id, bytes, want) in cases() {
        let got = Gguf::from_bytes(&bytes).map_or_else(|e| class(e.kind()), |_| "OK".to_owned());
        if got != want {
            wrong.push(format!("{id}: {got}, must be {want}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn errors_name_what_is_at_fault() {
    let message = |bytes: Vec<u8>| Gguf::from_bytes(&bytes).unwrap_err().to_string();
    assert_eq!(message(tensor(&[33], 2)), "(memory): tensor `t`: bad dimension `33`");
    assert_eq!(message(Raw::new().kv("a", U8, [1]).kv("a", U8, [1]).bytes()), "(memory): duplicate key `a`");
    let long = message(pair(format!("\x1b{}", "k".repeat(70_000)), U8, [1]));
    assert!(long.starts_with("(memory): bad key `\\u{1b}kkk") && long.len() < 200, "{long}");
}

/// A file with something of everything, near 40 KB.
fn varied() -> Vec<u8> {
    let tokens: Vec<u8> = (0..600).flat_map(|i| str_bytes(format!("token{i}"))).collect();
    let mut file = Raw::new()
        .kv("general.architecture", STR, str_bytes("llama"))
        .kv("general.alignment", U32, 64u32.to_le_bytes())
        .kv("a.bool", 7, [1])
        .kv("a.f64", 12, 1f64.to_le_bytes())
        .kv("a.tokens", ARRAY, [array_head(STR, 600), tokens].concat())
        .kv("a.scores", ARRAY, [array_head(6, 600), vec![0; 2400]].concat())
        .kv(
            "a.nested",
            ARRAY,
            [array_head(ARRAY, 2), array_head(U8, 3), vec![1, 2, 3], array_head(5, 1), vec![0; 4]].concat(),
        )
        .kv("a.last", U32, 15u32.to_le_bytes());
    let mut offset = 0;
    for i in 0..60u64 {
        // F32, Q4_0 and Q6_K in turn.
        let (dims, ty, bytes) =
            [(vec![3, 5], 0, 60), (vec![64, 2], 2, 72), (vec![256], 14, 210)][i as usize % 3].clone();
        file = file.info(format!("blk.{i}.weight"), &dims, ty, offset);
        offset = (offset + bytes as u64).next_multiple_of(64);
    }
    file.pad_to = 64;
    file.data(offset as usize).bytes()
}

#[test]
fn x01_every_prefix_is_truncated() {
    let file = varied();
    assert!(file.len() > 20_000, "{}", file.len());
    // The last tensor is a Q6_K of 210 bytes; its padding to 256 may be missing.
    let whole = file.len() - (256 - 210);
    for n in 0..file.len() {
        match Gguf::from_bytes(&file[..n]) {
            Ok(_) => assert!(n >= whole, "prefix of {n} bytes"),
            Err(e) => assert!(n < whole && e.kind().is_truncation(), "prefix of {n} bytes: {e}"),
        }
    }
}

#[test]
fn x02_every_flipped_bit_of_the_header_is_survived() {
    let file = varied();
    let header = Gguf::from_bytes(&file).unwrap().data_start() as usize;
    let (mut ok, mut refused) = (0, 0);
    let mut flipped = file.clone();
    for bit in 0..header * 8 {
        flipped[bit / 8] ^= 1 << (bit % 8);
        match Gguf::from_bytes(&flipped) {
            Ok(got) => {
                ok += 1;
                check_extents(&got, flipped.len() as u64);
            }
            Err(e) => {
                refused += 1;
                assert!(!e.to_string().is_empty());
            }
        }
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(ok > 1000 && refused > 1000, "{ok} accepted, {refused} refused");
}

/// What acceptance promises: every tensor aligned and inside, none over another, every value readable.
fn check_extents(file: &Gguf, len: u64) {
    let mut spans: Vec<_> = file.tensors().iter().map(|t| (t.offset(), t.offset() + t.bytes().get())).collect();
    spans.sort_unstable();
    assert!(spans.iter().all(|&(start, end)| start >= file.data_start() && end <= len && start < end));
    assert!(spans.windows(2).all(|w| w[0].1 <= w[1].0));
    assert_eq!(file.metadata().iter().count(), file.metadata().len());
    for tensor in file.tensors() {
        assert_eq!(tensor.spec().bytes(), Some(tensor.bytes()));
        assert!(file.find(&tensor.spec().name).is_some());
    }
}

/// Numbers at the edges of what fields can hold.
fn edges(len: u64) -> Vec<u64> {
    vec![0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, u64::MAX, len - 1, len, len + 1]
}

/// A small file, and where its integer fields are, with their widths.
fn with_fields() -> (Vec<u8>, Vec<(usize, usize)>) {
    let file = Raw::new()
        .kv("a", U32, 7u32.to_le_bytes())
        .kv("b", STR, str_bytes("text"))
        .kv("c", ARRAY, [array_head(STR, 2), str_bytes("x"), str_bytes("yz")].concat())
        .kv("general.alignment", U32, 32u32.to_le_bytes())
        .info("t", &[8, 2], F32, 0)
        .info("u", &[32], 2, 64)
        .data(96);
    let mut fields = vec![(4, 4), (8, 8), (16, 8)];
    let mut at = 24;
    for pair in &file.pairs {
        let key = u64::from_le_bytes(pair[..8].try_into().unwrap()) as usize;
        fields.extend([(at, 8), (at + 8 + key, 4), (at + 12 + key, 4)]);
        at += pair.len();
    }
    let strings = 24 + file.pairs[..2].concat().len() + 8 + 1 + 4;
    fields.extend([(24 + file.pairs[0].len() + 13, 8), (strings + 4, 8), (strings + 12, 8), (strings + 21, 8)]);
    for info in &file.infos {
        fields.extend([(at, 8), (at + 9, 4)]);
        fields.extend((at + 13..at + info.len() - 12).step_by(8).map(|dim| (dim, 8)));
        fields.extend([(at + info.len() - 12, 4), (at + info.len() - 8, 8)]);
        at += info.len();
    }
    (file.bytes(), fields)
}

fn set(bytes: &mut [u8], (at, width): (usize, usize), value: u64) {
    bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
}

#[test]
fn x03_every_field_at_every_edge_is_survived() {
    let (file, fields) = with_fields();
    assert!(Gguf::from_bytes(&file).is_ok());
    for &field in &fields {
        for edge in edges(file.len() as u64) {
            let mut bytes = file.clone();
            set(&mut bytes, field, edge);
            if let Ok(got) = Gguf::from_bytes(&bytes) {
                check_extents(&got, bytes.len() as u64);
            }
        }
    }
}

#[test]
fn x04_pairs_of_edges_are_survived() {
    let (file, fields) = with_fields();
    let edges = edges(file.len() as u64);
    let mut tried = 0;
    for (i, &a) in fields.iter().enumerate() {
        for (j, &b) in fields.iter().enumerate().skip(i + 1) {
            for k in 0..edges.len() {
                let mut bytes = file.clone();
                set(&mut bytes, a, edges[k]);
                set(&mut bytes, b, edges[(k * 5 + i + j) % edges.len()]);
                if let Ok(got) = Gguf::from_bytes(&bytes) {
                    check_extents(&got, bytes.len() as u64);
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 5_000, "{tried}");
}
