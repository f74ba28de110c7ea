//! The binaries as a shell meets them: refused input ends with code 2 and one JSON object, a closed pipe ends quietly.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const ALL: [&str; 7] = ["bench", "chat", "generate", "imagine", "inspect", "perplexity", "plan"];

/// An example, which `cargo test` has built beside the folder of the tests.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("this test's file");
    let folder = test.ancestors().nth(2).expect("deps is below the profile").join("examples");
    Command::new(folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX)))
}

fn run(name: &str, arguments: &[&str]) -> Output {
    example(name).args(arguments).stdin(Stdio::null()).output().expect("`cargo test` without a target builds it")
}

fn fixture(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models");
    folder.join(name).to_str().expect("UTF-8").to_owned()
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tenure-examples-{}-{name}", std::process::id()))
}

/// The kind of the one error that stdout holds.
fn refused(name: &str, arguments: &[&str]) -> String {
    let output = run(name, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{name} {arguments:?}: {said}");
    assert!(!said.contains("panicked"), "{name} {arguments:?}: {said}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(answer.as_object().map(serde_json::Map::len), Some(1), "{answer}");
    assert!(answer["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer}");
    answer["error"]["kind"].as_str().expect("a kind").to_owned()
}

fn total(arguments: &[&str]) -> (Value, bool) {
    let output = run("plan", arguments);
    assert!(output.status.success(), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    (answer["total_bytes"].clone(), answer["fits"] == Value::Bool(true))
}

#[test]
fn refused_arguments_are_json_where_it_is_asked_for() {
    let model = fixture("llama-f32.gguf");
    let cases: [(&str, &[&str]); 10] = [
        ("generate", &["--device", "gpu", "--json"]),
        ("bench", &["--device", "vulkan:", "--json"]),
        ("generate", &["--json", "--temp", "x"]),
        ("generate", &["--kv", "q4", "--json"]),
        ("inspect", &["--json"]),
        ("perplexity", &["--json"]),
        ("plan", &["--json", "--budget", "1T"]),
        ("bench", &["--json", "-m", &model, "-d", "18446744073709551615"]),
        ("bench", &["--json", "-m", &model, "--steps", "3"]),
        ("perplexity", &["--json", "-m", &model, "-f", &model, "-c", "2"]),
    ];
    for (name, arguments) in cases {
        assert_eq!(refused(name, arguments), "BadParameter", "{name} {arguments:?}");
    }
    let output = run("generate", &["--temp", "x"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(!output.stderr.is_empty());
}

#[test]
fn help_and_version_are_no_errors() {
    for name in ALL {
        for asked in ["--help", "--version"] {
            let output = run(name, &[asked, "--json"]);
            assert_eq!(output.status.code(), Some(0), "{name} {asked}");
            assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{name} {asked}");
        }
    }
}

/// Whatever GPUs the machine has, and whether it has any.
#[test]
fn devices_are_listed_and_absent_ones_refused() {
    for name in ["bench", "chat", "generate", "imagine", "perplexity", "plan"] {
        let output = run(name, &["--list-devices"]);
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
        assert!(output.stdout.starts_with(b"cpu\n"), "{name}: {output:?}");
        let output = run(name, &["-m", "nowhere", "--device", "vulkan:1000", "--list-devices"]);
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
    }
    let output = run("plan", &["--list-devices", "--json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let found = answer["devices"].as_array().expect("a list");
    assert_eq!(found.is_empty(), answer["none"].is_string(), "{answer}");
    assert_eq!(run("inspect", &["--list-devices"]).status.code(), Some(2), "it loads no model");

    let kind = refused("plan", &["--json", "-m", &fixture("llama-f32.gguf"), "--device", "vulkan:1000"]);
    let known = ["NoLoader", "NoDriver", "NoDevice", "UnknownDevice"];
    assert!(known.contains(&kind.as_str()), "{kind}");
    assert_eq!(kind == "UnknownDevice", !found.is_empty());
}

#[test]
fn absent_and_truncated_files_are_refused() {
    let bytes = std::fs::read(fixture("llama-f32.gguf")).expect("a fixture");
    let cut = scratch("cut.gguf");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).expect("writable");
    let absent = scratch("absent.gguf");
    for path in [&cut, &absent] {
        let path = path.to_str().expect("UTF-8");
        refused("inspect", &["--json", path]);
        for name in ["bench", "generate", "imagine", "plan"] {
            refused(name, &["--json", "-m", path]);
        }
        refused("perplexity", &["--json", "-m", path, "-f", path]);
    }
    std::fs::remove_file(&cut).expect("ours");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let model = fixture("llama-f32.gguf");
    let text = scratch("text.txt");
    std::fs::write(&text, "a few words, again and again; ".repeat(40)).expect("writable");
    let text_path = text.to_str().expect("UTF-8");
    let cases: [(&str, &[&str]); 9] = [
        ("inspect", &[&model]),
        ("inspect", &[&model, "--json"]),
        ("plan", &["-m", &model, "--steps"]),
        ("plan", &["-m", &model, "--json"]),
        ("generate", &["-m", &model, "--tokens", "1,2", "-n", "8", "--ignore-eos"]),
        ("generate", &["-m", &model, "--tokens", "1,2", "-n", "8", "--json"]),
        ("perplexity", &["-m", &model, "-f", text_path, "-c", "8", "--chunks", "2"]),
        ("perplexity", &["-m", &model, "-f", text_path, "-c", "8", "--chunks", "2", "--json"]),
        ("generate", &["--help"]),
    ];
    for (name, arguments) in cases {
        // Nobody reads either stream.
        let mut command = example(name);
        let mut child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("`cargo test` without a target builds it");
        drop((child.stdout.take(), child.stderr.take()));
        assert_eq!(child.wait().expect("ended").code(), Some(0), "{name} {arguments:?}");
    }
    std::fs::remove_file(&text).expect("ours");
}

#[test]
fn the_total_of_a_plan_is_a_budget_that_fits() {
    let model = fixture("llama-f32.gguf");
    let (bytes, fits) = total(&["-m", &model, "--json"]);
    assert!(fits);
    let bytes = bytes.as_u64().expect("a number");
    assert_eq!(total(&["-m", &model, "--json", "--budget", &bytes.to_string()]), (bytes.into(), true));
    assert_eq!(total(&["-m", &model, "--json", "--budget", &(bytes - 1).to_string()]), (bytes.into(), false));
    // And it is what loading needs.
    let generate = |budget: u64| {
        run("generate", &["-m", &model, "--tokens", "1,2", "-n", "1", "--budget", &budget.to_string()]).status.code()
    };
    assert_eq!((generate(bytes), generate(bytes - 1)), (Some(0), Some(2)));
}

/// The small model that draws.
fn paint() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/paint/paint.safetensors");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn images_that_cannot_be_drawn_are_refused() {
    let (paint, text, many) = (paint(), fixture("llama-f32.gguf"), "word ".repeat(5000));
    let out = scratch("refused.png").to_str().expect("UTF-8").to_owned();
    let cases: &[(&[&str], &str)] = &[
        (&["-W", "0", "-H", "0"], "BadParameter"),
        (&["-W", "-64", "-H", "64"], "BadParameter"),
        (&["-W", "100", "-H", "100"], "BadParameter"),
        (&["-W", "100000", "-H", "100000"], "BadParameter"),
        (&["--steps", "0"], "BadParameter"),
        (&["--steps", "18446744073709551615"], "BadParameter"),
        (&["--batch", "0"], "BadParameter"),
        (&["--batch", "1000"], "BadParameter"),
        (&["--batch", "18446744073709551615"], "BadParameter"),
        (&["--seed", "-1"], "BadParameter"),
        (&["--cfg-scale", "NaN"], "BadDiffusion"),
        (&["--cfg-scale", "1e30"], "BadDiffusion"),
        (&["--cfg-rescale", "-1"], "BadDiffusion"),
        (&["--cfg-interval", "0.9,0.1"], "BadDiffusion"),
        (&["--cfg-interval", "0.9"], "BadParameter"),
        (&["--preview", "0"], "BadParameter"),
        (&["-p", &many], "TooManyChunks"),
        (&["-n", &many], "TooManyChunks"),
        (&["-W", "100000", "-H", "100000", "--init-img", &text], "BadImage"),
        (&["--init-img", "/nowhere/at/all.png"], "Io"),
        (&["--init-img", "/dev/zero"], "NotAFile"),
        (&["--device", "gpu"], "BadParameter"),
        (&["--budget", "1K"], "TooLarge"),
        (&["--sampler", "none"], "BadParameter"),
        (&["--sigmas", "1,2"], "UnsortedSigmas"),
        (&["--tile", "100"], "BadParameter"),
        (&["--mask", &text], "BadParameter"),
        (&["--init-img", &text], "BadImage"),
        (&["--init-latents", &text], "MissingTensor"),
        (&["-o", "/nowhere/at/all.png"], "Io"),
        (&["-o", "/"], "Io"),
        (&["-o", "picture.jpg"], "Io"),
        (&["--latents-out", "/nowhere/at/all.safetensors"], "Io"),
        (&["--latents-out", &out], "Io"),
        (&["--strength", "0.5"], "BadParameter"),
        (&["--mask-blur", "2"], "BadParameter"),
        (&["--mask-grow", "2"], "BadParameter"),
        (&["--mask-invert"], "BadParameter"),
        (&["--taesd-preview-only"], "BadParameter"),
        (&["--sigmas", "14,7,0", "--steps", "5"], "BadParameter"),
        (&["--skip-layers", "7"], "BadParameter"),
    ];
    for &(arguments, kind) in cases {
        let all = [&["--json", "-m", &paint, "-o", &out], arguments].concat();
        // A later flag of one name is refused by the parser.
        let all: Vec<&str> =
            if arguments.contains(&"-o") { [&["--json", "-m", &paint], arguments].concat() } else { all };
        assert_eq!(refused("imagine", &all), kind, "{arguments:?}");
    }
    assert_eq!(refused("imagine", &["--json", "-m", &text]), "TextModel");
    for alien in [["--ctx", "5"], ["--ngl", "3"], ["--kv", "q8_0"], ["--sequences", "4"], ["--batch", "9"]] {
        assert_eq!(refused("plan", &[&["--json", "-m", &paint][..], &alien].concat()), "BadParameter", "{alien:?}");
    }
    assert_eq!(refused("generate", &["--json", "-m", &paint]), "NoMetadata");
}

/// A PNG's chunk.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind[..], data].concat();
    // CRC-32 as PNG has it (ISO 3309).
    let mut crc = u32::MAX;
    for byte in &body {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    [&(data.len() as u32).to_be_bytes()[..], &body, &(!crc).to_be_bytes()].concat()
}

#[test]
fn pictures_that_cannot_be_read_are_refused() {
    let (paint, file, mask) = (paint(), scratch("init.png"), scratch("mask.png"));
    let (path, mask_path) = (file.to_str().expect("UTF-8"), mask.to_str().expect("UTF-8"));
    let out = scratch("never.png");
    let small = ["--json", "-m", &paint, "--steps", "2", "--init-img", path, "-o", out.to_str().expect("UTF-8")];
    let draw = |more: &[&str]| refused("imagine", &[&small[..], more].concat());
    // A hundred bytes that say 65,535 by 65,535 pixels.
    let header = |side: u32| [&side.to_be_bytes()[..], &side.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let signature = b"\x89PNG\r\n\x1a\n";
    let large = [&signature[..], &chunk(b"IHDR", &header(65535)), &chunk(b"IDAT", &[]), &chunk(b"IEND", &[])].concat();
    std::fs::write(&file, &large).expect("writable");
    assert_eq!(draw(&[]), "ImageTooLarge");
    // A text that grows from nothing to a gibibyte is not kept.
    let bomb = [b"comment\0\0".as_slice(), &[0x78, 0x9c], &vec![0; 1 << 16]].concat();
    let bombed = [&signature[..], &chunk(b"IHDR", &header(64)), &chunk(b"zTXt", &bomb), &chunk(b"IEND", &[])].concat();
    std::fs::write(&file, &bombed).expect("writable");
    assert_eq!(draw(&[]), "BadImage");

    // One that is a hundred thousand times as wide as high is cut before it is brought to a size, not after.
    let wide = tenure::Picture::new(100_000, 1, vec![90; 300_000]).expect("sound");
    tenure_examples::png::write(&file, &wide, "").expect("writable");
    assert!(run("imagine", &[&small[..], &["-W", "64", "-H", "64"]].concat()).status.success());

    let picture = tenure::Picture::new(64, 64, (0..64 * 64 * 3).map(|i| (i % 251) as u8).collect()).expect("sound");
    tenure_examples::png::write(&file, &picture, "").expect("writable");
    let whole = std::fs::read(&file).expect("was written");
    for end in [0, 1, 8, 20, 33, 60, whole.len() / 2, whole.len() - 20] {
        std::fs::write(&file, &whole[..end]).expect("writable");
        assert_eq!(draw(&[]), "BadImage", "{end} bytes");
    }
    std::fs::write(&file, &whole).expect("writable");
    for strength in ["0", "1.5", "-1", "NaN"] {
        assert_eq!(draw(&["--strength", strength]), "BadDiffusion", "{strength}");
    }
    for size in [["-W", "100000", "-H", "100000"], ["-W", "100", "-H", "100"], ["-W", "-8", "-H", "64"]] {
        assert_eq!(draw(&size), "BadParameter", "{size:?}");
    }
    let other = tenure::Picture::new(72, 64, vec![255; 72 * 64 * 3]).expect("sound");
    tenure_examples::png::write(&mask, &other, "").expect("writable");
    assert_eq!(draw(&["--mask", mask_path]), "BadParameter");
    // A mask of the picture's own size is brought to the size that is drawn as the picture is.
    tenure_examples::png::write(&mask, &picture, "").expect("writable");
    assert!(run("imagine", &[&small[..], &["-W", "128", "-H", "64", "--mask", mask_path]].concat()).status.success());
    for blur in ["nan", "inf", "-1", "1e30"] {
        assert_eq!(draw(&["--mask", mask_path, "--mask-blur", blur]), "BadParameter", "{blur}");
    }
    for file in [file, mask, out] {
        std::fs::remove_file(file).expect("ours");
    }
}

/// Images are drawn on the processor; a GPU that has no kernels for them says so.
#[test]
fn a_gpu_that_cannot_draw_is_refused() {
    let listed = run("plan", &["--list-devices", "--json"]);
    let answer: Value = serde_json::from_slice(&listed.stdout).expect("one JSON object");
    let found = !answer["devices"].as_array().expect("a list").is_empty();
    let paint = paint();
    let draw = ["--json", "-m", &paint, "-W", "64", "-H", "64", "--device", "vulkan:0"];
    let kind = refused("imagine", &draw);
    assert_eq!(kind == "UnsupportedOp", found, "{kind}");
}

#[test]
fn truncated_image_models_are_refused() {
    let whole = std::fs::read(paint()).expect("a fixture");
    let cut = scratch("cut.safetensors");
    for end in [0, 4, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&cut, &whole[..end]).expect("writable");
        refused("imagine", &["--json", "-m", cut.to_str().expect("UTF-8")]);
    }
    std::fs::remove_file(&cut).expect("ours");
}

#[test]
fn a_picture_carries_what_made_it() {
    let (out, latents) = (scratch("x.png"), scratch("x.safetensors"));
    let (out_path, latents_path) = (out.to_str().expect("UTF-8"), latents.to_str().expect("UTF-8"));
    let paint = paint();
    let small = ["--json", "-m", &paint, "-W", "72", "-H", "64", "--steps", "2", "--seed", "5", "-o", out_path];
    let draw = |more: &[&str]| {
        let output = run("imagine", &[&small[..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        (answer, std::fs::read(&out).expect("was written"))
    };
    let (answer, bytes) = draw(&["-p", "a red circle", "-n", "a blue square", "--latents-out", latents_path]);
    assert_eq!(answer["seeds"], serde_json::json!([5]));
    assert_eq!(answer["sigmas"].as_array().map(Vec::len), Some(2));
    let memory = &answer["memory"];
    assert_eq!(memory["planned_bytes"], memory["allocated_bytes"]);
    assert!(bytes.starts_with(b"\x89PNG"));
    let text = String::from_utf8_lossy(&bytes);
    for part in ["parameters\0a red circle\nNegative prompt: a blue square\nSteps: 2, ", "Seed: 5, Size: 72x64"] {
        assert!(text.contains(part), "{part}");
    }
    // The same again, from a picture, and of a prompt in other letters.
    assert_eq!(draw(&["-p", "a red circle", "-n", "a blue square", "--cfg-interval", "0,1"]).1, bytes);
    let (_, changed) = draw(&["-p", "\u{8d64}\u{3044}\u{5186}", "--init-img", out_path, "--strength", "0.5"]);
    assert!(String::from_utf8_lossy(&changed).contains("\u{8d64}\u{3044}\u{5186}"));
    let store = tenure::WeightStore::open(&latents).expect("was written");
    assert_eq!(store.find("latents").expect("there").spec().shape.dims(), [1, 4, 8, 9]);
    let plan = run("plan", &["--json", "-m", &paint, "-W", "64", "-H", "64"]);
    let answer: Value = serde_json::from_slice(&plan.stdout).expect("one JSON object");
    assert_eq!((&answer["fits"], &answer["family"]), (&Value::Bool(true), &"Stable Diffusion 1".into()));
    for file in [out, latents] {
        std::fs::remove_file(file).expect("ours");
    }
}

#[test]
fn a_full_context_does_not_end_a_conversation() {
    let model = fixture("llama-f32.gguf");
    let mut child = example("chat")
        .args(["-m", &model, "-c", "64", "--temp", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`cargo test` without a target builds it");
    let mut lines = child.stdin.take().expect("piped");
    let long = "word ".repeat(200);
    for line in ["a", "b", long.as_str(), "c"] {
        writeln!(lines, "{line}").expect("read");
    }
    drop(lines);
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
    assert_eq!(child.wait().expect("ended").code(), Some(0), "{said}");
    assert!(said.contains("context of 64 tokens"), "{said}");
    assert!(said.contains("not answered"), "{said}");
}
