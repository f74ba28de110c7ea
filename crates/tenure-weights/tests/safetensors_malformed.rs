//! Malformed safetensors files, each with the error it must give; and what the `safetensors` crate makes of good ones.

mod common;

use common::{entry, safetensors};
use tenure_weights::ErrorKind;
use tenure_weights::safetensors::Safetensors;

fn class(kind: &ErrorKind) -> String {
    let debug = format!("{kind:?}");
    debug.split([' ', '{', '(']).next().unwrap().to_owned()
}

fn one(dtype: &str, shape: &str, offsets: &str, data: usize) -> Vec<u8> {
    safetensors(format!("{{{}}}", entry("t", dtype, shape, offsets)), data)
}

fn two(a: &str, b: &str, data: usize) -> Vec<u8> {
    safetensors(format!("{{{},{}}}", entry("a", "F32", "8", a), entry("b", "F32", "8", b)), data)
}

fn good() -> Vec<u8> {
    one("F32", "8", "0,32", 32)
}

#[rustfmt::skip]
fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let len = |n: u64| [&n.to_le_bytes()[..], b"{}"].concat();
    let t = entry("t", "F32", "8", "0,32");
    vec![
        ("S00", good(), "OK"),
        ("S01", vec![0; 4], "Truncated"),
        ("S02", len(0), "BadHeader"),
        ("S03", len(3), "Truncated"),
        ("S04", len(u64::MAX), "HeaderTooLarge"),
        ("S05", len(100_000_001), "HeaderTooLarge"),
        ("S06", safetensors([b'{', b'"', 0xff, b'"', b'}'], 0), "BadHeader"),
        ("S07", safetensors("{tensor}", 0), "BadHeader"),
        ("S08", safetensors("[]", 0), "BadHeader"),
        ("S09", safetensors(format!("{{\"t\":{}", "[".repeat(100_000)), 0), "BadHeader"),
        ("S09 closed", safetensors(format!("{{\"t\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)), 0), "BadHeader"),
        ("S10", safetensors(format!("{{{t},{t}}}"), 32), "DuplicateTensor"),
        ("S11", safetensors(format!("{{\"__metadata__\":{{\"a\":1}},{t}}}"), 32), "BadHeader"),
        ("S12", one("F7", "8", "0,32", 32), "BadDtype"),
        ("S12 of 4 bits", one("F4", "8", "0,4", 4), "BadDtype"),
        ("S13", one("F32", "-8", "0,32", 32), "BadShape"),
        ("S14", one("F32", "8.5", "0,32", 32), "BadShape"),
        ("S15", one("F32", "4294967296,4294967296", "0,32", 32), "SizeOverflow"),
        ("S16", one("F64", "2305843009213693952", "0,32", 32), "SizeOverflow"),
        ("S17", one("F32", "8", "32,0", 32), "BadOffset"),
        ("S18", one("F32", "8", "1000,1032", 32), "TensorOutOfFile"),
        ("S19", two("0,32", "16,48", 48), "Overlap"),
        ("S20", two("0,32", "48,80", 80), "Gap"),
        ("S21", one("F32", "8", "8,40", 40), "Gap"),
        ("S22", one("F32", "8", "0,32", 40), "TrailingData"),
        ("S23", one("F32", "7", "0,32", 32), "SizeMismatch"),
        ("S24", one("F32", "8", "0,32,64", 64), "BadHeader"),
        ("S25", safetensors(r#"{"t":{"dtype":"F32","data_offsets":[0,32]}}"#, 32), "BadHeader"),
        ("S26", safetensors(r#"{"t":{"dtype":"F32","shape":[8],"data_offsets":[0,32],"x":1}}"#, 32), "BadHeader"),
        ("S27", safetensors(format!(" {{{t}}}"), 32), "BadHeader"),
        ("S28", safetensors(format!("{{{t}}}\0\0\0"), 32), "BadHeader"),
        ("S28 of spaces", safetensors(format!("{{{t}}}   "), 32), "OK"),
        ("S29", one("F32", "0,8", "0,0", 0), "OK"),
        ("S29 amid others", safetensors(format!("{{{t},{}}}", entry("z", "F32", "0", "32,32")), 32), "OK"),
        ("S30", one("F32", "", "0,4", 4), "OK"),
        ("S31", one("F32", &["1"; 1000].join(","), "0,4", 4), "BadRank"),
        ("S32", safetensors(format!("{{{t}}} "), 32), "OK"),
        ("S33", safetensors(format!("{{{}}}", entry("../../etc/passwd", "F32", "8", "0,32")), 32), "OK"),
        ("S34", one("F32", "8", "0,1e308", 32), "BadOffset"),
        ("S35", safetensors(format!("{{{}}}", entry("", "F32", "8", "0,32")), 32), "BadTensorName"),
        ("S36", one("F32", "8", "0,32", 31), "TensorOutOfFile"),
        ("S37", one("BOOL", "8", "0,8", 8), "OK"),
        ("S38", safetensors(format!("\u{feff}{{{t}}}"), 32), "BadHeader"),
        ("S39", safetensors(format!("{{\"__metadata__\":{{}},\"__metadata__\":{{}},{t}}}"), 32), "DuplicateKey"),
        ("S39 within", safetensors(format!("{{\"__metadata__\":{{\"a\":\"1\",\"a\":\"2\"}},{t}}}"), 32), "DuplicateKey"),
        ("field twice", safetensors(r#"{"t":{"dtype":"F32","dtype":"F32","shape":[8],"data_offsets":[0,32]}}"#, 32), "BadHeader"),
        ("escaped name", safetensors(format!("{{{t},{}}}", entry("\\u0074", "F32", "8", "32,64")), 64), "DuplicateTensor"),
        ("NUL in name", safetensors(format!("{{{}}}", entry("a\\u0000", "F32", "8", "0,32")), 32), "BadTensorName"),
    ]
}

#[test]
fn each_gives_the_error_of_the_catalogue() {
    let mut wrong = Vec::new();
    for (id, bytes, want) in cases() {
        let got = Safetensors::from_bytes(&bytes).map_or_else(|e| class(e.kind()), |_| "OK".to_owned());
        if got != want {
            wrong.push(format!("{id}: {got}, must be {want}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A file with something of everything, near 40 KB.
fn varied() -> Vec<u8> {
    let mut header = "{\"__metadata__\":{\"format\":\"pt\",\"note\":\"\\u00e9\\n\"}".to_owned();
    let mut offset = 0;
    for i in 0..200 {
        let (dtype, shape, bytes) = [("F32", "3,5", 60), ("BF16", "7", 14), ("U8", "0", 0), ("I64", "", 8)][i % 4];
        header += &format!(",{}", entry(&format!("blk.{i}.w"), dtype, shape, &format!("{offset},{}", offset + bytes)));
        offset += bytes;
    }
    safetensors(header + "}", offset)
}

#[test]
fn x01_every_prefix_is_truncated() {
    let file = varied();
    assert!(file.len() > 15_000, "{}", file.len());
    for n in 0..file.len() {
        let e = Safetensors::from_bytes(&file[..n]).unwrap_err();
        assert!(e.kind().is_truncation(), "prefix of {n} bytes: {e}");
    }
}

#[test]
fn x02_every_flipped_bit_of_the_header_is_survived() {
    let file = varied();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (mut ok, mut refused) = (0, 0);
    let mut flipped = file.clone();
    // Every bit of the length and of the first tensors, then every seventh.
    for bit in (0..2000 * 8).chain((2000 * 8..header * 8).step_by(7)) {
        flipped[bit / 8] ^= 1 << (bit % 8);
        match Safetensors::from_bytes(&flipped) {
            Ok(got) => {
                ok += 1;
                assert!(got.tensors().iter().all(|t| t.offset() + t.bytes().get() <= file.len() as u64));
            }
            Err(e) => {
                refused += 1;
                assert!(!e.to_string().is_empty());
            }
        }
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(ok > 500 && refused > 500, "{ok} accepted, {refused} refused");
}

#[test]
fn what_both_accept_is_the_same() {
    let file = varied();
    let ours = Safetensors::from_bytes(&file).unwrap();
    let theirs = ::safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(ours.tensors().len(), theirs.len());
    for (name, view) in theirs.iter() {
        let tensor = ours.find(name).unwrap();
        let at = tensor.offset() as usize;
        assert_eq!(tensor.spec().shape.dims(), view.shape());
        assert_eq!(tensor.spec().dtype.name(), format!("{:?}", view.dtype()));
        assert_eq!(file[at..at + tensor.bytes().get() as usize], *view.data());
    }
    assert_eq!(ours.metadata().value("format"), Some("pt"));
    assert_eq!(ours.metadata().value("note"), Some("é\n"));
    assert_eq!(ours.metadata().value("absent"), None);
    assert_eq!(ours.metadata().iter().collect::<Vec<_>>(), [("format", "pt"), ("note", "é\n")]);
}

#[test]
fn what_they_refuse_we_refuse() {
    for (id, bytes, want) in cases() {
        if ::safetensors::SafeTensors::deserialize(&bytes).is_err() {
            assert_ne!(want, "OK", "{id}");
        }
    }
}
