//! The two command lines as a user runs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

fn convert(args: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_smq-convert"), args)
}

fn inspect(args: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_smq-inspect"), args)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn convert_then_inspect_in_every_form() {
    let dir = TempDir::new().unwrap();
    let (source, file) = (fixture(), dir.path().join("out.smq"));
    let (source, file) = (source.to_str().unwrap(), file.to_str().unwrap());
    let c4 = ["--preset", "study-c4", source];
    let planned = convert(&[&["--dry-run"], &c4[..]].concat());
    assert!(planned.status.success(), "{}", stderr(&planned));
    let done = convert(&[&c4[..], &[file]].concat());
    assert!(done.status.success(), "{}", stderr(&done));
    let bytes = std::fs::metadata(file).unwrap().len();
    let length = indicatif::HumanCount(bytes);
    let first = stdout(&planned);
    let first = first.lines().next().unwrap();
    assert!(
        first.contains(&format!("({length} bytes) would be written")),
        "{first}"
    );
    assert!(stdout(&done).contains("worst tensors"));

    let text = stdout(&inspect(&[file]));
    assert!(
        text.contains("e5m5") && text.contains("bits per weight  4.086"),
        "{text}"
    );
    assert!(stdout(&inspect(&[file, "--verify"])).starts_with("ok: "));
    assert!(stdout(&inspect(&[file, "--recheck", source])).starts_with("ok: "));
    let json: serde_json::Value =
        serde_json::from_slice(&inspect(&[file, "--json"]).stdout).unwrap();
    assert_eq!(json["sizes"]["file_bytes"], bytes);
    assert_eq!(stdout(&inspect(&[file, "--csv"])).lines().count(), 1 + 27);
    let page = dir.path().join("page.html");
    assert!(
        inspect(&[file, "--html", page.to_str().unwrap()])
            .status
            .success()
    );
    assert!(
        std::fs::read_to_string(&page)
            .unwrap()
            .starts_with("<!DOCTYPE html>")
    );

    assert!(inspect(&[file, "--strip-statistics"]).status.success());
    assert!(stdout(&inspect(&[file, "--verify"])).starts_with("ok: "));
    assert!(std::fs::metadata(file).unwrap().len() < bytes);
}

#[test]
fn failures_exit_with_1_and_usage_with_2() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.smq");
    let (source, out) = (fixture(), out.to_str().unwrap());
    let source = source.to_str().unwrap();
    let cases: [(&[&str], i32, &str); 7] = [
        (
            &["no-such-dir", out],
            1,
            "no-such-dir: no such file or directory",
        ),
        (&[source], 1, "no output file given"),
        (&["--mbits", "11", source, out], 2, "11 is not in -1..=10"),
        (
            &["--scales", "e9m1", source, out],
            2,
            "expected f32, f16, or eXmY",
        ),
        (
            &["--group-size", "0", source, out],
            1,
            "--group-size 0: must be 1 to 1048576",
        ),
        (&["--target", "(", source, out], 2, "unclosed group"),
        (
            &["--mbits", "3", "--scales", "f16", source, out],
            2,
            "cannot be used with",
        ),
    ];
    for (args, code, message) in cases {
        let output = convert(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert!(
            stderr(&output).contains(message),
            "{args:?}: {}",
            stderr(&output)
        );
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let damaged = dir.path().join("bad.smq");
    std::fs::write(&damaged, b"not an smq file at all").unwrap();
    let output = inspect(&[damaged.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("bad.smq: file is 22 bytes, shorter than"));
}

#[test]
fn a_leftover_of_a_killed_run_is_removed_and_a_live_runs_file_is_not() {
    let dir = TempDir::new().unwrap();
    let leftover = dir.path().join(".out.smq.x7Gh2a.smq-partial");
    std::fs::write(&leftover, b"").unwrap();
    let out = dir.path().join("out.smq");
    let output = convert(&[
        "--target",
        "mlp",
        fixture().to_str().unwrap(),
        out.to_str().unwrap(),
    ]);
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
    assert!(!leftover.exists());
    let live = smq_format::SmqWriter::create(&out, true).unwrap();
    let begun = std::fs::read_dir(dir.path()).unwrap().count();
    let again = convert(&[
        fixture().to_str().unwrap(),
        out.to_str().unwrap(),
        "--force",
    ]);
    assert!(again.status.success());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), begun);
    drop(live);
}

#[test]
fn synth_writes_a_checkpoint_that_converts() {
    let dir = TempDir::new().unwrap();
    let made = dir.path().join("synthetic");
    let config = fixture().join("config.json");
    let output = convert(&[
        "synth",
        "--like",
        config.to_str().unwrap(),
        made.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let out = dir.path().join("out.smq");
    let output = convert(&[
        "--target",
        "all",
        made.to_str().unwrap(),
        out.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
}

/// A made-up checkpoint whose config.json then says something else.
fn made_up(dir: &TempDir, change: impl Fn(&mut serde_json::Value)) -> (PathBuf, PathBuf) {
    let config = dir.path().join("config.json");
    let sizes = serde_json::json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 96, "tie_word_embeddings": false,
    });
    std::fs::write(&config, sizes.to_string()).unwrap();
    let checkpoint = dir.path().join("checkpoint");
    let made = convert(&[
        "synth",
        "--like",
        config.to_str().unwrap(),
        checkpoint.to_str().unwrap(),
    ]);
    assert!(made.status.success(), "{}", stderr(&made));
    let path = checkpoint.join("config.json");
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
    (checkpoint, dir.path().join("out.smq"))
}

#[test]
fn what_a_config_contradicts_is_said_or_refused() {
    let dir = TempDir::new().unwrap();
    let convert = |change: &dyn Fn(&mut serde_json::Value)| {
        let (checkpoint, out) = made_up(&dir, change);
        let (checkpoint, out) = (checkpoint.to_str().unwrap(), out.to_str().unwrap());
        let done = convert(&[checkpoint, out, "--force"]);
        std::fs::remove_dir_all(checkpoint).unwrap();
        done
    };
    let quiet = stdout(&convert(&|_| ()));
    assert!(
        quiet.contains("worst tensors") && !quiet.contains("note"),
        "{quiet}"
    );
    let text = stderr(&convert(&|c| {
        c["tie_word_embeddings"] = true.into();
        c["rope_scaling"] = serde_json::json!({"type": "mrope", "factor": 4.0});
    }));
    for words in [
        "tie_word_embeddings is true",
        "lm_head.weight",
        "smq-run will not",
        "mrope",
    ] {
        assert!(text.contains(words), "{text}");
    }
    for (key, value, words) in [
        (
            "vocab_size",
            serde_json::Value::Null,
            &["config.json", "vocab_size is null"][..],
        ),
        (
            "vocab_size",
            95.into(),
            &["config.json", "[95, 64]", "[96, 64]"],
        ),
        (
            "num_hidden_layers",
            2.into(),
            &["config.json", "model.layers.1.", "is not in"],
        ),
        (
            "model_type",
            "phi3".into(),
            &["config.json", "qkv_proj", "is not in"],
        ),
        (
            "architectures",
            serde_json::json!(["Phi3ForCausalLM"]),
            &["config.json", "\"llama\""],
        ),
    ] {
        let failed = convert(&|c| c[key] = value.clone());
        assert!(!failed.status.success(), "{key}");
        let message = stderr(&failed);
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}
