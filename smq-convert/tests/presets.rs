//! `--preset`, and what a command line without options makes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use smq_format::{Family, Scheme, SmqFile};
use tempfile::TempDir;

fn fixture() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny");
    path.to_str().unwrap().to_owned()
}

fn text() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/sample.txt");
    path.to_str().unwrap().to_owned()
}

fn convert(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smq-convert"));
    command.args(args).output().unwrap()
}

/// What was said on standard error.
fn converts(args: &[&str]) -> String {
    let output = convert(args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {said}");
    said
}

fn refusal(args: &[&str]) -> String {
    let output = convert(args);
    assert!(!output.status.success(), "{args:?} is accepted");
    String::from_utf8(output.stderr).unwrap()
}

/// The schemes of attention's and of the MLP's projections.
fn families(file: &Path) -> (Vec<Option<Family>>, Vec<Option<Family>>) {
    let file = SmqFile::open(file).unwrap();
    let of = |part: &str| {
        let tensors = file
            .tensors()
            .filter(|t| t.name().contains(part) && t.name().ends_with("_proj.weight"));
        let families = tensors.map(|t| t.entry().scheme.kind().family());
        families.collect::<Vec<_>>()
    };
    let found = (of("self_attn"), of("mlp"));
    assert!(!found.0.is_empty() && !found.1.is_empty());
    found
}

#[test]
fn a_plain_command_takes_every_linear_layer_and_says_so_in_one_line() {
    let dir = TempDir::new().unwrap();
    let (plain, named) = (dir.path().join("plain.smq"), dir.path().join("named.smq"));
    let (source, plain_name) = (fixture(), plain.to_str().unwrap());
    let said = converts(&[&source, plain_name]);
    assert_eq!(said.lines().count(), 1, "{said}");
    for words in [
        "note: taking --preset nf4 (NF4: ",
        "all linear layers, which loses least in 4 bits without a text",
        "--preset small --calibrate TEXT (int4, E5M3 scales: ",
        "--preset fine --calibrate TEXT (lut4, E5M3 scales, groups of 64: ",
        "--preset best (FP8, FP8 activations: ",
        " MB)",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let (attention, mlp) = families(&plain);
    assert!(
        [attention, mlp]
            .concat()
            .iter()
            .all(|f| *f == Some(Family::Nf4))
    );
    // By its name it is the same file, and nothing is to be said.
    assert_eq!(
        converts(&["--preset", "nf4", &source, named.to_str().unwrap()]),
        ""
    );
    assert!(std::fs::read(&plain).unwrap() == std::fs::read(&named).unwrap());
}

#[test]
fn with_a_text_a_plain_command_calibrates_int4_in_the_width_that_is_enough() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.smq");
    let (source, text, name) = (fixture(), text(), out.to_str().unwrap());
    let tokens = ["--calibrate-tokens", "128", "--calibrate-window", "64"];
    let cpu = ["--device", "cpu", "--calibrate", &text, "--", &source, name];
    let said = converts(&[&tokens[..], &cpu].concat());
    assert!(
        said.contains("note: taking --preset small (int4, E5M3"),
        "{said}"
    );
    assert!(said.contains("calibrated on the text"), "{said}");
    let file = SmqFile::open(&out).unwrap();
    let name = "model.layers.0.self_attn.qkv_proj.weight";
    match file.tensor(name).unwrap().entry().scheme {
        Scheme::Int4 { group: 128, scales } => assert_eq!(scales.to_string(), "e5m3"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_studys_presets_are_its_configs() {
    let dir = TempDir::new().unwrap();
    let source = fixture();
    let bytes = |name: &str, args: &[&str]| {
        let out = dir.path().join(name);
        let said = converts(&[args, &[&source, out.to_str().unwrap()]].concat());
        assert_eq!(said, "", "{args:?}");
        std::fs::read(out).unwrap()
    };
    for (preset, options) in [
        ("study-c1", &["--scheme", "fp8", "--target", "mlp"][..]),
        ("study-c2", &["--scheme", "nf4", "--target", "mlp"]),
        ("study-c3", &["--mbits", "-1", "--target", "mlp"]),
        ("study-c4", &["--mbits", "5", "--target", "mlp"]),
        ("study-c5-e5m3", &["--mbits", "3", "--target", "mlp"]),
        ("study-c5-e5m0", &["--mbits", "0", "--target", "mlp"]),
        ("study-c6", &["--mbits", "5", "--target", "all"]),
    ] {
        let named = bytes(&format!("{preset}.smq"), &["--preset", preset]);
        let spelled = bytes(&format!("{preset}-spelled.smq"), options);
        assert!(named == spelled, "{preset}");
    }
    // Options without --target take every linear layer.
    let all = bytes("all.smq", &["--mbits", "5"]);
    assert!(all == std::fs::read(dir.path().join("study-c6.smq")).unwrap());
}

#[test]
fn the_list_needs_no_checkpoint_and_a_preset_goes_with_what_it_was_measured_with() {
    let output = convert(&["--preset", "list"]);
    assert!(output.status.success());
    let list = String::from_utf8(output.stdout).unwrap();
    for row in [
        "small          int4, E5M3                all     yes   4.08    0.135   -4.9 %",
        "study-c4       int4, E5M5                mlp     no    4.09    0.348   -6.3 %",
    ] {
        assert!(list.contains(row), "{list}");
    }
    assert!(
        list.lines().all(|line| line.chars().count() <= 80),
        "{list}"
    );
    let (source, text) = (fixture(), text());
    let said = refusal(&["--preset", "small", &source, "out.smq"]);
    assert!(
        said.contains("--preset small was measured calibrated: add --calibrate TEXT"),
        "{said}"
    );
    let said = refusal(&[
        "--preset",
        "study-c4",
        "--calibrate",
        &text,
        "--",
        &source,
        "out.smq",
    ]);
    assert!(
        said.contains("is rounded to nearest, without a text: leave --calibrate out"),
        "{said}"
    );
    let said = refusal(&["--preset", "nf4", "--mbits", "5", &source, "out.smq"]);
    assert!(said.contains("cannot be used with"), "{said}");
    let said = refusal(&["--preset", "tiny", &source, "out.smq"]);
    assert!(said.contains("invalid value 'tiny'"), "{said}");
}

#[test]
fn an_output_that_says_it_is_something_else_is_refused() {
    let said = refusal(&[&fixture(), "model.gguf"]);
    assert!(
        said.contains("model.gguf is named as a .gguf file, and a .smq file is written")
            && said.contains("name it model.smq"),
        "{said}"
    );
}

#[test]
fn what_vllm_cannot_read_is_refused_before_it_is_made() {
    let dir = TempDir::new().unwrap();
    // Rows of 192 columns, which groups of 128 do not divide.
    let config = dir.path().join("config.json");
    let sizes = serde_json::json!({
        "model_type": "llama", "hidden_size": 192, "intermediate_size": 256,
        "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 96,
        "tie_word_embeddings": false,
    });
    std::fs::write(&config, sizes.to_string()).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (source, out) = (path("checkpoint"), path("out.smq"));
    converts(&["synth", "--like", config.to_str().unwrap(), &source]);
    let (source, out) = (source.as_str(), out.as_str());
    let with =
        |args: &[&'static str]| [&["--for", "vllm", "--force"], args, &[source, out]].concat();
    for (args, words) in [
        (
            &["--mbits", "5"][..],
            "192 columns, which groups of 128 do not divide; --group-size 64",
        ),
        (&["--scheme", "nf4"], "takes int4 and FP8, which"),
        (&["--preset", "nf4"], "takes int4 and FP8, which"),
        (&["--preset", "study-c3"], "exact in neither bf16 nor f16"),
        (
            &["--mbits", "-1", "--group-size", "64"],
            "exact in neither bf16 nor f16",
        ),
        (
            &["--mbits", "5", "--group-size", "16"],
            "groups of 128, 64 and 32, not of 16",
        ),
        (
            &["--mbits", "auto", "--budget", "5"],
            "give --mbits a number",
        ),
    ] {
        let said = refusal(&with(args));
        assert!(said.contains(words), "{args:?}: {said}");
        assert!(!Path::new(out).exists());
    }
    let said = converts(&with(&[]));
    let expected = "note: for vLLM: int4 with E5M3 scales in groups of 64, all linear layers";
    assert!(said.contains(expected), "{said}");
    converts(&["--to", "compressed-tensors", out, &path("served")]);
    converts(&with(&["--scales", "f16", "--group-size", "32"]));
    // FP8 has a scale a row, which no number of columns is in the way of.
    converts(&with(&["--preset", "best"]));
    let output = convert(&["--to", "compressed-tensors", out, &path("fp8")]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("FP8 codes and f32 scales are kept as they are"),
        "{said}"
    );
}
